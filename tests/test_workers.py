"""Jobs side by side: the same results, their lines shown, failures and kills that leave nothing running."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from persona_lib import workers

REPO = Path(__file__).resolve().parent.parent


def square(number: int) -> tuple[int, int, str, tuple]:
    """Return the square, the process, its number of threads, and when it looks for garbage."""
    print(f"squaring {number}")
    return number * number, os.getpid(), os.environ["OMP_NUM_THREADS"], gc.get_threshold()


def fail_or_sleep(number: int, seconds: float) -> None:
    """Fail at number 0; else sleep."""
    if number == 0:
        raise ValueError("number 0 cannot be done")
    time.sleep(seconds)


def say_who_and_sleep(path: str, seconds: float) -> None:
    """Write the process's id into a file and sleep."""
    Path(path).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(seconds)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether a condition has come true within some time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def is_running(pid: int) -> bool:
    """Return whether a process is there and has not ended (one that nobody waits for stays as a zombie)."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and ") Z" not in status.read_text(encoding="utf-8")


def test_jobs_in_workers_return_in_order_with_shared_cores_and_show_their_lines(capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(workers, "cores", lambda: 6)
    values, pids, threads, collected = zip(
        *workers.run_jobs(square, [(n,) for n in range(4)], 2), strict=True
    )
    assert values == (0, 1, 4, 9) and os.getpid() not in pids
    assert set(threads) == {"3"} and set(collected) == {workers.COLLECT_AFTER}
    assert sorted(capfd.readouterr().out.split("\n")[:-1]) == [f"squaring {n}" for n in range(4)]


@pytest.mark.parametrize(("jobs", "count"), [(1, 8), (3, 1)])
def test_one_job_or_one_worker_stays_in_this_process(jobs, count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert {pid for _, pid, *_ in workers.run_jobs(square, [(2,)] * jobs, count)} == {os.getpid()}


def test_a_failing_job_is_raised_without_waiting_for_the_others():
    started = time.monotonic()
    with pytest.raises(ValueError, match="number 0 cannot be done"):
        workers.run_jobs(fail_or_sleep, [(1, 60.0), (0, 60.0)], 2)
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
    files = [tmp_path / name for name in ("a", "b")]
    script = tmp_path / "script.py"
    script.write_text(
        "from test_workers import say_who_and_sleep, workers\n"
        f"jobs = {[(str(path), 60.0) for path in files]}\n"
        "if __name__ == '__main__':\n    workers.run_jobs(say_who_and_sleep, jobs, 2)\n",
        encoding="utf-8",
    )
    path = os.pathsep.join([str(REPO), str(REPO / "tests")])
    parent = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path})
    try:
        assert wait_for(lambda: all(f.exists() and f.read_text() for f in files), 30), "no worker has begun"
    finally:
        parent.kill()
        parent.wait()
    pids = [int(f.read_text()) for f in files]
    assert len(set(pids)) == 2 and wait_for(lambda: not any(map(is_running, pids)), 20)


def test_share_out_gives_the_heaviest_first_each_to_the_lightest():
    # 7 -> A; 5 -> B; 4 -> B (5 < 7); 2 -> A (7 < 9); 1 -> A or B (9 = 9): the first
    assert workers.share_out("abcde", [7, 4, 5, 1, 2], 2) == [["a", "e", "d"], ["c", "b"]]
    assert workers.share_out("ab", [1, 1], 5) == [["a"], ["b"]]
    assert workers.share_out([], [], 2) == []
