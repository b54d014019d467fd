"""Verdicts, dPQ and intervals against numbers derived by hand and against slow literal transcriptions."""

import math
import random

import numpy as np
import pytest

from persona_lib.records import Judgment
from persona_lib.stats import bootstrap as bs
from persona_lib.stats import metrics, paper, significance
from persona_lib.stats.metrics import PersonaAccuracy, WinRate, delta_pq, verdict_of

PAPER_ROWS = paper.paper_table()


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
    assert metrics.position_inconsistent(*pair) == inconsistent


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
    personalization, quality = paper.paper_win_rates(row)
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
    rates = [paper.paper_win_rates(row) for row in PAPER_ROWS]
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
    assert bs.accuracy_array(verdicts).mean() == pytest.approx(counts.accuracy)
    assert PersonaAccuracy(0, 0, 0).accuracy is None


# --- intervals ---


def arrays(verdicts: str) -> np.ndarray:
    """Verdicts from W, T, L, ?."""
    return bs.verdict_array({"W": "win", "T": "tie", "L": "loss", "?": "unparsed"}[v] for v in verdicts)


def random_verdicts(seed: int, n: int, shares=(0.4, 0.3, 0.3)) -> np.ndarray:
    return np.random.default_rng(seed).choice([1.0, 0.0, -1.0], size=n, p=shares)


def test_estimates_equal_the_counts_of_all_seeds_pooled():
    p, q = [arrays("WWL?T"), arrays("WTTTT")], [arrays("WLLLT"), arrays("TTTT?")]
    result = bs.bootstrap_scores(p, q, n_resamples=50)
    assert result["personalization"].estimate == pytest.approx(WinRate(3, 5, 1).net)
    assert result["quality"].estimate == pytest.approx(WinRate(1, 5, 3).net)
    assert result["delta_pq"].estimate == pytest.approx(delta_pq(WinRate(3, 5, 1), WinRate(1, 5, 3)))
    assert (result["delta_pq"].n_items, result["delta_pq"].n_seeds) == (10, 2)


def test_nothing_decided_gives_no_interval_and_counts_undefined_resamples():
    result = bs.bootstrap_scores([arrays("TTTT")], [arrays("WLWL")], n_resamples=40)
    assert result["delta_pq"] == bs.Interval(None, None, None, 4, 1, 40)
    rare = bs.bootstrap_scores([arrays("WTTT")], [arrays("WLWL")], n_resamples=400)["personalization"]
    assert rare.estimate == rare.low == rare.high == 1.0
    assert 60 < rare.n_undefined < 200  # (3/4)^4 = .32 of the resamples miss the only win


def slow_bootstrap(p: list, q: list, n_resamples: int, shared: bool) -> np.ndarray:
    """Draw seeds, then items, one by one, and compute dPQ from counts: the literal procedure."""
    rng, values = random.Random(5), []
    for _ in range(n_resamples):
        picks = {"p": [], "q": []}
        items = [rng.randrange(len(p[0])) for _ in p[0]]
        for _ in p:
            s = rng.randrange(len(p))
            drawn = items if shared else [rng.randrange(len(p[s])) for _ in p[s]]
            picks["p"] += [p[s][i] for i in drawn]
            picks["q"] += [q[s][i] for i in drawn]
        nets = [(v.count(1) - v.count(-1)) / (v.count(1) + v.count(-1)) for v in picks.values()]
        values.append(50 * sum(nets))
    return np.array(values)


@pytest.mark.parametrize("shared", [False, True])
def test_interval_agrees_with_a_literal_hierarchical_bootstrap(shared):
    base = random_verdicts(0, 80)
    other = (0.7, 0.1, 0.2)
    p = [np.where(random_verdicts(s, 80) > 0, base, random_verdicts(s + 9, 80, other)) for s in range(3)]
    q = [np.where(v == 0, 1.0, v) for v in p]  # quality tied to personalization: pairing matters
    fast = bs.bootstrap_scores(p, q, 4000, seed=1, shared_items=shared)["delta_pq"]
    slow = slow_bootstrap([list(v) for v in p], [list(v) for v in q], 3000, shared)
    low, high = np.percentile(slow, [2.5, 97.5])
    assert fast.low == pytest.approx(low, abs=2.5) and fast.high == pytest.approx(high, abs=2.5)
    assert fast.high - fast.low == pytest.approx(high - low, rel=0.12)


def test_scores_are_resampled_jointly_so_opposite_metrics_cancel_exactly():
    p = random_verdicts(3, 60)
    result = bs.bootstrap_scores([p], [-p], 300)["delta_pq"]
    assert (result.estimate, result.low, result.high) == pytest.approx((0, 0, 0))


