"""Asking a run's policies: the streamed answer is the generated one, and what is missing is said."""

from __future__ import annotations

import pytest
from tiny import tiny_model, tiny_rows, tiny_run, tiny_tokenizer, words

from persona_lib import demo, store
from persona_lib.models.generate import TransformersGenerator, stream_text
from persona_lib.paper import answers
from persona_lib.settings import ConfigError


@pytest.fixture(scope="module")
def model():
    return tiny_model().eval(), tiny_tokenizer()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("least", [0, 5])
def test_the_streamed_answer_grows_into_the_generated_one(model, seed, least):
    import random

    prompt = words(random.Random(seed), 3, 9)
    ((_, whole),) = TransformersGenerator(*model, "tiny", 1).generate([prompt], 12, (), min_new_tokens=least)
    parts = list(stream_text(*model, prompt, [], 12, least))
    assert parts[-1] == whole.text and len(parts) <= 12
    assert all(after.startswith(before) for before, after in zip(parts, parts[1:], strict=False))


def test_a_stop_string_ends_the_stream_and_is_not_shown(model):
    parts = list(stream_text(*model, "cat dog", [], 12))
    word = parts[-1].split()[2]
    stopped = list(stream_text(*model, "cat dog", [], 12, stop=(word,)))
    assert word not in stopped[-1] and len(stopped) <= 3


def test_a_profile_without_policies_says_what_to_run(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, monkeypatch)
    with pytest.raises(
        ConfigError, match="no trained policy in .*: run ./run_all.sh --profile everyday first"
    ):
        demo.Asker(run)
    assert demo.main(["--profile", "smoke"]) == 2


def test_plain_dpo_and_pt_dpo_are_compared_if_they_are_there(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, monkeypatch)
    assert demo.default_arms(run, ["sft-none", "sft-chosen", "dpo-none", "dpo-chosen"]) == (
        "dpo-none",
        "dpo-chosen",
    )
    assert demo.default_arms(run, ["sft-none", "sft-chosen"]) == ("sft-none", "sft-chosen")
    assert demo.default_arms(run, ["dpo-rejected"]) == ("dpo-rejected", "dpo-rejected")
    assert [demo.told_as(arm) for arm in ("dpo-none", "dpo-chosen")] == ["first_person", "line"]


def test_a_known_question_offers_its_personas_and_another_one_none(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, monkeypatch)
    store.write_rows(run.folder / "tailoring" / "test.jsonl", tiny_rows(3, split="test"))
    row = answers.eval_rows(run)[0]
    assert demo.known_personas(run, row.prompt)["gold-chosen"] == row.personas["gold-chosen"]
    assert demo.known_personas(run, "something else") == {}
