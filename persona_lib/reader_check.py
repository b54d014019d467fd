"""How often the reader of answers is right: ``python -m persona_lib.studies reader``.

``--draw N`` writes a blind sheet of N generated answers of a run: a dimension with its two values, the
question and the answer; no policy, persona or verdict of the reader. Somebody adds "label" to each line: one
of the two values, or "neither". The labelled sheet is kept in ``facts/reader_labels.jsonl``. Without
``--draw`` the table is computed from it and from the written responses of the test split, into
``figures/everyday/reader.csv``.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import store
from persona_lib.config import REPO, Run, open_run
from persona_lib.data import everyday
from persona_lib.evaluation.calibration import labelled
from persona_lib.evaluation.reader import reader_table
from persona_lib.evaluation.tailor import generation_folder, grid, read_generations

if TYPE_CHECKING:
    import pandas as pd

TABLE = REPO / "figures" / "everyday" / "reader.csv"


def blind_sheet(run: Run, n: int) -> list[dict[str, Any]]:
    """Return ``n`` generated answers to label, equally many per policy, in random order under neutral ids."""
    rng, items = random.Random("reader-sheet"), {item.id: item for item in everyday.items()}
    by_arm: dict[str, list[tuple[str, str, str]]] = {}
    for spec in grid(run):
        if (generation_folder(run, spec) / "done.json").exists():
            found = read_generations(run, spec).values()
            by_arm.setdefault(spec.arm, []).extend((g.id, g.prompt, g.completion) for g in found)
    drawn = [
        row
        for found in by_arm.values()
        for row in rng.sample(sorted(set(found)), min(len(set(found)), -(-n // len(by_arm))))
    ]
    rows = []
    for number, (name, prompt, text) in enumerate(rng.sample(drawn, min(n, len(drawn)))):
        dimension = rng.choice(items[name].dimension.split("+"))
        values = list(everyday.DIMENSIONS[dimension])
        rows.append({"id": f"answer-{number:03d}", "dimension": dimension, "values": values,
                     "prompt": prompt, "text": text})  # fmt: skip
    return rows


def measured() -> pd.DataFrame:
    """Return ``reader_table`` of the written test responses and of the labelled generated answers."""
    import pandas as pd

    written = [
        (dimension, value, getattr(item, f"response_{side}"))
        for item in everyday.items()
        if item.split == "test"
        for side in "ab"
        for dimension, value in item.wish(side)
    ]
    tables = {"written, test": written, "generated": labelled()}
    parts = [reader_table(texts).assign(texts=name) for name, texts in tables.items()]
    return pd.concat(parts)[["texts", "dimension", "n", "read", "right", "precision", "recall"]]


def main() -> None:
    """Draw a sheet, or write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m persona_lib.studies reader",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--draw", type=int, metavar="N", help="write a blind sheet of N answers")
    parser.add_argument("--to", type=Path, default=Path("reader_sheet.jsonl"), metavar="FILE")
    parser.add_argument("--profile", default="everyday")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.draw:
        store.write_rows(given.to, blind_sheet(open_run(given.profile, seed=given.seed), given.draw))
        print(given.to)
        return
    table = measured()
    store.write_text(TABLE, table.to_csv(index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
