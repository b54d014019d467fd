"""Cells of tables as text: numbers, intervals, counts; and whole tables as Markdown and HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from persona_lib.data.official_folders import DATASETS

if TYPE_CHECKING:
    import pandas as pd

LABELS = {  # whose numbers they are
    "everyday": "our pairs",
    "authors": "authors' data",
    "own": "own data",
    "paper": "paper's own numbers",
}
CI = "[95 % interval]"
MINUS = "\N{MINUS SIGN}"
SMALLEST_P = 1e-15  # smaller p-values say no more than this


def owner_of(dataset: str) -> str:
    """Say whose data a number is measured on."""
    if dataset == "everyday":
        return LABELS["everyday"]
    return LABELS["authors"] if dataset in DATASETS else LABELS["own"]


def title_of(dataset: str) -> str:
    """Return a data set's title for readers."""
    return DATASETS[dataset]["title"] if dataset in DATASETS else dataset


def persona_shown(name: str, style: str) -> str:
    """Add to a persona's or policy's name how the persona is shown, if not in the policy's own line."""
    return name + (", first person" if style == "first_person" else "")


def widest(row: Any) -> str:
    """Format the limits of dPQ if the two verdicts of a pair agree as often as the counts allow."""
    low, high = (number(row[f"dpq_{end}_widest"], 1, True) for end in ("low", "high"))
    return f"[{low}, {high}]"


def number(value: Any, digits: int = 2, sign: bool = False) -> str:
    """Format a number; "" for None or NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("+-")


def with_interval(row: Any, name: str, digits: int = 2, sign: bool = False) -> str:
    """Format "estimate [low, high]"; "" where there is no estimate."""
    estimate = number(row[name], digits, sign)
    low, high = (number(row[f"{name}_{end}"], digits, sign) for end in ("low", "high"))
    return f"{estimate} [{low}, {high}]" if estimate and low else estimate


def span(row: Any, name: str, digits: int = 2) -> str:
    """Say an estimate with its interval."""
    values = [number(getattr(row, f"{name}{end}"), digits) for end in ("", "_low", "_high")]
    return f"{values[0]} ({values[1]} to {values[2]})" if values[1] else values[0]


def shares(row: Any, rubric: str) -> str:
    """Format W/T/L in per cent of the parsed comparisons; "" for the average row.

    Where it is known how often the judge contradicts itself, that is a fourth share, taken from the ties.
    """
    counts = [row[f"{rubric}_{verdict}"] for verdict in ("win", "tie", "loss")]
    contradicted = row.get(f"{rubric}_inconsistent", math.nan)
    n = sum(counts)
    if math.isnan(n) or not n:
        return ""
    if not math.isnan(contradicted):
        counts = [counts[0], counts[1] - contradicted, counts[2], contradicted]
    return " / ".join(f"{100 * count / n:.1f}" for count in counts)


def shares_head(table: pd.DataFrame, rubric: str) -> str:
    """Name the column of ``shares``; published counts do not tell ties from contradictions."""
    known = f"{rubric[0]}_inconsistent" in table
    return f"{rubric} W / T / L{' / contradicted' if known else ''} %"


def scored(row: Any, name: str, rubrics: str, digits: int) -> str:
    """Format a net win rate or dPQ with its interval; says so where nothing is decided under a rubric."""
    undecided = [r for r in rubrics if row[f"{r}_win"] + row[f"{r}_loss"] == 0]
    return "undefined: nothing decided" if undecided else with_interval(row, name, digits, True)


def p_values(row: Any, *names: str) -> str:
    """Format p-values, separated by commas; "" for a row without (an average)."""
    values = [row[name] for name in names]
    if any(math.isnan(p) for p in values):
        return ""
    return ", ".join(
        f"{p:.{3 if p >= 0.001 else 2}g}" if p >= SMALLEST_P else f"< {SMALLEST_P:g}" for p in values
    )


def sign_p(row: Any, rubric: str) -> str:
    """Format the p of the sign test and Holm's."""
    return p_values(row, f"{rubric}_sign", f"{rubric}_holm")


def p_value(p: float) -> str:
    """Format a p-value to two digits that mean something."""
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def size(row: Any) -> str:
    """Format n with the number of seeds."""
    if math.isnan(row["n"]):
        return ""
    seeds = row.get("n_seeds")
    return f"{row['n']:.0f}" + (f" ({seeds:.0f} seed{'s' if seeds > 1 else ''})" if seeds else "")


def unparsed(row: Any) -> str:
    """Format the numbers of comparisons that the judge left unparsed, personalization and quality."""
    counts = [row[f"{rubric}_unparsed"] for rubric in "pq"]
    return "" if math.isnan(counts[0]) else " / ".join(f"{count:.0f}" for count in counts)


def build(
    table: pd.DataFrame, columns: dict[str, Callable[[Any], str]], name_dataset: bool = True
) -> pd.DataFrame:
    """Make a table of text from a function per column; the data set is named if there are several."""
    import pandas as pd

    if name_dataset and "dataset" in table and len(set(table.dataset) - {"all"}) > 1:
        columns = {"data set": lambda row: title_of(row["dataset"])} | columns
    rows = [{name: make(row) for name, make in columns.items()} for _, row in table.iterrows()]
    return pd.DataFrame(rows, columns=list(columns))


def to_markdown(table: pd.DataFrame) -> str:
    """Return a table as GitHub Markdown; bars and line breaks in cells are escaped."""

    def line(cells: Any) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    return "\n".join([line(table.columns), line("---" for _ in table.columns), *map(line, table.to_numpy())])


def to_html(table: pd.DataFrame, caption: str) -> str:
    """Return a table as HTML with a caption; all text is escaped, line breaks are kept by the style."""
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in table.columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in table.to_numpy()
    )
    return (f'<div class="wide"><table><caption>{html.escape(caption)}</caption>'
            f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>")  # fmt: skip
