"""What the benchmarks share: two ways compared in interleaved pairs.

A benchmark is a module with ``main(quick)`` that calls ``compare`` for each of its cases. ``python -m
benchmarks`` runs them all and writes the table of README.md from the lines in ``results/``.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lib import store

RESULTS = Path(__file__).resolve().parent / "results"
PAIRS = 5


@dataclass(frozen=True)
class Timed:
    """A result with its own seconds, for a way whose preparation (loading a model) is not to be counted."""

    result: Any
    seconds: float


class NotEqual(AssertionError):
    """Two ways that should give the same result and do not; the message says where they part."""


def timed(work: Callable[[], Any]) -> Timed:
    """Call and time, unless what comes back is timed already."""
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    return result if isinstance(result, Timed) else Timed(result, seconds)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def compare(
    name: str,
    baseline: Callable[[], Any],
    ours: Callable[[], Any],
    equal: Callable[[Any, Any], str],
    pairs: int = PAIRS,
    what: str = "",
    against: str = "",
    note: Callable[[float], str] = lambda seconds: "",
    quick: bool = False,
) -> dict[str, Any]:
    """Run two ways alternately, so that a noisy machine slows both, and return how much faster ours is.

    ``equal`` gets both results of every pair; it returns in words what is equal, or raises NotEqual.
    ``what`` and ``against`` describe the two ways in the table; ``note`` gets our median seconds and says
    what they amount to. The ratio is the baseline's seconds over ours, per pair. Prints the line and writes
    it to ``results/<name>.<instruction set>.json``, unless ``quick``, which also makes one pair only.
    """
    import torch

    times: dict[str, list[float]] = {"baseline": [], "ours": []}
    words = ""
    for number in range(1 if quick else pairs):
        ways = [("baseline", baseline), ("ours", ours)]
        found = {way: timed(work) for way, work in (ways if number % 2 == 0 else ways[::-1])}
        for way, done in found.items():
            times[way].append(done.seconds)
        words = equal(found["baseline"].result, found["ours"].result)
    ratio = spread([slow / fast for slow, fast in zip(times["baseline"], times["ours"], strict=True)])
    line = {"name": name, "what": what or name, "against": against}
    line |= {"pairs": len(times["ours"]), "ratio": ratio, "baseline_seconds": spread(times["baseline"])}
    line |= {"ours_seconds": spread(times["ours"]), "equal": words}
    facts, seconds = store.environment(), line["ours_seconds"]["median"]
    line |= {"note": note(seconds), "date": store.now()}
    line |= {"instructions": torch.backends.cpu.get_cpu_capability()}  # AVX2, AVX512
    line |= {fact: facts[fact] for fact in ("hardware", "git", "versions")}
    line |= {"git": json.loads(os.environ.get("BENCHMARK_GIT", json.dumps(facts["git"])))}
    said = "; ".join(filter(None, [words, line["note"]]))
    print(f"{name}: {ratio['median']:.2f} times as fast ({ratio['min']:.2f} to {ratio['max']:.2f}, "
          f"{line['pairs']} pairs, ours {seconds:.3g} s); {said}", flush=True)  # fmt: skip
    if not quick:
        store.write_rows(RESULTS / f"{name}.{line['instructions'].lower()}.json", [line])
    return line
