"""Choose the training settings on validation topics, with the same budget for plain DPO and tailored arms.

``python -m persona_lib.studies selection`` trains every candidate for all arms with data and training seeds that
no result uses, evaluates it on the validation split only, and writes ``figures/<profile>/selection_*.csv``.
The rule is fixed here. All means are over seeds and over the gold personas of both sides (told to the plain
arm in the first person). A candidate whose answers end less often than those of the arm's best by more than
five points is out. The plain arm takes the candidate with the highest oracle fit among those whose mean
quality is within 0.1 standard deviations of the best candidate's. PT takes the candidate with the highest fit
among those whose mean quality is within 0.1 standard deviations of what the plain arm's pick has (if none is:
the one with the highest quality). Ties go to the earlier candidate.

The first search used seed 106 alone and did not count unfinished answers. Its pick for PT failed to end its
answers in two of three test seeds, so the search now has three seeds, and a limit on unfinished answers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.config import Run, figures_dir, load_profile, set_field
from persona_lib.data import preference, tailoring
from persona_lib.evaluation import personas, policies, tailor
from persona_lib.evaluation.judge import oracle_scores
from persona_lib.profiles import Profile
from persona_lib.records import SIDES, RunSpec
from persona_lib.training import train

SEEDS = (106, 107, 108)  # tuning only: results use data and training seeds 0, 1, 2, ...
ARMS = ("none", "both")
QUALITY_MARGIN = 0.1  # in standard deviations of the answers' quality
UNFINISHED_MARGIN = 0.05  # share of answers without an end, above the arm's lowest

CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "sft": [{"sft_learning_rate": rate} for rate in (5e-4, 1e-3)],
    "dpo": [
        {"sft_learning_rate": 1e-3, "dpo_learning_rate": rate, "dpo_sft_weight": weight}
        for rate, weight in ((5e-4, 0.5), (1e-3, 0.5), (1e-3, 0.0))
    ],
}


def tuning_profile(profile: Profile) -> Profile:
    """Return the profile on validation topics; data and training seeds are fresh."""
    return set_field(
        profile,
        eval_split="validation",
        eval_limit=0,
        train_personas=list(ARMS),
        eval_personas=[f"gold-{side}" for side in SIDES],
    )


def prepare(run: Run) -> None:
    """Make pairs, personas and tailoring data of a tuning seed."""
    preference.write_pairs(run)
    if not preference.has_personas(run):
        personas.infer_run(run)
    tailoring.build_tailoring(run, personas.user_personas(run))


def spec_of(run: Run, method: str, arm: str, side: str) -> RunSpec:
    """Return the run that an arm is chosen by: told the gold persona of a side in its own way."""
    return RunSpec(
        run.dataset, method, arm, f"gold-{side}", run.seed, "first_person" if arm == "none" else "line"
    )


def measure(run: Run, method: str, arm: str) -> dict[str, float]:
    """Train an arm; return its mean fit per side, its quality and its share of unfinished answers."""
    import numpy as np

    train.train_adapter(run, "sft", arm)
    if method == "dpo":
        train.train_adapter(run, "dpo", arm)
    one = Run(
        set_field(run.profile, methods=["sft", method][: 1 + (method == "dpo")], train_personas=[arm]),
        run.dataset,
        run.seed,
    )
    specs = {spec_of(run, method, arm, side): side for side in SIDES}
    scores, unfinished = {}, []
    for spec, generator in policies.generators(one, [*specs]):
        tailor.generate_run(one, spec, generator)
        scores[specs[spec]] = oracle_scores(one, spec, spec.eval_persona)
        answers = tailor.read_generations(one, spec).values()
        unfinished += [answer.finish_reason != "stop" for answer in answers]
    qualities = np.array([row["quality"] for rows in scores.values() for row in rows])
    fits = {f"fit_{side}": float(np.mean([row["fit"] for row in rows])) for side, rows in scores.items()}
    return fits | {
        "quality": float(qualities.mean()),
        "quality_sd": float(qualities.std()),
        "unfinished": float(np.mean(unfinished)),
        "n": len(qualities),
    }


def candidate_key(run: Run, method: str, arm: str) -> str:
    """Hash of all that a candidate's scores depend on."""
    fields = [
        *train.SHARED_FIELDS,
        *train.METHOD_FIELDS["sft"],
        *(train.METHOD_FIELDS["dpo"] if method == "dpo" else ()),
    ]
    settings = {name: getattr(train.arm_settings(run, arm).profile, name) for name in fields}
    tailored = store.read_json(run.folder / "tailoring" / "done.json")["key"]
    return store.content_hash(method, arm, run.seed, settings, tailored)


def with_candidate(profile: Profile, arm: str, candidate: dict[str, Any]) -> Profile:
    """Return the profile with a candidate's settings, as those of the arm (``plain_*`` without personas)."""
    own = {
        name: f"plain_{name}" if arm == "none" and hasattr(profile, f"plain_{name}") else name
        for name in candidate
    }
    return set_field(profile, **{own[name]: value for name, value in candidate.items()})


