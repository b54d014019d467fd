"""Judging in both orders (paper section 5), the judged comparisons of all seeds, agreement of two judges.

Every comparison is judged as A/B and as B/A, both judgments are stored, and a win needs both. An answer
that cannot be read stays unparsed. A profile may name a second judge; its judgments have a folder of their
own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib import store
from persona_lib.data import everyday
from persona_lib.data.reader import fit, quality
from persona_lib.intervals import (
    WinRate,
    bootstrap,
    interval_columns,
    make_pool,
    ratio,
    signs,
    table_of,
    verdict_of,
)
from persona_lib.models.served import role_key
from persona_lib.paper.answers import Matchup, eval_rows, generation_folder, matchups, read_generations
from persona_lib.paper.judges import Judge, backwards_key, load_judge, model_judge
from persona_lib.records import Judgment, PairwiseComparison, Rubric, RunSpec, Verdict
from persona_lib.settings import Profile, Run, judge_settings

if TYPE_CHECKING:
    import pandas as pd


RUBRICS: tuple[Rubric, ...] = ("personalization", "quality")
RUBRIC_NAMES = {rubric[0]: rubric for rubric in RUBRICS}  # "p" and "q" begin the columns of tables
ORDERS = ("AB", "BA")  # the tested response as A, as B
CHUNK = 256  # comparisons judged between two writes
FOLDERS = {"judge": "judgments", "second_judge": "second_judgments"}


def judge_both(
    judge: Judge, comparisons: Sequence[PairwiseComparison], rubric: Rubric
) -> list[tuple[Judgment, Judgment]]:
    """Judge every comparison in both orders: (tested response as A, tested response as B)."""
    swapped = [replace(c, response_a=c.response_b, response_b=c.response_a) for c in comparisons]
    return list(zip(judge(comparisons, rubric), judge(swapped, rubric), strict=True))


def read_orders(path: Path) -> dict[str, dict[str, Judgment]]:
    """Read a file of judgments: id -> order -> judgment; {} without the file."""
    known: dict[str, dict[str, Judgment]] = {}
    for row in store.iter_rows(path) if path.exists() else ():
        order = row.pop("order")
        known.setdefault(row["id"], {})[order] = Judgment(**row)
    return known


def judge_rubric(
    judge: Judge, comparisons: Sequence[PairwiseComparison], rubric: Rubric, path: Path
) -> list[tuple[Judgment, Judgment]]:
    """Return the judgments (A/B, B/A) of all comparisons; those in the file already are not made again.

    Judgments are appended a chunk at a time; a rerun goes on after the last whole pair of orders.
    """
    store.repair_rows(path)
    known = read_orders(path)
    missing = [c for c in comparisons if len(known.get(c.id, {})) < 2]
    for start in range(0, len(missing), CHUNK):
        pairs = judge_both(judge, missing[start : start + CHUNK], rubric)
        known |= {pair[0].id: dict(zip(ORDERS, pair, strict=True)) for pair in pairs}
        rows = [{"order": o, **vars(j)} for pair in pairs for o, j in zip(ORDERS, pair, strict=True)]
        store.append_rows(path, rows)
    return [(known[c.id]["AB"], known[c.id]["BA"]) for c in comparisons]


def judge_comparisons(
    judge: Judge, comparisons: Callable[[], list[PairwiseComparison]], folder: Path, key: str, what: Any
) -> Path:
    """Judge comparisons under both rubrics and orders into a folder, unless it was finished for this key.

    Writes <rubric>.jsonl, verdicts.jsonl (a row per comparison: id and verdict by rubric) and done.json.
    """
    if store.is_done(folder, key):
        return folder
    store.clear_unless(folder, key)
    store.write_json(folder / "spec.json", what)
    found = comparisons()
    judged = {r: judge_rubric(judge, found, r, folder / f"{r}.jsonl") for r in RUBRICS}
    verdicts = {r: [verdict_of(*pair) for pair in pairs] for r, pairs in judged.items()}
    rows = [{"id": c.id} | {r: verdicts[r][n] for r in RUBRICS} for n, c in enumerate(found)]
    store.write_rows(folder / "verdicts.jsonl", rows)
    names = sorted({pair[0].judge for pairs in judged.values() for pair in pairs})
    store.mark_done(folder, key, n=len(rows), judge=names)
    return folder


def compare(run: Run, matchup: Matchup) -> list[PairwiseComparison]:
    """Return the comparisons of a matchup: rows that both runs answered and that have the judged persona."""
    tested, base = read_generations(run, matchup.test), read_generations(run, matchup.base)
    return [
        PairwiseComparison(row.id, row.prompt, persona, tested[row.id].completion, base[row.id].completion)
        for row in eval_rows(run)
        if row.id in tested and row.id in base and (persona := row.personas.get(matchup.judge_persona))
    ]


def judgment_folder(run: Run, matchup: Matchup, role: str = "judge") -> Path:
    """Folder of a matchup's judgments by the first or the second judge."""
    return run.folder / FOLDERS[role] / matchup.slug


