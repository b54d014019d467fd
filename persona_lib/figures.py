"""The figures: three kinds of drawing (bars, forest, curve), from tables only, each with its words.

``FIGURES`` lists them: a function brings the saved tables into one form (a line per estimate: ``row`` on the
left, ``series`` has its own mark), panels draw its columns and return words, the PNG's alt text. Colours are
Okabe and Ito's; hatch, marker and lightness tell them apart in grey. Intervals are 95 % intervals. Equal
tables give equal bytes: no dates, no versions, no state of a plotting library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from persona_lib.beyond import claims, ratings, released
from persona_lib.paper.results import read_table
from persona_lib.records import SIDES, Table, stacked
from persona_lib.settings import Profile, figures_dir
from persona_lib.show import ENDS, in_words, number, owner_of, title_of, with_interval

BLUE, ORANGE, GREEN, SKY, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#BBBBBB"
MARKS = (  # of series: colour, marker, filling
    (BLUE, "o", BLUE), (ORANGE, "s", ORANGE), (RED, "D", "white"), (GREEN, "^", GREEN),
    ("#000000", "x", "none"), (SKY, "v", SKY), (GREY, "P", GREY),
)  # fmt: skip
LOOKS = {  # of the parts of bars: colour, hatch
    "win": (BLUE, ""), "tie": ("#F0F0F0", ""), "contradicted": (GREY, "xxx"), "loss": (ORANGE, "///"),
    "chosen": (BLUE, ""), "rejected": (ORANGE, "///"),
    "1": ("#F7F7F7", ""), "2": ("#D1E5F0", ""), "3": ("#92C5DE", ""), "4": ("#4393C3", ""),
    "5": ("#2166AC", ""),
}  # fmt: skip
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6,
    "legend.frameon": False, "figure.constrained_layout.use": True, "svg.hashsalt": "persona_lib",
}  # fmt: skip
PAPER = "paper's own numbers"  # a series
BOX = {"fc": "white", "ec": "none", "pad": 0.8}  # behind a number
DPI = 201  # of the PNG; a notebook shows it at half the size
KINDS = {  # of file: what is not written into it, so that equal tables give equal bytes
    "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")), "png": {"Software": None},
    "svg": dict.fromkeys(("Date", "Creator")),
}  # fmt: skip


def bars(axis: Any, table: Table, columns: Mapping[str, str], label: str) -> str:
    """Draw counts as stacked bars in per cent, a bar per line; ``columns``: column -> part (of ``LOOKS``)."""
    counts = table.set_index("row")[list(columns)].rename(columns=columns).astype(float)
    shares = (100 * counts.div(counts.sum(axis=1), axis=0)).where(counts > 0)  # no edge of no width
    shares = shares.dropna(axis=1, how="all")  # and no legend of a part that nothing has
    left = shares.fillna(0).cumsum(axis=1) - shares.fillna(0)
    for part in shares:
        colour, hatch = LOOKS[part]
        drawn = axis.barh(range(len(shares)), shares[part], 0.72, left[part], color=colour, hatch=hatch,
                          edgecolor="0.3", linewidth=0.4, label=part)  # fmt: skip
        numbers = [f"{value:.0f}" if value >= 12 else "" for value in shares[part]]
        axis.bar_label(drawn, numbers, label_type="center", fontsize=7, bbox=BOX)
    axis.set_xlim(0, 100)
    line_up(axis, list(shares.index), label)
    words = [
        f"{name}: " + ", ".join(f"{part} {value:.0f}" for part, value in row.items())
        for name, row in shares.dropna(how="all").fillna(0).iterrows()
    ]
    return f"Stacked bars, {label}. {'; '.join(words)}."


def forest(axis: Any, table: Table, name: str, label: str, null: float | None = None) -> str:
    """Draw estimates ``name`` with intervals: a mark per series, a dotted line at ``null``, a gap for NaN."""
    rows, marks = list(dict.fromkeys(table.row)), dict(zip(dict.fromkeys(table.series), MARKS, strict=False))
    table = table.dropna(subset=name)
    beside = table.groupby("row").row  # marks of one row stand below each other
    shift = 0.7 * ((beside.cumcount() + 0.5) / beside.transform("size") - 0.5)
    table = table.assign(place=table.row.map(rows.index).astype(float) + shift)
    for place in range(0, len(rows), 2):
        axis.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
    if null is not None:
        axis.axvline(null, color="0.4", linestyle=":", linewidth=1, zorder=1)
    for series, part in table.groupby("series", sort=False):
        colour, marker, face = marks[series]
        sides = [part[name] - part[f"{name}_low"], part[f"{name}_high"] - part[name]]
        axis.errorbar(part[name], part.place, xerr=np.nan_to_num(np.clip(sides, 0, None)), fmt=marker,
                      color=colour, mfc=face, capsize=2, markersize=5, label=series or "_")  # fmt: skip
    line_up(axis, rows, label)
    words = []
    for line in table.to_dict("records"):
        value, low, high = (number(line[f"{name}{end}"]) for end in ENDS)
        named = ", ".join(filter(None, [line["row"], line["series"]]))
        words.append(f"{named}: {value} ({low} to {high})" if low else f"{named}: {value}")
    return f"Points with 95 % intervals, {label}. {'; '.join(words)}."


def curve(axis: Any, table: Table, name: str, label: str) -> str:
    """Draw ``name`` by step, a colour per arm: solid on validation rows, dotted on training rows."""
    words, marks = [], dict(zip(dict.fromkeys(table.series), MARKS, strict=False))
    for (arm, rows), part in table.dropna(subset=name).groupby(["series", "row"], sort=False):
        colour, marker, face = marks[arm]
        look = {"marker": marker, "mfc": face, "label": arm}
        look = {"marker": ".", "ls": ":"} if rows == "training" else look
        axis.plot(part.step, part[name], color=colour, markersize=5, **look)
        words.append(f"{arm}, {rows}: " + ", ".join(f"{value:.2f}" for value in part[name]))
    axis.set(xlabel="optimiser step", ylabel=f"{label} (dotted: training)", xlim=(0, 1.03 * table.step.max()))
    return f"Lines, {label} by step. {'; '.join(words)}."


def line_up(axis: Any, rows: Sequence[str], label: str) -> None:
    """Name the rows on the left of the first panel, the first row on top."""
    first = axis.get_subplotspec().is_first_col()
    axis.set_yticks(range(len(rows)), rows if first else [""] * len(rows))
    axis.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(label)


def named(table: Table, *columns: str, series: str = "") -> Table:
    """Add ``row``, some columns' texts (with the data set if there are several), and ``series``, a column."""
    several = "dataset" in table and len({*table.dataset} - {"all"}) > 1
    kept = [*(["dataset"] if several else []), *columns]
    rows = [
        ", ".join(title_of(str(value)).replace("_", " ") for value in row if value not in ("all", ""))
        for row in table[kept].itertuples(index=False)
    ]
    return table.assign(row=rows, series=table[series] if series else "")


