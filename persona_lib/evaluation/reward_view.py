"""Which category a test row is in, for policies read as reward models (``tables.results_answers``).

In ``everyday`` a category is a dimension in which the two responses differ (a row may have two). The
authors' data and the raw sets carry no category: their rows are counted together.
"""

from __future__ import annotations

from persona_lib.config import Run
from persona_lib.data import everyday
from persona_lib.evaluation.swap import swap_rows

REWARD_FAMILIES = ("none", "system", "gold", "retrieved", "shuffled")


def categories(run: Run) -> dict[str, tuple[str, ...]]:
    """Return the categories of every scored row by id; {} where the data has none."""
    if run.dataset != everyday.NAME:
        return {}
    named = {item.id: (*item.dimension.split("+"), item.wording) for item in everyday.items()}
    return {row.id: named[row.id] for row in swap_rows(run)}
