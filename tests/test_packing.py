"""Packed rows and shared prompts beside TRL's own path: the same numbers, gradients and weights."""

import random

import pytest
import torch
from test_train import build, gradients
from tiny import tiny_model, tiny_run

from persona_lib.models import kernels, packing, train, trainers
from persona_lib.settings import Run, set_field


@pytest.mark.parametrize("kv_heads", [2, 1], ids=["as many keys", "grouped keys"])
@pytest.mark.parametrize("max_length", [64, 9])
def test_hidden_states_are_those_of_two_sequences_with_the_prompt_in_both(kv_heads, max_length):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    rng, names = random.Random(3), ("prompt_ids", "chosen_ids", "rejected_ids")
    pairs = [{k: rng.choices(range(3, 60), k=rng.randint(1, 12)) for k in names} for _ in range(7)]
    pairs = [pair for pair in pairs if len(pair["prompt_ids"]) < max_length]
    model = tiny_model(kv_heads=kv_heads).eval()
    ours = packing.dpo_batch(pairs, 0, max_length)
    theirs = DataCollatorForPreference(pad_token_id=0, max_length=max_length)(pairs)
    given = {"input_ids": theirs["input_ids"], "attention_mask": theirs["attention_mask"]}
    with torch.no_grad():
        plain = model.model(**given).last_hidden_state
        model = packing.accept_packed(model)
        shared = model.model(ours["input_ids"], packed=ours["packed"]).last_hidden_state
        assert model.model(**given).last_hidden_state.equal(plain)  # batches of others pass as before
    for row, n in enumerate(ours["completion_mask"].sum(dim=1).tolist()):
        first = len(pairs[row % len(pairs)]["prompt_ids"]) - 1
        assert n == theirs["completion_mask"][row].sum()
        wanted = plain[row, first : first + n + 1]
        torch.testing.assert_close(shared[row, : n + 1], wanted, rtol=1e-5, atol=1e-5)


def test_attention_that_cannot_be_replaced_is_left_as_it_is():
    assert packing.takes_parts(tiny_model())
    layers = ["full_attention", "chunked_attention"]
    for setting in (("_attn_implementation", "eager"), ("sliding_window", 32), ("layer_types", layers)):
        setattr((model := tiny_model()).config, *setting)
        assert not packing.takes_parts(model), setting


def test_the_frozen_head_has_the_values_and_the_gradient_of_log_softmax(monkeypatch):
    monkeypatch.setattr(kernels, "TILE", 3)
    torch.manual_seed(0)
    weight, targets = torch.randn(11, 5), torch.tensor([0, 10, 3, 3, 7, 1, 2])
    ours = torch.randn(7, 5).requires_grad_()
    logits = (theirs := ours.detach().clone().requires_grad_()) @ weight.T
    p, wanted = logits.softmax(-1), logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    found, entropy, mean, top = kernels.frozen_head().apply(ours, weight, targets, ("entropy", "mean_logits"))
    for values in ((found, wanted), (entropy, -(p * p.log()).sum(-1)), (mean, logits.mean(-1))):
        torch.testing.assert_close(*values)
    assert top.equal(logits.argmax(-1) == targets) and not entropy.requires_grad
    for values in (found, wanted):
        (values * torch.arange(7.0)).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_in_bfloat16_a_confident_token_keeps_its_gradient():
    weight, hidden = torch.eye(4), torch.tensor([[8.0, 0, 0, 0]])  # p = .999: rounded to bfloat16 it is 1
    grads = []
    for dtype in (torch.bfloat16, torch.float32):
        given = hidden.to(dtype).requires_grad_()
        kernels.frozen_head().apply(given, weight.to(dtype), torch.tensor([0]), ())[0].sum().backward()
        grads.append(given.grad.float())
    torch.testing.assert_close(*grads, rtol=0.01, atol=0)


def both_ways(run: Run, method: str, changes: dict) -> list:
    """The trainers of the plain path and of the packed one, away from where policy and reference agree."""
    built = []
    for packed in (False, True):
        profile = set_field(run.profile, changes | {"training.packing": packed})
        built.append(build(Run(profile, run.dataset, run.seed), method))
        generator = torch.Generator().manual_seed(5)
        for parameter in trainers.trainable_parameters(built[-1].model).values():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return built


def assert_same_gradients(plain, packed, n: int) -> dict:
    """Loss and gradients of n rows: equal to 1e-6 together (AVX2 alone rounds to 1.04e-6), nearly so each."""
    limit = 1e-6 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1.1e-6
    found = []
    for on, trainer in ((False, plain), (True, packed)):
        trainer.model.train()
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(n)])
        with kernels.lean_head(on):
            found.append((gradients(trainer, batch), trainer.compute_loss(trainer.model, batch).item()))
    (theirs, loss), (ours, other) = found
    assert other == pytest.approx(loss, rel=1e-6)
    assert ours.keys() == theirs.keys() and ours
    off = {name: float((ours[name] - theirs[name]).norm()) for name in ours}
    sizes = {name: float(theirs[name].norm()) for name in ours}
    assert sum(x**2 for x in off.values()) ** 0.5 <= limit * sum(x**2 for x in sizes.values()) ** 0.5
    assert all(off[name] <= 5e-6 * sizes[name] for name in off) and min(sizes.values()) > 0
    return ours