def melted(table: Table, columns: Mapping[str, str]) -> Table:
    """Return the estimates of several columns as lines: ``value`` with its limits; ``series`` is the name."""
    parts = [
        table.assign(series=name, **{f"value{end}": table[f"{column}{end}"] for end in ENDS})
        for column, name in columns.items()
    ]
    return stacked(parts)


def basis(table: Table) -> str:
    """Say whose data a table is of, over how many seeds or raters, and n; nothing of curves."""
    if table.empty or "step" in table:
        return "no estimate is defined" if table.empty else ""
    table = table[table.series != PAPER]
    datasets = table.dataset if "dataset" in table else ()
    words = [" and ".join(dict.fromkeys(owner_of(name) for name in datasets if name != "all"))]
    for unit in ("seed", "rater"):
        if f"n_{unit}s" in table:
            most = int(table[f"n_{unit}s"].max())
            words.append(f"{most} {unit}{'s' * (most > 1)}")
    sizes = dict.fromkeys(f"{n:.0f}" for n in (table.n.min(), table.n.max()))
    return ", ".join([*filter(None, words), f"n = {' to '.join(sizes)}"]) + "; 95 % intervals"


def beside_paper(main: Table, paper: Table) -> Table:
    """Return our judged rows and the paper's, whose ties hold contradicted pairs; ours leave them out."""
    parts = [named(main, "label").assign(series="this run"), named(paper, "label")]
    parts[1] = parts[1].assign(series=PAPER, row="paper: " + parts[1].row)
    table = stacked(parts)
    for short in "pq":
        table[f"{short}_contradicted"] = table.get(f"{short}_inconsistent", 0 * table.n).fillna(0)
        table[f"{short}_tie"] -= table[f"{short}_contradicted"]
    sizes = ["" if np.isnan(n) else f", n = {n:.0f}" for n in table.n.astype(float)]
    return table.assign(row=table.row + sizes)


