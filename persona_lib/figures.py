"""The figures: three kinds of drawing (bars, forest, curve), from tables only, each with its words.

A plot function takes its tables and returns the figure and its alt text, which the saved PNG carries. Colours
are Okabe and Ito's; hatch, marker and lightness tell them apart in grey. Intervals are 95 % intervals.
Equal tables give equal bytes: no dates, no versions, no state of a plotting library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.beyond.ratings import SCALE
from persona_lib.beyond.released import ARMS
from persona_lib.paper.results import table_path
from persona_lib.records import SIDES
from persona_lib.settings import Profile, figures_dir
from persona_lib.show import ENDS, LABELS, number, owner_of, title_of

if TYPE_CHECKING:
    import pandas as pd

BLUE, ORANGE, GREEN, SKY, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#BBBBBB"
MARKS = (  # of series: colour, marker, filling
    (BLUE, "o", BLUE), (ORANGE, "s", ORANGE), (RED, "D", "white"), (GREEN, "^", GREEN),
    ("#000000", "x", "none"), (SKY, "v", SKY), (GREY, "P", GREY),
)  # fmt: skip
VERDICTS = {  # of stacked bars: colour, hatch
    "win": (BLUE, ""), "tie": ("#F0F0F0", ""), "contradicted": (GREY, "xxx"), "loss": (ORANGE, "///"),
}  # fmt: skip
VALUES = {  # 1 to 5: light to dark, also in grey
    str(value): (shade, "")
    for value, shade in zip(SCALE, ("#F7F7F7", "#D1E5F0", "#92C5DE", "#4393C3", "#2166AC"), strict=True)
}
FAMILIES = ("gold", "retrieved", "stripped", "user", "shuffled")  # of personas, each with its mark
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6,
    "legend.frameon": False, "pdf.fonttype": 42, "figure.constrained_layout.use": True,
}  # fmt: skip
DPI = 110  # of the PNG: sharp enough on a screen, and an executed notebook stays below 1 MB
KINDS = ("pdf", "png")
Drawn = tuple[Any, str]  # a figure and what it shows, in words


# --- the three kinds of drawing; each returns what it shows, in words ---


def bars(axis: Any, counts: pd.DataFrame, looks: Mapping[str, tuple[str, str]], label: str) -> str:
    """Draw counts as stacked bars in per cent: a bar per row, named by the index, a part per column.

    ``looks`` has a colour and a hatch for every column. Rows without counts stay empty.
    """
    values = np.nan_to_num(counts[list(looks)].to_numpy(dtype=float))
    totals = values.sum(axis=1, keepdims=True)
    shares = 100 * np.divide(values, totals, out=np.zeros_like(values), where=totals > 0)
    left, box = np.zeros(len(counts)), {"fc": "white", "ec": "none", "pad": 0.8}
    for (name, (colour, hatch)), part in zip(looks.items(), shares.T, strict=True):
        part = np.where(part > 0, part, np.nan)  # a part of no width has no edge, either
        axis.barh(range(len(counts)), part, 0.72, left, color=colour, hatch=hatch, edgecolor="0.3",
                  linewidth=0.4, label=name)  # fmt: skip
        left = left + np.nan_to_num(part)
    for place, row in enumerate(shares):
        for x, value, align in ((2, row[0], "left"), (98, row[-1], "right")):
            if value >= 12:
                axis.text(x, place, f"{value:.0f}", ha=align, va="center", fontsize=7, bbox=box)
    axis.set_xlim(0, 100)
    line_up(axis, list(counts.index), label)
    rows = [
        f"{name}: " + ", ".join(f"{part} {value:.0f}" for part, value in zip(looks, row, strict=True))
        for name, row, total in zip(counts.index, shares, totals, strict=True)
        if total
    ]
    return f"Stacked bars, {label}. {'; '.join(rows)}."


def forest(
    axis: Any, table: pd.DataFrame, name: str, label: str, null: float | None = None, series: str = "",
    order: Sequence[str] = (),
) -> str:  # fmt: skip
    """Draw estimates with their intervals: a line per value of column ``row``, a mark per ``series``.

    ``table`` has the columns ``name``, ``name_low`` and ``name_high``; NaN leaves a gap. ``order`` lists the
    series that always have the same marks. A dotted line stands at ``null``.
    """
    rows = list(dict.fromkeys(table.row))
    kinds = table[series] if series else table.row.map(lambda _: "")
    order = list(order) or list(dict.fromkeys(kinds))
    members = {row: sorted({*kinds[table.row == row]}, key=order.index) for row in rows}
    for place in range(0, len(rows), 2):
        axis.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
    if null is not None:
        axis.axvline(null, color="0.4", linestyle=":", linewidth=1, zorder=1)
    for kind, (colour, marker, face) in zip(order, MARKS, strict=False):
        part = table[kinds == kind]
        if part.empty:
            continue
        shifts = [0.7 * ((members[r].index(kind) + 0.5) / len(members[r]) - 0.5) for r in part.row]
        places = [rows.index(row) + shift for row, shift in zip(part.row, shifts, strict=True)]
        sides = [part[name] - part[f"{name}_low"], part[f"{name}_high"] - part[name]]
        limits = np.nan_to_num(np.clip(np.array(sides, dtype=float), 0, None))
        axis.errorbar(part[name].astype(float), places, xerr=limits, fmt=marker, color=colour, mfc=face,
                      capsize=2, markersize=5, linewidth=1.2, label=kind)  # fmt: skip
    line_up(axis, rows, label)
    words = [
        f"{row.row}{f', {kind}' if kind else ''}: {span(row, name)}"
        for kind, row in zip(kinds, table.itertuples(), strict=True)
        if span(row, name)
    ]
    return f"Points with 95 % intervals, {label}. {'; '.join(words)}."


def curve(axis: Any, table: pd.DataFrame, x: str, y: str, label: str, series: str) -> str:
    """Draw a line per value of column ``series``: ``y`` over ``x``."""
    words = []
    for (name, part), (colour, marker, face), line in zip(
        table.groupby(series, sort=False), MARKS, ("-", "--", "-.", ":") * 2, strict=False
    ):
        axis.plot(part[x], part[y], color=colour, marker=marker, mfc=face, linestyle=line, label=name)
        words.append(f"{name}: " + ", ".join(number(value) for value in part[y]))
    axis.set_xticks(sorted({*table[x]}))
    axis.set_xlabel(x)
    axis.set_ylabel(label)
    return f"Lines, {label} by {x}. {'; '.join(words)}."


# --- what they share ---


def panels(n: int, width: float, rows: int, **options: Any) -> tuple[Any, list[Any]]:
    """Return a figure of ``n`` panels side by side, high enough for a number of rows, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 1.5 + 0.24 * rows))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, n, squeeze=False, **{"sharey": True} | options)[0])


