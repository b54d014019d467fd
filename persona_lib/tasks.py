"""The table of steps: which notebooks there are, what each reads, and how long it takes.

``STEPS`` is the pipeline. A step runs once per data set and seed ("run") or
once per profile ("profile"). ``fields`` are patterns of profile fields that the step
reads: only they make it stale. Naming a field too many costs seconds (the library's own
``done.json`` keys keep finished work); naming one too few would keep a wrong result.

Minutes of the paper profile are estimates for one large GPU, computed as ``runner.cost`` does: what the
arithmetic and the memory traffic need at least, times four for what a framework adds. Those of
everyday are expectations for two cores. A plan prefers what this machine has measured.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from persona_lib import execute, settings, store, weights
from persona_lib.data import intake, official
from persona_lib.execute import clock, notebook_hash, running_copy
from persona_lib.models.served import GENERATORS
from persona_lib.paper.answers import matchups
from persona_lib.settings import ConfigError, Profile, Run, field_types, near_names, results_dir

# --- The table of steps: which notebooks there are, what each reads, and how long it takes ---
# ``STEPS`` is the pipeline. A step runs once per data set and seed ("run") or once per profile ("profile").
# ``fields`` are patterns of profile fields that the step reads: only they make it stale. Naming a field too
# many costs seconds (the library's own ``done.json`` keys keep finished work); naming one too few would
# keep a wrong result.
#
# Minutes of the paper profile are estimates for one large GPU, computed as ``runner.cost`` does: what the
# arithmetic and the memory traffic need at least, times four for what a framework adds. Those of everyday
# are expectations for two cores. A plan prefers what this machine has measured.


@dataclass(frozen=True)
class Step:
    """One numbered notebook.

    ``versions`` names the steps of ``store.VERSIONS`` whose code it calls; without them, every change of
    the library makes it run again (seconds, where only tables are made). ``minutes`` are expected per task
    and profile, on two cores or one GPU; a plan replaces them by what this machine measured. Those of
    ``paper`` are guesses.
    """

    title: str
    per: Literal["run", "profile"] = "run"
    inputs: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    minutes: dict[str, float] = field(default_factory=dict)


DATA = (
    "data_dir",
    "data_mapping",
    "strip_roles",
    "pair_limit",
    "majority_share",
)
BASE = ("base_model", "base_revision")
TRAINING = (
    "methods",
    "train_limit",
    "val_limit",
    "train_personas",
    "quantization",
    "compute_dtype",
    "merge_adapters",
    "lora_*",
    "max_length",
    "completion_only_loss",
    "sft_*",
    "dpo_*",
    "plain_*",
    "lr_scheduler",
    "warmup_share",
    "base_model",
    "base_revision",
)
MODEL = ("base_model", "base_revision", "compute_dtype", "quantization", "engine")
INFERENCE = (
    *DATA,
    *MODEL,
    "generator_*",
    "pi_*",
    "eval_split",
    "eval_limit",
    "retriever*",
)  # which rows need personas
PROMPTING = ("few_shot_examples",)
GENERATION = (
    *TRAINING,
    *PROMPTING,
    "engine",
    "gen_*",
    "eval_split",
    "eval_limit",
    "eval_personas",
    "controls",
)
JUDGING = (
    *GENERATION,
    *DATA,
    "judge*",
    "persona_judge",
    "backwards_*",
    "second_judge_*",
    "bootstrap_samples",
)

STEPS: dict[str, Step] = {
    "01_preference_data": Step(
        "Preference pairs, split by prompt",
        versions=("pairs",),
        fields=(*DATA, "near_duplicate_threshold"),
        minutes={"smoke": 0.1, "everyday": 0.1, "authors": 0.2, "paper": 1},
    ),
    "02_base_model": Step(
        "The base language model",
        versions=("training",),
        per="profile",
        fields=(*MODEL, "gen_max_new_tokens", "gen_repetition_penalty"),
        minutes={"smoke": 0.2, "everyday": 0.5, "authors": 0.5, "paper": 10},
    ),
    "03_persona_inference": Step(
        "Infer a persona for every response",
        versions=(
            "pairs",
            "personas",
        ),
        inputs=("01_preference_data", "02_base_model"),
        fields=(*INFERENCE, "train_personas"),  # the arm "inferred" needs more of them
        minutes={"smoke": 0.3, "everyday": 4.5, "paper": 20},
    ),
    "04_persona_quality": Step(
        "Persona accuracy, preference and salient words",
        versions=(
            "personas",
            "calibration",
        ),
        inputs=("01_preference_data", "02_base_model", "03_persona_inference"),
        fields=(
            *INFERENCE,
            *TRAINING,
            "judge*",
            "persona_judge",
            "backwards_*",
            "bootstrap_samples",
            *("strip_contrast", "near_duplicate_threshold", "eval_limit"),  # the rows of its calibration
        ),
        minutes={"smoke": 0.3, "everyday": 5, "paper": 55},
    ),
    "05_tailoring_data": Step(
        "Retrieve personas, build the tailoring data",
        versions=("tailoring",),
        inputs=("01_preference_data", "03_persona_inference"),
        fields=(*INFERENCE, "strip_contrast", "near_duplicate_threshold", "eval_personas", "train_personas"),
        minutes={"smoke": 0.1, "everyday": 0.1, "authors": 0.3, "paper": 1},
    ),
    "06_supervised_tailoring": Step(
        "Persona tailoring by supervised fine-tuning",
        versions=("training",),
        inputs=("02_base_model", "05_tailoring_data"),
        fields=TRAINING,
        minutes={"smoke": 0.4, "everyday": 4.5, "authors": 15, "paper": 25},
    ),
    "07_preference_tailoring": Step(
        "Persona tailoring by DPO on top of it",
        versions=("training",),
        inputs=("02_base_model", "05_tailoring_data", "06_supervised_tailoring"),
        fields=TRAINING,
        minutes={"smoke": 0.7, "everyday": 8, "authors": 30, "paper": 50},
    ),
    "08_generation": Step(
        "Answer the test prompts with every policy and persona",
        versions=("answers",),
        inputs=("02_base_model", "05_tailoring_data", "06_supervised_tailoring", "07_preference_tailoring"),
        fields=GENERATION,
        minutes={"smoke": 0.6, "everyday": 8, "authors": 10, "paper": 215},
    ),
    "09_judging": Step(
        "Judge the answers in both orders",
        versions=("judging",),
        inputs=("01_preference_data", "02_base_model", "05_tailoring_data", "08_generation"),
        fields=JUDGING,
        minutes={"smoke": 0.3, "everyday": 1, "authors": 25, "paper": 1100},
    ),
    "10_user_personas": Step(
        "Personas that users write themselves",
        versions=(
            "answers",
            "judging",
        ),
        inputs=(
            "02_base_model",
            "05_tailoring_data",
            "06_supervised_tailoring",
            "07_preference_tailoring",
            "08_generation",
            "09_judging",
        ),
        fields=(*JUDGING, "swap_batch_size"),
        minutes={"smoke": 0.2, "everyday": 0.5, "paper": 30},
    ),
    "11_persona_swap": Step(
        "Swap the persona: does the preference follow?",
        versions=("swap",),
        inputs=(
            "02_base_model",
            "05_tailoring_data",
            "06_supervised_tailoring",
            "07_preference_tailoring",
            "08_generation",
        ),
        fields=(
            *TRAINING,
            "swap_batch_size",
            "gen_expand_weights",
            "eval_split",
            "eval_limit",
            "eval_personas",
            "bootstrap_samples",
        ),
        minutes={"smoke": 0.6, "everyday": 4, "authors": 15, "paper": 20},
    ),
    "12_results": Step(
        "All results, with intervals, beside the paper's",
        per="profile",
        inputs=(
            "01_preference_data",
            "02_base_model",
            "03_persona_inference",
            "04_persona_quality",
            "05_tailoring_data",
            "06_supervised_tailoring",
            "07_preference_tailoring",
            "08_generation",
            "09_judging",
            "10_user_personas",
            "11_persona_swap",
        ),
        fields=(
            "datasets",
            "seeds",
            "bootstrap_samples",
            "eval_personas",
            "methods",
            "train_personas",
            "judge",
        ),
        minutes={"smoke": 0.2, "everyday": 0.3, "authors": 0.5, "paper": 1},
    ),
    "13_released_outputs": Step(
        "The authors' released generations, analysed again",
        per="profile",
        fields=(
            *DATA,
            "near_duplicate_threshold",
            "bootstrap_samples",
            "judge*",
            "second_judge_*",
            "eval_limit",
            "eval_personas",
            *TRAINING,
            "backwards_*",
            *MODEL,
        ),
        minutes={"authors": 0.5, "paper": 190},
    ),
    "14_human_ratings": Step(
        "Ratings by people: blinded sheets out, filled ones in",
        per="profile",
        inputs=("05_tailoring_data", "08_generation"),
        fields=("datasets", "seeds", "train_personas", "bootstrap_samples", "eval_*", "second_judge_*"),
        minutes={"smoke": 0.1, "everyday": 0.2, "authors": 0.2, "paper": 0.3},
    ),
    "15_safety": Step(
        "Safety by persona: which answers keep a caution",
        per="profile",
        inputs=("05_tailoring_data", "08_generation"),
        fields=("datasets", "seeds", "data_dir", "bootstrap_samples", *GENERATION),
        minutes={"smoke": 0.2, "everyday": 0.2, "authors": 0.3, "paper": 2},
    ),
    "16_your_own_data": Step(
        "Your own preference data, step by step",
        per="profile",
        fields=(
            *INFERENCE,
            *BASE,
            *GENERATION,
            "near_duplicate_threshold",
            "strip_contrast",
            "swap_batch_size",
            "bootstrap_samples",
            "judge",
            "datasets",
        ),
        minutes={"own_smoke": 5},
    ),
}


# --- Tasks of a profile, and when one is stale ---
# A task is a step for one data set and seed, or for the whole profile. After it ran, its manifest
# ``results/<profile>/manifests/<task>.json`` holds the key that it ran for (the notebook's code, the
# versions of the steps it calls, parameters, profile fields, its inputs' outputs) and what it made. A task
# is stale when its key differs from the manifest's or an output is gone. Outputs count by content, so a
# step that was run again with the same result does not make the next ones stale.


WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
DATA_FILES = (".json", ".jsonl", ".csv", ".txt")
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
    notebooks: Path = settings.REPO / "notebooks"

    @property
    def table(self) -> dict[str, Step]:
        """The steps by name: ``persona_lib.tasks.STEPS`` unless others were given."""
        return STEPS if self.steps is None else self.steps

    @property
    def results(self) -> Path:
        """Folder of the profile's results."""
        return settings.results_dir(self.profile)

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
    if not place or not (path.is_file() or intake.is_saved_dataset(path)):
        return place
    return f"{place} ({intake.source_key(place)[:16]})"


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
    files = sorted(settings.FACTS.parent.rglob("*.py"))
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
        return settings.figures_dir(pipeline.profile) / name.removeprefix("figures/")
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
        (settings.figures_dir(pipeline.profile), Path("figures")),
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
            not owner
            and path.name != "done.json"
            and path.suffix in DATA_FILES
            and not name.startswith("figures/")
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


