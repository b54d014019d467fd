"""The proof of what the base model did not see would notice what it looks for."""

from __future__ import annotations

import random

import pytest

from persona_lib.config import load_profile, set_field
from persona_lib.models import unseen
from persona_lib.world.synthetic import inference_document, make_topics, topics_of

PROFILE = set_field(load_profile("smoke"), base_tokens=20000)
TOPICS = make_topics(PROFILE.world_seed)
LIBRARY = topics_of(TOPICS, "library")[0]
TEST = topics_of(TOPICS, "test")[0]


def found(*texts: str) -> dict[str, int]:
    return unseen.violations(unseen.check_documents(texts, PROFILE.world_seed))


def solved_item() -> str:
    return "".join(part for part, _ in inference_document(PROFILE, [LIBRARY], random.Random(0), 1))


def test_the_pretraining_text_holds_nothing_forbidden():
    counts = unseen.check_unseen(PROFILE, 0)
    assert unseen.violations(counts) == {}
    assert min(counts[kind] for kind in ("plain", "with a persona", "persona inference")) > 10


@pytest.mark.slow
def test_what_is_read_is_the_text_of_the_windows_that_are_trained_on():
    from persona_lib.models import base

    texts = base.tokenizer_texts(PROFILE, 0)
    tokenizer = base.train_tokenizer(texts, PROFILE.base_vocab_size, word_level=True)
    windows = [w["input_ids"] for phase in base.synthetic_windows(PROFILE, 0, tokenizer) for w in phase]
    trained = tokenizer.batch_decode(windows, skip_special_tokens=True)
    documents = list(unseen.documents_seen(PROFILE, 0))
    assert "".join(trained) == "".join(documents)
    assert len(documents) == sum(ids.count(tokenizer.bos_token_id) for ids in windows)


def test_the_personas_of_inference_documents_are_found():
    documents = unseen.documents_seen(PROFILE, 0)
    personas = [line for text in documents for line in unseen.INFERRED.findall(text)]
    whole = [line for line in personas if line.endswith(".")]  # a window may cut its last one
    assert len(personas) > 50 and len(whole) > 0.8 * len(personas)
    assert all(line.startswith(" The user is ") for line in whole)


def test_an_answer_that_uses_the_word_of_a_persona_is_no_persona(monkeypatch):
    text = f"Prompt: Steps to {TEST.verb} my {TEST.name}.\nResponse: Take the daring route."
    monkeypatch.setitem(
        unseen.LEXICON, ("risk", "bold"), {"adjectives": {"known": ("daring",), "held_out": ()}}
    )
    assert found(text) == {unseen.FORBIDDEN[0]: 1}
    monkeypatch.setitem(unseen.CONTENT_SENTENCES, "bold", ("Take the daring route.",))
    assert found(text) == {}


@pytest.mark.parametrize("word", sorted(unseen.persona_words())[::20])
def test_a_persona_next_to_a_test_topic_is_noticed(word):
    asked = f"Mara is {word}. Asked: Explain how to {TEST.verb} my {TEST.name}."
    assert found(asked) == {unseen.FORBIDDEN[0]: 1}
    assert found(f"Mara is {word}. Asked: Explain how to {LIBRARY.verb} my {LIBRARY.name}.") == {}


def test_a_prompt_of_the_experiments_is_noticed_in_any_document():
    for topic in topics_of(TOPICS, "train", "validation", "test")[::9]:
        text = f"Prompt: How do I {topic.verb} my {topic.name} today?\nResponse: So."
        assert found(text) == {unseen.FORBIDDEN[1]: 1}
    assert found(f"Prompt: How do I {LIBRARY.verb} my {LIBRARY.name} today?\nResponse: So.") == {}
    assert found(f"Prompt: Explain how to {TEST.verb} my {TEST.name} today.\nResponse: So.") == {}


def test_held_out_words_and_frames_are_noticed_in_inference_documents():
    item = solved_item()
    assert found(item) == {}
    head = item.rpartition("Persona:")[0]
    assert found(item, f"{head}Persona: The user is hasty and prefers few words.") == {unseen.FORBIDDEN[2]: 1}
    assert found(f"{head}Persona: Someone busy who wants few words.") == {unseen.FORBIDDEN[3]: 1}


def test_a_held_out_word_outside_the_personas_is_no_inferred_persona():
    head, _, tail = solved_item().rpartition("\nPersona:")
    assert found(f"{head} A hasty one.\nPersona:{tail}") == {}


def test_texts_of_real_data_are_checked_for_personas_and_kept_out_prompts():
    texts = ["Prompt: a\nResponse: b", "Prompt: c\nResponse: d", "Prompt: e\nPersona: f\nResponse: g"]
    counts = unseen.check_texts(texts, ["c", "b"])
    assert counts["documents"] == 3
    assert unseen.violations(counts) == {unseen.FORBIDDEN[0]: 1, unseen.FORBIDDEN[1]: 1}


def test_a_hub_model_gives_no_proof():
    assert unseen.check_unseen(set_field(PROFILE, base_model="some/model"), 0) == {}
