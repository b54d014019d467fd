"""The safety figure: answers that keep a caution, by policy and persona, and what training changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib.drawing.plots import BLUE, RED, STYLE, errors, new_figure, save
from persona_lib.tables.cells import span

if TYPE_CHECKING:
    import pandas as pd

# Differences: colour, marker, fill; told apart in grey by marker and fill.
DIFFERENCES = {
    ("tailored", "difference"): ("#000000", "D", "white", "PT-DPO minus plain DPO without a persona"),
    ("same persona", "difference"): (BLUE, "o", BLUE, "PT-DPO minus plain DPO told the same"),
    ("same persona", "difference_cut"): (RED, "^", RED, "the same, answers cut to equal length"),
}


def policy_title(arm: str) -> str:
    """Return a policy's name for readers."""
    method, _, persona = arm.partition("-")
    return f"plain {method.upper()}" if persona == "none" else f"PT-{method.upper()}"


def draw_points(
    axis: Any, part: pd.DataFrame, name: str, places: dict[str, int], shift: float, **look: Any
) -> None:
    """Draw a column's estimates with their intervals, one row per persona."""
    part = part[part[name].notna()]
    heights = [shift - places[persona] for persona in part.eval_persona]
    axis.errorbar(part[name], heights, xerr=errors(part, name), capsize=2, markersize=5, linestyle="", **look)


def draw_shares(axis: Any, shares: pd.DataFrame, places: dict[str, int]) -> None:
    """Draw the share that keeps a caution."""
    shown = shares[(shares.eval_persona == "none") | (shares.persona_format == "first_person")
                   | ~shares.arm.str.endswith("-none")]  # fmt: skip
    for arm, part in shown.groupby("arm", sort=False):
        plain = arm.endswith("-none")
        colour, marker, shift = (RED, "s", -0.1) if plain else (BLUE, "o", 0.14)
        draw_points(axis, part, "share", places, shift, color=colour, fmt=marker, label=policy_title(arm))


def draw_differences(axis: Any, pairs: pd.DataFrame, places: dict[str, int]) -> None:
    """Draw paired differences; left of 0 the persona-trained policy drops cautions."""
    for number, ((shows, name), (colour, marker, fill, label)) in enumerate(DIFFERENCES.items()):
        part = pairs[pairs.shows == shows]
        if name in part:
            look = {"color": colour, "fmt": marker, "mfc": fill, "label": label}
            draw_points(axis, part, name, places, 0.16 - 0.16 * number, **look)
    axis.axvline(0, color="0.6", linewidth=0.8, zorder=0)


def plot_safety(shares: pd.DataFrame, pairs: pd.DataFrame, whose: str) -> Any:
    """Draw shares and paired differences of one data set; ``whose`` is for the title."""
    import matplotlib.style

    personas = list(dict.fromkeys(shares.eval_persona))
    places = {persona: number for number, persona in enumerate(personas)}
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = new_figure(8, 1.9 + 0.5 * len(personas), columns=2, sharey=True)
        left, right = axes[0]
        draw_shares(left, shares, places)
        draw_differences(right, pairs, places)
        left.set_yticks([-place for place in places.values()], [p.replace("-", " ") for p in places])
        left.set_ylabel("persona that the policy is shown")
        left.set_xlabel("share of answers that keep a caution or refusal")
        right.set_xlabel("difference of that share, same prompts")
        left.set_xlim(left=0)
        for axis in (left, right):
            axis.legend(
                fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1 if axis is right else 2
            )
        n, seeds = int(shares.n.max()), int(shares.n_seeds.max())
        figure.suptitle(
            f"{whose}: n = {n} per point, {seeds} seed{'s' * (seeds > 1)}, 95 % intervals", fontsize=9
        )
    return figure


def plot_released_safety(shares: pd.DataFrame, pairs: pd.DataFrame) -> Any:
    """Draw the safety of the authors' released answers, read by rules."""
    return plot_safety(shares, pairs, "Authors' released BeaverTails answers")


def alt_released_safety(shares: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Say in words what the figure of the released answers shows: shares, and the differences paired."""
    part = pairs[pairs.shows == "same persona"]
    said = [f"{r.eval_persona}: {span(r, 'difference')}" for r in part.itertuples()]
    return f"{alt_safety(shares)} PT-DPO minus plain DPO told the same: {'; '.join(said)}."


def alt_safety(shares: pd.DataFrame) -> str:
    """Say in words what the left side of the figure shows."""
    points = (
        f"{policy_title(r.arm)}, {r.eval_persona}: {r.share:.2f} ({r.share_low:.2f} to {r.share_high:.2f})"
        for r in shares.itertuples()
    )
    return f"Points with 95 % intervals of the share that keeps a caution or refusal. {'; '.join(points)}."


def save_safety(figure: Any, folder: Path, name: str) -> Path:
    """Write the figure as PDF and PNG without dates; returns the PNG."""
    return save(figure, folder, name)[1]
