"""Training arms: which persona a row shows, and which response is its target (paper section 4).

An arm is named by ``train_persona``. none: no persona line. chosen: P_C and the chosen response.
rejected: P_R and the rejected response (the paper's model trained on rejected personas; for DPO the
roles of the two responses are swapped). both: the rows of the two. shuffled (a control): the chosen
response with the P_C of another row. inferred: the chosen response with the persona that this run inferred
for it. relabelled (a control, ``everyday`` only): in half of the dimensions each persona stands for the other
side.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from persona_lib.data import everyday
from persona_lib.prompts import ChatFormat, completion_text, tailoring_prompt
from persona_lib.records import TailoringRow
from persona_lib.store import content_hash

TWO_SIDED = ("both", "relabelled")  # arms with a row for each side of a pair
ArmRow = tuple[str, str, str | None, str, str]  # id, prompt, persona, target, other


def derangement(n: int, seed: int) -> list[int]:
    """Return a random permutation of range(n) without fixed points, from the seed; n must not be 1."""
    if n == 1:
        raise ValueError(
            "one row cannot be given another row's persona: train_persona=shuffled needs at least two"
        )
    order = random.Random(seed).sample(range(n), n)
    result = [0] * n
    for place, index in enumerate(order):
        result[index] = order[(place + 1) % n]
    return result


def draw(rows: list[Any], limit: int) -> list[Any]:
    """Return ``limit`` rows drawn by id, in their order; all of them if it is 0.

    The draw depends on nothing else, so it is the same for every arm and seed.
    """
    if not limit:
        return rows
    kept = {row.id for row in sorted(rows, key=lambda row: content_hash(row.id))[:limit]}
    return [row for row in rows if row.id in kept]


def side_rows(rows: list[TailoringRow], side: str) -> list[ArmRow]:
    """Return (id, prompt, persona, target, other) for rows that have a persona of this side.

    The target is the response that the persona prefers: for "rejected" the roles are swapped.
    """
    kept = [r for r in rows if r.personas.get(f"gold-{side}") is not None]
    if side == "rejected":
        return [(r.id, r.prompt, r.personas["gold-rejected"], r.rejected, r.chosen) for r in kept]
    return [(r.id, r.prompt, r.personas["gold-chosen"], r.chosen, r.rejected) for r in kept]


def none_arm(rows: list[TailoringRow], seed: int) -> list[ArmRow]:
    """No persona line."""
    return [(r.id, r.prompt, None, r.chosen, r.rejected) for r in rows]


def chosen_arm(rows: list[TailoringRow], seed: int) -> list[ArmRow]:
    """P_C and the chosen response."""
    return side_rows(rows, "chosen")


def rejected_arm(rows: list[TailoringRow], seed: int) -> list[ArmRow]:
    """P_R and the rejected response."""
    return side_rows(rows, "rejected")


def both_arm(rows: list[TailoringRow], seed: int) -> list[ArmRow]:
    """Return the rows of the two sides; ids say which."""
    return [
        (f"{row[0]}/{side}", *row[1:]) for side in ("chosen", "rejected") for row in side_rows(rows, side)
    ]


def shuffled_arm(rows: list[TailoringRow], seed: int) -> list[ArmRow]:
    """Return the chosen responses with the P_C of another row."""
    own = side_rows(rows, "chosen")
    others = derangement(len(own), seed)
    return [(*row[:2], own[other][2], *row[3:]) for row, other in zip(own, others, strict=True)]


def inferred_arm(rows: list[TailoringRow], seed: int) -> list[ArmRow]:
    """Return the chosen responses with the personas that the run inferred for them."""
    found = ((r, r.personas.get("inferred-chosen")) for r in rows)
    return [(r.id, r.prompt, persona, r.chosen, r.rejected) for r, persona in found if persona]


def relabelled_arm(rows: list[TailoringRow], seed: int) -> list[ArmRow]:
    """Return both sides' rows with the personas of half of the dimensions exchanged (see ``everyday``)."""
    return both_arm(everyday.relabelled(rows, seed), seed)


ARMS: dict[str, Callable[[list[TailoringRow], int], list[ArmRow]]] = {
    "none": none_arm,
    "chosen": chosen_arm,
    "rejected": rejected_arm,
    "both": both_arm,
    "shuffled": shuffled_arm,
    "inferred": inferred_arm,
    "relabelled": relabelled_arm,
}


def arm_rows(rows: list[TailoringRow], train_persona: str, seed: int) -> list[ArmRow]:
    """Return (id, prompt, persona, target, other) of one arm; rows without a persona are left out."""
    if train_persona not in ARMS:
        raise ValueError(f"train_persona={train_persona!r}: use one of {', '.join(ARMS)}")
    return ARMS[train_persona](rows, seed)


def to_sft_rows(
    rows: list[TailoringRow], train_persona: str, seed: int, chat: ChatFormat | None = None
) -> list[dict[str, str]]:
    """Return SFT rows {"id", "prompt", "completion"} of one arm (TRL's prompt-completion format)."""
    return [
        {
            "id": name,
            "prompt": tailoring_prompt(prompt, persona, chat=chat),
            "completion": completion_text(target, chat),
        }
        for name, prompt, persona, target, _ in arm_rows(rows, train_persona, seed)
    ]


def to_dpo_rows(
    rows: list[TailoringRow], train_persona: str, seed: int, chat: ChatFormat | None = None
) -> list[dict[str, str]]:
    """Return DPO rows {"id", "prompt", "chosen", "rejected"} of one arm; arms as in ``to_sft_rows``.

    For P_R the preferred response is the rejected one.
    """
    return [
        {
            "id": name,
            "prompt": tailoring_prompt(prompt, persona, chat=chat),
            "chosen": completion_text(target, chat),
            "rejected": completion_text(other, chat),
        }
        for name, prompt, persona, target, other in arm_rows(rows, train_persona, seed)
    ]


def to_ordered_dpo_rows(
    rows: list[TailoringRow], train_persona: str, seed: int, chat: ChatFormat | None = None
) -> list[dict[str, str]]:
    """Return the rows of ``to_dpo_rows`` shuffled once by the seed, those of one pair side by side.

    With an even batch size the two rows of a pair (arm "both") then meet in one step: what they ask for
    whoever reads cancels, and what depends on the persona remains. Pairs with one persona come last.
    """
    rows = random.Random(f"dpo-order-{seed}").sample(rows, len(rows))
    if train_persona not in TWO_SIDED:
        return to_dpo_rows(rows, train_persona, seed, chat)
    made = [to_dpo_rows([row], train_persona, seed, chat) for row in rows]
    return [row for pair in sorted(made, key=len, reverse=True) for row in pair]
