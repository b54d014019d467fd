"""Read filled rating sheets back, check every cell, and join them with the key.

What cannot be a mistake of one cell (a missing column, an unknown or repeated item) is an error that names
file, row, field and the mend. An empty or impossible rating is one rating less: counted and listed, never
guessed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from persona_lib.evaluation.rating_sheets import QUESTIONS, SCALE, KeyRow


@dataclass(frozen=True)
class Rating:
    """One rater's answer to one question about one item; ``value`` is None where there is none."""

    item: str
    rater: str
    question: str
    value: int | None


@dataclass(frozen=True)
class Problem:
    """A rating that is not there: where, and what to do about it."""

    file: str
    row: int
    item: str
    field: str
    value: str
    kind: str
    mend: str


@dataclass(frozen=True)
class Filled:
    """The ratings of one study with the key's rows, and what was wrong with single cells."""

    study: str
    key: dict[str, KeyRow]
    ratings: list[Rating]
    problems: list[Problem]

    @property
    def raters(self) -> list[str]:
        """Names of the raters, in the order of their files."""
        return list(dict.fromkeys(rating.rater for rating in self.ratings))

    def count(self, kind: str) -> int:
        """Return how many ratings are "missing" or "out of scale"."""
        return sum(problem.kind == kind for problem in self.problems)

    def array(self, question: str) -> tuple[list[str], np.ndarray]:
        """Return the items that were given out and their ratings, (items, raters), NaN for none."""
        items, raters = list(dict.fromkeys(r.item for r in self.ratings)), self.raters
        values = np.full((len(items), len(raters)), np.nan)
        rows, columns = ({name: n for n, name in enumerate(names)} for names in (items, raters))
        for rating in self.ratings:
            if rating.question == question and rating.value is not None:
                values[rows[rating.item], columns[rating.rater]] = rating.value
        return items, values


def open_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and rows of a CSV file whose separator is a comma or a semicolon."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); save it again as CSV UTF-8") from error
    head = text.partition("\n")[0]
    separator = ";" if head.count(";") > head.count(",") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    rows = [{name: value or "" for name, value in row.items() if name} for row in reader]
    return list(reader.fieldnames or []), rows


def need_columns(path: Path, columns: Sequence[str], wanted: Iterable[str]) -> None:
    """Raise ValueError if a column is missing."""
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise ValueError(
            f"{path}, row 1, field {missing[0]!r}: the column is missing "
            f"(found: {', '.join(columns) or 'none'}); put the first line back as it was exported"
        )


def read_key(path: Path) -> dict[str, KeyRow]:
    """Read a key file: item -> what it stands for."""
    columns, rows = open_csv(path)
    names = [field.name for field in fields(KeyRow)]
    need_columns(path, columns, names)
    found = [KeyRow(**{n: row[n] for n in names if n != "seed"}, seed=int(row["seed"])) for row in rows]
    return {row.item: row for row in found}


def read_value(text: str) -> int | None:
    """Read a rating: a whole number of the scale ("4", "4.0"), else None."""
    try:
        number = float(text.strip())
    except ValueError:
        return None
    return int(number) if number in SCALE else None


def read_cell(path: Path, number: int, item: str, field: str, text: str) -> tuple[int | None, Problem | None]:
    """Read one rating, or say what is wrong with it; ``number`` 0: the item's row is not there."""
    value = read_value(text)
    if value is not None:
        return value, None
    kind = "out of scale" if text.strip() else "missing"
    mend = f"write a whole number from {SCALE[0]} to {SCALE[-1]}, or leave it empty if there is none"
    if not number:
        mend = "put the row back from the exported sheet"
    return None, Problem(f"{path.parent.name}/{path.name}", number, item, field, text.strip(), kind, mend)


def study_of(path: Path, columns: Sequence[str]) -> str:
    """Say which study a sheet belongs to, by the questions that it has columns for."""
    for study, questions in QUESTIONS.items():
        if set(questions) & set(columns):
            need_columns(path, columns, ["rater", "item", *questions])
            return study
    raise ValueError(
        f"{path}, row 1: no column of ratings (found: {', '.join(columns) or 'none'}); sheets have "
        + " or ".join("/".join(questions) for questions in QUESTIONS.values())
    )


