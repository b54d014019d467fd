"""TRL's vocabulary head on a CPU: positions with a loss only, and few of them at a time.

TRL never holds all logits: its head takes tiles of positions and makes their log-probabilities, again for the
gradients. On a CPU a tile has 4,096 positions, whose logits lie in no cache (33 MB at a vocabulary of 2,048:
memory that the system hands out anew for every operation), and padding and prompt are computed like the rest
and thrown away, which TRL skips on GPUs. Each position is computed by itself, so log-probabilities and
gradients are the same to rounding; tests/test_row_packing.py holds them equal. Used where rows share
sequences (``sft_packing``, ``dpo_prefix_sharing``); the plain path is TRL's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

TILE = 128  # positions whose logits are computed at a time: 1 MB at a vocabulary of 2,048


@contextmanager
def small_tiles(on: bool = True) -> Iterator[None]:
    """Within the block TRL's head works as above, unless ``on`` is false or there is a GPU to train on.

    This reaches into TRL, whose version is pinned; raises AttributeError where it has no such head.
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
