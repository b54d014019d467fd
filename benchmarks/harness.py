"""Two ways side by side: time them in interleaved pairs, check that their results are equal, keep one line.

A benchmark is a module with ``main(quick)`` that calls ``compare`` for each of its cases. ``python -m
benchmarks`` runs them all and writes the table of README.md from the lines in ``results/``; a quick run is
small, checks equality as the full one does, and writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.store import environment, now

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAIRS = 5
QUICK_PAIRS = 1


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
    it to ``results/<name>.json``, unless ``quick``, which also makes one pair only.
    """
    times: dict[str, list[float]] = {"baseline": [], "ours": []}
    words = ""
    for number in range(QUICK_PAIRS if quick else pairs):
        ways = [("baseline", baseline), ("ours", ours)]
        found = {way: timed(work) for way, work in (ways if number % 2 == 0 else ways[::-1])}
        for way, done in found.items():
            times[way].append(done.seconds)
        words = equal(found["baseline"].result, found["ours"].result)
    line = {"name": name, "what": what or name, "against": against, **ratios(times), "equal": words}
    line |= {"note": note(line["ours_seconds"]["median"])} | facts()
    print(summary(line), flush=True)
    if not quick:
        store.write_rows(RESULTS / f"{name}.json", [line])
    return line


def ratios(times: dict[str, list[float]]) -> dict[str, Any]:
    """Return how often, how long in seconds, and the ratio per pair."""
    per_pair = [slow / fast for slow, fast in zip(times["baseline"], times["ours"], strict=True)]
    seconds = {f"{way}_seconds": spread(values) for way, values in times.items()}
    return {"pairs": len(per_pair), "ratio": spread(per_pair), **seconds}


def facts() -> dict[str, Any]:
    """Return what a line was made on and with: machine, commit, versions, command, date."""
    found = environment()
    script = Path(sys.argv[0]).name
    return {
        "hardware": found["hardware"],
        "threads": threads(),
        "git": found["git"],
        "versions": found["versions"],
        "command": f"python benchmarks/{script}",
        "date": now(),
    }


def threads() -> int | None:
    """Return the threads that torch computes with, or None where it was not needed."""
    return sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None


def summary(line: dict[str, Any]) -> str:
    """Return one line for a reader."""
    ratio, seconds = line["ratio"], line["ours_seconds"]["median"]
    times = f"{ratio['median']:.2f} times as fast ({ratio['min']:.2f} to {ratio['max']:.2f}"
    found = "; ".join(filter(None, [line["equal"], line["note"]]))
    return f"{line['name']}: {times}, {line['pairs']} pairs, ours {seconds:.3g} s); {found}"


def run(main: Callable[[bool], Any]) -> None:
    """Be a benchmark's command line: ``[--quick]``."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, one pair, equality only, writes nothing")
    main(parser.parse_args().quick)
