"""What would ruin training silently is an error: precision, gradients, the start of DPO."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from tiny import tiny_model

from persona_lib.models import trainers
from persona_lib.models.trainers import trainer_settings
from persona_lib.settings import load_profile, set_field


def lora_model(dtype=None):
    """A tiny Llama with one trainable adapter."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    if dtype is not None:
        for parameter in trainers.trainable_parameters(model).values():
            parameter.data = parameter.data.to(dtype)
    return model


def test_bfloat16_adapters_are_refused_and_cast_adapters_mends_them():
    import torch

    model = lora_model(torch.bfloat16)
    with pytest.raises(trainers.TrainingError, match="in float32; trainable is base.*bfloat16"):
        trainers.check_adapters(model, "default")
    trainers.cast_adapters(model)
    trainers.check_adapters(model, "default")


def test_frozen_adapter_and_trainable_base_are_refused():
    model = lora_model()
    model.requires_grad_(False)
    with pytest.raises(trainers.TrainingError, match="trainable is nothing"):
        trainers.check_adapters(model, "default")
    model.requires_grad_(True)
    with pytest.raises(trainers.TrainingError, match="trainable is base.*embed_tokens"):
        trainers.check_adapters(model, "default")


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_step_without_a_gradient_is_an_error(bad):
    guard, state = trainers.learning_guard(), SimpleNamespace(global_step=7)
    for logs in ({"loss": 1.0, "grad_norm": 1e-9}, {"eval_loss": 1.0}):
        guard.on_log(None, state, None, logs=logs)
    with pytest.raises(trainers.TrainingError, match="gradient's norm is .* in step 7: nothing is learned"):
        guard.on_log(None, state, None, logs={"loss": 1.0, "grad_norm": bad})


def test_parameters_that_do_not_move_in_the_first_step_are_an_error():
    import torch

    model = lora_model()
    optimizer = torch.optim.SGD(trainers.trainable_parameters(model).values(), lr=0.0)
    guard = trainers.learning_guard()
    guard.on_train_begin(None, None, None, model=model)
    guard.on_optimizer_step(
        None, None, None, model=model, optimizer=optimizer
    )  # warm-up: the rate is still 0
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(trainers.TrainingError, match="no trainable parameter moved"):
        guard.on_optimizer_step(None, None, None, model=model, optimizer=optimizer)
    next(iter(trainers.trainable_parameters(model).values())).data += 1
    guard.on_optimizer_step(None, None, None, model=model, optimizer=optimizer)


@pytest.mark.parametrize(("limit", "rows", "steps"), [(0, 40, -1), (48, 96, -1), (48, 20, -1), (8, 40, 8)])
def test_a_limit_of_steps_is_no_goal(tmp_path, limit, rows, steps):
    changes = {"dpo.max_steps": limit, "dpo.batch_size": 2, "dpo.epochs": 1}
    profile = set_field(load_profile("everyday"), changes)
    assert trainer_settings(profile, "dpo", 0, tmp_path, rows)["max_steps"] == steps
