"""Pack the rows of a batch into one sequence without padding, and compute a DPO pair's shared prompt once.

A row is a prompt and one or two responses, laid as [prompt | first | second]. Each response sees the prompt
and itself (``attend_by_parts``), and positions begin at 0 in every row. Hidden states, loss and gradients are
to rounding those of TRL's own path (``training.packing: false``, or attention that cannot be replaced);
dropout (``lora.dropout``, in SFT) draws anew.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

IGNORED = -100  # label of a token without a loss
BY_PARTS = "by_parts"  # the name that transformers knows ``attend_by_parts`` by


def padded(rows: Sequence[Sequence[int]], value: int) -> Any:
    """Return rows of integers as one tensor, padded on the right."""
    import torch

    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


def pack(rows: Sequence[Sequence[list[int]]]) -> dict[str, Any]:
    """Return what the decoder computes for rows (prompt, first response) or (prompt, first, second).

    ``ids`` and ``positions`` are [1, tokens]; ``sizes`` counts the tokens of a row's parts. ``windows``,
    [responses, W], holds the places of each response, from the prompt's last token on (which predicts its
    first one), padded with 0. The first responses of all rows come first, as in TRL.
    """
    import torch

    ids: list[int] = []
    positions: list[int] = []
    windows: list[list[list[int]]] = [[] for _ in rows[0][1:]]
    for prompt, *responses in rows:
        last, p = len(ids) + len(prompt) - 1, len(prompt)
        ids += prompt
        positions += range(p)
        for side, response in zip(windows, responses, strict=True):
            side.append([last, *range(len(ids), len(ids) + len(response))])
            ids += response
            positions += range(p, p + len(response))
    return {
        "ids": torch.tensor([ids]),
        "positions": torch.tensor([positions]),
        "sizes": [[*map(len, row)] for row in rows],
        "windows": padded(sum(windows, []), 0),
    }


def dpo_batch(examples: list[dict[str, Any]], pad: int, max_length: int) -> dict[str, Any]:
    """Collate rows (in TRL's columns) for a DPOTrainer whose model has been through ``accept_packed``.

    They are cut after ``max_length`` tokens. ``input_ids`` and ``completion_mask`` are the windows only: of B
    pairs [2B, 1 + longest response]; ``attention_mask`` is for TRL's count of tokens.
    """
    import torch

    prompts = [e["prompt_ids"][:max_length] for e in examples]
    sides = [
        [e[f"{side}_ids"][: max_length - len(p)] for e, p in zip(examples, prompts, strict=True)]
        for side in ("chosen", "rejected")
    ]
    packed = pack([*zip(prompts, *sides, strict=True)])
    responses = [(p, ids) for side in sides for p, ids in zip(prompts, side, strict=True)]
    references = [name for name in ("ref_chosen_logps", "ref_rejected_logps") if name in examples[0]]
    return {
        "input_ids": padded([[p[-1], *ids] for p, ids in responses], pad),
        "completion_mask": padded([[0, *[1] * len(ids)] for _, ids in responses], 0),
        "attention_mask": torch.ones_like(packed["ids"]),
        "packed": packed,
        **{name: torch.tensor([e[name] for e in examples]) for name in references},
    }


def sft_batch(examples: list[dict[str, Any]], pad: int) -> dict[str, Any]:
    """Collate rows (in TRL's columns) for an SFTTrainer whose model has been through ``accept_packed``.

    ``input_ids`` and ``labels`` hold the windows, [B, W]: from the token before the first label on.
    """
    import torch

    ids, labels = ([e[name] for e in examples] for name in ("input_ids", "labels"))
    first = [max(0, next((i for i, y in enumerate(row) if y != IGNORED), len(row)) - 1) for row in labels]
    packed = pack([(row[: i + 1], row[i + 1 :]) for row, i in zip(ids, first, strict=True)])
    return {
        "input_ids": padded([row[i:] for row, i in zip(ids, first, strict=True)], pad),
        "labels": padded([row[i:] for row, i in zip(labels, first, strict=True)], IGNORED),
        "attention_mask": torch.ones_like(packed["ids"]),
        "packed": packed,
    }


def attend_after_head(
    module: Any, query: Any, key: Any, value: Any, mask: Any, head: Any
) -> tuple[Any, None]:
    """Attend to a beginning that all rows share and to the rest of each, on a CPU; join both softmaxes.

    ``head`` has, by layer, the keys and values of the beginning, [1, heads, length, size].
    """
    import torch

    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    keys, values = head[module.layer_idx]
    rows, heads, length, size = query.shape
    groups = heads // keys.shape[1]
    query = query.reshape(rows, -1, groups * length, size)
    asked = query.transpose(0, 1).reshape(1, keys.shape[1], -1, size)  # all rows: the beginning is read once
    shared, shared_sum = flash(asked, keys, values, scale=module.scaling)
    shared = shared.reshape(-1, rows, groups * length, size).transpose(0, 1)
    shared_sum = shared_sum.reshape(-1, rows, groups * length).transpose(0, 1)
    if mask is None:  # no padding
        mask = torch.ones(1, 1, length, key.shape[2], dtype=torch.bool).tril(key.shape[2] - length)
    hidden = torch.finfo(query.dtype).min  # -inf would make a row of padding alone not a number
    mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, hidden).repeat(1, 1, groups, 1)
    own, own_sum = flash(query, key, value, attn_mask=mask, scale=module.scaling)
    total = torch.logaddexp(shared_sum, own_sum)
    both = shared * (shared_sum - total).exp()[..., None] + own * (own_sum - total).exp()[..., None]
    return both.to(query.dtype).reshape(rows, heads, length, size).transpose(1, 2), None


def attend_by_groups(module: Any, query: Any, key: Any, value: Any, mask: Any) -> tuple[Any, None]:
    """Attend from one token per row: heads that share keys ask together, so that these are not copied."""
    from torch.nn.functional import scaled_dot_product_attention

    rows, heads, _, size = query.shape
    asked = query.reshape(rows, key.shape[1], -1, size)
    found = scaled_dot_product_attention(asked, key, value, attn_mask=mask, scale=module.scaling)
    return found.reshape(rows, 1, heads, size), None


def attend_by_parts(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, parts: Any = None, head: Any = None,
    **kwargs: Any,
) -> tuple[Any, None]:  # fmt: skip
    """Attend within each row (``parts``: ``decoder_inputs``) of a packed sequence, by transformers' sdpa."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if head is not None:
        return attend_after_head(module, query, key, value, attention_mask, head)
    if parts is None and query.shape[2] == 1:
        return attend_by_groups(module, query, key, value, attention_mask)
    if parts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    (lengths, rows), dtype = parts, query.dtype
    if dtype == torch.bfloat16 and query.device.type == "cpu":  # whose gradient takes twice as long in it
        query, key, value = query.float(), key.float(), value.float()
    outputs = []
    pieces = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    with torch.autocast("cpu", enabled=False):
        for prompt, mask in rows:  # split: gradients of slices would each fill a whole tensor with zeros
            q, k, v = next(pieces)
            outputs.append(sdpa_attention_forward(module, q, k, v, None, **kwargs)[0])
            if mask is not None:
                q, *own = next(pieces)
                k, v = (torch.cat([t[:, :, :prompt], o], dim=2) for t, o in zip((k, v), own, strict=True))
                outputs.append(sdpa_attention_forward(module, q, k, v, mask.to(q.dtype), **kwargs)[0])
    return torch.cat(outputs, dim=1).to(dtype), None


def takes_parts(model: Any) -> bool:
    """Say whether a model's attention can be replaced by ours and each token sees all of its past."""
    config = model.config.get_text_config()
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    everywhere = types == {"full_attention"} and not getattr(config, "sliding_window", None)
    replaceable = getattr(model, "_supports_attention_backend", False)
    return config._attn_implementation in ("sdpa", BY_PARTS) and replaceable and everywhere


def use_parts(config: Any) -> None:
    """Let a model with this configuration attend by parts where it is given some, by sdpa where not."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(BY_PARTS, attend_by_parts)
    AttentionMaskInterface.register(BY_PARTS, sdpa_mask)
    config._attn_implementation = BY_PARTS


def decoder_inputs(packed: dict[str, Any], where: Any) -> dict[str, Any]:
    """Return what a model that uses parts is called with for a packed batch.

    ``parts`` are the lengths to split a sequence by (a row's prompt and first response, its second one), and,
    per row, the tokens of its prompt and the mask of its second response (None: there is none).
    """
    import torch

    ids, lengths, rows = packed["ids"].to(where), [], []
    for prompt, first, *others in packed["sizes"]:
        second = sum(others)
        mask = torch.full((second, prompt + second), float("-inf"), device=where).triu(prompt + 1)
        lengths += [prompt + first, *[second] * (second > 0)]
        rows.append((prompt, mask[None, None] if second else None))
    return {
        "input_ids": ids,
        "position_ids": packed["positions"].to(where),
        "attention_mask": ids.new_empty(1, 1, 0, 0),  # a mask of four dimensions: transformers makes none
        "parts": (lengths, rows),
        "use_cache": False,
    }


def accept_packed(model: Any) -> Any:
    """Let a model's decoder (``takes_parts``) take packed batches; all others pass as before; returns it."""
    use_parts(model.config)
    decoder = model.base_model
    plain = decoder.forward

    @functools.wraps(plain)
    def forward(*args: Any, packed: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        if packed is None:
            return plain(*args, **kwargs)
        outputs = plain(**{**kwargs, **decoder_inputs(packed, packed["ids"].device)})
        windows = packed["windows"]
        read = outputs.last_hidden_state[0].index_select(0, windows.flatten())
        outputs.last_hidden_state = read.view(*windows.shape, -1)
        return outputs

    decoder.forward = forward
    return model
