"""Preference data in its publishers' own files: those that the authors drew their pairs from, and Auto-J's.

Each file is JSON lines or one JSON array, gzip or not; a reader turns one row into a pair. A row that is not
as published is an error that names file, row and field; a row that the paper leaves out (section 3 and
appendix) is counted.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from persona_lib.data.retrieval import normal
from persona_lib.records import DataError, PreferencePair
from persona_lib.store import content_hash, file_hash, iter_rows

Texts = tuple[tuple[str, str, str], str | None]  # (prompt, chosen, rejected), and why the row is left out
TURN = re.compile(r"\n\n(Human|Assistant): ?")
LEAST_SCORE = 10  # the paper drops SHP comments with fewer upvotes
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def is_array(path: Path) -> bool:
    """Return True if a file is one JSON array rather than JSON lines."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return next((line.lstrip()[0] for line in file if line.strip()), "") == "["


def read_array(path: Path) -> list[Any]:
    """Read a file that is one JSON array; DataError if it is damaged."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: not valid JSON ({error}); fetch the file again") from error


def iter_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) of JSON lines or one JSON array; DataError for a row that is no object."""
    for number, row in enumerate(read_array(path) if is_array(path) else iter_rows(path), start=1):
        where = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: a {type(row).__name__}, not an object with named fields")
        yield where, row


def field(row: dict[str, Any], name: str, kind: type, where: str) -> Any:
    """Return a field of the expected type, or raise a DataError that names it."""
    if name not in row:
        raise DataError(f"{where}: no field {name!r}; there are {', '.join(sorted(row))}")
    value = row[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DataError(f"{where}: {name}={value!r} should be {kind.__name__}")
    return value


def choice(row: dict[str, Any], name: str, where: str, last: int = 1) -> int:
    """Return a field that must be a number from 0 to ``last``, 0 or 1 by default."""
    value = field(row, name, int, where)
    if value not in range(last + 1):
        raise DataError(f"{where}: {name}={value} should be {', '.join(map(str, range(last)))} or {last}")
    return value


def unusable(prompt: str, chosen: str, rejected: str) -> str | None:
    """Say why texts make no preference pair, or return None."""
    if not (prompt.strip() and chosen.strip() and rejected.strip()):
        return "an empty text"
    return "two equal responses" if chosen.strip() == rejected.strip() else None


# --- one reader per publisher: a row becomes (prompt, chosen, rejected) and why it is left out, or None ---


def safe_rlhf_row(row: dict[str, Any], where: str) -> Texts:
    """Read PKU-SafeRLHF: better_response_id decides; pairs whose rejected response is unsafe are left out.

    The paper drops pairs with a harmful rejected response: nobody should be given a persona that wants it.
    """
    responses = [field(row, f"response_{n}", str, where) for n in (0, 1)]
    safe = [field(row, f"is_response_{n}_safe", bool, where) for n in (0, 1)]
    better = choice(row, "better_response_id", where)
    reason = None if safe[1 - better] else "the rejected response is unsafe"
    return (field(row, "prompt", str, where), responses[better], responses[1 - better]), reason


def turns(transcript: str, where: str) -> list[tuple[str, str]]:
    """Split a transcript into (role, text); DataError if it does not alternate, Human first."""
    start, *parts = TURN.split(transcript)
    found = [(parts[n], parts[n + 1].strip()) for n in range(0, len(parts), 2)]
    roles = [role for role, _ in found]
    if start.strip() or not found or roles != ["Human", "Assistant"] * (len(roles) // 2):
        raise DataError(f"{where}: not a dialogue of Human and Assistant in turn: {transcript[:60]!r}")
    return found


def hh_rlhf_row(row: dict[str, Any], where: str) -> Texts:
    """Read Anthropic HH-RLHF, whose rows are two transcripts: dialogues of one turn, as in the paper."""
    chosen, rejected = (
        turns(field(row, name, str, where), f"{where}, {name}") for name in ("chosen", "rejected")
    )
    reason = None
    if len(chosen) != 2 or len(rejected) != 2:
        reason = "more than one turn"
    elif chosen[0] != rejected[0]:
        reason = "two different prompts"
    return (chosen[0][1], chosen[-1][1], rejected[-1][1]), reason


def shp_row(row: dict[str, Any], where: str) -> Texts:
    """Read Stanford SHP: labels 1 means that A is preferred; comments with under ten upvotes are left out."""
    responses = [field(row, f"human_ref_{x}", str, where) for x in "AB"]
    scores = [field(row, f"score_{x}", int, where) for x in "AB"]
    better = 1 - choice(row, "labels", where)
    reason = "under ten upvotes" if min(scores) < LEAST_SCORE else None
    return (field(row, "history", str, where), responses[better], responses[1 - better]), reason


def smart_row(row: dict[str, Any], where: str) -> Texts:
    """Read SMART's preferences (Mnemonic_Chosen_Rejected): the prompt is the term to remember."""
    prompt, chosen, rejected = (field(row, name, str, where) for name in ("prompt", "chosen", "rejected"))
    return (prompt, chosen, rejected), None


def autoj_row(row: dict[str, Any], where: str) -> Texts:
    """Read Auto-J's pairwise test set: label 0 prefers response 1, 1 response 2; 2 is a tie, left out."""
    responses = [field(row, f"response {n}", str, where) for n in (1, 2)]
    label = choice(row, "label", where, last=2)
    reason = "a tie" if label == 2 else None
    return (field(row, "prompt", str, where), responses[label % 2], responses[1 - label % 2]), reason


# name of the data set -> its reader, and the files that data_dir may hold
SOURCES: dict[str, tuple[Callable[[dict[str, Any], str], Texts], tuple[str, ...]]] = {
    "safe_rlhf": (
        safe_rlhf_row,
        ("safe_rlhf.jsonl", "safe_rlhf.jsonl.gz", "train.jsonl", "train.jsonl.gz"),
    ),
    "hh_rlhf": (hh_rlhf_row, ("hh_rlhf.jsonl", "hh_rlhf.jsonl.gz", "train.jsonl.gz", "train.jsonl")),
    "shp_raw": (shp_row, ("shp.jsonl", "shp.jsonl.gz", "train.json", "train.jsonl")),
    "smart": (smart_row, ("smart.jsonl", "smart.json", "train.jsonl", "train.json")),
    "autoj": (autoj_row, ("autoj_pairwise.json", "autoj.jsonl", "autoj.json")),
}


# --- files ---


def read_file(path: Path, name: str) -> tuple[list[PreferencePair], Counter[str]]:
    """Read one file of a raw data set: the pairs, and how many rows were left out for which reason.

    Raises DataError, naming file, row and field, for a row that is not as published.
    """
    pairs, out = [], Counter[str]()
    for number, (where, row) in enumerate(iter_objects(path)):
        texts, reason = SOURCES[name][0](row, where)
        reason = reason or unusable(*texts)
        if reason:
            out[reason] += 1
        else:
            pairs.append(PreferencePair(f"{name}-{number:06d}", *texts))
    return pairs, out


def raw_file(data_dir: str, name: str) -> Path:
    """Return the file of a raw data set: ``data_dir`` itself, or one of its usual names in there."""
    place, names = Path(data_dir).expanduser(), SOURCES[name][1]
    if not data_dir:
        raise DataError(f"{name}: say where its file is: --data PATH (a file, or a folder with {names[0]})")
    found = [path for path in (place, *(place / file for file in names)) if path.is_file()]
    if not found:
        raise DataError(f"{place}: no file there for {name}; looked for {', '.join(names)}")
    return found[0]


def split_pairs(pairs: list[PreferencePair]) -> dict[str, list[PreferencePair]]:
    """Split pairs 80/10/10 by a hash of the prompt: all pairs of a prompt stay together."""
    splits: dict[str, list[PreferencePair]] = {name: [] for name in SHARES}
    for pair in pairs:
        place = int(content_hash(normal(pair.prompt))[:8], 16) / 16**8
        bounds = itertools.accumulate(SHARES.values())
        splits[next(name for name, bound in zip(SHARES, bounds, strict=True) if place < bound)].append(pair)
    return splits


def read_raw(data_dir: str, name: str) -> dict[str, list[PreferencePair]]:
    """Read a raw data set by split, and say what was left out."""
    path = raw_file(data_dir, name)
    pairs, out = read_file(path, name)
    left = ", ".join(f"{count} with {reason}" for reason, count in out.most_common()) or "none"
    print(f"{path}: {len(pairs)} pairs; rows left out: {left}", flush=True)
    if not pairs:
        raise DataError(f"{path}: no usable pair of {name}; rows left out: {left}")
    return split_pairs(pairs)


def raw_key(data_dir: str, name: str) -> str:
    """Return a hash of a raw data set's file."""
    return content_hash(name, file_hash(raw_file(data_dir, name)))
