"""``--plan``: what would run and why, how long it takes, and what it needs. Reads only small files.

Nothing is imported, installed or downloaded for it. Times are those of the last run here, else of our runs.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from persona_lib import hub, store, weights
from persona_lib.config import Run, results_dir
from persona_lib.data import official_folders
from persona_lib.evaluation.matchups import matchups
from persona_lib.models.generators import GENERATORS
from persona_lib.profiles import Profile
from persona_lib.runner import environment
from persona_lib.runner.execute import clock
from persona_lib.runner.tasks import REPORT, Pipeline, Task, stale_reasons

# In a line of the ledger; quotes in texts are escaped.
PAID, LOST = (re.compile(rb'"%s": ([-+.0-9eE]+)' % name) for name in (b"cost_usd", b"lost_usd"))
NO_ANSWER = b'"finish_reason": "lost"'
# The authors' data on their public home: GB.
OFFICIAL_DATA_GB = 0.02


@dataclass(frozen=True)
class Line:
    """One task of the plan: "cached", "run" or "maybe" (an input may change), why, and seconds expected."""

    task: Task
    state: str
    reason: str
    seconds: float | None
    measured: bool


def expected_seconds(pipeline: Pipeline, task: Task) -> tuple[float | None, bool]:
    """Return how long a task takes and whether that was measured here; None if nothing is known."""
    path = pipeline.results / "provenance.json"
    if path.exists():
        record = store.read_json(path)["tasks"].get(task.id)
        if record:
            return record["longest_seconds"], True
    if task.step == REPORT:
        return 15.0, False
    minutes = pipeline.table[task.step].minutes
    if pipeline.profile.name in minutes:
        return minutes[pipeline.profile.name] * 60, False
    if hub_models(pipeline.profile):  # small steps: the data decides, not the model
        return (minutes["paper"] * 60, False) if "paper" in minutes else (None, False)
    return (minutes["everyday"] * 60, False) if "everyday" in minutes else (None, False)


def plan_lines(pipeline: Pipeline, selected: list[str], force: bool = False) -> list[Line]:
    """Return the plan of the selected tasks; what follows a stale task is "maybe"."""
    lines: list[Line] = []
    moving: set[str] = set()
    for name in selected:
        task = pipeline.tasks[name]
        reasons = ["--force"] if force else stale_reasons(pipeline, task)
        waiting = [i for i in task.inputs if i in moving]
        state, reason = "cached", "nothing changed"
        if reasons:
            state, reason = "run", "; ".join(reasons)
        elif waiting:
            state, reason = "maybe", f"if {waiting[0]} changes" + (" (or others)" if len(waiting) > 1 else "")
        if state != "cached":
            moving.add(name)
        lines.append(Line(task, state, reason, *expected_seconds(pipeline, task)))
    return lines


def roles(profile: Profile) -> dict[str, str]:
    """Return what a profile asks language models for beside the policies, and where each is served."""
    names = ["generator"] if "03_persona_inference" in profile.steps else []
    names += ["judge"] * ("lm" in (profile.judge, profile.persona_judge))
    names += ["second_judge"] * bool(profile.second_judge_model)
    return {name: getattr(profile, f"{name}_url") for name in names}


def models_here(profile: Profile) -> list[str]:
    """Return the models that a profile loads on this machine: hub ids, folders, and packaged weights."""
    here = [getattr(profile, f"{role}_model") for role, url in roles(profile).items() if not url]
    named = dict.fromkeys([profile.base_model, *here, profile.retriever_model])
    return [name for name in named if name not in {"", "base", *GENERATORS}]


def hub_models(profile: Profile) -> list[str]:
    """Return the hub models that a profile uses."""
    return [name for name in models_here(profile) if hub.is_hub_id(name)]


def packaged_models(profile: Profile) -> list[str]:
    """Return the weights of the package index that a profile uses; of a model's first layers, the model."""
    named = filter(weights.is_packaged, models_here(profile))
    return [*dict.fromkeys(weights.PREFIX + weights.entry(name)["name"] for name in named)]


def to_fetch(profile: Profile) -> list[str]:
    """Return the weights of the package index that a profile uses and that are not on this machine."""
    return [name for name in packaged_models(profile) if not weights.is_fetched(name)]


