"""Where the authors' own data lies, and how it is fetched from its public homes.

The folders are ``datasets.load_from_disk`` folders. They are never copied into this repository (the
release has no licence): they are read from a path, downloaded from their pinned public home or loaded from
the model hub. ``official`` reads them.
"""

from __future__ import annotations

import os
import re
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from persona_lib import weights
from persona_lib.records import DataError, PreferencePair, TailoringRow
from persona_lib.settings import FACTS, REPO, results_root
from persona_lib.store import content_hash, file_hash, read_json
from persona_lib.texts import persona_status

# --- Where the authors' own data lies, and how it is fetched from its public homes ---
# The folders are ``datasets.load_from_disk`` folders. They are never copied into this repository (the
# release has no licence): they are read from a path, downloaded from their pinned public home or loaded
# from the model hub. ``official`` reads them.


# The commit whose files the checksum table was made from.
HOME = "https://raw.githubusercontent.com/nbalepur/persona-anon/c31aecadc060f6b384fab68a7c9b09726f20b58d/data"

SPLITS = ("fewshot", "sft_train", "sft_val", "dpo_train", "dpo_val", "test")
DATASETS: dict[str, dict[str, Any]] = {
    "beavertails": {
        "title": "BeaverTails",
        "tailoring": "persona-tailoring-BeaverTails",
        "inference": "persona-inference-BeaverTails",
        "rows": (5, 977, 244, 982, 246, 499),
    },
    "hhh": {
        "title": "Anthropic HHH",
        "tailoring": "persona-tailoring-Anthropic HHH",
        "inference": "persona-inference-Anthropic HHH",
        "rows": (5, 424, 105, 423, 107, 500),
    },
    "mnemonic": {
        "title": "Mnemonic",
        "tailoring": "persona-tailoring-Mnemonic",
        "inference": "persona-inference-Mnemonic",
        "rows": (5, 126, 35, 132, 35, 500),
    },
    "shp": {"title": "SHP", "tailoring": None, "inference": "persona-inference-SHP", "rows": None},
}
FROM_HUB = "hub"  # as data_dir: load them from the model hub


def find_data_dir(
    data_dir: str | Path = "",
    datasets: Iterable[str] = ("beavertails", "hhh"),
    offline: bool | None = None,
    kind: str = "tailoring",
) -> Path:
    """Return the folder that holds the official folders ("tailoring" or "inference") of some data sets.

    "hub" as ``data_dir`` loads them from the model hub (`save_from_hub`). Otherwise looks at ``data_dir``,
    then ``$PERSONA_DATA`` (each the folder itself or its parent), then ``../shared/data/official`` beside
    the repository; otherwise downloads the pinned public copy into ``results/downloads/official``, unless
    ``offline`` (default: ``HF_HUB_OFFLINE=1``). A place that was named but does not hold the data is a
    DataError, never skipped over.
    """
    folders = [DATASETS[name][kind] or DATASETS[name]["inference"] for name in datasets]
    if str(data_dir) == FROM_HUB:
        return save_from_hub(folders)
    for place, named_by in ((data_dir, "data_dir"), (os.environ.get("PERSONA_DATA", ""), "$PERSONA_DATA")):
        if place:
            found = holding(Path(place).expanduser(), folders)
            if found is None:
                raise DataError(f"{named_by}={place}: no folder {folders[0]!r} there. {ways_out()}")
            return found
    found = holding(REPO.parent / "shared" / "data", folders) or holding(download_dir(), folders)
    if found:
        return found
    if offline is None:
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    if offline:
        raise DataError(f"no official data ({', '.join(folders)}) and downloads are off. {ways_out()}")
    return download_official(folders)


