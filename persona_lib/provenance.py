"""What every task left, with hashes: damage stops a run, and a run's folder is a Workflow Run RO-Crate.

``provenance.json`` holds size, time and SHA-256 of each file that a task wrote. ``ro-crate-metadata.json``
makes the folder of a run a crate of the profile Process Run Crate 0.5: each notebook that ran is an action.
"""

from __future__ import annotations

import argparse
import mimetypes
import operator
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from persona_lib import store, tasks
from persona_lib.records import DataError
from persona_lib.settings import Parser, Run, open_run, results_root
from persona_lib.tasks import Pipeline, Task, has_run

Known = dict[str, dict[str, Any]]
Entity = dict[str, Any]


def written(pipeline: Pipeline) -> dict[str, Path]:
    """Return the files that tasks write, by their path in the results; what people fill in is left out."""
    folders = ("notebooks", "tables", "released_judgments", *pipeline.profile.datasets)
    found = [path for name in folders for path in (pipeline.results / name).rglob("*") if path.is_file()]
    kept = [path for path in sorted(found) if not path.name.startswith(".") and ".running." not in path.name]
    return {path.relative_to(pipeline.results).as_posix(): path for path in kept}


def with_files(pipeline: Pipeline, known: Known, task: Task, begun: int) -> Known:
    """Return the tasks' facts with what this task left: what was written since ``begun`` (ns), and its own.

    Its own are those that it left before, and those in its folders that no task has yet. Of each: bytes,
    nanoseconds of its last change, SHA-256.
    """
    there, left = written(pipeline), {other: facts.get("files", {}) for other, facts in known.items()}
    before = {name: (other, state) for other, files in left.items() for name, state in files.items()}
    run = task.parameters
    folder = pipeline.results / run["dataset"] / f"seed-{run['seed']}" if run else pipeline.results
    makes = tasks.STEPS[task.step].makes.split()
    own = {path for pattern in makes for path in folder.glob(f"{pattern}/**/*")}
    files: Known = {name: {} for name in known}
    for name, path in there.items():
        stat = path.stat()
        owner, old = before.get(name, ("", ""))
        if not old and stat.st_mtime_ns < begun and path not in own:
            continue  # of a run before files were recorded
        state = f"{stat.st_size} {stat.st_mtime_ns} "
        digest = old.split()[2] if old.startswith(state) else store.file_hash(path)
        kept = owner in known and old.endswith(digest)
        files[owner if kept else task.id][name] = state + digest
    return {name: facts | {"files": files[name]} for name, facts in known.items()}


def check_files(pipeline: Pipeline, every: bool = False) -> None:
    """Raise DataError for a file that is not what its task left; ``every``: read all, not the changed."""
    known = pipeline.known()
    for task in (task for task in pipeline.tasks.values() if has_run(known, task.id)):
        for name, state in known[task.id].get("files", {}).items():
            path, (size, time, digest) = pipeline.results / name, state.split()
            stat = path.stat() if path.exists() else None
            if stat and not every and (stat.st_size, stat.st_mtime_ns) == (int(size), int(time)):
                continue
            if not stat and path == pipeline.executed(task):
                continue  # a task without its notebook runs again
            if not stat or store.file_hash(path) != digest:
                from persona_lib.report import command_of

                wrong = "is not what this task left" if stat else "is missing"
                redo = f"{command_of(pipeline.profile, pipeline.overrides)} --force --only {task.id}"
                raise DataError(f"{path} {wrong}; make it again with {redo}, then run what follows")


def asked_run(parser: Parser, argv: list[str] | None) -> tuple[Run, argparse.Namespace]:
    """Read a command line about a finished run, by default the last; its files are checked.

    FileNotFoundError without a run, ConfigError for wrong settings, DataError for a damaged file.
    """
    add = parser.add_argument
    add("--profile", default="", help="default: that of the run that ended last, with its settings")
    add("--dataset", default="", help="default: the profile's first")
    add("--seed", type=int, default=0, help="default: 0")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as for run_all.sh")
    given = parser.parse_args(argv)
    profile, overrides = (given.profile, []) if given.profile else last_run()
    run = open_run(profile, given.dataset, given.seed, [*overrides, *given.set])
    check_files(Pipeline(run.profile))
    return run, given


def last_run() -> tuple[str, list[str]]:
    """Return profile and overrides of the run that ended last; raises FileNotFoundError if there is none."""
    root = results_root()
    known = [store.read_json(path)["tasks"].values() for path in root.glob("*/provenance.json")]
    if not (facts := [facts for tasks in known for facts in tasks]):
        raise FileNotFoundError(f"{root}: there is no run; ./run_all.sh makes one")
    last = max(facts, key=operator.itemgetter("finished"))["parameters"]
    return last["profile"], last["overrides"]


METADATA = "ro-crate-metadata.json"
CRATE = "https://w3id.org/ro/crate/1.1"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
LICENCE = "https://www.apache.org/licenses/LICENSE-2.0"


def crate(pipeline: Pipeline) -> Entity:
    """Return the metadata in JSON-LD: each task that ran to its end, what it was given, and what it left."""
    known = pipeline.known()
    ran = [task for task in pipeline.tasks.values() if has_run(known, task.id)]
    files = {task.id: known[task.id].get("files", {}) for task in ran}
    graph: dict[str, Entity] = {}

    def add(ref: str, kind: str, **facts: Any) -> Entity:
        """Describe an entity; returns a reference to it."""
        graph[ref] = {"@id": ref, "@type": kind, **facts}
        return {"@id": ref}

    def references(names: Iterable[str]) -> list[Entity]:
        return [{"@id": name} for name in names]

    licence = add(LICENCE, "CreativeWork", name="Apache License 2.0")
    process = add(PROFILE, "CreativeWork", name="Process Run Crate", version="0.5")
    user = add("#user", "Person", name="whoever started the run")
    for task in ran:
        facts, notebook = known[task.id], f"{task.step}.ipynb"
        given = [add(f"#{task.id}/{name}", "PropertyValue", name=name, value=str(value))
                 for name, value in facts["parameters"].items()]  # fmt: skip
        for name, state in files[task.id].items():
            size, _, digest = state.split()
            add(name, "File", name=Path(name).name, contentSize=size, sha256=digest,
                encodingFormat=mimetypes.guess_type(name)[0] or "application/octet-stream")  # fmt: skip
        add(
            f"#{task.id}", "CreateAction",
            name=task.id,
            description=f"papermill ran {notebook}.",
            instrument=add(f"#{notebook}", "SoftwareApplication", name=notebook,
                           softwareVersion=facts["git"]["commit"] or "unknown"),
            agent=user,
            startTime=facts["started"],
            endTime=facts["finished"],
            object=[*given, *references(name for other in task.inputs for name in files.get(other, ()))],
            result=references(files[task.id]),
        )  # fmt: skip
    about = add(
        "./", "Dataset",
        conformsTo=process,
        name=f"Results of the profile {pipeline.profile.name}",
        description=pipeline.profile.description,
        license=licence,
        datePublished=max((known[task.id]["finished"] for task in ran), default=store.now()),
        hasPart=references(name for left in files.values() for name in left),
        mentions=references(f"#{task.id}" for task in ran),
    )  # fmt: skip
    add(METADATA, "CreativeWork", conformsTo={"@id": CRATE}, about=about)
    return {"@context": f"{CRATE}/context", "@graph": [*graph.values()]}
