"""What is known to be wrong with personas and texts, counted in the data as it is used (notebook 05).

Refusals and error messages in place of personas, personas that name the other response, and texts that begin
with the role of their speaker. The last two can be stripped (``strip_contrast``, ``strip_roles``).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from persona_lib.config import Run
from persona_lib.data import everyday, official, preference
from persona_lib.data.official import PERSONA_COLUMNS
from persona_lib.data.persona_text import is_contrastive
from persona_lib.data.tailoring import persona_files
from persona_lib.records import InferredPersona, TailoringRow
from persona_lib.store import read_rows

if TYPE_CHECKING:
    import pandas as pd

ROLES = "rows with a text that begins with Human: or Assistant:"


def bad_statuses(run: Run) -> dict[tuple[str, str], str]:
    """Return why a row has no such persona: (row id, persona) -> "refusal", "empty", "malformed", ..."""
    if run.dataset == everyday.NAME:
        return {}  # every row brings both personas
    if preference.has_personas(run):
        bad = official.bad_personas(preference.data_folder(run), run.dataset)
        return {(row["id"], row["persona"]): row["status"] for row in bad}
    inferred = (row for path in persona_files(run) for row in read_rows(path, InferredPersona))
    return {(row.id, f"gold-{row.side}"): row.status for row in inferred if row.persona is None}


def split_flaws(rows: list[TailoringRow], statuses: dict[tuple[str, str], str]) -> Counter[str]:
    """Count the flaws of one split by what they are."""
    counts = Counter({ROLES: 0})
    for row in rows:
        counts[ROLES] += official.begins_with_role(row)
        for name in PERSONA_COLUMNS:
            if status := statuses.get((row.id, name)):
                counts[f"{name}: {status}"] += 1
            counts[f"{name}: contrastive"] += is_contrastive(row.personas.get(name) or "")
    return counts


def flaw_table(run: Run, rows: dict[str, list[TailoringRow]]) -> pd.DataFrame:
    """Return one line per flaw that can occur or does, one column per split, in rows of the data as used."""
    import pandas as pd

    statuses = bad_statuses(run)
    counts = {split: split_flaws(part, statuses) for split, part in rows.items()}
    table = pd.DataFrame(counts).fillna(0).astype(int).sort_index()
    table.loc["rows"] = [len(part) for part in rows.values()]
    return table.rename_axis("found in")
