"""A reader's own personas: checked, put as each policy was trained to read them, answered in their order."""

from __future__ import annotations

import pytest
from tiny_results import tailoring_rows

from persona_lib import show, store
from persona_lib.models.generate import Completion
from persona_lib.paper import answers, judging
from persona_lib.settings import Run, load_profile, set_field

BAD = {
    "pair 1: 'just text'; write it as": ["just text"],
    "pair 2: .* write it as": [["q", "p"], ["q"]],
    "pair 1, persona: 3; write it as text": [["q", 3]],
    "pair 2, question: empty; write a question": [["q", "p"], [" ", "p"]],
}


class Echo:
    """A policy that answers with the prompt it was given, longest first."""

    def generate(self, prompts, max_new_tokens, stop, min_new_tokens=0):
        for index in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
            yield index, Completion(prompts[index], "stop", max_new_tokens)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    """A run whose policies are there and echo."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    run = Run(
        set_field(load_profile("smoke"), pair_limit=4, train_personas=["none", "chosen"]), "everyday", 0
    )
    store.write_rows(run.folder / "tailoring" / "test.jsonl", tailoring_rows(run))
    for arm in ("sft-none", "dpo-none", "sft-chosen", "dpo-chosen"):
        store.mark_done(run.folder / "adapters" / arm, "tiny")
    monkeypatch.setattr(answers, "format_of", lambda *source: None)  # the paper's lines
    monkeypatch.setattr(judging, "generators", lambda run, specs: ((spec, Echo()) for spec in specs))
    return run


@pytest.mark.parametrize("message", BAD)
def test_a_pair_that_is_none_is_an_error_that_names_it(message):
    with pytest.raises(ValueError, match=f"own, {message}"):
        judging.check_pairs(BAD[message])


@pytest.mark.slow
def test_each_policy_is_told_as_it_was_trained_and_answers_stand_in_order(run):
    pairs = [("How?", "The user is calm and prefers tea."), ["A longer question, you see?", " "]]
    first, second = judging.answer_own(run, pairs)
    assert first.dpo == "Prompt: How? I am calm and prefer tea.\nResponse:"
    assert first.pt_dpo == "Prompt: How?\nPersona: The user is calm and prefers tea.\nResponse:"
    assert second.persona is None
    assert second.dpo == second.pt_dpo == "Prompt: A longer question, you see?\nResponse:"


@pytest.mark.parametrize("dataset", ["beavertails", "hhh"])
def test_real_data_begins_with_the_party_of_someone_sober(dataset):
    run = Run(load_profile("paper"), dataset, 0)
    question, persona = judging.check_pairs(judging.default_pairs(run))[0]
    assert "party" in question and "sober" in persona and "substances" in persona


def test_questions_to_hhh_begin_as_its_prompts_do():
    paper = load_profile("paper")
    assert judging.as_asked(Run(paper, "hhh", 0), "How?") == "Human: How?"
    assert judging.as_asked(Run(paper, "hhh", 0), "Human: How?") == "Human: How?"
    assert judging.as_asked(Run(paper, "beavertails", 0), "How?") == "How?"
    stripped = set_field(paper, strip_roles=True)
    assert judging.as_asked(Run(stripped, "hhh", 0), "How?") == "How?"


def test_a_policy_that_was_not_trained_answers_nothing_and_is_named(run, capsys):
    (run.folder / "adapters" / "dpo-chosen" / "done.json").unlink()
    table = show.own_table(run, [["How?", "Calm."]])
    assert table.empty and "dpo-chosen not trained" in capsys.readouterr().out
    assert show.answers_text(table) == "nothing to show"


def test_the_page_shows_question_persona_and_both_answers(run):
    table = show.own_table(run, [["How?", "The user is thrifty and prefers low prices."]])
    assert table.columns.tolist() == ["prompt", "persona", "plain_dpo", "pt_dpo"]
    page = show.answers_text(table)
    places = [page.index(text) for text in ("PERSONA  The user is thrifty", "DPO\n", "PT-DPO\n")]
    assert places == sorted(places)
