"""SFT and DPO epochs here beside the authors' settings and TRL's defaults: the same losses, step by step.

The model is the default's: SmolLM2-135M-Instruct with its real weights, LoRA on all linear layers. Ours, with
as many rows per step: rows packed without padding, only tokens with a loss projected to the vocabulary,
prompts shared, nothing recomputed, and DPO's reference log-probabilities computed once (their time, divided
by the paper's ten epochs, is added). Batches are drawn at random and not by length, without dropout, so the
optimiser's path is the same: all losses of the epoch must agree to four digits. The last cases set our
bfloat16 beside our float32; their losses must agree within 2 %.

Beside the time stands how many times as much arithmetic the other way does: tokens through the layers, a
forward pass counted as 1, a backward pass through frozen weights as 1, a recomputation as 1. "Share of the
matrix rate" is our arithmetic per second (products with the layers' weights for every token, with the head's
for tokens with a loss), divided by the rate of a product of 512 rows with a layer's weights.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import harness
import llama31
import training
from training import AUTHORS, OURS, SEED, TRL, Case

from persona_lib.models import kernels, load, packing, trainers
from persona_lib.settings import Profile

MODEL = "pypi:smollm2-135m-instruct"
TOLERANCE = 1e-4
EPOCHS = 10  # of the paper profile, over which the reference's cost is spread
LENGTHS = {"paper": training.PAPER, "256 tokens": training.Lengths((36, 92), (0, 0), row=256)}
TITLES = {"paper": "BeaverTails' lengths (drawn)", "everyday": "pairs of everyday"}
FLOAT32 = "float32"
CASES = (  # name of the rows, method, against
    ("everyday", "sft", TRL),
    ("everyday", "dpo", TRL),
    ("paper", "dpo", AUTHORS),
    ("everyday", "sft", FLOAT32),
    ("everyday", "dpo", FLOAT32),
    ("paper", "sft", TRL),
)
ROWS = 16
AGAINST = {
    AUTHORS: "authors' settings: 1 row per step, reference online, prompt twice",
    TRL: "TRL's defaults: 8 rows per step, padded, reference online, recomputation",
    FLOAT32: "this package in float32 (bfloat16 is an option where the processor has it)",
}


class Epoch(NamedTuple):
    """What an epoch left: the loss of every step, the token passes, and their share of the matrix rate."""

    losses: list[float]
    passes: float
    share: float = 0.0


class Setup(NamedTuple):
    """A function from a data type to a model, its tokenizer and rows to train on."""

    base: Callable[[str], Any]
    tokenizer: Any
    data: dict[str, Any]


def make_setup(method: str, name: str, quick: bool, rows: int = ROWS) -> Setup:
    """Return rows and the model that is trained on them; a quick one is tiny and has random weights."""
    if quick:
        tokenizer = llama31.example_tokenizer()
        config = llama31.llama_config(**llama31.SMALL, **llama31.ids_of(tokenizer))
        base = partial(llama31.random_base, config, "none")
    else:
        tokenizer, base = load.load_tokenizer(MODEL), partial(load.load_base, MODEL, "", "none")
    return Setup(base, tokenizer, training.datasets_of(tokenizer, method, rows, LENGTHS.get(name)))


def matrix_rate(config: Any, dtype: Any, device: str = "cpu", rows: int = 512) -> float:
    """Return operations per second of a product of rows with a layer's largest weights: the best of 200.

    Half of the products are torch's, half the package's own, so that the faster of the two is the measure.
    """
    import torch

    weight = torch.randn(config.intermediate_size, config.hidden_size, dtype=dtype, device=device)
    inputs, times = torch.randn(rows, config.hidden_size, dtype=dtype, device=device), []
    for multiply in (torch.nn.functional.linear, kernels.product) * 100:
        started = time.perf_counter()
        multiply(inputs, weight)[0, 0].item()  # read back, so that a GPU has finished
        times.append(time.perf_counter() - started)
    return 2 * rows * weight.numel() / min(times)


def without_kernels(model: Any) -> Any:
    """Let a model compute as transformers does, not as ``models.kernels``."""
    import torch

    for module in model.modules():
        vars(module).pop("forward", None)
        module.__class__ = torch.nn.Linear if type(module) is kernels.lean_class() else type(module)
    return model


@contextmanager
def counting(model: Any) -> Iterator[dict[bool, int]]:
    """Count the tokens that a model reads meanwhile, padding included: with gradients and without."""
    import torch

    tokens = {True: 0, False: 0}

    def count(module: Any, inputs: tuple[Any, ...]) -> None:
        tokens[torch.is_grad_enabled()] += inputs[0].numel()

    hook = model.get_input_embeddings().register_forward_pre_hook(count)
    try:
        yield tokens
    finally:
        hook.remove()


def same_start(trainer: Any) -> None:
    """Give the trained adapter the same weights in every way: products of zero, as a fresh one has."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in sorted(trainers.trainable_parameters(trainer.model).items()):
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(drawn * 0.02 if "lora_A" in name else drawn * 0)


