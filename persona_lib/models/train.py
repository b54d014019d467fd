"""Train the persona-tailoring policies (paper section 4): SFT, then DPO on top of it, both with LoRA.

The base stays frozen (in four bits for QLoRA). DPO trains a second adapter on the frozen SFT adapter, its
reference. ``accelerate launch -m persona_lib.models.train`` trains one adapter with several processes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persona_lib import settings, store
from persona_lib.data import everyday, preference, tailoring
from persona_lib.data.preference import TWO_SIDED, draw, to_dpo_rows, to_ordered_dpo_rows, to_sft_rows
from persona_lib.models import kernels, load, trainers
from persona_lib.models.load import ModelError, count_rows, format_of, load_base, load_tokenizer, model_key
from persona_lib.models.served import SURFACE, SurfaceGenerator
from persona_lib.prompts import tailoring_prompt
from persona_lib.records import SIDES, PreferencePair, TailoringRow
from persona_lib.settings import Run, deciding, main_arm, open_run, set_field
from persona_lib.store import VERSIONS

Parts = dict[str, list[dict]]  # rows of an arm, in TRL's columns: "train" and "val"
SHARED = "base.quantization base.dtype lora.* training.max_length training.warmup training.*rows"
OF_METHOD = {"sft": "sft.* training.completion_only_loss training.packing", "dpo": "dpo.* training.packing"}


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


def load_rows(run: Run, method: str, train_persona: str) -> tuple[Parts, dict[str, int]]:
    """Return the arm's rows of "train" and "val", and how many source rows had no persona."""
    steps = run.profile.dpo.max_steps if method == "dpo" else 0
    make = to_sft_rows if method == "sft" else to_ordered_dpo_rows if steps else to_dpo_rows
    rows, without, chat = {}, {}, format_of(*run.base_source)
    for part, paths in data_paths(run, method).items():
        limit = run.profile.training.rows if part == "train" else run.profile.training.validation_rows
        source = [row for path in paths for row in draw(store.read_rows(path, TailoringRow), limit)]
        rows[part] = make(source, train_persona, run.seed, chat)
        without[part] = len(source) * (2 if train_persona in TWO_SIDED else 1) - len(rows[part])
    if steps:  # in a fixed order it leaves the last rows out: they need no reference
        rows["train"] = rows["train"][: steps * run.profile.dpo.batch_size]
    return rows, without


def lacking_rows(run: Run) -> Iterator[str]:
    """Say of which part of the data training, or evaluation, can use no row, and the way out."""
    profile, split, generator = run.profile, run.profile.evaluation.split, run.profile.generator
    pairs, rule = preference.READERS[run.dataset](run), SurfaceGenerator().persona
    by_rule = run.dataset != everyday.NAME and generator.model == SURFACE and not generator.url
    for name, part in ({split: pairs[split]} | tailoring.train_parts(run, pairs)).items():
        rows = "training.rows" if name.endswith("train") else "training.validation_rows"
        limit = "evaluation.limit" if name == split else rows
        shots = "generation.few*" if name == "sft_train" and "few_shot" in profile.training.methods else ""
        kept = draw(part, settings.value(profile, limit))
        told = [one for one in kept if not by_rule or one.persona_chosen or rule(one.chosen, one.rejected)]
        if not kept or (shots and len(part) < profile.generation.few_shot_examples):
            fields = settings.flat(profile, f"{limit} data.pair_limit {shots}")
            said = ", ".join(f"{field}={value}" for field, value in fields.items())
            yield f"{name} has {len(part)} rows, used: {len(kept)}; add rows, or change {said}"
        elif not told:
            yield (f"rules (generator.model=surface) see no difference between the responses of any of the "
                   f"{len(kept)} pairs of {name}, so there is no persona. Name a language model: --set "
                   "generator.model=base, or generator.url and generator.model")  # fmt: skip
        elif name != split:
            yield from unusable_arms(run, name, told)


