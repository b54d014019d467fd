"""Packed rows and shared prompts beside TRL's own path: the same numbers, gradients and weights."""

from __future__ import annotations

import random

import pytest
from test_train import build, gradients
from tiny import tiny_model, tiny_run

from persona_lib.models import packing, train
from persona_lib.models import trainers as trainers_module
from persona_lib.settings import Run, set_field

PAIRS = [
    {"prompt_ids": [1, 20, 21], "chosen_ids": [30, 31], "rejected_ids": [40, 2], "ref_chosen_logps": -1.5},
    {"prompt_ids": [1, 22], "chosen_ids": [2], "rejected_ids": [41, 42, 43, 2], "ref_chosen_logps": -2.5},
]


def random_pairs(n: int, longest: int = 12) -> list[dict[str, list[int]]]:
    """Pairs of random ids and unequal lengths, the first with a response of one token."""
    rng = random.Random(3)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    pairs = [{k: rng.choices(range(3, 60), k=rng.randint(1, longest)) for k in names} for _ in range(n)]
    pairs[0]["rejected_ids"] = [2]
    return pairs


# --- batches ---


def test_a_batch_holds_every_prompt_once_and_windows_in_trls_order():
    batch = packing.dpo_batch(PAIRS, pad=0, max_length=9)
    packed = batch["packed"]
    assert packed["ids"].tolist() == [[1, 20, 21, 30, 31, 40, 2, 1, 22, 2, 41, 42, 43, 2]]
    assert packed["positions"].tolist() == [[0, 1, 2, 3, 4, 3, 4, 0, 1, 2, 2, 3, 4, 5]]
    assert packed["sizes"] == [(3, 2, 2), (2, 1, 4)]
    assert batch["input_ids"].tolist() == [
        [21, 30, 31, 0, 0],
        [22, 2, 0, 0, 0],
        [21, 40, 2, 0, 0],
        [22, 41, 42, 43, 2],
    ]
    assert batch["completion_mask"].sum(dim=1).tolist() == [2, 1, 2, 4]
    assert batch["attention_mask"].sum() == 14  # what TRL counts as seen: no padding
    chosen, rejected = [[2, 3, 4, 0, 0], [8, 9, 0, 0, 0]], [[2, 5, 6, 0, 0], [8, 10, 11, 12, 13]]
    assert packed["windows"].tolist() == chosen + rejected
    assert batch["ref_chosen_logps"].tolist() == [-1.5, -2.5] and "ref_rejected_logps" not in batch


def test_an_sft_batch_lays_rows_side_by_side_and_keeps_labels_from_the_first_on():
    """Three rows, of 4, 2 and 2 tokens; the last has a loss on all of it."""
    rows = [([1, 5, 6, 2], [-100, -100, 6, 2]), ([1, 2], [-100, 2]), ([1, 7], [1, 7])]
    examples = [{"input_ids": ids, "labels": labels} for ids, labels in rows]
    batch = packing.sft_batch(examples, pad=0)
    assert batch["packed"]["ids"].tolist() == [[1, 5, 6, 2, 1, 2, 1, 7]]
    assert batch["packed"]["positions"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1]]
    assert batch["packed"]["sizes"] == [(2, 2, 0), (1, 1, 0), (1, 1, 0)]
    assert batch["packed"]["windows"].tolist() == [[1, 2, 3], [4, 5, 0], [6, 7, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 2], [-100, 2, -100], [1, 7, -100]]


def test_a_token_attends_to_its_rows_prompt_and_to_the_past_of_its_own_response_only():
    """A row with two responses, one with one and a row of one token. Values are powers of two, keys are 0: an
    output is the mean of what a token sees, so what it sees can be read from it."""
    import torch

    sizes = [(1, 2, 1), (1, 2, 0), (1, 0, 0)]
    tokens = sum(map(sum, sizes))
    value = (2.0 ** torch.arange(tokens)).view(1, 1, tokens, 1)
    parts = packing.row_parts(sizes, "cpu")
    blank = torch.zeros_like(value)
    output, _ = packing.attend_by_parts(torch.nn.Module(), blank, blank, value, None, parts)
    seen = ["1", "11", "111", "1001", "00001", "000011", "0000111", "00000001"]
    sums = [sum(2**at for at, bit in enumerate(row) if bit == "1") for row in seen]
    assert output.flatten().tolist() == pytest.approx(
        [total / row.count("1") for total, row in zip(sums, seen, strict=True)]
    )


