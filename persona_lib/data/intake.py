"""TRL's conversational format: lists of {"role", "content"} messages become plain text.

A single user message is its content. Several messages before the response are written one below the other,
each after its role ("System: ...", "User: ...", "Assistant: ..."), with a blank line between. A response is
one assistant message. Without a prompt column the prompt is what both conversations begin with, as in TRL.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import io
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import store, weights
from persona_lib.data.retrieval import normal
from persona_lib.prompts import STOP
from persona_lib.records import DataError, PreferencePair
from persona_lib.settings import ConfigError, Profile, near_names
from persona_lib.store import VERSIONS, content_hash
from persona_lib.texts import gram_index, near_duplicates

if TYPE_CHECKING:
    import pandas as pd


# --- TRL's conversational format: lists of {"role", "content"} messages become plain text ---
# A single user message is its content. Several messages before the response are written one below the
# other, each after its role ("System: ...", "User: ...", "Assistant: ..."), with a blank line between. A
# response is one assistant message. Without a prompt column the prompt is what both conversations begin
# with, as in TRL.


Message = dict[str, str]


class MessageError(ValueError):
    """Messages that make no pair; ``field`` names the side, the message says why."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


def is_conversation(value: Any) -> bool:
    """Say whether a value is a list of messages."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(m, dict) for m in value)


def content_text(content: Any, field: str) -> str:
    """Return a message's content; a list of parts is joined, if all of them are text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, (list, tuple)) else [content]
    if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        return "\n".join(part["text"] for part in parts)
    raise MessageError(field, f"a message's content is {type(content).__name__}, not text")


def read_messages(value: Any, field: str) -> list[Message]:
    """Return the messages of one field with role and content as text."""
    found = []
    for message in value:
        role = message.get("role")
        if not isinstance(role, str) or "content" not in message:
            names = ", ".join(sorted(message)) or "nothing"
            raise MessageError(field, f"a message has {names}; needed: role, content")
        found.append({"role": role, "content": content_text(message["content"], field)})
    return found


def render(messages: list[Message]) -> str:
    """Write the messages before a response as text."""
    if [m["role"] for m in messages] == ["user"]:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)


def common_prefix(first: list[Message], second: list[Message]) -> list[Message]:
    """Return the messages that two conversations begin with; the last one of each is its response."""
    count = 0
    while count < min(len(first), len(second)) - 1 and first[count] == second[count]:
        count += 1
    return first[:count]


def response_of(messages: list[Message], field: str) -> str:
    """Return the one assistant message that is left after the prompt."""
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(m["role"] for m in messages) or "nothing"
        raise MessageError(field, f"after the prompt come {roles}; one assistant message is needed")
    return messages[0]["content"]


def without_prompt(messages: list[Message], prompt: list[Message]) -> list[Message]:
    """Return a conversation without the prompt's messages, if it begins with them."""
    return messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages


