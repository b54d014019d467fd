"""Tests and closed-form intervals of counts, by scipy and statsmodels.

The sign test takes the compared items as independent: with several training seeds it says how sure the
result is for these models, not for others (the intervals of ``bootstrap`` hold seeds to account).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def sign_test(n_wins: int, n_losses: int) -> float:
    """Return the two-sided p of the exact sign test (ties left out); 1.0 when nothing is decided."""
    from scipy.stats import binomtest

    return float(binomtest(n_wins, n_wins + n_losses).pvalue) if n_wins + n_losses else 1.0


def wilson_interval(n_successes: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion (a tie may count one half); n = 0 is (0, 1)."""
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return 0.0, 1.0
    low, high = proportion_confint(n_successes, n, method="wilson")
    return float(low), float(high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values by name: significant at .05 if below it, over all of them together."""
    return dict(zip(p_values, holm_adjusted(list(p_values.values())), strict=True))


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: the k-th smallest of m times m - k + 1, none below a smaller one's.

    The numbers are those of statsmodels' ``multipletests`` (a test holds that), which collects garbage in
    every call: that took more than half of the time of all tables.
    """
    import numpy as np

    given = np.asarray(p_values, dtype=float)
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()
