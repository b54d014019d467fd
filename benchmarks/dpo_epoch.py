"""A DPO epoch here beside the authors' settings and TRL's defaults: the same losses, step by step.

    python benchmarks/dpo_epoch.py [--quick]

The authors merge the SFT adapter into the base and train a new one with one pair per step, the reference
computed online and the prompt twice, in float32. TRL's defaults take eight pairs per step and recompute
activations (gradient checkpointing); bfloat16, also a default, is switched off, for equal precision.
Ours, with as many pairs per step: reference log-probabilities computed once (their time, divided by the
profile's epochs, is added), prompts shared, no recomputation. Batches are drawn at random and not by length,
so the optimiser's path is the same; all losses of the epoch must agree to four digits. Two more lines show
what the vocabulary head gives by itself (``persona_lib.models.packing``), against ours with TRL's tiles.

Beside the time stands how many times as much arithmetic the other way does: tokens through the layers, a
forward pass counted as 1, a backward pass through frozen weights as 1, a recomputation as 1. What attention
and the head save besides is not in it. At equal precision the time cannot fall much further than that.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_training
import harness
import llama31
from training_rows import SEED, Kind, make_kind, make_rows

from persona_lib.models import packing, trainers
from persona_lib.settings import set_field

ROWS = {"paper": 16, "long": 8, "everyday": 32}
BATCHES = {"authors": 1, "TRL defaults": 8}
CASES = (
    ("paper", "authors"),
    ("paper", "TRL defaults"),
    ("long", "authors"),
    ("everyday", "authors"),
    ("everyday", "TRL defaults"),
)
HEADS = {"everyday": 32, "paper": 16}  # kinds in which the head's tiles are compared, and their rows
TOLERANCE = 1e-4
AGAINST = {
    "authors": "authors' settings: 1 pair per step, online reference, prompt twice",
    "TRL defaults": "TRL's defaults: 8 pairs per step, online reference, prompt twice, recomputation",
}


@dataclass
class Work:
    """Tokens that went through the layers, padding included: with gradients, and without."""

    trained: int = 0
    read: int = 0

    def passes(self, recomputed: bool = False) -> float:
        """Return token passes: forward, backward, and the forward pass again if it is recomputed."""
        return self.trained * (3 if recomputed else 2) + self.read


@dataclass(frozen=True)
class Epoch:
    """What an epoch left: the loss of every step, and the token passes that it took."""

    losses: list[float]
    passes: float


@contextmanager
def counting(model: Any) -> Iterator[Work]:
    """Count the tokens that a model reads meanwhile."""
    import torch

    work = Work()

    def count(module: Any, inputs: tuple[Any, ...]) -> None:
        name = "trained" if torch.is_grad_enabled() else "read"
        setattr(work, name, getattr(work, name) + inputs[0].numel())

    hook = model.get_input_embeddings().register_forward_pre_hook(count)
    try:
        yield work
    finally:
        hook.remove()


def same_start(trainer: Any) -> None:
    """Give the trained adapter the same weights in every way: products of zero, as a fresh one has."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in sorted(trainers.trainable_parameters(trainer.model).items()):
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(drawn * 0.02 if "lora_A" in name else drawn * 0)


def log_every_step(trainer: Any) -> None:
    """Have the loss of every step in ``trainer.state.log_history``."""
    from transformers.trainer_utils import IntervalStrategy

    trainer.args.logging_strategy, trainer.args.logging_steps = IntervalStrategy.STEPS, 1


def train(trainer: Any) -> harness.Timed:
    """Train; the result is an Epoch."""
    log_every_step(trainer)
    same_start(trainer)
    with counting(trainer.model) as work:
        started = time.perf_counter()
        gpu_training.run_quietly(trainer)
        seconds = time.perf_counter() - started
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return harness.Timed(Epoch(losses, work.passes(trainer.args.gradient_checkpointing)), seconds)


def merged_base(kind: Kind, folder: Path) -> Any:
    """Return the base with the SFT adapter merged into it, in float32."""
    from peft import PeftModel

    base = llama31.random_base(kind.config)
    sft = gpu_training.save_adapter(kind.profile, base, folder / "sft")
    return PeftModel.from_pretrained(base, str(sft)).merge_and_unload()