def at_hand(data_dir: str, datasets: Iterable[str]) -> Path | None:
    """Return where the tailoring (else inference) data of some data sets lies here, None if nowhere.

    Downloads nothing and complains of nothing; a named place is the only one that counts, as above.
    """
    folders = [DATASETS[name]["tailoring"] or DATASETS[name]["inference"] for name in datasets]
    if data_dir == FROM_HUB:
        return holding(hub_dir(), folders)
    named = data_dir or os.environ.get("PERSONA_DATA", "")
    places = [Path(named).expanduser()] if named else [REPO.parent / "shared" / "data", download_dir()]
    return next(filter(None, (holding(place, folders) for place in places)), None)


def holding(place: Path, folders: list[str]) -> Path | None:
    """Return ``place`` or ``place/official``, whichever holds all folders, or None."""
    for candidate in (place, place / "official"):
        if all((candidate / folder / "dataset_dict.json").exists() for folder in folders):
            return candidate
    return None


def ways_out() -> str:
    """Say the ways to provide the official data."""
    return (
        "Ways to provide it: (1) --data PATH or PERSONA_DATA=PATH, where PATH holds the folders "
        "persona-tailoring-*, or put them in ../shared/data/official beside the repository; "
        f"(2) run once with a network, which downloads them from {HOME}; "
        "(3) --data hub, which loads them from the model hub (nbalepur/persona-tailoring, pinned). "
        "On a machine without either, run (2) or (3) elsewhere and copy results/downloads here. "
        "The default profile needs none of this data"
    )


def download_dir() -> Path:
    """Folder of downloaded official data: ``results/downloads/official`` (or below ``$PERSONA_RESULTS``)."""
    return results_root() / "downloads" / "official"


def hub_dir() -> Path:
    """Folder of official data from the hub, one per set of pinned commits."""
    return results_root() / "downloads" / f"hub-{content_hash(weights.DATASETS)}"


def checksums() -> dict[str, str]:
    """Return the SHA-256 of every official file that was checked, by relative path."""
    return read_json(FACTS / "official_checksums.json")


def files_of(folder: str) -> list[str]:
    """List the files of one official folder, ``dataset_dict.json`` last: it marks the folder as complete."""
    splits = SPLITS if folder.startswith("persona-tailoring") else ("train",)
    names = ("data-00000-of-00001.arrow", "dataset_info.json", "state.json")
    files = [f"{folder}/{split}/{name}" for split in splits for name in names]
    return [*files, f"{folder}/dataset_dict.json"]


def download_official(folders: list[str], target: Path | None = None, home: str = HOME) -> Path:
    """Download some official folders, check each file's SHA-256, and return where they are.

    Mnemonic has no checksums in our table; its split sizes are checked when it is read. Raises
    DataError if a file cannot be fetched or differs.
    """
    target = target or download_dir()
    known = checksums()
    for name in (name for folder in folders for name in files_of(folder)):
        if not (target / name).exists():
            fetch(f"{home}/{urllib.parse.quote(name)}", target / name, known.get(name))
    return target


