"""Count what tailoring data must not contain, and what its reader should know (paper section 4).

Prompts shared between splits, rows that retrieve themselves, near duplicates of training prompts, and
personas that quote the response they were inferred for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persona_lib.data.near import near_duplicates, ngrams
from persona_lib.records import SIDES, TailoringRow
from persona_lib.stats.words import tokens

if TYPE_CHECKING:
    import pandas as pd

POOL_SPLITS = ("sft_train", "dpo_train")  # what personas are retrieved from; never validation rows
EVAL_SPLITS = ("validation", "test")
Rows = dict[str, list[TailoringRow]]


def leakage_report(rows: Rows, near_duplicate_threshold: float = 0.5) -> pd.DataFrame:
    """Count what must not happen and what a reader should know; columns check, found, of, must_be_zero.

    Prompts are the same if their texts are (the near-duplicate count shows the looser cases). A row that
    stands in two splits under one id (official validation rows) is not an overlap.
    """
    import pandas as pd

    names = list(rows)
    checks = [
        (f"prompts shared by {a} and {b}", len(shared_prompts(rows[a], rows[b])), len(rows[b]), True)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    pool = {row.id: row for split in POOL_SPLITS for row in rows[split]}
    for split in EVAL_SPLITS:
        checks += retrieval_checks(split, rows[split], pool)
        near = near_duplicates(
            [row.prompt for row in rows[split]],
            [row.prompt for row in pool.values()],
            near_duplicate_threshold,
        )
        label = (
            f"{split} prompts that nearly repeat a training prompt (Jaccard >= {near_duplicate_threshold})"
        )
        checks.append((label, len(near), len(rows[split]), False))
    checks += quote_checks(rows)
    return pd.DataFrame(checks, columns=["check", "found", "of", "must_be_zero"])


def shared_prompts(first: list[TailoringRow], second: list[TailoringRow]) -> list[str]:
    """List the ids of rows of ``second`` whose prompt is also that of another row in ``first``."""
    owners: dict[str, set[str]] = {}
    for row in first:
        owners.setdefault(row.prompt, set()).add(row.id)
    return [row.id for row in second if owners.get(row.prompt, set()) - {row.id}]


def retrieval_checks(split: str, rows: list[TailoringRow], pool: dict[str, TailoringRow]) -> list[tuple]:
    """Check where a split's retrieved personas come from."""
    named = [row for row in rows if row.retrieved_id is not None]
    own = sum(row.retrieved_id == row.id for row in named)
    outside = sum(row.retrieved_id not in pool for row in named)
    same = sum(pool[r.retrieved_id].prompt == r.prompt for r in named if r.retrieved_id in pool)
    one_sided = sum(not all(row.personas.get(f"retrieved-{side}") for side in SIDES) for row in rows)
    return [
        (f"{split} rows that retrieve themselves", own, len(named), True),
        (f"{split} rows that retrieve a row with their own prompt", same, len(named), True),
        (f"{split} rows that retrieve from outside {' and '.join(POOL_SPLITS)}", outside, len(named), True),
        (
            f"{split} rows whose retrieved personas cannot be traced to a row",
            len(rows) - len(named),
            len(rows),
            False,
        ),
        (f"{split} rows without both retrieved personas", one_sided, len(rows), False),
    ]


def quotes(persona: str, response: str, prompt: str, n: int = 4) -> bool:
    """Say whether a persona repeats ``n`` words in a row of the response that are not in the prompt."""
    shared = ngrams(tokens(persona), n) & ngrams(tokens(response), n)
    return bool({gram for gram in shared if len(gram) == n} - ngrams(tokens(prompt), n))


def quote_checks(rows: Rows) -> list[tuple]:
    """Count, per split and side, the gold personas that quote the response they were inferred for."""
    checks = []
    for split, part in rows.items():
        for side in SIDES:
            there = [row for row in part if row.personas.get(f"gold-{side}")]
            found = sum(quotes(r.personas[f"gold-{side}"], getattr(r, side), r.prompt) for r in there)
            checks.append(
                (
                    f"{split} gold-{side} personas that quote 4 words of their response",
                    found,
                    len(there),
                    False,
                )
            )
    return checks