def caution_lines(shares: Table, pairs: Table) -> Table:
    """Return the shares of answers that keep a caution, and paired differences of two policies."""
    plain = shares.arm.str.endswith("-none")
    told = (shares.eval_persona == "none") | (shares.persona_format == "first_person") | ~plain
    same = {"difference": "minus plain DPO told the same", "difference_cut": "the same, at equal length"}
    table = stacked([
        shares.assign(series=np.where(plain, "plain DPO", "PT-DPO"))[told],
        melted(pairs[pairs.shows == "same persona"], same),
        melted(pairs[pairs.shows == "tailored"], {"difference": "minus plain DPO without a persona"}),
    ])  # fmt: skip
    return named(table, "eval_persona", series="series")


@dataclass(frozen=True)
class Figure:
    """One figure: its message (or what says it of its lines), tables, what makes lines of them, panels."""

    message: str | Callable[[Table], str]
    tables: tuple[str, ...]
    lines: Callable[..., Table]
    panels: tuple[Callable[[Any, Table], str], ...]


def verdict_bars(short: str, rubric: str) -> Callable[..., str]:
    """Return the panel of a rubric's verdicts."""
    parts = {f"{short}_{verdict}": verdict for verdict in ("win", "tie", "contradicted", "loss")}
    return partial(bars, columns=parts, label=f"{rubric}, % of comparisons")


def found(table: Table, name: str, **where: str) -> str:
    """Return the estimates of the rows with these values, joined by "and"; "?" if there are none."""
    said = [with_interval(row, name) for row in claims.pick(table, where).to_dict("records")]
    return " and ".join(filter(None, said)) or "?"


def clear_of(what: str, name: str) -> Callable[[Table], str]:
    """Return a message: how many intervals of ``name`` lie above 0, and how many below."""
    low, high = f"{name}_low", f"{name}_high"
    return lambda rows: (
        f"{what}:\n{sum(rows[low] > 0)} of {rows[low].count()} intervals above 0, {sum(rows[high] < 0)} below"
    )


CAUTIONS = (
    partial(forest, name="share", label="share of answers that keep a caution or refusal"),
    partial(forest, name="value", label="PT-DPO: difference of that share", null=0),
)
FIGURES = {
    "main": Figure(
        lambda table: "PT-DPO against plain DPO that is told the same persona: average dPQ "
                      f"{found(table[table.p_win.isna()], 'dpq', series='this run')}, the paper's "
                      f"{found(table[table.p_win.isna()], 'dpq', series=PAPER)}",
        ("main", "paper"), beside_paper,
        (verdict_bars("p", "personalization"), verdict_bars("q", "quality"),
         partial(forest, name="dpq", label="dPQ", null=0)),
    ),
    "length": Figure(
        clear_of("PT-DPO's net win rates at equal length of the answers", "net_controlled"), ("length",),
        lambda table: named(table[table.kind == "main"], "label", series="rubric"),
        (partial(forest, name="net", label="net win rate, all pairs", null=0),
         partial(forest, name="net_controlled", label="net win rate at equal length (model)", null=0)),
    ),
    "persona_accuracy": Figure(
        lambda table: f"A judge matches {found(table, 'accuracy', side='chosen')} of personas of chosen"
                      f"\nand {found(table, 'accuracy', side='rejected')} of rejected responses to them",
        ("persona_accuracy",),
        lambda table: named(table[table.side.isin(SIDES)], "split", series="side"),
        (partial(forest, name="accuracy", label="persona accuracy (chance: .5)", null=0.5),),
    ),
    "persona_preference": Figure(
        clear_of("Net win of the chosen response's persona as likelier user", "net"), ("persona_preference",),
        lambda table: named(table, "split"),
        (partial(bars, columns={"win": "chosen", "tie": "tie", "loss": "rejected"},
                 label="% of pairs whose likelier user has the persona"),
         partial(forest, name="net", label="net for chosen", null=0)),
    ),
    "swap": Figure(
        lambda table: "A persona moves PT-DPO's preference towards its user's response\n"
                      f"in {found(table, 'd_positive', persona='gold', who='PT-DPO')} of rows, "
                      "plain DPO's\nin "
                      + found(table, "d_positive", persona="gold", who="plain DPO, told the persona"),
        ("swap",),
        lambda table: named(in_words(table[(table.measure == "policy") & table.d_positive.notna()]),
                            "who", series="persona"),
        (partial(forest, name="d_positive", label="share of rows moved (chance: .5)", null=0.5),),
    ),
    "released_flip": Figure(
        clear_of("How far the authors' released answers follow the persona (DiD)", "did"), ("released_flip",),
        lambda table: named(table.assign(policy=table.arm.map(released.ARMS)), "personas", series="policy"),
        (partial(forest, name="flip", label="share of rows that flip"),
         partial(forest, name="did", label="DiD (unigram F1)", null=0)),
    ),
    "released_safety": Figure(
        clear_of("Cautions and refusals in the authors' released answers, PT-DPO minus plain DPO", "value"),
        ("released_safety", "released_safety_pairs"), caution_lines, CAUTIONS),
    "safety": Figure(
        clear_of("Cautions and refusals in this run's answers, PT-DPO minus plain DPO", "value"),
        ("safety", "safety_pairs"), caution_lines, CAUTIONS),
    "ratings": Figure(
        "Ratings of personas and answers", ("ratings",),
        lambda table: named(table[table.n_1.notna()], "study", "question", "group"),
        (partial(bars, columns={f"n_{value}": str(value) for value in ratings.SCALE}, label="% of ratings"),
         partial(forest, name="mean", label="mean, 1 to 5")),
    ),
    "sft": Figure("Loss of SFT by step", (), lambda log: log,
                  (partial(curve, name="loss", label="loss"),)),
    "dpo": Figure("Reward margin of DPO by step, from 0", (), lambda log: log,
                  (partial(curve, name="margin", label="reward margin"),)),
}  # fmt: skip
RESULTS = ("main", "length", "persona_accuracy", "persona_preference", "swap")  # of notebook 12


