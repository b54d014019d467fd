"""Faster arithmetic on a CPU, with the results of transformers, PEFT and TRL up to rounding.

Float32 products with frozen weights go through oneDNN, LoRA layers copy less, the head computes no logits
twice. All of it reaches into libraries whose versions are pinned.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

TILE = 128  # positions whose logits are computed at a time: 25 MB at a vocabulary of 49,152


def keep_few_kernels(dtype: str) -> None:
    """Let oneDNN keep few of its kernels, of up to 1 MB each: every new number of tokens makes some.

    In bfloat16 all products are oneDNN's, and a training step has more than 32 kinds of them.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # read at the first product
        os.environ.setdefault(cache, "256" if dtype == "bfloat16" else "32")


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones: in training large ones are else mapped anew."""
    with suppress(AttributeError, OSError):  # another C library
        mallopt, map_from, trim_from = ctypes.CDLL(None).mallopt, -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        mallopt(map_from, 2**30) or mallopt(map_from, 2**25)  # the most that glibc before 2.35 takes
        mallopt(trim_from, 2**31 - 1)


def product(x: Any, weight: Any) -> Any:
    """Return x W^T of two matrices, without a gradient; of float32 on a CPU by oneDNN, if torch has it.

    torch's own choice, MKL, uses no AVX512 on AMD's processors: oneDNN is 1.1 to 1.4 times as fast there.
    """
    import torch

    both = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    if both and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu"):
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return x @ weight.T


@functools.cache
def lean_class() -> Any:
    """Return a linear layer that computes by ``product`` where no gradient is needed."""
    import torch

    class LeanLinear(torch.nn.Linear):
        def forward(self, x: Any) -> Any:
            if torch.is_grad_enabled() or self.bias is not None or x.dim() < 2:
                return super().forward(x)
            return product(x.flatten(0, -2), self.weight).view(*x.shape[:-1], self.out_features)

    return LeanLinear


def lean_linear(model: Any) -> Any:
    """Make the linear layers of a model ``lean_class``; returns the model."""
    import torch

    for layer in (module for module in model.modules() if type(module) is torch.nn.Linear):
        layer.__class__ = lean_class()
    return model


@functools.cache
def lora_product() -> Any:
    """Return the function x W^T + s sum_i (x A_i^T) B_i^T with a frozen W; all sums are in place.

    It is called with x, gate, W, s, A_1, B_1, A_2, ...; a product with B = 0 adds nothing, also in bfloat16.
    With a gate (else None) x stands for silu(gate) x, which is computed again for the gradient and not kept.
    """
    import torch
    from torch.nn.functional import silu

    class LoraProduct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, gate: Any, weight: Any, scale: float, *factors: Any) -> Any:
            given, factors = x.flatten(0, -2), tuple(factor.to(x.dtype) for factor in factors)
            gates = () if gate is None else (gate.flatten(0, -2),)
            rows = silu(*gates) * given if gates else given
            result, lows = product(rows, weight), []
            for a, b in zip(factors[::2], factors[1::2], strict=True):
                lows.append(rows @ a.T)
                result.addmm_(lows[-1], b.T, alpha=scale)
            ctx.save_for_backward(given, weight, *lows, *factors, *gates)
            ctx.scale, ctx.shape = scale, x.shape
            return result.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
            given, weight, *saved = ctx.saved_tensors
            (of_x, of_gate, _, _, *trained), grad = ctx.needs_input_grad, grad.flatten(0, -2)
            x_grad, grads = product(grad, weight.T) if of_x or of_gate else None, []
            n, gate_grad = len(trained) // 2, None
            gate = saved.pop() if len(saved) > 3 * n else None
            act = None if gate is None else silu(gate)
            rows = given if gate is None else act * given
            factors = zip(saved[:n], saved[n::2], saved[n + 1 :: 2], trained[::2], strict=True)
            for low, a, b, trains in factors:
                low_grad = (grad @ b) * ctx.scale
                if x_grad is not None:
                    x_grad.addmm_(low_grad, a)
                found = (low_grad.T @ rows, (grad.T @ low) * ctx.scale) if trains else ()
                grads += [part.float() for part in found] or [None, None]
            if x_grad is not None and gate is not None:
                gate_grad = torch.ops.aten.silu_backward(x_grad * given, gate).view(ctx.shape)
                x_grad.mul_(act)
            return x_grad if x_grad is None else x_grad.view(ctx.shape), gate_grad, None, None, *grads

    return LoraProduct


def lean_lora(model: Any) -> None:
    """Compute the layers of active adapters, and a Llama's gate, by ``lora_product`` on a CPU."""
    import torch
    from peft.tuners.lora import Linear
    from torch.nn.functional import silu
    from transformers.models.llama.modeling_llama import LlamaMLP

    def gated(mlp: Any, plain: Any, x: Any) -> Any:
        lean = isinstance(mlp.down_proj.forward, functools.partial)  # until its adapter is taken off
        return mlp.down_proj(mlp.up_proj(x), gate=mlp.gate_proj(x)) if lean else plain(x)

    def forward(layer: Any, plain: Any, x: Any, *args: Any, gate: Any = None, **kwargs: Any) -> Any:
        weight, active = layer.get_base_layer().weight, layer.active_adapters
        scales = {layer.scaling.get(name) for name in active}
        unlike = len(scales) != 1 or x.dtype != weight.dtype
        if layer.disable_adapters or layer.merged or unlike or args or kwargs:
            return plain(x if gate is None else silu(gate) * x, *args, **kwargs)
        factors = [part[name].weight for name in active for part in (layer.lora_A, layer.lora_B)]
        return lora_product().apply(x, gate, weight, *scales, *factors)

    for layer in (module for module in model.modules() if type(module) is Linear):
        base = layer.get_base_layer()
        weight = base.weight
        plain = all(isinstance(dropout, torch.nn.Identity) for dropout in layer.lora_dropout.values())
        plain = plain and type(base) in (torch.nn.Linear, lean_class())
        on_cpu = weight.dtype in (torch.float32, torch.bfloat16) and weight.device.type == "cpu"
        if plain and base.bias is None and on_cpu and not weight.requires_grad:
            layer.forward = functools.partial(forward, layer, layer.forward)  # type: ignore[method-assign]
    for mlp in (module for module in model.modules() if type(module) is LlamaMLP):
        if mlp.config.hidden_act == "silu":
            mlp.forward = functools.partial(gated, mlp, mlp.forward)  # type: ignore[method-assign]


