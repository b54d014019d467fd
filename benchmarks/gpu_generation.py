"""Answers of a random Llama-3.1-8B: batched and one at a time, in four bits, expanded, bf16, with adapters.

    python benchmarks/gpu_generation.py OUT [--shrink]

Weights are drawn on the device (no download, no checkpoint); prompts have the lengths of the paper's data,
and every answer has the same number of new tokens. All ways run in interleaved repetitions; the table gives
medians. A decoding step reads every weight once whatever the batch, so the ceiling is the memory rate
measured in the same run over the bytes of the weights, times the batch; "of ceiling" includes reading the
prompts. "+ adapters" has an SFT and a DPO adapter attached, not merged, as policies in 16 and 4 bits answer
here. That batches, shared prefixes, adapters and expanded weights leave the very same answers is checked
first, on a small float32 model. ``--shrink`` does all of it with a tiny model, on a CPU too. Writes OUT.csv
and OUT.md.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_training
import llama31
import measure

from persona_lib.config import load_profile
from persona_lib.models import llm
from persona_lib.models.generate import TransformersGenerator

SEED = 0
EQUAL_PROMPTS, EQUAL_TOKENS = 12, 24
ADAPTERS = ("sft", "dpo")
WORDS = ("clean", "the", "old", "kettle", "and", "pack", "my", "new", "horse", "for", "a", "gift")


@dataclass(frozen=True)
class Bench:
    """What is measured: a model, its tokenizer, lengths of prompts (words) and answers (tokens), sizes."""

    config: Any
    tokenizer: Any
    words: tuple[int, int]
    new_tokens: int
    repeats: int
    batches: tuple[int, ...]
    copied: int


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    quantization: str
    expand: bool
    batch: int
    adapters: bool = False

    @property
    def base(self) -> str:
        """What the weights are while it generates."""
        base = "bfloat16" if self.quantization == "none" else "nf4, expanded" if self.expand else "nf4"
        return base + " + adapters" * self.adapters


def make_bench(shrink: bool) -> Bench:
    """Return the sizes of a run: Llama-3.1-8B at the paper's lengths, or all of it tiny."""
    tokenizer = llama31.example_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if shrink:
        config = llama31.llama_config(**llama31.SMALL, **ids, vocab_size=len(tokenizer))
        return Bench(config, tokenizer, words=(4, 8), new_tokens=6, repeats=2, batches=(1, 4), copied=10**6)
    sizes = {"new_tokens": 128, "repeats": 3, "batches": (1, 16, 64), "copied": 4 * 10**9}
    return Bench(llama31.llama_config(**ids), tokenizer, words=(30, 80), **sizes)


def make_prompts(words: tuple[int, int], n: int) -> list[str]:
    """Return prompts of random words."""
    rng = random.Random(SEED)
    return [f"Prompt: {' '.join(rng.choices(WORDS, k=rng.randint(*words)))}\nResponse:" for _ in range(n)]


def weight_bytes(model: Any) -> int:
    """Return the bytes that a decoding step reads: all weights but the embedding table."""
    skipped = model.get_input_embeddings().weight
    weights = [p for p in model.parameters() if p is not skipped]
    scales = [state for p in weights if (state := getattr(p, "quant_state", None)) is not None]
    return sum(p.numel() * p.element_size() for p in weights) + sum(
        state.absmax.numel() * state.absmax.element_size() for state in scales
    )


# --- equality ---


def answers(model: Any, tokenizer: Any, batch: int, prompts: list[str], prefix: str = "") -> list[str]:
    """Return the completions of prompts, in their order."""
    generator = TransformersGenerator(model, tokenizer, "base", batch, adapters_of(model))
    done = dict(generator.generate(prompts, EQUAL_TOKENS, (), prefix=prefix))
    return [done[number].text for number in range(len(prompts))]


def equality_lines(bench: Bench) -> list[str]:
    """Check on a small float32 model that no way changes an answer; exits if one does."""
    config = llama31.llama_config(**llama31.SMALL, vocab_size=len(bench.tokenizer), initializer_range=0.1)
    prompts = make_prompts((3, 12), EQUAL_PROMPTS)
    plain, four_bits = (llama31.random_base(config, q, device=llm.device()) for q in ("none", "nf4"))
    shots = "Prompt: How do I pack?\nResponse: Use a box.\n\n"
    whole = [shots + prompt for prompt in prompts]
    pairs = {
        "batches of 4": [answers(plain, bench.tokenizer, size, prompts) for size in (1, 4)],
        "a shared prefix": [
            answers(plain, bench.tokenizer, 1, whole),
            answers(plain, bench.tokenizer, 4, prompts, shots),
        ],
        "batches of 4 in NF4": [answers(four_bits, bench.tokenizer, size, prompts) for size in (1, 4)],
    }
    stacked = with_adapters(llama31.random_base(config, device=llm.device()))
    pairs["two adapters"] = [answers(stacked, bench.tokenizer, size, prompts) for size in (1, 4)]
    if pairs["two adapters"][0] == pairs["batches of 4"][0]:
        sys.exit("two adapters: the answers are those without: they show nothing")
    before = pairs["batches of 4 in NF4"][0]
    pairs["NF4, expanded"] = [before, answers(four_bits.dequantize(), bench.tokenizer, 4, prompts)]
    for name, (one, other) in pairs.items():
        if one != other or len(set(one)) < 2:
            sys.exit(f"{name}: the answers differ, or are all the same")
    n = f"{EQUAL_PROMPTS} prompts x {EQUAL_TOKENS} tokens"
    return [f"Answers equal to one prompt at a time (small float32 model, {n}): {', '.join(pairs)}."]


