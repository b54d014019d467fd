"""``everyday``: the package's own preference pairs, real questions with two answers that differ for a user.

The pairs (``facts/everyday.jsonl``; data card: EVERYDAY.md) were written by a language model. The two
responses of a pair answer about equally well and show opposite values of one dimension (of two, in a fifth of
the pairs). Each side has a persona, and its wish in a user's own words. Every topic is in one split. A data
seed draws which value of a dimension most users like, and so which response of a pair is *chosen*: no side is
better by nature.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from persona_lib.records import PAIR_SPLITS, SIDES, PreferencePair, TailoringRow
from persona_lib.store import read_rows

NAME = "everyday"
FILE = Path(__file__).resolve().parent.parent / "facts" / "everyday.jsonl"
# dimension -> its two values; the first five are style, the others content
DIMENSIONS: dict[str, tuple[str, str]] = {
    "length": ("brief", "thorough"),
    "format": ("steps", "prose"),
    "tone": ("warm", "formal"),
    "detail": ("plain", "technical"),
    "initiative": ("decides", "asks"),
    "budget": ("cheap", "premium"),
    "pace": ("quick", "patient"),
    "risk": ("cautious", "bold"),
    "company": ("alone", "together"),
    "table": ("abstains", "indulges"),
}
Wish = tuple[tuple[str, str], ...]  # (dimension, value) pairs that a user wants


@dataclass(frozen=True)
class Item:
    """One row of ``everyday.jsonl``.

    ``dimension``, ``value_a`` and ``value_b`` name one dimension, or two joined by "+". ``wording`` says
    whether the personas name the surface of the answer ("explicit") or only the situation ("implicit").
    """

    id: str
    topic: str
    split: str
    prompt: str
    response_a: str
    response_b: str
    dimension: str
    value_a: str
    value_b: str
    persona_a: str
    persona_b: str
    user_a: str
    user_b: str
    wording: str

    def wish(self, side: str) -> Wish:
        """Return what the user of side "a" or "b" wants."""
        values = (self.value_a if side == "a" else self.value_b).split("+")
        return tuple(zip(self.dimension.split("+"), values, strict=True))


@cache
def items() -> tuple[Item, ...]:
    """Return all items, in the file's order."""
    return tuple(read_rows(FILE, Item))


def common_values(seed: int) -> dict[str, str]:
    """Return which value of each dimension most users like, drawn by the data seed."""
    rng = random.Random(f"everyday-common-{seed}")
    return {dimension: rng.choice(values) for dimension, values in DIMENSIONS.items()}


def sides(item: Item, majority_share: float, seed: int) -> dict[str, str]:
    """Return which side, "a" or "b", is chosen and rejected: the common value with ``majority_share``."""
    dimension, value = item.wish("a")[0]
    like_most = random.Random(f"everyday-{seed}-{item.id}").random() < majority_share
    chosen = (value == common_values(seed)[dimension]) == like_most
    return dict(zip(SIDES, "ab" if chosen else "ba", strict=True))


def pairs(majority_share: float, seed: int, limit: int = 0) -> dict[str, list[PreferencePair]]:
    """Return the preference pairs of a data seed by split; ``limit`` keeps the first rows of each split."""
    found: dict[str, list[PreferencePair]] = {split: [] for split in PAIR_SPLITS}
    for item in items():
        side = sides(item, majority_share, seed)
        texts = (getattr(item, f"response_{side[name]}") for name in SIDES)
        found[item.split].append(PreferencePair(item.id, item.prompt, *texts))
    return {split: part[:limit] if limit else part for split, part in found.items()}


def personas(majority_share: float, seed: int) -> dict[str, dict[str, str]]:
    """Return, by row id, the data's personas ("gold-chosen", ...) and the users' own words ("user-...")."""
    return {
        item.id: {
            f"{kind}-{name}": getattr(item, f"{field}_{side}")
            for name, side in sides(item, majority_share, seed).items()
            for kind, field in (("gold", "persona"), ("user", "user"))
        }
        for item in items()
    }


@cache
def wishes() -> dict[str, Wish]:
    """Return what each persona and each user's text of the data wants, by the text."""
    return {
        getattr(item, f"{field}_{side}"): item.wish(side)
        for item in items()
        for field in ("persona", "user")
        for side in "ab"
    }


def relabelled(rows: list[TailoringRow], seed: int) -> list[TailoringRow]:
    """Return rows whose two personas are exchanged where the seed relabels their (first) dimension.

    The control for stereotypes of pretraining: a policy that follows them has learned it from these rows.
    """
    half = len(DIMENSIONS) // 2
    flipped = random.Random(f"everyday-relabelled-{seed}").sample(sorted(DIMENSIONS), half)
    exchanged = {item.id for item in items() if item.dimension.split("+")[0] in flipped}

    def source(name: str) -> str:
        kind, _, side = name.rpartition("-")
        return f"{kind}-{SIDES[1 - SIDES.index(side)]}" if side in SIDES else name

    def exchange(row: TailoringRow) -> TailoringRow:
        return replace(row, personas={name: row.personas.get(source(name)) for name in row.personas})

    return [exchange(row) if row.id in exchanged else row for row in rows]
