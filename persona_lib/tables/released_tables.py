"""Tables and the figure of the authors' released generations: counts, lengths, persona flip. No model runs.

The definitions are those of ``text_metrics``; "DPO+P" is plain DPO given the persona in the question.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from persona_lib.data.released import SOURCES, Released, ReleasedFile
from persona_lib.records import TailoringRow
from persona_lib.stats.bootstrap import Interval, bootstrap_mean, interval_columns
from persona_lib.stats.text_metrics import (
    count_degenerate,
    flip_and_did,
    length_steering,
    length_steering_interval,
    n_words,
)
from persona_lib.store import write_text

if TYPE_CHECKING:
    import pandas as pd

ARMS = {"dpo-chosen": "PT-DPO", "dpo-none": "DPO+P"}


def counts_table(data: Released) -> pd.DataFrame:
    """Count rows and degenerate outputs per file, with lengths in words (one row per file)."""
    import pandas as pd

    records = []
    for file, outputs in data.outputs.items():
        texts = [output.text for output in outputs]
        words = pd.Series([n_words(text) for text in texts])
        counts = dataclasses.asdict(count_degenerate(texts, [output.ended for output in outputs]))
        records.append(
            {"dataset": file.dataset, "arm": file.arm, "eval_persona": file.eval_persona, **counts,
             "words_median": words.median(), "words_mean": words.mean()}
        )  # fmt: skip
    return pd.DataFrame(records)


def kept_table(data: Released) -> pd.DataFrame:
    """Count the pairs (PT-DPO, DPO+P under the same persona) that survive a filter on both sides.

    ``only_*_endless`` counts pairs in which only that side never stops; ``length_ratio`` is DPO+P / PT.
    """
    import pandas as pd

    records = []
    for file, tested in data.outputs.items():
        base = data.outputs.get(ReleasedFile(file.dataset, "none", file.eval_persona))
        if file.arm != "dpo-chosen" or base is None:
            continue
        counts = [[count_degenerate([o.text], [o.ended]) for o in side] for side in (tested, base)]
        pairs = list(zip(*counts, strict=True))
        words = [sum(n_words(o.text) for o in side) for side in (tested, base)]
        records.append({
            "dataset": file.dataset, "eval_persona": file.eval_persona, "n": len(pairs),
            "kept_eos": sum(not (t.no_eos or b.no_eos) for t, b in pairs),
            "kept_rep4_50": sum(not (t.rep4_over_50 or b.rep4_over_50) for t, b in pairs),
            "kept_rep4_20": sum(not (t.rep4_over_20 or b.rep4_over_20) for t, b in pairs),
            "only_pt_endless": sum(t.no_eos > b.no_eos for t, b in pairs),
            "only_dpo_endless": sum(b.no_eos > t.no_eos for t, b in pairs),
            "length_ratio": words[1] / words[0],
        })  # fmt: skip
    return pd.DataFrame(records)


def both_sides(data: Released) -> Iterator[tuple[dict[str, str], list[TailoringRow], list[str], list[str]]]:
    """Yield (names, rows, outputs under P_C, under P_R) wherever both files and responses are there."""
    for dataset, rows in data.rows.items():
        if not all(row.chosen and row.rejected for row in rows):
            continue  # Mnemonic's test split has no responses to compare with
        for source in SOURCES:
            for arm in ARMS:
                sides = [data.texts(dataset, arm, f"{source}-{side}") for side in ("chosen", "rejected")]
                if None not in sides:
                    yield {"dataset": dataset, "personas": source, "arm": arm}, rows, *sides


def lengths_table(data: Released, n_resamples: int = 4000, seed: int = 0) -> pd.DataFrame:
    """Give mean words under P_C, P_R and of the data, and how far personas steer length (Spearman's rho)."""
    import pandas as pd

    records = []
    for names, rows, under_chosen, under_rejected in both_sides(data):
        texts = (under_chosen, under_rejected, [row.chosen for row in rows], [row.rejected for row in rows])
        words = pd.DataFrame({i: [n_words(text) for text in column] for i, column in enumerate(texts)})
        differences = (list(words[2] - words[3]), list(words[0] - words[1]))
        low, high = length_steering_interval(*differences, n_resamples, seed) or (None, None)
        means = dict(zip(("words_under_chosen", "words_under_rejected", "words_chosen", "words_rejected"),
                         words.mean(), strict=True))  # fmt: skip
        rho = Interval(length_steering(*differences), low, high, len(rows))
        records.append({**names, "n": len(rows), **means, **interval_columns("rho", rho)})
    return pd.DataFrame(records)


def flip_table(data: Released, n_resamples: int = 4000, seed: int = 0) -> pd.DataFrame:
    """Give flip, DiD and the share of DiD > 0 (exact zeros left out), with bootstrap intervals over items."""
    import pandas as pd

    records = []
    for names, rows, under_chosen, under_rejected in both_sides(data):
        chosen, rejected = [row.chosen for row in rows], [row.rejected for row in rows]
        scores = flip_and_did(under_chosen, under_rejected, chosen, rejected)
        record = {**names, "n": len(rows), "n_did_zero": int((scores.did == 0).sum())}
        for name in ("flip", "did", "did_positive"):
            interval = bootstrap_mean([getattr(scores, name)], n_resamples, seed)
            record |= interval_columns(name, interval)
        records.append(record)
    return pd.DataFrame(records)


def released_tables(data: Released, n_resamples: int = 4000, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Make all tables of the released outputs, by file name (without extension)."""
    return {
        "released_counts": counts_table(data),
        "released_kept": kept_table(data),
        "released_lengths": lengths_table(data, n_resamples, seed),
        "released_flip": flip_table(data, n_resamples, seed),
    }


def write_tables(tables: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write each table as ``<folder>/<name>.csv`` and return the paths."""
    paths = []
    for name, table in tables.items():
        paths.append(folder / f"{name}.csv")
        write_text(paths[-1], table.to_csv(index=False, float_format="%.6g"))
    return paths


def example_row(data: Released, dataset: str, number: int, source: str = "gold") -> dict[str, str]:
    """Return one test row by label: prompt, and per side persona, response and both arms' outputs."""
    row = data.rows[dataset][number]
    shown = {"prompt": row.prompt}
    for side, response in (("chosen", row.chosen), ("rejected", row.rejected)):
        shown[f"{side} persona"] = row.personas.get(f"{source}-{side}") or ""
        shown[f"{side} response"] = response
        for arm, title in ARMS.items():
            texts = data.texts(dataset, arm, f"{source}-{side}")
            if texts is not None:
                shown[f"{title} under the {side} persona"] = texts[number]
    return shown


def example_text(data: Released, dataset: str = "", number: int = 0, width: int = 320) -> str:
    """Lay out ``example_row`` for reading, texts cut to ``width`` characters (default: first data set)."""
    shown = example_row(data, dataset or next(iter(data.rows)), number)
    short = {label: textwrap.shorten(text, width, placeholder=" ...") for label, text in shown.items()}
    lines = [
        textwrap.fill(f"{label.upper()}: {text}", 110, subsequent_indent="    ")
        for label, text in short.items()
    ]
    return "\n".join(lines)
