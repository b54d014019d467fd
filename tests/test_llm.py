"""Loading (also in NF4), stacking and swapping adapters, scoring completions."""

from __future__ import annotations

import random

import numpy as np
import pytest
from llama31 import SMALL, llama_config, llama_tokenizer, mistral_tokenizer, random_base, save_llama
from tiny import save_base, tiny_model, tiny_tokenizer, words

from persona_lib import store
from persona_lib.models import load
from persona_lib.models.load import TokenError
from persona_lib.settings import ConfigError, load_profile, set_field


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def save_adapter(base_folder, folder, seed):
    """Save an adapter with random weights (both matrices), so that it changes what the base says."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load.load_base(base_folder), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapters(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    names = ("sft-chosen", "dpo-chosen", "sft-none", "dpo-none")
    return {name: save_adapter(base_folder, folder / name, seed) for seed, name in enumerate(names)}


def some_texts(n=9):
    rng = random.Random(1)
    prompts = [f"Prompt: {words(rng, 2, 12)}\nResponse:" for _ in range(n)]
    return prompts, [f" {words(rng, 1, 15)}" for _ in range(n)]


def scores(model, batch_size=4):
    return load.sequence_log_probs(model, tiny_tokenizer(), *some_texts(), batch_size)


# --- loading ---


def test_base_is_loaded_frozen_in_the_asked_precision(base_folder):
    import torch

    for name in ("float32", "bfloat16"):
        model = load.load_base(base_folder, "", "none", name)
        assert {p.dtype for p in model.parameters()} == {getattr(torch, name)}
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())


def test_nf4_layers_are_double_quantised_and_compute_in_the_asked_precision(base_folder):
    import torch

    model = load.load_base(base_folder, "", "nf4", "float32")
    layers = load.linear4bit_layers(model)
    assert len(layers) == 14  # 7 linear layers in each of 2 blocks; the head is tied to the embedding
    state = layers[0][1].weight.quant_state
    assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, True)
    assert {layer.compute_dtype for _, layer in layers} == {torch.float32}
    assert model.lm_head.weight.dtype == torch.float32


def test_expanded_nf4_weights_give_the_very_same_log_probs_with_and_without_adapters(base_folder, adapters):
    def model(expand):
        return load.load_base(base_folder, "", "nf4", "float32", expand)

    assert not load.linear4bit_layers(model(True))
    assert (scores(model(True)) == scores(model(False))).all()
    folders = [adapters["sft-chosen"], adapters["dpo-chosen"]]
    stacked = [scores(load.attach_adapters(model(expand), folders)) for expand in (True, False)]
    assert (stacked[0] == stacked[1]).all()
    assert (stacked[0] != scores(model(True))).any()


def test_layer_that_blocks_of_64_do_not_divide_is_an_error_that_names_it(tmp_path):
    save_base(tmp_path, tiny_model(mlp=96))
    with pytest.raises(load.ModelError, match=r"layers\.0\.mlp\.down_proj: in_features=96"):
        load.load_base(tmp_path, "", "nf4", "float32")


def test_nf4_weights_are_not_repacked_by_an_evaluation_on_avx512_bf16_processors(base_folder, monkeypatch):
    """bitsandbytes would repack the weights in the first no-grad forward; here it believes it can."""
    import torch
    from bitsandbytes.nn import modules

    repacked = []

    def repack(data, state, *args):
        repacked.append(1)
        return data, state

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(modules, "_convert_weight_packed_for_cpu", repack)
    ids = torch.tensor([[1, 8, 9, 10]])

    guarded = load.load_base(base_folder, "", "nf4", "float32")
    with torch.no_grad():
        guarded(input_ids=ids)
    assert not repacked
    for _, layer in load.linear4bit_layers(guarded):
        layer.support_avx512bf16_for_cpu = True  # as it is without the guard: the trap is real
    with torch.no_grad():
        guarded(input_ids=ids)
    assert repacked


def test_bitsandbytes_without_the_repacking_switch_is_an_error_on_a_processor(base_folder):
    model = load.load_base(base_folder, "", "nf4", "float32")
    for _, layer in load.linear4bit_layers(model):
        del layer.support_avx512bf16_for_cpu
    with pytest.raises(
        load.ModelError, match="q_proj: this bitsandbytes has no Linear4bit.support_avx512bf16"
    ):
        load.keep_weights_differentiable(model, "cpu")
    load.keep_weights_differentiable(model, "cuda")  # there the repacking does not exist


def test_tokenizer_gets_a_pad_token_of_its_vocabulary_or_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "mends")
    loaded = load.load_tokenizer(tmp_path / "mends")
    assert (loaded.pad_token, loaded.padding_side, len(loaded)) == ("<pad>", "left", len(tokenizer))

    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>").save_pretrained(tmp_path / "cannot")
    with pytest.raises(TokenError, match="must exist and differ from EOS"):
        load.load_tokenizer(tmp_path / "cannot")


@pytest.mark.parametrize(
    ("known", "pad"),
    [
        (["<|im_end|>", "<empty_output>"], "<empty_output>"),  # SmolLM2: no pad token, BOS is EOS
        (["<|im_end|>", "<|fim_pad|>"], "<|fim_pad|>"),  # Qwen2.5: pads with its EOS
        (["<unk>"], "<unk>"),  # Mistral: no pad token
        (["<unk>", "<pad>"], "<pad>"),
    ],
)
def test_public_models_without_a_pad_token_of_their_own_get_one_that_no_text_has(tmp_path, known, pad):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = ["<|endoftext|>", "a", *known]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=names[0], pad_token=names[0])
    tokenizer.save_pretrained(tmp_path)
    assert load.load_tokenizer(tmp_path).pad_token == pad


def test_a_mistral_tokenizer_pads_with_unk_and_a_llama_3_one_with_its_own_token(tmp_path):
    texts = ["Water the fern. It's dry!"]
    for make, pad in ((mistral_tokenizer, "<unk>"), (llama_tokenizer, "<|finetune_right_pad_id|>")):
        make(texts).save_pretrained(tmp_path / make.__name__)
        loaded = load.load_tokenizer(tmp_path / make.__name__)
        ids = loaded("caf\u00e9 \u2764")["input_ids"]
        assert loaded.pad_token == pad
        assert loaded.pad_token_id not in ids, "bytes of unknown text must not become padding"
        assert loaded.decode(ids[1:]) == "caf\u00e9 \u2764"


def test_the_llama_3_tokenizer_splits_as_the_released_pattern_does():
    """By hand from the pattern: contractions apart, digits in threes, a space with the word that follows."""
    tokenizer = llama_tokenizer([])
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("It's 12345 now!\n\nYes")
    assert [text for text, _ in pieces] == [
        "It",
        "'s",
        "\u0120",
        "123",
        "45",
        "\u0120now",
        "!\u010a\u010a",
        "Yes",
    ]


# --- which model it is ---


def test_a_model_is_known_by_its_content_the_key_it_was_made_for_or_its_name_on_the_hub(tmp_path):
    for name in ("one", "copy", "other"):
        store.write_text(tmp_path / name / "config.json", "{}")
        store.write_text(tmp_path / name / "model.safetensors", "a" if name != "other" else "b")
    keys = {name: load.model_key(tmp_path / name) for name in ("one", "copy", "other")}
    assert keys["one"] == keys["copy"] != keys["other"]
    store.write_text(tmp_path / "one" / "model.safetensors", "c")
    assert load.model_key(tmp_path / "one") != keys["one"]
    store.mark_done(tmp_path / "one", "made here")
    assert load.model_key(tmp_path / "one") == "made here"
    assert load.model_key("owner/model", "ab" * 20) == "owner/model@" + "ab" * 20


# --- random weights of the 8B model's architecture ---


@pytest.mark.parametrize(
    ("quantization", "dtype"), [("none", "float32"), ("nf4", "float32"), ("nf4", "bfloat16")]
)
def test_a_model_drawn_on_the_device_is_the_one_that_its_checkpoint_gives(tmp_path, quantization, dtype):
    import torch

    folder = save_llama(tmp_path, ["Water the fern."], seed=3, **SMALL)
    tokenizer = load.load_tokenizer(folder)
    config = llama_config(**SMALL, vocab_size=len(tokenizer))
    ids = torch.tensor([tokenizer("Water the fern, then the moss.")["input_ids"]])
    drawn = random_base(config, quantization, dtype, seed=3)(ids).logits
    assert torch.equal(drawn, load.load_base(folder, "", quantization, dtype)(ids).logits)
    assert drawn.std() > 0.1


# --- adapters ---


def test_swapping_adapters_on_one_base_equals_loading_each_policy_alone(base_folder, adapters):
    policies = [["sft-chosen"], ["sft-chosen", "dpo-chosen"], ["sft-none", "dpo-none"], ["sft-none"]]
    alone = [
        scores(load.attach_adapters(load.load_base(base_folder), [adapters[name] for name in policy]))
        for policy in policies
    ]
    shared = load.load_base(base_folder)
    bare = scores(shared)
    for policy in policies:
        shared = load.attach_adapters(shared, [adapters[name] for name in policy])
    for policy, expected in zip(policies, alone, strict=True):
        with load.using_adapters(shared, policy):
            np.testing.assert_allclose(scores(shared), expected, rtol=1e-6)
        assert shared.active_adapters == policies[-1]
    with load.using_adapters(shared, []):
        np.testing.assert_allclose(scores(shared), bare, rtol=1e-6)
    assert np.abs(alone[0] - alone[1]).min() > 1e-3
    np.testing.assert_allclose(scores(shared), alone[-1], rtol=1e-6)


def test_attached_adapters_are_frozen_and_never_merged(base_folder, adapters):
    model = load.attach_adapters(
        load.load_base(base_folder), [adapters["sft-chosen"], adapters["dpo-chosen"]]
    )
    with load.using_adapters(model, []):
        pass
    with load.using_adapters(model, ["dpo-chosen"]):
        pass
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert not any(getattr(module, "merged_adapters", []) for module in model.modules())


@pytest.mark.parametrize("policy", [["sft-chosen"], ["sft-chosen", "dpo-chosen"]], ids=len)
def test_adapters_added_to_the_weights_score_as_beside_them_and_leave_the_base_to_the_bit(
    base_folder, adapters, policy
):
    import torch

    model = load.attach_adapters(load.load_base(base_folder), [adapters[name] for name in policy])
    before = {name: p.clone() for name, p in model.named_parameters()}
    with load.using_adapters(model, policy):
        beside = scores(model)
    with pytest.raises(KeyError), load.using_adapters(model, policy, merge=True):
        np.testing.assert_allclose(scores(model), beside, rtol=1e-5)
        assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())
        raise KeyError  # what was changed is put back whatever happens
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    with load.using_adapters(model, policy):
        assert (scores(model) == beside).all()


def test_no_other_policy_is_activated_while_one_is_merged_into_the_weights(base_folder, adapters):
    """It would be ignored: adapters are not computed beside weights that have taken some in."""
    model = load.attach_adapters(
        load.load_base(base_folder), [adapters["sft-chosen"], adapters["dpo-chosen"]]
    )
    refused = pytest.raises(load.ModelError, match="another policy's adapters are merged")
    with load.using_adapters(model, ["sft-chosen"], merge=True), refused:
        load.activate(model, ["dpo-chosen"])
    load.activate(model, ["dpo-chosen"])


def test_a_head_that_shares_the_embedding_takes_no_adapter_in(base_folder):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load.load_base(base_folder), LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(load.ModelError, match="shares its weights with the embedding"):
        load.mergeable_layers(model)


@pytest.mark.parametrize("how", [("nf4", "float32"), ("none", "bfloat16")], ids=str)
def test_a_base_in_fewer_bits_than_32_is_never_merged(base_folder, adapters, how):
    model = load.attach_adapters(load.load_base(base_folder, "", *how), [adapters["sft-chosen"]])
    merging = load.using_adapters(model, ["sft-chosen"], merge=True)
    with (
        pytest.raises(load.ModelError, match="weights in torch.* would round away what was learned"),
        merging,
    ):
        pass
    with pytest.raises(ConfigError, match="merge_adapters needs quantization=none and compute_dtype=float32"):
        set_field(load_profile("authors"), **dict(zip(("quantization", "compute_dtype"), how, strict=True)))


def test_unknown_adapter_is_an_error_that_lists_the_loaded_ones(base_folder, adapters):
    model = load.attach_adapters(load.load_base(base_folder), [adapters["sft-chosen"]])
    with pytest.raises(ValueError, match="no adapter dpo-chosen; loaded: sft-chosen"):
        load.activate(model, ["sft-chosen", "dpo-chosen"])


# --- scoring ---


def one_by_one(model, tokenizer, prompt, completion):
    """The definition: sum over the completion's tokens and EOS of log softmax of the step before."""
    import torch

    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"]])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(log_probs[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1]))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_log_probs_are_those_of_one_row_at_a_time_whatever_the_batch(base_folder, batch_size):
    model, tokenizer = load.load_base(base_folder), load.load_tokenizer(base_folder)
    prompts, completions = some_texts()
    found = load.sequence_log_probs(model, tokenizer, prompts, completions, batch_size)
    assert found.dtype == np.float64
    expected = [one_by_one(model, tokenizer, p, c) for p, c in zip(prompts, completions, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_log_probs_of_no_rows_and_of_unequal_lists(base_folder):
    model, tokenizer = load.load_base(base_folder), load.load_tokenizer(base_folder)
    assert load.sequence_log_probs(model, tokenizer, [], [], 4).shape == (0,)
    with pytest.raises(ValueError):
        load.sequence_log_probs(model, tokenizer, ["Prompt: w1\nResponse:"], [], 4)
