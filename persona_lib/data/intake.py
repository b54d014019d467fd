"""A user's own preference data (``--data FILE``): read, validated and split, with an account of every row.

Rows of a file, a folder or a hub id become pairs; what is wrong with a row is a `Finding` with a code of
REJECTED (the row is left out) or NOTED (it is kept). JSON lines, CSV and TSV are read row by row, so that one
damaged row is named and costs nothing but itself. Bytes that are no UTF-8 become U+FFFD, which is then
found. Given splits are kept. Otherwise pairs are split 80/10/10 by prompt, near prompts together.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from persona_lib.data.retrieval import normal
from persona_lib.data.rows import KINDS, REJECTED, Finding, OwnRow, read_rows, source_key
from persona_lib.records import HISTORY, PAIR_FIELDS, PAIR_SPLITS, DataError, PreferencePair
from persona_lib.settings import FACTS, ConfigError, Profile, near_names, results_dir
from persona_lib.store import VERSIONS, content_hash, file_hash, write_text
from persona_lib.texts import near_duplicates
from persona_lib.texts import near_groups as groups_of

if TYPE_CHECKING:
    import pandas as pd

NAME = "own"  # the data set's name in profiles and results
READ = 2  # raised when the same file gives other pairs or splits
SPLIT_NAMES = {name: name for name in PAIR_SPLITS} | dict.fromkeys(
    ("dev", "val", "valid", "eval"), "validation"
)
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
TEST_USERS = 0.25, 5, 0.45  # share of the users of two pairs or more; but so many; but at most this share
LEAST_USERS = 4  # of two pairs or more, without which splits are by prompt
LEAST_PROMPTS = 20  # different prompts without which there is nothing to train and test on
# Different prompts of each split: train is split in four, and a shuffled persona is that of another test row.
LEAST_OF = {"train": 10, "validation": 1, "test": 2}
LEAST_QUOTE = 20  # characters of a prompt from which its recurrence in a response is no accident
LONGEST_LITERAL = 1_000_000  # characters of messages in a text that are parsed
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
LOST = re.compile("[\ufffd\ud800-\udfff]")
MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]""")  # messages written as text
TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant|User|System):[ \t]*")  # of a transcript
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
NOT_TEXT = ("tool_calls", "function_call", "audio", "images")  # fields of a message
FORMATS = yaml.safe_load((FACTS / "own_formats.yaml").read_text(encoding="utf-8"))
WORDS = {field: frozenset(words.split()) for field, words in FORMATS["words"].items()}
ODD = {code: re.compile(pattern) for code, pattern in FORMATS["odd"].items()}
SECRET = ("e-mail", "phone", "key")  # findings that show the beginning alone


class RowError(ValueError):
    """A row that is left out; its arguments are the field, the code of REJECTED and a detail."""


# --- the mapping: which columns mean what ---


@dataclass(frozen=True)
class Mapping:
    """Names of columns, and what their values mean: a YAML file of "field: column" lines, all optional.

    A column may be a path into nested values ("input.messages", "answers.0.text"). ``prompt`` may be several
    columns. Instead of ``chosen`` and ``rejected`` there may be two ``responses`` with a ``label`` (a value
    listed in ``first``, ``second`` or ``tie``, compared as text without case) or with ``scores``; a
    ``ranking``: a list of texts, or of objects with an ``answer``, with their ``rank`` (1 is best) or
    ``score``, of which the best goes against the worst, or against each of the ``pairs`` worst; or one
    ``response`` with a ``label``, paired with one of the other label to the same prompt. A difference in
    scores below ``margin`` is a tie. ``splits`` maps names of given splits to train, validation and test;
    names that it leaves out are not read. ``user`` is who preferred: splits keep a user together unless
    ``split_by`` is "prompt", and ids are hashed unless ``show_users``. Columns in ``named`` were written in
    the file, so they have to be there.
    """

    prompt: tuple[str, ...] = ("prompt",)
    chosen: str = "chosen"
    rejected: str = "rejected"
    responses: tuple[str, ...] = ()
    response: str = ""
    label: str = ""
    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    tie: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    margin: float = 0.0
    ranking: str = ""
    answer: str = ""
    rank: str = ""
    score: str = ""
    pairs: int = 1
    id: str = "id"
    category: str = "category"
    split: str = "split"
    splits: tuple[tuple[str, str], ...] = ()
    config: str = ""
    encoding: str = ""
    user: str = ""
    persona_chosen: str = ""
    persona_rejected: str = ""
    split_by: str = ""
    show_users: bool = False
    named: frozenset[str] = frozenset()

    @property
    def sides(self) -> tuple[str, ...]:
        """The columns of the responses."""
        single = self.ranking or self.response
        return (single,) if single else self.responses or (self.chosen, self.rejected)

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that every row has to have, but for the prompt's."""
        return (*self.sides, *([self.label] if self.label else []), *self.scores)


OPTIONAL = ("id", "category", "split", "user", "persona_chosen", "persona_rejected")  # columns
FIELDS = tuple(field.name for field in dataclasses.fields(Mapping) if field.name != "named")
LABELS = ("first", "second", "tie")
LISTS = ("responses", "scores", "prompt", *LABELS)  # fields that may have several values
KIND_OF: dict[str, tuple[Any, str]] = {  # field -> how its text is read, and what it should be
    "margin": (float, "a number"),
    "pairs": (int, "a number"),
    "split_by": ({"user": "user", "prompt": "prompt"}.__getitem__, "user or prompt"),
    "show_users": ({"true": True, "false": False}.__getitem__, "true or false"),
}
MISSING = object()


