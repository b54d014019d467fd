"""TRL's trainers as this package uses them, and guards: what would ruin a run silently becomes an error.

Merging the SFT adapter into the base and training a new one for DPO, as the paper's authors do, loses most of
what SFT learned if the base is in four bits. Stacking the new adapter on the frozen SFT adapter is the same
function with the same gradients, on any base. In float32, where nothing is lost, ``merge_adapters`` merges
all the same, for time.

``accelerate launch`` starts several processes (ranks) that train one adapter in step, each with its part of
every batch. Callbacks are made by functions, so that importing this module does not import transformers.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from persona_lib.models import packing
from persona_lib.models.load import mergeable_layers
from persona_lib.settings import ConfigError, Profile

# --- Guards ---


class TrainingError(RuntimeError):
    """A training run that does not learn what it should; the message names the sign and the way out."""


def trainable_parameters(model: Any) -> dict[str, Any]:
    """Return the parameters that an optimiser would move, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def cast_adapters(model: Any) -> None:
    """Cast trainable parameters to float32: TRL makes QLoRA adapters bfloat16, which loses small updates."""
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.float()


def check_adapters(model: Any, adapter: str) -> None:
    """Raise TrainingError unless exactly the weights of one adapter are trainable, all in float32."""
    import torch

    trainable = trainable_parameters(model)
    if not trainable:
        raise TrainingError(f"no parameter is trainable: adapter {adapter!r} was loaded frozen")
    for name, parameter in trainable.items():
        if f".{adapter}." not in name:
            raise TrainingError(f"{name} is trainable; only adapter {adapter!r} should be: freeze the rest")
        if parameter.dtype != torch.float32:
            raise TrainingError(
                f"{name} is {parameter.dtype}: small updates would be lost; use cast_adapters"
            )


def check_start(margin: float, loss: float, expected_loss: float | None, tolerance: float) -> None:
    """Raise TrainingError unless DPO starts where policy and reference agree: at a mean reward margin of 0.

    ``expected_loss`` is ln 2 for plain DPO, None if an SFT term is added.
    """
    if not abs(margin) <= tolerance:
        raise TrainingError(
            f"reward margin before the first step is {margin:.4g}, not 0: the reference is not where the "
            "policy starts (is the SFT adapter active in both?)"
        )
    if expected_loss is not None and not abs(loss - expected_loss) <= tolerance:
        raise TrainingError(f"DPO loss before the first step is {loss:.4f}, not {expected_loss:.4f} (ln 2)")


def learning_guard() -> Any:
    """Return a callback that raises TrainingError when nothing is learned.

    No parameter moves in the first step with a learning rate, or the gradient is zero or not finite twice in
    a row in the first three steps of an epoch: what an evaluation breaks shows there.
    """
    from transformers import TrainerCallback

    class LearningGuard(TrainerCallback):
        before: dict[str, Any] | None = None
        looked = bad_steps = 0

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.before = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}

        def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
            if self.before is None or optimizer.param_groups[0]["lr"] == 0:
                return
            now = trainable_parameters(model)
            if not any(bool((now[name] != old).any()) for name, old in self.before.items()):
                raise TrainingError("no trainable parameter moved in the first step: nothing is learned")
            self.before = None

        def on_epoch_begin(self, args, state, control, **kwargs):
            self.looked = self.bad_steps = 0

        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if self.looked < 3:
                self.looked += 1
                found = [p.grad for p in trainable_parameters(model).values() if p.grad is not None]
                finite = all(bool(grad.isfinite().all()) for grad in found)
                learns = finite and any(bool(grad.any()) for grad in found)
                self.bad_steps = 0 if learns else self.bad_steps + 1
            if self.bad_steps >= 2:
                raise TrainingError(
                    f"gradients are zero or not finite twice by step {state.global_step}: nothing is "
                    "learned; on a processor check that NF4 repacking is off, else lower the learning rate"
                )

    return LearningGuard()


