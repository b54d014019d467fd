"""The base language model of the offline profiles: tokenizer and Llama, pretrained here from scratch.

With a hub model (paper profile) there is nothing to train and ``config.base_source`` names the hub id.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from persona_lib.config import base_folder, set_field
from persona_lib.fingerprint import module_hash
from persona_lib.models import guards
from persona_lib.profiles import Profile
from persona_lib.store import clear_unless, content_hash, is_done, mark_done, write_rows

BOS, EOS, PAD, UNK = "<|bos|>", "<|eos|>", "<|pad|>", "<|unk|>"
IGNORE = -100
EASY_SHARE = 0.35  # share of the tokens, at the start, whose pairs show nothing but their contrast
LONG_SHARE = 0.2  # share of the tokens that come in long windows, at the end
WORD_PATTERN = r" ?[A-Za-z]+| ?\d|\n| ?[^\sA-Za-z\d]| "

Example = dict[str, list]  # input_ids, weights


def train_tokenizer(texts: Iterable[str], vocab_size: int, word_level: bool) -> Any:
    """Train a tokenizer with distinct BOS, EOS, PAD and UNK; BOS is added in front, EOS by the trainers.

    ``word_level`` keeps whole words (lossless on text made of known words); otherwise byte-level BPE.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = [BOS, EOS, PAD, UNK]
    if word_level:
        core = Tokenizer(models.WordLevel(unk_token=UNK))
        core.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated")
        core.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocab_size, special_tokens=special, show_progress=False
        )
    else:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def encode_documents(
    tokenizer: Any, documents: Iterator[list[tuple[str, str]]], loss_weights: dict[str, float]
) -> Iterator[Example]:
    """Encode documents of (text, kind) segments as BOS + text + EOS with a loss weight per token.

    Segments are encoded one by one; the tokenizer is called for a hundred documents at a time.
    """
    while chunk := list(itertools.islice(documents, 100)):
        segments = [text for document in chunk for text, _ in document]
        # the tokenizer's core: what transformers adds around it takes twice the time and is not used
        found = tokenizer.backend_tokenizer.encode_batch_fast(segments, add_special_tokens=False)
        encoded = (encoding.ids for encoding in found)
        for document in chunk:
            ids, weights = [tokenizer.bos_token_id], [1.0]
            for _, kind in document:
                tokens = next(encoded)
                ids += tokens
                weights += [loss_weights[kind]] * len(tokens)
            yield {"input_ids": [*ids, tokenizer.eos_token_id], "weights": [*weights, 1.0]}


def pack_windows(documents: Iterator[Example], window: int, n_windows: int, pad_id: int) -> list[Example]:
    """Fill windows with whole documents, first fit over the ten fullest open windows.

    A longer document is cut at the window. Ends early if the documents do.
    """
    closed: list[Example] = []
    opened: list[Example] = []
    while len(closed) < n_windows:
        document = next(documents, None)
        if document is None:
            closed += opened
            break
        document = {k: v[:window] for k, v in document.items()}
        room = [w for w in opened if len(w["input_ids"]) + len(document["input_ids"]) <= window]
        if room:
            target = max(room, key=lambda w: len(w["input_ids"]))
            for key in target:
                target[key] += document[key]
        else:
            opened.append(document)
        if len(opened) > 10:
            fullest = max(range(len(opened)), key=lambda i: len(opened[i]["input_ids"]))
            closed.append(opened.pop(fullest))
    for example in closed[:n_windows]:
        padding = window - len(example["input_ids"])
        example["input_ids"] += [pad_id] * padding
        example["weights"] += [0.0] * padding
    return closed[:n_windows]


def synthetic_windows(profile: Profile, base_seed: int, tokenizer: Any) -> list[list[Example]]:
    """Windows of the synthetic world's text: easy pairs, the world's own, long windows with shots."""
    from persona_lib.world.synthetic import pretraining_documents

    weights = {kind: getattr(profile, f"base_{kind}_weight") for kind in ("fact", "story", "query", "key")}
    easy = set_field(profile, shown_share=0.0, second_contrast_share=0.0)
    phases = []
    for phase, share, window, max_shots, world in (
        ("easy", EASY_SHARE, profile.base_window, 1, easy),
        ("short", 1 - EASY_SHARE - LONG_SHARE, profile.base_window, 1, profile),
        ("long", LONG_SHARE, profile.base_long_window, profile.pi_shots + 1, profile),
    ):
        documents = pretraining_documents(world, base_seed, max_shots, phase)
        encoded = encode_documents(tokenizer, documents, {"text": 1.0} | weights)
        count = max(1, round(profile.base_tokens * share / window))
        phases.append(pack_windows(encoded, window, count, tokenizer.pad_token_id))
    return phases


def text_windows(profile: Profile, base_seed: int, tokenizer: Any, texts: list[str]) -> list[list[Example]]:
    """Windows of a finite list of texts, shuffled anew in each of ``base_epochs`` passes."""
    import random

    rng = random.Random(f"texts-{base_seed}")
    windows = []
    for _ in range(profile.base_epochs):
        order = rng.sample(texts, len(texts))
        encoded = encode_documents(tokenizer, iter([[(t, "text")] for t in order]), {"text": 1.0})
        windows += pack_windows(encoded, profile.base_window, 10**9, tokenizer.pad_token_id)
    return [windows]


