"""Preference data: the readers of every data set, and what is counted about the data before use.

Each data set is read by one function of the literal table READERS into the same splits (train,
validation, test) of `PreferencePair`. The authors' files themselves are read in `persona_lib.data.official`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from persona_lib.config import Run
from persona_lib.data import everyday, official, official_folders, own, own_files, own_rows
from persona_lib.data.arms import draw
from persona_lib.data.near import near_duplicates
from persona_lib.data.persona_text import is_contrastive
from persona_lib.profiles import ConfigError, Profile, near_names
from persona_lib.records import PreferencePair, TailoringRow
from persona_lib.store import VERSIONS, content_hash, is_done, mark_done, read_rows, write_rows, write_text

if TYPE_CHECKING:
    import pandas as pd

PAIR_SPLITS = ("train", "validation", "test")

Pairs = dict[str, list[PreferencePair]]


# --- one reader per data set ---


def read_everyday(run: Run) -> Pairs:
    """Draw which response of each of the package's own pairs the users of this seed have chosen."""
    return everyday.pairs(run.profile.majority_share, run.seed, run.profile.pair_limit)


def read_official(run: Run) -> Pairs:
    """Read the released pairs of an official data set."""
    return official.official_pairs(data_folder(run), run.dataset, run.profile.strip_roles)


def read_inference(run: Run) -> Pairs:
    """Read an official data set that was released for persona inference alone, as test pairs."""
    return {"train": [], "validation": [], "test": inference_pairs(run)}


def read_own(run: Run) -> Pairs:
    """Read the user's own data (``--data FILE``)."""
    return own.read_own(run.profile).pairs()


READERS: dict[str, Callable[[Run], Pairs]] = {
    everyday.NAME: read_everyday,
    "beavertails": read_official,
    "hhh": read_official,
    "mnemonic": read_official,
    "shp": read_inference,
    own_rows.NAME: read_own,
}


def data_folder(run: Run) -> Path:
    """Return where the tailoring data of a run is (found or fetched, see `official_folders`)."""
    return official_folders.find_data_dir(run.profile.data_dir, [run.dataset])


def has_personas(run: Run) -> bool:
    """Return True if the data set comes with personas (``everyday``, the official ones)."""
    return run.dataset == everyday.NAME or run.dataset in official_folders.DATASETS


def input_key(run: Run) -> str:
    """Return a hash of what a run's pairs are made from: official files, or our own pairs and the seed."""
    if run.dataset == everyday.NAME:
        profile = run.profile
        return content_hash(everyday.key(), profile.majority_share, run.seed, profile.pair_limit)
    if has_personas(run) and official_folders.DATASETS[run.dataset]["tailoring"] is None:
        return inference_key(run)
    if has_personas(run):
        return content_hash(official.official_key(data_folder(run), run.dataset), run.profile.strip_roles)
    if run.dataset == own_rows.NAME:
        return own.own_key(run.profile)
    place = run.profile.data_dir  # a reader that somebody added
    return content_hash(run.dataset, run.seed, place and own_files.source_key(place))


def inference_split(profile: Profile, dataset: str) -> str:
    """Return the split whose personas are scored: the authors' pairs for it, else the evaluation split."""
    return "inference" if dataset in official_folders.DATASETS else profile.eval_split


def inference_pairs(run: Run) -> list[PreferencePair]:
    """Return the pairs of `inference_split` that are evaluated: of an official data set the paper's 300."""
    if run.dataset not in official_folders.DATASETS:
        return draw(load_pairs(run)[run.profile.eval_split], run.profile.eval_limit)
    folder = official_folders.find_data_dir(run.profile.data_dir, [run.dataset], kind="inference")
    return official.load_inference_pairs(folder, run.dataset, run.profile.strip_roles)


def inference_key(run: Run) -> str:
    """Return a hash of what `inference_pairs` reads."""
    if run.dataset not in official_folders.DATASETS:
        return input_key(run)
    folder = official_folders.find_data_dir(run.profile.data_dir, [run.dataset], kind="inference")
    return content_hash(official.official_key(folder, run.dataset, "inference"), run.profile.strip_roles)


def write_pairs(run: Run) -> Path:
    """Write a run's preference pairs to ``pairs/<split>.jsonl`` once and return the folder.

    Raises ConfigError for a data set without a reader, ValueError for an unusable pair.
    """
    if run.dataset not in READERS:
        raise ConfigError(f"no reader for data set {run.dataset!r}; {near_names(run.dataset, list(READERS))}")
    folder, key = run.folder / "pairs", content_hash(VERSIONS["pairs"], input_key(run))
    if is_done(folder, key):
        return folder
    pairs = READERS[run.dataset](run)
    check_pairs(pairs, run.dataset)
    if run.dataset == own_rows.NAME:
        write_account(run)
    for split, rows in pairs.items():
        write_rows(folder / f"{split}.jsonl", rows)
    mark_done(folder, key, rows={split: len(rows) for split, rows in pairs.items()})
    return folder


