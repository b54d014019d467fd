"""Golden prompts: the text that models see, to the character."""

import pytest

from persona_lib import prompts


def test_tailoring_prompt_with_a_persona_line():
    text = prompts.tailoring_prompt("Why?", "The user is curious and prefers detail.")
    assert text == "Prompt: Why?\nPersona: The user is curious and prefers detail.\nResponse:"


def test_first_person_follows_the_question_and_agrees_with_its_subject():
    text = prompts.tailoring_prompt(
        "Why?", "The user is curious and prefers their own ideas.", "first_person"
    )
    assert text == "Prompt: Why? I am curious and prefer my own ideas.\nResponse:"


@pytest.mark.parametrize(
    "persona, expected",
    [
        ("The user prefers short answers.", "I prefer short answers."),
        ("The user is sober and prefers what they know.", "I am sober and prefer what I know."),
        ("Someone tidy who wants lists.", "Someone tidy who wants lists."),
    ],
)
def test_first_person(persona, expected):
    assert prompts.first_person(persona) == expected


def test_a_completion_starts_with_exactly_one_space():
    assert prompts.completion_text("  yes\n") == " yes"


def test_few_shot_prompt_joins_worked_examples_by_blank_lines():
    text = prompts.few_shot_prompt([("Q", "P", "R")], prompts.tailoring_prompt("Why?", "P2"))
    assert text == "Prompt: Q\nPersona: P\nResponse: R\n\nPrompt: Why?\nPersona: P2\nResponse:"


def test_inference_prompt_ends_where_the_persona_is_to_follow():
    text = prompts.inference_prefix([("q", "r1", "r2", "The user is x.")])
    text += prompts.inference_query("Why?", "yes", "no")
    assert text == (
        f"{prompts.INFERENCE_INSTRUCTION}\n\n"
        "Prompt: q\nOther response: r2\nPreferred response: r1\nPersona: The user is x.\n\n"
        "Prompt: Why?\nOther response: no\nPreferred response: yes\nPersona:"
    )


def test_the_quality_judge_never_sees_the_persona():
    assert "PERSONA-X" not in prompts.judge_prompt("quality", "Why?", "PERSONA-X", "a", "b")
    assert "Persona: PERSONA-X\n" in prompts.judge_prompt("personalization", "Why?", "PERSONA-X", "a", "b")