def lookup(value: Any, path: str) -> Any:
    """Return what stands at a path of names and places from 0 joined by dots, or MISSING."""
    if isinstance(value, (list, tuple)):
        head, _, rest = path.partition(".")
        if not head.isdigit() or int(head) >= len(value):
            return MISSING
        return lookup(value[int(head)], rest) if rest else value[int(head)]
    if not isinstance(value, dict):
        return MISSING
    if path in value:
        return value[path]
    parts = path.split(".")
    heads = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))  # a name may hold dots itself
    head = next((head for head in heads if head in value), None)
    return MISSING if head is None else lookup(value[head], path[len(head) + 1 :])


def plain(value: Any) -> str:
    """Return a label, a split's name or an id as text, so that 0, 0.0 and "0 " are the same.

    Of a list (the labels of several annotators) it is the one label, or all that differ.
    """
    if isinstance(value, dict):
        value = value.get("value")
    if isinstance(value, (list, tuple)):
        return " / ".join(sorted({plain(one) for one in value}))
    text = str(value).strip().lower()
    return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text


def read_mapping(path: str) -> Mapping:
    """Read a mapping file; "" gives the default one. Raises DataError that names the file and the field."""
    if not path:
        return Mapping()
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        content = yaml.load(text, yaml.BaseLoader)  # every value is text: yes, no and 1.0 stay what they are
        if not isinstance(content, dict):
            raise ValueError("should be lines of 'field: column', for example 'prompt: question'")
        return mapping_of(content)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: no mapping file ({error}); paths are relative to the repository") from error


def mapping_of(content: dict[str, Any]) -> Mapping:
    """Return the mapping that a file's lines describe; ValueError says what is wrong with them."""
    fields = dict(map(field_value, content.items()))
    mapping = Mapping(**fields, named=frozenset(fields))
    check_labels(mapping)
    return mapping


def field_value(field: tuple[str, Any]) -> tuple[str, Any]:
    """Return a field of a mapping file and its value in its type; ValueError says what is wrong with it."""
    name, value = field
    name = "persona_chosen" if name == "persona" else name
    if name not in FIELDS:
        raise ValueError(f"unknown field {name!r}; {near_names(name, list(FIELDS))}")
    if name == "splits":
        if not isinstance(value, dict) or any(ours not in PAIR_SPLITS for ours in value.values()):
            raise ValueError(f"splits={value!r}: write 'name in the data: train, validation or test'")
        return name, tuple((plain(given), ours) for given, ours in value.items())
    values = value if isinstance(value, list) else [value]
    read, wanted = KIND_OF.get(name, (str, "the name of a column"))
    if not all(isinstance(one, str) and one for one in values) or (name not in LISTS and values is value):
        raise ValueError(f"{name}={value!r} should be {wanted}")
    if name in LISTS:
        return name, tuple(map(plain, values) if name in LABELS else values)
    try:
        return name, read(value)
    except (KeyError, ValueError):
        raise ValueError(f"{name}={value!r} should be {wanted}") from None


def check_labels(mapping: Mapping) -> None:
    """Raise ValueError if the sides and labels of a mapping are not complete or contradict each other."""
    if mapping.split_by == "user" and not mapping.user:
        raise ValueError("split_by: user needs user: the column of who preferred")
    ways = [name for name in ("responses", "response", "ranking") if getattr(mapping, name)]
    if len(ways) > 1 or (ways and (given := sorted(mapping.named & {"chosen", "rejected"}))):
        other = ways[1] if len(ways) > 1 else given[0]
        raise ValueError(f"{other} does not go with {ways[0]}: use either")
    for name in ("responses", "scores"):
        if len(getattr(mapping, name)) not in (0, 2):
            raise ValueError(f"{name}={list(getattr(mapping, name))} should be two columns")
    if mapping.ranking and not (mapping.rank or mapping.score):
        raise ValueError("ranking needs rank or score: what orders the answers")
    labelled = mapping.response or (mapping.responses and not mapping.scores)
    if not labelled and (given := sorted(mapping.named & {"label", *LABELS})):
        raise ValueError(f"{given[0]} is given, but not responses: [column, column], or response: column")
    for name in ("label", "first", "second") if labelled else ():
        if not getattr(mapping, name):
            said = "a label's column, and its values for each side"
            raise ValueError(f"{ways[0]} {'need' if mapping.responses else 'needs'} {name}: {said}")
    labels = [*mapping.first, *mapping.second, *mapping.tie]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"the label {twice[0]!r} stands for two outcomes")


# --- no mapping: known formats, and proposals ---


def is_there(rows: Sequence[dict[str, Any]], column: str) -> bool:
    """Say whether a column is in any of the rows."""
    return any(lookup(values, column) is not MISSING for values in rows)


