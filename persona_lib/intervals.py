"""Verdicts, win rates, dPQ, and 95 % intervals by bootstrap over items and seeds.

Several statistics are functions of sums of per-item columns. One weighted draw of the items then serves all
metrics and arms of a table, so any two of its numbers have a paired difference. Few seeds say little of how
seeds differ: intervals over seeds are stretched for that (`seed_stretch`), and ``tests/test_intervals.py``
measures their coverage.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from persona_lib.records import Judgment, Verdict

if TYPE_CHECKING:
    import pandas as pd

# --- tests and closed forms of counts ---


def sign_test(n_wins: int, n_losses: int) -> float:
    """Return the two-sided p of the exact sign test (ties left out); 1.0 when nothing is decided.

    Items count as independent: with several training seeds the test is about these models, not about others.
    """
    from scipy.stats import binomtest

    return float(binomtest(n_wins, n_wins + n_losses).pvalue) if n_wins + n_losses else 1.0


def wilson_interval(n_successes: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion (a tie may count one half); n = 0 is (0, 1)."""
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return 0.0, 1.0
    low, high = proportion_confint(n_successes, n, method="wilson")
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: the k-th smallest of m times m - k + 1, none below a smaller one's.

    A NaN stays NaN and is not counted in m.
    The numbers are those of statsmodels' ``multipletests`` (a test holds that), which collects garbage in
    every call: that took more than half of the time of all tables.
    """
    given = np.asarray(p_values, dtype=float)
    order = np.argsort(given, kind="stable")
    adjusted = np.empty_like(given)
    left = np.count_nonzero(~np.isnan(given)) - np.arange(len(given))
    adjusted[order] = np.maximum.accumulate(given[order] * left)
    return np.minimum(adjusted, 1.0).tolist()


# --- verdicts of a tested response against the baseline, after the judge has seen both orders ---


def vote(judgment: Judgment, tested: str) -> int | None:
    """Return +1 if the judge prefers the response at ``tested`` ("A" or "B"), -1 if the other one.

    A tie is 0. An answer that could not be read is None.
    """
    if judgment.tie:
        return 0
    if judgment.winner is None:
        return None
    return 1 if judgment.winner == tested else -1


def verdict_of(judgment_ab: Judgment, judgment_ba: Judgment) -> Verdict:
    """Combine the two orders of one comparison (paper section 5): a win only if both orders agree.

    The tested response is A in ``judgment_ab`` and B in ``judgment_ba``. Orders that disagree are a
    tie (see ``position_inconsistent``); an unreadable answer in either order is "unparsed", never a win.
    """
    votes = vote(judgment_ab, "A"), vote(judgment_ba, "B")
    if None in votes:
        return "unparsed"
    return {(1, 1): "win", (-1, -1): "loss"}.get(votes, "tie")


def position_inconsistent(judgment_ab: Judgment, judgment_ba: Judgment) -> bool:
    """Return True if the judge names the same position in both orders: it contradicts itself."""
    return judgment_ab.winner is not None and judgment_ab.winner == judgment_ba.winner


@dataclass(frozen=True)
class WinRate:
    """Verdicts of a tested run against a baseline, as counts; rates are shares of the decided pairs."""

    n_wins: int
    n_ties: int
    n_losses: int
    n_unparsed: int = 0

    @classmethod
    def from_verdicts(cls, verdicts: Iterable[Verdict]) -> WinRate:
        """Count verdicts; an unknown verdict raises ValueError."""
        counts = Counter(verdicts)
        unknown = set(counts) - set(get_args(Verdict))
        if unknown:
            raise ValueError(f"unknown verdicts {sorted(map(str, unknown))}: use one of {get_args(Verdict)}")
        return cls(counts["win"], counts["tie"], counts["loss"], counts["unparsed"])

    @property
    def n(self) -> int:
        """Number of compared items, unparsed ones included."""
        return self.n_wins + self.n_ties + self.n_losses + self.n_unparsed

    @property
    def n_decided(self) -> int:
        """Number of wins and losses."""
        return self.n_wins + self.n_losses

    @property
    def net(self) -> float | None:
        """(W - L) / (W + L) in [-1, 1], or None when nothing is decided."""
        return (self.n_wins - self.n_losses) / self.n_decided if self.n_decided else None


def delta_pq(personalization: WinRate, quality: WinRate) -> float | None:
    """Return dPQ = 100 x mean of the two net win rates (paper section 5), None if either is undefined."""
    if personalization.net is None or quality.net is None:
        return None
    return 100 * (personalization.net + quality.net) / 2


# --- intervals by resampling ---


SIGNS = {"win": 1.0, "loss": -1.0}  # of the decided verdicts
ANY = (-np.inf, np.inf)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; None where it is undefined (nothing is decided)."""

    estimate: float | None
    low: float | None
    high: float | None
    n_items: int
    n_seeds: int = 1


