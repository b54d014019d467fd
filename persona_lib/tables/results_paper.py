"""The paper's own table, analysed again from its exact counts: intervals and tests, no model and no data."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from persona_lib.evaluation.judged import RUBRICS
from persona_lib.profiles import Profile
from persona_lib.stats import paper
from persona_lib.stats.bootstrap import Interval, interval_columns
from persona_lib.stats.significance import holm
from persona_lib.tables.results import Row, verdict_counts
from persona_lib.tables.results_tests import with_tests

if TYPE_CHECKING:
    import pandas as pd

SUFFIX = {
    "independent": "",
    "agree": "_widest",
    "oppose": "_narrowest",
}  # of the columns dpq_low and dpq_high


def dpq_columns(intervals: dict[str, Interval]) -> Row:
    """Return dPQ with its limits under each assumption of how the two verdicts go together."""
    columns: Row = {"dpq": intervals["independent"].estimate}
    for dependence, suffix in SUFFIX.items():
        interval = intervals[dependence]
        columns |= {f"dpq_low{suffix}": interval.low, f"dpq_high{suffix}": interval.high}
    return columns


def paper_line(number: int, row: dict[str, str], found: paper.Reanalysed) -> Row:
    """Return one row of the table: counts, net win rates and dPQ with intervals, p of dPQ = 0."""
    rates = dict(zip(RUBRICS, paper.paper_win_rates(row), strict=True))
    line: Row = {"dataset": row["dataset"], "kind": "paper", "label": f"{row['side']}, {row['persona']}",
                 "n": int(row["n"])}  # fmt: skip
    for place, (short, rate) in enumerate(rates.items()):
        line |= verdict_counts(short, rate)
        line |= interval_columns(f"{short}_net", paper.net_interval(rate, 2 * number + place))
    line |= dpq_columns(found.intervals)
    return line | {
        f"dpq_p{SUFFIX[d]}": paper.delta_pq_test(*rates.values(), d) for d in ("independent", "agree")
    }


@functools.cache
def reanalysed() -> pd.DataFrame:
    """Return the ten rows and their average; the same for every profile."""
    import pandas as pd

    rows = paper.paper_table()
    found = [paper.reanalyse(*paper.paper_win_rates(row), number) for number, row in enumerate(rows)]
    table = with_tests(
        pd.DataFrame([paper_line(i, row, f) for i, (row, f) in enumerate(zip(rows, found, strict=True))])
    )
    for suffix in ("", "_widest"):
        table[f"dpq_holm{suffix}"] = holm(table[f"dpq_p{suffix}"].to_dict()).values()
    mean = {"dataset": "all", "kind": "average", "label": "average of the ten rows"}
    mean |= dpq_columns(paper.average(found))
    return pd.concat([table, pd.DataFrame([mean])], ignore_index=True)


def paper_rows(profile: Profile) -> pd.DataFrame:
    """Return the paper's ten rows and their average; the paper prints no intervals and no tests."""
    return reanalysed().copy()


PAPER_TABLES = {"paper": paper_rows}
