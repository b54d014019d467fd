"""Where a profile's numbers come from: command, commit, date, seeds, hardware, as its run recorded them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona_lib.config import results_dir
from persona_lib.profiles import Profile
from persona_lib.store import read_json

STEP = "12_results"


def read_provenance(profile: Profile) -> dict[str, Any]:
    """Return the run's ``provenance.json``; {} if nothing was run by the pipeline."""
    path = results_dir(profile) / "provenance.json"
    return read_json(path) if path.exists() else {}


def command_of(profile: Profile, overrides: list[str]) -> str:
    """Return the command line that gives a profile these settings; paths are left to the reader."""
    words = ["./run_all.sh"] + ([] if profile.name == "everyday" else ["--profile", profile.name])
    for override in overrides:
        name, _, value = override.partition("=")
        seeds = value.split(",")
        if name == "data_dir":
            words += ["--data", "PATH"]
        elif name == "data_mapping":
            words += ["--mapping", "FILE"]
        elif override == "datasets=own":
            continue  # --data says so
        elif name.endswith("_model") and Path(value).is_absolute():
            words += ["--set", f"{name}=FOLDER"]
        elif name == "seeds" and seeds == [str(i) for i in range(len(seeds))]:
            words += ["--seeds", str(len(seeds))]
        else:
            words += ["--set", override]
    return " ".join(words)


def origin(profile: Profile, step: str = STEP) -> dict[str, str]:
    """Return command, commit, date and hardware of the run that made a step's tables, as text."""
    facts = read_provenance(profile).get("tasks", {}).get(step)
    if facts is None:
        return {
            "command": f"notebooks/{step}.ipynb, run by hand",
            "commit": "not recorded",
            "date": "not recorded",
        }
    git, hardware = facts["git"], facts["hardware"]
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    return {
        "command": command_of(profile, facts["parameters"].get("overrides", [])),
        "commit": (git["commit"] or "not recorded")[:12]
        + (" with uncommitted changes" if git["dirty"] else ""),
        "date": facts["finished"][:10],
        "hardware": f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB, {gpus}",
        "python": facts["python"],
        **{f"version of {name}": version for name, version in facts["versions"].items()},
    }


def origin_line(profile: Profile, seeds: str, n: str, step: str = STEP) -> str:
    """Return one line of provenance for a table: command, commit, seeds, n, date."""
    known = origin(profile, step)
    return f"`{known['command']}`; commit {known['commit']}; seeds {seeds}; n = {n}; run of {known['date']}."


def times(profile: Profile) -> list[tuple[str, str, float, float]]:
    """Return (task, finished, seconds, peak memory in MB) of every task that the pipeline ran."""
    tasks = read_provenance(profile).get("tasks", {})
    return [(name, f["finished"], f["longest_seconds"], f["peak_memory_mb"]) for name, f in tasks.items()]
