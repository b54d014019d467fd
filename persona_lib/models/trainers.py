"""TRL's trainers as this package uses them, and guards: what would ruin a run silently becomes an error.

Merging the SFT adapter into the base and training a new one for DPO, as the paper's authors do, loses most of
what SFT learned if the base is in four bits. Stacking the new adapter on the frozen SFT adapter is the same
function with the same gradients. In float32, where nothing is lost, ``merge_adapters`` merges, for time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from persona_lib.models import kernels, packing
from persona_lib.models.load import ModelError
from persona_lib.settings import ConfigError, Profile


def trainable_parameters(model: Any) -> dict[str, Any]:
    """Return the parameters that an optimiser would move, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def check_adapters(model: Any) -> None:
    """Raise ModelError unless exactly the weights of the adapter "default" are trainable, in float32."""
    import torch

    found = {name: p.dtype for name, p in trainable_parameters(model).items()}
    wrong = [n for n, dtype in found.items() if ".default." not in n or dtype != torch.float32]
    if wrong or not found:
        said = f"{wrong[0]} in {found[wrong[0]]}" if wrong else "nothing"
        raise ModelError(f"adapter 'default' alone should be trainable, in float32; trainable is {said}")


def learning_guard() -> Any:
    """Return a callback that keeps both adapters active and raises ModelError when nothing is learned."""
    from transformers import TrainerCallback

    class LearningGuard(TrainerCallback):
        before: dict[str, Any] | None = None

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            activate_stack(model)  # a resumed Trainer leaves one adapter active
            self.before = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}

        def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
            if self.before is None or optimizer.param_groups[0]["lr"] == 0:
                return
            now = trainable_parameters(model)
            if not any(bool((now[name] != old).any()) for name, old in self.before.items()):
                raise ModelError("no trainable parameter moved in the first step: nothing is learned")
            self.before = None

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not 0 < logs.get("grad_norm", 1.0) < math.inf:
                said = f"the gradient's norm is {logs['grad_norm']} in step {state.global_step}"
                raise ModelError(f"{said}: nothing is learned; lower the learning rate")

    return LearningGuard()


