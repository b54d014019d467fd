"""Verdicts, dPQ and intervals against numbers derived by hand, slow literal transcriptions and coverage."""

from __future__ import annotations

import functools
import math
import random

import numpy as np
import pytest

from persona_lib import intervals
from persona_lib.intervals import Interval, WinRate, interval_of, make_pool, signs, verdict_of
from persona_lib.paper.results import scores as scores_of
from persona_lib.records import Judgment

VERDICTS = {"W": "win", "T": "tie", "L": "loss", "?": "unparsed", 1: "win", 0: "tie", -1: "loss"}


def column(by_seed):
    """A column of verdicts, one sequence of letters or signs per seed."""
    return signs([{f"{i:04}": VERDICTS[v] for i, v in enumerate(verdicts)} for verdicts in by_seed])


def scores(p, q, n_resamples=2000, seed=0, shared_items=False):
    """Pool verdicts of both rubrics: {p_net, q_net, dpq: Interval}."""
    pool = make_pool({"x/p": column(p), "x/q": column(q)}, n_resamples, seed, shared_items)
    return {name: interval_of(drawn) for name, drawn in scores_of(pool, "x").items()}


# --- verdicts: the tested response is A in the first order, B in the second ---


def judged(answer: str) -> Judgment:
    """A judgment from one letter: A, B, = (tie) or ? (unreadable)."""
    return Judgment("i", "j", "quality", answer if answer in "AB" else None, tie=answer == "=")


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        *(("AB", "win"), ("BA", "loss"), ("AA", "tie"), ("BB", "tie"), ("==", "tie"), ("A=", "tie")),
        *(("=A", "tie"), ("A?", "unparsed"), ("?B", "unparsed"), ("??", "unparsed"), ("=?", "unparsed")),
    ],
)
def test_a_win_needs_both_orders_and_unparsed_is_never_a_win(answers, verdict):
    pair = judged(answers[0]), judged(answers[1])
    assert verdict_of(*pair) == verdict
    assert intervals.position_inconsistent(*pair) == (answers in ("AA", "BB"))


def test_win_rate_keeps_ties_and_unparsed_out_of_the_rate_but_in_n():
    counts = WinRate.from_verdicts(["win"] * 3 + ["loss"] + ["tie"] * 4 + ["unparsed"] * 2)
    assert counts == WinRate(3, 4, 1, 2)
    assert (counts.n, counts.n_decided, counts.net) == (10, 4, 0.5)
    with pytest.raises(ValueError, match="draw"):
        WinRate.from_verdicts(["win", "draw"])


def test_dpq_is_the_mean_of_the_two_nets_in_points_and_undefined_where_nothing_is_decided():
    p = ["WWWL" + "T" * 9]
    assert scores(p, ["WLLL"])["dpq"].estimate == pytest.approx(0.0)  # +.5 and -.5
    assert scores(p, ["WWTLL"])["dpq"].estimate == pytest.approx(25.0)  # +.5 and 0
    assert scores(["TTTT"], ["WLWL"], 40)["dpq"] == Interval() == scores(["WLWL"], ["TT??"], 40)["dpq"]
    assert WinRate(0, 5, 0).net is None


# --- intervals ---


def random_verdicts(seed: int, n: int, shares=(0.4, 0.3, 0.3)) -> np.ndarray:
    return np.random.default_rng(seed).choice([1, 0, -1], size=n, p=shares)


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_a_pool_has_the_mean_of_all_items_and_of_their_difference():
    first = [{"a": 1.0, "b": 3.0}, {"a": 5.0, "c": math.nan}]
    second = [{"a": 0.0, "b": 1.0}, {"a": 2.0}]
    pool = make_pool({"x": first, "y": second}, 50)
    assert pool["x"][0] == 3.0 and pool["x"].shape == (51,)  # (1 + 3 + 5) / 3: the NaN is no item
    assert (pool["x"] - pool["y"])[0] == 2.0  # 3 - 1
    assert interval_of(pool["x"] - pool["x"]) == Interval(0, 0, 0), "paired: the same draws for both"


def test_what_is_undefined_has_no_interval_and_resamples_without_a_value_are_left_out():
    rare = scores(["WTTT"], ["WLWL"], 400)["p_net"]
    assert rare.estimate == rare.low == rare.high == 1.0
    assert intervals.bootstrap_mean([[math.nan] * 2], 30) == Interval()
    pool = make_pool({"x": [{"a": 1.0}], "y": [{}]}, 10)
    assert interval_of(np.mean([pool["x"], pool["y"]], axis=0)) == Interval()
    with pytest.raises(ValueError, match="nothing to pool"):
        make_pool({}, 10)


