"""DPO with every prompt computed once: prompt, chosen and rejected in one sequence instead of two.

A row [prompt | chosen | rejected] has an attention mask under which each response sees the prompt and itself,
and position ids under which both begin where the prompt ends: each response's hidden states are those it has
in a sequence of its own, and so are the loss and its gradients, to rounding. Only the decoder is given other
rows: it hands back the hidden states in TRL's order (first all chosen, then all rejected), each from the
prompt's last token on, so that loss, metrics, reference and evaluation remain TRL's. Less is computed twice
over: the prompt in the layers, and the head at prompt positions, which have no loss.

The plain path is TRL's own (``dpo_prefix_sharing: false``); tests/test_prefix_sharing.py holds them equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

PROMPT, CHOSEN, REJECTED = 0, 1, 2  # segments of a shared row; padding at its end counts as rejected
ATTENTION = ("eager", "sdpa")  # implementations that take a mask of [batch, 1, query, key]


def check_attention(config: Any) -> None:
    """Raise ValueError if a model's attention cannot take a mask of our own."""
    if config._attn_implementation not in ATTENTION:
        raise ValueError(
            f"dpo_prefix_sharing needs attention that takes a mask ({' or '.join(ATTENTION)}), not "
            f"{config._attn_implementation}: load the model with attn_implementation='sdpa', "
            "or set it to false"
        )
    if getattr(config, "sliding_window", None):
        raise ValueError(
            f"dpo_prefix_sharing: the model attends within a window of {config.sliding_window} tokens, which "
            "our mask would undo: set it to false"
        )


def padded(rows: Sequence[Sequence[int]], value: int) -> Any:
    """Return rows of integers as one tensor, padded on the right."""
    import torch

    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def shared_row(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, list[int]]:
    """Return ids, positions and segments of one sequence that holds the prompt once."""
    p, c, r = len(prompt), len(chosen), len(rejected)
    return {
        "ids": [*prompt, *chosen, *rejected],
        "positions": [*range(p + c), *range(p, p + r)],
        "segments": [PROMPT] * p + [CHOSEN] * c + [REJECTED] * r,
    }


def windows(prompt: int, chosen: int, rejected: int) -> tuple[list[int], list[int]]:
    """Return where in a shared row each response lies, from the prompt's last token on, which predicts it."""
    first = [*range(prompt - 1, prompt + chosen)]
    return first, [prompt - 1, *range(prompt + chosen, prompt + chosen + rejected)]


def collator(pad: int, max_length: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Return a data collator for TRL's DPOTrainer whose model has been through ``share_prefix``.

    Rows have TRL's columns ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` and maybe ``ref_*_logps``;
    prompt and response together are cut after ``max_length`` tokens, as TRL does. A batch of B rows has
    "shared", the sequences that are computed, and in TRL's form the windows that have a loss: ``input_ids``
    and ``completion_mask`` of [2B, 1 + longest response]. ``attention_mask`` marks what is computed, for
    TRL's count of tokens.
    """

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        prompts = [e["prompt_ids"][:max_length] for e in examples]
        sides = [
            [e[f"{side}_ids"][: max_length - len(p)] for e, p in zip(examples, prompts, strict=True)]
            for side in ("chosen", "rejected")
        ]
        rows = [shared_row(*parts) for parts in zip(prompts, *sides, strict=True)]
        places = [windows(*map(len, parts)) for parts in zip(prompts, *sides, strict=True)]
        responses = [(p, ids) for side in sides for p, ids in zip(prompts, side, strict=True)]
        batch = {
            "input_ids": padded([[p[-1], *ids] for p, ids in responses], pad),
            "completion_mask": padded([[0, *[1] * len(ids)] for _, ids in responses], 0),
            "attention_mask": padded([[1] * len(row["ids"]) for row in rows], 0),
            "shared": {
                "ids": padded([row["ids"] for row in rows], pad),
                "positions": padded([row["positions"] for row in rows], 0),
                "segments": padded([row["segments"] for row in rows], REJECTED),
                "windows": padded([place[side] for side in (0, 1) for place in places], 0),
            },
        }
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in examples[0]:
                batch[name] = torch.tensor([e[name] for e in examples])
        return batch

    return collate


def attention_mask(segments: Any, implementation: str, dtype: Any) -> Any:
    """Return the mask [batch, 1, query, key]: a token sees its past in the prompt and in its own segment.

    Boolean for sdpa; for eager attention, which adds it, 0 and the lowest number of ``dtype``.
    """
    import torch

    width = segments.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    queries, keys = segments[:, None, :, None], segments[:, None, None, :]
    seen = causal & ((keys == PROMPT) | (keys == queries))
    if implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def share_prefix(model: Any) -> Any:
    """Let a causal language model's decoder take the batches of ``collator``; all others pass as before.

    Returns the model. Raises ValueError for attention that takes no mask (``check_attention``).
    """
    decoder = model.base_model
    check_attention(decoder.config)
    plain = decoder.forward

    @functools.wraps(plain)
    def forward(*args: Any, shared: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        if shared is None:
            return plain(*args, **kwargs)
        mask = attention_mask(shared["segments"], decoder.config._attn_implementation, model.dtype)
        kwargs |= {"input_ids": shared["ids"], "position_ids": shared["positions"], "attention_mask": mask}
        outputs = plain(**kwargs)
        outputs.last_hidden_state = unshare(outputs.last_hidden_state, shared["windows"])
        return outputs

    decoder.forward = forward
    return model


def unshare(hidden: Any, windows: Any) -> Any:
    """Return hidden states [B, L, H] of shared rows as those of the windows: [2B, W, H], chosen first."""
    import torch

    batch, length, size = hidden.shape
    rows = torch.arange(batch, device=hidden.device).repeat(2)
    index = (rows[:, None] * length + windows).flatten()
    return hidden.reshape(batch * length, size).index_select(0, index).view(*windows.shape, size)
