"""Any file, folder or hub id becomes rows: encoding and separator are found, damage is named by place."""

import gzip
import json

import datasets
import pandas as pd
import pytest

from persona_lib.data.rows import read_rows, source_key
from persona_lib.records import DataError

ROWS = [
    {"prompt": "Which, of these?", "chosen": 'He said "no".\nThen he left.', "rejected": "a\tb"},
    {"prompt": "Wie geht's, Jürgen?", "chosen": "gut \u2028 danke", "rejected": "  schlecht"},
]
LINES = "\r\n".join(["", *(json.dumps(row, ensure_ascii=False) for row in ROWS), ""])


def as_cells(separator: str) -> str:
    return pd.DataFrame(ROWS).to_csv(index=False, sep=separator, lineterminator="\r\n")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", lambda: as_cells(",").encode("utf-8-sig")),
        ("utf16.tsv", lambda: as_cells("\t").encode("utf-16")),
        ("x.jsonl", lambda: LINES.encode("utf-8-sig")),
        ("array.json", lambda: json.dumps(ROWS, indent=1).encode()),
        ("object.json", lambda: json.dumps({"of": 2, "rows": ROWS}, indent=1).encode()),
        ("one_line.json", lambda: json.dumps({"of": 2, "rows": ROWS}).encode()),
        ("x.jsonl.gz", lambda: gzip.compress(LINES.encode())),
        ("semicolons.csv", lambda: as_cells(";").encode()),
        ("x.parquet", lambda: pd.DataFrame(ROWS).to_parquet()),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, content):
    (tmp_path / name).write_bytes(content())
    for place in (tmp_path / name, tmp_path):  # the file, and a folder with nothing else to read
        assert [row.value for row in read_rows(str(place))[0]] == ROWS


def test_splits_of_a_saved_folder_are_given_splits_and_its_key_sees_a_change(tmp_path):
    table, path = datasets.Dataset.from_list(ROWS), str(tmp_path / "d")
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(path)
    found = [(row.row, row.place, row.value["split"]) for row in read_rows(path)[0]]
    assert found == [(1, "train row 1", "train"), (2, "train row 2", "train"),
                     (3, "test row 1", "test"), (4, "test row 2", "test")]  # fmt: skip
    key = source_key(path)
    datasets.Dataset.from_list(ROWS[:1]).save_to_disk(path)
    assert source_key(path) != key


def test_a_damaged_row_of_csv_costs_only_itself_and_says_its_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('prompt,chosen,rejected\na,b\nf,g,h\n"i,j,k\n\n"m\nn",o,p\nq,r,s\n"t,u,v\nw,x,y\n')
    rows, _ = read_rows(str(path))
    values = [list(row.value.values()) if isinstance(row.value, dict) else None for row in rows]
    assert values == [None, ["f", "g", "h"], None, ["m\nn", "o", "p"], ["q", "r", "s"], None, ["w", "x", "y"]]
    assert [row.place for row in rows[-2:]] == ["row 6 (line 9)", "row 7 (line 10)"]
    assert "a quote is not closed" in str(rows[2].value) and "a quote is not closed" in str(rows[5].value)
    assert str(rows[0].value).startswith("2 cells, the header has 3: quote cells that hold")
    assert [row.place for row in rows[:2]] == ["row 1 (line 2)", "row 2 (line 3)"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.xlsx", b"PK", "this kind is not read. Use JSON lines.*save a spreadsheet as CSV"),
        ("x.csv", b"prompt,chosen,rejected\n", "no row in it"),
        ("x.csv", b"prompt,chosen,chosen\na,b,c\n", "two columns have the same name: prompt, chosen, chosen"),
        ("x.json", b'{"a": [1],\n "rows": []}', "an object with 2 lists: one list should hold the rows"),
        ("x.jsonl", b"prompt chosen\nrejected", "no JSON: .*; line 1: not valid JSON"),
        ("x.jsonl", LINES.encode("utf-16-le"), "perhaps UTF-16 without a mark: name its encoding"),
        ("x.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("x.parquet", b"not parquet", "cannot be read .*Parquet"),
    ],
)
def test_what_cannot_be_opened_is_named_with_its_way_out(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        read_rows(str(tmp_path / name))
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_folder_without_data_a_missing_file_and_an_unreachable_hub_id_are_told_apart(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr("datasets.load_dataset", offline)
    for place, said in {
        str(tmp_path): "a folder without a data file",
        "https://example.org/x.jsonl": "no such file or folder .download it first",
        "some/data.jsonl": "some/data.jsonl: no such file or folder",
        f"someone/pairs@{'a' * 40}": "someone/pairs@a+: cannot be read .Couldn't.*HF_HUB_OFFLINE",
    }.items():
        with pytest.raises(DataError, match=said):
            read_rows(place)


def test_encoding_and_separator_are_said_and_damage_stays_in_its_row(tmp_path):
    path = tmp_path / "x.csv"
    text = "prompt;chosen;rejected\nWie, Jürgen?;gut, danke;schlecht\n"
    path.write_bytes(text.encode("cp1252"))
    rows, how = read_rows(str(path))
    assert how == "encoding cp1252, cells separated by semicolons"
    assert rows[0].value["prompt"] == "Wie, Jürgen?"
    path.write_bytes(text.encode() + "Größe;".encode("cp1252"))  # damaged UTF-8
    assert read_rows(str(path))[0][0].value["prompt"] == "Wie, Jürgen?"
    path.write_bytes(text.replace("ü", "ы").encode("cp1251"))
    assert read_rows(str(path), encoding="cp1251")[0][0].value["prompt"] == "Wie, Jыrgen?"
