"""Ratings by people: blinded sheets out, filled ones in, their results and agreement (paper sections 3, 5).

Two studies, as in the paper: its persona rating and its user study (plain DPO and PT-DPO). A *unit* is rated
as a whole by the same raters: one persona, or two systems' answers to one question. A sheet holds nothing but
numbers and texts, in random order; the **key** says what a number stands for and has a folder of its own. The
wording of the questions is ours; the paper gives the names of its criteria.
"""

from __future__ import annotations

import base64
import hashlib
import io
import random
import re
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from persona_lib.intervals import bootstrap_mean, interval_columns, interval_of
from persona_lib.paper.answers import eval_rows, is_answered
from persona_lib.paper.judging import compare, matchups
from persona_lib.records import SIDES, Table, stacked, table_of
from persona_lib.settings import Profile, Run, results_dir
from persona_lib.store import content_hash, fill, people_csv, write_text

SCALE = (1, 2, 3, 4, 5)
GROUPS = {"personas": SIDES, "answers": ("PT-DPO", "DPO")}  # compared: the first minus the second
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
INSTRUCTIONS = """# Rating {study}

One row is one item. Read its texts, then write a whole number from 1 to 5 into each of these columns:

{asked}

Or open the page of the same name (.html) in a browser: it shows one item at a time, works without a network,
keeps what you gave, and saves the filled sheet. Send back that sheet.

Leave a cell empty if you cannot say. Judge every row by itself, and do not talk about them with others
who rate. Do not change the columns rater and item. Save as CSV.
"""
UTF8 = "\ufeff"  # the mark that makes spreadsheets read a file as UTF-8
KEY_COLUMNS = ("item", "study", "dataset", "pair", "group", "raters")
# One thing to rate: the texts that a rater sees, and what is hidden: "unit" (rated together), "group" (a side
# or a system), "pair" (the items that are compared).
Item = dict[str, str]


def persona_units(run: Run) -> list[list[Item]]:
    """Return, per row that has both responses and gold personas, its two personas: each is its own unit."""
    units = []
    for row in eval_rows(run):
        known = {side: row.personas.get(f"gold-{side}") for side in SIDES}
        if all((*known.values(), row.chosen.strip(), row.rejected.strip())):
            units.append([
                {"unit": f"{row.id}/{side}", "pair": f"{run.dataset}/{row.id}", "group": side,
                 "prompt": row.prompt, "persona": known[side], "preferred_response": getattr(row, side),
                 "other_response": getattr(row, other)}
                for side, other in (SIDES, SIDES[::-1])
            ])  # fmt: skip
    return units


def answer_units(run: Run) -> list[list[Item]]:
    """Return, per row, both systems' answers of the main comparison to users' personas, else to gold ones."""
    main = [m for m in matchups(run) if m.kind == "main" and is_answered(run, m.test, m.base)]
    found = [(m.judge_persona, c) for m in main for c in compare(run, m)]
    units, kind = [], "user" if any(told.startswith("user") for told, _ in found) else "gold"
    for told, c in (one for one in found if one[0].startswith(kind)):
        pair = f"{run.dataset}/{c.id}/{told}"
        shown = {"unit": pair, "pair": pair, "prompt": c.prompt, "persona": c.persona or ""}
        texts = zip(GROUPS["answers"], (c.response_a, c.response_b), strict=True)
        units.append([shown | {"group": system, "response": text} for system, text in texts])
    return units


def items_to_rate(profile: Profile, study: str, n: int) -> list[Item]:
    """Draw about ``n`` items of the first seed, equally from data sets."""
    runs = [Run(profile, dataset, profile.seeds[0]) for dataset in profile.datasets]
    runs = [run for run in runs if (run.folder / "tailoring" / f"{profile.evaluation.split}.jsonl").exists()]
    items = []
    for run in runs:
        found = persona_units(run) if study == "personas" else answer_units(run)
        rng = random.Random(f"rated-{study}-{run.dataset}-0")
        wanted = max(1, round(n / len(GROUPS[study]) / len(runs)))
        for unit in rng.sample(found, min(wanted, len(found))):
            items += [item | {"study": study, "dataset": run.dataset} for item in unit]
    return items


def shuffled_units(items: Sequence[Item], seed: int | str) -> list[list[Item]]:
    """Return the items by unit (those of one follow each other), units and their items in random order."""
    order = [list(unit) for _, unit in groupby(items, itemgetter("unit"))]
    rng = random.Random(f"rating-sheets-{seed}")
    rng.shuffle(order)
    for unit in order:
        rng.shuffle(unit)
    return order


def number_items(study: str, items: list[Item], n_raters: int, per_unit: int, seed: int = 0) -> list[Item]:
    """Return the items in random order, numbered ("item") and given to "raters" rater-1, rater-2, ...

    Each unit goes to ``per_unit`` neighbours in a circle, so that all raters are linked. A number begins with
    a code of the texts, which tells the sheets of two exports apart.
    """
    units = shuffled_units(items, seed)
    texts = [[item[name] for name in TEXTS[study]] for unit in units for item in unit]
    code, numbered = content_hash(study, seed, texts)[:4], list[Item]()
    for place, unit in enumerate(units):
        raters = " ".join(f"rater-{(place + k) % n_raters + 1}" for k in range(per_unit))
        for item in unit:
            numbered.append(item | {"item": f"{code}-{len(numbered) + 1:03d}", "raters": raters})
    return numbered


