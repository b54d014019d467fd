"""SFT and DPO epochs here beside the authors' settings and TRL's defaults: the same losses, step by step.

Ours, with as many rows per step: rows packed without padding, only tokens with a loss projected to the
vocabulary, DPO's reference log-probabilities computed once (their time, divided by the profile's epochs,
is added) and prompts shared, nothing recomputed. All in float32 and without dropout, batches drawn at
random and not by length, so the optimiser's path is the same; all losses of the epoch must agree to four
digits. A last line shows what packing alone gives. The model has Llama-3.1's architecture and proportions
at a quarter of the 8B model's width, two layers and 27 million parameters in them: as there, products
with the frozen weights take most of the time.

Beside the time stands how many times as much arithmetic the other way does: tokens through the layers, a
forward pass counted as 1, a backward pass through frozen weights as 1, a recomputation as 1. At equal
precision the time cannot fall much further than that.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import harness
import llama31
import training
from training import AUTHORS, LONG, OURS, PAPER, SEED, TRL, Case

from persona_lib.models import packing, trainers
from persona_lib.settings import Profile

MIDDLE = llama31.sizes(1024, 3584, 2, 8, 2)
TOLERANCE = 1e-4
EPOCHS = 10  # of the paper profile, over which the reference's cost is spread
TITLES = {"paper": "BeaverTails' lengths (drawn)", "long": "long prompts (250 to 350 tokens)"}
UNPACKED = "unpacked"
CASES = (  # name of the rows, how many, method, against
    ("paper", 16, "sft", TRL),
    ("paper", 16, "sft", UNPACKED),
    ("paper", 16, "dpo", AUTHORS),
    ("paper", 16, "dpo", TRL),
    ("long", 8, "dpo", AUTHORS),
)
AGAINST = {
    AUTHORS: "authors' settings: 1 row per step, reference online, prompt twice",
    TRL: "TRL's defaults: 8 rows per step, padded, reference online, recomputation",
    UNPACKED: "this package without packing: 8 rows per step, padded",
}


class Epoch(NamedTuple):
    """What an epoch left: the loss of every step, and the token passes that it took."""

    losses: list[float]
    passes: float


class Setup(NamedTuple):
    """A model's sizes, a tokenizer and rows to train on."""

    config: Any
    tokenizer: Any
    data: dict[str, Any]


def make_setup(method: str, name: str, n: int, quick: bool) -> Setup:
    """Return rows and the model that is trained on them; a quick one is tiny."""
    tokenizer = llama31.example_tokenizer()
    config = llama31.llama_config(**(llama31.SMALL if quick else MIDDLE), **llama31.ids_of(tokenizer))
    lengths = {"paper": PAPER, "long": LONG}[name]
    return Setup(config, tokenizer, training.datasets_of(tokenizer, method, n, lengths))


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
    rates = {"sft.learning_rate": 1e-2, "dpo.learning_rate": 1e-3, "training.warmup": 0.0}
    epoch = {"sft.epochs": 1, "dpo.epochs": 1, "dpo.max_steps": 0, "lora.dropout": 0.0}
    rows = {"training.packing": packed, "training.completion_only_loss": case.way != AUTHORS}
    return training.package_profile(case, **rates, **epoch, **rows)


def theirs(setup: Setup, method: str, way: str) -> harness.Timed:
    """Train with TRL's trainer, as the authors do or by its defaults."""
    from peft import PeftModel

    case = Case(method, way, "none", "float32", 1 if way == AUTHORS else 8)
    profile = profile_of(case, packed=False)
    changes: dict[str, Any] = {"bf16": False, "num_train_epochs": 1, "optim": "adamw_torch"}
    changes |= {"learning_rate": getattr(profile, method).learning_rate}
    with tempfile.TemporaryDirectory() as name, trainers.quiet_libraries():
        base = llama31.random_base(setup.config)
        if method == "dpo":
            changes |= trainers.dpo_loss_settings(profile) | {"beta": profile.dpo.beta}
            sft = training.save_adapter(profile, base, Path(name) / "sft")
            base = PeftModel.from_pretrained(base, str(sft)).merge_and_unload()
        arguments = (case, profile, base, setup.tokenizer, setup.data, Path(name))
        return train(training.trl_trainer(*arguments, **changes))


def ours(setup: Setup, method: str, way: str, packed: bool = True) -> harness.Timed:
    """Train as this package does, with as many rows per step as the other way."""
    case = Case(method, way, "none", "float32", 1 if way == AUTHORS else 8)
    with tempfile.TemporaryDirectory() as name, trainers.quiet_libraries(), packing.small_tiles(packed):
        base = llama31.random_base(setup.config)
        own = Case(method, OURS, "none", "float32", case.batch)
        arguments = (base, setup.tokenizer, setup.data, Path(name))
        trainer = training.package_trainer(own, profile_of(case, packed), *arguments)
        seconds, passes = reference_cost(trainer) if method == "dpo" else (0.0, 0.0)
        done = train(trainer)
    epoch = Epoch(done.result.losses, done.result.passes + passes / EPOCHS)
    return harness.Timed(epoch, done.seconds + seconds / EPOCHS)


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


def largest_difference(theirs: Epoch, ours: Epoch) -> float:
    """Return the largest relative difference of two losses of a step; raises NotEqual above TOLERANCE."""
    a, b = theirs.losses, ours.losses
    if len(a) != len(b) or len(a) < 2 or len(set(a)) < 2:
        raise harness.NotEqual(f"{len(a)} and {len(b)} losses, or losses that do not move")
    off = max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))
    if off > TOLERANCE:
        raise harness.NotEqual(f"losses differ by {off:.2g}: {a[-1]} and {b[-1]}")
    return off


def equal_losses(theirs: Epoch, ours: Epoch) -> str:
    """Say that all losses agree to four digits, and the ratio of arithmetic; or raise NotEqual."""
    off, a, b = largest_difference(theirs, ours), theirs.losses, ours.losses
    said = f"losses of all {len(a)} steps within {off:.0e}; last {a[-1]:.4f} and {b[-1]:.4f}"
    return f"{said}; {theirs.passes / ours.passes:.2f} times the arithmetic"


def main(quick: bool) -> None:
    """Compare both methods with all ways."""
    for name, n, method, way in CASES:
        setup = make_setup(method, name, 16 if quick else n, quick)

        def baseline(setup: Setup = setup, method: str = method, way: str = way) -> harness.Timed:
            return ours(setup, method, way, packed=False) if way == UNPACKED else theirs(setup, method, way)

        harness.compare(
            f"{method}_epoch-{name}-{way.split()[0].lower()}",
            baseline,
            lambda setup=setup, method=method, way=way: ours(setup, method, way),
            equal_losses,
            what=f"{method.upper()} epoch, {TITLES[name]}",
            against=AGAINST[way],
            quick=quick,
        )
