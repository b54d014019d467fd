"""The paper's table (DPO against PT-DPO) from its exact counts: intervals and tests that it does not print.

``facts/paper_table.csv`` has the only integer counts that give the printed percentages and dPQ. They say how
often a row was won on personalization and on quality, not how the two verdicts of one pair of answers go
together, and dPQ adds both. So every interval is given three times: the verdicts taken as independent, and
the two extremes, as much agreement as the counts allow (the widest interval) and as much opposition
(the narrowest). Whatever was true lies between these two.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from persona_lib.config import FACTS
from persona_lib.stats.bootstrap import Interval, percentile_interval, ratio
from persona_lib.stats.metrics import WinRate, delta_pq

PAPER_TABLE = FACTS / "paper_table.csv"
DEPENDENCE = ("independent", "agree", "oppose")
N_RESAMPLES = 20_000  # enough that the limits move by about .1 from one bootstrap seed to another


def paper_table() -> list[dict[str, str]]:
    """Read the paper's DPO vs PT-DPO table: ten rows of exact counts, printed percentages and dPQ."""
    with PAPER_TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def paper_win_rates(row: Mapping[str, str]) -> tuple[WinRate, WinRate]:
    """Return personalization and quality counts of one row of ``paper_table``."""
    return tuple(WinRate(*(int(row[f"{m}_{v}"]) for v in ("win", "tie", "loss"))) for m in "pq")


# --- how the two verdicts of a pair may go together ---


def joint_table(p: WinRate, q: WinRate, dependence: str) -> np.ndarray:
    """Return counts of (personalization, quality) verdicts, (3, 3) by win, tie, loss, with these margins.

    "independent": products of the margins. "agree": as many equal verdicts as can be, sorted against sorted.
    "oppose": sorted against reversed. Raises ValueError if the margins do not add up to the same n.
    """
    if p.n != q.n or dependence not in DEPENDENCE:
        raise ValueError(f"{p.n} and {q.n} verdicts, dependence {dependence!r}: one n, one of {DEPENDENCE}")
    rows, columns = (np.array([c.n_wins, c.n_ties, c.n_losses], dtype=float) for c in (p, q))
    if dependence == "independent":
        return np.outer(rows, columns) / p.n
    if dependence == "oppose":
        return sorted_against_sorted(rows, columns[::-1])[:, ::-1]
    return sorted_against_sorted(rows, columns)


def sorted_against_sorted(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the table with these margins whose two verdicts are as alike as the margins allow.

    The cumulative counts of the table are the smaller of the margins' (the upper Frechet bound).
    """
    cumulative = np.minimum.outer(np.cumsum(rows), np.cumsum(columns))
    return np.diff(np.diff(cumulative, axis=0, prepend=0), axis=1, prepend=0)


def resampled_delta_pq(joint: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return dPQ, in points, of multinomial resamples of a joint table; NaN where nothing is decided."""
    n = round(joint.sum())
    draws = rng.multinomial(n, joint.ravel() / joint.sum(), size=n_resamples).reshape(-1, 3, 3)
    margins = draws.sum(axis=2), draws.sum(axis=1)
    return 50 * sum(ratio(m[:, 0] - m[:, 2], m[:, 0] + m[:, 2]) for m in margins)


# --- intervals ---


@dataclass(frozen=True)
class Reanalysed:
    """One row's dPQ: its interval for each assumption of ``DEPENDENCE``, and the resamples behind them."""

    intervals: dict[str, Interval]
    resamples: dict[str, np.ndarray]


def reanalyse(p: WinRate, q: WinRate, seed: int = 0, n_resamples: int = N_RESAMPLES) -> Reanalysed:
    """Return dPQ of published counts with 95 % multinomial bootstrap intervals, one per assumption."""
    rng = np.random.default_rng(seed)
    resamples = {d: resampled_delta_pq(joint_table(p, q, d), n_resamples, rng) for d in DEPENDENCE}
    estimate = delta_pq(p, q)
    return Reanalysed(
        {d: percentile_interval(estimate, values, p.n) for d, values in resamples.items()}, resamples
    )


def average(rows: list[Reanalysed]) -> dict[str, Interval]:
    """Return the mean of the rows' dPQ with its interval for each assumption.

    The rows are taken as independent for "independent" and "oppose". They are not: rows of a data set share
    prompts and, in part, answers. "agree" is the bound for that too: all rows err together, so its limits
    are the means of the rows' limits.
    """
    estimates = [row.intervals["agree"].estimate for row in rows]
    n = sum(row.intervals["agree"].n_items for row in rows)
    mean = float(np.mean(estimates))
    found = {
        d: percentile_interval(mean, np.mean([row.resamples[d] for row in rows], axis=0), n)
        for d in ("independent", "oppose")
    }
    low, high = (
        float(np.mean([getattr(r.intervals["agree"], end) for r in rows])) for end in ("low", "high")
    )
    return found | {"agree": Interval(mean, low, high, n)}


def net_interval(rate: WinRate, seed: int = 0, n_resamples: int = N_RESAMPLES) -> Interval:
    """Return the net win rate of published counts with its 95 % multinomial bootstrap interval."""
    counts = np.array([rate.n_wins, rate.n_ties, rate.n_losses], dtype=float)
    draws = np.random.default_rng(seed).multinomial(rate.n, counts / rate.n, size=n_resamples)
    values = ratio(draws[:, 0] - draws[:, 2], draws[:, 0] + draws[:, 2])
    return percentile_interval(rate.net, values, rate.n)


# --- a test of dPQ ---


def net_error(rate: WinRate) -> float | None:
    """Return the standard error of a net win rate by the delta method: sqrt((1 - net^2) / decided)."""
    return None if rate.net is None else ((1 - rate.net**2) / rate.n_decided) ** 0.5


def delta_pq_test(p: WinRate, q: WinRate, dependence: str = "independent") -> float:
    """Return the two-sided p of dPQ = 0 (normal approximation); 1.0 where it is undefined.

    "independent" adds the two variances; "agree" adds the two standard errors, the most they can come to.
    """
    from scipy.stats import norm

    errors = net_error(p), net_error(q)
    if None in errors or not sum(errors):
        return 1.0
    error = sum(errors) if dependence == "agree" else (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    return float(2 * norm.sf(abs(p.net + q.net) / error))
