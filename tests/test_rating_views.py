"""What a reader of the rating notebook sees and clicks: sheets, buttons, tables and the figure."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_results import fill_run

from persona_lib.config import Run, load_profile, set_field
from persona_lib.drawing import rating_plots
from persona_lib.evaluation import rating_sheets as sheets
from persona_lib.evaluation import ratings
from persona_lib.reading import rater_widget, show_ratings
from persona_lib.store import write_text


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """A profile whose sheets were exported and filled by simulated raters: (profile, files, ratings)."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_RESULTS", str(folder))
        patch.setenv("PERSONA_FIGURES", str(folder / "figures"))
        profile = set_field(load_profile("smoke"), pair_limit=12, eval_limit=0, bootstrap_samples=20)
        fill_run(Run(profile, "everyday", 0))
        written = show_ratings.export_studies(profile)
        yield profile, written, show_ratings.collect(profile, written)


def a_sheet(folder: Path) -> Path:
    """A blank sheet of two answers with markup in a text."""
    items = [sheets.Item("d", "u", "p", g, ("q?", "calm", "<b>1</b>\n2")) for g in ("PT-DPO", "DPO")]
    key = sheets.make_key("answers", items, ["rater-1"], 1)
    return sheets.export("answers", key, folder / "sheets", folder / "keys", ["rater-1"])[0]


def parts(widget, kind: str) -> list:
    """All parts of a widget of one class."""
    below = [part for child in getattr(widget, "children", ()) for part in parts(child, kind)]
    return [widget] * (type(widget).__name__ == kind) + below


def values(sheet: Path) -> list[tuple[str, str]]:
    return [(row["answerability"], row["personalization"]) for row in ratings.open_csv(sheet)[1]]


def test_every_click_is_saved_and_a_new_start_goes_on_at_the_first_open_item(tmp_path):
    sheet = a_sheet(tmp_path)
    widget = rater_widget.rater(sheet)
    first, second = parts(widget, "ToggleButtons")
    back, onward = parts(widget, "Button")
    first.value = 4
    assert values(sheet) == [("4", ""), ("", "")]
    second.value = 2
    onward.click()
    assert (first.value, second.value) == (None, None), "the next item shows no rating of the last one"
    assert values(sheet) == [("4", "2"), ("", "")]
    first.value = 5
    onward.click()  # there is no third item
    assert values(sheet) == [("4", "2"), ("5", "")]
    back.click()
    assert (first.value, second.value) == (4, 2)
    second.value = None
    assert values(sheet) == [("4", ""), ("5", "")]
    second.value = 3
    again = rater_widget.rater(sheet)
    assert [button.value for button in parts(again, "ToggleButtons")] == [5, None]
    assert not (tmp_path / "keys" / sheet.name).exists() and len(list((tmp_path / "sheets").iterdir())) == 2


def test_the_widget_and_its_still_show_texts_as_text(tmp_path):
    sheet = a_sheet(tmp_path)
    for shown in (rater_widget.still(sheet), parts(rater_widget.rater(sheet), "HTML")[0].value):
        assert "&lt;b&gt;1&lt;/b&gt;\n2" in shown and "<b>1</b>" not in shown
        assert "DPO" not in shown, "the system is hidden here, too"


def test_both_studies_are_exported_and_what_raters_get_tells_neither_side_nor_system(rated):
    profile, written, _ = rated
    table = show_ratings.export_table(written).set_index("study")
    assert table.loc["personas", ["items", "raters", "ratings per item"]].tolist() == [24, 3, 3.0]
    assert table.loc["answers", "raters"] == 8 and table.loc["answers", "ratings per item"] == 2.0
    secrets = ("PT-DPO", "dpo-", "gold-", "user-chosen", "user-rejected", "everyday", "seed-0")
    for path in (show_ratings.folder_of(profile) / "for_raters").rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in secrets if word in text], path
        assert not {"chosen", "rejected"} & set(text.lower().split()), path


def test_people_and_simulated_raters_are_told_apart_everywhere(rated, tmp_path):
    profile, written, filled = rated
    assert "SIMULATED" in show_ratings.who_rated(filled)
    tables = show_ratings.save_tables(profile, filled)
    assert set(tables["ratings"].raters) == {"simulated"}
    assert "SIMULATED" in rating_plots.alt_ratings(tables["ratings"])
    sheet = written["answers"][0]
    write_text(tmp_path / "real" / "anna.csv", sheet.read_text(encoding="utf-8"))
    people = show_ratings.collect(profile, written, str(tmp_path / "real"))
    assert "Rated by people" in show_ratings.who_rated(people) and set(people) == {"answers"}
    empty = show_ratings.save_tables(profile, people)["ratings"]
    assert set(empty.raters) == {"people"} and empty["mean"].isna().all()
    assert "nothing to rate" in show_ratings.who_rated({})
    assert show_ratings.save_tables(profile, {}) == {}
    assert not (show_ratings.results_dir(profile) / "tables" / "ratings.csv").exists()
