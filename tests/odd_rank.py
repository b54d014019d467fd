"""A rank for tests, started in place of ``persona_lib.train_rank``; RANK_TEST in the environment says what it is.

"fsdp": trains with FSDP on processors; "kill": rank 1 is killed on the way (also together, "fsdp kill");
"fail": rank 1 fails at once; "shard": compares a whole model with one that FSDP2 has split.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from persona_lib import guards, ranks, store, train_rank


def pass_for_gpus() -> None:
    """Make accelerate build FSDP over gloo; without GPUs it would use DDP."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    join = PartialState.__init__

    def join_as_gpus(self, *args, **kwargs):
        join(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = join_as_gpus


def kill_rank_one(after: int) -> None:
    """Kill rank 1, as a lack of memory would, after so many optimiser steps."""
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == after and ranks.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    guards.progress_lines = lambda name: Kill()


def fail(job: dict) -> None:
    """End rank 1 in the way that the job says while rank 0 waits."""
    if ranks.rank() == 0:
        print("rank 0 works", flush=True)
        time.sleep(60)
    if job["how"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("no such row")


def shard(job: dict) -> None:
    """Loss and LoRA gradients of an NF4 model, whole and split over two ranks by FSDP2; rank 0 writes both."""
    import torch
    from peft import get_peft_model
    from torch.distributed.fsdp import fully_shard

    from persona_lib import llm, trainers
    from persona_lib.config import load_profile

    ranks.check_ranks(2)
    torch.manual_seed(0)
    base = llm.load_base(job["base"], quantization="nf4", storage=job["storage"])
    model = get_peft_model(base, trainers.lora_config(load_profile("synthetic")))
    for name, parameter in guards.trainable_parameters(model).items():
        if "lora_B" in name:  # zero at first, which would leave lora_A without gradients
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(4, 64, (4, 12))

    def measure() -> dict:
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        grads = {name: p.grad for name, p in guards.trainable_parameters(model).items()}
        whole = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in grads.items()}
        return {"loss": float(loss), "gradients": {n: g.tolist() for n, g in whole.items()}}

    before = measure()
    for layer in model.get_base_model().model.layers:
        fully_shard(layer)
    fully_shard(model)
    packed = next(m for _, m in llm.linear4bit_layers(model)).weight
    after = measure()
    shapes = {"whole": list(packed.shape), "part": list(packed.to_local().shape), "type": str(packed.dtype)}
    if ranks.rank() == 0:
        store.write_json(Path(job["result"]), {"before": before, "after": after, **shapes})


def main() -> None:
    """Do what the environment says."""
    what = os.environ.get("RANK_TEST", "")
    if "fsdp" in what:
        pass_for_gpus()
    if "kill" in what:
        kill_rank_one(after=6)
    ranks.run_as_rank({"fail": fail, "shard": shard}.get(what, train_rank.train_one))


if __name__ == "__main__":
    main()
