"""How each figure is drawn from its saved tables; ``figures`` reads the tables and writes the files.

Okabe-Ito colours, told apart in grey by hatch, marker or lightness; every figure says n and shows 95 %
intervals. No pyplot: figures are plain objects and leave no state behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.tables.cells import LABELS, owner_of, title_of

if TYPE_CHECKING:
    import pandas as pd

BLUE, ORANGE, GREEN, SKY, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#BBBBBB"
SIDES = {"chosen": (BLUE, ""), "rejected": (ORANGE, "///")}
VERDICTS = {
    "win": (BLUE, ""),
    "tie": ("#E5E5E5", ""),
    "contradicted": (GREY, "xxx"),
    "loss": (ORANGE, "///"),
}
FAMILIES = {  # of personas: colour and marker
    "gold": (BLUE, "o"),
    "stripped": (SKY, "s"),
    "user": (GREEN, "D"),
    "retrieved": (RED, "^"),
    "shuffled": ("#000000", "x"),
}
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6,
    "legend.frameon": False, "pdf.fonttype": 42, "figure.constrained_layout.use": True,
}  # fmt: skip
DPI = 110  # of the PNG: sharp enough on a screen, and an executed notebook stays below 1 MB
METADATA = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Any, Any]:
    """Return a figure in inches and its axes, an array of shape (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Save a figure as PDF and PNG without dates or versions, so that equal tables give equal bytes."""
    import matplotlib.style

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in METADATA]
    with matplotlib.style.context(["default", STYLE]):
        for path, metadata in zip(paths, METADATA.values(), strict=True):
            figure.savefig(path, dpi=DPI, metadata=metadata)
    return paths


def errors(table: pd.DataFrame, name: str) -> np.ndarray:
    """Return the distances from the estimates to their limits, shape (2, rows), 0 where there are none."""
    sides = [table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]]
    return np.nan_to_num(np.clip(np.array(sides, dtype=float), 0, None))


def seeds_text(table: pd.DataFrame) -> str:
    """Say over how many seeds a table pools."""
    n = int(table.n_seeds.max())
    return f"{n} seed{'s' if n > 1 else ''}"


# --- the figures ---


def plot_persona_accuracy(accuracy: pd.DataFrame) -> Any:
    """Draw persona accuracy per data set, split and side with its interval (paper Fig. 3)."""
    return draw_accuracy(accuracy, ("dataset", "split"), lambda d, split: f"{title_of(d)}\n{split} split")


def plot_persona_models(accuracy: pd.DataFrame) -> Any:
    """Draw persona accuracy per model that wrote the personas and side (paper Fig. 3)."""
    several = accuracy.dataset.nunique() > 1
    return draw_accuracy(
        accuracy,
        ("dataset", "model"),
        lambda dataset, model: fill(model, 12) + (f"\n{title_of(dataset)}" if several else ""),
    )


def draw_accuracy(accuracy: pd.DataFrame, by: Sequence[str], name: Callable[..., str]) -> Any:
    """Draw accuracy per side and group of rows that agree in the columns ``by``; chance is .5."""
    table = accuracy[accuracy.side.isin(SIDES)]
    groups = list(dict.fromkeys(zip(*(table[column] for column in by), strict=True)))
    figure, axes = new_figure(2.4 + max(0.95, 1.5 - 0.1 * len(groups)) * len(groups), 3.2)
    axis, narrow = axes[0, 0], len(groups) > 4
    for offset, (side, (colour, hatch)) in zip((-0.2, 0.2), SIDES.items(), strict=True):
        part = table[table.side == side]
        places = [groups.index(key) + offset for key in zip(*(part[c] for c in by), strict=True)]
        axis.bar(
            places,
            part.accuracy,
            0.38,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=f"{side} personas",
        )
        axis.errorbar(places, part.accuracy, errors(part, "accuracy"), fmt="none", ecolor="black", capsize=3)
        for place, row in zip(places, part.itertuples(), strict=True):
            text = f"{row.accuracy:.2f}" + ("" if narrow else f"\nn = {row.n:.0f}")
            axis.text(
                place, 0.03, text, ha="center", fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 1.5}
            )
    axis.axhline(0.5, color="0.4", linestyle=":", linewidth=1)
    axis.set_xticks(range(len(groups)), [name(*group) for group in groups])
    axis.set_ylim(0, 1)
    axis.set_xlim(-0.6, len(groups) - 0.4)
    axis.set_ylabel("persona accuracy (95 % interval)")
    said = f"{owner_of(groups[0][0])}, {seeds_text(table)}"
    sizes = " or ".join(f"{n:.0f}" for n in sorted(set(table.n)))
    said += f", n = {sizes} per bar" if narrow else ""
    figure.legend(loc="outside upper center", ncols=2, title=said)
    return figure


def plot_persona_preference(preference: pd.DataFrame) -> Any:
    """Draw which side's persona is the more plausible user (paper Fig. 4)."""
    figure, axes = new_figure(6.5, 1.5 + 0.45 * len(preference))
    axis = axes[0, 0]
    labels = [f"{title_of(row.dataset)}, n = {row.n}" for row in preference.itertuples()]
    counts = preference[["win", "tie", "loss"]]
    draw_shares(axis, counts, list(range(len(preference))), ("chosen", "tie", "rejected"))
    axis.set_yticks(range(len(preference)), labels)
    axis.invert_yaxis()
    axis.set_xlabel("% of pairs whose more plausible user is the chosen / rejected persona's")
    nets = "; ".join(
        f"net {r.net:+.2f} [{r.net_low:+.2f}, {r.net_high:+.2f}]" for r in preference.itertuples()
    )
    figure.legend(loc="outside upper center", ncols=3, title=f"{seeds_text(preference)}; {nets}")
    return figure


def verdict_counts(table: pd.DataFrame, rubric: str) -> pd.DataFrame:
    """Return the verdicts of judged rows, the judge's contradictions of itself taken out of the ties.

    Published rows do not say how many there were: their ties hold both.
    """
    counts = table[[f"{rubric}_{verdict}" for verdict in ("win", "tie", "loss")]].fillna(0)
    counts.columns = ["win", "tie", "loss"]
    known = f"{rubric}_inconsistent" in table
    contradicted = table[f"{rubric}_inconsistent"].fillna(0) if known else 0
    return counts.assign(tie=counts.tie - contradicted, contradicted=contradicted)[list(VERDICTS)]


def draw_shares(
    axis: Any, counts: pd.DataFrame, places: Sequence[float], names: Sequence[str], faint: bool = False
) -> None:
    """Draw stacked horizontal bars of verdicts in per cent; rows without counts stay empty.

    ``counts`` has a column per verdict of ``VERDICTS``, ``names`` are theirs in the legend.
    """
    values = counts.to_numpy(dtype=float)
    totals = values.sum(axis=1, keepdims=True)
    shares = 100 * np.divide(values, totals, out=np.zeros_like(values), where=totals > 0)
    left = np.zeros(len(counts))
    for index, (verdict, name) in enumerate(zip(counts, names, strict=True)):
        colour, hatch = VERDICTS[verdict]
        axis.barh(places, shares[:, index], 0.72, left, color=colour, hatch=hatch, edgecolor="white",
                  alpha=0.6 if faint else 1, label=None if faint else name)  # fmt: skip
        left += shares[:, index]
    for place, row in zip(places, shares, strict=True):
        box = {"fc": "white", "ec": "none", "pad": 0.8}
        for x, value, align in ((2, row[0], "left"), (98, row[-1], "right")):
            if value >= 12:
                axis.text(x, place, f"{value:.0f}", ha=align, va="center", fontsize=7, bbox=box)
    axis.set_xlim(0, 100)


def plot_main(main: pd.DataFrame, paper: pd.DataFrame) -> Any:
    """Draw W/T/L and dPQ of PT-DPO against DPO, ours above and the paper's own rows below."""
    gap = 1.6
    places = [list(range(len(main))), [len(main) + gap + i for i in range(len(paper))]]
    figure, axes = new_figure(9.5, 1.6 + 0.27 * (len(main) + len(paper) + gap), 1, 3, sharey=True)
    for faint, table, where in ((False, main, places[0]), (True, paper, places[1])):
        for axis, short in zip(axes[0], "pq", strict=False):
            draw_shares(axis, verdict_counts(table, short), where, list(VERDICTS), faint)
        look = {"fmt": "s", "color": "0.35", "mfc": "white"} if faint else {"fmt": "o", "color": BLUE}
        axes[0, 2].errorbar(table.dpq, where, xerr=errors(table, "dpq"), capsize=2.5, **look)
    for axis, text in zip(axes[0], ("personalization, %", "quality, %", "dPQ (95 % interval)"), strict=True):
        axis.set_xlabel(text)
    for axis in axes[0, 1:]:  # nothing that would hide a head that runs on
        axis.patch.set_visible(False)
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0, 2].axvline(0, 0, 0.94, color="0.5", linewidth=0.8, zorder=0)
    label_rows(axes[0, 0], main, paper, places)
    handles, names = axes[0, 0].get_legend_handles_labels()
    names = ["judge contradicts itself" if name == "contradicted" else f"PT-DPO {name}" for name in names]
    figure.legend(handles, names, loc="outside upper center", ncols=4)
    return figure


