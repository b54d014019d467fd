"""How often a classifier errs on a weighted sample, and what that makes of a share it measured.

The sample is stratified: each labelled item stands for ``weight`` items, so weighted shares are estimates for
the whole population. Their Wilson intervals use Kish's effective sample size, (sum w)^2 / sum w^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from persona_lib.stats.bootstrap import Interval, percentile_interval
from persona_lib.stats.significance import wilson_interval

RATES = ("precision", "recall", "specificity")


@dataclass(frozen=True)
class Labelled:
    """A labelled sample: ``truth`` and ``found`` are 0/1 arrays, ``weight`` positive, ``stratum`` names."""

    truth: np.ndarray
    found: np.ndarray
    weight: np.ndarray
    stratum: np.ndarray

    def subset(self, kept: np.ndarray) -> Labelled:
        """Return the items of a boolean mask."""
        return Labelled(self.truth[kept], self.found[kept], self.weight[kept], self.stratum[kept])


def make_labelled(
    truth: Sequence[bool], found: Sequence[bool], weight: Sequence[float], stratum: Sequence[str]
) -> Labelled:
    """Return a labelled sample from four lists of equal length; ValueError if they differ or hold nothing."""
    rows = list(zip(truth, found, weight, stratum, strict=True))
    if not rows:
        raise ValueError("no labelled item: the error of the classifier cannot be estimated")
    columns = list(zip(*rows, strict=True))
    return Labelled(*(np.array(c, dtype=float) for c in columns[:3]), np.array(columns[3]))


def weighted_share(hits: np.ndarray, weight: np.ndarray) -> Interval:
    """Return the weighted share of 0/1 ``hits`` with its Wilson interval; undefined without an item."""
    if not len(hits):
        return Interval(None, None, None, 0)
    share = float((hits * weight).sum() / weight.sum())
    effective = float(weight.sum() ** 2 / (weight**2).sum())
    low, high = wilson_interval(share * effective, effective)
    return Interval(share, low, high, len(hits))


def error_rates(sample: Labelled) -> dict[str, Interval]:
    """Return precision, recall (sensitivity) and specificity, each with its Wilson interval and own n."""
    positive, called = sample.truth == 1, sample.found == 1
    return {
        "precision": weighted_share(sample.truth[called], sample.weight[called]),
        "recall": weighted_share(sample.found[positive], sample.weight[positive]),
        "specificity": weighted_share(1 - sample.found[~positive], sample.weight[~positive]),
    }


def rogan_gladen(share: np.ndarray, recall: np.ndarray, specificity: np.ndarray) -> np.ndarray:
    """Return the share corrected for errors (Rogan and Gladen 1978), cut to [0, 1].

    (share + specificity - 1) / (recall + specificity - 1), for a classifier that errs alike everywhere;
    NaN for one that is no better than chance.
    """
    youden = np.asarray(recall + specificity - 1, dtype=float)
    informed = np.where(youden > 0, youden, np.nan)
    return np.clip((share + specificity - 1) / informed, 0.0, 1.0)


def resampled_rates(sample: Labelled, n_resamples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and specificity in resamples of the labelled items, drawn within their strata."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_resamples, len(sample.truth)))
    for name in dict.fromkeys(sample.stratum.tolist()):
        places = np.flatnonzero(sample.stratum == name)
        counts[:, places] = rng.multinomial(
            len(places), np.full(len(places), 1 / len(places)), size=n_resamples
        )
    weights = counts * sample.weight
    positive, found = sample.truth == 1, sample.found == 1
    with np.errstate(invalid="ignore"):
        recall = weights[:, positive & found].sum(axis=1) / weights[:, positive].sum(axis=1)
        specificity = weights[:, ~positive & ~found].sum(axis=1) / weights[:, ~positive].sum(axis=1)
    return recall, specificity


def corrected_share(
    found: Sequence[bool], sample: Labelled, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the Rogan-Gladen share of ``found`` (0/1 per item) with a percentile interval.

    Items and labelled items are both resampled, so the interval holds the doubt about the error rates.
    """
    values, rates = np.asarray(found, dtype=float), error_rates(sample)
    shares = np.random.default_rng(seed + 1).binomial(len(values), values.mean(), n_resamples) / len(values)
    estimate = rogan_gladen(values.mean(), rates["recall"].estimate, rates["specificity"].estimate)
    return percentile_interval(
        estimate, rogan_gladen(shares, *resampled_rates(sample, n_resamples, seed)), len(values)
    )


def corrected_difference(
    first: Sequence[bool], second: Sequence[bool], sample: Labelled, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean of first - second (paired), corrected: divided by recall + specificity - 1.

    It is the difference of two Rogan-Gladen shares of a classifier that errs alike on both sides.
    """
    values, rates = np.asarray(first, dtype=float) - np.asarray(second, dtype=float), error_rates(sample)
    signs = np.array([(values > 0).mean(), (values < 0).mean(), (values == 0).mean()])
    drawn = np.random.default_rng(seed + 1).multinomial(len(values), signs, size=n_resamples) / len(values)
    recall, specificity = resampled_rates(sample, n_resamples, seed)
    youden = rates["recall"].estimate + rates["specificity"].estimate - 1
    resampled = (drawn[:, 0] - drawn[:, 1]) / np.where(
        recall + specificity > 1, recall + specificity - 1, np.nan
    )
    return percentile_interval(values.mean() / youden if youden > 0 else np.nan, resampled, len(values))


def assisted_draws(
    every: np.ndarray, sample: Labelled, n_resamples: int, seed: int
) -> tuple[float, np.ndarray]:
    """Return the estimate of ``assisted_share`` and its resamples."""
    values, error = np.asarray(every, dtype=float), sample.truth - sample.found
    estimate = float(values.mean() + (error * sample.weight).sum() / sample.weight.sum())
    drawn, rng = np.full(n_resamples, values.mean()), np.random.default_rng(seed)
    for name in dict.fromkeys(sample.stratum.tolist()):
        places = np.flatnonzero(sample.stratum == name)
        picked = rng.choice(places, size=(n_resamples, len(places)))
        drawn += (error[picked] * sample.weight[picked]).sum(axis=1) / sample.weight.sum()
    return estimate, drawn


def assisted_difference(
    first: tuple[np.ndarray, Labelled],
    second: tuple[np.ndarray, Labelled],
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the difference of two groups' ``assisted_share``, each with the error of its own sample."""
    (one, drawn), (two, others) = (
        assisted_draws(*group, n_resamples, seed + number) for number, group in enumerate((first, second))
    )
    return percentile_interval(one - two, drawn - others, len(first[1].truth) + len(second[1].truth))


def assisted_share(every: np.ndarray, sample: Labelled, n_resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the classifier's share of ``every`` item plus its weighted mean error in the ``sample``.

    Unbiased whatever the errors depend on, if the sample was drawn from these items and not looked at when
    the classifier was made (the difference estimator of survey sampling).
    """
    return percentile_interval(*assisted_draws(every, sample, n_resamples, seed), len(sample.truth))
