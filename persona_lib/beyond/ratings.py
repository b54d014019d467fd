"""Ratings by people: blinded sheets out, filled ones in, their results and agreement (paper sections 3, 5).

Two studies, as in the paper: its persona rating and its user study (plain DPO and PT-DPO). A *unit* is rated
as a whole by the same raters: one persona, or two systems' answers to one question. Units and the order
within them are shuffled before items are numbered, and a sheet holds nothing but numbers and texts. The
**key** says what a number stands for and has a folder of its own. The wording of the questions is ours; the
paper gives the names of its criteria.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.intervals import Interval, bootstrap_mean, interval_columns, interval_of
from persona_lib.paper.answers import eval_rows, generation_folder, read_generations
from persona_lib.records import SIDES, RunSpec
from persona_lib.settings import Profile, Run, main_arm
from persona_lib.store import content_hash, write_text

if TYPE_CHECKING:
    import pandas as pd

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
KEY_COLUMNS = ("item", "study", "dataset", "pair", "group", "raters", "seed")
PROBLEM = ("file", "row", "item", "field", "value", "kind", "mend")
REWRITE = f"write a whole number from {SCALE[0]} to {SCALE[-1]}, or leave it empty if there is none"


@dataclass(frozen=True)
class Item:
    """One thing to rate. ``texts`` is what the rater sees, in the order of ``TEXTS``; the rest is hidden.

    ``unit``: what is rated together; ``group``: what is compared (side or system); items of equal ``pair``
    and different ``group`` are compared with each other. ``item`` is its number, ``raters`` who rates it.
    """

    dataset: str
    unit: str
    pair: str
    group: str
    texts: tuple[str, ...]
    item: str = ""
    raters: str = ""


# --- what of a profile is rated: one run per data set, that of the profile's first seed ---


def persona_units(run: Run) -> list[list[Item]]:
    """Return, per row that has both responses and gold personas, its two personas: each is its own unit."""
    units = []
    for row in eval_rows(run):
        personas = [row.personas.get(f"gold-{side}") or "" for side in SIDES]
        if all(personas) and row.chosen.strip() and row.rejected.strip():
            shown = (personas[0], row.chosen, row.rejected), (personas[1], row.rejected, row.chosen)
            texts = {side: (row.prompt, *own) for side, own in zip(SIDES, shown, strict=True)}
            pair = f"{run.dataset}/{row.id}"
            units.append([Item(run.dataset, f"{row.id}/{side}", pair, side, texts[side]) for side in SIDES])
    return units


def answer_units(run: Run, persona: str) -> list[list[Item]]:
    """Return, per row, both systems' answers under one persona; [] if a system has not answered.

    As in the main comparison: plain DPO is told in the first person, PT-DPO has its own line.
    """
    found = {}
    for system, arm, form in (("PT-DPO", main_arm(run.profile), "line"), ("DPO", "none", "first_person")):
        spec = RunSpec(run.dataset, "dpo", arm, persona, run.seed, form)
        if not (generation_folder(run, spec) / "done.json").exists():
            return []
        found[system] = read_generations(run, spec)
    units = []
    for row in eval_rows(run):
        if all(row.id in answers for answers in found.values()):
            pair, shown = f"{run.dataset}/{row.id}/{persona}", (row.prompt, row.personas[persona] or "")
            answers = {system: (*shown, of[row.id].completion) for system, of in found.items()}
            units.append([Item(run.dataset, pair, pair, system, texts) for system, texts in answers.items()])
    return units


def units_to_rate(run: Run, study: str) -> list[list[Item]]:
    """Return a study's units; answers are those to users' own personas, or to gold ones without any."""
    if study == "personas":
        return persona_units(run)
    for kind in ("user", "gold"):
        if units := [unit for side in SIDES for unit in answer_units(run, f"{kind}-{side}")]:
            return units
    return []


def items_to_rate(profile: Profile, study: str, n: int, seed: int = 0) -> list[Item]:
    """Draw about ``n`` items of a study, in equal parts from the profile's data sets; maybe none."""
    runs = [Run(profile, dataset, profile.seeds[0]) for dataset in profile.datasets]
    runs = [run for run in runs if (run.folder / "tailoring" / f"{profile.evaluation.split}.jsonl").exists()]
    items = []
    for run in runs:
        found = units_to_rate(run, study)
        rng = random.Random(f"rated-{study}-{run.dataset}-{seed}")
        wanted = max(1, round(n / len(GROUPS[study]) / len(runs)))
        items += [item for unit in rng.sample(found, min(wanted, len(found))) for item in unit]
    return items


