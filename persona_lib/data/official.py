"""The authors' own data: found or downloaded, its schema asserted, read into our records.

The release has no licence, so its ``datasets.load_from_disk`` folders are never copied into this repository:
they are read from a path, or downloaded from their pinned public home.
"""

from __future__ import annotations

import os
import re
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from persona_lib.records import PAIR_FIELDS, DataError, PreferencePair, TailoringRow
from persona_lib.settings import FACTS, REPO, results_root
from persona_lib.store import content_hash, file_hash, read_json
from persona_lib.texts import is_persona

# The commit whose files the checksum table was made from.
HOME = "https://raw.githubusercontent.com/nbalepur/persona-anon/c31aecadc060f6b384fab68a7c9b09726f20b58d/data"

CHECKSUMS = FACTS / "official_checksums.json"  # SHA-256 of every file that was checked, by relative path

SPLITS = ("fewshot", "sft_train", "sft_val", "dpo_train", "dpo_val", "test")
PERSONA_COLUMNS = {
    "gold-chosen": "chosen_persona_gold",
    "gold-rejected": "rejected_persona_gold",
    "retrieved-chosen": "chosen_persona_retr",
    "retrieved-rejected": "rejected_persona_retr",
}
ROLE_MARK = re.compile(r"^((Human|Assistant):\s*)+")
# name -> its title, which is also in its folders' names, and its rows for tailoring by split, if any
DATASETS: dict[str, dict[str, Any]] = {
    "beavertails": {"title": "BeaverTails", "rows": (5, 977, 244, 982, 246, 499)},
    "hhh": {"title": "Anthropic HHH", "rows": (5, 424, 105, 423, 107, 500)},
    "mnemonic": {"title": "Mnemonic", "rows": (5, 126, 35, 132, 35, 500)},
    "shp": {"title": "SHP", "rows": None},
}
WAYS_OUT = (
    "Ways to provide it: (1) --data PATH or PERSONA_DATA=PATH, where PATH holds the folders "
    "persona-tailoring-*, or put them in ../shared/data/official beside the repository; "
    f"(2) run once with a network, which downloads them from {HOME}. On a machine without one, run elsewhere "
    "and copy results/downloads here. The default profile needs none of this data"
)


# --- where it is ---


def download_dir() -> Path:
    """Folder of downloaded official data: ``results/downloads/official`` (or below ``$PERSONA_RESULTS``)."""
    return results_root() / "downloads" / "official"


def folder_of(dataset: str, kind: str) -> str:
    """Return the name of a data set's folder of a kind: that for inference where there is no other."""
    return f"persona-{kind if DATASETS[dataset]['rows'] else 'inference'}-{DATASETS[dataset]['title']}"


def files_of(folder: str) -> list[str]:
    """List the files of one official folder, ``dataset_dict.json`` last: it marks the folder as complete."""
    splits = SPLITS if folder.startswith("persona-tailoring") else ("train",)
    names = ("data-00000-of-00001.arrow", "dataset_info.json", "state.json")
    inner = [f"{folder}/{split}/{name}" for split in splits for name in names]
    return [*inner, f"{folder}/dataset_dict.json"]


def at_hand(data_dir: str | Path, datasets: Iterable[str], kind: str = "tailoring") -> Path | None:
    """Return where the data of some data sets lies on this machine, None if nowhere; downloads nothing."""
    named = data_dir or os.environ.get("PERSONA_DATA", "")
    places = [Path(named).expanduser()] if named else [REPO.parent / "shared" / "data", download_dir()]
    for folder in (folder for place in places for folder in (place, place / "official")):
        if all((folder / folder_of(name, kind) / "dataset_dict.json").exists() for name in datasets):
            return folder
    return None


def find_data_dir(
    data_dir: str | Path = "", datasets: Iterable[str] = ("beavertails", "hhh"), kind: str = "tailoring"
) -> Path:
    """Return the folder that holds the official folders ("tailoring" or "inference") of some data sets.

    Where `at_hand` finds none, the pinned public copy is downloaded, unless ``HF_HUB_OFFLINE=1``. A place
    that was named but does not hold the data is a DataError, never skipped over.
    """
    if found := at_hand(data_dir, datasets, kind):
        return found
    folders = [folder_of(name, kind) for name in datasets]
    if named := data_dir or os.environ.get("PERSONA_DATA", ""):
        by = "data.path" if data_dir else "$PERSONA_DATA"
        raise DataError(f"{by}={named}: no folder {folders[0]!r} there. {WAYS_OUT}")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise DataError(f"no official data ({', '.join(folders)}) and downloads are off. {WAYS_OUT}")
    names = [name for folder in folders for name in files_of(folder)]
    return download(names, download_dir(), HOME, read_json(CHECKSUMS), WAYS_OUT)


def download(names: Iterable[str], target: Path, home: str, known: dict[str, str], ways_out: str) -> Path:
    """Download the files (by path below ``home``) that a folder lacks; ``known`` are SHA-256 of some."""
    for name in (name for name in names if not (target / name).exists()):
        fetch(f"{home}/{urllib.parse.quote(name)}", target / name, known.get(name), ways_out)
    return target


