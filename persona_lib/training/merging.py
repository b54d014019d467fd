"""One adapter, or whole weights, out of a stack of adapters, without losing what the adapters learned.

Two LoRA adapters that are active together equal one of the summed rank: their factors side by side, the
scales folded in. That is exact on any base. Merging into the weights is done in float32 only: in four
bits most of a correction is rounded away. A base that was trained on in NF4 is first turned into the
numbers that its four bits stand for, and ``check_merge`` measures what the merged weights do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.models.llm import ModelError, attach_adapters, linear4bit_layers, load_base, using_adapters
from persona_lib.models.tokens import encode

PLAIN = {"bias": "none", "use_dora": False, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
MAX_LOST_SHARE = 0.02  # of the divergence between policy and base; a merge in float loses far less


@dataclass(frozen=True)
class MergeCheck:
    """How far merged weights are from the policy: mean KL divergences in nats per token of ``rows`` rows.

    ``kl`` is KL(policy || merged), ``kl_base`` is KL(policy || base without adapters): what there is to lose.
    """

    kl: float
    kl_base: float
    rows: int
    tokens: int


def read_config(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration; raises ModelError if it is more than a plain LoRA."""
    path = folder / "adapter_config.json"
    if not path.exists():
        raise ModelError(f"{path} is missing: {folder} holds no adapter")
    config = store.read_json(path)
    for name, plain in PLAIN.items():
        if config.get(name, plain) not in (plain, None):
            raise ModelError(f"{path}: {name}={config[name]!r}: only plain LoRA adapters can be joined")
    if config.get("modules_to_save"):
        raise ModelError(f"{path}: modules_to_save is set: only plain LoRA adapters can be joined")
    return config


def lora_rank(folder: Path) -> int:
    """Return the rank of a plain LoRA adapter on disk."""
    return read_config(folder)["r"]


def join_factors(parts: Sequence[dict[str, Any]], scales: Sequence[float]) -> dict[str, Any]:
    """Return the joined adapter's factors: A in rows [sum of r, in], s B in columns [out, sum of r]."""
    import torch

    joined = {}
    for name in parts[0]:
        if ".lora_A." in name:
            joined[name] = torch.cat([part[name].float() for part in parts], dim=0)
        else:
            scaled = [scale * part[name].float() for part, scale in zip(parts, scales, strict=True)]
            joined[name] = torch.cat(scaled, dim=1).contiguous()
    return joined


def join_adapters(folders: Sequence[Path], target: Path) -> int:
    """Write the one adapter that equals these adapters stacked; returns its rank, the sum of theirs.

    ``lora_alpha`` of the result is its rank (scale 1). Raises ModelError if the adapters differ in the
    layers they change or are not plain LoRA.
    """
    from safetensors.torch import load_file, save_file

    configs = [read_config(Path(folder)) for folder in folders]
    parts = [load_file(Path(folder) / "adapter_model.safetensors") for folder in folders]
    for folder, part in zip(folders, parts, strict=True):
        if part.keys() != parts[0].keys():
            other = sorted(part.keys() ^ parts[0].keys())[0]
            raise ModelError(f"{folder} and {folders[0]} change different layers ({other}): cannot be joined")
    rank = sum(config["r"] for config in configs)
    joined = join_factors(parts, [config["lora_alpha"] / config["r"] for config in configs])
    target.mkdir(parents=True, exist_ok=True)
    save_file(joined, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {**configs[0], "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "inference_mode": True}
    store.write_json(target / "adapter_config.json", config)
    return rank


def completion_logits(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> list[Any]:
    """Return, per row of (prompt ids, completion ids), the logits that predict the completion's tokens.

    Each is a float32 tensor [completion, vocabulary] on the CPU; rows are computed one at a time.
    """
    import torch

    found = []
    with torch.inference_mode():
        for prompt, completion in rows:
            ids = torch.tensor([prompt + completion], device=model.device)
            output = model(input_ids=ids, use_cache=False, logits_to_keep=len(completion) + 1)
            found.append(output.logits[0, :-1].float().cpu())
    return found


def mean_divergence(policy: Sequence[Any], other: Sequence[Any]) -> float:
    """Return KL(policy || other) in nats from logits, the mean over all positions of all rows."""
    import torch

    sums = []
    for p, q in zip(policy, other, strict=True):
        p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        sums.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(sums).mean().item()


def merge_adapters(base: Any, folders: Sequence[Path]) -> Any:
    """Return the base with the adapters merged into its weights, in float32.

    Raises ModelError for a base with layers in four bits: load it with ``expand=True``.
    """
    layers = linear4bit_layers(base)
    if layers:
        raise ModelError(
            f"layer {layers[0][0]} is in four bits: a merge would round away what was learned; load the "
            "base with expand=True"
        )
    return attach_adapters(base.float(), folders).merge_and_unload()


def write_merged(
    source: tuple[str, str], quantization: str, dtype: str, folders: Sequence[Path], target: Path
) -> None:
    """Write base and adapters as one float32 model; a base in NF4 is expanded first."""
    base = load_base(*source, quantization, dtype, expand=quantization == "nf4")
    merge_adapters(base, folders).save_pretrained(target)


def check_merge(
    source: tuple[str, str],
    quantization: str,
    dtype: str,
    folders: Sequence[Path],
    merged: Path,
    tokenizer: Any,
    texts: Sequence[tuple[str, str]],
) -> MergeCheck:
    """Measure what a merged model on disk does against the unmerged policy, as it was trained.

    ``texts`` are (prompt, completion) pairs. Raises ModelError if more than ``MAX_LOST_SHARE`` of what
    the adapters changed is lost.
    """
    rows = [encode(tokenizer, *text, f"check_merge, row {n}") for n, text in enumerate(texts)]
    model = attach_adapters(load_base(*source, quantization, dtype), folders)
    policy = completion_logits(model, rows)
    with using_adapters(model, []):
        base = completion_logits(model, rows)
    del model
    found = completion_logits(load_base(merged), rows)
    tokens = sum(len(completion) for _, completion in rows)
    check = MergeCheck(
        mean_divergence(policy, found), mean_divergence(policy, base), rows=len(rows), tokens=tokens
    )
    if check.kl > max(MAX_LOST_SHARE * check.kl_base, 1e-6):
        raise ModelError(
            f"{merged}: KL(policy || merged) is {check.kl:.3g} nats per token, more than "
            f"{MAX_LOST_SHARE:.0%} of KL(policy || base) = {check.kl_base:.3g}: too much is lost"
        )
    return check
