"""Run tasks: doit orders them and stops at the first failure, each leaves its provenance and manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from doit.cmd_base import TaskLoader2
from doit.doit_cmd import DoitMain
from doit.exceptions import TaskFailed
from doit.reporter import ConsoleReporter
from doit.task import dict_to_task

from persona_lib import provenance, store
from persona_lib.profiles import ConfigError
from persona_lib.runner.execute import LiveLine, StepError, finish_notebook, run_notebook
from persona_lib.runner.plan import expected_seconds
from persona_lib.runner.tasks import (
    REPORT,
    Pipeline,
    Task,
    begin,
    current_key,
    snapshot,
    stale_reasons,
    write_manifest,
)


def note_run(
    pipeline: Pipeline, task: Task, key: dict[str, Any], line: LiveLine, started: str
) -> dict[str, Any]:
    """Add a finished task to ``provenance.json`` and return its facts.

    ``longest_seconds`` is what a plan expects: a later run that found most work done is shorter.
    """
    path = pipeline.results / "provenance.json"
    content = store.read_json(path) if path.exists() else {"profile": pipeline.profile.name, "tasks": {}}
    earlier = content["tasks"].get(task.id, {})
    same = earlier.get("fields") == key.get("fields")
    facts = {
        "task": task.id,
        "parameters": pipeline.parameters(task),
        "fields": key.get("fields"),
        "started": started,
        "finished": provenance.now(),
        "seconds": round(line.seconds, 1),
        "longest_seconds": round(max(line.seconds, earlier.get("longest_seconds", 0) if same else 0), 1),
        "peak_memory_mb": round(line.peak_mb),
        **provenance.environment(),
    }
    content["tasks"][task.id] = facts
    content["packages"] = provenance.package_versions()
    content["settings"] = pipeline.profile
    store.write_json(path, content)
    return facts


def run_task(pipeline: Pipeline, task: Task, label: str) -> None:
    """Run one task: its notebook, or the report; then write provenance and, last, the manifest."""
    key, before, started = current_key(pipeline, task), snapshot(pipeline), provenance.now()
    begin(pipeline, task)
    expected, _ = expected_seconds(pipeline, task)
    running = None
    with LiveLine(label, expected) as line:
        if task.step == REPORT:
            from persona_lib.runner.report import write_report

            write_report(pipeline.profile)
        else:
            target, log = pipeline.executed(task), pipeline.log(task)
            running = run_notebook(pipeline.source(task), target, pipeline.parameters(task), log)
    facts = note_run(pipeline, task, key, line, started)
    if running:
        finish_notebook(running, pipeline.executed(task), facts)
    write_manifest(pipeline, task, key, before, facts["finished"])


class Reporter(ConsoleReporter):
    """What doit says: a line for each skipped task, and unexpected errors; steps speak for themselves."""

    def execute_task(self, task: Any) -> None:
        """Stay silent: the step has its own line."""

    def skip_uptodate(self, task: Any) -> None:
        """Say that a task is current."""
        print(f"{task.meta['label']}  cached", flush=True)


class Loader(TaskLoader2):
    """Give doit the selected tasks of a pipeline instead of a dodo.py."""

    def __init__(self, pipeline: Pipeline, ids: list[str]) -> None:
        super().__init__()
        self.pipeline, self.ids = pipeline, ids

    def load_doit_config(self) -> dict[str, Any]:
        """Keep doit's database in the results folder."""
        database = str(self.pipeline.results / ".doit.json")
        return {"backend": "json", "dep_file": database, "reporter": Reporter, "verbosity": 2}

    def load_tasks(self, cmd: Any, pos_args: Any) -> list:
        """Return doit's task objects."""
        return [dict_to_task(task) for task in doit_tasks(self.pipeline, self.ids)]


def doit_tasks(pipeline: Pipeline, ids: list[str]) -> list[dict[str, Any]]:
    """Return the selected tasks as doit wants them; doit asks ``uptodate`` after a task's inputs have run."""
    width = max(len(name) for name in ids)
    tasks = []
    for number, name in enumerate(ids, start=1):
        task, label = pipeline.tasks[name], f"[{number}/{len(ids)}] {name:<{width}}"
        tasks.append(
            {
                "name": name,
                "meta": {"label": label},
                "actions": [(act, (pipeline, task, label))],
                "task_dep": [i for i in task.inputs if i in ids],
                "uptodate": [(is_current, (pipeline, task))],
            }
        )
    return tasks


def act(pipeline: Pipeline, task: Task, label: str) -> TaskFailed | None:
    """Run a task for doit; a failed step has said why by itself, without doit's own traceback."""
    try:
        run_task(pipeline, task, label)
    except StepError as error:
        print(f"\n{task.id} failed.\n\n{error}", flush=True)
        return TaskFailed(str(error), report=False)
    return None


def is_current(pipeline: Pipeline, task: Task) -> bool:
    """Tell doit whether a task can be skipped."""
    return not stale_reasons(pipeline, task)


def run_doit(pipeline: Pipeline, ids: list[str]) -> int:
    """Hand the tasks to doit; returns 0, or 1 if one failed."""
    return 1 if DoitMain(Loader(pipeline, ids), config_filenames=()).run(["run"]) else 0


@contextlib.contextmanager
def only_runner(pipeline: Pipeline) -> Iterator[None]:
    """Hold the results folder's lock; raises ConfigError if another run has it."""
    import fcntl

    pipeline.results.mkdir(parents=True, exist_ok=True)
    with (pipeline.results / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another run is at work in {pipeline.results}: wait for it or end it"
            ) from error
        yield
