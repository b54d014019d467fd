"""Generate text in batches: ``generate(prompts, ...)`` yields (index, Completion).

Batched, sorted by length, padded on the left, with stop strings per row; rows that wait join the batch when
others have ended, and a long beginning that all prompts share is computed once. In float32 greedy completions
equal those of one prompt at a time; in bfloat16 they may differ.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from persona_lib.models.load import using_adapters
from persona_lib.models.packing import takes_parts, use_parts

LEAST_SHARED = 32  # tokens from which a common beginning is computed once
JOINING = 16  # rows that join a batch together, of similar lengths, so that padding is little
ROOM = 8  # tokens that a cache has room for when it is copied into a larger one
ONE_AT_A_TIME = threading.Lock()  # several pages may ask at once, and each step may run in another thread


@dataclass(frozen=True)
class Completion:
    """One completion, cut before the stop string; ``finish_reason``: "stop", "length" or a server's own."""

    text: str
    finish_reason: str
    n_tokens: int


@dataclass(frozen=True)
class Decoding:
    """What every ``generate`` takes after its prompts; greedy, unless ``temperature`` is above 0."""

    max_new_tokens: int
    stop: Sequence[str]
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Cut a text before the first stop string in it; say whether there was one."""
    ends = [at for s in stop if (at := text.find(s)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def sampling_processors(how: Decoding) -> Any:
    """Return transformers' processors of the logits that tokens are drawn by."""
    import transformers as hf

    penalty = hf.RepetitionPenaltyLogitsProcessor(how.repetition_penalty)
    nucleus = hf.TopPLogitsWarper(how.top_p)
    return hf.LogitsProcessorList([penalty, hf.TemperatureLogitsWarper(how.temperature), nucleus])


def to_completion(tokenizer: Any, ids: list[int], stop: Sequence[str]) -> Completion:
    """Turn generated ids into a completion: up to EOS, padding and stop string excluded."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ended = eos in ids
    ids = ids[: ids.index(eos)] if ended else [i for i in ids if i != pad]
    text, stopped = cut_at_stop(tokenizer.decode(ids), stop)
    return Completion(text.strip(), "stop" if ended or stopped else "length", len(ids))


@functools.cache
def roomy_layer() -> Any:
    """Return a layer of transformers' cache that has room, where theirs copies all at every token."""
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        def __init__(self) -> None:
            super().__init__()
            self.rooms: dict[str, Any] = {}

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            self.keys = self.longer("keys", self.keys, key_states)
            self.values = self.longer("values", self.values, value_states)
            return self.keys, self.values

        def longer(self, name: str, held: Any, fresh: Any) -> Any:
            before, room = held.shape[-2] if held.numel() else 0, self.rooms.get(name)
            after = before + fresh.shape[-2]
            if room is None or room.data_ptr() != held.data_ptr() or room.shape[-2] < after:
                room = fresh.new_empty(*fresh.shape[:2], after + ROOM, fresh.shape[-1])
                room[:, :, :before] = held if before else 0
                self.rooms[name] = room
            room[:, :, before:after] = fresh
            return room[:, :, :after]

        def batch_select_indices(self, indices: Any) -> None:
            self.rooms = {}  # else what is left behind stays in memory until the next token
            super().batch_select_indices(indices)

    return RoomyLayer


