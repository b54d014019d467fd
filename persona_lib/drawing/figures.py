"""The figures of a profile: drawn from saved tables only, saved as PDF and PNG, described in words.

Equal tables give equal bytes: no dates, no versions, no state of a plotting library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib.config import figures_dir
from persona_lib.drawing.forest import (
    alt_forest,
    alt_length,
    alt_paper,
    plot_forest,
    plot_length,
    plot_paper,
)
from persona_lib.drawing.plots import (
    METADATA,
    SIDES,
    STYLE,
    plot_main,
    plot_persona_accuracy,
    plot_persona_models,
    plot_persona_preference,
    plot_swap,
    plot_words,
    save,
)
from persona_lib.drawing.rating_plots import alt_ratings, plot_ratings
from persona_lib.drawing.released_plots import alt_released_flip, plot_released_flip
from persona_lib.drawing.safety_plot import alt_released_safety, plot_released_safety
from persona_lib.profiles import Profile
from persona_lib.tables.cells import span, title_of
from persona_lib.tables.results import table_path

if TYPE_CHECKING:
    import pandas as pd

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
        ("swap",), plot_swap, alt_swap, "Persona swap: does the preference follow the persona?"
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
