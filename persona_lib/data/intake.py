"""A user's own preference data (``--data FILE``): read, validated and split, with an account of every row.

Rows of a file, a folder or a hub id become pairs; what is wrong with a row is a `Finding` with a code of
REJECTED (the row is left out) or NOTED (it is kept). JSON lines, CSV and TSV are read row by row, so that one
damaged row is named and costs nothing but itself. Bytes that are no UTF-8 become U+FFFD, which is then
found. Given splits are kept. Otherwise pairs are split 80/10/10 by prompt, near prompts together.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib.data.retrieval import normal
from persona_lib.data.rows import KINDS, Finding, OwnRow, read_rows, source_key
from persona_lib.prompts import STOP
from persona_lib.records import PAIR_FIELDS, PAIR_SPLITS, DataError, PreferencePair
from persona_lib.settings import ConfigError, Profile, near_names, results_dir
from persona_lib.store import VERSIONS, content_hash
from persona_lib.texts import gram_index, near_duplicates

if TYPE_CHECKING:
    import pandas as pd

NAME = "own"  # the data set's name in profiles and results
SPLIT_NAMES = {name: name for name in PAIR_SPLITS} | dict.fromkeys(
    ("dev", "val", "valid", "eval"), "validation"
)
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
LEAST_PROMPTS = 20  # different prompts without which there is nothing to train and test on
LEAST_QUOTE = 20  # characters of a prompt from which its recurrence in a response is no accident
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
LOST = re.compile("[\ufffd\ud800-\udfff]")
# UTF-8 read as Latin-1 or Windows-1252: accented letters, quotes and dashes, the byte order mark.
MOJIBAKE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac|\u00ef\u00bb\u00bf")


class RowError(ValueError):
    """A row that is left out; its arguments are the field, the code of REJECTED and a detail."""


# --- the mapping: which columns mean what ---


@dataclass(frozen=True)
class Mapping:
    """Names of columns, and what their values mean: a YAML file of "field: column" lines, all optional.

    ``responses`` are two columns whose ``label`` says which one won: a value listed in ``first``,
    ``second`` or ``tie`` (compared as text, without case). ``splits`` maps names of given splits to
    train, validation and test; names that it leaves out are not read. ``config`` is a configuration of a
    data set on the hub. ``user`` is who preferred: splits keep a user together unless ``split_by`` is
    "prompt", and ids are hashed unless ``show_users``. Columns in ``named`` were written in the file, so
    they have to be there.
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    responses: tuple[str, ...] = ()
    label: str = ""
    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    tie: tuple[str, ...] = ()
    id: str = "id"
    category: str = "category"
    split: str = "split"
    splits: tuple[tuple[str, str], ...] = ()
    config: str = ""
    user: str = ""
    persona_chosen: str = ""
    persona_rejected: str = ""
    split_by: str = ""
    show_users: bool = False
    named: frozenset[str] = frozenset()

    @property
    def sides(self) -> tuple[str, ...]:
        """The columns of the two responses."""
        return self.responses or (self.chosen, self.rejected)

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that every row has to have, the prompt's first."""
        return (self.prompt, *self.sides, *([self.label] if self.responses else []))


OPTIONAL = ("id", "category", "split", "user", "persona_chosen", "persona_rejected")  # columns
FIELDS = tuple(field.name for field in dataclasses.fields(Mapping) if field.name != "named")