def judgment_key(run: Run, matchup: Matchup, role: str = "judge") -> str:
    """Hash of all that a matchup's judgments depend on."""
    folders = [generation_folder(run, spec) for spec in (matchup.test, matchup.base)]
    done = [store.read_json(folder / "done.json")["key"] for folder in folders]
    return store.content_hash(store.VERSIONS["judging"], matchup, done, judge_key(run, role))


def judge_key(run: Run, role: str = "judge") -> list[Any]:
    """Return all that decides what a judge says of given texts."""
    profile, name = run.profile, run.profile.evaluation.judge
    if role == "judge" and name != "lm":
        return [name, backwards_key(run)] if name == "backwards" else [name]
    how = profile.base.dtype, profile.generation.engine
    return [*judge_settings(profile, role), *how, role_key(run, role)]


def judged_matchups(run: Run, role: str = "judge") -> list[Matchup]:
    """Return the matchups that a judge is asked about: the second only about the main comparisons."""
    return [m for m in matchups(run) if role == "judge" or m.kind == "main"]


def judge_all(run: Run, role: str = "judge") -> list[Path]:
    """Let a judge judge all its matchups that are not finished yet; returns their folders.

    Without a second judge nothing is judged in that role. Raises ConfigError for judge=none.
    """
    if role == "second_judge" and not run.profile.second_judge.model:
        return []
    judge = load_judge(run) if role == "judge" else model_judge(run, role)
    folders = []
    for m in judged_matchups(run, role):
        folder, key = judgment_folder(run, m, role), judgment_key(run, m, role)
        folders.append(judge_comparisons(judge, functools.partial(compare, run, m), folder, key, m))
    return folders


def read_verdicts(run: Run, matchup: Matchup, role: str = "judge") -> list[dict[str, str]]:
    """Return a matchup's verdicts: rows {"id", "personalization", "quality"}; none if it was not judged."""
    folder = judgment_folder(run, matchup, role)
    return list(store.iter_rows(folder / "verdicts.jsonl")) if (folder / "done.json").exists() else []


@functools.cache
def oracle_scores(run: Run, spec: RunSpec, judge_persona: str) -> list[dict[str, Any]]:
    """Return the oracle's scores of a run's answers: fit to a persona, and quality; [] without answers."""
    if not (generation_folder(run, spec) / "done.json").exists():
        return []
    wishes, answers = everyday.wishes(), read_generations(run, spec)
    found = []
    for row in eval_rows(run):
        persona = row.personas.get(judge_persona)
        if persona and row.id in answers:
            text = answers[row.id].completion
            scores = {"fit": fit(wishes.get(persona, ()), text), "quality": quality(row.prompt, text)}
            found.append({"id": row.id, **scores})
    return found


# --- The judged comparisons of all seeds, pooled for paired intervals: one draw per data set for all rows ---


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
        path = run.folder / "tailoring" / f"{run.profile.evaluation.split}.jsonl"
        if path.exists():
            seen.add(tuple(sorted((row["id"], row["prompt"]) for row in store.iter_rows(path))))
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


@dataclass(frozen=True)
class Judgments:
    """All judged rows of one data set, with the pool that their intervals come from."""

    dataset: str
    rows: list[Judged]
    pool: dict[str, np.ndarray]


def quality_differences(row: Judged) -> list[dict[str, float]]:
    """Return, per seed, quality of the tested answer minus the base's, in standard deviations of the base's.

    The unit is pooled over seeds; without oracle scores, or if all base scores are equal, there are none.
    """
    m, oracle = row.matchup, row.runs[0].profile.evaluation.judge == "oracle"
    scores = []
    for run, found in zip(row.runs, row.verdicts["quality"], strict=True):
        both = [
            oracle_scores(run, spec, m.judge_persona) if found and oracle else [] for spec in (m.test, m.base)
        ]
        scores.append([{score["id"]: score["quality"] for score in one} for one in both])
    base = [quality for _, of_base in scores for quality in of_base.values()]
    unit = float(np.std(base, ddof=1)) if len(base) > 1 else 0.0
    return [
        {i: (test[i] - b) / unit for i, b in of_base.items() if unit and i in test}
        for test, of_base in scores
    ]


def pool_of(rows: Sequence[Judged], seed: int) -> dict[str, np.ndarray]:
    """Put all rows of a data set into one pool."""
    columns: dict[str, Any] = {}
    for row in rows:
        for short, rubric in RUBRIC_NAMES.items():
            columns[f"{row.slug}/{short}"] = signs(row.verdicts[rubric])
        columns[f"{row.slug}/dq"] = quality_differences(row)
    runs = rows[0].runs
    return make_pool(columns, runs[0].profile.evaluation.bootstrap_samples, seed, same_items(runs))


