"""Tables of changes: what both arms reach under a change, and how far that is from the unchanged run.

Scores are those of ``persona_lib.axes``. Everything of a row comes from one paired draw of seeds and prompts.
A prompt counts once: its two sides (chosen and rejected gold persona) are averaged, and verdicts of both are
drawn together. dPQ is from the signs of the oracle's differences, tailored minus plain. Rows of the authors'
counting (``COUNTING``) are computed from the unchanged run's verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from persona_lib.evaluation.released_counts import (
    Votes,
    make_biased,
    make_unreadable,
    merged_votes,
    released_verdict,
)
from persona_lib.records import Verdict
from persona_lib.stats.bootstrap import VERDICT_VALUES, interval_columns
from persona_lib.stats.metrics import combine
from persona_lib.stats.pooled import (
    Statistic,
    Values,
    delta_pq_of,
    difference,
    make_pool,
    mean_columns,
    mean_of,
)

SIDES = ("chosen", "rejected")
RUBRICS = {"p": "fit", "q": "quality"}  # rubric of dPQ -> the oracle's score that decides it
ROLES = ("plain", "tailored")
MEASURES = (
    "fit_plain",
    "fit_tailored",
    "fit_gain",
    "quality_gain_sd",
    "dpq",
    "ties",
    "flip_plain",
    "flip_tailored",
)
UNREADABLE = 0.05  # share of single judgments, where an unreadable one is looked at
BIASED = 0.3  # share of single judgments that name A unread, where contradictions are looked at
Scores = list[dict[str, Any]]
Columns = dict[str, list[Values]]


# --- what a seed's scores say of every prompt ---


def by_item(scores: Scores, role: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return an arm's scores as {id: {side: row}}, of the prompts that have both sides."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in scores:
        if (row["arm"] == "none") == (role == "plain"):
            found.setdefault(row["id"], {})[row["side"]] = row
    return {name: sides for name, sides in found.items() if len(sides) == len(SIDES)}


def means(scores: Scores, role: str, score: str) -> dict[str, float]:
    """Return an arm's score per prompt, the mean over the personas of both sides."""
    return {
        name: sum(rows[side][score] for side in SIDES) / len(SIDES)
        for name, rows in by_item(scores, role).items()
    }


def flips(scores: Scores, role: str) -> dict[str, float]:
    """Return 1 per prompt where log-probabilities prefer each persona's own response, else 0."""
    return {
        name: float(rows["chosen"]["margin"] > 0 > rows["rejected"]["margin"])
        for name, rows in by_item(scores, role).items()
        if "margin" in rows["chosen"]
    }


def votes_of(scores: Scores, rubric: str) -> dict[str, Votes]:
    """Return the oracle's votes in both orders, tailored against plain: {id/side: votes}."""
    plain, tailored = (by_item(scores, role) for role in ROLES)
    votes = {}
    for name in sorted(set(plain) & set(tailored)):
        for side in SIDES:
            sign = int(np.sign(tailored[name][side][RUBRICS[rubric]] - plain[name][side][RUBRICS[rubric]]))
            votes[f"{name}/{side}"] = (sign, sign)
    return votes


# --- columns of the pool ---


def verdict_columns(name: str, by_seed: Sequence[Mapping[str, Verdict]]) -> Columns:
    """Return the columns of net win rate and of ties per prompt, from verdicts by "id/side"."""
    columns: Columns = {key: [] for key in (name, f"{name} n", f"{name} ties", f"{name} ties n")}
    for verdicts in by_seed:
        sums: dict[str, dict[str, float]] = {key: {} for key in columns}
        for item, verdict in verdicts.items():
            value, prompt = VERDICT_VALUES[verdict], item.rpartition("/")[0]
            seen = verdict != "unparsed"
            for key, number in zip(
                columns, (value if seen else 0, seen and abs(value), verdict == "tie", seen), strict=True
            ):
                sums[key][prompt] = sums[key].get(prompt, 0.0) + float(number)
        for key, found in sums.items():
            columns[key].append(found)
    return columns


def columns_of(name: str, by_seed: Sequence[Scores], unit: float) -> Columns:
    """Return all columns that the measures of one change need; quality in units of ``unit``."""
    columns: Columns = {}
    for role in ROLES:
        columns |= mean_columns(f"{name}/fit_{role}", [means(s, role, "fit") for s in by_seed])
        columns |= mean_columns(f"{name}/flip_{role}", [flips(s, role) for s in by_seed])
    for gain, score, divisor in (("fit_gain", "fit", 1.0), ("quality_gain_sd", "quality", unit)):
        pairs = [(means(s, "plain", score), means(s, "tailored", score)) for s in by_seed]
        gains = [{i: (new[i] - v) / divisor for i, v in old.items() if i in new} for old, new in pairs]
        columns |= mean_columns(f"{name}/{gain}", gains)
    for rubric in RUBRICS:
        verdicts = [{i: combine(pair) for i, pair in votes_of(s, rubric).items()} for s in by_seed]
        columns |= verdict_columns(f"{name}/{rubric}", verdicts)
    return columns