@pytest.mark.parametrize("kv_heads", [2, 1], ids=["as many keys", "grouped keys"])
@pytest.mark.parametrize("max_length", [64, 9])
def test_hidden_states_are_those_of_two_sequences_with_the_prompt_in_both(kv_heads, max_length):
    import torch
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    pairs = [p for p in random_pairs(7) if len(p["prompt_ids"]) < max_length]
    model = tiny_model(kv_heads=kv_heads).eval()
    ours = packing.dpo_batch(pairs, 0, max_length)
    theirs = DataCollatorForPreference(pad_token_id=0, max_length=max_length)(pairs)
    given = {"input_ids": theirs["input_ids"], "attention_mask": theirs["attention_mask"]}
    with torch.no_grad():
        plain = model.model(**given)
        model = packing.accept_packed(model)
        shared = model.model(**{k: ours[k] for k in ("input_ids", "attention_mask", "packed")})
        again = model.model(**given)
    assert again.last_hidden_state.equal(plain.last_hidden_state)  # batches of others pass as before
    for row in range(2 * len(pairs)):
        first = len(pairs[row % len(pairs)]["prompt_ids"]) - 1
        n = int(ours["completion_mask"][row].sum())
        assert n == theirs["completion_mask"][row].sum()
        expected = plain.last_hidden_state[row, first : first + n + 1]
        torch.testing.assert_close(shared.last_hidden_state[row, : n + 1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "setting",
    [
        {"_attn_implementation": "flash_attention_2"},
        {"sliding_window": 32},
        {"layer_types": ["full_attention", "chunked_attention"]},
    ],
    ids=lambda s: [*s][0],
)
def test_attention_that_cannot_be_replaced_is_left_as_it_is(setting):
    model = tiny_model()
    assert packing.takes_parts(model)
    for name, value in setting.items():
        setattr(model.config, name, value)
    assert not packing.takes_parts(model)


# --- the vocabulary head on a CPU ---


def head_results(on: bool) -> tuple[dict, dict, list[int]]:
    """What TRL's head gives for two padded rows, its gradients, and how many positions it took at a time."""
    import torch
    from trl.kernels import chunked_logprob
    from trl.trainer.utils import add_fused_lm_head

    fold, sizes = chunked_logprob._forward_tile, []
    model = tiny_model()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    labels = torch.tensor([[-100, -100, 7, 8, 9], [-100, 5, 6, -100, -100]])
    with pytest.MonkeyPatch.context() as patch, packing.small_tiles(on):
        patch.setattr(
            chunked_logprob,
            "_forward_tile",
            lambda tile, *a, **k: sizes.append(len(tile)) or fold(tile, *a, **k),
        )
        found = model(input_ids=labels.clamp(min=1), labels=labels, fused_lm_head=True)
        found.loss.backward()
    results = {k: v for k, v in found.items() if k != "past_key_values"}
    return results, {name: p.grad for name, p in model.named_parameters()}, sizes


def test_the_head_on_a_cpu_takes_positions_with_a_loss_only_and_gives_what_trls_gives(monkeypatch):
    """Of four positions of each row three and two have a loss; two of them fit into a tile here."""
    import torch

    monkeypatch.setattr(packing, "TILE", 2)
    theirs, their_gradients, all_positions = head_results(on=False)
    ours, our_gradients, tiles = head_results(on=True)
    assert (all_positions, tiles) == ([8], [2, 2, 1])
    assert {"log_probs", "entropy", "mean_logits", "is_top1", "loss"} <= ours.keys()
    for mine, other in ((ours, theirs), (our_gradients, their_gradients)):
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=1e-5, atol=1e-6, msg=name)


# --- training beside the plain path ---


def start_off_zero(trainer) -> None:
    """Move the trained adapter away from where policy and reference agree, the same for every trainer."""
    import torch

    generator = torch.Generator().manual_seed(5)
    for parameter in trainers_module.trainable_parameters(trainer.model).values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)


def batch_gradients(trainer, n: int = 4) -> tuple[float, dict]:
    """Loss and gradients of the first rows, as a step of training computes them."""
    trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(n)])
    found = gradients(trainer, batch)
    return trainer.compute_loss(trainer.model, batch).item(), found


def assert_same_gradients(plain, shared, n: int = 4) -> None:
    """Equal to 1e-6 of all gradients together, and nearly so for each tensor by itself."""
    (loss, theirs), (other, ours) = batch_gradients(plain, n), batch_gradients(shared, n)
    assert other == pytest.approx(loss, rel=1e-6)
    assert ours.keys() == theirs.keys() and ours
    off = {name: float((ours[name] - theirs[name]).norm()) for name in ours}
    sizes = {name: float(theirs[name].norm()) for name in ours}
    total = sum(size**2 for size in sizes.values()) ** 0.5
    assert sum(size**2 for size in off.values()) ** 0.5 <= 1e-6 * total
    assert all(off[name] <= 5e-6 * sizes[name] for name in off) and min(sizes.values()) > 0


def packed_run(run: Run) -> Run:
    """The same run with packed rows."""
    return Run(set_field(run.profile, {"training.packing": True}), run.dataset, run.seed)


def both_ways(run: Run, method: str = "dpo") -> tuple:
    """The trainers of the plain path and of the packed one."""
    return build(run, method), build(packed_run(run), method)


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
    profile = set_field(sft_run.profile, changes)
    run = Run(profile, sft_run.dataset, sft_run.seed)
    plain, shared = both_ways(run)
    for side in ("ref_chosen_logps", "ref_rejected_logps"):
        assert shared.train_dataset[side] == pytest.approx(plain.train_dataset[side], rel=1e-6)
    assert len(shared.train_dataset) == len(plain.train_dataset) > 4
    for trainer in (plain, shared):
        start_off_zero(trainer)
    assert_same_gradients(plain, shared)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"training.completion_only_loss": False}, {"training.max_length": 18}], ids=str
)
def test_sft_gets_the_gradients_of_the_plain_path(sft_run, changes):
    run = Run(set_field(sft_run.profile, changes), sft_run.dataset, sft_run.seed)
    plain, packed = both_ways(run, "sft")
    for trainer in (plain, packed):
        start_off_zero(trainer)
    assert_same_gradients(plain, packed, 8)
    with trainers_module.quiet_libraries():
        theirs, ours = (trainer.evaluate() for trainer in (plain, packed))
        assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-6)
        losses = [trainer.train().training_loss for trainer in (plain, packed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