def plain(value: Any) -> str:
    """Return a label, a split's name or an id as text, so that 0, 0.0 and "0 " are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()


def read_mapping(path: str) -> Mapping:
    """Read a mapping file; "" gives the default one. Raises DataError that names the file and the field."""
    if not path:
        return Mapping()
    import yaml

    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("should be lines of 'field: column', for example 'prompt: question'")
        mapping = Mapping(**dict(map(field_value, content.items())), named=frozenset(content))
        check_labels(mapping)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: no mapping file ({error}); paths are relative to the repository") from error
    return mapping


def field_value(field: tuple[Any, Any]) -> tuple[str, Any]:
    """Return a field of a mapping file and its value in its type; ValueError says what is wrong with it."""
    name, value = field
    name = "persona_chosen" if name == "persona" else name
    if name not in FIELDS:
        raise ValueError(f"unknown field {name!r}; {near_names(str(name), list(FIELDS))}")
    if name == "splits":
        if not isinstance(value, dict) or any(ours not in PAIR_SPLITS for ours in value.values()):
            raise ValueError(f"splits={value!r}: write 'name in the data: train, validation or test'")
        return name, tuple((plain(given), ours) for given, ours in value.items())
    if name in ("responses", "first", "second", "tie"):
        values = value if isinstance(value, list) else [value]
        return name, tuple(map(str if name == "responses" else plain, values))
    if name == "split_by" and value not in ("user", "prompt"):
        raise ValueError(f"split_by={value!r}: use user or prompt")
    if name == "show_users":
        if not isinstance(value, bool):
            raise ValueError(f"show_users={value!r}: use true or false")
        return name, value
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}={value!r} should be the name of a column")
    return name, value


def check_labels(mapping: Mapping) -> None:
    """Raise ValueError if a mapping's responses and labels are not complete or contradict each other."""
    labels = [*mapping.first, *mapping.second, *mapping.tie]
    if mapping.split_by == "user" and not mapping.user:
        raise ValueError("split_by: user needs user: the column of who preferred")
    if not mapping.responses:
        if given := sorted(mapping.named & {"label", "first", "second", "tie"}):
            raise ValueError(f"{given[0]} is given, but not responses: [column, column]")
        return
    if len(mapping.responses) != 2:
        raise ValueError(f"responses={list(mapping.responses)} should be two columns")
    if given := sorted(mapping.named & {"chosen", "rejected"}):
        raise ValueError(f"{given[0]} does not go with responses and label: use either")
    for name in ("label", "first", "second"):
        if not getattr(mapping, name):
            raise ValueError(f"responses need {name}: a label's column, and its values for each side")
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"the label {twice[0]!r} stands for two outcomes")


def check_columns(source: str, rows: Sequence[OwnRow], mapping: Mapping) -> None:
    """Raise DataError if a column of the mapping is in no row: names it, the near ones and the way out."""
    readable = [row.value for row in rows if isinstance(row.value, dict)]
    present = list(dict.fromkeys(name for values in readable for name in values))
    if not present:
        raise DataError(f"{source}: no row can be read; {rows[0].place}: {rows[0].value or 'no field'}")
    implicit = any(is_conversation(values.get(mapping.sides[0])) for values in readable)
    extra = [getattr(mapping, name) for name in OPTIONAL if name in mapping.named]
    for column in (*mapping.texts, *extra):
        if column not in present and not (implicit and column == mapping.prompt == "prompt"):
            raise DataError(
                f"{source}: no column {column!r}; {near_names(column, present)} Columns there: "
                f"{', '.join(present)}. Say which is which in a mapping file (--mapping FILE, lines like "
                "'prompt: question'; see DATA.md)"
            )


# --- TRL's conversational format: lists of {"role", "content"} messages become plain text ---

Message = tuple[str, str]  # role, content


