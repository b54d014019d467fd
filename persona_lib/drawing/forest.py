"""Figures of how sure the results are: dPQ as a forest, the paper's table re-analysed, length held equal.

Drawn like the others (``plots``): from saved tables, Okabe-Ito colours, told apart in grey by marker and
filling. Filled marks are ours, hollow ones the paper's. Readable at the width of one column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from persona_lib.drawing.plots import BLUE, ORANGE, RED, errors, new_figure, seeds_text
from persona_lib.tables.cells import LABELS, owner_of, span, title_of

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 4.8  # inches: the type is still 6 points high at the 3.3 inches of a column
PLAIN = "0.35"
MODELS = {  # of the length figure: column, colour, marker, filling, name
    "net": (BLUE, "o", BLUE, "all pairs"),
    "net_matched": (ORANGE, "s", ORANGE, "pairs of equal length"),
    "net_controlled": (RED, "D", "white", "model at equal length"),
}


def row_name(row: Any, several: bool) -> str:
    """Name a row on the axis: its data set, if there are several, and its label."""
    if row.kind == "average":
        return row.label
    return f"{title_of(row.dataset)}, {row.label}" if several else row.label


def sizes(table: pd.DataFrame) -> str:
    """Say how many comparisons a row of a table has."""
    found = sorted({int(n) for n in table[table.kind != "average"].n})
    return f"n = {found[0]}" + (f" to {found[-1]}" if len(found) > 1 else "")


def line_up(axis: Any, names: Sequence[str], places: Sequence[float]) -> None:
    """Put the names of the rows on the left, the first on top."""
    axis.set_yticks(list(places), list(names))
    axis.set_ylim(max(places) + 0.7, min(places) - 0.7)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.axvline(0, color="0.5", linewidth=0.8, zorder=0)


def head(axis: Any, place: float, text: str) -> None:
    """Write a heading between rows, from the left edge of the figure; it takes no part in the layout."""
    from matplotlib.transforms import blended_transform_factory

    where = blended_transform_factory(axis.figure.transFigure, axis.transData)
    words = axis.text(0.02, place, text, transform=where, va="center", fontsize=8.5, fontweight="bold",
                      bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip
    words.set_in_layout(False)


def draw_published(axis: Any, table: pd.DataFrame, places: Sequence[float]) -> None:
    """Draw the paper's dPQ as hollow squares: a thick interval, and thin the widest that the counts allow."""
    if "dpq_low_widest" in table:
        axis.hlines(places, table.dpq_low_widest, table.dpq_high_widest, color="0.6", linewidth=0.9)
    axis.hlines(places, table.dpq_low, table.dpq_high, color=PLAIN, linewidth=2.2)
    axis.plot(table.dpq, places, "s", color=PLAIN, mfc="white", markersize=5.5, mew=1.3)


def plot_forest(main: pd.DataFrame, paper: pd.DataFrame) -> Any:
    """Draw dPQ of PT-DPO against DPO: ours filled, with intervals; below, the paper's rows, hollow."""
    own = [1.0 + i for i in range(len(main))]
    published = [own[-1] + 2.0 + i for i in range(len(paper))]
    figure, axes = new_figure(WIDTH, 0.9 + 0.2 * (published[-1] + 1))
    axis = axes[0, 0]
    axis.errorbar(main.dpq, own, xerr=errors(main, "dpq"), fmt="o", color=BLUE, capsize=2.5, markersize=5.5)
    draw_published(axis, paper, published)
    several = main[main.kind == "main"].dataset.nunique() > 1
    names = [row_name(row, several) for row in main.itertuples()]
    names += [row_name(row, True) for row in paper.itertuples()]
    line_up(axis, names, own + published)
    axis.set_ylim(published[-1] + 0.7, -0.7)
    owners = " and ".join(dict.fromkeys(owner_of(d) for d in main[main.kind == "main"].dataset))
    head(axis, 0.0, f"This run: {owners}, {seeds_text(main)}, {sizes(main)}")
    head(axis, published[0] - 1, f"{LABELS['paper'].capitalize()}: other data, model, judge; {sizes(paper)}")
    axis.set_xlabel("dPQ, 95 % intervals\n(thin: widest that the counts allow)")
    return figure


