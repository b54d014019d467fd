"""Tables over seeds: numbers derived by hand, pairing, and what happens where parts are missing."""

from __future__ import annotations

import csv
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import tiny_results
from resampling import scores

from persona_lib import store
from persona_lib.beyond import claims
from persona_lib.data.reader import quality
from persona_lib.intervals import bootstrap_mean, difference, make_pool, mean_columns, mean_interval, mean_of
from persona_lib.paper import judging, results, swap
from persona_lib.paper import personas as personas_module
from persona_lib.paper.answers import matchups
from persona_lib.paper.swap import SwapScore
from persona_lib.records import TailoringRow
from persona_lib.settings import Run, load_profile
from persona_lib.show import render

LETTERS = {"W": "win", "T": "tie", "L": "loss", "U": "unparsed"}
HAND = {  # persona -> per seed (personalization, quality), one letter per row
    "gold-chosen": [("WWLT", "WLTT"), ("WWWU", "LLWT")],
    "gold-rejected": [("WWWW", "WWTT"), ("WWWL", "WTTL")],
    "retrieved-chosen": [("LLLL", "TTTT"), ("LLLW", "TTTT")],
}


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Two seeds of a small profile whose results go to a temporary folder."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PERSONA_FIGURES", str(tmp_path / "figures"))
    judging.forget_judged()
    swap.forget_swap()
    return load_profile("smoke", ["seeds=0,1", "pair_limit=6", "controls=true", "train_personas=none,chosen"])


def write_verdicts(profile, kind="main", hand=HAND):
    """Write hand-made verdicts as the judging step would."""
    for number, seed in enumerate(profile.seeds):
        run = Run(profile, "everyday", seed)
        for matchup in matchups(run):
            if matchup.kind != kind or matchup.judge_persona not in hand:
                continue
            p, q = hand[matchup.judge_persona][number]
            folder = run.folder / "judgments" / matchup.slug
            rows = [{"id": f"r{i}", "personalization": LETTERS[a], "quality": LETTERS[b]}
                    for i, (a, b) in enumerate(zip(p, q, strict=True))]  # fmt: skip
            store.write_rows(folder / "verdicts.jsonl", rows)
            store.mark_done(folder, "hand")


def line(table, **values):
    """Return the one row of a table with these values."""
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


# --- pooling ---


def test_a_pool_of_two_seeds_has_the_mean_of_all_items_and_of_their_difference():
    first = [{"a": 1.0, "b": 3.0}, {"a": 5.0, "c": math.nan}]
    second = [{"a": 0.0, "b": 1.0}, {"a": 2.0}]
    pool = make_pool(mean_columns("x", first) | mean_columns("y", second), 50)
    assert pool.interval(mean_of("x")).estimate == 3.0  # (1 + 3 + 5) / 3: the NaN is no item
    assert pool.interval(difference(mean_of("x"), mean_of("y"))).estimate == 2.0  # 3 - 1


def test_the_difference_of_two_equal_columns_is_certain():
    values = [{str(i): float(i % 3) for i in range(20)}]
    pool = make_pool(mean_columns("x", values) | mean_columns("y", values), 50)
    interval = pool.interval(difference(mean_of("x"), mean_of("y")))
    assert (interval.estimate, interval.low, interval.high) == (0, 0, 0)


def test_the_mean_of_an_undefined_statistic_is_undefined():
    pool = make_pool(mean_columns("x", [{"a": 1.0}]) | mean_columns("y", [{}]), 10)
    assert mean_interval([(pool, mean_of("x")), (pool, mean_of("y"))]).estimate is None
    with pytest.raises(ValueError, match="nothing to pool"):
        make_pool({}, 10)


# --- judged rows ---


def test_counts_and_scores_of_a_row_are_those_of_both_seeds(profile):
    write_verdicts(profile)
    row = line(results.main_table(profile), judge_persona="gold-chosen")
    assert [row[f"p_{v}"] for v in ("win", "tie", "loss", "unparsed")] == [5, 1, 1, 1]
    assert [row[f"q_{v}"] for v in ("win", "tie", "loss", "unparsed")] == [2, 3, 3, 0]
    assert (row.n, row.n_seeds, row.seeds) == (8, 2, "0 1")
    assert row.p_net == pytest.approx(4 / 6) and row.q_net == pytest.approx(-1 / 5)
    assert row.dpq == pytest.approx(100 * (4 / 6 - 1 / 5) / 2)


