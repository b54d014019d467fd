"""Files that processes are killed over: a torn last line goes, and nothing else is read for it."""

from __future__ import annotations

import io

import pytest

from persona_lib import store
from persona_lib.records import Generation


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"a": 1}\n{"a"', b'{"a": 1}\n'),
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a"', b""),
        (b"", b""),
        (b"x\n" + b"y" * 3 * store.BLOCK, b"x\n"),
        (b"y" * (store.BLOCK - 1) + b"\n" + b"z" * store.BLOCK, b"y" * (store.BLOCK - 1) + b"\n"),
    ],
    ids=["torn", "whole", "only a torn line", "empty", "torn line of several blocks", "newline ends a block"],
)
def test_a_torn_last_line_is_cut_off(tmp_path, before, after):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(before)
    store.repair_rows(path)
    assert path.read_bytes() == after


def test_a_file_that_is_not_there_stays_away(tmp_path):
    store.repair_rows(tmp_path / "none.jsonl")
    assert not list(tmp_path.iterdir())


def test_only_the_end_of_a_long_file_is_read_to_repair_it():
    class Counted(io.BytesIO):
        bytes_read = 0

        def read(self, size: int = -1) -> bytes:
            found = super().read(size)
            self.bytes_read += len(found)
            return found

    text = b'{"a": 1}\n' * 100_000 + b"{torn"
    file = Counted(text)
    assert store.end_of_last_line(file, len(text)) == len(text) - len(b"{torn")
    assert file.bytes_read == store.BLOCK


def test_ids_are_those_of_the_records_whatever_stands_in_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    names = ["a", 'quoted "b"', "back\\slash", "Zoë", 'ends in \\"', "x" * 300]
    store.write_rows(
        path, [Generation(name, "run", '{"id": "not this"}', None, "t", "stop", 1) for name in names]
    )
    assert list(store.row_ids(path)) == names == [row.id for row in store.read_rows(path, Generation)]
    store.append_rows(path, [{"order": "AB", "id": "second field"}])
    assert list(store.row_ids(path)) == [*names, "second field"]


@pytest.mark.parametrize("line", ['{"ids": 1}', "not json", "[1]"])
def test_a_line_without_an_id_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"id": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2: no id .*mend or delete the line"):
        list(store.row_ids(path))
