"""Tasks of a profile, and when one is stale.

A task is a step for one data set and seed, or for the whole profile. After it ran, its
manifest ``results/<profile>/manifests/<task>.json`` holds the key that it ran for (the notebook's
code, the versions of the steps it calls, parameters, profile fields, its inputs' outputs) and what it
made. A task is stale when its key differs from the manifest's or an output is gone. Outputs count by
content, so a step that was run again with the same result does not make the next ones stale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from persona_lib import config, store
from persona_lib.data import own_files
from persona_lib.profiles import ConfigError, Profile, field_types, near_names
from persona_lib.runner.execute import notebook_hash, running_copy
from persona_lib.runner.steps import STEPS, Step

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
DATA = (".json", ".jsonl", ".csv", ".txt")
OWN_FOLDERS = ("notebooks", "logs", "manifests", "report")
REPORT = "report"


@dataclass(frozen=True)
class Task:
    """One execution of a step. ``parameters`` are the notebook's, without profile and overrides."""

    id: str
    step: str
    parameters: dict[str, Any]
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """A profile's tasks, and where they read and write. Tests pass their own steps and notebooks."""

    profile: Profile
    overrides: tuple[str, ...] = ()
    steps: dict[str, Step] | None = None
    notebooks: Path = config.REPO / "notebooks"

    @property
    def table(self) -> dict[str, Step]:
        """The steps by name: ``persona_lib.runner.steps.STEPS`` unless others were given."""
        return STEPS if self.steps is None else self.steps

    @property
    def results(self) -> Path:
        """Folder of the profile's results."""
        return config.results_dir(self.profile)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """All tasks of the profile by id, in the order in which they run."""
        return {task.id: task for task in expand(self.profile, self.table)}

    def parameters(self, task: Task) -> dict[str, Any]:
        """What is put into the notebook's parameters cell."""
        return {"profile": self.profile.name, **task.parameters, "overrides": list(self.overrides)}

    def source(self, task: Task) -> Path:
        """The notebook that a task runs."""
        return self.notebooks / f"{task.step}.ipynb"

    def executed(self, task: Task) -> Path:
        """The executed notebook that a task leaves."""
        return self.results / "notebooks" / f"{task.id}.ipynb"

    def manifest(self, task_id: str) -> Path:
        """The file that says what a finished task ran for and what it made."""
        return self.results / "manifests" / f"{task_id}.json"

    def log(self, task: Task) -> Path:
        """What the task's notebook printed."""
        return self.results / "logs" / f"{task.id}.log"


def expand(profile: Profile, steps: dict[str, Step]) -> Iterator[Task]:
    """Yield the profile's tasks in order; raises ConfigError for a step that does not exist."""
    for name in profile.steps:
        if name not in steps:
            raise ConfigError(
                f"profile {profile.name}: unknown step {name!r}; {near_names(name, list(steps))}"
            )
        for suffix, parameters in places(profile, steps[name]):
            inputs = [name for name in steps[name].inputs if name in profile.steps]
            found = [i for other in inputs for i in input_ids(profile, steps[other], other, parameters)]
            yield Task(name + suffix, name, parameters, tuple(found))


def places(profile: Profile, step: Step) -> list[tuple[str, dict[str, Any]]]:
    """Return the (suffix of the id, parameters) for which a step runs."""
    if step.per == "profile":
        return [("", {})]
    runs = [{"dataset": d, "seed": s} for d in profile.datasets for s in profile.seeds]
    return [(f".{run['dataset']}.seed-{run['seed']}", run) for run in runs]


def input_ids(profile: Profile, step: Step, name: str, parameters: dict[str, Any]) -> list[str]:
    """Return the ids of the tasks of one input step that a task with these parameters needs."""
    every = places(profile, step)
    if step.per == "run" and "dataset" in parameters:
        return [name + suffix for suffix, values in every if values == parameters]
    return [name + suffix for suffix, values in every]


