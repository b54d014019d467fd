"""Which category a test row is in, for policies read as reward models (``tables.results_answers``).

In the synthetic world a category is a dimension that the two responses contrast (a row may have two). The
authors' data and the raw sets carry no category: their rows are counted together.
"""

from __future__ import annotations

from persona_lib.config import Run
from persona_lib.evaluation.swap import swap_rows

REWARD_FAMILIES = ("none", "system", "gold", "retrieved", "shuffled")


def categories(run: Run) -> dict[str, tuple[str, ...]]:
    """Return the categories of every scored row by id; {} where the data has none."""
    if run.dataset != "synthetic":
        return {}
    from persona_lib.world.oracle import contrast_claims

    return {
        row.id: tuple(dict.fromkeys(d for d, _ in contrast_claims(row.chosen, row.rejected)))
        for row in swap_rows(run)
    }
