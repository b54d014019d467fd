"""What the notebooks show is what the files hold: tables and pages from a small run written by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_results

from persona_lib import show
from persona_lib.data import everyday, reader
from persona_lib.data.preference import load_pairs, write_pairs
from persona_lib.paper import personas as personas_module
from persona_lib.paper.answers import generation_folder, grid
from persona_lib.paper.judging import judge_all
from persona_lib.records import Generation, InferredPersona, Judgment
from persona_lib.settings import Run, load_profile, set_field
from persona_lib.store import mark_done, write_json, write_rows

SIDES = ("chosen", "rejected")


def small_run() -> Run:
    """A few pairs of ``everyday`` with the personas that they bring."""
    changes = {"train_personas": ["none", "chosen"], "controls": True, "persona_judge": "oracle"}
    profile = set_field(load_profile("smoke"), pair_limit=8, bootstrap_samples=50, **changes)
    run = Run(profile, "everyday", 0)
    write_pairs(run)
    known = everyday.personas(profile.majority_share, 0)
    for split, pairs in load_pairs(run).items():
        for side in SIDES:
            rows = [InferredPersona(p.id, side, "hand", known[p.id][f"gold-{side}"], "ok", "") for p in pairs]
            write_rows(run.folder / "personas" / f"{split}-{side}.jsonl", rows)
    return run


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    """A run of its own for a test that changes files."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    monkeypatch.setattr(reader, "UNREADABLE", ())  # the texts of the pairs are read well on all dimensions
    return small_run()


@pytest.fixture(scope="module")
def all_answers(tmp_path_factory) -> Path:
    """Results in which every run of the grid has answered and was judged.

    Tailored runs give the response of the persona's side, the others the chosen one.
    """
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_RESULTS", str(folder))
        patch.setattr(reader, "UNREADABLE", ())
        answer_everything(small_run())
    return folder


@pytest.fixture
def answered(all_answers, monkeypatch) -> Run:
    """The run whose answers are there."""
    monkeypatch.setenv("PERSONA_RESULTS", str(all_answers))
    return small_run()


def answer_everything(run: Run) -> None:
    """Write the answers of all runs, and judge them."""
    rows = []
    for row in tiny_results.tailoring_rows(run):
        mine = {f"shuffled-{side}": row.personas[f"gold-{side}"] for side in SIDES}
        rows.append(replace(row, personas={n: t for n, t in (row.personas | mine).items() if n != "system"}))
    write_rows(run.folder / "tailoring" / "test.jsonl", rows)
    for spec in grid(run):
        usable = [r for r in rows if spec.eval_persona == "none" or r.personas.get(spec.eval_persona)]
        tailored = spec.train_persona == "chosen" and spec.eval_persona.endswith("rejected")
        texts = [r.rejected if tailored else r.chosen for r in usable]
        answers = [
            Generation(r.id, spec.slug, r.prompt, r.personas.get(spec.eval_persona), text, "stop", 9)
            for r, text in zip(usable, texts, strict=True)
        ]
        folder = generation_folder(run, spec)
        write_rows(folder / "rows.jsonl", answers)
        zero = dict.fromkeys(show.DEGENERATE, 0)
        mark_done(folder, "hand", **zero | {"n": len(usable), "n_without_persona": len(rows) - len(usable)})
    judge_all(run)


# --- data and training ---


def test_dimensions_are_counted_as_the_pairs_have_them(run):
    table, common = show.contrast_table(run), everyday.common_values(0)
    pairs, known = load_pairs(run)["train"], everyday.wishes()
    personas = everyday.personas(run.profile.majority_share, 0)
    wanted = [known[personas[p.id]["gold-chosen"]][0] for p in pairs]
    assert table.pairs.sum() == len(pairs)
    for name in {dimension for dimension, _ in wanted}:
        mine = [value for dimension, value in wanted if dimension == name]
        share = sum(value == common[name] for value in mine) / len(mine)
        assert table.loc[name, "pairs"] == len(mine), name
        assert table.loc[name, "chosen has what most like"] == pytest.approx(share), name


def test_real_data_has_no_known_contrasts_or_topics(run):
    real = Run(set_field(run.profile, datasets=["hhh"]), "hhh", 0)
    assert len(show.contrast_table(real)) == len(show.topic_table(real)) == 0


def test_topics_shared_with_training_are_counted(run):
    assert show.topic_table(run)["shared with train"].tolist() == [0, 0, 0]
    pairs = load_pairs(run)
    write_rows(run.folder / "pairs" / "test.jsonl", pairs["test"][:2] + pairs["train"][:1])
    assert show.topic_table(run).loc["test", "shared with train"] == 1


def test_history_joins_both_logs_of_an_epoch_and_marks_the_kept_one(run):
    one = set_field(run.profile, train_personas=["none"])
    folder = run.folder / "adapters" / "sft-none"
    log = [
        {"loss": 3.0, "grad_norm": 1.0, "epoch": 1.0},
        {"eval_loss": 2.5, "epoch": 1.0},
        {"loss": 2.0, "grad_norm": 0.5, "epoch": 2.0},
        {"eval_loss": 2.7, "epoch": 2.0},
        {"train_runtime": 9.0, "train_loss": 2.5, "epoch": 2.0},
    ]
    write_rows(folder / "log.jsonl", log)
    mark_done(folder, "hand", best_eval_loss=2.5)
    table = show.training_history(Run(one, run.dataset, run.seed), "sft")
    assert table["training loss"].tolist() == [3.0, 2.0]
    assert table["validation loss"].tolist() == [2.5, 2.7]
    assert table.kept.tolist() == [True, False]


