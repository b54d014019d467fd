"""Do the long work of some seeds ahead, without notebooks: ``python -m persona_lib.ahead --seeds 1,3``.

``run_all.sh`` runs one step at a time. On a machine with cores to spare, one such process per seed (or
group of seeds) can train, generate and score side by side; ``./run_all.sh`` with the same settings then
finds this work finished and only runs the notebooks over it. Both call the same functions; here each
process uses one worker, whatever the profile says. Two processes must not work on the same seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from persona_lib.config import Run, load_profile
from persona_lib.data import preference, tailoring
from persona_lib.evaluation import judge, personas, swap, tailor
from persona_lib.pipeline import parse_seeds
from persona_lib.published import trained_personas
from persona_lib.training import train


def long_steps(run: Run) -> list[tuple[str, Callable[[], Any]]]:
    """Return the run's long steps, named, in order; each does nothing if its work is finished."""
    profile = run.profile
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("pairs", lambda: preference.write_pairs(run)),
    ]
    if "03_persona_inference" in profile.steps:
        steps.append(("persona inference", lambda: personas.infer_run(run)))
    steps.append(("tailoring data", lambda: tailoring.build_tailoring(run, personas.user_personas(run))))
    for method in ("sft", "dpo") if "dpo" in profile.methods else ("sft",):
        for arm in trained_personas(profile, run.dataset, method):
            name = f"{method.upper()} {arm}"
            steps.append((name, lambda method=method, arm=arm: train.train_adapter(run, method, arm)))
    steps.append(("generation", lambda: tailor.generate_all(run)))
    if profile.judge != "none":
        steps.append(("judging", lambda: judge.judge_all(run) + judge.judge_second(run)))
    return [*steps, ("persona swap", lambda: swap.swap_all(run))]


def main() -> None:
    """Run the long steps of the seeds and data sets asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="everyday")
    parser.add_argument(
        "--seeds",
        required=True,
        help="as for run_all.sh: 5 means seeds 0 to 4; 1,3 exactly these; 3, only this one",
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    overrides = [*arguments.overrides, parse_seeds(arguments.seeds), "workers=1"]
    profile = load_profile(arguments.profile, overrides)
    for seed in profile.seeds:
        for dataset in profile.datasets:
            for name, step in long_steps(Run(profile, dataset, seed)):
                started = time.perf_counter()
                step()
                print(f"{dataset}, seed {seed}: {name}, {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
