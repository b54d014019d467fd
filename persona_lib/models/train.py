"""Train the persona-tailoring policies (paper section 4): SFT, then DPO on top of it, both with LoRA.

The base stays frozen (in four bits for QLoRA). DPO trains a second adapter on the frozen SFT adapter; its
reference is the base with the SFT adapter alone. The trainers are TRL's (``trainers``); here are the rows and
the folders.

``accelerate launch --num_processes N -m persona_lib.models.train --profile NAME`` trains all arms of a
profile's data sets and seeds on N GPUs, which share every batch; ``run_all.sh`` finds them finished.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

from persona_lib import store
from persona_lib.data.preference import TWO_SIDED, draw, to_dpo_rows, to_ordered_dpo_rows, to_sft_rows
from persona_lib.models import packing, trainers
from persona_lib.models.load import RowCounts, count_rows, format_of, load_base, load_tokenizer, model_key
from persona_lib.models.trainers import check_dpo_start, dpo_trainer, sft_trainer
from persona_lib.records import TailoringRow
from persona_lib.settings import Profile, Run, deciding, load_profile, main_arm, set_field
from persona_lib.store import VERSIONS
from persona_lib.workers import run_jobs

SHARED = "base.quantization base.dtype lora.* training.max_length training.warmup training.*rows"
OF_METHOD = {"sft": "sft.* training.completion_only_loss training.packing", "dpo": "dpo.* training.packing"}
COMPLETIONS = {"sft": ("completion",), "dpo": ("chosen", "rejected")}


def adapter_folder(run: Run, method: str, train_persona: str) -> Path:
    """Return the folder of one trained adapter, named after ``RunSpec.arm``."""
    return run.folder / "adapters" / f"{method}-{train_persona}"


def data_paths(run: Run, method: str) -> dict[str, list[Path]]:
    """Return the files that a method trains and validates on; raises if one is missing."""
    train = run.profile.dpo.splits if method == "dpo" else ("sft_train",)
    folder = run.folder / "tailoring"
    paths = {"train": [folder / f"{split}.jsonl" for split in train], "val": [folder / f"{method}_val.jsonl"]}
    for path in (*paths["train"], *paths["val"]):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run the step that builds the tailoring data first")
    return paths


def load_rows(run: Run, method: str, train_persona: str) -> tuple[dict[str, list[dict]], dict[str, int]]:
    """Return the arm's rows of "train" and "val", and how many source rows had no persona."""
    to_rows = to_ordered_dpo_rows if run.profile.dpo.order == "pairs" else to_dpo_rows
    make = to_sft_rows if method == "sft" else to_rows
    rows, without, chat = {}, {}, format_of(*run.base_source)
    for part, paths in data_paths(run, method).items():
        limit = run.profile.training.rows if part == "train" else run.profile.training.validation_rows
        source = [row for path in paths for row in draw(store.read_rows(path, TailoringRow), limit)]
        rows[part] = make(source, train_persona, run.seed, chat)
        without[part] = len(source) * (2 if train_persona in TWO_SIDED else 1) - len(rows[part])
    if method == "dpo" and run.profile.dpo.order == "pairs" and run.profile.dpo.max_steps:
        # In a fixed order a limit on the steps leaves the last rows out: they need no reference.
        rows["train"] = rows["train"][: run.profile.dpo.max_steps * run.profile.dpo.batch_size]
    return rows, without


def arm_settings(run: Run, train_persona: str) -> Run:
    """Return the run with the settings of one arm: the ``plain.*`` ones for the arm without personas."""
    if train_persona != "none":
        return run
    plain = {name.replace("_", ".", 1): value for name, value in vars(run.profile.plain).items()}
    return dataclasses.replace(run, profile=set_field(run.profile, plain))


def training_spec(run: Run, method: str, train_persona: str) -> dict[str, Any]:
    """Return all that an adapter depends on; its hash is the adapter's key."""
    spec = {
        "method": method,
        "train_persona": train_persona,
        "seed": run.seed,
        "dataset": run.dataset,
        "base": model_key(*run.base_source),
        "settings": deciding(run.profile, f"{SHARED} {OF_METHOD[method]}"),
        "data": {part: [*map(store.file_hash, paths)] for part, paths in data_paths(run, method).items()},
        "code": VERSIONS["training"],
    }
    if method == "dpo":
        sft = adapter_folder(run, "sft", train_persona) / "done.json"
        if not sft.exists():
            raise FileNotFoundError(f"{sft} is missing: DPO starts from it; train this arm by SFT first")
        spec["sft"] = store.read_json(sft)["key"]
    return spec


def prepare_folder(folder: Path, key: str, spec: dict[str, Any]) -> str | None:
    """Clear what another key left; return the last whole checkpoint of this key, or None."""
    known = folder / "spec.json"
    if folder.exists() and not (known.exists() and store.read_json(known)["key"] == key):
        shutil.rmtree(folder)
    store.write_json(known, {"key": key, **spec})
    return last_checkpoint(folder / "checkpoints")


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest whole checkpoint; delete what a kill cut short (the state file comes last)."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.rpartition("-")[2])):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return str(path)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path)
    return None