def fetch(url: str, path: Path, sha256: str | None, ways_out: str = WAYS_OUT) -> None:
    """Download one file; it appears under its name only if its checksum is right, else DataError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            part.write_bytes(answer.read())
    except OSError as error:
        raise DataError(f"{url}: cannot be downloaded ({error}). {ways_out}") from error
    if sha256 and file_hash(part) != sha256:
        part.unlink()
        raise DataError(f"{url}: SHA-256 is not {sha256[:16]}...; the file was not kept. {ways_out}")
    part.replace(path)


def official_key(folder: Path, dataset: str, kind: str = "tailoring") -> str:
    """Return a hash of a data set's official files: the input key of steps that read them."""
    return content_hash({name: file_hash(folder / name) for name in files_of(folder_of(dataset, kind))})


# --- read into records ---


def open_folder(folder: Path, dataset: str, kind: str, strip_roles: bool) -> dict[str, list[dict[str, str]]]:
    """Read an official folder's rows by split; DataError if a column, a text or a row is missing.

    A row's "id" is its place: "beavertails-test-0012". ``strip_roles`` takes HHH's leading "Human:" and
    "Assistant:" off.
    """
    from datasets import load_from_disk

    path, sizes, columns = folder / folder_of(dataset, kind), {"train": 300}, list(PAIR_FIELDS)
    if kind == "tailoring":
        sizes = dict(zip(SPLITS, DATASETS[dataset]["rows"], strict=True))
        columns += PERSONA_COLUMNS.values()
    try:
        tables = load_from_disk(str(path))
    except (FileNotFoundError, OSError) as error:
        raise DataError(f"{path}: not a datasets.load_from_disk folder ({error}). {WAYS_OUT}") from error
    found = {split: tables[split].to_list() if split in tables else [] for split in sizes}
    for split, rows in found.items():
        where = f"{path}, split {split}"
        if len(rows) != sizes[split]:
            said = f"{len(rows)} rows, the release has {sizes[split]}"
            raise DataError(f"{where}: {said}; fetch the folder again")
        if lack := [name for name in columns if name not in rows[0]]:
            raise DataError(f"{where}: column {lack[0]!r} is missing; fetch the folder again")
        for number, row in enumerate(rows):
            if wrong := [name for name in columns if not isinstance(row[name], str)]:
                said = f"column {wrong[0]!r}: {row[wrong[0]]!r} is no text"
                raise DataError(f"{where}, row {number}, {said}")
            row["id"] = f"{dataset}-{split if kind == 'tailoring' else kind}-{number:04d}"
            if strip_roles:
                row |= {name: ROLE_MARK.sub("", row[name]) for name in PAIR_FIELDS}
    return found


def load_official(folder: Path, dataset: str, strip_roles: bool = False) -> dict[str, list[TailoringRow]]:
    """Read one data set's official tailoring rows, by split (see `open_folder`).

    A persona that is none (empty, refusal, error message) becomes None. A row without responses (Mnemonic
    test) has chosen and rejected "". ``retrieved_id`` is the training row of both retrieved personas, where
    it can be traced.
    """
    if not DATASETS[dataset]["rows"]:
        raise DataError(f"data set {dataset!r} has no tailoring data")
    tables = open_folder(folder, dataset, "tailoring", strip_roles)
    sources: dict[tuple[str, ...], list[str]] = {}  # the personas of the retrieval pool -> ids of their rows
    for raw in tables["sft_train"] + tables["dpo_train"]:
        personas = (raw["chosen_persona_gold"], raw["rejected_persona_gold"])
        sources.setdefault(personas, []).append(raw["id"])

    def to_row(split: str, raw: dict[str, str]) -> TailoringRow:
        pool = sources.get((raw["chosen_persona_retr"], raw["rejected_persona_retr"]), [])
        found = {name: raw[column].strip() for name, column in PERSONA_COLUMNS.items()}
        personas = {name: text if is_persona(text) else None for name, text in found.items()}
        source = next((id for id in pool if id != raw["id"]), None)
        texts = {name: raw[name] for name in PAIR_FIELDS}
        return TailoringRow(raw["id"], split, **texts, personas=personas, retrieved_id=source)

    return {split: [to_row(split, raw) for raw in rows] for split, rows in tables.items()}


def load_inference_pairs(folder: Path, dataset: str, strip_roles: bool = False) -> list[PreferencePair]:
    """Read the 300 pairs on which the paper scores persona inference."""
    rows = open_folder(folder, dataset, "inference", strip_roles)["train"]
    return [PreferencePair(*(row[name] for name in ("id", *PAIR_FIELDS))) for row in rows]


def official_pairs(folder: Path, dataset: str, strip_roles: bool = False) -> dict[str, list[PreferencePair]]:
    """Return an official data set's rows with responses as pairs: train, validation (its two), test."""
    rows = load_official(folder, dataset, strip_roles)
    parts = {"train": ("sft_train", "dpo_train"), "validation": ("sft_val", "dpo_val"), "test": ("test",)}
    return {
        name: [
            PreferencePair(row.id, row.prompt, row.chosen, row.rejected)
            for split in splits
            for row in rows[split]
            if row.chosen.strip() and row.rejected.strip()
        ]
        for name, splits in parts.items()
    }
