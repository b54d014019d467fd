"""A user's own pairs split by prompt, prompts that nearly repeat each other together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from persona_lib.data.near import gram_index, near_duplicates
from persona_lib.data.own_checks import Finding
from persona_lib.data.own_rows import OwnPair
from persona_lib.data.retrieval import normal
from persona_lib.store import content_hash

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def near_groups(prompts: Sequence[str], threshold: float) -> list[int]:
    """Return a group number per prompt: prompts with a 3-gram Jaccard >= ``threshold`` share one, and so on.

    Groups are the connected parts of that relation; equal prompts (case and white space aside) are together.
    """
    owner = list(range(len(prompts)))

    def root(n: int) -> int:
        while owner[n] != n:
            owner[n] = owner[owner[n]]
            n = owner[n]
        return n

    first: dict[str, int] = {}
    for n, prompt in enumerate(prompts):
        owner[n] = first.setdefault(normal(prompt), n)
    different = list(first.values())
    grams, holders = gram_index([prompts[n] for n in different])
    for n, own in enumerate(grams):
        shared = Counter(other for gram in own for other in holders[gram] if other < n)
        for other, count in shared.items():
            if count / (len(own) + len(grams[other]) - count) >= threshold > 0:
                owner[root(different[n])] = root(different[other])
    return [root(n) for n in range(len(prompts))]


def fill_splits(rows: Sequence[OwnPair], shares: dict[str, float], threshold: float) -> list[OwnPair]:
    """Give rows a split by their shares: whole groups of near prompts, in an order that only texts decide."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(near_groups([row.pair.prompt for row in rows], threshold)):
        groups[group].append(index)
    order = sorted(groups.values(), key=lambda part: content_hash(normal(rows[part[0]].pair.prompt)))
    sizes, splits = dict.fromkeys(shares, 0), {}
    for part in order:
        neediest = min(shares, key=lambda name: (sizes[name] + 1) / shares[name])
        sizes[neediest] += len(part)
        splits |= dict.fromkeys(part, neediest)
    return [replace(row, split=splits[index]) for index, row in enumerate(rows)]


def assign_splits(rows: list[OwnPair], threshold: float) -> tuple[list[OwnPair], bool]:
    """Return the rows with their splits, and whether splits were given.

    Given splits stay. One that is missing is taken from train, a tenth of the rows each; where only one is
    given, it is all the data there is, and is split as if none were.
    """
    given = {row.split for row in rows}
    if len(given) < 2:
        return fill_splits(rows, SHARES, threshold), False
    if "" in given:
        rows = [replace(row, split=row.split or "train") for row in rows]
    missing = [name for name in ("validation", "test") if name not in given]
    shares = {"train": 1 - 0.1 * len(missing)} | dict.fromkeys(missing, 0.1)
    train = fill_splits([row for row in rows if row.split == "train"], shares, threshold)
    moved = iter(train)
    return [next(moved) if row.split == "train" else row for row in rows], True


def near_train(rows: Sequence[OwnPair], threshold: float) -> list[Finding]:
    """Note the validation and test rows whose prompt nearly repeats one of train."""
    train = [row for row in rows if row.split == "train"]
    others = [row for row in rows if row.split != "train"]
    found = near_duplicates([r.pair.prompt for r in others], [r.pair.prompt for r in train], threshold)
    said = [(others[a], f"of {train[b].place}, Jaccard {j:.2f}") for a, b, j in found]
    return [Finding(row.row, row.place, "prompt", "near duplicate", detail) for row, detail in said]
