"""A user's own preference data: read, validated and split, with an account of every row.

Rows become pairs (``own_files``, ``own_mapping``, ``own_rows``); what is wrong with a row has a code
(``own_checks``). Given splits are kept. Otherwise pairs are split 80/10/10 by prompt, prompts that nearly
repeat each other together (``own_splits``), so that no test prompt was seen in training in other words.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from persona_lib.data import own_files
from persona_lib.data.messages import is_conversation
from persona_lib.data.own_checks import Finding, odd_texts
from persona_lib.data.own_files import RawRow
from persona_lib.data.own_mapping import SPLITS, Mapping, read_mapping
from persona_lib.data.own_rows import PAIR_FIELDS, OwnPair, RowError, read_pair
from persona_lib.data.own_splits import assign_splits, near_train
from persona_lib.data.retrieval import normal
from persona_lib.profiles import ConfigError, Profile, near_names
from persona_lib.records import DataError, PreferencePair
from persona_lib.store import VERSIONS, content_hash

if TYPE_CHECKING:
    import pandas as pd

LEAST_PROMPTS = 20  # different prompts without which there is nothing to train and test on


@dataclass(frozen=True)
class OwnData:
    """What was read: usable pairs by split, every finding, and how many rows there were."""

    source: str
    n_read: int
    rows: tuple[OwnPair, ...]
    findings: tuple[Finding, ...]
    given_splits: bool

    @property
    def rejected(self) -> dict[int, Finding]:
        """Return the first reason against each row that was left out, by row number."""
        found: dict[int, Finding] = {}
        for finding in self.findings:
            if finding.rejected:
                found.setdefault(finding.row, finding)
        return found

    def pairs(self) -> dict[str, list[PreferencePair]]:
        """Return the pairs by split."""
        return {split: [row.pair for row in self.rows if row.split == split] for split in SPLITS}


# --- all rows ---


def check_columns(source: str, rows: Sequence[RawRow], mapping: Mapping) -> None:
    """Raise DataError if a column of the mapping is in no row: names it, the near ones and the mend."""
    present = list(dict.fromkeys(name for row in rows for name in row.values or {}))
    if not present:
        first = next(row for row in rows if row.values is None)
        raise DataError(f"{source}: no row can be read; {first.place}: {first.error}")
    implicit = any(is_conversation((row.values or {}).get(mapping.chosen)) for row in rows)
    needed = mapping.columns[1:] if implicit and "prompt" not in mapping.named else mapping.columns
    for column in needed:
        if column not in present:
            raise DataError(
                f"{source}: no column {column!r}; {near_names(column, present)} Columns there: "
                f"{', '.join(present)}. Say which is which in a mapping file (--mapping FILE, lines like "
                "'prompt: question'; see DATA.md)"
            )


def against_others(pairs: Iterable[OwnPair]) -> tuple[list[OwnPair], list[Finding]]:
    """Leave out pairs that occur before, repeat an id, or have a prompt of another given split.

    A prompt that is given in several splits stays in the first of train, validation, test.
    """
    pairs = list(pairs)
    owners = {}
    for split in reversed(SPLITS):
        owners |= {normal(p.pair.prompt): split for p in pairs if p.split == split}
    ids: dict[str, str] = {}
    texts: dict[tuple[str, ...], str] = {}
    kept, findings = [], []
    for p in pairs:
        prompt, sides = normal(p.pair.prompt), (p.pair.chosen.strip(), p.pair.rejected.strip())
        if (prompt, *sides) in texts:
            findings.append(Finding(p.row, p.place, "row", "duplicate", texts[prompt, *sides]))
        elif p.split and owners[prompt] != p.split:
            findings.append(Finding(p.row, p.place, "prompt", "shared prompt", f"of {owners[prompt]}"))
        elif p.pair.id in ids:
            findings.append(Finding(p.row, p.place, "id", "id", f"{p.pair.id} in {ids[p.pair.id]}"))
        else:
            if (prompt, *reversed(sides)) in texts:
                findings.append(Finding(p.row, p.place, "row", "opposite", texts[prompt, *reversed(sides)]))
            ids[p.pair.id] = texts[prompt, *sides] = p.place
            kept.append(p)
    return kept, findings


def check_judge(profile: Profile) -> None:
    """Raise ConfigError for a profile whose judge cannot read own data."""
    if profile.judge == "oracle":
        raise ConfigError(
            f"profile {profile.name}: judge=oracle reads answers to the package's own pairs only; leave "
            "--profile out (profile own), or give --set judge=none, or --set judge=lm with a model"
        )


def read_own(profile: Profile) -> OwnData:
    """Read, validate and split the data that ``data_dir`` and ``data_mapping`` of a profile name.

    Raises DataError for what concerns the whole data: no such file, a column that is not there, no usable
    row, too few prompts. Every other fault is a `Finding` of its row.
    """
    if not profile.data_dir:
        raise DataError(f"no data: say where it is, --data FILE. Read are {own_files.KINDS}")
    mapping = read_mapping(profile.data_mapping)
    return read_source(profile.data_dir, mapping, profile.near_duplicate_threshold, own_key(profile))


@functools.lru_cache(maxsize=2)
def read_source(source: str, mapping: Mapping, threshold: float, key: str) -> OwnData:
    """Read data for `read_own`; ``key`` is a hash of what it is read from: a changed file is read again."""
    raw = own_files.read_rows(source, mapping.config)
    check_columns(source, raw, mapping)
    pairs, findings = [], []
    for row in raw:
        try:
            pairs.append(read_pair(row, mapping))
        except RowError as error:
            findings.append(Finding(row.number, row.place, error.field, error.code, error.detail))
    pairs, more = against_others(pairs)
    for pair in pairs:
        texts = {name: getattr(pair.pair, name) for name in PAIR_FIELDS}
        more += [Finding(pair.row, pair.place, *odd) for odd in odd_texts(texts)]
    check_enough(source, pairs, findings + more)
    rows, given = assign_splits(pairs, threshold)
    findings = sorted([*findings, *more, *near_train(rows, threshold)], key=lambda f: f.row)
    data = OwnData(source, len(raw), tuple(rows), tuple(findings), given)
    if data.n_read != len(data.rows) + len(data.rejected):
        counts = f"{len(data.rows)} usable and {len(data.rejected)} rejected"
        raise RuntimeError(f"{source}: {data.n_read} rows read are not {counts}")
    return data


def check_enough(source: str, pairs: Sequence[OwnPair], findings: Sequence[Finding]) -> None:
    """Raise DataError if there are too few prompts to train and to test on; says what became of the rows."""
    prompts = len({normal(pair.pair.prompt) for pair in pairs})
    if prompts < LEAST_PROMPTS:
        rejected = [finding for finding in findings if finding.rejected]
        counts = Counter(f"{f.code} ({f.field})" for f in rejected)
        said = ", ".join(f"{count} {name}" for name, count in counts.most_common(6)) or "none"
        first = "".join(f"; first: {f.place}, {f.field}: {f.code} {f.detail}".rstrip() for f in rejected[:1])
        raise DataError(
            f"{source}: {len(pairs)} usable pairs with {prompts} different prompts; at least {LEAST_PROMPTS} "
            f"prompts are needed. Rows rejected: {said}{first}"
        )


def own_key(profile: Profile) -> str:
    """Return a hash of all that the pairs are made from."""
    mapping = Path(profile.data_mapping).expanduser()
    text = mapping.read_text(encoding="utf-8") if profile.data_mapping and mapping.is_file() else ""
    source = own_files.source_key(profile.data_dir)
    return content_hash(VERSIONS["pairs"], source, text, profile.near_duplicate_threshold)


# --- tables ---


def row_table(data: OwnData) -> pd.DataFrame:
    """Return a line per usable row: id, where it stood, split, category, characters of its texts."""
    import pandas as pd

    lines = [
        {"id": r.pair.id, "row": r.row, "place": r.place, "split": r.split, "category": r.category}
        | {f"characters of {name}": len(getattr(r.pair, name)) for name in PAIR_FIELDS}
        for r in data.rows
    ]
    return pd.DataFrame(lines)


def finding_table(data: OwnData) -> pd.DataFrame:
    """Return a line per finding: row, place, field, code, whether the row was rejected for it, detail."""
    import pandas as pd

    first = data.rejected
    columns = ["row", "place", "field", "code", "outcome", "detail"]
    lines = [
        (f.row, f.place, f.field, f.code, "rejected" if f.row in first else "kept", f.detail)
        for f in data.findings
    ]
    return pd.DataFrame(lines, columns=columns)


def account(data: OwnData) -> dict[str, int]:
    """Return the account of the rows: read, usable, rejected by reason; all but the first add up to it."""
    reasons = Counter(finding.code for finding in data.rejected.values())
    return {"read": data.n_read, "usable": len(data.rows)} | dict(reasons.most_common())


def describe(data: OwnData) -> list[str]:
    """Say in a few lines what was read, what was left out and why, and how it was split."""
    reasons = counted(finding.code for finding in data.rejected.values())
    noted = counted(finding.code for finding in data.findings if not finding.rejected)
    sizes = Counter(row.split for row in data.rows)
    how = "as given" if data.given_splits else "by prompt, near duplicates together"
    name = Path(data.source).name if Path(data.source).expanduser().exists() else data.source
    lines = [
        f"{name}: {data.n_read} rows read, {len(data.rows)} usable, {len(data.rejected)} rejected"
        + (f" ({reasons})" if reasons else ""),
        f"splits {how}: {', '.join(f'{split} {sizes[split]}' for split in SPLITS)}",
    ]
    return [*lines, f"noted: {noted}"] if noted else lines


def counted(codes: Iterable[str]) -> str:
    """Return how often each code occurs, the most frequent first: "3 tie, 1 empty"."""
    return ", ".join(f"{count} {code}" for code, count in Counter(codes).most_common())
