"""QLoRA on the run's own base: a few real SFT steps on weights in four bits, and what they cost."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context
from resource import RUSAGE_SELF, getrusage
from typing import Any

from persona_lib import store
from persona_lib.config import Run, main_arm
from persona_lib.models import guards
from persona_lib.models.llm import load_base, load_tokenizer
from persona_lib.store import VERSIONS
from persona_lib.training import cpu_head, train
from persona_lib.training.trainers import sft_trainer


def qlora_section(run: Run, steps: int = 4, rows: int = 16) -> Any:
    """Train SFT on the base in NF4 for a few steps, once, in a process of its own; return the costs."""
    import pandas as pd

    changes = {"quantization": "nf4", "merge_adapters": False, "sft_epochs": 1}
    run = dataclasses.replace(run, profile=dataclasses.replace(run.profile, **changes))
    spec = train.training_spec(run, "sft", main_arm(run.profile)) | {"steps": steps, "rows": rows}
    spec["code"] = VERSIONS["training"]
    if not store.is_done(run.folder / "qlora", key := store.content_hash(spec)):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # so the peak of memory is its own
            pool.submit(train_steps, run, steps, rows, key, spec).result()
    return pd.Series(store.read_json(run.folder / "qlora" / "cost.json"), name="measured").to_frame()


def train_steps(run: Run, steps: int, rows: int, key: str, spec: dict[str, Any]) -> None:
    """Train, and write cost.json, the adapter and, last, done.json."""
    folder, (found, _) = run.folder / "qlora", train.load_rows(run, "sft", main_arm(run.profile))
    found = {"train": found["train"][:rows], "val": found["val"][:steps]}
    profile = dataclasses.replace(run.profile, sft_batch_size=-(-len(found["train"]) // steps))
    checkpoint, tokenizer = train.prepare_folder(folder, key, spec), load_tokenizer(*run.base_source)
    base = load_base(*run.base_source, "nf4", profile.compute_dtype)
    cost = {f"weights in {name}, MB": n / 1e6 for name, n in weight_bytes(base).items()}
    with guards.quiet_libraries(), cpu_head.small_tiles(on=profile.sft_packing), redirect_stdout(None):
        data = {part: train.as_dataset(found[part], folder) for part in found}
        trainer = sft_trainer(profile, run.seed, base, tokenizer, data, folder / "checkpoints")
        trainer.args.logging_strategy, trainer.args.logging_steps = "steps", 1
        train.fit(trainer, profile, "qlora", checkpoint)
    log, last = trainer.state.log_history, {k: v for e in trainer.state.log_history for k, v in e.items()}
    cost |= {"steps": last["step"], "loss of the first": log[0]["loss"], "loss of the last": last["loss"]}
    cost["seconds per step"] = (last["train_runtime"] - last["eval_runtime"]) / last["step"]
    store.write_json(folder / "cost.json", cost | {"peak memory, MB": getrusage(RUSAGE_SELF).ru_maxrss / 1e3})
    train.save_adapter(trainer, folder, key)


def weight_bytes(model: Any) -> dict[str, int]:
    """Return the bytes of a model's weights as they are, scales included, and as float32."""
    states = [(weight, getattr(weight, "quant_state", None)) for weight in model.parameters()]
    kept = [t for w, s in states for t in ([w] if s is None else [w, s.absmax, s.state2.absmax])]
    whole = sum(4 * (weight if state is None else state).shape.numel() for weight, state in states)
    return {"NF4": sum(tensor.numel() * tensor.element_size() for tensor in kept), "float32": whole}
