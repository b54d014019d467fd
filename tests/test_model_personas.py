"""The nine models' personas: read from a file, a folder or the hub, with the same checks, and counted."""

from __future__ import annotations

import json

import pytest

from persona_lib.data.model_personas import read_model_personas
from persona_lib.records import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROW = {"prompt": "How?", "chosen": "So.", "rejected": "Or so.", "model": "m1", "dataset": "SHP"}
ROWS = [
    ROW | {"persona": " The user is calm and prefers facts over jokes.\n"},
    ROW | {"persona": "I can't help with that."},
    ROW | {"persona": "The user is brief.", "model": "m2"},
]


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_file_a_folder_and_the_hub_give_the_same_rows(tmp_path, monkeypatch):
    from datasets import Dataset, DatasetDict

    rows = read_model_personas(save(tmp_path / "x.jsonl", ROWS))
    assert [(row.id, row.model, row.status) for row in rows] == [
        ("personas-000000", "m1", "ok"),
        ("personas-000001", "m1", "refusal"),
        ("personas-000002", "m2", "ok"),
    ]
    assert rows[0].persona == "The user is calm and prefers facts over jokes."
    assert (rows[1].persona, rows[1].raw) == (None, "I can't help with that.")

    table = DatasetDict({"train": Dataset.from_list(ROWS)})
    table.save_to_disk(tmp_path / "folder")
    assert read_model_personas(str(tmp_path / "folder")) == rows
    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *args, revision: asked.append((*args, revision)) or table
    )
    assert read_model_personas(f"nbalepur/personas@{COMMIT}") == rows
    assert asked == [("nbalepur/personas", None, COMMIT)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "How?"}, "row 2: no field 'chosen'; there are prompt"),
        (ROWS[0] | {"persona": None}, "row 2: persona=None should be str"),
        (ROWS[0] | {"model": " "}, "row 2: model is empty"),
    ],
)
def test_a_malformed_row_names_file_row_and_field(tmp_path, row, message):
    path = save(tmp_path / "x.jsonl", [ROWS[0], row])
    with pytest.raises(DataError) as caught:
        read_model_personas(path)
    assert str(caught.value).startswith(path) and message in str(caught.value)


def test_without_a_commit_or_a_hub_the_ways_are_told(monkeypatch):
    with pytest.raises(
        DataError, match="nbalepur/personas: not a file or folder here.*nbalepur/personas@COMMIT"
    ):
        read_model_personas("nbalepur/personas")
