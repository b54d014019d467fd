"""Personas by rule: from what can be counted, the opposite for the other side, none without a difference."""

from __future__ import annotations

import pytest

from persona_lib.models.served import FEATURES, SurfaceGenerator, surface_persona
from persona_lib.paper.personas import parse_persona

LONG = "Take the train to the coast, and then walk along the path until you see the old lighthouse there."


@pytest.mark.parametrize(
    ("preferred", "other", "persona"),
    [
        ("Take the train.", LONG, "The user is busy and prefers short, direct answers."),
        (LONG, "Take the train.", "The user is thorough and prefers long, detailed answers."),
        ("Well:\n1. a b\n2. c d", "Well, a b and c d.",
         "The user is organized and prefers answers laid out as a list of points."),
        ("It may rain.", "It will rain.",
         "The user is careful and prefers answers that say what is uncertain."),
        ("same words", "words same", ""),
    ],
)  # fmt: skip
def test_a_persona_says_what_differs_most(preferred, other, persona):
    assert surface_persona(preferred, other) == persona


def test_the_other_side_gets_the_opposite():
    chosen, rejected = surface_persona(LONG, "Go."), surface_persona("Go.", LONG)
    assert chosen != rejected and "long" in chosen and "short" in rejected


def test_every_persona_has_the_form_that_is_kept():
    for _, more, less in FEATURES.values():
        for attribute, explanation in (more, less):
            assert parse_persona(f"The user is {attribute} and prefers {explanation}.", 40)[1] == "ok"


def test_pairs_without_a_countable_difference_get_none():
    assert SurfaceGenerator().write([("q", "same words", "words same")]) == [""]
    assert parse_persona("", 40) == (None, "empty")