def is_conversation(value: Any) -> bool:
    """Say whether a value is a list of messages."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(m, dict) for m in value)


def read_messages(value: Any, field: str) -> list[Message]:
    """Return the messages of one field; a content of several parts is joined, if all of them are text."""
    found = []
    for message in value:
        role = message.get("role")
        if not isinstance(role, str) or "content" not in message:
            names = ", ".join(sorted(message)) or "nothing"
            raise RowError(field, "messages", f"a message has {names}; needed: role, content")
        content = message["content"]
        parts = content if isinstance(content, (list, tuple)) else [content]
        texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
        if not isinstance(content, str) and not all(isinstance(text, str) for text in texts):
            raise RowError(field, "messages", f"a message's content is {type(content).__name__}, not text")
        found.append((role, content if isinstance(content, str) else "\n".join(texts)))
    return found


def render(messages: list[Message]) -> str:
    """Write the messages before a response as text: one user message as it is, several with their roles."""
    if [role for role, _ in messages] == ["user"]:
        return messages[0][1]
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in messages)


def conversation_texts(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Return (prompt, chosen, rejected) as text where they are messages; other values stay as they are.

    ``prompt`` None means that there is no such column: it is the common beginning of the two responses. A
    prompt that is text may be repeated at the head of the responses' messages; a response is one assistant
    message. Raises RowError with the code "messages".
    """
    sides = {"chosen": chosen, "rejected": rejected}
    asked = read_messages(prompt, "prompt") if is_conversation(prompt) else []
    if not all(map(is_conversation, sides.values())):
        return (render(asked) if asked else prompt), chosen, rejected
    found = {name: read_messages(value, name) for name, value in sides.items()}
    if not asked:
        both = zip(found["chosen"][:-1], found["rejected"][:-1], strict=False)
        asked = [first for first, second in takewhile(lambda pair: pair[0] == pair[1], both)]
        if isinstance(prompt, str) and asked and prompt not in (render(asked), asked[-1][1]):
            raise RowError("prompt", "messages", "is not what the messages of both responses begin with")
    texts = []
    for name, messages in found.items():
        rest = messages[len(asked) :] if messages[: len(asked)] == asked else messages
        if [role for role, _ in rest] != ["assistant"]:
            roles = ", ".join(role for role, _ in rest) or "nothing"
            said = f"after the prompt come {roles}; one assistant message is needed"
            raise RowError(name, "messages", said)
        texts.append(rest[0][1])
    if not asked and prompt is None:
        raise RowError("prompt", "messages", "the two conversations have no beginning in common")
    return (render(asked) if asked else prompt), *texts


# --- one row becomes a pair, or says why it is none ---


def check_text(column: str, value: Any) -> None:
    """Raise RowError for a value that is unusable by itself."""
    if value is None:
        raise RowError(column, "null")
    if not isinstance(value, str):
        raise RowError(column, "not text", f"{type(value).__name__}: {str(value)[:60]}")
    if not value.strip():
        raise RowError(column, "empty")
    for code, pattern in (("lost characters", LOST), ("control character", CONTROL)):
        if match := pattern.search(value):
            raise RowError(column, code, excerpt(value, match))


def excerpt(text: str, match: re.Match[str]) -> str:
    """Return what stands around a match, escaped so that what cannot be printed is seen."""
    return ascii(text[max(0, match.start() - 15) : match.end() + 15])


def side_columns(values: dict[str, Any], mapping: Mapping) -> tuple[str, ...]:
    """Return the columns of the chosen and the rejected response; RowError for a tie or an unknown label."""
    if not mapping.responses:
        return mapping.sides
    label = plain(values[mapping.label])
    if label not in (*mapping.first, *mapping.second):
        code = "tie" if label in mapping.tie else "label"
        raise RowError(mapping.label, code, f"{values[mapping.label]!r}"[:60])
    return mapping.responses if label in mapping.first else mapping.responses[::-1]


def texts_of(values: dict[str, Any], mapping: Mapping) -> dict[str, str]:
    """Return prompt, chosen and rejected of a row as text; RowError says what is wrong with it."""
    implicit = mapping.prompt not in values and all(is_conversation(values.get(c)) for c in mapping.sides)
    for column in mapping.texts[1:] if implicit else mapping.texts:
        if column not in values:
            raise RowError(column, "missing", f"it has {', '.join(map(str, values)) or 'nothing'}")
    sides = side_columns(values, mapping)
    columns = dict(zip(PAIR_FIELDS, (mapping.prompt, *sides), strict=True))
    given = (values.get(column) for column in columns.values())
    try:
        texts = dict(zip(PAIR_FIELDS, conversation_texts(*given), strict=True))
    except RowError as error:
        field, *said = error.args
        raise RowError(columns[field], *said) from error
    for field, text in texts.items():
        check_text(columns[field], text)
    if texts["chosen"].strip() == texts["rejected"].strip():
        raise RowError(columns["rejected"], "identical")
    return texts


