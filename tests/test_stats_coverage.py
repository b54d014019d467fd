"""How often the bootstrap's 95 % intervals hold the truth: simulated with known win rates."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from resampling import scores

SHARES = (0.45, 0.3, 0.25)  # of wins, ties, losses, before seeds differ


def seed_shares(shift):
    """Shares of wins, ties and losses of a seed (or of many): more wins and fewer losses by ``shift``."""
    parts = np.clip([SHARES[0] + shift, SHARES[1] + 0 * shift, SHARES[2] - shift], 0, 1)
    return parts / parts.sum(axis=0)


@functools.cache
def truth(seed_spread):
    """Scores over all seeds that there could be: the mean of a million seeds' shares."""
    win, _, loss = seed_shares(np.random.default_rng(7).normal(0, seed_spread, 1_000_000)).mean(axis=1)
    personalization = (win - loss) / (win + loss)
    quality = (win - loss) / (win + loss + 2 / 3)  # half of the pairs at random, of which two thirds decide
    return {"personalization": personalization, "delta_pq": 50 * (personalization + quality)}


def simulate(number, n_items, seed_spread, n_seeds, shared_items=False):
    """Verdicts on both rubrics per seed; seeds differ in their share of wins.

    ``shared_items``: seeds agree on seven items of ten as far as their shares allow.
    """
    rng = np.random.default_rng(number)
    p, q, item = [], [], rng.random(n_items)
    for _ in range(n_seeds):
        place = np.where(rng.random(n_items) < 0.7, item, rng.random(n_items)) if shared_items else None
        place = rng.random(n_items) if place is None else place
        edges = np.cumsum(seed_shares(rng.normal(0, seed_spread)))[:2]
        verdicts = 1 - np.searchsorted(edges, place)
        p.append(verdicts.tolist())  # quality goes with personalization in half of the pairs
        q.append(np.where(rng.random(n_items) < 0.5, verdicts, rng.choice([1, 0, -1], size=n_items)).tolist())
    return p, q


def coverage(n_experiments, n_items, seed_spread, n_seeds, score="delta_pq", shared_items=False):
    """Share of experiments whose interval holds the true score."""
    held = 0
    for number in range(n_experiments):
        p, q = simulate(number, n_items, seed_spread, n_seeds, shared_items)
        interval = scores(p, q, 400, number, shared_items)[score]
        held += interval.low <= truth(seed_spread)[score] <= interval.high
    return held / n_experiments


def test_a_run_of_one_seed_covers_as_it_says():
    assert 0.90 <= coverage(150, 120, 0.0, 1) <= 0.98


@pytest.mark.slow
def test_five_seeds_that_differ_much_cover_as_they_say():
    assert 0.90 <= coverage(150, 80, 0.1, 5) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("score", ["personalization", "delta_pq"])
@pytest.mark.parametrize(
    ("n_seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.1), (5, 0.0), (5, 0.05), (5, 0.1), (10, 0.0), (10, 0.1)]
)
def test_seeds_with_items_of_their_own_cover_as_they_say(n_seeds, spread, score):
    assert 0.90 <= coverage(500, 160, spread, n_seeds, score) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("n_seeds", "spread"), [(3, 0.05), (3, 0.1), (5, 0.05), (5, 0.1), (10, 0.1)])
def test_seeds_that_share_their_items_cover_at_least_as_often(n_seeds, spread):
    assert coverage(300, 160, spread, n_seeds, shared_items=True) >= 0.93
