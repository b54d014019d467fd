"""Finished adapters added to float32 weights (``merge_adapters``) against adapters computed beside them.

    python benchmarks/merge_adapters.py [--quick]

A random model with the default profile's widths (SmolLM2-135M) and four layers, with an SFT and a DPO
adapter of that profile, answers prompts and scores pairs of responses, and DPO trains an epoch on top of the
SFT adapter, all of the lengths of ``everyday``, both ways in interleaved pairs. Answers have to be the same
texts, log-probabilities equal to five digits, and the losses of all steps to four.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dpo_epoch
import gpu_training
import grid
import harness
import llama31
from training_rows import SEED, Kind, make_kind, make_rows

from persona_lib.config import set_field
from persona_lib.evaluation.pair_scores import pair_log_probs
from persona_lib.models import llm
from persona_lib.models.generate import TransformersGenerator

STACK = ("sft", "dpo")
AGAINST = "two adapters of rank {} computed beside every layer"
SIZES = {False: (64, 48, 64), True: (8, 6, 16)}  # by quick: rows, new tokens, rows of the epoch
BATCH = 8  # pairs


def make_model(kind: Kind) -> Any:
    """Return a random model of the kind's size with two adapters."""
    model = llama31.random_base(kind.config, seed=SEED)
    with tempfile.TemporaryDirectory() as name:
        folders = [gpu_training.save_adapter(kind.profile, model, Path(name) / part) for part in STACK]
        return llm.attach_adapters(model, folders)


def answers(kind: Kind, model: Any, prompts: list[str], tokens: int, merge: bool) -> list[str]:
    """Return the answers to the prompts, all of the same length."""
    generator = TransformersGenerator(model, kind.tokenizer, "base", len(prompts), STACK, merge)
    done = dict(generator.generate(prompts, tokens, (), min_new_tokens=tokens))
    return [done[number].text for number in range(len(prompts))]


def scores(kind: Kind, model: Any, rows: list[dict[str, str]], merge: bool) -> Any:
    """Return the log-probabilities of both responses of every row."""
    pairs = [(row["chosen"], row["rejected"]) for row in rows]
    with llm.using_adapters(model, STACK, merge):
        return pair_log_probs(model, kind.tokenizer, [row["prompt"] for row in rows], pairs, BATCH)


def epoch(kind: Kind, data: dict[str, Any], merge: bool) -> harness.Timed:
    """Train an epoch of DPO."""
    profile = set_field(kind.profile, merge_adapters=merge)
    return dpo_epoch.ours(dataclasses.replace(kind, profile=profile), data, BATCH)


def compare(name: str, what: str, way: Callable[[bool], Any], equal: Any, kind: Kind, quick: bool) -> None:
    """Compare ``way(False)``, adapters beside the weights, with ``way(True)``."""
    harness.compare(
        f"merge_adapters-{name}",
        lambda: way(False),
        lambda: way(True),
        equal,
        what=f"{what}, adapters added to the weights; {kind.title}",
        against=AGAINST.format(kind.profile.lora_r),
        quick=quick,
    )


def main(quick: bool) -> None:
    """Compare generation, scoring and an epoch of DPO."""
    kind = make_kind("everyday", quick)
    n, tokens, trained = SIZES[quick]
    rows, model = make_rows(kind, "dpo", n), make_model(kind)
    prompts, data = [row["prompt"] for row in rows], dpo_epoch.datasets(kind, "dpo", trained)
    ways = {
        "generation": lambda merge: answers(kind, model, prompts, tokens, merge),
        "scoring": lambda merge: scores(kind, model, rows, merge),
        "dpo": lambda merge: epoch(kind, data, merge),
    }
    what = f"{n} answers of {tokens} tokens", f"{n} pairs scored", "DPO epoch"
    equal = grid.equal_texts, grid.equal_numbers, dpo_epoch.equal_losses
    for (name, way), title, check in zip(ways.items(), what, equal, strict=True):
        compare(name, title, way, check, kind, quick)


if __name__ == "__main__":
    harness.run(main)