def split_of(row: OwnRow, mapping: Mapping) -> str:
    """Return the given split of a row, "" without one; RowError for one that is not known or not read."""
    given = row.split
    if mapping.split in row.value and (mapping.split != "split" or not given):
        given = row.value[mapping.split]
    if given in ("", None):
        return ""
    known = dict(mapping.splits) or SPLIT_NAMES
    if plain(given) not in known:
        raise RowError(mapping.split, "other split" if mapping.splits else "split", str(given))
    return known[plain(given)]


def read_pair(row: OwnRow, mapping: Mapping, salt: bytes = b"") -> OwnRow:
    """Give a row its pair, split and category; RowError says why it makes no pair."""
    if not isinstance(row.value, dict):
        raise RowError("row", "unreadable", str(row.value))
    split, texts = split_of(row, mapping), texts_of(row.value, mapping)
    given = row.value.get(mapping.id)
    id = f"{NAME}-{row.row:06d}" if given in (None, "") else str(given).strip()
    category = str(row.value.get(mapping.category) or "")
    given = {name: row.value.get(getattr(mapping, name)) for name in ("persona_chosen", "persona_rejected")}
    for name in (name for name, text in given.items() if text not in (None, "")):
        check_text(getattr(mapping, name), given[name])
    personas = {name: (text or "").strip() for name, text in given.items()}
    pair = PreferencePair(id, **texts, user=user_of(row, mapping, salt), **personas)
    return replace(row, value=None, split=split, category=category, pair=pair)


def user_of(row: OwnRow, mapping: Mapping, salt: bytes) -> str:
    """Return who preferred: the salted hash of the id in 12 hex digits, or the id if users are shown."""
    if not mapping.user:
        return ""
    value = row.value.get(mapping.user)
    if value is None or not str(value).strip():
        raise RowError(mapping.user, "user")
    name = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if mapping.show_users:
        return name
    return hashlib.blake2b(name.encode("utf-8", "replace"), key=salt, digest_size=6).hexdigest()


def user_salt(profile: Profile) -> bytes:
    """Return the salt of a profile's user ids: a file in its results folder, made once, for its owner."""
    path = results_dir(profile) / "user_salt"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
    except FileExistsError:
        pass
    return path.read_bytes()


def odd_texts(own: OwnRow) -> Iterator[Finding]:
    """Yield what a reader should know about the texts of a row that is kept."""
    texts = {name: getattr(own.pair, name) for name in PAIR_FIELDS}
    for field, text in texts.items():
        if match := MOJIBAKE.search(text):
            yield own.found(field, "mojibake", excerpt(text, match))
        if STOP in text:
            yield own.found(field, "stop string")
    asked = own.pair.prompt.strip()
    for field in ("chosen", "rejected"):
        if len(asked) >= LEAST_QUOTE and asked in texts[field]:
            yield own.found(field, "quoted prompt")


