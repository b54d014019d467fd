"""The cache that grows in place holds what transformers' own cache holds, whatever is done to it."""

import copy

import pytest
from later import torch

from persona_lib.models.generate import ROOM, growing_cache

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


@pytest.mark.slow
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
