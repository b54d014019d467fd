"""Preference pairs of a run: written once, checked, and counted before use."""

from __future__ import annotations

import pytest

from persona_lib.data import preference
from persona_lib.records import PreferencePair, TailoringRow
from persona_lib.settings import Run, load_profile, set_field


def test_pairs_of_a_run_are_written_once_and_read_back(results_here):
    run = Run(set_field(load_profile("everyday"), {"data.pair_limit": 4}), "everyday", 0)
    folder = preference.write_pairs(run)
    before = (folder / "train.jsonl").stat().st_mtime_ns
    preference.write_pairs(run)
    assert (folder / "train.jsonl").stat().st_mtime_ns == before
    pairs = preference.load_pairs(run)
    assert {split: len(rows) for split, rows in pairs.items()} == {"train": 4, "validation": 4, "test": 4}
    assert pairs == preference.READERS["everyday"](run)


def test_a_negative_limit_takes_the_rows_that_the_limit_leaves_out():
    rows = [TailoringRow(f"r{i}", "test", "q", "a", "b", {}) for i in range(9)]
    some, others = preference.draw(rows, 4), preference.draw(rows, -4)
    assert len(some) == 4 and sorted([*some, *others], key=rows.index) == rows == preference.draw(rows, 0)
    assert preference.draw(rows[::-1], 4) == some[::-1], "the draw is by id"


def test_unusable_pairs_are_refused():
    pair = PreferencePair("a", "p", "c", "r")
    with pytest.raises(ValueError, match="split train, row a: rejected is empty"):
        preference.check_pairs({"train": [PreferencePair("a", "p", "c", " ")]}, "mine")
    with pytest.raises(ValueError, match="twice"):
        preference.check_pairs({"train": [pair], "test": [pair]}, "mine")


def test_the_card_counts_what_is_there():
    personas = {"gold-chosen": "The user is calm and prefers facts over jokes.", "gold-rejected": None}
    row = TailoringRow("a", "test", "one two three four", "a b", "a", personas)
    card = preference.data_card({"sft_train": [row], "test": [row]}, 0.9).loc["test"]
    assert card["near duplicates of train"] == card["chosen longer"] == card["gold-rejected: without"] == 1
    assert (card["words of prompt"], card["words of chosen"], card["gold-chosen: words"]) == (4, 2, 9)
    assert card["gold-chosen: contrastive"] == 1
