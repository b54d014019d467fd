"""The rows of a user's own data: a file, folder or hub id becomes numbered rows that know their places.

JSON lines, CSV and TSV are read row by row, so that one damaged row is named and costs nothing but itself.
Bytes that are no UTF-8 become U+FFFD, which the checks of ``data.intake`` then find.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from persona_lib import store, weights
from persona_lib.records import DataError, PreferencePair
from persona_lib.settings import FACTS
from persona_lib.store import content_hash

WAYS_OUT = (
    "A file: save it again, best as JSON lines (.jsonl), where a damaged line costs only itself. "
    "A hub id: check its name, the network and HF_HUB_OFFLINE, or download it and give its path"
)
KINDS = "JSON lines (.jsonl), JSON (.json), CSV, TSV, Parquet, a datasets folder (save_to_disk), or a hub id"

# code -> (what is wrong with the row, the way out); a row is rejected once, for the first thing wrong with it
REJECTED, NOTED = store.read_json(FACTS / "own_findings.json").values()


@dataclass(frozen=True)
class OwnRow:
    """One row: its number from 1, its place for messages, the fields by name, and the pair once it is read.

    ``value`` is an Exception where the row could not be read. ``split`` is "" while none is given.
    """

    row: int
    place: str
    value: Any
    split: str = ""
    category: str = ""
    pair: PreferencePair = PreferencePair("", "", "", "")

    def found(self, field: str, code: str, detail: str = "") -> Finding:
        """Return a finding about this row."""
        return Finding(self.row, self.place, field, code, detail)


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a row: its number and place in the data, the field, the code, and a detail."""

    row: int
    place: str
    field: str
    code: str
    detail: str = ""

    @property
    def rejected(self) -> bool:
        """Whether the row is left out for it."""
        return self.code in REJECTED


# --- rows of a file, a folder or a hub id ---


def read_rows(source: str, config: str = "") -> list[OwnRow]:
    """Read all rows of a file, folder or hub id. Raises DataError if it cannot be opened or holds no row."""
    path = Path(source).expanduser()
    if not path.exists() and ("/" not in source or not weights.is_hub_id(source) or path.suffix in READERS):
        raise DataError(f"{source}: no such file or folder (paths are relative to the repository)")
    try:
        if path.exists():
            rows = folder_rows(path) if path.is_dir() else file_rows(path)
        else:
            rows = table_rows(weights.load_dataset(source, config or None))
    except weights.HubError as error:
        raise DataError(str(error)) from error
    except (DataError, ImportError):
        raise
    except Exception as error:  # files, their readers and the hub's client each have their own kinds
        reason = [*str(error).strip().splitlines(), type(error).__name__][0][:200]
        raise DataError(f"{source}: cannot be read ({reason}). {WAYS_OUT}") from error
    if not rows:
        raise DataError(f"{source}: no row in it; it should hold one preference pair per row")
    return rows


def read_text(path: Path) -> str:
    """Return a file's text (UTF-8, or UTF-16 with its mark), line ends as they are."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")


def json_rows(path: Path) -> list[OwnRow]:
    """Read JSON lines (empty lines are no rows), or one JSON array if the file begins with "["."""
    text = read_text(path)
    if text.lstrip()[:1] == "[":
        values = enumerate(json.loads(text), start=1)
        return [OwnRow(number, f"row {number}", object_of(value)) for number, value in values]
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = [OwnRow(number, f"line {number}", line_value(line)) for number, line in lines]
    if rows and all(str(row.value).startswith("not valid JSON") for row in rows):
        raise ValueError(f"no line of it is a JSON object; {rows[0].place}: {rows[0].value}")
    return rows


def object_of(value: Any) -> Any:
    """Return a value of JSON if it is an object, else an error."""
    named = f"is a {type(value).__name__}, not an object with named fields"
    return value if isinstance(value, dict) else ValueError(named)


def line_value(line: str) -> Any:
    """Return the object of a line of JSON; the error of a line that is none."""
    try:
        return object_of(json.loads(line))
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply for Python
        column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        return ValueError(f"not valid JSON: {getattr(error, 'msg', error)}{column}")


def cell_rows(path: Path, separator: str) -> list[OwnRow]:
    """Read a table of cells with a header; cells may hold quotes, separators and newlines.

    A row with too many or too few cells, or with an open quote, is a row with an error. Empty lines are none.
    """
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator, strict=True)
    header = next(reader, [])
    if len(set(header)) < len(header):
        raise DataError(f"{path}: two columns have the same name: {', '.join(header)}")
    rows: list[OwnRow] = []
    while True:
        place = f"row {len(rows) + 1} (line {reader.line_num + 1})"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            said = f"{error} (line {reader.line_num}); a quote is not closed, or not doubled"
            rows.append(OwnRow(len(rows) + 1, place, ValueError(said)))
            continue
        if cells is None:
            return rows
        said = f"{len(cells)} cells, the header has {len(header)}: quote cells that hold {separator!r}"
        value = dict(zip(header, cells, strict=True)) if len(cells) == len(header) else ValueError(said)
        if cells:  # an empty line is no row
            rows.append(OwnRow(len(rows) + 1, place, value))


def parquet_rows(path: Path) -> list[OwnRow]:
    """Read the rows of a Parquet file."""
    from pyarrow import parquet

    return table_rows(parquet.read_table(path).to_pylist())


def table_rows(data: Any) -> list[OwnRow]:
    """Return the rows of a table, or of all splits of a DatasetDict; places count from 1 in each split."""
    parts = data.items() if isinstance(data, dict) else [("", data)]
    found = [(str(split), place, row) for split, part in parts for place, row in enumerate(part, start=1)]
    return [
        OwnRow(number, f"{split} row {place}".strip(), row, split)
        for number, (split, place, row) in enumerate(found, start=1)
    ]


READERS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), json_rows),
    ".csv": partial(cell_rows, separator=","),
    ".tsv": partial(cell_rows, separator="\t"),
    ".parquet": parquet_rows,
}
ENDINGS = (*READERS, *(f"{ending}.gz" for ending in READERS if ending != ".parquet"))


def file_rows(path: Path) -> list[OwnRow]:
    """Read a file by the ending of its name; DataError for a kind that is not read."""
    if not path.name.lower().endswith(ENDINGS):
        raise DataError(f"{path}: files of this kind are not read. Use {KINDS}; save a spreadsheet as CSV")
    return READERS[Path(path.name.lower().removesuffix(".gz")).suffix](path)


def is_saved_dataset(path: Path) -> bool:
    """Return True for a folder that ``datasets`` saved."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def folder_rows(path: Path) -> list[OwnRow]:
    """Read a folder that ``save_to_disk`` wrote, or the only data file in it; DataError for neither."""
    if is_saved_dataset(path):
        from datasets import load_from_disk

        return table_rows(load_from_disk(str(path)))
    files = [file for file in sorted(path.iterdir()) if file.name.lower().endswith(ENDINGS)]
    if len(files) != 1:
        listed = ", ".join(file.name for file in files[:5]) or "none"
        said = f"holds {len(files)} data files ({listed}); name one file with --data. Read are {KINDS}"
        raise DataError(f"{path}: {said}")
    return file_rows(files[0])


def source_key(source: str) -> str:
    """Return a hash of a file's or saved folder's contents; of a hub id, of the id with its commit."""
    path = Path(source).expanduser()
    if path.is_file():
        return store.file_hash(path)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return content_hash({str(file.relative_to(path)): store.file_hash(file) for file in files})
    return content_hash(source)
