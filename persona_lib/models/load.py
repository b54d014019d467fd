"""Load language models (also in NF4), encode texts for them, stack LoRA adapters, score and join.

Texts are tokenised as TRL's trainers do: what is checked here is trained on and scored. A policy is a base
and the names of the adapters that are active on it: one loaded base serves every arm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from persona_lib import store, weights
from persona_lib.models import kernels, packing
from persona_lib.prompts import ChatFormat

Source = str | Path  # ``pypi:NAME``, a hub id or a folder

# --- From texts to token ids, checked ---


class ModelError(ValueError):
    """Texts, a model or training that would be silently wrong; the message says why and the way out."""


def chat_format(tokenizer: Any) -> ChatFormat:
    """Return the pieces of the tokenizer's chat template; without one only the special tokens are named.

    Where a template has no system turn, the persona is put before the question. BOS is left out where the
    tokenizer adds it by itself.
    """
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    special = tuple(sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True))
    if not getattr(tokenizer, "chat_template", None):
        return ChatFormat((), (), tokenizer.eos_token, special)
    persona, prompt, bos = "PERSONA-GOES-HERE", "PROMPT-GOES-HERE", tokenizer.bos_token
    adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]

    def pieces(*turns: tuple[str, str]) -> tuple[str, ...]:
        messages = [{"role": role, "content": text} for role, text in turns]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tuple(re.split(f"{persona}|{prompt}", text.removeprefix(bos) if adds_bos else text))

    try:
        told = pieces(("system", persona), ("user", prompt))
    except Exception:  # jinja2's own class: the template refuses a system turn
        told = ()
    if len(told) != 3:  # refused or dropped
        told = pieces(("user", f"{persona}\n\n{prompt}"))
    return ChatFormat(told, pieces(("user", prompt)), tokenizer.eos_token, special)


def encode(tokenizer: Any, prompt: str, completion: str, name: str = "row") -> tuple[list[int], list[int]]:
    """Return the ids of the prompt (with BOS if the tokenizer adds one) and of the completion with EOS.

    Raises ModelError naming the row if a token spans the boundary (the model would train on another context
    than it generates from), if BOS is doubled, or if the completion is empty.
    """
    eos = tokenizer.eos_token
    ended = completion if completion.endswith(eos) else completion + eos
    prompt_ids = tokenizer(prompt)["input_ids"]
    whole = tokenizer(prompt + ended)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id and prompt_ids[:2] == [bos, bos]:
        raise ModelError(f"{name}: BOS is doubled: the prompt starts with a literal {tokenizer.bos_token!r}")
    if whole[: len(prompt_ids)] != prompt_ids:
        around = tokenizer.decode(prompt_ids[-2:]) + "|" + completion[:12]
        said = f"{name}: a token spans the boundary between prompt and completion ({around!r})"
        raise ModelError(f"{said}: see prompts.completion_text; the prompt must not end in a space")
    if len(whole) - len(prompt_ids) < 2:
        raise ModelError(f"{name}: the completion is empty: drop the row before training")
    return prompt_ids, whole[len(prompt_ids) :]


def count_rows(
    tokenizer: Any, rows: Iterable[Mapping[str, str]], max_length: int, where: str, drops: bool = True
) -> dict[str, int]:
    """Check every row and count what TRL does to them: it truncates the ends of completions and drops rows.

    It drops rows whose prompt fills ``max_length``, unless the loss is on prompts too (``drops``). Raises
    ModelError (see ``encode``), also if no row is left.
    """
    total = truncated = dropped = longest = 0
    for row in rows:
        names = [name for name in ("completion", "chosen", "rejected") if name in row]
        coded = [encode(tokenizer, row["prompt"], row[n], f"{where}, row {row['id']}, {n}") for n in names]
        length = max(len(prompt) + len(completion) for prompt, completion in coded)
        lost = drops and len(coded[0][0]) >= max_length
        total, dropped, longest = total + 1, dropped + lost, max(longest, length)
        truncated += not lost and length > max_length
    if total == dropped:
        way_out = f"raise max_length={max_length}" if total else "no row has a persona: see generator.model"
        raise ModelError(f"{where}: none of {total} rows can be trained on: {way_out}")
    return {"rows": total, "truncated": truncated, "dropped": dropped, "tokens in the longest": longest}


# --- Bases ---

# Tokens to pad with, in this order: those made for it, reserved ones (Llama-3), and ones that no text of ours
# has (Qwen2.5, SmolLM2; <unk> of Llama-2 and Mistral, which spell unknown characters in bytes).
PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>",
              "<|fim_pad|>", "<empty_output>", "<unk>")  # fmt: skip


def model_key(source: Source, revision: str = "") -> str:
    """Return what identifies a model: packaged weights' hash, a folder's content, or hub name and commit."""
    if weights.is_packaged(source):
        return f"{source}@{weights.entry(str(source))['sha256']}"
    if Path(source).is_dir():
        return store.folder_hash(Path(source))
    return "{}@{}".format(*weights.pinned(source, revision))


def load_tokenizer(source: Source, revision: str = "") -> Any:
    """Load a tokenizer that pads on the left (for generation) with a pad token distinct from EOS.

    With pad == EOS a collator that masks padding also masks EOS, and the model never learns to stop. Raises
    ModelError if the vocabulary has no other (``PAD_TOKENS``), or no EOS.
    """
    from transformers import AutoTokenizer

    name, commit = weights.pinned(source, revision)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=commit, padding_side="left")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{source}: the tokenizer has no EOS token: set eos_token before saving it")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        known = tokenizer.get_vocab()
        tokenizer.pad_token = next((token for token in PAD_TOKENS if token in known), None)
        if tokenizer.pad_token is None:
            raise ModelError(f"{source}: no token to pad with other than EOS: set pad_token before saving it")
    return tokenizer


def tokenizer_at_hand(source: str) -> Any:
    """Return a model's tokenizer, or None if it is not on this machine."""
    if weights.is_packaged(source) and not weights.is_fetched(source):
        return None
    try:
        return load_tokenizer(source)
    except (ImportError, OSError, ValueError):
        return None


