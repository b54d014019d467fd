"""Training steps of a random Llama-3.1-8B by batch and length, what is left out, and where time goes.

    python benchmarks/gpu_sweep.py OUT [--shrink]

Three tables, by the means of ``gpu_training``. OUT: this package's SFT and DPO steps, in NF4 and bf16, over
batches and row lengths. OUT_less: at the lengths of the paper's data, with and without rows side by side
(prompts computed once), with and without a reference that was computed beforehand. OUT_profile: the operators
that take the most time in some DPO steps of the largest shape. That all ways leave the same losses is checked
by ``gpu_training``, of rows side by side by ``tests/test_row_packing.py``. ``--shrink``: tiny, on a CPU too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_training
import measure
from gpu_training import Bench, Case

PACKAGE = "this package"
SHAPES = ((1, 128), (1, 256), (1, 512), (4, 512), (8, 512), (16, 512), (1, 1024), (4, 1024))  # batch, tokens
SHRUNK = ((2, 48),)
BASES = ("nf4", "none")
TITLE = "Training steps of a random Llama-3.1-8B"
SHOWN = 15  # operators


def shape_cases(bases: Sequence[str], shapes: Sequence[tuple[int, int]]) -> list[Case]:
    """Return this package's steps over batches and lengths of full rows, smallest first."""
    return [
        Case(method, PACKAGE, base, "bfloat16", batch, tokens)
        for method in ("sft", "dpo")
        for base in bases
        for batch, tokens in shapes
    ]


def less_cases(bases: Sequence[str], batches: Sequence[int]) -> list[Case]:
    """Return, at the paper's lengths, what is gained by leaving work out, one thing after the other."""
    ways = {"sft": ((False, False), (True, False)), "dpo": ((False, True), (False, False), (True, False))}
    return [
        Case(method, PACKAGE, base, "bfloat16", batch, sharing=sharing, online=online)
        for method, kinds in ways.items()
        for base in bases
        for batch in batches
        for sharing, online in kinds
    ]


# --- where the time goes ---


def recorder(bench: Bench) -> tuple[Any, Any]:
    """Return (torch's profiler, a callback that lets it record the steps after the warm-up)."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (measure.device() == "cuda")
    found = profile(activities=kinds)

    class Record(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == bench.warm_up:
                found.start()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == bench.warm_up + bench.steps:
                measure.synchronize()
                found.stop()

    return found, Record()


def operator_rows(found: Any, steps: int) -> list[dict[str, Any]]:
    """Return the operators by the time that they alone take, on the GPU where there is one."""
    events = found.key_averages()
    on_gpu = any(event.self_device_time_total for event in events)
    times = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in events}
    calls = {event.key: event.count for event in events}
    total = sum(times.values())
    largest = sorted(times, key=lambda key: -times[key])[:SHOWN]
    return [
        {"operator": key.replace("|", "/")[:80], "ms per step": times[key] / 1000 / steps,
         "share": times[key] / total, "calls per step": calls[key] / steps}
        for key in largest
    ]  # fmt: skip


def profile_case(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Return the operators of some steps of a case; [] if the GPU's memory does not hold it."""
    import torch

    found, callback = recorder(bench)
    try:
        gpu_training.measure_case(bench, case, [callback])
    except torch.OutOfMemoryError:
        return []
    return [{"base": case.quantization, **row} for row in operator_rows(found, bench.steps)]


def main() -> None:
    """Time the shapes and what is left out, record the profiles, write and print the three tables."""
    arguments = measure.read_arguments(__doc__, "OUT", "--shrink")
    bench = gpu_training.make_bench(arguments.shrink)
    bases = BASES[: 1 if arguments.shrink else 2]
    shapes, batches = (SHRUNK, (2,)) if arguments.shrink else (SHAPES, (1, 8))
    rate = measure.matrix_rate("bfloat16", bench.matrix)
    once = replace(bench, repeats=1)
    out: Path = arguments.place
    notes = [
        *measure.shrunk_note(),
        f"Matrix rate (bf16): {rate / 1e12:.3g} TFLOP/s.",
        f"One repetition of {bench.steps} steps.",
    ]
    measure.write_tables(
        out, f"{TITLE}, by shape", notes, gpu_training.timed_rows(once, shape_cases(bases, shapes), rate)
    )
    notes[-1] = f"Medians of {bench.repeats} interleaved repetitions of {bench.steps} steps."
    rows = gpu_training.timed_rows(bench, less_cases(bases, batches), rate)
    measure.write_tables(out.with_name(f"{out.name}_less"), f"{TITLE}, by what is left out", notes, rows)
    batch, tokens = shapes[-1]
    cases = [Case("dpo", PACKAGE, base, "bfloat16", batch, tokens) for base in bases]
    operators = [row for case in cases for row in profile_case(bench, case)]
    notes = [
        *measure.shrunk_note(),
        f"DPO steps of {batch} pairs, {tokens} tokens a row; time that an operator takes by itself.",
    ]
    if operators:
        measure.write_tables(out.with_name(f"{out.name}_profile"), f"{TITLE}, by operator", notes, operators)


if __name__ == "__main__":
    main()
