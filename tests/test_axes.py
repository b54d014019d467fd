"""One change at a time: its runs stay apart, its table is paired, checked on scores made by hand."""

import pytest

from persona_lib import axes, store
from persona_lib.config import load_profile


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


def finish(profile, axis, seed, rows):
    folder = axes.scores_folder(profile, axis, seed)
    store.write_rows(folder / "scores.jsonl", rows)
    store.mark_done(folder, "key")


def test_every_axis_is_a_valid_profile_on_validation_rows_of_tuning_seeds():
    for axis in axes.AXES:
        changed = axes.axis_profile(load_profile("synthetic"), axis)
        assert changed.eval_split == "validation"
        assert all(getattr(changed, name) == value or isinstance(value, list)
                   for name, value in axes.AXES[axis].items())  # fmt: skip


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
    finish(profile, "lora", 106, SCORES)
    row = axes.axis_row(profile, "lora")
    # fit: plain a .5, b 0; tailored a 1, b 1.5. Quality: plain 4 and 6, tailored 3 and 6.
    assert (row["fit_plain"], row["fit_tailored"], row["fit_gain"]) == (0.25, 1.25, 1.0)
    deviation = (sum((q - 4.75) ** 2 for q in (4, 6, 3, 6)) / 3) ** 0.5
    assert row["quality_gain_sd"] == pytest.approx(-0.5 / deviation)
    assert (row["n"], row["seeds"]) == (2, "106")


def test_only_what_was_run_is_in_the_table(profile):
    finish(profile, "as-is", 106, SCORES)
    finish(profile, "as-is", 107, SCORES)
    lines = axes.write_table(profile).read_text().splitlines()
    assert len(lines) == 2 and lines[1].startswith("as-is,") and lines[1].endswith(",4,106 107")
