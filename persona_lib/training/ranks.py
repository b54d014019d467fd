"""Several processes that train one adapter in step, started by ``accelerate launch``; alone: rank 0 of 1."""

from __future__ import annotations

import os
from typing import Any

from persona_lib.profiles import ConfigError


def rank() -> int:
    """Return this process's number among the ranks; 0 in a process that is alone."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Return how many ranks there are; 1 in a process that is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def share(value: Any) -> Any:
    """Return rank 0's value in every rank, once all have come here."""
    if count() == 1:
        return value
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available())
    return broadcast_object_list([value], from_process=0)[0]


def part(batch: int) -> int:
    """Return the rows of a batch that one rank takes; raises ConfigError if they cannot be equally many."""
    if batch % count():
        raise ConfigError(
            f"a batch of {batch} rows cannot be shared by {count()} processes: use a multiple of {count()}"
        )
    return batch // count()