def dpq_of(p: list, q: list) -> float:
    return 50 * sum((v.count(1) - v.count(-1)) / (v.count(1) + v.count(-1)) for v in (p, q))


def draw(seeds: list, items: list, verdicts: list) -> list:
    return [verdicts[s][i] for s in seeds for i in items]


def literal_interval(p: list, q: list, stretch: float, shared: bool) -> tuple[float, float]:
    """Draw seeds, and items where they say what seeds do not, one by one, from lists of verdicts."""
    rng, values = random.Random(5), []
    n_seeds, n_items = len(p), len(p[0])
    every_seed, every_item = list(range(n_seeds)), list(range(n_items))
    estimate = dpq_of(*(draw(every_seed, every_item, v) for v in (p, q)))
    for _ in range(4000):
        value = estimate
        if n_seeds > 1:
            seeds = [rng.randrange(n_seeds) for _ in p]
            value += stretch * (dpq_of(*(draw(seeds, every_item, v) for v in (p, q))) - estimate)
        if n_seeds == 1 or shared:
            items = [rng.randrange(n_items) for _ in p[0]]
            value += dpq_of(*(draw(every_seed, items, v) for v in (p, q))) - estimate
        values.append(value)
    return tuple(np.percentile(values, [2.5, 97.5]))


T_OVER_Z = {1: 1.0, 2: 12.706 / 1.95996, 3: 4.3027 / 1.95996, 5: 2.7764 / 1.95996}  # of a printed t table
MORE = pytest.param(5, False, marks=pytest.mark.slow)


@pytest.mark.parametrize(("n_seeds", "shared"), [(1, False), (3, True), MORE])
def test_interval_agrees_with_a_literal_transcription(n_seeds, shared):
    base, other = random_verdicts(0, 80), (0.5, 0.3, 0.2)
    p = [
        np.where(random_verdicts(s, 80) > 0, base, random_verdicts(s + 9, 80, other)) for s in range(n_seeds)
    ]
    q = [np.where(v == 0, 1, v) for v in p]  # quality tied to personalization: pairing matters
    p, q = ([v.tolist() for v in rubric] for rubric in (p, q))
    fast = scores(p, q, 4000, seed=1, shared_items=shared)["dpq"]
    stretch = math.sqrt(n_seeds / max(1, n_seeds - 1)) * T_OVER_Z[n_seeds]
    low, high = literal_interval(p, q, stretch, shared)
    assert width(fast) == pytest.approx(high - low, rel=0.12)
    assert fast.low + fast.high == pytest.approx(low + high, abs=0.12 * (high - low))


def test_the_mean_of_seeds_that_are_alike_within_has_students_interval():
    """Seeds of constant items leave nothing but the seeds: by hand, mean 0.5 and half width t s / sqrt(5)."""
    result = intervals.bootstrap_mean([np.full(40, level) for level in (0.1, 0.3, 0.5, 0.7, 0.9)], 20_000)
    half = 2.7764 * math.sqrt(0.1) / math.sqrt(5)  # variance of the levels: .1
    assert result.estimate == pytest.approx(0.5)
    assert (result.low, result.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.08 * half)


def test_an_arm_of_one_seed_among_arms_of_five_has_the_interval_of_one_seed():
    one = column(["", "", "WLTT" * 10, "", ""])
    pool = make_pool({"many": column(["WWLT" * 10] * 5), "one": one}, 2000)
    alone = interval_of(make_pool({"one": [one[2]]}, 2000)["one"])
    assert interval_of(pool["one"]) == alone and width(alone) > 0.5
    values, none = np.repeat([0.0, 1.0], 20), np.full(40, np.nan)
    assert intervals.bootstrap_mean([values, none], shared_items=True) == intervals.bootstrap_mean([values])


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_both_rubrics_are_resampled_jointly_so_opposite_ones_cancel_exactly(n_seeds):
    p = random_verdicts(3, 60)
    result = scores([p.tolist()] * n_seeds, [(-p).tolist()] * n_seeds, 300)["dpq"]
    assert (result.estimate, result.low, result.high) == pytest.approx((0, 0, 0))


@pytest.mark.parametrize(
    ("values", "shared", "message"),
    [
        ([], False, "at least one seed"),
        ([np.zeros(0)], False, "at least one seed"),
        ([np.ones(3), np.ones(2)], True, "same items"),
    ],
)
def test_unusable_input_is_an_error_that_says_what(values, shared, message):
    with pytest.raises(ValueError, match=message):
        intervals.bootstrap_mean(values, 10, shared_items=shared)


