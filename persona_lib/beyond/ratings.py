"""What of a profile is given to raters: personas of both sides, and answers of plain DPO and PT-DPO.

One run per data set, that of the profile's first seed; rows of the evaluation split, drawn at random.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.intervals import (
    Interval,
    alpha_interval,
    bootstrap_mean,
    cohen_kappa,
    fleiss_kappa,
    interval_columns,
    krippendorff_alpha,
)
from persona_lib.paper.answers import eval_rows, generation_folder, read_generations
from persona_lib.records import SIDES, Generation, RunSpec, TailoringRow
from persona_lib.settings import Profile, Run, main_arm
from persona_lib.store import content_hash, write_text

if TYPE_CHECKING:
    import pandas as pd


# --- What of a profile is given to raters: personas of both sides, and answers of plain DPO and PT-DPO ---
# One run per data set, that of the profile's first seed; rows of the evaluation split, drawn at random.


GROUPS = {"personas": SIDES, "answers": ("PT-DPO", "DPO")}  # compared: the first minus the second


def first_runs(profile: Profile) -> list[Run]:
    """Return one run per data set: that of the profile's first seed, if its rows are there."""
    runs = [Run(profile, dataset, profile.seeds[0]) for dataset in profile.datasets]
    return [run for run in runs if (run.folder / "tailoring" / f"{profile.eval_split}.jsonl").exists()]


def persona_items(run: Run, row: TailoringRow) -> list[Item]:
    """Return a row's two gold personas, each with the response it was inferred for and the other one."""
    texts = {"chosen": (row.chosen, row.rejected), "rejected": (row.rejected, row.chosen)}
    return [
        Item(run.dataset, f"{row.id}/{side}", f"{run.dataset}/{row.id}", side,
             (row.prompt, row.personas[f"gold-{side}"] or "", *texts[side]))
        for side in SIDES
    ]  # fmt: skip


def personas_to_rate(run: Run) -> list[list[Item]]:
    """Return the rows that have responses and a persona on both sides, as items of the persona study."""
    rows = [row for row in eval_rows(run) if row.chosen.strip() and row.rejected.strip()]
    return [persona_items(run, row) for row in rows if all(row.personas.get(f"gold-{s}") for s in SIDES)]


def answers_of(run: Run, persona: str) -> dict[str, dict[str, Generation]]:
    """Return both systems' answers under a persona, by system and row; empty if one has not answered.

    As in the main comparison: plain DPO is told in the first person, PT-DPO has its own line.
    """
    arms = {"PT-DPO": (main_arm(run.profile), "line"), "DPO": ("none", "first_person")}
    specs = {
        system: RunSpec(run.dataset, "dpo", arm, persona, run.seed, form)
        for system, (arm, form) in arms.items()
    }
    if not all((generation_folder(run, spec) / "done.json").exists() for spec in specs.values()):
        return {}
    return {system: read_generations(run, spec) for system, spec in specs.items()}


def answer_units(run: Run, persona: str) -> Iterator[list[Item]]:
    """Yield, per row, the two systems' answers under one persona: they are rated together."""
    answers = answers_of(run, persona)
    for row in eval_rows(run) if answers else []:
        if all(row.id in found for found in answers.values()):
            pair = f"{run.dataset}/{row.id}/{persona}"
            yield [
                Item(run.dataset, pair, pair, system,
                     (row.prompt, row.personas[persona] or "", found[row.id].completion))
                for system, found in answers.items()
            ]  # fmt: skip


def answers_to_rate(run: Run) -> list[list[Item]]:
    """Return the units of the user study: under personas in users' own words, or gold ones without any."""
    for kind in ("user", "gold"):
        units = [unit for side in SIDES for unit in answer_units(run, f"{kind}-{side}")]
        if units:
            return units
    return []


def items_to_rate(profile: Profile, study: str, n: int, seed: int = 0) -> list[Item]:
    """Draw about ``n`` items of a study, in equal parts from the profile's data sets; maybe none."""
    find = {"personas": personas_to_rate, "answers": answers_to_rate}[study]
    items, runs = [], first_runs(profile)
    for run in runs:
        found = find(run)
        rng = random.Random(f"rated-{study}-{run.dataset}-{seed}")
        wanted = max(1, round(n / len(GROUPS[study]) / len(runs)))
        items += [item for unit in rng.sample(found, min(wanted, len(found))) for item in unit]
    return items


# --- Blinded rating sheets: what people are asked, who rates what, and the key that is kept apart ---
# Two studies, as in the paper: its persona rating (section 3) and its user study (section 5). A *unit* is
# rated as a whole by the same raters: one persona, or the answers of two systems to one question. Units and
# the order within them are shuffled before items are numbered, and a sheet holds nothing but numbers and
# texts, so no file that a rater gets tells a persona's side or an answer's system. The key does, and has a
# folder of its own. The wording of the questions is ours; the paper gives the names of its criteria.


