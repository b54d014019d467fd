"""The runner: ``python -m persona_lib.pipeline`` runs a profile's notebooks, only those that need it.

doit orders the tasks and stops at the first failure; ``persona_lib.tasks`` says which are stale;
``persona_lib.execute`` runs a notebook. Exit status: 0 done, 1 a step failed, 2 a setting is wrong
(nothing was run), 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persona_lib import config, provenance, store
from persona_lib.config import ConfigError
from persona_lib.execute import LiveLine, StepError, finish_notebook, run_notebook
from persona_lib.plan import expected_seconds, plan_lines, print_plan
from persona_lib.tasks import (
    REPORT,
    Pipeline,
    Task,
    current_key,
    forget,
    snapshot,
    stale_reasons,
    write_manifest,
)

QUIET = {  # set before a kernel starts, unless the user has set them
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow each other down on few cores
    "GOMP_SPINCOUNT": "100",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="run_all.sh",
        allow_abbrev=False,
        description="Run a profile's notebooks, in order, skipping what is finished and unchanged.",
    )
    add = parser.add_argument
    add("--profile", default="synthetic", metavar="NAME", help="configs/NAME.yaml (default: synthetic)")
    add(
        "--plan", action="store_true", help="say what would run, why, for how long and with what; run nothing"
    )
    add("--list", action="store_true", help="list the steps of the profile and the profiles there are")
    add(
        "--only",
        nargs="+",
        default=[],
        metavar="STEP",
        help="only these steps or tasks, e.g. 03 or 12_results",
    )
    add("--from", dest="first", metavar="STEP", help="this step and those after it")
    add("--force", action="store_true", help="delete what the selected steps made and make it again")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a profile field (repeatable)")
    add("--seeds", metavar="N", help="5 means seeds 0 to 4; 3,7 means exactly these")
    add("--data", metavar="PATH", help="folder of real data: the same as --set data_dir=PATH")
    add("--offline", action="store_true", help="never ask the model hub; missing files are errors")
    add("--check", action="store_true", help="only check the arguments and the profile")
    return parser.parse_args(argv)


def parse_seeds(text: str) -> str:
    """Return the override that ``--seeds`` means; raises ConfigError if it is not numbers."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: write a count (5) or a list (0,3)") from error
    if "," not in text and numbers[0] < 1:
        raise ConfigError(f"--seeds {text}: at least one seed is needed")
    return "seeds=" + ",".join(map(str, numbers if "," in text else range(numbers[0])))


def read_overrides(arguments: argparse.Namespace) -> list[str]:
    """Return all ``key=value`` overrides of the command line."""
    overrides = list(arguments.set)
    if arguments.seeds:
        overrides.append(parse_seeds(arguments.seeds))
    if arguments.data:
        overrides.append(f"data_dir={arguments.data}")
    return overrides


def open_pipeline(
    arguments: argparse.Namespace, notebooks: Path | None = None, steps: dict | None = None
) -> Pipeline:
    """Load the profile and lay out its tasks; raises ConfigError."""
    overrides = read_overrides(arguments)
    profile = config.load_profile(arguments.profile, overrides)
    pipeline = Pipeline(profile, tuple(overrides), steps, notebooks or config.REPO / "notebooks")
    for task in pipeline.tasks.values():
        if not pipeline.source(task).exists():
            raise ConfigError(f"profile {profile.name}: step {task.step} has no {pipeline.source(task)}")
    if steps is None and (config.REPO / "persona_lib" / "report.py").exists():
        pipeline.tasks[REPORT] = Task(REPORT, REPORT, {}, tuple(pipeline.tasks))
    return pipeline


def matching(pipeline: Pipeline, wanted: str, option: str) -> list[str]:
    """Return the ids of the tasks that a STEP argument names: a number, a step or a task."""
    found = [
        task.id
        for task in pipeline.tasks.values()
        if wanted in (task.id, task.step, task.step.partition("_")[0], task.step.partition("_")[2])
    ]
    if not found:
        steps = list(dict.fromkeys(task.step for task in pipeline.tasks.values()))
        raise ConfigError(f"{option} {wanted}: no such step; {config.near_names(wanted, steps)}")
    return found


def select(pipeline: Pipeline, arguments: argparse.Namespace) -> list[str]:
    """Return the ids of the selected tasks in order; inputs of unselected steps must be there already."""
    ids = list(pipeline.tasks)
    if arguments.only:
        named = {i for wanted in arguments.only for i in matching(pipeline, wanted, "--only")}
        ids = [i for i in ids if i in named]
    if arguments.first:
        start = list(pipeline.tasks).index(matching(pipeline, arguments.first, "--from")[0])
        ids = [i for i in ids if list(pipeline.tasks).index(i) >= start]
    for task in (pipeline.tasks[i] for i in ids if i != REPORT):
        for needed in task.inputs:
            if needed not in ids and not pipeline.manifest(needed).exists():
                raise ConfigError(
                    f"{task.id} needs {needed}, which has not been run: select it too, or run everything"
                )
    return ids


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
        "parameters": {
            "profile": pipeline.profile.name,
            **task.parameters,
            "overrides": list(pipeline.overrides),
        },
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
    expected, _ = expected_seconds(pipeline, task)
    running = None
    with LiveLine(label, expected) as line:
        if task.step == REPORT:
            from persona_lib.report import write_report

            write_report(pipeline.profile)
        else:
            parameters = {
                "profile": pipeline.profile.name,
                **task.parameters,
                "overrides": list(pipeline.overrides),
            }
            running = run_notebook(
                pipeline.source(task), pipeline.executed(task), parameters, pipeline.log(task)
            )
    facts = note_run(pipeline, task, key, line, started)
    if running:
        finish_notebook(running, pipeline.executed(task), facts)
    write_manifest(pipeline, task, key, before, facts["finished"])


