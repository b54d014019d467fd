"""Both responses scored with their prompt computed once: the numbers of the plain way, for less."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tiny import save_adapter, save_base, tiny_tokenizer, words

from persona_lib.models import load
from persona_lib.models.generate import TransformersGenerator


def some_pairs(n: int = 11):
    rng = random.Random(3)
    prompts = [f"Prompt: {words(rng, 2, 14)}\nResponse:" for _ in range(n)]
    return prompts, [(f" {words(rng, 1, 15)}", f" {words(rng, 1, 15)}") for _ in range(n)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and two adapters on it."""
    folder = tmp_path_factory.mktemp("pairs")
    base = save_base(folder / "base")
    return base, [save_adapter(base, folder / name, seed) for seed, name in enumerate(("sft-a", "dpo-a"))]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("adapters", [0, 1, 2])
def test_shared_scores_are_the_plain_ones_for_every_stack_of_adapters(folders, quantization, adapters):
    base, stack = folders
    model = load.load_base(base, "", quantization, "float32")
    model = load.attach_adapters(model, stack[:adapters]) if adapters else model
    for batch in (1, 4, 32):
        given = (model, tiny_tokenizer(), *some_pairs(), batch)
        shared, plain = load.pair_log_probs(*given), load.plain_pair_log_probs(*given)
        assert shared.shape == (11, 2) and np.ptp(plain) > 1
        np.testing.assert_allclose(shared, plain, rtol=2e-6, atol=2e-5)


def test_a_model_that_has_scored_answers_as_before(folders):
    """Its attention goes by rows from then on, where it is given any: not in generation."""

    model, tokenizer, (prompts, pairs) = load.load_base(folders[0]), tiny_tokenizer(), some_pairs()
    answer = TransformersGenerator(model, tokenizer, "tiny", 4).generate
    before = dict(answer(prompts, 8, ()))
    load.pair_log_probs(model, tokenizer, prompts, pairs, 4)
    assert dict(answer(prompts, 8, ())) == before and len(set(before.values())) > 1


def test_a_prompt_is_computed_once(folders):
    model, seen = load.load_base(folders[0]), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    tokenizer, (prompts, pairs) = tiny_tokenizer(), some_pairs(1)
    load.pair_log_probs(model, tokenizer, prompts, pairs, 1)
    prompt, chosen, rejected = load.encode_pair(tokenizer, prompts[0], pairs[0], "row")
    assert seen == [len(prompt) + len(chosen) + len(rejected)]


def test_a_model_with_a_sliding_window_is_asked_in_the_plain_way(folders, monkeypatch):
    model = load.load_base(folders[0])
    given = (model, tiny_tokenizer(), *some_pairs(), 4)
    plain = load.plain_pair_log_probs(*given)
    monkeypatch.setattr(load, "batch_pair_log_probs", lambda *_: pytest.fail("shared"))
    model.config.sliding_window = 8
    assert np.array_equal(load.pair_log_probs(*given), plain)
