"""A user's own preference data: read, validated and split, with an account of every row.

Rows become pairs (``own_files``, ``own_mapping``, ``messages``); what is wrong with a row has a code
(``own_checks``). Given splits are kept. Otherwise pairs are split 80/10/10 by prompt, prompts that nearly
repeat each other together, so that no test prompt was seen in training in other words.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib.data import own_files
from persona_lib.data.messages import MessageError, conversation_texts, is_conversation
from persona_lib.data.near import gram_index, near_duplicates
from persona_lib.data.official import DataError
from persona_lib.data.own_checks import Finding, odd_texts, wrong_value
from persona_lib.data.own_files import RawRow
from persona_lib.data.own_mapping import SPLITS, Mapping, plain, read_mapping
from persona_lib.data.retrieval import normal
from persona_lib.fingerprint import module_hash
from persona_lib.profiles import Profile, near_names
from persona_lib.records import PreferencePair
from persona_lib.store import content_hash

if TYPE_CHECKING:
    import pandas as pd

NAME = "own"  # the data set's name in profiles and results
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("dev", "val", "valid", "eval"), "validation")
LEAST_PROMPTS = 20  # different prompts without which there is nothing to train and test on
FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class OwnPair:
    """A usable row: the pair, where it stood, its category, and the split that was given ("": none)."""

    pair: PreferencePair
    row: int
    place: str
    category: str
    split: str


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


class RowError(ValueError):
    """A row that is left out: the field, the code of ``own_checks.REJECTED`` and a detail."""

    def __init__(self, field: str, code: str, detail: str = "") -> None:
        super().__init__(f"{field}: {code} {detail}")
        self.field, self.code, self.detail = field, code, detail


# --- one row ---


def value_of(values: dict[str, Any], column: str) -> Any:
    """Return a column's value; RowError if the row has it not."""
    if column not in values:
        raise RowError(column, "missing", f"it has {', '.join(map(str, values)) or 'nothing'}")
    return values[column]


def sides_of(values: dict[str, Any], mapping: Mapping) -> tuple[Any, Any]:
    """Return the chosen and the rejected response; RowError for a tie or a label that means nothing."""
    if not mapping.responses:
        return value_of(values, mapping.chosen), value_of(values, mapping.rejected)
    first, second = (value_of(values, column) for column in mapping.responses)
    label = value_of(values, mapping.label)
    for names, sides in ((mapping.first, (first, second)), (mapping.second, (second, first))):
        if plain(label) in names:
            return sides
    raise RowError(mapping.label, "tie" if plain(label) in mapping.tie else "label", f"{label!r}"[:60])


def column_names(mapping: Mapping, values: dict[str, Any]) -> dict[str, str]:
    """Return, for messages to the user, the column that each field of a pair comes from."""
    if not mapping.responses:
        return {"prompt": mapping.prompt, "chosen": mapping.chosen, "rejected": mapping.rejected}
    sides = mapping.responses if plain(values[mapping.label]) in mapping.first else mapping.responses[::-1]
    return dict(zip(FIELDS, (mapping.prompt, *sides), strict=True))


def texts_of(values: dict[str, Any], mapping: Mapping) -> dict[str, str]:
    """Return prompt, chosen and rejected of a row as text; RowError says what is wrong with it."""
    sides = sides_of(values, mapping)
    columns = column_names(mapping, values)
    implicit = mapping.prompt not in values and all(map(is_conversation, sides))
    prompt = None if implicit else value_of(values, mapping.prompt)
    try:
        texts = dict(zip(FIELDS, conversation_texts(prompt, *sides), strict=True))
    except MessageError as error:
        raise RowError(columns[error.field], "messages", str(error)) from error
    for field, value in texts.items():
        if wrong := wrong_value(value):
            raise RowError(columns[field], *wrong)
    if texts["chosen"].strip() == texts["rejected"].strip():
        raise RowError(columns["rejected"], "identical")
    return texts


def split_of(row: RawRow, mapping: Mapping) -> str:
    """Return the given split of a row, "" without one; RowError for one that is not known or not read."""
    values, given = row.values or {}, row.split
    if mapping.split in values and (mapping.split != "split" or not given):
        given = values[mapping.split]
    if given in ("", None):
        return ""
    if mapping.splits:
        if plain(given) not in dict(mapping.splits):
            raise RowError(mapping.split, "other split", str(given))
        return dict(mapping.splits)[plain(given)]
    if plain(given) not in SPLIT_NAMES:
        raise RowError(mapping.split, "split", str(given))
    return SPLIT_NAMES[plain(given)]


