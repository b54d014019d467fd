"""The table of steps, the tasks of a profile, when a task is stale, and the plan of a run.

``facts/steps.yaml`` lists the steps; a step is one numbered notebook. A task is a step for one data set and
seed, or for the whole profile. ``results/<profile>/provenance.json`` holds what each task ran with, and last
the key that it ran for: the notebook's and the library's code, settings, when its inputs ran. A task is stale
when its key differs. Running it again takes seconds where its work is finished: rows, adapters and judgments
have keys of their own (``store.VERSIONS``).

A plan reads small files only; nothing is imported, installed or downloaded for it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from persona_lib import settings, store, weights
from persona_lib.data import official
from persona_lib.execute import clock, notebook_hash
from persona_lib.models.served import GENERATORS
from persona_lib.paper.answers import matchups
from persona_lib.settings import Profile, Run, check_name, flat


@dataclass(frozen=True)
class Step:
    """One numbered notebook; ``facts/steps.yaml`` explains the fields."""

    per: Literal["run", "profile"] = "run"
    inputs: str = ""
    makes: str = ""
    minutes: dict[str, float] = field(default_factory=dict)


def read_steps() -> dict[str, Step]:
    """Return the steps of ``facts/steps.yaml``."""
    import yaml

    rows = yaml.safe_load((settings.FACTS / "steps.yaml").read_text(encoding="utf-8"))
    return {name: Step(**row) for name, row in rows.items()}


STEPS = read_steps()
NOTEBOOKS = settings.REPO / "notebooks"
REPORT = "report"  # the last task of a run: no notebook


# --- Tasks of a profile ---


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
        """All tasks of the profile by id, in the order in which they run."""
        return {task.id: task for task in expand(self.profile)}

    def parameters(self, task: Task) -> dict[str, Any]:
        """What is put into the notebook's parameters cell."""
        return {"profile": self.profile.name, **task.parameters, "overrides": list(self.overrides)}

    def source(self, task: Task) -> Path:
        """The notebook that a task runs."""
        return self.notebooks / f"{task.step}.ipynb"

    def executed(self, task: Task) -> Path:
        """The executed notebook that a task leaves, or the report's first page."""
        page = self.results / "report" / "index.html"
        return page if task.step == REPORT else self.results / "notebooks" / f"{task.id}.ipynb"

    @property
    def provenance(self) -> Path:
        """The file that says what every task ran with, and which ran to their end."""
        return self.results / "provenance.json"

    def known(self) -> dict[str, dict[str, Any]]:
        """Return the facts of every task that ran, by id."""
        return store.read_json(self.provenance)["tasks"] if self.provenance.exists() else {}


def expand(profile: Profile) -> Iterator[Task]:
    """Yield the profile's tasks in order; raises ConfigError for a step that does not exist."""
    for name in profile.steps:
        check_name(name, STEPS, f"profile {profile.name}: unknown step")
    for name in profile.steps:
        inputs = [other for other in profile.steps if other.partition("_")[0] in STEPS[name].inputs.split()]
        for run in runs_of(profile, name):
            runs = [(other, values) for other in inputs for values in runs_of(profile, other)]
            needed = [task_id(*found) for found in runs if not run or found[1] in ({}, run)]
            yield Task(task_id(name, run), name, run, tuple(needed))


def runs_of(profile: Profile, step: str) -> list[dict[str, Any]]:
    """Return the data set and seed of each run of a step; one empty run of a step per profile."""
    if STEPS[step].per == "profile":
        return [{}]
    return [{"dataset": d, "seed": s} for d in profile.datasets for s in profile.seeds]


def task_id(step: str, run: dict[str, Any]) -> str:
    """Return the name of a task."""
    return f"{step}.{run['dataset']}.seed-{run['seed']}" if run else step


# --- What a task runs for, and whether it has to run ---

# They choose tasks, or change no result.
APART = ("name", "description", "steps", "datasets", "seeds", *settings.CHANGE_NO_RESULT)


def settings_of(profile: Profile) -> dict[str, Any]:
    """Return the settings that a task's result depends on, as JSON has them; files with a hash."""
    apart = flat(profile, " ".join(APART))
    values = json.loads(json.dumps(flat(profile)))
    return {name: with_state(name, value) for name, value in values.items() if name not in apart}