def test_intervals_are_those_of_the_bootstrap_over_seeds(profile):
    write_verdicts(profile)
    p, q = ([seed[i] for seed in HAND["gold-chosen"]] for i in (0, 1))
    wanted = scores(p, q, profile.bootstrap_samples)
    row = line(results.main_table(profile), judge_persona="gold-chosen")
    for name, score in (("dpq", "delta_pq"), ("p_net", "personalization")):
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(
            (wanted[score].low, wanted[score].high)
        )


def test_seeds_that_share_their_rows_are_resampled_together(profile):
    rows = [TailoringRow(f"r{i}", "test", f"prompt {i}", "c", "d") for i in range(4)]
    for seed in profile.seeds:
        store.write_rows(Run(profile, "everyday", seed).folder / "tailoring" / "test.jsonl", rows)
    write_verdicts(profile)
    p, q = ([seed[i] for seed in HAND["gold-chosen"]] for i in (0, 1))
    wanted = scores(p, q, profile.bootstrap_samples, shared_items=True)["delta_pq"]
    row = line(results.main_table(profile), judge_persona="gold-chosen")
    assert (row.dpq_low, row.dpq_high) == pytest.approx((wanted.low, wanted.high))


def test_a_row_without_decided_pairs_has_no_score_and_no_average(profile):
    write_verdicts(profile)
    table = results.main_table(profile)
    assert math.isnan(line(table, judge_persona="retrieved-chosen").dpq)
    assert pd.isna(line(table, kind="average").dpq)


def test_the_average_is_the_mean_of_the_rows_and_leaves_user_written_personas_out(profile):
    kept = {name: HAND[name] for name in ("gold-chosen", "gold-rejected")}
    write_verdicts(profile, hand=kept | {"user-chosen": [("LLLL", "LLLL")] * 2})
    table = results.main_table(profile)
    rejected = 100 * (6 / 8 + 2 / 4) / 2  # P: 7 wins, 1 loss; Q: 3 wins, 1 loss
    chosen = 100 * (4 / 6 - 1 / 5) / 2
    assert line(table, kind="average").dpq == pytest.approx((rejected + chosen) / 2)
    assert line(table, judge_persona="user-chosen").dpq == -100
    assert line(results.side_difference(profile), personas="gold").dpq == pytest.approx(rejected - chosen)


def test_a_seed_without_judgments_is_left_out_and_said(profile):
    write_verdicts(profile)
    matchup = next(m for m in matchups(Run(profile, "everyday", 1)) if m.kind == "main")
    (Run(profile, "everyday", 1).folder / "judgments" / matchup.slug / "done.json").unlink()
    row = line(results.main_table(profile), judge_persona="gold-chosen")
    assert (row.n, row.n_seeds, row.seeds) == (4, 1, "0")


def test_the_table_by_seed_has_each_seeds_own_score(profile):
    write_verdicts(profile)
    table = results.by_seed_table(profile)
    row = line(table, label="gold-chosen", seed=0)
    assert (row.p_net, row.q_net) == (pytest.approx(1 / 3), 0)  # WWLT: 1 of 3; WLTT: 0 of 2
    assert row.dpq == pytest.approx(100 / 6)


def test_the_papers_rows_give_its_printed_scores_and_average(profile):
    table = claims.paper_rows(profile)
    assert line(table, dataset="Anthropic HHH", label="chosen, retrieved").dpq == pytest.approx(3.3, abs=0.05)
    assert round(line(table, kind="average").dpq, 1) == 18.4
    assert (table.dpq_low < table.dpq).all() and (table.dpq < table.dpq_high).all()


# --- the finished world: everything at once ---


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A profile with two finished seeds and all its tables; answers are invented, the judge is real."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_RESULTS", str(folder / "results"))
        personas = "eval_personas=none,gold-chosen,gold-rejected,user-chosen,shuffled-chosen"
        profile = load_profile(
            "smoke", ["seeds=0,1", "pair_limit=8", "controls=true", personas, "train_personas=none,chosen"]
        )
        for seed in profile.seeds:
            tiny_results.fill_run(Run(profile, "everyday", seed))
        claims.save_tables(profile)
        yield profile


def test_mean_quality_is_in_standard_deviations_of_the_baseline(world):
    matchup = next(m for m in matchups(Run(world, "everyday", 0)) if m.kind == "main")
    scores = {"test": [], "base": []}
    for seed, which in itertools.product(world.seeds, scores):
        run = Run(world, "everyday", seed)
        path = run.folder / "generations" / getattr(matchup, which).slug / "rows.jsonl"
        scores[which] += [quality(r["prompt"], r["completion"]) for r in store.iter_rows(path)]
    wanted = (np.mean(scores["test"]) - np.mean(scores["base"])) / np.std(scores["base"], ddof=1)
    row = line(results.read_table(world, "main"), judge_persona=matchup.judge_persona)
    assert row.quality_sd == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_saved_tables_are_the_same_when_made_again(world):
    before = {path: path.read_bytes() for path in results.table_path(world, "main").parent.glob("*.csv")}
    made = claims.save_tables(world)
    assert set(made.values()) == set(before)
    assert {path: path.read_bytes() for path in made.values()} == before


