"""Judged tables over seeds: counts, scores and tests by hand, intervals paired, and missing parts."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import tiny_results
from test_intervals import scores

from persona_lib import show, store
from persona_lib.beyond import claims
from persona_lib.data.reader import quality
from persona_lib.intervals import sign_test
from persona_lib.paper import judging, results
from persona_lib.paper.answers import matchups
from persona_lib.records import TailoringRow
from persona_lib.settings import Run, load_profile

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
    judging.forget_judged()
    return load_profile(
        "smoke", ["seeds=0,1", "data.pair_limit=6", "evaluation.controls=true", "training.arms=none,chosen"]
    )


def main_row(run, persona="gold-chosen"):
    return next(m for m in matchups(run) if m.kind == "main" and m.judge_persona == persona)


def write_verdicts(profile, hand=HAND):
    """Write hand-made verdicts of the main rows as the judging step would."""
    for number, seed in enumerate(profile.seeds):
        run = Run(profile, "everyday", seed)
        for persona, by_seed in hand.items():
            folder = run.folder / "judgments" / main_row(run, persona).slug
            rows = [{"id": f"r{i}", "personalization": LETTERS[a], "quality": LETTERS[b]}
                    for i, (a, b) in enumerate(zip(*by_seed[number], strict=True))]  # fmt: skip
            store.write_rows(folder / "verdicts.jsonl", rows)
            store.mark_done(folder, "hand")


def line(table, **values):
    """Return the one row of a table with these values."""
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_counts_and_scores_of_a_row_are_those_of_both_seeds_and_of_each(profile):
    write_verdicts(profile)
    row = line(results.main_table(profile), judge_persona="gold-chosen")
    assert [row[f"p_{v}"] for v in ("win", "tie", "loss", "unparsed")] == [5, 1, 1, 1]
    assert [row[f"q_{v}"] for v in ("win", "tie", "loss", "unparsed")] == [2, 3, 3, 0]
    assert (row.n, row.n_seeds, row.seeds) == (8, 2, "0 1")
    assert row.p_net == pytest.approx(4 / 6) and row.q_net == pytest.approx(-1 / 5)
    assert row.dpq == pytest.approx(100 * (4 / 6 - 1 / 5) / 2)
    row = line(results.by_seed_table(profile), label="gold-chosen", seed=0)
    assert (row.p_net, row.q_net) == (pytest.approx(1 / 3), 0)  # WWLT: 1 of 3; WLTT: 0 of 2
    assert (row.n, row.dpq) == (4, pytest.approx(100 / 6))


@pytest.mark.parametrize("shared", [False, True])
def test_intervals_are_those_of_the_bootstrap_and_seeds_that_share_rows_are_drawn_together(profile, shared):
    rows = [TailoringRow(f"r{i}", "test", f"prompt {i}", "c", "d") for i in range(4)]
    for seed in profile.seeds if shared else ():
        store.write_rows(Run(profile, "everyday", seed).folder / "tailoring" / "test.jsonl", rows)
    write_verdicts(profile)
    p, q = ([[{"U": "?"}.get(v, v) for v in seed[i]] for seed in HAND["gold-chosen"]] for i in (0, 1))
    wanted = scores(p, q, profile.evaluation.bootstrap_samples, shared_items=shared)
    row = line(results.main_table(profile), judge_persona="gold-chosen")
    for name, score in (("dpq", "delta_pq"), ("p_net", "personalization")):
        limits = wanted[score].low, wanted[score].high
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(limits)


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
    run = Run(profile, "everyday", 1)
    (run.folder / "judgments" / main_row(run).slug / "done.json").unlink()
    row = line(results.main_table(profile), judge_persona="gold-chosen")
    assert (row.n, row.n_seeds, row.seeds) == (4, 1, "0")


@pytest.mark.parametrize(("shared", "votes"), [(False, (4, 4)), (True, (2, 2))])
def test_seeds_with_their_own_prompts_count_each_and_shared_prompts_count_once(monkeypatch, shared, votes):
    monkeypatch.setattr(results, "same_items", lambda runs: shared)
    # together: r0 WW, r1 WL: even, r2 LL, r3 TW, r4 UL
    verdicts = [{f"r{i}": LETTERS[v] for i, v in enumerate(letters)} for letters in ("WWLTU", "WLLWL")]
    row = judging.Judged(None, (), {"personalization": verdicts, "quality": verdicts})
    assert results.decided_prompts(row, "personalization") == votes


def test_holm_is_over_the_rows_of_a_table_and_an_average_has_none():
    table = results.with_holm(
        pd.DataFrame({"p_sign": [0.03, 0.01, math.nan], "q_sign": [0.5, 0.7, math.nan]})
    )
    assert table.p_holm.tolist() == pytest.approx([0.03, 0.02, math.nan], nan_ok=True)
    assert table.q_holm.tolist() == pytest.approx([1.0, 1.0, math.nan], nan_ok=True)


# --- how rows are shown ---


def shown_row(**more):
    """One row as the views get it, with 10 wins, 20 ties of which 5 contradict themselves, and 10 losses."""
    row = {"dataset": "everyday", "kind": "main", "label": "row", "n": 40, "n_seeds": 1, "seeds": "0"}
    for short in "pq":
        row |= {f"{short}_win": 10, f"{short}_tie": 20, f"{short}_loss": 10, f"{short}_unparsed": 0,
                f"{short}_inconsistent": 5, f"{short}_sign": 1.0}  # fmt: skip
    for name in ("p_net", "q_net", "dpq", "quality_sd"):
        row |= {name: 0.0, f"{name}_low": -0.1, f"{name}_high": 0.1}
    return results.with_holm(pd.DataFrame([row | more]))


def test_a_judge_that_contradicts_itself_is_shown_apart_from_ties():
    shown = show.render("main", shown_row())
    assert shown["personalization W / T / L / contradicted %"][0] == "25.0 / 37.5 / 25.0 / 12.5"
    published = show.render("paper", shown_row().drop(columns=["p_inconsistent", "q_inconsistent"]))
    assert published["personalization W / T / L %"][0] == "25.0 / 50.0 / 25.0"


def test_nothing_decided_says_so():
    nothing = {"q_win": 0, "q_loss": 0, "q_tie": 40, "q_inconsistent": 0, "q_net": np.nan, "dpq": np.nan}
    shown = show.render("main", shown_row(**nothing)).iloc[0]
    assert shown["quality net [95 % interval]"] == "undefined"
    assert shown["dPQ [95 % interval]"] == "undefined"


# --- the finished world: everything at once ---


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A profile with two finished seeds and all its tables; answers are invented, the judge is real."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_RESULTS", str(folder / "results"))
        personas = "evaluation.personas=none,gold-chosen,gold-rejected,user-chosen,shuffled-chosen"
        profile = load_profile(
            "smoke",
            [
                "seeds=0,1",
                "data.pair_limit=8",
                "evaluation.controls=true",
                personas,
                "training.arms=none,chosen",
            ],
        )
        for seed in profile.seeds:
            tiny_results.fill_run(Run(profile, "everyday", seed))
        claims.save_tables(profile)
        yield profile


def test_mean_quality_is_in_standard_deviations_of_the_baseline(world):
    matchup = main_row(Run(world, "everyday", 0))
    found = {"test": [], "base": []}
    for seed, which in itertools.product(world.seeds, found):
        run = Run(world, "everyday", seed)
        path = run.folder / "generations" / getattr(matchup, which).slug / "rows.jsonl"
        found[which] += [quality(r["prompt"], r["completion"]) for r in store.iter_rows(path)]
    wanted = (np.mean(found["test"]) - np.mean(found["base"])) / np.std(found["base"], ddof=1)
    row = line(results.read_table(world, "main"), judge_persona="gold-chosen")
    assert row.quality_sd == pytest.approx(wanted, rel=1e-4)


def test_saved_rows_have_the_sign_test_of_their_verdicts(world):
    row = line(results.read_table(world, "main"), label="gold-chosen")
    votes = Counter()  # both seeds answer the same questions: a question counts once
    for run in [Run(world, "everyday", seed) for seed in world.seeds]:
        for verdict in store.iter_rows(run.folder / "judgments" / main_row(run).slug / "verdicts.jsonl"):
            votes[verdict["id"]] += {"win": 1, "loss": -1}.get(verdict["personalization"], 0)
    won, lost = (sum(vote * sign > 0 for vote in votes.values()) for sign in (1, -1))
    assert row.p_sign == pytest.approx(sign_test(won, lost), rel=1e-4)


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
