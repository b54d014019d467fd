"""An SFT epoch here beside TRL's defaults: the same rows per step, the same losses.

    python benchmarks/sft_epoch.py [--quick]

TRL's defaults pad the eight rows of a step to the longest and recompute activations (gradient checkpointing);
bfloat16, also a default, is switched off, for equal precision. Ours lays the same eight rows side by side
(``sft_packing``), projects only tokens with a loss to the vocabulary, and recomputes nothing. No row moves to
another step, so the optimiser's path is the same; all losses of the epoch must agree to four digits. A second
line shows what packing alone gives, against this package without it. Dropout is off: its draws would differ.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import gpu_training
import harness
import llama31
from dpo_epoch import datasets, equal_losses, train
from training_rows import Kind, make_kind

from persona_lib.models import packing as packing_module
from persona_lib.models import trainers
from persona_lib.settings import set_field

ROWS = {"paper": 16, "everyday": 64}
BATCH = 8
SETTINGS = {"sft_epochs": 1, "sft_batch_size": BATCH, "completion_only_loss": True, "lora_dropout": 0.0}


def theirs(kind: Kind, data: dict[str, Any]) -> harness.Timed:
    """Train with TRL's trainer and its defaults."""
    case = gpu_training.Case("sft", "TRL defaults", "none", "float32", BATCH)
    changes = {"learning_rate": kind.profile.sft_learning_rate, "num_train_epochs": 1, "bf16": False}
    with tempfile.TemporaryDirectory() as name, trainers.quiet_libraries():
        base, folder = llama31.random_base(kind.config), Path(name)
        return train(
            gpu_training.trl_trainer(case, kind.profile, base, kind.tokenizer, data, folder, **changes)
        )


def ours(kind: Kind, data: dict[str, Any], packing: bool = True) -> harness.Timed:
    """Train as this package does."""
    case = gpu_training.Case("sft", "this package", "none", "float32", BATCH)
    profile = set_field(kind.profile, sft_packing=packing)
    with (
        tempfile.TemporaryDirectory() as name,
        trainers.quiet_libraries(),
        packing_module.small_tiles(packing),
    ):
        base = llama31.random_base(kind.config)
        return train(gpu_training.package_trainer(case, profile, base, kind.tokenizer, data, Path(name)))


def unpacked(kind: Kind, data: dict[str, Any]) -> harness.Timed:
    """Train as this package does, rows padded."""
    return ours(kind, data, packing=False)


def main(quick: bool) -> None:
    """Compare with TRL's defaults, and with this package without packing."""
    for name, n in ROWS.items():
        kind = make_kind(name, quick)
        kind = dataclasses.replace(kind, profile=set_field(kind.profile, **SETTINGS))
        data = datasets(kind, "sft", 16 if quick else n)
        ways = {
            "trl": (theirs, "TRL's defaults: 8 rows per step, padded, recomputation"),
            "unpacked": (unpacked, "this package without packing: 8 rows per step, padded"),
        }
        for way, (baseline, against) in ways.items():
            harness.compare(
                f"sft_epoch-{name}-{way}",
                lambda kind=kind, data=data, baseline=baseline: baseline(kind, data),
                lambda kind=kind, data=data: ours(kind, data),
                equal_losses,
                what=f"SFT epoch, {kind.title}",
                against=against,
                quick=quick,
            )


if __name__ == "__main__":
    harness.run(main)
