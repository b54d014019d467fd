"""What a run was made with: commit, versions, hardware; written beside every result.

Nothing here imports the packages that it reports on: versions come from their metadata.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from persona_lib.config import REPO

MAIN_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "numpy",
    "papermill",
)
# Tracked files that runs and benchmarks write: that they differ says nothing of the code.
WRITTEN = ("figures", "benchmarks/results", "benchmarks/tables", "benchmarks/README.md")


def command_output(*command: str) -> str | None:
    """Return what a program prints, or None if it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def git_state() -> dict[str, Any]:
    """Return the commit and whether tracked files differ from it; both None outside a repository.

    Files that a run itself writes (``WRITTEN``) do not count.
    """
    commit = command_output("git", "rev-parse", "HEAD")
    others = ["--", ".", *(f":(exclude){path}" for path in WRITTEN)]
    status = ("git", "status", "--porcelain", "--untracked-files=no", *others)
    changed = command_output(*status) if commit else None
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def package_versions() -> dict[str, str]:
    """Return the version of every installed package, by name."""
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_gb() -> float | None:
    """Return the machine's memory in GB, or None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def hardware() -> dict[str, Any]:
    """Return processor, usable cores, memory and GPUs (name, memory, driver)."""
    gpus = command_output(
        "nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_name(),
        "cores": cores,
        "memory_gb": memory_gb(),
        "gpus": gpus.splitlines() if gpus else [],
    }


@cache
def environment() -> dict[str, Any]:
    """Return the facts that hold for every step of one call of the runner."""
    packages = package_versions()
    return {
        "git": git_state(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "hardware": hardware(),
        "versions": {name: packages[name] for name in MAIN_PACKAGES if name in packages},
    }


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
