"""Language models: load a base (also in NF4), stack adapters on it, score completions.

A policy is a base and the names of the adapters that are active on it, so one loaded base serves every arm.
Adapters stay beside the weights: merging in four bits loses most of what they learned. In float32 it loses
nothing and saves time: there ``merge_adapters`` adds them to the weights while they are active.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from persona_lib import hub, store, weights
from persona_lib.models.tokens import chat_format, check_tokenizer, encode
from persona_lib.prompts import ChatFormat

NF4_BLOCK = 64
# Tokens to pad with, in this order: those made for it, reserved ones (Llama-3), and ones that no text of ours
# has (Qwen2.5, SmolLM2; <unk> of Llama-2 and Mistral, which spell unknown characters in bytes).
PAD_TOKENS = (
    *("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>"),
    *("<|fim_pad|>", "<empty_output>", "<unk>"),
)


class ModelError(RuntimeError):
    """A model that would load and then be silently wrong; the message says why and the mend."""


def model_key(source: str | Path, revision: str = "") -> str:
    """Return what identifies a model: the hash of packaged weights, a folder's content, or the hub's name and
    commit."""
    folder = Path(source)
    if weights.is_packaged(source):
        return f"{source}@{weights.entry(str(source))['sha256']}"
    if not folder.is_dir():
        return "{}@{}".format(*hub.pinned(source, revision))
    if (folder / "done.json").exists():
        return store.read_json(folder / "done.json")["key"]
    return store.folder_hash(folder)


def load_tokenizer(source: str | Path, revision: str = "") -> Any:
    """Load a tokenizer that pads on the left (for generation) with a pad token distinct from EOS.

    A missing pad token is taken from the vocabulary (``PAD_TOKENS``), never added, so that the
    embedding keeps its size. Mistral's has nothing but "<unk>", which byte fallback never writes.
    Raises TokenError if there is none.
    """
    from transformers import AutoTokenizer

    name, commit = hub.pinned(source, revision)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=commit, padding_side="left")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        known = tokenizer.get_vocab()
        tokenizer.pad_token = next((token for token in PAD_TOKENS if token in known), None)
    check_tokenizer(tokenizer)
    return tokenizer


@cache
def format_of(source: str | Path, revision: str = "") -> ChatFormat | None:
    """Return how a model is asked: its own chat format, or None for a base model (the paper's lines)."""
    return chat_format(load_tokenizer(source, revision))


def device() -> str:
    """Return where models live: this rank's GPU ("cuda:0" where there is one process), else "cpu"."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def quantization_config(quantization: str, compute_dtype: str, storage: str = "uint8") -> Any:
    """Return the BitsAndBytesConfig of NF4 with double quantisation (QLoRA), or None for "none".

    ``storage`` is the type that the packed weights are kept as; the bytes are the same.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if quantization == "none":
        return None
    if quantization != "nf4":
        raise ValueError(f"quantization={quantization!r}: use none or nf4")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype),
        bnb_4bit_quant_storage=getattr(torch, storage),
    )


def load_base(
    source: str | Path,
    revision: str = "",
    quantization: str = "none",
    compute_dtype: str = "float32",
    expand: bool = False,
    storage: str = "uint8",
) -> Any:
    """Load a causal language model, frozen and in eval mode, on the one device there is.

    ``compute_dtype`` is passed explicitly (the library's default, "auto", would be bfloat16 for
    Llama). ``expand`` turns NF4 weights into the numbers that they stand for once, instead of in every
    forward pass: the same function, faster, for the memory of an unquantised model. FSDP splits only
    weights of one floating type: ``storage`` must be ``compute_dtype`` there. Raises ModelError for a layer
    that NF4 would quantise wrongly.
    """
    import torch
    from transformers import AutoModelForCausalLM

    where, (name, commit) = device(), hub.pinned(source, revision)
    model = AutoModelForCausalLM.from_pretrained(
        name,
        revision=commit,
        dtype=getattr(torch, compute_dtype),
        quantization_config=quantization_config(quantization, compute_dtype, storage),
        device_map={"": where},
    )
    if quantization == "nf4":
        check_nf4_layers(model)
        keep_weights_differentiable(model, where)
        if expand:
            model = model.dequantize()
    return model.requires_grad_(False).eval()


def linear4bit_layers(model: Any) -> list[tuple[str, Any]]:
    """Return the names and modules of all layers in four bits."""
    from bitsandbytes.nn import Linear4bit

    return [(name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit)]


def check_nf4_layers(model: Any) -> None:
    """Raise ModelError if no layer is in four bits or one has rows that NF4's blocks of 64 do not divide."""
    layers = linear4bit_layers(model)
    if not layers:
        raise ModelError(
            "no layer was quantised: the model has no linear layer that bitsandbytes can replace"
        )
    for name, module in layers:
        if module.in_features % NF4_BLOCK:
            raise ModelError(
                f"layer {name}: in_features={module.in_features} is not a multiple of {NF4_BLOCK}; NF4 would "
                "be silently wrong: use sizes that are multiples of 64, or quantization=none"
            )


def keep_weights_differentiable(model: Any, where: str) -> None:
    """Switch off bitsandbytes' repacking of weights on AVX512-BF16 processors.

    The first forward pass without gradients (an evaluation, the reference log-probabilities) would
    repack the weights in place for a kernel that has no backward pass; from then on every gradient is
    zero and nothing says so. Raises ModelError on a processor if this version has no such switch.
    """
    for name, module in linear4bit_layers(model):
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        elif where == "cpu":
            raise ModelError(
                f"layer {name}: this bitsandbytes has no Linear4bit.support_avx512bf16_for_cpu, so training "
                "in NF4 on a processor cannot be guarded: install the pinned version"
            )