def unusable_arms(run: Run, name: str, pairs: list[PreferencePair]) -> Iterator[str]:
    """Say which arms would train on no row of a part: no row has their personas, or none fits.

    A persona has as many tokens as may be written. Without a tokenizer on this machine, and for the package's
    own pairs, words are counted.
    """
    profile, own = run.profile, run.dataset != everyday.NAME
    sides, room = profile.personas.train_sides if own else SIDES, profile.generator.max_new_tokens
    personas = {f"gold-{side}": "persona" for side in sides} | ({} if own else {"inferred-chosen": "persona"})
    rows = tailoring.to_rows(pairs, name, {pair.id: personas for pair in pairs}, {})
    tokenizer = load.tokenizer_at_hand(profile.base.model) if own else None
    chat = tokenizer and load.chat_format(tokenizer)
    for arm in profile.training.arms:
        found = preference.ARMS[arm](rows, run.seed) if arm != "shuffled" or len(rows) > 1 else []
        if not found:
            yield (f"{name}: no row of {len(rows)} serves training.arms={arm}: add rows, leave the arm out, "
                   f"or change personas.train_sides={','.join(sides)}")  # fmt: skip
            continue
        texts = [
            tailoring_prompt(prompt, persona, chat=chat) + (target if name.endswith("train") else "")
            for _, prompt, persona, target, _ in found
        ]
        pieces = tokenizer(texts)["input_ids"] if tokenizer else [text.split() for text in texts]
        if (least := min(map(len, pieces)) + room) > profile.training.max_length:
            yield (f"none of the {len(found)} rows of {name} fits into training.max_length with a persona of "
                   f"{room} tokens: add shorter rows, or --set training.max_length={least}")  # fmt: skip


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
    """Clear what another key, or a kill, left; return the newest whole checkpoint of this key, or None."""
    store.clear_unless(folder, key)
    store.write_json(folder / "spec.json", spec)
    checkpoints = (folder / "checkpoints").glob("checkpoint-*")
    for path in sorted(checkpoints, key=lambda p: -int(p.name.rpartition("-")[2])):
        try:
            store.read_json(path / "trainer_state.json")  # written last
            return str(path)
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None


@store.one_at_a_time
def train_arms(run: Run, method: str) -> list[Path]:
    """Train one method's adapters of the profile's arms, those that are not done; returns their folders."""
    return [train_adapter(run, method, arm) for arm in run.profile.training.arms]


def train_adapter(run: Run, method: str, train_persona: str, folder: Path | None = None) -> Path:
    """Train one arm's adapter, if it is not done; returns its folder. DPO needs the arm's SFT adapter."""
    folder = folder or adapter_folder(run, method, train_persona)
    if train_persona == "none":  # the arm without personas has settings of its own
        plain = {name.replace("_", ".", 1): value for name, value in vars(run.profile.plain).items()}
        run = dataclasses.replace(run, profile=set_field(run.profile, plain))
    spec = training_spec(run, method, train_persona)
    if not store.is_done(folder, key := store.content_hash(spec)):
        rows, without = load_rows(run, method, train_persona)
        if any(without.values()):
            print(f"{folder.name}: rows without a persona, left out: {without}", flush=True)
        fit_adapter(run, method, rows, folder, key, spec)
    return folder


def fit_adapter(run: Run, method: str, rows: Parts, folder: Path, key: str, spec: dict[str, Any]) -> None:
    """Train an adapter on the rows of "train" and "val" and save it; resume from its last checkpoint.

    What training does not see of them is printed, and in counts.json. See ``count_rows`` and the guards.
    """
    from transformers import PrinterCallback

    profile, name = run.profile, folder.name
    checkpoint = trainers.in_main(prepare_folder, folder, key, spec)
    tokenizer = load_tokenizer(*run.base_source)
    counts, drops = {}, method == "dpo" or profile.training.completion_only_loss
    for part, found in rows.items():
        counts[part] = count_rows(tokenizer, found, profile.training.max_length, f"{name} {part}", drops)
        print(f"{name}: {part}:", ", ".join(f"{n} {what}" for what, n in counts[part].items()), flush=True)
    trainers.in_main(store.write_json, folder / "counts.json", counts)
    with kernels.lean_head(on=profile.training.packing):
        trainer = build_trainer(run, method, tokenizer, rows, folder)
        for part, kept in (("train", trainer.train_dataset), ("val", trainer.eval_dataset)):
            counted = counts[part]["rows"] - counts[part]["dropped"]
            if len(kept) != counted:
                raise ModelError(f"{name} {part}: TRL keeps {len(kept)} rows, count_rows counted {counted}")
        trainers.check_adapters(trainer.model)
        if method == "dpo":
            trainers.check_dpo_start(trainer, profile)
        trainer.remove_callback(PrinterCallback)
        for callback in (trainers.learning_guard(), trainers.progress_lines(name)):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=checkpoint)  # the best epoch is what remains in the model
    weights = trainer.accelerator.get_state_dict(trainer.model)  # several processes may hold a part each
    trainers.in_main(save_adapter, trainer, weights, folder, key)
    del trainer
    gc.collect()  # a trainer holds itself, and the base


