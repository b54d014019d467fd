"""The runner: ``python -m persona_lib.pipeline`` runs a profile's notebooks, only those that need it.

``runner.tasks`` says which are stale, ``runner.run_tasks`` runs them, and
``runner.execute`` runs one notebook through papermill. Exit status: 0 done, 1 a step failed, 2 a setting
is wrong (nothing was run), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from pathlib import Path

from persona_lib import config
from persona_lib.profiles import ConfigError, near_names
from persona_lib.provenance import hardware
from persona_lib.records import DataError
from persona_lib.runner import own_run
from persona_lib.runner.names import check_names
from persona_lib.runner.plan import plan_lines, print_plan
from persona_lib.runner.tasks import REPORT, Pipeline, Task, forget

QUIET = {  # set before a kernel starts, unless the user has set them
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow each other down on few cores
    "GOMP_SPINCOUNT": "100",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
EXAMPLES = """examples:
  ./run_all.sh --plan                        what would run, why and how long; nothing runs
  ./run_all.sh                               the default profile: two cores, fetches 93 MB of weights
  ./run_all.sh --profile smoke               the whole machinery in a few minutes; its numbers mean nothing
  ./run_all.sh --only 12                     one step again, from what the others left
  ./run_all.sh --seeds 5                     five data and training seeds, intervals over them
  ./run_all.sh --set dpo_beta=0.2            one setting; configs/everyday.yaml explains each
  ./run_all.sh --data my_pairs.jsonl         your own preference pairs (DATA.md)
  ./run_all.sh --demo                        a page to ask the trained policies
A run that was stopped goes on where it was. Results: results/PROFILE/report/index.html."""
# Nothing is compiled on a processor, but bitsandbytes would import torch's compiler: seconds per process.
WITHOUT_GPU = {"TORCHDYNAMO_DISABLE": "1"}
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="run_all.sh",
        allow_abbrev=False,
        description="Run a profile's notebooks, in order, skipping what is finished and unchanged.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("--profile", metavar="NAME", help="configs/NAME.yaml (default: everyday; own with --data FILE)")
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
    add(
        "--seeds",
        metavar="N",
        help="5 means seeds 0 to 4; 3,7 means exactly these (two say little of others: wide intervals)",
    )
    add(
        "--data",
        metavar="PATH",
        help="your own preference pairs: a .jsonl, .json, .csv, .tsv or .parquet file, a folder of "
        "datasets.save_to_disk or a hub id (name@commit), with columns prompt, chosen, rejected or a "
        "--mapping; or the folder of the authors' data. Relative to the repository",
    )
    add(
        "--mapping",
        metavar="FILE",
        help="YAML file that says which columns are which, for --data ('prompt: question'; see DATA.md)",
    )
    add("--max-cost-usd", type=float, help="never spend more on served models: --set max_cost_usd=X")
    add("--offline", action="store_true", help="never ask the model hub; missing files are errors")
    add("--check", action="store_true", help="only check the arguments and the profile")
    arguments = parser.parse_args(argv)
    arguments.own = own_run.is_own(arguments.data, arguments.set)
    arguments.profile = arguments.profile or (own_run.PROFILE if arguments.own else "everyday")
    return arguments


def parse_seeds(text: str) -> str:
    """Return the override that ``--seeds`` means; raises ConfigError if it is not numbers."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: write a count (5) or a list (0,3)") from error
    if not numbers or ("," not in text and numbers[0] < 1):
        raise ConfigError(f"--seeds {text}: at least one seed is needed")
    return "seeds=" + ",".join(map(str, numbers if "," in text else range(numbers[0])))


def read_overrides(arguments: argparse.Namespace) -> list[str]:
    """Return all ``key=value`` overrides of the command line."""
    overrides = list(arguments.set)
    if arguments.seeds:
        overrides.append(parse_seeds(arguments.seeds))
    if arguments.data:
        overrides.append(f"data_dir={arguments.data}")
    if arguments.mapping and not arguments.own:
        raise ConfigError("--mapping says what the columns of --data mean: give --data FILE, too")
    if arguments.mapping:
        overrides.append(f"data_mapping={arguments.mapping}")
    if arguments.own:
        overrides += own_run.own_overrides(arguments.profile, overrides)
    if arguments.max_cost_usd is not None:
        overrides.append(f"max_cost_usd={arguments.max_cost_usd}")
    return overrides


def open_pipeline(
    arguments: argparse.Namespace, notebooks: Path | None = None, steps: dict | None = None
) -> Pipeline:
    """Load the profile and lay out its tasks; raises ConfigError."""
    overrides = read_overrides(arguments)
    profile = config.load_profile(arguments.profile, overrides)
    check_names(profile)
    pipeline = Pipeline(profile, tuple(overrides), steps, notebooks or config.REPO / "notebooks")
    for task in pipeline.tasks.values():
        if not pipeline.source(task).exists():
            raise ConfigError(f"profile {profile.name}: step {task.step} has no {pipeline.source(task)}")
    if steps is None:
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
        raise ConfigError(f"{option} {wanted}: no such step; {near_names(wanted, steps)}")
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
    own_run.validate(pipeline.profile, arguments.list or arguments.plan)
    if arguments.list:
        print_list(pipeline)
    elif arguments.plan:
        print_plan(pipeline, plan_lines(pipeline, ids, arguments.force))
    if arguments.list or arguments.plan or arguments.check:
        return 0
    os.chdir(config.REPO)  # where kernels start, wherever the runner was called
    from persona_lib.runner.run_tasks import only_runner, run_tasks

    with only_runner(pipeline):
        if arguments.force:
            for name in ids:
                forget(pipeline, pipeline.tasks[name])
        status = run_tasks(pipeline, ids)
    if not status:
        print_results(pipeline)
    return status


def main(argv: list[str] | None = None, notebooks: Path | None = None, steps: dict | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = parse_arguments(argv)
    for name, value in (QUIET if hardware()["gpus"] else QUIET | WITHOUT_GPU).items():
        os.environ.setdefault(name, value)
    if arguments.offline:
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(arguments, notebooks, steps)
    except (ConfigError, DataError) as error:
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
