"""SFT and DPO steps of a random Llama-3.1-8B: this package beside the authors' settings and TRL's defaults.

    python benchmarks/gpu_training.py OUT.csv [--shrink]

Weights are drawn on the device (no download, no checkpoint) and training rows have the lengths of the paper's
data. Every way is built and timed anew in each of some interleaved repetitions; the table gives medians. The
column "loss difference" says that a way's losses are this package's (of this package, packed ones the plain
ones): the largest relative difference over an epoch of a small float32 model, where all ways start alike. One
above epochs.TOLERANCE (1e-4) stops the script. What the memory does not hold is a row without times.
``--shrink`` does all of it with a tiny model, on a CPU too. Writes OUT and prints it.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import epochs
import llama31
import pandas as pd
import torch
import training
from training import AUTHORS, OURS, TRL, Case, Lengths

from persona_lib import store
from persona_lib.models import load, trainers
from persona_lib.show import render, to_markdown


class Bench(NamedTuple):
    """What is measured: a model, its tokenizer, and sizes; ``row_tokens``, ``step_tokens`` of full rows."""

    config: Any
    tokenizer: Any
    lengths: Lengths
    row_tokens: int
    step_tokens: int
    warm_up: int
    steps: int
    repeats: int


def make_bench(shrink: bool) -> Bench:
    """Return the sizes of a run: Llama-3.1-8B at the paper's lengths, or all of it tiny."""
    tokenizer = llama31.example_tokenizer()
    ids = llama31.ids_of(tokenizer)
    if shrink:
        config = llama31.llama_config(**llama31.SMALL, **ids)
        return Bench(config, tokenizer, Lengths((8, 14), (6, 20)), 48, 192, 1, 3, 2)
    config = llama31.llama_config(**ids | {"vocab_size": llama31.LLAMA_31_8B["vocab_size"]})
    return Bench(config, tokenizer, training.PAPER, 512, 8192, 3, 20, 3)


def synchronize() -> None:
    """Wait until the GPU has done what it was given; nothing on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release() -> None:
    """Free what is no longer used and start counting the peak memory anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def all_cases(bench: Bench) -> list[Case]:
    """Return the ways that are compared; the authors' 32-bit base only where it can fit."""
    large = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory > 60e9
    authors = "float32" if large else "bfloat16"
    cases = []
    for method, sequences in (("sft", 1), ("dpo", 2)):
        rows = bench.step_tokens // bench.row_tokens // sequences
        cases += [
            Case(method, AUTHORS, "none", authors, 1),
            Case(method, TRL, "none", "bfloat16", 8),
            Case(method, TRL, "nf4", "bfloat16", 8),
            Case(method, OURS, "nf4", "bfloat16", 1),
            Case(method, OURS, "none", "bfloat16", 1),
            Case(method, OURS, "none", "bfloat16", rows, bench.row_tokens),
        ]
    return [*cases, Case("dpo", OURS, "nf4", "bfloat16", 1, bench.row_tokens)]


def step_clock(bench: Bench) -> Any:
    """Return a callback that times the steps after the warm-up and starts counting tokens there."""
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        tokens = 0
        started = seconds = 0.0

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == bench.warm_up:
                synchronize()
                self.tokens, self.started = 0, time.perf_counter()
            elif state.global_step == bench.warm_up + bench.steps:
                synchronize()
                self.seconds = time.perf_counter() - self.started

        def count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            """Count the tokens, without padding, of every pass that is trained on."""
            if torch.is_grad_enabled():
                mask = kwargs.get("attention_mask")
                self.tokens += kwargs["input_ids"].numel() if mask is None else int(mask.sum())

    return StepClock()