def test_the_difference_of_an_arm_to_itself_is_exactly_zero_and_of_two_is_the_difference():
    p, q, r = [random_verdicts(1, 50)], [random_verdicts(2, 50)], [random_verdicts(3, 50, (0.8, 0.1, 0.1))]
    same = bs.bootstrap_score_difference((p, q), (p, q), 200)
    assert all((v.estimate, v.low, v.high) == (0, 0, 0) for v in same.values())
    other = bs.bootstrap_score_difference((r, q), (p, q), 200)
    parts = [bs.bootstrap_scores(arm, q, 10)["delta_pq"].estimate for arm in (r, p)]
    assert other["delta_pq"].estimate == pytest.approx(parts[0] - parts[1])
    assert other["quality"].high == 0


def test_seed_variance_widens_the_interval():
    good, bad = arrays("W" * 40 + "L" * 10), arrays("W" * 10 + "L" * 40)
    two = bs.bootstrap_scores([good, bad], [good, bad], 1000)["personalization"]
    pooled = [np.concatenate([good, bad])]
    one = bs.bootstrap_scores(pooled, pooled, 1000)["personalization"]
    assert two.estimate == one.estimate == 0
    assert two.high - two.low > 2 * (one.high - one.low)


def test_the_same_seed_gives_the_same_interval_and_another_seed_does_not():
    p, q = [random_verdicts(1, 50)], [random_verdicts(2, 50)]
    first, again, other = (bs.bootstrap_scores(p, q, 200, seed=s)["delta_pq"] for s in (1, 1, 2))
    assert first == again and first != other


@pytest.mark.parametrize(
    ("p", "q", "shared", "message"),
    [
        ([], [], False, "at least one seed"),
        ([np.zeros(0)], [np.zeros(0)], False, "at least one seed"),
        ([np.ones(3)], [np.ones(2)], False, "3 verdicts on personalization, 2 on quality"),
        ([np.ones(3), np.ones(2)], [np.ones(3), np.ones(2)], True, "same items"),
    ],
)
def test_unusable_input_is_an_error_that_says_what(p, q, shared, message):
    with pytest.raises(ValueError, match=message):
        bs.bootstrap_scores(p, q, 10, shared_items=shared)


def test_mean_leaves_nan_out_and_has_the_standard_error_of_a_mean():
    values = np.random.default_rng(0).normal(size=400)
    result = bs.bootstrap_mean([np.append(values, [np.nan] * 10)], 4000)
    error = values.std() / math.sqrt(400)
    assert result.estimate == pytest.approx(values.mean())
    assert (result.high - result.low) / 2 == pytest.approx(1.96 * error, rel=0.08)


def test_standardized_difference_is_in_units_of_the_scores_own_deviation():
    second = np.array([0.0, 2.0, 4.0, 6.0])
    result = bs.bootstrap_mean_difference([second + 1], [second], 100, standardized=True)
    assert result.estimate == pytest.approx(1 / np.std([0, 2, 4, 6, 1, 3, 5, 7], ddof=1))
    assert result.low == pytest.approx(result.high)  # the difference is the same for every item
    assert bs.bootstrap_mean_difference([second + 1], [second], 100).estimate == pytest.approx(1.0)
    with pytest.raises(ValueError, match="standard deviation is 0"):
        bs.bootstrap_mean_difference([np.ones(3)], [np.ones(3)], standardized=True)


def test_an_interval_excludes_zero_only_if_all_of_it_does():
    assert bs.Interval(2, 1, 3, 9).excludes_zero and bs.Interval(-2, -3, -1, 9).excludes_zero
    assert not bs.Interval(1, -1, 3, 9).excludes_zero and not bs.Interval(None, None, None, 9).excludes_zero


# --- tests and closed forms ---


def test_sign_test_by_hand_and_on_two_paper_rows():
    assert significance.sign_test(3, 0) == pytest.approx(0.25)  # 2 x (1/2)^3
    assert significance.sign_test(0, 0) == 1.0
    assert significance.sign_test(187, 150) == pytest.approx(0.0497, abs=5e-5)
    assert significance.sign_test(204, 169) == pytest.approx(0.078, abs=5e-4)


def test_wilson_interval_solves_its_equation_and_stays_in_bounds():
    low, high = significance.wilson_interval(8, 10)
    for bound in (low, high):  # |share - bound| = z sqrt(bound (1 - bound) / n)
        assert abs(0.8 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 10), abs=1e-6)
    assert significance.wilson_interval(0, 10)[0] == 0 and significance.wilson_interval(10, 10)[1] == 1
    assert significance.wilson_interval(0, 0) == (0, 1)


def test_holm_is_that_of_statsmodels_to_the_last_bit():
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 40):
        given = rng.random(size).round(2) ** 3  # with ties
        assert significance.holm_adjusted(given.tolist()) == multipletests(given, method="holm")[1].tolist()


def test_holm_by_hand():
    # sorted .01 .02 .04: 3 x .01, 2 x .02 -> .04, 1 x .04 -> .04 (monotone)
    assert significance.holm({"b": 0.04, "a": 0.01, "c": 0.02}) == pytest.approx(
        {"b": 0.04, "a": 0.03, "c": 0.04}
    )
    assert significance.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert significance.holm({}) == {}
