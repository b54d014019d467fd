"""How good inferred personas are: accuracy, preference, salient words (paper section 3)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from persona_lib.config import Run
from persona_lib.data.preference import inference_pairs, inference_split, load_pairs
from persona_lib.evaluation.judge import Judge, judge_both, load_judge
from persona_lib.evaluation.personas import SIDES, sides_of
from persona_lib.records import InferredPersona, PairwiseComparison, PreferencePair, Side, Verdict
from persona_lib.stats.metrics import position_inconsistent, verdict_of
from persona_lib.store import read_rows

Row = dict[str, Any]


def read_personas(run: Run, split: str, side: Side) -> dict[str, InferredPersona]:
    """Return the inferred personas of a split and side by row id."""
    return {
        row.id: row for row in read_rows(run.folder / "personas" / f"{split}-{side}.jsonl", InferredPersona)
    }


def accuracy_verdicts(run: Run, split: str, side: Side) -> list[tuple[str, Verdict | None, bool]]:
    """Return ``judge_personas`` of the personas that a run inferred for a split and side."""
    scored = inference_split(run.profile, run.dataset)
    pairs = inference_pairs(run) if split == scored else load_pairs(run)[split]
    return judge_personas(load_judge(run), pairs, read_personas(run, split, side).values(), side)


def judge_personas(
    judge: Judge, pairs: Iterable[PreferencePair], personas: Iterable[InferredPersona], side: Side
) -> list[tuple[str, Verdict | None, bool]]:
    """Return (id, verdict, contradicted) per persona: does a judge shown it pick its response?

    "win" means yes in both orders; None that no valid persona was inferred. ``contradicted`` marks the ties
    of a judge that named the same place, not the same response, in both orders. (Paper: persona accuracy.)
    """
    by_id, rows = {pair.id: pair for pair in pairs}, list(personas)
    comparisons = [
        PairwiseComparison(row.id, by_id[row.id].prompt, row.persona, *sides_of(by_id[row.id], side))
        for row in rows
        if row.persona
    ]
    judged = judge_both(judge, comparisons, "personalization")
    verdicts = {pair[0].id: (verdict_of(*pair), position_inconsistent(*pair)) for pair in judged}
    return [(row.id, *verdicts.get(row.id, (None, False))) for row in rows]


def commonness(persona: str, majority_share: float) -> float:
    """Return the log of the share of users that a persona describes, if its claims were independent."""
    from persona_lib.world.oracle import read_persona
    from persona_lib.world.vocabulary import COMMON

    return sum(
        math.log(majority_share if COMMON[dimension] == value else 1 - majority_share)
        for dimension, value in read_persona(persona)
    )


def preference_verdicts(run: Run, split: str) -> list[tuple[str, Verdict | None]]:
    """Return (id, verdict) per pair: is P_C the more plausible user (win), or P_R (loss)? (Paper Fig. 4.)

    The oracle's answer is which persona describes the larger share of the world's users.
    """
    sides = [read_personas(run, split, side) for side in SIDES]
    rows: list[tuple[str, Verdict | None]] = []
    for name in sides[0]:
        personas = [side[name].persona if name in side else None for side in sides]
        if None in personas:
            rows.append((name, None))
            continue
        first, second = (commonness(p, run.profile.majority_share) for p in personas)
        rows.append((name, "tie" if math.isclose(first, second) else "win" if first > second else "loss"))
    return rows


def persona_texts(run: Run, split: str) -> tuple[list[str], list[str]]:
    """Return the valid personas of both sides of a split."""
    chosen, rejected = (
        [row.persona for row in read_personas(run, split, side).values() if row.persona] for side in SIDES
    )
    return chosen, rejected
