"""Tests, filters and length control of judged rows, the paper's numbers beside ours: from files to tables."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import tiny_results

from persona_lib import docs, show, store
from persona_lib.beyond import claims
from persona_lib.intervals import sign_test
from persona_lib.paper import judging, results, swap
from persona_lib.paper.answers import generation_folder, matchups
from persona_lib.records import Generation
from persona_lib.settings import Run, load_profile

LETTERS = {"W": "win", "T": "tie", "L": "loss", "U": "unparsed"}


def forget():
    judging.forget_judged()
    swap.forget_swap()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two finished seeds with invented answers, a tenth of PT-DPO's under gold-chosen without an end."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_RESULTS", str(folder / "results"))
        patch.setenv("PERSONA_FIGURES", str(folder / "figures"))
        personas = "eval_personas=none,gold-chosen,gold-rejected"
        profile = load_profile("smoke", ["seeds=0,1", "pair_limit=40", "eval_limit=0", personas])
        for seed in profile.seeds:
            run = Run(profile, "everyday", seed)
            tiny_results.fill_run(run)
            endless(run)
        forget()
        claims.save_tables(profile)
        yield profile
        forget()


def endless(run):
    """Let every tenth answer of PT-DPO under gold-chosen never end."""
    spec = main_row(run).test
    path = generation_folder(run, spec) / "rows.jsonl"
    rows = store.read_rows(path, Generation)
    rows = [dataclasses.replace(r, finish_reason="length") if i % 10 == 0 else r for i, r in enumerate(rows)]
    store.write_rows(path, rows)


def main_row(run, persona="gold-chosen"):
    return next(m for m in matchups(run) if m.kind == "main" and m.judge_persona == persona)


def saved(run, matchup):
    """Verdicts, and both answers' words, by id."""
    rows = list(store.iter_rows(run.folder / "judgments" / matchup.slug / "verdicts.jsonl"))
    answers = [
        {g.id: g for g in store.read_rows(generation_folder(run, spec) / "rows.jsonl", Generation)}
        for spec in (matchup.test, matchup.base)
    ]
    return rows, answers


def pick(table, **values):
    for name, value in values.items():
        table = table[table[name] == value]
    return table


# --- sign tests ---


def judged_row(p, shared, monkeypatch):
    """A row of two seeds from letters, whose seeds answer the same prompts or not."""
    monkeypatch.setattr(results, "same_items", lambda runs: shared)
    verdicts = [{f"r{i}": LETTERS[v] for i, v in enumerate(letters)} for letters in p]
    return judging.Judged(None, (), {"personalization": verdicts, "quality": verdicts})


def test_seeds_with_their_own_prompts_count_each_and_shared_prompts_count_once(monkeypatch):
    letters = ("WWLTU", "WLLWL")
    own = judged_row(letters, False, monkeypatch)
    assert results.decided_prompts(own, "personalization") == (4, 4)
    shared = judged_row(letters, True, monkeypatch)  # r0 WW, r1 WL: even, r2 LL, r3 TW, r4 UL
    assert results.decided_prompts(shared, "personalization") == (2, 2)


def test_saved_rows_have_the_sign_test_of_their_counts_and_holm_over_the_table(world):
    table = results.read_table(world, "main")
    rows = table[table.kind == "main"]
    assert len(rows) == 2
    for row in rows.itertuples():
        votes = Counter()  # both seeds answer the same questions: a question counts once
        for seed in world.seeds:
            for verdict in saved(
                Run(world, "everyday", seed), main_row(Run(world, "everyday", seed), row.label)
            )[0]:
                votes[verdict["id"]] += {"win": 1, "loss": -1}.get(verdict["personalization"], 0)
        won, lost = (sum(vote * sign > 0 for vote in votes.values()) for sign in (1, -1))
        assert row.p_sign == pytest.approx(sign_test(won, lost), rel=1e-4)
    small, large = sorted(rows.p_sign)
    assert sorted(rows.p_holm) == pytest.approx([min(1, 2 * small), min(1, max(large, 2 * small))], rel=1e-4)
    assert np.isnan(table.p_holm.iloc[-1]), "the average is not a row of counts"


def test_a_table_of_an_earlier_run_gets_its_tests_from_its_counts():
    counts = {"p_win": [8, 3], "p_loss": [1, 3], "q_win": [5, 0], "q_loss": [0, 0]}
    table = results.with_tests(pd.DataFrame(counts))
    assert table.p_sign.tolist() == pytest.approx([sign_test(8, 1), 1.0])
    assert table.q_holm.tolist() == pytest.approx([2 * sign_test(5, 0), 1.0])


# --- contradictions and nothing decided ---


