"""Persona inference by several models: each keeps its answers, all are judged alike, none is asked twice."""

import pandas as pd
import pytest

from persona_lib import studies
from persona_lib.data import everyday, reader
from persona_lib.paper import personas
from persona_lib.settings import load_profile, results_dir

SMALL = ["pair_limit=4", "persona_judge=oracle"]


class Writer:
    """Writes what it is told to, and counts how often it is asked."""

    name, settings = "writer", {"engine": "none"}

    def __init__(self, say):
        self.say, self.asked = say, 0

    def write(self, items):
        self.asked += len(items)
        return [self.say(*item) for item in items]


def true_persona(prompt, preferred, other):
    """Return the persona of the side that is preferred."""
    item = next(item for item in everyday.items() if item.prompt == prompt)
    return item.persona_a if item.response_a == preferred else item.persona_b


@pytest.fixture
def writers(tmp_path, monkeypatch):
    """Two served models: one that reads the pair right, and one that takes the other side of it."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PERSONA_FIGURES", str(tmp_path / "figures"))
    made = {
        "right": Writer(lambda prompt, preferred, other: true_persona(prompt, preferred, other)),
        "wrong": Writer(lambda prompt, preferred, other: true_persona(prompt, other, preferred)),
        "silent": Writer(lambda *item: ""),
    }
    monkeypatch.setattr(studies, "load_generator", lambda run, role, size: made[run.profile.generator_model])
    monkeypatch.setattr(reader, "UNREADABLE", ())  # responses of the pairs are read well on all dimensions
    monkeypatch.setattr(studies, "role_key", lambda run, role: run.profile.generator_model)
    monkeypatch.setattr(personas, "parse_persona", lambda raw, words: (raw or None, "ok" if raw else "empty"))
    return made


def run(*models, seeds=2):
    words = [w for name in models for w in ("--model", name, f"generator_model={name}")]
    overrides = [w for value in SMALL for w in ("--set", value)]
    studies.compare_models([*overrides, "--seeds", str(seeds), *words])
    return pd.read_csv(results_dir(load_profile("everyday")) / "tables" / "persona_models.csv")


def of(table, model, side="chosen"):
    (row,) = table[(table.model == model) & (table.side == side)].itertuples()
    return row


@pytest.mark.slow
def test_accuracy_is_1_for_right_personas_0_for_those_of_the_other_side_and_for_none(writers):
    table = run("right", "wrong", "silent")
    for side in ("chosen", "rejected"):
        assert [of(table, name, side).accuracy for name in writers] == [1, 0, 0]
        assert (of(table, "right", side).n, of(table, "right", side).seeds) == (8, "0 1")
        assert (of(table, "silent", side).n_missing, of(table, "wrong", side).n_wrong) == (8, 8)
    assert of(table, "right", "chosen - rejected").accuracy == 0


@pytest.mark.slow
def test_every_model_is_asked_about_both_sides_once_and_not_again_in_a_second_run(writers):
    first = run("right", "wrong")
    assert {name: writer.asked for name, writer in writers.items()} == {"right": 16, "wrong": 16, "silent": 0}
    again = run("right", "wrong", "silent")
    assert {name: writer.asked for name, writer in writers.items()} == {
        "right": 16,
        "wrong": 16,
        "silent": 16,
    }
    kept = again[again.model != "silent"].reset_index(drop=True)
    pd.testing.assert_frame_equal(first.drop(columns="n_missing"), kept.drop(columns="n_missing"),
                                  check_dtype=False)  # fmt: skip


def test_another_prompt_is_another_question(writers):
    profile = load_profile("everyday", SMALL)
    for shots in (5, 3):
        changed = {"generator_model": "right", "pi_shots": shots}
        studies.ask(profile, "right", changed, "everyday", 0)
    assert writers["right"].asked == 2 * 2 * 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "a", "generator_modle=x"], "unknown field 'generator_modle'"),
        (["--model", "a", "--model", "A"], "two models of this name"),
        (["--set", "persona_judge=none"], "profile everyday has no persona_judge"),
    ],
)
def test_what_cannot_be_asked_is_said_before_any_model_is(writers, words, said, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        studies.compare_models(words)
    assert said in str(stopped.value)
    assert not any(writer.asked for writer in writers.values())
