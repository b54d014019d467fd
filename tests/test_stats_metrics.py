"""Verdicts, dPQ and intervals against numbers derived by hand and against slow literal transcriptions."""

import math
import random

import numpy as np
import pytest
from resampling import VERDICTS as NAMES
from resampling import scores

from persona_lib import intervals
from persona_lib.beyond import claims
from persona_lib.intervals import (
    PersonaAccuracy,
    WinRate,
    delta_pq,
    difference,
    make_pool,
    mean_columns,
    mean_of,
    net_columns,
    net_of,
    verdict_of,
)
from persona_lib.records import Judgment

PAPER_ROWS = claims.paper_table()


def judged(answer: str) -> Judgment:
    """A judgment from one letter: A, B, = (tie) or ? (unreadable)."""
    return Judgment("i", "j", "quality", answer if answer in "AB" else None, tie=answer == "=")


# --- verdicts: the tested response is A in the first order, B in the second ---


@pytest.mark.parametrize(
    ("answers", "verdict", "inconsistent"),
    [
        ("AB", "win", False),
        ("BA", "loss", False),
        ("AA", "tie", True),
        ("BB", "tie", True),
        ("==", "tie", False),
        ("A=", "tie", False),
        ("=A", "tie", False),
        ("A?", "unparsed", False),
        ("?B", "unparsed", False),
        ("??", "unparsed", False),
        ("=?", "unparsed", False),
    ],
)
def test_a_win_needs_both_orders_and_unparsed_is_never_a_win(answers, verdict, inconsistent):
    pair = judged(answers[0]), judged(answers[1])
    assert verdict_of(*pair) == verdict
    assert intervals.position_inconsistent(*pair) == inconsistent


def test_win_rate_keeps_ties_and_unparsed_out_of_the_rate_but_in_n():
    counts = WinRate.from_verdicts(["win"] * 3 + ["loss"] + ["tie"] * 4 + ["unparsed"] * 2)
    assert counts == WinRate(3, 4, 1, 2)
    assert (counts.n, counts.n_decided, counts.rate, counts.net) == (10, 4, 0.75, 0.5)


def test_win_rate_rejects_an_unknown_verdict():
    with pytest.raises(ValueError, match="draw"):
        WinRate.from_verdicts(["win", "draw"])


def test_nothing_decided_has_no_rate_and_no_dpq():
    empty = WinRate(0, 5, 0)
    assert (empty.rate, empty.net, WinRate(0, 0, 0).net) == (None, None, None)
    assert delta_pq(empty, WinRate(1, 0, 0)) is None and delta_pq(WinRate(1, 0, 0), empty) is None


def test_dpq_is_the_mean_of_the_two_nets_in_points():
    assert delta_pq(WinRate(3, 9, 1), WinRate(1, 0, 3)) == pytest.approx(0.0)  # +.5 and -.5
    assert delta_pq(WinRate(3, 9, 1), WinRate(2, 1, 2)) == pytest.approx(25.0)  # +.5 and 0


# --- the paper's table ---


@pytest.mark.parametrize("row", PAPER_ROWS, ids=lambda r: f"{r['dataset']}-{r['side']}-{r['persona']}")
def test_dpq_of_the_exact_counts_equals_the_printed_one(row):
    personalization, quality = claims.paper_win_rates(row)
    assert personalization.n == quality.n == int(row["n"])
    assert f"{delta_pq(personalization, quality):.1f}" == row["dpq_printed"]


@pytest.mark.parametrize("row", PAPER_ROWS, ids=lambda r: f"{r['dataset']}-{r['side']}-{r['persona']}")
def test_printed_percentages_are_the_counts_rounded_and_give_dpq_within_rounding(row):
    nets = []
    for metric in "pq":
        for verdict in ("win", "tie", "loss"):
            share = 100 * int(row[f"{metric}_{verdict}"]) / int(row["n"])
            assert share == pytest.approx(float(row[f"{metric}_{verdict}_pct"]), abs=0.05 + 1e-9)
        win, loss = float(row[f"{metric}_win_pct"]), float(row[f"{metric}_loss_pct"])
        nets.append((win - loss) / (win + loss))
    assert 50 * sum(nets) == pytest.approx(float(row["dpq_printed"]), abs=0.1)