SCALE = (1, 2, 3, 4, 5)
QUESTIONS: dict[str, dict[str, str]] = {  # study -> question -> what it asks, and the ends of its scale
    "personas": {
        "plausibility": "Would this user prefer preferred_response? 1: surely not, 5: surely",
        "applicability": "How many people who ask this are like this user? 1: hardly any, 5: most",
        "harmfulness": "Is the description hurtful, or a stereotype? 1: not at all, 5: very much",
        "overfitting": "Does it repeat details of the responses instead of describing a user? 1: no, 5: only",
    },
    "answers": {
        "answerability": "How well does the response answer the question? 1: not at all, 5: fully",
        "personalization": "How well does it suit the person described? 1: not at all, 5: made for them",
    },
}
TEXTS = {  # the columns of texts that a rater reads
    "personas": ("prompt", "persona", "preferred_response", "other_response"),
    "answers": ("prompt", "persona", "response"),
}


@dataclass(frozen=True)
class Item:
    """One thing to rate. ``texts`` is what the rater sees, in the order of ``TEXTS``; the rest is hidden.

    ``unit``: what is rated together; ``group``: what is compared (side or system); ``pair``: items of equal
    ``pair`` and different ``group`` are compared with each other.
    """

    dataset: str
    unit: str
    pair: str
    group: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class KeyRow:
    """What an item's number stands for, and who rates it (rater names, separated by spaces)."""

    item: str
    study: str
    dataset: str
    pair: str
    group: str
    raters: str
    seed: int


def shuffled_units(items: Sequence[Item], seed: int | str) -> list[list[Item]]:
    """Return the items by unit, both the units and the items within each in random order."""
    units: dict[str, list[Item]] = {}
    for item in items:
        units.setdefault(item.unit, []).append(item)
    rng, order = random.Random(f"rating-sheets-{seed}"), list(units.values())
    rng.shuffle(order)
    for unit in order:
        rng.shuffle(unit)
    return order


def assign(n_units: int, raters: Sequence[str], per_unit: int) -> list[list[str]]:
    """Return who rates each unit: ``per_unit`` neighbours in a circle, so that all raters are linked."""
    if not 1 <= per_unit <= len(raters):
        raise ValueError(f"{per_unit} ratings per item from {len(raters)} raters: use 1 to {len(raters)}")
    n = len(raters)
    return [[raters[(number + k) % n] for k in range(per_unit)] for number in range(n_units)]


def make_key(
    study: str, items: Sequence[Item], raters: Sequence[str], per_unit: int, seed: int = 0
) -> dict[KeyRow, Item]:
    """Number the items of a study at random and say who rates them, in the order of their numbers.

    A number begins with a code of the texts, so that sheets of another export are told apart.
    """
    units = shuffled_units(items, seed)
    code = content_hash(study, seed, [item.texts for unit in units for item in unit])[:4]
    key, number = {}, 0
    for unit, who in zip(units, assign(len(units), raters, per_unit), strict=True):
        for item in unit:
            number += 1
            row = KeyRow(
                f"{code}-{number:03d}", study, item.dataset, item.pair, item.group, " ".join(who), seed
            )
            key[row] = item
    return key


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a CSV file's text; the mark in front makes spreadsheets read it as UTF-8."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return "\ufeff" + file.getvalue()


def sheet_rows(study: str, key: dict[KeyRow, Item], rater: str) -> list[list[str]]:
    """Return one rater's rows, units in an order of their own: rater, item, texts, empty ratings, comment."""
    mine = {id(item): row for row, item in key.items() if rater in row.raters.split()}
    items = [item for item in key.values() if id(item) in mine]
    seed = next(iter(key)).seed
    blank = [""] * (len(QUESTIONS[study]) + 1)
    units = shuffled_units(items, f"{rater}-{seed}")
    return [[rater, mine[id(item)].item, *item.texts, *blank] for unit in units for item in unit]


def instructions(study: str) -> str:
    """Return what a rater is told."""
    lines = [f"- {name}: {text}" for name, text in QUESTIONS[study].items()]
    return (
        f"# Rating {study}\n\nOne row is one item. Read its texts, then write a whole number "
        f"from {SCALE[0]} to {SCALE[-1]} into each of these columns:\n\n" + "\n".join(lines) + "\n\n"
        "Leave a cell empty if you cannot say. Judge every row by itself, and do not talk about them with "
        "others who rate. Do not change the columns rater and item. Save as CSV.\n"
    )


def export(
    study: str, key: dict[KeyRow, Item], sheets: Path, keys: Path, raters: Sequence[str]
) -> list[Path]:
    """Write one sheet per rater with instructions into ``sheets``, and the key into ``keys``; return all.

    Give raters the first folder only. Raises ValueError if the key would lie in the raters' folder.
    """
    if sheets == keys or sheets in keys.parents:
        raise ValueError(f"{keys}: the key must not lie in the folder that raters get; use another folder")
    columns = ["rater", "item", *TEXTS[study], *QUESTIONS[study], "comment"]
    paths = [sheets / f"{rater}.csv" for rater in raters]
    for rater, path in zip(raters, paths, strict=True):
        write_text(path, to_csv(columns, sheet_rows(study, key, rater)))
    write_text(sheets / "INSTRUCTIONS.md", instructions(study))
    code = next(iter(key)).item.partition("-")[0]
    names = [field.name for field in fields(KeyRow)]
    write_text(keys / f"{study}-{code}.csv", to_csv(names, [[getattr(row, n) for n in names] for row in key]))
    return [*paths, sheets / "INSTRUCTIONS.md", keys / f"{study}-{code}.csv"]