def read_pair(row: RawRow, mapping: Mapping) -> OwnPair:
    """Turn a raw row into a pair; RowError says why it is none."""
    if row.values is None:
        raise RowError("row", "unreadable", row.error)
    split, texts = split_of(row, mapping), texts_of(row.values, mapping)
    id = f"{NAME}-{row.number:06d}"
    if row.values.get(mapping.id) not in (None, ""):
        id = str(row.values[mapping.id]).strip()
    category = str(row.values.get(mapping.category) or "")
    return OwnPair(PreferencePair(id, **texts), row.number, row.place, category, split)


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


def near_groups(prompts: Sequence[str], threshold: float) -> list[int]:
    """Return a group number per prompt: prompts with a 3-gram Jaccard >= ``threshold`` share one, and so on.

    Groups are the connected parts of that relation; equal prompts (case and white space aside) are together.
    """
    owner = list(range(len(prompts)))

    def root(n: int) -> int:
        while owner[n] != n:
            owner[n] = owner[owner[n]]
            n = owner[n]
        return n

    first: dict[str, int] = {}
    for n, prompt in enumerate(prompts):
        owner[n] = first.setdefault(normal(prompt), n)
    different = list(first.values())
    grams, holders = gram_index([prompts[n] for n in different])
    for n, own in enumerate(grams):
        shared = Counter(other for gram in own for other in holders[gram] if other < n)
        for other, count in shared.items():
            if count / (len(own) + len(grams[other]) - count) >= threshold > 0:
                owner[root(different[n])] = root(different[other])
    return [root(n) for n in range(len(prompts))]


def fill_splits(rows: Sequence[OwnPair], shares: dict[str, float], threshold: float) -> list[OwnPair]:
    """Give rows a split by their shares: whole groups of near prompts, in an order that only texts decide."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(near_groups([row.pair.prompt for row in rows], threshold)):
        groups[group].append(index)
    order = sorted(groups.values(), key=lambda part: content_hash(normal(rows[part[0]].pair.prompt)))
    sizes, splits = dict.fromkeys(shares, 0), {}
    for part in order:
        neediest = min(shares, key=lambda name: (sizes[name] + 1) / shares[name])
        sizes[neediest] += len(part)
        splits |= dict.fromkeys(part, neediest)
    return [replace(row, split=splits[index]) for index, row in enumerate(rows)]


def assign_splits(rows: list[OwnPair], threshold: float) -> tuple[list[OwnPair], bool]:
    """Return the rows with their splits, and whether splits were given.

    Given splits stay. One that is missing is taken from train, a tenth of the rows each; where only one is
    given, it is all the data there is, and is split as if none were.
    """
    given = {row.split for row in rows}
    if len(given) < 2:
        return fill_splits(rows, SHARES, threshold), False
    if "" in given:
        rows = [replace(row, split=row.split or "train") for row in rows]
    missing = [name for name in ("validation", "test") if name not in given]
    shares = {"train": 1 - 0.1 * len(missing)} | dict.fromkeys(missing, 0.1)
    train = fill_splits([row for row in rows if row.split == "train"], shares, threshold)
    moved = iter(train)
    return [next(moved) if row.split == "train" else row for row in rows], True


def near_train(rows: Sequence[OwnPair], threshold: float) -> list[Finding]:
    """Note the validation and test rows whose prompt nearly repeats one of train."""
    train = [row for row in rows if row.split == "train"]
    others = [row for row in rows if row.split != "train"]
    found = near_duplicates([r.pair.prompt for r in others], [r.pair.prompt for r in train], threshold)
    said = [(others[a], f"of {train[b].place}, Jaccard {j:.2f}") for a, b, j in found]
    return [Finding(row.row, row.place, "prompt", "near duplicate", detail) for row, detail in said]


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
        texts = {name: getattr(pair.pair, name) for name in FIELDS}
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
    return content_hash(module_hash("data.own"), source, text, profile.near_duplicate_threshold)


# --- tables ---


def row_table(data: OwnData) -> pd.DataFrame:
    """Return a line per usable row: id, where it stood, split, category, characters of its texts."""
    import pandas as pd

    lines = [
        {"id": r.pair.id, "row": r.row, "place": r.place, "split": r.split, "category": r.category}
        | {f"characters of {name}": len(getattr(r.pair, name)) for name in FIELDS}
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