def missing_job(run: Run, method: str, train_persona: str) -> tuple[Run, str, str, dict[str, Any]] | None:
    """Return the arguments of ``fit_adapter``, or None if the adapter is done for the settings of now."""
    run = arm_settings(run, train_persona)
    spec = training_spec(run, method, train_persona)
    done = store.is_done(adapter_folder(run, method, train_persona), store.content_hash(spec))
    return None if trainers.share(done) else (run, method, train_persona, spec)


def train_arms(run: Run, method: str) -> list[Path]:
    """Train one method's adapters of all the profile's arms that are not done, ``workers`` at a time.

    Under ``accelerate launch`` all ranks call this together, and rank 0 writes. DPO needs the SFT adapters of
    the same arms. Returns the folders ``adapters/<method>-<train_persona>``.
    """
    arms = run.profile.training.arms
    jobs = [job for arm in arms if (job := missing_job(run, method, arm))]
    run_jobs(fit_adapter, jobs, 1 if trainers.count() > 1 else run.profile.workers)
    return [adapter_folder(run, method, arm) for arm in arms]


def train_adapter(run: Run, method: str, train_persona: str) -> Path:
    """Train one arm's adapter as ``train_arms`` does, in this process; returns its folder."""
    if job := missing_job(run, method, train_persona):
        fit_adapter(*job)
    return adapter_folder(run, method, train_persona)


def fit_adapter(run: Run, method: str, train_persona: str, spec: dict[str, Any]) -> None:
    """Train the adapter that ``spec`` describes; resume from its last checkpoint if it was killed."""
    folder, key = adapter_folder(run, method, train_persona), store.content_hash(spec)
    checkpoint = trainers.share(prepare_folder(folder, key, spec) if trainers.rank() == 0 else None)
    tokenizer = load_tokenizer(*run.base_source)
    rows, without = load_rows(run, method, train_persona)
    counts = count_parts(run, method, tokenizer, rows, without, folder)
    with trainers.quiet_libraries(), packing.small_tiles(on=run.profile.training.packing):
        trainer = build_trainer(run, method, train_persona, tokenizer, rows)
        for name, dataset in (("train", trainer.train_dataset), ("val", trainer.eval_dataset)):
            if len(dataset) != counts[name].rows - counts[name].dropped:
                kept = f"TRL keeps {len(dataset)} rows of {name}"
                raise trainers.TrainingError(f"{kept}; counted {counts[name]}")
        fit(trainer, run.profile, folder.name, checkpoint)
    save_adapter(trainer, folder, key)
    del trainer
    release_memory()


def build_trainer(
    run: Run, method: str, train_persona: str, tokenizer: Any, rows: dict[str, list[dict]]
) -> Any:
    """Load the base and build the method's trainer for the arm's rows."""
    output = adapter_folder(run, method, train_persona) / "checkpoints"
    data = {part: as_dataset(rows[part], output / "rows" / part) for part in rows}
    profile = run.profile
    base = load_base(*run.base_source, profile.base.quantization, profile.base.dtype)
    if method == "sft":
        return sft_trainer(profile, run.seed, base, tokenizer, data, output)
    sft = adapter_folder(run, "sft", train_persona)
    return dpo_trainer(profile, run.seed, base, sft, tokenizer, data, output)


def as_dataset(rows: list[dict], folder: Path) -> Any:
    """Return rows as a dataset; with several ranks on disk, where TRL shares reference log-probabilities."""
    from datasets import Dataset, load_from_disk

    data = Dataset.from_list(rows)
    if trainers.count() == 1:
        return data
    if trainers.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # a killed run's cache would change the random numbers
        data.save_to_disk(str(folder))
    trainers.share(None)
    return load_from_disk(str(folder))


def count_parts(
    run: Run, method: str, tokenizer: Any, rows: dict[str, list[dict]], without: dict[str, int], folder: Path
) -> dict[str, RowCounts]:
    """Check and count the rows of "train" and "val"; write counts.json and print what training will not see.

    ``without`` counts the rows that had no persona. See ``load.count_rows`` for what raises.
    """
    drops = method == "dpo" or run.profile.training.completion_only_loss
    counts = {}
    for part, found in rows.items():
        where, limit = f"{folder.name} {part}", run.profile.training.max_length
        c = counts[part] = count_rows(tokenizer, found, COMPLETIONS[method], limit, where, drops)
        if trainers.rank() == 0:
            print(
                f"{folder.name}: {part}: {c.rows} rows ({without[part]} more had no persona), {c.truncated} "
                f"truncated, {c.dropped} dropped (prompt too long), longest row {c.longest} tokens",
                flush=True,
            )
    if trainers.rank() == 0:
        table = {p: {**dataclasses.asdict(c), "without_persona": without[p]} for p, c in counts.items()}
        store.write_json(folder / "counts.json", table)
    return counts