def statistic_of(name: str, measure: str) -> Statistic:
    """Return the statistic of one measure; ties are the mean share of both rubrics."""
    if measure == "dpq":
        return delta_pq_of(f"{name}/p", f"{name}/q")
    if measure == "ties":
        return lambda means: sum(means(f"{name}/{rubric} ties") for rubric in RUBRICS) / len(RUBRICS)
    return mean_of(f"{name}/{measure}")


def measure_columns(columns: Columns, measures: Sequence[str], n_resamples: int) -> dict[str, Any]:
    """Return each measure of "new" with its interval, and its difference from "old"."""
    pool = make_pool(columns, n_resamples)
    row: dict[str, Any] = {}
    for measure in measures:
        new, old = (statistic_of(name, measure) for name in ("new", "old"))
        row |= interval_columns(measure, pool.interval(new))
        row |= interval_columns(f"{measure}_change", pool.interval(difference(new, old)))
    return row


# --- rows ---


def quality_unit(by_seed: Sequence[Scores]) -> float:
    """Return the standard deviation of the unchanged run's qualities, per prompt, both arms together."""
    values = [v for s in by_seed for role in ROLES for v in means(s, role, "quality").values()]
    return float(np.std(values, ddof=1))


def change_row(
    slug: str,
    setting: Mapping[str, Any],
    scores: Mapping[int, Scores],
    clean: Mapping[int, Scores],
    n_resamples: int,
) -> dict[str, Any] | None:
    """Return the row of a change over the seeds that it and the unchanged run have; None without any."""
    seeds = sorted(set(scores) & set(clean))
    if not seeds:
        return None
    new, old = ([found[seed] for seed in seeds] for found in (scores, clean))
    unit = quality_unit(old)
    columns = columns_of("new", new, unit) | columns_of("old", old, unit)
    n = sum(len(means(s, "tailored", "fit")) for s in new)
    return {
        "change": slug,
        "setting": text_of(setting),
        **measure_columns(columns, MEASURES, n_resamples),
        "n": n,
        "seeds": " ".join(map(str, seeds)),
    }


def text_of(setting: Mapping[str, Any]) -> str:
    """Return a change as ``--set`` takes it, field by field."""

    def text(value: Any) -> str:
        return ",".join(value) if isinstance(value, list) else str(value).lower()

    return " ".join(f"{name}={text(value)}" for name, value in setting.items())


# --- the authors' counting ---


def count_unreadable(scores: Scores, rubric: str, seed: int) -> tuple[dict[str, Verdict], dict[str, Verdict]]:
    """Return (their, our) verdicts where a share of the judgments cannot be read."""
    votes = make_unreadable(votes_of(scores, rubric), UNREADABLE, seed)
    return {i: released_verdict(pair) for i, pair in votes.items()}, {
        i: combine(pair) for i, pair in votes.items()
    }


def count_contradictions(
    scores: Scores, rubric: str, seed: int
) -> tuple[dict[str, Verdict], dict[str, Verdict]]:
    """Return (their, our) verdicts of a judge that often names A unread; we keep its contradictions apart."""
    votes = make_biased(votes_of(scores, rubric), BIASED, seed)
    theirs = {i: combine(pair) for i, pair in votes.items()}
    return theirs, {i: "unparsed" if pair[0] * pair[1] < 0 else theirs[i] for i, pair in votes.items()}


def count_merged(scores: Scores, rubric: str, seed: int) -> tuple[dict[str, Verdict], dict[str, Verdict]]:
    """Return (their, our) verdicts where items of one instruction text are merged, per file (side)."""
    votes = votes_of(scores, rubric)
    shown = ("side", "prompt", "persona") if rubric == "p" else ("side", "prompt")
    texts: dict[str, Hashable] = {f"{r['id']}/{r['side']}": tuple(r[name] for name in shown) for r in scores}
    merged = merged_votes(votes, texts)
    return ({i: combine(pair) for i, pair in part.items()} for part in (merged, votes))


COUNTING: dict[str, tuple[str, Callable[..., Any]]] = {
    "unreadable-wins": (f"{UNREADABLE:.0%} of the oracle's judgments made unreadable", count_unreadable),
    "contradictions": (f"the oracle names A unread in {BIASED:.0%} of its judgments", count_contradictions),
    "merged": ("the oracle's verdicts, one per instruction text", count_merged),
}


def counting_rows(clean: Mapping[int, Scores], n_resamples: int) -> list[dict[str, Any]]:
    """Return the rows of the authors' counting, each against our counting of the same judgments."""
    rows = []
    for slug, (setting, count) in COUNTING.items() if clean else ():
        columns: Columns = {}
        for rubric in RUBRICS:
            counted = [tuple(count(scores, rubric, seed)) for seed, scores in sorted(clean.items())]
            for name, verdicts in zip(("new", "old"), zip(*counted, strict=True), strict=True):
                columns |= verdict_columns(f"{name}/{rubric}", verdicts)
        measured = measure_columns(columns, ("dpq", "ties"), n_resamples)
        n = sum(len(by_item(scores, "tailored")) for scores in clean.values())
        rows.append(
            {
                "change": slug,
                "setting": setting,
                **measured,
                "n": n,
                "seeds": " ".join(map(str, sorted(clean))),
            }
        )
    return rows
