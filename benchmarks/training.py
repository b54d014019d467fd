"""What the training benchmarks train, and the ways: this package, the authors' settings, TRL's defaults.

Rows are pairs of everyday, or random words with the lengths of BeaverTails' rows. The authors merge the SFT
adapter into the base and train a new one with one pair per step, the reference computed online and the prompt
twice. TRL's defaults take eight rows per step, pad them to the longest, and recompute activations (gradient
checkpointing).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lib.data import everyday
from persona_lib.models import load, trainers
from persona_lib.prompts import completion_text, tailoring_prompt
from persona_lib.settings import Profile, load_profile, set_field

SEED = 0
OURS, AUTHORS, TRL = "this package", "authors", "TRL defaults"


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts (with persona) and of responses, from and to; ``row`` for rows of one length."""

    prompt: tuple[int, int]
    response: tuple[int, int]
    row: int = 0


# The 5th to 95th percentile of BeaverTails' training rows, in words of the authors' data times 4/3.
PAPER = Lengths((36, 92), (25, 225))


@dataclass(frozen=True)
class Case:
    """One way to train: "sft" or "dpo", by whom, on which base, with so many rows per step."""

    method: str
    way: str
    quantization: str
    dtype: str
    batch: int
    row_tokens: int = 0  # all rows have so many; 0: the paper's lengths


def words_of(tokenizer: Any) -> list[str]:
    """Return words that are one token each when a space stands before them."""
    return sorted(t[1:] for t in tokenizer.get_vocab() if t[0] == "\u0120" and t[1:].isalpha())


def make_rows(tokenizer: Any, method: str, n: int, lengths: Lengths) -> list[dict[str, str]]:
    """Return rows of random words as the trainers take them, with BOS and EOS of the wanted lengths."""
    rng, words, rows = random.Random(SEED), words_of(tokenizer), []
    names = ("completion",) if method == "sft" else ("chosen", "rejected")
    for _ in range(n):
        prompt = "Prompt: " + " ".join(rng.choices(words, k=rng.randint(*lengths.prompt))) + "\nResponse:"
        used = len(tokenizer(prompt)["input_ids"]) + 1
        drawn = [lengths.row - used if lengths.row else rng.randint(*lengths.response) for _ in range(2)]
        texts = [" " + " ".join(rng.choices(words, k=length)) for length in drawn]
        rows.append({"prompt": prompt} | dict(zip(names, texts, strict=False)))
    return rows


def everyday_rows(tokenizer: Any, method: str, n: int) -> list[dict[str, str]]:
    """Return training pairs of everyday as the trainers take them, in the model's own format."""
    chat, items = load.chat_format(tokenizer), [item for item in everyday.items() if item.split == "train"]
    names = {"sft": {"completion": "response_a"}, "dpo": {"chosen": "response_a", "rejected": "response_b"}}
    return [
        {"prompt": tailoring_prompt(item.prompt, item.persona_a, "line", chat)}
        | {name: completion_text(getattr(item, field), chat) for name, field in names[method].items()}
        for item in items[:n]
    ]


def datasets_of(tokenizer: Any, method: str, n: int, lengths: Lengths | None) -> dict[str, Any]:
    """Return n rows to train on, and a few to validate on; without lengths pairs of everyday."""
    from datasets import Dataset

    rows = (
        make_rows(tokenizer, method, n + 4, lengths) if lengths else everyday_rows(tokenizer, method, n + 4)
    )
    return {"train": Dataset.from_list(rows[:-4]), "val": Dataset.from_list(rows[-4:])}


def package_profile(case: Case, name: str = "paper", **changes: Any) -> Profile:
    """Return a profile with the case's batch and precision; rows above 512 tokens are kept whole."""
    profile = load_profile(name)
    length = max(512, case.row_tokens)
    batches = {"sft.batch_size": case.batch, "dpo.batch_size": case.batch}
    precision = {"base.quantization": case.quantization, "base.dtype": case.dtype}
    return set_field(profile, {"training.max_length": length, **batches, **precision, **changes})


def package_trainer(case: Case, profile: Profile, base: Any, tokenizer: Any, data: Any, folder: Path) -> Any:
    """Build this package's trainer, DPO on top of an SFT adapter, with the guards of a real run."""
    sft = save_adapter(profile, base, folder / "sft") if case.method == "dpo" else None
    trainer = trainers.make_trainer(profile, case.method, SEED, base, tokenizer, data, folder, sft)
    if case.method == "dpo":
        trainers.check_dpo_start(trainer, profile)
    trainers.check_adapters(trainer.model)
    trainer.add_callback(trainers.learning_guard())
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    return trainer


def save_adapter(profile: Profile, base: Any, folder: Path) -> Path:
    """Save an SFT adapter with random weights and leave the base as it was."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(SEED)
    config = trainers.lora_config(profile)
    config.init_lora_weights = False
    model = get_peft_model(base, config)
    model.save_pretrained(str(folder))
    model.unload()
    return folder


def trl_trainer(
    case: Case, profile: Profile, base: Any, tokenizer: Any, data: Any, folder: Path, **changes: Any
) -> Any:
    """Build TRL's own trainer: a fresh adapter on the base, which is also DPO's reference, online."""
    import torch
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    make, config = (SFTTrainer, SFTConfig) if case.method == "sft" else (DPOTrainer, DPOConfig)
    settings = {"output_dir": str(folder), "seed": SEED, "data_seed": SEED, "save_strategy": "no"}
    settings |= {"report_to": "none", "disable_tqdm": True, "use_cpu": not torch.cuda.is_available()}
    if case.way == AUTHORS:  # all else is TRL's default
        settings |= {"per_device_train_batch_size": case.batch, "gradient_checkpointing": False}
        settings |= {"bf16": case.dtype == "bfloat16", "optim": "adamw_torch"}
        settings |= {"learning_rate": getattr(profile, case.method).learning_rate}
        settings |= {"max_length": profile.training.max_length}
        settings |= {"completion_only_loss": False} if case.method == "sft" else {}
    return make(
        model=base,
        args=config(**(settings | changes)),
        processing_class=tokenizer,
        train_dataset=data["train"],
        peft_config=trainers.lora_config(profile),
    )


def run_quietly(trainer: Any) -> None:
    """Train without printing the Trainer's own logs."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()