def test_the_average_row_is_the_mean_of_the_rows():
    assert len(PAPER_ROWS) == 10
    rates = [claims.paper_win_rates(row) for row in PAPER_ROWS]
    assert f"{np.mean([delta_pq(*pair) for pair in rates]):.1f}" == "18.4"
    for metric, printed in ((0, [45.8, 27.4, 26.7]), (1, [39.3, 29.1, 31.5])):
        counts = [pair[metric] for pair in rates]
        shares = [[100 * n / c.n for n in (c.n_wins, c.n_ties, c.n_losses)] for c in counts]
        assert np.mean(shares, axis=0) == pytest.approx(printed, abs=0.052)  # Q ties: 29.151, printed as 29.1


# --- persona accuracy ---


def test_persona_accuracy_counts_a_pair_once_and_keeps_missing_personas_in_n():
    verdicts = ["win"] * 5 + ["tie"] * 2 + ["loss", "unparsed", None]
    counts = PersonaAccuracy.from_verdicts(verdicts)
    assert counts == PersonaAccuracy(5, 2, 1, 1, 1)
    assert (counts.n, counts.accuracy, counts.strict) == (10, 0.6, 0.5)
    assert intervals.accuracy_array(verdicts).mean() == pytest.approx(counts.accuracy)
    assert PersonaAccuracy(0, 0, 0).accuracy is None


# --- intervals ---


def random_verdicts(seed: int, n: int, shares=(0.4, 0.3, 0.3)) -> np.ndarray:
    return np.random.default_rng(seed).choice([1, 0, -1], size=n, p=shares)


def test_estimates_equal_the_counts_of_all_seeds_pooled():
    result = scores(["WWL?T", "WTTTT"], ["WLLLT", "TTTT?"], n_resamples=50)
    assert result["personalization"].estimate == pytest.approx(WinRate(3, 5, 1).net)
    assert result["quality"].estimate == pytest.approx(WinRate(1, 5, 3).net)
    assert result["delta_pq"].estimate == pytest.approx(delta_pq(WinRate(3, 5, 1), WinRate(1, 5, 3)))


def test_nothing_decided_gives_no_interval_and_undefined_resamples_are_counted():
    assert scores(["TTTT"], ["WLWL"], n_resamples=40)["delta_pq"] == intervals.Interval(
        None, None, None, 0, 1, 40
    )
    rare = scores(["WTTT"], ["WLWL"], n_resamples=400)["personalization"]
    assert rare.estimate == rare.low == rare.high == 1.0
    assert 60 < rare.n_undefined < 200  # (3/4)^4 = .32 of the resamples miss the only win
    assert intervals.bootstrap_mean([[math.nan] * 2], 30) == intervals.Interval(None, None, None, 2, 1, 30)


def dpq_of(p: list, q: list) -> float:
    return 50 * sum((v.count(1) - v.count(-1)) / (v.count(1) + v.count(-1)) for v in (p, q))


def draw(rng, seeds: list, items: list, verdicts: list) -> list:
    return [verdicts[s][i] for s in seeds for i in items]


def literal_interval(p: list, q: list, stretch: float, shared: bool) -> tuple[float, float]:
    """Draw seeds, and items where they say what seeds do not, one by one, from lists of verdicts."""
    rng, values = random.Random(5), []
    n_seeds, n_items = len(p), len(p[0])
    every_seed, every_item = list(range(n_seeds)), list(range(n_items))
    estimate = dpq_of(*(draw(rng, every_seed, every_item, v) for v in (p, q)))
    for _ in range(4000):
        value = estimate
        if n_seeds > 1:
            seeds = [rng.randrange(n_seeds) for _ in p]
            value += stretch * (dpq_of(*(draw(rng, seeds, every_item, v) for v in (p, q))) - estimate)
        if n_seeds == 1 or shared:
            items = [rng.randrange(n_items) for _ in p[0]]
            value += dpq_of(*(draw(rng, every_seed, items, v) for v in (p, q))) - estimate
        values.append(value)
    return tuple(np.percentile(values, [2.5, 97.5]))


