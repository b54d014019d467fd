"""The paper's table against facts and an independent bootstrap; filters, equal length and aims by hand."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import tiny_results
from tiny_results import line, main_row

from persona_lib import store
from persona_lib.beyond import claims, released
from persona_lib.data.everyday import quality
from persona_lib.intervals import SIGNS, Interval
from persona_lib.paper import judging, results
from persona_lib.paper.answers import generation_folder, read_generations
from persona_lib.records import DataError, Generation
from persona_lib.settings import Run, load_profile, set_field

NOTED = [  # by row: dPQ, its interval, sign-test p of P, of an earlier analysis by other code
    (21.34, 14.1, 28.5, 2e-9),
    (12.50, 5.0, 19.8, 3e-4),
    (17.91, 10.5, 25.3, 4e-9),
    (21.30, 14.1, 28.4, 3e-13),
    (3.30, -4.0, 10.5, 0.078),
    (9.44, 2.3, 16.7, 0.003),
    (35.60, 28.8, 42.1, 2e-17),
    (28.62, 21.9, 35.3, 4e-13),
    (20.69, 13.3, 27.9, 1e-5),
    (13.34, 5.9, 20.7, 0.0497),
]


def test_the_exact_counts_give_the_printed_percentages_and_dpq():
    for row in released.paper_table():
        nets = []
        for metric in "pq":
            won, tied, lost = (row[f"{metric}_{verdict}"] for verdict in ("win", "tie", "loss"))
            assert won + tied + lost == row["n"]
            nets.append((won - lost) / (won + lost))
            for verdict, count in (("win", won), ("tie", tied), ("loss", lost)):
                printed = row[f"{metric}_{verdict}_pct"]
                assert 100 * count / row["n"] == pytest.approx(printed, abs=0.05 + 1e-9)
        assert round(50 * sum(nets), 1) == row["dpq_printed"]


def test_all_ten_rows_and_the_average_agree_with_an_earlier_analysis_and_hold_or_not_after_holm():
    table = released.reanalysed()
    assert len(table) == 11
    for row, (dpq, low, high, p) in zip(table.itertuples(), NOTED, strict=False):
        assert row.dpq == pytest.approx(dpq, abs=0.006) and row.p_sign == pytest.approx(p, rel=0.4)
        assert (row.dpq_low, row.dpq_high) == pytest.approx((low, high), abs=0.3)
    average, rows = table.iloc[-1], table[:-1]
    assert average.dpq == pytest.approx(18.40, abs=0.005)
    assert (average.dpq_low, average.dpq_high) == pytest.approx((16.1, 20.6), abs=0.3)
    assert average.dpq_low_widest == pytest.approx(rows.dpq_low_widest.mean())
    assert (rows.dpq_low_widest < rows.dpq_low - 1).all(), "wider where the rubrics agree row by row"
    names = rows.dataset + ", " + rows.label
    weak = {"Anthropic HHH, chosen, retrieved", "Mnemonic, rejected, retrieved"}  # .0497 before Holm
    assert set(names[rows.p_holm >= 0.05]) == weak and (rows.q_holm < 0.05).sum() == 4
    assert set(names[rows.dpq_holm >= 0.05]) == {"Anthropic HHH, chosen, retrieved"}  # nine of ten hold


def test_the_test_of_dpq_by_hand():
    # nets .5 and -.04 with 16 and 25 decided: errors sqrt(.75 / 16) and sqrt(.9984 / 25)
    z = (0.5 - 0.04) / (0.75 / 16 + 0.9984 / 25) ** 0.5
    assert released.dpq_test((12, 3, 4), (12, 0, 13)) == pytest.approx(2 * (1 - NormalDist().cdf(z)))


@pytest.fixture(scope="module")
def world(results_shared):
    """Two finished seeds with invented answers; every tenth of PT-DPO's under gold-chosen never ends."""
    personas = "evaluation.personas=none,gold-chosen,gold-rejected"
    profile = load_profile("smoke", ["seeds=0,1", "data.pair_limit=40", "evaluation.limit=0", personas])
    for seed in profile.seeds:
        run = Run(profile, "everyday", seed)
        tiny_results.fill_run(run)
        path = generation_folder(run, main_row(run).test) / "rows.jsonl"
        rows = list(enumerate(store.read_rows(path, Generation)))
        store.write_rows(path, [r if i % 10 else replace(r, finish_reason="length") for i, r in rows])
    claims.save_tables(profile)
    return profile


def judged(profile, persona):
    """Return (verdicts, tested answer, base answer) of all seeds."""
    found = []
    for run in [Run(profile, "everyday", seed) for seed in profile.seeds]:
        matchup = main_row(run, persona)
        test, base = (read_generations(run, spec) for spec in (matchup.test, matchup.base))
        found += [(row, test[row["id"]], base[row["id"]]) for row in judging.read_verdicts(run, matchup)]
    return found