def fetch(url: str, path: Path, sha256: str | None) -> None:
    """Download one file; it appears under its name only if its checksum is right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            part.write_bytes(answer.read())
    except OSError as error:
        raise DataError(f"{url}: cannot be downloaded ({error}). {ways_out()}") from error
    if sha256 and file_hash(part) != sha256:
        part.unlink()
        raise DataError(f"{url}: SHA-256 is not {sha256[:16]}...; the file was not kept. {ways_out()}")
    part.replace(path)


def save_from_hub(folders: list[str]) -> Path:
    """Load some official folders from the hub, pinned, save them as the public copy has them, return where.

    A folder is loaded once per pinned commit. Raises DataError if the hub, and its local cache, have it not.
    """
    target = hub_dir()
    for folder in folders:
        _, kind, config = folder.split("-", 2)
        part = target / f"{folder}.part"
        if not (target / folder / "dataset_dict.json").exists():
            try:
                weights.load_dataset(f"nbalepur/persona-{kind}", config).save_to_disk(part)
            except (OSError, ValueError) as error:
                raise DataError(
                    f"nbalepur/persona-{kind}, {config}: not from the hub ({error}). {ways_out()}"
                ) from error
            part.replace(target / folder)
    return target


# --- The authors' own data, read into our records; its schema is asserted here and nowhere else ---


INFERENCE_ROWS = 300
PAIR_COLUMNS = ("prompt", "chosen", "rejected")
PERSONA_COLUMNS = {
    "gold-chosen": "chosen_persona_gold",
    "gold-rejected": "rejected_persona_gold",
    "retrieved-chosen": "chosen_persona_retr",
    "retrieved-rejected": "rejected_persona_retr",
}
ROLE_MARK = re.compile(r"^((Human|Assistant):\s*)+")


def open_folder(path: Path) -> Any:
    """Open a ``load_from_disk`` folder; DataError if it is not one."""
    from datasets import load_from_disk

    try:
        return load_from_disk(str(path))
    except (FileNotFoundError, OSError) as error:
        raise DataError(f"{path}: not a datasets.load_from_disk folder ({error}). {ways_out()}") from error


def check_split(path: Path, split: str, table: Any, columns: Iterable[str], n_rows: int | None) -> None:
    """Assert the schema of one split: all columns, text only, as many rows as released."""
    where = f"{path}, split {split}"
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise DataError(f"{where}: column {missing[0]!r} is missing; it has {', '.join(table.column_names)}")
    texts = table.to_dict()
    for name in columns:
        for number, value in enumerate(texts[name]):
            if not isinstance(value, str):
                raise DataError(
                    f"{where}, row {number}, column {name!r}: {value!r}; should be text ('' for none)"
                )
    for number, value in enumerate(texts["prompt"]):
        if not value.strip():
            raise DataError(
                f"{where}, row {number}, column 'prompt': empty; drop the row or give it a prompt"
            )
    if n_rows is not None and len(table) != n_rows:
        raise DataError(f"{where}: {len(table)} rows where the release has {n_rows}; fetch the folder again")


def open_tailoring(folder: Path, dataset: str) -> dict[str, Any]:
    """Open and check the tailoring folder of a data set: one table per split, in the order of SPLITS."""
    info = DATASETS[dataset]
    if info["tailoring"] is None:
        raise DataError(f"data set {dataset!r} has no tailoring data; use beavertails, hhh or mnemonic")
    path = folder / info["tailoring"]
    tables = open_folder(path)
    missing = [split for split in SPLITS if split not in tables]
    if missing:
        raise DataError(f"{path}: split {missing[0]!r} is missing; it has {', '.join(tables)}. {ways_out()}")
    for split, n_rows in zip(SPLITS, info["rows"], strict=True):
        check_split(path, split, tables[split], (*PAIR_COLUMNS, *PERSONA_COLUMNS.values()), n_rows)
    return {split: tables[split] for split in SPLITS}


def load_official(folder: Path, dataset: str, strip_roles: bool = False) -> dict[str, list[TailoringRow]]:
    """Read one data set's official tailoring rows, by split (fewshot, sft_*, dpo_*, test).

    A persona that is none (empty, refusal, error message) becomes None; `bad_personas` lists them. A
    row without responses (Mnemonic test) has chosen and rejected "". Texts are kept as released;
    ``strip_roles`` takes HHH's leading "Human:" and "Assistant:" off. ``retrieved_id`` is the training
    row both retrieved personas were taken from, where it can be traced.
    """
    tables = open_tailoring(folder, dataset)
    sources = persona_sources(dataset, tables)
    return {
        split: [
            to_row(dataset, split, number, raw, sources, strip_roles)
            for number, raw in enumerate(table.to_list())
        ]
        for split, table in tables.items()
    }


def row_id(dataset: str, split: str, number: int) -> str:
    """Name an official row by its place, e.g. "beavertails-test-0012"."""
    return f"{dataset}-{split}-{number:04d}"


def persona_sources(dataset: str, tables: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """Map each (chosen, rejected) gold persona pair of the retrieval pool to its rows' ids."""
    sources: dict[tuple[str, str], list[str]] = {}
    for split in ("sft_train", "dpo_train"):
        for number, raw in enumerate(tables[split].to_list()):
            key = (raw["chosen_persona_gold"], raw["rejected_persona_gold"])
            sources.setdefault(key, []).append(row_id(dataset, split, number))
    return sources