@pytest.fixture(scope="module", params=["none", "nf4"])
def sft_run(request, tmp_path_factory):
    """A run whose arm "chosen" has its SFT adapter: DPO stacks a new one on it, in floats and in NF4."""
    with pytest.MonkeyPatch.context() as patch:
        run = tiny_run(tmp_path_factory.mktemp("results"), patch, **{"base.quantization": request.param})
        train.train_adapter(run, "sft", "chosen")
        yield run


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"dpo.sft_weight": 0.0}, {"training.max_length": 18}], ids=str)
def test_stacked_adapter_gets_the_gradients_of_the_plain_path(sft_run, changes):
    plain, packed = both_ways(sft_run, "dpo", changes)
    for side in ("ref_chosen_logps", "ref_rejected_logps"):
        assert packed.train_dataset[side] == pytest.approx(plain.train_dataset[side], rel=1e-6)
    assert len(packed.train_dataset) == len(plain.train_dataset) > 4
    assert_same_gradients(plain, packed, 4)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"training.completion_only_loss": False}], ids=str)
def test_sft_gets_the_gradients_of_the_plain_path_also_after_an_evaluation(sft_run, changes, monkeypatch):
    """As on an AVX512-BF16 processor, where bitsandbytes would repack NF4 weights: they then give none."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    built = both_ways(sft_run, "sft", changes | {"training.max_length": 18})
    before = assert_same_gradients(*built, 8)
    theirs, ours = (trainer.evaluate()["eval_loss"] for trainer in built)
    assert ours == pytest.approx(theirs, rel=1e-6)
    after = assert_same_gradients(*built, 8)
    assert all(after[name].allclose(before[name], rtol=1e-4, atol=1e-7) for name in before)
    losses = [built[0].train().training_loss]
    with kernels.lean_head():
        losses.append(built[1].train().training_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("active", [["default"], ["ref"], ["default", "ref"]], ids=str)
def test_adapters_side_by_side_compute_what_peft_adds_up(dtype, active):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["linear"], init_lora_weights=False)
    layers = torch.nn.ModuleDict({"linear": torch.nn.Linear(24, 12, bias=False, dtype=dtype)})
    model = get_peft_model(layers, config, autocast_adapter_dtype=True)
    model.add_adapter("ref", config)
    model.base_model.set_adapter(active)
    model.base_model.set_requires_grad("ref", False)
    layer = model.base_model.model["linear"]
    x, found = torch.randn(2, 5, 24, dtype=dtype, requires_grad=True), []
    for lean in (False, True):
        if lean:
            kernels.lean_lora(model)
            assert "forward" in vars(layer)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = layer(x)
        wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
        grads = torch.autograd.grad(y.float().square().sum(), wanted)
        assert len(grads) == (3 if "default" in active else 1)
        assert [g.dtype for g in grads] == [dtype, *[torch.float32] * (len(grads) - 1)] and y.dtype == dtype
        found.append([y, *grads])
    for theirs, ours in zip(*found, strict=True):
        off = float((ours - theirs).norm() / theirs.norm())
        assert off < (0.02 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("others", [["up_proj"], []], ids=["all", "no gradient but the gate's"])
def test_what_a_llamas_gate_makes_is_computed_again_for_the_gradient_and_not_kept(others):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["gate_proj", "down_proj", *others], init_lora_weights=False)
    model = get_peft_model(tiny_model(mlp=96), config)
    mlp, x = model.base_model.model.model.layers[0].mlp, torch.randn(1, 5, 64, requires_grad=bool(others))
    wanted, found, kept = [p for p in (x, *mlp.parameters()) if p.requires_grad], [], []
    for lean in (False, True):
        if lean:
            kernels.lean_lora(model)
        wide = set()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, wide=wide: wide.add(t.data_ptr()) or t if t.numel() == 5 * 96 else t, lambda t: t
        ):
            y = mlp(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
        kept.append(len(wide))
    assert kept == ([4, 2] if others else [3, 2]), "gate and up, not silu(gate) nor its product with up"
    assert len(found[0]) == (2 + 6 if others else 1 + 4)
    for theirs, ours in zip(*found, strict=True):
        assert ours.allclose(theirs, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        alone = mlp(x)
    assert model.unload().model.layers[0].mlp(x).allclose(alone, rtol=1e-6), "without the adapter, too"
