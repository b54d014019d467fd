"""Rows of a user's own file, whatever its kind, with their numbers; what cannot be read is a row, too.

JSON lines, a JSON array, CSV and TSV are read row by row with the standard library, so that one damaged
row is named and costs nothing but itself; Parquet and Arrow folders by pyarrow and datasets; a hub id is
loaded at its pinned commit. Text files are UTF-8, with or without a byte order mark; bytes that are not
become U+FFFD, which the checks then find.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lib import hub, store
from persona_lib.records import DataError

UTF16 = (b"\xff\xfe", b"\xfe\xff")
JSON_FORMS = "Write one object per line, or one array of objects, each with the fields of one pair"
KINDS = "JSON lines (.jsonl), JSON (.json), CSV, TSV, Parquet, a datasets folder (save_to_disk), or a hub id"


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in the data: ``number`` from 1, ``place`` for messages, the given split if any.

    ``values`` is None, and ``error`` says why, where the row could not be read.
    """

    number: int
    place: str
    split: str
    values: dict[str, Any] | None
    error: str = ""


def read_rows(source: str, config: str = "") -> list[RawRow]:
    """Read all rows of a file, folder or hub id. Raises DataError if it cannot be opened or holds no row."""
    path = Path(source).expanduser()
    if path.is_dir():
        rows = list(folder_rows(path))
    elif path.is_file():
        rows = list(reader_of(path)(path))
    else:
        rows = list(hub_rows(source, config))
    if not rows:
        raise DataError(f"{source}: no row in it; it should hold one preference pair per row")
    return rows


def reader_of(path: Path) -> Any:
    """Return the reader for a file's name; DataError for a kind that is not read."""
    name = path.name.lower().removesuffix(".gz")
    found = [reader for ending, reader in READERS.items() if name.endswith(ending)]
    if not found or (path.suffix == ".gz" and name.endswith(".parquet")):
        raise DataError(f"{path}: files of this kind are not read. Use {KINDS}; save a spreadsheet as CSV")
    return found[0]


def read_text(path: Path) -> str:
    """Return a file's text, line ends as they are; DataError for UTF-16 and for what is no text."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if data.startswith(UTF16):
        raise DataError(f"{path}: is UTF-16, not UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} > new.csv")
    return data.decode("utf-8-sig", errors="replace")


def object_row(number: int, place: str, value: Any, split: str = "") -> RawRow:
    """Return a row of JSON, which must be an object."""
    if isinstance(value, dict):
        return RawRow(number, place, split, value)
    return RawRow(number, place, split, None, f"is a {type(value).__name__}, not an object with named fields")


def json_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of JSON lines, or of one JSON array if the file begins with "["."""
    text = read_text(path)
    if text.lstrip()[:1] != "[":
        rows = list(line_rows(text))
        if rows and all(row.error.startswith("not valid JSON") for row in rows):
            first = f"{rows[0].place}: {rows[0].error}"
            raise DataError(f"{path}: no line of it is a JSON object ({first}). {JSON_FORMS}")
        yield from rows
        return
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not a whole JSON array ({error}). Mend it there, or write one object per line "
            "(.jsonl): then a damaged line costs only itself"
        ) from error
    yield from (object_row(number, f"row {number}", value) for number, value in enumerate(values, start=1))


def line_rows(text: str) -> Iterator[RawRow]:
    """Yield the rows of JSON lines; a line that is no JSON is a row with an error. Empty ones are none."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield object_row(number, f"line {number}", json.loads(line))
        except json.JSONDecodeError as error:
            said = f"not valid JSON: {error.msg}, column {error.colno}"
            yield RawRow(number, f"line {number}", "", None, said)


def csv_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of comma-separated values with a header; cells may hold quotes, commas and newlines."""
    yield from cell_rows(path, ",")


