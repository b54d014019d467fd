"""Calibration: what the damaged copies look like, and judges whose accuracy is known."""

from __future__ import annotations

import pandas as pd
import pytest
import tiny_results

from persona_lib import store
from persona_lib.beyond import calibration
from persona_lib.records import TailoringRow
from persona_lib.settings import Run, load_profile

TEXTS = ["Tea is warm. Drink it now! Rest after that.", "Buy a lamp.", "Walk home.", "Read more books."]
ROWS = [
    TailoringRow(f"r{n}", "test", f"q{n}", text, "other", {"gold-chosen": "C"})
    for n, text in enumerate(TEXTS)
]


def test_each_damage_changes_the_text_as_it_says():
    found = {damage: made[0] for damage, made in calibration.damaged_comparisons(ROWS).items()}
    assert {(c.response_a, c.persona) for c in found.values()} == {(TEXTS[0], None)}
    assert {damage: c.response_b for damage, c in found.items()} == {
        "answer to another question": "Walk home.",
        "cut in the middle": "Tea is warm. Drink",
        "sentences reversed": "Rest after that. Drink it now! Tea is warm.",
        "facts contradicted": "Tea is not warm. Do not drink it now! Do not rest after that.",
        "first sentence repeated": "Tea is warm. Tea is warm. Tea is warm. Tea is warm.",
    }


def test_gold_comparisons_put_each_personas_own_response_first_and_need_both():
    row = TailoringRow("r", "test", "q", "c", "r", {"gold-chosen": "C", "gold-rejected": "R"})
    found = calibration.gold_comparisons([row, TailoringRow("e", "test", "q", "", "", row.personas), ROWS[0]])
    assert [(c.id, c.persona, c.response_a, c.response_b) for c in found] == [
        ("r/chosen", "C", "c", "r"), ("r/rejected", "R", "r", "c"), ("r0/chosen", "C", TEXTS[0], "other")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "accuracy", "decides"),
    [
        (["win"] * 20, 1, True),
        (["win"] * 15 + ["loss"] * 5, 0.75, False),  # lower bound: .53
        (["tie"] * 20, 0.5, False),
        (["win"] * 10 + ["unparsed"] * 10, 0.5, False),
        ([], None, False),
    ],
)
def test_a_judge_decides_only_if_it_is_surely_better_than_chance(verdicts, accuracy, decides):
    found = calibration.measure(verdicts)
    assert (found["n"], found["ties"]) == (len(verdicts), verdicts.count("tie"))
    assert found["decides"] == decides and (not verdicts or found["accuracy"] == accuracy)


def test_every_judge_of_a_run_is_measured_once_and_the_reader_decides_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    run = Run(load_profile("everyday", ["evaluation.persona_judge=", "evaluation.limit=0"]), "everyday", 0)
    store.write_rows(run.folder / "tailoring" / "test.jsonl", tiny_results.tailoring_rows(run))
    store.mark_done(run.folder / "tailoring", "made by hand")
    table = calibration.calibrate(run)
    monkeypatch.setattr(calibration, "load_judge", lambda *_: pytest.fail("it was measured already"))
    pd.testing.assert_frame_equal(calibration.calibrate(run), table)
    assert list(table.judge) == ["oracle"] * 7 and table.test.iloc[0] == calibration.FIT
    decides = table.set_index("test").decides
    assert decides["persona fit"] and decides["answer to another question"]
    assert not decides["sentences reversed"] and not decides["facts contradicted"], "a rule cannot see them"