def line_up(axis: Any, rows: Sequence[str], label: str) -> None:
    """Name the rows on the left, the first on top; only the first panel of a figure shows the names."""
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(label)


def head(figure: Any, title: str, *axes: Any) -> None:
    """Write what a figure is of above it, with the legend of the given panels."""
    found = {
        name: mark for axis in axes for mark, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    found.pop("", None)
    if found:
        ncols = min(5, len(found))
        figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=ncols, title=title)
    else:
        figure.suptitle(title, fontsize=9)


def named(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Add a column ``row`` of some columns' texts, with the data set if there are several."""
    several = "dataset" in table and len({*table.dataset} - {"all"}) > 1
    kept = [*(["dataset"] if several else []), *columns]
    rows = [
        ", ".join(title_of(str(value)).replace("_", " ") for value in row if value not in ("all", ""))
        for row in table[kept].itertuples(index=False)
    ]
    return table.assign(row=rows)


def melted(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Return the estimates of several columns as rows: ``value`` with its limits, ``what`` is the name."""
    import pandas as pd

    parts = [
        table.rename(columns={f"{column}{end}": f"value{end}" for end in ENDS}).assign(what=what)
        for column, what in columns.items()
        if column in table
    ]
    return pd.concat(parts, ignore_index=True)


def basis(table: pd.DataFrame) -> str:
    """Say whose data a table is of, over how many seeds, and n."""
    datasets = table.dataset if "dataset" in table else ()
    owners = " and ".join(dict.fromkeys(owner_of(name) for name in datasets if name != "all"))
    sizes = sorted({int(n) for n in table.n.dropna()})
    n = f"n = {sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else "") if sizes else "n = 0"
    seeds = int(table.n_seeds.max()) if "n_seeds" in table and table.n_seeds.notna().any() else 1
    return f"{owners}{', ' * bool(owners)}{seeds} seed{'s' * (seeds > 1)}, {n}; 95 % intervals"


def span(row: Any, name: str) -> str:
    """Say an estimate with its interval; "" for none."""
    value, low, high = (number(getattr(row, f"{name}{end}")) for end in ENDS)
    return f"{value} ({low} to {high})" if low else value


# --- the figures ---


def with_paper(main: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Return our rows and, below them, the paper's, each under a heading; ``whose`` says whose they are."""
    import pandas as pd

    owner = LABELS["paper"].capitalize()
    titles = {"this run": f"This run: {basis(main).partition(', n')[0]}", "paper": f"{owner}: other data"}
    parts = []
    for (whose, title), table in zip(titles.items(), (main, paper), strict=True):
        table = named(table, "label")
        sizes = ["" if np.isnan(n) else f", n = {n:.0f}" for n in table.n.astype(float)]
        parts += [pd.DataFrame({"row": [title]}), table.assign(row=table.row + sizes)]
        for part in parts[-2:]:
            part["whose"] = whose
    return pd.concat(parts, ignore_index=True)


def bold_heads(axis: Any) -> None:
    """Set the headings between the rows in bold."""
    for text in axis.get_yticklabels():
        if text.get_text().startswith(("This run", LABELS["paper"].capitalize())):
            text.set_fontweight("bold")


def verdict_counts(table: pd.DataFrame, rubric: str) -> pd.DataFrame:
    """Return the verdicts of judged rows by row; the judge's contradictions of itself are taken out of ties.

    Published rows do not say how many there were: their ties hold both.
    """
    counts = {verdict: table[f"{rubric}_{verdict}"].fillna(0) for verdict in ("win", "tie", "loss")}
    counts["contradicted"] = table.get(f"{rubric}_inconsistent", 0 * table.n).fillna(0)
    counts["tie"] = counts["tie"] - counts["contradicted"]
    return table[["row"]].assign(**counts).set_index("row")


def plot_main(main: pd.DataFrame, paper: pd.DataFrame) -> Drawn:
    """Draw W/T/L and dPQ of PT-DPO against DPO: this run's rows above, the paper's own below (section 5)."""
    table = with_paper(main, paper)
    figure, axes = panels(3, 10, len(table), width_ratios=(1, 1, 1.2))
    said = [
        bars(axis, verdict_counts(table, rubric[0]), VERDICTS, f"{rubric}, % of comparisons")
        for axis, rubric in zip(axes, ("personalization", "quality"), strict=False)
    ]
    said.append(forest(axes[2], table, "dpq", "dPQ", 0, "whose"))
    bold_heads(axes[0])
    head(figure, "PT-DPO against DPO; 95 % intervals", *axes)
    return figure, " ".join(said)


def plot_length(length: pd.DataFrame) -> Drawn:
    """Draw net win rates of the main rows as they are, and of the length model."""
    held = {"net": "all pairs", "net_controlled": "at equal length (model)"}
    table = melted(named(length[length.kind == "main"], "label"), held)
    figure, axes = panels(2, 7, 2 * table.row.nunique(), sharex=True)
    said = [
        forest(axis, table[table.rubric == rubric], "value", f"{rubric}, net win rate", 0, "what")
        for axis, rubric in zip(axes, ("personalization", "quality"), strict=True)
    ]
    head(figure, basis(table), axes[0])
    return figure, " ".join(said)


def plot_accuracy(accuracy: pd.DataFrame) -> Drawn:
    """Draw persona accuracy per side, by split or by the model that wrote the personas (paper, Figure 3)."""
    by = "model" if "model" in accuracy else "split"
    table = named(accuracy[accuracy.side.isin(SIDES)], by)
    figure, (axis,) = panels(1, 6, 2 * table.row.nunique())
    said = forest(axis, table, "accuracy", "persona accuracy (chance: .5)", 0.5, "side", SIDES)
    axis.set_xlim(0, 1.02)
    head(figure, basis(table), axis)
    return figure, said


def plot_preference(preference: pd.DataFrame) -> Drawn:
    """Draw which side's persona is of the more plausible user (paper, Figure 4)."""
    looks = {"chosen": VERDICTS["win"], "tie": VERDICTS["tie"], "rejected": VERDICTS["loss"]}
    table = named(preference, "split").rename(columns={"win": "chosen", "loss": "rejected"})
    figure, axes = panels(2, 7.5, 2 * len(table), width_ratios=(2, 1))
    said = bars(axes[0], table.set_index("row"), looks, "% of pairs whose likelier user has the persona")
    said += " " + forest(axes[1], table, "net", "net for chosen", 0)
    head(figure, basis(table), axes[0])
    return figure, said


def plot_swap(swap: pd.DataFrame) -> Drawn:
    """Draw the share of rows with D > 0 by policy and kind of persona, of the policies' log-probabilities."""
    table = swap[(swap.measure == "policy") & swap.d_positive.notna() & swap.persona.isin(FAMILIES)]
    table = named(table, "arm", "persona_format")
    figure, (axis,) = panels(1, 6.5, 2 * table.row.nunique())
    label = "share of rows with D > 0 (chance: .5)"
    said = forest(axis, table, "d_positive", label, 0.5, "persona", FAMILIES)
    head(figure, basis(table) if len(table) else "no D is defined: no row has two different personas", axis)
    return figure, said


def plot_points(
    table: pd.DataFrame, name: str, columns: Sequence[str], label: str, null: float, series: str
) -> Drawn:
    """Draw the estimates of any table; ``columns`` name the rows."""
    table = named(table, *columns)
    figure, (axis,) = panels(1, 6, table.row.nunique() * max(1, table[series].nunique() if series else 1))
    said = forest(axis, table, name, label, null, series)
    head(figure, basis(table), axis)
    return figure, said


def plot_training(history: pd.DataFrame) -> Drawn:
    """Draw the validation loss, and of DPO the margin, per epoch and arm (``show.training_history``)."""
    table, names = history.reset_index(), ["validation loss", "validation reward margin"]
    names = [name for name in names if name in table]
    figure, axes = panels(len(names), 3.6 * len(names), 6, sharey=False)
    said = [curve(axis, table, "epoch", name, name, "arm") for axis, name in zip(axes, names, strict=True)]
    head(figure, "one line per arm", axes[0])
    return figure, " ".join(said)


def plot_released_flip(flip: pd.DataFrame) -> Drawn:
    """Draw flip and DiD of the authors' released answers."""
    table = named(flip, "personas").assign(policy=flip.arm.map(ARMS))
    figure, axes = panels(2, 8, 2 * table.row.nunique())
    order = list(ARMS.values())
    said = forest(axes[0], table, "flip", "share of rows that flip", None, "policy", order)
    said += " " + forest(axes[1], table, "did", "DiD (unigram F1)", 0, "policy", order)
    head(figure, f"Released answers: {basis(table)}", axes[0])
    return figure, said


def plot_safety(shares: pd.DataFrame, pairs: pd.DataFrame) -> Drawn:
    """Draw which answers keep a caution, and the difference between two policies on the same prompts."""
    import pandas as pd

    plain = shares.arm.str.endswith("-none")
    told = (shares.eval_persona == "none") | (shares.persona_format == "first_person") | ~plain
    table = named(shares.assign(policy=np.where(plain, "plain DPO", "PT-DPO"))[told], "eval_persona")
    same = {"difference": "minus plain DPO told the same", "difference_cut": "the same, at equal length"}
    none = {"difference": "minus plain DPO without a persona"}
    kinds = {"same persona": same, "tailored": none}
    parts = [melted(pairs[pairs.shows == shows], what) for shows, what in kinds.items()]
    differences = named(pd.concat(parts, ignore_index=True), "eval_persona")
    rows = [pd.DataFrame({"row": [*dict.fromkeys(table.row)], "what": none["difference"]}), differences]
    figure, axes = panels(2, 9, 2 * table.row.nunique())
    said = forest(axes[0], table, "share", "share of answers that keep a caution or refusal", None, "policy",
                  ("PT-DPO", "plain DPO"))  # fmt: skip
    label, order = "PT-DPO: difference of that share", [*same.values(), *none.values()]
    said += " " + forest(axes[1], pd.concat(rows, ignore_index=True), "value", label, 0, "what", order)
    axes[0].legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    axes[1].legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    head(figure, basis(table))
    return figure, said


def plot_ratings(ratings: pd.DataFrame) -> Drawn:
    """Draw what people rated: shares of the values 1 to 5, and means."""
    table = named(ratings[ratings.n_1.notna()], "study", "question", "group")
    counts = table.set_index("row").rename(columns={f"n_{value}": str(value) for value in SCALE})
    figure, axes = panels(2, 8, len(table), width_ratios=(1.3, 1))
    said = bars(axes[0], counts, VALUES, "% of ratings")
    said += " " + forest(axes[1], table, "mean", "mean, 1 to 5", None, "group")
    raters = f"{int(table.n_raters.max())} raters"
    head(figure, f"{raters}, n = {table.n.min():.0f} to {table.n.max():.0f}; 95 % intervals", axes[0])
    return figure, f"{raters}. {said}"


# --- files ---


@dataclass(frozen=True)
class FigureKind:
    """One figure: its tables, how it is drawn, and its caption."""

    tables: tuple[str, ...]
    plot: Callable[..., Drawn]
    caption: str


FIGURES = {
    "main": FigureKind(("main", "paper"), plot_main, "PT-DPO against DPO that is told the persona"),
    "length": FigureKind(("length",), plot_length, "Net win rates with the answers' length held equal"),
    "persona_accuracy": FigureKind(("persona_accuracy",), plot_accuracy, "Persona accuracy"),
    "persona_models": FigureKind(("persona_models",), plot_accuracy,
                                 "Persona accuracy by the model that wrote the personas"),
    "persona_preference": FigureKind(("persona_preference",), plot_preference,
                                     "Which persona is the more plausible user"),
    "swap": FigureKind(("swap",), plot_swap, "Persona swap: does the preference follow the persona?"),
    "released_flip": FigureKind(("released_flip",), plot_released_flip,
                                "Persona flip of the authors' released answers"),
    "released_safety": FigureKind(("released_safety", "released_safety_pairs"), plot_safety,
                                  "Which of the authors' released answers keep a caution or refusal"),
    "safety": FigureKind(("safety", "safety_pairs"), plot_safety,
                         "Which answers of this run keep a caution or refusal"),
    "ratings": FigureKind(("ratings",), plot_ratings, "Ratings of personas and answers"),
    "training": FigureKind((), plot_training, "Losses and margins of training"),
}  # fmt: skip
RESULTS = ("main", "length", "persona_accuracy", "persona_preference", "swap")  # of notebook 12


def drawn_with(plot: Callable[..., Drawn], arguments: Sequence[Any]) -> Drawn:
    """Draw a figure in our style, whatever style the user has set."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        return plot(*arguments)


def draw(name: str, paths: Sequence[Path]) -> Drawn:
    """Draw a figure from the CSV files of its tables."""
    import pandas as pd

    return drawn_with(FIGURES[name].plot, [pd.read_csv(path) for path in paths])


def write(figure: Any, alt: str, target: Any, kind: str) -> None:
    """Write a figure as PDF or PNG without dates and versions; a PNG carries its alt text."""
    import matplotlib.style

    none = dict.fromkeys(("CreationDate", "Creator", "Producer"))
    metadata = {"Software": None, "Description": alt} if kind == "png" else none
    with matplotlib.style.context(["default", STYLE]):
        figure.savefig(target, format=kind, dpi=DPI, metadata=metadata)


def save(drawn: Drawn, folder: Path, name: str) -> list[Path]:
    """Save a figure as PDF and PNG and return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in KINDS]
    for path, kind in zip(paths, KINDS, strict=True):
        write(*drawn, path, kind)
    return paths


def figure_inputs(profile: Profile, name: str) -> list[Path]:
    """Return the CSV files that a figure of a profile is drawn from."""
    return [table_path(profile, table) for table in FIGURES[name].tables]


def save_figures(profile: Profile, names: Sequence[str] = RESULTS) -> dict[str, Path]:
    """Draw the figures whose tables are there; returns the PNGs. Older files of the others are removed."""
    drawn = {}
    for name in names:
        paths = figure_inputs(profile, name)
        if all(path.exists() for path in paths):
            drawn[name] = save(draw(name, paths), figures_dir(profile), name)[1]
        else:
            for kind in KINDS:
                (figures_dir(profile) / f"{name}.{kind}").unlink(missing_ok=True)
    return drawn


def alt_text(profile: Profile, name: str) -> str:
    """Say in words what a saved figure of a profile shows; "" for a file that carries no words."""
    from PIL import Image

    with Image.open(figures_dir(profile) / f"{name}.png") as picture:
        return picture.info.get("Description", "")


def image(profile: Profile, name: str) -> Any:
    """Return a saved figure with its alt text for a notebook; None if there is none."""
    from IPython.display import Image

    path = figures_dir(profile) / f"{name}.png"
    return Image(path, alt=alt_text(profile, name)) if path.exists() else None


def picture(name: str, *tables: pd.DataFrame) -> Any:
    """Draw a figure from tables at hand, for a notebook; None without rows. No file is written."""
    return None if tables[-1].empty else shown(drawn_with(FIGURES[name].plot, tables))


def points(
    table: pd.DataFrame, name: str, columns: Sequence[str], label: str, null: float = 0, series: str = ""
) -> Any:
    """Draw any table of estimates with intervals, for a notebook; ``columns`` name the rows."""
    return (
        None if table.empty else shown(drawn_with(plot_points, (table, name, columns, label, null, series)))
    )


def shown(drawn: Drawn) -> Any:
    """Return a figure with its alt text for a notebook."""
    from IPython.display import Image

    target = BytesIO()
    write(*drawn, target, "png")
    return Image(target.getvalue(), alt=drawn[1])