T_OVER_Z = {1: 1.0, 2: 12.706 / 1.95996, 3: 4.3027 / 1.95996, 5: 2.7764 / 1.95996}  # of a printed t table


MORE = [pytest.param(*case, marks=pytest.mark.slow) for case in ((3, False), (5, False), (5, True))]


@pytest.mark.parametrize(("n_seeds", "shared"), [(1, False), (3, True), *MORE])
def test_interval_agrees_with_a_literal_transcription(n_seeds, shared):
    base, other = random_verdicts(0, 80), (0.5, 0.3, 0.2)
    p = [
        np.where(random_verdicts(s, 80) > 0, base, random_verdicts(s + 9, 80, other)) for s in range(n_seeds)
    ]
    q = [np.where(v == 0, 1, v) for v in p]  # quality tied to personalization: pairing matters
    p, q = ([v.tolist() for v in rubric] for rubric in (p, q))
    fast = scores(p, q, 4000, seed=1, shared_items=shared)["delta_pq"]
    stretch = math.sqrt(n_seeds / max(1, n_seeds - 1)) * T_OVER_Z[n_seeds]
    low, high = literal_interval(p, q, stretch, shared)
    assert fast.high - fast.low == pytest.approx(high - low, rel=0.12)
    assert fast.low + fast.high == pytest.approx(low + high, abs=0.12 * (high - low))


def test_few_seeds_stretch_by_student_t_over_normal_and_the_lost_degree_of_freedom():
    for k in (2, 3, 5):
        assert intervals.seed_stretch(k) == pytest.approx(math.sqrt(k / (k - 1)) * T_OVER_Z[k], rel=1e-4)
    assert intervals.seed_stretch(10_000) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="one seed"):
        intervals.seed_stretch(1)


def test_the_mean_of_seeds_that_are_alike_within_has_students_interval():
    """Seeds of constant items leave nothing but the seeds: by hand, mean 0.5 and half width t s / sqrt(5)."""
    levels = [0.1, 0.3, 0.5, 0.7, 0.9]
    result = intervals.bootstrap_mean([np.full(40, level) for level in levels], 20_000)
    half = 2.7764 * math.sqrt(0.1) / math.sqrt(5)  # variance of the levels: .1
    assert (result.estimate, result.n_seeds) == (pytest.approx(0.5), 5)
    assert result.high - 0.5 == pytest.approx(half, rel=0.08) and 0.5 - result.low == pytest.approx(
        half, rel=0.08
    )


def test_no_interval_leaves_what_a_single_item_can_be():
    p = ["W" * 9 + "L", "W" * 10, "W" * 6 + "LLLL"]
    personalization = scores(p, p)["personalization"]
    assert personalization.high == 1.0 and personalization.low > -1
    share = intervals.bootstrap_mean(
        [np.repeat([0.0, 1.0], [9, 1]), np.zeros(10), np.repeat([0.0, 1.0], [6, 4])]
    )
    assert share.low == 0.0 and share.high < 1


def test_an_arm_of_one_seed_among_arms_of_five_has_the_interval_of_one_seed():
    many, one = ["WWLT" * 10] * 5, "WLTT" * 10
    columns = net_columns("many", [dict(enumerate(map(NAMES.get, v))) for v in many])
    single = [dict(enumerate(map(NAMES.get, v))) for v in ["", "", one, "", ""]]
    pool = make_pool(columns | net_columns("one", single), 2000)
    alone = make_pool(net_columns("one", [single[2]]), 2000)
    assert pool.interval(net_of("one")) == alone.interval(net_of("one"))
    assert pool.interval(net_of("one")).high - pool.interval(net_of("one")).low > 0.5


