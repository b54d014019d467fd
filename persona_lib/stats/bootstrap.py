"""Intervals by resampling: the paired, hierarchical bootstrap over items and seeds.

Verdicts of many items are arrays of +1 (win), 0 (tie), -1 (loss) and NaN (unparsed), one array per
seed. Every statistic is a function of sums of per-item columns, so one weighted draw of the items
serves all metrics and all arms at once: that is what makes the intervals paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from persona_lib.records import Verdict

VERDICT_VALUES = {"win": 1.0, "tie": 0.0, "loss": -1.0, "unparsed": float("nan")}
SCORES = ("personalization", "quality", "delta_pq")


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile interval; None where it is undefined.

    ``n_undefined`` resamples had no value (nothing decided) and are left out of the interval.
    """

    estimate: float | None
    low: float | None
    high: float | None
    n_items: int
    n_seeds: int = 1
    n_undefined: int = 0

    @property
    def excludes_zero(self) -> bool:
        """True if the whole interval lies on one side of 0."""
        return self.low is not None and (self.low > 0 or self.high < 0)


def interval_columns(name: str, interval: Interval) -> dict[str, float | None]:
    """Name an estimate and its limits as columns x, x_low, x_high."""
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def verdict_array(verdicts: Iterable[Verdict]) -> np.ndarray:
    """Turn verdicts into +1, 0, -1 and NaN (unparsed)."""
    return np.array([VERDICT_VALUES[v] for v in verdicts], dtype=float)


def accuracy_array(verdicts: Iterable[Verdict | None]) -> np.ndarray:
    """Turn verdicts of persona accuracy into 1 (correct), 0.5 (tie) or 0: their mean is the accuracy."""
    return np.array([{"win": 1.0, "tie": 0.5}.get(v, 0.0) for v in verdicts])


def item_weights(rng: np.random.Generator, n_items: int, n_resamples: int) -> np.ndarray:
    """Return how often each item is drawn in each resample: (n_resamples, n_items), rows sum to n_items."""
    draws = rng.integers(n_items, size=(n_resamples, n_items)) + n_items * np.arange(n_resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=n_resamples * n_items).reshape(n_resamples, n_items)


def resampled_sums(
    blocks: Sequence[np.ndarray], n_resamples: int, seed: int, shared_items: bool = False
) -> np.ndarray:
    """Return column sums of resampled data, (n_resamples, columns): the hierarchical bootstrap.

    ``blocks`` has one (items, columns) array per seed. Each resample draws seeds with replacement, then
    items within each drawn seed, all columns together. ``shared_items``: the seeds answered the same
    items in the same order, so one draw of items serves all seeds of a resample.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(blocks), size=(n_resamples, len(blocks)))
    sums = np.zeros((n_resamples, blocks[0].shape[1]))
    if shared_items:
        weights = item_weights(rng, len(blocks[0]), n_resamples)
        for index, block in enumerate(blocks):
            sums += (weights @ block) * (drawn == index).sum(axis=1)[:, None]
        return sums
    for slot in range(len(blocks)):
        for index, block in enumerate(blocks):
            rows = np.flatnonzero(drawn[:, slot] == index)
            sums[rows] += item_weights(rng, len(block), len(rows)) @ block
    return sums


def check_blocks(blocks: Sequence[np.ndarray], shared_items: bool) -> None:
    """Raise ValueError without seeds, for a seed without items, or for unequal seeds that share items."""
    lengths = [len(block) for block in blocks]
    if not lengths or 0 in lengths:
        raise ValueError(f"need at least one seed and one item per seed; items per seed: {lengths}")
    if shared_items and len(set(lengths)) > 1:
        raise ValueError(f"shared_items: all seeds must have the same items; items per seed: {lengths}")


def bootstrap(
    blocks: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
    n_resamples: int = 2000,
    seed: int = 0,
    shared_items: bool = False,
) -> Interval:
    """Bootstrap a statistic of column sums: it maps (rows, columns) to (rows,), NaN where undefined."""
    check_blocks(blocks, shared_items)
    estimate = statistic(sum(block.sum(axis=0) for block in blocks)[None, :])[0]
    values = statistic(resampled_sums(blocks, n_resamples, seed, shared_items))
    defined = values[~np.isnan(values)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (None, None)
    if np.isnan(estimate):
        estimate = low = high = None
    numbers = [None if v is None else float(v) for v in (estimate, low, high)]
    return Interval(*numbers, len(blocks[0]) if shared_items else sum(map(len, blocks)), len(blocks),
                    len(values) - len(defined))  # fmt: skip


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the denominator is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)


def score_values(sums: np.ndarray, score: str) -> np.ndarray:
    """Compute one score from the columns (P: W-L, W+L; Q: W-L, W+L): nets in [-1, 1], dPQ in points."""
    personalization, quality = ratio(sums[:, 0], sums[:, 1]), ratio(sums[:, 2], sums[:, 3])
    return {"personalization": personalization, "quality": quality,
            "delta_pq": 100 * (personalization + quality) / 2}[score]  # fmt: skip


def verdict_columns(personalization: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Stack what the scores sum, per item: P W-L, P W+L, Q W-L, Q W+L; shape (items, 4).

    Raises ValueError if the two arrays are not about the same number of items.
    """
    if len(personalization) != len(quality):
        raise ValueError(f"{len(personalization)} verdicts on personalization, {len(quality)} on quality")
    pair = [np.nan_to_num(np.asarray(v, dtype=float)) for v in (personalization, quality)]
    return np.stack([pair[0], np.abs(pair[0]), pair[1], np.abs(pair[1])], axis=1)