def train(trainer: Any) -> harness.Timed:
    """Train with the loss of every step logged; the result is an Epoch."""
    from transformers.trainer_utils import IntervalStrategy

    trainer.args.logging_strategy, trainer.args.logging_steps = IntervalStrategy.STEPS, 1
    same_start(trainer)
    with counting(trainer.model) as tokens:
        started = time.perf_counter()
        training.run_quietly(trainer)
        seconds = time.perf_counter() - started
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    passes = tokens[True] * (3 if trainer.args.gradient_checkpointing else 2) + tokens[False]
    return harness.Timed(Epoch(losses, passes), seconds)


def profile_of(case: Case, packed: bool) -> Profile:
    """Return one epoch's settings; the learning rates are so large that every step shows."""
    rates = {"sft.learning_rate": 1e-3, "dpo.learning_rate": 1e-4, "training.warmup": 0.0}
    epoch = {"sft.epochs": 1, "dpo.epochs": 1, "dpo.max_steps": 0, "lora.dropout": 0.0}
    rows = {"training.packing": packed, "training.completion_only_loss": case.way != AUTHORS}
    return training.package_profile(case, "everyday", **rates, **epoch, **rows)


def theirs(setup: Setup, method: str, way: str) -> harness.Timed:
    """Train with TRL's trainer, as the authors do or by its defaults."""
    from peft import PeftModel

    case = Case(method, way, "none", "float32", 1 if way == AUTHORS else 8)
    profile = profile_of(case, packed=False)
    changes: dict[str, Any] = {"bf16": False, "num_train_epochs": 1, "optim": "adamw_torch"}
    changes |= {"learning_rate": getattr(profile, method).learning_rate}
    with tempfile.TemporaryDirectory() as name:
        base = without_kernels(setup.base("float32"))
        if method == "dpo":
            changes |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, profile.dpo.sft_weight]}
            changes |= {"beta": profile.dpo.beta}
            sft = training.save_adapter(profile, base, Path(name) / "sft")
            base = PeftModel.from_pretrained(base, str(sft)).merge_and_unload()
        arguments = (case, profile, base, setup.tokenizer, setup.data, Path(name))
        return train(training.trl_trainer(*arguments, **changes))


