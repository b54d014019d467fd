"""Verdicts, win rates, dPQ, and 95 % intervals by bootstrap over items and seeds.

``make_pool`` draws the items of a table once. Each column's mean is an array: its estimate, then its value
in every resample. Statistics are arithmetic on such arrays, so any two numbers of a table have a paired
difference. Over few seeds they are stretched (`resampled`); tests/test_intervals.py measures coverage.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from persona_lib.records import Judgment, Verdict


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
    return max(0.0, round(float(low), 12)), float(high)  # 0 rather than 4e-19


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values; a NaN stays NaN and is not counted.

    statsmodels' `multipletests` gives the same, but collects garbage at every call: .3 s beside a model.
    """
    adjusted = np.array(p_values, dtype=float)
    order = np.argsort(adjusted)[: np.count_nonzero(~np.isnan(adjusted))]  # NaN sorts last
    weighted = adjusted[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(weighted), 1)
    return adjusted.tolist()


def verdict_of(judgment_ab: Judgment, judgment_ba: Judgment) -> Verdict:
    """Combine the two orders of one comparison (paper section 5): a win only if both orders agree.

    The tested response is A in ``judgment_ab`` and B in ``judgment_ba``. Orders that disagree are a
    tie (see ``position_inconsistent``); an unreadable answer in either order is "unparsed", never a win.
    """
    if not all(judgment.tie or judgment.winner for judgment in (judgment_ab, judgment_ba)):
        return "unparsed"
    agreed: dict[str, Verdict] = {"AB": "win", "BA": "loss"}
    return agreed.get(f"{judgment_ab.winner}{judgment_ba.winner}", "tie")


def position_inconsistent(judgment_ab: Judgment, judgment_ba: Judgment) -> bool:
    """Return True if the judge names the same position in both orders: it contradicts itself."""
    return judgment_ab.winner is not None and judgment_ab.winner == judgment_ba.winner


VERDICTS: tuple[Verdict, ...] = ("win", "tie", "loss", "unparsed")
SIGNS = {"win": 1.0, "loss": -1.0}  # of the decided verdicts


def signs(by_seed: Sequence[Mapping[str, str]]) -> list[dict[str, float]]:
    """Return verdicts as a column: +1, -1, NaN for others. Its mean is the net win rate (W - L) / (W + L)."""
    return [{i: SIGNS.get(verdict, math.nan) for i, verdict in found.items()} for found in by_seed]


