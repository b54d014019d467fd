"""Calibration: what the damaged copies look like, and judges whose accuracy is known."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import tiny_results
from test_intervals import judged

from persona_lib import show, store
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


def measure(answers, feedback=lambda number: ""):
    """Measure a judge that names A, B, = (a tie) or ? (nothing) in either order; A, then B is right."""
    said = enumerate(answers)
    return calibration.measure([[replace(judged(a), feedback=feedback(n)) for a in both] for n, both in said])


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (["AB"] * 20, {"accuracy": 1, "contradicted": 0, "decides": True}),
        (["AB"] * 15 + ["BA"] * 5, {"accuracy": 0.75, "ties": 0, "decides": False}),  # lower bound: .53
        (["=="] * 20, {"accuracy": 0.5, "ties": 20, "contradicted": 0, "decides": False}),
        (["AB"] * 10 + ["?B"] * 10, {"accuracy": 0.5, "unparsed": 10, "ties": 0, "decides": False}),
        (["AA"] * 20, {"accuracy": 0.5, "contradicted": 20, "decides": False}),
        ([], {"unparsed": 0, "decides": False}),
    ],
)
def test_a_judge_decides_only_if_it_is_surely_better_than_chance(answers, found):
    measured = measure(answers)
    assert {name: measured[name] for name in found} == found and measured["n"] == len(answers)


def test_at_half_is_the_accuracy_where_the_scores_differ_most_and_undefined_without_scores():
    answers = ["AB"] * 10 + ["BA"] * 10
    assert measure(answers, lambda n: f"{30 - n}.5 : -1")["at_half"] == 1.0
    assert measure(answers, lambda n: f"{n} : 0.0")["at_half"] == 0.0
    assert math.isnan(measure(answers)["at_half"])


def test_every_judge_of_a_run_is_measured_once_and_the_reader_decides_fit(results_here, monkeypatch):
    run = Run(load_profile("everyday", ["evaluation.persona_judge=", "evaluation.limit=0"]), "everyday", 0)
    store.write_rows(run.folder / "tailoring" / "test.jsonl", tiny_results.tailoring_rows(run))
    store.mark_done(run.folder / "tailoring", "made by hand")
    table = calibration.calibrate(run)
    monkeypatch.setattr(calibration, "load_judge", lambda *_: pytest.fail("it was measured already"))
    pd.testing.assert_frame_equal(calibration.calibrate(run), table)
    assert list(table.judge) == ["oracle"] * 7 and table.test.iloc[0] == calibration.FIT
    assert table.at_half[0] == 1.0 > table.accuracy[0], "the reader's scores are read"
    assert {"surer half", "ties / contradicted / unparsed"} < {*show.render("calibration", table)}
    decides = table.set_index("test").decides
    assert decides["persona fit"] and decides["answer to another question"]
    assert not decides["sentences reversed"] and not decides["facts contradicted"], "a rule cannot see them"