def attach_adapters(model: Any, folders: Sequence[Path]) -> Any:
    """Load adapters onto a base (or on what this function returned before) and activate just these, stacked.

    An adapter is named after its folder ("sft-chosen", "dpo-chosen"); one already loaded is not loaded
    again. Returns a PeftModel, frozen and in eval mode. The first folder's adapter is the lowest.
    """
    from peft import PeftModel

    if not folders:
        raise ValueError("attach_adapters needs at least one folder; without adapters use the base itself")
    for folder in map(Path, folders):
        if not isinstance(model, PeftModel):
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=folder.name)
        elif folder.name not in model.peft_config:
            model.load_adapter(str(folder), folder.name)
    activate(model, [Path(folder).name for folder in folders])
    return model


def activate(model: Any, names: Sequence[str]) -> None:
    """Make exactly these adapters active (in this order), frozen, in eval mode.

    Raises ValueError on an unknown name, ModelError while adapters are merged into the weights: those active
    would be ignored.
    """
    unknown = [name for name in names if name not in model.peft_config]
    if unknown or not names:
        raise ValueError(
            f"no adapter {', '.join(unknown) or '(empty list)'}; loaded: {', '.join(model.peft_config)}"
        )
    if any(getattr(module, "merged_adapters", []) for module in model.modules()):
        raise ModelError("another policy's adapters are merged into the weights: let its answers end first")
    model.base_model.set_adapter(list(names), inference_mode=True)
    model.requires_grad_(False).eval()


@contextmanager
def using_adapters(model: Any, names: Sequence[str], merge: bool = False) -> Iterator[Any]:
    """Within the block, run one policy: these adapters stacked, or the bare base if ``names`` is empty.

    ``merge`` adds them to the weights within the block (see ``merged``).
    """
    if not names and not hasattr(model, "peft_config"):
        yield model
    elif not names:
        with model.disable_adapter():
            yield model
    else:
        before = list(model.active_adapters)
        activate(model, names)
        try:
            with merged(model) if merge else nullcontext():
                yield model
        finally:
            activate(model, before)


def mergeable_layers(model: Any) -> list[Any]:
    """Return the layers with adapters; raises ModelError if their weights should not take them in.

    They have to be float32, and not the embedding's, which a tied head shares.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    if narrow := {str(weight.dtype) for weight in weights if weight.dtype != torch.float32}:
        raise ModelError(f"weights in {', '.join(sorted(narrow))}: a merge would round away what was learned")
    if any(weight is model.get_input_embeddings().weight for weight in weights):
        raise ModelError("an adapter on the head, which shares its weights with the embedding: merge none")
    return layers


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """Within the block the active adapters are added to the weights, and not computed beside them.

    After it every weight is the very one from before: subtracting what was added would leave rounding behind.
    Both are held meanwhile. See ``mergeable_layers`` for what raises.
    """
    layers = mergeable_layers(model)
    weights = [layer.get_base_layer().weight.data for layer in layers]
    try:
        for layer in layers:
            layer.merge(safe_merge=True)
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.get_base_layer().weight.data = weight
            layer.merged_adapters.clear()


def sequence_log_probs(
    model: Any, tokenizer: Any, prompts: Sequence[str], completions: Sequence[str], batch_size: int
) -> Any:
    """Return log p(completion and EOS | prompt) per row, in nats, summed over tokens: float64 array [n].

    Batches are sorted by length and padded on the right; in float32 the result does not depend on them.
    """
    import numpy as np
    import torch

    names = [f"sequence_log_probs, row {number}" for number in range(len(prompts))]
    rows = [encode(tokenizer, p, c, n) for p, c, n in zip(prompts, completions, names, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    result = np.zeros(len(rows))
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            result[chosen] = batch_log_probs(model, [rows[i] for i in chosen], tokenizer.pad_token_id)
    return result


def batch_log_probs(model: Any, rows: Sequence[tuple[list[int], list[int]]], pad: int) -> Any:
    """Return summed log-probabilities of the completions of one batch of (prompt ids, completion ids)."""
    import torch
    from torch.nn.functional import cross_entropy

    width = max(len(p) + len(c) for p, c in rows)
    keep = (
        width - min(len(p) for p, _ in rows) + 1
    )  # logits are needed from the shortest prompt's last token on
    ids = torch.tensor([p + c + [pad] * (width - len(p) - len(c)) for p, c in rows])
    labels = torch.tensor([[-100] * len(p) + c + [-100] * (width - len(p) - len(c)) for p, c in rows])
    mask = torch.tensor([[1] * (len(p) + len(c)) + [0] * (width - len(p) - len(c)) for p, c in rows])
    where = next(model.parameters()).device
    logits = model(
        input_ids=ids.to(where), attention_mask=mask.to(where), use_cache=False, logits_to_keep=keep
    ).logits[:, :-1]
    target = labels[:, -logits.shape[1] :].to(where)
    losses = cross_entropy(
        logits.float().flatten(0, 1), target.flatten(), ignore_index=-100, reduction="none"
    )
    return -losses.double().view(target.shape).sum(dim=1).cpu().numpy()
