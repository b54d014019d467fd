"""SFT and DPO steps of a random Llama-3.1-8B: this package beside the authors' settings and TRL's defaults.

    python benchmarks/gpu_training.py OUT [--shrink]

Weights are drawn on the device (no download, no checkpoint) and training rows have the lengths of the paper's
data. Every way is built and timed anew in each of some interleaved repetitions; the table gives medians.
"Of matrix rate" is the arithmetic that a step cannot do without (a forward and a backward pass through
frozen weights, and the reference's forward pass where it is not computed beforehand) against the rate of a
bf16 matrix product measured in the same run. That all ways compute the same losses is checked first, on a
small float32 model. ``--shrink`` does all of it with a tiny model, on a CPU too. Writes OUT.csv and OUT.md.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama31
import measure

from persona_lib.models import load, trainers
from persona_lib.settings import Profile, load_profile, set_field

SEED = 0
EQUAL_STEPS = 8
EQUAL_RATES = {"sft_learning_rate": 1e-2, "dpo_learning_rate": 4e-3}  # so large that every step shows
PASSES = 2  # forward, and backward through frozen weights


@dataclass(frozen=True)
class Bench:
    """What is measured: a model, its tokenizer, and sizes; ``row_tokens``, ``step_tokens`` of full rows."""

    config: Any
    tokenizer: Any
    prompt: tuple[int, int]
    response: tuple[int, int]
    row_tokens: int
    step_tokens: int
    warm_up: int
    steps: int
    repeats: int
    matrix: int


def make_bench(shrink: bool) -> Bench:
    """Return the sizes of a run: Llama-3.1-8B at the paper's lengths, or all of it tiny.

    Prompts (with persona) and responses are as long as the 5th to 95th percentile of BeaverTails' training
    rows, in words of the authors' data times 4/3. No row can have more than 512 tokens.
    """
    tokenizer = llama31.example_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if shrink:
        config = llama31.llama_config(**llama31.SMALL, **ids, vocab_size=len(tokenizer))
        sizes = {"row_tokens": 48, "step_tokens": 192, "warm_up": 1, "steps": 3, "repeats": 2, "matrix": 256}
        return Bench(config, tokenizer, prompt=(8, 14), response=(6, 20), **sizes)
    config = llama31.llama_config(**ids)
    sizes = {"row_tokens": 512, "step_tokens": 8192, "warm_up": 3, "steps": 20, "repeats": 3, "matrix": 8192}
    return Bench(config, tokenizer, prompt=(36, 92), response=(25, 225), **sizes)


@dataclass(frozen=True)
class Case:
    """One line of a table. ``row_tokens`` is 0 for the paper's lengths, else all rows have so many.

    Of this package only: ``sharing`` lays the rows of a batch side by side (and computes DPO's prompts once);
    ``online`` adds DPO's reference to every step, which is computed beforehand otherwise.
    """

    method: str
    way: str
    quantization: str
    dtype: str
    batch: int
    row_tokens: int = 0
    sharing: bool = False
    online: bool = False


def all_cases(bench: Bench) -> list[Case]:
    """Return the ways that are compared; the authors' 32-bit base only where it can fit."""
    authors = "float32" if measure.total_memory_gb() > 60 else "bfloat16"
    cases = []
    for method, sequences in (("sft", 1), ("dpo", 2)):
        rows = bench.step_tokens // bench.row_tokens // sequences
        cases += [
            Case(method, "authors", "none", authors, 1),
            Case(method, "TRL defaults", "none", "bfloat16", 8),
            Case(method, "TRL defaults", "nf4", "bfloat16", 8),
            Case(method, "this package", "nf4", "bfloat16", 1),
            Case(method, "this package", "none", "bfloat16", 1),
            Case(method, "this package", "none", "bfloat16", rows, bench.row_tokens),
        ]
    return [*cases, Case("dpo", "this package", "nf4", "bfloat16", 1, bench.row_tokens)]


# --- rows ---


def words_of(tokenizer: Any) -> list[str]:
    """Return words that are one token each when a space stands before them."""
    return sorted(
        token[1:] for token in tokenizer.get_vocab() if token[0] == "\u0120" and token[1:].isalpha()
    )


def make_rows(bench: Bench, method: str, n: int, row_tokens: int) -> list[dict[str, str]]:
    """Return rows of random words as the trainers take them, with BOS and EOS of the wanted lengths."""
    rng, words, rows = random.Random(SEED), words_of(bench.tokenizer), []
    for _ in range(n):
        prompt = "Prompt: " + " ".join(rng.choices(words, k=rng.randint(*bench.prompt))) + "\nResponse:"
        used = len(bench.tokenizer(prompt)["input_ids"]) + 1
        lengths = [row_tokens - used if row_tokens else rng.randint(*bench.response) for _ in range(2)]
        texts = [" " + " ".join(rng.choices(words, k=length)) for length in lengths]
        names = ("completion",) if method == "sft" else ("chosen", "rejected")
        rows.append({"prompt": prompt} | dict(zip(names, texts, strict=False)))
    return rows


def datasets_of(bench: Bench, case: Case, steps: int) -> dict[str, Any]:
    """Return as many rows as the steps take, and a few to validate on."""
    from datasets import Dataset

    rows = make_rows(bench, case.method, case.batch * steps + 4, case.row_tokens)
    return {"train": Dataset.from_list(rows[:-4]), "val": Dataset.from_list(rows[-4:])}


# --- trainers ---


def package_profile(case: Case) -> Profile:
    """Return the paper profile with the case's batch and precision; rows above 512 tokens are kept whole."""
    paper = load_profile("paper")
    return set_field(
        paper,
        max_length=max(paper.max_length, case.row_tokens),
        sft_packing=case.sharing,
        dpo_prefix_sharing=case.sharing,
        quantization=case.quantization,
        compute_dtype=case.dtype,
        sft_batch_size=case.batch,
        dpo_batch_size=case.batch,
    )


def package_trainer(case: Case, profile: Profile, base: Any, tokenizer: Any, data: Any, folder: Path) -> Any:
    """Build this package's trainer, DPO on top of an SFT adapter, with the guards of ``train.fit``."""
    if case.method == "sft":
        trainer = trainers.sft_trainer(profile, SEED, base, tokenizer, data, folder)
    else:
        sft = save_adapter(profile, base, folder / "sft")
        trainer = trainers.dpo_trainer(profile, SEED, base, sft, tokenizer, data, folder)
        trainers.check_dpo_start(trainer, profile)
    if case.online:
        compute_reference_too(trainer)
    trainers.check_adapters(trainer.model, "default")
    for callback in (trainers.gradient_guard(), trainers.movement_guard()):
        trainer.add_callback(callback)
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    return trainer


def compute_reference_too(trainer: Any) -> None:
    """Make a DPO trainer compute its reference in every step, as one without precomputation does."""
    import torch

    plain = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            trainer.compute_ref_log_probs(trainer.model, inputs)
        return plain(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss


def save_adapter(profile: Profile, base: Any, folder: Path) -> Path:
    """Save an SFT adapter with random weights and leave the base as it was."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(SEED)
    config = trainers.lora_config(profile)
    config.init_lora_weights = False
    model = get_peft_model(base, config)
    model.save_pretrained(str(folder))
    model.unload()
    return folder


def trl_settings(case: Case) -> dict[str, Any]:
    """Return what a way sets; all else is TRL's default."""
    if case.way == "TRL defaults":
        return {}
    profile = package_profile(case)
    settings = {
        "per_device_train_batch_size": case.batch,
        "gradient_checkpointing": False,
        "bf16": case.dtype == "bfloat16",
        "optim": "adamw_torch",
        "max_length": profile.max_length,
        "learning_rate": getattr(profile, f"{case.method}_learning_rate"),
    }
    return settings | ({"completion_only_loss": False} if case.method == "sft" else {})


def trl_trainer(
    case: Case, profile: Profile, base: Any, tokenizer: Any, data: Any, folder: Path, **changes: Any
) -> Any:
    """Build TRL's own trainer: a fresh adapter on the base, which is also DPO's reference, online."""
    import torch
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    make, config = (SFTTrainer, SFTConfig) if case.method == "sft" else (DPOTrainer, DPOConfig)
    common = {"output_dir": str(folder), "seed": SEED, "data_seed": SEED, "save_strategy": "no"}
    common |= {"report_to": "none", "disable_tqdm": True, "use_cpu": not torch.cuda.is_available()}
    return make(
        model=base,
        args=config(**{**common, **trl_settings(case), **changes}),
        processing_class=tokenizer,
        train_dataset=data["train"],
        peft_config=trainers.lora_config(profile),
    )


def run_quietly(trainer: Any) -> None:
    """Train without printing the Trainer's own logs."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()


# --- timing ---


def step_clock(bench: Bench) -> Any:
    """Return a callback that times the steps after the warm-up and starts counting tokens there."""
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        tokens = 0
        started = seconds = 0.0

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == bench.warm_up:
                measure.synchronize()
                self.tokens, self.started = 0, time.perf_counter()
            elif state.global_step == bench.warm_up + bench.steps:
                measure.synchronize()
                self.seconds = time.perf_counter() - self.started

        def count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            """Count the tokens, without padding, of every pass that is trained on."""
            import torch

            if torch.is_grad_enabled():
                mask = kwargs.get("attention_mask")
                self.tokens += kwargs["input_ids"].numel() if mask is None else int(mask.sum())

    return StepClock()


def decoder_of(model: Any) -> Any:
    """Return the layers below the head, whatever is wrapped around them."""
    return next(module for module in model.modules() if type(module).__name__ == "LlamaModel")


def flops_per_token(config: Any, case: Case, share: float) -> float:
    """Return the multiplications and additions that a token of a step cannot do without.

    Linear layers for all tokens, the head for the ``share`` of them with a loss. Attention itself (2 % at
    512 tokens) is left out.
    """
    hidden, mlp = config.hidden_size, config.intermediate_size
    keys = hidden * config.num_key_value_heads // config.num_attention_heads
    layers = config.num_hidden_layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * mlp)
    passes = PASSES + (case.method == "dpo" and (case.online or case.way != "this package"))
    return 2 * passes * (layers + share * hidden * config.vocab_size)


def head_share(bench: Bench, case: Case, rows: list[dict[str, str]]) -> float:
    """Return the share of tokens that have a loss: all in SFT on whole texts, else those of completions."""
    if case.method == "sft" and case.way != "TRL defaults":
        return 1.0
    names = [name for name in rows[0] if name != "prompt"]
    pairs = [(row["prompt"], row[name]) for row in rows for name in names]
    lengths = [[len(ids) for ids in load.encode(bench.tokenizer, *pair)] for pair in pairs]
    return sum(c for _, c in lengths) / sum(p + c for p, c in lengths)


def measure_case(bench: Bench, case: Case, callbacks: Sequence[Any] = ()) -> dict[str, float | None]:
    """Build a case's trainer on a freshly drawn base, run it with ``callbacks``, and return its figures."""
    measure.release()
    profile = package_profile(case)
    data = datasets_of(bench, case, bench.warm_up + bench.steps)
    base = llama31.random_base(bench.config, case.quantization, case.dtype, load.device())
    with tempfile.TemporaryDirectory() as name, trainers.quiet_libraries():
        build = package_trainer if case.way == "this package" else trl_trainer
        trainer = build(case, profile, base, bench.tokenizer, data, Path(name))
        clock = step_clock(bench)
        trainer.args.max_steps = bench.warm_up + bench.steps
        for callback in (clock, *callbacks):
            trainer.add_callback(callback)
        hook = decoder_of(trainer.model).register_forward_pre_hook(clock.count, with_kwargs=True)
        measure.release()
        run_quietly(trainer)
        hook.remove()
    share = head_share(bench, case, data["train"].to_list())
    tokens = clock.tokens / bench.steps
    return {
        "seconds": clock.seconds / bench.steps,
        "tokens": tokens,
        "flops": tokens * flops_per_token(bench.config, case, share),
        "peak": measure.peak_gb(),
    }


def measure_or_refuse(bench: Bench, case: Case) -> dict[str, float | None] | None:
    """Return the figures of a case, or None if the GPU's memory does not hold it."""
    import torch

    try:
        return measure_case(bench, case)
    except torch.OutOfMemoryError:
        return None
    finally:
        measure.release()


def table_row(case: Case, runs: list[dict[str, float | None] | None], rate: float) -> dict[str, Any]:
    """Return a case's line: medians over the repetitions, with the range of the time per step."""
    row: dict[str, Any] = {
        "method": case.method,
        "way": case.way,
        "base": case.quantization if case.quantization != "none" else case.dtype,
        "rows per step": case.batch,
        "lengths": f"{case.row_tokens} each" if case.row_tokens else "the paper's",
    }
    if case.way == "this package" and (case.sharing or case.online):
        row["way"] += ", side by side" * case.sharing + ", reference online" * case.online
    names = ("tokens per step", "ms per step", "fastest", "slowest", "tokens/s", "of matrix rate", "peak GB")
    if None in runs:
        return row | dict.fromkeys(names) | {"ms per step": "out of memory"}
    times = [run["seconds"] for run in runs]
    middle, tokens = statistics.median(times), runs[0]["tokens"]  # the same rows in every repetition
    milliseconds = (1000 * middle, 1000 * min(times), 1000 * max(times))
    values = (tokens, *milliseconds, tokens / middle, runs[0]["flops"] / middle / rate, runs[-1]["peak"])
    return row | dict(zip(names, values, strict=True))


# --- equality ---


def logged_losses(trainer: Any) -> list[float]:
    """Train some steps and return the loss of each."""
    trainer.args.max_steps = EQUAL_STEPS
    trainer.args.logging_strategy, trainer.args.logging_steps = "steps", 1
    run_quietly(trainer)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def check_equal(bench: Bench, method: str, way: str, batch: int) -> float:
    """Train a small float32 model this package's way and another; return the largest difference of losses."""
    import torch
    from peft import PeftModel

    case, other = (Case(method, name, "none", "float32", batch) for name in ("this package", way))
    profile = set_field(package_profile(case), lora_dropout=0.0, **EQUAL_RATES)
    data, tokenizer = datasets_of(bench, case, EQUAL_STEPS), bench.tokenizer
    config = llama31.llama_config(**llama31.SMALL, vocab_size=len(tokenizer), initializer_range=0.1)
    changes = trl_settings(Case(method, "authors", "none", "float32", batch))
    changes |= {"gradient_checkpointing": way == "TRL defaults", "optim": "adamw_torch"}
    changes |= {"learning_rate": getattr(profile, f"{method}_learning_rate")}
    with tempfile.TemporaryDirectory() as name, trainers.quiet_libraries():
        ours = package_trainer(
            case, profile, llama31.random_base(config), tokenizer, data, Path(name) / "ours"
        )
        base = llama31.random_base(config)
        if method == "dpo":
            sft = str(Path(name) / "ours" / "sft")
            base = PeftModel.from_pretrained(base, sft).merge_and_unload()
        theirs = trl_trainer(other, profile, base, tokenizer, data, Path(name) / "theirs", **changes)
        start = trainers.trainable_parameters(ours.model)
        for key, parameter in trainers.trainable_parameters(theirs.model).items():
            parameter.data.copy_(start[key].data)
        torch.manual_seed(SEED)
        losses = logged_losses(ours), logged_losses(theirs)
    if max(losses[0]) - min(losses[0]) < 0.01:
        sys.exit(f"{method}: the losses {losses[0]} do not move: they show nothing")
    return max(abs(a - b) for a, b in zip(*losses, strict=True))


def equality_lines(bench: Bench) -> list[str]:
    """Check every way against this package's on a small model; exits if the losses differ."""
    lines = []
    for method in ("sft", "dpo"):
        for way, batch in (("authors", 1), ("TRL defaults", 4)):
            difference = check_equal(bench, method, way, batch)
            if not difference < 1e-4:
                sys.exit(f"{method}: losses of this package and of {way!r} differ by {difference}")
            lines.append(
                f"Losses of {EQUAL_STEPS} {method} steps of {batch} on a small float32 model, this package "
                f"against {way} (same learning rate): equal to {difference:.1g}."
            )
    return lines


# --- all of it ---


def main() -> None:
    """Check equality, time every case in interleaved repetitions, write and print the table."""
    arguments = measure.read_arguments(__doc__, "OUT", "--shrink")
    bench = make_bench(arguments.shrink)
    notes = [*measure.shrunk_note(), *equality_lines(bench)]
    rate = measure.matrix_rate("bfloat16", bench.matrix)
    notes.append(f"Matrix rate (bf16): {rate / 1e12:.3g} TFLOP/s.")
    notes.append(
        "This package computes DPO's reference beforehand: one forward pass per pair for all epochs, "
        "which is not in the time of its steps."
    )
    notes.append(f"Medians of {bench.repeats} interleaved repetitions of {bench.steps} steps.")
    cases = all_cases(bench)
    rows = timed_rows(bench, cases, rate)
    measure.write_tables(arguments.place, "Training steps of a random Llama-3.1-8B", notes, rows)


def timed_rows(bench: Bench, cases: Sequence[Case], rate: float) -> list[dict[str, Any]]:
    """Time every case in interleaved repetitions; returns the lines of the table."""
    runs: dict[Case, list] = {case: [] for case in cases}
    for number in range(bench.repeats):
        for case in cases:
            print(f"repetition {number + 1}: {case}", file=sys.stderr, flush=True)
            if None not in runs[case]:
                runs[case].append(measure_or_refuse(bench, case))
    return [table_row(case, runs[case], rate) for case in cases]


if __name__ == "__main__":
    main()