def with_state(name: str, value: Any) -> Any:
    """Return a field's value; a file with its hash, a folder with a hash of its files' sizes and times."""
    named = value and (name in ("data.path", "data.mapping") or ".model" in name)
    path = Path(value).expanduser() if named else None
    if path and path.is_file():
        return f"{value} ({store.file_hash(path)[:16]})"
    if path and path.is_dir():
        files = {str(file.relative_to(path)): file.stat() for file in sorted(path.rglob("*"))}
        states = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in files.items()]
        return f"{value} ({store.content_hash(states)})"
    return value


@cache
def library_hash() -> str:
    """Return a hash of the library's files."""
    files = sorted(path for path in settings.FACTS.parent.rglob("*") if path.suffix in (".py", ".yaml"))
    return store.content_hash([store.file_hash(path) for path in files])


def current_key(pipeline: Pipeline, task: Task, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what a task would run for now."""
    return {
        "notebook": "" if task.step == REPORT else notebook_hash(pipeline.source(task)),
        "library": library_hash(),
        "settings": settings_of(pipeline.profile),
        "inputs": {name: known[name]["finished"] if has_run(known, name) else None for name in task.inputs},
    }


def has_run(known: dict[str, dict[str, Any]], task_id: str) -> bool:
    """Say whether a task ran to its end: its facts have a key."""
    return bool(known.get(task_id, {}).get("key"))


def key_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say in words how two keys differ."""
    said = [f"the {part}'s code changed" for part in ("notebook", "library") if old.get(part) != new[part]]
    for part, change in (("settings", "{0}: {1} -> {2}"), ("inputs", "its input ran again: {0}")):
        before, after = old[part], new[part]
        pairs = [(name, before.get(name), after.get(name)) for name in {**before, **after}]
        said += [change.format(*pair) for pair in pairs if pair[1] != pair[2]]
    return said


def stale_reasons(pipeline: Pipeline, task: Task, known: dict[str, dict[str, Any]]) -> list[str]:
    """Say why a task has to run; an empty list means that its result is current."""
    if not has_run(known, task.id):
        return ["stopped half way: goes on where it was" if task.id in known else "not run yet"]
    path = pipeline.executed(task)
    missing = [] if path.exists() else [f"missing: {path}"]
    return key_changes(known[task.id]["key"], current_key(pipeline, task, known)) + missing


def forget(pipeline: Pipeline, task: Task) -> None:
    """Delete the finished work of a task, so that it is made again (``--force``)."""
    pipeline.executed(task).unlink(missing_ok=True)
    folder = Run(pipeline.profile, **task.parameters).folder if task.parameters else pipeline.results
    patterns = STEPS[task.step].makes.split() if task.step in STEPS else ()
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        shutil.rmtree(path)


# --- ``--plan``: what would run and why, how long it takes, and what it needs ---


@dataclass(frozen=True)
class Line:
    """One task of the plan: "cached" or "run", why, and how many seconds are expected."""

    task: Task
    state: str
    reason: str
    seconds: float | None


def expected_seconds(pipeline: Pipeline, task: Task, known: dict[str, dict[str, Any]]) -> float | None:
    """Return how long a task took here, else what ``facts/steps.yaml`` says; None if nothing is known."""
    if task.id in known:
        return known[task.id]["longest_seconds"]
    if task.step == REPORT:
        return 15.0
    minutes, like = STEPS[task.step].minutes, "paper" if hub_models(pipeline.profile) else "everyday"
    expected = minutes.get(pipeline.profile.name, minutes.get(like))
    return expected and 60 * expected


def plan_lines(pipeline: Pipeline, selected: list[str], force: bool = False) -> list[Line]:
    """Return the plan of the selected tasks; what follows a stale task runs, too."""
    lines: list[Line] = []
    moving: set[str] = set()
    known = pipeline.known()
    for task in (pipeline.tasks[name] for name in selected):
        reasons = ["--force"] if force else stale_reasons(pipeline, task, known)
        reasons = reasons or [f"its input runs again: {name}" for name in task.inputs if name in moving][:1]
        if reasons:
            moving.add(task.id)
        state, said = ("run", "; ".join(reasons)) if reasons else ("cached", "nothing changed")
        lines.append(Line(task, state, said, expected_seconds(pipeline, task, known)))
    return lines


def roles(profile: Profile) -> dict[str, str]:
    """Return what a profile asks language models for beside the policies, and where each is served."""
    names = ["generator"] if "03_persona_inference" in profile.steps else []
    names += ["judge"] * ("lm" in (profile.evaluation.judge, profile.persona_judge))
    names += ["second_judge"] * bool(profile.second_judge.model)
    return {name: getattr(profile, name).url for name in names}


def models_here(profile: Profile) -> list[str]:
    """Return the models that a profile loads on this machine: hub ids, folders, and packaged weights."""
    here = [getattr(profile, role).model for role, url in roles(profile).items() if not url]
    named = dict.fromkeys([profile.base.model, *here, profile.data.retriever.partition(":")[2]])
    return [name for name in named if name not in {"", "base", *GENERATORS}]


def hub_models(profile: Profile) -> dict[str, float]:
    """Return the GB of every hub model that a profile uses; nan for one that we do not know."""
    named = [weights.split_id(name)[0] for name in models_here(profile) if weights.is_hub_id(name)]
    return {name: weights.hub().get(name, {}).get("gb", float("nan")) for name in named}


def downloads(profile: Profile) -> dict[str, float]:
    """Return the GB that are still to be downloaded, by model or data; nan where we do not know."""
    packaged = filter(weights.is_packaged, models_here(profile))  # of a model's first layers, the whole model
    wanted = {
        weights.PREFIX + row["name"]: 0.0 if weights.is_fetched(row["name"]) else row["megabytes"] / 1000
        for row in map(weights.entry, packaged)
    }
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    for name, gb in hub_models(profile).items():
        cached = any((hub / f"models--{name.replace('/', '--')}" / "snapshots").glob("*"))
        wanted[name] = 0.0 if cached else gb
    if authors := [name for name in profile.datasets if name in official.DATASETS]:
        wanted["the authors' data"] = 0.0 if official.at_hand(profile.data.path, authors) else 0.02
    return wanted


def download_line(what: str, gb: float) -> str:
    """Say what is downloaded: MB, and the licence, for one that is not open also how it is accepted."""
    packaged = weights.is_packaged(what)
    row = weights.entry(what) if packaged else weights.hub().get(what, {})
    size = "size unknown" if math.isnan(gb) else f"{1000 * gb:,.0f} MB"
    said = row.get("licence", "no licence known")
    if not row.get("open", True):
        accept = f"set {weights.ACCEPT}={row['name']}" if packaged else "do so on its hub page, set HF_TOKEN"
        said += f", not an open licence: to accept it {accept}"
    return f"download   {what}: {size}, {said}"


def requests(profile: Profile, role: str) -> int:
    """Count a judge's requests: both orders and rubrics of every comparison of the authors' data sets."""
    total, limit = 0, profile.evaluation.limit
    for name in profile.datasets:
        if role != "generator" and (rows := official.DATASETS.get(name, {}).get("rows")):
            compared = sum(role == "judge" or m.kind == "main" for m in matchups(Run(profile, name, 0)))
            judged = rows[-1] + limit if limit < 0 else min(rows[-1], limit or rows[-1])
            total += 4 * compared * judged * len(profile.seeds)
    return total


def needs(profile: Profile) -> list[str]:
    """Return lines that say what a run needs: downloads, GPU memory, and models that are served elsewhere."""
    lines = [download_line(what, gb) for what, gb in downloads(profile).items() if gb]
    if sizes := hub_models(profile):
        nf4 = " (the base in NF4 takes a third)" if profile.base.quantization == "nf4" else ""
        said = ", ".join(f"{name} {gb:.1f} GB" for name, gb in sizes.items())
        lines.append(f"GPU        weights in 16 bit: {said}{nf4}; activations come on top")
    for role, url in roles(profile).items():
        if url:
            count = requests(profile, role)
            asked = f"about {count:,} requests" if count else "requests not counted"
            limit = profile.served.max_cost_usd
            most = f"at most {limit:g} dollars in all" if limit else "no limit is set (--max-cost-usd)"
            lines.append(f"served     {role} {getattr(profile, role).model} at {url}: {asked}, {most}")
    return lines


def print_plan(pipeline: Pipeline, lines: list[Line]) -> None:
    """Print every task with its state, time and reason, then what the run needs."""
    profile = pipeline.profile
    print(f"profile {profile.name}: {profile.description}\nresults in {pipeline.results}\n")
    width = max((len(line.task.id) for line in lines), default=0)
    for line in lines:
        about = "?" if line.seconds is None else clock(line.seconds)
        print(f"  {line.state:<6}  {line.task.id:<{width}}  {about:>7}  {line.reason}")
    pending = [line for line in lines if line.state != "cached"]
    print(f"\nto run     {len(pending)} of {len(lines)} tasks")
    minutes = sum(line.seconds or 0 for line in pending) / 60
    print("time       about", f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.0f} hours")
    print("\n".join(needs(profile)))
