"""What personas are like as texts: by hand on small sets, and the facts known of the authors' own."""

from __future__ import annotations

import math

import pytest

from persona_lib.paper import personas
from persona_lib.paper.personas import persona_text_table
from persona_lib.records import InferredPersona
from persona_lib.settings import Run, load_profile, set_field
from persona_lib.store import write_rows
from persona_lib.texts import measures

TEXTS = {
    "chosen": {"a": "The user is calm and prefers tea rather than rum.", "b": "I'm sorry, I can't help."},
    "rejected": {
        "a": "The user is an elderly woman who prefers rum.",
        "b": "The user is calm and prefers tea.",
    },
}


def test_measures_of_one_answer():
    found = measures(TEXTS["chosen"]["a"])
    assert found["persona"] == found["strict_form"] == found["contrastive"] == 1.0 and found["words"] == 10
    refused = measures(TEXTS["chosen"]["b"])
    assert (refused["persona"], refused["refusal"]) == (0.0, 1.0) and math.isnan(refused["words"])
    assert measures(None)["empty"] == 1.0 and measures("Someone calm.")["malformed"] == 1.0
    other = measures(TEXTS["rejected"]["a"])
    assert (other["strict_form"], other["contrastive"]) == (0.0, 0.0)


def test_the_table_counts_refusals_and_pairs_the_sides():
    table = personas.text_table([TEXTS], n_resamples=50).set_index(["measure", "side"])
    assert table.loc[("refusal", "chosen"), "value"] == 0.5 and table.loc[("refusal", "chosen"), "n"] == 2
    assert table.loc[("words", "chosen"), "n"] == 1 and table.loc[("words", "rejected"), "value"] == 8.0
    gap = table.loc[("words", "chosen - rejected")]
    assert (gap["value"], gap["n"]) == (10 - 9, 1), "paired: only a has a persona on both sides"
    assert personas.text_table([], 50).empty


def test_a_runs_personas_are_pooled_over_seeds(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    profile = set_field(load_profile("smoke"), seeds=(0, 1, 2), bootstrap_samples=20)
    for seed in (0, 1):  # the third has not run
        folder = Run(profile, "everyday", seed).folder / "personas"
        for side, texts in TEXTS.items():
            rows = [InferredPersona(i, side, "hand", None, "", text) for i, text in texts.items()]
            write_rows(folder / f"test-{side}.jsonl", rows)
    table = persona_text_table(profile).set_index(["measure", "side"])
    assert table.loc[("refusal", "chosen"), ["n", "n_seeds", "value"]].tolist() == [4, 2, 0.5]
    assert personas.run_table(Run(profile, "everyday", 2)).empty
    assert len(personas.run_table(Run(profile, "everyday", 0))) == len(table)


@pytest.mark.slow
def test_the_authors_personas_have_the_form_contrast_and_refusals_that_are_known(official_data, monkeypatch):
    monkeypatch.setenv("PERSONA_DATA", str(official_data))
    profile = set_field(load_profile("authors"), bootstrap_samples=20)
    found = personas.released_tables(profile)
    table = found["released_personas"].set_index(["dataset", "measure", "side"]).value
    assert table["beavertails", "strict_form", "chosen"] == pytest.approx(0.51, abs=0.02)
    assert table["beavertails", "strict_form", "rejected"] == pytest.approx(0.42, abs=0.02)
    assert table["hhh", "strict_form", "chosen"] == pytest.approx(0.06, abs=0.02)
    for dataset in ("beavertails", "hhh"):
        for side in ("chosen", "rejected"):
            assert 0.5 < table[dataset, "contrastive", side] < 0.82
    none = sum(table["beavertails", kind, "rejected"] for kind in ("refusal", "malformed", "empty"))
    assert round(none * 2948) == 5  # of 977 + 244 + 982 + 246 + 499 rows
    words = found["released_words"]
    assert set(words.dataset) == {"beavertails", "hhh"} and (words.p_holm < 0.05).any()
