"""What the GPU benchmarks share: the machine's own rates, timing, peak memory, and the table they write."""

from __future__ import annotations

import argparse
import csv
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from persona_lib.models.load import device
from persona_lib.store import environment, now


def read_arguments(description: str, place: str, flag: str) -> argparse.Namespace:
    """Read a script's two arguments: where to write (``place``) and its one flag."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("place", metavar=place, type=Path)
    parser.add_argument(flag, action="store_true")
    return parser.parse_args()


def synchronize() -> None:
    """Wait until the GPU has done what it was given; nothing on a CPU."""
    import torch

    if device() == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any]) -> float:
    """Return how long a call takes, the GPU's work included."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def matrix_rate(dtype: str, size: int, repeats: int = 10) -> float:
    """Return the rate of multiplying two square matrices, in FLOP/s: the median of some repetitions."""
    import torch

    a, b = (torch.randn(size, size, device=device(), dtype=getattr(torch, dtype)) for _ in range(2))
    a @ b
    return 2 * size**3 / statistics.median(seconds(lambda: a @ b) for _ in range(repeats))


def memory_rate(size: int, repeats: int = 10) -> float:
    """Return the bytes per second, read and written, of copying ``size`` bytes: the median."""
    import torch

    a = torch.zeros(size, dtype=torch.uint8, device=device())
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * size / statistics.median(seconds(lambda: b.copy_(a)) for _ in range(repeats))


def total_memory_gb() -> float:
    """Return the memory of the GPU, or the machine's on a CPU, in GB (10^9 bytes)."""
    import torch

    if device() == "cuda":
        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return environment()["hardware"]["memory_gb"]


def release() -> None:
    """Free what is no longer used and start counting the peak memory anew."""
    import torch

    gc.collect()
    if device() == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float | None:
    """Return the most GPU memory that tensors took since ``release``, in GB; None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if device() == "cuda" else None


def shrunk_note() -> list[str]:
    """Return what a GPU benchmark has to say of a run without a GPU."""
    return [] if device() == "cuda" else ["A shrunk run on a CPU: its figures say nothing of a GPU."]


def machine_lines() -> list[str]:
    """Return hardware, versions, commit and date as lines for a reader."""
    facts = environment()
    hardware = facts["hardware"]
    where = ", ".join(hardware["gpus"]) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    commit = facts["git"]["commit"] or "not recorded"
    return [
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB; {where}.",
        f"Python {facts['python']}, {versions}.",
        f"Commit {commit[:12]}{' with uncommitted changes' if facts['git']['dirty'] else ''}, {now()}.",
    ]


def cell_text(value: Any) -> str:
    """Return a value as a table shows it: numbers with three figures, nothing for None."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows with the same columns as a markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell_text(v) for v in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_tables(path: Path, title: str, notes: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Print a table and write it: ``<path>.csv`` and, with what it was made on, ``<path>.md``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    text = "\n".join([f"# {title}", "", *machine_lines(), "", *notes, "", markdown(rows), ""])
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