def conversation_texts(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Return (prompt, chosen, rejected) as text where they are messages; other values stay as they are.

    ``prompt`` None means that there is no such column: it is the common beginning of the two responses. A
    prompt that is text may be repeated at the head of the responses' messages. Raises MessageError.
    """
    sides = {"chosen": chosen, "rejected": rejected}
    if not all(is_conversation(value) for value in sides.values()):
        text = render(read_messages(prompt, "prompt")) if is_conversation(prompt) else prompt
        return text, chosen, rejected
    found = {name: read_messages(value, name) for name, value in sides.items()}
    if is_conversation(prompt):
        asked = read_messages(prompt, "prompt")
    else:
        asked = common_prefix(found["chosen"], found["rejected"])
        if isinstance(prompt, str) and asked and prompt not in (render(asked), asked[-1]["content"]):
            raise MessageError("prompt", "is not what the messages of both responses begin with")
    texts = [response_of(without_prompt(found[name], asked), name) for name in sides]
    if not asked and prompt is None:
        raise MessageError("prompt", "the two conversations have no beginning in common")
    return (render(asked) if asked else prompt), *texts


# --- Rows of a user's own file ---
# JSON lines, a JSON array, CSV and TSV are read row by row with the standard library, so that one damaged
# row is named and costs nothing but itself; Parquet and Arrow folders by pyarrow and datasets; a hub id is
# loaded at its pinned commit. Text files are UTF-8, with or without a byte order mark; bytes that are not
# become U+FFFD, which the checks then find.


UTF16 = (b"\xff\xfe", b"\xfe\xff")
JSON_FORMS = "Write one object per line, or one array of objects, each with the fields of one pair"
KINDS = "JSON lines (.jsonl), JSON (.json), CSV, TSV, Parquet, a datasets folder (save_to_disk), or a hub id"


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in the data: ``number`` from 1, ``place`` for messages, the given split if any.

    ``values`` is None, and ``error`` says why, where the row could not be read.
    """

    number: int
    place: str
    split: str
    values: dict[str, Any] | None
    error: str = ""


def read_rows(source: str, config: str = "") -> list[RawRow]:
    """Read all rows of a file, folder or hub id. Raises DataError if it cannot be opened or holds no row."""
    path = Path(source).expanduser()
    if path.is_dir():
        rows = list(folder_rows(path))
    elif path.is_file():
        rows = list(reader_of(path)(path))
    else:
        rows = list(hub_rows(source, config))
    if not rows:
        raise DataError(f"{source}: no row in it; it should hold one preference pair per row")
    return rows


def reader_of(path: Path) -> Any:
    """Return the reader for a file's name; DataError for a kind that is not read."""
    name = path.name.lower().removesuffix(".gz")
    found = [reader for ending, reader in READERS.items() if name.endswith(ending)]
    if not found or (path.suffix == ".gz" and name.endswith(".parquet")):
        raise DataError(f"{path}: files of this kind are not read. Use {KINDS}; save a spreadsheet as CSV")
    return found[0]


def read_text(path: Path) -> str:
    """Return a file's text, line ends as they are; DataError for UTF-16 and for what is no text."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if data.startswith(UTF16):
        raise DataError(f"{path}: is UTF-16, not UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} > new.csv")
    return data.decode("utf-8-sig", errors="replace")


def object_row(number: int, place: str, value: Any, split: str = "") -> RawRow:
    """Return a row of JSON, which must be an object."""
    if isinstance(value, dict):
        return RawRow(number, place, split, value)
    return RawRow(number, place, split, None, f"is a {type(value).__name__}, not an object with named fields")


def json_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of JSON lines, or of one JSON array if the file begins with "["."""
    text = read_text(path)
    if text.lstrip()[:1] != "[":
        rows = list(line_rows(text))
        if rows and all(row.error.startswith("not valid JSON") for row in rows):
            first = f"{rows[0].place}: {rows[0].error}"
            raise DataError(f"{path}: no line of it is a JSON object ({first}). {JSON_FORMS}")
        yield from rows
        return
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not a whole JSON array ({error}). Mend it there, or write one object per line "
            "(.jsonl): then a damaged line costs only itself"
        ) from error
    yield from (object_row(number, f"row {number}", value) for number, value in enumerate(values, start=1))


def line_rows(text: str) -> Iterator[RawRow]:
    """Yield the rows of JSON lines; a line that is no JSON is a row with an error. Empty ones are none."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield object_row(number, f"line {number}", json.loads(line))
        except json.JSONDecodeError as error:
            said = f"not valid JSON: {error.msg}, column {error.colno}"
            yield RawRow(number, f"line {number}", "", None, said)


def csv_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of comma-separated values with a header; cells may hold quotes, commas and newlines."""
    yield from cell_rows(path, ",")


def tsv_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of tab-separated values with a header."""
    yield from cell_rows(path, "\t")


def cell_rows(path: Path, separator: str) -> Iterator[RawRow]:
    """Yield the rows of a table of cells; one with too many or too few cells is a row with an error."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator, strict=True)
    header, number = next(reader, []), 0
    if len(set(header)) < len(header):
        raise DataError(f"{path}: two columns have the same name: {', '.join(header)}")
    while True:
        number, start = number + 1, reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            end = f" to {reader.line_num}" if reader.line_num > start else ""
            said = f"lines {start}{end}: {error}; a quote is not closed, or not doubled"
            yield RawRow(number, f"row {number}", "", None, said)
            continue
        if cells is None:
            return
        if cells:
            yield cell_row(number, f"row {number} (line {start})", header, cells)
        else:
            number -= 1  # an empty line