def draw(kind: Figure, *tables: Table) -> tuple[dict[str, bytes], str]:
    """Return a figure by kind of file, in our style whatever the user has set, and its words (in the PNG)."""
    import matplotlib.style
    from matplotlib import figure
    from PIL import Image, PngImagePlugin

    table, files = kind.lines(*tables), {name: BytesIO() for name in KINDS}
    with matplotlib.style.context(["default", STYLE]):
        lines = 7 if "step" in table else len(table[["row", "series"]].drop_duplicates())
        drawn = figure.Figure(figsize=(4 + 2 * len(kind.panels), 1.5 + 0.24 * lines))
        axes = drawn.subplots(1, len(kind.panels), squeeze=False)[0]
        said = [panel(axis, table) for panel, axis in zip(kind.panels, axes, strict=True)]
        message = kind.message(table) if callable(kind.message) else kind.message
        title = f"{message}\n{basis(table)}".strip()
        marks: dict[str, Any] = {}
        for axis in axes:
            marks |= {name: mark for mark, name in zip(*axis.get_legend_handles_labels(), strict=True)}
        ncols = 3 if len("".join(marks)) > 60 else 7
        drawn.legend([*marks.values()], [*marks], loc="outside upper center", ncols=ncols, title=title)
        for name, file in files.items():
            drawn.savefig(file, format=name, dpi=DPI, metadata=KINDS[name])
    title = ": ".join(filter(None, [message.replace("\n", " "), basis(table)]))
    alt, words = " ".join([f"{title}.", *said]), PngImagePlugin.PngInfo()
    words.add_itxt("Description", alt)
    few = Image.open(files["png"]).convert("RGB").quantize(48)  # colours: a third of the size
    few.save(png := BytesIO(), "png", optimize=True, pnginfo=words, dpi=(DPI, DPI))
    return {name: (png if name == "png" else files[name]).getvalue() for name in KINDS}, alt


def save_figures(profile: Profile, names: Sequence[str] = RESULTS) -> dict[str, Path]:
    """Draw the figures whose tables are there; returns the PNGs. Older files of the others are removed."""
    drawn: dict[str, Path] = {}
    for name in names:
        inputs = [read_table(profile, table) for table in FIGURES[name].tables]
        there = all(map(len, inputs))
        files = draw(FIGURES[name], *inputs)[0] if there else {}
        for kind in KINDS:
            path = figures_dir(profile) / f"{name}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[kind]) if there else path.unlink(missing_ok=True)
        drawn |= {name: path.with_suffix(".png")} if there else {}
    return drawn


def image(profile: Profile, name: str) -> Any:
    """Return a saved figure with its alt text for a notebook; None if there is none."""
    from IPython.display import Image
    from PIL.Image import open as open_png

    path = figures_dir(profile) / f"{name}.png"
    if not path.exists():
        return None
    with open_png(path) as saved:
        return Image(path, alt=saved.info.get("Description", ""), retina=True)


def picture(name: str | Figure, *tables: Table) -> Any:
    """Draw a figure from tables at hand, for a notebook; None without rows. No file is written."""
    from IPython.display import Image

    if tables[-1].empty:
        return None
    files, alt = draw(FIGURES[name] if isinstance(name, str) else name, *tables)
    return Image(files["png"], alt=alt, retina=True)


def points(table: Table, name: str, column: str, label: str, null: float = 0) -> Any:
    """Draw any table of estimates with intervals, for a notebook; ``column`` names the rows."""
    panel = partial(forest, name=name, label=label, null=null)
    return picture(Figure("", (), lambda table: named(table, column), (panel,)), table)
