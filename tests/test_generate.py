"""Generation: batches, a shared prefix, stop strings and the growing cache change no completion."""

from __future__ import annotations

import copy

import pytest
from later import torch
from tiny import tiny_model, tiny_tokenizer

from persona_lib.models import generate
from persona_lib.models.generate import ROOM, growing_cache

TEXT = "the cat sat on mat a dog ran far away one two three four five six x"


@pytest.fixture(scope="module")
def generator():
    tokenizer = tiny_tokenizer(words=TEXT.split())
    model = tiny_model(vocabulary=len(tokenizer)).eval()
    return generate.TransformersGenerator(model, tokenizer, "tiny", batch_size=4)


def run(generator, prompts, **kwargs):
    found = dict(generator.generate(prompts, max_new_tokens=12, stop=kwargs.pop("stop", ()), **kwargs))
    return [found[i] for i in range(len(prompts))]


def test_batched_completions_equal_those_of_one_prompt_at_a_time(generator):
    prompts = ["the cat", "a dog ran far away on the mat", "one", "two three four", "six five"]
    single = [run(generator, [p])[0] for p in prompts]
    assert run(generator, prompts) == single
    assert len({c.text for c in single}) > 1


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_tokens_are_those_of_transformers_own_generation(generator, penalty):
    tokenizer, prompts = generator.tokenizer, ["the cat", "a dog ran far away on the mat", "one"]
    ours = generate.TransformersGenerator(generator.model, tokenizer, "tiny", 4, repetition_penalty=penalty)
    for prompt, found in zip(prompts, run(ours, prompts), strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        how = {"do_sample": False, "logits_processor": generate.penalties(penalty, ids.shape[1])}
        theirs = generator.model.generate(ids, max_new_tokens=12, pad_token_id=0, **how)
        assert found == generate.to_completion(tokenizer, theirs[0, ids.shape[1] :].tolist(), ())


def test_a_shared_prefix_changes_nothing_but_the_work(generator):
    prefix, prompts = "one two three four five six\n\n", ["Prompt: a dog", "Prompt: the cat sat on"]
    assert run(generator, prompts, prefix=prefix) == run(generator, [prefix + p for p in prompts])


def test_a_prefix_that_ends_inside_a_token_is_not_shared_but_still_right(generator):
    assert run(generator, ["t sat"], prefix="the ca") == run(generator, ["the cat sat"])


def test_a_long_common_beginning_is_computed_once_and_changes_nothing(generator, monkeypatch):
    prompts = [f"one two three four five six {end}" for end in ("Prompt: a dog", "the cat sat on", "the mat")]
    plain, seen = run(generator, prompts), []
    monkeypatch.setattr(generate, "LEAST_SHARED", 6)
    hook = generator.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    assert run(generator, prompts) == plain
    hook.remove()
    head = len(generator.tokenizer("one two three four five six")["input_ids"])
    assert seen[0] == (1, head) and seen[1][0] == 3 and seen[1][1] < head


def test_a_common_beginning_leaves_every_row_a_token_and_is_not_shared_if_short(monkeypatch):
    monkeypatch.setattr(generate, "LEAST_SHARED", 2)
    assert generate.common_head([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 4]]) == [1, 2]
    assert generate.common_head([[1, 2, 3], [1, 2, 3], [1, 2, 3, 4]]) == [1, 2]
    assert generate.common_head([[1, 2, 3]]) == generate.common_head([[1, 2], [1, 3]]) == []


def test_a_stop_string_ends_its_own_row_only_and_is_cut_off(generator):
    prompts = ["the cat", "a dog ran far away on the mat", "one"]
    free = run(generator, prompts)
    word = free[0].text.split()[2]
    stopped = run(generator, prompts, stop=(word,))
    assert stopped[0].finish_reason == "stop" and word not in stopped[0].text
    for before, after in zip(free, stopped, strict=True):
        if word not in before.text:
            assert before == after


