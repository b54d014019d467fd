"""Run tasks in order up to the first failure; each leaves its provenance and manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

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


def run_tasks(pipeline: Pipeline, ids: list[str]) -> int:
    """Run the tasks that are not current, in order; returns 0, or 1 at the first that fails."""
    width = max(len(name) for name in ids)
    for number, name in enumerate(ids, start=1):
        task, label = pipeline.tasks[name], f"[{number}/{len(ids)}] {name:<{width}}"
        if not stale_reasons(pipeline, task):
            print(f"{label}  cached", flush=True)
            continue
        try:
            run_task(pipeline, task, label)
        except StepError as error:
            print(f"\n{task.id} failed.\n\n{error}", flush=True)
            return 1
    return 0


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
