"""The table of steps, the tasks of a profile, when a task is stale, the plan of a run, and if it can run.

A step (``facts/steps.yaml``) is one numbered notebook; a task is a step for one data set and seed, or for the
whole profile. ``results/<profile>/provenance.json`` holds the key that each task ran for: the notebook's and
the library's code, settings, when its inputs ran. A task is stale when its key differs. Finished rows,
adapters and judgments have keys of their own (``store.VERSIONS``). A plan reads small files only.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import textwrap
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from persona_lib import settings, store, weights
from persona_lib.data import official
from persona_lib.data.preference import ARMS, READERS
from persona_lib.execute import clock, notebook_hash
from persona_lib.models.served import GENERATORS
from persona_lib.paper.answers import grid
from persona_lib.paper.judges import JUDGES
from persona_lib.settings import ConfigError, Profile, Run, check_name, flat


@dataclass(frozen=True)
class Step:
    """One numbered notebook; ``facts/steps.yaml`` explains the fields."""

    per: Literal["run", "profile"] = "run"
    inputs: str = ""
    makes: str = ""
    minutes: dict[str, float] = field(default_factory=dict)


STEPS = {name: Step(**row) for name, row in store.facts("steps").items()}
NOTEBOOKS = settings.REPO / "notebooks"


@dataclass(frozen=True)
class Task:
    """One execution of a step. ``parameters`` are the notebook's, without profile and overrides."""

    id: str
    step: str
    parameters: dict[str, Any]
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """A profile's tasks, and where they read and write."""

    profile: Profile
    overrides: tuple[str, ...] = ()
    notebooks: Path = field(default_factory=lambda: NOTEBOOKS)

    @property
    def results(self) -> Path:
        """Folder of the profile's results."""
        return settings.results_dir(self.profile)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """All tasks of the profile by id, in the order in which they run; ConfigError for an unknown step."""
        profile = self.profile
        made: dict[str, Task] = {}
        runs = [{"dataset": d, "seed": s} for d in profile.datasets for s in profile.seeds]
        for name in sorted(profile.steps):
            check_name(name, STEPS, f"profile {profile.name}: unknown step")
            inputs = [task for task in made.values() if task.step.split("_")[0] in STEPS[name].inputs.split()]
            for run in runs if STEPS[name].per == "run" else [{}]:
                needed = [task.id for task in inputs if not run or task.parameters in ({}, run)]
                task_id = f"{name}.{run['dataset']}.seed-{run['seed']}" if run else name
                made[task_id] = Task(task_id, name, run, tuple(needed))
        return made

    def parameters(self, task: Task) -> dict[str, Any]:
        """What is put into the notebook's parameters cell."""
        return {"profile": self.profile.name, **task.parameters, "overrides": list(self.overrides)}

    def source(self, task: Task) -> Path:
        """The notebook that a task runs."""
        return self.notebooks / f"{task.step}.ipynb"

    def executed(self, task: Task) -> Path:
        """The executed notebook that a task leaves."""
        return self.results / "notebooks" / f"{task.id}.ipynb"

    @property
    def provenance(self) -> Path:
        """The file that says what every task ran with, and which ran to their end."""
        return self.results / "provenance.json"

    def known(self) -> dict[str, dict[str, Any]]:
        """Return the facts of every task that ran, by id."""
        return store.read_json(self.provenance)["tasks"] if self.provenance.exists() else {}


# --- What a task runs for, and whether it has to run ---

# They choose tasks, or change no result.
APART = f"name description steps datasets seeds {settings.CHANGE_NO_RESULT}"


def settings_of(profile: Profile) -> dict[str, Any]:
    """Return the settings that a task's result depends on, as JSON has them; files with a hash."""
    values = json.loads(json.dumps(flat(profile)))
    return {name: with_state(name, value) for name, value in values.items() if not settings.fits(name, APART)}


def with_state(name: str, value: Any) -> Any:
    """Return a field's value; a file or folder with a hash of its files' sizes and times."""
    named = value and (name in ("data.path", "data.mapping") or ".model" in name)
    if not named or not (path := Path(value).expanduser()).exists():
        return value
    stats = [(file.name, file.stat()) for file in sorted([path, *path.rglob("*")])]
    states = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    return f"{value} ({store.content_hash(states)})"


@cache
def library_hash() -> str:
    """Return a hash of the library's files."""
    files = sorted(path for path in settings.FACTS.parent.rglob("*") if path.suffix in (".py", ".yaml"))
    return store.content_hash([store.file_hash(path) for path in files])