def write_account(run: Run) -> None:
    """Say what became of the rows of the user's own data, and write it to ``tables/own_*.csv``."""
    data = own.read_own(run.profile)
    print("\n".join(own.describe(data)), flush=True)
    for name, table in (("rows", own.row_table(data)), ("findings", own.finding_table(data))):
        write_text(run.folder / "tables" / f"own_{name}.csv", table.to_csv(index=False))


def load_pairs(run: Run) -> Pairs:
    """Read the pairs that `write_pairs` wrote, by split."""
    folder = run.folder / "pairs"
    if not (folder / "done.json").exists():
        raise FileNotFoundError(f"{folder}: no preference pairs yet; run notebook 01_preference_data first")
    return {split: read_rows(folder / f"{split}.jsonl", PreferencePair) for split in PAIR_SPLITS}


def check_pairs(pairs: Pairs, dataset: str) -> None:
    """Assert what every step relies on: unique ids, text in every field, two different responses.

    Raises ValueError naming the row and the field. The prompt may occur more than once.
    """
    seen: set[str] = set()
    for split, rows in pairs.items():
        for row in rows:
            where = f"{dataset}, split {split}, row {row.id}"
            if row.id in seen:
                raise ValueError(f"{where}: the id occurs twice; ids must be unique over all splits")
            seen.add(row.id)
            for field in ("prompt", "chosen", "rejected"):
                if not getattr(row, field).strip():
                    raise ValueError(f"{where}: {field} is empty; drop the row in the reader")


# --- what the data is like ---


def mean(values: Iterable[float]) -> float:
    """Return the mean, NaN of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def mean_words(texts: Iterable[str | None]) -> float:
    """Return the mean number of white-space separated words of the texts that are there."""
    return mean(len(text.split()) for text in texts if text)


def data_card(rows_by_split: dict[str, list], near_duplicate_threshold: float = 0.5) -> pd.DataFrame:
    """Describe a data set, one row per split: counts, mean words, personas, near duplicates of training.

    Takes splits of `PreferencePair` or `TailoringRow`. Near duplicates are prompts that resemble one of
    a training split (any split whose name holds "train"); shares are over the rows that have the text.
    """
    import pandas as pd

    pool = [row.prompt for split, rows in rows_by_split.items() if "train" in split for row in rows]
    cards = []
    for split, rows in rows_by_split.items():
        card = {"split": split, **text_facts(rows)}
        if "train" not in split and split != "fewshot":
            prompts = [row.prompt for row in rows]
            card["near duplicates of train"] = len(near_duplicates(prompts, pool, near_duplicate_threshold))
        cards.append(card | persona_facts(rows))
    return pd.DataFrame(cards).set_index("split")


def text_facts(rows: list) -> dict[str, float]:
    """Count rows, prompts and words of one split."""
    answered = [row for row in rows if row.chosen and row.rejected]
    return {
        "rows": len(rows),
        "different prompts": len({row.prompt for row in rows}),
        "without responses": len(rows) - len(answered),
        "with a role": sum(official.begins_with_role(row) for row in rows),
        "words of prompt": mean_words(row.prompt for row in rows),
        "words of chosen": mean_words(row.chosen for row in rows),
        "words of rejected": mean_words(row.rejected for row in rows),
        "chosen longer": mean(len(r.chosen.split()) > len(r.rejected.split()) for r in answered),
    }


def persona_facts(rows: list) -> dict[str, float]:
    """Count personas of one split of `TailoringRow`s; nothing for bare pairs."""
    if not rows or not isinstance(rows[0], TailoringRow):
        return {}
    facts: dict[str, float] = {}
    for name in ("gold-chosen", "gold-rejected", "retrieved-chosen", "retrieved-rejected"):
        there = [row.personas[name] for row in rows if row.personas.get(name)]
        facts[f"{name}: without"] = len(rows) - len(there)
        facts[f"{name}: different"] = len(set(there))
        facts[f"{name}: words"] = mean_words(there)
        facts[f"{name}: contrastive"] = mean(map(is_contrastive, there))
    facts["gold: same on both sides"] = sum(
        row.personas.get("gold-chosen") is not None
        and row.personas["gold-chosen"] == row.personas.get("gold-rejected")
        for row in rows
    )
    return facts
