"""Intervals by resampling: the paired bootstrap over items, and over seeds where there are several.

Verdicts of many items are arrays of +1 (win), 0 (tie), -1 (loss) and NaN (unparsed), one array per
seed. Every statistic is a function of sums of per-item columns, so one weighted draw of the items
serves all metrics and all arms at once: that is what makes the intervals paired. Few seeds say little of
how seeds differ; intervals over seeds are stretched for that, and ``tests/test_stats_coverage.py`` holds
how often they have the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from persona_lib.records import Verdict

VERDICT_VALUES = {"win": 1.0, "tie": 0.0, "loss": -1.0, "unparsed": float("nan")}
ANY = (-np.inf, np.inf)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; None where it is undefined.

    ``n_undefined`` resamples had no value (nothing decided) and are left out of the interval.
    """

    estimate: float | None
    low: float | None
    high: float | None
    n_items: int
    n_seeds: int = 1
    n_undefined: int = 0


def interval_columns(name: str, interval: Interval) -> dict[str, float | None]:
    """Name an estimate and its limits as columns x, x_low, x_high."""
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def accuracy_array(verdicts: Iterable[Verdict | None]) -> np.ndarray:
    """Turn verdicts of persona accuracy into 1 (correct), 0.5 (tie) or 0: their mean is the accuracy."""
    return np.array([{"win": 1.0, "tie": 0.5}.get(v, 0.0) for v in verdicts])


def item_weights(rng: np.random.Generator, n_items: int, n_resamples: int) -> np.ndarray:
    """Return how often each item is drawn in each resample: (n_resamples, n_items), rows sum to n_items."""
    draws = rng.integers(n_items, size=(n_resamples, n_items)) + n_items * np.arange(n_resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=n_resamples * n_items).reshape(n_resamples, n_items)


def seed_stretch(n_seeds: int) -> float:
    """Return by how much deviations between resampled seeds are stretched: sqrt(k / (k - 1)) t / z.

    Means of k values drawn again from these k spread too little by sqrt((k - 1) / k), and normal limits are
    too narrow where the spread is known from k values only: why percentile intervals of small samples cover
    too seldom (Hesterberg 2015, "What teachers should know about the bootstrap"). The factor is 1.58 for five
    seeds, 2.69 for three, 9.17 for two. Raises ValueError for fewer.
    """
    from scipy.special import ndtri, stdtrit

    if n_seeds < 2:
        raise ValueError("one seed does not say how seeds differ")
    return float(np.sqrt(n_seeds / (n_seeds - 1)) * stdtrit(n_seeds - 1, 0.975) / ndtri(0.975))


def resampled_sums(
    blocks: Sequence[np.ndarray], n_resamples: int, seed: int, shared_items: bool = False
) -> list[tuple[float, np.ndarray]]:
    """Return column sums of resampled data, (n_resamples, columns), and how far their deviations count.

    ``blocks`` has one (items, columns) array per seed. One seed: its items are drawn with replacement.
    Several: whole seeds are drawn, and their deviations stretched (``seed_stretch``); what chance their items
    add is in how the seeds differ. ``shared_items``: the seeds answered the same items in the same order, of
    which seeds alone say nothing, so items are drawn as well, for all seeds at once, and both deviations are
    added: a little too wide, as what both share counts twice.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(blocks), size=(n_resamples, len(blocks)))
    parts = []
    if len(blocks) > 1:
        totals = np.stack([block.sum(axis=0) for block in blocks])
        parts.append((seed_stretch(len(blocks)), totals[drawn].sum(axis=1)))
    if len(blocks) == 1 or shared_items:
        every = sum(blocks)
        parts.append((1.0, item_weights(rng, len(every), n_resamples) @ every))
    return parts


def resampled_values(
    estimate: float, parts: Sequence[tuple[float, np.ndarray]], statistic: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the resampled values of a statistic: its estimate and the deviations of all parts, added up."""
    return estimate + sum(stretch * (statistic(sums) - estimate) for stretch, sums in parts)


def check_blocks(blocks: Sequence[np.ndarray], shared_items: bool) -> None:
    """Raise ValueError without seeds, for a seed without items, or for unequal seeds that share items."""
    lengths = [len(block) for block in blocks]
    if not lengths or 0 in lengths:
        raise ValueError(f"need at least one seed and one item per seed; items per seed: {lengths}")
    if shared_items and len(set(lengths)) > 1:
        raise ValueError(f"shared_items: all seeds must have the same items; items per seed: {lengths}")


def percentile_interval(
    estimate: float | None, values: np.ndarray, n_items: int, n_seeds: int = 1
) -> Interval:
    """Return an estimate with the middle 95 % of its resampled values; NaN values are left out and counted.

    Undefined if the estimate (None or NaN) or all of the values are.
    """
    defined = values[~np.isnan(values)]
    n_undefined = len(values) - len(defined)
    if estimate is None or np.isnan(estimate) or not len(defined):
        return Interval(None, None, None, n_items, n_seeds, n_undefined)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(estimate), float(low), float(high), n_items, n_seeds, n_undefined)


def bootstrap(
    blocks: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
    n_resamples: int = 2000,
    seed: int = 0,
    shared_items: bool = False,
    limits: tuple[float, float] = ANY,
) -> Interval:
    """Bootstrap a statistic of column sums: it maps (rows, columns) to (rows,), NaN where undefined.

    ``limits`` are the least and the greatest value that it can take.
    """
    check_blocks(blocks, shared_items)
    estimate = float(statistic(sum(block.sum(axis=0) for block in blocks)[None, :])[0])
    n_items = len(blocks[0]) if shared_items else sum(map(len, blocks))
    parts = resampled_sums(blocks, n_resamples, seed, shared_items)
    values = np.clip(resampled_values(estimate, parts, statistic), *limits)
    return percentile_interval(estimate, values, n_items, len(blocks))


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the denominator is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)


def bootstrap_mean(
    values: Sequence[np.ndarray], n_resamples: int = 2000, seed: int = 0, shared_items: bool = False
) -> Interval:
    """Return the mean of per-item values (shares of 0/1 too), one array per seed; NaN items are left out.

    A seed whose items are all NaN is not one of the seeds.
    """
    arrays = [np.asarray(v, dtype=float) for v in values]
    check_blocks(arrays, shared_items)
    arrays = [a for a in arrays if not np.isnan(a).all()] or arrays
    items = np.concatenate(arrays)
    limits = ANY if np.isnan(items).all() else (np.nanmin(items), np.nanmax(items))
    blocks = [np.stack([np.nan_to_num(a), ~np.isnan(a)], axis=1) for a in arrays]
    return bootstrap(
        blocks, lambda sums: ratio(sums[:, 0], sums[:, 1]), n_resamples, seed, shared_items, limits
    )
