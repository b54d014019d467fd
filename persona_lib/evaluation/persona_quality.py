"""How good inferred personas are: accuracy, preference, salient words (paper section 3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from persona_lib.config import Run
from persona_lib.data.preference import inference_pairs, inference_split, load_pairs
from persona_lib.evaluation.backwards import BackwardsJudge
from persona_lib.evaluation.judge import Judge, judge_both, load_judge, parse_winner, persona_judge_of
from persona_lib.evaluation.personas import SIDES, sides_of
from persona_lib.models.generators import load_generator
from persona_lib.models.tokens import chat_text
from persona_lib.prompts import preference_prompt
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
    name = persona_judge_of(run.profile)
    scored = inference_split(run.profile, run.dataset)
    pairs = inference_pairs(run) if split == scored else load_pairs(run)[split]
    prompts = {pair.id: pair.prompt for pair in pairs}
    if name == "backwards" and personas:
        asked = [(prompts[i], persona) for i, found in personas.items() for persona in found]
        scores = BackwardsJudge(run).plausibility(asked)
        return {i: "win" if a > b else "loss" if a < b else "tie"
                for i, a, b in zip(personas, scores[::2], scores[1::2], strict=True)}  # fmt: skip
    if name != "lm":
        return {}
    generator = load_generator(run, "judge", run.profile.judge_batch_size)
    tokenizer = getattr(generator, "tokenizer", None)
    votes: dict[str, list[str | None]] = {i: [] for i in personas}
    for order in (1, -1):
        prompted = [preference_prompt(prompts[i], *found[::order]) for i, found in personas.items()]
        if getattr(tokenizer, "chat_template", None) and run.profile.judge_kind == "chat":
            prompted = [chat_text(tokenizer, text) for text in prompted]
        answers = dict(
            generator.generate(prompted, max_new_tokens=run.profile.judge_max_new_tokens, stop=("\n",))
        )
        for number, i in enumerate(personas):
            letter = parse_winner(answers[number].text)
            votes[i].append({"A": "win", "B": "loss"}.get(letter or "") if order == 1 else
                            {"A": "loss", "B": "win"}.get(letter or ""))  # fmt: skip
    return {i: "unparsed" if None in found else found[0] if found[0] == found[1] else "tie"
            for i, found in votes.items()}  # fmt: skip


def persona_texts(run: Run, split: str) -> tuple[list[str], list[str]]:
    """Return the valid personas of both sides of a split."""
    chosen, rejected = (
        [row.persona for row in read_personas(run, split, side).values() if row.persona] for side in SIDES
    )
    return chosen, rejected
