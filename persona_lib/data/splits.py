"""Splits of a user's own data: by prompt, or by user and prompt at once; near prompts stay together.

Given splits are kept. Otherwise pairs are split 80/10/10 by prompt. Texts alone decide: neither a seed, nor
the order of the rows, nor the users' names.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from persona_lib.data.retrieval import normal
from persona_lib.data.rows import Finding, OwnRow
from persona_lib.records import HISTORY, PAIR_SPLITS, DataError
from persona_lib.store import content_hash
from persona_lib.texts import near_duplicates
from persona_lib.texts import near_groups as groups_of

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
TEST_USERS = 0.25, 5, 0.45  # share of the users of two pairs or more; but so many; but at most this share
LEAST_USERS = 4  # of two pairs or more, without which splits are by prompt
# Different prompts of each split: train is split in four, and a shuffled persona is that of another test row.
LEAST_OF = {"train": 10, "validation": 1, "test": 2}


def near_groups(prompts: Sequence[str], threshold: float) -> list[int]:
    """Return the group of each prompt: near duplicates (`texts.near_groups`) and equal prompts share one."""
    names = list(map(normal, prompts))
    different = list(dict.fromkeys(names))
    groups = dict(zip(different, groups_of(different, threshold), strict=True))
    return [groups[name] for name in names]


def fill_shares(groups: Iterable[list[Any]], shares: dict[str, float]) -> dict[str, list[Any]]:
    """Give each whole group, in turn, to the part that is furthest below its share."""
    parts: dict[str, list[Any]] = {name: [] for name in shares}
    for group in groups:
        parts[min(shares, key=lambda name: (len(parts[name]) + 1) / shares[name])] += group
    return parts


def near_parts(rows: Sequence[OwnRow], threshold: float) -> list[list[int]]:
    """Return the places of the rows of each group of near prompts, in an order that only texts decide."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(near_groups([row.pair.prompt for row in rows], threshold)):
        groups[group].append(index)
    return sorted(groups.values(), key=lambda part: content_hash(normal(rows[part[0]].pair.prompt)))


def fill_splits(rows: Sequence[OwnRow], shares: dict[str, float], threshold: float) -> list[OwnRow]:
    """Give rows a split by their shares: whole groups of near prompts."""
    parts = fill_shares(near_parts(rows, threshold), shares)
    splits = {index: name for name, part in parts.items() for index in part}
    return [replace(row, split=splits[index]) for index, row in enumerate(rows)]


def assign_splits(rows: list[OwnRow], threshold: float, split_by: str = "") -> tuple[list[OwnRow], bool]:
    """Return the rows with their splits, and whether splits were given.

    Given splits stay, but of test users who are in no other split every second pair becomes `HISTORY`. A
    missing split is taken from train, a tenth of the rows each; where only one is given, it is all the data
    there is, and is split as if none were: by user where there are users enough (`split_users`), unless
    ``split_by`` is "prompt".
    """
    given = {row.split for row in rows}
    if len(given) < 2:
        by_user = split_users(rows, threshold) if split_by != "prompt" else None
        if by_user is None and split_by == "user":
            raise DataError(f"split_by: user needs {LEAST_USERS} users of two pairs or more; use prompt")
        return by_user or fill_splits(rows, SHARES, threshold), False
    rows = [replace(row, split=row.split or "train") for row in rows]
    missing = [name for name in ("validation", "test") if name not in given]
    shares = {"train": 1 - 0.1 * len(missing)} | dict.fromkeys(missing, 0.1)
    moved = iter(fill_splits([row for row in rows if row.split == "train"], shares, threshold))
    rows = [next(moved) if row.split == "train" else row for row in rows]
    counts = Counter(row.pair.user for row in rows)
    known = {row.pair.user for row in rows if row.split != "test"}
    unseen = {user for user, n in counts.items() if user and n > 1} - known
    halves = iter(hold_out([row for row in rows if row.pair.user in unseen], unseen, threshold))
    return [next(halves) if row.pair.user in unseen else row for row in rows], True