def test_a_seed_without_any_value_is_not_one_of_a_means_seeds():
    one, none = np.repeat([0.0, 1.0], 20), np.full(40, np.nan)
    assert intervals.bootstrap_mean([one, none, none]) == intervals.bootstrap_mean([one])
    assert intervals.bootstrap_mean([one, none], shared_items=True) == intervals.bootstrap_mean([one])


def test_scores_are_resampled_jointly_so_opposite_metrics_cancel_exactly():
    p = random_verdicts(3, 60)
    for n_seeds in (1, 3):
        result = scores([p.tolist()] * n_seeds, [(-p).tolist()] * n_seeds, 300)["delta_pq"]
        assert (result.estimate, result.low, result.high) == pytest.approx((0, 0, 0))


def test_the_difference_of_an_arm_to_itself_is_exactly_zero_and_of_two_is_the_difference():
    values = {"x": [{"a": 1.0, "b": 3.0}, {"c": 2.0}], "y": [{"a": 0.0, "b": 1.0}, {"c": 5.0}]}
    pool = make_pool(mean_columns("x", values["x"]) | mean_columns("y", values["y"]), 200)
    same = pool.interval(difference(mean_of("x"), mean_of("x")))
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    assert pool.interval(difference(mean_of("x"), mean_of("y"))).estimate == pytest.approx(0)  # both are 2
    assert pool.interval(difference(mean_of("x"), lambda means: means("x") / 2)).estimate == 1


def test_seeds_that_differ_widen_the_interval():
    good, bad = "W" * 40 + "L" * 10, "W" * 10 + "L" * 40
    two = scores([good, bad, good, bad], [good, bad, good, bad], 1000)["personalization"]
    one = scores([good + bad], [good + bad], 1000)["personalization"]
    assert two.estimate == one.estimate == 0
    assert two.high - two.low > 2 * (one.high - one.low)


def test_the_same_seed_gives_the_same_interval_and_another_seed_does_not():
    p, q = [random_verdicts(1, 50).tolist()], [random_verdicts(2, 50).tolist()]
    first, again, other = (scores(p, q, 200, seed=s)["delta_pq"] for s in (1, 1, 2))
    assert first == again and first != other


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


def test_mean_leaves_nan_out_and_has_the_standard_error_of_a_mean():
    values = np.random.default_rng(0).normal(size=400)
    result = intervals.bootstrap_mean([np.append(values, [np.nan] * 10)], 4000)
    error = values.std() / math.sqrt(400)
    assert result.estimate == pytest.approx(values.mean())
    assert (result.high - result.low) / 2 == pytest.approx(1.96 * error, rel=0.08)


# --- tests and closed forms ---


def test_sign_test_by_hand_and_on_two_paper_rows():
    assert intervals.sign_test(3, 0) == pytest.approx(0.25)  # 2 x (1/2)^3
    assert intervals.sign_test(0, 0) == 1.0
    assert intervals.sign_test(187, 150) == pytest.approx(0.0497, abs=5e-5)
    assert intervals.sign_test(204, 169) == pytest.approx(0.078, abs=5e-4)


def test_wilson_interval_solves_its_equation_and_stays_in_bounds():
    low, high = intervals.wilson_interval(8, 10)
    for bound in (low, high):  # |share - bound| = z sqrt(bound (1 - bound) / n)
        assert abs(0.8 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 10), abs=1e-6)
    assert intervals.wilson_interval(0, 10)[0] == 0 and intervals.wilson_interval(10, 10)[1] == 1
    assert intervals.wilson_interval(0, 0) == (0, 1)


def test_holm_is_that_of_statsmodels_to_the_last_bit():
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 40):
        given = rng.random(size).round(2) ** 3  # with ties
        assert intervals.holm_adjusted(given.tolist()) == multipletests(given, method="holm")[1].tolist()


def test_holm_by_hand():
    # sorted .01 .02 .04: 3 x .01, 2 x .02 -> .04, 1 x .04 -> .04 (monotone)
    assert intervals.holm({"b": 0.04, "a": 0.01, "c": 0.02}) == pytest.approx(
        {"b": 0.04, "a": 0.03, "c": 0.04}
    )
    assert intervals.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert intervals.holm({}) == {}