def label_rows(axis: Any, main: pd.DataFrame, paper: pd.DataFrame, places: list[list[float]]) -> None:
    """Name the rows of the main figure and head its two halves."""
    several = main[main.kind == "main"].dataset.nunique() > 1
    labels = [
        (f"{title_of(row.dataset)}, " if several and row.kind == "main" else "")
        + f"{row.label}, n = {row.n:.0f}"
        for row in main.itertuples()
    ]
    for row in paper.itertuples():
        labels.append(row.label if np.isnan(row.n) else f"{row.dataset}, {row.label}, n = {row.n:.0f}")
    axis.set_yticks(places[0] + places[1], labels)
    axis.set_ylim(places[1][-1] + 0.6, -1.4)
    owners = " and ".join(dict.fromkeys(owner_of(d) for d in main[main.kind == "main"].dataset))
    heads = (
        f"This run: {owners}, {seeds_text(main)}",
        f"Published: {LABELS['paper']}, other data, models and judge",
    )
    for place, text in zip((places[0][0], places[1][0]), heads, strict=True):
        head = axis.annotate(text, (0, place - 0.95), xycoords=("axes fraction", "data"), va="center",
                             fontweight="bold", annotation_clip=False)  # fmt: skip
        head.set_in_layout(False)  # it may run over the next panel


