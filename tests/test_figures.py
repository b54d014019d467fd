"""Figures: drawn from CSV files alone, the same bytes each time, not blank, readable in grey and in words."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from PIL import Image
from test_show import judged_row

from persona_lib import figures, settings
from persona_lib.beyond import released
from persona_lib.paper import results
from persona_lib.settings import load_profile


def with_limits(name, values, width=0.1):
    values = np.array(values, dtype=float)
    return {name: values, f"{name}_low": values - width, f"{name}_high": values + width}


def tables():
    """A small table of each kind that figures are drawn from."""
    sides = pd.DataFrame({"dataset": "everyday", "side": ["chosen", "rejected"], "n": 40, "n_seeds": 2})
    rubrics = pd.DataFrame({"rubric": ["personalization", "quality"]})
    nets = with_limits("net", 0.2) | with_limits("net_controlled", 0.1)
    accuracy = sides.assign(**with_limits("accuracy", [0.9, 0.7]))
    arms = pd.DataFrame({"arm": ["dpo-chosen", "dpo-none"], "dataset": "beavertails", "n": 499})
    arms = arms.assign(eval_persona="gold-chosen", persona_format=["line", "first_person"])
    pairs = arms.assign(shows=["same persona", "tailored"], **with_limits("difference", -0.1))
    counts = {f"n_{value}": value for value in range(1, 6)}
    return {
        "main": pd.concat([judged_row(label="gold-chosen"), judged_row(label="gold-rejected")]),
        "paper": released.reanalysed(),
        "length": judged_row().merge(rubrics, how="cross").assign(**nets),
        "persona_accuracy": accuracy.assign(split="test"),
        "persona_preference": sides[:1].assign(split="test", win=6, tie=1, loss=3, **with_limits("net", 0.3)),
        "swap": arms.assign(measure="policy", persona=["gold", "shuffled"], **with_limits("d_positive", 0.5)),
        "released_flip": arms.assign(personas="gold", **with_limits("flip", 0.4), **with_limits("did", 0)),
        "safety": arms.assign(**with_limits("share", [0.2, 0.4])),
        "safety_pairs": pairs.assign(**with_limits("difference_cut", 0)),
        "ratings": pd.DataFrame({"study": "personas", "question": "plausibility", "n_raters": 3, "n": 40,
                                 "group": ["chosen", "rejected"], **counts, **with_limits("mean", [3, 2.5])}),
    }  # fmt: skip


@pytest.fixture
def profile(results_here):
    """A profile whose tables are all there, in a temporary folder."""
    profile = load_profile("smoke")
    for name, table in tables().items():
        results.save_table(profile, name, table)
    return profile


@pytest.mark.parametrize("name", sorted({*figures.FIGURES} & {*tables()}))
def test_a_figure_is_saved_is_not_blank_and_says_its_numbers(profile, name):
    (png,) = figures.save_figures(profile, [name]).values()
    files = {kind: png.with_suffix(f".{kind}") for kind in ("png", "pdf")}
    assert files["pdf"].read_bytes().startswith(b"%PDF")
    with Image.open(png) as drawn:
        assert min(drawn.info["dpi"]) >= 200
    grey = imread(png)[..., :3] @ np.array([0.299, 0.587, 0.114])
    assert (grey < 0.5).mean() > 0.003 and (grey > 0.95).mean() > 0.3
    assert "95 % intervals" in figures.image(profile, name).alt
    before = {kind: path.read_bytes() for kind, path in files.items()}
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        figures.save_figures(profile, [name])
    after = {kind: path.read_bytes() for kind, path in files.items()}
    assert after == before, "equal tables give equal bytes, whatever the user's settings"


def test_the_words_of_a_figure_are_its_numbers_and_what_it_is_of(profile):
    figures.save_figures(profile, ["persona_accuracy"])
    said = figures.image(profile, "persona_accuracy").alt
    assert said.startswith("A judge matches 0.90 [0.80, 1.00] of personas of chosen and 0.70 [0.60, 0.80] of")
    assert "them: our pairs, 2 seeds, n = 40; 95 % intervals. Points" in said
    svg = (settings.figures_dir(profile) / "persona_accuracy.svg").read_text()
    assert "<svg" in svg and "<script" not in svg and "<dc:date>" not in svg
    assert "test, chosen: 0.90 (0.80 to 1.00); test, rejected: 0.70 (0.60 to 0.80)" in said
    _, said = figures.draw(figures.FIGURES["main"], tables()["main"], tables()["paper"])
    assert "gold-chosen, n = 40: win 25, tie 38, contradicted 12, loss 25" in said  # 10, 20 - 5, 5, 10
    _, said = figures.draw(figures.FIGURES["safety"], tables()["safety"], tables()["safety_pairs"])
    assert "gold-chosen, plain DPO: 0.40" in said and "the same, at equal length: 0.00" in said


def test_a_figure_without_its_table_is_not_drawn_and_an_old_one_goes(profile):
    old = settings.figures_dir(profile) / "swap.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    results.table_path(profile, "swap").unlink()
    assert figures.save_figures(profile, ["swap"]) == {} and not old.exists()
    assert figures.image(profile, "swap") is None


def test_undefined_estimates_are_gaps_and_no_row_at_all_is_said_to_be_none():
    table = tables()["main"].assign(**with_limits("dpq", [np.nan, 3]))
    _, said = figures.draw(figures.FIGURES["main"], table, tables()["paper"])
    assert "gold-rejected, n = 40, this run: 3.00" in said and "gold-chosen, n = 40, this run" not in said
    assert "no estimate is defined" in figures.picture("swap", tables()["swap"].assign(d_positive=np.nan)).alt
    assert figures.picture("swap", tables()["swap"].head(0)) is None
    assert figures.points(tables()["swap"].assign(flip=np.nan), "flip", "arm", "flip").alt
