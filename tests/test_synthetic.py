"""The synthetic world and its oracle: what is generated can be read back, and splits never mix."""

import itertools
import re

import pytest

from persona_lib.config import load_profile, set_field
from persona_lib.world import oracle, synthetic, vocabulary

PROFILE = set_field(load_profile("synthetic"), n_train=200, n_validation=40, n_test=60)
PAIRS = synthetic.make_pairs(PROFILE, seed=3)
TOPICS = synthetic.make_topics(PROFILE.world_seed)


def documents(n: int, phase: str = "short", shots: int = 2) -> list[str]:
    stream = synthetic.pretraining_documents(PROFILE, 0, shots, phase)
    return ["".join(text for text, _ in d) for d in itertools.islice(stream, n)]


def test_same_seed_gives_the_same_pairs_and_another_seed_others():
    assert synthetic.make_pairs(PROFILE, seed=3) == PAIRS
    assert synthetic.make_pairs(PROFILE, seed=4)["test"] != PAIRS["test"]


def test_topics_of_train_validation_and_test_are_disjoint_by_noun():
    nouns = {
        split: {oracle.read_topic(pair.prompt, PROFILE.world_seed).noun for pair in pairs}
        for split, pairs in PAIRS.items()
    }
    for first, second in itertools.combinations(nouns.values(), 2):
        assert not first & second


def test_every_prompt_occurs_once():
    prompts = [pair.prompt for pairs in PAIRS.values() for pair in pairs]
    assert len(set(prompts)) == len(prompts)


def test_gold_responses_have_full_quality():
    for pair in PAIRS["test"]:
        for response in (pair.chosen, pair.rejected):
            assert oracle.quality(pair.prompt, response, PROFILE.world_seed) == oracle.MAX_QUALITY


def test_the_oracle_reads_back_the_values_a_response_was_written_with():
    import random

    rng = random.Random(0)
    topic = next(iter(TOPICS.values()))
    for _ in range(200):
        values = synthetic.sample_values(PROFILE, rng, {})
        assert oracle.read_response(synthetic.render_response(topic, values, rng)).values == values


@pytest.mark.parametrize("held_out", [False, True])
def test_the_oracle_reads_back_the_claims_of_a_persona_in_every_frame(held_out):
    import random

    rng = random.Random(1)
    claims = list(vocabulary.LEXICON)
    for frame in (None, *vocabulary.HELD_OUT_FRAMES, *vocabulary.STORY_FRAMES):
        for pair in zip(claims, claims[1:] + claims[:1], strict=True):
            persona = synthetic.persona_sentence(list(pair), rng, held_out, frame).format(name="Mara")
            assert oracle.read_persona(persona) == set(pair)


def test_true_personas_fit_their_own_side_best():
    for pair in PAIRS["test"]:
        for own, other in ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen)):
            persona = synthetic.user_persona(pair.id, oracle.contrast_claims(own, other))
            assert oracle.persona_fit(persona, own) > 0 > oracle.persona_fit(persona, other)


def test_a_wrong_fact_costs_quality_by_its_share_and_nothing_else():
    topic = TOPICS["old kettle"]
    right = topic.facts["tool"]
    wrong = next(w for w in vocabulary.FILLERS["tool"] if w != right)
    prompt = "How do I clean my old kettle?"
    answer = f"For the old kettle, use the {right} and work in the {topic.facts['place']}."
    assert oracle.quality(prompt, answer, PROFILE.world_seed) == 7
    assert oracle.quality(prompt, answer.replace(right, wrong), PROFILE.world_seed) == 5  # 4 x 1/2 + 3


def test_repetition_leftovers_and_a_wrong_topic_cost_one_point_each():
    topic = TOPICS["old kettle"]
    prompt = "How do I clean my old kettle?"
    tool = f"use the {topic.facts['tool']}"
    place = f"work in the {topic.facts['place']}"
    seed = PROFILE.world_seed
    assert (
        oracle.quality(
            prompt, f"For the old kettle, {tool} and {place}. Save your money. Save your money.", seed
        )
        == 6
    )
    assert oracle.quality(prompt, f"For the old kettle, {tool} and {place}. Purple people dance.", seed) == 6
    assert oracle.quality(prompt, f"For the small kettle, {tool} and {place}.", seed) == 6
    assert oracle.quality(prompt, "", seed) == 0


def test_both_values_of_a_dimension_count_as_none():
    text = "For the old kettle, use the brush and check the lid. Choose the cheap kind. Buy the finest brand."
    assert "cost" not in oracle.read_response(text).values


def test_a_prompt_without_a_topic_is_an_error_that_quotes_it():
    with pytest.raises(ValueError, match="names 0 topics"):
        oracle.read_topic("How do I fly?", PROFILE.world_seed)


def test_more_rows_than_the_world_has_prompts_is_an_error_that_says_the_number():
    with pytest.raises(ValueError, match=r"n_test=99999.*only \d+ test prompts"):
        synthetic.make_pairs(set_field(PROFILE, n_test=99999), 0)


def test_chosen_responses_have_the_common_value_about_as_often_as_the_majority_share_says():
    pairs = synthetic.make_pairs(set_field(PROFILE, n_train=1800), 5)["train"]
    claims = [c for pair in pairs for c in set(oracle.contrast_claims(pair.chosen, pair.rejected))]
    share = sum(vocabulary.COMMON[d] == v for d, v in claims) / len(claims)
    assert abs(share - PROFILE.majority_share) < 0.03


@pytest.mark.parametrize("phase, shots", [("short", 2), ("long", 6)])
def test_pretraining_text_never_pairs_a_persona_with_a_train_validation_or_test_topic(phase, shots):
    outside = "|".join(t.name for t in TOPICS.values() if t.split != "library")
    seen_plain = False
    for text in documents(1500, phase, shots):
        if re.search(rf"\b({outside})\b", text):
            assert text.startswith("Prompt: ") and "Persona" not in text and text.count("Response:") == 1
            seen_plain = True
    assert seen_plain


def test_pretraining_text_holds_no_prompt_of_the_experiments():
    prompts = {p for split in ("train", "validation", "test") for _, p in experiment_prompts(split)}
    for text in documents(1500):
        assert text.split("\n")[0].removeprefix("Prompt: ") not in prompts


def experiment_prompts(split: str):
    return synthetic.all_prompts(synthetic.topics_of(TOPICS, split), vocabulary.EXPERIMENT_TEMPLATES)


def test_inferred_personas_of_pretraining_hold_no_held_out_word():
    held_out = [w for e in vocabulary.LEXICON.values() for kind in e.values() for w in kind["held_out"]]
    pattern = re.compile(rf"\b({'|'.join(held_out)})\b")
    stream = synthetic.pretraining_documents(PROFILE, 0, 2, "short")
    for document in itertools.islice(stream, 1500):
        for text, kind in document:
            assert not (kind == "key" and pattern.search(text))


def test_known_and_held_out_words_belong_to_one_value_each():
    words = [
        word
        for entry in vocabulary.LEXICON.values()
        for kind in entry.values()
        for part in kind.values()
        for word in part
    ]
    assert len(set(words)) == len(words)
