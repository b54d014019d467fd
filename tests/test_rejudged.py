"""The released answers judged again: what is shown to the judge, both orders, resuming, the paper beside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import save_base

from persona_lib import show, store
from persona_lib.beyond import claims, released
from persona_lib.beyond.released import EOS, ReleasedFile
from persona_lib.models.generate import Completion
from persona_lib.paper import judges, judging
from persona_lib.records import TailoringRow
from persona_lib.settings import Run, load_profile

PERSONAS = ("gold-chosen", "gold-rejected")
SERVED = "http://localhost:1/v1"
JUDGE = ["judge=lm", "judge_model=tiny-judge", f"judge_url={SERVED}", "judge_format=json"]
JUDGE += ["bootstrap_samples=50", "eval_limit=0"]


def write_released(folder: Path, n: int = 6) -> released.Released:
    """Write files in the authors' format and read them as the notebook does; row 2 lacks one persona."""
    rows = [
        TailoringRow(
            f"hhh-test-{i:04d}",
            "test",
            f"Human: Question {i}?",
            "c",
            "r",
            {
                name: None if (i, name) == (2, PERSONAS[1]) else f"The user is {name} {i}."
                for name in PERSONAS
            },
        )
        for i in range(n)
    ]
    outputs = {}
    for arm in ("chosen", "none"):
        for name in PERSONAS:
            file = ReleasedFile("hhh", arm, name)
            items = [
                {
                    "prompt": f"Prompt: {row.prompt} I am {name}.\nResponse:",
                    "response": f" {arm} answer {i}{'!' * (i if arm == 'none' else 2)}{EOS}",
                }
                for i, row in enumerate(rows)
            ]
            items[1]["response"] = f" {arm} answer\nPrompt: another"
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(items, indent=4))
            outputs[file] = released.load_outputs(folder, file)
    return released.Released(folder, outputs, {"hhh": rows})


class LongerWins:
    """A judge that prefers the longer response; equal lengths get no verdict."""

    name, takes_schema = "longer", False

    def __init__(self, stop_after: int = 10**6) -> None:
        self.asked, self.stop_after = 0, stop_after

    def generate(self, prompts, max_new_tokens, stop):
        for n, prompt in enumerate(prompts):
            self.asked += 1
            if self.asked > self.stop_after:
                raise KeyboardInterrupt
            a, b = prompt.partition("Response A:\n")[2].split("\n\nAnswer with")[0].split("\n\nResponse B:\n")
            text = "" if len(a) == len(b) else json.dumps({"winner": "A" if len(a) > len(b) else "B"})
            yield n, Completion(text, "stop", 1)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    return write_released(tmp_path / "files")


def open_run(monkeypatch, generator, *settings: str) -> Run:
    """A run of the authors profile with a language model as judge."""
    monkeypatch.setattr(judges, "load_generator", lambda run, role, batch: generator)
    return Run(load_profile("authors", [*JUDGE, *settings]), "hhh", 0)


def test_rows_without_a_persona_are_left_out_and_answers_end_where_another_prompt_begins(data):
    assert released.judgeable(data) == [("hhh", name) for name in PERSONAS]
    chosen, rejected = (released.released_comparisons(data, "hhh", name) for name in PERSONAS)
    assert [len(chosen), len(rejected)] == [6, 5]
    assert [c.id for c in rejected] == [f"hhh-test-000{i}" for i in (0, 1, 3, 4, 5)]
    assert chosen[1].response_a == " chosen answer" and chosen[1].response_b == " none answer"
    assert (chosen[0].prompt, chosen[0].persona) == ("Human: Question 0?", "The user is gold-chosen 0.")


def test_a_limit_draws_the_same_rows_for_every_persona(data):
    drawn = [{c.id for c in released.released_comparisons(data, "hhh", p, limit=4)} for p in PERSONAS]
    assert len(drawn[0]) == 4 and drawn[1] == drawn[0] - {"hhh-test-0002"}