def test_the_filter_takes_out_pairs_in_which_either_answer_is_degenerate(world):
    table, main = results.read_table(world, "filtered"), results.read_table(world, "main")
    rows = table[(table.label == "gold-chosen") & (table.kind == "main")].set_index("pairs")
    sound = [v for v, *both in judged(world, "gold-chosen") if all(map(results.is_sound, both))]
    wordings = rows.n["explicit personas"] + rows.n["implicit personas"]
    assert rows.n["all pairs"] == 80 == wordings and rows.n["both answers sound"] == len(sound) <= 72
    assert rows.p_win["both answers sound"] == sum(v["personalization"] == "win" for v in sound)
    names = ["p_win", "p_loss", "q_win", "q_loss"]
    assert rows.loc["all pairs", names].tolist() == line(main, label="gold-chosen")[names].tolist()


def test_saved_rows_have_mean_words_the_length_model_and_the_difference_in_quality(world):
    table, found = results.read_table(world, "length"), judged(world, "gold-rejected")
    assert set(table.kind) == {"main", "stage"} and len(table) == 4 * len(judging.RUBRICS)
    row = line(table, label="gold-rejected", rubric="personalization", kind="main")
    tested, base = ([len(pair[i].completion.split()) for pair in found] for i in (1, 2))
    assert (row.words_tested, row.words_base) == pytest.approx((np.mean(tested), np.mean(base)), rel=1e-4)
    signs = [SIGNS.get(verdict["personalization"], 0) for verdict, *_ in found]
    wanted = model(signs, np.subtract(tested, base), [verdict["id"] for verdict, *_ in found])
    assert row.net_controlled_high == pytest.approx(wanted.high, rel=1e-4)
    main = line(results.read_table(world, "main"), label="gold-rejected")
    test, base = ([quality(pair[i].prompt, pair[i].completion) for pair in found] for i in (1, 2))
    unit = np.std(base, ddof=1)  # quality is in standard deviations of the baseline
    assert main.p_net == row.net
    nets = table[(table.label == "gold-rejected") & (table.kind == "main")].net_controlled
    assert main.dpq_controlled == pytest.approx(50 * nets.sum(), rel=1e-4)
    assert main.dpq_controlled_low < main.dpq_controlled < main.dpq_controlled_high
    assert main.quality_sd == pytest.approx((np.mean(test) - np.mean(base)) / unit, rel=1e-4)


SIGNED = [1] * 9 + [-1] * 3 + [1] * 4 + [-1] * 8  # of these the first 12 tested answers are longer
LONGER = [10] * 12 + [-10] * 12


def model(signs, differences, prompts=None):
    return results.length_model((signs, differences, prompts or [str(i) for i in range(len(signs))]))


def test_the_net_without_the_judges_errors_by_hand(monkeypatch, profile):
    main = pd.DataFrame({"dataset": ["everyday", "everyday"], "p_net": [0.3, -0.1]})
    monkeypatch.setitem(claims.results.JUDGED_TABLES, "main", lambda profile: main.copy())
    judge = {"dataset": "everyday", "judge": "oracle", "rubric": "personalization"}
    for accuracy, ties, decides, expected in (
        (0.7, 20, True, [0.6, -0.2]),  # 80 are decided, 60 of them rightly: the net shrinks to one half
        (0.7, 20, False, [math.nan] * 2),
    ):
        measured = judge | {"accuracy": accuracy, "n": 100, "ties": ties, "decides": decides}
        monkeypatch.setattr(results, "read_table", lambda *_, line=measured: pd.DataFrame([line]))
        assert claims.corrected_main(profile).p_corrected.tolist() == pytest.approx(expected, nan_ok=True)


def test_the_net_at_equal_length_by_hand_and_the_same_prompts_again_do_not_narrow_its_interval():
    """log-odds ln(9 / 3) where longer, ln(4 / 8) where shorter: a is their mean, ln(1.5) / 2."""
    once = model([*SIGNED, 0, 0.0], [*LONGER, 10, -10])  # ties do not count
    assert once.estimate == pytest.approx(np.tanh(np.log(1.5) / 4))
    alike = [(SIGNED, LONGER, [*map(str, range(24))])] * 2  # the mean of a net with itself, of one error
    pair, error = results.length_model(*alike), np.diff(np.arctanh([once.low, once.high]))[0]
    assert pair.estimate == pytest.approx(once.estimate)
    assert pair.high - pair.low == pytest.approx((1 - once.estimate**2) * error, rel=0.03)
    same, apart = (model(SIGNED * 2, LONGER * 2, prompts) for prompts in ([*map(str, range(24))] * 2, None))
    assert same.high == pytest.approx(once.high, abs=0.01) and apart.high < once.high - 0.05


@pytest.mark.parametrize(
    ("signs", "differences"),
    [
        ([1, 1, 1, -1, 0, 0], [1, 2, 3, 4, 5, 6]),  # fewer than 5 losses
        ([1] * 6 + [-1] * 6, [2] * 12),  # no difference in length
        ([1] * 6 + [-1] * 6, [5] * 6 + [-5] * 6),  # length alone tells every win from every loss
        ([], []),
    ],
)
def test_what_cannot_be_fitted_has_no_numbers(signs, differences):
    assert model(signs, differences) == Interval()


