"""One job in several processes ("ranks") that step together, one GPU each where there are GPUs.

The parent starts them with ``accelerate launch`` and a file of ``configs/accelerate/``, shows their lines as
they come, and raises the traceback of the rank that failed first. In a rank, and in a process that is
alone, the other functions say which rank this is and keep the ranks in step.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.config import REPO
from persona_lib.workers import cores, end_when

CONFIGS = {"ddp": "ddp.yaml", "fsdp": "fsdp_qlora.yaml"}
LINES_KEPT = 40  # of the output, for a failure that left no traceback
END_SECONDS = 10.0  # how long the ranks may take to end before they are killed


class RankError(RuntimeError):
    """A job of several ranks that failed; the message holds the traceback or says how the rank died."""


def rank() -> int:
    """Return this process's number among the ranks; 0 in a process that is alone."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Return how many ranks there are; 1 in a process that is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def share(value: Any) -> Any:
    """Return rank 0's value in every rank, once all have come here."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value], from_process=0)[0]


def launch_command(module: str, launcher: str, ranks: int, arguments: list[str]) -> list[str]:
    """Return the command that starts a module in so many ranks."""
    config = REPO / "configs" / "accelerate" / CONFIGS[launcher]
    options = ["--config_file", str(config), "--num_processes", str(ranks), "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", module, *arguments]


def run_ranks(module: str, launcher: str, ranks: int, job: dict[str, Any]) -> None:
    """Run ``python -m module FOLDER`` in so many ranks, where FOLDER holds the job as ``job.json``.

    What they print is printed here, line by line. Raises RankError if one fails; the others are ended
    then, and on an interrupt.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        store.write_json(folder / "job.json", job | {"parent": os.getpid()})
        command = launch_command(module, launcher, ranks, [name])
        process = subprocess.Popen(
            command,
            env=environment(ranks),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            lines = show_output(process)
        finally:
            end(process)
        if process.returncode:
            raise RankError(f"{module} in {ranks} ranks failed: {what_failed(folder, lines)}")


def environment(ranks: int) -> dict[str, str]:
    """Return the ranks' environment: this package importable, an equal share of the cores for each."""
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // ranks)))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}


def show_output(process: subprocess.Popen) -> list[str]:
    """Print the process's lines as they come; return them all once it has ended."""
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        print(lines[-1], flush=True)
    process.wait()
    return lines


def end(process: subprocess.Popen) -> None:
    """End a launcher that still runs; it ends its ranks."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    process.stdout.close()


def what_failed(folder: Path, lines: list[str]) -> str:
    """Return how a rank was killed, else the first rank's traceback, else the last lines of the output."""
    exits = re.findall(r"rank +: (\d+) .*\n +exitcode +: (-\d+)", "\n".join(lines))
    killed = [(number, -int(code)) for number, code in exits if int(code) != -signal.SIGTERM]
    if killed:
        number, code = killed[0]
        return f"rank {number} was killed by signal {code} (9 is often a lack of memory)"
    traces = sorted(folder.glob("rank-*.txt"), key=lambda path: path.stat().st_mtime_ns)
    if traces:
        return f"{traces[0].stem.replace('-', ' ')}:\n{traces[0].read_text(encoding='utf-8')}"
    return "no rank left a traceback; the last lines were\n" + "\n".join(lines[-LINES_KEPT:])


def run_as_rank(function: Callable[[dict[str, Any]], Any]) -> None:
    """Be a rank of ``run_ranks``: call the function with the job; a failure leaves its traceback there.

    Only rank 0 prints. The process ends when its launcher or the parent is gone, like the workers' ones.
    """
    folder = Path(sys.argv[1])
    try:
        job = store.read_json(folder / "job.json")
        launcher = os.getppid()
        end_when(lambda: os.getppid() != launcher or not is_running(job["parent"]))
        with contextlib.ExitStack() as stack:
            if rank() > 0:
                nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            function(job)
    except BaseException:
        store.write_text(folder / f"rank-{rank()}.txt", traceback.format_exc())
        raise


def is_running(process: int) -> bool:
    """Say whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def check_ranks(expected: int) -> None:
    """Join the ranks; raise RankError unless there are as many as asked for, with a GPU each if any.

    A launcher may start a single process and say nothing; it would train on another batch than meant.
    """
    import torch
    from accelerate import PartialState

    gpus = torch.cuda.device_count()
    if gpus and gpus < int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        raise RankError(f"{expected} ranks but {gpus} GPU(s): every rank needs one; lower train_processes")
    joined = PartialState(cpu=not gpus).num_processes
    if not joined == count() == expected:
        raise RankError(f"asked for {expected} ranks; WORLD_SIZE is {count()} and {joined} joined")
