"""Leakage and noise by example, tables of a tiny run by hand, the reward-model view by category."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny import tiny_rows, tiny_run

from persona_lib import store
from persona_lib.data import released
from persona_lib.evaluation import reward_view
from persona_lib.reading import views
from persona_lib.records import Generation
from persona_lib.stats import answer_noise
from persona_lib.tables import answer_noise_tables, results_answers
from persona_lib.tables.answer_noise_tables import Answer


def test_a_persona_is_copied_if_three_of_its_words_stand_in_the_answer_but_not_in_the_prompt():
    persona = "The user is a to-the-point cook and prefers short recipes."
    assert answer_noise.copies_persona("As a to-the-point cook, boil it.", persona, "How do I cook?")
    assert not answer_noise.copies_persona(
        "As a to-the-point cook, boil it.", persona, "a to-the-point cook?"
    )
    assert not answer_noise.copies_persona("Short and good recipes.", persona, "How?")
    assert not answer_noise.copies_persona("", persona, "How?")


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        (" Human: hello", "role_start"),
        ("Yes.\nAssistant: no", "role_inside"),
        ("The user prefers tea.", "names_persona"),
        ("Steps: 1. boil 2. pour", "list"),
        ("- one\n- two", "list"),
        ("yes<|im_end|>", "template"),
    ],
)
def test_every_mark_by_example(text, mark):
    assert [name for name, found in answer_noise.marks(text).items() if found] == [mark]


def test_a_plain_answer_has_no_mark():
    assert not any(answer_noise.marks("In 1. place, my response is: boil it for 2 minutes.").values())


def test_noise_of_a_cell_by_hand():
    answers = {
        "a": Answer("p", "The user is very kind and calm.", "Being very kind and calm helps.", True),
        "b": Answer("p", "The user is quick.", "Human: no", False),
    }
    values = answer_noise_tables.noise_values(answers)
    assert values["copies_persona"].tolist() == [1, 0] and values["copies_other"].tolist() == [0, 0]
    assert values["role_start"].tolist() == [0, 1] and values["endless"].tolist() == [0, 1]
    none = {"a": dataclasses.replace(answers["a"], persona=None)}
    assert np.isnan(answer_noise_tables.noise_values(none)["copies_persona"]).all()
    table = answer_noise_tables.noise_table("everyday", {("dpo-none", "none", "line"): [none]}, 50)
    assert views.show("answer_noise", table)["copies the persona / another's, %"].tolist() == [" / "]


def test_tables_of_a_tiny_run_are_those_of_its_answers(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, monkeypatch, train_personas=["chosen"], methods=["sft", "dpo"],
                   eval_personas=["gold-chosen", "gold-rejected"], bootstrap_samples=50)  # fmt: skip
    rows = tiny_rows(6, seed=9, split="test")
    store.write_rows(run.folder / "tailoring" / "test.jsonl", rows)
    for side in ("chosen", "rejected"):
        slug = f"dpo-chosen.gold-{side}.line"
        answers = [Generation(r.id, slug, r.prompt, r.personas[f"gold-{side}"], getattr(r, side), "stop", 3)
                   for r in rows]  # fmt: skip
        [spec] = [
            s for s in results_answers.grid(run) if s.arm == "dpo-chosen" and s.eval_persona == f"gold-{side}"
        ]
        folder = results_answers.generation_folder(run, spec)
        store.write_rows(folder / "rows.jsonl", answers)
        store.mark_done(folder, "k")
    monkeypatch.setattr(results_answers, "categories", lambda run: {})
    tables = results_answers.answer_tables(run)
    assert tables["answer_noise"].n.tolist() == [6, 6]
    assert tables["length_steering"].rho.tolist() == [pytest.approx(1)], "the answers are the responses"
    assert tables["reward_accuracy"].empty
    assert results_answers.pooled(run.profile, "length_steering").n.tolist() == [6]


def test_accuracy_asks_both_users_and_without_a_persona_only_one():
    values = [{"acc_chosen": np.array([1.0, 0.0]), "acc_rejected": np.array([1.0, 1.0]), "flip": np.zeros(2)}]
    both = results_answers.reward_columns(values, "gold", 50)
    assert (both["accuracy"], both["acc_chosen"], both["acc_rejected"]) == (0.75, 0.5, 1.0)
    alone = results_answers.reward_columns(values, "none", 50)
    assert alone["accuracy"] == 0.5 and "acc_rejected" not in alone


def test_the_categories_of_everyday_are_dimension_and_wording(tmp_path, monkeypatch):
    from persona_lib.config import Run, load_profile
    from persona_lib.data import everyday
    from persona_lib.records import TailoringRow

    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    run = Run(load_profile("everyday", ["eval_limit=0"]), "everyday", 0)
    items = {item.id: item for item in everyday.items() if item.split == "test"}
    rows = [TailoringRow(i, "test", item.prompt, "c", "r") for i, item in items.items()]
    store.write_rows(run.folder / "tailoring" / "test.jsonl", rows)
    assert reward_view.categories(run) == {
        i: (*item.dimension.split("+"), item.wording) for i, item in items.items()
    }
    assert reward_view.categories(Run(load_profile("authors"), "hhh", 0)) == {}


@pytest.mark.slow
def test_released_leakage_hits_the_published_figures():
    data, message = released.open_if_present()
    if data is None or "beavertails" not in data.rows:
        pytest.skip(message)
    table = answer_noise_tables.released_noise(data, 50).set_index(["arm", "eval_persona", "persona_format"])
    assert table.loc[("dpo-chosen", "gold-rejected", "line")].copies_persona == pytest.approx(0.122, abs=5e-4)
    told = table.loc[("dpo-none", "gold-rejected", "first_person")]
    assert (
        told.copies_persona == pytest.approx(0.192, abs=5e-4) and told.copies_other < told.copies_persona / 3
    )
    assert table.copies_persona.dropna().between(0.115, 0.195).all()