def against_others(pairs: Sequence[OwnRow]) -> tuple[list[OwnRow], list[Finding]]:
    """Leave out pairs that occur before, repeat an id, or have a prompt of another given split.

    A prompt that is given in several splits stays in the first of train, validation, test.
    """
    owners = {}
    for split in reversed(PAIR_SPLITS):
        owners |= {normal(p.pair.prompt): split for p in pairs if p.split == split}
    ids: dict[str, str] = {}
    texts: dict[tuple[str, ...], str] = {}
    kept, findings = [], []
    for p in pairs:
        prompt, sides = normal(p.pair.prompt), (p.pair.chosen.strip(), p.pair.rejected.strip())
        if (prompt, *sides) in texts:
            findings.append(p.found("row", "duplicate", texts[prompt, *sides]))
        elif p.split and owners[prompt] != p.split:
            findings.append(p.found("prompt", "shared prompt", f"of {owners[prompt]}"))
        elif p.pair.id in ids:
            findings.append(p.found("id", "id", f"{p.pair.id} in {ids[p.pair.id]}"))
        else:
            if (prompt, *reversed(sides)) in texts:
                findings.append(p.found("row", "opposite", texts[prompt, *reversed(sides)]))
            ids[p.pair.id] = texts[prompt, *sides] = p.place
            kept.append(p)
    return kept, findings


# --- splits: by prompt, prompts that nearly repeat each other together ---


def near_groups(prompts: Sequence[str], threshold: float) -> list[str]:
    """Return for each prompt one that stands for its group: those with a 3-gram Jaccard >= ``threshold``.

    Groups are the connected parts of that relation; equal prompts (case and white space aside) are together.
    """
    from scipy.cluster.hierarchy import DisjointSet

    names = list(map(normal, prompts))
    different = list(dict.fromkeys(names))
    groups = DisjointSet(different)
    grams, holders = gram_index(different)
    for n, own in enumerate(grams):
        shared = Counter(other for gram in own for other in holders[gram] if other < n)
        for other, count in shared.items():
            if count / (len(own) + len(grams[other]) - count) >= threshold > 0:
                groups.merge(different[n], different[other])
    return [groups[name] for name in names]


def fill_shares(groups: Iterable[list[Any]], shares: dict[str, float]) -> dict[str, list[Any]]:
    """Give each whole group, in turn, to the part that is furthest below its share."""
    parts: dict[str, list[Any]] = {name: [] for name in shares}
    for group in groups:
        parts[min(shares, key=lambda name: (len(parts[name]) + 1) / shares[name])] += group
    return parts