@pytest.fixture
def profile(results_here):
    return load_profile("smoke", ["seeds=0,1"])


MAIN = {"dataset": "everyday", "kind": "main", "judge_persona": "gold-chosen", "n": 8, "n_seeds": 2,
        "dpq": None, "p_net": 0.3, "p_net_low": 0.01, "p_net_high": 0.6,
        "quality_sd": -0.1, "quality_sd_low": -0.3, "quality_sd_high": 0.1}  # fmt: skip


@pytest.mark.parametrize(
    ("low", "decides", "met", "quality_met"),
    [(0.01, True, "yes", "yes"), (-0.01, True, "no", "yes"), (0.01, False, *["judge not believed"] * 2)],
)
def test_an_aim_needs_an_interval_without_zero_and_a_believed_judge(profile, low, decides, met, quality_met):
    results.save_table(profile, "main", pd.DataFrame([MAIN | {"p_net_low": low}]))
    tested = {"dataset": "everyday", "judge": "oracle", "rubric": "personalization", "decides": decides}
    results.save_table(profile, "calibration", pd.DataFrame([tested, tested | {"judge": "other"}]))
    table = claims.primary_results(profile)
    chosen = table[table["where"] == "everyday, gold-chosen"]
    assert line(chosen, aim="PT-DPO against DPO, personalization net win rate").met == met
    assert line(chosen, aim="PT-DPO against DPO, dPQ").met == "not run"
    assert line(chosen, aim="PT-DPO against DPO, mean quality (SD of the baseline)").met == quality_met
    assert set(table[table["where"] == "everyday, gold-rejected"].met) == {"not run"}


def test_nothing_run_gives_no_judged_tables_and_removes_an_old_one(profile):
    results.save_table(profile, "stage", pd.DataFrame([{"dataset": "everyday"}]))
    assert set(claims.save_tables(profile)) == {"paper", "primary"}
    assert not results.table_path(profile, "stage").exists()
    assert set(results.read_table(profile, "primary").met) == {"not run"}
    assert set(claims.save_tables(load_profile("own", ["seeds=0,1"]))) == {"paper"}, "own data has no aims"


@pytest.mark.usefixtures("profile")
def test_aims_of_the_authors_data_need_a_value_and_their_control_an_interval_around_one_half():
    row, profile = {"arm": "dpo-both", "persona_format": "line", "measure": "policy"}, load_profile("authors")
    places = [(name, kind) for name in ("beavertails", "hhh") for kind in ("gold", "shuffled")]
    table = pd.DataFrame([row | {"dataset": name, "persona": kind} for name, kind in places])
    table["d_positive"] = [0.81, 0.81, 0.52, 0.52]
    table = table.assign(d_positive_low=table.d_positive - 0.05, d_positive_high=table.d_positive + 0.05)
    results.save_table(profile, "swap", table)
    met = claims.primary_results(profile).query("met != 'not run'").set_index("where").met
    assert [met[", ".join(place)] for place in places] == ["yes", "no", "no", "yes"]  # .80, .85; around .5


def test_a_right_run_leaves_the_published_band_in_one_of_twenty_and_a_wrong_one_in_nearly_all():
    rng = np.random.default_rng(0)  # shares of 40 rows by seed, as wide apart as the published seeds

    def shares(mean, size):
        return rng.binomial(40, np.clip(rng.normal(mean, 0.01, size), 0, 1)) / 40

    means = {"right": 0.875, "shuffled personas": 0.52, "exchanged sides": 0.125}
    outside = dict.fromkeys(means, 0.0)
    for seeds in shares(means["right"], (2000, 5)):
        band = claims.prediction_band(seeds, 1, 0.025)
        for name, mean in means.items():
            outside[name] += (not band.low <= shares(mean, ()) <= band.high) / 2000
    assert 0.03 <= outside.pop("right") <= 0.07 and min(outside.values()) > 0.95


def test_a_run_is_compared_with_the_published_seeds_number_by_number(profile):
    aim, where = claims.DECIDING
    seeds = pd.DataFrame({"aim": aim, "where": where, "seed": range(3), "estimate": [0.8, 0.9, 1.0], "n": 40})
    with pytest.raises(DataError, match="no results to verify"):
        claims.verify(profile, seeds)
    for value, word in ((0.8, "agrees"), (0.3, "DOES NOT AGREE")):
        run = pd.DataFrame([{"aim": aim, "where": where, "estimate": value}])
        results.save_table(profile, "primary", run)
        table = claims.verify(set_field(profile, {"seeds": [0]}), seeds)
        # Student's t with 2 degrees of freedom is 4.3027; s = 0.1
        half = 4.3027 * 0.1 * (1 + 1 / 3) ** 0.5
        assert table.published_low.item() == pytest.approx(0.9 - half, abs=1e-4)
        said, agrees = claims.verdict(table)
        assert word in said and agrees == (value == 0.8)
        assert f"{int(value == 0.8)} of 1 as published for this seed" in said
    assert claims.prediction_band([0.5, 0.6], 1, 0.1).low is None  # two seeds say too little
