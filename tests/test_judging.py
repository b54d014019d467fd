"""Judging: which runs are compared, both orders, resuming, and how far two judges agree."""

import json

import numpy as np
import pytest
import tiny_results
from tiny import Echo

from persona_lib import store
from persona_lib.intervals import verdict_of
from persona_lib.paper import answers, judges, judging, results
from persona_lib.records import SIDES, Judgment, PairwiseComparison
from persona_lib.settings import Run, load_profile


def test_matchups_compare_the_tailored_arm_with_the_plain_one_and_controls_are_judged_for_the_rows_persona():
    changes = ["evaluation.controls=true", "training.arms=none,chosen,rejected,shuffled"]
    run = Run(load_profile("everyday", changes), "everyday", 0)
    found, cells = judging.matchups(run), answers.grid(run)
    main = [m for m in found if m.kind == "main"]
    wanted = [f"{kind}-{side}" for kind in ("gold", "retrieved", "user") for side in SIDES]
    assert [m.judge_persona for m in main] == wanted
    for m in main:
        assert (m.test.arm, m.test.persona_format) == ("dpo-chosen", "line")
        assert (m.base.arm, m.base.persona_format) == ("dpo-none", "first_person")
        assert m.test.eval_persona == m.base.eval_persona == m.judge_persona
    judged = {(m.test.eval_persona, m.judge_persona) for m in found if m.kind == "control"}
    assert {("shuffled-chosen", "gold-chosen"), ("shuffled-rejected", "gold-rejected")} < judged
    assert {(name, f"gold-{s}") for name in ("none", "system") for s in ("chosen", "rejected")} < judged
    shuffled = [m for m in found if m.test.train_persona == "shuffled"]
    assert len(shuffled) == 6 and all(m.test.eval_persona == m.judge_persona for m in shuffled)
    assert all({m.test, m.base} <= set(cells) for m in found)
    assert len({m.slug for m in found}) == len(found), "all folders differ"


def test_judging_that_was_killed_goes_on_after_the_last_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "CHUNK", 2)
    rows = [PairwiseComparison(f"row-{n}", "q", None, "a", "b") for n in range(5)]
    asked = []

    def first_is_better(comparisons, rubric):
        asked.extend(c.id for c in comparisons)
        if len(asked) > limit:
            raise KeyboardInterrupt
        return [Judgment(c.id, "test", rubric, "A" if c.response_a == "a" else "B") for c in comparisons]

    path, limit = tmp_path / "quality.jsonl", 6
    with pytest.raises(KeyboardInterrupt):
        judging.judge_rubric(first_is_better, rows, "quality", path)
    assert [row["id"] for row in store.iter_rows(path)] == ["row-0", "row-0", "row-1", "row-1"]
    asked.clear()
    limit = 100
    pairs = judging.judge_rubric(first_is_better, rows, "quality", path)
    assert sorted(set(asked)) == ["row-2", "row-3", "row-4"]
    assert [verdict_of(*pair) for pair in pairs] == ["win"] * 5
    assert len(list(store.iter_rows(path))) == 10


def agreement(n_resamples: int = 20, **counts: int) -> dict:
    """The row of verdict pairs on different prompts: win_loss=5 means five times first win, second loss."""
    pairs = [name.split("_") for name, count in counts.items() for _ in range(count)]
    return judging.agreement_row([[(f"row-{n}", *pair) for n, pair in enumerate(pairs)]], n_resamples)


def test_agreement_and_kappa_by_hand():
    # p_o = 35 / 50 = .7; the first says win 25 of 50 times, the second 30: p_e = .5 x .6 + .5 x .4 = .5
    row = agreement(400, win_win=20, win_loss=5, loss_win=10, loss_loss=15)
    assert (row["n"], row["agreement"], row["kappa"]) == (50, 0.7, pytest.approx(0.4))
    assert row["kappa_low"] < 0.4 < row["kappa_high"] and row["agreement_low"] < 0.7 < row["agreement_high"]
    row = agreement(tie_tie=4, unparsed_win=2, loss_unparsed=1)
    assert (row["n"], row["first_unparsed"], row["second_unparsed"]) == (4, 2, 1)
    assert row["agreement"] == 1 and row["kappa"] is None
    row = judging.agreement_row([[("same", "win", "win"), ("same", "win", "loss")] * 10], 50)
    assert row["agreement"] == 0.5 and row["agreement_low"] is None, "one prompt is drawn as a whole"


def shorter(prompt: str) -> str:
    """A served judge's answer: the shorter response, and nothing that can be read of equal lengths."""
    a, b = prompt.partition("Response A:\n")[2].split("\n\nAnswer with")[0].split("\n\nResponse B:\n")
    letter = {"winner": "A" if len(a) < len(b) else "B"} if len(a) != len(b) else {}
    return json.dumps({"reason": "length"} | letter)


SERVED = ["second_judge.model=shorter-first", "second_judge.url=http://localhost:1/v1"]
FEW = ["data.pair_limit=8", "evaluation.bootstrap_samples=40", "seeds=0,1"]
TWO_JUDGES = load_profile("smoke", [*SERVED, *FEW])
RUNS = [Run(TWO_JUDGES, "everyday", seed) for seed in TWO_JUDGES.seeds]


def test_two_judges_judge_the_same_comparisons_and_are_kept_apart_and_tabled(results_here, monkeypatch):
    second, run = Echo(say=shorter), RUNS[0]
    monkeypatch.setattr(judges, "load_generator", lambda run, role: second)
    for each in RUNS:
        tiny_results.fill_run(each)  # judged by the oracle, the first
    assert results.second_judge_table(TWO_JUDGES).empty, "not judged yet"
    folders = judging.judge_all(run, "second_judge")
    wanted = [m for m in judging.matchups(run) if m.kind == "main"]
    assert [folder.name for folder in folders] == [m.slug for m in wanted]
    asked = len(second.asked)
    assert asked == 2 * len(judging.RUBRICS) * sum(len(judging.compare(run, m)) for m in wanted)
    assert judging.judge_all(run, "second_judge") == folders and len(second.asked) == asked, "nothing twice"
    judging.judge_all(RUNS[1], "second_judge")
    judging.forget_judged()
    table = judging.agreement_table(TWO_JUDGES).set_index("rubric")
    both = [[row for each in RUNS for m in wanted for row in judging.read_verdicts(each, m, role)]
            for role in judging.FOLDERS]  # fmt: skip
    for rubric in judges.RULED:
        pairs = [(a[rubric], b[rubric]) for a, b in zip(*both, strict=True)]
        known = [(a, b) for a, b in pairs if b != "unparsed"]
        row = table.loc[rubric]
        assert (row["n"], row.second_unparsed, row.first_unparsed) == (len(known), len(pairs) - len(known), 0)
        assert row.agreement == pytest.approx(np.mean([a == b for a, b in known]))
        assert (row["first"], row["second"], row.n_seeds) == ("oracle", "shorter-first", 2)
    first, others = results.judged_table(TWO_JUDGES, ("main",)), results.second_judge_table(TWO_JUDGES)
    assert list(others.label) == list(first.label) and others.p_unparsed.sum() > 0 == first.p_unparsed.sum()
