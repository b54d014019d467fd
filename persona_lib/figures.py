"""How each figure is drawn from its saved tables; ``figures`` reads the tables and writes the files.

Okabe-Ito colours, told apart in grey by hatch, marker or lightness; every figure says n and shows 95 %
intervals. No pyplot: figures are plain objects and leave no state behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.beyond.ratings import SCALE
from persona_lib.beyond.released import ARMS
from persona_lib.paper.results import table_path
from persona_lib.settings import Profile, figures_dir
from persona_lib.show import LABELS, number, owner_of, span, title_of

if TYPE_CHECKING:
    import pandas as pd


# --- How each figure is drawn from its saved tables; ``figures`` reads the tables and writes the files ---
# Okabe-Ito colours, told apart in grey by hatch, marker or lightness; every figure says n and shows 95 %
# intervals. No pyplot: figures are plain objects and leave no state behind.


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


def plot_swap_results(swap: pd.DataFrame) -> Any:
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


# --- Figures of how sure the results are ---
# Drawn like the others (``plots``): from saved tables, Okabe-Ito colours, told apart in grey by marker and
# filling. Filled marks are ours, hollow ones the paper's. Readable at the width of one column.


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
        for shift, (column, (colour, marker, face, name)) in zip(
            (-0.24, 0, 0.24), MODELS.items(), strict=True
        ):
            look = {"fmt": marker, "color": colour, "mfc": face, "label": name}
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


# --- Show the persona swap: a short table and a figure, both drawn from the saved table ---


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


# --- The figure of human ratings ---


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


# --- The figure of notebook 13 ---


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


# --- The safety figure: answers that keep a caution, by policy and persona, and what training changes ---


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


def draw_caution(axis: Any, shares: pd.DataFrame, places: dict[str, int]) -> None:
    """Draw the share that keeps a caution."""
    shown = shares[(shares.eval_persona == "none") | (shares.persona_format == "first_person")
                   | ~shares.arm.str.endswith("-none")]  # fmt: skip
    for arm, part in shown.groupby("arm", sort=False):
        plain = arm.endswith("-none")
        colour, marker, shift = (RED, "s", -0.1) if plain else (BLUE, "o", 0.14)
        draw_points(axis, part, "share", places, shift, color=colour, fmt=marker, label=policy_title(arm))


def draw_differences(axis: Any, pairs: pd.DataFrame, places: dict[str, int]) -> None:
    """Draw paired differences; left of 0 the persona-trained policy drops cautions."""
    for place, ((shows, name), (colour, marker, face, label)) in enumerate(DIFFERENCES.items()):
        part = pairs[pairs.shows == shows]
        if name in part:
            look = {"color": colour, "fmt": marker, "mfc": face, "label": label}
            draw_points(axis, part, name, places, 0.16 - 0.16 * place, **look)
    axis.axvline(0, color="0.6", linewidth=0.8, zorder=0)


def plot_safety(shares: pd.DataFrame, pairs: pd.DataFrame, whose: str) -> Any:
    """Draw shares and paired differences of one data set; ``whose`` is for the title."""
    import matplotlib.style

    personas = list(dict.fromkeys(shares.eval_persona))
    places = {persona: number for number, persona in enumerate(personas)}
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = new_figure(8, 1.9 + 0.5 * len(personas), columns=2, sharey=True)
        left, right = axes[0]
        draw_caution(left, shares, places)
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


# --- The figures of a profile: drawn from saved tables only, saved as PDF and PNG, described in words ---
# Equal tables give equal bytes: no dates, no versions, no state of a plotting library.


# --- what each says to someone who cannot see it ---


def alt_accuracy(accuracy: pd.DataFrame) -> str:
    """Describe the persona accuracy figure."""
    rows = accuracy[accuracy.side.isin(SIDES)]
    of = "model" if "model" in rows else "split"
    said = [
        f"{title_of(row.dataset)} {row[of]}, {row.side}: {span(row, 'accuracy')}, n = {row.n:.0f}"
        for _, row in rows.iterrows()
    ]
    return "Bars of persona accuracy with 95 % intervals. " + "; ".join(said) + "."


def alt_preference(preference: pd.DataFrame) -> str:
    """Describe the persona preference figure."""
    said = [
        f"{title_of(r.dataset)}: chosen {r.win}, tie {r.tie}, rejected {r.loss}"
        for r in preference.itertuples()
    ]
    return "Stacked bars of which persona is the more plausible user. " + "; ".join(said) + "."


def alt_main(main: pd.DataFrame, paper: pd.DataFrame) -> str:
    """Describe the main figure: dPQ of our rows; the paper's average."""
    said = [f"{r.label}: {span(r, 'dpq', 1)}" for r in main.itertuples()]
    average = paper[paper.kind == "average"].iloc[0]
    ours = f"Stacked win, tie and loss bars of PT-DPO against DPO with dPQ. This run: {'; '.join(said)}. "
    return ours + f"Below, the paper's own ten rows, average dPQ {average.dpq:.1f}."