def bootstrap_scores(
    personalization: Sequence[np.ndarray],
    quality: Sequence[np.ndarray],
    n_resamples: int = 2000,
    seed: int = 0,
    shared_items: bool = False,
) -> dict[str, Interval]:
    """Return the net win rates and dPQ with intervals; wins and losses are pooled over seeds.

    Each argument has one verdict array per seed; item i is the same item in both, and is resampled so.
    """
    blocks = [verdict_columns(p, q) for p, q in zip(personalization, quality, strict=True)]
    return {
        score: bootstrap(blocks, lambda sums, s=score: score_values(sums, s), n_resamples, seed, shared_items)
        for score in SCORES
    }


def bootstrap_score_difference(
    first: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    second: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    n_resamples: int = 2000,
    seed: int = 0,
    shared_items: bool = False,
) -> dict[str, Interval]:
    """Return first - second for each score (e.g. rejected - chosen personas), paired by item and seed.

    ``first`` and ``second`` are (personalization, quality) as in ``bootstrap_scores``, on the same items.
    """
    blocks = [
        np.hstack([verdict_columns(p1, q1), verdict_columns(p2, q2)])
        for p1, q1, p2, q2 in zip(*first, *second, strict=True)
    ]
    return {
        score: bootstrap(
            blocks, lambda sums, s=score: score_values(sums[:, :4], s) - score_values(sums[:, 4:], s),
            n_resamples, seed, shared_items,
        )
        for score in SCORES
    }  # fmt: skip


def bootstrap_mean(
    values: Sequence[np.ndarray], n_resamples: int = 2000, seed: int = 0, shared_items: bool = False
) -> Interval:
    """Return the mean of per-item values (shares of 0/1 too), one array per seed; NaN items are left out."""
    arrays = [np.asarray(v, dtype=float) for v in values]
    blocks = [np.stack([np.nan_to_num(a), ~np.isnan(a)], axis=1) for a in arrays]
    return bootstrap(blocks, lambda sums: ratio(sums[:, 0], sums[:, 1]), n_resamples, seed, shared_items)


def bootstrap_mean_difference(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    n_resamples: int = 2000,
    seed: int = 0,
    shared_items: bool = False,
    standardized: bool = False,
) -> Interval:
    """Return the mean of first - second, paired by item and seed.

    ``standardized``: in units of the standard deviation of all scores of both arms (quality scores);
    raises ValueError if that is 0.
    """
    pairs = [(np.asarray(a, float), np.asarray(b, float)) for a, b in zip(first, second, strict=True)]
    unit = 1.0
    if standardized:
        unit = float(np.nanstd(np.concatenate([scores for pair in pairs for scores in pair]), ddof=1))
    if unit == 0:
        raise ValueError("all scores are equal: their standard deviation is 0, use standardized=False")
    return bootstrap_mean([(a - b) / unit for a, b in pairs], n_resamples, seed, shared_items)
