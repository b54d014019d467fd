"""The proof of what the base model did not see would notice what it looks for."""

from __future__ import annotations

import random

import pytest

from persona_lib import unseen
from persona_lib.config import load_profile, set_field
from persona_lib.prompts import inference_query
from persona_lib.synthetic import inference_document, make_topics, topics_of

PROFILE = set_field(load_profile("smoke"), base_tokens=20000)
TOPICS = make_topics(PROFILE.world_seed)
LIBRARY = topics_of(TOPICS, "library")[0]
TEST = topics_of(TOPICS, "test")[0]


def found(text: str, marked: str = "") -> dict[str, int]:
    document = [(text, False)] + ([(marked, True)] if marked else [])
    return unseen.violations(unseen.check_documents([document], PROFILE.world_seed))


def test_the_pretraining_text_holds_nothing_forbidden():
    counts = unseen.check_unseen(PROFILE, 0)
    assert unseen.violations(counts) == {}
    assert min(counts[kind] for kind in ("plain", "with a persona", "persona inference")) > 10


def test_what_is_read_is_the_text_of_the_windows_that_are_trained_on():
    from persona_lib import base

    texts = base.tokenizer_texts(PROFILE, 0)
    tokenizer = base.train_tokenizer(texts, PROFILE.base_vocab_size, word_level=True)
    windows = [w["input_ids"] for phase in base.synthetic_windows(PROFILE, 0, tokenizer) for w in phase]
    trained = tokenizer.batch_decode(windows, skip_special_tokens=True)
    documents = list(unseen.documents_seen(PROFILE, 0))
    assert "".join(trained) == "".join(text for document in documents for text, _ in document)
    assert len(documents) == sum(ids.count(tokenizer.bos_token_id) for ids in windows)


def test_the_words_of_inferred_personas_stay_marked():
    documents = list(unseen.documents_seen(PROFILE, 0))
    inference = [d for d in documents if any("\nPreferred response:" in text for text, _ in d)]
    marked = {text.strip() for document in inference for text, is_key in document if is_key}
    assert len(marked & unseen.persona_words("known")) > 20
    known = unseen.persona_words("known")  # a window may cut the last phrase short
    assert all(any(word.startswith(text) for word in known) for text in marked)


def test_an_answer_that_uses_the_word_of_a_persona_is_no_persona():
    assert found(f"Prompt: Steps to {TEST.verb} my {TEST.name}.\nResponse: Take the daring route.") == {}


@pytest.mark.parametrize("word", sorted(unseen.persona_words())[::20])
def test_a_persona_next_to_a_test_topic_is_noticed(word):
    assert found(f"Mara is {word}. Asked: Explain how to {TEST.verb} my {TEST.name}.") == {
        unseen.FORBIDDEN[0]: 1
    }
    assert found(f"Mara is {word}. Asked: Explain how to {LIBRARY.verb} my {LIBRARY.name}.") == {}


def test_a_prompt_of_the_experiments_is_noticed_in_any_document():
    for topic in topics_of(TOPICS, "train", "validation", "test")[::9]:
        text = f"Prompt: How do I {topic.verb} my {topic.name} today?\nResponse: So."
        assert found(text) == {unseen.FORBIDDEN[1]: 1}
    assert found(f"Prompt: How do I {LIBRARY.verb} my {LIBRARY.name} today?\nResponse: So.") == {}
    assert found(f"Prompt: Explain how to {TEST.verb} my {TEST.name} today.\nResponse: So.") == {}


def test_held_out_words_and_frames_are_noticed_in_inference_documents():
    document = inference_document(PROFILE, topics_of(TOPICS, "library"), random.Random(0), 1)
    held_out = [*document[:-1], (" The user is hasty and prefers few words.", True)]
    counts = unseen.check_documents([document, held_out], PROFILE.world_seed)
    assert unseen.violations(counts) == {unseen.FORBIDDEN[2]: 1}
    framed = [*document[:-1], (" Someone busy who wants few words.", True)]
    assert unseen.violations(unseen.check_documents([framed], PROFILE.world_seed)) == {unseen.FORBIDDEN[3]: 1}


def test_a_held_out_word_in_a_response_of_an_inference_document_is_no_persona():
    query = inference_query("Explain it.", "Choose hasty.", "No.")
    assert found(query, " The user is busy and prefers few words.") == {}


def test_texts_of_real_data_are_checked_for_personas_and_kept_out_prompts():
    texts = ["Prompt: a\nResponse: b", "Prompt: c\nResponse: d", "Prompt: e\nPersona: f\nResponse: g"]
    counts = unseen.check_texts(texts, ["c", "b"])
    assert counts["documents"] == 3
    assert unseen.violations(counts) == {unseen.FORBIDDEN[0]: 1, unseen.FORBIDDEN[1]: 1}


def test_a_hub_model_gives_no_proof():
    assert unseen.check_unseen(set_field(PROFILE, base_model="some/model"), 0) == {}