def rater_page(study: str, rater: str, units: Sequence[Sequence[Item]]) -> str:
    """Return a rater's page; it saves the sheet as CSV; its policy allows only its own script and style."""
    asked = {name: re.split(r"(?<=\?) ", text, maxsplit=1) for name, text in QUESTIONS[study].items()}
    page = fill("rater.html", study=study, rater=rater, units=units, asked=asked, scale=SCALE,
                texts=[name for name in TEXTS[study] if name not in ("prompt", "persona")])  # fmt: skip
    for tag in ("script", "style"):
        own = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0].encode()
        digest = base64.b64encode(hashlib.sha256(own).digest()).decode()
        page = page.replace(f"{tag}-hash", f"sha256-{digest}", 1)
    return page


def export(study: str, numbered: Sequence[Item], folder: Path, seed: int = 0) -> list[Path]:
    """Write a study's sheets, its instructions and its key (``number_items``); returns them, the key last.

    ``folder/for_raters/<study>`` has a sheet and a page (`rater_page`) per rater, in an order of the rater's
    own; one that was filled in its place is never written again. ``folder/keys`` stays: it alone tells a
    persona's side or an answer's system.
    """
    sheets, code = folder / "for_raters" / study, numbered[0]["item"].partition("-")[0]
    columns, paths = ["rater", "item", *TEXTS[study], *QUESTIONS[study], "comment"], []
    for rater in sorted({name for item in numbered for name in item["raters"].split()}):
        own = [item | {"rater": rater} for item in numbered if rater in item["raters"].split()]
        units, path = shuffled_units(own, f"{rater}-{seed}"), sheets / f"{rater}.csv"
        there = open_csv(path) if path.exists() else table_of([])
        if not any(there[name].any() for name in QUESTIONS[study] if name in there):  # else it was filled in
            write_text(path, UTF8 + people_csv(table_of([item for unit in units for item in unit], columns)))
        write_text(path.with_suffix(".html"), rater_page(study, rater, units))
        paths.append(path)
    asked = "\n".join(f"- {name}: {text}" for name, text in QUESTIONS[study].items())
    write_text(sheets / "INSTRUCTIONS.md", INSTRUCTIONS.format(study=study, asked=asked))
    key = folder / "keys" / f"{study}-{code}.csv"
    write_text(key, UTF8 + people_csv(table_of(numbered, KEY_COLUMNS)))
    return [*paths, sheets / "INSTRUCTIONS.md", key]


# Sizes as in the paper: 80 personas by three raters; 144 personas of eight users, the answers of two systems.
# Its users rated alone what they had written; here two rate each answer, or agreement could not be computed.
DESIGNS = {"personas": (80, 3, 3), "answers": (288, 8, 2)}  # items in all, raters, raters per item


def export_studies(profile: Profile) -> dict[str, list[Path]]:
    """Write the sheets and keys of every study that the profile has items for; returns their files."""
    written = {}
    for study, (n, n_raters, per_item) in DESIGNS.items():
        if items := items_to_rate(profile, study, n):
            key = number_items(study, items, n_raters, per_item)
            written[study] = export(study, key, results_dir(profile) / "ratings")
    return written


def open_csv(path: Path) -> Table:
    """Read a CSV file of texts, separated by commas or semicolons; cells are stripped."""
    import pandas as pd

    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.partition("\n")[0]
        separator = ";" if head.count(";") > head.count(",") else ","
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, na_filter=False, index_col=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: not a table in UTF-8 ({error}); save it again as CSV UTF-8") from error
    return table.fillna("").map(str.strip)


def read_sheet(path: Path, keys: Path) -> Table:
    """Read one filled sheet, also the items that it lost: a row per item and question (see `read_filled`)."""
    import pandas as pd

    def demand(fine: bool, row: int, field: str, otherwise: str) -> None:
        if not fine:
            raise ValueError(f"{path}, row {row}, field {field!r}: {otherwise}")

    sheet, seen = open_csv(path), set()
    study = next((name for name, questions in QUESTIONS.items() if {*questions} & {*sheet}), "answers")
    for name in ("rater", "item", *QUESTIONS[study]):
        demand(name in sheet, 1, name, "no such column; put the first line back as exported")
    demand(len(sheet) > 0, 2, "item", "no rows; copy the sheet again, or leave it out")
    place = keys / f"{study}-{sheet.item[0].partition('-')[0]}.csv"
    demand(place.exists(), 2, "item", f"no key {place.name} in {keys}; use those of its own export")
    key, rater = open_csv(place), sheet.rater[0]
    for row, (name, item) in enumerate(zip(sheet.rater, sheet.item, strict=True), start=2):
        demand(name and name == rater, row, "rater", f"{name!r}; write one name into every row")
        demand(item in set(key.item), row, "item", f"{item!r} is not in the key; restore the number")
        demand(item not in seen, row, "item", f"{item!r} occurs twice; keep one of the rows")
        seen.add(item)
    mine = key[key.raters.map(lambda names: rater in names.split()) | key.item.isin(sheet.item)]
    given = sheet.assign(row=sheet.index + 2)[["item", "row", *QUESTIONS[study]]]
    joined = mine.merge(given, how="left", on="item").fillna({"row": 0}).astype({"row": int})
    long = joined.melt([*mine, "row"], list(QUESTIONS[study]), "question", "given").fillna({"given": ""})
    value, file = pd.to_numeric(long.given, errors="coerce"), f"{path.parent.name}/{path.name}"
    return long.assign(file=file, rater=rater, value=value.where(value.isin(SCALE)))