def find_mapping(profile: Profile, mapping: Mapping, rows: Sequence[OwnRow]) -> tuple[Mapping, str]:
    """Return the mapping of the rows, and the name and lines of the format they were recognised by.

    Raises DataError if a column is in no row: names it, the near ones, what is there and, where column
    names tell, the mapping that is proposed and written beside the results.
    """
    source = profile.data.path
    readable = [row.value for row in rows if isinstance(row.value, dict)]
    present = list(dict.fromkeys(str(name) for values in readable for name in values))
    if not present:
        raise DataError(f"{source}: no row can be read; {rows[0].place}: {rows[0].value or 'no field'}")
    lost = next(missing_columns(readable, mapping), None)
    if lost is None:
        return mapping, ""
    near = near_names(lost, present) if lost not in Mapping().needed + Mapping().prompt else ""
    said = f"{source}: no column {lost!r}; {near} Columns there: {', '.join(present)}. ".replace(";  ", ". ")
    if not profile.data.mapping:
        for shape in FORMATS["shapes"]:
            if all(is_there(readable[:100], column) for column in shape["has"]):
                return mapping_of(shape["mapping"]), f"{shape['name']}:\n{lines_of(shape['mapping'])}"
        if proposed := propose(readable):
            path, lines = results_dir(profile) / "proposed_mapping.yaml", lines_of(proposed)
            write_text(path, lines + "\n")
            said += f"They look like this; check it, then add --mapping {path}\n{lines}"
            raise DataError(said)
    raise DataError(
        said
        + "Say which is which in a mapping file (--mapping FILE, lines like 'prompt: question'; see DATA.md)"
    )


def missing_columns(readable: Sequence[dict[str, Any]], mapping: Mapping) -> Iterator[str]:
    """Yield the columns of a mapping that are in no row; the prompt may be the beginning of conversations."""
    sides = mapping.sides
    implicit = any(all(is_conversation(lookup(values, side)) for side in sides) for values in readable)
    prompt = () if implicit and "prompt" not in mapping.named else mapping.prompt
    extra = [getattr(mapping, name) for name in OPTIONAL if name in mapping.named]
    yield from (name for name in (*prompt, *mapping.needed, *extra) if not is_there(readable, name))


def lines_of(content: dict[str, Any]) -> str:
    """Return a mapping as the lines of its file."""
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in content.items())


def words_of(name: Any) -> set[str]:
    """Return the words and numbers of a column's name or of a label."""
    text = str(name).lower()
    return (
        {text}
        if re.fullmatch(r"-?\d+", text)
        else set(re.findall("[a-z]+|\\d+|[\U0001f44d\U0001f44e]", text))
    )


def propose(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mapping that the names of columns and the values of labels suggest; {} if they do not."""
    names, taken = list(dict.fromkeys(name for values in rows for name in values)), []

    def pick(field: str) -> Any:
        free = (name for name in names if name not in taken and words_of(name) & WORDS[field])
        taken.append(next(free, None))
        return taken[-1]

    found = {"rejected": pick("rejected"), "chosen": pick("chosen")}
    if not all(found.values()):
        taken.clear()
        label = pick("label")
        values = Counter(plain(lookup(row, label)) for row in rows if label in row).most_common(8)
        twins = [
            (a, b, {first}, {second})
            for first, second in FORMATS["twins"]
            for a, b in itertools.permutations(names, 2)
            if {first} == words_of(a) - words_of(b) and {second} == words_of(b) - words_of(a)
        ]
        if label and twins:
            *pair, up, down = twins[0]
            found = {"responses": pair}
        else:
            found, up, down = {"response": pick("response")}, WORDS["up"], WORDS["down"]
        if not label or not all(found.values()):
            return {}
        taken += found.get("responses", [])
        ties = [value for value, _ in values if words_of(value) & WORDS["tie"]]
        sides = {"first": up, "second": down}
        labels = {
            name: [v for v, _ in values if v not in ties and words_of(v) & marks]
            for name, marks in sides.items()
        }
        found |= {"label": label} | {name: some or ["WHICH VALUE?"] for name, some in labels.items()}
        found |= {"tie": ties} if ties else {}
    prompt, user = pick("prompt"), pick("user")
    if prompt is None:
        return {}
    return {"prompt": prompt} | dict(sorted(found.items())) | ({"user": user} if user else {})


# --- messages, and what is written as text: they become plain text ---

Message = tuple[str, str]  # role, content


def messages_in(value: Any, transcript: bool = False) -> list[dict[str, Any]] | None:
    """Return the messages of a value: a list, one message, a text that holds a list, or a transcript.

    None if it holds none. Raises ValueError for a text that begins like a list of messages and is none.
    """
    if isinstance(value, dict) and {"role", "from"} & set(value):
        value = [value]
    if isinstance(value, (list, tuple)):
        return list(value) if value and all(isinstance(message, dict) for message in value) else None
    if not isinstance(value, str):
        return None
    if MESSAGES.match(value):
        return messages_in(literal(value))
    if transcript and (match := TURN.match(value)) and match.start() == 0:
        _, *parts = TURN.split(value)
        turns = [
            {"role": role.lower(), "content": text.strip()}
            for role, text in zip(parts[::2], parts[1::2], strict=True)
        ]
        return [turn for turn in turns if turn["content"]] or None
    return None


def is_conversation(value: Any) -> bool:
    """Say whether a value looks like messages or a transcript."""
    try:
        return bool(messages_in(value, transcript=True))
    except ValueError:
        return True


def literal(text: str) -> Any:
    """Return the value of JSON, a Python literal or a list as numpy prints it; ValueError for others."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > LONGEST_LITERAL:
        raise ValueError("a text that holds messages is too long to be parsed")
    try:
        return ast.literal_eval(re.sub(r"\}\s*\n\s*\{", "}, {", text.strip()))
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"a text that begins like messages cannot be parsed ({error})") from error


