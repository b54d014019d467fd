"""The figure of human ratings: how often each value was given, and the mean per group with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persona_lib.drawing.plots import BLUE, ORANGE, errors, new_figure
from persona_lib.evaluation.rating_sheets import SCALE
from persona_lib.tables.cells import number

if TYPE_CHECKING:
    import pandas as pd

SHADES = ("#F7F7F7", "#D1E5F0", "#92C5DE", "#4393C3", "#2166AC")  # 1 to 5: light to dark, also in grey
MARKS = ((BLUE, "o"), (ORANGE, "s"))
TITLES = {"personas": "Rating of personas", "answers": "User study: two systems' answers"}


def label(table: pd.DataFrame) -> str:
    """Say how many people rated."""
    return f"{int(table.n_raters.max())} raters"


def draw_values(axis: Any, rows: pd.DataFrame, places: list[float]) -> None:
    """Draw the shares of the values 1 to 5 as stacked bars."""
    counts = rows[[f"n_{value}" for value in SCALE]].to_numpy(dtype=float)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    left = 0 * shares[:, 0]
    for value, shade, share in zip(SCALE, SHADES, shares.T, strict=True):
        axis.barh(places, share, 0.72, left, color=shade, edgecolor="0.3", linewidth=0.5, label=str(value))
        left = left + share
    axis.set_xlim(0, 100)


def draw_means(axis: Any, rows: pd.DataFrame, places: list[float]) -> None:
    """Draw the mean ratings with their intervals, a colour and marker per group."""
    groups = list(dict.fromkeys(rows.group))
    for group, (colour, mark) in zip(groups, MARKS, strict=True):
        own = (rows.group == group).to_numpy()
        where = [place for place, is_own in zip(places, own, strict=True) if is_own]
        axis.errorbar(rows["mean"][own], where, xerr=errors(rows[own], "mean"), fmt=mark, color=colour,
                      capsize=2.5, markersize=5)  # fmt: skip
    axis.set_xlim(SCALE[0] - 0.1, SCALE[-1] + 0.1)
    axis.grid(axis="x", color="0.9")


def draw_study(axes: Any, table: pd.DataFrame, study: str) -> None:
    """Draw one study: a row per question and group."""
    rows = table[(table.study == study) & table.n_1.notna()]
    questions = list(dict.fromkeys(rows.question))
    places = [2.4 * questions.index(row.question) + n % 2 for n, row in enumerate(rows.itertuples())]
    draw_values(axes[0], rows, places)
    draw_means(axes[1], rows, places)
    names = [f"{row.question}, {row.group} (n = {row.n:.0f})" for row in rows.itertuples()]
    axes[0].set_yticks(places, names)
    axes[0].set_ylim(max(places) + 0.6, -0.6)
    axes[0].set_title(f"{TITLES[study]} ({label(rows)})", fontsize=9, loc="left")


def plot_ratings(ratings: pd.DataFrame) -> Any:
    """Draw every study that was rated: value shares on the left, means with 95 % intervals on the right."""
    studies = list(dict.fromkeys(ratings.study))
    heights = [ratings[ratings.study == study].question.nunique() for study in studies]
    figure, axes = new_figure(7.2, 1.1 + 0.75 * sum(heights), len(studies), 2, sharey="row",
                              gridspec_kw={"height_ratios": heights, "width_ratios": (1.3, 1)})  # fmt: skip
    for row, study in zip(axes, studies, strict=True):
        draw_study(row, ratings, study)
    axes[-1, 0].set_xlabel("% of ratings")
    axes[-1, 1].set_xlabel("mean (95 % interval)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=len(SCALE), title=None)
    return figure


def alt_ratings(ratings: pd.DataFrame) -> str:
    """Describe the figure of ratings: who rated, and every mean."""
    said = [
        f"{r.study}, {r.question}, {r.group}: "
        f"{number(r.mean)} ({number(r.mean_low)} to {number(r.mean_high)})"
        for r in ratings[ratings.n_1.notna()].itertuples()
    ]
    return f"Bars of ratings from 1 to 5 and means with 95 % intervals; {label(ratings)}. {'; '.join(said)}."