def empty_cache(model: Any) -> Any:
    """Return transformers' cache for a model, with roomy layers where theirs are plain ones."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache(config=model.config)
    cache.layers = [roomy_layer()() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@dataclass
class Batch:
    """Rows side by side. ``ids`` and ``mask`` are [rows, width]; ``cache`` lacks what was not read yet.

    ``made`` holds the tokens of the answers, the last ones on the right; a row's own fill up its left.
    ``begun``, [1, tokens], is what all rows begin with, and ``head`` its keys and values by layer, if any.
    """

    rows: list[int]
    ids: Any
    mask: Any
    made: Any
    cache: Any
    begun: Any
    head: Any

    def select(self, keep: Any) -> None:
        """Keep some rows only; ``keep`` holds their places."""
        self.cache.batch_select_indices(keep)
        self.ids, self.mask, self.made = self.ids[keep], self.mask[keep], self.made[keep]
        self.rows = [self.rows[i] for i in keep.tolist()]

    def join(self, other: Batch) -> None:
        """Take in another batch of which as much has been read, padding the narrower one on the left."""
        import torch
        from torch.nn.functional import pad

        used = self.mask.any(0)  # columns that only rows had which have left
        self.ids, self.mask = self.ids[:, used], self.mask[:, used]
        for layer, more in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.rooms = {}
            for name in ("keys", "values"):
                held, fresh = getattr(layer, name)[:, :, used[:-1]], getattr(more, name)
                width = max(held.shape[2], fresh.shape[2])
                both = [pad(t, (0, 0, width - t.shape[2], 0)) for t in (held, fresh)]
                setattr(layer, name, torch.cat(both))
        for name in ("ids", "mask", "made"):
            both = [getattr(self, name), getattr(other, name)]
            width = max(t.shape[1] for t in both)
            fill = [t.new_zeros(len(t), 1) if name == "mask" else t[:, -1:] for t in both]  # a token it has
            wide = [
                torch.cat([f.expand(-1, width - t.shape[1]), t], 1) for f, t in zip(fill, both, strict=True)
            ]
            setattr(self, name, torch.cat(wide))
        self.rows += other.rows


@dataclass
class TransformersGenerator:
    """A loaded causal language model that completes prompts; ``adapters``: see ``load.using_adapters``."""

    model: Any
    tokenizer: Any
    name: str
    batch_size: int
    adapters: Sequence[str] = ()
    merge: bool = False
    repetition_penalty: float = 1.0  # above 1: of tokens that the answer (not the prompt) has already

    def generate(self, prompts: Sequence[str], *how: Any, **more: Any) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion) as they end, begun with the shortest prompts; see ``Decoding``."""
        import torch

        decoding = Decoding(*how, **more)
        rows = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        if decoding.temperature:
            torch.manual_seed(decoding.seed)
        with using_adapters(self.model, self.adapters, self.merge), torch.inference_mode():
            for new, ended in self.steps(rows, decoding):
                for index in ended:
                    yield index, to_completion(self.tokenizer, new[index], decoding.stop)

    def stream(self, prompt: str, *how: Any, **more: Any) -> Iterator[str]:
        """Yield one prompt's completion so far after every token; adapters are switched under a lock."""
        import torch

        decoding = Decoding(*how, **more)
        steps = self.steps([self.tokenizer(prompt)["input_ids"]], decoding)
        while True:
            with ONE_AT_A_TIME, using_adapters(self.model, self.adapters, self.merge), torch.inference_mode():
                new = next(steps, None)
            if new is None:
                return
            yield to_completion(self.tokenizer, new[0][0], decoding.stop).text

    def read_head(self, rows: list[list[int]]) -> tuple[list[int], Any]:
        """Return what all rows begin with, and its keys and values by layer; [] and None if it is short."""
        import torch

        if self.model.device.type != "cpu" or not takes_parts(self.model):
            return [], None
        use_parts(self.model.config)
        ids = list(os.path.commonprefix(rows)[: min(map(len, rows)) - 1]) if len(rows) > 1 else []
        if len(ids) < LEAST_SHARED:
            return [], None
        cache = empty_cache(self.model)
        self.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return ids, [(layer.keys, layer.values) for layer in cache.layers]

    def padded(self, rows: list[list[int]], chosen: list[int], begun: list[int], head: Any) -> Batch:
        """Return some of the rows, without what they begin with, as a batch, padded on the left."""
        import torch

        rest = [rows[i][len(begun) :] for i in chosen]
        longest, pad, where = max(map(len, rest)), self.tokenizer.pad_token_id, self.model.device
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rest], device=where)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rest], device=where)
        first = torch.tensor([begun], dtype=ids.dtype, device=where)
        return Batch(chosen, ids, mask, ids[:, :0], empty_cache(self.model), first, head)

    def steps(self, rows: list[list[int]], how: Decoding) -> Iterator[tuple[list[list[int]], list[int]]]:
        """Yield (the new tokens of every row, the rows that have just ended) after every step.

        Greedy tokens are those of transformers' ``generate``. A model that keeps one state per row instead of
        keys and values gets one prompt at a time.
        """
        from transformers.cache_utils import LinearAttentionCacheLayerMixin

        waiting, head = sorted(range(len(rows)), key=lambda i: len(rows[i])), self.read_head(rows)
        layers = empty_cache(self.model).layers
        states = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
        joins = all(hasattr(layer, "rooms") for layer in layers)  # not: those that end where a window does
        most = 1 if states else self.batch_size
        size = min(JOINING, most) if joins else most
        new: list[list[int]] = [[] for _ in rows]
        alive: Batch | None = None
        while waiting or alive:
            if alive is None or (joins and waiting and len(alive.rows) + len(waiting[:size]) <= most):
                batch = self.padded(rows, waiting[:size], *head)
                del waiting[:size]
            else:
                batch = alive
            goes_on = self.step(batch, new, how)
            ended = [row for row, on in zip(batch.rows, goes_on.tolist(), strict=True) if not on]
            if not goes_on.any():
                batch.rows = []
            elif ended:
                batch.select(goes_on.nonzero().flatten())
            if alive is None or batch is alive:
                alive = batch if batch.rows else None
            elif batch.rows:
                alive.join(batch)
            yield new, ended

    def step(self, batch: Batch, new: list[list[int]], how: Decoding) -> Any:
        """Read what the cache lacks, append a token to every row; returns which rows go on, [rows]."""
        import torch
        from transformers import RepetitionPenaltyLogitsProcessor

        eos, where = self.tokenizer.eos_token_id, batch.ids.device
        unread = batch.ids.shape[1] - batch.cache.get_seq_length()
        at = batch.mask.cumsum(-1).sub(1).clamp(min=0)[:, -unread:] + batch.begun.shape[1]
        given = {"attention_mask": batch.mask, "position_ids": at, "past_key_values": batch.cache}
        given |= {"head": batch.head} if batch.head else {}
        read = self.model(input_ids=batch.ids[:, -unread:], **given, use_cache=True, logits_to_keep=1)
        logits = read.logits[:, -1]
        if self.repetition_penalty != 1 and batch.made.shape[1]:
            logits = RepetitionPenaltyLogitsProcessor(self.repetition_penalty)(batch.made, logits)
        if how.temperature:
            whole = torch.cat([batch.begun.expand(len(batch.ids), -1), batch.ids], dim=1)
            logits = sampling_processors(how)(whole, logits)
        if how.min_new_tokens:
            short = torch.tensor([len(new[row]) < how.min_new_tokens for row in batch.rows], device=where)
            logits[short, eos] = -torch.inf
        tokens = logits.float().softmax(-1).multinomial(1) if how.temperature else logits.argmax(-1, True)
        for row, (token,) in zip(batch.rows, tokens.tolist(), strict=True):
            new[row].append(token)
        batch.ids, batch.made = (torch.cat([t, tokens], dim=1) for t in (batch.ids, batch.made))
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(tokens), 1)], dim=1)
        recent = max(map(len, how.stop), default=1)  # a token is at least one character long
        texts = self.tokenizer.batch_decode([new[row][-recent:] for row in batch.rows])
        ended = [
            new[row][-1] == eos or len(new[row]) >= how.max_new_tokens or any(s in text for s in how.stop)
            for row, text in zip(batch.rows, texts, strict=True)
        ]
        return ~torch.tensor(ended, device=where)
