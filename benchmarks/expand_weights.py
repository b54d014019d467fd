"""NF4 weights expanded once (``gen_expand_weights``) against four bits unpacked in every pass.

    python benchmarks/expand_weights.py [--quick]

A random model of the default profile's size with an adapter answers and scores as a finished run's would,
both ways in interleaved pairs. Answers and log-probabilities have to be the very same: the expanded weights
are the numbers that four bits stand for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_training
import harness
import llama31
import training_rows

from persona_lib.models import llm
from persona_lib.models.generate import TransformersGenerator

ADAPTER = "sft"
AGAINST = "four bits unpacked in every pass"
SIZES = {False: (128, 48), True: (12, 6)}  # by quick: rows, new tokens


def make_model(kind: training_rows.Kind, expand: bool) -> Any:
    """Return a random NF4 model of the default profile's size with an adapter, expanded or not."""
    model = llama31.random_base(kind.config, "nf4", "float32")
    with tempfile.TemporaryDirectory() as name:
        folder = gpu_training.save_adapter(kind.profile, model, Path(name) / ADAPTER)
        return llm.attach_adapters(model.dequantize() if expand else model, [folder])


def answers(kind: training_rows.Kind, model: Any, rows: list[dict[str, str]], tokens: int) -> list[str]:
    """Return the answers to the rows' prompts, all of the same length."""
    generator = TransformersGenerator(model, kind.tokenizer, "base", len(rows), (ADAPTER,))
    done = dict(generator.generate([row["prompt"] for row in rows], tokens, (), min_new_tokens=tokens))
    return [done[number].text for number in range(len(rows))]


def scores(kind: training_rows.Kind, model: Any, rows: list[dict[str, str]]) -> list[float]:
    """Return the log-probabilities of the rows' completions."""
    prompts, texts = ([row[name] for row in rows] for name in ("prompt", "completion"))
    return llm.sequence_log_probs(model, kind.tokenizer, prompts, texts, 16).tolist()


def same(name: str) -> Callable[[Any, Any], str]:
    """Return the check that two results are the same, and not all alike."""

    def equal(theirs: list[Any], ours: list[Any]) -> str:
        if theirs != ours or len(set(ours)) < 2:
            raise harness.NotEqual(f"{name}: the results differ, or are all the same")
        return f"{len(ours)} {name} the very same"

    return equal


def main(quick: bool) -> None:
    """Compare generation, then scoring."""
    kind = training_rows.make_kind("default", quick)
    n, tokens = SIZES[quick]
    rows = training_rows.make_rows(kind, "sft", n)
    four_bits, expanded = (make_model(kind, expand) for expand in (False, True))
    harness.compare(
        "expand_generation",
        lambda: answers(kind, four_bits, rows, tokens),
        lambda: answers(kind, expanded, rows, tokens),
        same("answers"),
        what=f"{n} answers of {tokens} tokens, NF4 weights expanded once",
        against=AGAINST,
        quick=quick,
    )
    harness.compare(
        "expand_scoring",
        lambda: scores(kind, four_bits, rows),
        lambda: scores(kind, expanded, rows),
        same("log-probabilities"),
        what=f"{n} log-probabilities, NF4 weights expanded once",
        against=AGAINST,
        quick=quick,
    )


if __name__ == "__main__":
    harness.run(main)