def progress_lines(name: str) -> Any:
    """Return a callback that logs twelve times a run, or more, and prints a line per log."""
    from transformers import TrainerCallback

    class ProgressLines(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_log |= state.global_step % max(1, state.max_steps // 12) == 0

        def on_log(self, args, state, control, logs=None, **kwargs):
            step = f"step {state.global_step}/{state.max_steps}"
            for key in {"loss", "eval_loss"} & logs.keys():
                print(f"{name}: {step}, {key} {logs[key]:.4f}", flush=True)

    return ProgressLines()


# --- Several processes: their number, and this one's, as ``accelerate launch`` and ``torchrun`` say ---

PROCESSES, NUMBER = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


def in_main(do: Callable[..., Any], *args: Any) -> Any:
    """Call a function in the main process once all have come here; returns its result in all of them."""
    if PROCESSES == 1:
        return do(*args)
    import torch
    from accelerate import PartialState, utils

    PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()
    return utils.broadcast_object_list([do(*args) if NUMBER == 0 else None])[0]


def trainer_settings(profile: Profile, method: str, seed: int, output: Path, rows: int = 0) -> dict[str, Any]:
    """Return the settings that SFT and DPO share, every one that matters given explicitly.

    ``dpo.max_steps`` is given only where the epochs have more steps: Trainer takes a limit for a goal.
    Several processes validate row by row, so that rows that fill up a batch do not count.
    """
    import torch

    own = getattr(profile, method)
    if own.batch_size % PROCESSES:
        said = f"{method}.batch_size: {PROCESSES} processes cannot share {own.batch_size} rows equally"
        raise ConfigError(f"{said}; use a multiple of {PROCESSES}")
    limit = own.max_steps if method == "dpo" else 0
    limited = 0 < limit < math.ceil(rows / own.batch_size) * own.epochs
    return {
        "output_dir": str(output),
        "seed": seed,
        "data_seed": seed,
        "learning_rate": own.learning_rate,
        "num_train_epochs": own.epochs,
        "max_steps": limit if limited else -1,
        "per_device_train_batch_size": own.batch_size // PROCESSES,
        "per_device_eval_batch_size": 8 if method == "dpo" and PROCESSES == 1 else 1,
        "train_sampling_strategy": "sequential" if limit else "random",
        "max_length": profile.training.max_length,
        "lr_scheduler_type": "linear",
        "warmup_steps": profile.training.warmup,  # below 1: a share of all steps
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": profile.base.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "report_to": "none",
        "disable_tqdm": True,
    }


def lora_config(profile: Profile) -> Any:
    """Return the LoRA configuration of every adapter."""
    from peft import LoraConfig

    lora = profile.lora
    sizes: dict[str, Any] = {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    return LoraConfig(**sizes, target_modules=list(lora.targets), bias="none", task_type="CAUSAL_LM")


def activate_stack(model: Any) -> None:
    """Activate the trained adapter ("default") on top of the frozen SFT adapter ("ref"), if that is there."""
    if "ref" in model.peft_config:
        model.base_model.set_adapter(["default", "ref"])
        model.base_model.set_requires_grad("ref", False)


def make_trainer(
    profile: Profile,
    method: str,
    seed: int,
    base: Any,
    tokenizer: Any,
    data: dict[str, Any],
    output: Path,
    sft: Path | None = None,
) -> Any:
    """Build TRL's trainer of "sft" or "dpo" with an adapter "default" to train on a frozen base.

    ``data`` holds datasets "train" and "val" with columns prompt and completion (or chosen and rejected). DPO
    starts from the adapter in the folder ``sft``: TRL copies it to a frozen adapter "ref", the reference,
    whose log-probabilities are computed once, here. ``merge_adapters``: the base takes it in, for reference.
    """
    from peft import PeftModel, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import set_seed
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    set_seed(seed)
    settings = trainer_settings(profile, method, seed, output, len(data["train"]))
    packed = profile.training.packing and packing.takes_parts(base)
    base = packing.accept_packed(base) if packed else base
    pad, config_of_new = tokenizer.pad_token_id, None
    if method == "sft":
        settings |= {"completion_only_loss": profile.training.completion_only_loss}
        settings |= {"packing": False, "padding_free": False}
        collator = partial(packing.sft_batch, pad=pad)
        model = get_peft_model(base, lora_config(profile))
    else:
        losses = {"sigmoid": 1.0, "sft": profile.dpo.sft_weight}  # sft: on the preferred response
        losses = {name: weight for name, weight in losses.items() if weight}
        settings |= {"loss_type": [*losses], "loss_weights": [*losses.values()]}
        settings |= {"beta": profile.dpo.beta, "disable_dropout": True, "precompute_ref_log_probs": True}
        settings |= {"precompute_ref_batch_size": settings["per_device_train_batch_size"]}
        collator = partial(packing.dpo_batch, pad=pad, max_length=profile.training.max_length)
        model = PeftModel.from_pretrained(base, str(sft), is_trainable=True)
        if profile.merge_adapters:
            model, config_of_new = model.merge_and_unload(), lora_config(profile)
    kinds: Any = (SFTTrainer, SFTConfig) if method == "sft" else (DPOTrainer, DPOConfig)
    make, configure = kinds
    config = configure(**settings)
    config._n_gpu = min(config.n_gpu, 1)  # Trainer would spread one process over all GPUs that it sees
    trainer = make(
        model=model,
        peft_config=config_of_new,
        args=config,
        data_collator=collator if packed else None,
        processing_class=tokenizer,
        train_dataset=data["train"],
        eval_dataset=data["val"],
    )
    for parameter in trainable_parameters(trainer.model).values():
        parameter.data = parameter.data.float()  # TRL makes QLoRA's bfloat16, which loses small updates
    if "ref" in trainer.model.peft_config:  # TRL's copy of the SFT adapter: "default" becomes a fresh one
        for layer in (m for m in trainer.model.modules() if isinstance(m, LoraLayer)):
            layer.reset_lora_parameters("default", init_lora_weights=True)
    activate_stack(trainer.model)
    if packed:
        kernels.lean_lora(trainer.model)
    return trainer


def check_dpo_start(trainer: Any, profile: Profile, rows: int = 16) -> None:
    """Raise ModelError unless DPO starts with a mean reward margin of 0, on some validation rows."""
    import torch

    some = trainer.eval_dataset.select(range(min(rows, len(trainer.eval_dataset))))
    trainer.model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        for batch in trainer.get_eval_dataloader(some):
            trainer.compute_loss(trainer.model, batch)
    margins = trainer._metrics["eval"].pop("rewards/margins")
    trainer._metrics["eval"].clear()
    margin = sum(margins) / len(margins)
    if not abs(margin) <= (1e-3 if profile.base.dtype == "float32" else 0.05):
        said = f"reward margin before the first step is {margin:.4g}, not 0"
        raise ModelError(f"{said}: policy and reference differ (is the SFT adapter active in both?)")
