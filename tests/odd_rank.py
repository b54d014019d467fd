"""A rank for tests, started in place of ``persona_lib.training.train_rank``; RANK_TEST says what it is.

"fsdp": trains with FSDP on processors; "kill": rank 1 is killed on the way (also together, "fsdp kill");
"fail": rank 1 fails at once; "shard": compares a whole model with one that FSDP2 has split.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from persona_lib import store
from persona_lib.models import guards
from persona_lib.training import ranks, train_rank


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
    """End rank 1 in the way that the job says, once rank 0 has said something and waits."""
    mark = Path(job["mark"])
    if ranks.rank() == 0:
        print("rank 0 works", flush=True)
        mark.touch()
        time.sleep(600)
    while not mark.exists():
        time.sleep(0.1)
    if job["how"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("no such row")


def shard(job: dict) -> None:
    """Compare whole and split models of every storage type; rank 0 writes what it found into a folder."""
    ranks.check_ranks(2)
    for storage in ("float32", "bfloat16", "uint8"):
        found = whole_and_split(job["base"], storage)
        if ranks.rank() == 0:
            store.write_json(Path(job["folder"]) / f"{storage}.json", found)


def whole_and_split(base: str, storage: str) -> dict:
    """Return loss and LoRA gradients of an NF4 model, whole and then split over the ranks by FSDP2."""
    import torch
    from peft import get_peft_model
    from torch.distributed.fsdp import fully_shard

    from persona_lib.config import load_profile
    from persona_lib.models import llm
    from persona_lib.training import trainers

    torch.manual_seed(0)
    loaded = llm.load_base(base, quantization="nf4", storage=storage)
    model = get_peft_model(loaded, trainers.lora_config(load_profile("everyday")))
    for name, parameter in guards.trainable_parameters(model).items():
        if "lora_B" in name:  # zero at first, which would leave lora_A without gradients
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(4, 64, (4, 12))
    before = loss_and_gradients(model, ids)
    packed = llm.linear4bit_layers(model)[0][1]
    shape = list(packed.weight.shape)
    for layer in model.get_base_model().model.layers:
        fully_shard(layer)
    fully_shard(model)
    after = loss_and_gradients(model, ids)
    model.reshard()
    part, kind = list(packed.weight.to_local().shape), str(packed.weight.dtype)
    return {"before": before, "after": after, "whole": shape, "part": part, "type": kind}


def loss_and_gradients(model, ids) -> dict:
    """Return the loss of predicting the ids and the adapter's gradients, gathered if they are split."""
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = {name: p.grad for name, p in guards.trainable_parameters(model).items()}
    whole = {n: (g.full_tensor() if hasattr(g, "full_tensor") else g).tolist() for n, g in gradients.items()}
    return {"loss": float(loss), "gradients": whole}


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