def test_every_primary_aim_is_answered_in_a_finished_world(world):
    table = results.read_table(world, "primary")
    asked = table[~table["where"].str.contains("retrieved") & ~table["where"].str.endswith(", rejected")]
    assert set(asked[~asked.aim.str.contains("dPQ")].met) <= {"yes", "no", "reported"}
    retrieved = table[table["where"].str.contains("retrieved") & table.aim.str.contains("net win rate")]
    assert set(retrieved.met) == {"not run"}


def test_accuracy_counts_missing_personas_as_wrong(profile):
    verdicts = {"chosen": ["win", "win", "tie", ""], "rejected": ["loss", "win", "unparsed", "win"]}
    path = Run(profile, "everyday", 0).folder / "tables" / "persona_accuracy_items.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "side", "verdict", "contradicted"])
        writer.writerows(
            [f"r{i}", "test", side, v, v == "tie"]
            for side, part in verdicts.items()
            for i, v in enumerate(part)
        )
    table = personas_module.accuracy_table(profile)
    chosen = line(table, side="chosen")
    assert chosen.accuracy == 2.5 / 4 and chosen.n_missing == 1 and chosen.n == 4 and chosen.seeds == "0"
    assert (chosen.n_ties, chosen.n_contradicted, line(table, side="rejected").n_contradicted) == (1, 1, 0)
    assert render("persona_accuracy", table)["ties by contradiction"].tolist()[:2] == ["1", "0"]
    calm = table.assign(n_contradicted=0)
    assert "ties by contradiction" not in render("persona_accuracy", calm)
    assert line(table, side="rejected").accuracy == 2 / 4
    assert line(table, side="chosen - rejected").accuracy == pytest.approx(0.5 / 4)


def test_an_items_file_of_another_shape_is_named(profile):
    path = Run(profile, "everyday", 0).folder / "tables" / "persona_accuracy_items.csv"
    path.parent.mkdir(parents=True)
    path.write_text("id,verdict\nr0,win\n")
    with pytest.raises(ValueError, match=r"persona_accuracy_items.csv: no column contradicted, side, split"):
        personas_module.accuracy_table(profile)


# --- swaps ---


def write_swap(profile, arm, margins, form="line"):
    """Write policy margins (m under P_C, m under P_R) per seed and row."""
    for seed, rows in zip(profile.seeds, margins, strict=True):
        scores = [
            SwapScore(f"r{i}", f"gold-{side}", side, pair[place], 0.0, 0.0, 0.0)
            for i, pair in enumerate(rows)
            for place, side in enumerate(("chosen", "rejected"))
        ]
        folder = Run(profile, profile.datasets[0], seed).folder / "swap" / f"{arm}.{form}"
        store.write_rows(folder / "rows.jsonl", scores)
        store.mark_done(folder, "hand")


def test_swap_accuracy_and_its_difference_to_the_twin_are_over_both_seeds(profile):
    write_swap(profile, "dpo-chosen", [[(1, -1), (2, 1)], [(1, -2), (-1, 1)]])
    write_swap(profile, "dpo-none", [[(1, 2), (2, 1)], [(1, 2), (-1, 1)]])
    table = swap.swap_results(profile)
    row = line(table, arm="dpo-chosen", measure="policy", persona="gold")
    assert (row.d_positive, row.flip, row.n, row.n_seeds) == (0.75, 0.5, 4, 2)
    assert row.d == pytest.approx((2 + 1 + 3 - 2) / 4)
    twin = line(swap.swap_differences(profile), compared="dpo-none.line", measure="policy")
    assert (twin.d_positive, twin.flip) == (0.5, 0.5)
    seeds = swap.swap_by_seed(profile)
    kept = seeds[(seeds.arm == "dpo-chosen") & (seeds.measure == "policy")]
    assert list(kept.d_positive) == [1.0, 0.5]


def test_swap_intervals_are_those_of_the_bootstrap(profile):
    margins = [[(1, -1), (2, 1), (0, 3)], [(1, -2), (-1, 1), (5, 1)]]
    write_swap(profile, "dpo-chosen", margins)
    wanted = bootstrap_mean([[float(a > b) for a, b in rows] for rows in margins], profile.bootstrap_samples)
    row = line(swap.swap_results(profile), measure="policy", persona="gold")
    assert (row.d_positive_low, row.d_positive_high) == (wanted.low, wanted.high)