def test_cut_at_stop_cuts_at_the_first_of_several():
    assert generate.cut_at_stop("a\nPrompt: b<end>", ("<end>", "\nPrompt:")) == ("a", True)
    assert generate.cut_at_stop("a b", ("x",)) == ("a b", False)


# --- the growing cache beside transformers' own ---

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 50,
}


def make_config():
    """A tiny Llama's; transformers is imported by the process that runs these tests, not by every one."""
    from transformers import LlamaConfig

    return LlamaConfig(**SIZES)


def plain_cache():
    """An empty cache as transformers makes it."""
    from transformers import DynamicCache

    return DynamicCache(config=make_config())


def step(caches, rows, tokens, seed):
    """Give the same new keys and values to both layers of all caches; return what each cache answers."""
    torch.manual_seed(seed)
    keys, values = torch.randn(rows, 2, tokens, 32), torch.randn(rows, 2, tokens, 32)
    return [[cache.update(keys + layer, values - layer, layer) for layer in (0, 1)] for cache in caches]


def assert_same(answers):
    """Check that all caches answered the same numbers."""
    first, *others = answers
    for other in others:
        for (keys, values), (other_keys, other_values) in zip(first, other, strict=True):
            assert torch.equal(keys, other_keys) and torch.equal(values, other_values)


def test_tokens_are_kept_in_order_and_move_only_when_the_room_is_full():
    plain, growing = plain_cache(), growing_cache(make_config(), None, 3)
    places = []
    for seed, tokens in enumerate([7, *[1] * (2 * ROOM)]):
        answers = step([plain, growing], 3, tokens, seed)
        assert_same(answers)
        places.append(answers[1][0][0].data_ptr())
        assert growing.get_seq_length() == plain.get_seq_length() == 7 + seed
    assert len(set(places[: ROOM + 1])) == 1 and len(set(places)) == 2


def test_a_prefix_is_given_to_every_row_and_is_itself_left_alone():
    prefix = plain_cache()
    step([prefix], 1, 40, 0)
    repeated, before = copy.deepcopy(prefix), copy.deepcopy(prefix)
    repeated.batch_repeat_interleave(4)
    growing = growing_cache(make_config(), prefix, 4)
    for seed in range(1, 5):
        assert_same(step([repeated, growing], 4, 1, seed))
    assert all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        for a, b in zip(prefix.layers, before.layers, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "argument", "rows"),
    [
        ("reorder_cache", [2, 0, 0], 3),
        ("crop", -3, 3),
        ("batch_select_indices", [0, 2], 2),
        ("batch_select_indices", slice(0, 2), 2),
        ("batch_repeat_interleave", 2, 6),
    ],
)
def test_what_generation_does_to_a_cache_does_the_same_to_this_one(name, argument, rows):
    argument = torch.tensor(argument) if isinstance(argument, list) else argument
    caches = [plain_cache(), growing_cache(make_config(), None, 3)]
    step(caches, 3, 5, 0)
    for cache in caches:
        getattr(cache, name)(argument)
    for seed in range(1, 4):
        assert_same(step(caches, rows, 1, seed))


def test_a_model_with_a_sliding_window_writes_the_same_behind_a_shared_prefix():
    from transformers import DynamicCache, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(sliding_window=8, **SIZES)).eval()
    prefix, tails = torch.randint(50, (1, 12)), torch.randint(50, (3, 4))
    rows, written = torch.cat([prefix.expand(3, -1), tails], dim=1), []
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.mul_(4)
        head = model(input_ids=prefix, past_key_values=DynamicCache(config=model.config)).past_key_values
        for past in (None, growing_cache(model.config, head, 3), growing_cache(model.config, None, 3)):
            written.append(
                model.generate(rows, max_new_tokens=10, do_sample=False, past_key_values=past, pad_token_id=0)
            )
    assert torch.equal(written[0], written[1]) and torch.equal(written[0], written[2])
    assert len(set(map(tuple, written[0][:, 16:].tolist()))) > 1