def field_values(profile: Profile, patterns: tuple[str, ...]) -> dict[str, Any]:
    """Return the profile fields that match a pattern, as JSON has them; files and models with their state."""
    names = [f for f in field_types() if any(fnmatch(f, pattern) for pattern in patterns)]
    values = {name: json.loads(json.dumps(getattr(profile, name))) for name in names}
    folders = {name: Path(values[name]) for name in values if name.endswith("_model") and values[name]}
    states = {name: model_state(folder) for name, folder in folders.items() if folder.is_dir()}
    places = {name: values[name] for name in ("data_dir", "data_mapping", "judge_texts") if name in values}
    return values | states | {name: data_state(place) for name, place in places.items()}


def data_state(place: str) -> str:
    """Return a data file, or a folder that ``datasets`` saved, with a hash of it; other names as they are."""
    path = Path(place).expanduser()
    if not place or not (path.is_file() or own_files.is_saved_dataset(path)):
        return place
    return f"{place} ({own_files.source_key(place)[:16]})"


def model_state(folder: Path) -> str:
    """Return a model's folder and a hash of its files' sizes and times: enough to see that it changed."""
    states = [(path.name, *state) for path, *state in store.files_in(folder)]
    return f"{folder} ({store.content_hash(states)})"


def outputs_hash(pipeline: Pipeline, task_id: str) -> str | None:
    """Return the hash of what a task made, or None if it has not run."""
    path = pipeline.manifest(task_id)
    return store.content_hash(store.read_json(path)["outputs"]) if path.exists() else None


@cache
def library_hash() -> str:
    """Return a hash of the library's files: steps that only count and draw run again when it changes."""
    files = sorted(config.FACTS.parent.rglob("*.py"))
    return store.content_hash([store.file_hash(path) for path in files])


def current_key(pipeline: Pipeline, task: Task) -> dict[str, Any]:
    """Return what a task would run for now."""
    if task.step == REPORT:
        files = {i: pipeline.manifest(i) for i in task.inputs}
        inputs = {i: store.file_hash(path) if path.exists() else None for i, path in files.items()}
        return {"code": library_hash(), "inputs": inputs}
    step = pipeline.table[task.step]
    return {
        "notebook": notebook_hash(pipeline.source(task)),
        "code": {name: store.VERSIONS[name] for name in step.versions} or library_hash(),
        "parameters": task.parameters,
        "fields": field_values(pipeline.profile, step.fields),
        "inputs": {i: outputs_hash(pipeline, i) for i in task.inputs},
    }


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the names whose values differ."""
    return [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]


def key_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say in words how two keys differ."""
    said = []
    if old.get("notebook") != new.get("notebook"):
        said.append("the notebook's code changed")
    if old.get("code") != new.get("code"):
        said.append("persona_lib's code changed")
    before, after = old.get("fields", {}), new.get("fields", {})
    said += [f"{name}: {before.get(name)} -> {after.get(name)}" for name in differing(before, after)]
    if old.get("parameters") != new.get("parameters"):
        said.append("its parameters changed")
    if inputs := differing(old.get("inputs", {}), new.get("inputs", {})):
        said.append(f"its input changed: {', '.join(inputs)}")
    return said


