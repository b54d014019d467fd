"""Sign tests of judged rows, and Holm's adjustment over the rows of a table.

The unit is a prompt. Seeds that drew their own prompts give one vote each; seeds that answer the same
prompts vote together, so that a prompt counts once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from persona_lib.evaluation.judged import RUBRICS, Judged, same_items
from persona_lib.stats.bootstrap import VERDICT_VALUES
from persona_lib.stats.significance import holm, sign_test

if TYPE_CHECKING:
    import pandas as pd


def decided_prompts(row: Judged, rubric: str) -> tuple[int, int]:
    """Return how many prompts a row wins and how many it loses; ties and unparsed ones are neither."""
    shared = same_items(row.runs)
    votes: defaultdict[tuple[int, str], float] = defaultdict(float)
    for number, verdicts in enumerate(row.verdicts[rubric]):
        for name, verdict in verdicts.items():
            value = VERDICT_VALUES[verdict]
            votes[0 if shared else number, name] += 0.0 if math.isnan(value) else value
    return sum(v > 0 for v in votes.values()), sum(v < 0 for v in votes.values())


def sign_columns(row: Judged) -> dict[str, Any]:
    """Return the two-sided p of the exact sign test, as columns ``p_sign`` and ``q_sign``."""
    return {f"{s}_sign": sign_test(*decided_prompts(row, rubric)) for s, rubric in RUBRICS.items()}


def count_test(row: Any, short: str) -> float:
    """Return the sign test's p of a saved row's counts; NaN for a row without counts (an average)."""
    counts = [row[f"{short}_{verdict}"] for verdict in ("win", "loss")]
    return math.nan if any(math.isnan(c) for c in counts) else sign_test(*map(int, counts))


def with_tests(table: pd.DataFrame) -> pd.DataFrame:
    """Return a judged table with sign tests, where it has none, and Holm's p over all of its rows.

    The family is the table's rows under one rubric. Tables of earlier runs lack the tests; they are then made
    from the counts, which says the same where every seed drew its own prompts.
    """
    table = table.copy()
    for short in RUBRICS:
        if f"{short}_win" not in table:
            continue
        if f"{short}_sign" not in table:
            table[f"{short}_sign"] = [count_test(row, short) for _, row in table.iterrows()]
        adjusted = holm(table[f"{short}_sign"].dropna().to_dict())
        table[f"{short}_holm"] = [adjusted.get(i, math.nan) for i in table.index]
    return table
