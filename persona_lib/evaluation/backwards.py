"""A judge that reads persona inference backwards: which response explains the persona better?

Persona inference writes a persona P from a question x and a preferred response r. Read backwards, the same
model judges: ``score(r) = log p(P | x, r)``, and the response with the higher score suits the user better.
There is no order, no verdict to parse, and the length of a response adds nothing to the score; its size says
how sure the judge is. The model is the base with an adapter of its own, trained to write personas from
(question, response) on training rows, of both sides alike; no policy shares it, and it never saw a row that
it judges.

Quality is relevance: ``log p(x | r)`` under the untrained base, the question from the answer. It sees an
answer to another question, and does not see wrong facts. What either is worth is measured in
``evaluation.calibration``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.config import Run, results_dir
from persona_lib.data import everyday, preference
from persona_lib.models import guards
from persona_lib.models.llm import (
    attach_adapters,
    format_of,
    load_base,
    load_tokenizer,
    model_key,
    sequence_log_probs,
    using_adapters,
)
from persona_lib.models.tokens import count_rows
from persona_lib.prompts import backwards_query, completion_text, relevance_query, tailoring_prompt
from persona_lib.records import SIDES, Judgment, PairwiseComparison, Rubric, TailoringRow
from persona_lib.store import VERSIONS
from persona_lib.training import cpu_head, train
from persona_lib.training.trainers import sft_trainer

NAME = "backwards"
FIELDS = ("backwards_rows", "backwards_epochs", "backwards_batch_size", "backwards_learning_rate", "lora_r",
          "lora_alpha", "lora_dropout", "lora_targets", "max_length", "compute_dtype",
          "completion_only_loss", "sft_packing", "lr_scheduler", "warmup_share")  # fmt: skip


def judge_folder(run: Run) -> Path:
    """Return the folder of a data set's judge; its rows are the same for every seed."""
    return results_dir(run.profile) / run.dataset / NAME


