"""The table of steps, the tasks of a profile, when a task is stale, and the plan of a run.

``facts/steps.yaml`` lists the steps; a step is one numbered notebook. A task is a step for one data set and
seed, or for the whole profile. After it ran, its manifest ``results/<profile>/manifests/<task>.json`` holds
the key that it ran for (the notebook's code, the versions of the steps it calls, parameters, settings, its
inputs' outputs) and what it made. A task is stale when its key differs or an output is gone. Outputs count by
content: a step that ran again with the same result does not make the next ones stale.

A plan reads small files only; nothing is imported, installed or downloaded for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from persona_lib import settings, store, weights
from persona_lib.data import official
from persona_lib.data.rows import is_saved_dataset, source_key
from persona_lib.execute import clock, notebook_hash
from persona_lib.models.served import GENERATORS
from persona_lib.paper.answers import matchups
from persona_lib.settings import ConfigError, Profile, Run, flat, near_names


@dataclass(frozen=True)
class Step:
    """One numbered notebook; ``facts/steps.yaml`` explains the fields."""

    title: str
    per: Literal["run", "profile"] = "run"
    inputs: str = ""
    fields: str = ""
    versions: str = ""
    minutes: dict[str, float] = field(default_factory=dict)


def read_steps() -> dict[str, Step]:
    """Return the steps of ``facts/steps.yaml``, whose fields may name a group of fields."""
    import yaml

    written = yaml.safe_load((settings.FACTS / "steps.yaml").read_text(encoding="utf-8"))
    for step in written["steps"].values():
        for name, fields in reversed(written["groups"].items()):  # a group may name one above it
            step["fields"] = step["fields"].replace(name, fields)
    return {name: Step(**step) for name, step in written["steps"].items()}


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

    def manifest(self, task_id: str) -> Path:
        """The file that says what a task ran for and what it made."""
        return self.results / "manifests" / f"{task_id}.json"

    def log(self, task: Task) -> Path:
        """What the task's notebook printed."""
        return self.results / "logs" / f"{task.id}.log"


def expand(profile: Profile) -> Iterator[Task]:
    """Yield the profile's tasks in order; raises ConfigError for a step that does not exist."""
    for name in set(profile.steps) - set(STEPS):
        raise ConfigError(f"profile {profile.name}: unknown step {name!r}; {near_names(name, list(STEPS))}")
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


def field_values(profile: Profile, patterns: Iterable[str]) -> dict[str, Any]:
    """Return the profile fields that match a pattern, as JSON has them; files and models with their state."""
    values = json.loads(json.dumps(flat(profile, " ".join(patterns))))
    return {name: with_state(name, value) for name, value in values.items()}


def with_state(name: str, value: Any) -> Any:
    """Return a field's value; a data file with its hash, a model's folder with a hash of sizes and times."""
    path = Path(value).expanduser() if value and isinstance(value, str) else None
    if path and name.endswith(".model") and path.is_dir():
        return f"{value} ({store.content_hash([(p.name, *state) for p, *state in store.files_in(path)])})"
    is_data = path and name in ("data.path", "data.mapping", "evaluation.judge_texts")
    if is_data and (path.is_file() or is_saved_dataset(path)):
        return f"{value} ({source_key(value)[:16]})"
    return value


@cache
def library_hash() -> str:
    """Return a hash of the library's files: steps that only count and draw run again when it changes."""
    files = sorted(settings.FACTS.parent.rglob("*.py"))
    return store.content_hash([store.file_hash(path) for path in files])


def manifest_of(pipeline: Pipeline, task_id: str) -> dict[str, Any] | None:
    """Return the manifest of a task that ran to its end, or None."""
    path = pipeline.manifest(task_id)
    manifest = store.read_json(path) if path.exists() else {"key": None}
    return None if manifest["key"] is None else manifest


def input_state(pipeline: Pipeline, task: Task, needed: str) -> str | None:
    """Return the hash of what an input made (for the report: of its manifest), or None if it has not run."""
    manifest = manifest_of(pipeline, needed)
    return manifest and store.content_hash(manifest if task.step == REPORT else manifest["outputs"])