def read_messages(value: Any, field: str, transcript: bool = False) -> list[Message]:
    """Return the messages of one field, [] for a value without; content of several parts is joined.

    Raises RowError for what is no text: a tool's call or answer, an image.
    """
    try:
        messages = messages_in(value, transcript) or []
    except ValueError as error:
        raise RowError(field, "messages", str(error)) from error
    found = []
    for number, message in enumerate(messages, start=1):
        role, content = (message.get(a, message.get(b)) for a, b in (("role", "from"), ("content", "value")))
        parts = content if isinstance(content, (list, tuple)) else [content]
        kinds = [str(part.get("type")) for part in parts if isinstance(part, dict) and "text" not in part]
        if (
            other := [name for name in NOT_TEXT if message.get(name)]
            + kinds
            + [role] * (role in ("tool", "function"))
        ):
            raise RowError(field, "tool or image", f"message {number} has {', '.join(other)}")
        if not isinstance(role, str) or not {"content", "value"} & set(message):
            names = ", ".join(sorted(message)) or "nothing"
            raise RowError(field, "messages", f"a message has {names}; needed: role, content")
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        if not all(isinstance(text, str) for text in texts):
            raise RowError(field, "messages", f"a message's content is {type(content).__name__}, not text")
        found.append((ROLES.get(role.lower(), role.lower()), "\n".join(texts)))
    return found


def render(messages: list[Message]) -> str:
    """Write the messages before a response as text: one user message as it is, several with their roles."""
    messages = [(role, content) for role, content in messages if content.strip()]
    if [role for role, _ in messages] == ["user"]:
        return messages[0][1]
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in messages)


