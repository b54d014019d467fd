"""Read the judged comparisons of all seeds of a profile and pool them for paired intervals.

Intervals are bootstraps over prompts, or over seeds where there are several, one draw per data set for
all rows (``persona_lib.stats.pooled``). The tables made from this are in ``results``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_lib.config import Run
from persona_lib.evaluation.judge import judged_matchups, judgment_folder, oracle_scores, read_verdicts
from persona_lib.evaluation.matchups import Matchup
from persona_lib.evaluation.tailor import generation_folder
from persona_lib.profiles import Profile
from persona_lib.records import RunSpec
from persona_lib.stats.metrics import WinRate
from persona_lib.stats.pooled import Pool, make_pool, mean_columns, net_columns
from persona_lib.store import iter_rows

RUBRICS = {"p": "personalization", "q": "quality"}


def runs_of(profile: Profile, dataset: str) -> list[Run]:
    """Return the runs of one data set, one per seed."""
    return [Run(profile, dataset, seed) for seed in profile.seeds]


@functools.cache
def same_items(runs: tuple[Run, ...]) -> bool:
    """Return True if all seeds are evaluated on the same questions, False if each has its own.

    In ``everyday`` a seed draws which response of a pair was chosen; the questions are the same.
    """
    seen = set()
    for run in runs:
        path = run.folder / "tailoring" / f"{run.profile.eval_split}.jsonl"
        if path.exists():
            rows = [(row["id"], row["prompt"]) for row in iter_rows(path)]
            seen.add(tuple(sorted(rows)))
    return len(seen) == 1 and len(runs) > 1


@dataclass(frozen=True)
class Judged:
    """One row over seeds: a matchup, and per run its verdicts {id: verdict} by rubric (empty: not judged)."""

    matchup: Matchup
    runs: tuple[Run, ...]
    verdicts: dict[str, list[dict[str, str]]]
    role: str = "judge"

    @property
    def slug(self) -> str:
        """Name of the row's columns in a pool."""
        return self.matchup.slug

    @property
    def seeds(self) -> list[int]:
        """Seeds that have verdicts."""
        return [r.seed for r, found in zip(self.runs, self.verdicts["quality"], strict=True) if found]

    def counts(self, rubric: str) -> WinRate:
        """Return the verdicts of all seeds, counted."""
        return WinRate.from_verdicts(v for by_id in self.verdicts[rubric] for v in by_id.values())


def read_judged(runs: Sequence[Run], role: str = "judge") -> list[Judged]:
    """Read the verdicts of every matchup that at least one seed has judged."""
    judged = []
    for matchup in judged_matchups(runs[0], role):
        rows = [
            read_verdicts(run, matchup, role)
            if (judgment_folder(run, matchup, role) / "done.json").exists()
            else []
            for run in runs
        ]
        if any(rows):
            verdicts = {
                rubric: [{row["id"]: row[rubric] for row in found} for found in rows]
                for rubric in RUBRICS.values()
            }
            judged.append(Judged(matchup, tuple(runs), verdicts, role))
    return judged


@dataclass(frozen=True)
class Judgments:
    """All judged rows of one data set, with the pool that their intervals come from."""

    dataset: str
    rows: list[Judged]
    pool: Pool


# --- quality on the oracle's own scale ---


@functools.cache
def answer_scores(run: Run, spec: RunSpec, persona: str) -> dict[str, dict[str, float]]:
    """Return the oracle's fit and quality of a run's answers by row id; {} where it has no answers."""
    if run.profile.judge != "oracle" or not (generation_folder(run, spec) / "done.json").exists():
        return {}
    return {score["id"]: score for score in oracle_scores(run, spec, persona)}


def quality_differences(row: Judged) -> list[dict[str, float]]:
    """Return, per seed, quality of the tested answer minus the base's, in standard deviations of the base's.

    The unit is pooled over seeds; without oracle scores, or if all base scores are equal, there are none.
    """
    m = row.matchup
    pairs = [
        [answer_scores(run, spec, m.judge_persona) if found else {} for spec in (m.test, m.base)]
        for run, found in zip(row.runs, row.verdicts["quality"], strict=True)
    ]
    base = [score["quality"] for _, scores in pairs for score in scores.values()]
    unit = float(np.std(base, ddof=1)) if len(base) > 1 else 0.0
    if unit == 0:
        return [{} for _ in pairs]
    return [{i: (test[i]["quality"] - b["quality"]) / unit for i, b in base_scores.items() if i in test}
            for test, base_scores in pairs]  # fmt: skip


def pool_of(rows: Sequence[Judged], seed: int) -> Pool:
    """Put all rows of a data set into one pool."""
    columns: dict[str, Any] = {}
    for row in rows:
        for short, rubric in RUBRICS.items():
            columns |= net_columns(f"{row.slug}/{short}", row.verdicts[rubric])
        columns |= mean_columns(f"{row.slug}/dq", quality_differences(row))
    runs = rows[0].runs
    return make_pool(columns, runs[0].profile.bootstrap_samples, seed, same_items(runs))


@functools.lru_cache(maxsize=4)
def read_judgments(profile: Profile, role: str = "judge") -> tuple[Judgments, ...]:
    """Read and resample all that a judge has judged; the bootstrap seed is the data set's number, from 0."""
    found = []
    for seed, dataset in enumerate(profile.datasets):
        rows = read_judged(runs_of(profile, dataset), role)
        if rows:
            found.append(Judgments(dataset, rows, pool_of(rows, seed)))
    return tuple(found)


def forget_judged() -> None:
    """Drop what was read before, so that files written since are seen."""
    for cached in (read_judgments, answer_scores, same_items):
        cached.cache_clear()
