"""One change at a time: its runs stay apart, its table is paired, checked on scores made by hand."""

import pandas as pd
import pytest

from persona_lib import axes, store
from persona_lib.config import Run, load_profile
from persona_lib.selection import spec_of
from persona_lib.tables import changes
from persona_lib.tables.fault_list import NOT_MEASURED, WHAT


@pytest.fixture
def profile(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PERSONA_FIGURES", str(tmp_path / "figures"))
    return load_profile("smoke")


def score(arm, row_id, side, fit, quality):
    return {"arm": arm, "id": row_id, "side": side, "fit": fit, "quality": quality}


SCORES = [
    score("none", "a", "chosen", 0.0, 4.0), score("none", "a", "rejected", 1.0, 4.0),
    score("none", "b", "chosen", 0.0, 6.0), score("none", "b", "rejected", 0.0, 6.0),
    score("chosen", "b", "chosen", 1.0, 5.0), score("chosen", "b", "rejected", 2.0, 7.0),
    score("chosen", "a", "chosen", 1.0, 3.0), score("chosen", "a", "rejected", 1.0, 3.0),
    score("none", "c", "chosen", 9.0, 9.0), score("chosen", "c", "chosen", 9.0, 9.0),
]  # fmt: skip


CLEAN = [
    score(arm, i, side, 0.0, quality)
    for arm in ("none", "chosen")
    for side in ("chosen", "rejected")
    for i, quality in (("a", 1.0), ("b", 3.0))
]


def with_texts(scores, prompt):
    return [row | {"prompt": prompt, "persona": f"{row['id']} {row['side']}"} for row in scores]


def finish(profile, axis, seed, rows):
    folder = axes.scores_folder(profile, axis, seed)
    store.write_rows(folder / "scores.jsonl", rows)
    store.mark_done(folder, "key")


def rows_of(profile, table):
    made = pd.read_csv(axes.write_table(profile, table), dtype={"seeds": str})
    return {
        row["change"]: row
        for _, row in made[made.seeds != "107"].iterrows()
        if isinstance(row["change"], str)
    }


def test_every_axis_is_a_valid_profile_on_validation_rows_of_tuning_seeds():
    for axis in axes.CHANGES:
        changed = axes.axis_profile(load_profile("synthetic"), axis)
        assert changed.eval_split == "validation"
        assert all(getattr(changed, name) == value or isinstance(value, list)
                   for name, value in axes.CHANGES[axis].items())  # fmt: skip


def test_full_rank_is_the_hidden_size_of_the_profile_it_is_meant_for():
    profile = load_profile("synthetic")
    assert axes.AXES["full-rank"]["lora_r"] == profile.base_hidden_size
    assert axes.AXES["full-rank"]["lora_alpha"] / axes.AXES["full-rank"]["lora_r"] == (
        profile.lora_alpha / profile.lora_r
    )


def test_a_changed_world_has_results_of_its_own_and_a_changed_training_shares_the_base():
    profile = load_profile("synthetic")
    assert axes.axis_profile(profile, "majority-0.8").name == "synthetic-majority-0.8"
    assert axes.axis_profile(profile, "lora").name == "synthetic"


def test_gains_are_means_over_both_sides_paired_by_row_and_rows_of_one_side_are_left_out(profile):
    finish(profile, "as-is", 106, CLEAN)
    finish(profile, "lora", 106, SCORES)
    row = rows_of(profile, "axes")["lora"]
    # fit: plain a .5, b 0; tailored a 1, b 1.5. Quality: plain 4, 6, tailored 3, 6; unchanged 1, 3, 1, 3.
    assert (row["fit_plain"], row["fit_tailored"], row["fit_gain"]) == (0.25, 1.25, 1.0)
    deviation = (sum((q - 2) ** 2 for q in (1, 3, 1, 3)) / 3) ** 0.5
    assert row["quality_gain_sd"] == pytest.approx(-0.5 / deviation)
    assert (row["n"], str(row["seeds"])) == (2, "106")


def test_a_change_is_measured_against_the_unchanged_run_of_the_same_seed(profile):
    finish(profile, "as-is", 106, CLEAN)
    finish(profile, "as-is", 107, SCORES)
    finish(profile, "lora", 106, SCORES)
    row = rows_of(profile, "axes")["lora"]
    # unchanged: no fit and no quality gained, nothing decided; its seed 107 does not count
    assert row["fit_gain_change"] == 1.0 and row["fit_plain_change"] == 0.25
    # tailored against plain. Fit: a 1 - 0, 1 - 1, b 1 - 0, 2 - 0: 3 wins, a tie. Quality: 3 - 4 twice, 5 - 6,
    # 7 - 6: 3 losses, a win.
    assert row["dpq"] == pytest.approx(100 * (1 + -0.5) / 2)
    assert row["dpq_change"] != row["dpq_change"]
    assert row["ties"] == pytest.approx((1 / 4 + 0) / 2)
    assert row["ties_change"] == pytest.approx(1 / 8 - 1)


def test_flips_need_both_margins_right_and_are_missing_where_nothing_was_scored(profile):
    margins = {"a": (1.0, -1.0), "b": (1.0, 0.5), "c": (-1.0, -1.0)}
    rows = [
        score(arm, i, side, 0.0, float(i == "a")) | {"margin": m}
        for arm in ("none", "chosen")
        for i, pair in margins.items()
        for side, m in zip(("chosen", "rejected"), pair, strict=True)
    ]
    finish(profile, "as-is", 106, rows)
    finish(profile, "lora", 106, SCORES)
    made = rows_of(profile, "axes")
    assert made["as-is"]["flip_tailored"] == pytest.approx(1 / 3)
    assert made["lora"]["flip_tailored"] != made["lora"]["flip_tailored"]


def test_only_what_was_run_is_in_the_table_and_seeds_stand_apart(profile):
    for axis, seed in (("as-is", 106), ("as-is", 107), ("lora", 107)):
        finish(profile, axis, seed, with_texts(SCORES, "q"))
    made = pd.read_csv(axes.write_table(profile, "axes"))
    assert list(zip(made.change, made.seeds, made.n, strict=True)) == [
        ("as-is", 106, 2), ("as-is", 107, 2), ("lora", 107, 2)
    ]  # fmt: skip
    counted = pd.read_csv(axes.write_table(profile, "faults"))
    assert list(counted[counted.change == "merged"].seeds) == [106, 107]


def test_counting_as_the_authors_needs_no_training_and_is_measured_on_the_same_judgments(profile):
    finish(profile, "as-is", 106, with_texts(SCORES, "same prompt"))
    made = rows_of(profile, "faults")
    # One prompt text. Quality: one verdict per side; chosen 3 - 4 and 5 - 6 lose, rejected 3 - 4 and 7 - 6
    # differ: a loss, a tie. Fit: personas differ, nothing is merged: 3 wins, a tie.
    assert made["merged"]["dpq"] == pytest.approx(100 * (1 - 1) / 2)
    assert made["merged"]["dpq_change"] == pytest.approx(0 - 25)
    assert made["contradictions"]["dpq_change"] == 0
    assert set(made) == {"as-is", "unreadable-wins", "contradictions", "merged"}


def test_every_fault_is_said_in_words_and_what_cannot_be_measured_has_a_reason_and_no_number(profile):
    assert set(WHAT) == set(axes.FAULTS) | set(changes.COUNTING)
    finish(profile, "as-is", 106, with_texts(SCORES, "q"))
    made = pd.read_csv(axes.write_table(profile, "faults"))
    rest = made[made.change.isna()]
    not_run = [WHAT[axis] for axis in axes.FAULTS if axis != "as-is"]
    assert list(rest.what) == [*not_run, *NOT_MEASURED]
    assert "not run: completion_only_loss=false" in set(rest.setting)
    assert "not run: train_personas=none,shuffled" in set(rest.setting)
    assert rest.setting[-len(NOT_MEASURED) :].str.startswith("not measured: ").all()
    assert rest.drop(columns=["what", "setting"]).isna().to_numpy().all()


def test_the_shuffled_arm_is_told_gold_personas_by_the_line_that_it_was_trained_with():
    run = Run(axes.axis_profile(load_profile("synthetic"), "shuffled"), "synthetic", 106)
    spec = spec_of(run, "dpo", "shuffled", "rejected")
    assert (spec.arm, spec.eval_persona, spec.persona_format) == ("dpo-shuffled", "gold-rejected", "line")


@pytest.mark.slow
def test_a_change_is_trained_answered_and_scored_for_both_arms_and_the_shuffled_one_learns_strangers(profile):
    axes.run_axis(profile, "as-is", 106)
    axes.run_axis(profile, "shuffled", 106)
    scores = axes.read_scores(profile, "shuffled")[106]
    assert {row["arm"] for row in scores} == {"none", "shuffled"}
    assert all({"fit", "quality", "margin", "prompt", "persona"} <= set(row) for row in scores)
    run = Run(axes.axis_profile(profile, "shuffled"), "synthetic", 106)
    assert (run.folder / "adapters" / "dpo-shuffled" / "done.json").exists()
    path = axes.write_table(profile, "faults")
    assert {"as-is", "shuffled", "merged"} <= set(pd.read_csv(path).change)
