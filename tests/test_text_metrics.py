"""Flip, difference in differences and length steering against numbers derived by hand."""

import math
import random

import pytest

from persona_lib.paper import swap


def test_flip_and_did_by_hand():
    chosen, rejected = ["a b", "a b", "a b", "a b"], ["c d", "c d", "c d", "c d"]
    # right way; wrong way; the persona is ignored (nearer to chosen both times); equal distance under P_C
    under_chosen, under_rejected = ["a b", "c d", "a b", "a c"], ["c d", "a b", "a b", "c d"]
    scores = swap.flip_and_did(under_chosen, under_rejected, chosen, rejected)
    assert scores.pull_chosen.tolist() == [1, -1, 1, 0] and scores.pull_rejected.tolist() == [-1, 1, 1, -1]
    assert scores.did.tolist() == [2, -2, 0, 1]
    assert scores.flip.tolist() == [1, 0, 0, 0]
    positive = scores.did_positive.tolist()
    assert positive[:2] == [1, 0] and math.isnan(positive[2]) and positive[3] == 1


def test_flip_and_did_refuses_lists_that_do_not_match():
    with pytest.raises(ValueError, match="shorter"):
        swap.flip_and_did(["a", "b"], ["a"], ["a", "b"], ["a", "b"])
    assert swap.flip_and_did([], [], [], []).did.shape == (0,)


def test_length_steering_is_a_rank_correlation():
    assert swap.length_steering([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1.0)
    # ranks 1 2 3 4 and 2 1 4 3: rho = 1 - 6 x 4 / (4 x 15) = .6
    assert swap.length_steering([1, 2, 3, 4], [5, 4, 9, 8]) == pytest.approx(0.6)
    assert swap.length_steering([1, 1, 1], [1, 2, 3]) is None
    assert swap.length_steering_interval([1, 1, 1], [1, 2, 3], 50) is None


def test_length_steering_interval_covers_a_known_correlation():
    rng = random.Random(1)
    first = [rng.gauss(0, 1) for _ in range(400)]
    second = [0.5 * x + rng.gauss(0, 0.75**0.5) for x in first]
    low, high = swap.length_steering_interval(first, second, 500)
    assert low < swap.length_steering(first, second) < high
    assert high - low == pytest.approx(2 * 1.96 * (1 - 0.48**2) / 20, rel=0.25)  # Spearman of r = .5 is .48
