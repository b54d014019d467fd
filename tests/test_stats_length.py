"""Win rates at equal length: against a likelihood maximised by hand, a simulation and edge cases."""

from __future__ import annotations

import numpy as np
import pytest

from persona_lib.paper.swap import length_controlled, length_matched


def simulated(n, net, slope, shift, seed):
    """Verdicts that length sways: logit P(win) = 2 artanh(net) + slope tanh(d / sd); a fifth are ties."""
    rng = np.random.default_rng(seed)
    differences = rng.normal(shift, 10, n).round()
    terms = np.tanh(differences / differences.std())
    wins = rng.random(n) < 1 / (1 + np.exp(-(2 * np.arctanh(net) + slope * terms)))
    signs = np.where(rng.random(n) < 0.2, 0.0, np.where(wins, 1.0, -1.0))
    return signs, differences


def ids(n):
    """One prompt per comparison."""
    return [str(i) for i in range(n)]


def test_the_fit_maximises_the_likelihood():
    from scipy.optimize import minimize

    signs, differences = simulated(400, 0.1, 1.5, 6, 0)
    decided = signs != 0
    terms = np.tanh(differences[decided] / differences[decided].std())

    def loss(parameters):
        return np.logaddexp(0, -signs[decided] * (parameters[0] + parameters[1] * terms)).sum()

    a, b = minimize(loss, [0, 0]).x
    found = length_controlled(signs, differences, ids(400))
    assert found.net.estimate == pytest.approx(np.tanh(a / 2), abs=1e-4)
    assert found.slope.estimate == pytest.approx(b, abs=1e-3)


def test_a_win_rate_that_is_only_length_is_gone_at_equal_length():
    signs, differences = simulated(3000, 0.0, 3.0, 12, 1)
    assert signs.sum() / np.abs(signs).sum() > 0.4  # the raw net win rate
    found = length_controlled(signs, differences, ids(3000))
    assert found.net.low < 0 < found.net.high and found.slope.low > 2


def test_the_interval_holds_the_truth_as_often_as_it_says():
    held = 0
    for seed in range(100):
        signs, differences = simulated(300, 0.3, 1.0, 3, seed)
        net = length_controlled(signs, differences, ids(300)).net
        held += net.low < 0.3 < net.high
    assert 90 <= held <= 99


def test_the_same_prompts_again_do_not_narrow_the_interval():
    signs, differences = simulated(300, 0.2, 1.0, 3, 2)
    once = length_controlled(signs, differences, ids(300))
    twice = length_controlled([*signs, *signs], [*differences, *differences], ids(300) * 2)
    apart = length_controlled([*signs, *signs], [*differences, *differences], ids(600))
    assert twice.net.estimate == pytest.approx(once.net.estimate)
    assert twice.net.high == pytest.approx(once.net.high, abs=2e-3)
    assert apart.net.high < once.net.high - 0.02


@pytest.mark.parametrize(
    ("signs", "differences", "why"),
    [
        ([1, 1, 1, -1, 0, 0], [1, 2, 3, 4, 5, 6], "fewer than 5"),
        ([1] * 6 + [-1] * 6, [2] * 12, "all length differences are equal"),
        ([1] * 6 + [-1] * 6, [5] * 6 + [-5] * 6, "length alone tells"),
        ([], [], "fewer than 5"),
    ],
)
def test_what_cannot_be_fitted_says_why_and_has_no_numbers(signs, differences, why):
    found = length_controlled(signs, differences, ids(len(signs)))
    assert why in found.why and found.net.estimate is None and found.slope.low is None


def test_ties_and_unparsed_verdicts_do_not_count():
    signs, differences = simulated(200, 0.2, 0.5, 0, 3)
    more = length_controlled([*signs, 0.0, np.nan], [*differences, 500, 900], ids(202))
    assert more == length_controlled(signs, differences, ids(200))


def test_equal_length_is_within_a_tenth_of_the_longer_answer():
    assert length_matched([100, 100, 90, 89, 0], [90, 89, 100, 100, 0]).tolist() == [
        True,
        False,
        True,
        False,
        True,
    ]
