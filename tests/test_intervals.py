"""Verdicts, dPQ and intervals against numbers derived by hand, and coverage in simulations."""

import math

import numpy as np
import pytest

from persona_lib import intervals
from persona_lib.intervals import Interval, bootstrap_mean, interval_of, make_pool, signs, verdict_of
from persona_lib.records import Judgment

VERDICTS = {"W": "win", "T": "tie", "L": "loss", "?": "unparsed"}


def column(by_seed):
    """A column of verdicts, one sequence of letters per seed."""
    return signs([{f"{i:04}": VERDICTS[v] for i, v in enumerate(verdicts)} for verdicts in by_seed])


def scores(p, q, n_resamples=2000, seed=0, shared_items=False):
    """Pool verdicts of both rubrics: {p_net, q_net, dpq: Interval}."""
    pool = make_pool({"x/p": column(p), "x/q": column(q)}, n_resamples, seed, shared_items, lambda _: -1)
    return {name: interval_of(drawn) for name, drawn in intervals.scores(pool, "x").items()}


def judged(answer: str) -> Judgment:
    """A judgment from one letter: A, B, = (tie) or ? (unreadable)."""
    return Judgment("i", "j", "quality", answer if answer in "AB" else None, tie=answer == "=")


@pytest.mark.parametrize(
    ("answers", "verdict"),  # the tested response is A in the first order, B in the second
    [
        *(("AB", "win"), ("BA", "loss"), ("AA", "tie"), ("BB", "tie"), ("==", "tie"), ("A=", "tie")),
        *(("=A", "tie"), ("A?", "unparsed"), ("?B", "unparsed"), ("??", "unparsed"), ("=?", "unparsed")),
    ],
)
def test_a_win_needs_both_orders_and_unparsed_is_never_a_win(answers, verdict):
    pair = judged(answers[0]), judged(answers[1])
    assert verdict_of(*pair) == verdict
    assert intervals.position_inconsistent(*pair) == (answers in ("AA", "BB"))


def test_dpq_is_the_mean_of_the_two_nets_in_points_and_undefined_where_nothing_is_decided():
    p = ["WWWL" + "T?" * 4]
    assert scores(p, ["WLLL"])["dpq"].estimate == pytest.approx(0.0)  # +.5 and -.5
    assert scores(p, ["WWTLL"])["dpq"].estimate == pytest.approx(25.0)  # +.5 and 0
    assert scores(["TTTT"], ["WLWL"], 40)["dpq"] == Interval() == scores(["WLWL"], ["TT??"], 40)["dpq"]


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_a_pool_has_the_mean_of_all_items_and_of_their_difference():
    first = [{"a": 1.0, "b": 3.0}, {"a": 5.0, "c": math.nan}]
    second = [{"a": 0.0, "b": 1.0}, {"a": 2.0}]
    pool = make_pool({"x": first, "y": second}, 50)
    assert pool["x"][0] == 3.0 and pool["x"].shape == (51,)  # (1 + 3 + 5) / 3: the NaN is no item
    assert (pool["x"] - pool["y"])[0] == 2.0  # 3 - 1
    assert interval_of(pool["x"] - pool["x"]) == Interval(0), "paired: the same draws for both"


def test_what_is_undefined_has_no_interval_and_resamples_without_a_value_are_left_out():
    assert bootstrap_mean([[math.nan] * 2], 30) == Interval() == bootstrap_mean([], 30)
    pool = make_pool({"x": [{"a": 1.0}], "y": [{}]}, 10)
    assert interval_of(np.mean([pool["x"], pool["y"]], axis=0)) == Interval() and make_pool({}, 10) == {}


Z2 = 1.959964**2


def test_a_share_or_a_net_of_one_seed_has_wilsons_interval_also_where_all_items_agree():
    def limits(values, least):
        pool = make_pool({"x": [dict(enumerate(values))]}, 2000, least=lambda _: least)
        found = interval_of(pool["x"])
        assert found.estimate == np.nanmean(values)
        return pytest.approx((found.low, found.high), abs=2e-3)

    assert limits([1] * 6, 0) == (6 / (6 + Z2), 1.0) and limits([0] * 6, 0) == (0.0, Z2 / (6 + Z2))
    assert limits([1] * 6 + [math.nan], -1) == (2 * 6 / (6 + Z2) - 1, 1.0), "six wins: 2 p - 1"
    assert intervals.wilson_interval(8, 10) == limits([1] * 8 + [0] * 2, 0)
    rare = scores(["WTTT"], ["WLWL"], 400)["p_net"]  # one decided: many resamples have none
    assert (rare.low, rare.high) == pytest.approx((2 / (1 + Z2) - 1, 1), abs=2e-3)
    assert intervals.wilson_interval(0, 40)[0] == 0, "not 4e-19"