def current_key(pipeline: Pipeline, task: Task, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what a task would run for now, by name: the code, settings, and when its inputs ran."""
    code = {"the notebook's code": notebook_hash(pipeline.source(task)), "the library's code": library_hash()}
    ran = {f"input {name}": known[name]["finished"] if has_run(known, name) else None for name in task.inputs}
    return code | settings_of(pipeline.profile) | ran


def has_run(known: dict[str, dict[str, Any]], task_id: str) -> bool:
    """Say whether a task ran to its end: its facts have a key."""
    return bool(known.get(task_id, {}).get("key"))


def stale_reasons(pipeline: Pipeline, task: Task, known: dict[str, dict[str, Any]]) -> list[str]:
    """Say why a task has to run; an empty list means that its result is current."""
    if not has_run(known, task.id):
        return ["stopped half way: goes on where it was" if task.id in known else "not run yet"]
    path, old, new = pipeline.executed(task), known[task.id]["key"], current_key(pipeline, task, known)
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    missing = [] if path.exists() else [f"missing: {path}"]
    return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in changed] + missing


def forget(pipeline: Pipeline, task: Task) -> None:
    """Delete the finished work of a task, so that it is made again (``--force``)."""
    pipeline.executed(task).unlink(missing_ok=True)
    folder = Run(pipeline.profile, **task.parameters).folder if task.parameters else pipeline.results
    for path in [path for pattern in STEPS[task.step].makes.split() for path in folder.glob(pattern)]:
        shutil.rmtree(path)


# --- ``--plan`` or ``--list``: what would run and why, how long it takes, and what it needs ---


def expected_seconds(pipeline: Pipeline, task: Task, known: dict[str, dict[str, Any]]) -> float | None:
    """Return how long a task took here, else what ``facts/steps.yaml`` says; None if nothing is known."""
    if task.id in known:
        return known[task.id]["longest_seconds"]
    profile, minutes = pipeline.profile, STEPS[task.step].minutes
    like = "everyday" if weights.is_packaged(profile.base.model) else "paper"
    expected = minutes.get(profile.name, minutes.get(like))
    return expected and 60 * expected * share(profile, task.step)


def share(profile: Profile, step: str) -> float:
    """Return how much of a step's work is left by settings that train, ask or judge less than the profile."""
    if not step.startswith(("06", "07", "08", "09")):
        return 1.0
    both = [Run(p, p.datasets[0], p.seeds[0]) for p in (profile, settings.load_profile(profile.name))]
    mine, whole = (len(r.profile.training.arms if step < "08" else grid(r)) or 1 for r in both)
    return mine / whole


def plan(pipeline: Pipeline, selected: list[str], force: bool = False) -> dict[str, str]:
    """Return why each selected task would run, by id; "" if it is current. What follows runs, too."""
    reasons: dict[str, str] = {}
    known = pipeline.known()
    for task in (pipeline.tasks[name] for name in selected):
        found = ["--force"] if force else stale_reasons(pipeline, task, known)
        found = found or [f"its input runs again: {name}" for name in task.inputs if reasons.get(name)][:1]
        reasons[task.id] = "; ".join(found)
    return reasons


def roles(profile: Profile) -> dict[str, str]:
    """Return what a profile asks language models for beside the policies, and where each is served."""
    names = ["generator"] if "03_persona_inference" in profile.steps else []
    names += ["judge"] * ("lm" in (profile.evaluation.judge, profile.persona_judge))
    names += ["second_judge"] * bool(profile.second_judge.model)
    return {name: getattr(profile, name).url for name in names}


def models(profile: Profile) -> dict[str, dict[str, Any]]:
    """Return the models that a profile loads on this machine by name; folders of one's own are left out.

    Of each: ``gb`` (nan: unknown), ``licence``, ``open``, and whether it is ``here``. Raises ConfigError for
    what does not exist, and for a hub id without a commit.
    """
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub, found = Path(os.environ.get("HF_HUB_CACHE", home / "hub")), {}
    here = [getattr(profile, role).model for role, url in roles(profile).items() if not url]
    named = {profile.base.model, *here, profile.data.retriever.partition(":")[2]}
    for source in sorted(named - {"", "base", *GENERATORS}):
        if weights.is_packaged(source):
            row = weights.entry(source)
            name = weights.PREFIX + row["name"]  # of a model's first layers, the whole model
            found[name] = row | {"gb": row["megabytes"] / 1000, "here": weights.is_fetched(name)}
        elif weights.pinned(source)[1]:
            name = source.partition("@")[0]
            cached = any((hub / f"models--{name.replace('/', '--')}" / "snapshots").glob("*"))
            found[name] = {"gb": math.nan} | store.facts("hub").get(name, {}) | {"here": cached}
    return found


def needs(profile: Profile) -> list[str]:
    """Return lines that say what a run needs: downloads with their licences, and models served elsewhere."""
    lines = []
    for name, row in models(profile).items():
        size = "size unknown" if math.isnan(row["gb"]) else f"{1000 * row['gb']:,.0f} MB"
        licence = row.get("licence", "no licence known")
        if not row.get("open", True):
            accept = f"{weights.ACCEPT}={name.removeprefix(weights.PREFIX)} to accept it"
            how = accept if weights.is_packaged(name) else "HF_TOKEN of an account that accepted it"
            licence += f", not an open licence: set {how}"
        lines += [f"download   {name}: {size}, {licence}"] * (not row["here"])
    authors = [name for name in profile.datasets if name in official.DATASETS]
    if authors and not official.at_hand(profile.data.path, authors):
        lines.append("download   the authors' data: 20 MB, no licence known")
    limit = profile.served.max_cost_usd
    most = f"at most {limit:g} dollars in all" if limit else "no limit is set (--max-cost-usd)"
    for role, url in roles(profile).items():
        lines += [f"served     {role} {getattr(profile, role).model} at {url}: {most}"] * bool(url)
    return lines


def print_plan(pipeline: Pipeline, reasons: dict[str, str], lack: str) -> None:
    """Print every task with state, time, notebook and reason, then what the run needs, and lacks here."""
    profile, known = pipeline.profile, pipeline.known()
    print(f"profile {profile.name}: {profile.description}\nresults in {pipeline.results}\n")
    width, total = max(map(len, reasons)), 0.0
    for name, reason in reasons.items():
        task = pipeline.tasks[name]
        seconds = expected_seconds(pipeline, task, known)
        total += (seconds or 0) if reason else 0
        about = "?" if seconds is None else clock(seconds)
        state, why = ("run", reason) if reason else ("cached", "nothing changed")
        heading = "".join(store.read_json(pipeline.source(task))["cells"][0]["source"]).splitlines()[0]
        said = textwrap.shorten(f"{heading[5:]} ({why})", 280, placeholder=" ...")
        print(f"  {state:<6}  {name:<{width}}  {about:>11}  {said}")
    print(f"\nto run     {sum(map(bool, reasons.values()))} of {len(reasons)} tasks")
    print(f"time       about {clock(total)}")
    print("\n".join([*needs(profile), *([f"lacking    {lack}"] if lack else [])]))


# --- ``--check``: can this profile run, and run here? ---

# Of the bases that the package knows; of others notebook 02 checks ``lora.targets``.
LAYERS = tuple(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")) + ("lm_head",)


def check_names(profile: Profile) -> None:
    """Raise ConfigError for a data set, judge, arm or model that is not there; names the near ones."""
    base = profile.base.model
    alike = weights.is_packaged(base) or base.partition("@")[0] in store.facts("hub")
    fields = {
        "datasets": (profile.datasets, READERS),
        "evaluation.judge": ([profile.evaluation.judge], [*JUDGES, "none"]),
        "evaluation.persona_judge": ([profile.persona_judge], [*JUDGES, "none"]),
        "training.arms": (profile.training.arms, ARMS),
        "lora.targets": (profile.lora.targets if alike else (), LAYERS),
    }
    for setting, (names, known) in fields.items():
        for name in names:
            check_name(name, known, f"profile {profile.name}: {setting}:")
    models(profile)
    config = (weights.folder_of(base) if weights.is_packaged(base) else Path(base)) / "config.json"
    if Path(base).exists() and not config.exists():
        raise ConfigError(f"base.model={base}: there is no config.json in it: name a model's folder")
    most = store.read_json(config).get("max_position_embeddings") if config.exists() else None
    for name in ("training.max_length", "generation.max_new_tokens"):
        if most and settings.value(profile, name) > most:
            raise ConfigError(f"{name}={settings.value(profile, name)}: {base} has {most} positions")


def answers(url: str) -> bool:
    """Say whether a server answers, whatever it answers."""
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except (OSError, ValueError) as error:
        return isinstance(error, urllib.error.HTTPError)
    return True


def lacking(profile: Profile) -> str:
    """Say what a profile needs and this machine lacks (GPU, hub, server), and the way out; "" if nothing."""
    loaded = models(profile)
    large = [name for name, row in loaded.items() if row["gb"] > 8]
    large += ["generation.engine=vllm"] * (profile.generation.engine == "vllm")
    if large and not any(any(Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "kfd", "dxg")):
        return f"no GPU, and {', '.join(large)} needs one: use another machine, or profile everyday"
    absent = [n for n, row in loaded.items() if not row["here"] and not weights.is_packaged(n)]
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    if absent and (offline or not answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))):
        return f"no model hub, and {', '.join(absent)} is not here: copy it here and name its folder"
    for role, url in roles(profile).items():
        if url and not answers(url):
            return f"no server answers at {role}.url={url}: start it, or name another"
    return ""