def scores(pool: Mapping[Any, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return net win rates and dPQ (paper section 5) of the columns ``name/p`` and ``name/q`` of a pool."""
    nets = {f"{key[-1]}_net": mean for key, mean in pool.items() if key[:-1] == f"{name}/"}
    return nets | {"dpq": 50 * (nets["p_net"] + nets["q_net"])}


class Interval(NamedTuple):
    """An estimate with its 95 % interval; None where it is undefined (nothing is decided)."""

    estimate: float | None = None
    low: float | None = None
    high: float | None = None


def interval_columns(name: str, interval: Interval) -> dict[str, float | None]:
    """Name an estimate and its limits as columns x, x_low, x_high."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))


def drawn_columns(draws: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Return the interval columns of several statistics, each given as its `interval_of` array."""
    columns = [interval_columns(name, interval_of(drawn)) for name, drawn in draws.items()]
    return {name: value for of_one in columns for name, value in of_one.items()}


def seed_columns(seeds: Sequence[int]) -> dict[str, int | str]:
    """Name the seeds that a row is computed from as columns."""
    return {"n_seeds": len(seeds), "seeds": " ".join(map(str, seeds))}


def interval_of(drawn: Sequence[float] | np.ndarray) -> Interval:
    """Return the estimate, the first value, with the middle 95 % of the others, its resampled values.

    NaN values are left out. Undefined if the estimate or all of the values are NaN; no limits for equal ones.
    """
    estimate, values = drawn[0], np.asarray(drawn[1:], dtype=float)
    values = values[~np.isnan(values)]
    if np.isnan(estimate) or not len(values):
        return Interval()
    low, high = np.percentile(values, [2.5, 97.5])
    if high - low < 1e-9:
        return Interval(float(estimate))
    return Interval(float(estimate), float(low), float(high))


def resampled(
    blocks: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
    n_resamples: int,
    seed: int = 0,
    shared_items: bool = False,
) -> np.ndarray:
    """Return a statistic of column sums: of all items, then of each resample, (1 + n_resamples, ...).

    ``blocks`` has one (items, columns) array per seed, or a row per cluster of items, drawn as a whole;
    ``statistic`` maps sums (rows, columns) to (rows, ...) (NaN: undefined). One seed: its items are drawn
    with replacement. Several: whole seeds are drawn; what chance their items add is in how the seeds differ.
    Means of k seeds drawn again from these spread too little by sqrt((k - 1) / k), and normal limits are too
    narrow where k values tell the spread (Hesterberg 2015, "What teachers should know about the bootstrap"):
    so their deviations are stretched by sqrt(k / (k - 1)) t / z. ``shared_items``: the seeds answered the
    same items in the same order, of which seeds alone say nothing. So items are drawn as well, for all seeds
    at once, and both deviations are added: a little too wide, as what both share counts twice.
    """
    from scipy.special import ndtri, stdtrit

    rng, n_seeds = np.random.default_rng(seed), len(blocks)
    totals = np.stack([block.sum(axis=0) for block in blocks])
    drawn_seeds = rng.integers(n_seeds, size=(n_resamples, n_seeds))
    estimate, deviations = statistic(totals.sum(axis=0, keepdims=True)), 0.0
    if n_seeds > 1:  # stretched by 1.58 for five seeds, by 2.69 for three, by 9.17 for two
        stretch = np.sqrt(n_seeds / (n_seeds - 1)) * stdtrit(n_seeds - 1, 0.975) / ndtri(0.975)
        deviations += stretch * (statistic(totals[drawn_seeds].sum(axis=1)) - estimate)
    if n_seeds == 1 or shared_items:
        n = len(blocks[0])
        drawn = rng.integers(n, size=(n_resamples, n)) + n * np.arange(n_resamples)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=n_resamples * n).reshape(n_resamples, n)
        deviations += statistic(weights @ sum(blocks)) - estimate
    return np.concatenate([estimate, estimate + deviations])


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the denominator is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)


def wilson_draws(values: np.ndarray, drawn: np.ndarray, least: float, seed: int) -> np.ndarray:
    """Return a share's mean, and its resampled means moved onto Wilson's limits in the same order.

    ``values`` lie from ``least`` to 1; NaN: none. The resample at level q of the order gets the limit of that
    level: the middle 95 % are Wilson's interval. Equal resamples are ordered at random, alike for equal
    values, so differences of columns stay paired.
    """
    from scipy.special import ndtri

    n, n_drawn, mean = np.sum(~np.isnan(values)), len(drawn) - 1, drawn[0]
    rng = np.random.default_rng([seed, zlib.crc32(values.tobytes())])
    order = np.lexsort([rng.random(n_drawn), np.where(np.isnan(drawn), mean, drawn)[1:].round(9)])
    z = ndtri(np.linspace(0, 1, n_drawn).clip(0.5 / n_drawn, 1 - 0.5 / n_drawn))[np.argsort(order)]
    share, c = (mean - least) / (1 - least), z**2 / n
    limits = (share + c / 2 + z * np.sqrt((share * (1 - share) + c / 4) / n)) / (1 + c)
    return np.append(mean, least + (1 - least) * limits.round(12))


def bootstrap_mean(
    values: Sequence[np.ndarray], n_resamples: int = 2000, seed: int = 0, shared_items: bool = False
) -> Interval:
    """Return the mean of per-item values, one array per seed; NaN items are left out.

    A seed whose items are all NaN is not one of the seeds. For shares there is `make_pool` with ``least``.
    """
    columns = {"mean": [dict(enumerate(part)) for part in values]}
    return interval_of(make_pool(columns, n_resamples, seed, shared_items)["mean"])


Columns = Mapping[Any, Sequence[Mapping[Any, float]]]  # name -> per seed {id: value}; NaN: no value


def make_pool(
    columns: Columns,
    n_resamples: int,
    seed: int = 0,
    shared_items: bool = False,
    least: Callable[[Any], float | None] = lambda name: None,
) -> dict[Any, np.ndarray]:
    """Return the mean of every column, estimate first: (1 + n_resamples,) each, all with the same draws.

    A column is one ``{id: value}`` per seed, empty where a seed has none; NaN where an item has no value. A
    seed without any value is not one of the column's seeds: an arm that ran with one seed of five has the
    interval of one. ``shared_items``: the seeds answered the same items. Shares and nets of one seed, those
    for which ``least`` names the least value, have Wilson's interval.
    """
    n_seeds = max(map(len, columns.values()), default=0)
    ids = [sorted({i for by_seed in columns.values() for i in by_seed[s]}) for s in range(n_seeds)]
    if shared_items:
        ids = [sorted(set().union(*ids))] * n_seeds
    groups: dict[tuple[int, ...], list[Any]] = {}
    for name, by_seed in columns.items():
        seeds = tuple(s for s, found in enumerate(by_seed) if not all(map(math.isnan, found.values())))
        groups.setdefault(seeds, []).append(name)
    pool = dict.fromkeys(groups.pop((), ()), np.full(1 + n_resamples, np.nan))
    for seeds, names in groups.items():
        items = [np.array([[columns[k][s].get(i, math.nan) for k in names] for i in ids[s]]) for s in seeds]
        blocks = [np.hstack([np.nan_to_num(part), ~np.isnan(part)]) for part in items]
        drawn = resampled(blocks, lambda sums: ratio(*np.hsplit(sums, 2)), n_resamples, seed, shared_items)
        every = np.concatenate(items)
        means = np.clip(drawn, np.nanmin(every, axis=0), np.nanmax(every, axis=0))
        for name, drawn, values in zip(names, means.T, items[0].T, strict=True):
            low = least(name) if len(seeds) == 1 else None
            pool[name] = drawn if low is None else wilson_draws(values, drawn, low, seed)
    return pool
