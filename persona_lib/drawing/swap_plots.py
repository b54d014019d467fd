"""Show the persona swap: a short table and a figure, both drawn from the saved table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# Okabe-Ito colours: told apart by the colour-blind, and in grey by their markers.
MARKERS = {
    "gold": ("o", "#0072B2"),
    "stripped": ("s", "#56B4E9"),
    "user": ("D", "#009E73"),
    "retrieved": ("^", "#E69F00"),
    "shuffled": ("x", "#000000"),
}


def headline(table: pd.DataFrame, measure: str = "policy") -> pd.DataFrame:
    """Return what one reads first: n, Acc_C, Acc_R, flip and share D > 0 with its interval, rounded."""
    columns = ["n", "acc_chosen", "acc_rejected", "flip", "d_positive", "d_positive_low", "d_positive_high"]
    chosen = table[table.measure == measure].set_index(["arm", "persona_format", "persona"])
    return chosen[columns].astype(float).round(3)


def plot_swap(
    table: pd.DataFrame, measure: str = "policy", folder: Path | None = None, name: str = "persona_swap"
) -> Any:
    """Draw share D > 0 with its interval, one line per arm and one marker per persona family.

    ``table`` is that of ``swap.swap_all``. Saves PDF and PNG if given a folder. Chance is .5.
    """
    import matplotlib.pyplot as plt

    shown = table[(table.measure == measure) & table.d_positive.notna()]
    arms = list(dict.fromkeys(zip(shown.arm, shown.persona_format, strict=True)))
    families = [family for family in MARKERS if family in set(shown.persona)]
    figure, axis = plt.subplots(figsize=(7, 1.4 + 0.42 * len(arms)), layout="constrained")
    for place, family in enumerate(families):
        part = shown[shown.persona == family].set_index(["arm", "persona_format"])
        draw_family(axis, part, arms, family, (place - (len(families) - 1) / 2) * 0.15)
    axis.axvline(0.5, color="0.6", linewidth=0.8, zorder=0)
    axis.set_yticks(
        range(len(arms)), [arm if style == "line" else f"{arm}, first person" for arm, style in arms]
    )
    axis.invert_yaxis()
    n = int(shown.n.max()) if len(shown) else 0
    axis.set_xlabel(f"share of rows with D > 0 ({measure}; 95 % intervals; n = {n}; chance .5)")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title="personas")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=150)
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    return figure


def draw_family(
    axis: Any, part: pd.DataFrame, arms: list[tuple[str, str]], family: str, shift: float
) -> None:
    """Draw one persona family's points at the arms that have it, a little apart from the others'."""
    marker, colour = MARKERS[family]
    there = [(place + shift, part.loc[arm]) for place, arm in enumerate(arms) if arm in part.index]
    centres = [row.d_positive for _, row in there]
    errors = [
        [row.d_positive - row.d_positive_low for _, row in there],
        [row.d_positive_high - row.d_positive for _, row in there],
    ]
    heights = [height for height, _ in there]
    axis.errorbar(
        centres, heights, xerr=errors, fmt=marker, color=colour, markersize=5, linewidth=1.2, label=family
    )
