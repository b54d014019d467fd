"""The released outputs: the published figures from the real files, clear errors, and judged again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persona_lib import show, store
from persona_lib.beyond import claims, released
from persona_lib.beyond.released import EOS, FILES, ReleasedFile, ReleasedOutput
from persona_lib.models.generate import Completion
from persona_lib.paper import judges, judging
from persona_lib.records import DataError, TailoringRow
from persona_lib.settings import Run, load_profile

BT = "beavertails"
PT_GOLD = ReleasedFile(BT, "chosen", "gold-chosen")
HHH_FILE = ReleasedFile("hhh", "chosen", "gold-chosen")  # not among the files that we checked


def write_items(path: Path, items: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items, indent=4))


# --- the real files ---


@pytest.fixture(scope="module")
def real():
    opened, message = released.open_if_present()
    if opened is None or BT not in opened.rows:
        pytest.skip(message)
    return opened


@pytest.fixture(scope="module")
def tables(real):
    return released.released_tables(real, n_resamples=1500)


@pytest.mark.slow
def test_beavertails_files_are_aligned_and_flip_and_did_hit_the_published_figures(real, tables):
    assert len([file for file in real.outputs if file.dataset == BT]) == 9
    assert real.outputs[PT_GOLD][0].ended and EOS not in real.outputs[PT_GOLD][0].text
    assert "DPO+P UNDER THE REJECTED PERSONA: " in released.example_text(real, 25)
    table = tables["released_flip"].set_index(["dataset", "personas", "arm"])
    wanted = {
        ("gold", "dpo-chosen"): (0.403, 0.083, 0.813, 0.073, 0.094),
        ("gold", "dpo-none"): (0.186, 0.018, 0.604, 0.012, 0.024),
        ("retrieved", "dpo-chosen"): (0.13, 0.005, 0.50, -0.004, 0.014),
        ("retrieved", "dpo-none"): (0.09, -0.001, 0.51, -0.006, 0.004),
    }
    for key, (flip, did, positive, low, high) in wanted.items():
        row = table.loc[(BT, *key)]
        places = 3 if key[0] == "gold" else 2
        assert (round(row.flip, places), round(row.did, 3)) == (flip, did)
        assert row.did_positive == pytest.approx(positive, abs=0.005 if places == 2 else 0.0005)
        assert (row.did_low, row.did_high) == pytest.approx((low, high), abs=0.0015)


@pytest.mark.slow
def test_beavertails_lengths_and_degenerate_counts_hit_the_published_figures(tables):
    table = tables["released_lengths"].set_index(["dataset", "personas", "arm"])
    tailored, plain = table.loc[(BT, "gold", "dpo-chosen")], table.loc[(BT, "gold", "dpo-none")]
    columns = ["words_under_chosen", "words_under_rejected", "words_chosen", "words_rejected"]
    assert tailored[columns].round(1).tolist() == [89.0, 74.3, 92.1, 69.7]
    assert plain[columns[:2]].round(1).tolist() == [111.9, 110.8]
    assert (round(tailored.rho, 3), round(plain.rho, 3)) == (0.530, 0.104)
    assert all(abs(table.loc[(BT, "retrieved", arm)].rho) <= 0.06 for arm in ("dpo-chosen", "dpo-none"))
    counts = tables["released_counts"].set_index(["dataset", "arm", "eval_persona"])
    columns = ["n", "no_eos", "rep4_over_20", "rep4_over_50", "suffix_loop"]
    assert counts.loc[(BT, "dpo-chosen", "gold-chosen")][columns].tolist() == [499, 1, 2, 1, 1]
    assert counts.loc[(BT, "dpo-chosen", "gold-rejected")][columns].tolist() == [499, 2, 4, 3, 2]
    assert counts.loc[(BT, "dpo-chosen", "retrieved-rejected")][columns].tolist() == [499, 1, 2, 1, 0]
    assert counts.loc[(BT, "dpo-none", "none")].words_median == 103


# --- names, places, errors ---


def test_there_are_21_files_under_the_authors_names():
    assert len(FILES) == len({file.path for file in FILES}) == 21
    assert ReleasedFile("hhh", "none", "retrieved-rejected").path == (
        "Anthropic HHH/dpo_Persona(training_type=none, inference_type=retr-rejected).jsonl"
    )
    assert set(released.known_checksums()) == {file.path for file in FILES if file.dataset == BT}


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine on which neither the released outputs nor a network is at hand."""
    monkeypatch.setattr(released, "REPO", tmp_path / "repo")
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("PERSONA_DATA", raising=False)
    return tmp_path


def test_absent_files_are_told_with_the_three_ways_and_do_not_stop_a_notebook(nowhere):
    opened, message = released.open_if_present()
    assert opened is None
    ways = ("data.path=PATH", "PERSONA_DATA", "released_outputs beside", "-m persona_lib.beyond.released")
    assert all(way in message for way in ways)
    with pytest.raises(DataError, match="not here"):
        released.open_released()