@cache
def format_of(source: Source, revision: str = "") -> ChatFormat:
    """Return how a model is asked: in its own chat format, a base model in the paper's lines."""
    return chat_format(load_tokenizer(source, revision))


def device() -> str:
    """Return where models live: the GPU of this process, the first visible if it is alone; or the CPU."""
    import torch

    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def nf4_config(compute_dtype: str) -> Any:
    """Return the BitsAndBytesConfig of NF4 with double quantisation (QLoRA)."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype),
    )


def load_base(source: Source, revision: str = "", quantization: str = "none", dtype: str = "float32") -> Any:
    """Load a causal language model in a ``dtype`` (of NF4: to compute in), frozen; see `guard_nf4`."""
    import torch
    from transformers import AutoModelForCausalLM

    kernels.keep_few_kernels(dtype)
    name, commit = weights.pinned(source, revision)
    model = AutoModelForCausalLM.from_pretrained(
        name,
        revision=commit,
        use_safetensors=True,  # a pickle could run code
        dtype=getattr(torch, dtype),
        quantization_config=nf4_config(dtype) if quantization == "nf4" else None,
        device_map={"": device()},
    )
    if quantization == "nf4":
        guard_nf4(model)
    return kernels.lean_linear(model.requires_grad_(False).eval())


def check_targets(model: Any, targets: Sequence[str]) -> None:
    """Raise ModelError for a name of ``lora.targets`` that no layer has; PEFT would leave it out silently."""
    names = [f".{name}" for name, module in model.named_modules() if hasattr(module, "weight")]
    if absent := [name for name in targets if not any(layer.endswith(f".{name}") for layer in names)]:
        known = ", ".join(sorted({layer.rpartition(".")[2] for layer in names}))
        raise ModelError(f"lora.targets: the base has no layer {', '.join(absent)}; it has {known}")


def guard_nf4(model: Any) -> None:
    """Raise ModelError if no layer is in four bits, or if NF4's blocks of 64 do not divide a layer's rows.

    On AVX512-BF16 processors the first forward pass without gradients would repack weights for a kernel that
    has no backward pass: from then on every gradient is zero. That is switched off.
    """
    from bitsandbytes.nn import Linear4bit

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    if not layers:
        raise ModelError("no layer was quantised: bitsandbytes can replace no layer of this model")
    for name, module in layers:
        if module.in_features % 64:
            said = f"layer {name}: in_features={module.in_features} is not a multiple of 64"
            raise ModelError(f"{said}; NF4 would be silently wrong: use quantization=none")
        if module.weight.device.type == "cpu" and not hasattr(module, "support_avx512bf16_for_cpu"):
            raise ModelError(f"layer {name}: this bitsandbytes would lose gradients: install the pinned one")
        module.support_avx512bf16_for_cpu = False


# --- Adapters ---


def read_adapter(folder: Path) -> dict[str, Any]:
    """Read an adapter's weights by name; ModelError for a file that cannot be read, or values not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "adapter_model.safetensors"
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path}: not readable ({error}); train it again with --force") from error
    if wrong := [name for name, values in weights.items() if not values.isfinite().all()]:
        raise ModelError(f"{path}: {wrong[0]} is not finite; train it again with --force")
    return weights


def attach_adapters(model: Any, folders: Sequence[Path]) -> Any:
    """Load adapters onto a base by their folders' names, activate just these; returns a frozen PeftModel."""
    from peft import PeftModel

    for folder in map(Path, folders):
        read_adapter(folder)
        if not isinstance(model, PeftModel):
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=folder.name)
        elif folder.name not in model.peft_config:
            model.load_adapter(str(folder), folder.name)
    activate(model, [Path(folder).name for folder in folders])
    return model


