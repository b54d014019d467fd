"""The nine language models' personas that the authors released: read, checked and counted.

The data set is nbalepur/personas on the hub, one row per persona: prompt, chosen, rejected, persona, model,
dataset. It is read from the hub at a commit that you name, from a ``load_from_disk`` folder, or from an
exported JSON file. We had no copy and know no commit: the reader is tested on rows of our own in that form.
Which of the two responses a persona speaks for is no column, and is not guessed.

Run: python -m persona_lib.data.model_personas nbalepur/personas@COMMIT   (or a folder, or a file)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import hub
from persona_lib.data.official import open_folder
from persona_lib.data.persona_text import is_contrastive, persona_status
from persona_lib.data.raw import field, iter_objects
from persona_lib.records import DataError, ModelPersona

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("prompt", "chosen", "rejected", "persona", "model", "dataset")


def source_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) from a JSON file, a ``load_from_disk`` folder or the hub."""
    path = Path(source).expanduser()
    if path.is_file():
        yield from iter_objects(path)
        return
    if path.is_dir():
        tables = open_folder(path)
    else:
        try:
            tables = hub.load_dataset(source)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{source}: not a file or folder here, and not from the hub ({error}). Ways to provide it: "
                "nbalepur/personas@COMMIT with a network, or a folder or JSON file that was saved elsewhere"
            ) from error
    for split, table in tables.items() if isinstance(tables, dict) else [("", tables)]:
        for number, row in enumerate(table, start=1):
            yield f"{source}{f', split {split}' if split else ''}, row {number}", row


def read_model_personas(source: str) -> list[ModelPersona]:
    """Read the released personas of all models; ids number the rows from 0.

    A persona that is none (empty, refusal, error message) becomes None, with its ``status``. Raises DataError
    that names file, row and field for a row without the columns, or with something else than text in them.
    """
    rows = []
    for number, (where, row) in enumerate(source_rows(source)):
        texts = {name: field(row, name, str, where) for name in COLUMNS}
        for name in ("prompt", "model", "dataset"):
            if not texts[name].strip():
                raise DataError(f"{where}: {name} is empty; drop the row or fill it in")
        raw = texts.pop("persona")
        status = persona_status(raw)
        persona = raw.strip() if status == "ok" else None
        rows.append(ModelPersona(f"personas-{number:06d}", persona=persona, status=status, raw=raw, **texts))
    if not rows:
        raise DataError(f"{source}: no rows; columns should be {', '.join(COLUMNS)}")
    return rows


def persona_counts(rows: Iterable[ModelPersona]) -> pd.DataFrame:
    """Count rows, personas and refusals per model and data set, with mean words and contrastive share."""
    import pandas as pd

    table = pd.DataFrame(
        {
            "model": row.model,
            "dataset": row.dataset,
            "rows": 1,
            "personas": row.persona is not None,
            "refusals": row.status == "refusal",
            "words": len(row.persona.split()) if row.persona else None,
            "contrastive": float(is_contrastive(row.persona)) if row.persona else None,
        }
        for row in rows
    )
    how = {"rows": "sum", "personas": "sum", "refusals": "sum", "words": "mean", "contrastive": "mean"}
    return table.groupby(["model", "dataset"]).agg(how)


def main() -> None:
    """Print the counts of the source given as argument."""
    if len(sys.argv) != 2:
        sys.exit(
            "usage: python -m persona_lib.data.model_personas SOURCE (nbalepur/personas@COMMIT, folder, file)"
        )
    try:
        print(persona_counts(read_model_personas(sys.argv[1])).round(3).to_string())
    except DataError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
