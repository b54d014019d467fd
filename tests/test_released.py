"""The released outputs: the published figures from the real files, clear errors, and judged again."""

import itertools
import json
from pathlib import Path

import pytest
from test_judging import shorter
from tiny import Echo

from persona_lib import store
from persona_lib.beyond import released
from persona_lib.beyond.released import EOS, FILES, ReleasedFile
from persona_lib.paper import judges
from persona_lib.records import SIDES, DataError, TailoringRow
from persona_lib.settings import Run, load_profile

BT = "beavertails"
PT_GOLD = ReleasedFile(BT, "dpo-chosen", "gold-chosen")
HHH_FILE = ReleasedFile("hhh", "dpo-chosen", "gold-chosen")  # not among the files that we checked


def write_items(path: Path, items: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items, indent=4))


@pytest.mark.slow
def test_beavertails_files_are_aligned_and_hit_the_published_figures():
    real, message = released.open_if_present()
    if real is None or BT not in real.rows:
        pytest.skip(message)
    assert len([file for file in real.outputs if file.dataset == BT]) == 9
    table = released.released_tables(real, n_resamples=1500)["released_flip"]
    flips = table.set_index(["dataset", "personas", "arm"]).loc[BT]
    wanted = {
        ("gold", "dpo-chosen"): (0.403, 0.083, 0.813, 0.073, 0.094),
        ("gold", "dpo-none"): (0.186, 0.018, 0.604, 0.012, 0.024),
        ("retrieved", "dpo-chosen"): (0.130, 0.005, 0.500, -0.004, 0.014),
        ("retrieved", "dpo-none"): (0.086, -0.001, 0.511, -0.006, 0.004),
    }
    for key, (flip, did, positive, *limits) in wanted.items():
        row = flips.loc[key]
        assert [row.flip, row.did, row.did_positive] == pytest.approx([flip, did, positive], abs=5e-4)
        assert [row.did_low, row.did_high] == pytest.approx(limits, abs=0.0015)


def test_there_are_21_files_under_the_authors_names():
    assert len(FILES) == len({file.path for file in FILES}) == 21
    assert ReleasedFile("hhh", "dpo-none", "retrieved-rejected").path == (
        "Anthropic HHH/dpo_Persona(training_type=none, inference_type=retr-rejected).jsonl"
    )
    known = store.read_json(released.CHECKSUMS)
    assert set(known) == {file.path for file in FILES if file.dataset == BT}


def test_outputs_are_found_in_or_beside_the_data_or_it_is_said_how(results_here, tmp_path, monkeypatch):
    monkeypatch.setattr(released, "REPO", tmp_path / "repo")
    monkeypatch.delenv("PERSONA_DATA", raising=False)
    opened, message = released.open_if_present()
    ways = ("not here", "data.path=PATH", "PERSONA_DATA", "-m persona_lib.beyond.released")
    assert opened is None and all(way in message for way in ways)
    home = tmp_path / "data" / "released_outputs"
    write_items(home / PT_GOLD.path, [])
    for place in (".", "released_outputs", "official"):
        assert released.find_released(tmp_path / "data" / place) == (home, [PT_GOLD])
    monkeypatch.setenv("PERSONA_DATA", str(tmp_path / "data"))
    assert released.find_released()[0] == home


ROW = TailoringRow("hhh-test-0000", "test", "Human: Why?", "c", "r", {"gold-chosen": "The user is terse."})
OTHER = "hhh-test-0000: not a {prompt, response} with this"


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"prompt": "p"}, "one JSON list with 1 outputs"),
        ([], "one JSON list with 1 outputs"),
        (["text"], OTHER),
        ([{"prompt": "Human: Why not? I am terse.", "response": ""}], OTHER),
        ([{"prompt": "Human: Why? I am verbose.", "response": ""}], OTHER),
    ],
)
def test_a_file_of_another_shape_or_of_other_rows_is_an_error_that_names_the_row(tmp_path, items, message):
    write_items(tmp_path / HHH_FILE.path, items)
    with pytest.raises(DataError, match=message):
        released.load_outputs(tmp_path, HHH_FILE, [ROW])


def test_the_end_mark_is_removed_and_a_checked_file_that_was_changed_is_refused(tmp_path):
    for file in (HHH_FILE, PT_GOLD):
        write_items(tmp_path / file.path, [{"prompt": "Human: Why? I am terse.", "response": f" yes{EOS}"}])
    assert released.load_outputs(tmp_path, HHH_FILE, [ROW]) == {ROW.id: " yes"}
    with pytest.raises(DataError, match="SHA-256"):
        released.load_outputs(tmp_path, PT_GOLD, [ROW])


def test_rows_without_responses_or_without_both_files_have_no_flip():
    sided = [("mnemonic", "dpo-chosen", f"retrieved-{side}") for side in SIDES]
    outputs = {ReleasedFile(*one): {"i": "a b"} for one in (*sided, HHH_FILE)}
    rows = {"mnemonic": [TailoringRow("i", "test", "p", "", "")], "hhh": [ROW]}
    assert released.released_tables(released.Released(outputs, rows), 10)["released_flip"].empty