# --- What is shown ---


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block no routine warnings of datasets, TRL, transformers; from it on, no progress bars."""
    import datasets
    import transformers

    verbosity = transformers.logging.get_verbosity()
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    try:  # TQDM_DISABLE: TRL's bar for the reference log-probabilities
        with warnings.catch_warnings(), mock.patch.dict(os.environ, TQDM_DISABLE="1"):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def progress_lines(name: str, every_seconds: float = 60.0) -> Any:
    """Return a callback that prints a line per epoch (per log where nothing is evaluated), and one a minute.

    Plain lines read equally well in JupyterLab, in an executed notebook and in a log file.
    """
    from transformers import TrainerCallback

    class ProgressLines(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.started = self.shown = time.monotonic()
            self.first_step, self.loss = state.global_step, math.nan

        def show(self, state: Any, text: str) -> None:
            self.shown = time.monotonic()
            print(f"{name}: step {state.global_step}/{state.max_steps}, {text}", flush=True)

        def on_step_end(self, args, state, control, **kwargs):
            if time.monotonic() - self.shown >= every_seconds:
                pace = (time.monotonic() - self.started) / max(1, state.global_step - self.first_step)
                self.show(state, f"{pace * (state.max_steps - state.global_step) / 60:.0f} min left")

        def on_log(self, args, state, control, logs=None, **kwargs):
            logs = logs or {}
            self.loss = float(logs.get("loss", self.loss))
            if "eval_loss" in logs and state.global_step:
                self.show(state, f"loss {self.loss:.4f}, validation loss {logs['eval_loss']:.4f}")
            elif "loss" in logs and args.eval_strategy == "no":
                self.show(state, f"loss {self.loss:.3f}")

    return ProgressLines()


# --- Ranks ---


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


# --- Trainers ---

EVAL_BATCH = {"sft": 1, "dpo": 8}  # SFT's evaluation loss depends on it: a mean of batch means


def max_steps(profile: Profile, rows: int) -> int:
    """Return DPO's limit on its steps: ``dpo.max_steps`` where the epochs have more, else -1 (no limit).

    Trainer would take a limit for a goal, and go over few rows again and again until it is reached.
    """
    steps = math.ceil(rows / profile.dpo.batch_size) * profile.dpo.epochs
    return profile.dpo.max_steps if 0 < profile.dpo.max_steps < steps else -1


def trainer_settings(profile: Profile, method: str, seed: int, output: Path, rows: int = 0) -> dict[str, Any]:
    """Return the settings that SFT and DPO share, every one that matters given explicitly.

    Nothing is reported to a tracker unless the environment names some: PERSONA_REPORT_TO=tensorboard,wandb.
    """
    import torch

    own, ordered = getattr(profile, method), method == "dpo" and profile.dpo.order == "pairs"
    return {
        "output_dir": str(output),
        "seed": seed,
        "data_seed": seed,
        "learning_rate": own.learning_rate,
        "num_train_epochs": own.epochs,
        "max_steps": max_steps(profile, rows) if method == "dpo" else -1,
        "per_device_train_batch_size": part(own.batch_size),
        "per_device_eval_batch_size": max(1, EVAL_BATCH[method] // count()),
        "gradient_accumulation_steps": 1,
        "train_sampling_strategy": "sequential" if ordered else "random",
        "max_length": profile.training.max_length,
        "lr_scheduler_type": "linear",
        "warmup_steps": profile.training.warmup,  # below 1: a share of all steps
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": profile.base.dtype == "bfloat16",
        "fp16": False,
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "pad_to_multiple_of": None,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "report_to": os.environ.get("PERSONA_REPORT_TO", "none").split(","),
        "log_level_replica": "error",
        "disable_tqdm": True,
    }


def one_gpu(config: Any) -> Any:
    """Return the configuration with one GPU: Trainer would spread a lone process over all that it sees."""
    config._n_gpu = min(config.n_gpu, 1)
    return config


def lora_config(profile: Profile) -> Any:
    """Return the LoRA configuration of every adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=profile.lora.r,
        lora_alpha=profile.lora.alpha,
        lora_dropout=profile.lora.dropout,
        target_modules=list(profile.lora.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def sft_trainer(
    profile: Profile, seed: int, base: Any, tokenizer: Any, data: dict[str, Any], output: Path
) -> Any:
    """Build TRL's SFTTrainer with a fresh adapter named "default" on a frozen base.

    ``data`` holds datasets "train" and "val" with columns prompt and completion.
    """
    from peft import get_peft_model
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    set_seed(seed)
    config = SFTConfig(
        **trainer_settings(profile, "sft", seed, output),
        completion_only_loss=profile.training.completion_only_loss,
        packing=False,
        padding_free=False,
    )
    collator = None
    if profile.training.packing:
        base = packing.accept_packed(base)
        collator = packing.sft_collator(tokenizer.pad_token_id)
    trainer = SFTTrainer(
        model=get_peft_model(base, lora_config(profile)),
        args=one_gpu(config),
        data_collator=collator,
        processing_class=tokenizer,
        train_dataset=data["train"],
        eval_dataset=data["val"],
    )
    cast_adapters(trainer.model)
    return trainer


def activate_stack(model: Any) -> None:
    """Activate the trained adapter ("default") on top of the frozen SFT adapter ("ref"), if that is there."""
    if "ref" in model.peft_config:
        model.base_model.set_adapter(["default", "ref"])
        model.base_model.set_requires_grad("ref", False)


def stack_fresh_adapter(model: Any) -> None:
    """Turn "default" into a fresh adapter (its product is zero) on top of the frozen SFT adapter "ref".

    On a base that SFT was merged into it is fresh already.
    """
    from peft.tuners.lora import LoraLayer

    cast_adapters(model)
    if "ref" not in model.peft_config:
        return
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.reset_lora_parameters("default", init_lora_weights=True)
    activate_stack(model)


def stacked_dpo_trainer_class() -> type:
    """Return the subclass of TRL's DPOTrainer that trains a new adapter on a frozen SFT adapter.

    Given a PeftModel whose adapter "default" is the SFT adapter, TRL copies it to a frozen adapter "ref", the
    reference. This class then makes "default" fresh and keeps both active, also where TRL or Trainer would
    leave one. On a base that SFT was merged into TRL makes the fresh adapter; its reference is that base.
    """
    from trl import DPOTrainer

    class StackedDPOTrainer(DPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            stack_fresh_adapter(self.model)

        def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            stacked = len(self.model.active_adapters) > 1
            result = super().compute_ref_log_probs(model, inputs)
            if stacked:
                activate_stack(self.model)
            return result

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            activate_stack(self.model)

    return StackedDPOTrainer


def dpo_loss_settings(profile: Profile) -> dict[str, Any]:
    """Return TRL's loss settings: the DPO loss, with an SFT term on the preferred response if weighted.

    Several ranks average their means over tokens, so the SFT term then weighs tokens of short batches more.
    """
    if profile.dpo.sft_weight > 0:
        return {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, profile.dpo.sft_weight]}
    return {"loss_type": ["sigmoid"], "loss_weights": None}


def dpo_trainer(
    profile: Profile, seed: int, base: Any, sft: Path, tokenizer: Any, data: dict[str, Any], output: Path
) -> Any:
    """Build the DPO trainer: adapter "default" to train, on a frozen base with the arm's SFT adapter, frozen.

    ``data`` holds datasets "train" and "val" with columns prompt, chosen and rejected. The reference
    log-probabilities (base and SFT adapter) are computed here, once. ``merge_adapters`` merges the SFT
    adapter into the float32 base instead of stacking on it.
    """
    from peft import PeftModel
    from transformers import set_seed
    from trl import DPOConfig

    set_seed(seed)
    config = DPOConfig(
        **trainer_settings(profile, "dpo", seed, output, len(data["train"])),
        **dpo_loss_settings(profile),
        beta=profile.dpo.beta,
        disable_dropout=True,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=part(profile.dpo.batch_size),
    )
    collator = None
    if profile.training.packing:
        base = packing.accept_packed(base)
        collator = packing.dpo_collator(tokenizer.pad_token_id, profile.training.max_length)
    model, config_of_new = PeftModel.from_pretrained(base, str(sft), is_trainable=True), None
    if profile.merge_adapters:
        mergeable_layers(model)
        model, config_of_new = model.merge_and_unload(), lora_config(profile)
    return stacked_dpo_trainer_class()(
        model=model,
        peft_config=config_of_new,
        args=one_gpu(config),
        data_collator=collator,
        processing_class=tokenizer,
        train_dataset=data["train"],
        eval_dataset=data["val"],
    )


def check_dpo_start(trainer: Any, profile: Profile, rows: int = 16) -> None:
    """Check on some validation rows that DPO starts at margin 0 (and at ln 2 without an SFT term).

    Not by ``Trainer.evaluate``, which would leave the model without DDP for the training that follows.
    """
    import torch

    some = trainer.eval_dataset.select(range(min(rows, len(trainer.eval_dataset))))
    trainer.model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        batches = trainer.get_eval_dataloader(some)
        losses = [float(trainer.compute_loss(trainer.model, batch)) for batch in batches]
    margin = trainer._metrics["eval"]["rewards/margins"]
    trainer._metrics["eval"].clear()
    expected = math.log(2) if profile.dpo.sft_weight == 0 else None
    tolerance = 1e-3 if profile.base.dtype == "float32" else 0.05
    check_start(sum(margin) / len(margin), sum(losses) / len(losses), expected, tolerance)
