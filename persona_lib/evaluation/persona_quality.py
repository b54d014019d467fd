"""How good inferred personas are: accuracy, preference, salient words (paper section 3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from persona_lib.config import Run
from persona_lib.data.preference import inference_pairs, inference_split, load_pairs
from persona_lib.evaluation.backwards import BackwardsJudge
from persona_lib.evaluation.judge import Judge, asked_of, judge_both, lm_judge, load_judge, persona_judge_of
from persona_lib.evaluation.personas import SIDES, sides_of
from persona_lib.models.generators import load_generator
from persona_lib.prompts import preference_prompt
from persona_lib.records import InferredPersona, PairwiseComparison, PreferencePair, Rubric, Side, Verdict
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
    return judge_personas(
        load_judge(run, persona_judge_of(run.profile)), pairs, read_personas(run, split, side).values(), side
    )


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


def preference_verdicts(run: Run, split: str) -> list[tuple[str, Verdict | None]]:
    """Return (id, verdict) per pair: is P_C the more plausible user (win), or P_R (loss)? (Paper Fig. 4.)

    A language model judge is asked in both orders; the backwards judge compares log p(persona | question) per
    word. Without either nothing is judged and the list is empty.
    """
    sides = [read_personas(run, split, side) for side in SIDES]
    both = {name: [side[name].persona if name in side else None for side in sides] for name in sides[0]}
    judged = plausible_users(run, split, {name: found for name, found in both.items() if None not in found})
    return [(name, judged.get(name)) for name in both] if judged else []


def plausible_users(run: Run, split: str, personas: dict[str, list[str]]) -> dict[str, Verdict]:
    """Return the verdict on each pair's two personas, by id; {} without a judge for it."""
    judge = plausibility_judge(run)
    if judge is None:
        return {}
    scored = inference_split(run.profile, run.dataset)
    pairs = inference_pairs(run) if split == scored else load_pairs(run)[split]
    prompts = {pair.id: pair.prompt for pair in pairs}
    comparisons = [PairwiseComparison(i, prompts[i], None, *found) for i, found in personas.items()]
    judged = judge_both(judge, comparisons, "personalization")
    return {pair[0].id: verdict_of(*pair) for pair in judged}


def plausibility_judge(run: Run) -> Judge | None:
    """Return a judge of which of two personas is the more plausible user of a prompt; None without one."""
    name = persona_judge_of(run.profile)
    if name == "backwards":
        return BackwardsJudge(run).plausible
    if name != "lm":
        return None
    generator = load_generator(run, "judge", run.profile.judge_batch_size)
    asked = asked_of(generator, run.profile.judge_kind)
    return lm_judge(generator, run.profile.judge_max_new_tokens, asked, persona_question)


def persona_question(c: PairwiseComparison, rubric: Rubric) -> str:
    """Return the prompt of a comparison whose two texts are personas."""
    return preference_prompt(c.prompt, c.response_a, c.response_b)


def persona_texts(run: Run, split: str) -> tuple[list[str], list[str]]:
    """Return the valid personas of both sides of a split."""
    chosen, rejected = (
        [row.persona for row in read_personas(run, split, side).values() if row.persona] for side in SIDES
    )
    return chosen, rejected
