"""Files that processes are killed over: a torn last line goes, and a damaged line is named."""

from __future__ import annotations

import pytest

from persona_lib import store


@pytest.mark.parametrize(
    ("before", "after"),
    [(b'{"a": 1}\n{"a"', b'{"a": 1}\n'), (b'{"a": 1}\n', b'{"a": 1}\n'), (b'{"a"', b""), (b"", b"")],
    ids=["torn", "whole", "only a torn line", "empty"],
)
def test_a_torn_last_line_is_cut_off(tmp_path, before, after):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(before)
    store.repair_rows(path)
    assert path.read_bytes() == after


@pytest.mark.parametrize("line", ['{"ids": 1}', "not json", "[1]"])
def test_a_line_without_an_id_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"id": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2: .*mend or delete the line"):
        list(store.row_ids(path))
