"""Tables of what personas are like as texts: those of a run, of several, and the authors' released ones.

Shares and lengths have intervals (bootstrap over seeds and pairs, the two sides paired by pair).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.config import Run
from persona_lib.data import official, official_folders
from persona_lib.data.persona_text import measures, persona_status
from persona_lib.data.preference import inference_split
from persona_lib.profiles import Profile
from persona_lib.records import SIDES, InferredPersona
from persona_lib.stats.bootstrap import Interval, bootstrap_mean, interval_columns
from persona_lib.stats.saliency import word_saliency
from persona_lib.store import read_rows

if TYPE_CHECKING:
    import pandas as pd

N_WORDS = 10  # of each side, the most telling
Row = dict[str, Any]
Texts = dict[str, dict[str, str]]  # side -> id of the pair -> the annotator's whole answer


def inferred_texts(run: Run, split: str) -> Texts:
    """Return the answers of persona inference on a split, by side and pair; {} if a side is missing."""
    paths = {side: run.folder / "personas" / f"{split}-{side}.jsonl" for side in SIDES}
    if not all(path.exists() for path in paths.values()):
        return {}
    return {
        side: {row.id: row.raw for row in read_rows(path, InferredPersona)} for side, path in paths.items()
    }


def released_texts(data_dir: str, dataset: str) -> Texts:
    """Return the authors' gold personas of all splits, as released, by side and row."""
    folder = official_folders.find_data_dir(data_dir, [dataset])
    tables = official.open_tailoring(folder, dataset)
    rows = {
        official.row_id(dataset, split, number): row
        for split, table in tables.items()
        if split != "fewshot"  # its rows are copies of training rows
        for number, row in enumerate(table.to_list())
    }
    return {side: {i: row[f"{side}_persona_gold"] for i, row in rows.items()} for side in SIDES}


def valid(texts: dict[str, str]) -> list[str]:
    """Return the answers that are personas."""
    return [text.strip() for text in texts.values() if persona_status(text) == "ok"]


def item_arrays(by_seed: Sequence[Texts]) -> dict[str, dict[str, list[np.ndarray]]]:
    """Return, per measure and side, one array per seed of the pairs' values, pairs in one order."""
    arrays: dict[str, dict[str, list[np.ndarray]]] = {}
    for texts in by_seed:
        names = list(dict.fromkeys(i for side in SIDES for i in texts[side]))
        for side in SIDES:
            found = [measures(texts[side].get(name)) for name in names]
            for measure in found[0]:
                values = np.array([row[measure] for row in found])
                arrays.setdefault(measure, {}).setdefault(side, []).append(values)
    return arrays


def estimate(arrays: Sequence[np.ndarray], n_resamples: int) -> Row:
    """Return n, and the mean over pairs and seeds with its interval."""
    kept = [array[~np.isnan(array)] for array in arrays]
    kept = [array for array in kept if len(array)]
    interval = bootstrap_mean(kept, n_resamples) if kept else Interval(None, None, None, 0)
    return {"n": sum(map(len, kept)), "n_seeds": len(kept), **interval_columns("value", interval)}


def text_table(by_seed: Sequence[Texts], n_resamples: int) -> pd.DataFrame:
    """Return a line per measure and side, and the difference chosen - rejected, paired by pair.

    Raises nothing on missing personas: they count in the shares of refusals and the like, not in lengths.
    """
    import pandas as pd

    lines: list[Row] = []
    for measure, sides in item_arrays(by_seed).items():
        lines += [{"measure": measure, "side": s} | estimate(sides[s], n_resamples) for s in SIDES]
        gaps = [c - r for c, r in zip(sides["chosen"], sides["rejected"], strict=True)]
        lines.append({"measure": measure, "side": "chosen - rejected"} | estimate(gaps, n_resamples))
    return pd.DataFrame(lines)


def run_table(run: Run) -> pd.DataFrame:
    """Return the text measures of a run's inferred personas on the split that they are scored on."""
    texts = inferred_texts(run, inference_split(run.profile, run.dataset))
    return text_table([texts] if texts else [], run.profile.bootstrap_samples)


def released_datasets(profile: Profile) -> Iterator[str]:
    """Yield the profile's data sets for which the authors released personas."""
    yield from (name for name in profile.datasets if official_folders.DATASETS.get(name, {}).get("tailoring"))


def released_tables(profile: Profile) -> dict[str, pd.DataFrame]:
    """Return the same for the authors' released gold personas, and their salient words (Table 1).

    Tables ``released_personas`` and ``released_words`` (the most telling of each side); {} without real data.
    """
    import pandas as pd

    parts: dict[str, list[pd.DataFrame]] = {}
    for dataset in released_datasets(profile):
        texts = released_texts(profile.data_dir, dataset)
        words = sorted(word_saliency(*(valid(texts[side]) for side in SIDES)), key=lambda word: -word.z)
        ends = {"chosen": words[:N_WORDS], "rejected": words[: -N_WORDS - 1 : -1]}
        tables = {
            "released_personas": text_table([texts], profile.bootstrap_samples),
            "released_words": pd.DataFrame(
                [{"side": side} | dataclasses.asdict(word) for side, part in ends.items() for word in part]
            ),
        }
        for name, table in tables.items():
            table.insert(0, "dataset", dataset)
            parts.setdefault(name, []).append(table)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}
