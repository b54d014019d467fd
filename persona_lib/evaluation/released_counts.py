"""How the authors' code turns judgments into verdicts, to measure what that changes (their ``win_rate.py``).

Votes are as in ``stats.metrics.vote``: +1 for the tested response, -1 for the baseline's, 0 for a tie that
the judge itself calls, None for an answer that cannot be read; a pair holds those of both orders, the tested
response first as A, then as B. Our own rule is ``stats.metrics.combine``.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping

from persona_lib.records import Verdict
from persona_lib.stats.metrics import combine

Votes = tuple[int | None, int | None]


def released_verdict(votes: Votes) -> Verdict:
    """Combine both orders as the authors' code does: what cannot be read in one order is a vote.

    In their second order the tested response stands first; anything but "the baseline" there counts for the
    tested response. In the other order an unreadable answer is no vote, and the pair cannot be decided.
    """
    tested_first, tested_second = votes
    return combine(
        (1 if tested_first is None else tested_first, 0 if tested_second is None else tested_second)
    )


def merged_votes(votes: Mapping[str, Votes], instructions: Mapping[str, Hashable]) -> dict[str, Votes]:
    """Put items with the same instruction together, as the authors' code does: one verdict for all of them.

    The group stands under its first id, with the votes that all members agree on and 0 where they do not.
    """
    groups: dict[Hashable, list[str]] = {}
    for name in votes:
        groups.setdefault(instructions[name], []).append(name)
    return {
        names[0]: tuple(common([votes[name][order] for name in names]) for order in (0, 1))
        for names in groups.values()
    }


def common(votes: list[int | None]) -> int | None:
    """Return the vote that all agree on; 0 if they differ."""
    return votes[0] if len(set(votes)) == 1 else 0


def make_unreadable(votes: Mapping[str, Votes], share: float, seed: int) -> dict[str, Votes]:
    """Return the votes with a share of the single judgments, drawn by the seed, made unreadable."""
    draw = random.Random(f"unreadable-{seed}")
    return {name: tuple(None if draw.random() < share else v for v in pair) for name, pair in votes.items()}


def make_biased(votes: Mapping[str, Votes], share: float, seed: int) -> dict[str, Votes]:
    """Return the votes of a judge that, in a share of its judgments drawn by the seed, names A unread."""
    draw = random.Random(f"biased-{seed}")
    return {
        name: tuple(as_a if draw.random() < share else v for v, as_a in zip(pair, (1, -1), strict=True))
        for name, pair in votes.items()
    }