def shown_row(**more):
    """One row as the views get it, with 10 wins, 20 ties of which 5 contradict themselves, and 10 losses."""
    row = {"dataset": "everyday", "kind": "main", "label": "row", "n": 40, "n_seeds": 1, "seeds": "0"}
    for short in "pq":
        row |= {f"{short}_win": 10, f"{short}_tie": 20, f"{short}_loss": 10, f"{short}_unparsed": 0,
                f"{short}_inconsistent": 5}  # fmt: skip
    for name in ("p_net", "q_net", "dpq", "quality_sd"):
        row |= {name: 0.0, f"{name}_low": -0.1, f"{name}_high": 0.1}
    return results.with_tests(pd.DataFrame([row | more]))


def test_a_judge_that_contradicts_itself_is_shown_apart_from_ties():
    shown = show.render("main", shown_row())
    assert shown["personalization W / T / L / contradicted %"][0] == "25.0 / 37.5 / 25.0 / 12.5"
    published = show.render("paper", shown_row().drop(columns=["p_inconsistent", "q_inconsistent"]))
    assert published["personalization W / T / L %"][0] == "25.0 / 50.0 / 25.0"


def test_nothing_decided_says_so_and_has_no_small_p():
    nothing = {"q_win": 0, "q_loss": 0, "q_tie": 40, "q_inconsistent": 0, "q_net": np.nan, "dpq": np.nan}
    shown = show.render("main", shown_row(**nothing)).iloc[0]
    assert shown["quality net [95 % interval]"] == "undefined"
    assert shown["dPQ [95 % interval]"] == "undefined"
    assert shown["p / Holm p"] == "1 / 1"


# --- without degenerate answers ---


def test_the_filter_takes_out_pairs_in_which_either_answer_is_degenerate(world):
    table = results.read_table(world, "filtered")
    rows = pick(table, label="gold-chosen", kind="main").set_index("pairs")
    kept, wins = 0, 0
    for seed in world.seeds:
        run = Run(world, "everyday", seed)
        verdicts, answers = saved(run, main_row(run))
        sound = {i for i in answers[0] if all(claims.is_sound(a[i]) for a in answers)}
        kept += len(sound)
        wins += sum(v["personalization"] == "win" for v in verdicts if v["id"] in sound)
    wordings = rows.n["explicit personas"] + rows.n["implicit personas"]
    assert rows.n["all pairs"] == 80 == wordings and rows.n["both answers sound"] == kept <= 72
    assert rows.loc["both answers sound"].p_win == wins
    main = pick(results.read_table(world, "main"), label="gold-chosen").iloc[0]
    assert rows.loc["all pairs", ["p_win", "p_loss", "q_win", "q_loss"]].tolist() == [
        main.p_win, main.p_loss, main.q_win, main.q_loss]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason", "sound"),
    [
        ("One plain answer that ends.", "stop", True),
        ("One plain answer that ends.", "length", False),
        ("yes it is " * 20, "stop", False),
        ("Begin and then go on and on and on", "stop", True),  # twice and a half: no loop of three
        ("Begin. go on go on go on", "stop", False),
    ],
)
def test_which_answers_are_sound(text, reason, sound):
    assert claims.is_sound(Generation("i", "r", "p", None, text, reason, 9)) is sound


# --- at equal length ---


def test_length_matched_rows_by_a_count_of_the_files(world):
    table = results.read_table(world, "length")
    row = pick(table, label="gold-rejected", rubric="personalization").iloc[0]
    matched, decided, words = 0, 0, []
    for seed in world.seeds:
        run = Run(world, "everyday", seed)
        verdicts, answers = saved(run, main_row(run, "gold-rejected"))
        for verdict in verdicts:
            a, b = (len(side[verdict["id"]].completion.split()) for side in answers)
            words.append(a)
            if abs(a - b) <= 0.1 * max(a, b):
                matched += 1
                decided += verdict["personalization"] in ("win", "loss")
    assert (row.n_matched, row.n_matched_decided) == (matched, decided)
    assert row.words_tested == pytest.approx(np.mean(words), rel=1e-4)
    main = pick(results.read_table(world, "main"), label="gold-rejected").iloc[0]
    assert row.net == pytest.approx(main.p_net)


def test_every_row_has_a_model_or_says_why_not(world):
    table = results.read_table(world, "length")
    assert set(table.kind) == {"main", "stage"} and len(table) == 8
    assert (table.net_controlled.isna() == table.why.notna()).all()


# --- tables that are kept for the documents ---


def test_kept_tables_stand_in_until_the_run_has_its_own(world, tmp_path, monkeypatch):
    assert len(docs.keep(world, ["length"])) == 1
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))  # another run, without the table
    text = docs.table_block(world, "length")
    assert "seeds 0 1" in text and "| gold-chosen | personalization |" in text
    assert docs.table_block(world, "filtered") == docs.NOT_RUN
    with pytest.raises(FileNotFoundError, match="main.csv"):
        docs.keep(world, ["main"])