def fill_splits(rows: Sequence[OwnRow], shares: dict[str, float], threshold: float) -> list[OwnRow]:
    """Give rows a split by their shares: whole groups of near prompts, in an order that only texts decide."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(near_groups([row.pair.prompt for row in rows], threshold)):
        groups[group].append(index)
    order = sorted(groups.values(), key=lambda part: content_hash(normal(rows[part[0]].pair.prompt)))
    splits = {index: name for name, part in fill_shares(order, shares).items() for index in part}
    return [replace(row, split=splits[index]) for index, row in enumerate(rows)]


def assign_splits(rows: list[OwnRow], threshold: float) -> tuple[list[OwnRow], bool]:
    """Return the rows with their splits, and whether splits were given.

    Given splits stay. One that is missing is taken from train, a tenth of the rows each; where only one is
    given, it is all the data there is, and is split as if none were.
    """
    given = {row.split for row in rows}
    if len(given) < 2:
        return fill_splits(rows, SHARES, threshold), False
    rows = [replace(row, split=row.split or "train") for row in rows]
    missing = [name for name in ("validation", "test") if name not in given]
    shares = {"train": 1 - 0.1 * len(missing)} | dict.fromkeys(missing, 0.1)
    moved = iter(fill_splits([row for row in rows if row.split == "train"], shares, threshold))
    return [next(moved) if row.split == "train" else row for row in rows], True


def near_train(rows: Sequence[OwnRow], threshold: float) -> Iterator[Finding]:
    """Note the validation and test rows whose prompt nearly repeats one of train."""
    train = [row for row in rows if row.split == "train"]
    others = [row for row in rows if row.split != "train"]
    found = near_duplicates([r.pair.prompt for r in others], [r.pair.prompt for r in train], threshold)
    for index, of, jaccard in found:
        detail = f"of {train[of].place}, Jaccard {jaccard:.2f}"
        yield others[index].found("prompt", "near duplicate", detail)


# --- all rows ---


@dataclass(frozen=True)
class OwnData:
    """What was read: usable pairs by split, every finding, and how many rows there were."""

    source: str
    n_read: int
    rows: tuple[OwnRow, ...]
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
        return {split: [row.pair for row in self.rows if row.split == split] for split in PAIR_SPLITS}


def check_judge(profile: Profile) -> None:
    """Raise ConfigError for a profile whose judge cannot read own data."""
    if profile.evaluation.judge == "oracle":
        raise ConfigError(
            f"profile {profile.name}: evaluation.judge=oracle reads the package's own pairs only; leave "
            "--profile out (profile own), or give --set evaluation.judge=none, or lm with a judge.model"
        )


def own_key(profile: Profile) -> str:
    """Return a hash of all that the pairs are made from."""
    mapping = Path(profile.data.mapping).expanduser()
    text = mapping.read_text(encoding="utf-8") if profile.data.mapping and mapping.is_file() else ""
    source = source_key(profile.data.path)
    return content_hash(VERSIONS["pairs"], source, text, profile.data.near_duplicates)


def read_own(profile: Profile) -> OwnData:
    """Read, validate and split the data that ``data.path`` and ``data.mapping`` of a profile name.

    Raises DataError for what concerns the whole data: no such file, a column that is not there, no usable
    row, too few prompts. Every other fault is a `Finding` of its row.
    """
    if not profile.data.path:
        raise DataError(f"no data: say where it is, --data FILE. Read are {KINDS}")
    return read_source(profile, own_key(profile))


@functools.lru_cache(maxsize=2)
def read_source(profile: Profile, key: str) -> OwnData:
    """Read data for `read_own`; ``key`` is a hash of what it is read from: a changed file is read again."""
    source, threshold = profile.data.path, profile.data.near_duplicates
    mapping = read_mapping(profile.data.mapping)
    raw = read_rows(source, mapping.config)
    check_columns(source, raw, mapping)
    salt = user_salt(profile) if mapping.user and not mapping.show_users else b""
    pairs, findings = [], []
    for row in raw:
        try:
            pairs.append(read_pair(row, mapping, salt))
        except RowError as error:
            findings.append(row.found(*error.args))
    pairs, more = against_others(pairs)
    findings += more + [odd for pair in pairs for odd in odd_texts(pair)]
    check_enough(source, pairs, findings)
    rows, given = assign_splits(pairs, threshold)
    findings = sorted([*findings, *near_train(rows, threshold)], key=lambda f: f.row)
    return OwnData(source, len(raw), tuple(rows), tuple(findings), given)


def check_enough(source: str, pairs: Sequence[OwnRow], findings: Sequence[Finding]) -> None:
    """Raise DataError if there are too few prompts to train and to test on; says what became of the rows."""
    prompts = len({normal(pair.pair.prompt) for pair in pairs})
    if prompts < LEAST_PROMPTS:
        rejected = [finding for finding in findings if finding.rejected]
        said = counted(f"{f.code} ({f.field})" for f in rejected) or "none"
        first = "".join(f"; first: {f.place}, {f.field}: {f.code} {f.detail}".rstrip() for f in rejected[:1])
        raise DataError(
            f"{source}: {len(pairs)} usable pairs with {prompts} different prompts; at least {LEAST_PROMPTS} "
            f"prompts are needed. Rows rejected: {said}{first}"
        )


# --- what is said about them ---


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
        f"splits {how}: {', '.join(f'{split} {sizes[split]}' for split in PAIR_SPLITS)}",
    ]
    return [*lines, f"noted: {noted}"] if noted else lines


def counted(codes: Iterable[str]) -> str:
    """Return how often each code occurs, the most frequent first: "3 tie, 1 empty"."""
    return ", ".join(f"{count} {code}" for code, count in Counter(codes).most_common())
