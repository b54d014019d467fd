"""Batches with less in them: rows side by side instead of padded, and the prompt of a DPO pair once.

The rows of a batch follow one another in one sequence; each attends to itself alone (``attend_by_parts``)
and its positions begin at 0. A DPO pair is laid as [prompt | chosen | rejected], each response seeing the
prompt and itself. Hidden states, loss and gradients are those of a row of its own, to rounding. Only the
decoder is given other rows: it hands back hidden states in TRL's order (for DPO all chosen, then all
rejected), from the token before the first with a loss on. Dropout (``lora.dropout``, in SFT) draws anew.

The plain path is TRL's own (``training.packing: false``); tests/test_packing.py holds them equal.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

IGNORED = -100  # label of a token without a loss
BY_PARTS = "by_parts"  # the name that transformers knows ``attend_by_parts`` by


@dataclass(frozen=True)
class Laid:
    """One row or pair: its ids, positions and sizes, and for each response where the windows lie in it.

    ``sizes`` counts the tokens of (prompt, first response, second response); an SFT row is all "prompt".
    """

    ids: list[int]
    positions: list[int]
    sizes: tuple[int, int, int]
    windows: list[list[int]]


def lay_pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> Laid:
    """Lay a DPO pair with its prompt once; a window begins at the prompt's last token, which predicts it."""
    p, c, r = len(prompt), len(chosen), len(rejected)
    return Laid(
        ids=[*prompt, *chosen, *rejected],
        positions=[*range(p + c), *range(p, p + r)],
        sizes=(p, c, r),
        windows=[[*range(p - 1, p + c)], [p - 1, *range(p + c, p + c + r)]],
    )


def lay_row(ids: list[int], first: int) -> Laid:
    """Lay an SFT row with a window from index ``first`` on."""
    return Laid(ids, [*range(len(ids))], (len(ids), 0, 0), [[*range(first, len(ids))]])


def padded(rows: Sequence[Sequence[int]], value: int) -> Any:
    """Return rows of integers as one tensor, padded on the right."""
    import torch

    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def pack(laid: Sequence[Laid]) -> dict[str, Any]:
    """Return what the decoder computes: ``ids`` and ``positions``, [1, tokens], and every row's ``sizes``.

    ``windows``, [windows, W], are where all windows lie in it, padded with 0: first the first response of
    every row, then the second.
    """
    import torch

    starts = itertools.accumulate((len(row.ids) for row in laid[:-1]), initial=0)
    placed = list(zip(starts, laid, strict=True))
    sides = range(len(laid[0].windows))
    return {
        "ids": torch.tensor([[t for row in laid for t in row.ids]]),
        "positions": torch.tensor([[t for row in laid for t in row.positions]]),
        "sizes": [row.sizes for row in laid],
        "windows": padded([[at + t for t in row.windows[side]] for side in sides for at, row in placed], 0),
    }


# --- collators ---


