"""Batches with less in them: rows side by side instead of padded, and the prompt of a DPO pair once.

A sequence holds several rows one after another; an attention mask lets each see itself alone, and its
positions begin at 0. A DPO pair is laid as [prompt | chosen | rejected], each response seeing the prompt and
itself and beginning where the prompt ends. Every hidden state is then the one that it is in a row of its own,
and so are the loss and its gradients, to rounding. Only the decoder is given other rows: it hands back the
hidden states in TRL's order (one row each; for DPO all chosen, then all rejected), from the token before the
first with a loss on. Loss, metrics, reference and evaluation remain TRL's, and the optimiser sees the same
batches. What is saved: padding, the second pass over every prompt, and the head at positions without a loss.
Dropout (``lora_dropout``, in SFT) draws other numbers, as it does for another batch size.

The plain path is TRL's own (``sft_packing: false``, ``dpo_prefix_sharing: false``);
tests/test_row_packing.py holds them equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PARTS = 3  # of a row: the prompt, which the others see, and up to two responses
PROMPT, CHOSEN, REJECTED = range(PARTS)
IGNORED = -100  # label of a token without a loss
ATTENTION = ("eager", "sdpa")  # implementations that take a mask of [batch, 1, query, key]


@dataclass(frozen=True)
class Laid:
    """One row or pair: its ids, positions and parts, and for each response where the windows lie in it."""

    ids: list[int]
    positions: list[int]
    parts: list[int]
    windows: list[list[int]]


def lay_pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> Laid:
    """Lay a DPO pair with its prompt once; a window begins at the prompt's last token, which predicts it."""
    p, c, r = len(prompt), len(chosen), len(rejected)
    return Laid(
        ids=[*prompt, *chosen, *rejected],
        positions=[*range(p + c), *range(p, p + r)],
        parts=[PROMPT] * p + [CHOSEN] * c + [REJECTED] * r,
        windows=[[*range(p - 1, p + c)], [p - 1, *range(p + c, p + c + r)]],
    )


def lay_row(ids: list[int], first: int) -> Laid:
    """Lay an SFT row with a window from index ``first`` on."""
    return Laid(ids, [*range(len(ids))], [PROMPT] * len(ids), [[*range(first, len(ids))]])


