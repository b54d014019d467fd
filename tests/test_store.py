"""Files that processes are killed over, and the commit that a run was made with."""

import csv
import io
import subprocess
from dataclasses import make_dataclass

import pandas as pd
import pytest

from persona_lib import store

Row = make_dataclass("Row", ["id", "winner"])


@pytest.mark.parametrize("line", ['{"ids": 1}', "not json", "[1]"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"id": "a", "winner": "A"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2: not"):
        store.read_rows(path, Row)


def test_a_commit_is_dirty_by_its_code_and_not_by_what_runs_write(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "REPO", tmp_path)
    assert store.git_state() == {"commit": None, "dirty": None}
    written, code = tmp_path / "figures" / "main.png", tmp_path / "code.py"
    for path in (written, code):
        store.write_text(path, "as committed")
    for words in ("init -q", "add .", "-c user.name=a -c user.email=a@b.c commit -qm all"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    written.write_text("written by a run", encoding="utf-8")
    assert len(store.git_state()["commit"]) == 40 and store.git_state()["dirty"] is False
    code.write_text("changed", encoding="utf-8")
    assert store.git_state()["dirty"] is True


ODD = ["=1+1", "+1", "-First", "@now()", "\t=2", "\r=3", "a\r=4", "a\r\n=5", '=HYPERLINK("x")', '"=7"']


def test_no_cell_for_people_is_a_formula_also_for_readers_that_break_lines_at_a_carriage_return():
    text = store.people_csv(pd.DataFrame({"text": ODD}))
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == 1 + len(ODD) and "\r" not in text
    assert not [row for row in rows if row[0].startswith(store.FORMULA)]
