"""Log-probabilities of both responses of a pair with their prompt, persona included, computed once.

Rows are packed as in training (``training.row_packing``): [prompt | chosen | rejected], each response seeing
the prompt and itself, and logits are computed where a response is predicted only. ``llm.sequence_log_probs``,
which computes the prompt for each response, is the plain way and the reference of the tests; in float32 both
agree to about six digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from persona_lib.models.llm import sequence_log_probs
from persona_lib.models.tokens import encode
from persona_lib.training.row_packing import decoder_inputs, lay_pair, pack, takes_parts, use_parts

Pair = tuple[list[int], list[int], list[int]]  # ids of the prompt and of the two responses with EOS


def pair_log_probs(
    model: Any, tokenizer: Any, prompts: Sequence[str], pairs: Sequence[tuple[str, str]], batch_size: int
) -> Any:
    """Return log p(response and EOS | prompt) of both responses per prompt, in nats: float64 array [n, 2].

    Batches of ``batch_size`` prompts are sorted by length. A model whose attention cannot be replaced is
    asked in the plain way.
    """
    import numpy as np
    import torch

    if not takes_parts(model):
        return plain_pair_log_probs(model, tokenizer, prompts, pairs, batch_size)
    named = enumerate(zip(prompts, pairs, strict=True))
    rows = [encode_pair(tokenizer, prompt, pair, f"pair {n}") for n, (prompt, pair) in named]
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
    result = np.zeros((len(rows), 2))
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            result[chosen] = batch_pair_log_probs(model, [rows[i] for i in chosen])
    return result


def plain_pair_log_probs(
    model: Any, tokenizer: Any, prompts: Sequence[str], pairs: Sequence[tuple[str, str]], batch_size: int
) -> Any:
    """Return the same with the prompt computed for each response."""
    twice = [prompt for prompt in prompts for _ in range(2)]
    texts = [text for pair in pairs for text in pair]
    return sequence_log_probs(model, tokenizer, twice, texts, batch_size).reshape(-1, 2)


def encode_pair(tokenizer: Any, prompt: str, pair: tuple[str, str], name: str) -> Pair:
    """Return the ids of a prompt and of its two responses; see ``tokens.encode`` for what raises."""
    (ids, chosen), (_, rejected) = (encode(tokenizer, prompt, text, name) for text in pair)
    return ids, chosen, rejected


def batch_pair_log_probs(model: Any, rows: Sequence[Pair]) -> Any:
    """Return the summed log-probabilities of both responses of one batch, [rows, 2]."""
    import torch
    from torch.nn.functional import cross_entropy

    where = next(model.parameters()).device
    packed = pack([lay_pair(*row) for row in rows])
    responses = [row[side] for side in (1, 2) for row in rows]  # in the order of the windows
    windows = [window[: len(ids)] for window, ids in zip(packed["windows"], responses, strict=True)]
    use_parts(model.config)
    inputs = decoder_inputs(packed, model.dtype, where)
    logits = model(**inputs, logits_to_keep=torch.cat(windows).to(where)).logits[0]
    labels = torch.tensor([t for ids in responses for t in ids], device=where)
    losses = cross_entropy(logits.float(), labels, reduction="none").double()
    sums = [-part.sum() for part in losses.split([*map(len, responses)])]
    return torch.stack(sums).view(2, -1).T.cpu().numpy()