def test_no_interval_is_without_width_and_differences_of_shares_are_paired():
    items = {name: [dict.fromkeys(range(n), 1.0)] for name, n in (("a", 6), ("b", 7), ("c", 6))}
    pool = make_pool(items, 2000, least=lambda _: 0)
    assert interval_of(pool["a"] - pool["c"]) == Interval(0.0), "the same values: differences are all 0"
    gap = interval_of(pool["a"] - pool["b"])
    assert gap.estimate == 0 and 0.25 < -gap.low == pytest.approx(gap.high, abs=0.1), "other items: Wilson's"
    for alike in ([np.zeros(9)], [np.ones(9)] * 3):  # differences, or several seeds
        assert bootstrap_mean(alike) == Interval(alike[0][0])
    several = {"x": [{0: 0.0, 1: 1.0}, {0: 0.0, 1: 0.0}]}
    assert (make_pool(several, 9)["x"] == make_pool(several, 9, least=lambda _: 0)["x"]).all(), "resampled"


def test_one_seed_has_the_interval_of_its_items_and_clusters_are_drawn_as_a_whole():
    values = np.random.default_rng(0).normal(0.3, 1, 400)
    half = 1.96 * values.std() / 20
    found, limits = bootstrap_mean([values], 4000), (values.mean() - half, values.mean() + half)
    assert (found.low, found.high) == pytest.approx(limits, abs=0.1 * half)
    twice = np.column_stack([2 * values, np.full(400, 2.0)])  # clusters of two equal items, as sums
    drawn = intervals.resampled([twice], lambda sums: intervals.ratio(sums[:, 0], sums[:, 1]), 4000)
    assert width(interval_of(drawn)) == pytest.approx(width(found), rel=0.1)


def test_the_mean_of_seeds_that_are_alike_within_has_students_interval():
    """Seeds of constant items leave nothing but the seeds: by hand, mean 0.5 and half width t s / sqrt(5)."""
    result = bootstrap_mean([np.full(40, level) for level in (0.1, 0.3, 0.5, 0.7, 0.9)], 20_000)
    half = 2.7764 * math.sqrt(0.1) / math.sqrt(5)  # variance of the levels: .1
    by_hand = (0.5, 0.5 - half, 0.5 + half)
    assert (result.estimate, result.low, result.high) == pytest.approx(by_hand, abs=0.05)


def test_equal_seeds_say_nothing_of_items_which_are_drawn_if_they_are_shared():
    values = np.repeat([0.0, 1.0], 20)
    alone = bootstrap_mean([values], 4000)
    apart, shared = (bootstrap_mean([values] * 3, 4000, shared_items=shared) for shared in (False, True))
    assert apart == Interval(0.5)
    assert (shared.low, shared.high) == pytest.approx((alone.low, alone.high), abs=0.03)


def test_an_arm_of_one_seed_among_arms_of_five_has_the_interval_of_one_seed():
    one = column(["", "", "WLTT" * 10, "", ""])
    pool = make_pool({"many": column(["WWLT" * 10] * 5), "one": one}, 2000)
    alone = interval_of(make_pool({"one": [one[2]]}, 2000)["one"])
    assert interval_of(pool["one"]) == alone and width(alone) > 0.5


def coverage(n_experiments, n_items, seed_spread, n_seeds):
    """Share of experiments whose interval holds the true dPQ: quality copies half of the other verdicts.

    The net win rate of personalization is .2; seeds differ in their share of wins.
    """
    held = 0
    for number in range(n_experiments):
        rng = np.random.default_rng(number)
        shares = 0.6 + rng.uniform(-seed_spread, seed_spread, n_seeds)
        p = [np.where(rng.random(n_items) < share, "W", "L").tolist() for share in shares]
        q = [[v if rng.random() < 0.5 else rng.choice(["W", "L"]) for v in verdicts] for verdicts in p]
        interval = scores(p, q, 400, number)["dpq"]
        held += interval.low <= 100 * (0.2 + 0.1) / 2 <= interval.high
    return held / n_experiments


SLOW = [pytest.param(500, n_seeds, spread, marks=pytest.mark.slow)
        for n_seeds, spread in ((3, 0.15), (5, 0.0), (5, 0.15))]  # fmt: skip


@pytest.mark.parametrize(("n_experiments", "n_seeds", "spread"), [(150, 1, 0.0), *SLOW])
def test_intervals_cover_as_they_say(n_experiments, n_seeds, spread):
    assert 0.90 <= coverage(n_experiments, 160, spread, n_seeds) <= 0.98


def test_sign_test_and_wilson_interval_by_hand():
    assert intervals.sign_test(3, 0) == pytest.approx(0.25)  # 2 x (1/2)^3
    assert intervals.sign_test(0, 0) == 1.0
    assert intervals.sign_test(187, 150) == pytest.approx(0.0497, abs=5e-5)
    for bound in intervals.wilson_interval(8, 10):  # |share - bound| = z sqrt(bound (1 - bound) / n)
        assert abs(0.8 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 10), abs=1e-6)
    assert intervals.wilson_interval(0, 0) == (0, 1)


def test_holm_by_hand():
    # sorted .01 .02 .04: 3 x .01, 2 x .02 -> .04, 1 x .04 -> .04 (monotone)
    found = intervals.holm([0.04, math.nan, 0.01, 0.02])
    assert found == pytest.approx([0.04, math.nan, 0.03, 0.04], nan_ok=True), "a NaN is not counted"
    assert intervals.holm([0.6, 0.7]) == [1.0, 1.0] and intervals.holm([]) == []