def theirs(kind: Kind, way: str, data: dict[str, Any], batch: int) -> harness.Timed:
    """Train with TRL's trainer; ``way`` is "authors" or "TRL defaults"."""
    case = gpu_training.Case("dpo", way, "none", "float32", batch)
    profile = set_field(kind.profile, dpo_batch_size=batch)
    changes = trainers.dpo_loss_settings(profile) | {"beta": profile.dpo_beta, "bf16": False}
    changes |= {"learning_rate": profile.dpo_learning_rate, "num_train_epochs": 1}
    with tempfile.TemporaryDirectory() as name, trainers.quiet_libraries():
        base = merged_base(kind, Path(name))
        return train(
            gpu_training.trl_trainer(case, profile, base, kind.tokenizer, data, Path(name), **changes)
        )


def ours(kind: Kind, data: dict[str, Any], batch: int, small_tiles: bool = True) -> harness.Timed:
    """Train as this package does, prompts shared."""
    case = gpu_training.Case("dpo", "this package", "none", "float32", batch)
    profile = set_field(kind.profile, dpo_batch_size=batch, dpo_epochs=1, dpo_prefix_sharing=True)
    with tempfile.TemporaryDirectory() as name, trainers.quiet_libraries(), packing.small_tiles(small_tiles):
        base = llama31.random_base(kind.config)
        trainer = gpu_training.package_trainer(case, profile, base, kind.tokenizer, data, Path(name))
        seconds, passes = reference_cost(trainer)
        done, epochs = train(trainer), kind.profile.dpo_epochs
    epoch = Epoch(done.result.losses, done.result.passes + passes / epochs)
    return harness.Timed(epoch, done.seconds + seconds / epochs)


def reference_cost(trainer: Any) -> tuple[float, float]:
    """Return seconds and token passes of the reference log-probabilities, which are computed once."""
    rows, size = trainer.train_dataset, trainer.args.precompute_ref_batch_size
    with counting(trainer.model) as work:
        started = time.perf_counter()
        for first in range(0, len(rows), size):
            batch = trainer.data_collator([rows[i] for i in range(first, min(first + size, len(rows)))])
            trainer.compute_ref_log_probs(trainer.model, batch)
        seconds = time.perf_counter() - started
    return seconds, work.trained + work.read


def equal_losses(theirs: Epoch, ours: Epoch) -> str:
    """Say that all losses agree to four digits, and the ratio of arithmetic; or raise NotEqual."""
    a, b = theirs.losses, ours.losses
    if len(a) != len(b) or len(a) < 2:
        raise harness.NotEqual(f"{len(a)} and {len(b)} losses")
    off = max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))
    if off > TOLERANCE:
        raise harness.NotEqual(f"losses differ by {off:.2g}: {a[-1]} and {b[-1]}")
    said = f"losses of all {len(a)} steps within {off:.0e}; last {a[-1]:.4f} and {b[-1]:.4f}"
    return f"{said}; {theirs.passes / ours.passes:.2f} times the arithmetic"


def datasets(kind: Kind, method: str, n: int) -> dict[str, Any]:
    """Return n rows to train on and a few for the checks before training."""
    from datasets import Dataset

    rows = make_rows(kind, method, n + 4)
    return {"train": Dataset.from_list(rows[:-4]), "val": Dataset.from_list(rows[-4:])}


def main(quick: bool) -> None:
    """Compare with both ways, for every kind of rows."""
    for name, way in CASES:
        kind, batch = make_kind(name, quick), BATCHES[way]
        data = datasets(kind, "dpo", 16 if quick else ROWS[name])
        harness.compare(
            f"dpo_epoch-{name}-{way.split()[0].lower()}",
            lambda kind=kind, way=way, data=data, batch=batch: theirs(kind, way, data, batch),
            lambda kind=kind, data=data, batch=batch: ours(kind, data, batch),
            equal_losses,
            what=f"DPO epoch, {kind.title}",
            against=AGAINST[way],
            quick=quick,
        )
    for name, rows in HEADS.items():
        kind = make_kind(name, quick)
        data, batch = datasets(kind, "dpo", 16 if quick else rows), BATCHES["TRL defaults"]
        harness.compare(
            f"dpo_epoch-{name}-head",
            lambda kind=kind, data=data, batch=batch: ours(kind, data, batch, small_tiles=False),
            lambda kind=kind, data=data, batch=batch: ours(kind, data, batch),
            equal_losses,
            what=f"DPO epoch, {kind.title}",
            against="this package with TRL's own head: 8 pairs per step, padding projected, too",
            quick=quick,
        )


if __name__ == "__main__":
    harness.run(main)
