"""Salient words against numbers by hand, and the shares that the authors' personas are known to have."""

import math
from collections import Counter

import pytest

from persona_lib.data.official import load_official
from persona_lib.paper import personas


def z(*counts: float) -> float:
    """A word's log-odds in standard errors."""
    delta, error = personas.log_odds(*counts)
    return delta / error


def test_word_saliency_shares_by_hand():
    chosen = ["The user is to-the-point.", "Meticulous; meticulous"]
    rejected = ["to-the-point and concise", "To-the-point, the user"]
    rows = {row.word: row for row in personas.word_saliency(chosen, rejected, min_count=2)}
    assert set(rows) == {"the", "user", "to-the-point", "meticulous"}  # "is", "and", "concise" occur once
    assert (rows["to-the-point"].n_chosen, rows["to-the-point"].n_rejected) == (1, 2)
    assert rows["to-the-point"].share_chosen == pytest.approx(1 / 3)
    assert rows["meticulous"].share_chosen == 1.0 and rows["meticulous"].z > 0 > rows["to-the-point"].z


def test_word_saliency_orders_by_share_then_evidence_and_takes_empty_input():
    chosen = ["much much much much rare filler filler"]
    rows = personas.word_saliency(chosen, ["filler filler other"], min_count=1)
    assert [row.word for row in rows] == ["much", "rare", "filler", "other"]
    assert personas.word_saliency([], []) == [] and personas.word_saliency(["one"], ["one"]) == []


def test_log_odds_z_by_hand():
    # y 3 of 10 and 1 of 10, prior 1 of 5: log((4/11) / (2/13)) / sqrt(1/4 + 1/2)
    assert z(3, 10, 1, 10, 1, 5) == pytest.approx(math.log(4 * 13 / (11 * 2)) / math.sqrt(0.75))
    assert z(1, 10, 3, 10, 1, 5) == pytest.approx(-z(3, 10, 1, 10, 1, 5))


def test_saliency_z_uses_all_words_as_prior_and_totals():
    chosen, rejected = ["x x x y w"], ["x y y y v"]
    row = next(
        r for r in personas.word_saliency(chosen, rejected, min_count=4, prior_size=20) if r.word == "x"
    )
    both = Counter(" ".join(chosen + rejected).split())
    assert row.z == pytest.approx(z(3, 5, 1, 5, 20 * both["x"] / 10, 20))


def test_limits_and_corrected_p_belong_to_the_log_odds():
    chosen, rejected = ["x x x x x x y y v", "x x"], ["y y y y x v", "y w"]
    rows = {row.word: row for row in personas.word_saliency(chosen, rejected, min_count=2, prior_size=20)}
    x = rows["x"]
    delta, error = personas.log_odds(8, 11, 1, 8, 20 * 9 / 19, 20)
    assert x.log_odds == pytest.approx(delta) and x.z == pytest.approx(delta / error)
    assert x.log_odds_low == pytest.approx(delta - 1.96 * error, abs=1e-4)
    assert x.log_odds_high == pytest.approx(delta + 1.96 * error, abs=1e-4)
    assert set(rows) == {"x", "y", "v"}


def test_holm_by_hand():
    # two-sided p of 3, 2, 1: .0027, .0455, .3173; times 3, 2, 1, never falling
    assert personas.holm([1, 3, -2]) == pytest.approx([0.3173, 3 * 0.0027, 2 * 0.0455], abs=1e-4)
    assert personas.holm([]) == []


def test_words_that_mark_the_authors_personas_are_those_known(official_data):
    rows = [r for split in load_official(official_data, "beavertails").values() for r in split]
    sides = [
        [r.personas[f"gold-{s}"] for r in rows if r.personas[f"gold-{s}"]] for s in ("chosen", "rejected")
    ]
    words = {row.word: row for row in personas.word_saliency(*sides)}
    assert words["to-the-point"].share_chosen < 0.1 and words["concise"].share_chosen < 0.2
    assert words["multi-faceted"].share_chosen > 0.75 and words["multi-step"].share_chosen > 0.8
    assert words["concise"].p_holm < 1e-6 and words["multi-faceted"].p_holm < 1e-4
    assert math.isclose(words["concise"].share_chosen, 1 - 0.89, abs_tol=0.03)
