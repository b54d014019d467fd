"""What a reader of the rating notebook sees and clicks: sheets, buttons, tables and the figure."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated_raters import fill_sheets
from tiny_results import fill_run

from persona_lib import figures, settings, show
from persona_lib.beyond import ratings
from persona_lib.settings import Run, load_profile, set_field
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
        written = show.export_studies(profile)
        for study, paths in written.items():
            fill_sheets(
                study, list(ratings.read_key(paths[-1]).values()), paths[0].parent, folder / "filled" / study
            )
        yield profile, written, show.collect(profile, str(folder / "filled"))


def a_sheet(folder: Path) -> Path:
    """A blank sheet of two answers with markup in a text."""
    items = [ratings.Item("d", "u", "p", g, ("q?", "calm", "<b>1</b>\n2")) for g in ("PT-DPO", "DPO")]
    key = ratings.make_key("answers", items, ["rater-1"], 1)
    return ratings.export("answers", key, folder / "sheets", folder / "keys", ["rater-1"])[0]


def test_an_item_is_shown_with_its_texts_as_text_and_without_its_system(tmp_path):
    shown = show.first_item({"answers": [a_sheet(tmp_path)]}, "answers")
    assert "&lt;b&gt;1&lt;/b&gt;\n2" in shown and "<b>1</b>" not in shown
    assert "DPO" not in shown, "the system is hidden here, too"


def test_both_studies_are_exported_and_what_raters_get_tells_neither_side_nor_system(rated):
    profile, written, _ = rated
    table = show.export_table(written).set_index("study")
    assert table.loc["personas", ["items", "raters", "ratings per item"]].tolist() == [24, 3, 3.0]
    assert table.loc["answers", "raters"] == 8 and table.loc["answers", "ratings per item"] == 2.0
    secrets = ("PT-DPO", "dpo-", "gold-", "user-chosen", "user-rejected", "everyday", "seed-0")
    for path in (show.folder_of(profile) / "for_raters").rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in secrets if word in text], path
        assert not {"chosen", "rejected"} & set(text.lower().split()), path


def test_filled_sheets_become_tables_and_without_any_nobody_has_rated(rated, tmp_path):
    profile, written, filled = rated
    tables = show.save_tables(profile, filled)
    assert "3 raters" in show.who_rated(filled)
    assert "24 raters" not in figures.alt_ratings(tables["ratings"])
    write_text(tmp_path / "real" / "anna.csv", written["answers"][0].read_text(encoding="utf-8"))
    people = show.collect(profile, str(tmp_path / "real"))
    assert set(people) == {"answers"}
    assert show.save_tables(profile, people)["ratings"]["mean"].isna().all()
    assert "nobody has rated" in show.who_rated(show.collect(profile))
    assert show.save_tables(profile, {}) == {}
    assert not (settings.results_dir(profile) / "tables" / "ratings.csv").exists()
