"""How much faster it is to train, generate and score in two processes than in one (``workers``).

    python benchmarks/workers.py [STEP ...]

Takes the finished default run in ``results/synthetic`` (or $PERSONA_RESULTS), seed 0, copies it, and makes
each step again with one worker that has all the cores and with two that share them, in interleaved pairs of
fresh processes, start-up included. Checks that both leave the very same files and prints the median ratio
with the smallest and largest. Steps: sft, dpo, generation, swap; all without arguments.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from persona_lib.config import open_run, results_dir

PAIRS = 3
STEPS = {  # what is called, what it leaves in the run's folder
    "sft": ("train.train_arms(run, 'sft')", "adapters/sft-*", "adapter_model.safetensors"),
    "dpo": ("train.train_arms(run, 'dpo')", "adapters/dpo-*", "adapter_model.safetensors"),
    "generation": ("tailor.generate_all(run)", "generations/*", "rows.jsonl"),
    "swap": ("swap.score_all(run)", "swap/*", "policy.jsonl"),
}


def one(step: str, workers: int, results: Path) -> tuple[float, dict[str, bytes]]:
    """Make a step again in a fresh process; return its seconds and the files it left."""
    call, folders, name = STEPS[step]
    folder = results / "synthetic" / "synthetic" / "seed-0"
    for path in folder.glob(folders):
        shutil.rmtree(path)
    code = (
        "from persona_lib.evaluation import swap, tailor; from persona_lib.training import train; "
        "from persona_lib.config import open_run; "
        f"run = open_run('synthetic', overrides=['workers={workers}']); {call}"
    )
    started = time.perf_counter()
    environment = os.environ | {"PERSONA_RESULTS": str(results)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    return seconds, {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob(f"{folders}/{name}")}


def main() -> None:
    """Time the steps both ways and print the ratios."""
    run = open_run("synthetic")
    if not any(run.folder.glob("swap/*/done.json")):
        sys.exit(f"{run.folder}: no finished run; run ./run_all.sh first")
    with tempfile.TemporaryDirectory() as name:
        results = Path(name)
        shutil.copytree(results_dir(run.profile), results / "synthetic")
        for step in sys.argv[1:] or STEPS:
            times, ratios = [], []
            for _ in range(PAIRS):
                (slow, left), (fast, other) = one(step, 1, results), one(step, 2, results)
                if left != other or not left:
                    sys.exit(f"{step}: the results differ")
                times.append(fast)
                ratios.append(slow / fast)
            print(
                f"{step}: {statistics.median(ratios):.2f} times as fast with two workers "
                f"({min(ratios):.2f} to {max(ratios):.2f}, {PAIRS} pairs, "
                f"about {statistics.median(times):.0f} s), "
                f"{len(left)} files equal",
                flush=True,
            )


if __name__ == "__main__":
    main()
