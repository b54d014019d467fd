"""Where the authors' own data lies, and how it is fetched from its public homes.

The folders are ``datasets.load_from_disk`` folders. They are never copied into this repository (the
release has no licence): they are read from a path, downloaded from their pinned public home or loaded from
the model hub. ``official`` reads them.
"""

from __future__ import annotations

import os
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from persona_lib import hub
from persona_lib.config import FACTS, REPO, results_root
from persona_lib.records import DataError
from persona_lib.store import content_hash, file_hash, read_json

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
    return results_root() / "downloads" / f"hub-{content_hash(hub.DATASETS)}"


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
                hub.load_dataset(f"nbalepur/persona-{kind}", config).save_to_disk(part)
            except (OSError, ValueError) as error:
                raise DataError(
                    f"nbalepur/persona-{kind}, {config}: not from the hub ({error}). {ways_out()}"
                ) from error
            part.replace(target / folder)
    return target
