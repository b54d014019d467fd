"""A guard model: any language model that reads a question and an answer and says how careful the answer is.

It goes through the generator interface (``guard_*`` of the profile: loaded here, or served) with a prompt of
ours, greedily, and gives the three classes of ``stats.caution``. What cannot be read stays None. Labels are
kept per cell and resume where they were stopped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from persona_lib.config import Run, results_dir
from persona_lib.evaluation.safety import Cell, Classifier, Labels, Texts
from persona_lib.fingerprint import module_hash
from persona_lib.models.generators import load_generator, role_key
from persona_lib.models.tokens import chat_text
from persona_lib.profiles import Profile
from persona_lib.prompts import guard_prompt
from persona_lib.stats.caution import CLASSES
from persona_lib.store import (
    append_rows,
    clear_unless,
    content_hash,
    is_done,
    iter_rows,
    mark_done,
    read_rows,
    repair_rows,
)

CHUNK = 256  # answers read between two writes
WORD = re.compile(rf"\W*({'|'.join(CLASSES)})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """What the guard said of one answer: its class, None where the ``raw`` text names none."""

    id: str
    label: str | None
    raw: str


def parse_class(text: str) -> str | None:
    """Read the class that an answer begins with; None if it begins with none."""
    match = WORD.match(text.strip())
    return match[1].lower() if match else None


def guard_key(profile: Profile, run: Run) -> list[Any]:
    """Return all that decides what the guard says of given texts."""
    how = [profile.guard_kind, profile.guard_max_new_tokens, profile.compute_dtype, profile.engine]
    return [*how, role_key(run, "guard")]


def asked_as(profile: Profile, generator: Any) -> Callable[[str], str]:
    """Return how a prompt is framed: in the chat format of a model that is loaded here and has one."""
    tokenizer = getattr(generator, "tokenizer", None)
    chat = profile.guard_kind == "chat" and tokenizer and tokenizer.chat_template
    return partial(chat_text, tokenizer) if chat else str


def read_answers(
    generator: Any, asked: Callable[[str], str], items: Sequence[tuple[str, str, str]], max_new_tokens: int
) -> list[Reading]:
    """Ask the guard about (id, question, answer) items."""
    prompts = [asked(guard_prompt(question, answer)) for _, question, answer in items]
    found = dict(generator.generate(prompts, max_new_tokens, ("\n",)))
    return [
        Reading(id, parse_class(found[n].text), found[n].text.strip()) for n, (id, _, _) in enumerate(items)
    ]


def label_cell(
    folder: Path, key: str, items: Sequence[tuple[str, str, str]], ask: Callable[[Sequence], list[Reading]]
) -> Labels:
    """Label the answers of one cell into a folder; finished work is read, stopped work goes on."""
    path = folder / "rows.jsonl"
    if not is_done(folder, key):
        clear_unless(folder, key)
        repair_rows(path)
        known = {row["id"] for row in iter_rows(path)} if path.exists() else set()
        missing = [item for item in items if item[0] not in known]
        for start in range(0, len(missing), CHUNK):
            append_rows(path, ask(missing[start : start + CHUNK]))
        mark_done(folder, key, n=len(items))
    return {row.id: row.label for row in read_rows(path, Reading)} if path.exists() else {}


def guard_classifier(run: Run, prompts: Callable[[Cell], Sequence[Texts]], name: str) -> Classifier | None:
    """Return the profile's guard as a classifier of cells; None if the profile names none.

    ``prompts`` gives the questions of a cell by row id, one dict per seed; ``name`` tells whose answers
    they are. The model is loaded when the first answer is to be read.
    """
    profile = run.profile
    if not profile.guard_model:
        return None
    loaded: list[Any] = []

    def ask(items: Sequence[tuple[str, str, str]]) -> list[Reading]:
        if not loaded:
            loaded.append(load_generator(run, "guard", profile.guard_batch_size))
        return read_answers(loaded[0], asked_as(profile, loaded[0]), items, profile.guard_max_new_tokens)

    def classify(cell: Cell, answers: Sequence[Texts]) -> list[Labels]:
        labels = []
        for number, (texts, questions) in enumerate(zip(answers, prompts(cell), strict=True)):
            items = [(i, questions[i], text) for i, text in sorted(texts.items())]
            key = content_hash(module_hash("evaluation.guard_model"), guard_key(profile, run), items)
            folder = results_dir(profile) / "safety_guard" / name / f"{cell.slug}.{number}"
            labels.append(label_cell(folder, key, items, ask))
        return labels

    return classify
