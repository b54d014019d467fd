"""The authors' released generations (21 files): found or downloaded, read, aligned with the test split.

Their measures are in ``released_tables``. The files have no licence, so they are read from a path or
downloaded from their pinned public home, never copied into this repository. Arms are named as in
``records.RunSpec``: "dpo-chosen" is PT-DPO, "dpo-none" plain DPO (DPO+P when it is shown a persona).
"""

from __future__ import annotations

import os
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from persona_lib.config import FACTS, REPO, results_root
from persona_lib.data.official import ROLE_MARK, load_official
from persona_lib.data.official_folders import DATASETS, fetch, find_data_dir
from persona_lib.records import DataError, TailoringRow
from persona_lib.store import file_hash, read_json, write_json

COMMIT = "e9e56e17379434e459dfa32718ebd996d1a066a6"
HOME = (
    f"https://raw.githubusercontent.com/Pinafore/alignment-personalization/{COMMIT}"
    "/persona_tailoring/results/paper_outputs"
)
EOS = "<|end_of_text|>"
SOURCES = ("gold", "retrieved")
SIDED = tuple(f"{source}-{side}" for source in SOURCES for side in ("chosen", "rejected"))
# Which files were released: of Mnemonic, the baseline with personas is missing.
RELEASED = {
    "beavertails": {"none": ("none", *SIDED), "chosen": SIDED},
    "hhh": {"none": ("none", *SIDED), "chosen": SIDED},
    "mnemonic": {"none": ("none",), "chosen": ("retrieved-chosen", "retrieved-rejected")},
}


@dataclass(frozen=True)
class ReleasedFile:
    """One released file: the outputs of one DPO policy under one persona on one test split."""

    dataset: str
    train_persona: str
    eval_persona: str

    @property
    def arm(self) -> str:
        """Name of the policy as in ``RunSpec.arm``."""
        return f"dpo-{self.train_persona}"

    @property
    def path(self) -> str:
        """Where the file lies below the folder of released outputs; the authors' name for it."""
        persona = self.eval_persona.replace("retrieved", "retr")
        return (
            f"{DATASETS[self.dataset]['title']}/"
            f"dpo_Persona(training_type={self.train_persona}, inference_type={persona}).jsonl"
        )


FILES = tuple(
    ReleasedFile(dataset, train_persona, eval_persona)
    for dataset, arms in RELEASED.items()
    for train_persona, eval_personas in arms.items()
    for eval_persona in eval_personas
)


@dataclass(frozen=True)
class ReleasedOutput:
    """One output: ``text`` without the end-of-text mark, ``ended`` if the mark was its end."""

    id: str
    prompt: str
    text: str
    ended: bool


@dataclass(frozen=True)
class Released:
    """The released files that are at hand, read and aligned with the test rows of their data sets."""

    folder: Path
    outputs: dict[ReleasedFile, list[ReleasedOutput]]
    rows: dict[str, list[TailoringRow]]

    def texts(self, dataset: str, arm: str, eval_persona: str) -> list[str] | None:
        """Return the outputs of one file in test order, None if the file is not there."""
        outputs = self.outputs.get(ReleasedFile(dataset, arm.removeprefix("dpo-"), eval_persona))
        return None if outputs is None else [output.text for output in outputs]


# --- where the files are ---


def download_dir() -> Path:
    """Folder of downloaded released outputs: ``results/downloads/released_outputs``."""
    return results_root() / "downloads" / "released_outputs"


def ways_out() -> str:
    """Say the three ways to provide the released outputs."""
    return (
        "Three ways: (1) --set data_dir=PATH or PERSONA_DATA=PATH, where the folder released_outputs lies in "
        "PATH or beside it and holds BeaverTails/dpo_Persona(...).jsonl; (2) put it at "
        "../shared/data/released_outputs beside the repository; (3) with a network, run "
        f"python -m persona_lib.data.released, which downloads the files of {HOME}"
    )


def candidates(data_dir: str | Path) -> Iterator[Path]:
    """Yield the folders in which the released outputs may lie, the most explicit first."""
    for place in (data_dir, os.environ.get("PERSONA_DATA", "")):
        if place:
            path = Path(place).expanduser().resolve()
            yield from (path, path / "released_outputs", path.parent / "released_outputs")
    yield REPO.parent / "shared" / "data" / "released_outputs"
    yield download_dir()


def files_in(folder: Path) -> list[ReleasedFile]:
    """Return which of the 21 files a folder holds."""
    return [file for file in FILES if (folder / file.path).exists()]


def find_released(data_dir: str | Path = "") -> Path | None:
    """Return the first folder with released outputs, or None if there is none (see ``ways_out``)."""
    return next((folder for folder in candidates(data_dir) if files_in(folder)), None)


