"""What the results depend on: the two main arms again with one thing changed at a time.

``python -m persona_lib.axes`` trains plain DPO and PT-DPO under every change of ``AXES`` with the tuning
seeds and scores them on validation topics only, as ``selection`` does; ``python -m persona_lib.axes faults``
does the same for the faults of the authors' code (``FAULTS``; those of its counting need no training, see
``persona_lib.tables.changes``). The tables go to ``figures/<profile>/axes.csv`` and ``faults.csv``.
Training settings are the profile's everywhere: a change is shown as it comes, not tuned for. A change of the
world needs a base model and data of its own, which lie in ``results/<profile>-<change>``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.config import Run, figures_dir, load_profile, results_dir, set_field
from persona_lib.data.preference import WORLD_FIELDS
from persona_lib.evaluation import policies, swap, tailor
from persona_lib.evaluation.judge import oracle_scores
from persona_lib.profiles import Profile
from persona_lib.selection import SEEDS, SIDES, candidate_key, prepare, spec_of, tuning_profile
from persona_lib.tables import changes
from persona_lib.tables.fault_list import NOT_MEASURED, WHAT
from persona_lib.training import train

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
# The faults of the authors' code that a setting repeats, one that TRL brings today (bfloat16), and a
# control that they lack. In this order adapters are used again where a change leaves them as they are.
FAULTS: dict[str, dict[str, Any]] = {
    "as-is": {},
    "baseline-verb": {"first_person_wording": "released"},
    "ten-tokens": {"gen_min_new_tokens": 10},
    "shuffled": {"train_personas": ["none", "shuffled"]},
    "dpo-tokens": {"dpo_tokenization": "released"},
    "sft-loss": {"completion_only_loss": False},
    "all-of-these": {
        "first_person_wording": "released",
        "gen_min_new_tokens": 10,
        "dpo_tokenization": "released",
        "completion_only_loss": False,
    },
    "bfloat16": {"adapter_dtype": "bfloat16"},
}
TABLES = {"axes": AXES, "faults": FAULTS}
CHANGES = AXES | FAULTS


def axis_profile(profile: Profile, axis: str) -> Profile:
    """Return the tuning profile with one change; with a results folder of its own if the world changes."""
    changed = dict(CHANGES[axis])
    if set(changed) & set(WORLD_FIELDS):
        changed["name"] = f"{profile.name}-{axis}"
    return set_field(tuning_profile(profile), **changed)


def train_and_score(run: Run, arm: str) -> list[dict[str, Any]]:
    """Train one arm (SFT, then DPO), answer the validation rows, and return every row's scores by side.

    fit, quality: the oracle's, of the answer under the side's gold persona. margin: log-probability of the
    chosen response minus that of the rejected one, under the same prompt.
    """
    for method in ("sft", "dpo"):
        train.train_adapter(run, method, arm)
    one = Run(set_field(run.profile, methods=["sft", "dpo"], train_personas=[arm]), run.dataset, run.seed)
    specs = {spec_of(run, "dpo", arm, side): side for side in SIDES}
    for spec, generator in policies.generators(one, [*specs]):
        tailor.generate_run(one, spec, generator)
    form = next(iter(specs)).persona_format
    margins = {
        (s.id, s.eval_persona): s.chosen - s.rejected for s in swap.score_policy(one, f"dpo-{arm}", form)
    }
    return [row for spec, side in specs.items() for row in scored(one, spec, side, margins)]


def scored(run: Run, spec: Any, side: str, margins: dict[tuple[str, str], float]) -> list[dict[str, Any]]:
    """Return the scores of one run's answers, with the texts that the authors' counting goes by."""
    answers = tailor.read_generations(run, spec)
    return [
        {
            "arm": spec.train_persona,
            "side": side,
            **score,
            "margin": margins[score["id"], spec.eval_persona],
            "prompt": answers[score["id"]].prompt,
            "persona": answers[score["id"]].persona,
        }
        for score in oracle_scores(run, spec, spec.eval_persona)
    ]


def run_axis(profile: Profile, axis: str, seed: int) -> Path:
    """Score both arms of a change and seed, once; returns the file of their scores."""
    run = Run(axis_profile(profile, axis), profile.datasets[0], seed)
    prepare(run)
    folder, arms = scores_folder(profile, axis, seed), run.profile.train_personas
    key = store.content_hash(CHANGES[axis], *(candidate_key(run, "dpo", arm) for arm in arms))
    if not store.is_done(folder, key):
        store.write_rows(folder / "scores.jsonl", [row for arm in arms for row in train_and_score(run, arm)])
        store.mark_done(folder, key)
    return folder / "scores.jsonl"


def scores_folder(profile: Profile, axis: str, seed: int) -> Path:
    """Return where the scores of a change and seed are."""
    return results_dir(profile) / "axes" / axis / f"seed-{seed}"


def read_scores(profile: Profile, axis: str) -> dict[int, list[dict[str, Any]]]:
    """Return the scores of a change by seed, of the seeds that have been run."""
    folders = {seed: scores_folder(profile, axis, seed) for seed in SEEDS}
    return {
        seed: list(store.iter_rows(folder / "scores.jsonl"))
        for seed, folder in folders.items()
        if (folder / "done.json").exists()
    }


def write_table(profile: Profile, table: str) -> Path:
    """Write ``figures/<profile>/<table>.csv`` from the scores that are there: a row per change and seed.

    The seeds stand apart, each with its interval over prompts: two say too little of seeds to be pooled.
    """
    import pandas as pd

    clean, samples = read_scores(profile, "as-is"), profile.bootstrap_samples
    rows = {
        axis: [
            changes.change_row(axis, changed, {seed: scores}, {seed: clean[seed]}, samples)
            for seed, scores in read_scores(profile, axis).items()
            if seed in clean
        ]
        for axis, changed in TABLES[table].items()
    }
    lines = [row for found in rows.values() for row in found]
    if table == "faults":
        counted = [changes.counting_rows({seed: scores}, samples) for seed, scores in clean.items()]
        lines = with_words([*lines, *(row for pair in zip(*counted, strict=True) for row in pair)])
        lines += without_numbers([axis for axis, found in rows.items() if not found])
    path = figures_dir(profile) / f"{table}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(lines).to_csv(path, index=False, float_format="%.6g")
    return path


def with_words(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of faults with what each is."""
    return [{"what": WHAT[row["change"]], **row} for row in rows]


def without_numbers(missing: list[str]) -> list[dict[str, Any]]:
    """Return a row for every fault that was not run and for what cannot be measured here, with the reason."""
    rows = [{"what": WHAT[axis], "setting": f"not run: {changes.text_of(FAULTS[axis])}"} for axis in missing]
    return rows + [{"what": what, "setting": f"not measured: {why}"} for what, why in NOT_MEASURED.items()]


def main() -> None:
    """Run the changes asked for (all of the table, if none is named) and write the table of what was run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", nargs="?", choices=TABLES, default="axes")
    parser.add_argument("--profile", default="synthetic")
    parser.add_argument("--axis", choices=CHANGES, action="append", help="only this change (may be repeated)")
    parser.add_argument("--seed", type=int, choices=SEEDS, action="append", help="only this seed")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--write-only", action="store_true", help="only write the table of what has been run")
    arguments = parser.parse_args()
    profile = load_profile(arguments.profile, arguments.overrides)
    for seed in [] if arguments.write_only else arguments.seed or SEEDS:
        for axis in arguments.axis or TABLES[arguments.table]:
            print(run_axis(profile, axis, seed), flush=True)
    print(write_table(profile, arguments.table))


if __name__ == "__main__":
    main()
