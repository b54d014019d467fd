"""One rank of FSDP training on processors, which accelerate itself offers on GPUs only."""

from __future__ import annotations

from accelerate import PartialState
from accelerate.utils import DistributedType

from persona_lib import train_rank

join = PartialState.__init__


def join_as_gpus(self: PartialState, *args, **kwargs) -> None:
    """Join the other ranks over gloo, but pass as GPUs, so that accelerate builds FSDP rather than DDP."""
    join(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = join_as_gpus
    train_rank.main()
