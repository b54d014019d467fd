"""Verdicts, win rates, persona accuracy and the paper's score dPQ, always with their counts.

A verdict is about the tested response against the baseline, after the judge has seen both orders.
Intervals over items and seeds are in ``bootstrap``, tests in ``significance``, the paper's own table in
``paper``, measures of text in ``text_metrics``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from persona_lib.records import Judgment, Verdict


def vote(judgment: Judgment, tested: str) -> int | None:
    """Return +1 if the judge prefers the response at position ``tested`` ("A" or "B"), -1 if the other,
    0 if it calls a tie, None if its answer could not be read."""
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
    return combine((vote(judgment_ab, "A"), vote(judgment_ba, "B")))


def combine(votes: tuple[int | None, int | None]) -> Verdict:
    """Combine the votes of both orders (see ``vote``) as ``verdict_of`` does."""
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
    def rate(self) -> float | None:
        """W / (W + L), or None when nothing is decided."""
        return self.n_wins / self.n_decided if self.n_decided else None

    @property
    def net(self) -> float | None:
        """(W - L) / (W + L) in [-1, 1], or None when nothing is decided."""
        return (self.n_wins - self.n_losses) / self.n_decided if self.n_decided else None


def delta_pq(personalization: WinRate, quality: WinRate) -> float | None:
    """Return dPQ = 100 x mean of the two net win rates (paper section 5), None if either is undefined."""
    if personalization.net is None or quality.net is None:
        return None
    return 100 * (personalization.net + quality.net) / 2


@dataclass(frozen=True)
class PersonaAccuracy:
    """How often a judge, shown a persona, picks the response it was inferred for (paper Fig. 3).

    One pair is one observation: right in both orders is correct, wrong in both is wrong, otherwise a
    tie. ``n_missing`` pairs have no valid persona. Unparsed and missing pairs stay in ``n``.
    """

    n_correct: int
    n_ties: int
    n_wrong: int
    n_unparsed: int = 0
    n_missing: int = 0

    @classmethod
    def from_verdicts(cls, verdicts: Iterable[Verdict | None]) -> PersonaAccuracy:
        """Count verdicts of "response the persona was inferred for" against the other; None = no persona."""
        verdicts = list(verdicts)
        counts = WinRate.from_verdicts(v for v in verdicts if v is not None)
        return cls(counts.n_wins, counts.n_ties, counts.n_losses, counts.n_unparsed, verdicts.count(None))

    @property
    def n(self) -> int:
        """Number of pairs, unparsed and missing ones included."""
        return self.n_correct + self.n_ties + self.n_wrong + self.n_unparsed + self.n_missing

    @property
    def accuracy(self) -> float | None:
        """(correct + ties / 2) / n: with every answer parsed, the share of right answers over both orders."""
        return (self.n_correct + self.n_ties / 2) / self.n if self.n else None

    @property
    def strict(self) -> float | None:
        """correct / n: right in both orders."""
        return self.n_correct / self.n if self.n else None
