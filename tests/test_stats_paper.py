"""The paper's table re-analysed: intervals against an independent bootstrap, formulas and published facts."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from persona_lib.beyond import claims
from persona_lib.beyond.claims import reanalysed
from persona_lib.intervals import WinRate, holm

NOTED = [  # by row: dPQ, its interval, sign-test p (P; Q), of an earlier analysis by other code
    (21.34, 14.1, 28.5, 2e-9, 0.053),
    (12.50, 5.0, 19.8, 3e-4, 0.35),
    (17.91, 10.5, 25.3, 4e-9, 0.51),
    (21.30, 14.1, 28.4, 3e-13, 0.41),
    (3.30, -4.0, 10.5, 0.078, 0.64),
    (9.44, 2.3, 16.7, 0.003, 0.57),
    (35.60, 28.8, 42.1, 2e-17, 2e-8),
    (28.62, 21.9, 35.3, 4e-13, 7e-5),
    (20.69, 13.3, 27.9, 1e-5, 0.001),
    (13.34, 5.9, 20.7, 0.0497, 0.003),
]
PAPER = claims.paper_table()


@pytest.fixture(scope="module")
def table():
    return reanalysed()


def test_all_ten_rows_and_the_average_agree_with_an_earlier_analysis(table):
    for row, (dpq, low, high, p, q) in zip(table.itertuples(), NOTED, strict=False):
        assert row.dpq == pytest.approx(dpq, abs=0.006)
        assert (row.dpq_low, row.dpq_high) == pytest.approx((low, high), abs=0.3)
        assert (row.p_sign, row.q_sign) == (pytest.approx(p, rel=0.4), pytest.approx(q, rel=0.5))
    average = table.iloc[-1]
    assert average.dpq == pytest.approx(18.40, abs=0.005)
    assert (average.dpq_low, average.dpq_high) == pytest.approx((16.1, 20.6), abs=0.3)


def test_which_rows_hold_after_holm(table):
    rows = table[table.kind == "paper"]
    names = rows.dataset + ", " + rows.label
    assert set(names[rows.p_holm >= 0.05]) == {
        "Anthropic HHH, chosen, retrieved",
        "Mnemonic, rejected, retrieved",  # .0497 before the adjustment
    }
    assert set(names[rows.dpq_holm >= 0.05]) == {"Anthropic HHH, chosen, retrieved"}
    assert (rows.q_holm < 0.05).sum() == 4


def test_the_interval_is_that_of_resampling_items_one_by_one():
    """A literal bootstrap: n items with a verdict each, drawn with replacement, P and Q apart."""
    p, q = claims.paper_win_rates(PAPER[4])
    rng = np.random.default_rng(5)
    nets = []
    for rate in (p, q):
        items = np.repeat([1.0, 0.0, -1.0], [rate.n_wins, rate.n_ties, rate.n_losses])
        draws = rng.choice(items, size=(4000, rate.n))
        nets.append(draws.sum(axis=1) / np.abs(draws).sum(axis=1))
    low, high = np.percentile(50 * (nets[0] + nets[1]), [2.5, 97.5])
    ours = claims.reanalyse(p, q).intervals["independent"]
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.6)


def test_joint_tables_by_hand():
    p, q = WinRate(3, 2, 1), WinRate(1, 1, 4)
    agree = [[1, 1, 1], [0, 0, 2], [0, 0, 1]]  # sorted against sorted: WWWTTL with WTLLLL
    oppose = [[0, 0, 3], [0, 1, 1], [1, 0, 0]]  # WWWTTL with LLLLTW
    assert claims.joint_table(p, q, "agree").tolist() == agree
    assert claims.joint_table(p, q, "oppose").tolist() == oppose
    assert claims.joint_table(p, q, "independent")[0, 2] == pytest.approx(3 * 4 / 6)


@pytest.mark.parametrize("dependence", claims.DEPENDENCE)
def test_every_joint_table_has_the_margins_of_the_counts(dependence):
    for row in PAPER:
        p, q = claims.paper_win_rates(row)
        joint = claims.joint_table(p, q, dependence)
        assert joint.sum(axis=1) == pytest.approx([p.n_wins, p.n_ties, p.n_losses])
        assert joint.sum(axis=0) == pytest.approx([q.n_wins, q.n_ties, q.n_losses])
        assert joint.min() >= 0


def test_no_joint_table_with_these_margins_has_a_wider_interval_than_the_bound():
    p, q = WinRate(30, 20, 10), WinRate(20, 15, 25)
    rng = np.random.default_rng(0)
    verdicts = [np.repeat([0, 1, 2], [r.n_wins, r.n_ties, r.n_losses]) for r in (p, q)]
    bounds = claims.reanalyse(p, q).intervals
    widths = {name: interval.high - interval.low for name, interval in bounds.items()}
    for _ in range(20):  # any way to pair the verdicts off
        joint = np.zeros((3, 3))
        np.add.at(joint, (verdicts[0], rng.permutation(verdicts[1])), 1)
        values = claims.resampled_delta_pq(joint, 4000, rng)
        width = np.diff(np.percentile(values, [2.5, 97.5]))[0]
        assert widths["oppose"] - 1 < width < widths["agree"] + 1
    assert widths["oppose"] < widths["independent"] < widths["agree"]


def test_the_delta_method_error_is_the_spread_of_the_resamples():
    p, q = claims.paper_win_rates(PAPER[0])
    spread = {d: values.std() / 50 for d, values in claims.reanalyse(p, q).resamples.items()}
    errors = [claims.net_error(rate) for rate in (p, q)]
    assert np.hypot(*errors) == pytest.approx(spread["independent"], rel=0.03)
    assert sum(errors) == pytest.approx(spread["agree"], rel=0.06)  # the most that they can add up to
    assert sum(errors) >= spread["agree"] * 0.97


def test_the_test_of_dpq_by_hand():
    # nets .5 and -.04 with 16 and 25 decided: errors sqrt(.75 / 16) and sqrt(.9984 / 25)
    p, q = WinRate(12, 3, 4), WinRate(12, 0, 13)
    z = (0.5 - 1 / 25) / np.hypot((0.75 / 16) ** 0.5, ((1 - 0.0016) / 25) ** 0.5)
    assert claims.delta_pq_test(p, q) == pytest.approx(2 * (1 - NormalDist().cdf(z)))
    assert claims.delta_pq_test(p, q, "agree") > claims.delta_pq_test(p, q)


def test_nothing_decided_is_undefined_and_never_an_error():
    empty, full = WinRate(0, 8, 0), WinRate(4, 2, 2)
    assert claims.delta_pq_test(empty, full) == 1.0 and claims.net_error(empty) is None
    found = claims.reanalyse(empty, full, n_resamples=50).intervals["independent"]
    assert (found.estimate, found.low, found.n_undefined) == (None, None, 50)
    assert claims.net_interval(empty, n_resamples=50).low is None


def test_counts_of_unequal_size_are_an_error():
    with pytest.raises(ValueError, match="6 and 5 verdicts"):
        claims.joint_table(WinRate(3, 2, 1), WinRate(3, 2, 0), "agree")


def test_the_average_of_rows_that_err_together_has_the_mean_of_their_limits():
    rows = [claims.reanalyse(*claims.paper_win_rates(row), 3, 2000) for row in PAPER[:3]]
    found = claims.average(rows)
    lows = [row.intervals["agree"].low for row in rows]
    assert found["agree"].low == pytest.approx(np.mean(lows))
    assert found["independent"].low > found["agree"].low
    assert found["independent"].n_items == 3 * 499


def test_holm_agrees_with_the_textbook_procedure_on_the_papers_rows(table):
    p = table.p_sign.dropna().to_numpy()
    ranks = np.argsort(p)
    steps = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[ranks])
    expected = np.empty(len(p))
    expected[ranks] = np.minimum(steps, 1)
    assert list(holm(dict(enumerate(p))).values()) == pytest.approx(expected)
    assert table.p_holm.dropna().to_numpy() == pytest.approx(expected)