def dpo_collator(pad: int, max_length: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Return a data collator for TRL's DPOTrainer whose model has been through ``accept_packed``.

    Rows have TRL's columns ``prompt_ids``, ``chosen_ids``, ``rejected_ids``, maybe ``ref_*_logps``; they are
    cut after ``max_length`` tokens. Of B pairs the batch has ``input_ids`` and ``completion_mask`` of the
    windows only: [2B, 1 + longest response]; ``attention_mask`` is for TRL's count of tokens.
    """

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        prompts = [e["prompt_ids"][:max_length] for e in examples]
        sides = [
            [e[f"{side}_ids"][: max_length - len(p)] for e, p in zip(examples, prompts, strict=True)]
            for side in ("chosen", "rejected")
        ]
        packed = pack([lay_pair(*parts) for parts in zip(prompts, *sides, strict=True)])
        responses = [(p, ids) for side in sides for p, ids in zip(prompts, side, strict=True)]
        batch = {
            "input_ids": padded([[p[-1], *ids] for p, ids in responses], pad),
            "completion_mask": padded([[0, *[1] * len(ids)] for _, ids in responses], 0),
            "attention_mask": torch.ones_like(packed["ids"]),
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
        import torch

        ids, labels = ([e[name] for e in examples] for name in ("input_ids", "labels"))
        first = [max(0, next((i for i, y in enumerate(row) if y != IGNORED), len(row)) - 1) for row in labels]
        packed = pack([lay_row(*row) for row in zip(ids, first, strict=True)])
        return {
            "input_ids": padded([row[start:] for row, start in zip(ids, first, strict=True)], pad),
            "labels": padded([row[start:] for row, start in zip(labels, first, strict=True)], IGNORED),
            "attention_mask": torch.ones_like(packed["ids"]),
            "packed": packed,
        }

    return collate


# --- attention ---


def row_parts(sizes: Sequence[tuple[int, int, int]], dtype: Any, where: Any) -> list[tuple]:
    """Return what each row of ``sizes`` attends to: (prompt and first response, prompt, second, its mask).

    The first three are slices of the sequence's tokens. The mask is for the second response, whose tokens see
    the prompt and their own past, [second, prompt + second]: 0, or minus infinity; None without one.
    """
    import torch

    parts, start = [], 0
    for prompt, first, second in sizes:
        middle, end = start + prompt + first, start + prompt + first + second
        unseen = torch.ones(second, prompt + second, dtype=torch.bool, device=where).triu(prompt + 1)
        mask = torch.zeros(unseen.shape, dtype=dtype, device=where).masked_fill(unseen, float("-inf"))
        slices = slice(start, middle), slice(start, start + prompt), slice(middle, end)
        parts.append((*slices, mask[None, None] if second else None))
        start = end
    return parts


def attend_by_parts(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, parts: Any = None, **kwargs: Any
) -> tuple[Any, None]:
    """Attend within each row of a packed sequence: transformers' own sdpa, once or twice a row.

    ``query``, ``key`` and ``value`` are [1, heads, tokens, size]; ``parts`` is from ``row_parts``. Without
    parts this is transformers' sdpa.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if parts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    outputs = []
    for both, prompt, second, mask in parts:
        row = (tensor[:, :, both] for tensor in (query, key, value))
        outputs.append(sdpa_attention_forward(module, *row, None, **kwargs)[0])
        if mask is not None:
            seen = (torch.cat([t[:, :, prompt], t[:, :, second]], dim=2) for t in (key, value))
            mask = mask.to(query.dtype)
            outputs.append(sdpa_attention_forward(module, query[:, :, second], *seen, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def takes_parts(model: Any) -> bool:
    """Say whether a model's attention can be replaced by ours and each token sees all of its past."""
    config = model.config.get_text_config()
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    everywhere = types == {"full_attention"} and not getattr(config, "sliding_window", None)
    replaceable = getattr(model, "_supports_attention_backend", False)
    return config._attn_implementation in ("sdpa", BY_PARTS) and replaceable and everywhere


def use_parts(config: Any) -> None:
    """Let a model with this configuration attend by parts where it is given some, by sdpa where not.

    For good: a layer that gradient checkpointing computes again attends as it did before.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(BY_PARTS, attend_by_parts)
    AttentionMaskInterface.register(BY_PARTS, sdpa_mask)
    config._attn_implementation = BY_PARTS


def decoder_inputs(packed: dict[str, Any], dtype: Any, where: Any) -> dict[str, Any]:
    """Return what a model that uses parts is called with for a packed batch."""
    ids = packed["ids"].to(where)
    return {
        "input_ids": ids,
        "position_ids": packed["positions"].to(where),
        "attention_mask": ids.new_empty(1, 1, 0, 0),  # a mask of four dimensions: transformers makes none
        "parts": row_parts(packed["sizes"], dtype, where),
        "use_cache": False,
    }


def accept_packed(model: Any) -> Any:
    """Let a causal language model's decoder take the batches of our collators; all others pass as before.

    Returns the model. Raises ValueError for attention that cannot be replaced, or that sees a part of the
    past only.
    """
    if not takes_parts(model):
        raise ValueError(
            "packed rows need a model that takes attn_implementation='sdpa' and sees all of the past in "
            f"every layer (this one: {model.config._attn_implementation}): load it so, or set "
            "training.packing to false"
        )
    use_parts(model.config)
    decoder = model.base_model
    plain = decoder.forward

    @functools.wraps(plain)
    def forward(*args: Any, packed: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        if packed is None:
            return plain(*args, **kwargs)
        outputs = plain(**{**kwargs, **decoder_inputs(packed, model.dtype, packed["ids"].device)})
        windows = packed["windows"]
        read = outputs.last_hidden_state[0].index_select(0, windows.flatten())
        outputs.last_hidden_state = read.view(*windows.shape, -1)
        return outputs

    decoder.forward = forward
    return model


# --- TRL's vocabulary head on a CPU ---

TILE = 128  # positions whose logits are computed at a time: 1 MB at a vocabulary of 2,048


@contextmanager
def small_tiles(on: bool = True) -> Iterator[None]:
    """Within the block TRL's head on a CPU computes positions with a loss only, ``TILE`` at a time.

    TRL's own tiles of 4,096 positions lie in no cache. Results are the same to rounding. Does nothing if
    ``on`` is false or there is a GPU. Reaches into TRL, whose version is pinned.
    """
    import torch
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    if not on or torch.cuda.is_available():
        yield
        return
    tile, only_with_loss = chunked_logprob.TOKEN_CHUNK_SIZE, utils._use_triton
    chunked_logprob.TOKEN_CHUNK_SIZE, utils._use_triton = TILE, lambda device: True
    try:
        yield
    finally:
        chunked_logprob.TOKEN_CHUNK_SIZE, utils._use_triton = tile, only_with_loss
