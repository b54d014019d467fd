"""Log-probabilities of responses here beside plain scoring: the same values to 1e-5.

Plain scoring is what a user of transformers would write: every prompt with one response, eight at a time,
padded, all logits. Ours packs rows without padding, computes a pair's prompt once and logits of responses
only. "Swap" scores both responses under four personas; "backwards judge" scores a persona after an answer.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

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


def plain(model: Any, tokenizer: Any, work: Work) -> Any:
    """Score as a user of transformers would."""
    import torch
    from torch.nn.functional import cross_entropy

    coded = [
        load.encode(tokenizer, prompt, text) for prompt, texts in zip(*work, strict=True) for text in texts
    ]
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
    return np.reshape(sums, (len(work[0]), -1))


def equal_scores(theirs: Any, ours: Any) -> str:
    """Say how far the values agree, or raise NotEqual."""
    off = float(np.max(np.abs(theirs - ours) / np.abs(theirs)))
    if off > 1e-5:
        raise harness.NotEqual(f"log-probabilities differ by {off:.2g}")
    return f"{ours.size} log-probabilities within {off:.0e}"


def main(quick: bool) -> None:
    """Compare both pieces of work."""
    setup = epochs.make_setup("sft", "everyday", quick, 4)
    model, tokenizer = setup.base("float32"), setup.tokenizer
    theirs = epochs.without_kernels(copy.deepcopy(model))
    for name, work in make_work(load.chat_format(tokenizer), 2 if quick else 16).items():
        harness.compare(
            f"scoring-{name.replace(' ', '_')}",
            partial(plain, theirs, tokenizer, work),
            lambda work=work: load.pair_log_probs(model, tokenizer, *work, swap.BATCH),
            equal_scores,
            what=f"{name}, {len(work[0])} prompts x {len(work[1][0])}",
            against="plain scoring: each text alone, eight at a time, padded, all logits",
            quick=quick,
        )