def cell_row(number: int, place: str, header: list[str], cells: list[str]) -> RawRow:
    """Return one row of cells under the header's names."""
    if len(cells) == len(header):
        return RawRow(number, place, "", dict(zip(header, cells, strict=True)))
    error = f"{len(cells)} cells where the header has {len(header)}: quote cells that hold the separator"
    return RawRow(number, place, "", None, error)


def parquet_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from error
    yield from numbered(table.to_pylist(), "")


def numbered(values: Iterable[dict[str, Any]], split: str, start: int = 1) -> Iterator[RawRow]:
    """Number rows from ``start``; a given split is part of the place, where each split counts for itself."""
    for place, value in enumerate(values, start=1):
        yield RawRow(place + start - 1, f"{split} row {place}".strip(), split, value)


def table_rows(data: Any) -> Iterator[RawRow]:
    """Yield the rows of a ``datasets`` Dataset, or of all splits of a DatasetDict."""
    start = 1
    for split, table in data.items() if isinstance(data, dict) else [("", data)]:
        yield from numbered(iter(table), str(split), start)
        start += len(table)


def folder_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a folder that ``save_to_disk`` wrote, or of its only data file."""
    if not is_saved_dataset(path):
        yield from reader_of(file := only_file(path))(file)
        return
    from datasets import load_from_disk

    try:
        yield from table_rows(load_from_disk(str(path)))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole folder of datasets.save_to_disk ({error})") from error


def only_file(folder: Path) -> Path:
    """Return the one data file that lies in a folder; DataError if there are none or several."""
    files = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(ENDINGS)]
    if len(files) != 1:
        listed = f": {', '.join(path.name for path in files[:5])}" if files else ""
        raise DataError(
            f"{folder}: holds {len(files)} data files{listed}; name one file with --data. Read are {KINDS}"
        )
    return files[0]


def is_saved_dataset(path: Path) -> bool:
    """Return True for a folder that ``datasets`` saved."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def hub_rows(source: str, config: str) -> Iterator[RawRow]:
    """Yield the rows of a data set on the hub, at its pinned commit; DataError if it cannot be had."""
    if "/" not in source or not weights.is_hub_id(source) or Path(source).suffix.lower() in READERS:
        raise DataError(f"{source}: no such file or folder (paths are relative to the repository)")
    try:
        data = weights.load_dataset(source, config or None)
    except weights.HubError as error:
        raise DataError(str(error)) from error
    except Exception as error:  # datasets, the hub's client and its transport each have their own kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{source}: neither a file or folder here nor, as a hub id, to be loaded ({reason[0][:200]}). "
            "Check the name, the network and HF_HUB_OFFLINE, or download it and give its path"
        ) from error
    yield from table_rows(data)


READERS = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".parquet": parquet_rows,
}


ENDINGS = (*READERS, *(f"{ending}.gz" for ending in READERS if ending != ".parquet"))


def source_key(source: str) -> str:
    """Return a hash of a file's or saved folder's contents; of a hub id, of the id with its commit."""
    path = Path(source).expanduser()
    if path.is_file():
        return store.file_hash(path)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return store.content_hash({str(file.relative_to(path)): store.file_hash(file) for file in files})
    return store.content_hash(source)


# --- Which columns of a user's own file mean what: the mapping that ``--mapping FILE`` names ---
# A mapping is a few lines of YAML; every line is optional, and without a file the columns are called
# prompt, chosen and rejected. Either the file says which response won (``chosen``, ``rejected``), or it has
# two responses and a label (``responses``, ``label``, ``first``, ``second``, ``tie``).


SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Mapping:
    """Names of columns, and what their values mean.

    ``responses`` are two columns whose ``label`` says which one won: a value listed in ``first``,
    ``second`` or ``tie`` (compared as text, without case). ``splits`` maps names of given splits to
    train, validation and test; names that it leaves out are not read. ``config`` is a configuration of a
    data set on the hub. Columns in ``named`` were written in the file, so they have to be there.
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
    named: frozenset[str] = frozenset()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that have to be there."""
        texts = (*self.responses, self.label) if self.responses else (self.chosen, self.rejected)
        extra = [getattr(self, name) for name in ("id", "category", "split") if name in self.named]
        return (self.prompt, *texts, *extra)


FIELDS = tuple(field.name for field in dataclasses.fields(Mapping) if field.name != "named")
LISTS = ("responses", "first", "second", "tie")


