"""Guards of training: what would ruin a run silently becomes an error, and one line per epoch is shown.

The callbacks are made by functions, so that importing this module does not import transformers.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TrainingError(RuntimeError):
    """A training run that does not learn what it should; the message says how that shows and the mend."""


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
    """Raise TrainingError unless DPO starts where policy and reference agree.

    ``margin`` is the mean reward margin before the first step (0 if the reference is right) and
    ``expected_loss`` is ln 2 for plain DPO, None if an SFT term is added.
    """
    if not abs(margin) <= tolerance:
        raise TrainingError(
            f"reward margin before the first step is {margin:.4g}, not 0: the reference is not where the "
            "policy starts (is the SFT adapter active in both?)"
        )
    if expected_loss is not None and not abs(loss - expected_loss) <= tolerance:
        raise TrainingError(f"DPO loss before the first step is {loss:.4f}, not {expected_loss:.4f} (ln 2)")


def all_zero(model: Any) -> bool:
    """Return True if no trainable parameter has a gradient other than zero."""
    gradients = [p.grad for p in trainable_parameters(model).values() if p.grad is not None]
    return not any(bool(g.any()) for g in gradients)


def gradient_guard() -> Any:
    """Return a callback that raises TrainingError when two steps in a row have no or no finite gradient.

    The gradients themselves are looked at in the first three steps of every epoch (what an evaluation
    breaks shows there); ``grad_norm`` is looked at in every log.
    """
    from transformers import TrainerCallback

    class GradientGuard(TrainerCallback):
        def __init__(self) -> None:
            self.looked = self.bad_steps = self.bad_logs = 0

        def on_epoch_begin(self, args, state, control, **kwargs):
            self.looked = self.bad_steps = 0

        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if self.looked < 3:
                self.looked += 1
                self.bad_steps = self.bad_steps + 1 if all_zero(model) else 0
                self.refuse(self.bad_steps, state)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "grad_norm" in (logs or {}):
                norm = float(logs["grad_norm"])
                self.bad_logs = self.bad_logs + 1 if norm == 0 or not math.isfinite(norm) else 0
                self.refuse(self.bad_logs, state)

        def refuse(self, count: int, state: Any) -> None:
            if count >= 2:
                raise TrainingError(
                    f"gradients are zero or not finite twice by step {state.global_step}: nothing is "
                    "learned; on a processor check that NF4 repacking is off, else lower the learning rate"
                )

    return GradientGuard()


def movement_guard() -> Any:
    """Return a callback that raises TrainingError if the first step with a learning rate moves nothing."""
    from transformers import TrainerCallback

    class MovementGuard(TrainerCallback):
        def __init__(self) -> None:
            self.before: dict[str, Any] | None = None

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.before = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}

        def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
            if self.before is None or optimizer.param_groups[0]["lr"] == 0:
                return
            now = trainable_parameters(model)
            if not any(bool((now[name] != old).any()) for name, old in self.before.items()):
                raise TrainingError(
                    "no trainable parameter moved in the first optimiser step: nothing is learned"
                )
            self.before = None

    return MovementGuard()


def epoch_line(name: str, record: dict[str, Any], epochs: int, seconds: float) -> str:
    """Return the line shown for an epoch, from the losses logged for it."""
    parts = [f"{name}: epoch {record['epoch']:.3g}/{epochs:g}", f"loss {record.get('loss', math.nan):.4f}"]
    parts.append(f"validation loss {record['eval_loss']:.4f}")
    if "eval_rewards/accuracies" in record:
        parts.append(f"validation reward accuracy {record['eval_rewards/accuracies']:.3f}")
    return ", ".join([*parts, f"{seconds:.0f} s"])


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block, no progress bars and no routine warnings of datasets, TRL and transformers."""
    import datasets
    import transformers

    verbosity, tqdm = transformers.logging.get_verbosity(), os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"  # TRL's bar for the reference log-probabilities
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Cannot enable progress bars")  # the user forbids them
            transformers.logging.enable_progress_bar()
            datasets.enable_progress_bars()
        os.environ.pop("TQDM_DISABLE")
        if tqdm is not None:
            os.environ["TQDM_DISABLE"] = tqdm


def progress_lines(name: str, every_seconds: float = 60.0) -> Any:
    """Return a callback that prints a line per epoch (per log where nothing is evaluated), and one a minute.

    Plain lines read equally well in JupyterLab, in an executed notebook and in a log file.
    """
    from transformers import TrainerCallback

    class ProgressLines(TrainerCallback):
        def __init__(self) -> None:
            self.started = self.shown = time.monotonic()
            self.loss: dict[str, Any] = {}

        def on_train_begin(self, args, state, control, **kwargs):
            self.started = self.shown = time.monotonic()
            self.first_step = state.global_step

        def on_step_end(self, args, state, control, **kwargs):
            now = time.monotonic()
            if now - self.shown >= every_seconds:
                self.shown = now
                pace = (now - self.started) / max(1, state.global_step - self.first_step)
                left = pace * (state.max_steps - state.global_step)
                print(
                    f"{name}: step {state.global_step}/{state.max_steps}, {left / 60:.0f} min left",
                    flush=True,
                )

        def on_log(self, args, state, control, logs=None, **kwargs):
            logs = logs or {}
            if "loss" in logs:
                self.loss = {"loss": float(logs["loss"])}
            if "eval_loss" in logs and state.global_step:
                self.shown = time.monotonic()
                line = epoch_line(name, logs | self.loss, state.num_train_epochs, self.shown - self.started)
                print(line, flush=True)
            elif "loss" in logs and args.eval_strategy == "no":
                self.shown = time.monotonic()
                print(
                    f"{name}: step {state.global_step}/{state.max_steps}, loss {self.loss['loss']:.3f}, "
                    f"{self.shown - self.started:.0f} s",
                    flush=True,
                )

    return ProgressLines()
