"""The notebook on the base model: what is said of it, how it is asked, and its untrained answers."""

from __future__ import annotations

import pytest
from tiny import tiny_run

from persona_lib import show
from persona_lib.data import everyday
from persona_lib.settings import open_run


def test_the_two_questions_are_of_validation_one_explicit_and_one_implicit():
    items = [item for item in everyday.items() if item.id in show.QUESTIONS]
    assert {item.split for item in items} == {"validation"} and len(items) == 2
    assert {item.wording for item in items} == {"explicit", "implicit"}
    assert not any("+" in item.dimension for item in items)


@pytest.mark.slow
def test_a_base_in_a_folder_is_described_and_answers_both_questions_under_both_personas(
    tmp_path, monkeypatch
):
    run = tiny_run(tmp_path, monkeypatch, gen_max_new_tokens=3)
    facts = show.facts_table(run)
    assert facts.index.tolist() == ["base model", "identified by", "loaded here"]
    assert facts.loc["loaded here"].item() == "llama, 2 layers of width 64, float32"
    told, persona = show.chat_example(run).split("--- a persona\n")
    assert told.startswith("--- no persona\nPrompt: ") and "Persona: " not in told
    assert "\nPersona: The user " in persona and persona.endswith("\nResponse:")
    answers = show.untrained_answers(run)
    assert len(answers) == 4 and answers.persona.is_unique and answers.question.nunique() == 2
    assert sorted(answers.wished) == ["plain", "prose", "steps", "technical"]


@pytest.mark.slow
def test_packaged_weights_are_described_from_their_table():
    facts = show.facts_table(open_run("smoke"))
    assert facts.loc["licence"].item() == "Apache-2.0" and facts.loc["parameters"].item() == "134,515,008"
    assert facts.loc["loaded here"].item() == "llama, 2 layers of width 576, float32"