@functools.lru_cache(maxsize=4)
def read_judgments(profile: Profile, role: str = "judge") -> tuple[Judgments, ...]:
    """Read and resample all that a judge has judged; the bootstrap seed is the data set's number, from 0."""
    found = []
    for seed, dataset in enumerate(profile.datasets):
        runs, rows = tuple(runs_of(profile, dataset)), []
        for matchup in judged_matchups(runs[0], role):
            by_run = [read_verdicts(run, matchup, role) for run in runs]
            verdicts = {r: [{row["id"]: row[r] for row in part} for part in by_run] for r in RUBRICS}
            rows += [Judged(matchup, runs, verdicts, role)] * any(map(bool, by_run))
        if rows:
            found.append(Judgments(dataset, rows, pool_of(rows, seed)))
    return tuple(found)


def forget_judged() -> None:
    """Clear the caches, so that new files are read."""
    for cached in (read_judgments, oracle_scores, same_items):
        cached.cache_clear()


# --- How far two judges agree: raw agreement and Cohen's kappa of verdicts (both orders seen) ---


VERDICTS = ("win", "tie", "loss")
Triple = tuple[str, Verdict, Verdict]  # prompt id, what the first judge says, what the second says


def verdict_pairs(first: Mapping[str, Verdict], second: Mapping[str, Verdict]) -> list[Triple]:
    """Return the verdicts, given by id, of two judges on what both have judged."""
    return [(name, verdict, second[name]) for name, verdict in first.items() if name in second]


def count_cells(verdicts: Iterable[Triple]) -> np.ndarray:
    """Count verdict pairs per prompt, which is drawn as a whole: (prompts, 9), a 3 x 3 table row by row."""
    counts: dict[str, np.ndarray] = {}
    for name, first, second in verdicts:
        row = counts.setdefault(name, np.zeros(9))
        if "unparsed" not in (first, second):
            row[3 * VERDICTS.index(first) + VERDICTS.index(second)] += 1
    return np.stack(list(counts.values()))


def same_share(sums: np.ndarray) -> np.ndarray:
    """Return the share of equal verdicts of (n, 9) counts."""
    return ratio(sums[:, [0, 4, 8]].sum(axis=1), sums.sum(axis=1))


def kappa_of(sums: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa of (n, 9) counts: (p_o - p_e) / (1 - p_e); NaN where chance alone would agree."""
    table = sums.reshape(-1, 3, 3)
    by_chance = (table.sum(axis=2) * table.sum(axis=1)).sum(axis=1)
    expected = ratio(by_chance, sums.sum(axis=1) ** 2)
    return ratio(same_share(sums) - expected, 1 - expected)


def agreement_row(by_seed: Sequence[Sequence[Triple]], n_resamples: int) -> dict[str, Any]:
    """Return counts, agreement and kappa with 95 % bootstrap intervals; unparsed pairs are only counted."""
    first, second = (sum(row[place] == "unparsed" for part in by_seed for row in part) for place in (1, 2))
    blocks = [count_cells(part) for part in by_seed if part]
    return {
        "n": int(sum(block.sum() for block in blocks)), "n_seeds": len(blocks),
        "first_unparsed": first, "second_unparsed": second,
        **interval_columns("agreement", bootstrap(blocks, same_share, n_resamples, limits=(0, 1))),
        **interval_columns("kappa", bootstrap(blocks, kappa_of, n_resamples, limits=(-1, 1))),
    }  # fmt: skip


def judge_name(profile: Profile, role: str) -> str:
    """Return the name of a judge: its model's, or that of the rule."""
    name = profile.evaluation.judge
    return getattr(profile, role).model if role == "second_judge" or name == "lm" else name


def agreement_table(profile: Profile) -> pd.DataFrame:
    """Return a line per data set and rubric over all seeds; empty where nothing has two judgments."""
    lines = []
    names = {"first": judge_name(profile, "judge"), "second": judge_name(profile, "second_judge")}
    first = {(j.dataset, row.matchup): row.verdicts for j in read_judgments(profile) for row in j.rows}
    for judgments in read_judgments(profile, "second_judge") if profile.second_judge.model else ():
        for rubric in RUBRICS:
            by_seed: list[list[Triple]] = [[] for _ in profile.seeds]
            for row in judgments.rows:
                one = first.get((judgments.dataset, row.matchup), {}).get(rubric, ())
                for triples, *both in zip(by_seed, one, row.verdicts[rubric], strict=False):
                    triples += verdict_pairs(*both)
            if any(by_seed):
                line = agreement_row(by_seed, profile.evaluation.bootstrap_samples)
                lines.append({"dataset": judgments.dataset, "rubric": rubric, **names, **line})
    return table_of(lines)