def persona_rows(run: Run, part: str) -> list[dict[str, str]]:
    """Return the judge's rows {"id", "prompt", "completion"} of "train" or "val": both sides of every pair.

    Training rows only: of ``everyday`` the training and validation topics, else SFT's splits.
    """
    chat = format_of(*run.base_source)
    if run.dataset == everyday.NAME:
        split = {"train": "train", "val": "validation"}[part]
        found = [
            (
                f"{item.id}/{side}",
                item.prompt,
                getattr(item, f"response_{side}"),
                getattr(item, f"persona_{side}"),
            )
            for item in everyday.items()
            if item.split == split
            for side in "ab"
        ]
    else:
        rows = store.read_rows(run.folder / "tailoring" / f"sft_{part}.jsonl", TailoringRow)
        found = [
            (f"{row.id}/{side}", row.prompt, getattr(row, side), row.personas[f"gold-{side}"])
            for row in rows
            for side in SIDES
            if row.personas.get(f"gold-{side}")
        ]
    made = [
        {"id": name, "prompt": asked(prompt, liked, chat), "completion": completion_text(persona, chat)}
        for name, prompt, liked, persona in found
    ]
    limit = run.profile.backwards_rows if part == "train" else -(-run.profile.backwards_rows // 8)
    ordered = sorted(made, key=lambda row: store.content_hash(row["id"]))
    return ordered[:limit] if limit else ordered


def asked(prompt: str, response: str, chat: Any) -> str:
    """Return what the judge's model is asked about one response."""
    return tailoring_prompt(backwards_query(prompt, response), None, chat=chat)


def judge_key(run: Run) -> str:
    """Return a hash of all that the judge depends on."""
    settings = [getattr(run.profile, name) for name in FIELDS]
    data = everyday.key() if run.dataset == everyday.NAME else preference.input_key(run)
    code = VERSIONS["training"]
    return store.content_hash(NAME, code, settings, data, model_key(*run.base_source))


def train_judge(run: Run) -> Path:
    """Train the judge's adapter once per profile and data set; resumes; returns its folder."""
    from datasets import Dataset

    folder, key = judge_folder(run), judge_key(run)
    if store.is_done(folder, key):
        return folder
    profile = dataclasses.replace(
        run.profile,
        sft_learning_rate=run.profile.backwards_learning_rate,
        sft_epochs=run.profile.backwards_epochs,
        sft_batch_size=run.profile.backwards_batch_size,
        quantization="none",
    )
    checkpoint = train.prepare_folder(folder, key, {"judge": NAME})
    tokenizer = load_tokenizer(*run.base_source)
    rows = {part: persona_rows(run, part) for part in ("train", "val")}
    for part, found in rows.items():
        count_rows(tokenizer, found, ("completion",), profile.max_length, f"{NAME} {part}")
    data = {part: Dataset.from_list(found) for part, found in rows.items()}
    with guards.quiet_libraries(), cpu_head.small_tiles(on=profile.sft_packing):
        base = load_base(*run.base_source, "none", profile.compute_dtype)
        trainer = sft_trainer(profile, 0, base, tokenizer, data, folder / "checkpoints")
        train.fit(trainer, profile, NAME, checkpoint)
    train.save_adapter(trainer, folder, key)
    del trainer
    train.release_memory()
    return folder


class BackwardsJudge:
    """The trained judge: ``(comparisons, rubric) -> judgments``, loaded at the first use; scores are kept."""

    name = NAME

    def __init__(self, run: Run) -> None:
        self.run, self.model = run, None
        self.chat = format_of(*run.base_source)
        self.known: dict[tuple[str, str], float] = {}

    def prepare(self) -> None:
        """Load the base and the judge's adapter."""
        if self.model is None:
            self.tokenizer = load_tokenizer(*self.run.base_source)
            folder = train_judge(self.run)
            base = load_base(*self.run.base_source, "none", self.run.profile.compute_dtype)
            self.model, self.adapters = attach_adapters(base, [folder]), [folder.name]

    def scores(self, asked: Sequence[tuple[str, str]], adapted: bool) -> list[float]:
        """Return log p(completion | prompt) of rendered (prompt, completion) texts, in nats."""
        missing = list(dict.fromkeys(pair for pair in asked if pair not in self.known))
        if missing:
            self.prepare()
            names = self.adapters if adapted else []
            merge = self.run.profile.compute_dtype == "float32"
            with guards.quiet_libraries(), using_adapters(self.model, names, merge):
                found = sequence_log_probs(
                    self.model, self.tokenizer, *zip(*missing, strict=True), self.run.profile.judge_batch_size
                )
            self.known |= dict(zip(missing, found.tolist(), strict=True))
        return [self.known[pair] for pair in asked]

    def persona_scores(self, triples: Sequence[tuple[str, str, str]]) -> list[float]:
        """Return log p(persona | question, response) of (question, response, persona) triples."""
        rendered = [(asked(x, r, self.chat), completion_text(p, self.chat)) for x, r, p in triples]
        return self.scores(rendered, adapted=True)

    def relevance_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return log p(question | answer) of (question, answer) pairs under the untrained base."""
        rendered = [
            (tailoring_prompt(relevance_query(r), None, chat=self.chat), completion_text(x, self.chat))
            for x, r in pairs
        ]
        return self.scores(rendered, adapted=False)

    def plausible(self, comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> list[Judgment]:
        """Judge which of two personas is likelier: log p(persona | question) per word, no adapter."""
        both = [(c.prompt, text) for c in comparisons for text in (c.response_a, c.response_b)]
        rendered = [(asked(x, "", self.chat), completion_text(p, self.chat)) for x, p in both]
        found = self.scores(rendered, adapted=False)
        per_word = [value / len(p.split()) for value, (_, p) in zip(found, both, strict=True)]
        return self.judged(comparisons, rubric, per_word)

    def __call__(self, comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> list[Judgment]:
        both = [(c, text) for c in comparisons for text in (c.response_a, c.response_b)]
        if rubric == "personalization":
            found = self.persona_scores([(c.prompt, text, c.persona or "") for c, text in both])
        else:
            found = self.relevance_scores([(c.prompt, text) for c, text in both])
        return self.judged(comparisons, rubric, found)

    def judged(
        self, comparisons: Sequence[PairwiseComparison], rubric: Rubric, scores: Sequence[float]
    ) -> list[Judgment]:
        """Return the judgments of two scores per comparison."""
        pairs = zip(comparisons, scores[::2], scores[1::2], strict=True)
        return [judgment(c.id, self.name, rubric, a, b) for c, a, b in pairs]


def judgment(id: str, judge: str, rubric: Rubric, a: float, b: float) -> Judgment:
    """Return the judgment of two scores; equal scores are a tie."""
    winner = None if a == b else "A" if a > b else "B"
    return Judgment(id, judge, rubric, winner, winner is None, f"{a:.4f} : {b:.4f}")
