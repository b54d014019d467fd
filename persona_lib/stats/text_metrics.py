"""Measures of text that need no judge: overlap, persona flip, lengths, degenerate outputs.

Definitions are fixed here once; the released-outputs tables and our own generations use the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from persona_lib.stats.words import tokens

OUTPUT_TOKENS = 200
MAX_BLOCK = 80


# --- overlap with the two reference responses ---


def unigram_f1(output: str, reference: str, limit: int | None = OUTPUT_TOKENS) -> float:
    """Return 2 x multiset overlap / (len output + len reference), in tokens; 0 when both are empty.

    Only the output is cut to its first ``limit`` tokens, so that a loop does not dilute it.
    """
    first, second = tokens(output, limit), tokens(reference)
    if not first and not second:
        return 0.0
    overlap = (Counter(first) & Counter(second)).total()
    return 2 * overlap / (len(first) + len(second))


@dataclass(frozen=True)
class FlipScores:
    """Per-item scores of the flip test, arrays over items in the order given.

    ``pull_chosen`` = F1(o|P_C, chosen) - F1(o|P_C, rejected), ``pull_rejected`` the same for o|P_R.
    """

    pull_chosen: np.ndarray
    pull_rejected: np.ndarray

    @property
    def did(self) -> np.ndarray:
        """Difference in differences per item, in F1: > 0 if the persona moves the output the right way."""
        return self.pull_chosen - self.pull_rejected

    @property
    def did_positive(self) -> np.ndarray:
        """1 where DiD > 0, 0 where < 0, NaN where exactly 0 (left out of the share)."""
        return np.where(self.did == 0, np.nan, (self.did > 0).astype(float))

    @property
    def flip(self) -> np.ndarray:
        """1 where o|P_C is nearer to chosen AND o|P_R is nearer to rejected, else 0."""
        return ((self.pull_chosen > 0) & (self.pull_rejected < 0)).astype(float)


def flip_and_did(
    under_chosen: Sequence[str], under_rejected: Sequence[str], chosen: Sequence[str], rejected: Sequence[str]
) -> FlipScores:
    """Compare outputs under P_C and under P_R with the two responses of the same row.

    The responses are the same in both terms of DiD, so their quality and length cancel. Raises
    ValueError if the four lists differ in length.
    """
    rows = list(zip(under_chosen, under_rejected, chosen, rejected, strict=True))
    pulls = [
        [unigram_f1(output, good) - unigram_f1(output, bad) for output in (under_c, under_r)]
        for under_c, under_r, good, bad in rows
    ]
    array = np.array(pulls, dtype=float).reshape(len(rows), 2)
    return FlipScores(array[:, 0], array[:, 1])


# --- lengths ---


def n_words(text: str) -> int:
    """Return the length of a text in whitespace-separated words."""
    return len(text.split())


def length_steering(data_differences: Sequence[float], output_differences: Sequence[float]) -> float | None:
    """Return Spearman's rho of (chosen - rejected) against (output under P_C - under P_R) lengths.

    It says whether the personas steer length the way the data do. None if either side is constant.
    """
    from scipy.stats import spearmanr

    if len(set(data_differences)) < 2 or len(set(output_differences)) < 2:
        return None
    return float(spearmanr(data_differences, output_differences).statistic)


def length_steering_interval(
    data_differences: Sequence[float],
    output_differences: Sequence[float],
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of ``length_steering``, resampling items; None if undefined."""
    from scipy.stats import rankdata

    pairs = np.array([data_differences, output_differences], dtype=float)
    draws = np.random.default_rng(seed).integers(pairs.shape[1], size=(n_resamples, pairs.shape[1]))
    ranks = rankdata(pairs[:, draws], axis=-1)
    centred = ranks - ranks.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred[0] ** 2).sum(axis=-1) * (centred[1] ** 2).sum(axis=-1))
    defined = (centred[0] * centred[1]).sum(axis=-1)[scale > 0] / scale[scale > 0]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


# --- degenerate outputs ---


def repetition(text: str, n: int = 4) -> float:
    """Return 1 - distinct / total word n-grams (rep4 for n = 4); 0 if the text has none."""
    words = text.split()
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def has_suffix_loop(text: str, max_block: int = MAX_BLOCK, times: int = 3) -> bool:
    """Return True if the text ends in the same block of 1 to ``max_block`` words ``times`` times over."""
    words = text.split()
    for size in range(1, min(max_block, len(words) // times) + 1):
        block = words[-size:]
        if all(words[-size * k : len(words) - size * (k - 1)] == block for k in range(2, times + 1)):
            return True
    return False


@dataclass(frozen=True)
class Degenerate:
    """Counts of degenerate outputs among ``n``."""

    n: int
    no_eos: int
    rep4_over_20: int
    rep4_over_50: int
    suffix_loop: int


def count_degenerate(texts: Sequence[str], ended: Sequence[bool]) -> Degenerate:
    """Count outputs that never stopped, repeat 4-grams (share > .2 and > .5) or end in a loop."""
    rep4 = [repetition(text) for text in texts]
    return Degenerate(
        n=len(texts),
        no_eos=sum(not end for _, end in zip(texts, ended, strict=True)),
        rep4_over_20=sum(r > 0.2 for r in rep4),
        rep4_over_50=sum(r > 0.5 for r in rep4),
        suffix_loop=sum(map(has_suffix_loop, texts)),
    )
