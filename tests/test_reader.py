"""The reader of answers: which value a text shows, none for neither or both alike, and what is no answer."""

import pytest

from persona_lib.beyond.calibration import labelled
from persona_lib.data.everyday import DIMENSIONS
from persona_lib.data.reader import UNREADABLE, fit, quality, shows
from studies.__main__ import reader_table


@pytest.mark.parametrize(
    ("dimension", "value", "text"),
    [
        ("length", "thorough", "Use a fan and open a window at night. " * 9),
        ("format", "steps", "Here is how: 1. Clean the pan. 2. Dry it. 3. Oil it."),
        ("format", "prose", "Clean the pan, then dry it - and oil it."),
        ("tone", "warm", "Don’t worry, you’ve got this. It’s easy and fun."),
        ("tone", "formal", "It is recommended that the floor be washed. One should then allow it to dry."),
        ("detail", "technical", "Heat the oven to 180 °C and bake 500 g of dough for 25 minutes."),
        ("initiative", "asks", "That sounds nice. Would you like a recipe for two or for four?"),
        ("initiative", "decides", "Is it ripe? Press it gently. If it gives, it is. Eat it today."),
        ("budget", None, "Borrow a cheap tent, or hire a luxury one."),
        ("table", "indulges", "Serve grilled chicken with beans, peppers and a glass of red wine."),
        ("table", "abstains", "Make a pasta sauce with lentils and peppers instead of beef."),
    ],
)
def test_a_text_shows_a_value_or_none_and_an_empty_one_nothing(dimension, value, text):
    assert shows(dimension, text) == value and shows(dimension, " \n") is None


def test_fit_adds_up_the_wish_without_what_is_not_read_well():
    text = "Invite your friends over and share the work."  # brief, prose, together
    assert fit((("length", "brief"), ("format", "prose")), text) == 2
    assert fit((("length", "thorough"), ("tone", "formal")), text) == -1
    assert fit((("company", "together"), ("company", "alone")), text) == 0


def test_what_is_read_badly_or_seldom_in_generated_answers_is_what_decides_nothing():
    table = reader_table(labelled()).set_index("dimension").drop("all")
    bad = (table.precision < 0.85) | (table.read < 5)
    assert set(table.index[bad]) == set(UNREADABLE) and set(DIMENSIONS) == set(table.index)


def test_the_table_counts_by_hand():
    walk = "Go for a quiet walk by yourself."
    rows = [("alone", walk), ("alone", "Invite your friends."), ("neither", walk), ("together", "Paint it.")]
    table = reader_table(("company", *row) for row in rows).set_index("dimension")
    assert table.loc["all"].tolist() == [3, 3, 1, 1 / 3, 1 / 3]


PROMPT = "How do I repot my tall kitchen basil?"
GOOD = (
    "Lift the basil gently out, then repot it in a taller pot with fresh soil. "
    "Water it well, and leave it on a bright kitchen sill for a week."
)


@pytest.mark.parametrize(
    "text",
    [
        "Paint the wall twice, and let it dry between coats for as long as the tin says, or longer in rain.",
        GOOD.removesuffix(".") + " or",
        " ".join([GOOD.split(".")[0] + "."] * 4),
        "Repot the kitchen basil.",
    ],
)
def test_each_fault_costs_some_quality_and_not_all(text):
    assert quality(PROMPT, " \n") == 0 < 0.2 < quality(PROMPT, text) < quality(PROMPT, GOOD) == 1
