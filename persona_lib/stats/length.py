"""Win rates at equal length: a length-matched subset, and a logistic model with the length difference.

Judges like longer answers, so a win may be bought with words. The model is that of length-controlled
AlpacaEval 2 (Dubois et al. 2024, eq. 1) without its term for the instruction: among decided comparisons
logit P(win) = a + b tanh(d / sd), with d the tested answer's words minus the base's. The win rate that the
model gives for answers of one length is 1 / (1 + exp(-a)), as a net win rate tanh(a / 2).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from persona_lib.stats.bootstrap import Interval

MATCHED = 0.1  # answers count as equally long if they differ by at most this share of the longer one
MIN_EACH = 5  # wins and losses that the model needs of each: fewer tell nothing about a slope
Z = 1.959963984540054  # of a 95 % interval


def length_matched(words: Sequence[int], base_words: Sequence[int], within: float = MATCHED) -> np.ndarray:
    """Return, per comparison, whether the two answers differ by at most ``within`` of the longer one."""
    tested, base = np.asarray(words, dtype=float), np.asarray(base_words, dtype=float)
    return np.abs(tested - base) <= within * np.maximum(tested, base)


@dataclass(frozen=True)
class LengthControlled:
    """Net win rate at equal length and the slope b, each with a 95 % interval; None where it has no fit.

    ``why`` says what stood in the way of a fit, and is empty otherwise.
    """

    net: Interval
    slope: Interval
    why: str = ""


def no_fit(why: str, n: int) -> LengthControlled:
    """Return the result of a model that cannot be fitted."""
    return LengthControlled(Interval(None, None, None, n), Interval(None, None, None, n), why)


def length_controlled(
    signs: Sequence[float], differences: Sequence[float], prompts: Sequence[str]
) -> LengthControlled:
    """Fit the logistic model to verdicts (+1, 0, -1, NaN) and length differences in words.

    Standard errors are clustered by prompt, so that seeds which answer the same prompts do not count as
    independent. Raises ValueError if the three differ in length.
    """
    rows = list(zip(signs, differences, prompts, strict=True))
    decided = [row for row in rows if abs(row[0]) == 1]
    wins = np.array([row[0] > 0 for row in decided], dtype=float)
    spread = float(np.std([row[1] for row in decided])) if decided else 0.0
    if min(wins.sum(), len(wins) - wins.sum()) < MIN_EACH:
        return no_fit(f"fewer than {MIN_EACH} wins or losses", len(wins))
    if spread == 0:
        return no_fit("all length differences are equal", len(wins))
    terms = np.tanh(np.array([row[1] for row in decided]) / spread)
    return fit_logistic(wins, terms, [row[2] for row in decided])


def fit_logistic(wins: np.ndarray, terms: np.ndarray, prompts: Sequence[str]) -> LengthControlled:
    """Fit logit P(win) = a + b term by maximum likelihood, with standard errors clustered by prompt."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM
    from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

    groups = np.unique(np.asarray(prompts), return_inverse=True)[1]
    model = GLM(wins, np.column_stack([np.ones_like(terms), terms]), family=Binomial())
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerfectSeparationWarning)
        try:
            fitted = model.fit(cov_type="cluster", cov_kwds={"groups": groups})
        except PerfectSeparationWarning:
            return no_fit("length alone tells every win from every loss", len(wins))
    (a, b), (error_a, error_b) = fitted.params, fitted.bse
    limits = [float(np.tanh(v / 2)) for v in (a, a - Z * error_a, a + Z * error_a)]
    return LengthControlled(
        Interval(*limits, len(wins)),
        Interval(float(b), float(b - Z * error_b), float(b + Z * error_b), len(wins)),
    )
