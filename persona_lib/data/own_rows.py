"""One row of a user's own data made a preference pair, or a `RowError` that says what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from persona_lib.data.messages import MessageError, conversation_texts, is_conversation
from persona_lib.data.own_checks import wrong_value
from persona_lib.data.own_files import RawRow
from persona_lib.data.own_mapping import SPLITS, Mapping, plain
from persona_lib.records import PreferencePair

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
