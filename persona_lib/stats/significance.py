"""Tests and closed-form intervals of counts, by scipy and statsmodels.

The sign test takes the compared items as independent: with several training seeds it says how sure the
result is for these models, not for others (the intervals of ``bootstrap`` resample seeds as well).
"""

from __future__ import annotations

from collections.abc import Mapping


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
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return {}
    adjusted = multipletests(list(p_values.values()), method="holm")[1]
    return dict(zip(p_values, map(float, adjusted), strict=True))
