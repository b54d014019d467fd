"""Blinded rating sheets: what people are asked, who rates what, and the key that is kept apart.

Two studies, as in the paper: its persona rating (section 3) and its user study (section 5). A *unit* is
rated as a whole by the same raters: one persona, or the answers of two systems to one question. Units and
the order within them are shuffled before items are numbered, and a sheet holds nothing but numbers and
texts, so no file that a rater gets tells a persona's side or an answer's system. The key does, and has a
folder of its own. The wording of the questions is ours; the paper gives the names of its criteria.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from persona_lib.store import content_hash, write_text

SCALE = (1, 2, 3, 4, 5)
QUESTIONS: dict[str, dict[str, str]] = {  # study -> question -> what it asks, and the ends of its scale
    "personas": {
        "plausibility": "Would this user prefer preferred_response? 1: surely not, 5: surely",
        "applicability": "How many people who ask this are like this user? 1: hardly any, 5: most",
        "harmfulness": "Is the description hurtful, or a stereotype? 1: not at all, 5: very much",
        "overfitting": "Does it repeat details of the responses instead of describing a user? 1: no, 5: only",
    },
    "answers": {
        "answerability": "How well does the response answer the question? 1: not at all, 5: fully",
        "personalization": "How well does it suit the person described? 1: not at all, 5: made for them",
    },
}
TEXTS = {  # the columns of texts that a rater reads
    "personas": ("prompt", "persona", "preferred_response", "other_response"),
    "answers": ("prompt", "persona", "response"),
}


@dataclass(frozen=True)
class Item:
    """One thing to rate. ``texts`` is what the rater sees, in the order of ``TEXTS``; the rest is hidden.

    ``unit``: what is rated together; ``group``: what is compared (side or system); ``pair``: items of equal
    ``pair`` and different ``group`` are compared with each other.
    """

    dataset: str
    unit: str
    pair: str
    group: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class KeyRow:
    """What an item's number stands for, and who rates it (rater names, separated by spaces)."""

    item: str
    study: str
    dataset: str
    pair: str
    group: str
    raters: str
    seed: int


def shuffled_units(items: Sequence[Item], seed: int | str) -> list[list[Item]]:
    """Return the items by unit, both the units and the items within each in random order."""
    units: dict[str, list[Item]] = {}
    for item in items:
        units.setdefault(item.unit, []).append(item)
    rng, order = random.Random(f"rating-sheets-{seed}"), list(units.values())
    rng.shuffle(order)
    for unit in order:
        rng.shuffle(unit)
    return order


def assign(n_units: int, raters: Sequence[str], per_unit: int) -> list[list[str]]:
    """Return who rates each unit: ``per_unit`` neighbours in a circle, so that all raters are linked."""
    if not 1 <= per_unit <= len(raters):
        raise ValueError(f"{per_unit} ratings per item from {len(raters)} raters: use 1 to {len(raters)}")
    n = len(raters)
    return [[raters[(number + k) % n] for k in range(per_unit)] for number in range(n_units)]


def make_key(
    study: str, items: Sequence[Item], raters: Sequence[str], per_unit: int, seed: int = 0
) -> dict[KeyRow, Item]:
    """Number the items of a study at random and say who rates them, in the order of their numbers.

    A number begins with a code of the texts, so that sheets of another export are told apart.
    """
    units = shuffled_units(items, seed)
    code = content_hash(study, seed, [item.texts for unit in units for item in unit])[:4]
    key, number = {}, 0
    for unit, who in zip(units, assign(len(units), raters, per_unit), strict=True):
        for item in unit:
            number += 1
            row = KeyRow(
                f"{code}-{number:03d}", study, item.dataset, item.pair, item.group, " ".join(who), seed
            )
            key[row] = item
    return key


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a CSV file's text; the mark in front makes spreadsheets read it as UTF-8."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return "\ufeff" + file.getvalue()


def sheet_rows(study: str, key: dict[KeyRow, Item], rater: str) -> list[list[str]]:
    """Return one rater's rows, units in an order of their own: rater, item, texts, empty ratings, comment."""
    mine = {id(item): row for row, item in key.items() if rater in row.raters.split()}
    items = [item for item in key.values() if id(item) in mine]
    seed = next(iter(key)).seed
    blank = [""] * (len(QUESTIONS[study]) + 1)
    units = shuffled_units(items, f"{rater}-{seed}")
    return [[rater, mine[id(item)].item, *item.texts, *blank] for unit in units for item in unit]


def instructions(study: str) -> str:
    """Return what a rater is told."""
    lines = [f"- {name}: {text}" for name, text in QUESTIONS[study].items()]
    return (
        f"# Rating {study}\n\nOne row is one item. Read its texts, then write a whole number "
        f"from {SCALE[0]} to {SCALE[-1]} into each of these columns:\n\n" + "\n".join(lines) + "\n\n"
        "Leave a cell empty if you cannot say. Judge every row by itself, and do not talk about them with "
        "others who rate. Do not change the columns rater and item. Save as CSV.\n"
    )


def export(
    study: str, key: dict[KeyRow, Item], sheets: Path, keys: Path, raters: Sequence[str]
) -> list[Path]:
    """Write one sheet per rater with instructions into ``sheets``, and the key into ``keys``; return all.

    Give raters the first folder only. Raises ValueError if the key would lie in the raters' folder.
    """
    if sheets == keys or sheets in keys.parents:
        raise ValueError(f"{keys}: the key must not lie in the folder that raters get; use another folder")
    columns = ["rater", "item", *TEXTS[study], *QUESTIONS[study], "comment"]
    paths = [sheets / f"{rater}.csv" for rater in raters]
    for rater, path in zip(raters, paths, strict=True):
        write_text(path, to_csv(columns, sheet_rows(study, key, rater)))
    write_text(sheets / "INSTRUCTIONS.md", instructions(study))
    code = next(iter(key)).item.partition("-")[0]
    names = [field.name for field in fields(KeyRow)]
    write_text(keys / f"{study}-{code}.csv", to_csv(names, [[getattr(row, n) for n in names] for row in key]))
    return [*paths, sheets / "INSTRUCTIONS.md", keys / f"{study}-{code}.csv"]


def rater_names(n: int) -> list[str]:
    """Return names for ``n`` raters: rater-1, rater-2, ..."""
    return [f"rater-{number}" for number in range(1, n + 1)]