def nothing_to_draw(why: str) -> Any:
    """Return a figure that only says why it is empty."""
    figure, axes = new_figure(5, 1, 1, 1)
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0.5, 0.5, why, ha="center", va="center")
    return figure


def plot_swap(swap: pd.DataFrame) -> Any:
    """Draw share D > 0 by policy and persona family (policy log-probabilities), a panel per data set."""
    table = swap[(swap.measure == "policy") & swap.d_positive.notna() & swap.persona.isin(FAMILIES)]
    if table.empty:
        return nothing_to_draw("no D is defined: no row has two different personas of a family")
    datasets = list(dict.fromkeys(table.dataset))
    parts = list(dict.fromkeys(zip(table.arm, table.persona_format, strict=True)))
    families = [family for family in FAMILIES if family in set(table.persona)]
    size = (2.6 + 3.3 * len(datasets), 1.5 + 0.1 * len(parts) * max(3, len(families)))
    figure, axes = new_figure(*size, 1, len(datasets), sharey=True, sharex=True)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        shown = table[table.dataset == dataset]
        for index, family in enumerate(families):
            part = shown[shown.persona == family]
            shift = 0.7 * ((index + 0.5) / len(families) - 0.5)
            where = [parts.index(key) + shift for key in zip(part.arm, part.persona_format, strict=True)]
            colour, marker = FAMILIES[family]
            axis.errorbar(part.d_positive, where, xerr=errors(part, "d_positive"), fmt=marker, color=colour,
                          capsize=2, markersize=4.5, linewidth=1, label=family)  # fmt: skip
        for place in range(0, len(parts), 2):
            axis.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
        axis.axvline(0.5, color="0.4", linestyle=":", linewidth=1)
        axis.set_title(f"{title_of(dataset)} (n = {shown.n.max():.0f}, {seeds_text(shown)})", fontsize=9)
        axis.set_xlabel("share D > 0 (95 % interval)")
    axes[0, 0].set_yticks(range(len(parts)), [f"{arm}, {form.replace('_', ' ')}" for arm, form in parts])
    axes[0, 0].set_ylim(len(parts) - 0.5, -0.5)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), title="personas swapped")
    return figure


def plot_words(words: pd.DataFrame) -> Any:
    """Draw the most typical words of each side's personas by log-odds z (paper Table 1)."""
    datasets = list(dict.fromkeys(words.dataset))
    shown = [words[words.dataset == dataset].groupby("side", sort=False).head(10) for dataset in datasets]
    figure, axes = new_figure(1 + 3.8 * len(datasets), 1.3 + 0.19 * max(map(len, shown)), 1, len(datasets))
    for axis, dataset, part in zip(axes[0], datasets, shown, strict=True):
        part = part.sort_values("z")
        for side, (colour, hatch) in SIDES.items():
            own = part[part.side == side]
            places = [list(part.index).index(i) for i in own.index]
            axis.barh(places, own.z, color=colour, hatch=hatch, edgecolor="white", label=f"{side} personas")
        axis.set_yticks(
            range(len(part)), [f"{r.word} (n = {r.n_chosen + r.n_rejected})" for r in part.itertuples()]
        )
        axis.set_xlabel("log-odds z")
        axis.set_title(title_of(dataset), fontsize=9)
        for limit in (-1.96, 1.96):
            axis.axvline(limit, color="0.4", linestyle=":", linewidth=1)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, title="words; dotted: z = ±1.96")
    return figure
