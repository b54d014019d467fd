"""What would ruin training silently is an error: precision, gradients, the start of DPO."""

import math
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model

from persona_lib.models import trainers
from persona_lib.models.load import ModelError
from persona_lib.models.trainers import trainer_settings
from persona_lib.settings import ConfigError, load_profile, set_field


def lora_model():
    return get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))


def test_the_adapter_alone_is_trainable_in_float32():
    model = lora_model()
    for parameter in trainers.trainable_parameters(model).values():
        parameter.data = parameter.data.bfloat16()
    with pytest.raises(ModelError, match="in float32; trainable is base.*bfloat16"):
        trainers.check_adapters(model)
    for parameter in trainers.trainable_parameters(model).values():
        parameter.data = parameter.data.float()
    trainers.check_adapters(model)
    for trainable, said in ((False, "nothing"), (True, "base.*embed_tokens")):
        model.requires_grad_(trainable)
        with pytest.raises(ModelError, match=f"trainable is {said}"):
            trainers.check_adapters(model)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_step_without_a_gradient_is_an_error(bad):
    guard, state = trainers.learning_guard(), SimpleNamespace(global_step=7)
    for logs in ({"loss": 1.0, "grad_norm": 1e-9}, {"eval_loss": 1.0}):
        guard.on_log(None, state, None, logs=logs)
    with pytest.raises(ModelError, match="gradient's norm is .* in step 7: nothing is learned"):
        guard.on_log(None, state, None, logs={"loss": 1.0, "grad_norm": bad})


def test_parameters_that_do_not_move_in_the_first_step_are_an_error():
    model = lora_model()
    optimizer = torch.optim.SGD(trainers.trainable_parameters(model).values(), lr=0.0)
    guard = trainers.learning_guard()
    guard.on_train_begin(None, None, None, model=model)
    given = {"args": None, "state": None, "control": None, "model": model, "optimizer": optimizer}
    guard.on_optimizer_step(**given)  # warm-up: the rate is still 0
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(ModelError, match="no trainable parameter moved"):
        guard.on_optimizer_step(**given)
    next(iter(trainers.trainable_parameters(model).values())).data += 1
    guard.on_optimizer_step(**given)


@pytest.mark.parametrize(("limit", "rows", "steps"), [(0, 40, -1), (48, 96, -1), (48, 20, -1), (8, 40, 8)])
def test_a_limit_of_steps_is_no_goal_and_processes_share_a_batch(tmp_path, monkeypatch, limit, rows, steps):
    changes = {"dpo.max_steps": limit, "dpo.batch_size": 2, "dpo.epochs": 1}
    profile = set_field(load_profile("everyday"), changes)
    assert trainer_settings(profile, "dpo", 0, tmp_path, rows)["max_steps"] == steps
    monkeypatch.setattr(trainers, "PROCESSES", 3)
    with pytest.raises(ConfigError, match="dpo.batch_size: 3 processes cannot share 2 rows.*multiple of 3"):
        trainer_settings(profile, "dpo", 0, tmp_path)
