"""How much faster it is to train, generate and score in two processes than in one (``workers``).

    python benchmarks/workers.py [--quick]

Two arms in two processes of one thread each beside one arm after the other with two threads, in fresh
processes, start-up included. Takes the finished default run in ``results/synthetic`` (or $PERSONA_RESULTS),
seed 0, copies it, and makes each step again with one worker that has all the cores and with two that share
them. Both must leave the same files: byte for byte where one thread gives the same sums as two, else adapters
to rounding, which is said. Steps: sft, dpo, generation, swap. ``--quick`` makes what it needs of the smoke
profile first and compares sft only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import harness

from persona_lib.config import REPO, load_profile, results_dir

PAIRS = 3
TOLERANCE = 1e-3  # of weights and log-probabilities that were summed in another order
STEPS = {  # what is called, what it leaves in the run's folder
    "sft": ("train.train_arms(run, 'sft')", "adapters/sft-*", "adapter_model.safetensors"),
    "dpo": ("train.train_arms(run, 'dpo')", "adapters/dpo-*", "adapter_model.safetensors"),
    "generation": ("tailor.generate_all(run)", "generations/*", "rows.jsonl"),
    "swap": ("swap.score_all(run)", "swap/*", "policy.jsonl"),
}
FIRST = ("01", "02", "03", "05")  # steps that sft needs


def make(step: str, workers: int, results: Path, profile: str) -> harness.Timed:
    """Make a step again in a fresh process; return its seconds and the files it left, by name."""
    call, folders, name = STEPS[step]
    folder = results / profile / "synthetic" / "seed-0"
    for path in folder.glob(folders):
        shutil.rmtree(path)
    code = (
        "from persona_lib.evaluation import swap, tailor; from persona_lib.training import train; "
        "from persona_lib.config import open_run; "
        f"run = open_run({profile!r}, overrides=['workers={workers}']); {call}"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}  # workers share the cores
    environment |= {"PERSONA_RESULTS": str(results), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "100"}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    files = sorted(folder.glob(f"{folders}/{name}"))
    return harness.Timed({str(path.relative_to(folder)): path.read_bytes() for path in files}, seconds)


def same_files(a: dict[str, bytes], b: dict[str, bytes]) -> str:
    """Say that both ways left the same files, or weights that differ by rounding; raises NotEqual."""
    if not a or a.keys() != b.keys():
        raise harness.NotEqual(f"files {sorted(a)} and {sorted(b)}")
    other = [name for name in a if a[name] != b[name]]
    if not other:
        return f"{len(a)} files the same bytes"
    if not all(name.endswith(".safetensors") for name in other):
        raise harness.NotEqual(f"{len(other)} of {len(a)} files differ: {other[0]}")
    worst = max(weights_apart(a[name], b[name]) for name in other)
    if worst > TOLERANCE:
        raise harness.NotEqual(f"weights differ by {worst:.1e} of their size: {other[0]}")
    return f"{len(a)} adapters equal to {worst:.0e} of their size"


def weights_apart(a: bytes, b: bytes) -> float:
    """Return the largest difference between two adapters' weights, over the largest weight."""
    import safetensors.torch

    first, second = safetensors.torch.load(a), safetensors.torch.load(b)
    largest = max(float(weights.abs().max()) for weights in first.values())
    return max(float((first[name] - second[name]).abs().max()) for name in first) / largest


def compare(step: str, results: Path, profile: str, quick: bool) -> None:
    """Compare one worker with two for a step."""
    harness.compare(
        f"workers-{step}",
        partial(make, step, 1, results, profile),
        partial(make, step, 2, results, profile),
        same_files,
        PAIRS,
        what=f"{step} of a {profile} run: two processes of one thread, start-up included",
        against="one process with two threads",
        quick=quick,
    )


def main(quick: bool) -> None:
    """Compare the steps."""
    profile = "smoke" if quick else "synthetic"
    finished = results_dir(load_profile(profile))
    with tempfile.TemporaryDirectory() as name:
        results = Path(name)
        if quick:
            command = [sys.executable, "-m", "persona_lib.pipeline", "--profile", profile, "--only", *FIRST]
            environment = os.environ | {"PERSONA_RESULTS": str(results)}
            subprocess.run(command, check=True, cwd=REPO, env=environment, stdout=subprocess.DEVNULL)
        elif any(finished.glob("synthetic/seed-0/swap/*/done.json")):
            shutil.copytree(finished, results / profile)
        else:
            sys.exit(f"{finished}: no finished run; run ./run_all.sh first")
        for step in ["sft"] if quick else STEPS:
            compare(step, results, profile, quick)


if __name__ == "__main__":
    harness.run(main)