def read_filled(folder: Path, keys: Path) -> Table:
    """Read all filled sheets (``*.csv``) of a folder and its subfolders: a row per rater, item and question.

    Columns: those of the key, rater, question, ``given`` (the cell), ``value`` (NaN unless it is on the
    scale), file and row (0: the item's row is lost). Raises ValueError naming file, row, field and the way
    out; FileNotFoundError if there is no sheet.
    """
    sheets: dict[tuple[str, str], Table] = {}
    exports: dict[str, str] = {}
    for path in sorted(folder.rglob("*.csv")):
        sheet = read_sheet(path, keys)
        study, rater, export = sheet.study[0], sheet.rater[0], sheet.item[0].partition("-")[0]
        if exports.setdefault(study, export) != export:
            raise ValueError(f"{path}: of another export than the sheets before it; keep one per folder")
        if (study, rater) in sheets:
            raise ValueError(f"{path}: a second sheet of {rater!r}; give every rater a name of their own")
        sheets[study, rater] = sheet
    if not sheets:
        raise FileNotFoundError(f"{folder}: no filled sheets (*.csv); copy them there, one file per rater")
    return stacked(sheets.values())


def alpha(counts: np.ndarray) -> float:
    """Return Krippendorff's ordinal alpha of raters' counts (items, values); NaN: nothing could disagree."""
    import krippendorff

    paired = counts[counts.sum(axis=1) > 1]
    if (paired.sum(axis=0) > 0).sum() < 2:
        return float("nan")
    return float(krippendorff.alpha(value_counts=paired, level_of_measurement="ordinal"))


def value_counts(rated: Table) -> Table:
    """Count how many raters gave each value (columns) to each item (rows)."""
    counts = rated.groupby(["item", "value"]).size().unstack(fill_value=0)
    return counts.reindex(rated.item.unique(), fill_value=0).reindex(columns=SCALE, fill_value=0)


def result_rows(rated: Table, n_resamples: int) -> list[dict[str, Any]]:
    """Return the mean of items' mean ratings per group, with counts of values, and the paired difference."""
    first, second = GROUPS[rated.study.iat[0]]
    means = rated.groupby(["pair", "group"]).value.mean().unstack().reindex(columns=[first, second])
    means[f"{first} - {second}"] = means[first] - means[second]
    rows = []
    for name, values in means.items():
        mean = interval_columns("mean", bootstrap_mean([values.dropna()], n_resamples))
        rows.append({"group": name, "n": values.count()} | mean)
        if name in (first, second):
            counts = value_counts(rated[rated.group == name]).sum()
            rows[-1] |= {"n_ratings": counts.sum()} | {f"n_{value}": n for value, n in counts.items()}
    return rows


def agreement_row(rated: Table, n_resamples: int) -> dict[str, Any]:
    """Return how far the raters agree on a question (items are drawn), and how many ratings are missing."""
    counts, none = value_counts(rated).to_numpy(), rated.given[rated.value.isna()]
    rng, n = np.random.default_rng(0), len(counts)
    drawn = [alpha(counts), *(alpha(counts[rng.integers(n, size=n)]) for _ in range(n_resamples))]
    return {"n": int((counts.sum(axis=1) > 1).sum()), "n_ratings": int(counts.sum()),
            "n_missing": (none == "").sum(), "n_out_of_scale": (none != "").sum(),
            **interval_columns("alpha", interval_of(drawn))}  # fmt: skip


def rating_tables(rated: Table, n_resamples: int) -> dict[str, Table]:
    """Return the tables of filled sheets by file name: results, agreement, and every rating not given."""
    results, agreements = [], []
    for (study, question), part in rated.groupby(["study", "question"], sort=False):
        head = {"study": study, "question": question, "n_raters": part.rater.nunique()}
        results += [head | row for row in result_rows(part, n_resamples)]
        agreements.append(head | agreement_row(part, n_resamples))
    problems = rated[rated.value.isna()][["file", "row", "item", "question", "given"]]
    return {"ratings": table_of(results), "rating_agreement": table_of(agreements),
            "rating_problems": problems}  # fmt: skip
