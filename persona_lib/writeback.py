"""Put the outputs of a finished run into ``notebooks/``: ``python -m persona_lib.docs --notebooks``.

The executed notebooks of a profile (its first data set and seed) are brought into a normal form that depends
on results alone (``persona_lib.runner.normalise``) and become what JupyterLab and code hosts show. Code and
prose stay as they are, so no step becomes stale, and writing back twice changes nothing. Notebooks that the
profile does not run are left alone. ``--check`` writes nothing and says which committed outputs are not in
normal form or belong to other code; it needs no run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from persona_lib.config import REPO, load_profile
from persona_lib.profiles import ConfigError
from persona_lib.runner.execute import notebook_hash
from persona_lib.runner.normalise import NormalError, normal_document, problems, read, to_text
from persona_lib.runner.tasks import Pipeline, Task
from persona_lib.store import write_text

NOTEBOOKS = REPO / "notebooks"


def first_tasks(pipeline: Pipeline, wanted: list[str]) -> dict[str, Task]:
    """Return the first task of every step, or of the steps that begin with one of the wanted names."""
    first: dict[str, Task] = {}
    for task in pipeline.tasks.values():
        if not wanted or task.step.startswith(tuple(wanted)):
            first.setdefault(task.step, task)
    if not first:
        raise ConfigError(f"no step of profile {pipeline.profile.name} begins with {' or '.join(wanted)}")
    return first


def written_text(pipeline: Pipeline, task: Task) -> str:
    """Return the notebook of a step with the outputs of its executed copy.

    Raises NormalError if there is none, if it ran with changed settings, or if it ran other code.
    """
    source, executed = pipeline.source(task), pipeline.executed(task)
    command = f"./run_all.sh --profile {pipeline.profile.name}"
    if not executed.exists():
        raise NormalError(f"{task.id} has not run: {command}")
    document = read(executed)
    overrides = document["metadata"].get("persona", {}).get("parameters", {}).get("overrides", [])
    if overrides:
        raise NormalError(f"{task.id} ran with {', '.join(overrides)}: run the profile as it is: {command}")
    shown = {"profile": pipeline.profile.name, "code": notebook_hash(source)}
    try:
        return to_text(normal_document(read(source), document, shown))
    except NormalError as error:
        raise NormalError(f"{task.id}: {error} ({command})") from error


def write_back(pipeline: Pipeline, wanted: list[str]) -> list[Path]:
    """Write the outputs of all wanted steps, or of none if one cannot be; returns the files that changed."""
    tasks = first_tasks(pipeline, wanted).values()
    texts = {pipeline.source(task): written_text(pipeline, task) for task in tasks}
    changed = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        write_text(path, texts[path])
    return changed


def check(folder: Path = NOTEBOOKS) -> list[str]:
    """Return what is wrong with the committed outputs of all notebooks, one line each."""
    return [f"{path.name}: {said}" for path in sorted(folder.glob("*.ipynb")) for said in problems(path)]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m persona_lib.docs --notebooks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: ./run_all.sh && python -m persona_lib.docs --notebooks && git diff --stat notebooks",
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help="only these, e.g. 03 (default: all)")
    parser.add_argument("--profile", default="everyday", help="whose run to show (default: everyday)")
    parser.add_argument("--check", action="store_true", help="only check what is committed")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0: done, 1: the check found something, 2: a run is missing or does not fit."""
    arguments = parse_arguments(argv)
    if arguments.check:
        found = check()
        print("\n".join(found) or "the outputs of all notebooks are in normal form")
        return 1 if found else 0
    try:
        changed = write_back(Pipeline(load_profile(arguments.profile)), arguments.steps)
    except (ConfigError, NormalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"{path.name}: written" for path in changed) or "nothing to change")
    left = check()
    print("\n".join(left), file=sys.stderr, end="\n" if left else "")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
