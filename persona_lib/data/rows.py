"""Read a user's own file, folder or hub id as rows, each with its number and its place in the source."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lib import store, weights
from persona_lib.records import DataError, PreferencePair
from persona_lib.settings import FACTS
from persona_lib.store import content_hash

WAYS_OUT = (
    "A file: save it again, best as JSON lines (.jsonl), in UTF-8 or with its encoding named in the mapping. "
    "A hub id: check its name, the network and HF_HUB_OFFLINE, or download it and give its path"
)
KINDS = "JSON lines (.jsonl), JSON (.json), CSV, TSV, Parquet, a datasets folder (save_to_disk), or a hub id"

# outcome of a row -> code -> (what was found, what to do); a row is rejected for the first thing wrong
OUTCOMES: dict[str, dict[str, tuple[str, str]]] = store.read_json(FACTS / "own_findings.json")


@dataclass(frozen=True)
class OwnRow:
    """A row: its number from 1, place, fields (an Exception if unreadable), pair once read, user's reason."""

    row: int
    place: str
    value: Any
    split: str = ""
    pair: PreferencePair = PreferencePair("", "", "", "")
    reason: str = ""

    def found(self, field: str, code: str, detail: str = "") -> Finding:
        """Return a finding about this row."""
        return Finding(self.row, self.place, field, code, detail)


@dataclass(frozen=True)
class Finding:
    """What was found in a row: its number and place, the field, a code of `OUTCOMES`, a detail."""

    row: int
    place: str
    field: str
    code: str
    detail: str = ""

    @property
    def outcome(self) -> str:
        """Return what becomes of the row for it: "rejected", "joined" (to a usable one) or "kept"."""
        return next(outcome for outcome, codes in OUTCOMES.items() if self.code in codes)


# --- text: encodings, and what is no text at all ---

MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
LFS = b"version https://git-lfs.github.com/spec/"
FEW_ODD = 0.1  # up to this share of bytes that are no UTF-8, a text that else is ASCII is Windows-1252


def file_bytes(path: Path) -> bytes:
    """Return a file's content, unzipped; DataError for a Git LFS pointer."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if data.startswith(LFS):
        raise DataError(f"{path}: is a Git LFS pointer, not the data: run git lfs pull, or download the file")
    return data


def read_text(path: Path, encoding: str = "") -> tuple[str, str]:
    """Return a file's text, what is damaged as U+FFFD, and its encoding, named or detected ("" for UTF-8)."""
    data = file_bytes(path)
    name = encoding or next((MARKS[mark] for mark in MARKS if data.startswith(mark)), "utf-8")
    if name == "utf-8" and not encoding:
        sound = data.decode(errors="ignore")
        if sound.isascii() and 0 < len(data) - len(sound) <= FEW_ODD * len(data):
            name = "cp1252"
    text = data.decode(name, errors="replace").removeprefix("\ufeff")
    if "\0" in text[:1000]:
        raise DataError(f"{path}: is not {name}, perhaps UTF-16 without a mark: name its encoding")
    return text, "" if name.startswith("utf-8") else f"encoding {name}"


# --- rows of a file, a folder or a hub id; the second value says how they were read ---


def read_rows(source: str, config: str = "", encoding: str = "") -> tuple[list[OwnRow], str]:
    """Read all rows of a file, folder or hub id, and say how; DataError if it cannot be read, or is empty."""
    path = Path(source).expanduser()
    if not path.exists() and ("/" not in source or not weights.is_hub_id(source) or path.suffix in READERS):
        way = "download it first" if "://" in source else "paths are relative to the repository"
        raise DataError(f"{source}: no such file or folder ({way})")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{source}: neither a file nor a folder (a pipe is read only once): save it as one")
    if path.is_dir() and not any((path / name).exists() for name in SAVED):
        files = [file for file in sorted(path.iterdir()) if file.name.lower().endswith(ENDINGS)]
        if len(files) != 1:
            some = f"of {len(files)} data files ({', '.join(f.name for f in files[:5])}): name one of them"
            raise DataError(f"{path}: a folder {some if files else f'without a data file. Read are {KINDS}'}")
        path = files[0]
    try:
        if path.is_file():
            name = path.name.lower()
            if not name.endswith(ENDINGS):
                raise DataError(f"{path}: this kind is not read. Use {KINDS}; save a spreadsheet as CSV")
            rows, how = READERS[Path(name.removesuffix(".gz")).suffix](path, encoding)
        else:
            import datasets

            name, commit = weights.pinned(path)  # a folder has no commit
            if commit:
                table = datasets.load_dataset(name, config or None, revision=commit)
            else:
                table = datasets.load_from_disk(name)
            rows, how = table_rows(table), ""
    except (weights.WeightsError, DataError, ImportError):
        raise
    except Exception as error:  # files, their readers and the hub's client each have their own kinds
        reason = [*str(error).strip().splitlines(), type(error).__name__][0][:200]
        raise DataError(f"{source}: cannot be read ({reason}). {WAYS_OUT}") from error
    if not rows:
        raise DataError(f"{source}: no row in it; it should hold one preference pair per row")
    return rows, how


