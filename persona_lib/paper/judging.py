"""Judging in both orders (paper section 5), the judged comparisons of all seeds, agreement of two judges.

Every comparison is judged as A/B and as B/A, both judgments are stored, and a win needs both. An answer
that cannot be read stays unparsed. The judgments of a profile's second judge have their own folder.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persona_lib import intervals, store
from persona_lib.data.everyday import quality
from persona_lib.intervals import ratio, verdict_of
from persona_lib.models.served import role_key
from persona_lib.paper.answers import eval_rows, generation_folder, grid, read_generations
from persona_lib.paper.judges import Comparisons, Judge, backwards_key, judge_both, load_judge, model_judge
from persona_lib.prompts import JUDGE_RUBRICS
from persona_lib.records import Judgment, PairwiseComparison, Rubric, RunSpec, Table, Verdict, table_of
from persona_lib.settings import Profile, Run, judge_settings, main_arm

RUBRICS: tuple[Rubric, ...] = tuple(JUDGE_RUBRICS)
RUBRIC_NAMES = {rubric[0]: rubric for rubric in RUBRICS}  # "p" and "q" begin the columns of tables
ORDERS = ("AB", "BA")  # the tested response as A, as B
CHUNK = 256  # comparisons judged between two writes
FOLDERS = {"judge": "judgments", "second_judge": "second_judgments"}


@dataclass(frozen=True)
class Matchup:
    """A row of a results table: a tested run against a base run, judged for ``judge_persona``.

    ``kind`` says what it shows: "main" (the paper's table), "sft" or "few_shot" (the same method without
    personas), "stage" (DPO against SFT), "arm" (another training persona) or "control" (expected null).
    """

    label: str
    kind: str
    test: RunSpec
    base: RunSpec
    judge_persona: str

    @property
    def slug(self) -> str:
        """Path-safe name: tested run, base run, judged persona."""
        return f"{self.test.slug}__{self.base.slug}__{self.judge_persona}"


def matchups(run: Run, role: str = "judge") -> list[Matchup]:
    """Return the rows of the results tables for one data set and seed, among the runs of the grid.

    The second judge is asked about the main ones only, and about none if no model is named.
    """
    cells, rows, main = {spec.slug: spec for spec in grid(run)}, [], main_arm(run.profile)

    def add(label: str, kind: str, tested: str, base: str, judged: str) -> None:
        if tested in cells and base in cells:
            rows.append(Matchup(label, kind, cells[tested], cells[base], judged))

    for p in run.profile.evaluation.personas:
        tested, plain = f"dpo-{main}.{p}.line", f"dpo-none.{p}.first_person"
        if p.startswith(("gold", "retrieved", "user")):
            add(p, "main", tested, plain, p)
            add(f"{p}, Persona line for DPO", "control", tested, f"dpo-none.{p}.line", p)
            add(f"{p}, DPO never told", "control", tested, "dpo-none.none.line", p)
            add(f"{p}, PT-DPO against PT-SFT", "stage", tested, f"sft-{main}.{p}.line", p)
            for method, arm in (("sft", main), ("few_shot", "chosen")):
                told, untold = f"{method}-{arm}.{p}.line", f"{method}-none.{p}.first_person"
                add(f"{p}, {method}", method, told, untold, p)
            for arm in [arm for arm in run.profile.training.arms if arm not in ("none", main)]:
                kind = "control" if arm == "shuffled" else "arm"
                add(f"{p}, PT trained on {arm}", kind, f"dpo-{arm}.{p}.line", plain, p)
        elif p.startswith("shuffled"):
            gold = p.replace("shuffled", "gold")
            add(f"{p} persona, judged for {gold}", "control", tested, plain, gold)
    for side in ("gold-chosen", "gold-rejected"):
        for shown, name, form in (("none", "no", "line"), ("system", "system", "first_person")):
            told, untold = f"dpo-{main}.{shown}.line", f"dpo-none.{shown}.{form}"
            add(f"{name} persona, judged for {side}", "control", told, untold, side)
    if role == "second_judge":
        return [m for m in rows if m.kind == "main" and run.profile.second_judge.model]
    return rows


def read_orders(path: Path) -> dict[str, dict[str, Judgment]]:
    """Read a file of judgments: id -> order -> judgment; {} without the file."""
    known: dict[str, dict[str, Judgment]] = {}
    for row in store.iter_rows(path) if path.exists() else ():
        order = row.pop("order")
        known.setdefault(row["id"], {})[order] = Judgment(**row)
    return known


def judge_rubric(
    judge: Judge, comparisons: Comparisons, rubric: Rubric, path: Path
) -> list[tuple[Judgment, Judgment]]:
    """Return the judgments (A/B, B/A) of all comparisons; resumes after the last whole pair in the file."""
    store.repair_rows(path)
    known = read_orders(path)
    missing = [c for c in comparisons if len(known.get(c.id, {})) < 2]
    for start in range(0, len(missing), CHUNK):
        pairs = judge_both(judge, missing[start : start + CHUNK], rubric)
        known |= {pair[0].id: dict(zip(ORDERS, pair, strict=True)) for pair in pairs}
        rows = [{"order": o, **vars(j)} for pair in pairs for o, j in zip(ORDERS, pair, strict=True)]
        store.append_rows(path, rows)
    return [(known[c.id]["AB"], known[c.id]["BA"]) for c in comparisons]


def judge_comparisons(judge: Judge, comparisons: Comparisons, folder: Path, key: str) -> Path:
    """Judge comparisons under both rubrics and orders into a folder, unless it was finished for this key.

    Writes <rubric>.jsonl, verdicts.jsonl (a row per comparison: id and verdict by rubric) and done.json.
    """
    if store.is_done(folder, key):
        return folder
    store.clear_unless(folder, key)
    judged = {r: judge_rubric(judge, comparisons, r, folder / f"{r}.jsonl") for r in RUBRICS}
    rows = [{"id": c.id} | {r: verdict_of(*judged[r][n]) for r in RUBRICS} for n, c in enumerate(comparisons)]
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


def judge_key(run: Run, role: str = "judge", name: str = "") -> list[Any]:
    """Return all that decides what a judge says of given texts: that of a role, or of this name."""
    profile, name = run.profile, name or run.profile.evaluation.judge
    if role == "judge" and name != "lm":
        return [name, backwards_key(run)] if name == "backwards" else [name]
    how = profile.base.dtype, profile.generation.engine
    return [*judge_settings(profile, role), *how, role_key(run, role)]


@store.one_at_a_time
def judge_all(run: Run, role: str = "judge") -> list[Path]:
    """Let a judge judge its matchups, unless finished; returns their folders. ConfigError for judge=none."""
    found, folders = matchups(run, role), []
    if role != "judge" and not found:
        return []
    judge = load_judge(run) if role == "judge" else model_judge(run, role)
    for m in found:
        answered = [generation_folder(run, spec) / "done.json" for spec in (m.test, m.base)]
        inputs = m, [store.read_json(path)["key"] for path in answered], judge_key(run, role)
        key = store.content_hash(store.VERSIONS["judging"], JUDGE_RUBRICS, *inputs)
        folder = judgment_folder(run, m, role)
        folders.append(judge_comparisons(judge, compare(run, m), folder, key))
    return folders


def read_verdicts(run: Run, matchup: Matchup, role: str = "judge") -> list[dict[str, Any]]:
    """Return a matchup's verdicts: rows {"id", "personalization", "quality"}; none if it was not judged."""
    folder = judgment_folder(run, matchup, role)
    return list(store.iter_rows(folder / "verdicts.jsonl")) if (folder / "done.json").exists() else []


