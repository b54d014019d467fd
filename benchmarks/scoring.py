"""Log-probabilities of responses here beside plain scoring: the same values to 1e-5.

Plain scoring is what a user of transformers would write: every prompt with one response, eight at a time,
padded, all logits. Ours packs rows without padding, computes a pair's prompt once and logits of responses
only. "Swap" scores both responses under four personas; "backwards judge" scores a persona after an answer.
Beside the time stands how many times as much arithmetic plain scoring does: products with the layers' weights
for every token read, padding included, and with the head's for every position that gets logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import epochs
import harness
import numpy as np

from persona_lib.data import everyday
from persona_lib.models import load
from persona_lib.paper import judges, swap
from persona_lib.prompts import completion_text, tailoring_prompt

PLAIN = 8  # texts at a time
Work = tuple[list[str], list[tuple[str, ...]]]  # prompts, and the completions that each is scored with


def make_work(chat: Any, rows: int) -> dict[str, Work]:
    """Return what both pieces of work score, from test rows of everyday."""
    items = [item for item in everyday.items() if item.split == "test"][:rows]
    told = [(i, persona) for i in items for persona in (i.persona_a, i.persona_b, i.user_a, i.user_b)]
    swapped = [tailoring_prompt(i.prompt, persona, "line", chat) for i, persona in told]
    pairs = [tuple(completion_text(r, chat) for r in (i.response_a, i.response_b)) for i, _ in told]
    read = [(i, response) for i in items for response in (i.response_a, i.response_b)]
    asked = [judges.asked(i.prompt, response, chat) for i, response in read]
    return {
        "swap": (swapped, pairs),
        "backwards judge": (asked, [(completion_text(i.persona_a, chat),) for i, _ in read]),
    }


class Scored(NamedTuple):
    """Log-probabilities, [prompts, completions], and the operations that they took."""

    values: Any
    operations: float


def counted(model: Any, tokenizer: Any, work: Work, score: Callable[..., Any], all_logits: bool) -> Scored:
    """Score, and count the products with the weights of layers and head."""
    with epochs.counting(model) as tokens:
        values = score(model, tokenizer, *work)
    layers = sum(p.numel() for p in model.model.layers.parameters())
    asked = sum(
        len(load.encode(tokenizer, p, text)[1]) for p, texts in zip(*work, strict=True) for text in texts
    )
    logits = tokens[False] if all_logits else asked
    return Scored(values, 2 * (layers * tokens[False] + model.lm_head.weight.numel() * logits))


def plain(model: Any, tokenizer: Any, prompts: list[str], completions: list[tuple[str, ...]]) -> Any:
    """Score as a user of transformers would."""
    import torch
    from torch.nn.functional import cross_entropy

    rows = zip(prompts, completions, strict=True)
    coded = [load.encode(tokenizer, prompt, text) for prompt, texts in rows for text in texts]
    sums = []
    for start in range(0, len(coded), PLAIN):
        some = coded[start : start + PLAIN]
        texts = {"input_ids": [prompt + completion for prompt, completion in some]}
        inputs = tokenizer.pad(texts, padding_side="right", return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs).logits
        for row, (prompt, completion) in zip(logits, some, strict=True):
            first = len(prompt) - 1
            labels = torch.tensor(completion)
            sums.append(-cross_entropy(row[first : first + len(labels)], labels, reduction="sum").item())
    return np.reshape(sums, (len(prompts), -1))


def ours(model: Any, tokenizer: Any, *work: Any) -> Any:
    """Score as this package does."""
    return np.array(load.pair_log_probs(model, tokenizer, *work, swap.BATCH))


def equal_scores(theirs: Scored, ours: Scored) -> str:
    """Say how far the values agree, and the ratio of arithmetic; or raise NotEqual."""
    off = float(np.max(np.abs(theirs.values - ours.values) / np.abs(theirs.values)))
    if off > 1e-5:
        raise harness.NotEqual(f"log-probabilities differ by {off:.2g}")
    ratio = theirs.operations / ours.operations
    return f"{ours.values.size} log-probabilities within {off:.0e}; {ratio:.2f} times the arithmetic"


def main(quick: bool) -> None:
    """Compare both pieces of work."""
    setup = epochs.make_setup("sft", "everyday", quick, 4)
    model, tokenizer = setup.base("float32"), setup.tokenizer
    theirs = epochs.without_kernels(copy.deepcopy(model))
    for name, work in make_work(load.chat_format(tokenizer), 2 if quick else 16).items():
        harness.compare(
            f"scoring-{name.replace(' ', '_')}",
            partial(counted, theirs, tokenizer, work, plain, True),
            partial(counted, model, tokenizer, work, ours, False),
            equal_scores,
            what=f"{name}, {len(work[0])} prompts x {len(work[1][0])}",
            against="plain scoring: each text alone, eight at a time, padded, all logits",
            quick=quick,
        )