def json_rows(path: Path, encoding: str = "") -> tuple[list[OwnRow], str]:
    """Read JSON lines (empty lines are no rows), one array, or an object whose only list holds the rows."""
    text, how = read_text(path, encoding)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = enumerate(text.split("\n"), start=1)
        rows = [OwnRow(n, f"line {n}", line_value(line)) for n, line in lines if line.strip()]
        if rows and (text.lstrip()[0] == "[" or not any(isinstance(row.value, dict) for row in rows)):
            raise ValueError(f"no JSON: {error}; {rows[0].place}: {rows[0].value}") from error
        return rows, how
    if isinstance(whole, dict):
        lists = [value for value in whole.values() if isinstance(value, list)]
        if len(lists) > 1:
            raise ValueError(f"an object with {len(lists)} lists: one list should hold the rows")
        whole = lists[0] if lists else [whole]
    return table_rows(whole), how


def line_value(line: str) -> Any:
    """Return the value of a line of JSON; the error of a line that is none or is nested too deeply."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"not valid JSON: {error}")


SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def cell_lines(text: str, separator: str) -> Iterator[tuple[int, list[str] | ValueError]]:
    """Yield first line and cells of each row; for an open quote an error, then go on at the next line."""
    lines, begun = list(io.StringIO(text, newline="")), 0
    while begun < len(lines):
        reader, line = csv.reader(lines[begun:], delimiter=separator, strict=True), begun + 1
        try:
            for cells in reader:
                if cells:  # an empty line is no row
                    yield line, cells
                line = begun + reader.line_num + 1
            return
        except csv.Error as error:
            yield line, ValueError(f"{error}: a quote is not closed, or not doubled")
            begun = line


def cell_rows(path: Path, encoding: str = "") -> tuple[list[OwnRow], str]:
    """Read a table of cells, separated by what the header has most of; an error is the row's value."""
    csv.field_size_limit(sys.maxsize)
    text, how = read_text(path, encoding)
    separator = max(SEPARATORS, key=text.partition("\n")[0].count)
    how = ", ".join(filter(None, (how, f"cells separated by {SEPARATORS[separator]}")))
    found = cell_lines(text, separator)
    _, header = next(found, (1, []))
    if isinstance(header, ValueError):
        raise header
    if len(set(header)) < len(header):
        raise DataError(f"{path}: two columns have the same name: {', '.join(header)}")
    said = f"cells, the header has {len(header)}: quote cells that hold {separator!r}"
    rows = []
    for number, (line, cells) in enumerate(found, start=1):
        value: Any = cells
        if isinstance(cells, list):
            fits = len(cells) == len(header)
            value = dict(zip(header, cells, strict=True)) if fits else ValueError(f"{len(cells)} {said}")
        rows.append(OwnRow(number, f"row {number} (line {line})", value))
    return rows, how


def parquet_rows(path: Path, encoding: str = "") -> tuple[list[OwnRow], str]:
    """Read the rows of a Parquet file."""
    from pyarrow import parquet

    return table_rows(parquet.read_table(io.BytesIO(file_bytes(path))).to_pylist()), ""


def table_rows(data: Any) -> list[OwnRow]:
    """Return the rows of a list or table, or of all splits of a DatasetDict, whose names are their splits."""
    parts = data.items() if isinstance(data, dict) else [("", data)]
    found = [
        (f"{split} row {place}".strip(), row | {"split": str(split)} if split else row)
        for split, part in parts
        for place, row in enumerate(part, start=1)
    ]
    return [OwnRow(number, place, row) for number, (place, row) in enumerate(found, start=1)]


READERS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), json_rows),
    **dict.fromkeys((".csv", ".tsv"), cell_rows),
    ".parquet": parquet_rows,
}
SAVED = ("dataset_dict.json", "state.json")  # files of a folder that datasets.save_to_disk wrote
ENDINGS = (*READERS, *(f"{ending}.gz" for ending in READERS if ending != ".parquet"))


def source_key(source: str | Path) -> str:
    """Return a hash of a file's or saved folder's contents; of a hub id, of the id with its commit."""
    path = Path(source).expanduser()
    if path.is_file():
        return store.file_hash(path)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return content_hash({str(file.relative_to(path)): store.file_hash(file) for file in files})
    return content_hash(str(source))