def to_row(
    dataset: str, split: str, number: int, raw: dict[str, str], sources: dict, strip_roles: bool
) -> TailoringRow:
    """Turn one official row into a record."""
    id = row_id(dataset, split, number)
    texts = pair_texts(raw, strip_roles)
    retrieved = (raw["chosen_persona_retr"], raw["rejected_persona_retr"])
    found = [source for source in sources.get(retrieved, []) if source != id]
    personas = {
        name: raw[column].strip() if persona_status(raw[column]) == "ok" else None
        for name, column in PERSONA_COLUMNS.items()
    }
    return TailoringRow(id, split, **texts, personas=personas, retrieved_id=found[0] if found else None)


def bad_personas(folder: Path, dataset: str) -> list[dict[str, str]]:
    """List every official persona that is none: id, persona, status and the text (paper 4, fault 22)."""
    return [
        {"id": row_id(dataset, split, number), "persona": name, "status": status, "text": raw[column]}
        for split, table in open_tailoring(folder, dataset).items()
        for number, raw in enumerate(table.to_list())
        for name, column in PERSONA_COLUMNS.items()
        if (status := persona_status(raw[column])) != "ok"
    ]


def load_inference_pairs(folder: Path, dataset: str, strip_roles: bool = False) -> list[PreferencePair]:
    """Read the 300 pairs on which the paper scores persona inference."""
    path = folder / DATASETS[dataset]["inference"]
    table = open_folder(path)["train"]
    check_split(path, "train", table, PAIR_COLUMNS, INFERENCE_ROWS)
    return [
        PreferencePair(row_id(dataset, "inference", number), **pair_texts(raw, strip_roles))
        for number, raw in enumerate(table.to_list())
    ]


def pair_texts(raw: dict[str, str], strip_roles: bool) -> dict[str, str]:
    """Return prompt, chosen and rejected of an official row, without leading roles if asked for."""
    return {name: ROLE_MARK.sub("", raw[name]) if strip_roles else raw[name] for name in PAIR_COLUMNS}


def official_pairs(folder: Path, dataset: str, strip_roles: bool = False) -> dict[str, list[PreferencePair]]:
    """Return an official data set as bare preference pairs by split: train, validation, test.

    Validation is the released sft_val and dpo_val; rows without responses are left out.
    """
    rows = load_official(folder, dataset, strip_roles)
    parts = {"train": ("sft_train", "dpo_train"), "validation": ("sft_val", "dpo_val"), "test": ("test",)}
    return {
        name: list(with_responses(row for split in splits for row in rows[split]))
        for name, splits in parts.items()
    }


def begins_with_role(row: PreferencePair | TailoringRow) -> bool:
    """Say whether a text of the row begins with "Human:" or "Assistant:" (all of HHH)."""
    return any(ROLE_MARK.match(getattr(row, name)) for name in PAIR_COLUMNS)


def with_responses(rows: Iterable[TailoringRow]) -> Iterator[PreferencePair]:
    """Yield the rows that have both responses, as pairs."""
    for row in rows:
        if row.chosen.strip() and row.rejected.strip():
            yield PreferencePair(row.id, row.prompt, row.chosen, row.rejected)


def official_key(folder: Path, dataset: str, kind: str = "tailoring") -> str:
    """Return a hash of a data set's official files: the input key of steps that read them."""
    return content_hash({name: file_hash(folder / name) for name in files_of(DATASETS[dataset][kind])})