def conversation_texts(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Return (prompt, chosen, rejected) as text where they are messages; other values stay as they are.

    ``prompt`` None means that there is no such column: it is the common beginning of the two responses. A
    prompt that is text may be repeated at the head of the responses' messages; a response is one assistant
    message. Raises RowError with the code "messages".
    """
    open_ended = isinstance(prompt, str) and prompt.rstrip().endswith("Assistant:")
    asked = read_messages(prompt, "prompt", transcript=open_ended)
    sides = {"chosen": chosen, "rejected": rejected}
    found = {name: read_messages(value, name, prompt is None) for name, value in sides.items()}
    if not all(found.values()):
        return (render(asked) if asked else prompt), chosen, rejected
    if not asked:
        both = zip(found["chosen"][:-1], found["rejected"][:-1], strict=False)
        asked = [first for first, second in itertools.takewhile(lambda pair: pair[0] == pair[1], both)]
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


# --- one row becomes pairs, or says why it is none ---

Side = tuple[str, Any]  # a response's column and value


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


def number_of(column: str, value: Any) -> float:
    """Return a score or rank; RowError for a value that is no number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise RowError(column, "label", f"{value!r} is no number"[:60])
    return number


def is_first(values: dict[str, Any], mapping: Mapping) -> bool:
    """Say whether a row's label is one of ``first``; RowError for a tie or an unknown label."""
    given = lookup(values, mapping.label)
    label = plain(given)
    if label not in (*mapping.first, *mapping.second):
        raise RowError(mapping.label, "tie" if label in mapping.tie else "label", f"{given!r}"[:60])
    return label in mapping.first


def ranked_sides(values: dict[str, Any], mapping: Mapping) -> list[tuple[Side, Side]]:
    """Return the best answer of a ranking against each of the ``pairs`` worst; RowError if all are equal."""
    column, name = mapping.ranking, mapping.rank or mapping.score
    answers = lookup(values, column)
    if not isinstance(answers, (list, tuple)) or len(answers) < 2:
        raise RowError(column, "ranking", f"{type(answers).__name__}, not two or more answers")
    if mapping.answer:
        orders, texts = ([lookup(answer, path) for answer in answers] for path in (name, mapping.answer))
    else:
        orders, texts = lookup(values, name), list(answers)
    if not isinstance(orders, (list, tuple)) or len(orders) != len(texts) or MISSING in (*orders, *texts):
        raise RowError(column, "ranking", f"not every answer has {mapping.answer or 'its'} {name}".strip())
    sign = -1 if mapping.rank else 1
    order = sorted(((sign * number_of(name, one), -n) for n, one in enumerate(orders)), reverse=True)
    (best, first), worse = order[0], [(value, n) for value, n in reversed(order[1:]) if value < order[0][0]]
    found = [
        (texts[-first], texts[-n]) for value, n in worse[: mapping.pairs] if best - value >= mapping.margin
    ]
    if not found:
        raise RowError(column, "tie", f"{name}: {orders}"[:60])
    return [((column, good), (column, bad)) for good, bad in found]


def sides_of(values: dict[str, Any], mapping: Mapping) -> list[tuple[Side, Side]]:
    """Return the chosen and the rejected response of every pair in a row; RowError for a tie."""
    if mapping.ranking:
        return ranked_sides(values, mapping)
    first, last = [(column, lookup(values, column)) for column in (mapping.sides * 2)[:2]]
    won = 1.0
    if mapping.scores:
        one, other = (number_of(column, lookup(values, column)) for column in mapping.scores)
        won = one - other
        if won == 0 or abs(won) < mapping.margin or (won < 0 and not mapping.responses):
            raise RowError(mapping.scores[0], "tie", f"scores {one:g} and {other:g}")
    elif mapping.responses and not is_first(values, mapping):
        won = -1.0
    return [(first, last) if won > 0 else (last, first)]


def prompt_of(values: dict[str, Any], mapping: Mapping) -> Any:
    """Return a row's prompt: of several columns, those that hold text below each other."""
    given = [lookup(values, column) for column in mapping.prompt]
    if len(given) == 1 or all(value is MISSING for value in given):
        return given[0]
    given = [value for value in given if value is not MISSING]
    if other := [value for value in given if not isinstance(value, (str, type(None)))]:
        raise RowError(" + ".join(mapping.prompt), "not text", f"{type(other[0]).__name__}"[:60])
    return "\n\n".join(text.strip() for text in given if text and text.strip())


def texts_of(values: dict[str, Any], mapping: Mapping) -> list[dict[str, str]]:
    """Return prompt, chosen and rejected of every pair of a row as text; RowError says what is wrong."""
    prompt = prompt_of(values, mapping)
    lost = [column for column in mapping.needed if lookup(values, column) is MISSING]
    lost += list(mapping.prompt) if prompt is MISSING and "prompt" in mapping.named else []
    if not lost and prompt is MISSING:
        sides = [lookup(values, column) for column in mapping.sides]
        lost = [] if all(is_conversation(side) for side in sides) else list(mapping.prompt)
    if lost:
        raise RowError(lost[0], "missing", f"it has {', '.join(map(str, values)) or 'nothing'}")
    found = []
    for sides in sides_of(values, mapping):
        columns = dict(
            zip(PAIR_FIELDS, (" + ".join(mapping.prompt), *(column for column, _ in sides)), strict=True)
        )
        given = (None if prompt is MISSING else prompt, *(value for _, value in sides))
        try:
            texts = dict(zip(PAIR_FIELDS, conversation_texts(*given), strict=True))
        except RowError as error:
            field, *said = error.args
            raise RowError(columns[field], *said) from error
        for field, text in texts.items():
            check_text(columns[field], text)
        if texts["chosen"].strip() == texts["rejected"].strip() and not mapping.response:
            raise RowError(columns["rejected"], "identical")
        found.append(texts)
    return found


def split_of(row: OwnRow, mapping: Mapping) -> str:
    """Return the given split of a row, "" without one; RowError for one that is not known or not read."""
    given = row.split
    if (own := lookup(row.value, mapping.split)) is not MISSING and (mapping.split != "split" or not given):
        given = own
    if given in ("", None):
        return ""
    known = dict(mapping.splits) or SPLIT_NAMES
    if plain(given) not in known:
        raise RowError(mapping.split, "other split" if mapping.splits else "split", str(given))
    return known[plain(given)]


def optional(row: OwnRow, column: str) -> str:
    """Return what a column holds as text, "" without it."""
    value = lookup(row.value, column) if column else None
    if value is MISSING or value is None:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def read_pairs(row: OwnRow, mapping: Mapping, salt: bytes = b"") -> list[OwnRow]:
    """Return a row once for each of its pairs, with split and category; RowError says why it makes none.

    Unpaired thumbs have one side only (`join_thumbs`).
    """
    if not isinstance(row.value, dict):
        raise RowError("row", "unreadable", str(row.value))
    split, texts = split_of(row, mapping), texts_of(row.value, mapping)
    if mapping.response:
        texts[0]["rejected" if is_first(row.value, mapping) else "chosen"] = ""
    personas = {
        name: optional(row, getattr(mapping, name)) for name in ("persona_chosen", "persona_rejected")
    }
    for name in filter(personas.get, personas):
        check_text(getattr(mapping, name), personas[name])
    id = optional(row, mapping.id) or f"{NAME}-{row.row:06d}"
    ids = [id] + [f"{id}/{number}" for number in range(2, len(texts) + 1)]
    more = {"user": user_of(row, mapping, salt), **personas}
    pairs = [PreferencePair(id, **found, **more) for id, found in zip(ids, texts, strict=True)]
    made = {"split": split, "category": optional(row, mapping.category)}
    return [replace(row, value=None, pair=pair, **made) for pair in pairs]


def user_of(row: OwnRow, mapping: Mapping, salt: bytes) -> str:
    """Return who preferred: the salted hash of the id in 12 hex digits, or the id if users are shown."""
    if mapping.user and not (name := optional(row, mapping.user)):
        raise RowError(mapping.user, "user")
    if not mapping.user or mapping.show_users:
        return name if mapping.user else ""
    return hashlib.blake2b(name.encode("utf-8", "replace"), key=salt, digest_size=6).hexdigest()


def join_thumbs(halves: Sequence[OwnRow], mapping: Mapping) -> tuple[list[OwnRow], list[Finding]]:
    """Join each liked response with a disliked one to the same prompt, by the same user where users are."""
    groups: dict[tuple[str, ...], tuple[list[OwnRow], list[OwnRow]]] = defaultdict(lambda: ([], []))
    for half in halves:
        groups[normal(half.pair.prompt), half.pair.user, half.split][not half.pair.chosen].append(half)
    pairs, findings = [], []
    for liked, disliked in groups.values():
        for one, other in zip(liked, disliked, strict=False):
            if one.pair.chosen.strip() == other.pair.rejected.strip():
                findings += [half.found(mapping.response, "identical") for half in (one, other)]
                continue
            pairs.append(replace(one, pair=replace(one.pair, rejected=other.pair.rejected)))
            findings.append(other.found("row", "joined", f"with {one.place}"))
        rest = [*liked[len(disliked) :], *disliked[len(liked) :]]
        findings += [half.found("row", "unpaired") for half in rest]
    return sorted(pairs, key=lambda pair: pair.row), findings


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
        for code, match in ((code, pattern.search(text)) for code, pattern in ODD.items()):
            if match:
                yield own.found(field, code, f"{match[0][:4]}..." if code in SECRET else excerpt(text, match))
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
        asked = (p.pair.user, prompt)  # two users may choose alike: that is no duplicate
        if (*asked, *sides) in texts:
            findings.append(p.found("row", "duplicate", texts[*asked, *sides]))
        elif p.split and owners[prompt] != p.split:
            findings.append(p.found("prompt", "shared prompt", f"of {owners[prompt]}"))
        elif p.pair.id in ids:
            findings.append(p.found("id", "id", f"{p.pair.id} in {ids[p.pair.id]}"))
        else:
            if (*asked, *reversed(sides)) in texts:
                findings.append(p.found("row", "opposite", texts[*asked, *reversed(sides)]))
            ids[p.pair.id] = texts[*asked, *sides] = p.place
            kept.append(p)
    return kept, findings


# --- splits: by prompt, prompts that nearly repeat each other together ---


def near_groups(prompts: Sequence[str], threshold: float) -> list[int]:
    """Return the group of each prompt: near duplicates (`texts.near_groups`) and equal prompts share one."""
    names = list(map(normal, prompts))
    different = list(dict.fromkeys(names))
    groups = dict(zip(different, groups_of(different, threshold), strict=True))
    return [groups[name] for name in names]


def fill_shares(groups: Iterable[list[Any]], shares: dict[str, float]) -> dict[str, list[Any]]:
    """Give each whole group, in turn, to the part that is furthest below its share."""
    parts: dict[str, list[Any]] = {name: [] for name in shares}
    for group in groups:
        parts[min(shares, key=lambda name: (len(parts[name]) + 1) / shares[name])] += group
    return parts


def near_parts(rows: Sequence[OwnRow], threshold: float) -> list[list[int]]:
    """Return the places of the rows of each group of near prompts, in an order that only texts decide."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(near_groups([row.pair.prompt for row in rows], threshold)):
        groups[group].append(index)
    return sorted(groups.values(), key=lambda part: content_hash(normal(rows[part[0]].pair.prompt)))


def fill_splits(rows: Sequence[OwnRow], shares: dict[str, float], threshold: float) -> list[OwnRow]:
    """Give rows a split by their shares: whole groups of near prompts."""
    parts = fill_shares(near_parts(rows, threshold), shares)
    splits = {index: name for name, part in parts.items() for index in part}
    return [replace(row, split=splits[index]) for index, row in enumerate(rows)]


def assign_splits(rows: list[OwnRow], threshold: float, split_by: str = "") -> tuple[list[OwnRow], bool]:
    """Return the rows with their splits, and whether splits were given.

    Given splits stay, but of test users who are in no other split every second pair becomes `HISTORY`. A
    missing split is taken from train, a tenth of the rows each; where only one is given, it is all the data
    there is, and is split as if none were: by user where there are users enough (`split_users`), unless
    ``split_by`` is "prompt".
    """
    given = {row.split for row in rows}
    if len(given) < 2:
        by_user = split_users(rows, threshold) if split_by != "prompt" else None
        if by_user is None and split_by == "user":
            raise DataError(f"split_by: user needs {LEAST_USERS} users of two pairs or more; use prompt")
        return by_user or fill_splits(rows, SHARES, threshold), False
    rows = [replace(row, split=row.split or "train") for row in rows]
    missing = [name for name in ("validation", "test") if name not in given]
    shares = {"train": 1 - 0.1 * len(missing)} | dict.fromkeys(missing, 0.1)
    moved = iter(fill_splits([row for row in rows if row.split == "train"], shares, threshold))
    rows = [next(moved) if row.split == "train" else row for row in rows]
    counts = Counter(row.pair.user for row in rows)
    known = {row.pair.user for row in rows if row.split != "test"}
    unseen = {user for user, n in counts.items() if user and n > 1} - known
    halves = iter(hold_out([row for row in rows if row.pair.user in unseen], unseen, threshold))
    return [next(halves) if row.pair.user in unseen else row for row in rows], True


def split_users(rows: Sequence[OwnRow], threshold: float) -> list[OwnRow] | None:
    """Split by user and by question at once; None with too few users, or where that leaves a split empty.

    `TEST_USERS` of the users of two pairs or more, in an order that only texts decide, are test users; the
    others are in training. Groups of near prompts stay whole, too: see `hold_out`.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        texts[row.pair.user].append(normal(row.pair.prompt) + row.pair.chosen)
    keys = {user: content_hash(sorted(own)) for user, own in texts.items() if user and len(own) > 1}
    if len(keys) < LEAST_USERS:
        return None
    share, least, most = TEST_USERS
    n_unseen = min(max(least, round(share * len(keys))), int(most * len(keys)))
    unseen = set(sorted(keys, key=lambda user: keys[user])[:n_unseen])
    for near in (threshold, 1.0):  # 1: where near prompts are all one group, equal prompts alone
        made = hold_out(rows, unseen, near)
        if HISTORY in {row.split for row in made} and not short_splits(made):
            return made
    return None


def hold_out(rows: Sequence[OwnRow], unseen: Container[str], threshold: float) -> list[OwnRow]:
    """Give whole groups of near prompts to the splits: no test user and no test question is trained on.

    A group with pairs of test users is held out or not, by turns. Held out, it is evaluated, also its pairs
    of other users, who are *seen* in training (at most twice the test share of their pairs). Otherwise the
    test users' pairs are `HISTORY`, of which only the user's persona is made. Other groups fill up `SHARES`.
    """
    n_others = sum(row.pair.user not in unseen for row in rows)
    sizes, lead, splits = dict.fromkeys(SHARES, 0), Counter(), {}
    for group in near_parts(rows, threshold):
        theirs = [rows[i].pair.user for i in group if rows[i].pair.user in unseen]
        n, free = len(group) - len(theirs), list(SHARES)
        if theirs:  # history first: ``lead`` is by how many pairs a user has more of it
            held = sizes["test"] + n <= 2 * SHARES["test"] * n_others and sum(lead[u] for u in {*theirs}) > 0
            free = ["test"] if held else ["train", "validation"]
            for user in theirs:
                lead[user] += -1 if held else 1
        due = min(free, key=lambda name: (sizes[name] + n) / SHARES[name])
        sizes[due] += n
        for i in group:
            splits[i] = due if due == "test" or rows[i].pair.user not in unseen else HISTORY
    return [replace(row, split=splits[index]) for index, row in enumerate(rows)]


def users_in_two(rows: Sequence[OwnRow]) -> Iterator[Finding]:
    """Note the test rows of given splits whose user is in training, too."""
    train = {row.pair.user for row in rows if row.split == "train"}
    for row in rows:
        if row.split == "test" and row.pair.user and row.pair.user in train:
            yield row.found("user", "user in two splits")


def near_train(rows: Sequence[OwnRow], threshold: float) -> Iterator[Finding]:
    """Note the validation and test rows whose prompt nearly repeats one of train."""
    train = [row for row in rows if row.split == "train"]
    others = [row for row in rows if row.split in ("validation", "test")]
    found = near_duplicates([r.pair.prompt for r in others], [r.pair.prompt for r in train], threshold)
    for index, of, jaccard in found:
        detail = f"of {train[of].place}, Jaccard {jaccard:.2f}"
        yield others[index].found("prompt", "near duplicate", detail)


# --- all rows ---


@dataclass(frozen=True)
class OwnData:
    """What was read: usable pairs by split, every finding, how many rows there were.

    ``how`` names encoding and separator, ``shape`` the format that was recognised, with its mapping.
    """

    source: str
    n_read: int
    rows: tuple[OwnRow, ...]
    findings: tuple[Finding, ...]
    given_splits: bool
    how: str = ""
    shape: str = ""

    @property
    def rejected(self) -> dict[int, Finding]:
        """Return the first reason against each row that was left out, by row number."""
        found: dict[int, Finding] = {}
        used = {row.row for row in self.rows}  # a ranking gives several pairs
        for finding in self.findings:
            if finding.rejected and finding.row not in used:
                found.setdefault(finding.row, finding)
        return found

    def pairs(self) -> dict[str, list[PreferencePair]]:
        """Return the pairs by split."""
        names = (*PAIR_SPLITS, HISTORY) if any(row.split == HISTORY for row in self.rows) else PAIR_SPLITS
        return {split: [row.pair for row in self.rows if row.split == split] for split in names}


def check_judge(profile: Profile) -> None:
    """Raise ConfigError for a profile whose judge cannot read own data."""
    if profile.evaluation.judge == "oracle":
        raise ConfigError(
            f"profile {profile.name}: evaluation.judge=oracle reads the package's own pairs only; leave "
            "--profile out (profile own), or give --set evaluation.judge=none, or lm with a judge.model"
        )


def own_key(profile: Profile) -> str:
    """Return a hash of all that the pairs are made from."""
    mapping, source = Path(profile.data.mapping).expanduser(), source_key(profile.data.path)
    lines = file_hash(mapping) if mapping.is_file() else ""
    return content_hash(VERSIONS["pairs"], READ, source, lines, profile.data.near_duplicates)


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
    given = read_mapping(profile.data.mapping)
    raw, how = read_rows(source, given.config, given.encoding)
    mapping, shape = find_mapping(profile, given, raw)
    salt = user_salt(profile) if mapping.user and not mapping.show_users else b""
    pairs, findings = [], []
    for row in raw:
        try:
            pairs += read_pairs(row, mapping, salt)
        except RowError as error:
            findings.append(row.found(*error.args))
    if mapping.response:
        pairs, unpaired = join_thumbs(pairs, mapping)
        findings += unpaired
    pairs, more = against_others(pairs)
    findings += more + [odd for pair in pairs for odd in odd_texts(pair)]
    check_enough(source, pairs, findings)
    rows, split = assign_splits(pairs, threshold, mapping.split_by)
    check_splits(source, rows, threshold)
    findings += [*near_train(rows, threshold), *users_in_two(rows)] if split else []
    findings.sort(key=lambda found: found.row)
    return OwnData(source, len(raw), tuple(rows), tuple(findings), split, how, shape)


def check_enough(source: str, pairs: Sequence[OwnRow], findings: Sequence[Finding]) -> None:
    """Raise DataError if there are too few prompts to train and to test on; says what became of the rows."""
    prompts = len({normal(pair.pair.prompt) for pair in pairs})
    if prompts >= LEAST_PROMPTS:
        return
    rejected = [finding for finding in findings if finding.rejected]
    said = counted(f"{f.code} ({f.field})" for f in rejected) or "none"
    first = "".join(f"; first: {f.place}, {f.field}: {f.code} {f.detail}".rstrip() for f in rejected[:1])
    ways = "".join(f". {code}: {REJECTED[code][1]}" for code in dict.fromkeys(f.code for f in rejected))
    raise DataError(
        f"{source}: {len(pairs)} usable pairs with {prompts} different prompts; at least {LEAST_PROMPTS} "
        f"prompts are needed. Rows rejected: {said}{first}{ways}"
    )


def short_splits(rows: Sequence[OwnRow]) -> dict[str, int]:
    """Return the splits with fewer different prompts than `LEAST_OF`, and how many they have."""
    prompts = {split: {normal(r.pair.prompt) for r in rows if r.split == split} for split in PAIR_SPLITS}
    return {split: len(found) for split, found in prompts.items() if len(found) < LEAST_OF[split]}


def check_splits(source: str, rows: Sequence[OwnRow], threshold: float) -> None:
    """Raise DataError if a split has too few different prompts to be trained, validated or tested on."""
    if not (short := short_splits(rows)):
        return
    said = ", ".join(
        f"{split} has {n} different prompts and needs {LEAST_OF[split]}" for split, n in short.items()
    )
    largest = Counter(near_groups([row.pair.prompt for row in rows], threshold)).most_common(1)[0][1]
    raise DataError(
        f"{source}: {said}. The largest group of near prompts, which stay together, has {largest} of "
        f"{len(rows)} rows. Add pairs, or keep fewer together: --set data.near_duplicates=0.9"
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
    return {"read": data.n_read, "usable": len({row.row for row in data.rows})} | dict(reasons.most_common())


def describe(data: OwnData) -> list[str]:
    """Say in a few lines what was read, what was left out and why, and how it was split."""
    reasons = counted(finding.code for finding in data.rejected.values())
    noted = counted(finding.code for finding in data.findings if not finding.rejected)
    sizes = Counter(row.split for row in data.rows)
    names = [*PAIR_SPLITS, *([HISTORY] if sizes[HISTORY] else [])]
    how = "as given" if data.given_splits else "by prompt, near duplicates together"
    how = "by user and by prompt" if sizes[HISTORY] and not data.given_splits else how
    name = Path(data.source).name if Path(data.source).expanduser().exists() else data.source
    used = len({row.row for row in data.rows})
    usable = f"{used} usable" + ("" if used == len(data.rows) else f" ({len(data.rows)} pairs)")
    lines = [
        f"{name}: {data.n_read} rows read, {usable}, {len(data.rejected)} rejected"
        + (f" ({reasons})" if reasons else ""),
        f"splits {how}: {', '.join(f'{split} {sizes[split]}' for split in names)}",
        *describe_users(data),
    ]
    lines += [f"read {data.how}"] if data.how else []
    lines += [f"recognised as {data.shape}"] if data.shape else []
    return [*lines, f"noted: {noted}"] if noted else lines


def describe_users(data: OwnData) -> list[str]:
    """Say how many users there are, who of them is evaluated, and what the split by user cost."""
    users = {split: Counter(pair.user for pair in part) for split, part in data.pairs().items()}
    everybody = set().union(*users.values()) - {""}
    if not everybody:
        return []
    new, old = (Counter(), Counter())
    for user, n in users["test"].items():
        (old if user in users["train"] else new)[user] = n
    said = [
        f"users: {len(everybody)}; evaluated: {new.total()} pairs of {len(new)} users who are not in "
        f"training (unseen), {old.total()} pairs of {len(old)} who are (seen)"
    ]
    if n := users.get(HISTORY, Counter()).total():
        said.append(
            f"cost of the split by user: {n} pairs of unseen users serve for their "
            "persona only; no question is in two of train, validation and test"
        )
    return said


def counted(codes: Iterable[str]) -> str:
    """Return how often each code occurs, the most frequent first: "3 tie, 1 empty"."""
    return ", ".join(f"{count} {code}" for code, count in Counter(codes).most_common())
