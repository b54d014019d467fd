"""Adapters trained in bfloat16, as TRL does with QLoRA, to measure what that loses.

TRL casts the adapters of a quantised base to bfloat16, and with them their gradients and Adam's moments. A
bfloat16 number has eight significant bits: an update smaller than about 1/500 of a weight is lost, and so is
the decay of the second moment. Here weights are stored as float32, so that forward and backward passes are as
fast as ever on processors without bfloat16 arithmetic, but every step of the optimiser is the bfloat16 one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from persona_lib.models.guards import trainable_parameters


def cast(parameter: Any, dtype: Any) -> None:
    """Change the type of a parameter and of its gradient, in place."""
    gradient, parameter.grad = parameter.grad, None
    parameter.data = parameter.data.to(dtype)
    parameter.grad = gradient.to(dtype)


@cache
def bfloat16_adamw() -> type:
    """Return AdamW whose every step is taken in bfloat16 on weights that are stored as float32."""
    import torch

    class Bfloat16AdamW(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            for parameter in moved:
                cast(parameter, torch.bfloat16)
                state = self.state[
                    parameter
                ]  # float32 after a resume: torch loads moments in the weights' type
                state |= {name: state[name].bfloat16() for name in ("exp_avg", "exp_avg_sq") if name in state}
            loss = super().step(closure)
            for parameter in moved:
                cast(parameter, torch.float32)
            return loss

    return Bfloat16AdamW


def round_steps(trainer: Any) -> None:
    """Make a trainer that has not begun train its adapter in bfloat16."""
    for parameter in trainable_parameters(trainer.model).values():
        parameter.data = parameter.data.bfloat16().float()
    _, settings = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    trainer.optimizer_cls_and_kwargs = bfloat16_adamw(), settings
