"""What would ruin training silently is an error: tokens, precision, gradients, the start of DPO."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from tiny import tiny_model, tiny_tokenizer

from persona_lib.models import trainers
from persona_lib.models.load import TokenError, check_tokenizer, count_rows, encode


def merging_tokenizer():
    """A tokenizer in which ":" and a following letter are one token, as in large vocabularies."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {t: i for i, t in enumerate(["<pad>", "</s>", "<unk>", ":", ":S", "S", "Ġ", "ĠS", "R"])}
    core = Tokenizer(models.BPE(vocabulary, [(":", "S"), ("Ġ", "S")], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def lora_model(dtype=None):
    """A tiny Llama with one trainable adapter."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    if dtype is not None:
        for parameter in trainers.trainable_parameters(model).values():
            parameter.data = parameter.data.to(dtype)
    return model


# --- tokens ---


def test_completion_ends_with_eos_once_and_prompt_starts_with_bos_once():
    tokenizer = tiny_tokenizer()
    prompt, completion = encode(tokenizer, "Prompt: w1\nResponse:", " w2")
    assert tokenizer.convert_ids_to_tokens(prompt) == ["<s>", "Prompt:", "w1", "Response:"]
    assert tokenizer.convert_ids_to_tokens(completion) == ["w2", "</s>"]
    assert encode(tokenizer, "Prompt: w1\nResponse:", " w2</s>")[1] == completion


def test_token_across_the_boundary_is_an_error_that_names_the_row():
    tokenizer = merging_tokenizer()
    assert encode(tokenizer, "R:", " S", "row 1")[1][-1] == tokenizer.eos_token_id
    with pytest.raises(TokenError, match="row 7: a token spans the boundary"):
        encode(tokenizer, "R:", "S", "row 7")


def test_doubled_bos_is_an_error():
    with pytest.raises(TokenError, match="row 3: BOS is doubled"):
        encode(tiny_tokenizer(), "<s> Prompt: w1\nResponse:", " w2", "row 3")


def test_empty_completion_is_an_error():
    with pytest.raises(TokenError, match="row 3: the completion is empty"):
        encode(tiny_tokenizer(), "Prompt: w1\nResponse:", " ", "row 3")


def test_pad_equal_to_eos_is_an_error():
    tokenizer = tiny_tokenizer()
    check_tokenizer(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(TokenError, match="must exist and differ from EOS"):
        check_tokenizer(tokenizer)


def test_missing_eos_is_an_error():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TokenError, match="no EOS token"):
        check_tokenizer(tokenizer)


def test_truncated_and_dropped_rows_are_counted_with_their_tokens():
    rows = [
        {"id": "whole", "prompt": "w1 w2 w3", "completion": " w4"},  # <s> + 3 and 1 + EOS: 6 tokens
        {"id": "cut", "prompt": "w1 w2 w3", "completion": " w4 w5"},  # 7 tokens
        {"id": "lost", "prompt": "w1 w2 w3 w4 w5", "completion": " w6"},  # the prompt alone is 6
    ]
    counts = count_rows(tiny_tokenizer(), rows, ("completion",), 6, "test")
    assert (counts.rows, counts.truncated, counts.dropped) == (3, 1, 1)
    assert (counts.prompt_tokens, counts.completion_tokens, counts.longest) == (14, 7, 8)


def test_pair_is_truncated_when_only_the_rejected_response_is_too_long():
    rows = [{"id": "a", "prompt": "w1", "chosen": " w2", "rejected": " w3 w4 w5"}]
    assert count_rows(tiny_tokenizer(), rows, ("chosen", "rejected"), 5, "test").truncated == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "none of 0 rows can be trained on: no row has the persona"),
        ([{"id": "a", "prompt": "w1 w2 w3", "completion": " w4"}], "none of 1 rows .*: raise max_length=4"),
    ],
)
def test_nothing_left_to_train_on_is_an_error(rows, said):
    with pytest.raises(TokenError, match=f"sft: {said}"):
        count_rows(tiny_tokenizer(), rows, ("completion",), 4, "sft")


# --- precision of the adapters ---


def test_bfloat16_adapters_are_refused_and_cast_adapters_mends_them():
    import torch

    model = lora_model(torch.bfloat16)
    with pytest.raises(trainers.TrainingError, match="bfloat16: small updates would be lost"):
        trainers.check_adapters(model, "default")
    trainers.cast_adapters(model)
    trainers.check_adapters(model, "default")


def test_frozen_adapter_and_trainable_base_are_refused():
    model = lora_model()
    model.requires_grad_(False)
    with pytest.raises(trainers.TrainingError, match="no parameter is trainable"):
        trainers.check_adapters(model, "default")
    model.requires_grad_(True)
    with pytest.raises(trainers.TrainingError, match="only adapter 'default' should be"):
        trainers.check_adapters(model, "default")


# --- the start of DPO ---


def test_dpo_start_with_a_margin_or_another_loss_than_ln2_is_an_error():
    trainers.check_start(1e-6, math.log(2) + 1e-6, math.log(2), 1e-3)
    trainers.check_start(0.0, 3.0, None, 1e-3)  # with an SFT term only the margin is known
    with pytest.raises(trainers.TrainingError, match="margin before the first step is 0.5"):
        trainers.check_start(0.5, math.log(2), math.log(2), 1e-3)
    with pytest.raises(trainers.TrainingError, match="margin before the first step is nan"):
        trainers.check_start(math.nan, math.log(2), None, 1e-3)
    with pytest.raises(trainers.TrainingError, match="loss before the first step is 0.8"):
        trainers.check_start(0.0, 0.8, math.log(2), 1e-3)


# --- gradients and movement ---


def step(guard, model, value: float) -> None:
    """Give every trainable parameter a constant gradient and show it to the guard."""
    for parameter in trainers.trainable_parameters(model).values():
        parameter.grad = parameter.detach() * 0 + value
    guard.on_pre_optimizer_step(None, SimpleNamespace(global_step=1, epoch=0.5), None, model=model)


def test_two_steps_without_gradient_are_an_error_and_one_is_not():
    guard, model = trainers.gradient_guard(), lora_model()
    for value in (0.0, 1.0, 0.0):
        step(guard, model, value)
    guard.on_epoch_begin(None, None, None)
    step(guard, model, 0.0)
    with pytest.raises(trainers.TrainingError, match="zero or not finite twice"):
        step(guard, model, 0.0)


def test_gradients_that_vanish_after_an_evaluation_are_seen_in_the_next_epoch():
    guard, model = trainers.gradient_guard(), lora_model()
    for _ in range(10):
        step(guard, model, 1.0)
    guard.on_epoch_begin(None, None, None)
    step(guard, model, 0.0)
    with pytest.raises(trainers.TrainingError):
        step(guard, model, 0.0)


@pytest.mark.parametrize("norm", [0.0, math.nan, math.inf])
def test_bad_grad_norm_in_two_logs_is_an_error(norm):
    guard, state = trainers.gradient_guard(), SimpleNamespace(global_step=9, epoch=1.0)
    guard.on_log(None, state, None, logs={"grad_norm": norm})
    guard.on_log(None, state, None, logs={"eval_loss": 1.0})
    with pytest.raises(trainers.TrainingError, match="by step 9"):
        guard.on_log(None, state, None, logs={"grad_norm": norm})


def test_parameters_that_do_not_move_in_the_first_step_are_an_error():
    import torch

    model = lora_model()
    optimizer = torch.optim.SGD(trainers.trainable_parameters(model).values(), lr=0.0)
    guard = trainers.movement_guard()
    guard.on_train_begin(None, None, None, model=model)
    guard.on_optimizer_step(
        None, None, None, model=model, optimizer=optimizer
    )  # warm-up: the rate is still 0
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(trainers.TrainingError, match="no trainable parameter moved"):
        guard.on_optimizer_step(None, None, None, model=model, optimizer=optimizer)
    next(iter(trainers.trainable_parameters(model).values())).data += 1
    guard.on_optimizer_step(None, None, None, model=model, optimizer=optimizer)
