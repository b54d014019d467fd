"""How far raters agree: Krippendorff's alpha and Cohen's and Fleiss' kappa, with intervals over items.

Ratings are an array (items, raters) of whole numbers on a scale, NaN where a rater gave none. The
coefficients themselves are those of the packages krippendorff and statsmodels; here they are only given
what they need. A coefficient is None where it is undefined: no item has two ratings, or all are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from persona_lib.stats.bootstrap import Interval, percentile_interval

LEVELS = ("nominal", "ordinal", "interval")


def value_counts(ratings: np.ndarray, scale: Sequence[int]) -> np.ndarray:
    """Count how many raters gave each value to each item: (items, values)."""
    return (np.asarray(ratings, dtype=float)[:, :, None] == np.asarray(scale, dtype=float)).sum(axis=1)


def alpha_of_counts(counts: np.ndarray, level: str) -> float:
    """Return Krippendorff's alpha of (items, values) counts; NaN where it is undefined."""
    import krippendorff

    paired = counts[counts.sum(axis=1) > 1]  # an item with one rating says nothing about agreement
    if (paired.sum(axis=0) > 0).sum() < 2:
        return float("nan")
    return float(krippendorff.alpha(value_counts=paired, level_of_measurement=level))


def krippendorff_alpha(ratings: np.ndarray, scale: Sequence[int], level: str = "ordinal") -> float | None:
    """Return Krippendorff's alpha: 1 - observed / expected disagreement of pairs of ratings of one item.

    Takes any number of raters and missing ratings. ``level``: "nominal", "ordinal" (a scale of steps that
    need not be equal) or "interval".
    """
    if level not in LEVELS:
        raise ValueError(f"level={level!r}: use one of {', '.join(LEVELS)}")
    alpha = alpha_of_counts(value_counts(ratings, scale), level)
    return None if np.isnan(alpha) else alpha


def resample_items(
    statistic: Callable[[np.ndarray], float], rows: np.ndarray, n_resamples: int, seed: int
) -> Interval:
    """Return a statistic of rows with its 95 % percentile interval, items drawn with replacement.

    Resamples in which it is undefined (NaN) are counted and left out.
    """
    rng, estimate = np.random.default_rng(seed), statistic(rows)
    if np.isnan(estimate):
        return Interval(None, None, None, len(rows))
    values = np.array([statistic(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(n_resamples)])
    return percentile_interval(estimate, values, len(rows))


def alpha_interval(
    ratings: np.ndarray, scale: Sequence[int], level: str = "ordinal", n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return Krippendorff's alpha with its interval over items. The raters are taken as they are."""
    counts = value_counts(ratings, scale)
    return resample_items(lambda rows: alpha_of_counts(rows, level), counts, n_resamples, seed)


def pair_table(first: np.ndarray, second: np.ndarray, scale: Sequence[int]) -> np.ndarray:
    """Count the items that both raters rated: (values, values), the first rater in rows."""
    first, second = (np.asarray(r, dtype=float)[:, None] == np.asarray(scale) for r in (first, second))
    return first.T.astype(int) @ second.astype(int)


def cohen_kappa(ratings: np.ndarray, scale: Sequence[int], weights: str | None = None) -> float | None:
    """Return the mean of Cohen's kappa over all pairs of raters (Light's kappa for more than two).

    ``weights``: None, "linear" or "quadratic". A pair counts if it has an item in common and its kappa is
    defined (not all of its ratings are the same value).
    """
    from statsmodels.stats.inter_rater import cohens_kappa

    columns, values = np.asarray(ratings, dtype=float).T, []
    for first, second in combinations(columns, 2):
        table = pair_table(first, second, scale)
        used = (table.sum(axis=0) + table.sum(axis=1)) > 0
        if used.sum() > 1:
            values.append(float(cohens_kappa(table, wt=weights, return_results=False)))
    return float(np.mean(values)) if values else None


def fleiss_kappa(ratings: np.ndarray, scale: Sequence[int]) -> tuple[float | None, int]:
    """Return Fleiss' kappa and of how many items: those with the most ratings, for it takes equal numbers."""
    from statsmodels.stats import inter_rater

    counts = value_counts(ratings, scale)
    most = int(counts.sum(axis=1).max(initial=0))
    whole = counts[counts.sum(axis=1) == most]
    if most < 2 or (whole.sum(axis=0) > 0).sum() < 2:
        return None, 0
    return float(inter_rater.fleiss_kappa(whole)), len(whole)