def test_released_outputs_are_found_in_or_beside_the_data_folder(nowhere, monkeypatch):
    home = nowhere / "data" / "released_outputs"
    write_items(home / PT_GOLD.path, [])
    for place in (".", "released_outputs", "official"):
        assert released.find_released(nowhere / "data" / place) == home
    monkeypatch.setenv("PERSONA_DATA", str(nowhere / "data"))
    assert released.find_released() == home
    assert released.files_in(home) == [PT_GOLD]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"prompt": "p"}, "one JSON list"),
        ([{"prompt": "p", "response": "r"}, {"prompt": "p"}], "item 1: no text 'response'"),
        (["text"], "item 0"),
    ],
)
def test_a_file_of_another_shape_is_an_error_that_names_the_item(tmp_path, items, message):
    write_items(tmp_path / HHH_FILE.path, items)
    with pytest.raises(DataError, match=message):
        released.load_outputs(tmp_path, HHH_FILE)


def test_the_end_mark_is_removed_and_remembered(tmp_path):
    responses = [f" yes{EOS}", " no end", f" mid{EOS}dle"]
    write_items(tmp_path / HHH_FILE.path, [{"prompt": "p", "response": r} for r in responses])
    outputs = released.load_outputs(tmp_path, HHH_FILE)
    assert [(o.text, o.ended) for o in outputs] == [(" yes", True), (" no end", False), (" middle", False)]
    assert [o.id for o in outputs] == ["hhh-test-0000", "hhh-test-0001", "hhh-test-0002"]


def test_a_checked_file_that_was_changed_is_refused_and_not_kept(tmp_path):
    home, target = tmp_path / "home", tmp_path / "target"
    for file in (PT_GOLD, HHH_FILE):
        write_items(home / file.path, [])
    with pytest.raises(DataError, match="SHA-256"):
        released.load_outputs(home, PT_GOLD)
    with pytest.raises(DataError, match="SHA-256 is not"):
        released.download_released([PT_GOLD], target, home.as_uri())
    assert released.files_in(released.download_released([HHH_FILE], target, home.as_uri())) == [HHH_FILE]


def test_outputs_of_other_rows_or_personas_are_refused():
    row = TailoringRow(
        "hhh-test-0000", "test", "Human: Why?", "c", "r", {"gold-chosen": "The user is terse."}
    )
    good = ReleasedOutput(row.id, "Prompt: Human: Why? I am terse.\nResponse:", "", True)
    released.check_aligned(HHH_FILE, [good], [row])
    for prompt in ("Prompt: Human: Why not? I am terse.", "Prompt: Human: Why? I am verbose."):
        with pytest.raises(DataError, match="hhh-test-0000"):
            released.check_aligned(HHH_FILE, [ReleasedOutput(row.id, prompt, "", True)], [row])
    with pytest.raises(DataError, match="1 outputs for 2 test rows"):
        released.check_aligned(HHH_FILE, [good], [row, row])


def test_rows_without_responses_or_without_both_files_have_no_flip():
    mnemonic = ReleasedFile("mnemonic", "chosen", "retrieved-chosen")
    outputs = {file: [ReleasedOutput("i", "p", "a b", True)] for file in (mnemonic, HHH_FILE)}
    responses = {"mnemonic": ("", ""), "hhh": ("c", "r")}
    rows = {name: [TailoringRow("i", "test", "p", *pair)] for name, pair in responses.items()}
    tables = released.released_tables(released.Released(outputs, rows), 10)
    assert {name: len(table) for name, table in tables.items()} == {
        "released_counts": 2, "released_lengths": 0, "released_flip": 0
    }  # fmt: skip


# --- judged again ---

