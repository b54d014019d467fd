"""The hand-labelled sample of released answers that measures how often the caution rules err.

A stratified draw with a fixed seed from the authors' nine BeaverTails files: three groups of files (plain
DPO alone, plain DPO told a persona, PT-DPO) times three coarse word lists, so that rare classes are
represented. ``facts/safety_labels.csv`` holds the labels by file and item id, never a text. Each row stands
for ``weight`` answers of its stratum, so that weighted shares are estimates for all answers. Two parts:
"written" was read while the rules were written, "held_out" was labelled before the rules ran on it and
scored once.
"""

from __future__ import annotations

import csv
import random
import re
from dataclasses import dataclass

from persona_lib.config import FACTS
from persona_lib.data.released import Released, ReleasedFile
from persona_lib.records import DataError
from persona_lib.stats.caution import CLASSES

LABELS_FILE = FACTS / "safety_labels.csv"
PARTS = ("written", "held_out")
DATASET = "beavertails"
SEED = 20250601
# How many answers of each (group, coarse word list) are labelled.
SIZES = {
    ("dpo", "refusing"): 10,
    ("dpo", "cautious"): 20,
    ("dpo", "other"): 20,
    ("dpo+p", "refusing"): 16,
    ("dpo+p", "cautious"): 50,
    ("dpo+p", "other"): 44,
    ("pt", "refusing"): 20,
    ("pt", "cautious"): 60,
    ("pt", "other"): 60,
}
WRITTEN_SHARE = 0.4
# Drawn and labelled later, with the rules frozen: the first sample could not tell their error by policy.
MORE = {
    ("dpo", "refusing"): 4,
    ("dpo", "cautious"): 12,
    ("dpo", "other"): 4,
    ("dpo+p", "refusing"): 14,
    ("dpo+p", "cautious"): 40,
    ("dpo+p", "other"): 6,
    ("pt", "refusing"): 14,
    ("pt", "cautious"): 48,
    ("pt", "other"): 18,
}
# Coarse on purpose: they only say from which pile an answer is drawn, and are no part of the rules.
REFUSING = re.compile(
    r"\b(sorry|i (cannot|can't|can not|won't|will not|do not|don't)|unable to|as an ai|not possible|no,)",
    re.IGNORECASE,
)
CAUTIOUS = re.compile(
    r"\b(illegal|unlawful|law|crime|criminal|legal|unethical|ethical|wrong|danger|harm|risk|safe|careful|"
    r"caution|consult|professional|seek|permission|consent|advis|recommend|should (not|never|always)|"
    r"shouldn't|important to|appropriate|acceptable|offensive|respect|consequences)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Labelled:
    """One labelled answer: which one it is, its stratum, what it stands for, and what a reader called it."""

    train_persona: str
    eval_persona: str
    id: str
    group: str
    pile: str
    part: str
    weight: float
    label: str

    @property
    def file(self) -> ReleasedFile:
        """The released file that the answer is in."""
        return ReleasedFile(DATASET, self.train_persona, self.eval_persona)


def group_of(train_persona: str, eval_persona: str) -> str:
    """Return the group of files: "dpo" (no persona), "dpo+p" (told one) or "pt"."""
    return "pt" if train_persona == "chosen" else "dpo" if eval_persona == "none" else "dpo+p"


def pile_of(text: str) -> str:
    """Return the coarse pile that an answer is drawn from."""
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return "refusing" if REFUSING.search(text) else "cautious" if CAUTIOUS.search(text) else "other"


def strata(data: Released) -> dict[tuple[str, str], list[tuple[ReleasedFile, str]]]:
    """Return the (file, item id) of every stratum, in a fixed order."""
    found: dict[tuple[str, str], list[tuple[ReleasedFile, str]]] = {key: [] for key in SIZES}
    for file, outputs in data.outputs.items():
        if file.dataset == DATASET:
            group = group_of(file.train_persona, file.eval_persona)
            for output in outputs:
                found[group, pile_of(output.text)].append((file, output.id))
    return found


def draw_sample(data: Released) -> list[Labelled]:
    """Draw the sample, without labels; each part is a random share of its stratum, the same everywhere."""
    rows = []
    for (group, pile), members in strata(data).items():
        if len(members) < SIZES[group, pile]:
            raise DataError(f"stratum {group}, {pile}: {len(members)} answers; are all nine files there?")
        first = random.Random(f"{SEED} {group} {pile}").sample(members, SIZES[group, pile])
        rest = [member for member in members if member not in first]
        more = random.Random(f"{SEED} {group} {pile} more").sample(rest, MORE[group, pile])
        n_written = round(WRITTEN_SHARE * len(first))
        n_held_out = len(first) + len(more) - n_written
        for number, (file, id) in enumerate([*first, *more]):
            part = "written" if number < n_written else "held_out"
            weight = len(members) / (n_written if part == "written" else n_held_out)
            names = (file.train_persona, file.eval_persona, id, group, pile, part)
            rows.append(Labelled(*names, round(weight, 4), ""))
    return rows


def sheet(data: Released, part: str) -> list[tuple[int, str, str]]:
    """Return (number in the sample, question, answer) of one part, shuffled, for blind labelling."""
    rows = [(number, row) for number, row in enumerate(draw_sample(data)) if row.part == part]
    random.Random(SEED).shuffle(rows)
    prompts = {row.id: row.prompt for row in data.rows[DATASET]}
    return [(number, prompts[row.id], answer_of(data, row)) for number, row in rows]


def answer_of(data: Released, row: Labelled) -> str:
    """Return the text of a sampled answer; DataError if its file is not there."""
    outputs = data.outputs.get(row.file)
    if outputs is None:
        raise DataError(f"{row.file.path}: a labelled answer is in it, and it is not there")
    return next(output.text for output in outputs if output.id == row.id)


def read_labels() -> list[Labelled]:
    """Read the shipped labels; DataError names a row with an unknown class or part."""
    with LABELS_FILE.open(encoding="utf-8", newline="") as file:
        rows = [Labelled(**row | {"weight": float(row["weight"])}) for row in csv.DictReader(file)]
    for number, row in enumerate(rows, 2):
        if row.label not in CLASSES or row.part not in PARTS:
            raise DataError(f"{LABELS_FILE.name}, line {number}: label {row.label!r}, part {row.part!r}")
    return rows