# --- blinded sheets ---


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


def number_items(
    study: str, items: Sequence[Item], n_raters: int, per_unit: int, seed: int = 0
) -> list[Item]:
    """Return the items in random order, numbered and given to raters "rater-1", "rater-2", ...

    Each unit goes to ``per_unit`` neighbours in a circle, so that all raters are linked; ValueError if there
    are fewer. A number begins with a code of the texts, which tells the sheets of two exports apart.
    """
    if not 1 <= per_unit <= n_raters:
        raise ValueError(f"{per_unit} ratings per item from {n_raters} raters: use 1 to {n_raters}")
    units = shuffled_units(items, seed)
    code = content_hash(study, seed, [item.texts for unit in units for item in unit])[:4]
    numbered: list[Item] = []
    for place, unit in enumerate(units):
        raters = " ".join(f"rater-{(place + k) % n_raters + 1}" for k in range(per_unit))
        for item in unit:
            numbered.append(replace(item, item=f"{code}-{len(numbered) + 1:03d}", raters=raters))
    return numbered


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV file; the mark in front makes spreadsheets read it as UTF-8."""
    import pandas as pd

    write_text(path, "\ufeff" + pd.DataFrame(rows, columns=columns).to_csv(index=False))
    return path


def instructions(study: str) -> str:
    """Return what a rater is told."""
    lines = [f"- {name}: {text}" for name, text in QUESTIONS[study].items()]
    return (
        f"# Rating {study}\n\nOne row is one item. Read its texts, then write a whole number "
        f"from {SCALE[0]} to {SCALE[-1]} into each of these columns:\n\n" + "\n".join(lines) + "\n\n"
        "Leave a cell empty if you cannot say. Judge every row by itself, and do not talk about them with "
        "others who rate. Do not change the columns rater and item. Save as CSV.\n"
    )


def export(study: str, numbered: Sequence[Item], folder: Path, seed: int = 0) -> list[Path]:
    """Write a study's sheets, its instructions and its key (``number_items``); returns them, the key last.

    ``folder/for_raters/<study>`` has one sheet per rater, in an order of the rater's own, and goes to them.
    ``folder/keys`` stays: it alone tells a persona's side or an answer's system.
    """
    sheets, code = folder / "for_raters" / study, numbered[0].item.partition("-")[0]
    columns = ["rater", "item", *TEXTS[study], *QUESTIONS[study], "comment"]
    blank, paths = [""] * (len(QUESTIONS[study]) + 1), []
    for rater in sorted({name for item in numbered for name in item.raters.split()}):
        units = shuffled_units([item for item in numbered if rater in item.raters.split()], f"{rater}-{seed}")
        rows = [[rater, item.item, *item.texts, *blank] for unit in units for item in unit]
        paths.append(write_csv(sheets / f"{rater}.csv", columns, rows))
    write_text(sheets / "INSTRUCTIONS.md", instructions(study))
    key = [[i.item, study, i.dataset, i.pair, i.group, i.raters, seed] for i in numbered]
    key_path = write_csv(folder / "keys" / f"{study}-{code}.csv", KEY_COLUMNS, key)
    return [*paths, sheets / "INSTRUCTIONS.md", key_path]


# --- filled sheets: checked cell by cell and joined with the key; nothing is guessed ---


@dataclass(frozen=True)
class Filled:
    """The ratings of one study: (item, rater, question) -> value or None; the key; what was wrong."""

    study: str
    key: dict[str, dict[str, str]]
    ratings: dict[tuple[str, str, str], int | None]
    problems: list[dict[str, Any]]  # columns ``PROBLEM``; row 0: the item's row is lost

    @property
    def raters(self) -> list[str]:
        """Names of the raters, in the order of their files."""
        return list(dict.fromkeys(rater for _, rater, _ in self.ratings))

    def values(self, question: str) -> pd.DataFrame:
        """Return the ratings of the items that were given out: items down, raters across, NaN for none."""
        import pandas as pd

        items = dict.fromkeys(item for item, *_ in self.ratings)
        values = {r: [self.ratings.get((item, r, question)) for item in items] for r in self.raters}
        return pd.DataFrame(values, index=list(items), dtype=float)


def open_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and rows of a CSV file whose separator is a comma or a semicolon."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); save it again as CSV UTF-8") from error
    head = text.partition("\n")[0]
    separator = ";" if head.count(";") > head.count(",") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    rows = [{name: (value or "").strip() for name, value in row.items() if name} for row in reader]
    return list(reader.fieldnames or []), rows


def read_key(path: Path) -> dict[str, dict[str, str]]:
    """Read a key file: item -> its columns (``KEY_COLUMNS``)."""
    return {row["item"]: row for row in open_csv(path)[1]}


def read_value(text: str) -> int | None:
    """Read a rating: a whole number of the scale ("4", "4.0"), else None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number in SCALE else None