def alt_swap(swap: pd.DataFrame) -> str:
    """Describe the persona-swap figure: gold and shuffled personas of the tailored policies."""
    rows = swap[
        (swap.measure == "policy") & swap.persona.isin(["gold", "shuffled"]) & swap.arm.str.contains("chosen")
    ]
    said = [f"{title_of(r.dataset)} {r.arm}, {r.persona}: {span(r, 'd_positive')}" for r in rows.itertuples()]
    return (
        "Points with 95 % intervals of the share D > 0 by policy and personas; chance is .5. "
        + "; ".join(said)
        + "."
    )


def alt_words(words: pd.DataFrame) -> str:
    """Describe the words figure."""
    said = [f"{side}: {', '.join(part.word.head(5))}" for side, part in words.groupby("side")]
    return "Bars of the words most typical of each side's personas. " + "; ".join(said) + "."


# --- files ---


@dataclass(frozen=True)
class FigureKind:
    """One figure: the tables that it is drawn from, how it is drawn, what it says, and its caption."""

    tables: tuple[str, ...]
    plot: Callable[..., Any]
    alt: Callable[..., str]
    caption: str


FIGURES = {
    "main": FigureKind(("main", "paper"), plot_main, alt_main, "PT-DPO against DPO that is told the persona"),
    "forest": FigureKind(
        ("main", "paper"), plot_forest, alt_forest, "dPQ: ours and the paper's, with intervals"
    ),
    "paper": FigureKind(
        ("paper",), plot_paper, alt_paper, "The paper's table with intervals that it does not print"
    ),
    "length": FigureKind(
        ("length",), plot_length, alt_length, "Net win rates with the answers' length held equal"
    ),
    "persona_accuracy": FigureKind(
        ("persona_accuracy",), plot_persona_accuracy, alt_accuracy, "Persona accuracy"
    ),
    "persona_models": FigureKind(
        ("persona_models",),
        plot_persona_models,
        alt_accuracy,
        "Persona accuracy by the model that wrote the personas",
    ),
    "persona_preference": FigureKind(
        ("persona_preference",),
        plot_persona_preference,
        alt_preference,
        "Which persona is the more plausible user",
    ),
    "swap": FigureKind(
        ("swap",), plot_swap_results, alt_swap, "Persona swap: does the preference follow the persona?"
    ),
    "words": FigureKind(("words",), plot_words, alt_words, "Words that are typical of each side's personas"),
    "released_flip": FigureKind(
        ("released_flip",),
        plot_released_flip,
        alt_released_flip,
        "Persona flip of the authors' released answers",
    ),
    "released_safety": FigureKind(
        ("released_safety", "released_safety_pairs"),
        plot_released_safety,
        alt_released_safety,
        "Which of the authors' released answers keep a caution or refusal",
    ),
    "ratings": FigureKind(("ratings",), plot_ratings, alt_ratings, "Ratings of personas and answers"),
}

ELSEWHERE = {  # drawn by the notebook or command that makes their tables
    "ratings": "notebook 14_human_ratings",
    "persona_models": "python -m persona_lib.studies persona-models",
    "released_flip": "notebook 13_released_outputs",
    "released_safety": "notebook 15_safety",
}


def read_tables(name: str, paths: Sequence[Path]) -> list[pd.DataFrame]:
    """Read the tables of a figure; FileNotFoundError names the one that is missing."""
    import pandas as pd

    for path in paths:
        if not path.exists():
            maker = ELSEWHERE.get(name, "notebook 12_results")
            raise FileNotFoundError(f"{path}: figure {name} is drawn from it; run {maker} first")
    return [pd.read_csv(path, keep_default_na=name != "words") for path in paths]


def draw(name: str, paths: Sequence[Path]) -> Any:
    """Draw a figure from the CSV files of its tables."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        return FIGURES[name].plot(*read_tables(name, paths))


def figure_inputs(profile: Profile, name: str) -> list[Path]:
    """Return the CSV files that a figure of a profile is drawn from."""
    return [table_path(profile, table) for table in FIGURES[name].tables]


def alt_text(profile: Profile, name: str) -> str:
    """Say in words what a figure of a profile shows."""
    return FIGURES[name].alt(*read_tables(name, figure_inputs(profile, name)))


def save_figures(profile: Profile, names: Sequence[str] = ()) -> dict[str, Path]:
    """Draw the figures whose tables are there; returns the PNGs. Older files of the others are removed.

    Without ``names``: all but those of other notebooks.
    """
    drawn = {}
    for name in names or [name for name in FIGURES if name not in ELSEWHERE]:
        paths = figure_inputs(profile, name)
        if all(path.exists() for path in paths):
            drawn[name] = save(draw(name, paths), figures_dir(profile), name)[1]
        else:
            for kind in METADATA:
                (figures_dir(profile) / f"{name}.{kind}").unlink(missing_ok=True)
    return drawn


def image(profile: Profile, drawn: Mapping[str, Path], name: str) -> Any:
    """Return a drawn figure with its alt text for a notebook; None if it was not drawn."""
    from IPython.display import Image

    return Image(drawn[name], alt=alt_text(profile, name)) if name in drawn else None
