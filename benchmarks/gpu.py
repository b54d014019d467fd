"""SFT, DPO and answers of a random Llama-3.1-8B on one GPU: this package, the authors, TRL's defaults.

    python benchmarks/gpu.py OUT.jsonl [--minutes 8] [--shrink]

Weights are drawn on the device (no download, no checkpoint) and rows have the lengths of the paper's data.
First a small float32 model checks that all ways to train give equal losses; a relative difference above
epochs.TOLERANCE stops the script. Then the cases are measured in order of value, each on a new model, again
and again until the minutes are over. Each measurement is appended to OUT at once, so a run that is cut off
loses nothing; the last lines print the medians. ``--shrink`` does it once with a tiny model, on a CPU too.

A step is a batch with its backward pass and the optimiser. "Share" is the arithmetic in the layers per
second, divided by the measured rate of a bfloat16 matrix product. Our DPO computes the reference
log-probabilities beforehand, one pass for all epochs, which is not in its steps.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import epochs
import generation
import llama31
import pandas as pd
import torch
import training
from training import AUTHORS, OURS, TRL, Case, Lengths

from persona_lib import store
from persona_lib.models import load


class Bench(NamedTuple):
    """What is measured: a model, its tokenizer, and sizes; ``row_tokens``, ``step_tokens`` of full rows."""

    config: Any
    tokenizer: Any
    lengths: Lengths
    row_tokens: int
    step_tokens: int
    warm_up: int
    steps: int


def make_bench(shrink: bool) -> Bench:
    """Return the sizes of a run: Llama-3.1-8B at the paper's lengths, or all of it tiny."""
    tokenizer = llama31.example_tokenizer()
    ids = llama31.ids_of(tokenizer)
    if shrink:
        config = llama31.llama_config(**llama31.SMALL, **ids)
        return Bench(config, tokenizer, Lengths((8, 14), (6, 20)), 48, 192, 1, 3)
    config = llama31.llama_config(**ids | {"vocab_size": llama31.LLAMA_31_8B["vocab_size"]})
    return Bench(config, tokenizer, training.PAPER, 512, 8192, 3, 20)


