"""Which words mark one side's personas (paper Table 1): the paper's share, and log-odds with their error.

The share of a word's occurrences that stand on one side ranks rare words first, by chance. The log-odds
of Monroe, Colaresi and Quinn (2008) shrink them by an informative Dirichlet prior, the words of both sides
together, and come with a standard error.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from persona_lib.stats.significance import holm_adjusted

PERSONA_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class WordSaliency:
    """One word: its occurrences per side, the share on the chosen side (the paper's ratio), its log-odds.

    ``log_odds`` > 0: more chosen; ``log_odds_low`` and ``log_odds_high`` are its 95 % limits, ``z`` is it in
    standard errors, ``p_holm`` two-sided and corrected for the number of words that are tested.
    """

    word: str
    n_chosen: int
    n_rejected: int
    share_chosen: float
    log_odds: float
    log_odds_low: float
    log_odds_high: float
    z: float
    p_holm: float


def persona_words(text: str) -> list[str]:
    """Return the lower-cased words of a persona; hyphenated words ("to-the-point") stay whole."""
    return PERSONA_WORD.findall(text.lower())


def log_odds(y1: int, n1: int, y2: int, n2: int, prior: float, prior_total: float) -> tuple[float, float]:
    """Return a word's log-odds between two corpora under a Dirichlet prior, and their standard error.

    Monroe et al. (2008), eq. 16-22: delta = log((y1+a)/(n1+a0-y1-a)) - log((y2+a)/(n2+a0-y2-a)),
    variance = 1/(y1+a) + 1/(y2+a); y = the word's count, n = all words, a and a0 = its prior and their sum.
    """
    delta = math.log((y1 + prior) / (n1 + prior_total - y1 - prior))
    delta -= math.log((y2 + prior) / (n2 + prior_total - y2 - prior))
    return delta, math.sqrt(1 / (y1 + prior) + 1 / (y2 + prior))


def holm(z_scores: list[float]) -> list[float]:
    """Return two-sided p-values of z-scores with Holm's correction for their number."""
    from scipy.stats import norm

    return holm_adjusted([2 * norm.sf(abs(z)) for z in z_scores])


def word_saliency(
    chosen: Iterable[str], rejected: Iterable[str], min_count: int = 10, prior_size: float = 500.0
) -> list[WordSaliency]:
    """Rank words by the share of their occurrences that stand in chosen personas (paper Table 1).

    Words with fewer than ``min_count`` occurrences on both sides together are left out of the list, not
    of the totals. ``prior_size`` words of prior are spread as in both sides together (shrinks rare words).
    Returns the most chosen first; ties in share are ordered by z, then by word.
    """
    first = Counter(word for text in chosen for word in persona_words(text))
    second = Counter(word for text in rejected for word in persona_words(text))
    both = first + second
    if len(both) < 2:
        return []
    counts = [(word, first[word], second[word]) for word, n in both.items() if n >= min_count]
    odds = [
        log_odds(y1, first.total(), y2, second.total(), prior_size * both[word] / both.total(), prior_size)
        for word, y1, y2 in counts
    ]
    corrected = holm([delta / error for delta, error in odds])
    rows = [
        WordSaliency(
            *count, count[1] / both[count[0]], delta, delta - NORMAL_95 * error, delta + NORMAL_95 * error,
            delta / error, p,
        )
        for count, (delta, error), p in zip(counts, odds, corrected, strict=True)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row.share_chosen, -row.z, row.word))