def search(
    profile: Profile, method: str, path: Path, arms: Iterable[str] = ARMS, seeds: Iterable[int] = SEEDS
) -> list[dict[str, Any]]:
    """Measure every candidate of a method for both arms and seeds; finished ones are read from ``path``."""
    store.repair_rows(path)
    known = {row["key"]: row for row in store.iter_rows(path)} if path.exists() else {}
    rows = []
    for seed in seeds:
        for arm in arms:
            for candidate in CANDIDATES[method]:
                run = Run(with_candidate(profile, arm, candidate), profile.datasets[0], seed)
                key = candidate_key(run, method, arm)
                if key not in known:
                    started = time.perf_counter()
                    result = measure(run, method, arm)
                    seconds = round(time.perf_counter() - started, 1)
                    known[key] = {
                        "key": key,
                        "method": method,
                        "arm": arm,
                        "seed": seed,
                        **candidate,
                        **result,
                        "seconds": seconds,
                    }
                    store.append_rows(path, [known[key]])
                rows.append(known[key] | candidate)
                print(
                    {k: round(v, 4) if isinstance(v, float) else v for k, v in known[key].items()}, flush=True
                )
    return rows


def pool_seeds(rows: Iterable[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """Return one row per arm and candidate of a method, in the candidates' order, with means over the seeds.

    ``quality_sd`` is the standard deviation of single answers: the root of the mean variance within seeds.
    Candidates that not all of an arm's seeds have finished are left out.
    """
    pooled = []
    for arm in ARMS:
        of_arm = [row for row in rows if row["arm"] == arm]
        seeds = sorted({row["seed"] for row in of_arm})
        for candidate in CANDIDATES[method]:
            same = [row for row in of_arm if candidate.items() <= row.items()]
            if not same or sorted(row["seed"] for row in same) != seeds:
                continue
            names = ("fit_chosen", "fit_rejected", "quality", "unfinished")
            means = {name: sum(row[name] for row in same) / len(same) for name in names}
            spread = (sum(row["quality_sd"] ** 2 for row in same) / len(same)) ** 0.5
            pooled.append(
                {"method": method, "arm": arm, **candidate, **means, "quality_sd": spread}
                | {"n": sum(row["n"] for row in same), "seeds": " ".join(map(str, seeds))}
            )
    return pooled


def pick(pooled: Iterable[dict[str, Any]], reference_quality: float | None = None) -> dict[str, Any]:
    """Return the candidate that the rule picks among one arm's pooled rows.

    ``reference_quality`` is the mean quality of the plain arm's pick; None: the best candidate's own.
    """
    rows = list(pooled)
    ending = min(row["unfinished"] for row in rows) + UNFINISHED_MARGIN
    rows = [row for row in rows if row["unfinished"] <= ending]
    best = max(rows, key=lambda row: row["quality"])
    reference = best["quality"] if reference_quality is None else reference_quality
    allowed = [row for row in rows if row["quality"] >= reference - QUALITY_MARGIN * row["quality_sd"]]
    return max(allowed or [best], key=lambda row: row["fit_chosen"] + row["fit_rejected"])


def pick_both(pooled: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the picks of the arms that have rows: the plain arm by itself, PT at the plain arm's quality."""
    by_arm = {arm: [row for row in pooled if row["arm"] == arm] for arm in ARMS}
    picks: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        if by_arm[arm]:
            picks[arm] = pick(by_arm[arm], picks["none"]["quality"] if "none" in picks else None)
    return picks


def main() -> None:
    """Run the search and write its table."""
    import pandas as pd

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="everyday")
    parser.add_argument("--method", choices=("sft", "dpo"), action="append")
    parser.add_argument(
        "--arm", choices=ARMS, action="append", help="only this arm: two can run side by side"
    )
    parser.add_argument(
        "--seed", type=int, choices=SEEDS, action="append", help="only this seed: two can run side by side"
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    profile = tuning_profile(load_profile(arguments.profile, arguments.overrides))
    seeds = arguments.seed or SEEDS
    for seed in seeds:
        prepare(Run(profile, profile.datasets[0], seed))
    folder = figures_dir(profile)
    folder.mkdir(parents=True, exist_ok=True)
    for method in arguments.method or ("sft", "dpo"):
        path = folder / f"selection_{method}.jsonl"
        rows = search(profile, method, path, arguments.arm or ARMS, seeds)
        pooled = pool_seeds(rows, method)
        picks = pick_both(pooled)
        table = [row | {"picked": row in picks.values()} for row in pooled]
        pd.DataFrame(table).to_csv(path.with_suffix(".csv"), index=False)
        for arm, row in picks.items():
            print("picked", arm, row)


if __name__ == "__main__":
    main()