def alt_forest(main: pd.DataFrame, paper: pd.DataFrame) -> str:
    """Describe the forest plot."""
    ours = "; ".join(f"{row.label}: {span(row, 'dpq', 1)}" for row in main.itertuples())
    theirs = "; ".join(f"{row_name(row, True)}: {span(row, 'dpq', 1)}" for row in paper.itertuples())
    return f"Forest plot of dPQ. Filled, this run: {ours}. Hollow, the paper's numbers: {theirs}."


def plot_paper(paper: pd.DataFrame) -> Any:
    """Draw the paper's ten rows: net win rates under both rubrics and dPQ; filled: significant after Holm."""
    rows = paper[paper.kind == "paper"]
    places = [float(i) for i in range(len(paper))]
    figure, axes = new_figure(6.2, 0.9 + 0.22 * len(paper), 1, 3, sharey=True)
    for axis, short, text in zip(axes[0], "pq", ("personalization", "quality"), strict=False):
        limits = errors(rows, f"{short}_net")
        draw_tested(axis, rows[f"{short}_net"], limits, places, rows[f"{short}_holm"], text)
    last = axes[0, 2]
    last.hlines(places, paper.dpq_low_widest, paper.dpq_high_widest, color="0.6", linewidth=0.9)
    draw_tested(last, paper.dpq, errors(paper, "dpq"), places, paper.dpq_holm.fillna(0), "dPQ")
    line_up(axes[0, 0], [row_name(row, True) for row in paper.itertuples()], places)
    for axis in axes[0, 1:]:
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.axvline(0, color="0.5", linewidth=0.8, zorder=0)
    text = f"{sizes(rows)}; 95 % intervals; filled: p < .05 after Holm; thin: widest interval"
    figure.supxlabel(text, fontsize=9)
    return figure


def draw_tested(
    axis: Any, values: pd.Series, limits: Any, places: Sequence[float], holm: pd.Series, text: str
) -> None:
    """Draw estimates with intervals, filled where Holm's p is below .05."""
    for place, value, low, high, p in zip(places, values, *limits, holm, strict=False):
        axis.errorbar([value], [place], xerr=[[low], [high]], fmt="o", color=BLUE, capsize=2.5, markersize=5,
                      mfc=BLUE if p < 0.05 else "white")  # fmt: skip
    axis.set_title(text, fontsize=9)


def alt_paper(paper: pd.DataFrame) -> str:
    """Describe the figure of the paper's table."""
    rows = paper[paper.kind == "paper"]
    said = [f"{row_name(row, True)}: {span(row, 'dpq', 1)}" for row in paper.itertuples()]
    weak = [row_name(row, True) for row in rows.itertuples() if row.p_holm >= 0.05]
    return (
        f"The paper's ten rows with intervals. dPQ: {'; '.join(said)}. Personalization is not significant "
        f"after Holm in: {', '.join(weak)}."
    )


def plot_length(length: pd.DataFrame) -> Any:
    """Draw net win rates of the main rows as they are, of pairs of equal length, and of the model."""
    table = length[length.kind == "main"]
    labels = list(dict.fromkeys(zip(table.dataset, table.label, strict=True)))
    figure, axes = new_figure(5.6, 1.2 + 0.36 * len(labels), 1, 2, sharey=True, sharex=True)
    for axis, rubric in zip(axes[0], ("personalization", "quality"), strict=True):
        part = table[table.rubric == rubric]
        where = [labels.index(key) for key in zip(part.dataset, part.label, strict=True)]
        for shift, (column, (colour, marker, fill, name)) in zip(
            (-0.24, 0, 0.24), MODELS.items(), strict=True
        ):
            look = {"fmt": marker, "color": colour, "mfc": fill, "label": name}
            axis.errorbar(part[column], [w + shift for w in where], xerr=errors(part, column), capsize=2,
                          markersize=4.5, linewidth=1, **look)  # fmt: skip
        line_up(axis, [row_name(row, len(set(table.dataset)) > 1) for row in part.itertuples()], where)
        axis.set_xlabel(f"{rubric}, net win rate")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=3,
        title=f"{seeds_text(table)}, {sizes(table)}; 95 % intervals",
    )
    return figure


def alt_length(length: pd.DataFrame) -> str:
    """Describe the length figure."""
    table = length[length.kind == "main"]
    said = [
        f"{row.label}, {row.rubric}: {span(row, 'net')}, equal length {span(row, 'net_matched')}, "
        f"model {span(row, 'net_controlled') or 'no fit'}"
        for row in table.itertuples()
    ]
    return f"Net win rates as they are and with length held equal. {'; '.join(said)}."