def interval_columns(name: str, interval: Interval) -> dict[str, float | None]:
    """Name an estimate and its limits as columns x, x_low, x_high."""
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def table_of(rows: Iterable[Any], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return rows as a table; pandas is loaded at the first use."""
    import pandas as pd

    return pd.DataFrame(rows, columns=columns)


def seed_columns(seeds: Sequence[int]) -> dict[str, int | str]:
    """Name the seeds that a row is computed from as columns."""
    return {"n_seeds": len(seeds), "seeds": " ".join(map(str, seeds))}


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


def percentile_interval(
    estimate: float | None, values: np.ndarray, n_items: int, n_seeds: int = 1
) -> Interval:
    """Return an estimate with the middle 95 % of its resampled values; NaN values are left out.

    Undefined if the estimate (None or NaN) or all of the values are.
    """
    defined = values[~np.isnan(values)]
    if estimate is None or np.isnan(estimate) or not len(defined):
        return Interval(None, None, None, n_items, n_seeds)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(estimate), float(low), float(high), n_items, n_seeds)


def bootstrap(
    blocks: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
    n_resamples: int = 2000,
    seed: int = 0,
    shared_items: bool = False,
    limits: tuple[float, float] = ANY,
) -> Interval:
    """Bootstrap a statistic of column sums: it maps (rows, columns) to (rows,), NaN where undefined.

    ``limits`` are the least and the greatest value that it can take. Raises ValueError without seeds, for a
    seed without items, or for unequal seeds that share items.
    """
    lengths = [len(block) for block in blocks]
    if not lengths or 0 in lengths:
        raise ValueError(f"need at least one seed and one item per seed; items per seed: {lengths}")
    if shared_items and len(set(lengths)) > 1:
        raise ValueError(f"shared_items: all seeds must have the same items; items per seed: {lengths}")
    estimate = float(statistic(sum(block.sum(axis=0) for block in blocks)[None, :])[0])
    n_items = lengths[0] if shared_items else sum(lengths)
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
    arrays = [a for a in arrays if not (len(a) and np.isnan(a).all())] or arrays
    items = np.concatenate([np.zeros(0), *arrays])
    limits = ANY if np.isnan(items).all() else (np.nanmin(items), np.nanmax(items))
    blocks = [np.stack([np.nan_to_num(a), ~np.isnan(a)], axis=1) for a in arrays]
    return bootstrap(
        blocks, lambda sums: ratio(sums[:, 0], sums[:, 1]), n_resamples, seed, shared_items, limits
    )


def share_interval(values: Sequence[np.ndarray], n_resamples: int) -> Interval:
    """Return a mean of 0/1 values with its interval: Wilson's for one seed, else the bootstrap over seeds."""
    values = [v for v in values if len(v)]
    if not values:
        return Interval(None, None, None, 0, 0)
    if len(values) > 1:
        return bootstrap_mean(values, n_resamples, shared_items=len({len(v) for v in values}) == 1)
    n = len(values[0])
    return Interval(float(values[0].mean()), *wilson_interval(float(values[0].sum()), n), n)


def rank_correlation(
    first: Sequence[float], second: Sequence[float], n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return Spearman's rho of two columns with its interval over items; undefined if either is constant."""
    from scipy.stats import rankdata

    def rho(rows: np.ndarray) -> float:
        ranks = rankdata(rows, axis=0)
        return float(np.corrcoef(ranks.T)[0, 1]) if ranks.std(axis=0).all() else float("nan")

    rows, rng = np.column_stack([first, second]), np.random.default_rng(seed)
    values = [rho(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(n_resamples)]
    return percentile_interval(rho(rows), np.array(values), len(rows))


# --- a pool: per-item values over seeds, resampled once for a whole table ---


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

    Undefined (None) if one of the parts is.
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
    signs = [{i: SIGNS.get(v, 0.0) for i, v in verdicts.items()} for verdicts in by_seed]
    return {name: signs, f"{name} n": [{i: abs(v) for i, v in values.items()} for values in signs]}


net_of = mean_of  # (W - L) / (W + L): the mean sign of the decided items


def delta_pq_of(personalization: str, quality: str) -> Statistic:
    """Return the statistic dPQ = 100 x mean of two net win rates."""
    return lambda means: 50 * (means(personalization) + means(quality))


def difference(first: Statistic, second: Statistic) -> Statistic:
    """Return the statistic first - second."""
    return lambda means: first(means) - second(means)
