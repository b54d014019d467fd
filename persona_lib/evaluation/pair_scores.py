"""Log-probabilities of both responses of a pair with their prompt, persona included, computed once.

A row is laid as [prompt | chosen | rejected] with the mask of ``training.row_packing``: each response sees
the prompt and itself. ``llm.sequence_log_probs``, which computes the prompt for each response, is the plain
way and the reference of the tests; in float32 both agree to about six digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from persona_lib.models.llm import sequence_log_probs
from persona_lib.models.tokens import encode
from persona_lib.training.row_packing import (
    ATTENTION,
    IGNORED,
    PARTS,
    attention_mask,
    lay_pair,
    padded,
)

Pair = tuple[list[int], list[int], list[int]]  # ids of the prompt and of the two responses with EOS


def pair_log_probs(
    model: Any, tokenizer: Any, prompts: Sequence[str], pairs: Sequence[tuple[str, str]], batch_size: int
) -> Any:
    """Return log p(response and EOS | prompt) of both responses per prompt, in nats: float64 array [n, 2].

    Batches of ``batch_size`` prompts are sorted by length. A model whose attention takes no mask of our own
    is asked in the plain way.
    """
    import numpy as np
    import torch

    if not takes_mask(model.config):
        return plain_pair_log_probs(model, tokenizer, prompts, pairs, batch_size)
    named = enumerate(zip(prompts, pairs, strict=True))
    rows = [encode_pair(tokenizer, prompt, pair, f"pair {n}") for n, (prompt, pair) in named]
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
    result = np.zeros((len(rows), 2))
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            result[chosen] = batch_pair_log_probs(model, [rows[i] for i in chosen], tokenizer.pad_token_id)
    return result


def plain_pair_log_probs(
    model: Any, tokenizer: Any, prompts: Sequence[str], pairs: Sequence[tuple[str, str]], batch_size: int
) -> Any:
    """Return the same with the prompt computed for each response."""
    twice = [prompt for prompt in prompts for _ in range(2)]
    texts = [text for pair in pairs for text in pair]
    return sequence_log_probs(model, tokenizer, twice, texts, batch_size).reshape(-1, 2)


def takes_mask(config: Any) -> bool:
    """Say whether a model's attention takes a mask of [batch, 1, query, key] and sees as far as that says."""
    return config._attn_implementation in ATTENTION and not getattr(config, "sliding_window", None)


def encode_pair(tokenizer: Any, prompt: str, pair: tuple[str, str], name: str) -> Pair:
    """Return the ids of a prompt and of its two responses; see ``tokens.encode`` for what raises."""
    (ids, chosen), (_, rejected) = (encode(tokenizer, prompt, text, name) for text in pair)
    return ids, chosen, rejected


def batch_pair_log_probs(model: Any, rows: Sequence[Pair], pad: int) -> Any:
    """Return the summed log-probabilities of both responses of one batch, [rows, 2]."""
    import torch
    from torch.nn.functional import cross_entropy

    laid = [lay_pair(*row) for row in rows]
    first = min(len(prompt) for prompt, _, _ in rows) - 1  # logits are needed from this token on
    owners = padded([[PARTS * i + part for part in row.parts] for i, row in enumerate(laid)], -1)
    where = next(model.parameters()).device
    logits = model(
        input_ids=padded([row.ids for row in laid], pad).to(where),
        position_ids=padded([row.positions for row in laid], 0).to(where),
        attention_mask=attention_mask(owners, model.config._attn_implementation, model.dtype).to(where),
        use_cache=False,
        logits_to_keep=owners.shape[1] - first,
    ).logits
    sums = []
    for side, ids in enumerate(([c for _, c, _ in rows], [r for _, _, r in rows])):
        windows = padded([[at - first for at in row.windows[side][:-1]] for row in laid], 0).to(where)
        read = logits.gather(1, windows[..., None].expand(-1, -1, logits.shape[-1]))
        labels = padded(ids, IGNORED).to(where)
        losses = cross_entropy(
            read.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        sums.append(-losses.double().view(labels.shape).sum(dim=1).cpu())
    return torch.stack(sums, dim=1).numpy()