# --- The judged comparisons of all seeds, pooled for paired intervals: one draw per data set for all rows ---


def runs_of(profile: Profile, dataset: str) -> list[Run]:
    """Return the runs of one data set, one per seed."""
    return [Run(profile, dataset, seed) for seed in profile.seeds]


@functools.cache
def same_items(runs: tuple[Run, ...]) -> bool:
    """Return whether all seeds are evaluated on the same questions, as in ``everyday``; one seed: no."""
    paths = [run.folder / "tailoring" / f"{run.profile.evaluation.split}.jsonl" for run in runs]
    rows = [[(row["id"], row["prompt"]) for row in store.iter_rows(path)] for path in paths if path.exists()]
    return len(runs) > 1 and len(set(map(frozenset, rows))) == 1


def sampling(runs: Sequence[Run]) -> tuple[int, int, bool]:
    """Return how the runs of a data set are resampled: how often, with which seed, and `same_items`."""
    profile = runs[0].profile
    number = profile.datasets.index(runs[0].dataset)
    return profile.evaluation.bootstrap_samples, number, same_items(tuple(runs))


@functools.cache
def answer_quality(run: Run, spec: RunSpec) -> dict[str, float]:
    """Return the quality of a run's answers by row id, as the rules of the oracle score it."""
    return {i: quality(made.prompt, made.completion) for i, made in read_generations(run, spec).items()}


def quality_differences(
    m: Matchup, runs: Sequence[Run], judged: Sequence[dict[str, str]]
) -> list[dict[str, float]]:
    """Return, per seed, quality of the tested answer minus the base's, in standard deviations of the base's.

    Only of the oracle, and of judged items. The unit is pooled over seeds; there is none if all base scores
    are equal.
    """
    if runs[0].profile.evaluation.judge != "oracle":
        return [{} for _ in runs]
    found = [{i: [answer_quality(run, spec)[i] for spec in (m.test, m.base)] for i in ids}
             for run, ids in zip(runs, judged, strict=True)]  # fmt: skip
    bases = [base for of_run in found for _, base in of_run.values()]
    unit = float(np.std(bases, ddof=1)) if len(bases) > 1 else 0.0
    return [{i: (tested - base) / unit for i, (tested, base) in of_run.items() if unit} for of_run in found]