def current_key(pipeline: Pipeline, task: Task) -> dict[str, Any]:
    """Return what a task would run for now."""
    inputs = {needed: input_state(pipeline, task, needed) for needed in task.inputs}
    if task.step == REPORT:
        return {"code": library_hash(), "inputs": inputs}
    step = STEPS[task.step]
    return {
        "notebook": notebook_hash(pipeline.source(task)),
        "code": {name: store.VERSIONS[name] for name in step.versions.split()} or library_hash(),
        "parameters": task.parameters,
        "fields": field_values(pipeline.profile, step.fields.split()),
        "inputs": inputs,
    }


def key_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say in words how two keys differ."""

    def differing(part: str) -> dict[str, str]:
        before, after = old.get(part, {}), new.get(part, {})
        names = dict.fromkeys([*before, *after])
        return {n: f"{before.get(n)} -> {after.get(n)}" for n in names if before.get(n) != after.get(n)}

    said = [] if old.get("notebook") == new.get("notebook") else ["the notebook's code changed"]
    said += [] if old.get("code") == new.get("code") else ["persona_lib's code changed"]
    said += [f"{name}: {change}" for name, change in differing("fields").items()]
    said += ["its parameters changed"] if differing("parameters") else []
    return said + [f"its input changed: {', '.join(found)}" for found in [differing("inputs")] if found]


def stale_reasons(pipeline: Pipeline, task: Task) -> list[str]:
    """Say why a task has to run; an empty list means that its result is current."""
    manifest = manifest_of(pipeline, task.id)
    if manifest is None:
        half = pipeline.manifest(task.id).exists()
        return ["stopped half way: goes on where it was" if half else "not run yet"]
    reasons = key_changes(manifest["key"], current_key(pipeline, task))
    paths = [pipeline.executed(task), *(output_path(pipeline, name) for name in manifest["outputs"])]
    if missing := [path for path in paths if not path.exists()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        reasons.append(f"missing: {missing[0]}{more}")
    return reasons


# --- What a task made ---

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
DATA_FILES = (".json", ".jsonl", ".csv", ".txt")
OWN_FOLDERS = ("notebooks", "logs", "manifests", "report")


def output_path(pipeline: Pipeline, name: str) -> Path:
    """Return the path of a manifest's output; figures stand outside of the results."""
    if name.startswith("figures/"):
        return settings.figures_dir(pipeline.profile) / name.removeprefix("figures/")
    return pipeline.results / name


def snapshot(pipeline: Pipeline) -> dict[str, list[int]]:
    """Return [modification time in ns, bytes] of every file that a step may have made, by name.

    Files of the runner, hidden files and checkpoints are no outputs.
    """
    seen = {}
    figures = settings.figures_dir(pipeline.profile)
    for folder, prefix in ((pipeline.results, Path()), (figures, Path("figures"))):
        for path in folder.rglob("*"):
            parts = (prefix / path.relative_to(folder)).parts
            hidden = any(part.startswith((".", "checkpoint-")) for part in parts)
            if len(parts) > 1 and parts[0] not in OWN_FOLDERS and not hidden and path.is_file():
                seen["/".join(parts)] = [path.stat().st_mtime_ns, path.stat().st_size]
    return dict(sorted(seen.items()))


