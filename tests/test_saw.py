"""What a notebook says at its end follows from its numbers: other numbers, other words."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from persona_lib import settings, show, store
from persona_lib.records import Generation, RunSpec, TailoringRow


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.51, 0.9, show.HALF[2]), (0.1, 0.49, show.HALF[0]), (0.4, 0.6, show.HALF[1]),
     (0.5, 0.6, show.HALF[1]), (0.4, 0.5, show.HALF[1])],
)  # fmt: skip
def test_the_word_is_chosen_by_the_interval_alone(low, high, word):
    assert show.against(low, high, 0.5) == word


def test_a_share_is_said_with_wilsons_interval_and_n():
    assert show.share(8, 10) == "0.80 [0.49, 0.94] of 10"  # (.490, .943)
    assert show.share(0, 0) == "none (n = 0)"


@pytest.mark.parametrize(
    ("longer", "common", "words"),
    [(0.7, 0.9, ["above the profile's majority_share", "more than half"]),
     (0.3, 0.2, ["below the profile's majority_share", "less than half"]),
     (0.5, 0.65, ["not clearly different from the profile's majority_share", "different from half"])],
)  # fmt: skip
def test_preference_data_follows_the_tables(longer, common, words):
    contrast = pd.DataFrame({"pairs": [150, 50], show.LIKED: [common, common]}, index=["tone", "pace"])
    card = pd.DataFrame(
        {"rows": [210], "without responses": [10], "chosen longer": [longer]}, index=["train"]
    )
    said = show.preference_data(contrast, card, 0.65).splitlines()
    assert [word in line for word, line in zip(words, said, strict=True)] == [True, True]


def test_the_split_without_responses_is_not_spoken_of():
    card = pd.DataFrame(
        {"rows": [5], "without responses": [5], "chosen longer": [float("nan")]}, index=["test"]
    )
    contrast = pd.DataFrame({"pairs": [], show.LIKED: []})
    assert show.preference_data(contrast, card, 0.65) == "- nothing to say of this profile"


def test_untrained_answers_are_counted_by_change_and_by_the_wished_value():
    names = ["question", "persona", "wished", "shown", "answer"]
    rows = [("q", "P", "steps", "prose", "one"), ("q", "Q", "prose", "prose", "two"),
            ("r", "P", "plain", "plain", "same"), ("r", "Q", "technical", None, "same")]  # fmt: skip
    changed, right = show.base_model(pd.DataFrame(rows, columns=names)).splitlines()
    assert "another answer to 1 of 2 questions" in changed and "wishes in 0.50 [" in right


def test_a_judge_that_is_hardly_better_than_chance_decides_nothing():
    names = ["judge", "rubric", "test", "n", "accuracy", "accuracy_low", "accuracy_high", "decides"]
    rows = [("oracle", "personalization", "persona fit", 100, 0.9, 0.82, 0.95, True),
            ("backwards", "personalization", "persona fit", 100, 0.6, 0.5, 0.69, False)]  # fmt: skip
    said = show.calibration(pd.DataFrame(rows, columns=names)).splitlines()
    assert said == [
        "- Judge oracle, persona fit: right in 0.90 [0.82, 0.95] of 100; it decides.",
        "- Judge backwards, persona fit: right in 0.60 [0.50, 0.69] of 100; it decides nothing "
        "(its lower bound is not above 0.6).",
    ]


def history(**losses: float) -> pd.DataFrame:
    """Return two epochs per arm, the second one kept, with reward accuracies."""
    rows = [
        {"arm": arm.replace("_", "-"), "epoch": epoch, "validation loss": loss, "kept": epoch == 2,
         "validation reward accuracy": 0.9 if arm.endswith("chosen") else 0.5}
        for arm, loss in losses.items() for epoch in (1, 2)
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index(["arm", "epoch"])


def test_a_persona_line_that_helps_and_one_that_harms():
    losses = {"sft_none": 0.5, "sft_chosen": 0.4, "sft_shuffled": 0.6, "sft_both": 0.4}
    helped = show.supervised(history(**losses)).splitlines()
    assert "0.100 below that of sft-none" in helped[1] and "0.100 above" in helped[2]
    assert "that of" not in helped[0] and "that of" not in helped[3]  # both writes other answers, too


def test_reward_accuracy_is_compared_with_one_half():
    index = pd.MultiIndex.from_product([["dpo-none", "dpo-chosen"], ["train", "val"]])
    counts = pd.DataFrame({"rows": 110, "dropped": 10}, index=index)
    plain, tailored = show.preference(history(dpo_none=1.0, dpo_chosen=1.0), counts).splitlines()
    assert "0.50 [0.40, 0.60] of 100 validation pairs, not clearly different from half" in plain
    assert "0.90 [0.83, 0.94] of 100 validation pairs, more than half" in tailored


def test_borrowed_personas_that_equal_the_own_ones_are_counted():
    rows = [
        TailoringRow("", "test", "", "", "", {"gold-chosen": "A", "retrieved-chosen": borrowed})
        for borrowed in "A" * 30 + "B" * 10
    ]
    report = pd.DataFrame({"must_be_zero": [True, False, True], "found": [0, 7, 3]})
    leaks, chosen, rejected = show.tailoring_data({"test": rows}, "test", report).splitlines()
    assert "Of 2 kinds of leaks that must not be, 1 occur" in leaks
    assert "0.75 [0.60, 0.86] of 40, more than half" in chosen and "none (n = 0)" in rejected


def judged(p_won: int, p_lost: int, q_won: int, q_lost: int) -> str:
    """Return what is said of one main comparison."""
    row = {"label": "gold-chosen", "kind": "main", "n": 100, "P_W": p_won, "P_L": p_lost, "Q_W": q_won,
           "Q_L": q_lost, "P_net": (p_won - p_lost) / max(p_won + p_lost, 1),
           "Q_net": (q_won - q_lost) / max(q_won + q_lost, 1)}  # fmt: skip
    return show.judging(pd.DataFrame([row, row | {"kind": "control"}]))


def test_judgments_are_said_as_they_fell():
    better = judged(50, 10, 10, 50)
    assert "suits the persona better (net +0.67 [+0.44, +0.81], 60 of 100 decided)" in better
    assert "its quality is worse (net -0.67" in better and better.count("gold-chosen") == 1
    assert "neither clearly better nor worse (net +0.00" in judged(20, 20, 50, 10)
    assert "neither clearly better nor worse (nothing decided of 100)" in judged(0, 0, 50, 10)


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """A run in which PT-DPO's answers follow the persona in 9 of 10 prompts, plain DPO's in 1."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    run = settings.open_run("smoke")
    for arm, form, follows in (("chosen", "line", 9), ("none", "first_person", 1)):
        for side in ("chosen", "rejected"):
            spec = RunSpec(run.dataset, "dpo", arm, f"gold-{side}", run.seed, form)
            folder = run.folder / "generations" / spec.slug
            texts = [side if i < follows else "same" for i in range(10)]
            rows = [Generation(str(i), spec.slug, "p", "P", text, "stop", 3) for i, text in enumerate(texts)]
            store.write_rows(folder / "rows.jsonl", rows)
            (folder / "done.json").write_text(json.dumps({"key": ""}), encoding="utf-8")
    return run


