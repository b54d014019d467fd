"""What can be wrong with the rows of a user's own data: each finding has a code, words and a mend.

A row with a finding of REJECTED is left out, one with a finding of NOTED is kept; both are counted and shown
with row and field. A row counts as rejected once, under the first thing that is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from persona_lib.prompts import STOP

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