def test_row_counts_and_sizes_of_an_adapter(run):
    import numpy as np
    from safetensors.numpy import save_file

    one = Run(set_field(run.profile, train_personas=["none"]), run.dataset, run.seed)
    folder = run.folder / "adapters" / "sft-none"
    part = dict.fromkeys(show.COUNTS, 0) | {"rows": 7, "truncated": 2}
    write_json(folder / "counts.json", {"train": part, "val": part | {"rows": 3}})
    save_file({"a": np.zeros((4, 8)), "b": np.zeros((6, 4))}, folder / "adapter_model.safetensors")
    assert show.row_counts(one, "sft").loc[("sft-none", "train"), ["rows", "truncated"]].tolist() == [7, 2]
    assert show.adapter_sizes(one, "sft").parameters.tolist() == [4 * 8 + 6 * 4]


# --- personas ---


def test_a_judge_that_always_names_the_first_response_contradicts_itself_and_is_counted(run, monkeypatch):
    def first(comparisons, rubric):
        return [Judgment(c.id, "first", rubric, "A") for c in comparisons]

    monkeypatch.setattr(personas_module, "load_judge", lambda run, name: first)
    table = show.accuracy_table(show.accuracy_items(run), 50)
    assert (table.ties == table.n).all() and (table.contradicted == table.n).all()


def test_true_personas_are_accurate_on_both_sides_and_missing_ones_count_against(run):
    items = show.accuracy_items(run)
    table = show.accuracy_table(items, 50)
    assert table.accuracy.tolist() == [1.0] * 2
    assert "contradicted" not in table
    path = run.folder / "personas" / "test-rejected.jsonl"
    rows = [InferredPersona(p.id, "rejected", "hand", None, "empty", "") for p in load_pairs(run)["test"]]
    write_rows(path, rows)
    table = show.accuracy_table(show.accuracy_items(run), 50)
    assert table.loc[("test", "rejected"), ["missing", "accuracy"]].tolist() == [8, 0.0]


def test_the_inference_prompt_prefers_the_response_of_the_asked_side(run):
    pair = load_pairs(run)["test"][0]
    for side, wanted in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        query = show.inference_prompt_text(run, side).rpartition("Preferred response: ")[2]
        assert query == f"{wanted}\nPersona:"


def test_the_most_telling_words_of_each_side_come_first(run):
    words = show.word_table(run, min_count=1)
    ends = show.both_ends(words, 3)
    assert ends["chosen"].z.dropna().is_monotonic_decreasing
    assert ends["rejected"].z.dropna().is_monotonic_increasing
    assert (ends["chosen"].z.dropna() > 0).all() and (ends["rejected"].z.dropna() < 0).all()


# --- answers ---


def test_a_policy_that_follows_the_persona_wins_only_where_the_majority_is_not_asked(answered):
    table = show.judging_table(answered).set_index("label")
    assert table.loc["gold-rejected", ["P_W", "P_T", "P_L", "P_net"]].tolist() == [8, 0, 0, 1.0]
    assert table.loc["gold-chosen", ["P_W", "P_T", "P_L"]].tolist() == [0, 8, 0]
    assert math.isnan(table.loc["gold-chosen", "P_net"])
    assert table.loc["user-rejected", "P_W"] == 8
    scores = show.score_table(answered).fit
    assert (
        scores["gold-rejected", "dpo-chosen", "line"] == -scores["gold-rejected", "dpo-none", "first_person"]
    )


def test_examples_stand_side_by_side_and_unfinished_runs_are_left_out(answered):
    pair = load_pairs(answered)["test"][1]
    table = show.side_by_side(answered, [pair.id])
    assert table.eval_persona.tolist() == ["user-chosen", "user-rejected"]
    assert table.DPO.tolist() == [pair.chosen, pair.chosen]
    assert table["PT-DPO"].tolist() == [pair.chosen, pair.rejected]
    page = show.examples_text(table)
    assert page.count(pair.prompt) == 1 and page.count(pair.rejected) == 1
    spec = next(spec for spec in grid(answered) if spec.slug == "dpo-none.user-chosen.first_person")
    marker = generation_folder(answered, spec) / "done.json"
    marker.rename(marker.with_name("away.json"))
    left = show.side_by_side(answered, [pair.id]).eval_persona.tolist()
    marker.with_name("away.json").rename(marker)
    assert left == ["user-rejected"]


def test_the_grid_and_one_prompt_show_every_run_of_an_arm(answered):
    arm = [spec for spec in grid(answered) if spec.arm == "dpo-none"]
    assert show.grid_table(answered).loc["dpo-none", "gold-chosen"] == "first_person, line"
    page = show.one_prompt(answered, "dpo-none")
    gold = show.one_prompt(answered, "dpo-none", kinds=("gold",))
    assert gold.count("[gold-") == 4 and gold.count("[") == 4
    shown = [spec for spec in arm if spec.eval_persona != "system"]  # no row has a system persona here
    assert all(f"[{spec.eval_persona}, {spec.persona_format}]" in page for spec in shown)
    assert show.degenerate_table(answered).loc["dpo-none.system.first_person", "n_without_persona"] == 8


def test_a_judged_example_shows_both_orders_and_the_verdict(answered):
    text = show.judged_example(answered, "gold-rejected")
    assert "AB: A" in text and "BA: B" in text and "-> win" in text