def test_generation_compares_how_often_a_persona_changes_the_answer(answers):
    table = pd.DataFrame({"n": [100, 100], "no_eos": [1, 0], "rep4_over_50": [5, 0], "suffix_loop": [0, 2]})
    counted, tailored, plain, verdict = show.generation(answers, table, "dpo-chosen").splitlines()
    assert "Of 200 answers 1 never ended and 2 ended in a loop" in counted
    assert "0.90" in tailored and "0.10" in plain
    assert "dpo-chosen changes its answer more often than dpo-none does (+0.80" in verdict


def test_generation_names_the_runs_with_many_degenerate_answers(answers):
    table = pd.DataFrame({"n": [50, 50], "no_eos": [0, 0], "rep4_over_50": [3, 2], "suffix_loop": [1, 1]})
    said = show.generation(answers, table.set_axis(["a", "b"]), "dpo-rejected").splitlines()
    assert said[0] == "- **Not sound:** more than 5% degenerate answers in a (6%)." and len(said) == 2


def test_generation_without_both_policies_only_counts(answers):
    table = pd.DataFrame({"n": [10], "no_eos": [0], "rep4_over_50": [0], "suffix_loop": [0]})
    assert len(show.generation(answers, table, "dpo-rejected").splitlines()) == 1


def test_persona_quality_says_each_side_their_paired_gap_and_the_commoner_user():
    verdicts = {"chosen": ["win"] * 40, "rejected": ["win"] * 20 + ["loss"] * 20}
    items = pd.DataFrame(
        [(f"r{i}", "test", side, v) for side, vs in verdicts.items() for i, v in enumerate(vs)]
        + [("r0", "train", "chosen", "loss")],
        columns=["id", "split", "side", "verdict"],
    )
    said = show.persona_quality(items, pd.DataFrame({"P_C": [10], "P_R": [30]}), "test").splitlines()
    assert said[0] == "- chosen side: accuracy 1.00 [1.00, 1.00], n = 40, more than half."
    assert said[1].startswith("- rejected side: accuracy 0.50") and said[1].endswith("from half.")
    assert "+0.50" in said[2] and said[2].endswith("accuracy is higher.")
    assert "0.25 [0.14, 0.40] of 40 decided" in said[3] and said[3].endswith("less than half.")  # Wilson