def bad(path: Path, row: int, field: str, what: str) -> ValueError:
    """Return the error of a sheet that cannot be read: where, what, and the way out."""
    return ValueError(f"{path}, row {row}, field {field!r}: {what}")


def study_of(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> str:
    """Return the study that a sheet belongs to; ValueError if it has no row, or lacks a column."""
    have = f"(found: {', '.join(columns) or 'none'})"
    study = next((name for name, questions in QUESTIONS.items() if set(questions) & set(columns)), "")
    if not study:
        known = " or ".join("/".join(questions) for questions in QUESTIONS.values())
        raise ValueError(f"{path}, row 1: no column of ratings {have}; sheets have {known}")
    for name in ("rater", "item", *QUESTIONS[study]):
        if name not in columns:
            raise bad(path, 1, name, f"the column is missing {have}; put the first line back as exported")
    if not rows:
        raise ValueError(f"{path}: no rows; copy the sheet again, or leave it out")
    return study


def find_key(path: Path, rows: Sequence[dict[str, str]], study: str, keys: Path) -> dict[str, dict[str, str]]:
    """Return the key of a sheet's export: the one whose code its items begin with."""
    found = keys / f"{study}-{rows[0]['item'].partition('-')[0]}.csv"
    if not found.exists():
        have = ", ".join(sorted(p.name for p in keys.glob(f"{study}-*.csv"))) or "none"
        what = f"no key {found.name} in {keys} (found: {have}); use the keys of the sheet's own export"
        raise bad(path, 2, "item", what)
    return read_key(found)


def check_rows(path: Path, rows: Sequence[dict[str, str]], sheets: Filled) -> None:
    """Raise ValueError for a row whose rater changes, or whose item is unknown or repeated."""
    rater, seen = rows[0]["rater"], set()
    if rater in sheets.raters:
        raise bad(path, 2, "rater", f"a second sheet of {rater!r}; give every rater a name of their own")
    for number, row in enumerate(rows, start=2):
        item = row["item"]
        if not rater or row["rater"] != rater:
            raise bad(path, number, "rater", f"{row['rater']!r}; write the same name into every row")
        if item not in sheets.key:
            what = f"{item!r} is not in the key; restore the number, or use the key of that export"
            raise bad(path, number, "item", what)
        if item in seen:
            raise bad(path, number, "item", f"{item!r} occurs twice; keep one of the rows")
        seen.add(item)


def add_sheet(path: Path, rows: Sequence[dict[str, str]], sheets: Filled) -> None:
    """Add a sheet's ratings; an empty, impossible or lost one is a problem. Bad rows raise ValueError."""
    check_rows(path, rows, sheets)
    rater, mine = rows[0]["rater"], {row["item"] for row in rows}
    given = [item for item, row in sheets.key.items() if rater in row["raters"].split()]
    lost = [(0, {"item": item}) for item in given if item not in mine]
    for number, row in [*enumerate(rows, start=2), *lost]:
        for question in QUESTIONS[sheets.study]:
            text = row.get(question, "")
            sheets.ratings[row["item"], rater, question] = value = read_value(text)
            if value is None:
                kind = "out of scale" if text else "missing"
                mend = REWRITE if number else "put the row back from the exported sheet"
                file = f"{path.parent.name}/{path.name}"
                where = (file, number, row["item"], question, text, kind, mend)
                sheets.problems.append(dict(zip(PROBLEM, where, strict=True)))


def read_filled(folder: Path, keys: Path) -> dict[str, Filled]:
    """Read all filled sheets (``*.csv``) of a folder and its subfolders, by study.

    Raises ValueError naming file, row, field and the mend; FileNotFoundError if there is no sheet.
    """
    paths = sorted(folder.rglob("*.csv"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no filled sheets (*.csv); copy them there, one file per rater")
    found: dict[str, Filled] = {}
    for path in paths:
        columns, rows = open_csv(path)
        study = study_of(path, columns, rows)
        key = find_key(path, rows, study, keys)
        sheets = found.setdefault(study, Filled(study, key, {}, []))
        if sheets.key != key:
            raise bad(path, 2, "item", "of another export than the sheets before it; keep one per folder")
        add_sheet(path, rows, sheets)
    return {study: found[study] for study in QUESTIONS if study in found}


# --- agreement: ratings are (items, raters) with NaN for none; counts are (items, values of the scale) ---


def count_values(ratings: np.ndarray) -> np.ndarray:
    """Count how many raters gave each value to each item: (items, values)."""
    return (ratings[:, :, None] == np.array(SCALE, dtype=float)).sum(axis=1)


def alpha(counts: np.ndarray, level: str = "ordinal") -> float:
    """Return Krippendorff's alpha of counts, any number of raters; NaN if no item pairs unequal values."""
    import krippendorff

    paired = counts[counts.sum(axis=1) > 1]  # an item with one rating says nothing about agreement
    if (paired.sum(axis=0) > 0).sum() < 2:
        return float("nan")
    return float(krippendorff.alpha(value_counts=paired, level_of_measurement=level))


def alpha_interval(counts: np.ndarray, n_resamples: int) -> Interval:
    """Return ordinal alpha with its 95 % interval: items are drawn, the raters are taken as they are."""
    rng, estimate, n = np.random.default_rng(0), alpha(counts), len(counts)
    if np.isnan(estimate):
        return Interval()
    values = [alpha(counts[rng.integers(n, size=n)]) for _ in range(n_resamples)]
    return interval_of([estimate, *values])


# --- tables ---


def result_rows(filled: Filled, question: str, n_resamples: int) -> list[dict[str, Any]]:
    """Return a question's line per group, with counts of values, and the paired difference of the groups.

    An item's value is the mean of its ratings. Intervals draw items, for the difference pairs.
    """
    values = filled.values(question)
    group, pair = ([filled.key[item][name] for item in values.index] for name in ("group", "pair"))
    means = values.mean(axis=1).groupby([pair, group], sort=False).first().unstack(sort=False)
    first, second = GROUPS[filled.study]
    means = means.reindex(columns=[first, second])
    means[f"{first} - {second}"] = means[first] - means[second]
    rows = []
    for name in means:
        there = means[name].dropna().to_numpy()
        interval = bootstrap_mean([there], n_resamples) if len(there) else Interval()
        row = {"study": filled.study, "question": question, "n_raters": len(filled.raters), "group": name,
               "n": len(there), **interval_columns("mean", interval)}  # fmt: skip
        if name in (first, second):
            counts = count_values(values[[g == name for g in group]].to_numpy()).sum(axis=0).tolist()
            row |= {"n_ratings": sum(counts)} | {f"n_{v}": n for v, n in zip(SCALE, counts, strict=True)}
        rows.append(row)
    return rows


def agreement_row(filled: Filled, question: str, n_resamples: int) -> dict[str, Any]:
    """Return how far the raters agree on one question, and how many ratings are not there."""
    counts = count_values(filled.values(question).to_numpy())
    nominal = alpha(counts, "nominal")
    kinds = [problem["kind"] for problem in filled.problems if problem["field"] == question]
    return {
        "study": filled.study, "question": question, "n_raters": len(filled.raters),
        "n": int((counts.sum(axis=1) > 1).sum()), "n_ratings": int(counts.sum()),
        "n_missing": kinds.count("missing"), "n_out_of_scale": kinds.count("out of scale"),
        **interval_columns("alpha", alpha_interval(counts, n_resamples)),
        "alpha_nominal": None if np.isnan(nominal) else nominal,
    }  # fmt: skip


def rating_tables(filled: dict[str, Filled], n_resamples: int) -> dict[str, pd.DataFrame]:
    """Return the tables of filled sheets by file name: results, agreement, and every rating not given."""
    import pandas as pd

    asked = [(found, question) for study, found in filled.items() for question in QUESTIONS[study]]
    problems = [problem for found in filled.values() for problem in found.problems]
    return {
        "ratings": pd.DataFrame([row for what in asked for row in result_rows(*what, n_resamples)]),
        "rating_agreement": pd.DataFrame([agreement_row(*what, n_resamples) for what in asked]),
        "rating_problems": pd.DataFrame(problems, columns=PROBLEM),
    }
