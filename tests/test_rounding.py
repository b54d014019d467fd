"""Adapters trained in bfloat16: every step is the one that true bfloat16 weights would take."""

import pytest
from later import torch
from tiny import tiny_run

from persona_lib.config import load_profile, set_field
from persona_lib.profiles import ConfigError
from persona_lib.training import train
from persona_lib.training.rounding import bfloat16_adamw

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def gradients(steps, shape=(3, 5)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) * 10.0 ** (step % 4 - 3) for step in range(steps)]


def weights():
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()


def test_every_step_is_the_one_of_true_bfloat16_weights_bit_for_bit_also_after_a_resume():
    true = torch.nn.Parameter(weights())
    stored = torch.nn.Parameter(weights().float())
    reference = torch.optim.AdamW([true], **SETTINGS)
    ours = bfloat16_adamw()([stored], **SETTINGS)
    for step, gradient in enumerate(gradients(40)):
        true.grad, stored.grad = gradient.bfloat16(), gradient.clone()
        reference.step()
        ours.step()
        assert torch.equal(stored.data, true.data.float()), step
        assert stored.dtype == stored.grad.dtype == torch.float32
        if step == 20:
            saved = ours.state_dict()
            ours = bfloat16_adamw()([stored], **SETTINGS)
            ours.load_state_dict(saved)
    assert not torch.equal(true.data, weights())


def test_what_float32_gains_by_small_steps_bfloat16_loses():
    moved = {}
    for kind in (torch.optim.AdamW, bfloat16_adamw()):
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = kind([weight], lr=1e-3, weight_decay=0.0)
        for _ in range(100):
            weight.grad = torch.ones(1)
            optimizer.step()
        moved[kind.__name__] = 1 - weight.item()
    # constant gradients: Adam moves by its rate. Next below 1 is 1 - 2**-8 in bfloat16: half of it is .002.
    assert moved["AdamW"] == pytest.approx(0.1, rel=1e-3)
    assert moved["Bfloat16AdamW"] == 0


@pytest.mark.slow
def test_adapters_trained_in_bfloat16_hold_its_numbers_and_have_a_key_of_their_own(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    def trained(name, dtype):
        run = tiny_run(tmp_path / name, monkeypatch, adapter_dtype=dtype)
        folders = [train.train_adapter(run, method, "chosen") for method in ("sft", "dpo")]
        assert all(train.is_trained(run, method, "chosen") for method in ("sft", "dpo"))
        return [load_file(folder / "adapter_model.safetensors") for folder in folders]

    exact, rounded = trained("float32", "float32"), trained("bfloat16", "bfloat16")
    for whole, part in zip(exact, rounded, strict=True):
        assert all(torch.equal(w, w.bfloat16().float()) and w.dtype == torch.float32 for w in part.values())
        assert all(bool(w.any()) for w in part.values())
        assert not all(torch.equal(w, w.bfloat16().float()) for w in whole.values())
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "bfloat16"))
    other = tiny_run(tmp_path / "bfloat16", monkeypatch, adapter_dtype="float32")
    assert not train.is_trained(other, "sft", "chosen")


def test_weights_that_are_split_over_processes_are_not_rounded():
    with pytest.raises(ConfigError, match="adapter_dtype=bfloat16 needs train_launcher=ddp"):
        set_field(
            load_profile("paper"), train_launcher="fsdp", train_processes=2, adapter_dtype="bfloat16",
            sft_batch_size=2, dpo_batch_size=2,
        )  # fmt: skip