PERSONAS = ("gold-chosen", "gold-rejected")
SERVED = "http://localhost:1/v1"
JUDGE = ["evaluation.judge=lm", "judge.model=tiny-judge", f"judge.url={SERVED}", "judge.format=json"]
JUDGE += ["evaluation.bootstrap_samples=50", "evaluation.limit=0"]
SECOND = ["second_judge.model=other", f"second_judge.url={SERVED}", "second_judge.format=json"]


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
    """Files in the authors' format, read as the notebook does; row 2 lacks one persona."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    rows = []
    for i in range(6):
        personas = {name: f"The user is {name} {i}." for name in PERSONAS}
        personas |= {PERSONAS[1]: None} if i == 2 else {}
        rows.append(TailoringRow(f"hhh-test-{i:04d}", "test", f"Human: Question {i}?", "c", "r", personas))
    outputs = {}
    for file in (ReleasedFile("hhh", arm, name) for arm in ("chosen", "none") for name in PERSONAS):
        marks = ["!" * (i if file.train_persona == "none" else 2) for i in range(6)]
        answers = [f" {file.train_persona} answer {i}{mark}{EOS}" for i, mark in enumerate(marks)]
        answers[1] = f" {file.train_persona} answer\nPrompt: another"
        write_items(tmp_path / file.path, [{"prompt": row.prompt, "response": text}
                                           for row, text in zip(rows, answers, strict=True)])  # fmt: skip
        outputs[file] = released.load_outputs(tmp_path, file)
    return released.Released(outputs, {"hhh": rows})


def open_run(monkeypatch, generator, *settings: str) -> Run:
    """A run of the authors profile with a language model as judge."""
    monkeypatch.setattr(judges, "load_generator", lambda run, role, batch: generator)
    return Run(load_profile("authors", [*JUDGE, *settings]), "hhh", 0)


def test_comparisons_leave_out_rows_without_a_persona_and_end_where_another_prompt_begins(data):
    assert released.judgeable(data) == [("hhh", name) for name in PERSONAS]
    chosen, rejected = (released.released_comparisons(data, "hhh", name) for name in PERSONAS)
    assert len(chosen) == 6 and [c.id[-1] for c in rejected] == ["0", "1", "3", "4", "5"]
    assert chosen[1].response_a == " chosen answer" and chosen[1].response_b == " none answer"
    assert (chosen[0].prompt, chosen[0].persona) == ("Human: Question 0?", "The user is gold-chosen 0.")
    drawn = [{c.id for c in released.released_comparisons(data, "hhh", p, limit=4)} for p in PERSONAS]
    assert len(drawn[0]) == 4 and drawn[1] == drawn[0] - {"hhh-test-0002"}, "the same rows for all personas"


def test_counts_are_those_of_the_judge_and_the_papers_row_stands_below(data, monkeypatch):
    # "chosen answer i!!" has 17 characters, "none answer i" + i "!" has 13 + i; in row 1 it is 13 against 11.
    # PT-DPO is longer in rows 0 to 3, equal in row 4 (no verdict), shorter in row 5.
    run = open_run(monkeypatch, LongerWins())
    released.judge_released(run, data)
    table = released.rejudged_tables(run, data)["released_judged"]
    ours, theirs = table.iloc[0], table.iloc[1]
    assert (ours.dataset, ours.label, ours.judge, ours.n) == ("Anthropic HHH", "chosen, gold", "longer", 6)
    for rubric in "pq":
        assert [ours[f"{rubric}_{v}"] for v in ("win", "tie", "loss", "unparsed")] == [4, 0, 1, 1]
    assert ours.dpq == pytest.approx(100 * (4 - 1) / 5) and ours.dpq_low <= ours.dpq <= ours.dpq_high
    printed = next(r for r in claims.paper_table() if (r["dataset"], r["side"], r["persona"])
                 == ("Anthropic HHH", "chosen", "gold"))  # fmt: skip
    assert [theirs.p_win, theirs.q_loss] == [int(printed["p_win"]), int(printed["q_loss"])]
    assert theirs.dpq == pytest.approx(float(printed["dpq_printed"]), abs=0.05)
    assert list(table.label) == ["chosen, gold"] * 2 + ["rejected, gold"] * 2 and table.iloc[2].n == 5
    shown = show.render("released_judged", table)
    assert shown.judge[0] == "longer" and shown["unparsed P / Q"].tolist()[:2] == ["1 / 1", ""]


def test_judging_goes_on_where_it_was_stopped_and_starts_anew_for_another_judge(data, monkeypatch):
    monkeypatch.setattr(judging, "CHUNK", 2)
    run = open_run(monkeypatch, LongerWins(stop_after=9))
    with pytest.raises(KeyboardInterrupt):
        released.judge_released(run, data)
    kept = released.folder_of(run.profile, "judge", "hhh", "gold-chosen") / "personalization.jsonl"
    assert len(list(store.iter_rows(kept))) == 8, "two chunks of two, both orders"
    second, whole = LongerWins(), 4 * (6 + 5)
    for _ in range(2):
        released.judge_released(open_run(monkeypatch, second), data)
        assert second.asked == whole - 8
    released.judge_released(open_run(monkeypatch, second, "judge.max_new_tokens=5"), data)
    assert second.asked == 2 * whole - 8


def test_two_judges_are_kept_apart_and_compared(data, monkeypatch):
    run = open_run(monkeypatch, LongerWins(), *SECOND)
    assert released.what_judges(run.profile) == "judged by tiny-judge and by other"
    assert len(released.judge_released(run, data)) == 4
    tables = released.rejudged_tables(run, data)
    assert len(tables["released_judged"]) == 6, "two of ours and the paper's, twice"
    agreed = tables["released_agreement"].set_index("rubric").loc["quality"]
    assert (agreed["n"], agreed.agreement, agreed.first_unparsed, agreed.second_unparsed) == (9, 1, 2, 2)


@pytest.mark.parametrize("settings", [["evaluation.judge=none"], ["evaluation.judge=lm", "judge.model=base"]])
def test_without_a_language_model_of_its_own_nothing_is_judged_and_it_is_said_how(data, settings):
    run = Run(load_profile("authors", settings), "hhh", 0)
    assert "--set evaluation.judge=lm --set judge.model=NAME" in released.what_judges(run.profile)
    assert released.judge_released(run, data) == [] and released.rejudged_tables(run, data) == {}
    assert released.judge_released(run, None) == []