def plain(value: Any) -> str:
    """Return a label, a split's name or an id as text, so that 0, 0.0 and "0 " are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()


def read_mapping(path: str) -> Mapping:
    """Read a mapping file; "" gives the default one. Raises DataError that names the file and the line."""
    if not path:
        return Mapping()
    content = load_yaml(Path(path).expanduser())
    for name in content:
        if name not in FIELDS:
            raise DataError(f"{path}: unknown field {name!r}; {near_names(str(name), list(FIELDS))}")
    values = {name: field_value(path, name, value) for name, value in content.items()}
    mapping = Mapping(**values, named=frozenset(values))
    check_labels(path, mapping)
    return mapping


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a file of "field: column" lines."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such mapping file (paths are relative to the repository)") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not a readable YAML file ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: should be lines of 'field: column', for example 'prompt: question'")
    return content


def field_value(path: str, name: str, value: Any) -> Any:
    """Return one field of a mapping file in its type."""
    if name == "splits":
        if not isinstance(value, dict) or not set(value.values()) <= set(SPLITS):
            raise DataError(f"{path}: splits={value!r}: write 'name in the data: train, validation or test'")
        return tuple((plain(given), ours) for given, ours in value.items())
    if name in LISTS:
        values = value if isinstance(value, list) else [value]
        return tuple(map(str, values) if name == "responses" else map(plain, values))
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}: {name}={value!r} should be the name of a column")
    return value


def check_labels(path: str, mapping: Mapping) -> None:
    """Check that a labelled mapping is complete and says one thing about every label."""
    if not mapping.responses:
        if given := mapping.named & {"label", "first", "second", "tie"}:
            raise DataError(f"{path}: {sorted(given)[0]} is given, but not responses: [column, column]")
        return
    if len(mapping.responses) != 2:
        raise DataError(f"{path}: responses={list(mapping.responses)} should be two columns")
    if given := mapping.named & {"chosen", "rejected"}:
        raise DataError(f"{path}: {sorted(given)[0]} does not go with responses and label: use either")
    for name in ("label", "first", "second"):
        if not getattr(mapping, name):
            raise DataError(f"{path}: responses need {name}: a label's column, and its values for each side")
    values = [*mapping.first, *mapping.second, *mapping.tie]
    if twice := {value for value in values if values.count(value) > 1}:
        raise DataError(f"{path}: the label {sorted(twice)[0]!r} stands for two outcomes")


# --- One row of a user's own data made a preference pair ---


NAME = "own"  # the data set's name in profiles and results
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("dev", "val", "valid", "eval"), "validation")
PAIR_FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class OwnPair:
    """A usable row: the pair, where it stood, its category, and the split that was given ("": none)."""

    pair: PreferencePair
    row: int
    place: str
    category: str
    split: str


class RowError(ValueError):
    """A row that is left out: the field, the code of ``own_checks.REJECTED`` and a detail."""

    def __init__(self, field: str, code: str, detail: str = "") -> None:
        super().__init__(f"{field}: {code} {detail}")
        self.field, self.code, self.detail = field, code, detail


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
    return dict(zip(PAIR_FIELDS, (mapping.prompt, *sides), strict=True))


def texts_of(values: dict[str, Any], mapping: Mapping) -> dict[str, str]:
    """Return prompt, chosen and rejected of a row as text; RowError says what is wrong with it."""
    sides = sides_of(values, mapping)
    columns = column_names(mapping, values)
    implicit = mapping.prompt not in values and all(map(is_conversation, sides))
    prompt = None if implicit else value_of(values, mapping.prompt)
    try:
        texts = dict(zip(PAIR_FIELDS, conversation_texts(prompt, *sides), strict=True))
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


# --- What can be wrong with the rows of a user's own data: each finding has a code, words and a mend ---
# A row with a finding of REJECTED is left out, one with a finding of NOTED is kept; both are counted and
# shown with row and field. A row counts as rejected once, under the first thing that is wrong with it.


# code -> (what is wrong, how to mend it)
REJECTED = {
    "unreadable": ("the row cannot be read", "mend the row's JSON, quotes or number of cells"),
    "missing": ("a field is missing", "give the row the field, or name another column in the mapping"),
    "null": ("a field is null", "give it text, or drop the row"),
    "not text": ("a field is no text", "write it as text; messages need role and content"),
    "messages": ("the messages make no pair", "a prompt, then one assistant message on each side"),
    "empty": ("a field is empty", "give it text, or drop the row"),
    "lost characters": (
        "characters were lost (U+FFFD, or half a character)",
        "save the file as UTF-8 from where its text is still whole",
    ),
    "control character": ("there is a control character", "remove it; text has tabs and newlines only"),
    "identical": ("both responses are the same", "drop the row: it states no preference"),
    "tie": ("the label says that it is a tie", "nothing: a tie states no preference"),
    "label": ("the label is none of the mapping's", "add it to first, second or tie, or mend the row"),
    "split": ("the split is none that is known", "map it under splits: to train, validation or test"),
    "other split": ("its split is not among those read", "name it under splits: to read it"),
    "id": ("the id occurs before", "make ids unique, or leave the column out"),
    "duplicate": ("the same pair occurs before", "nothing: the first one is kept"),
    "shared prompt": ("its prompt is in another split, too", "drop it from one of the splits"),
}
NOTED = {
    "mojibake": ("text looks decoded wrongly (mojibake)", "decode the source as UTF-8; see the text"),
    "opposite": ("the opposite preference occurs before", "decide, or keep both: two users may differ"),
    "quoted prompt": ("a response repeats the prompt", "cut it if the prompt was copied into the response"),
    "stop string": (f"text holds {STOP!r}, which ends an answer", "word it otherwise"),
    "near duplicate": ("its prompt nearly repeats one of train", "drop one of the two"),
    "too long": (
        "it is longer than max_length",
        "raise max_length or shorten it: training cuts its end, or drops it if the prompt alone is too long",
    ),
}
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
LOST = re.compile("[\ufffd\ud800-\udfff]")
# UTF-8 read as Latin-1 or Windows-1252: accented letters, quotes and dashes, the byte order mark.
MOJIBAKE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac|\u00ef\u00bb\u00bf")
LEAST_QUOTE = 20  # characters of a prompt from which its recurrence in a response is no accident


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a row: its number and place in the data, the field, the code, and a detail."""

    row: int
    place: str
    field: str
    code: str
    detail: str = ""

    @property
    def rejected(self) -> bool:
        """Whether the row is left out for it."""
        return self.code in REJECTED