@dataclass(frozen=True)
class Judged:
    """A row over the seeds of a data set: a matchup, and per run its verdicts {id: verdict} by rubric.

    A run without verdicts has {}. ``scores`` has p_net, q_net, dpq and quality_sd: the estimate, then its
    value in every resample. All rows of a data set have the same resamples.
    """

    matchup: Matchup
    runs: tuple[Run, ...]
    verdicts: dict[str, list[dict[str, Verdict]]]
    scores: dict[str, np.ndarray]

    @property
    def seeds(self) -> list[int]:
        """Seeds that have verdicts."""
        return [r.seed for r, found in zip(self.runs, self.verdicts["quality"], strict=True) if found]

    def counts(self, rubric: str) -> Counter[str]:
        """Return the verdicts of all seeds, counted."""
        return Counter(verdict for by_id in self.verdicts[rubric] for verdict in by_id.values())


@functools.lru_cache(maxsize=4)
def read_judgments(profile: Profile, role: str = "judge") -> tuple[Judged, ...]:
    """Read and resample all that a judge has judged."""
    rows: list[Judged] = []
    for dataset in profile.datasets:
        runs, judged, columns = tuple(runs_of(profile, dataset)), {}, {}
        for m in matchups(runs[0], role):
            by_run = [read_verdicts(run, m, role) for run in runs]
            if any(by_run):
                judged[m] = {r: [{row["id"]: row[r] for row in part} for part in by_run] for r in RUBRICS}
                for short, rubric in RUBRIC_NAMES.items():
                    columns[f"{m.slug}/{short}"] = intervals.signs(judged[m][rubric])
                columns[f"{m.slug}/sd"] = quality_differences(m, runs, judged[m]["quality"])
        how = *sampling(runs), lambda name: None if name.endswith("/sd") else -1
        pool = intervals.make_pool(columns, *how)
        for m, verdicts in judged.items():
            scores = intervals.scores(pool, m.slug) | {"quality_sd": pool[f"{m.slug}/sd"]}
            rows.append(Judged(m, runs, verdicts, scores))
    return tuple(rows)


def forget_judged() -> None:
    """Clear the caches, so that new files are read."""
    for cached in (read_judgments, answer_quality, same_items):
        cached.cache_clear()


# --- How far two judges agree: raw agreement and Cohen's kappa of verdicts (both orders seen) ---

PARSED = intervals.VERDICTS[:3]  # win, tie, loss
Triple = tuple[str, Verdict, Verdict]  # prompt id, what the first judge says, what the second says


def agreement_of(sums: np.ndarray) -> np.ndarray:
    """Return (n, 2) of (n, 9) counts: share of equal verdicts, and Cohen's kappa (NaN: by chance alone)."""
    table, n = sums.reshape(-1, 3, 3), sums.sum(axis=1)
    same = ratio(np.trace(table, axis1=1, axis2=2), n)
    expected = ratio((table.sum(axis=2) * table.sum(axis=1)).sum(axis=1), n**2)
    return np.column_stack([same, ratio(same - expected, 1 - expected)])


def agreement_row(by_seed: Sequence[Sequence[Triple]], n_resamples: int) -> dict[str, Any]:
    """Return counts, agreement and kappa with 95 % bootstrap intervals; unparsed pairs are only counted."""
    blocks, pairs = [], [pair for part in by_seed for _, *pair in part]
    for part in filter(None, by_seed):
        counts = {name: np.zeros(9) for name, *_ in part}  # 3 x 3 verdicts of a prompt, drawn as a whole
        for name, first, second in part:
            if "unparsed" not in (first, second):
                counts[name][3 * PARSED.index(first) + PARSED.index(second)] += 1
        blocks.append(np.stack(list(counts.values())))
    sizes = {"n": int(sum(block.sum() for block in blocks)), "n_seeds": len(blocks)}
    sizes |= {"first_unparsed": sum(first == "unparsed" for first, _ in pairs)}
    sizes |= {"second_unparsed": sum(second == "unparsed" for _, second in pairs)}
    drawn = np.clip(intervals.resampled(blocks, agreement_of, n_resamples), (0, -1), (1, 1))
    return sizes | intervals.drawn_columns(dict(zip(("agreement", "kappa"), drawn.T, strict=True)))


def agreement_table(profile: Profile) -> Table:
    """Return a line per data set and rubric over all seeds; empty where nothing has two judgments."""
    name, lines = profile.evaluation.judge, []
    names = {"first": profile.judge.model if name == "lm" else name, "second": profile.second_judge.model}
    first = {row.matchup: row.verdicts for row in read_judgments(profile)}
    both = [row for row in read_judgments(profile, "second_judge") if row.matchup in first]
    for dataset, rubric in itertools.product(profile.datasets, RUBRICS):
        by_seed: list[list[Triple]] = [[] for _ in profile.seeds]
        for row in (row for row in both if row.matchup.test.dataset == dataset):
            pairs = zip(first[row.matchup][rubric], row.verdicts[rubric], strict=True)
            for triples, (one, other) in zip(by_seed, pairs, strict=True):
                triples += [(i, verdict, other[i]) for i, verdict in one.items() if i in other]
        if any(by_seed):
            line = agreement_row(by_seed, profile.evaluation.bootstrap_samples)
            lines.append({"dataset": dataset, "rubric": rubric, **names, **line})
    return table_of(lines)
