"""Quality by rule: what each part sees, and that an empty answer has none."""

import pytest

from persona_lib.data import reader

PROMPT = "How do I repot my tall kitchen basil?"
GOOD = (
    "Lift the basil gently out, then repot it in a taller pot with fresh soil. "
    "Water it well, and leave it on a bright kitchen sill for a week."
)


def test_a_good_answer_has_all_parts_and_an_empty_one_none():
    assert reader.quality(PROMPT, GOOD) == 1.0
    assert reader.quality(PROMPT, " \n") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "Paint the wall twice, and let it dry between coats for as long as the tin says, or longer in rain.",
        GOOD.removesuffix(".") + " or",
        " ".join([GOOD.split(".")[0] + "."] * 4),
        "Repot the kitchen basil.",
    ],
    ids=["off the subject", "broken off", "repeated", "hardly anything"],
)
def test_each_fault_costs_something_and_not_everything(text):
    assert 0.2 < reader.quality(PROMPT, text) < 1.0


@pytest.mark.parametrize(
    ("text", "ends"),
    [("It ends.", 1.0), ("It ends (really)", 1.0), ("It does not", 0.0), ("", 0.0),
     ("Do:\n1. one\n2. two\n3. warm it up", 1.0), ("1. one\n2. two\n3. warm", 0.0)],
)  # fmt: skip
def test_a_sentence_or_a_whole_list_line_is_finished(text, ends):
    assert reader.finished(text) == ends


def test_short_questions_need_all_their_words():
    assert reader.on_subject("Basil?", "Basil needs light.") == 1.0