def check_item(path: Path, number: int, item: str, key: dict[str, KeyRow], seen: set[str]) -> None:
    """Raise ValueError for an item that the key does not know or that the sheet has twice."""
    where = f"{path}, row {number}, field 'item': {item!r}"
    if item not in key:
        raise ValueError(f"{where} is not in the key; restore the number, or use the key of that export")
    if item in seen:
        raise ValueError(f"{where} occurs twice; keep one of the rows")
    seen.add(item)


def rater_of(path: Path, rows: Sequence[dict[str, str]]) -> str:
    """Return the name in a sheet's column ``rater``; ValueError if there is none, or more than one."""
    for number, row in enumerate(rows, start=2):
        if not row["rater"].strip() or row["rater"] != rows[0]["rater"]:
            raise ValueError(
                f"{path}, row {number}, field 'rater': {row['rater']!r}; write the same name into every row"
            )
    if not rows:
        raise ValueError(f"{path}: no rows; copy the sheet again, or leave it out")
    return rows[0]["rater"].strip()


def read_sheet(
    path: Path, rows: Sequence[dict[str, str]], study: str, key: dict[str, KeyRow]
) -> tuple[list[Rating], list[Problem]]:
    """Read one filled sheet. Items that were given to its rater and have no row are missing."""
    rater, seen = rater_of(path, rows), set()
    cells: list[tuple[int, str, str, str]] = []  # row, item, question, text
    for number, row in enumerate(rows, start=2):
        check_item(path, number, row["item"].strip(), key, seen)
        cells += [(number, row["item"].strip(), question, row[question]) for question in QUESTIONS[study]]
    lost = [item for item, row in key.items() if rater in row.raters.split() and item not in seen]
    cells += [(0, item, question, "") for item in lost for question in QUESTIONS[study]]
    read = [(item, question, *read_cell(path, n, item, question, text)) for n, item, question, text in cells]
    ratings = [Rating(item, rater, question, value) for item, question, value, _ in read]
    return ratings, [problem for *_, problem in read if problem]


def find_key(path: Path, rows: Sequence[dict[str, str]], study: str, keys: Path) -> dict[str, KeyRow]:
    """Return the key of a sheet's export: the one whose code its items begin with."""
    code = rows[0]["item"].strip().partition("-")[0] if rows else ""
    found = keys / f"{study}-{code}.csv"
    if not code or not found.exists():
        have = ", ".join(sorted(p.name for p in keys.glob(f"{study}-*.csv"))) or "none"
        raise ValueError(
            f"{path}, row 2, field 'item': no key {found.name} in {keys} (found: {have}); "
            "use the keys of the export that the sheet comes from"
        )
    return read_key(found)


def add_sheet(path: Path, keys: Path, found: dict[str, Filled]) -> None:
    """Read one sheet and add it to the ratings of its study."""
    columns, rows = open_csv(path)
    study = study_of(path, columns)
    key = find_key(path, rows, study, keys)
    before = found.get(study, Filled(study, key, [], []))
    if before.key != key:
        raise ValueError(f"{path}: of another export than the sheets before it; keep one export per folder")
    ratings, problems = read_sheet(path, rows, study, key)
    if ratings[0].rater in before.raters:
        raise ValueError(
            f"{path}, field 'rater': a second sheet of {ratings[0].rater!r}; "
            "give every rater a name of their own"
        )
    found[study] = Filled(study, key, before.ratings + ratings, before.problems + problems)


def read_filled(folder: Path, keys: Path) -> dict[str, Filled]:
    """Read all filled sheets (``*.csv``) of a folder and its subfolders, by study.

    Raises ValueError naming file, row, field and the mend; FileNotFoundError if there is no sheet.
    """
    paths = sorted(folder.rglob("*.csv"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no filled sheets (*.csv); copy them there, one file per rater")
    found: dict[str, Filled] = {}
    for path in paths:
        add_sheet(path, keys, found)
    return {study: found[study] for study in QUESTIONS if study in found}
