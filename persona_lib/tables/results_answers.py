"""Judge-free tables of answers: leakage, format noise, length steering, accuracy under personas by category.

For any run (over its seeds) and, where they are at hand, for the authors' released answers. Shares have
Wilson intervals for one seed and bootstraps over seeds and rows else; the definitions are those of ``stats``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.config import Run
from persona_lib.evaluation.judged import runs_of
from persona_lib.evaluation.reward_view import REWARD_FAMILIES, categories
from persona_lib.evaluation.swap import swap_arms
from persona_lib.evaluation.swap_tables import FAMILIES, MEASURES, SINGLE, swap_values
from persona_lib.evaluation.tailor import eval_rows, generation_folder, grid, read_generations
from persona_lib.profiles import Profile
from persona_lib.records import RunSpec
from persona_lib.stats.bootstrap import bootstrap_mean, interval_columns
from persona_lib.stats.text_metrics import (
    length_steering,
    length_steering_interval,
    n_words,
)
from persona_lib.tables.answer_noise_tables import Answer, Answers, Kinds, noise_table
from persona_lib.tables.results_swap import finished_scores

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
SIDES = ("chosen", "rejected")


# --- whose answers ---


def run_answers(runs: Sequence[Run]) -> Kinds:
    """Return the finished answers of every cell of the grid, one dict per seed (empty where not finished)."""
    found: Kinds = {}
    for spec in grid(runs[0]):
        by_seed = [answers_of(run, spec) for run in runs]
        if any(by_seed):
            found[spec.arm, spec.eval_persona, spec.persona_format] = by_seed
    return found


def answers_of(run: Run, spec: RunSpec) -> Answers:
    """Return one run's answers to a cell of the grid; {} if they are not finished."""
    own = RunSpec(
        run.dataset, spec.method, spec.train_persona, spec.eval_persona, run.seed, spec.persona_format
    )
    if not (generation_folder(run, own) / "done.json").exists():
        return {}
    return {
        i: Answer(g.prompt, g.persona, g.completion, g.finish_reason == "stop")
        for i, g in read_generations(run, own).items()
    }


# --- length ---


def steering_table(dataset: str, runs: Sequence[Run], kinds: Kinds, n_resamples: int) -> pd.DataFrame:
    """Return Spearman's rho of response against answer length differences, by policy and kind of persona.

    Seeds are pooled as rows (real data: the same rows in every seed).
    """
    import pandas as pd

    data = [{row.id: row for row in eval_rows(run) if row.chosen and row.rejected} for run in runs]
    lines = []
    for arm, style in dict.fromkeys((arm, style) for arm, _, style in kinds):
        for family in FAMILIES:
            sides = [kinds.get((arm, f"{family}-{side}", style)) for side in SIDES]
            if None in sides:
                continue
            wanted, got, seeds = [], [], 0
            for rows, chosen, rejected in zip(data, *sides, strict=True):
                ids = sorted(rows.keys() & chosen.keys() & rejected.keys())
                wanted += [n_words(rows[i].chosen) - n_words(rows[i].rejected) for i in ids]
                got += [n_words(chosen[i].text) - n_words(rejected[i].text) for i in ids]
                seeds += bool(ids)
            if wanted:
                low, high = length_steering_interval(wanted, got, n_resamples) or (None, None)
                lines.append({"dataset": dataset, "arm": arm, "persona_format": style, "persona": family,
                              "n": len(wanted), "n_seeds": seeds, "rho": length_steering(wanted, got),
                              "rho_low": low, "rho_high": high})  # fmt: skip
    return pd.DataFrame(lines)


# --- as a reward model ---


def reward_table(dataset: str, runs: Sequence[Run], n_resamples: int) -> pd.DataFrame:
    """Return how often a policy, as a reward model, prefers the response that its persona's user prefers.

    RewardBench's accuracy, asked of both users: ``accuracy`` is the mean of "chosen wins under P_C" and
    "rejected wins under P_R"; without a persona, or under the system's, the chosen one should win. By
    category, where rows have one.
    """
    import pandas as pd

    named = [categories(run) for run in runs]
    every = sorted({name for by_id in named for names in by_id.values() for name in names})
    lines = []
    for part in swap_arms(runs[0]):
        by_seed = [finished_scores(run, part) for run in runs]
        for category in ("all", *every):
            scores = [
                [s for s in seed if category == "all" or category in by_id.get(s.id, ())]
                for seed, by_id in zip(by_seed, named, strict=True)
            ]
            for measure in MEASURES:
                for family in REWARD_FAMILIES:
                    values = [swap_values(seed, family, measure) for seed in scores]
                    names = {"dataset": dataset, "arm": part[0], "persona_format": part[1],
                             "measure": measure, "persona": family, "category": category}  # fmt: skip
                    if any(len(v["flip"]) for v in values):
                        lines.append(names | reward_columns(values, family, n_resamples))
    return pd.DataFrame(lines)


def reward_columns(values: Sequence[dict[str, np.ndarray]], family: str, n_resamples: int) -> Row:
    """Return n and the accuracies with intervals; both users count, unless the persona has no sides."""
    values = [v for v in values if len(v["flip"])]
    chosen, rejected = ([v[name] for v in values] for name in ("acc_chosen", "acc_rejected"))
    both = [(a + b) / 2 for a, b in zip(chosen, rejected, strict=True)] if family not in SINGLE else chosen
    line: Row = {"n": sum(map(len, chosen)), "n_seeds": len(values)}
    columns = {"accuracy": both, "acc_chosen": chosen}
    columns |= {"acc_rejected": rejected} if family not in SINGLE else {}
    for name, arrays in columns.items():
        shared = len({len(a) for a in arrays}) == 1 and len(arrays) > 1
        line |= interval_columns(name, bootstrap_mean(arrays, n_resamples, shared_items=shared))
    return line


# --- tables by file name ---


def noise_of(dataset: str, runs: Sequence[Run], n_resamples: int) -> pd.DataFrame:
    """Return ``noise_table`` of some runs."""
    return noise_table(dataset, run_answers(runs), n_resamples)


def steering_of(dataset: str, runs: Sequence[Run], n_resamples: int) -> pd.DataFrame:
    """Return ``steering_table`` of some runs."""
    return steering_table(dataset, runs, run_answers(runs), n_resamples)


MAKERS = {"answer_noise": noise_of, "length_steering": steering_of, "reward_accuracy": reward_table}


def answer_tables(run: Run) -> dict[str, pd.DataFrame]:
    """Return the tables of one run, by file name."""
    return {name: make(run.dataset, [run], run.profile.bootstrap_samples) for name, make in MAKERS.items()}


def pooled(profile: Profile, name: str) -> pd.DataFrame:
    """Return one table over the seeds of every data set that has rows."""
    import pandas as pd

    parts = []
    for dataset in profile.datasets:
        split = f"{profile.eval_split}.jsonl"
        runs = [r for r in runs_of(profile, dataset) if (r.folder / "tailoring" / split).exists()]
        parts += [MAKERS[name](dataset, runs, profile.bootstrap_samples)] if runs else []
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


ANSWER_TABLES = {name: partial(pooled, name=name) for name in MAKERS}