def test_counts_are_those_of_the_judge_and_the_papers_row_stands_below(data, monkeypatch):
    # "chosen answer i!!" has 17 characters, "none answer i" + i "!" has 13 + i; in row 1 it is 13 against 11.
    # PT-DPO is longer in rows 0 to 3, equal in row 4 (no verdict), shorter in row 5.
    run = open_run(monkeypatch, LongerWins())
    released.judge_released(run, data)
    table = released.rejudged_tables(run, data)["released_judged"]
    ours, theirs = table.iloc[0], table.iloc[1]
    assert (ours.dataset, ours.label, ours.judge, ours.n) == ("Anthropic HHH", "chosen, gold", "longer", 6)
    for rubric in "pq":
        counts = [ours[f"{rubric}_{v}"] for v in ("win", "tie", "loss", "unparsed")]
        assert counts == [4, 0, 1, 1]
    assert ours.dpq == pytest.approx(100 * (4 - 1) / 5) and ours.dpq_low <= ours.dpq <= ours.dpq_high
    printed = next(r for r in claims.paper_table() if (r["dataset"], r["side"], r["persona"])
                 == ("Anthropic HHH", "chosen", "gold"))  # fmt: skip
    assert [theirs.p_win, theirs.q_loss] == [int(printed["p_win"]), int(printed["q_loss"])]
    assert theirs.dpq == pytest.approx(float(printed["dpq_printed"]), abs=0.05)
    assert list(table.label) == ["chosen, gold"] * 2 + ["rejected, gold"] * 2 and table.iloc[2].n == 5
    shown = show.render("released_judged", table)
    assert shown.judge[0] == "longer" and shown["unparsed P / Q"].tolist()[:2] == ["1 / 1", ""]


def test_judging_that_was_stopped_goes_on_and_is_not_repeated(data, monkeypatch):
    monkeypatch.setattr(judging, "CHUNK", 2)
    stopped = LongerWins(stop_after=9)
    run = open_run(monkeypatch, stopped)
    with pytest.raises(KeyboardInterrupt):
        released.judge_released(run, data)
    kept = released.folder_of(run.profile, "judge", "hhh", "gold-chosen") / "personalization.jsonl"
    assert len(list(store.iter_rows(kept))) == 8, "two chunks of two, both orders"
    second = LongerWins()
    run = open_run(monkeypatch, second)
    released.judge_released(run, data)
    assert second.asked == 4 * (6 + 5) - 8
    released.judge_released(run, data)
    assert second.asked == 4 * (6 + 5) - 8


def test_another_judge_or_other_texts_are_judged_anew(data, monkeypatch):
    generator = LongerWins()
    released.judge_released(open_run(monkeypatch, generator), data)
    once = generator.asked
    released.judge_released(open_run(monkeypatch, generator, "judge_max_new_tokens=5"), data)
    assert generator.asked == 2 * once


SECOND = ["second_judge_model=other", f"second_judge_url={SERVED}", "second_judge_format=json"]


def test_two_judges_are_kept_apart_and_compared(data, monkeypatch):
    run = open_run(monkeypatch, LongerWins(), *SECOND)
    assert released.what_judges(run.profile) == "judged by tiny-judge and by other"
    assert len(released.judge_released(run, data)) == 4
    tables = released.rejudged_tables(run, data)
    assert len(tables["released_judged"]) == 6, "two of ours and the paper's, twice"
    agreed = tables["released_agreement"].set_index("rubric").loc["quality"]
    assert (agreed["n"], agreed.agreement, agreed.first_unparsed, agreed.second_unparsed) == (9, 1, 2, 2)


@pytest.mark.parametrize("settings", [["judge=none"], ["judge=lm", "judge_model=base"], ["judge=oracle"]])
def test_without_a_language_model_of_its_own_nothing_is_judged_and_it_is_said_how(data, settings):
    run = Run(load_profile("authors", settings), "hhh", 0)
    assert "--set judge=lm --set judge_model=NAME" in released.what_judges(run.profile)
    assert released.judge_released(run, data) == [] and released.rejudged_tables(run, data) == {}
    assert released.judge_released(run, None) == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["letter", "json"])
def test_a_tiny_random_judge_runs_from_file_to_table(data, tmp_path, form):
    """Random weights: everything is kept, nearly everything is unparsed, and a rerun asks nothing."""
    folder = save_base(tmp_path / "judge")
    settings = ["judge=lm", f"judge_model={folder}", f"judge_format={form}", "eval_limit=3"]
    run = Run(load_profile("authors", settings), "hhh", 0)
    folders = released.judge_released(run, data)
    assert len(folders) == 2
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.jsonl")}
    assert len(before) == 6 and released.judge_released(run, data) == folders
    assert {path: path.read_bytes() for path in before} == before
    table = released.rejudged_tables(run, data)["released_judged"]
    ours = table[table.kind == "judged again"]
    assert set(ours.judge) == {str(folder)} and ours.n.max() == 3
    assert (ours[["p_win", "p_tie", "p_loss", "p_unparsed"]].sum(axis=1) == ours.n).all()