def checksums() -> dict[str, str]:
    """Return the SHA-256 of the released files that were checked (BeaverTails), by relative path."""
    return read_json(FACTS / "released_checksums.json")


def download_released(
    files: Sequence[ReleasedFile] = FILES, target: Path | None = None, home: str = HOME
) -> Path:
    """Download released files from the pinned commit and return their folder; existing ones are kept.

    A file without a checksum in our table is recorded in ``<target>/checksums.json`` on first use and
    compared with that afterwards. Raises DataError if a file cannot be fetched or differs.
    """
    target = target or download_dir()
    for file in files:
        if not (target / file.path).exists():
            url = f"{home}/{urllib.parse.quote(file.path)}"
            try:
                fetch(url, target / file.path, checksums().get(file.path))
            except DataError as error:
                raise DataError(f"{url}: not fetched or not the released file. {ways_out()}") from error
            record_checksum(target, file)
    return target


def recorded_checksums(folder: Path) -> dict[str, str]:
    """Return what ``download_released`` recorded in a folder."""
    path = folder / "checksums.json"
    return read_json(path) if path.exists() else {}


def record_checksum(folder: Path, file: ReleasedFile) -> None:
    """Write down a downloaded file's SHA-256."""
    known = recorded_checksums(folder) | {file.path: file_hash(folder / file.path)}
    write_json(folder / "checksums.json", known)


# --- how they are read ---


def load_outputs(folder: Path, file: ReleasedFile) -> list[ReleasedOutput]:
    """Read one file: a JSON list of {prompt, response}, whatever its extension says.

    Raises DataError if it is absent, differs from its known checksum or has another shape.
    """
    path = folder / file.path
    if not path.exists():
        raise DataError(f"{path}: not there. {ways_out()}")
    known = (recorded_checksums(folder) | checksums()).get(file.path)
    if known and file_hash(path) != known:
        raise DataError(f"{path}: SHA-256 is not {known[:16]}...: not the released file; fetch it again")
    items = read_json(path)
    if not isinstance(items, list):
        raise DataError(f"{path}: should be one JSON list, not {type(items).__name__}")
    return [to_output(path, file, number, item) for number, item in enumerate(items)]


def to_output(path: Path, file: ReleasedFile, number: int, item: dict) -> ReleasedOutput:
    """Turn one item into a record; the id is the test row's."""
    for key in ("prompt", "response"):
        if not isinstance(item, dict) or not isinstance(item.get(key), str):
            raise DataError(f"{path}, item {number}: no text {key!r}; items are {{prompt, response}}")
    response = item["response"]
    id = f"{file.dataset}-test-{number:04d}"
    return ReleasedOutput(id, item["prompt"], response.replace(EOS, ""), response.endswith(EOS))


def check_aligned(file: ReleasedFile, outputs: list[ReleasedOutput], rows: list[TailoringRow]) -> None:
    """Check that output i answers test row i under the file's persona; DataError names the first failure.

    The baseline gets "The user is" as "I am", so the persona is looked up from the words after that.
    """
    if len(outputs) != len(rows):
        raise DataError(f"{file.path}: {len(outputs)} outputs for {len(rows)} test rows; fetch both again")
    for output, row in zip(outputs, rows, strict=True):
        persona = (row.personas.get(file.eval_persona) or "").removeprefix("The user is").strip()
        prompt = ROLE_MARK.sub("", row.prompt)
        if output.id != row.id or prompt not in output.prompt or persona not in output.prompt:
            raise DataError(f"{file.path}, {output.id}: not the prompt and persona of {row.id}; fetch again")


def open_released(data_dir: str | Path = "") -> Released:
    """Read every released file at hand and the test rows it belongs to.

    Raises DataError, with the ways to provide them, if the files or the official data are absent.
    """
    folder = find_released(data_dir)
    if folder is None:
        raise DataError(f"the authors' released outputs are not here. {ways_out()}")
    outputs = {file: load_outputs(folder, file) for file in files_in(folder)}
    names = sorted({file.dataset for file in outputs})
    official = find_data_dir(data_dir, names)
    rows = {name: load_official(official, name)["test"] for name in names}
    for file, texts in outputs.items():
        check_aligned(file, texts, rows[file.dataset])
    return Released(folder, outputs, rows)


def open_if_present(data_dir: str | Path = "") -> tuple[Released | None, str]:
    """Open the released outputs, or return None and what is missing: the notebook's first step."""
    try:
        data = open_released(data_dir)
    except DataError as error:
        return None, str(error)
    return data, f"{len(data.outputs)} of {len(FILES)} released files, aligned with the test split row by row"


def main() -> None:
    """Download all 21 files to the folder given as argument, or to ``results/downloads``."""
    target = download_released(target=Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    print(f"{len(files_in(target))} of {len(FILES)} released files in {target}")


if __name__ == "__main__":
    main()