def measure_case(bench: Bench, case: Case) -> dict[str, float | None]:
    """Build a case's trainer on a freshly drawn base, run it, and return its figures."""
    release()
    lengths = replace(bench.lengths, row=case.row_tokens)
    rows = case.batch * (bench.warm_up + bench.steps)
    data = training.datasets_of(bench.tokenizer, case.method, rows, lengths)
    base = llama31.random_base(bench.config, case.quantization, case.dtype, load.device())
    with tempfile.TemporaryDirectory() as name, trainers.quiet_libraries():
        build = training.package_trainer if case.way == OURS else training.trl_trainer
        trainer = build(case, training.package_profile(case), base, bench.tokenizer, data, Path(name))
        trainer.args.max_steps = bench.warm_up + bench.steps
        clock = step_clock(bench)
        trainer.add_callback(clock)
        decoder = next(m for m in trainer.model.modules() if type(m).__name__ == "LlamaModel")
        decoder.register_forward_pre_hook(clock.count, with_kwargs=True)
        release()
        training.run_quietly(trainer)
    steps = bench.steps
    return {
        "seconds": clock.seconds / steps,
        "tokens": clock.tokens / steps,
        "peak": torch.cuda.max_memory_allocated() / 1e9,
    }


def measure_or_refuse(bench: Bench, case: Case) -> dict[str, float | None] | None:
    """Return a case's figures, or None if the GPU's memory does not hold it."""
    try:
        return measure_case(bench, case)
    except torch.OutOfMemoryError:
        return None


def loss_differences() -> dict[tuple[str, str], float]:
    """Compare the losses of every method and way with this package's; raises NotEqual."""
    found = {}
    for method in ("sft", "dpo"):
        setup = epochs.make_setup(method, "paper", 16, quick=True)
        for way in (AUTHORS, TRL):
            ours = epochs.ours(setup, method, way, packed=False).result
            theirs = epochs.theirs(setup, method, way).result
            found[method, way] = epochs.largest_difference(theirs, ours)
        packed = epochs.ours(setup, method, way).result
        found[method, OURS] = epochs.largest_difference(ours, packed)
    return found


def table_row(case: Case, runs: list[dict[str, float | None] | None], off: float) -> dict[str, Any]:
    """Return a case's line: medians over the repetitions, with the range of the time per step."""
    row: dict[str, Any] = {
        "method": case.method,
        "way": case.way,
        "base": case.quantization if case.quantization != "none" else case.dtype,
        "rows per step": case.batch,
        "lengths": f"{case.row_tokens} each" if case.row_tokens else "the paper's",
        "loss difference": off,
        "remark": "out of memory" if None in runs else "",
    }
    names = ("tokens per step", "ms per step", "fastest", "slowest", "tokens/s", "peak GB")
    if None in runs:
        return row | dict.fromkeys(names, float("nan"))
    times = [run["seconds"] for run in runs]
    middle, tokens = statistics.median(times), runs[0]["tokens"]  # the same rows in every repetition
    milliseconds = (1000 * middle, 1000 * min(times), 1000 * max(times))
    values = (tokens, *milliseconds, tokens / middle, runs[-1]["peak"])
    return row | dict(zip(names, values, strict=True))


def timed_rows(bench: Bench, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Time every case in interleaved repetitions; returns the lines of the table."""
    differences = loss_differences()
    runs: dict[Case, list] = {case: [] for case in cases}
    for number in range(bench.repeats):
        for case in cases:
            print(f"repetition {number + 1}: {case}", file=sys.stderr, flush=True)
            if None not in runs[case]:
                runs[case].append(measure_or_refuse(bench, case))
    return [table_row(case, runs[case], differences[case.method, case.way]) for case in cases]


def main() -> None:
    """Check equality, time every case in interleaved repetitions, write and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--shrink", action="store_true", help="all of it with a tiny model, on a CPU too")
    arguments = parser.parse_args()
    bench = make_bench(arguments.shrink)
    table = pd.DataFrame(timed_rows(bench, all_cases(bench)))
    store.write_text(arguments.out, table.to_csv(index=False))
    print(json.dumps(store.environment()))
    print(
        "DPO's reference is computed beforehand here: one pass per pair for all epochs, not in these times."
    )
    print(to_markdown(render("training", table)))


if __name__ == "__main__":
    main()
