"""Read a user's own file, folder or hub id as rows, each with its number and its place in the source.

JSON lines, CSV and TSV are read row by row, so that one damaged row is named and costs nothing but itself.
Encoding and separator are found out and said. Damaged UTF-8 becomes U+FFFD, which ``data.intake`` then finds.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from dataclasses import dataclass
from itertools import islice
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


# --- text: encodings, and what is no text at all ---

MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
LFS = b"version https://git-lfs.github.com/spec/"
FEW_ODD = 0.1  # share of bytes above 127 up to which a text that is no UTF-8 is taken for Windows-1252


def file_bytes(path: Path) -> bytes:
    """Return a file's content, unzipped; DataError for a Git LFS pointer."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if data.startswith(LFS):
        raise DataError(f"{path}: is a Git LFS pointer, not the data: run git lfs pull, or download the file")
    return data


def encoding_of(data: bytes) -> str:
    """Return a text's encoding: by its mark, by its zero bytes, UTF-8, or Windows-1252 with few odd bytes.

    Damaged UTF-8 stays UTF-8: what is damaged becomes U+FFFD, which the checks find.
    """
    for mark, name in MARKS.items():
        if data.startswith(mark):
            return name
    data = data.replace("\ufffd".encode(), b"")
    rest = data.decode("utf-8", errors="replace").replace("\ufffd", "")
    lost = len(data) - len(rest.encode())
    if data.count(0) > FEW_ODD * len(data) or (lost > FEW_ODD * len(data) and rest.isascii()):
        said = "text in neither UTF-8 nor UTF-16 with its mark; name its encoding in the mapping"
        raise DataError(f"{said} (encoding: cp1251), or save it as UTF-8")
    return "cp1252" if lost and rest.isascii() else "utf-8"


def read_text(path: Path, encoding: str = "") -> tuple[str, str]:
    """Return a file's text, line ends as they are, and in which encoding it was read ("" for UTF-8)."""
    data = file_bytes(path)
    name = encoding or encoding_of(data)
    text = data.decode(name, errors="replace").removeprefix("\ufeff")
    return text, "" if name.startswith("utf-8") else f"as {name}"


# --- rows of a file, a folder or a hub id; the second value says how they were read ---

Read = tuple[list[OwnRow], str]


def read_rows(source: str, config: str = "", encoding: str = "") -> Read:
    """Read all rows of a file, folder or hub id, and say how: "as cp1252, separated by ';'".

    Raises DataError if it cannot be opened or holds no row.
    """
    path = Path(source).expanduser()
    if not path.exists() and ("/" not in source or not weights.is_hub_id(source) or path.suffix in READERS):
        raise DataError(f"{source}: no such file or folder (paths are relative to the repository)")
    try:
        if path.exists():
            rows, how = folder_rows(path, encoding) if path.is_dir() else file_rows(path, encoding)
        else:
            rows, how = table_rows(weights.load_dataset(source, config or None)), ""
    except (weights.WeightsError, DataError) as error:
        said = str(error)
        raise DataError(said if str(path) in said or source in said else f"{source}: {said}") from error
    except ImportError:
        raise
    except Exception as error:  # files, their readers and the hub's client each have their own kinds
        reason = [*str(error).strip().splitlines(), type(error).__name__][0][:200]
        raise DataError(f"{source}: cannot be read ({reason}). {WAYS_OUT}") from error
    if not rows:
        raise DataError(f"{source}: no row in it; it should hold one preference pair per row")
    return rows, how


def json_rows(path: Path, encoding: str = "") -> Read:
    """Read JSON lines (empty lines are no rows), one array, or an object whose only list holds the rows."""
    text, how = read_text(path, encoding)
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = [OwnRow(n, f"line {n}", line_value(line)) for n, line in lines]
    if text.lstrip()[:1] != "[" and (not rows or any(isinstance(row.value, dict) for row in rows)):
        return rows, how
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}; {rows[0].place}: {rows[0].value}") from error
    lists = [one for one in (whole.values() if isinstance(whole, dict) else [whole]) if isinstance(one, list)]
    if len(lists) != 1:
        raise ValueError(f"it has {len(lists)} lists; one list should hold the rows")
    return [OwnRow(n, f"row {n}", object_of(value)) for n, value in enumerate(lists[0], start=1)], how