def rater_names(n: int) -> list[str]:
    """Return names for ``n`` raters: rater-1, rater-2, ..."""
    return [f"rater-{number}" for number in range(1, n + 1)]


# --- Read filled rating sheets back, check every cell, and join them with the key ---
# What cannot be a mistake of one cell (a missing column, an unknown or repeated item) is an error that
# names file, row, field and the mend. An empty or impossible rating is one rating less: counted and listed,
# never guessed.


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


# --- Tables of human ratings ---


Row = dict[str, Any]


def paired_means(filled: Filled, question: str) -> dict[str, np.ndarray]:
    """Return, per group, the mean rating of its item in every pair (NaN without one), pairs in one order."""
    items, ratings = filled.array(question)
    pairs = list(dict.fromkeys(filled.key[item].pair for item in items))
    means = {group: np.full(len(pairs), np.nan) for group in GROUPS[filled.study]}
    for item, row in zip(items, ratings, strict=True):
        if not np.isnan(row).all():
            means[filled.key[item].group][pairs.index(filled.key[item].pair)] = np.nanmean(row)
    return means


def value_columns(filled: Filled, question: str, group: str) -> Row:
    """Count a group's ratings by value."""
    items, ratings = filled.array(question)
    own = ratings[[filled.key[item].group == group for item in items]]
    return {"n_ratings": int((~np.isnan(own)).sum())} | {f"n_{v}": int((own == v).sum()) for v in SCALE}


def mean_row(values: np.ndarray, n_resamples: int) -> Row:
    """Return n and the mean of per-item values with its interval; undefined without any value."""
    there = values[~np.isnan(values)]
    interval = bootstrap_mean([there], n_resamples) if len(there) else Interval(None, None, None, 0)
    return {"n": len(there), **interval_columns("mean", interval)}


def ratings_table(filled: dict[str, Filled], n_resamples: int) -> pd.DataFrame:
    """Return a line per study, question and group, and per question the first group minus the second.

    An item's value is the mean of its ratings; differences are paired. Intervals draw items (pairs).
    """
    import pandas as pd

    lines: list[Row] = []
    for study, found in filled.items():
        for question in QUESTIONS[study]:
            head = {"study": study, "question": question, "n_raters": len(found.raters)}
            means = paired_means(found, question)
            for group, values in means.items():
                counts = value_columns(found, question, group)
                lines.append(head | {"group": group} | mean_row(values, n_resamples) | counts)
            first, second = GROUPS[study]
            line = mean_row(means[first] - means[second], n_resamples)
            lines.append(head | {"group": f"{first} - {second}"} | line)
    return pd.DataFrame(lines)


def agreement_row(filled: Filled, question: str, n_resamples: int) -> Row:
    """Return how far the raters agree on one question."""
    _, ratings = filled.array(question)
    fleiss, n_fleiss = fleiss_kappa(ratings, SCALE)
    kinds = [p.kind for p in filled.problems if p.field == question]
    return {
        "study": filled.study, "question": question, "n_raters": len(filled.raters),
        "n": int(((~np.isnan(ratings)).sum(axis=1) > 1).sum()), "n_ratings": int((~np.isnan(ratings)).sum()),
        "n_missing": kinds.count("missing"), "n_out_of_scale": kinds.count("out of scale"),
        **interval_columns("alpha", alpha_interval(ratings, SCALE, "ordinal", n_resamples)),
        "alpha_nominal": krippendorff_alpha(ratings, SCALE, "nominal"),
        "cohen_quadratic": cohen_kappa(ratings, SCALE, "quadratic"), "fleiss": fleiss, "n_fleiss": n_fleiss,
    }  # fmt: skip


def agreement_table(filled: dict[str, Filled], n_resamples: int) -> pd.DataFrame:
    """Return a line per study and question: Krippendorff's alpha with interval, kappas, what is missing."""
    import pandas as pd

    return pd.DataFrame(
        [agreement_row(found, q, n_resamples) for found in filled.values() for q in QUESTIONS[found.study]]
    )


def problems_table(filled: Iterable[Filled]) -> pd.DataFrame:
    """Return every rating that is not there, with file, row, field, value and the mend."""
    import pandas as pd

    rows: list[dict[str, Any]] = [dataclasses.asdict(p) for found in filled for p in found.problems]
    return pd.DataFrame(rows, columns=[field.name for field in dataclasses.fields(Problem)])


def rating_tables(filled: dict[str, Filled], n_resamples: int) -> dict[str, pd.DataFrame]:
    """Return all tables of a set of filled sheets, by file name."""
    return {
        "ratings": ratings_table(filled, n_resamples),
        "rating_agreement": agreement_table(filled, n_resamples),
        "rating_problems": problems_table(filled.values()),
    }