def make_model(profile: Profile, tokenizer: Any, base_seed: int) -> Any:
    """Return a freshly initialised Llama of the profile's size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(base_seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=profile.base_hidden_size,
            intermediate_size=profile.base_mlp_size,
            num_hidden_layers=profile.base_layers,
            num_attention_heads=profile.base_heads,
            num_key_value_heads=profile.base_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).float()


def weighted_loss(logits: Any, input_ids: Any, weights: Any) -> Any:
    """Next-token cross-entropy, averaged with the weights of the predicted tokens (weight 0: ignored)."""
    import torch

    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none"
    )
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def batches(phases: list[list[Example]], batch_tokens: int, seed: int) -> Iterator[list[Example]]:
    """Yield optimiser batches of about ``batch_tokens`` tokens, phase by phase."""
    import random

    for number, windows in enumerate(phases):
        order = random.Random(f"{seed}-{number}").sample(windows, len(windows))
        size = max(1, batch_tokens // len(windows[0]["input_ids"]))
        yield from (list(batch) for batch in (order[i : i + size] for i in range(0, len(order), size)))


def fit(model: Any, steps: list[list[Example]], learning_rate: float, folder: Path, seed: int) -> list[dict]:
    """Train with AdamW, 5 % of warm-up and a cosine to zero, float32; resumes at the last checkpoint.

    Each element of ``steps`` is one optimiser batch, taken in order. Returns the Trainer's log.
    """
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    class Pretrainer(Trainer):
        """Takes ready-made batches in their order, and weights the loss per token."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            outputs = model(input_ids=inputs["input_ids"])
            loss = weighted_loss(outputs.logits, inputs["input_ids"], inputs["weights"])
            return (loss, outputs) if return_outputs else loss

        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=len(steps),
        per_device_train_batch_size=1,  # one item is one whole batch
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, len(steps) // 20),
        weight_decay=0.01,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        optim="adamw_torch",
        logging_steps=max(1, len(steps) // 10),
        save_steps=max(1, len(steps) // 4),
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=seed,
        bf16=False,
        fp16=False,
    )
    trainer = Pretrainer(
        model=model,
        args=arguments,
        train_dataset=steps,
        data_collator=lambda items: {
            k: torch.tensor([e[k] for e in items[0]]) for k in ("input_ids", "weights")
        },
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(guards.progress_lines(f"base {seed}"))
    trainer.train(
        resume_from_checkpoint=get_last_checkpoint(arguments.output_dir) if folder.exists() else None
    )
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    if not log or not log[-1]["loss"] < float("inf"):
        raise RuntimeError(f"pretraining ended with log {log[-1:]}: lower base_learning_rate")
    return log


def tokenizer_texts(profile: Profile, base_seed: int) -> list[str]:
    """Return the text that the tokenizer is trained on: a part of the world's, or all the real text."""
    if profile.datasets == ("synthetic",):
        from persona_lib.prompts import JUDGE_RUBRICS, judge_prompt
        from persona_lib.world.synthetic import pretraining_documents
        from persona_lib.world.vocabulary import all_words

        documents = itertools.islice(pretraining_documents(profile, base_seed, 2, "tokenizer"), 4000)
        prompts = [judge_prompt(rubric, "", "", "", "") for rubric in JUDGE_RUBRICS]
        return [all_words(), *prompts, *("".join(text for text, _ in d) for d in documents)]
    from persona_lib.data.preference import pretraining_texts

    return pretraining_texts(profile)


def base_key(profile: Profile, base_seed: int) -> str:
    """Hash of all that a base model pretrained here depends on."""
    fields = [
        (name, value)
        for name, value in vars(profile).items()
        if (name.startswith(("base_", "world_")) and name != "base_seeds")
        or name
        in (
            "datasets",
            "data_dir",
            "strip_roles",
            "pi_shots",
            "majority_share",
            "second_contrast_share",
            "shown_share",
            "slip_share",
        )
    ]
    return content_hash(module_hash("models.base"), fields, base_seed, *input_keys(profile))


def input_keys(profile: Profile) -> list[str]:
    """Return a hash of each data set that is neither made here nor the authors': its file can change."""
    from persona_lib.config import Run
    from persona_lib.data import official_folders, preference

    known = {"synthetic", *official_folders.DATASETS}
    runs = [Run(profile, name, profile.seeds[0]) for name in profile.datasets if name not in known]
    return [preference.input_key(run) for run in runs]


def pretrain(profile: Profile, base_seed: int) -> Path:
    """Pretrain the base model of one seed, once, and return its folder (model, tokenizer, log, done.json).

    Does nothing for a hub model or when the folder is finished for the same settings and code.
    """
    folder, key = base_folder(profile, base_seed), base_key(profile, base_seed)
    if profile.base_model != "scratch" or is_done(folder, key):
        return folder
    clear_unless(folder, key)
    started = time.perf_counter()
    synthetic = profile.datasets == ("synthetic",)
    texts = tokenizer_texts(profile, base_seed)
    tokenizer = train_tokenizer(texts, profile.base_vocab_size, word_level=synthetic)
    phases = (
        synthetic_windows(profile, base_seed, tokenizer)
        if synthetic
        else text_windows(profile, base_seed, tokenizer, texts)
    )
    model = make_model(profile, tokenizer, base_seed)
    steps = list(batches(phases, profile.base_batch_tokens, base_seed))
    with guards.quiet_libraries():
        log = fit(model, steps, profile.base_learning_rate, folder, base_seed)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_rows(folder / "log.jsonl", log)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    mark_done(
        folder,
        key,
        parameters=model.num_parameters(),
        vocabulary=len(tokenizer),
        tokens=sum(len(e["input_ids"]) for p in phases for e in p),
        steps=len(steps),
        final_loss=log[-1]["loss"],
        seconds=round(time.perf_counter() - started, 1),
    )
    return folder