def places(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return (sequence, offset) per row: longest first, into the first sequence with room for it.

    No sequence is longer than the longest row.
    """
    used: list[int] = []
    found = [(0, 0)] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        number = next((n for n, u in enumerate(used) if u + sizes[i] <= max(sizes)), len(used))
        used += [0] * (number == len(used))
        found[i] = (number, used[number])
        used[number] += sizes[i]
    return found


def padded(rows: Sequence[Sequence[int]], value: int) -> Any:
    """Return rows of integers as one tensor, padded on the right."""
    import torch

    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def pack(laid: Sequence[Laid], pad: int) -> dict[str, Any]:
    """Return what the decoder computes, [sequences, L] each, and where in it all windows lie, [windows, W].

    ``owners`` numbers rows and their parts (PARTS * row + part; -1 for padding). ``windows`` are indices into
    the flattened sequences: first the first response of every row, then the second.
    """
    where = places([len(row.ids) for row in laid])
    sequences = range(1 + max(number for number, _ in where))
    inside = [[i for i, place in enumerate(where) if place[0] == n] for n in sequences]
    inside = [sorted(members, key=lambda i: where[i][1]) for members in inside]
    width = max(len(row.ids) for row in laid)
    starts = [number * width + offset for number, offset in where]
    return {
        "ids": padded([[t for i in members for t in laid[i].ids] for members in inside], pad),
        "positions": padded([[t for i in members for t in laid[i].positions] for members in inside], 0),
        "owners": padded([[PARTS * i + t for i in members for t in laid[i].parts] for members in inside], -1),
        "windows": padded(
            [
                [starts[i] + t for t in row.windows[side]]
                for side in range(len(laid[0].windows))
                for i, row in enumerate(laid)
            ],
            0,
        ),
    }


def dpo_collator(pad: int, max_length: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Return a data collator for TRL's DPOTrainer whose model has been through ``accept_packed``.

    Rows have TRL's columns ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` and maybe ``ref_*_logps``;
    prompt and response together are cut after ``max_length`` tokens, as TRL does. Of B pairs the batch has
    ``input_ids`` and ``completion_mask`` as TRL's, but of the windows only: [2B, 1 + longest response].
    ``attention_mask`` marks what is computed, for TRL's count of tokens.
    """

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        prompts = [e["prompt_ids"][:max_length] for e in examples]
        sides = [
            [e[f"{side}_ids"][: max_length - len(p)] for e, p in zip(examples, prompts, strict=True)]
            for side in ("chosen", "rejected")
        ]
        packed = pack([lay_pair(*parts) for parts in zip(prompts, *sides, strict=True)], pad)
        responses = [(p, ids) for side in sides for p, ids in zip(prompts, side, strict=True)]
        batch = {
            "input_ids": padded([[p[-1], *ids] for p, ids in responses], pad),
            "completion_mask": padded([[0, *[1] * len(ids)] for _, ids in responses], 0),
            "attention_mask": (packed["owners"] >= 0).long(),
            "packed": packed,
        }
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in examples[0]:
                batch[name] = torch.tensor([e[name] for e in examples])
        return batch

    return collate


def sft_collator(pad: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Return a data collator for TRL's SFTTrainer whose model has been through ``accept_packed``.

    Rows have TRL's columns ``input_ids`` and ``labels``. Of B rows the batch has ``input_ids`` and ``labels``
    of the windows, [B, W], from the token before the first with a label on.
    """

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        ids, labels = ([e[name] for e in examples] for name in ("input_ids", "labels"))
        first = [max(0, next((i for i, y in enumerate(row) if y != IGNORED), len(row)) - 1) for row in labels]
        packed = pack([lay_row(*row) for row in zip(ids, first, strict=True)], pad)
        return {
            "input_ids": padded([row[start:] for row, start in zip(ids, first, strict=True)], pad),
            "labels": padded([row[start:] for row, start in zip(labels, first, strict=True)], IGNORED),
            "attention_mask": (packed["owners"] >= 0).long(),
            "packed": packed,
        }

    return collate


def attention_mask(owners: Any, implementation: str, dtype: Any) -> Any:
    """Return the mask [batch, 1, query, key]: a token sees its past in its own part and in its row's prompt.

    Boolean for sdpa; for eager attention, which adds it, 0 and the lowest number of ``dtype``.
    """
    import torch

    width = owners.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=owners.device).tril()
    queries, keys = owners[:, None, :, None], owners[:, None, None, :]
    seen = causal & ((keys == queries) | (keys == queries - queries % PARTS))
    if implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def check_attention(config: Any) -> None:
    """Raise ValueError if a model's attention cannot take a mask of our own."""
    mend = "set sft_packing and dpo_prefix_sharing to false"
    if config._attn_implementation not in ATTENTION:
        raise ValueError(
            f"packed rows need attention that takes a mask ({' or '.join(ATTENTION)}), not "
            f"{config._attn_implementation}: load the model with attn_implementation='sdpa', or {mend}"
        )
    if getattr(config, "sliding_window", None):
        raise ValueError(
            f"packed rows: the model attends within a window of {config.sliding_window} tokens, which our "
            f"mask would undo: {mend}"
        )


def accept_packed(model: Any) -> Any:
    """Let a causal language model's decoder take the batches of our collators; all others pass as before.

    Returns the model. Raises ValueError for attention that takes no mask (``check_attention``).
    """
    decoder = model.base_model
    check_attention(decoder.config)
    plain = decoder.forward

    @functools.wraps(plain)
    def forward(*args: Any, packed: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        if packed is None:
            return plain(*args, **kwargs)
        mask = attention_mask(packed["owners"], decoder.config._attn_implementation, model.dtype)
        kwargs |= {"input_ids": packed["ids"], "position_ids": packed["positions"], "attention_mask": mask}
        outputs = plain(**kwargs)
        outputs.last_hidden_state = read_windows(outputs.last_hidden_state, packed["windows"])
        return outputs

    decoder.forward = forward
    return model


def read_windows(hidden: Any, windows: Any) -> Any:
    """Return hidden states [sequences, L, H] at the windows' places: [windows, W, H]."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat.index_select(0, windows.flatten()).view(*windows.shape, -1)
