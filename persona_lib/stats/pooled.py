"""Pool per-item values over seeds and resample them once for a whole table.

One draw of seeds and items serves every row and column of a table, so any two of its numbers can be
subtracted and their difference has a paired interval. The draws are those of ``bootstrap``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from persona_lib.stats.bootstrap import VERDICT_VALUES, Interval, ratio, resampled_sums

Values = Mapping[str, float]  # id of an item -> its value; NaN where it has none
Sums = Callable[[str], np.ndarray]  # name of a column -> its sums, one per resample
Statistic = Callable[[Sums], np.ndarray]


@dataclass(frozen=True)
class Pool:
    """Sums of named per-item columns: over all items (1, columns) and in each resample (n, columns)."""

    places: dict[str, int]
    total: np.ndarray
    resampled: np.ndarray

    def compute(self, statistic: Statistic) -> tuple[np.ndarray, np.ndarray]:
        """Return a statistic of the column sums: its estimate (1,) and its resampled values (n,)."""
        return tuple(
            statistic(lambda name, s=sums: s[:, self.places[name]]) for sums in (self.total, self.resampled)
        )

    def interval(self, statistic: Statistic, n_items: int = 0, n_seeds: int = 1) -> Interval:
        """Return a statistic with its 95 % percentile interval."""
        return mean_interval([(self, statistic)], n_items, n_seeds)


def mean_interval(parts: Sequence[tuple[Pool, Statistic]], n_items: int = 0, n_seeds: int = 1) -> Interval:
    """Return the mean of several statistics with its interval; the parts may come from different pools.

    Undefined (None) if one of the parts is. Resamples without a value are left out and counted.
    """
    computed = [pool.compute(statistic) for pool, statistic in parts]
    estimate = float(np.mean([e[0] for e, _ in computed])) if computed else math.nan
    if math.isnan(estimate):
        return Interval(None, None, None, n_items, n_seeds)
    values = np.mean([v for _, v in computed], axis=0)
    defined = values[~np.isnan(values)]
    low, high = (float(v) for v in np.percentile(defined, [2.5, 97.5])) if len(defined) else (None, None)
    return Interval(estimate, low, high, n_items, n_seeds, len(values) - len(defined))


def make_pool(
    columns: Mapping[str, Sequence[Values]], n_resamples: int, seed: int = 0, shared_items: bool = False
) -> Pool:
    """Sum and resample columns, each given as one ``{id: value}`` per seed (empty where a seed has none).

    An id that a column lacks counts as 0 there. ``shared_items``: the seeds answered the same items.
    Raises ValueError if nothing at all was given.
    """
    names = list(columns)
    n_seeds = max((len(by_seed) for by_seed in columns.values()), default=0)
    ids = [sorted({i for by_seed in columns.values() for i in by_seed[s]}) for s in range(n_seeds)]
    if shared_items:
        ids = [sorted({i for part in ids for i in part})] * n_seeds
    blocks = [
        np.array([[columns[name][s].get(i, 0.0) for name in names] for i in ids[s]], dtype=float)
        for s in range(n_seeds)
        if ids[s]
    ]
    if not blocks:
        raise ValueError("no item in any seed: nothing to pool")
    total = sum(block.sum(axis=0) for block in blocks)[None, :]
    resampled = resampled_sums(blocks, n_resamples, seed, shared_items)
    return Pool({name: place for place, name in enumerate(names)}, total, resampled)


# --- columns and what is computed from them ---


def mean_columns(name: str, by_seed: Sequence[Values]) -> dict[str, list[Values]]:
    """Return the columns that ``mean_of`` needs: sums of the values and how many there are."""
    kept = [{i: v for i, v in values.items() if not math.isnan(v)} for values in by_seed]
    return {name: kept, f"{name} n": [dict.fromkeys(values, 1.0) for values in kept]}


def mean_of(name: str) -> Statistic:
    """Return the statistic "mean of the values"."""
    return lambda sums: ratio(sums(name), sums(f"{name} n"))


def net_columns(name: str, by_seed: Sequence[Mapping[str, str]]) -> dict[str, list[Values]]:
    """Return the columns that ``net_of`` needs, W - L and W + L of verdicts; unparsed is neither."""
    signs = [{i: VERDICT_VALUES[v] for i, v in verdicts.items()} for verdicts in by_seed]
    signs = [{i: 0.0 if math.isnan(v) else v for i, v in values.items()} for values in signs]
    return {name: signs, f"{name} n": [{i: abs(v) for i, v in values.items()} for values in signs]}


net_of = mean_of  # (W - L) / (W + L): the mean sign of the decided items


def delta_pq_of(personalization: str, quality: str) -> Statistic:
    """Return the statistic dPQ = 100 x mean of two net win rates."""
    return lambda sums: 50 * (net_of(personalization)(sums) + net_of(quality)(sums))


def difference(first: Statistic, second: Statistic) -> Statistic:
    """Return the statistic first - second."""
    return lambda sums: first(sums) - second(sums)
