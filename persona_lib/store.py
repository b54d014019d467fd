"""Files on disk: append-only JSONL of records, atomic writes, folders marked as finished.

A folder is finished when its ``done.json`` exists, which is written last and holds the key (inputs' hash).
A torn last line, left by a killed process, is cut off, so that a rerun resumes at the first missing row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import operator
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from persona_lib.records import Table
from persona_lib.settings import FACTS, REPO, results_dir

T = TypeVar("T")

# The keys of finished work hold these numbers. Bump one when its step's code gives other results;
# tests/test_versions.py fails until the number, or the hash beside it, was changed on purpose.
VERSIONS = {"pairs": 1, "personas": 1, "tailoring": 1, "training": 1, "answers": 1, "judging": 2, "swap": 1,
            "calibration": 2, "rejudged": 2, "users": 1}  # fmt: skip


def to_json(value: Any) -> Any:
    """Turn a record or a path into what ``json`` can write; TypeError for anything else."""
    return str(value) if isinstance(value, Path) else dataclasses.asdict(value)


def content_hash(*values: Any) -> str:
    """Return 16 hex digits of the SHA-256 of the values' canonical JSON."""
    text = json.dumps(values, sort_keys=True, default=to_json)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(folder: Path) -> str:
    """Return a hash of the names and contents of the files that lie directly in a folder."""
    stats = [(path, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return hash_of_states(*[(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])


@cache
def hash_of_states(*states: tuple[Path, int, int]) -> str:
    """Return a hash of files; those of the same size and time are not read again in this process."""
    return content_hash([(path.name, file_hash(path)) for path, _, _ in states])


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically."""
    write_text(path, json.dumps(value, indent=1, default=to_json, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON document; a damaged file is an error that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it to have it made again") from error


@cache
def facts(name: str) -> dict[str, Any]:
    """Return ``facts/NAME.yaml``: what ships with the package."""
    import yaml

    return yaml.safe_load((FACTS / f"{name}.yaml").read_text(encoding="utf-8"))


def fill(template: str, **values: Any) -> str:
    """Return a page or model card of ``facts/pages``; jinja2 escapes every text in a page."""
    import jinja2

    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FACTS / "pages"), autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return pages.get_template(template).render(values) + "\n"


def read_csv(path: Path, **how: Any) -> Table:
    """Read a table; an empty one without the file."""
    import pandas as pd

    return pd.read_csv(path, dtype={"seeds": str}, **how) if path.exists() else pd.DataFrame()


def people_csv(table: Table, **how: Any) -> str:
    """Return a table as CSV for people: a text that spreadsheets would run gets a space in front.

    So does its rest after a semicolon, a tab or a line break, where some of them begin a new cell. Control
    characters, which they drop, go; a carriage return becomes a line break. Whoever reads the table back
    strips the cells.
    """

    def safe(cell: Any) -> Any:
        if not isinstance(cell, str):
            return cell
        text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", re.sub(r"\r\n?", "\n", cell))
        return re.sub(r"^(?=[-=+@\t\n])|(?<=[;\t\n])(?=[=+@]|-[\w(])", " ", text)

    return table.map(safe).to_csv(index=False, **how)


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write all rows as JSONL, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=to_json) + "\n" for row in rows))


def append_rows(path: Path, rows: Iterable[Any]) -> None:
    """Append rows to a JSONL file and flush them to disk; used inside long steps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=to_json) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def repair_rows(path: Path) -> None:
    """Cut off an unfinished last line (no newline) that a killed process left behind."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def iter_rows(path: Path) -> Iterator[dict]:
    """Yield the rows of a JSONL file as dicts; a damaged line is an error that says where."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                said = f"{path}:{number}: not valid JSON ({error.msg}); mend or delete the line"
                raise ValueError(said) from error


def read_rows(path: Path, record: type[T]) -> list[T]:
    """Read a JSONL file into records of the given dataclass; unknown or missing fields are errors."""
    rows = []
    for number, row in enumerate(iter_rows(path), start=1):
        try:
            rows.append(record(**row))
        except TypeError as error:
            raise ValueError(f"{path}:{number}: not a {record.__name__}: {error}") from error
    return rows


def resume(
    files: Mapping[Path, Sequence[Any]],
    record: type[T],
    do: Callable[[list[tuple[Path, Any]]], Iterable[tuple[Path, T]]],
    size: int,
) -> dict[Path, list[T]]:
    """Return a row per job of every file, in the jobs' order; a job whose id its file has is not done again.

    ``do`` is given (file, job) of all that is missing and yields (file, row) in any order; rows are appended
    ``size`` at a time.
    """
    known: dict[Path, dict[str, T]] = {}
    id_of = operator.attrgetter("id")
    for path in files:
        repair_rows(path)
        known[path] = {id_of(row): row for row in read_rows(path, record)} if path.exists() else {}
    missing = [(path, job) for path, jobs in files.items() for job in jobs if job.id not in known[path]]
    rows = iter(do(missing) if missing else ())
    while batch := list(itertools.islice(rows, size)):
        for path in dict.fromkeys(path for path, _ in batch):
            fresh = [row for where, row in batch if where == path]
            append_rows(path, fresh)
            known[path] |= {id_of(row): row for row in fresh}
    return {path: [known[path][job.id] for job in jobs] for path, jobs in files.items()}


def mark_done(folder: Path, key: str, **facts: Any) -> None:
    """Write ``done.json``, last of all: the folder is finished for this key."""
    write_json(folder / "done.json", {"key": key, **facts})


def is_done(folder: Path, key: str) -> bool:
    """Return True if the folder was finished for exactly this key."""
    marker = folder / "done.json"
    return marker.exists() and read_json(marker).get("key") == key


def clear_unless(folder: Path, key: str) -> None:
    """Make a folder for work with this key (``key.json``); unfinished work for another key is deleted."""
    marker = folder / "key.json"
    if folder.exists() and not (marker.exists() and read_json(marker)["key"] == key):
        shutil.rmtree(folder)
    (folder / "done.json").unlink(missing_ok=True)
    write_json(marker, {"key": key})


def take(lock: Any, log: Path, how: int = fcntl.LOCK_EX) -> int:
    """Take a lock; while another process has it, print its log's lines. Returns how many characters."""
    shown = 0
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, how | fcntl.LOCK_NB)
            return shown
        print((earlier := log.read_text(encoding="utf-8"))[shown:], end="", flush=True)
        shown = len(earlier)
        time.sleep(0.5)


def follow(results: Path) -> None:
    """Print the lines of each step that runs now, in any kernel or terminal, until it ends."""
    followed = False
    for log in sorted(results.glob("*/logs/*.log")):
        with log.with_suffix(".lock").open("a") as lock:
            if shown := take(lock, log, fcntl.LOCK_SH):
                followed = True
                print(log.read_text(encoding="utf-8")[shown:], end="")
    print("the step has ended" if followed else "no step is running")


def one_at_a_time(work: Callable[..., T]) -> Callable[..., T]:
    """Let one process at a time do a run's work; others wait and print its lines, which ``logs/`` keeps."""

    @wraps(work)
    def alone(run: Any, *args: Any) -> T:
        from IPython.utils.io import Tee

        name = ".".join([work.__name__, *args])
        log = results_dir(run.profile) / "logs" / f"{run.dataset}.seed-{run.seed}.{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        with log.with_suffix(".lock").open("w") as lock:
            shown = take(lock, log)
            earlier = log.read_text(encoding="utf-8")
            where = os.environ.get("JPY_SESSION_NAME", "").rpartition("/")[2] or "no tab"
            head = f"{name}: process {os.getpid()} ({where}), begun {now()[:16].replace('T', ' ')} UTC\n"
            write_text(log, head)
            copy: Any = log.open("a", encoding="utf-8", buffering=1)  # by lines, for those who wait
            with contextlib.closing(Tee(copy)):
                result = work(run, *args)
            if log.read_text(encoding="utf-8") == head:  # nothing was left to do
                write_text(log, earlier)
                print(earlier[shown:], end="")
            return result

    return alone


# --- What a run was made with: commit, versions (from metadata: nothing is imported), hardware ---

MAIN_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "tokenizers", "numpy",
                 "papermill", "vllm")  # fmt: skip


def command_output(*command: str) -> str | None:
    """Return what a program prints, or None if it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def git_state() -> dict[str, Any]:
    """Return the commit and whether tracked files differ from it; None outside git."""
    changed = command_output("git", "status", "--porcelain", "--untracked-files=no")
    commit = command_output("git", "rev-parse", "HEAD")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def package_versions() -> dict[str, str]:
    """Return the version of every installed package, by name."""
    return {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}


def hardware() -> dict[str, Any]:
    """Return processor, usable cores, memory in GB and GPUs (name, memory, driver)."""
    info = Path("/proc/cpuinfo")  # Linux
    named = re.search(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else None
    asked = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return {
        "cpu": named[1].strip() if named else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": (command_output("nvidia-smi", *asked) or "").splitlines(),
    }


@cache
def environment() -> dict[str, Any]:
    """Return the facts that hold for every step of one call of the runner."""
    packages = package_versions()
    return {
        "git": git_state(),
        "python": sys.version.split()[0],
        "hardware": hardware(),
        "versions": {name: packages[name] for name in MAIN_PACKAGES if name in packages},
    }


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
