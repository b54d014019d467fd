"""Preference data in its publishers' own files: PKU-SafeRLHF, Anthropic HH-RLHF and Stanford SHP.

The authors drew their pairs from these (paper section 3 and appendix). Each reader takes one file, JSON lines
(gzip or not), and returns pairs with what it left out and why. A row that is not as published is an error
that names file, row and field; a row that the paper leaves out is counted.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from persona_lib.official import DataError
from persona_lib.records import PreferencePair
from persona_lib.retrieval import normal
from persona_lib.store import content_hash, file_hash, iter_rows

Read = tuple[list[PreferencePair], Counter[str]]  # pairs, and how many rows were left out for which reason
TURN = re.compile(r"\n\n(Human|Assistant): ?")
LEAST_SCORE = 10  # the paper drops SHP comments with fewer upvotes
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def iter_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) of a file of JSON lines; DataError for a line that is no object."""
    for number, row in enumerate(iter_rows(path), start=1):
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


def choice(row: dict[str, Any], name: str, where: str) -> int:
    """Return a field that must be 0 or 1."""
    value = field(row, name, int, where)
    if value not in (0, 1):
        raise DataError(f"{where}: {name}={value} should be 0 or 1")
    return value


def unusable(prompt: str, chosen: str, rejected: str) -> str | None:
    """Say why texts make no preference pair, or return None."""
    if not (prompt.strip() and chosen.strip() and rejected.strip()):
        return "an empty text"
    return "two equal responses" if chosen.strip() == rejected.strip() else None


def read_safe_rlhf(path: Path) -> Read:
    """Read PKU-SafeRLHF: better_response_id decides; pairs whose rejected response is unsafe are left out.

    The paper drops pairs with a harmful rejected response: nobody should be given a persona that wants it.
    """
    pairs, out = [], Counter[str]()
    for number, (where, row) in enumerate(iter_objects(path)):
        prompt = field(row, "prompt", str, where)
        responses = [field(row, f"response_{n}", str, where) for n in (0, 1)]
        safe = [field(row, f"is_response_{n}_safe", bool, where) for n in (0, 1)]
        better = choice(row, "better_response_id", where)
        texts = prompt, responses[better], responses[1 - better]
        reason = unusable(*texts) or (None if safe[1 - better] else "the rejected response is unsafe")
        if reason:
            out[reason] += 1
        else:
            pairs.append(PreferencePair(f"safe_rlhf-{number:06d}", *texts))
    return pairs, out


def turns(transcript: str, where: str) -> list[tuple[str, str]]:
    """Split a transcript into (role, text); DataError if it does not alternate, Human first."""
    start, *parts = TURN.split(transcript)
    found = [(parts[n], parts[n + 1].strip()) for n in range(0, len(parts), 2)]
    roles = [role for role, _ in found]
    if start.strip() or not found or roles != ["Human", "Assistant"] * (len(roles) // 2):
        raise DataError(f"{where}: not a dialogue of Human and Assistant in turn: {transcript[:60]!r}")
    return found


def read_hh_rlhf(path: Path) -> Read:
    """Read Anthropic HH-RLHF, whose rows are two transcripts: dialogues of one turn, as in the paper."""
    pairs, out = [], Counter[str]()
    for number, (where, row) in enumerate(iter_objects(path)):
        chosen, rejected = (
            turns(field(row, name, str, where), f"{where}, {name}") for name in ("chosen", "rejected")
        )
        texts = chosen[0][1], chosen[-1][1], rejected[-1][1]
        reason = unusable(*texts)
        if len(chosen) != 2 or len(rejected) != 2:
            reason = "more than one turn"
        elif chosen[0] != rejected[0]:
            reason = "two different prompts"
        if reason:
            out[reason] += 1
        else:
            pairs.append(PreferencePair(f"hh_rlhf-{number:06d}", *texts))
    return pairs, out


def read_shp(path: Path) -> Read:
    """Read Stanford SHP: labels 1 means that A is preferred; comments with under ten upvotes are left out."""
    pairs, out = [], Counter[str]()
    for number, (where, row) in enumerate(iter_objects(path)):
        prompt = field(row, "history", str, where)
        responses = [field(row, f"human_ref_{x}", str, where) for x in "AB"]
        scores = [field(row, f"score_{x}", int, where) for x in "AB"]
        better = 1 - choice(row, "labels", where)
        texts = prompt, responses[better], responses[1 - better]
        reason = unusable(*texts) or ("under ten upvotes" if min(scores) < LEAST_SCORE else None)
        if reason:
            out[reason] += 1
        else:
            pairs.append(PreferencePair(f"shp-{number:06d}", *texts))
    return pairs, out


# name of the data set -> its reader, and the files that data_dir may hold
SOURCES: dict[str, tuple[Callable[[Path], Read], tuple[str, ...]]] = {
    "safe_rlhf": (read_safe_rlhf, ("safe_rlhf.jsonl", "safe_rlhf.jsonl.gz", "train.jsonl", "train.jsonl.gz")),
    "hh_rlhf": (read_hh_rlhf, ("hh_rlhf.jsonl", "hh_rlhf.jsonl.gz", "train.jsonl.gz", "train.jsonl")),
    "shp_raw": (read_shp, ("shp.jsonl", "shp.jsonl.gz", "train.json", "train.jsonl")),
}


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
    pairs, out = SOURCES[name][0](path)
    left = ", ".join(f"{count} with {reason}" for reason, count in out.most_common()) or "none"
    print(f"{path}: {len(pairs)} pairs; rows left out: {left}", flush=True)
    if not pairs:
        raise DataError(f"{path}: no usable pair of {name}; rows left out: {left}")
    return split_pairs(pairs)


def raw_key(data_dir: str, name: str) -> str:
    """Return a hash of a raw data set's file."""
    return content_hash(name, file_hash(raw_file(data_dir, name)))