# --- ``--plan``: what would run and why, how long it takes, and what it needs. Reads only small files ---
# Nothing is imported, installed or downloaded for it. Times are those of the last run here, else of our
# runs.


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
    return [name for name in models_here(profile) if weights.is_hub_id(name)]


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
    for name in (weights.split_id(source)[0] for source in hub_models(profile)):
        known = weights.MODELS.get(name, weights.HubModel("", float("nan")))
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
    folder = official.at_hand(
        profile.data_dir, [name for name in profile.datasets if name in official.DATASETS]
    )
    named = profile.data_dir or os.environ.get("PERSONA_DATA", "")
    if folder:
        return 0.0, f"on this machine, in {folder}"
    if named == official.FROM_HUB:
        return OFFICIAL_DATA_GB, "from the hub, pinned"
    if named:
        return 0.0, f"NOT in {named}: the run will stop; give --data PATH"
    return OFFICIAL_DATA_GB, "pinned public copy, checked; or give --data PATH"


def uses_real_data(profile: Profile) -> bool:
    """Return True if a data set of the profile is one of the authors'."""
    return any(name in official.DATASETS for name in profile.datasets)


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
    sizes = [(name, weights.MODELS.get(weights.split_id(name)[0])) for name in hub_models(profile)]
    said = ", ".join(f"{name} {known.gb:.1f} GB" if known else f"{name} unknown" for name, known in sizes)
    nf4 = ", the base in NF4 a third of that" if profile.quantization == "nf4" else ""
    return f"weights in 16 bit: {said}{nf4}; activations come on top (not measured)"


def requests_need(profile: Profile) -> list[str]:
    """Count the requests to models that are served: both orders and rubrics of every comparison."""
    rows = {name: known["rows"][-1] for name, known in official.DATASETS.items() if known["rows"]}
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
    if not execute.unmet("lab"):
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
            weights.pinned(name, profile.base_revision if name == profile.base_model else "")
        except weights.HubError as error:
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
