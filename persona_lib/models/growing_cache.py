"""Keys and values of earlier tokens, in room set aside ahead: a new token's are written, the others stay.

transformers' own cache copies all earlier keys and values for every new token. With a few-shot prompt
before a short answer that takes a quarter of the time (``benchmarks/generation.py``). The numbers are
the same.
"""

from __future__ import annotations

import copy
from typing import Any

ROOM = 128  # tokens for which room is set aside at a time


def append_tokens(old: Any, new: Any, room: Any) -> tuple[Any, Any]:
    """Put new tokens behind old ones, (batch, heads, tokens, size): return all of them and their room.

    ``old`` is the filled beginning of ``room``. Otherwise (at first, or once something repeated, reordered or
    chose rows) and when the room is full, all is copied into a larger one.
    """
    filled = old.shape[-2] if old.numel() else 0
    total = filled + new.shape[-2]
    if room is None or old.data_ptr() != room.data_ptr() or len(new) != len(room) or total > room.shape[-2]:
        room = new.new_empty((*new.shape[:2], total + ROOM, new.shape[-1]))
        if filled:
            room[:, :, :filled] = old
    room[:, :, filled:total] = new
    return room[:, :, :total], room


def growing_cache(config: Any, prefix: Any, rows: int) -> Any:
    """Return a cache for a batch of ``rows`` that all begin with what ``prefix``, a cache of one row, holds.

    Empty if that is None. Layers of other kinds (sliding windows) stay as transformers makes them.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class GrowingLayer(DynamicLayer):
        """A layer whose ``keys`` and ``values`` are the filled beginnings of larger tensors."""

        key_room = value_room = None

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            self.keys, self.key_room = append_tokens(self.keys, key_states, self.key_room)
            self.values, self.value_room = append_tokens(self.values, value_states, self.value_room)
            return self.keys, self.values

    cache = DynamicCache(config=config)
    for index, layer in enumerate(prefix.layers if prefix else cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = GrowingLayer()
            if layer.is_initialized:
                cache.update(*(part.expand(rows, -1, -1, -1) for part in (layer.keys, layer.values)), index)
        elif prefix:
            cache.layers[index] = copy.deepcopy(layer)
            cache.layers[index].batch_repeat_interleave(rows)
    return cache
