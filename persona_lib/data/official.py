"""The authors' own data, read into our records; its schema is asserted here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from persona_lib.data.official_folders import DATASETS, SPLITS, files_of, ways_out
from persona_lib.data.persona_text import persona_status
from persona_lib.records import DataError, PreferencePair, TailoringRow
from persona_lib.store import content_hash, file_hash

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