def split_users(rows: Sequence[OwnRow], threshold: float) -> list[OwnRow] | None:
    """Split by user and by question at once; None with too few users, or where that leaves a split empty.

    `TEST_USERS` of the users of two pairs or more, in an order that only texts decide, are test users; the
    others are in training. Groups of near prompts stay whole, too: see `hold_out`.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        texts[row.pair.user].append(normal(row.pair.prompt) + row.pair.chosen)
    keys = {user: content_hash(sorted(own)) for user, own in texts.items() if user and len(own) > 1}
    if len(keys) < LEAST_USERS:
        return None
    share, least, most = TEST_USERS
    n_unseen = min(max(least, round(share * len(keys))), int(most * len(keys)))
    unseen = set(sorted(keys, key=lambda user: keys[user])[:n_unseen])
    for near in (threshold, 1.0):  # 1: where near prompts are all one group, equal prompts alone
        made = hold_out(rows, unseen, near)
        if HISTORY in {row.split for row in made} and not short_splits(made):
            return made
    return None


def hold_out(rows: Sequence[OwnRow], unseen: Container[str], threshold: float) -> list[OwnRow]:
    """Give whole groups of near prompts to the splits: no test user and no test question is trained on.

    A group with pairs of test users is held out or not, by turns. Held out, it is evaluated, also its pairs
    of other users, who are *seen* in training (at most twice the test share of their pairs). Otherwise the
    test users' pairs are `HISTORY`, of which only the user's persona is made. Other groups fill up `SHARES`.
    """
    n_others = sum(row.pair.user not in unseen for row in rows)
    sizes, lead, splits = dict.fromkeys(SHARES, 0), Counter(), {}
    for group in near_parts(rows, threshold):
        theirs = [rows[i].pair.user for i in group if rows[i].pair.user in unseen]
        n, free = len(group) - len(theirs), list(SHARES)
        if theirs:  # history first: ``lead`` is by how many pairs a user has more of it
            held = sizes["test"] + n <= 2 * SHARES["test"] * n_others and sum(lead[u] for u in {*theirs}) > 0
            free = ["test"] if held else ["train", "validation"]
            for user in theirs:
                lead[user] += -1 if held else 1
        due = min(free, key=lambda name: (sizes[name] + n) / SHARES[name])
        sizes[due] += n
        for i in group:
            splits[i] = due if due == "test" or rows[i].pair.user not in unseen else HISTORY
    return [replace(row, split=splits[index]) for index, row in enumerate(rows)]


def between_splits(rows: Sequence[OwnRow], threshold: float) -> Iterator[Finding]:
    """Note rows of given splits whose prompt nearly repeats one of train, and test rows of its users."""
    train = [row for row in rows if row.split == "train"]
    others = [row for row in rows if row.split in ("validation", "test")]
    found = near_duplicates([r.pair.prompt for r in others], [r.pair.prompt for r in train], threshold)
    for index, of, jaccard in found:
        detail = f"of {train[of].place}, Jaccard {jaccard:.2f}"
        yield others[index].found("prompt", "near duplicate", detail)
    known = {row.pair.user for row in train} - {""}
    for row in others:
        if row.split == "test" and row.pair.user in known:
            yield row.found("user", "user in two splits")


def short_splits(rows: Sequence[OwnRow]) -> dict[str, int]:
    """Return the splits with fewer different prompts than `LEAST_OF`, and how many they have."""
    prompts = {split: {normal(r.pair.prompt) for r in rows if r.split == split} for split in PAIR_SPLITS}
    return {split: len(found) for split, found in prompts.items() if len(found) < LEAST_OF[split]}


def check_splits(source: str, rows: Sequence[OwnRow], threshold: float) -> None:
    """Raise DataError if a split has too few different prompts to be trained, validated or tested on."""
    if not (short := short_splits(rows)):
        return
    said = ", ".join(
        f"{split} has {n} different prompts and needs {LEAST_OF[split]}" for split, n in short.items()
    )
    largest = Counter(near_groups([row.pair.prompt for row in rows], threshold)).most_common(1)[0][1]
    raise DataError(
        f"{source}: {said}. The largest group of near prompts, which stay together, has {largest} of "
        f"{len(rows)} rows. Add pairs, or keep fewer together: --set data.near_duplicates=0.9"
    )
