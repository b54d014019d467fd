"""The publishers' own files: what is read, what is left out, and errors that name file, row and field."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest

from persona_lib.config import Run, load_profile
from persona_lib.data import preference, raw
from persona_lib.records import DataError

SAFE = {
    "prompt": "How?",
    "response_0": "first",
    "response_1": "second",
    "is_response_0_safe": True,
    "is_response_1_safe": True,
    "better_response_id": 1,
}
HH = {"chosen": "\n\nHuman: How?\n\nAssistant: Well.", "rejected": "\n\nHuman: How?\n\nAssistant: Badly."}
SHP = {
    "history": "How?",
    "human_ref_A": "a",
    "human_ref_B": "b",
    "labels": 1,
    "score_A": 30,
    "score_B": 10,
}
SMART = {"prompt": "abate", "chosen": "A bait that lessens hunger.", "rejected": "Sounds like a date."}
AUTOJ = {"scenario": "chat", "label": 0, "prompt": "How?", "response 1": "first", "response 2": "second"}


def save(path, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def texts(pairs):
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


def test_safe_rlhf_takes_the_better_response_and_drops_unsafe_rejected_ones(tmp_path):
    rows = [
        SAFE,
        SAFE | {"better_response_id": 0},
        SAFE | {"is_response_0_safe": False},  # the rejected one
        SAFE | {"is_response_1_safe": False},  # the chosen one: kept, as the label says that it is better
        SAFE | {"response_0": "second "},
        SAFE | {"prompt": " "},
    ]
    pairs, out = raw.read_file(save(tmp_path / "x.jsonl", *rows), "safe_rlhf")
    assert texts(pairs) == [
        ("How?", "second", "first"),
        ("How?", "first", "second"),
        ("How?", "second", "first"),
    ]
    assert [pair.id for pair in pairs] == ["safe_rlhf-000000", "safe_rlhf-000001", "safe_rlhf-000003"]
    assert out == {"the rejected response is unsafe": 1, "two equal responses": 1, "an empty text": 1}


def test_hh_rlhf_takes_single_turns_from_gzipped_transcripts(tmp_path):
    longer = "\n\nHuman: How?\n\nAssistant: Hm?\n\nHuman: Now?\n\nAssistant: Yes."
    rows = [HH, HH | {"chosen": longer}, HH | {"rejected": HH["rejected"].replace("How", "Why")}]
    pairs, out = raw.read_file(save(tmp_path / "x.jsonl.gz", *rows), "hh_rlhf")
    assert texts(pairs) == [("How?", "Well.", "Badly.")]
    assert out == {"more than one turn": 1, "two different prompts": 1}


def test_shp_takes_the_preferred_comment_and_drops_those_with_few_upvotes(tmp_path):
    rows = [SHP, SHP | {"labels": 0}, SHP | {"score_B": 9}]
    pairs, out = raw.read_file(save(tmp_path / "x.jsonl", *rows), "shp_raw")
    assert texts(pairs) == [("How?", "a", "b"), ("How?", "b", "a")]
    assert out == {"under ten upvotes": 1}


def test_smart_mnemonics_are_read_as_they_are(tmp_path):
    rows = [SMART, SMART | {"rejected": SMART["chosen"]}]
    pairs, out = raw.read_file(save(tmp_path / "x.jsonl", *rows), "smart")
    assert texts(pairs) == [(SMART["prompt"], SMART["chosen"], SMART["rejected"])]
    assert out == {"two equal responses": 1}


def test_autoj_takes_the_labelled_response_and_drops_ties(tmp_path):
    rows = [AUTOJ, AUTOJ | {"label": 1}, AUTOJ | {"label": 2}]
    pairs, out = raw.read_file(save(tmp_path / "x.json", *rows), "autoj")
    assert texts(pairs) == [("How?", "first", "second"), ("How?", "second", "first")]
    assert out == {"a tie": 1}


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_a_json_array_is_read_like_json_lines(tmp_path, name):
    rows = [SHP, SHP | {"labels": 0}]
    text, lines = json.dumps(rows, indent=1).encode(), save(tmp_path / "lines.jsonl", *rows)
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else b"\n" + text)
    assert raw.read_file(tmp_path / name, "shp_raw") == raw.read_file(lines, "shp_raw")


def test_a_torn_array_and_a_bad_row_of_one_are_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([SHP, SHP | {"labels": 3}]))
    with pytest.raises(DataError, match="x.json, row 2: labels=3 should be 0 or 1"):
        raw.read_file(path, "shp_raw")
    path.write_text(json.dumps([SHP])[:-5])
    with pytest.raises(DataError, match="x.json: not valid JSON .* fetch the file again"):
        raw.read_file(path, "shp_raw")


def test_the_real_autoj_file_has_1392_rows_and_every_tie_is_counted(autoj_data):
    path = raw.raw_file(str(autoj_data), "autoj")
    pairs, out = raw.read_file(path, "autoj")
    labels = Counter(json.loads(line)["label"] for line in path.read_text(encoding="utf-8").splitlines())
    assert sum(labels.values()) == 1392 == len(pairs) + out.total()
    assert out["a tie"] == labels[2] > 0
    preference.check_pairs({"all": pairs}, "autoj")


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "safe_rlhf",
            SAFE | {"better_response_id": 2},
            "row 2: better_response_id=2 should be 0 or 1",
        ),
        ("safe_rlhf", SAFE | {"better_response_id": True}, "better_response_id=True should be int"),
        ("safe_rlhf", SAFE | {"prompt": None}, "row 2: prompt=None should be str"),
        ("safe_rlhf", {"prompt": "x"}, "row 2: no field 'response_0'; there are prompt"),
        ("safe_rlhf", [1], "row 2: a list, not an object"),
        ("shp_raw", SHP | {"score_A": "many"}, "row 2: score_A='many' should be int"),
        ("smart", SMART | {"chosen": ["a", "b"]}, "row 2: chosen=['a', 'b'] should be str"),
        ("autoj", AUTOJ | {"label": 3}, "row 2: label=3 should be 0, 1 or 2"),
        (
            "autoj",
            {"prompt": "x", "label": 0},
            "row 2: no field 'response 1'; there are label, prompt",
        ),
        ("hh_rlhf", HH | {"chosen": "Human: How?"}, "row 2, chosen: not a dialogue"),
        ("hh_rlhf", HH | {"rejected": "\n\nAssistant: Well."}, "row 2, rejected: not a dialogue"),
    ],
)
def test_a_malformed_row_is_an_error_that_names_file_row_and_field(tmp_path, name, row, message):
    good = {"safe_rlhf": SAFE, "shp_raw": SHP, "hh_rlhf": HH, "smart": SMART, "autoj": AUTOJ}[name]
    path = save(tmp_path / "x.jsonl", good, row)
    with pytest.raises(DataError) as caught:
        raw.read_file(path, name)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)


def test_a_torn_line_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(SHP) + '\n{"history": "Ho', encoding="utf-8")
    with pytest.raises(ValueError, match="x.jsonl:2: not valid JSON"):
        raw.read_file(path, "shp_raw")


def test_all_pairs_of_a_prompt_share_a_split_and_the_shares_are_about_right(tmp_path):
    rows = [SHP | {"history": f"question {n // 2}", "human_ref_A": f"a{n}"} for n in range(2000)]
    splits = raw.split_pairs(raw.read_file(save(tmp_path / "x.jsonl", *rows), "shp_raw")[0])
    prompts = {name: {pair.prompt for pair in pairs} for name, pairs in splits.items()}
    assert sum(map(len, prompts.values())) == 1000 == len(set().union(*prompts.values()))
    assert 0.75 < len(splits["train"]) / 2000 < 0.85
    assert 0.07 < len(splits["validation"]) / 2000 < 0.13


def test_a_raw_file_becomes_the_pairs_of_a_run_and_another_file_another_key(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    path = save(
        tmp_path / "safe_rlhf.jsonl",
        *(SAFE | {"prompt": f"question {n}"} for n in range(50)),
        SAFE | {"prompt": ""},
    )
    run = Run(load_profile("everyday", ["datasets=safe_rlhf", f"data_dir={tmp_path}"]), "safe_rlhf", 0)
    preference.write_pairs(run)
    assert "50 pairs; rows left out: 1 with an empty text" in capsys.readouterr().out
    assert sum(map(len, preference.load_pairs(run).values())) == 50
    key = preference.input_key(run)
    save(path, *(SAFE | {"prompt": f"question {n}"} for n in range(40)))
    assert preference.input_key(run) != key


def test_a_missing_file_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match="no file there for hh_rlhf; looked for hh_rlhf.jsonl"):
        raw.raw_file(str(tmp_path), "hh_rlhf")
    with pytest.raises(DataError, match="--data PATH"):
        raw.raw_file("", "hh_rlhf")