class Reporter:
    """What doit says while it runs: a line for each skipped task, and nothing else (steps speak for themselves)."""

    desc = "one line for each task"

    def __init__(self, outstream: Any, options: dict) -> None:
        self.outstream = outstream

    def skip_uptodate(self, task: Any) -> None:
        """Say that a task is current."""
        self.outstream.write(f"{task.doc}  cached\n")

    def add_failure(self, task: Any, fail: Any) -> None:
        """Say why a task failed: a step's own message, or the traceback of an unexpected error."""
        error = getattr(fail, "exception", None) or fail
        known = isinstance(error, StepError)
        self.outstream.write(f"\n{task.name} failed.\n{error if known else fail.get_msg()}\n")

    def runtime_error(self, message: str) -> None:
        """Say what went wrong in doit itself."""
        sys.stderr.write(message + "\n")

    def nothing(self, *arguments: Any) -> None:
        """Stay silent."""

    initialize = get_status = execute_task = add_success = nothing
    skip_ignore = cleanup_error = teardown_task = complete_run = nothing


def doit_tasks(pipeline: Pipeline, ids: list[str]) -> list[dict[str, Any]]:
    """Return the selected tasks as doit wants them; doit asks ``uptodate`` after a task's inputs have run."""
    width = max(len(name) for name in ids)
    tasks = []
    for number, name in enumerate(ids, start=1):
        task, label = pipeline.tasks[name], f"[{number}/{len(ids)}] {name:<{width}}"
        tasks.append(
            {
                "name": name,
                "doc": label,
                "actions": [(act, (pipeline, task, label))],
                "task_dep": [i for i in task.inputs if i in ids],
                "uptodate": [(is_current, (pipeline, task))],
            }
        )
    return tasks


def act(pipeline: Pipeline, task: Task, label: str) -> None:
    """Run a task for doit."""
    run_task(pipeline, task, label)


def is_current(pipeline: Pipeline, task: Task) -> bool:
    """Tell doit whether a task can be skipped."""
    return not stale_reasons(pipeline, task)


def run_doit(pipeline: Pipeline, ids: list[str]) -> int:
    """Hand the tasks to doit; returns 0 or 1."""
    from doit.cmd_base import TaskLoader2
    from doit.doit_cmd import DoitMain
    from doit.task import dict_to_task

    class Loader(TaskLoader2):
        """Give doit our tasks instead of a dodo.py."""

        def load_doit_config(self) -> dict[str, Any]:
            database = str(pipeline.results / ".doit.json")
            return {"backend": "json", "dep_file": database, "reporter": Reporter, "verbosity": 2}

        def load_tasks(self, cmd: Any, pos_args: Any) -> list:
            return [dict_to_task(task) for task in doit_tasks(pipeline, ids)]

    return 1 if DoitMain(Loader(), config_filenames=()).run(["run"]) else 0


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


def print_results(pipeline: Pipeline) -> None:
    """Say where the figures, tables and the report are."""
    places = {
        "figures": config.figures_dir(pipeline.profile),
        "tables": pipeline.results / "tables",
        "notebooks": pipeline.results / "notebooks",
        "report": pipeline.results / "report" / "index.html",
    }
    print()
    for name, path in places.items():
        if path.exists():
            print(f"{name:<10} {path}")


def print_list(pipeline: Pipeline) -> None:
    """Print the steps of the profile and the profiles."""
    for name in pipeline.profile.steps:
        print(f"  {name:<26} {pipeline.table[name].title}")
    profiles = sorted(path.stem for path in (config.REPO / "configs").glob("*.yaml"))
    print(f"profiles: {', '.join(profiles)}")


def run(arguments: argparse.Namespace, notebooks: Path | None = None, steps: dict | None = None) -> int:
    """Do what the command line asks; raises ConfigError before anything is run."""
    pipeline = open_pipeline(arguments, notebooks, steps)
    ids = select(pipeline, arguments)
    if arguments.list:
        print_list(pipeline)
    elif arguments.plan:
        print_plan(pipeline, plan_lines(pipeline, ids, arguments.force))
    if arguments.list or arguments.plan or arguments.check:
        return 0
    with only_runner(pipeline):
        if arguments.force:
            for name in ids:
                forget(pipeline, pipeline.tasks[name])
        status = run_doit(pipeline, ids)
    if not status:
        print_results(pipeline)
    return status


def main(argv: list[str] | None = None, notebooks: Path | None = None, steps: dict | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = parse_arguments(argv)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if arguments.offline:
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(arguments, notebooks, steps)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main())