def excerpt(text: str, match: re.Match[str]) -> str:
    """Return what stands around a match, escaped so that what cannot be printed is seen."""
    return ascii(text[max(0, match.start() - 15) : match.end() + 15])


def wrong_value(value: Any) -> tuple[str, str] | None:
    """Return (code, detail) of what makes a field unusable by itself, or None."""
    if value is None:
        return "null", ""
    if not isinstance(value, str):
        return "not text", f"{type(value).__name__}: {str(value)[:60]}"
    if not value.strip():
        return "empty", ""
    for code, pattern in (("lost characters", LOST), ("control character", CONTROL)):
        if match := pattern.search(value):
            return code, excerpt(value, match)
    return None


def odd_texts(texts: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (field, code, detail) of what a reader should know about a row that is kept."""
    for field, text in texts.items():
        if match := MOJIBAKE.search(text):
            yield field, "mojibake", excerpt(text, match)
        if STOP in text:
            yield field, "stop string", ""
    asked = texts["prompt"].strip()
    for field in ("chosen", "rejected"):
        if len(asked) >= LEAST_QUOTE and asked in texts[field]:
            yield field, "quoted prompt", ""


# --- A user's own pairs split by prompt, prompts that nearly repeat each other together ---


SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


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


# --- A user's own preference data: read, validated and split, with an account of every row ---
# Rows become pairs (``own_files``, ``own_mapping``, ``own_rows``); what is wrong with a row has a code
# (``own_checks``). Given splits are kept. Otherwise pairs are split 80/10/10 by prompt, prompts that nearly
# repeat each other together (``own_splits``), so that no test prompt was seen in training in other words.


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
        raise DataError(f"no data: say where it is, --data FILE. Read are {KINDS}")
    mapping = read_mapping(profile.data_mapping)
    return read_source(profile.data_dir, mapping, profile.near_duplicate_threshold, own_key(profile))


@functools.lru_cache(maxsize=2)
def read_source(source: str, mapping: Mapping, threshold: float, key: str) -> OwnData:
    """Read data for `read_own`; ``key`` is a hash of what it is read from: a changed file is read again."""
    raw = read_rows(source, mapping.config)
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
    source = source_key(profile.data_dir)
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
