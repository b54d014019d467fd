"""For the notebook on human ratings: export the sheets of both studies, read filled ones, save tables."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from persona_lib.config import results_dir
from persona_lib.evaluation.rating_items import items_to_rate
from persona_lib.evaluation.rating_sheets import QUESTIONS, TEXTS, export, make_key, rater_names
from persona_lib.evaluation.ratings import Filled, open_csv, read_filled, read_key
from persona_lib.profiles import Profile
from persona_lib.store import write_text
from persona_lib.tables.rating_tables import rating_tables

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Design:
    """How a study is laid out: items in all, raters, and how many of them rate each item."""

    items: int
    raters: int
    per_item: int


# Sizes as in the paper: 80 personas by three raters; 144 personas of eight users, the answers of two systems.
# Its users rated alone what they had written; here two rate each answer, or agreement could not be computed.
TABLES = ("ratings", "rating_agreement", "rating_problems")
DESIGNS = {"personas": Design(80, 3, 3), "answers": Design(288, 8, 2)}


def folder_of(profile: Profile) -> Path:
    """Folder of a profile's ratings: ``for_raters/`` and ``keys/``."""
    return results_dir(profile) / "ratings"


def export_studies(profile: Profile) -> dict[str, list[Path]]:
    """Write the sheets and keys of every study that the profile has items for; returns their files."""
    folder, written = folder_of(profile), {}
    for study, design in DESIGNS.items():
        items = items_to_rate(profile, study, design.items)
        if items:
            raters = rater_names(design.raters)
            key = make_key(study, items, raters, design.per_item)
            written[study] = export(study, key, folder / "for_raters" / study, folder / "keys", raters)
    return written


def export_table(written: dict[str, list[Path]]) -> pd.DataFrame:
    """Return a line per study: items, raters, ratings per item, and where the files are."""
    import pandas as pd

    rows = []
    for study, paths in written.items():
        key, root = read_key(paths[-1]), paths[-1].parent.parent
        given = [name for row in key.values() for name in row.raters.split()]
        rows.append({
            "study": study, "items": len(key), "raters": len(set(given)),
            "ratings per item": len(given) / len(key),
            "sheets": str(paths[0].parent.relative_to(root)), "key": str(paths[-1].relative_to(root)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def collect(profile: Profile, filled: str = "") -> dict[str, Filled]:
    """Read the sheets in the folder ``filled``, by study; without one, nobody has rated."""
    return read_filled(Path(filled).expanduser(), folder_of(profile) / "keys") if filled else {}


def who_rated(filled: dict[str, Filled]) -> str:
    """Say in a sentence how many people rated."""
    counts = ", ".join(f"{study}: {len(found.raters)} raters" for study, found in filled.items())
    return (
        counts or "nobody has rated yet: hand out the sheets and give the folder of filled ones as `filled`"
    )


def first_item(written: dict[str, list[Path]], study: str) -> str:
    """Return the first item of a study's first sheet with its questions as HTML, all text escaped."""
    if study not in written:
        return f"no items for {study}"
    _, rows = open_csv(written[study][0])
    texts = "".join(
        f"<p><b>{name.replace('_', ' ')}</b><br><span style='white-space:pre-wrap'>"
        f"{html.escape(rows[0][name])}</span></p>"
        for name in TEXTS[study]
    )
    asked = "".join(f"<li><b>{n}</b>: {html.escape(text)}</li>" for n, text in QUESTIONS[study].items())
    head = f"<p>{html.escape(written[study][0].name)}, item 1 of {len(rows)}</p>"
    return f"{head}{texts}<ul>{asked}</ul>"


def save_tables(profile: Profile, filled: dict[str, Filled]) -> dict[str, pd.DataFrame]:
    """Compute and write the tables of ratings of a profile; older ones go if nobody rated."""
    folder = results_dir(profile) / "tables"
    for name in TABLES:
        (folder / f"{name}.csv").unlink(missing_ok=True)
    tables = rating_tables(filled, profile.bootstrap_samples) if filled else {}
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    return tables


def n_cells(filled: dict[str, Filled]) -> int:
    """Return how many ratings were asked for: every given item, rater and question."""
    return sum(
        len(row.raters.split()) * len(QUESTIONS[study])
        for study, found in filled.items()
        for row in found.key.values()
    )
