"""Kill smoke runs at random moments and start them again; at the end their tables are those of a quiet run.

    python -m studies.kill_runs FOLDER [KILLS]

FOLDER is new. Every run fetches the weights itself; what ends before KILLS (40) kills begins from nothing. Of
ten kills eight are SIGKILL, to the process group or to every process, one is SIGTERM and one SIGINT.
AssertionError: tables differ in a byte, a process outlives its run by a minute, a run fails, weights are left
half made.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil

from persona_lib.settings import REPO

COMMAND = [sys.executable, "-u", "-m", "persona_lib.pipeline", "--profile", "smoke"]
SIGNALS = [signal.SIGKILL] * 8 + [signal.SIGTERM, signal.SIGINT]
LONGEST = 90  # seconds until a kill: more than a start and the longest work that is not resumed


def start(folder: Path) -> subprocess.Popen:
    """Start a run whose results, figures, weights and log are in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {f"PERSONA_{name}": str(folder / name.lower()) for name in ("RESULTS", "FIGURES", "WEIGHTS")}
    with (folder / "log").open("w") as log:
        env = os.environ | places
        return subprocess.Popen(COMMAND, cwd=REPO, env=env, stdout=log, stderr=log, start_new_session=True)


def kill(run: subprocess.Popen, number: int) -> str:
    """Send a run its signal, wait until no process of it is left; returns the signal's name."""
    sent, there = SIGNALS[number * 7 % 10], [psutil.Process(run.pid)]
    there += there[0].children(recursive=True)
    for process in there if number % 2 else there[:0]:
        process.send_signal(sent)
    if not number % 2:
        os.killpg(run.pid, sent)
    assert run.wait() in (-sent, 130), run.returncode
    assert not psutil.wait_procs(there, timeout=60)[1], "orphans"
    return sent.name


def tables(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every table."""
    return {path.name: path.read_bytes() for path in (folder / "results/smoke/tables").glob("*.csv")}


def main(folder: Path, kills: int) -> None:
    """Run, kill, compare; prints a line per kill, and what was tried."""
    rng, tried, steps = random.Random(0), Counter[str](), Counter[str]()
    whole, killed = folder / "whole", folder / "killed"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs would ignore it
    assert not start(whole).wait(), (whole / "log").read_text()
    while True:
        run = start(killed)
        try:
            assert not run.wait(rng.uniform(0, LONGEST)), (killed / "log").read_text()
        except subprocess.TimeoutExpired:
            log = (killed / "log").read_text().splitlines()
            steps[([line.split()[1] for line in log if "  begins" in line] or ["before a step"])[-1]] += 1
            tried[kill(run, tried.total())] += 1
            print(f"{tried.total()}: {log[-1:]}", flush=True)
            continue
        assert not list((killed / "weights").glob(".*.partial"))
        one, other = tables(whole), tables(killed)
        assert one and one == other, [name for name in one | other if one.get(name) != other.get(name)]
        if tried.total() >= kills:
            break
        shutil.rmtree(killed)
    print(f"{dict(tried)}; {dict(steps)}; {len(one)} tables equal")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m studies.kill_runs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("folder", type=Path)
    parser.add_argument("kills", type=int, nargs="?", default=40)
    given = parser.parse_args()
    main(given.folder.resolve(), given.kills)