def ours(setup: Setup, method: str, way: str, packed: bool = True, dtype: str = "float32") -> harness.Timed:
    """Train as this package does, with as many rows per step as the other way."""
    case = Case(method, OURS, "none", dtype, 1 if way == AUTHORS else 8)
    profile = profile_of(replace(case, way=way), packed)
    with tempfile.TemporaryDirectory() as name, kernels.lean_head(packed):
        base = setup.base(dtype)
        rate = matrix_rate(base.config, base.dtype)
        layers = sum(p.numel() for p in base.model.layers.parameters())
        head = base.lm_head.weight.numel()
        trainer = training.package_trainer(case, profile, base, setup.tokenizer, setup.data, Path(name))
        seconds, passes = reference_cost(trainer) if method == "dpo" else (0.0, 0.0)
        done, scored = train(trainer), 2 + (method == "dpo") / EPOCHS
    seconds, passes = done.seconds + seconds / EPOCHS, done.result.passes + passes / EPOCHS
    work = 2 * (layers * passes + head * scored * tokens_with_loss(trainer.train_dataset))
    return harness.Timed(Epoch(done.result.losses, passes, work / seconds / rate), seconds)


def tokens_with_loss(rows: Any) -> int:
    """Return how many tokens of rows, in TRL's columns, are projected to the vocabulary in a pass."""
    if "labels" in rows.column_names:
        return sum(y != packing.IGNORED for labels in rows["labels"] for y in labels)
    return sum(len(ids) for side in ("chosen_ids", "rejected_ids") for ids in rows[side])


def reference_cost(trainer: Any) -> tuple[float, float]:
    """Return seconds and token passes of the reference log-probabilities, which are computed once."""
    rows, size = trainer.train_dataset, trainer.args.precompute_ref_batch_size
    with counting(trainer.model) as tokens:
        started = time.perf_counter()
        for first in range(0, len(rows), size):
            batch = trainer.data_collator([rows[i] for i in range(first, min(first + size, len(rows)))])
            trainer.compute_ref_log_probs(trainer.model, batch)
        seconds = time.perf_counter() - started
    return seconds, sum(tokens.values())


def largest_difference(theirs: Epoch, ours: Epoch, tolerance: float = TOLERANCE) -> float:
    """Return the largest relative difference of two losses of a step; raises NotEqual above the tolerance."""
    a, b = theirs.losses, ours.losses
    if len(a) != len(b) or len(a) < 2 or len(set(a)) < 2:
        raise harness.NotEqual(f"{len(a)} and {len(b)} losses, or losses that do not move")
    off = max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))
    if off > tolerance:
        raise harness.NotEqual(f"losses differ by {off:.2g}: {a[-1]} and {b[-1]}")
    return off


def equal_losses(theirs: Epoch, ours: Epoch, tolerance: float = TOLERANCE) -> str:
    """Say how far the losses agree, the ratio of arithmetic, the share of the rate; or raise NotEqual."""
    off, a, b = largest_difference(theirs, ours, tolerance), theirs.losses, ours.losses
    said = f"losses of all {len(a)} steps within {off:.0e}; last {a[-1]:.4f} and {b[-1]:.4f}"
    return (
        f"{said}; {theirs.passes / ours.passes:.2f} times the arithmetic; {ours.share:.0%} of the matrix rate"
    )


def main(quick: bool) -> None:
    """Compare both methods with all ways."""
    import torch

    kernels.keep_few_kernels("bfloat16")  # one process measures both types
    for name, method, way in CASES:
        if way == FLOAT32 and not (quick or torch.backends.cpu.get_cpu_capability() == "AVX512"):
            print("bfloat16: not run (its products need a processor's AVX512 instructions)")
            continue
        setup = make_setup(method, name, quick, ROWS // 2 if way == AUTHORS else ROWS)
        other, own = partial(theirs, setup, method, way), partial(ours, setup, method, way)
        if way == FLOAT32:
            other, own = own, partial(own, dtype="bfloat16")
        harness.compare(
            f"{method}_epoch-{name}-{way.split()[0].lower()}",
            other,
            own,
            partial(equal_losses, tolerance=0.02 if way == FLOAT32 else TOLERANCE),
            what=f"{method.upper()} epoch, {TITLES[name]}" + ", bfloat16" * (way == FLOAT32),
            against=AGAINST[way],
            quick=quick,
        )