def in_hub_cache(name: str) -> bool:
    """Return True if some revision of a hub model is in the local cache."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return any((cache / f"models--{name.replace('/', '--')}" / "snapshots").glob("*"))


def downloads(profile: Profile) -> list[tuple[str, float, str]]:
    """Return (what, GB still to download, remark) for models and data."""
    wanted = [packaged_download(name) for name in packaged_models(profile)]
    for name in (hub.split_id(source)[0] for source in hub_models(profile)):
        known = hub.MODELS.get(name, hub.HubModel("", float("nan")))
        here = in_hub_cache(name)
        access = ", access must be granted" if known.gated else ""
        remark = "on this machine" if here else f"from the hub{access}"
        wanted.append((name, 0.0 if here else known.gb, remark))
    if uses_real_data(profile):
        wanted.append(("the authors' data", *official_data(profile)))
    return wanted


def packaged_download(name: str) -> tuple[str, float, str]:
    """Return the line of ``downloads`` for weights of the package index."""
    row, here = weights.entry(name), weights.is_fetched(name)
    where = "on this machine" if here else f"from the package index, {row['megabytes']} MB"
    remark = f"{where}; licence: {row['licence']}"
    if not row["open"]:
        accepted = (
            ", accepted" if weights.is_allowed(row) else f": to accept it set {weights.ACCEPT}={row['name']}"
        )
        remark += f", which is not an open one{accepted}"
    return name, 0.0 if here else row["megabytes"] / 1000, remark


def official_data(profile: Profile) -> tuple[float, str]:
    """Return the GB of the authors' data that are still to download, and where they come from."""
    folder = official_folders.at_hand(
        profile.data_dir, [name for name in profile.datasets if name in official_folders.DATASETS]
    )
    named = profile.data_dir or os.environ.get("PERSONA_DATA", "")
    if folder:
        return 0.0, f"on this machine, in {folder}"
    if named == official_folders.FROM_HUB:
        return OFFICIAL_DATA_GB, "from the hub, pinned"
    if named:
        return 0.0, f"NOT in {named}: the run will stop; give --data PATH"
    return OFFICIAL_DATA_GB, "pinned public copy, checked; or give --data PATH"


def uses_real_data(profile: Profile) -> bool:
    """Return True if a data set of the profile is one of the authors'."""
    return any(name in official_folders.DATASETS for name in profile.datasets)


def disk_gb(profile: Profile) -> float:
    """Return the disk space that results and downloads need, in GB."""
    runs = len(profile.datasets) * len(profile.seeds)
    small = 0.05 + 0.1 * runs  # two seeds of the tiny models took 53 MB
    large = 0.3 * runs if hub_models(profile) else 0.0  # LoRA adapters with optimiser state of an 8B model
    converted = sum(weights.kept_bytes(weights.entry(name)) for name in to_fetch(profile)) / 1e9
    return small + large + converted + sum(size for _, size, _ in downloads(profile))


def gpu_need(profile: Profile) -> str:
    """Say how large the models of a profile are; what a step adds to that nobody has measured here."""
    if not hub_models(profile):
        return "none needed: everything runs on the CPU"
    sizes = [(name, hub.MODELS.get(hub.split_id(name)[0])) for name in hub_models(profile)]
    said = ", ".join(f"{name} {known.gb:.1f} GB" if known else f"{name} unknown" for name, known in sizes)
    nf4 = ", the base in NF4 a third of that" if profile.quantization == "nf4" else ""
    return f"weights in 16 bit: {said}{nf4}; activations come on top (not measured)"


def requests_need(profile: Profile) -> list[str]:
    """Count the requests to models that are served: both orders and rubrics of every comparison."""
    rows = {name: known["rows"][-1] for name, known in official_folders.DATASETS.items() if known["rows"]}
    lines = []
    for role, url in roles(profile).items():
        kinds = profile.second_judge_matchups if role == "second_judge" else None
        counted = [name for name in profile.datasets if name in rows]
        if not url or role not in ("judge", "second_judge") or not counted:
            continue
        n = 0
        for name in counted:
            compared = sum(kinds is None or m.kind in kinds for m in matchups(Run(profile, name, 0)))
            n += 4 * compared * min(rows[name], profile.eval_limit or rows[name]) * len(profile.seeds)
        lines.append(f"{role}: about {n:,} requests")
    return lines