# --- timing ---


def with_adapters(model: Any) -> Any:
    """Attach two random adapters of the paper profile's size, one on top of the other."""
    with tempfile.TemporaryDirectory() as name:
        profile = load_profile("paper")
        folders = [gpu_training.save_adapter(profile, model, Path(name) / method) for method in ADAPTERS]
        return llm.attach_adapters(model, folders)


def adapters_of(model: Any) -> tuple[str, ...]:
    """Return the adapters that ``with_adapters`` attached, () for a base."""
    return ADAPTERS if hasattr(model, "peft_config") else ()


def load(bench: Bench, case: Case) -> Any:
    """Return a freshly drawn model in the case's precision, with adapters if it has them."""
    model = llama31.random_base(bench.config, case.quantization, "bfloat16", llm.device())
    model = model.dequantize() if case.expand else model
    return with_adapters(model) if case.adapters else model


def measure_case(bench: Bench, case: Case, prompts: int) -> dict[str, float | None]:
    """Time the answers to some prompts; returns tokens per second, bytes of weights and peak memory."""
    measure.release()
    model = load(bench, case)
    generator = TransformersGenerator(model, bench.tokenizer, "base", case.batch, adapters_of(model))
    asked = make_prompts(bench.words, prompts)

    def generate() -> None:
        found = list(generator.generate(asked, bench.new_tokens, (), min_new_tokens=bench.new_tokens))
        assert all(completion.n_tokens == bench.new_tokens for _, completion in found)

    list(generator.generate(asked[: case.batch], 2, ()))  # warm up
    taken = measure.seconds(generate)
    return {
        "rate": prompts * bench.new_tokens / taken,
        "bytes": weight_bytes(model),
        "peak": measure.peak_gb(),
    }


def measure_or_refuse(bench: Bench, case: Case) -> dict[str, float | None] | None:
    """Return the figures of a case, or None if the GPU's memory does not hold it."""
    import torch

    try:
        return measure_case(bench, case, max(case.batch, bench.batches[1]) if case.batch > 1 else 2)
    except torch.OutOfMemoryError:
        return None
    finally:
        measure.release()


def table_row(bench: Bench, case: Case, runs: list[Any], memory_rate: float) -> dict[str, Any]:
    """Return a case's line: medians over the repetitions, with the range of the rate."""
    row: dict[str, Any] = {"base": case.base, "batch": case.batch, "new tokens": bench.new_tokens}
    names = ("tokens/s", "slowest", "fastest", "ceiling tokens/s", "of ceiling", "weights GB", "peak GB")
    if None in runs:
        return row | dict.fromkeys(names) | {"tokens/s": "out of memory"}
    rates = [run["rate"] for run in runs]
    rate, ceiling = statistics.median(rates), case.batch * memory_rate / runs[0]["bytes"]
    values = (rate, min(rates), max(rates), ceiling, rate / ceiling, runs[0]["bytes"] / 1e9, runs[0]["peak"])
    return row | dict(zip(names, values, strict=True))


def main() -> None:
    """Check equality, time every case in interleaved repetitions, write and print the table."""
    arguments = measure.read_arguments(__doc__, "OUT", "--shrink")
    bench = make_bench(arguments.shrink)
    notes = [*measure.shrunk_note(), *equality_lines(bench)]
    memory_rate = measure.memory_rate(bench.copied)
    notes.append(f"Memory rate (copying, read and written): {memory_rate / 1e9:,.4g} GB/s.")
    notes.append(f"Medians of {bench.repeats} interleaved repetitions.")
    ways = (("nf4", False), ("nf4", True), ("none", False))
    cases = [Case(*way, batch) for batch in bench.batches for way in ways]
    cases += [Case(*way, bench.batches[-1], adapters=True) for way in ways]
    runs: dict[Case, list] = {case: [] for case in cases}
    for number in range(bench.repeats):
        for case in cases:
            print(f"repetition {number + 1}: {case}", file=sys.stderr, flush=True)
            if None not in runs[case]:
                runs[case].append(measure_or_refuse(bench, case))
    rows = [table_row(bench, case, runs[case], memory_rate) for case in cases]
    measure.write_tables(arguments.place, "Answers of a random Llama-3.1-8B", notes, rows)


if __name__ == "__main__":
    main()
