"""Preference pairs of a run: written once, checked, and counted before use."""

import pytest

from persona_lib.data import preference
from persona_lib.records import PreferencePair, TailoringRow


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
