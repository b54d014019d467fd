"""How saved tables are shown to a reader: chosen columns, intervals in one cell, counts, plain headings.

The notebooks, the report and the documents use the same views. ``facts/views.yaml`` lists, per table, heading
and column. A column ``x`` with ``x_low`` and ``x_high`` beside it becomes "x [low, high]"; a name of
``CELLS`` is a cell that is made of more than one column.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from persona_lib.config import FACTS
from persona_lib.tables.cells import (
    CI,
    build,
    number,
    p_value,
    p_values,
    persona_shown,
    scored,
    shares,
    shares_head,
    sign_p,
    size,
    unparsed,
    widest,
    with_interval,
)

if TYPE_CHECKING:
    import pandas as pd

SIGNED = ("p_net", "q_net", "net", "dpq", "quality_sd", "net_matched", "net_controlled", "slope", "did",
          "rho", "kappa", "log_odds", "z", "difference", "difference_cut", "minus_dpo_p")  # fmt: skip
DIGITS = {"dpq": 1, "z": 1, "words_mean": 1, "words_tested": 1, "words_base": 1, "p_holm": 3, "flip": 3,
          "d_positive": 3, "did": 3, "did_positive": 3, "balanced": 3,
          "share": 3, "corrected": 3}  # fmt: skip


def one_decimal_for_dpq(row: Any) -> str:
    """Format what was measured for an aim; dPQ is in points."""
    digits = 1 if "dPQ" in row["aim"] else 2
    values = [number(row[name], digits) for name in ("estimate", "low", "high")]
    return f"{values[0]} [{values[1]}, {values[2]}]" if values[0] else ""


CELLS: dict[str, Callable[[Any], str]] = {
    "n": size,
    "p shares": lambda row: shares(row, "p"),
    "q shares": lambda row: shares(row, "q"),
    "p scored": lambda row: scored(row, "p_net", "p", 2),
    "q scored": lambda row: scored(row, "q_net", "q", 2),
    "dpq scored": lambda row: scored(row, "dpq", "pq", 1),
    "p sign": lambda row: sign_p(row, "p"),
    "q sign": lambda row: sign_p(row, "q"),
    "dpq p": lambda row: p_values(row, "dpq_p", "dpq_holm"),
    "dpq widest": widest,
    "unparsed counts": lambda row: "" if row.get("kind") == "paper" else unparsed(row),
    "measured interval": one_decimal_for_dpq,
    "policy told": lambda row: persona_shown(row["arm"], row.get("persona_format", "line")),
    "persona told": lambda row: persona_shown(row["eval_persona"], row["persona_format"]),
    "row of": lambda row: ", ".join(v for v in (row["dataset"], row["label"]) if v != "all"),
    "compared shows": lambda row: f"{row['compared']}, {'none' if row['shows'] == 'none' else row['shows']}",
    "mcnemar p": lambda row: (
        f"{p_value(row['p'])} ({p_value(row['p_holm'])})" if row["p"] == row["p"] else ""
    ),
    "model fit": lambda row: with_interval(row, "net_controlled", 2, True) or f"no fit: {row['why']}",
    "decides yes": lambda row: "yes" if row["decides"] else "no",
}
INTERVALS = ("p scored", "q scored", "dpq scored", "model fit", "measured interval")  # have one in the cell


@cache
def columns_of() -> dict[str, dict[str, str | list[str]]]:
    """Return what is shown of each table: heading -> column, or columns that stand in one cell."""
    import yaml

    return yaml.safe_load((FACTS / "views.yaml").read_text(encoding="utf-8"))


def cell(row: Any, name: str, signed: tuple[str, ...] = SIGNED) -> str:
    """Format one column of a row: an estimate with its interval, a number, or a text."""
    value = row[name]
    if f"{name}_low" in row:
        sign = name in signed or " - " in str(row.get("side", "")) + str(row.get("group", ""))
        return with_interval(row, name, DIGITS.get(name, 2), sign)
    if isinstance(value, float) and 0 < abs(value) < 0.005 and name not in DIGITS:
        return f"{value:.1g}"
    if isinstance(value, float):
        whole = value.is_integer() and name not in DIGITS
        return number(value, 0 if whole else DIGITS.get(name, 2), name in signed)
    return str(value)


def show(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return a saved table as text for readers; empty if the table is.

    Columns that a table lacks are left out, and so are counts of contradictions where there are none.
    """
    if table.empty:
        return table
    if name not in columns_of():
        return build(table, {c: (lambda row, c=c: cell(row, c, ())) for c in table.columns}, False)
    if "n_contradicted" in table and not table.n_contradicted.gt(0).any():
        table = table.drop(columns="n_contradicted")
    columns: dict[str, Callable[[Any], str]] = {}
    for heading, content in columns_of()[name].items():
        names = [content] if isinstance(content, str) else content
        if names[0] in CELLS:
            rubric = {"p shares": "personalization", "q shares": "quality"}.get(names[0])
            title = shares_head(table, rubric) if rubric else heading
            columns[f"{title} {CI}" if names[0] in INTERVALS else title] = CELLS[names[0]]
            continue
        if not all(one in table for one in names):
            continue
        title = f"{heading} {CI}" if f"{names[0]}_low" in table else heading
        columns[title] = lambda row, names=names: join([cell(row, one) for one in names])
    whole = name in ("paper", "released_judged", "released_words")
    return build(table, columns, name_dataset=not whole)


def join(cells: list[str]) -> str:
    """Return cells side by side; "" if all are empty."""
    return " / ".join(cells) if any(cells) else ""
