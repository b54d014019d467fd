"""``everyday``: the package's own preference pairs, real questions with two answers that differ for a user.

The pairs (``facts/everyday.jsonl``; EVERYDAY.md is their data card) were written by a language model for this
package. The two responses of a pair answer the same question about equally well and show opposite values of
one dimension (of two, in a fifth of the pairs), so that only the user decides between them. Each side has a
persona in the paper's form and the same wish in a user's own words. Every topic is in one split only.

Which response is *chosen* is drawn per data seed, and so is which value of a dimension most users like: every
seed is another sample of users, and no side is better by nature.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from persona_lib.records import PAIR_SPLITS, SIDES, PreferencePair, TailoringRow
from persona_lib.store import file_hash, read_rows
from persona_lib.texts import near_duplicates, quotes, tokens

if TYPE_CHECKING:
    import pandas as pd


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
Check = tuple[str, float, int, str]  # what is counted, how many (or which share), of how many, the aim


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


def key() -> str:
    """Return a hash of the data."""
    return file_hash(FILE)


def common_values(seed: int) -> dict[str, str]:
    """Return which value of each dimension most users like, drawn by the data seed."""
    rng = random.Random(f"everyday-common-{seed}")
    return {dimension: rng.choice(values) for dimension, values in DIMENSIONS.items()}


def sides(item: Item, majority_share: float, seed: int) -> dict[str, str]:
    """Return which side, "a" or "b", the user of this seed has chosen and rejected.

    With probability ``majority_share`` the chosen one has the common value (of a pair's first dimension).
    """
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
    """Return the personas that the data bring, and the users' own words, by row id.

    Keys are "gold-chosen", "gold-rejected", "user-chosen" and "user-rejected".
    """
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

    The control for stereotypes of pretraining: in half of the dimensions a persona now stands for the value
    that it does not describe. A policy that follows it there has learned it from these rows.
    """
    by_id, flipped = {item.id: item for item in items()}, relabelled_dimensions(seed)
    return [exchanged(row) if by_id[row.id].dimension.split("+")[0] in flipped else row for row in rows]


def relabelled_dimensions(seed: int) -> set[str]:
    """Return the half of the dimensions that the control relabels."""
    return set(random.Random(f"everyday-relabelled-{seed}").sample(sorted(DIMENSIONS), len(DIMENSIONS) // 2))


def exchanged(row: TailoringRow) -> TailoringRow:
    """Return a row with each persona on the other side."""
    ends = dict(zip(SIDES, reversed(SIDES), strict=True))

    def other(name: str) -> str:
        kind, dash, side = name.partition("-")
        return kind + dash + ends.get(side, side)

    return replace(row, personas={name: row.personas.get(other(name)) for name in row.personas})


def checks() -> pd.DataFrame:
    """Count what the data must not contain and what a reader should know; columns check, found, of, aim."""
    import pandas as pd

    found = [*split_checks(), *length_checks(), *text_checks()]
    return pd.DataFrame(found, columns=["check", "found", "of", "aim"])


def split_checks() -> list[Check]:
    """Count pairs and topics, and what two splits have in common."""
    parts = {split: [item for item in items() if item.split == split] for split in PAIR_SPLITS}
    topics = {split: [item.topic for item in part] for split, part in parts.items()}
    prompts = {split: [item.prompt for item in part] for split, part in parts.items()}
    twos, n, n_topics = (
        list(combinations(PAIR_SPLITS, 2)),
        len(items()),
        len({item.topic for item in items()}),
    )
    same_topics, same_prompts = (sum(len({*f[a]} & {*f[b]}) for a, b in twos) for f in (topics, prompts))
    near = sum(len(near_duplicates(prompts[b], prompts[a])) for a, b in twos)
    two_dimensions = share("+" in item.dimension for item in items())
    return [
        *((f"pairs in {split}", len(part), n, "") for split, part in parts.items()),
        ("topics", n_topics, n_topics, ">= 120"),
        ("topics in two splits", same_topics, n_topics, "0"),
        ("prompts shared by splits", same_prompts, n, "0"),
        ("prompts that nearly repeat one of another split", near, n, "0"),
        ("share of pairs in two dimensions", two_dimensions, n, "about .20"),
        ("share of explicit pairs", share(item.wording == "explicit" for item in items()), n, "about .33"),
    ]


def length_checks() -> list[Check]:
    """Say how often side a is the longer one, and where one value of a dimension is so most unevenly."""
    equal = [item for item in items() if "length" not in item.dimension]
    first_value_longer: dict[str, list[bool]] = {name: [] for name in DIMENSIONS if name != "length"}
    for item in equal:
        for name, value in item.wish("a"):
            first_value_longer[name].append((value == DIMENSIONS[name][0]) == first_is_longer(item))
    widest, flags = max(first_value_longer.items(), key=lambda found: abs(share(found[1]) - 0.5))
    label = f"widest share over dimensions where one value is longer ({DIMENSIONS[widest][0]})"
    return [
        ("share where side a is longer", share(map(first_is_longer, equal)), len(equal), ".45 to .55"),
        (label, share(flags), len(flags), ".40 to .60"),
    ]


def text_checks() -> list[Check]:
    """Count what gives a side away, and how alike the texts are."""
    sided = [(item, side) for item in items() for side in "ab"]
    personas = [getattr(item, f"persona_{side}") for item, side in sided]
    responses = [getattr(item, f"response_{side}") for item, side in sided]
    quoting = sum(
        any(quotes(persona, response, item.prompt) for response in (item.response_a, item.response_b))
        for (item, _), persona in zip(sided, personas, strict=True)
    )
    opening, count = Counter(" ".join(tokens(text, 2)) for text in responses).most_common(1)[0]
    return [
        ("personas that quote 4 words of a response", quoting, len(personas), "0"),
        ('personas without "prefers"', sum(" prefers " not in text for text in personas), len(personas), "0"),
        (f'share of responses that begin "{opening}"', round(count / len(sided), 3), len(sided), "<= .05"),
        ("accuracy of words alone in naming side a (test)", *side_accuracy(), "about .5"),
    ]


def share(flags: Iterable[bool]) -> float:
    """Return the share of true values."""
    found = list(flags)
    return round(sum(found) / len(found), 3)


def first_is_longer(item: Item) -> bool:
    """Say whether response a has more words than response b."""
    return len(item.response_a.split()) > len(item.response_b.split())


def side_accuracy() -> tuple[float, int]:
    """Return how often naive Bayes on words, learned from training topics, finds side a of a test pair."""
    train, test = ([item for item in items() if item.split == split] for split in ("train", "test"))
    counts = [Counter(w for i in train for w in tokens(getattr(i, f"response_{side}"))) for side in "ab"]
    offset = math.log(counts[1].total() / counts[0].total())

    def lean(text: str) -> float:
        return sum(math.log((counts[0][w] + 1) / (counts[1][w] + 1)) + offset for w in tokens(text))

    return share(lean(item.response_a) > lean(item.response_b) for item in test), len(test)
