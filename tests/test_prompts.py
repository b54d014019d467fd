"""Golden prompts: the text that models see, to the character."""

import pytest

from persona_lib import prompts
from persona_lib.records import PairwiseComparison


def test_a_persona_is_a_line_or_first_person_after_the_question():
    persona = "The user is curious and prefers their own ideas."
    assert prompts.tailoring_prompt("Why?", persona) == f"Prompt: Why?\nPersona: {persona}\nResponse:"
    text = prompts.tailoring_prompt("Why?", persona, "first_person")
    assert text == "Prompt: Why? I am curious and prefer my own ideas.\nResponse:"
    assert prompts.completion_text("  yes\n") == " yes", "exactly one space"
    assert prompts.first_person("The user prefers what they know.") == "I prefer what I know."


def test_worked_examples_end_in_a_blank_line_and_inference_where_the_persona_is_to_follow():
    text = prompts.few_shot_prefix([("Q", "P", "R"), ("q", None, "r")])
    assert text == "Prompt: Q\nPersona: P\nResponse: R\n\nPrompt: q\nResponse: r\n\n"
    text = prompts.inference_prefix([("q", "r1", "r2", "The user is x.")])
    text += prompts.inference_query("Why?", "yes", "no")
    assert text == (
        f"{prompts.INFERENCE_INSTRUCTION}\n\n"
        "Prompt: q\nOther response: r2\nPreferred response: r1\nPersona: The user is x.\n\n"
        "Prompt: Why?\nOther response: no\nPreferred response: yes\nPersona:"
    )


@pytest.mark.parametrize("render", [prompts.judge_prompt, prompts.chat_judge_prompt])
def test_the_quality_judge_never_sees_the_persona(render):
    comparison = PairwiseComparison("1", "Why?", "PERSONA-X", "a", "b")
    assert "PERSONA-X" not in render(comparison, "quality")
    assert ": PERSONA-X\n" in render(comparison, "personalization")
