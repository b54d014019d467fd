"""How often the bootstrap's 95 % intervals hold the truth: simulated with known win rates."""

from __future__ import annotations

import numpy as np
import pytest

from persona_lib.stats.bootstrap import bootstrap_scores, score_values, verdict_columns
from persona_lib.stats.significance import t_interval

TRUTH = {"personalization": 0.2 / 0.7, "delta_pq": 50 * (0.2 / 0.7 + 0.1 / (0.35 + 1 / 3))}


def simulate(number, n_items, seed_spread, n_seeds):
    """Verdicts on both rubrics per seed; seeds differ in their share of wins."""
    rng = np.random.default_rng(number)
    p, q = [], []
    for _ in range(n_seeds):
        shift = rng.normal(0, seed_spread)
        shares = np.clip([0.45 + shift, 0.3, 0.25 - shift], 0, 1)
        verdicts = rng.choice([1.0, 0.0, -1.0], size=n_items, p=shares / shares.sum())
        p.append(verdicts)  # quality goes with personalization in half of the pairs
        q.append(np.where(rng.random(n_items) < 0.5, verdicts, rng.choice([1.0, 0.0, -1.0], size=n_items)))
    return p, q


def coverage(n_experiments, n_items, seed_spread, n_seeds, score="delta_pq"):
    """Share of experiments whose interval holds the true score."""
    held = 0
    for number in range(n_experiments):
        interval = bootstrap_scores(*simulate(number, n_items, seed_spread, n_seeds), 300, seed=number)[score]
        held += interval.low <= TRUTH[score] <= interval.high
    return held / n_experiments


def coverage_of_t(n_experiments, n_items, seed_spread, n_seeds):
    """Share of experiments whose t interval over the seeds' dPQ holds the true one."""
    held = 0
    for number in range(n_experiments):
        pairs = zip(*simulate(number, n_items, seed_spread, n_seeds), strict=True)
        each = [score_values(verdict_columns(*pair).sum(axis=0)[None], "delta_pq")[0] for pair in pairs]
        _, low, high = t_interval(each)
        held += low <= TRUTH["delta_pq"] <= high
    return held / n_experiments


def test_a_run_of_one_seed_covers_as_it_says():
    assert 0.90 <= coverage(150, 120, 0.0, 1) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("score", ["personalization", "delta_pq"])
def test_one_seed_covers_as_it_says_in_a_thousand_experiments(score):
    assert 0.92 <= coverage(1000, 160, 0.0, 1, score) <= 0.97


@pytest.mark.slow
def test_ten_seeds_that_differ_are_covered_where_pooling_them_is_not():
    assert 0.88 <= coverage(300, 60, 0.05, 10) <= 0.98


@pytest.mark.slow
def test_five_seeds_that_differ_much_are_covered_by_t_and_too_seldom_by_the_bootstrap():
    assert 0.92 <= coverage_of_t(1000, 160, 0.1, 5) <= 0.98
    assert 0.80 <= coverage(300, 160, 0.1, 5) <= 0.92


def test_five_seeds_are_covered_by_t():
    assert 0.90 <= coverage_of_t(200, 160, 0.1, 5) <= 0.99
