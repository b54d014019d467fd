"""Agreement of raters: published values, hand counts, and simulated raters whose true agreement is known."""

import math
import random

import numpy as np
import pytest
from simulated_raters import simulate

from persona_lib import intervals

SCALE = (1, 2, 3, 4, 5)
N = float("nan")
# The data of Krippendorff (2011), "Computing Krippendorff's alpha-reliability": 4 observers, 12 units.
PUBLISHED = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]).T  # fmt: skip


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorffs_own_example(level, alpha):
    assert intervals.krippendorff_alpha(PUBLISHED, SCALE, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_is_undefined_where_nothing_can_disagree():
    assert intervals.krippendorff_alpha(np.array([[1, 1], [1, 1]]), SCALE) is None
    assert intervals.krippendorff_alpha(np.array([[1, N], [N, 2]]), SCALE) is None
    assert intervals.alpha_interval(np.array([[3, 3], [3, N]]), SCALE, n_resamples=5).estimate is None
    with pytest.raises(ValueError, match="nominal, ordinal, interval"):
        intervals.krippendorff_alpha(PUBLISHED, SCALE, "likert")


def test_kappas_by_hand():
    # 2 x 2: both 1 in 4, both 2 in 3, (1, 2) in 2, (2, 1) in 1: p_o = .7, p_e = .6 x .5 + .4 x .5 = .5
    ratings = np.array([[1, 1]] * 4 + [[2, 2]] * 3 + [[1, 2]] * 2 + [[2, 1]])
    assert intervals.cohen_kappa(ratings, SCALE) == pytest.approx(0.4)
    # Fleiss takes both raters' margins together: 11 ones, 9 twos of 20: p_e = .55^2 + .45^2 = .505
    kappa, n = intervals.fleiss_kappa(ratings, SCALE)
    assert n == 10 and kappa == pytest.approx((0.7 - 0.505) / (1 - 0.505))
    assert intervals.cohen_kappa(np.array([[1, 1], [1, 1]]), SCALE) is None
    assert intervals.fleiss_kappa(np.array([[1, N], [2, N]]), SCALE) == (None, 0)


def test_a_missing_rating_takes_its_item_out_of_fleiss_but_not_out_of_cohen():
    ratings = np.array([[1, 1, 1], [2, 2, 2], [1, 2, N], [3, 3, 4]])
    assert intervals.fleiss_kappa(ratings, SCALE)[1] == 3
    assert intervals.pair_table(ratings[:, 0], ratings[:, 1], SCALE).sum() == 4
    assert intervals.pair_table(ratings[:, 0], ratings[:, 2], SCALE).sum() == 3


def simulated(alpha: float, n_items: int, n_raters: int, seed: int) -> np.ndarray:
    """Ratings of a skewed scale by raters whose true alpha is known, (items, raters)."""
    rng = random.Random(seed)
    truth = {str(n): rng.choices(SCALE, (1, 2, 5, 8, 3))[0] for n in range(n_items)}
    columns = [list(simulate(truth, f"rater-{r}", alpha, seed).values()) for r in range(n_raters)]
    return np.array(columns, dtype=float).T


@pytest.mark.parametrize("level", intervals.LEVELS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.6, 0.9])
def test_alpha_of_simulated_raters_is_within_a_twentieth_of_the_truth(alpha, level):
    estimate = intervals.krippendorff_alpha(simulated(alpha, 2000, 3, seed=1), SCALE, level)
    assert estimate == pytest.approx(alpha, abs=0.05)


def test_kappas_of_simulated_raters_are_near_the_truth_and_missing_ratings_do_no_harm():
    ratings = simulated(0.6, 2000, 3, seed=2)
    assert intervals.cohen_kappa(ratings, SCALE) == pytest.approx(0.6, abs=0.05)
    assert intervals.fleiss_kappa(ratings, SCALE)[0] == pytest.approx(0.6, abs=0.05)
    holes = np.random.default_rng(0).random(ratings.shape) < 0.3
    left = intervals.krippendorff_alpha(np.where(holes, N, ratings), SCALE)
    assert left == pytest.approx(0.6, abs=0.05)


@pytest.mark.slow
def test_the_interval_of_alpha_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(60):
        ratings = simulated(0.6, 60, 3, seed)
        interval = intervals.alpha_interval(ratings, SCALE, "interval", n_resamples=150, seed=seed)
        hits += interval.low <= 0.6 <= interval.high
    assert 51 <= hits <= 60  # 95 % of 60 are 57; binomial: below 51 once in 300


def test_the_simulated_truth_is_reported_as_often_as_the_square_root_says():
    truth = {str(n): 1 + n % 5 for n in range(4000)}
    given = simulate(truth, "rater-1", 0.49, seed=0)
    # .7 report it, the others hit it by chance once in five
    share = sum(given[item] == value for item, value in truth.items()) / len(truth)
    assert share == pytest.approx(0.7 + 0.3 / 5, abs=3 * math.sqrt(0.76 * 0.24 / 4000))
