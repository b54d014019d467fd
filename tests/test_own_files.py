"""Files of users in every kind that is read: the same rows from all; what cannot be opened says so."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pytest

from persona_lib.data import intake
from persona_lib.records import DataError

ROWS = [
    {"prompt": "Which, of these?", "chosen": 'He said "no".\nThen he left.', "rejected": "a\tb"},
    {"prompt": "Wie geht's, Jürgen?", "chosen": "gut \u2028 danke", "rejected": "  schlecht"},
]


def as_csv(separator: str) -> str:
    """Write the rows with the standard library's writer, Windows line ends included."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


def save_csv(path):
    path.write_bytes(as_csv("," if ".csv" in path.name else "\t").encode("utf-8-sig"))  # with a BOM


def save_lines(path):
    text = "\r\n".join(["", *(json.dumps(row, ensure_ascii=False) for row in ROWS), ""])
    path.write_bytes(text.encode("utf-8-sig"))


def save_array(path):
    path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")


def save_zipped(path):
    path.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() + b"\n" + json.dumps(ROWS[1]).encode()))


def save_parquet(path):
    import pandas as pd

    pd.DataFrame(ROWS).to_parquet(path)


def save_folder(path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("x.csv", save_csv),
        ("x.tsv", save_csv),
        ("x.jsonl", save_lines),
        ("x.json", save_array),
        ("lines.json", save_lines),
        ("x.jsonl.gz", save_zipped),
        ("x.parquet", save_parquet),
        ("folder", save_folder),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, save):
    save(tmp_path / name)
    rows = intake.read_rows(str(tmp_path / name))
    assert [row.values for row in rows] == ROWS
    assert [row.error for row in rows] == ["", ""]


def test_splits_of_a_saved_folder_are_given_splits_and_rows_are_numbered_through(tmp_path):
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "d")
    rows = intake.read_rows(str(tmp_path / "d"))
    assert [(row.number, row.place, row.split) for row in rows] == [
        (1, "train row 1", "train"), (2, "train row 2", "train"),
        (3, "test row 1", "test"), (4, "test row 2", "test"),
    ]  # fmt: skip


def test_a_damaged_line_of_csv_costs_only_itself_and_says_its_lines(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(
        'prompt,chosen,rejected\na,b\n"c"x,d,e\nf,g,h\ni,j,k,l\n\n"m\nn",o,p\nq,"r', encoding="utf-8"
    )
    rows = intake.read_rows(str(path))
    assert [row.values and list(row.values.values()) for row in rows] == [
        None, None, ["f", "g", "h"], None, ["m\nn", "o", "p"], None
    ]  # fmt: skip
    assert rows[0].error == "2 cells where the header has 3: quote cells that hold the separator"
    assert rows[1].error.startswith("lines 3: ") and rows[3].error.startswith("4 cells")
    assert "a quote is not closed" in rows[5].error and rows[4].place == "row 5 (line 7)"


def test_bytes_that_are_not_utf8_become_the_replacement_character(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes("prompt,chosen,rejected\ncafé,a,b\n".encode("cp1252"))
    assert intake.read_rows(str(path))[0].values["prompt"] == "caf\ufffd"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.xlsx", b"PK", "files of this kind are not read. Use JSON lines.*save a spreadsheet as CSV"),
        ("x.csv", b"", "no row in it"),
        ("x.csv", b"prompt,chosen,rejected\n", "no row in it"),
        ("x.csv", b"prompt,chosen,chosen\na,b,c\n", "two columns have the same name: prompt, chosen, chosen"),
        ("x.csv", "prompt".encode("utf-16"), "is UTF-16, not UTF-8: iconv"),
        ("x.json", b'[{"prompt": "a"}, {"pro', "not a whole JSON array .* one object per line"),
        ("x.jsonl", b"prompt chosen\nrejected", "no line of it is a JSON object .line 1"),
        ("x.json", b'{\n "prompt": "a"\n}', "no line of it is a JSON object"),
        ("x.jsonl.gz", b"not zipped", "cannot be read"),
        ("x.parquet", b"not parquet", "not a readable Parquet file"),
        ("state.json", b"{}", "not a whole folder of datasets.save_to_disk"),
    ],
)
def test_what_cannot_be_opened_is_named_with_its_mend(tmp_path, name, content, complaint):
    path = tmp_path / "place" / name
    path.parent.mkdir()
    path.write_bytes(content)
    place = path.parent if name == "state.json" else path
    with pytest.raises(DataError, match=complaint) as caught:
        intake.read_rows(str(place))
    assert str(caught.value).startswith(str(place))


def test_a_folder_with_one_data_file_is_that_file_and_with_several_is_an_error(tmp_path):
    save_lines(tmp_path / "a.jsonl")
    (tmp_path / "notes.txt").write_text("about the data")
    assert len(intake.read_rows(str(tmp_path))) == 2
    save_array(tmp_path / "b.json")
    with pytest.raises(DataError, match="holds 2 data files: a.jsonl, b.json; name one file"):
        intake.read_rows(str(tmp_path))


def test_a_missing_file_and_an_unpinned_or_unreachable_hub_id_are_said_apart(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="missing.jsonl: no such file or folder"):
        intake.read_rows("missing.jsonl")
    with pytest.raises(DataError, match="some/data.jsonl: no such file or folder"):
        intake.read_rows("some/data.jsonl")
    with pytest.raises(DataError, match="write someone/pairs@COMMIT"):
        intake.read_rows("someone/pairs")

    def offline(*_, **__):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(
        DataError, match="someone/pairs@a+: neither a file or folder here nor.*HF_HUB_OFFLINE"
    ):
        intake.read_rows(f"someone/pairs@{'a' * 40}")
