"""What the results depend on: the two main arms again with one thing changed at a time.

``python -m persona_lib.axes`` trains plain DPO and PT-DPO under every change of ``AXES`` with the tuning
seeds and scores them on validation topics only, as ``selection`` does; the table goes to
``figures/<profile>/axes.csv``. Training settings are the profile's everywhere: a change is shown as it
comes, not tuned for. A change of the world needs a base model and data of its own, which lie in
``results/<profile>-<change>``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import store
from persona_lib.config import Run, figures_dir, load_profile, results_dir, set_field
from persona_lib.data.preference import WORLD_FIELDS
from persona_lib.evaluation import policies, tailor
from persona_lib.evaluation.judge import oracle_scores
from persona_lib.profiles import Profile
from persona_lib.reporting.results import interval_columns
from persona_lib.selection import ARMS, SEEDS, SIDES, candidate_key, prepare, spec_of, tuning_profile
from persona_lib.stats.bootstrap import Interval, bootstrap_mean, bootstrap_mean_difference
from persona_lib.training import train

if TYPE_CHECKING:
    import numpy as np

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# slug -> what is changed. LoRA whose rank is the hidden size can change every weight of the layers it is on:
# full fine-tuning of all but the embeddings and norms.
AXES: dict[str, dict[str, Any]] = {
    "as-is": {},
    "lora": {"quantization": "none"},
    "full-rank": {"quantization": "none", "lora_r": 128, "lora_alpha": 256, "lora_targets": ALL_LINEAR},
    "majority-0.5": {"majority_share": 0.5},
    "majority-0.8": {"majority_share": 0.8},
}


def axis_profile(profile: Profile, axis: str) -> Profile:
    """Return the tuning profile with one change; with a results folder of its own if the world changes."""
    changes = dict(AXES[axis])
    if set(changes) & set(WORLD_FIELDS):
        changes["name"] = f"{profile.name}-{axis}"
    return set_field(tuning_profile(profile), **changes)


def train_and_score(run: Run, arm: str) -> list[dict[str, Any]]:
    """Train one arm (SFT, then DPO), answer the validation rows, and return the oracle's scores of each."""
    for method in ("sft", "dpo"):
        train.train_adapter(run, method, arm)
    one = Run(set_field(run.profile, methods=["sft", "dpo"], train_personas=[arm]), run.dataset, run.seed)
    specs = {spec_of(run, "dpo", arm, side): side for side in SIDES}
    rows = []
    for spec, generator in policies.generators(one, [*specs]):
        tailor.generate_run(one, spec, generator)
        scores = oracle_scores(one, spec, spec.eval_persona)
        rows += [{"arm": arm, "side": specs[spec], **score} for score in scores]
    return rows


def run_axis(profile: Profile, axis: str, seed: int) -> Path:
    """Score both arms of an axis and seed, once; returns the file of their scores."""
    run = Run(axis_profile(profile, axis), profile.datasets[0], seed)
    prepare(run)
    folder = scores_folder(profile, axis, seed)
    key = store.content_hash(*(candidate_key(run, "dpo", arm) for arm in ARMS))
    if not store.is_done(folder, key):
        store.write_rows(folder / "scores.jsonl", [row for arm in ARMS for row in train_and_score(run, arm)])
        store.mark_done(folder, key)
    return folder / "scores.jsonl"


def scores_folder(profile: Profile, axis: str, seed: int) -> Path:
    """Return where the scores of an axis and seed are."""
    return results_dir(profile) / "axes" / axis / f"seed-{seed}"


def mean_of_sides(rows: list[dict[str, Any]], arm: str, score: str) -> np.ndarray:
    """Return a score per validation row, the mean over the personas of both sides; rows in order of id.

    Rows that lack a side are left out (nobody could be inferred for it).
    """
    import numpy as np

    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["arm"] == arm:
            found.setdefault(row["id"], {})[row["side"]] = row[score]
    return np.array([sum(v.values()) / len(SIDES) for _, v in sorted(found.items()) if len(v) == len(SIDES)])


def axis_row(profile: Profile, axis: str) -> dict[str, Any] | None:
    """Return the table's row of an axis, over the seeds that have been run; None if none has."""
    seeds = [seed for seed in SEEDS if (scores_folder(profile, axis, seed) / "done.json").exists()]
    if not seeds:
        return None
    files = [list(store.iter_rows(scores_folder(profile, axis, seed) / "scores.jsonl")) for seed in seeds]
    scores = {(arm, score): [mean_of_sides(rows, arm, score) for rows in files]
              for arm in ARMS for score in ("fit", "quality")}  # fmt: skip
    samples = profile.bootstrap_samples
    intervals: dict[str, Interval] = {
        "fit_plain": bootstrap_mean(scores["none", "fit"], samples),
        "fit_tailored": bootstrap_mean(scores["chosen", "fit"], samples),
        "fit_gain": bootstrap_mean_difference(scores["chosen", "fit"], scores["none", "fit"], samples),
        "quality_gain_sd": bootstrap_mean_difference(
            scores["chosen", "quality"], scores["none", "quality"], samples, standardized=True
        ),
    }
    columns = {
        k: v for name, interval in intervals.items() for k, v in interval_columns(name, interval).items()
    }
    return {"axis": axis, **columns, "n": intervals["fit_gain"].n_items, "seeds": " ".join(map(str, seeds))}


def write_table(profile: Profile) -> Path:
    """Write ``figures/<profile>/axes.csv`` from the scores that are there."""
    import pandas as pd

    rows = [row for axis in AXES if (row := axis_row(profile, axis))]
    path = figures_dir(profile) / "axes.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def main() -> None:
    """Run the axes asked for (all, if none is named) and write the table of what has been run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="synthetic")
    parser.add_argument("--axis", choices=AXES, action="append", help="only this one (may be repeated)")
    parser.add_argument("--seed", type=int, choices=SEEDS, action="append", help="only this seed")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    profile = load_profile(arguments.profile, arguments.overrides)
    for seed in arguments.seed or SEEDS:
        for axis in arguments.axis or AXES:
            print(run_axis(profile, axis, seed), flush=True)
    print(write_table(profile))


if __name__ == "__main__":
    main()