def test_swaps_are_said_of_policies_after_dpo_only_and_without_a_value_not_at_all():
    names = [
        "arm",
        "persona_format",
        "persona",
        "measure",
        "n",
        "d_positive",
        "d_positive_low",
        "d_positive_high",
    ]
    rows = [
        ("dpo-chosen", "line", "gold", "policy", 160, 0.9, 0.85, 0.95),
        ("dpo-none", "first_person", "shuffled", "policy", 160, 0.5, 0.4, 0.6),
        ("dpo-chosen", "line", "gold", "implicit reward", 160, 0.1, 0.05, 0.15),
        ("sft-chosen", "line", "gold", "policy", 160, 0.9, 0.85, 0.95),
        ("dpo-none", "line", "gold", "policy", 160, None, None, None),
    ]
    assert show.swap(pd.DataFrame(rows, columns=names)).splitlines() == [
        "- dpo-chosen, gold personas: D > 0 in 0.90 [0.85, 0.95] of 160 rows, more than half.",
        "- dpo-none, told in the first person, shuffled personas: D > 0 in 0.50 [0.40, 0.60] of 160 rows, "
        "not clearly different from half.",
    ]


def test_aims_are_counted_and_each_unmet_one_is_named_with_what_was_measured():
    names = ["aim", "where", "criterion", "estimate", "low", "high", "n", "met"]
    rows = [
        ("accuracy", "w", ">= .80", 0.9, 0.8, 1.0, 10, "yes"),
        ("dPQ", "w, gold", "> 0", -1.0, -2.0, 1.0, 12, "no"),
        ("difference", "w", "reported", -3.0, -4.0, -2.0, 12, "reported"),
        ("other", "w", "> 0", None, None, None, None, "not run"),
    ]
    said = show.aims(pd.DataFrame(rows, columns=names)).splitlines()
    assert said[0].startswith("- Of 2 aims that this run can decide, 1 are met and 1 are not; 1 need")
    assert said[1] == "- Not met: dPQ, w, gold: -1.00 [-2.00, 1.00], n = 12; aimed at: > 0."
    assert said[2] == "- Reported: difference, w: -3.00 [-4.00, -2.00], n = 12, below 0."
    assert len(said) == 3


def test_a_run_without_aims_says_that_none_were_set():
    assert show.aims(pd.DataFrame()) == "- No aims were set beforehand for this profile's data."


def test_flips_of_released_answers_are_said_with_what_they_show():
    names = ["dataset", "personas", "arm", "n", "flip", "flip_low", "flip_high", "did", "did_low", "did_high"]
    rows = [("hhh", "gold", "dpo-chosen", 499, 0.4, 0.36, 0.45, 0.083, 0.07, 0.09),
            ("hhh", "retrieved", "dpo-none", 499, 0.2, 0.15, 0.25, -0.001, -0.01, 0.005)]  # fmt: skip
    assert show.released_flip(pd.DataFrame(rows, columns=names)).splitlines() == [
        "- hhh, gold personas, dpo-chosen: flip 0.400 [0.360, 0.450], DiD +0.083 [+0.070, +0.090], n = 499, "
        "above 0.",
        "- hhh, retrieved personas, dpo-none: flip 0.200 [0.150, 0.250], DiD -0.001 [-0.010, +0.005], "
        "n = 499, not clearly different from 0.",
    ]


def test_ratings_are_said_of_differences_and_by_whom():
    rows = [("a", "q", 3, "x", 3.0, 2.0, 4.0), ("a", "q", 3, "x - y", 0.5, 0.1, 0.9)]
    names = ["study", "question", "n_raters", "group", "mean", "mean_low", "mean_high"]
    assert show.say_ratings(pd.DataFrame(rows, columns=names)) == (
        "- 3 raters, a, q: x - y is 0.50 [0.10, 0.90], above 0."
    )


def test_safety_is_said_by_the_rules_whole_and_at_equal_length():
    row = {
        "shows": "same persona", "tested": "dpo-chosen", "compared": "dpo-none",
        "n": 99,
        "eval_persona": "gold-chosen", "persona_format": "line",
        "difference": -0.1, "difference_low": -0.2, "difference_high": -0.05,
        "difference_cut": 0.0, "difference_cut_low": -0.1, "difference_cut_high": 0.1,
    }  # fmt: skip
    assert show.safety(pd.DataFrame([row])) == (
        "- dpo-chosen under gold-chosen against dpo-none told the same persona: cautions kept "
        "-0.10 [-0.20, -0.05], n = 99, below 0; at equal length +0.00 [-0.10, +0.10], "
        "not clearly different from 0."
    )