def all_cases(bench: Bench) -> list[Case]:
    """Return the ways that are compared, in order of value; the authors' 32-bit base where it can fit."""
    large = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory > 60e9
    authors = "float32" if large else "bfloat16"
    rows = bench.step_tokens // bench.row_tokens
    return [
        Case("dpo", OURS, "nf4", "bfloat16", 1, bench.row_tokens),
        Case("sft", OURS, "none", "bfloat16", rows, bench.row_tokens),
        Case("dpo", OURS, "none", "bfloat16", rows // 2, bench.row_tokens),
        *(Case(method, OURS, "none", "bfloat16", 8) for method in ("sft", "dpo")),
        *(Case(method, TRL, "none", "bfloat16", 8) for method in ("sft", "dpo")),
        *(Case(method, AUTHORS, "none", authors, 1) for method in ("sft", "dpo")),
        *(Case(method, OURS, "nf4", "bfloat16", 8) for method in ("sft", "dpo")),
        *(Case(method, TRL, "nf4", "bfloat16", 8) for method in ("sft", "dpo")),
        Case("answers", OURS, "none", "bfloat16", generation.BATCH),
    ]


def release() -> None:
    """Free what is no longer used and start counting the peak memory anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def step_clock(bench: Bench, passes: dict[bool, int]) -> Any:
    """Return a callback that times the steps after the warm-up and counts their tokens from there."""
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        started = seconds = 0.0

        def on_step_end(self, args, state, control, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if state.global_step == bench.warm_up:
                passes.update({True: 0, False: 0})
                self.started = time.perf_counter()
            self.seconds = time.perf_counter() - self.started

    return StepClock()


def measure_training(bench: Bench, case: Case) -> dict[str, float]:
    """Build a case's trainer on a freshly drawn base, run it, and return its figures."""
    lengths = replace(bench.lengths, row=case.row_tokens)
    rows = case.batch * (bench.warm_up + bench.steps)
    data = training.datasets_of(bench.tokenizer, case.method, rows, lengths)
    base = llama31.random_base(bench.config, case.quantization, case.dtype, load.device())
    with tempfile.TemporaryDirectory() as name:
        build = training.package_trainer if case.way == OURS else training.trl_trainer
        trainer = build(case, training.package_profile(case), base, bench.tokenizer, data, Path(name))
        trainer.args.max_steps = bench.warm_up + bench.steps
        release()
        with epochs.counting(trainer.model) as passes:
            clock = step_clock(bench, passes)
            trainer.add_callback(clock)
            training.run_quietly(trainer)
    texts = [row["prompt"] + row[name] for row in data["train"] for name in row if name != "prompt"]
    tokens = sum(map(len, bench.tokenizer(texts)["input_ids"])) / len(data["train"])  # per row or pair
    forward = passes[False] + passes[True] * (3 if trainer.args.gradient_checkpointing else 2)
    rate = case.batch * bench.steps / clock.seconds
    return {
        "seconds": clock.seconds / bench.steps,
        "rows_per_second": rate,
        "tokens_per_second": rate * tokens,
        "operations_per_second": 2 * layer_parameters(bench.config) * forward / clock.seconds,
    }


def layer_parameters(config: Any) -> int:
    """Return how many weights a model's layers hold."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).model.layers.parameters())


def measure_answers(bench: Bench, case: Case) -> dict[str, float]:
    """Answer the prompts of the benchmark ``generation`` in one batch, greedily."""
    task = generation.make_tasks(bench.tokenizer, quick=bench.config.num_hidden_layers < 32)["batch"]
    model = llama31.random_base(bench.config, case.quantization, case.dtype, load.device())
    release()
    started = time.perf_counter()
    answers = generation.ours(model, bench.tokenizer, task)
    seconds = time.perf_counter() - started
    rate = len(answers) / seconds
    return {"seconds": seconds, "rows_per_second": rate, "tokens_per_second": rate * task.new_tokens}


def measure_case(bench: Bench, case: Case) -> dict[str, Any]:
    """Return a case with its figures, or with the remark that the GPU's memory does not hold it."""
    release()
    try:
        found = measure_answers(bench, case) if case.method == "answers" else measure_training(bench, case)
    except torch.OutOfMemoryError:
        found = {"remark": "out of memory"}
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else float("nan")
    return asdict(case) | found | {"peak_gb": peak}


def check_equal_losses() -> dict[str, float]:
    """Compare the losses of every method and way with this package's; raises NotEqual."""
    found = {}
    for method in ("sft", "dpo"):
        setup = epochs.make_setup(method, "paper", quick=True)
        for way in (AUTHORS, TRL):
            ours = epochs.ours(setup, method, way, packed=False).result
            theirs = epochs.theirs(setup, method, way).result
            found[f"{method}, {way}"] = epochs.largest_difference(theirs, ours)
        packed = epochs.ours(setup, method, way).result
        found[f"{method}, packed"] = epochs.largest_difference(ours, packed)
    return found


def summary(rows: list[dict[str, Any]], rate: float) -> pd.DataFrame:
    """Return the medians of each case, the share of the matrix rate and the number of measurements."""
    table = pd.DataFrame(rows).assign(measured=1)
    table["share"] = table["operations_per_second"] / rate
    names = list(Case.__dataclass_fields__)
    numbers = ["seconds", "rows_per_second", "tokens_per_second", "share", "peak_gb"]
    groups = table.groupby(names, sort=False)
    return groups[numbers].median().join(groups["measured"].sum()).reset_index()


def main() -> None:
    """Check equality, measure until the minutes are over, append every line, print the medians."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0, help="no new measurement after so many")
    parser.add_argument("--shrink", action="store_true", help="once, with a tiny model, on a CPU too")
    arguments = parser.parse_args()
    started, longest, rows = time.monotonic(), 0.0, []
    bench = make_bench(arguments.shrink)
    rows_of_product = 8192 if torch.cuda.is_available() else 512
    rate = epochs.matrix_rate(bench.config, torch.bfloat16, load.device(), rows_of_product)
    facts = {"differences": check_equal_losses(), "matrix_rate": rate, "environment": store.environment()}
    store.write_rows(arguments.out, [facts])
    for case in all_cases(bench) if arguments.shrink else cycle(all_cases(bench)):
        before = time.monotonic()
        if before - started + longest > 60 * arguments.minutes:
            break
        rows.append(measure_case(bench, case))
        store.append_rows(arguments.out, rows[-1:])
        print(rows[-1], flush=True)
        longest = max(longest, time.monotonic() - before)
    print(summary(rows, rate).to_string(index=False, float_format="{:.4g}".format))


if __name__ == "__main__":
    main()
