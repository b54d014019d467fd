"""Is a persona swap about the row, or about length? Share D > 0 by which response of the pair is longer.

Chosen responses are often the longer ones, so the personas of chosen responses differ from those of
rejected ones as groups. A policy that only learned "personas of the chosen kind go with long answers" has
D > 0 where the chosen response is longer and D < 0 where it is shorter. The mean of the two shares, each
weighing one half whatever the data hold more of, is .5 for it; what is left above .5 is not length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from persona_lib.config import Run
from persona_lib.evaluation.judged import runs_of
from persona_lib.evaluation.swap import swap_arms
from persona_lib.evaluation.swap_tables import SINGLE
from persona_lib.evaluation.tailor import eval_rows
from persona_lib.profiles import Profile
from persona_lib.stats.bootstrap import interval_columns
from persona_lib.stats.pooled import Statistic, mean_of
from persona_lib.tables.results import Row
from persona_lib.tables.results_swap import Part, PerItem, collect_items, finished_scores, swap_items

if TYPE_CHECKING:
    import pandas as pd

STRATA = ("chosen_longer", "rejected_longer")  # which response has more characters; equal ones are left out


def longer_response(run: Run) -> dict[str, str]:
    """Return the stratum of every row whose responses are there and differ in length."""
    return {
        row.id: STRATA[len(row.chosen) < len(row.rejected)]
        for row in eval_rows(run)
        if row.chosen and row.rejected and len(row.chosen) != len(row.rejected)
    }


def length_items(run: Run, part: Part) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield ("measure/family", stratum, {id: 1 if D > 0 else 0}) of one arm and seed."""
    scores = finished_scores(run, part)
    stratum_of = longer_response(run) if scores else {}
    for what, name, by_id in swap_items(scores):
        if name == "d_positive" and what.partition("/")[2] not in SINGLE:
            for stratum in STRATA:
                yield what, stratum, {i: v for i, v in by_id.items() if stratum_of.get(i) == stratum}


def balanced(items: PerItem, part: Part, what: str) -> Statistic:
    """Return the statistic "mean of the two strata's shares"."""
    first, second = (mean_of(items.column(part, what, stratum)) for stratum in STRATA)
    return lambda means: (first(means) + second(means)) / 2


def length_row(items: PerItem, part: Part, what: str) -> Row:
    """Return one line: the share in each stratum and balanced, each with its interval."""
    measure, family = what.split("/")
    sizes = {f"n_{stratum}": items.n(part, what, stratum) for stratum in STRATA}
    n, seeds = sum(sizes.values()), items.seeds[part]
    line: Row = {"dataset": items.dataset, "measure": measure, "persona": family, "arm": part[0],
                 "persona_format": part[1], "n": n, **sizes, "n_seeds": len(seeds),
                 "seeds": " ".join(map(str, seeds))}  # fmt: skip
    statistics = {stratum: mean_of(items.column(part, what, stratum)) for stratum in STRATA}
    for name, statistic in (statistics | {"balanced": balanced(items, part, what)}).items():
        line |= interval_columns(name, items.pool.interval(statistic, n, len(seeds)))
    return line


def swap_length_table(profile: Profile) -> pd.DataFrame:
    """Return share D > 0 where the chosen, where the rejected response is longer, and their mean."""
    import pandas as pd

    lines = []
    for dataset in profile.datasets:
        parts = swap_arms(runs_of(profile, dataset)[0])
        if items := collect_items(profile, dataset, length_items, parts):
            asked = dict.fromkeys((part, what) for part, what, _ in items.values)
            lines += [length_row(items, part, what) for part, what in asked]
    return pd.DataFrame(lines)


LENGTH_TABLES = {"swap_length": swap_length_table}
