"""The base language model as a judge, for what it is: compared with the oracle on the same comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from persona_lib.config import Run
from persona_lib.evaluation.judge import (
    RUBRICS,
    Judge,
    compare,
    judge_both,
    lm_judge,
    matchups,
    oracle_judge,
)
from persona_lib.prompts import judge_prompt
from persona_lib.reading.show_base import load
from persona_lib.records import Judgment, PairwiseComparison, Rubric
from persona_lib.stats.significance import wilson_interval

if TYPE_CHECKING:
    import pandas as pd


def agreement_row(
    truth: Sequence[tuple[Judgment, Judgment]], judged: Sequence[tuple[Judgment, Judgment]]
) -> dict[str, Any]:
    """Compare a judge with the oracle on the same comparisons, each judged in both orders.

    Agreement is the share of right votes where the oracle decides and both votes can be read, so a judge
    that always names one position has exactly one half. For the interval, two votes are one observation.
    """
    votes = [j.winner for pair in judged for j in pair]
    answered = len(votes) - votes.count(None)
    parsed = [pair for pair in judged if pair[0].winner and pair[1].winner]
    same = sum(first.winner != second.winner for first, second in parsed)
    both = [(t, j) for t, j in zip(truth, judged, strict=True) if t[0].winner and j in parsed]
    right = sum(t.winner == j.winner for pair in both for t, j in zip(*pair, strict=True)) / 2
    low, high = wilson_interval(right, len(both))
    return {
        "comparisons": len(judged),
        "unparsed answers": votes.count(None),
        "most frequent answer": Counter(j.feedback for pair in judged for j in pair).most_common(1)[0][0],
        "share of A among the others": votes.count("A") / answered if answered else float("nan"),
        "same response in both orders": same / len(parsed) if parsed else float("nan"),
        "compared with the oracle": len(both),
        "agrees with the oracle": right / len(both) if both else float("nan"),
        "low": low,
        "high": high,
    }


def sample_comparisons(run: Run, n: int) -> list[PairwiseComparison]:
    """Take comparisons on up to ``n`` different prompts, from the main matchups in turn."""
    lists = [part for m in matchups(run) if m.kind == "main" and (part := compare(run, m))]
    longest = min(n, max((len(part) for part in lists), default=0))
    turns = [(lists[number % len(lists)], number) for number in range(longest)]
    return [part[number] for part, number in turns if number < len(part)]


def forced_judge(generator: Any) -> Judge:
    """Return a judge that takes whichever of "A" and "B" the model finds more probable as its next token."""
    import torch

    model, tokenizer = generator.model, generator.tokenizer
    letters = [tokenizer(f" {x}", add_special_tokens=False)["input_ids"][0] for x in "AB"]

    def judge(comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> list[Judgment]:
        judgments = []
        for c in comparisons:
            prompt = judge_prompt(rubric, c.prompt, c.persona, c.response_a, c.response_b)
            ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
            with torch.inference_mode():
                a, b = model(input_ids=ids).logits[0, -1, letters].tolist()
            letter = "A" if a > b else "B"
            judgments.append(Judgment(c.id, generator.name, rubric, letter, a == b, letter))
        return judgments

    return judge


def judge_agreement(run: Run, n: int = 48) -> pd.DataFrame:
    """Let the base language model judge some comparisons and compare it with the oracle, per rubric.

    "written": what it writes is read, as from any model judge; "forced": the more probable letter counts.
    """
    import pandas as pd

    comparisons, generator = sample_comparisons(run, n), load(run.profile, run.base_seed)
    judges = {"written": lm_judge(generator), "forced": forced_judge(generator)}
    columns = {}
    for rubric in RUBRICS:
        truth = judge_both(oracle_judge(run.profile.world_seed), comparisons, rubric)
        for name, judge in judges.items():
            columns[rubric, name] = agreement_row(truth, judge_both(judge, comparisons, rubric))
    return pd.DataFrame(columns)