def describe(pipeline: Pipeline, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the manifest entry of every output: the hash of data, the key of weights, else nothing.

    Files beside weights count by the key in ``done.json`` alone. Bytes of figures differ from run to run.
    """
    paths = {name: output_path(pipeline, name) for name in names}
    weighty = {path.parent for path in paths.values() if path.suffix in WEIGHTS}
    entries: dict[str, dict[str, Any]] = {}
    for name, path in paths.items():
        entries[name] = {}
        if path.name == "done.json":
            entries[name] = {"key": store.read_json(path).get("key")} if path.parent in weighty else {}
        elif path.suffix in DATA_FILES and path.parent not in weighty and not name.startswith("figures/"):
            entries[name] = {"sha256": store.file_hash(path), "bytes": path.stat().st_size}
    return entries


def begin(pipeline: Pipeline, task: Task) -> None:
    """Mark a task as begun: its manifest has no key, what it made earlier, and the files there are.

    A run that is killed half way does not look like the finished one before it, and a run that goes on knows
    what the killed one made.
    """
    path = pipeline.manifest(task.id)
    earlier = store.read_json(path) if path.exists() else {"key": "", "outputs": {}}
    if earlier["key"] is not None:
        begun = {"task": task.id, "key": None, "outputs": earlier["outputs"], "before": snapshot(pipeline)}
        store.write_json(path, begun)


def finish(pipeline: Pipeline, task: Task, key: dict[str, Any], finished: str) -> None:
    """Write the manifest: files that are new or changed since ``begin``, and those made earlier."""
    path = pipeline.manifest(task.id)
    begun = store.read_json(path)
    after, before, earlier = snapshot(pipeline), begun["before"], begun["outputs"]
    names = [name for name, state in after.items() if name in earlier or before.get(name) != state]
    manifest = {"task": task.id, "key": key, "outputs": describe(pipeline, names), "finished": finished}
    store.write_json(path, manifest)


def forget(pipeline: Pipeline, task: Task) -> None:
    """Delete what a task made, so that it is made again (``--force``)."""
    path = pipeline.manifest(task.id)
    if path.exists():
        for name in store.read_json(path)["outputs"]:
            output_path(pipeline, name).unlink(missing_ok=True)
        path.unlink()


# --- ``--plan``: what would run and why, how long it takes, and what it needs ---


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
    record = store.read_json(path)["tasks"].get(task.id) if path.exists() else None
    if record:
        return record["longest_seconds"], True
    if task.step == REPORT:
        return 15.0, False
    minutes, name = STEPS[task.step].minutes, pipeline.profile.name
    if name not in minutes:
        name = "paper" if hub_models(pipeline.profile) else "everyday"
    return (60 * minutes[name] if name in minutes else None), False


def plan_lines(pipeline: Pipeline, selected: list[str], force: bool = False) -> list[Line]:
    """Return the plan of the selected tasks; what follows a stale task is "maybe"."""
    lines: list[Line] = []
    moving: set[str] = set()
    for task in (pipeline.tasks[name] for name in selected):
        reasons = ["--force"] if force else stale_reasons(pipeline, task)
        waiting = [i for i in task.inputs if i in moving]
        state, reason = "cached", "nothing changed"
        if reasons:
            state, reason = "run", "; ".join(reasons)
        elif waiting:
            state, reason = "maybe", f"if {waiting[0]} changes" + (" (or others)" if len(waiting) > 1 else "")
        if state != "cached":
            moving.add(task.id)
        lines.append(Line(task, state, reason, *expected_seconds(pipeline, task)))
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


def hub_models(profile: Profile) -> list[str]:
    """Return the hub models that a profile uses."""
    return [name for name in models_here(profile) if weights.is_hub_id(name)]


def downloads(profile: Profile) -> list[tuple[str, float, str]]:
    """Return (what, GB still to download, remark) for models and data."""
    named = filter(weights.is_packaged, models_here(profile))  # of a model's first layers, the whole model
    packaged = dict.fromkeys(weights.PREFIX + weights.entry(name)["name"] for name in named)
    wanted = [packaged_download(name) for name in packaged]
    wanted += [hub_download(name) for name in hub_models(profile)]
    authors = any(name in official.DATASETS for name in profile.datasets)
    return wanted + ([official_download(profile)] if authors else [])


def packaged_download(name: str) -> tuple[str, float, str]:
    """Return the line of ``downloads`` for weights of the package index."""
    row, here = weights.entry(name), weights.is_fetched(name)
    where = "on this machine" if here else f"from the package index, {row['megabytes']} MB"
    remark = f"{where}; licence: {row['licence']}"
    if not row["open"]:
        set_it = f": to accept it set {weights.ACCEPT}={row['name']}"
        remark += f", which is not an open one{', accepted' if weights.is_allowed(row) else set_it}"
    return name, 0.0 if here else row["megabytes"] / 1000, remark


def hub_download(name: str) -> tuple[str, float, str]:
    """Return the line of ``downloads`` for a hub model; nan GB for one that we do not know."""
    bare = weights.split_id(name)[0]
    known = weights.MODELS.get(bare, weights.HubModel("", float("nan")))
    try:
        weights.pinned(name)
    except weights.HubError as error:
        return bare, known.gb, f"NOT READY: {error}"
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cached = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"models--{bare.replace('/', '--')}"
    if any((cached / "snapshots").glob("*")):
        return bare, 0.0, "on this machine"
    return bare, known.gb, "from the hub" + (", access must be granted" if known.gated else "")


OFFICIAL_DATA_GB = 0.02  # the authors' data on their public home


def official_download(profile: Profile) -> tuple[str, float, str]:
    """Return the line of ``downloads`` for the authors' data."""
    what, wanted = "the authors' data", [name for name in profile.datasets if name in official.DATASETS]
    named = profile.data.path or os.environ.get("PERSONA_DATA")
    if folder := official.at_hand(profile.data.path, wanted):
        return what, 0.0, f"on this machine, in {folder}"
    if named:
        return what, 0.0, f"NOT in {named}: the run will stop; give --data PATH"
    return what, OFFICIAL_DATA_GB, "pinned public copy, checked; or give --data PATH"


def gpu_need(profile: Profile) -> str:
    """Say how large the hub models of a profile are; what a step adds to that nobody has measured."""
    sizes = [(name, weights.MODELS.get(weights.split_id(name)[0])) for name in hub_models(profile)]
    said = ", ".join(f"{name} {known.gb:.1f} GB" if known else f"{name} unknown" for name, known in sizes)
    nf4 = ", the base in NF4 a third of that" if profile.base.quantization == "nf4" else ""
    return (
        f"weights in 16 bit: {said}{nf4}; activations come on top (not measured)" if said else "none needed"
    )


def judge_requests(profile: Profile, role: str) -> int:
    """Count a judge's requests: both orders and rubrics of every comparison of the authors' data sets."""
    total = 0
    for name in profile.datasets:
        if rows := official.DATASETS.get(name, {}).get("rows"):
            compared = sum(role == "judge" or m.kind == "main" for m in matchups(Run(profile, name, 0)))
            total += 4 * compared * min(rows[-1], profile.evaluation.limit or rows[-1]) * len(profile.seeds)
    return total


def served_models(profile: Profile) -> list[str]:
    """Return a line per model that is served elsewhere: price, and requests where we can count them."""
    lines = []
    for role, url in roles(profile).items():
        if url:
            asked, price = getattr(profile, role), "no price given"
            if asked.prices:
                price = "{:g} + {:g} dollars per million tokens".format(*asked.prices)
            count = 0 if role == "generator" else judge_requests(profile, role)
            requests = f"about {count:,} requests, " if count else ""
            lines.append(f"{role} {asked.model} at {url}: {requests}{price}")
    limit = profile.served.max_cost_usd
    most = f"at most {limit:g} dollars in all" if limit else "no limit is set"
    return [*lines, f"{most} (--max-cost-usd)"] if lines else ["none: no model is asked over the network"]


def print_plan(pipeline: Pipeline, lines: list[Line]) -> None:
    """Print every task with its state, reason and time, then what the run needs."""
    profile = pipeline.profile
    print(f"profile {profile.name}: {profile.description}\nresults in {pipeline.results}\n")
    width = max((len(line.task.id) for line in lines), default=0)
    for line in lines:
        about = "?" if line.seconds is None else clock(line.seconds)
        source = "measured" if line.measured else "expected"
        print(f"  {line.state:<6}  {line.task.id:<{width}}  {about:>7} {source}  {line.reason}")
    pending = [line for line in lines if line.state != "cached"]
    unknown = sum(line.seconds is None for line in pending)
    more = f", and {unknown} tasks of unknown length" if unknown else ""
    print(f"\nto run     {len(pending)} of {len(lines)} tasks")
    print(f"time       {clock(sum(line.seconds or 0 for line in pending))} h:mm:ss{more}")
    for what, size, remark in downloads(profile):
        print(f"download   {what}: {size:.2f} GB ({remark})")
    print(f"GPU        {gpu_need(profile)}")
    for said in served_models(profile):
        print(f"served     {said}")
