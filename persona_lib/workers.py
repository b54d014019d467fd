"""Independent jobs side by side, each in a process of its own with its share of the processor's cores.

Many operations of a small model are too small to be worth splitting over threads, so two arms in two
processes should use two cores better than one arm with two threads. The results are the same.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any

LOOK_SECONDS = 0.5  # how soon a worker notices that it is to end
# Imports and rows make millions of objects that stay; Python would look through them all the time.
COLLECT_AFTER = (10_000, 10, 10)  # new objects, and collections of each age before one of the next


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(items: Sequence[Any], weights: Sequence[float], workers: int) -> list[list[Any]]:
    """Split items into at most ``workers`` lists of like total weight; none of them is empty.

    The heaviest item goes first, each to the list that is the lightest so far.
    """
    shares: list[list[Any]] = [[] for _ in range(min(workers, len(items)))]
    loads = [0.0] * len(shares)
    for index in sorted(range(len(items)), key=lambda i: -weights[i]):
        lightest = loads.index(min(loads))
        shares[lightest].append(items[index])
        loads[lightest] += weights[index]
    return shares


def begin_worker(stop: Any, threads: int, parent: int) -> None:
    """Set a new worker up: its threads, its output, and an end of its own when the parent is gone.

    Without the last a killed run would leave workers behind that write into the folders of the next one. A
    process that ends would look through all that it imported: two seconds with TRL, if it were not frozen.
    """
    gc.set_threshold(*COLLECT_AFTER)
    atexit.register(gc.freeze)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)

    def watch() -> None:
        while os.getppid() == parent and not stop.is_set():
            time.sleep(LOOK_SECONDS)
        os._exit(1)  # whatever the worker is doing

    threading.Thread(target=watch, daemon=True).start()


def run_jobs(function: Callable[..., Any], jobs: Sequence[tuple], workers: int) -> list[Any]:
    """Return ``[function(*job) for job in jobs]``, with up to ``workers`` jobs at a time.

    One worker or one job runs in this process. Otherwise the function must be importable and jobs and
    results picklable; every worker gets an equal share of the cores (OMP_NUM_THREADS, if set, wins).
    The first exception of a job is raised once the other workers have been told to end; an interrupt ends
    them, too.
    """
    workers = min(workers, len(jobs))
    if workers < 2:
        return [function(*job) for job in jobs]
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    stop = context.Event()
    setting = (stop, max(1, cores() // workers), os.getpid())
    with ProcessPoolExecutor(workers, context, begin_worker, setting) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            raise
