"""The figure of notebook 13: do the authors' released answers follow their personas, by flip and DiD?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persona_lib.drawing.plots import BLUE, RED, errors, new_figure
from persona_lib.tables.cells import span, title_of
from persona_lib.tables.released_tables import ARMS

if TYPE_CHECKING:
    import pandas as pd

LOOKS = {"dpo-chosen": (BLUE, "o", 0.1), "dpo-none": (RED, "s", -0.1)}  # colour, marker, shift


def draw_flip(axis: Any, table: pd.DataFrame, column: str, label: str) -> None:
    """Draw one measure of ``flip_table``: a marker with its interval per data set, personas and arm."""
    keys = dict.fromkeys(zip(table.dataset, table.personas, strict=True))
    places = {key: -number for number, key in enumerate(keys)}
    for arm, (colour, marker, shift) in LOOKS.items():
        part = table[table.arm == arm]
        height = [places[key] + shift for key in zip(part.dataset, part.personas, strict=True)]
        look = {"fmt": marker, "color": colour, "capsize": 3, "label": ARMS[arm]}
        axis.errorbar(part[column], height, xerr=errors(part, column), **look)
    axis.set_yticks(list(places.values()), [f"{title_of(d)}, {personas}" for d, personas in places])
    axis.margins(y=0.25)
    axis.set_xlabel(label)


def plot_released_flip(table: pd.DataFrame) -> Any:
    """Draw flip and DiD with their 95 % intervals from ``released_tables.flip_table``."""
    height = 1.4 + 0.35 * len(table.groupby(["dataset", "personas"]))
    figure, axes = new_figure(8, height, columns=2, sharey=True)
    left, right = axes[0]
    draw_flip(left, table, "flip", "share of rows that flip")
    draw_flip(right, table, "did", "DiD (unigram F1)")
    left.set_xlim(left=0)
    right.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    right.legend(loc="lower right")
    sizes = " or ".join(map(str, sorted(set(table.n))))
    figure.suptitle(f"Authors' released answers: n = {sizes} rows per point, 95 % intervals", fontsize=9)
    return figure


def alt_released_flip(table: pd.DataFrame) -> str:
    """Say in words what the figure shows."""
    points = "; ".join(
        f"{title_of(r.dataset)}, {r.personas}, {ARMS[r.arm]}: flip {span(r, 'flip')}, DiD {span(r, 'did', 3)}"
        for r in table.itertuples()
    )
    return f"Points with 95 % intervals of flip and DiD of the authors' released answers. {points}."