def test_rank_correlation_by_hand_and_undefined_for_a_constant():
    assert intervals.rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000], 20).estimate == pytest.approx(1.0)
    # ranks 1 2 3 4 and 2 1 4 3: rho = 1 - 6 x 4 / (4 x 15) = .6
    assert intervals.rank_correlation([1, 2, 3, 4], [5, 4, 9, 8], 20).estimate == pytest.approx(0.6)
    assert intervals.rank_correlation([1, 1, 1], [1, 2, 3], 20).estimate is None


# --- coverage: how often 95 % intervals hold the truth, simulated with known win rates ---


SHARES = (0.45, 0.3, 0.25)  # of wins, ties, losses, before seeds differ


def seed_shares(shift):
    """Shares of wins, ties and losses of a seed (or of many): more wins and fewer losses by ``shift``."""
    parts = np.clip([SHARES[0] + shift, SHARES[1] + 0 * shift, SHARES[2] - shift], 0, 1)
    return parts / parts.sum(axis=0)


@functools.cache
def truth(seed_spread):
    """dPQ over all seeds that there could be: the mean of a million seeds' shares."""
    win, _, loss = seed_shares(np.random.default_rng(7).normal(0, seed_spread, 1_000_000)).mean(axis=1)
    personalization = (win - loss) / (win + loss)
    quality = (win - loss) / (win + loss + 2 / 3)  # half of the pairs at random, of which two thirds decide
    return 50 * (personalization + quality)


def simulate(number, n_items, seed_spread, n_seeds):
    """Verdicts on both rubrics per seed; seeds differ in their share of wins."""
    rng, p, q = np.random.default_rng(number), [], []
    for _ in range(n_seeds):
        edges = np.cumsum(seed_shares(rng.normal(0, seed_spread)))[:2]
        verdicts = 1 - np.searchsorted(edges, rng.random(n_items))
        p.append(verdicts.tolist())  # quality goes with personalization in half of the pairs
        q.append(np.where(rng.random(n_items) < 0.5, verdicts, rng.choice([1, 0, -1], size=n_items)).tolist())
    return p, q


def coverage(n_experiments, n_items, seed_spread, n_seeds):
    """Share of experiments whose interval holds the true score."""
    held = 0
    for number in range(n_experiments):
        interval = scores(*simulate(number, n_items, seed_spread, n_seeds), 400, number)["dpq"]
        held += interval.low <= truth(seed_spread) <= interval.high
    return held / n_experiments


def test_a_run_of_one_seed_covers_as_it_says():
    assert 0.90 <= coverage(150, 120, 0.0, 1) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("n_seeds", "spread"), [(3, 0.1), (5, 0.0), (5, 0.1)])
def test_seeds_with_items_of_their_own_cover_as_they_say(n_seeds, spread):
    assert 0.90 <= coverage(500, 160, spread, n_seeds) <= 0.98


# --- tests and closed forms ---


def test_sign_test_by_hand_and_on_two_paper_rows():
    assert intervals.sign_test(3, 0) == pytest.approx(0.25)  # 2 x (1/2)^3
    assert intervals.sign_test(0, 0) == 1.0
    assert intervals.sign_test(187, 150) == pytest.approx(0.0497, abs=5e-5)
    assert intervals.sign_test(204, 169) == pytest.approx(0.078, abs=5e-4)


def test_wilson_interval_solves_its_equation_and_stays_in_bounds():
    for bound in intervals.wilson_interval(8, 10):  # |share - bound| = z sqrt(bound (1 - bound) / n)
        assert abs(0.8 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 10), abs=1e-6)
    assert intervals.wilson_interval(0, 10)[0] == 0 and intervals.wilson_interval(10, 10)[1] == 1
    assert intervals.wilson_interval(0, 0) == (0, 1)


def test_holm_by_hand_and_as_statsmodels_to_the_last_bit():
    from statsmodels.stats.multitest import multipletests

    # sorted .01 .02 .04: 3 x .01, 2 x .02 -> .04, 1 x .04 -> .04 (monotone)
    found = intervals.holm([0.04, math.nan, 0.01, 0.02])
    assert found == pytest.approx([0.04, math.nan, 0.03, 0.04], nan_ok=True), "a NaN is not counted"
    assert intervals.holm([0.6, 0.7]) == [1.0, 1.0] and intervals.holm([]) == []
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 40):
        given = rng.random(size).round(2) ** 3  # with ties
        assert intervals.holm(given.tolist()) == multipletests(given, method="holm")[1].tolist()