@functools.cache
def frozen_head() -> Any:
    """Return the function from hidden states to their targets' log-probabilities under a frozen head.

    Its gradient, (1[target] - p) W, is linear in that of the result, so it is computed while the
    probabilities p are at hand: two matrix products, where TRL computes the logits again for a third.
    """
    import torch

    class FrozenHead(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, hidden: Any, weight: Any, targets: Any, outputs: tuple[str, ...]
        ) -> tuple[Any, ...]:
            ctx.given = dtype = hidden.dtype
            if torch.is_autocast_enabled("cpu"):
                dtype = torch.get_autocast_dtype("cpu")
            hidden, found, slopes = hidden.to(dtype), [], []
            for start in range(0, len(hidden), TILE):
                part, wanted = hidden[start : start + TILE], targets[start : start + TILE]
                logits = product(part, weight.to(dtype)).float()
                p, largest = logits.softmax(-1), logits.max(-1)
                total = largest.values - p.gather(1, largest.indices[:, None])[:, 0].log()
                log_prob = logits.gather(1, wanted[:, None])[:, 0] - total
                entropy = total - (p * logits).sum(-1) if "entropy" in outputs else total
                mean = logits.mean(-1) if "mean_logits" in outputs else total
                found.append((log_prob, entropy, mean, largest.indices == wanted))
                if ctx.needs_input_grad[0]:
                    p[torch.arange(len(p)), wanted] -= 1  # before p is rounded: near 1 little would be left
                    slopes.append(-product(p.to(dtype), weight.to(dtype).T).float())
            ctx.save_for_backward(*(torch.cat(slopes),) if slopes else ())
            ctx.set_materialize_grads(False)
            log_probs, *others = (torch.cat(values) for values in zip(*found, strict=True))
            ctx.mark_non_differentiable(*others)
            return log_probs, *others

        @staticmethod
        def backward(ctx: Any, grad: Any, *_: Any) -> tuple[Any, ...]:
            return (ctx.saved_tensors[0] * grad[:, None]).to(ctx.given), None, None, None

    return FrozenHead


@contextmanager
def lean_head(on: bool = True) -> Iterator[None]:
    """Within the block TRL's head on a CPU computes positions with a loss only, by ``frozen_head`` if it can.

    TRL's tiles of 4,096 positions lie in no cache. Reaches into TRL, whose version is pinned.
    """
    import torch
    from trl.trainer import utils

    if not on or torch.cuda.is_available():
        yield
        return
    keep_freed_memory()
    theirs = utils._ChunkedLogProbFunction

    class Head:
        @staticmethod
        def apply(hidden: Any, weight: Any, bias: Any, targets: Any, temperature: float, size: int,
                  softcap: Any, scale: float, outputs: tuple[str, ...]) -> tuple[Any, ...]:  # fmt: skip
            plain = bias is softcap is None and temperature == scale == 1 and len(targets)
            if not plain or weight.requires_grad or "log_sum_sq_probs" in outputs:
                return theirs.apply(hidden, weight, bias, targets, temperature, size, softcap, scale, outputs)
            log_probs, entropy, mean, top = frozen_head().apply(hidden, weight, targets, outputs)
            return log_probs, entropy, None, mean, top

    ours = mock.patch.object(utils, "_ChunkedLogProbFunction", Head)
    with ours, mock.patch.object(utils, "_use_triton", lambda device: True):  # positions with a loss only
        yield