def build_trainer(run: Run, method: str, tokenizer: Any, rows: Parts, folder: Path) -> Any:
    """Load the base and build the method's trainer, whose checkpoints go below ``folder``."""
    from datasets import Dataset, DatasetDict, load_from_disk

    data = DatasetDict({part: Dataset.from_list(found) for part, found in rows.items()})
    if trainers.PROCESSES > 1:  # in a folder, where TRL shares the reference's values
        where = folder / "checkpoints" / "rows"
        trainers.in_main(shutil.rmtree, where, True)  # a killed run's values would change the random numbers
        trainers.in_main(data.save_to_disk, str(where))
        data = load_from_disk(str(where))
    base = load_base(*run.base_source, run.profile.base.quantization, run.profile.base.dtype)
    given = (run.profile, method, run.seed, base, tokenizer, data, folder / "checkpoints")
    return trainers.make_trainer(*given, sft=folder.with_name(folder.name.replace("dpo", "sft", 1)))


def save_adapter(trainer: Any, weights: dict[str, Any], folder: Path, key: str) -> None:
    """Write the adapter and its log, drop the checkpoints, and mark the folder as done."""
    trainer.model.save_pretrained(str(folder), selected_adapters=["default"], state_dict=weights)
    store.write_rows(folder / "log.jsonl", trainer.state.log_history)
    shutil.rmtree(folder / "checkpoints")
    facts = {"steps": trainer.state.global_step, "best_eval_loss": trainer.state.best_metric}
    store.mark_done(folder, key, **facts, megabytes=weight_megabytes(trainer.model))


def weight_megabytes(model: Any) -> dict[str, float]:
    """Return the size of a model's frozen weights as they are, NF4's scales included, and as float32."""
    weights = [weight for weight in model.parameters() if not weight.requires_grad]
    states = [getattr(weight, "quant_state", None) for weight in weights]
    kept = [*weights, *(t for state in states if state for t in (state.absmax, state.state2.absmax))]
    shapes = [(state or weight).shape for weight, state in zip(weights, states, strict=True)]
    held = sum(t.numel() * t.element_size() for t in kept)
    return {"held": held / 1e6, "float32": sum(4 * shape.numel() for shape in shapes) / 1e6}


@store.one_at_a_time
def qlora_section(run: Run) -> Any:
    """Train SFT on the base in NF4 on sixteen pairs, once, in ``qlora/``; return what it cost, as a table."""
    import pandas as pd

    few = {"sft.epochs": 1, "training.rows": 16, "training.validation_rows": 16, "sft.batch_size": 4}
    changed = dataclasses.replace(run, profile=set_field(run.profile, few | {"base.quantization": "nf4"}))
    folder = train_adapter(changed, "sft", main_arm(run.profile), run.folder / "qlora")
    done, entries = store.read_json(folder / "done.json"), store.iter_rows(folder / "log.jsonl")
    log = {name: value for entry in entries for name, value in entry.items()}
    cost = {
        "weights in NF4, MB": done["megabytes"]["held"],
        "weights in float32, MB": done["megabytes"]["float32"],
        "steps": done["steps"],
        "training loss": log["train_loss"],
        "validation loss": log["eval_loss"],
        "seconds per step": (log["train_runtime"] - log["eval_runtime"]) / done["steps"],
    }
    return pd.Series(cost, name="measured").to_frame()


def main() -> None:
    """Train one adapter whose rows are there, alone or as one of the processes of ``accelerate launch``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--method", required=True, choices=OF_METHOD)
    for name in ("--profile", "--dataset", "--seed", "--arm"):
        parser.add_argument(name, required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="GROUP.KEY=VALUE")
    given = parser.parse_args()
    run = open_run(given.profile, given.dataset, int(given.seed), given.overrides)
    with contextlib.redirect_stdout(None if trainers.NUMBER else sys.stdout):
        print(train_adapter(run, given.method, given.arm))


if __name__ == "__main__":
    main()
