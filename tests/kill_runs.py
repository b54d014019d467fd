"""Kill whole smoke runs at random moments of every step; at the end their tables are those of a quiet run.

    python tests/kill_runs.py FOLDER [KILLS]

FOLDER is new. One run, in FOLDER/whole, is left alone. Others, which fetch the weights again, get SIGKILL
(the runner's process group, or all processes), SIGTERM or SIGINT; half start while what was killed may
still be ending. AssertionError: tables differ in a byte, a process outlives its run by a minute, a run fails.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from persona_lib.settings import REPO
from persona_lib.store import read_json

COMMAND = [sys.executable, "-u", "-m", "persona_lib.pipeline", "--profile", "smoke"]
SIGNALS = [signal.SIGKILL] * 8 + [signal.SIGTERM, signal.SIGINT]  # of ten runs
FETCH, REPORT = 30, 4  # seconds that fetching the weights and writing the report may take


def start(folder: Path) -> subprocess.Popen:
    """Start a run whose results, figures, weights and log are in a folder."""
    places = {name: str(folder / name.lower()) for name in ("RESULTS", "FIGURES", "WEIGHTS")}
    env = os.environ | {f"PERSONA_{name}": path for name, path in places.items()}
    with (folder / "log").open("w") as log:
        return subprocess.Popen(COMMAND, cwd=REPO, env=env, stdout=log, stderr=log, start_new_session=True)


def processes(folder: Path) -> set[int]:
    """Return the processes of a folder's runs, by their environment: runner, kernel, pip."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if bytes(folder / "weights") in (path / "environ").read_bytes():
                found.add(int(path.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def seconds_until_gone(folder: Path, there: set[int]) -> float:
    """Wait until processes have ended."""
    begun = time.monotonic()
    while left := there & processes(folder):
        assert time.monotonic() - begun < 60, f"orphans: {left}"
        time.sleep(0.1)
    return time.monotonic() - begun


def kill(run: subprocess.Popen, sent: signal.Signals, folder: Path, step: int, seconds: list[float]) -> str:
    """End a run at a random moment of the first step from ``step`` on that it works at; returns what did."""
    done, at_work = 0, False
    while run.poll() is None and not (done >= step and at_work):
        time.sleep(0.05)
        cached, begun, ended = map((folder / "log").read_text().count, ("  cached", "  begins", "  done in"))
        done, at_work = cached + ended, begun > ended or cached + ended == len(seconds) - 1
    time.sleep(random.random() * seconds[done])
    if sent == signal.SIGKILL and random.random() < 0.5:
        for pid in processes(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
    elif run.poll() is None:
        os.killpg(run.pid, sent)
    wanted = -sent if sent == signal.SIGKILL else 130
    assert run.wait() in (0, wanted), (folder / "log").read_text()
    return sent.name if run.returncode else "ended before"


def tables(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every table."""
    return {path.name: path.read_bytes() for path in (folder / "results/smoke/tables").glob("*.csv")}


def main(folder: Path, n_kills: int = 40) -> None:
    """Run, kill, compare; prints a line per run, and what was tried."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs would ignore it
    whole, killed = folder / "whole", folder / "killed"
    whole.mkdir(parents=True, exist_ok=True)
    killed.mkdir()
    assert tables(whole) or not start(whole).wait(), (whole / "log").read_text()
    known = read_json(whole / "results/smoke/provenance.json")["tasks"].values()
    seconds, tried, slowest = [*(task["longest_seconds"] for task in known), REPORT], Counter(), 0.0
    seconds[1] += FETCH
    for number in range(n_kills):
        step = number * len(seconds) // n_kills
        tried[said := kill(start(killed), SIGNALS[number * 7 % 10], killed, step, seconds)] += 1
        slowest = max(slowest, seconds_until_gone(killed, processes(killed)) if number % 2 else 0)
        print(f"{number}: from step {step + 1} on, {said}", flush=True)
    assert not start(killed).wait(), (killed / "log").read_text()
    assert not list((killed / "weights").glob(".*.partial"))
    one, other = tables(whole), tables(killed)
    assert one and one == other, [name for name in one | other if one.get(name) != other.get(name)]
    print(f"{dict(tried)}; processes gone after {slowest:.1f} s; {len(one)} tables equal")


if __name__ == "__main__":
    random.seed(0)
    main(Path(sys.argv[1]).resolve(), *map(int, sys.argv[2:3]))