def test_a_policy_that_heeds_nothing_but_length_has_a_balanced_share_of_one_half(profile):
    lengths = [("long answer", "short"), ("long answer", "short"), ("long answer", "short"),
               ("short", "long answer"), ("equal", "equal")]  # fmt: skip
    for seed in profile.seeds:
        rows = [TailoringRow(f"r{i}", "test", "q", *pair, {}) for i, pair in enumerate(lengths)]
        store.write_rows(Run(profile, profile.datasets[0], seed).folder / "tailoring" / "test.jsonl", rows)
    write_swap(profile, "dpo-chosen", [[(1, 0), (1, 0), (1, 0), (0, 1), (1, 0)]] * 2)
    row = line(swap.swap_length_table(profile), measure="policy", persona="gold")
    assert (row.chosen_longer, row.rejected_longer, row.balanced) == (1.0, 0.0, 0.5)
    assert (row.n_chosen_longer, row.n_rejected_longer, row.n) == (6, 2, 8), "equal lengths are in neither"
    assert line(swap.swap_results(profile), measure="policy", persona="gold").d_positive == 0.8


# --- primary results and what is missing ---


def save(profile, name, **columns):
    """Save a hand-made table."""
    results.save_table(profile, name, pd.DataFrame([columns]))


@pytest.mark.parametrize(("low", "met"), [(0.01, "yes"), (-0.01, "no")])
def test_an_aim_is_met_only_if_the_interval_excludes_zero(profile, low, met):
    row = {"p_net": 0.3, "p_net_low": low, "p_net_high": 0.6, "n": 8, "n_seeds": 2}
    save(profile, "main", dataset="everyday", kind="main", judge_persona="gold-chosen", **row,
         dpq=None, quality_sd=-0.1, quality_sd_low=-0.3, quality_sd_high=0.1)  # fmt: skip
    table = claims.primary_results(profile)
    chosen = table[table["where"] == "everyday, gold-chosen"]
    assert line(chosen, aim="PT-DPO against DPO, personalization net win rate").met == met
    assert line(chosen, aim="PT-DPO against DPO, dPQ").met == "not run"
    assert line(chosen, aim="PT-DPO against DPO, mean quality (SD of the baseline)").met == "yes"
    assert set(table[table["where"] == "everyday, gold-rejected"].met) == {"not run"}


def test_the_aims_of_the_authors_data_need_the_value_and_an_interval_above_one_half(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    profile = load_profile("authors")
    policy = {"arm": "dpo-both", "persona_format": "line", "measure": "policy", "n": 9, "n_seeds": 3}
    found = [
        (name, "gold", claims.SWAP_AIMS[name] + by) for name, by in (("beavertails", 0.01), ("hhh", -0.01))
    ]
    found += [("beavertails", "shuffled", 0.52), ("hhh", "shuffled", 0.56)]
    rows = [
        policy | {"dataset": dataset, "persona": persona, "d_positive": value,
                  "d_positive_low": value - 0.05, "d_positive_high": value + 0.05}
        for dataset, persona, value in found
    ]  # fmt: skip
    results.save_table(profile, "swap", pd.DataFrame(rows))
    table = claims.primary_results(profile).set_index("where")
    assert table.loc["beavertails, shuffled"].met == "yes" and table.loc["hhh, shuffled"].met == "no"
    gold = table[table.aim == "PT-DPO, share D > 0"]
    assert gold.met.to_dict() == {"beavertails, gold": "yes", "hhh, gold": "no"}


def test_nothing_run_gives_no_tables_but_says_what_is_missing(profile):
    made = claims.save_tables(profile)
    assert set(made) == {"paper", "primary", "not_run"}
    missing = results.read_table(profile, "not_run")
    assert "everyday, seed 1: judgments" in set(missing.what)
    assert "arms trained on personas: rejected" in set(missing.what)
    assert set(results.read_table(profile, "primary").met) == {"not run"}


def test_a_table_that_became_empty_is_removed(profile):
    save(profile, "stage", dataset="everyday")
    claims.save_tables(profile)
    assert not results.table_path(profile, "stage").exists()
    assert results.read_table(profile, "stage").empty


def test_two_rows_that_answer_one_aim_are_an_error():
    table = pd.DataFrame({"p_net": [0.1, 0.2]})
    with pytest.raises(ValueError, match="2 rows of the table answer it"):
        claims.aim("an aim", "here", table, "p_net", claims.POSITIVE)