PERSONAS = ("gold-chosen", "gold-rejected")
JUDGE = ["evaluation.judge=lm", "judge.model=tiny-judge", "judge.url=http://localhost:1/v1"]
JUDGE += ["judge.format=json", "evaluation.bootstrap_samples=50", "evaluation.limit=0"]


@pytest.fixture
def data(results_here):
    """Outputs of both policies under both personas; row 2 lacks one persona."""
    personas = [{name: f"The user is {name} {i}." for name in PERSONAS} for i in range(6)]
    personas[2]["gold-rejected"] = None
    rows = [TailoringRow(f"hhh-test-{i}", "test", f"Human: Question {i}?", "c", "r", known)
            for i, known in enumerate(personas)]  # fmt: skip
    outputs = {}
    for arm, name in itertools.product(("dpo-chosen", "dpo-none"), PERSONAS):
        answers = [f" {arm} answer {i}" + "!" * (i if arm == "dpo-none" else 2) for i in range(6)]
        answers[1] = f" {arm} answer\nPrompt: another"
        texts = {row.id: text for row, text in zip(rows, answers, strict=True)}
        outputs[ReleasedFile("hhh", arm, name)] = texts
    return released.Released(outputs, {"hhh": rows})


def test_comparisons_leave_out_rows_without_a_persona_and_end_where_another_prompt_begins(data):
    profile = load_profile("authors", JUDGE)
    assert released.judged_pairs(profile, data) == [("hhh", name) for name in PERSONAS]
    chosen, rejected = (released.released_comparisons(data, "hhh", name, 0) for name in PERSONAS)
    assert len(chosen) == 6 and [c.id[-1] for c in rejected] == ["0", "1", "3", "4", "5"]
    assert (chosen[1].response_a, chosen[1].response_b) == (" dpo-chosen answer", " dpo-none answer")
    assert (chosen[0].prompt, chosen[0].persona) == ("Human: Question 0?", "The user is gold-chosen 0.")
    drawn = [{c.id for c in released.released_comparisons(data, "hhh", p, limit=4)} for p in PERSONAS]
    assert len(drawn[0]) == 4 and drawn[1] == drawn[0] - {"hhh-test-2"}, "the same rows for all personas"


def test_counts_are_those_of_the_judge_and_the_papers_row_stands_below(data, monkeypatch):
    # "dpo-chosen answer i!!" has 4 - i characters more than "dpo-none answer i" with i "!"; row 1 has 2 more.
    # So DPO+P is shorter in rows 0 to 3, equal in row 4 (no verdict), longer in row 5.
    judge = Echo(say=shorter)
    monkeypatch.setattr(judges, "load_generator", lambda run, role: judge)
    run = Run(load_profile("authors", JUDGE), "hhh", 0)
    folders = released.judge_released(run, data)
    assert all((folder / "done.json").exists() for folder in folders) and len(folders) == 2
    table = released.rejudged_tables(run, data)["released_judged"]
    ours, theirs = table.iloc[0], table.iloc[1]
    assert (ours.dataset, ours.label, ours.judge, ours.n) == ("Anthropic HHH", "chosen, gold", judge.name, 6)
    for rubric in "pq":
        assert [ours[f"{rubric}_{v}"] for v in ("win", "tie", "loss", "unparsed")] == [1, 0, 4, 1]
    assert ours.dpq == pytest.approx(100 * (1 - 4) / 5) and ours.dpq_low <= ours.dpq <= ours.dpq_high
    printed = next(r for r in released.paper_table() if (r["dataset"], r["side"], r["persona"])
                 == ("Anthropic HHH", "chosen", "gold"))  # fmt: skip
    assert [theirs.p_win, theirs.q_loss] == [int(printed["p_win"]), int(printed["q_loss"])]
    assert theirs.dpq == pytest.approx(float(printed["dpq_printed"]), abs=0.05)
    assert list(table.label) == ["chosen, gold"] * 2 + ["rejected, gold"] * 2 and table.iloc[2].n == 5
    other = Run(load_profile("authors", [*JUDGE, "judge.model=other-judge"]), "hhh", 0)
    assert not {*released.judge_released(other, data)} & {*folders}
    asked = len(judge.asked)
    assert released.judge_released(run, data) == folders
    assert len(judge.asked) == asked, "the first one's are kept"


@pytest.mark.parametrize("settings", [["evaluation.judge=none"], ["evaluation.judge=lm", "judge.model=base"]])
def test_without_a_language_model_of_its_own_nothing_is_judged_and_it_is_said_how(data, settings, capsys):
    run = Run(load_profile("authors", settings), "hhh", 0)
    assert released.judge_released(run, data) == [] and released.rejudged_tables(run, data) == {}
    assert "--set evaluation.judge=lm --set judge.model=NAME" in capsys.readouterr().out