def object_of(value: Any) -> Any:
    """Return a value of JSON if it is an object, else an error."""
    named = f"is a {type(value).__name__}, not an object with named fields"
    return value if isinstance(value, dict) else ValueError(named)


def line_value(line: str) -> Any:
    """Return the object of a line of JSON; the error of a line that is none or is nested too deeply."""
    try:
        return object_of(json.loads(line))
    except (ValueError, RecursionError) as error:
        return ValueError(f"not valid JSON: {error}")


SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def separator_of(text: str) -> str:
    """Return what separates the cells: that with which most of the first rows have as many as the header."""

    def fit(separator: str) -> tuple[float, int]:
        rows = [
            row for row in islice(csv.reader(io.StringIO(text, newline=""), delimiter=separator), 50) if row
        ]
        width = len(rows[0]) if rows else 0
        return (sum(len(row) == width for row in rows) / len(rows) if width > 1 else 0.0), width

    return max(SEPARATORS, key=fit)


def cell_rows(path: Path, encoding: str = "") -> Read:
    """Read a table of cells with a header; cells may hold quotes, separators and newlines.

    A row with too many or too few cells, or with an open quote, is a row with an error. Empty lines are none.
    """
    csv.field_size_limit(sys.maxsize)
    text, how = read_text(path, encoding)
    separator = separator_of(text)
    how = ", ".join(filter(None, (how, f"cells separated by {SEPARATORS[separator]}")))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
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
            return rows, how
        said = f"{len(cells)} cells, the header has {len(header)}: quote cells that hold {separator!r}"
        value = dict(zip(header, cells, strict=True)) if len(cells) == len(header) else ValueError(said)
        if cells:  # an empty line is no row
            rows.append(OwnRow(len(rows) + 1, place, value))


def parquet_rows(path: Path, encoding: str = "") -> Read:
    """Read the rows of a Parquet file."""
    from pyarrow import parquet

    return table_rows(parquet.read_table(io.BytesIO(file_bytes(path))).to_pylist()), ""


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
    **dict.fromkeys((".csv", ".tsv"), cell_rows),
    ".parquet": parquet_rows,
}
ENDINGS = (*READERS, *(f"{ending}.gz" for ending in READERS if ending != ".parquet"))


def file_rows(path: Path, encoding: str) -> Read:
    """Read a file by the ending of its name; DataError for a kind that is not read."""
    if not path.name.lower().endswith(ENDINGS):
        raise DataError(f"{path}: files of this kind are not read. Use {KINDS}; save a spreadsheet as CSV")
    return READERS[Path(path.name.lower().removesuffix(".gz")).suffix](path, encoding)


def folder_rows(path: Path, encoding: str) -> Read:
    """Read a folder that ``save_to_disk`` wrote, or the only data file in it; DataError for neither."""
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        from datasets import load_from_disk

        return table_rows(load_from_disk(str(path))), ""
    files = [file for file in sorted(path.iterdir()) if file.name.lower().endswith(ENDINGS)]
    if len(files) != 1:
        listed = ", ".join(file.name for file in files[:5]) or "none"
        said = f"holds {len(files)} data files ({listed}); name one file with --data. Read are {KINDS}"
        raise DataError(f"{path}: {said}")
    return file_rows(files[0], encoding)


def source_key(source: str) -> str:
    """Return a hash of a file's or saved folder's contents; of a hub id, of the id with its commit."""
    path = Path(source).expanduser()
    if path.is_file():
        return store.file_hash(path)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return content_hash({str(file.relative_to(path)): store.file_hash(file) for file in files})
    return content_hash(source)