def stale_reasons(pipeline: Pipeline, task: Task) -> list[str]:
    """Say why a task has to run; an empty list means that its result is current."""
    path = pipeline.manifest(task.id)
    if not path.exists():
        half = previous(pipeline, task).exists() or running_copy(pipeline.executed(task)).exists()
        return ["stopped half way: goes on where it was"] if half else ["not run yet"]
    manifest = store.read_json(path)
    reasons = key_changes(manifest["key"], current_key(pipeline, task))
    missing = [name for name in manifest["outputs"] if not output_path(pipeline, name).exists()]
    if missing:
        reasons.append(
            f"missing: {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    page = pipeline.results / "report" / "index.html" if task.step == REPORT else pipeline.executed(task)
    if not page.exists():
        reasons.append(f"missing: {page.relative_to(pipeline.results)}")
    return reasons


def output_path(pipeline: Pipeline, name: str) -> Path:
    """Return the path of a manifest's output; figures stand outside of the results."""
    if name.startswith("figures/"):
        return config.figures_dir(pipeline.profile) / name.removeprefix("figures/")
    return pipeline.results / name


def is_output(relative: Path) -> bool:
    """Return True for a file that a step made: not the runner's own, not hidden, not a checkpoint."""
    hidden = any(part.startswith((".", "checkpoint-")) for part in relative.parts)
    return not hidden and len(relative.parts) > 1 and relative.parts[0] not in OWN_FOLDERS


def snapshot(pipeline: Pipeline) -> dict[str, tuple[int, int]]:
    """Return (modification time in ns, bytes) of every file that a step may have made, by name."""
    seen = {}
    for folder, prefix in (
        (pipeline.results, Path()),
        (config.figures_dir(pipeline.profile), Path("figures")),
    ):
        for path in folder.rglob("*"):
            relative = prefix / path.relative_to(folder)
            if is_output(relative) and path.is_file():
                stat = path.stat()
                seen[str(relative)] = (stat.st_mtime_ns, stat.st_size)
    return dict(sorted(seen.items()))


def weight_folders(pipeline: Pipeline, names: list[str]) -> set[Path]:
    """Return the finished folders that hold model weights: they count by their ``done.json`` alone."""
    folders = set()
    for path in (output_path(pipeline, name) for name in names if name.endswith(WEIGHTS)):
        finished = [p for p in path.parents if pipeline.results in p.parents and (p / "done.json").exists()]
        folders.add(finished[0] if finished else path.parent)
    return folders


def describe(pipeline: Pipeline, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return the manifest entry of every output: hash and bytes of data, the key of weights, else nothing.

    Figures and logs have no entry but their name: their bytes differ from run to run.
    """
    weights = weight_folders(pipeline, names)
    entries: dict[str, dict[str, Any]] = {}
    for name in names:
        path = output_path(pipeline, name)
        owner = next((p for p in path.parents if p in weights), None)
        entries[name] = {}
        if owner and path == owner / "done.json":
            entries[name] = {"key": store.read_json(path).get("key")}
        elif (
            not owner and path.name != "done.json" and path.suffix in DATA and not name.startswith("figures/")
        ):
            entries[name] = {"sha256": store.file_hash(path), "bytes": path.stat().st_size}
    return entries


def previous(pipeline: Pipeline, task: Task) -> Path:
    """Where the manifest of a task waits while the task runs again."""
    return pipeline.results / "manifests" / f"{task.id}.previous.json"


def earlier_outputs(pipeline: Pipeline, task: Task) -> list[str]:
    """Return what the task made in earlier runs, finished or not."""
    paths = [pipeline.manifest(task.id), previous(pipeline, task)]
    return [name for path in paths if path.exists() for name in store.read_json(path)["outputs"]]


def begin(pipeline: Pipeline, task: Task) -> None:
    """Put the manifest aside: a run that is killed half way must not look like the finished one before it."""
    path = pipeline.manifest(task.id)
    if path.exists():
        path.replace(previous(pipeline, task))


def write_manifest(pipeline: Pipeline, task: Task, key: dict[str, Any], before: dict, finished: str) -> None:
    """Write what a task made: files that are new or changed since ``before``, and those it made earlier."""
    earlier = set(earlier_outputs(pipeline, task))
    after = snapshot(pipeline)
    names = [name for name, state in after.items() if name in earlier or before.get(name) != state]
    manifest = {"task": task.id, "key": key, "outputs": describe(pipeline, names), "finished": finished}
    store.write_json(pipeline.manifest(task.id), manifest)
    previous(pipeline, task).unlink(missing_ok=True)


def forget(pipeline: Pipeline, task: Task) -> None:
    """Delete what a task made, so that it is made again (``--force``)."""
    for name in earlier_outputs(pipeline, task):
        output_path(pipeline, name).unlink(missing_ok=True)
    for path in (pipeline.manifest(task.id), previous(pipeline, task)):
        path.unlink(missing_ok=True)