def activate(model: Any, names: Sequence[str]) -> None:
    """Make exactly these adapters active (in this order), frozen; ModelError while others are merged."""
    if unknown := set(names) - set(model.peft_config):
        raise ValueError(f"no adapter {', '.join(unknown)}; loaded: {', '.join(model.peft_config)}")
    if any(getattr(module, "merged_adapters", []) for module in model.modules()):
        raise ModelError("another policy's adapters are merged into the weights: let its answers end first")
    model.base_model.set_adapter(list(names), inference_mode=True)
    model.requires_grad_(False).eval()


@contextmanager
def using_adapters(model: Any, names: Sequence[str], merge: bool = False) -> Iterator[Any]:
    """Within the block, run one policy: these adapters stacked, or the bare base if ``names`` is empty.

    ``merge`` (see ``Profile.merge_adapters``) adds them to the weights meanwhile, for speed; the weights from
    before are held, and put back.
    """
    from peft.tuners.lora import LoraLayer

    if not names:
        with model.disable_adapter() if hasattr(model, "peft_config") else nullcontext():
            yield model
        return
    layers = [module for module in model.modules() if merge and isinstance(module, LoraLayer)]
    before = list(model.active_adapters)
    weights = [layer.get_base_layer().weight.data for layer in layers]
    activate(model, names)
    try:
        for layer in layers:
            layer.merge(safe_merge=True)
        yield model
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.get_base_layer().weight.data = weight
            layer.merged_adapters.clear()
        activate(model, before)


TILE = 64  # positions whose log-probabilities are computed at a time: their logits lie in the cache


def pair_log_probs(
    model: Any, tokenizer: Any, prompts: Sequence[str], pairs: Sequence[tuple[str, ...]], batch_size: int
) -> Any:
    """Return log p(response and EOS | prompt) of both responses (or of one), in nats: float64 array [n, 2].

    Rows are packed as in training (``packing``), so a prompt is computed once; one response at a time where
    attention cannot be replaced. In float32 all agree to about six digits.
    """
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    rows = []
    for n, (prompt, responses) in enumerate(zip(prompts, pairs, strict=True)):
        coded = [encode(tokenizer, prompt, text, f"scored row {n}") for text in responses]
        rows.append((coded[0][0], *(ids for _, ids in coded)))
    if shared := packing.takes_parts(model):
        packing.use_parts(model.config)
    else:
        rows, batch_size = [(prompt, ids) for prompt, *responses in rows for ids in responses], 1
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
    result, where = np.zeros((len(rows), len(rows[0]) - 1)), model.device
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        packed = packing.pack([rows[i] for i in chosen])
        texts = [rows[i][side] for side in range(1, len(rows[0])) for i in chosen]  # as the windows are
        windows = [window[: len(ids)] for window, ids in zip(packed["windows"], texts, strict=True)]
        inputs = {"input_ids": packed["ids"].to(where), "use_cache": False}
        inputs |= packing.decoder_inputs(packed, where) if shared else {}
        with torch.inference_mode():
            logits = model(**inputs, logits_to_keep=torch.cat(windows).to(where)).logits[0]
            labels = torch.tensor([t for ids in texts for t in ids], device=where)
            tiles = zip(logits.split(TILE), labels.split(TILE), strict=True)
            losses = torch.cat([cross_entropy(part.float(), y, reduction="none") for part, y in tiles])
        sums = [-part.sum().item() for part in losses.double().split([*map(len, texts)])]
        result[chosen] = np.reshape(sums, (-1, len(chosen))).T
    return result.reshape(len(prompts), -1)


def join_adapters(folders: Sequence[Path], target: Path) -> None:
    """Write the one adapter that equals these LoRA adapters stacked, without a base (peft would need one)."""
    import torch
    from safetensors.torch import save_file

    configs = [store.read_json(folder / "adapter_config.json") for folder in folders]
    parts, joined = [read_adapter(folder) for folder in folders], {}
    for name in parts[0]:
        is_b = ".lora_B." in name
        scales = [config["lora_alpha"] / config["r"] if is_b else 1.0 for config in configs]
        scaled = [part[name].float() * scale for part, scale in zip(parts, scales, strict=True)]
        joined[name] = torch.cat(scaled, dim=int(is_b)).contiguous()
    target.mkdir(parents=True, exist_ok=True)
    save_file(joined, target / "adapter_model.safetensors", metadata={"format": "pt"})
    (target / "adapter_model.safetensors").chmod(0o644)
    rank = sum(config["r"] for config in configs)
    config = {**configs[0], "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "inference_mode": True}
    store.write_json(target / "adapter_config.json", config)