def api_need(profile: Profile) -> str:
    """Say which served models a profile asks, at what price, and what limits the bill."""
    served = {role: url for role, url in roles(profile).items() if url}
    if not served:
        return "0: no paid service is called"
    parts = []
    for role, url in served.items():
        prices = getattr(profile, f"{role}_prices")
        price = f"{prices[0]:g} + {prices[1]:g} dollars per million tokens" if prices else "no price given"
        parts.append(f"{getattr(profile, f'{role}_model')} at {url} ({price})")
    limit = f"at most {profile.max_cost_usd:g} dollars in all" if profile.max_cost_usd else "no limit is set"
    return f"{'; '.join(parts)}; {limit} (--max-cost-usd){already_paid(profile)}"


def already_paid(profile: Profile) -> str:
    """Say how many answers of served models are kept, and what they cost; "" without any.

    The ledger may have hundreds of thousands of lines: only its costs are read.
    """
    path = results_dir(profile) / "endpoint" / "answers.jsonl"
    ledger = path.read_bytes() if path.exists() else b""
    paid, lost = ([float(found) for found in pattern.findall(ledger)] for pattern in (PAID, LOST))
    kept = len(paid) - ledger.count(NO_ANSWER)
    said = f"; {kept} answers are kept, for {sum(paid):.2f} dollars, and not asked again" if kept else ""
    return said + (f"; lost replies may have cost {sum(lost):.2f} dollars more" if sum(lost) else "")


def setup_need() -> str:
    """Say whether the Python that runs this has the packages; measured: 1.8 GB with torch for the CPU."""
    if not environment.unmet("lab"):
        return "done: this Python satisfies the pins"
    return ".venv, once: 1.8 GB of packages with torch for the CPU, about 6 GB with torch for CUDA"


def not_ready(profile: Profile) -> list[str]:
    """Say what of a profile this version has not been made to run."""
    missing = []
    if not weights.is_packaged(profile.base_model):
        missing.append(
            f"training {profile.base_model} has not been run with this version; no times are known"
        )
    judges = [role for role, url in roles(profile).items() if role != "generator" and not url]
    for name in (getattr(profile, f"{role}_model") for role in judges):
        if name != "base" and not weights.is_packaged(name) and name not in GENERATORS:
            missing.append(f"the judge {name} has not been run with this version")
    return missing + unpinned(profile)


def unpinned(profile: Profile) -> list[str]:
    """Say which hub models of a profile have no commit, and how to give one."""
    notes = []
    for name in hub_models(profile):
        try:
            hub.pinned(name, profile.base_revision if name == profile.base_model else "")
        except hub.HubError as error:
            notes.append(str(error))
    return notes


def print_plan(pipeline: Pipeline, lines: list[Line]) -> None:
    """Print every task with its state, reason and time, then the totals."""
    profile = pipeline.profile
    print(f"profile {profile.name}: {profile.description}")
    print(f"results in {pipeline.results}\n")
    width = max((len(line.task.id) for line in lines), default=0)
    for line in lines:
        about = "?" if line.seconds is None else clock(line.seconds)
        source = "measured" if line.measured else "expected"
        print(f"  {line.state:<6}  {line.task.id:<{width}}  {about:>7} {source}  {line.reason}")
    print()
    print_totals(profile, lines)


def print_totals(profile: Profile, lines: list[Line]) -> None:
    """Print what the run needs: time, disk, downloads, GPU memory, API cost, and what is not ready."""
    pending = [line for line in lines if line.state != "cached"]
    total = sum(line.seconds or 0 for line in pending)
    unknown = sum(line.seconds is None for line in pending)
    print(f"to run     {len(pending)} of {len(lines)} tasks")
    print(
        f"time       {clock(total)} h:mm:ss" + (f", and {unknown} tasks of unknown length" if unknown else "")
    )
    wanted = downloads(profile)
    print(f"set-up     {setup_need()}")
    print(f"download   {sum(size for _, size, _ in wanted):.1f} GB" + ("" if wanted else ": nothing"))
    for what, size, remark in wanted:
        print(f"             {what}: {size:.2f} GB ({remark})")
    print(f"disk       {disk_gb(profile):.1f} GB")
    print(f"GPU        {gpu_need(profile)}")
    print(f"API cost   {'; '.join([api_need(profile), *requests_need(profile)])}")
    for note in not_ready(profile):
        print(f"not ready  {note}")
