"""Pool per-item values over seeds and resample them once for a whole table.

One draw serves every row and column of a table that the same seeds have, so any two of these numbers can be
subtracted and their difference has a paired interval. The draws are those of ``bootstrap``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from persona_lib.stats.bootstrap import (
    VERDICT_VALUES,
    Interval,
    percentile_interval,
    ratio,
    resampled_sums,
    resampled_values,
)

Values = Mapping[str, float]  # id of an item -> its value; NaN where it has none
Means = Callable[[str], np.ndarray]  # name of a column -> its mean, one per resample
Statistic = Callable[[Means], np.ndarray]  # sums and differences of means
Columns = Mapping[str, Sequence[Values]]


@dataclass(frozen=True)
class Pool:
    """Means of named per-item columns: each one's estimate (1,) and its resampled values (n,)."""

    means: dict[str, tuple[np.ndarray, np.ndarray]]

    def compute(self, statistic: Statistic) -> tuple[np.ndarray, np.ndarray]:
        """Return a statistic of the columns' means: its estimate (1,) and its resampled values (n,)."""
        return tuple(statistic(lambda name, i=i: self.means[name][i]) for i in (0, 1))

    def interval(self, statistic: Statistic, n_items: int = 0, n_seeds: int = 1) -> Interval:
        """Return a statistic with its 95 % interval."""
        return mean_interval([(self, statistic)], n_items, n_seeds)


def mean_interval(parts: Sequence[tuple[Pool, Statistic]], n_items: int = 0, n_seeds: int = 1) -> Interval:
    """Return the mean of several statistics with its interval; the parts may come from different pools.

    Undefined (None) if one of the parts is. Resamples without a value are left out and counted.
    """
    computed = [pool.compute(statistic) for pool, statistic in parts]
    if not computed:
        return Interval(None, None, None, n_items, n_seeds)
    estimate = float(np.mean([e[0] for e, _ in computed]))
    return percentile_interval(estimate, np.mean([v for _, v in computed], axis=0), n_items, n_seeds)


def make_pool(columns: Columns, n_resamples: int, seed: int = 0, shared_items: bool = False) -> Pool:
    """Sum and resample columns, each given as one ``{id: value}`` per seed (empty where a seed has none).

    A column ``x`` has its weights in a column ``x n``. An id that a column lacks counts as 0 there. A seed
    without any weight in a column is not one of the column's seeds: an arm that ran with one seed of five has
    the interval of one. ``shared_items``: the seeds answered the same items. Raises ValueError if nothing at
    all was given.
    """
    n_seeds = max((len(by_seed) for by_seed in columns.values()), default=0)
    ids = [sorted({i for by_seed in columns.values() for i in by_seed[s]}) for s in range(n_seeds)]
    if shared_items:
        ids = [sorted({i for part in ids for i in part})] * n_seeds
    if not any(ids):
        raise ValueError("no item in any seed: nothing to pool")
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in columns:
        if weights := columns.get(f"{name} n"):
            groups.setdefault(tuple(s for s in range(n_seeds) if any(weights[s].values())), []).append(name)
    means = {}
    for seeds, names in groups.items():
        blocks = [item_block(columns, names, s, ids[s]) for s in seeds]
        means |= zip(names, pooled_means(blocks, len(names), n_resamples, seed, shared_items), strict=True)
    return Pool(means)


def item_block(columns: Columns, names: Sequence[str], seed: int, ids: Sequence[str]) -> np.ndarray:
    """Return one seed's values of the columns, then their weights: (items, 2 x columns)."""
    both = [*names, *(f"{name} n" for name in names)]
    return np.array([[columns[name][seed].get(i, 0.0) for name in both] for i in ids], dtype=float)


def pooled_means(
    blocks: Sequence[np.ndarray], n: int, n_resamples: int, seed: int, shared_items: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the means of n columns, all seeds together, and resampled within the range of single items."""
    if not blocks:
        return [(np.full(1, np.nan), np.full(n_resamples, np.nan))] * n

    def mean(sums: np.ndarray) -> np.ndarray:
        return ratio(sums[:, :n], sums[:, n:])

    estimate = mean(sum(block.sum(axis=0) for block in blocks)[None, :])
    values = resampled_values(estimate, resampled_sums(blocks, n_resamples, seed, shared_items), mean)
    items = np.concatenate([mean(block) for block in blocks])
    limits = np.nanmin(items, axis=0), np.nanmax(items, axis=0)
    return list(zip(estimate.T, np.clip(values, *limits).T, strict=True))


# --- columns and what is computed from them ---


def mean_columns(name: str, by_seed: Sequence[Values]) -> dict[str, list[Values]]:
    """Return the columns that ``mean_of`` needs: sums of the values and how many there are."""
    kept = [{i: v for i, v in values.items() if not math.isnan(v)} for values in by_seed]
    return {name: kept, f"{name} n": [dict.fromkeys(values, 1.0) for values in kept]}


def mean_of(name: str) -> Statistic:
    """Return the statistic "mean of the values"."""
    return lambda means: means(name)


def net_columns(name: str, by_seed: Sequence[Mapping[str, str]]) -> dict[str, list[Values]]:
    """Return the columns that ``net_of`` needs, W - L and W + L of verdicts; unparsed is neither."""
    signs = [{i: VERDICT_VALUES[v] for i, v in verdicts.items()} for verdicts in by_seed]
    signs = [{i: 0.0 if math.isnan(v) else v for i, v in values.items()} for values in signs]
    return {name: signs, f"{name} n": [{i: abs(v) for i, v in values.items()} for values in signs]}


net_of = mean_of  # (W - L) / (W + L): the mean sign of the decided items


def delta_pq_of(personalization: str, quality: str) -> Statistic:
    """Return the statistic dPQ = 100 x mean of two net win rates."""
    return lambda means: 50 * (means(personalization) + means(quality))


def difference(first: Statistic, second: Statistic) -> Statistic:
    """Return the statistic first - second."""
    return lambda means: first(means) - second(means)