def fit(trainer: Any, profile: Profile, name: str, checkpoint: str | None) -> None:
    """Run the guards and the training; the best epoch by validation loss is what remains in the model."""
    from transformers import PrinterCallback

    trainers.check_adapters(trainer.model, "default")
    if hasattr(trainer, "precompute_ref_logps"):
        check_dpo_start(trainer, profile)
    trainer.remove_callback(PrinterCallback)
    for callback in (trainers.learning_guard(), trainers.progress_lines(name)):
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=checkpoint)


def save_adapter(trainer: Any, folder: Path, key: str) -> None:
    """Write the adapter and its log, drop the checkpoints, and mark the folder as done; rank 0 writes."""
    trainers.share(None)  # all have read the best checkpoint, which goes now
    if trainers.rank() == 0:
        trainer.model.save_pretrained(str(folder), selected_adapters=["default"])
        state = trainer.state
        store.write_rows(folder / "log.jsonl", state.log_history)
        shutil.rmtree(folder / "checkpoints")
        facts = {"steps": state.global_step, "best_eval_loss": state.best_metric}
        store.mark_done(folder, key, **facts, processes=trainers.count())
    trainers.share(None)  # the next adapter may depend on this one's done.json


def release_memory() -> None:
    """Free what a finished trainer held."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- QLoRA on the run's own base ---


def qlora_section(run: Run, steps: int = 4, rows: int = 16) -> Any:
    """Train SFT on the base in NF4 for a few steps, once, in a process of its own; return the costs."""
    import pandas as pd

    changes = {"base.quantization": "nf4", "sft.epochs": 1}
    run = dataclasses.replace(run, profile=set_field(run.profile, changes))
    spec = training_spec(run, "sft", main_arm(run.profile)) | {"steps": steps, "rows": rows}
    if not store.is_done(run.folder / "qlora", key := store.content_hash(spec)):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # so the peak of memory is its own
            pool.submit(train_steps, run, steps, rows, key, spec).result()
    return pd.Series(store.read_json(run.folder / "qlora" / "cost.json"), name="measured").to_frame()


def train_steps(run: Run, steps: int, rows: int, key: str, spec: dict[str, Any]) -> None:
    """Train, and write cost.json, the adapter and, last, done.json."""
    folder, (found, _) = run.folder / "qlora", load_rows(run, "sft", main_arm(run.profile))
    found = {"train": found["train"][:rows], "val": found["val"][:steps]}
    profile = set_field(run.profile, {"sft.batch_size": -(-len(found["train"]) // steps)})
    checkpoint, tokenizer = prepare_folder(folder, key, spec), load_tokenizer(*run.base_source)
    base = load_base(*run.base_source, "nf4", profile.base.dtype)
    cost = {f"weights in {name}, MB": n / 1e6 for name, n in weight_bytes(base).items()}
    with trainers.quiet_libraries(), packing.small_tiles(on=profile.training.packing), redirect_stdout(None):
        data = {part: as_dataset(found[part], folder) for part in found}
        trainer = sft_trainer(profile, run.seed, base, tokenizer, data, folder / "checkpoints")
        trainer.args.logging_strategy, trainer.args.logging_steps = "steps", 1
        fit(trainer, profile, "qlora", checkpoint)
    log = trainer.state.log_history
    last = {name: value for entry in log for name, value in entry.items()}
    cost |= {"steps": last["step"], "loss of the first": log[0]["loss"], "loss of the last": last["loss"]}
    cost["seconds per step"] = (last["train_runtime"] - last["eval_runtime"]) / last["step"]
    store.write_json(folder / "cost.json", cost | {"peak memory, MB": getrusage(RUSAGE_SELF).ru_maxrss / 1e3})
    save_adapter(trainer, folder, key)


def weight_bytes(model: Any) -> dict[str, int]:
    """Return the bytes of a model's weights as they are, scales included, and as float32."""
    states = [(weight, getattr(weight, "quant_state", None)) for weight in model.parameters()]
    kept = [t for w, s in states for t in ([w] if s is None else [w, s.absmax, s.state2.absmax])]
    whole = sum(4 * (weight if state is None else state).shape.numel() for weight, state in states)
    return {"NF4": sum(tensor.numel() * tensor.element_size() for tensor in kept), "float32": whole}


# --- Command line, for several GPUs ---


def main() -> None:
    """Train the arms of a profile whose tailoring data are there, alone or as one rank of several."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    profile = load_profile(arguments.profile, arguments.overrides)
    for run in (Run(profile, dataset, seed) for dataset in profile.datasets for seed in profile.seeds):
        for method in (name for name in ("sft", "dpo") if name in profile.training.methods):
            train_arms(run, method)


if __name__ == "__main__":
    main()