def tsv_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of tab-separated values with a header."""
    yield from cell_rows(path, "\t")


def cell_rows(path: Path, separator: str) -> Iterator[RawRow]:
    """Yield the rows of a table of cells; one with too many or too few cells is a row with an error."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator, strict=True)
    header, number = next(reader, []), 0
    if len(set(header)) < len(header):
        raise DataError(f"{path}: two columns have the same name: {', '.join(header)}")
    while True:
        number, start = number + 1, reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            end = f" to {reader.line_num}" if reader.line_num > start else ""
            said = f"lines {start}{end}: {error}; a quote is not closed, or not doubled"
            yield RawRow(number, f"row {number}", "", None, said)
            continue
        if cells is None:
            return
        if cells:
            yield cell_row(number, f"row {number} (line {start})", header, cells)
        else:
            number -= 1  # an empty line


def cell_row(number: int, place: str, header: list[str], cells: list[str]) -> RawRow:
    """Return one row of cells under the header's names."""
    if len(cells) == len(header):
        return RawRow(number, place, "", dict(zip(header, cells, strict=True)))
    error = f"{len(cells)} cells where the header has {len(header)}: quote cells that hold the separator"
    return RawRow(number, place, "", None, error)


def parquet_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from error
    yield from numbered(table.to_pylist(), "")


def numbered(values: Iterable[dict[str, Any]], split: str, start: int = 1) -> Iterator[RawRow]:
    """Number rows from ``start``; a given split is part of the place, where each split counts for itself."""
    for place, value in enumerate(values, start=1):
        yield RawRow(place + start - 1, f"{split} row {place}".strip(), split, value)


def table_rows(data: Any) -> Iterator[RawRow]:
    """Yield the rows of a ``datasets`` Dataset, or of all splits of a DatasetDict."""
    start = 1
    for split, table in data.items() if isinstance(data, dict) else [("", data)]:
        yield from numbered(iter(table), str(split), start)
        start += len(table)


def folder_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a folder that ``save_to_disk`` wrote, or of its only data file."""
    if not is_saved_dataset(path):
        yield from reader_of(file := only_file(path))(file)
        return
    from datasets import load_from_disk

    try:
        yield from table_rows(load_from_disk(str(path)))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole folder of datasets.save_to_disk ({error})") from error


def only_file(folder: Path) -> Path:
    """Return the one data file that lies in a folder; DataError if there are none or several."""
    files = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(ENDINGS)]
    if len(files) != 1:
        listed = f": {', '.join(path.name for path in files[:5])}" if files else ""
        raise DataError(
            f"{folder}: holds {len(files)} data files{listed}; name one file with --data. Read are {KINDS}"
        )
    return files[0]


def is_saved_dataset(path: Path) -> bool:
    """Return True for a folder that ``datasets`` saved."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def hub_rows(source: str, config: str) -> Iterator[RawRow]:
    """Yield the rows of a data set on the hub, at its pinned commit; DataError if it cannot be had."""
    if "/" not in source or not hub.is_hub_id(source) or Path(source).suffix.lower() in READERS:
        raise DataError(f"{source}: no such file or folder (paths are relative to the repository)")
    try:
        data = hub.load_dataset(source, config or None)
    except hub.HubError as error:
        raise DataError(str(error)) from error
    except Exception as error:  # datasets, the hub's client and its transport each have their own kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{source}: neither a file or folder here nor, as a hub id, to be loaded ({reason[0][:200]}). "
            "Check the name, the network and HF_HUB_OFFLINE, or download it and give its path"
        ) from error
    yield from table_rows(data)


READERS = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".parquet": parquet_rows,
}


ENDINGS = (*READERS, *(f"{ending}.gz" for ending in READERS if ending != ".parquet"))


def source_key(source: str) -> str:
    """Return a hash of a file's or saved folder's contents; of a hub id, of the id with its commit."""
    path = Path(source).expanduser()
    if path.is_file():
        return store.file_hash(path)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return store.content_hash({str(file.relative_to(path)): store.file_hash(file) for file in files})
    return store.content_hash(source)
