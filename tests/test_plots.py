"""Figures: drawn from CSV files alone, the same bytes each time, not blank, readable in grey and in words."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from persona_lib import figures, settings
from persona_lib.beyond import claims
from persona_lib.paper import results
from persona_lib.settings import load_profile


def with_limits(name, values, width=0.1):
    """Columns of an estimate with its limits."""
    values = np.array(values, dtype=float)
    return {name: values, f"{name}_low": values - width, f"{name}_high": values + width}


def judged_rows(labels, **more):
    """Rows like those of the main table."""
    n = len(labels)
    counts = {f"{rubric}_{verdict}": [10 * (place + 1)] * n
              for rubric in "pq" for place, verdict in enumerate(("win", "tie", "loss"))}  # fmt: skip
    return pd.DataFrame({"dataset": "everyday", "kind": "main", "label": labels, "n": 60, "n_seeds": 2,
                         **counts, **with_limits("dpq", range(n), 5), **more})  # fmt: skip


def length_rows(labels):
    """Rows like those of the length table."""
    rubrics = pd.DataFrame({"rubric": ["personalization", "quality"]})
    values = with_limits("net", 0.5) | with_limits("net_matched", 0.2) | with_limits("net_controlled", 0.3)
    return judged_rows(labels).merge(rubrics, how="cross").assign(**values)


def swap_row(arm, persona, value):
    """A row like those of the swap table."""
    names = {"dataset": "hhh", "measure": "policy", "persona": persona, "arm": arm, "persona_format": "line"}
    limits = {"d_positive": value, "d_positive_low": value - 0.04, "d_positive_high": value + 0.04}
    others = {"flip": 0.3, "flip_low": 0.2, "flip_high": 0.4, "acc_chosen": 0.6, "acc_rejected": 0.4}
    return names | limits | others | {"n": 500, "n_seeds": 3, "seeds": "0 1 2"}


def tables():
    """A small table of each kind that figures are drawn from."""
    sides = pd.DataFrame({"dataset": "everyday", "side": ["chosen", "rejected"]})
    average = judged_rows(["average"], kind="average", dataset="all")
    average[["p_win", "p_tie", "p_loss", "q_win", "q_tie", "q_loss", "n"]] = np.nan
    parts = [("dpo-chosen", "gold", 0.8), ("dpo-chosen", "shuffled", 0.5), ("dpo-none", "gold", 0.5)]
    return {
        "main": pd.concat([judged_rows(["gold-chosen", "gold-rejected"]), average.assign(n=120)]),
        "paper": claims.reanalysed(),
        "length": length_rows(["gold-chosen", "gold-rejected"]),
        "persona_accuracy": sides.assign(
            split="test", n=40, n_seeds=2, seeds="0 1", n_correct=30, n_ties=4, n_wrong=6, n_unparsed=0,
            n_missing=0, **with_limits("accuracy", [0.9, 0.7]),
        ),
        "persona_preference": pd.DataFrame({"dataset": ["everyday"], "win": 6, "tie": 1, "loss": 3, "n": 10,
                                            "n_seeds": 1, **with_limits("net", [0.33])}),
        "swap": pd.DataFrame([swap_row(*part) for part in parts]),
        "words": sides.assign(word=["null", "terse"], n_chosen=[9, 1], n_rejected=[2, 8], z=[2.5, -2.0]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    """A results folder in which all tables are; made once and copied."""
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_RESULTS", str(folder))
        for name, table in tables().items():
            results.save_table(load_profile("smoke"), name, table)
    return folder


@pytest.fixture
def profile(saved_once, tmp_path, monkeypatch):
    """A profile whose tables are all there, in a temporary folder."""
    shutil.copytree(saved_once, tmp_path / "results")
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PERSONA_FIGURES", str(tmp_path / "figures"))
    return load_profile("smoke")


def grey(path):
    """A PNG's pixels as lightness from 0 to 1, shape (rows, columns)."""
    from matplotlib.image import imread

    return imread(path)[..., :3] @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "main" else pytest.mark.slow)
        for name in figures.FIGURES
        if name not in figures.ELSEWHERE
    ],
)
def test_a_figure_is_saved_as_pdf_and_png_and_is_not_blank(profile, tmp_path, name):
    paths = figures.save(figures.draw(name, figures.figure_inputs(profile, name)), tmp_path / "out", name)
    assert [path.suffix for path in paths] == [".pdf", ".png"]
    assert paths[0].read_bytes().startswith(b"%PDF")
    pixels = grey(paths[1])
    assert (pixels < 0.5).mean() > 0.005 and (pixels > 0.95).mean() > 0.3


@pytest.fixture
def two_figures(monkeypatch):
    """Draw only two of the figures: drawing takes most of a test's time."""
    kept = {name: kind for name, kind in figures.FIGURES.items() if name in ("main", "swap")}
    monkeypatch.setattr(figures, "FIGURES", kept)


@pytest.mark.slow
def test_equal_tables_give_equal_bytes_whatever_the_users_settings(profile, two_figures):
    import matplotlib

    first = figures.save_figures(profile)
    before = {path: path.read_bytes() for path in first["main"].parent.iterdir()}
    assert len(before) == 4
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        figures.save_figures(profile)
    assert {path: path.read_bytes() for path in before} == before


def test_drawing_leaves_no_state_behind(profile):
    import matplotlib.pyplot as plt

    with plt.rc_context({"axes.spines.top": True, "font.size": 11.5}):
        before, open_figures = dict(plt.rcParams), plt.get_fignums()
        figures.draw("persona_preference", figures.figure_inputs(profile, "persona_preference"))
        assert plt.get_fignums() == open_figures
        assert dict(plt.rcParams) == before


@pytest.mark.slow
def test_a_figure_without_its_table_is_not_drawn_and_an_old_one_goes(profile, two_figures):
    old = settings.figures_dir(profile) / "swap.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    results.table_path(profile, "swap").unlink()
    assert set(figures.save_figures(profile)) == {"main"}
    assert not old.exists()
    with pytest.raises(FileNotFoundError, match=r"swap.csv: figure swap is drawn from it"):
        figures.draw("swap", figures.figure_inputs(profile, "swap"))


def test_verdicts_and_sides_differ_in_grey_by_lightness_or_hatch():
    from matplotlib.colors import to_rgb

    for looks in (figures.VERDICTS, figures.SIDES):
        seen = [
            (round(float(np.dot(to_rgb(c), (0.299, 0.587, 0.114))), 1), hatch) for c, hatch in looks.values()
        ]
        assert len(set(seen)) == len(seen)
    assert len({marker for _, marker in figures.FAMILIES.values()}) == len(figures.FAMILIES)


def test_swaps_without_any_defined_difference_are_said_to_be_so_not_an_error():
    table = pd.DataFrame([swap_row("dpo-chosen", "gold", np.nan)])
    (axis,) = figures.plot_swap_results(table).axes
    assert "no D is defined" in axis.texts[0].get_text()


@pytest.mark.slow
def test_undefined_scores_are_drawn_as_gaps_not_errors(profile, tmp_path):
    table = judged_rows(["gold-chosen", "gold-rejected"])
    table.loc[0, ["dpq", "dpq_low", "dpq_high"]] = np.nan
    results.save_table(profile, "main", table)
    figure = figures.draw("main", figures.figure_inputs(profile, "main"))
    assert figures.save(figure, tmp_path / "out", "main")[1].exists()
    assert "gold-chosen: ;" in figures.alt_text(profile, "main")
