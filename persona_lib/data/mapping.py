"""The mapping of a user's own data: which columns mean what, known formats, and messages as plain text.

Without a mapping file, formats of `facts/own_formats.yaml` are recognised, and a mapping is proposed where
the names of columns tell.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from persona_lib.data.rows import OwnRow
from persona_lib.records import PAIR_SPLITS, DataError
from persona_lib.settings import FACTS, Profile, near_names, results_dir
from persona_lib.store import write_text

OURS = {name: name for name in PAIR_SPLITS}
MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]""")  # messages written as text
TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant|User|System):[ \t]*")  # of a transcript
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
LEAF = {"role", "from", "value"}  # fields of a message, or of an annotator's answer
NOT_TEXT = ("tool_calls", "function_call", "audio", "images")  # fields of a message
FORMATS = yaml.safe_load((FACTS / "own_formats.yaml").read_text(encoding="utf-8"))
TWINS = [[{one}, {two}] for one, two in FORMATS["twins"]]  # marks of two columns that belong together
NUMBER = re.compile(r"\s*-?\d+(\.\d+)?\s*")
LEAST_TEXTS = 5  # different values of a column of responses; a label has fewer
WORDS = {field: frozenset(words.split()) for field, words in FORMATS["words"].items()}
MISSING = object()


class RowError(ValueError):
    """A row that is left out; its arguments are the field, the code of REJECTED and a detail."""


# --- the mapping: which columns mean what ---


@dataclass(frozen=True)
class Mapping:
    """Names of columns, and what their values mean: a YAML file of "field: column" lines, all optional.

    DATA.md lists the fields. A column may be a path into nested values ("answers.0.text"). Columns in
    ``named`` were written in the file, so they have to be there.
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


SIDES = ("chosen", "rejected", "responses", "response", "ranking")  # fields that say where responses are
OPTIONAL = ("id", "category", "split", "user", "persona_chosen", "persona_rejected")  # columns
FIELDS = [field.name for field in fields(Mapping) if field.name != "named"]
LABELS = ("first", "second", "tie")
LISTS = ("responses", "scores", "prompt", *LABELS)  # fields that may have several values


def lookup(value: Any, path: str) -> Any:
    """Return what stands at a path of names and places from 0 joined by dots, or MISSING."""
    if isinstance(value, dict) and path in value:  # a name may hold dots itself
        return value[path]
    head, _, rest = path.partition(".")
    if isinstance(value, (list, tuple)) and head.isdigit() and int(head) < len(value):
        inner = value[int(head)]
    elif isinstance(value, dict) and head in value:
        inner = value[head]
    else:
        return MISSING
    return lookup(inner, rest) if rest else inner


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
    content = {"persona_chosen" if name == "persona" else name: value for name, value in content.items()}
    found = {name: field_value(name, value) for name, value in content.items()}
    mapping = Mapping(**found, named=frozenset(found))
    check_mapping(mapping)
    return mapping


def text_of(value: Any) -> str:
    """Return a text that is not empty; ValueError for anything else."""
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


KIND_OF: dict[str, tuple[Any, str]] = {  # field -> how its text is read, and what it should be
    "margin": (float, "a number"),
    "split_by": ({"user": "user", "prompt": "prompt"}.__getitem__, "user or prompt"),
    "show_users": ({"true": True, "false": False}.__getitem__, "true or false"),
    "splits": (
        lambda value: tuple((plain(name), OURS[ours]) for name, ours in value.items()),
        "lines of 'name in the data: train, validation or test'",
    ),
    **dict.fromkeys(LABELS, (lambda value: plain(text_of(value)), "a value of the label, or a list of them")),
}


def field_value(name: str, value: Any) -> Any:
    """Return the value of a mapping's field in its type; ValueError says what is wrong with it."""
    if name not in FIELDS:
        raise ValueError(f"unknown field {name!r}; {near_names(name, FIELDS)}")
    read, wanted = KIND_OF.get(name, (text_of, "the name of a column"))
    try:
        if name in LISTS:
            return tuple(map(read, value if isinstance(value, list) else [value]))
        return read(value)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{name}={value!r} should be {wanted}") from None


def check_mapping(mapping: Mapping) -> None:
    """Raise ValueError if the sides and labels of a mapping are not complete or contradict each other."""
    if mapping.split_by == "user" and not mapping.user:
        raise ValueError("split_by: user needs user: the column of who preferred")
    ways = [name for name in ("responses", "response", "ranking") if getattr(mapping, name)]
    others = ways[1:] + sorted(mapping.named & {"chosen", "rejected"})
    if ways and others:
        raise ValueError(f"{others[0]} does not go with {ways[0]}: use either")
    for name in ("responses", "scores"):
        if len(getattr(mapping, name)) not in (0, 2):
            raise ValueError(f"{name}={list(getattr(mapping, name))} should be two columns")
    if mapping.ranking and not (mapping.answer and (mapping.rank or mapping.score)):
        raise ValueError("ranking needs answer, and rank or score: the fields of its items")
    labelled = mapping.response or (mapping.responses and not mapping.scores)
    if not labelled and (given := sorted(mapping.named & {"label", *LABELS})):
        raise ValueError(f"{given[0]} is given, but not responses: [column, column], or response: column")
    for name in ("label", "first", "second") if labelled else ():
        if not getattr(mapping, name):
            said = "a label's column, and its values for each side"
            raise ValueError(f"{ways[0]} {'need' if mapping.responses else 'needs'} {name}: {said}")
    labels = Counter([*mapping.first, *mapping.second, *mapping.tie])
    if labels and labels.most_common(1)[0][1] > 1:
        raise ValueError(f"the label {labels.most_common(1)[0][0]!r} stands for two outcomes")


# --- no mapping: known formats, and proposals ---


def find_mapping(profile: Profile, mapping: Mapping, rows: Sequence[OwnRow]) -> tuple[Mapping, str]:
    """Return the mapping of the rows, and the name and lines of the format they were recognised by.

    Raises DataError if a column is in no row: names it, the near ones, what is there and, where column
    names tell, the mapping that is proposed and written beside the results.
    """
    source = profile.data.path
    readable = [row.value for row in rows if isinstance(row.value, dict)]
    present = list(dict.fromkeys(path for row in readable[:1000] for path in paths_in(row) if path))
    if not present:
        raise DataError(f"{source}: no row can be read; {rows[0].place}: {rows[0].value or 'no field'}")
    implicit = any(all(is_conversation(lookup(row, side)) for side in mapping.sides) for row in readable)
    prompt = () if implicit and "prompt" not in mapping.named else mapping.prompt
    extra = [getattr(mapping, name) for name in OPTIONAL if name in mapping.named]
    wanted = [*prompt, *mapping.needed, *extra]
    lost = [name for name in wanted if all(lookup(row, name) is MISSING for row in readable)]
    if not lost:
        return mapping, ""
    default = lost[0] in Mapping().needed + Mapping().prompt
    near = "" if default else near_names(lost[0], present)
    near = f"; {near}" if near.startswith("did") else "."  # else it lists the columns, as we do
    said = f"{source}: no column {lost[0]!r}{near} Columns there: {', '.join(present)}. "
    if default and not mapping.named & {"prompt", *SIDES}:  # names no text
        for shape in FORMATS["shapes"]:
            if all(any(lookup(row, name) is not MISSING for row in readable[:100]) for name in shape["has"]):
                more = {name: getattr(mapping, name) for name in mapping.named} | {"named": mapping.named}
                known = replace(mapping_of(shape["mapping"]), **more)
                return known, f"{shape['name']}:\n{lines_of(shape['mapping'])}"
        if proposed := propose(readable):
            path, lines = results_dir(profile) / "proposed_mapping.yaml", lines_of(proposed)
            write_text(path, lines + "\n")
            raise DataError(f"{said}They look like this; check it, then add --mapping {path}\n{lines}")
    ways = "Say which is which in a mapping file (--mapping FILE, lines like 'prompt: question'; see DATA.md)"
    raise DataError(said + ways)


def lines_of(content: dict[str, Any]) -> str:
    """Return a mapping as the lines of its file."""
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in content.items())


def words_of(name: Any) -> set[str]:
    """Return the words and numbers of a column's name or of a label."""
    return set(re.findall("\\A-?\\d+\\Z|[a-z]+|\\d+|[\U0001f44d\U0001f44e]", str(name).lower()))


def paths_in(value: Any, before: str = "") -> Iterator[str]:
    """Yield the paths of the columns in a row; of a list of objects that are no messages, the first two."""
    items = value[:2] if isinstance(value, (list, tuple)) else [value]
    nested = items and all(isinstance(item, dict) and item and not LEAF & set(item) for item in items)
    if nested or not before:
        for name, below in value.items() if isinstance(value, dict) else enumerate(items):
            yield from paths_in(below, f"{before}{name}.")
    else:
        yield before[:-1]


def propose(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mapping that the names of columns and the values of labels suggest; {} if they do not."""
    rows = rows[:1000]
    names, taken = list(dict.fromkeys(path for row in rows for path in paths_in(row))), []

    cells = {name: [lookup(row, name) for row in rows] for name in names}
    cells = {name: [cell for cell in of if cell not in (MISSING, None, "")] for name, of in cells.items()}

    def pick(field: str, least: int = 0) -> Any:
        free = [name for name in names if name not in taken and words_of(name) & WORDS[field]]
        taken.append(next((name for name in free if len(set(map(str, cells[name]))) >= least), None))
        return taken[-1]

    def marked(name: str, words: Set[str]) -> list[str]:
        return [value for value in dict.fromkeys(map(plain, cells[name])) if words_of(value) & words]

    found = {"rejected": pick("rejected", LEAST_TEXTS), "chosen": pick("chosen", LEAST_TEXTS)}
    if not all(found.values()):
        twins = [  # names of columns that differ in their mark: a and b, 0 and 1
            (one, two)
            for one, two in itertools.permutations(names, 2)
            if [words_of(one) - words_of(two), words_of(two) - words_of(one)] in TWINS
        ]
        numbers = {name for name in names if all(NUMBER.fullmatch(str(cell)) for cell in cells[name])}
        scores = [pair for pair in twins if {*pair} <= numbers]
        texts = [pair for pair in twins if pair not in scores]
        both = max(texts, key=lambda pair: sum(len(str(cell)) for cell in cells[pair[0]]), default=())
        taken[:] = [name for pair in twins for name in pair]
        found = {"label": pick("label")}
        if both:
            sides = [words_of(one) - words_of(two) for one, two in (both, both[::-1])]
            if not found["label"] and not scores:
                free = (name for name in names if name not in taken)
                found["label"] = next((name for name in free if all(marked(name, s) for s in sides)), None)
            found = {"responses": list(both)} | found
        else:
            found, sides = {"response": pick("response")} | found, [WORDS["up"], WORDS["down"]]
        if both and scores and not found["label"]:
            found = {"responses": list(both), "scores": list(scores[0])}
        elif not all(found.values()):
            return {}
        else:
            ties = marked(found["label"], WORDS["tie"])
            for name, words in zip(("first", "second"), sides, strict=True):
                values = [value for value in marked(found["label"], words) if value not in ties]
                found[name] = values or ["WHICH VALUE?"]
            found |= {"tie": ties} if ties else {}
            taken.append(found["label"])
    prompt, user = pick("prompt") or "WHICH COLUMN?", pick("user")
    return {"prompt": prompt} | dict(sorted(found.items())) | ({"user": user} if user else {})


def user_column(rows: Sequence[OwnRow], mapping: Mapping) -> str:
    """Return a column that the mapping does not use and that may name users, or ""."""
    columns = () if mapping.user else (path for row in rows[:100] for path in paths_in(row.value))
    free = (name for name in columns if name not in (*mapping.prompt, *mapping.needed))
    return next((name for name in free if words_of(name) & WORDS["user"]), "")


# --- messages, and what is written as text: they become plain text ---

Message = tuple[str, str]  # role, content


def messages_in(value: Any, transcript: bool = False) -> list[dict[str, Any]] | None:
    """Return the messages of a value: a list, one message, a text that holds a list, or a transcript.

    None if it holds none. Raises ValueError for a text that begins like a list of messages and is none.
    """
    if isinstance(value, dict) and {"role", "from"} & set(value):
        value = [value]
    if isinstance(value, str) and MESSAGES.match(value):
        value = literal(value)
    if isinstance(value, (list, tuple)):
        return list(value) if value and all(isinstance(message, dict) for message in value) else None
    if transcript and isinstance(value, str) and TURN.match(value):
        _, *parts = TURN.split(value)
        turns = zip(parts[::2], parts[1::2], strict=True)
        return [{"role": role, "content": text.strip()} for role, text in turns if text.strip()] or None
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
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        parts = content if isinstance(content, (list, tuple)) else [content]
        other = [name for name in NOT_TEXT if message.get(name)]
        other += [str(part.get("type")) for part in parts if isinstance(part, dict) and "text" not in part]
        other += [role] if role in ("tool", "function") else []
        if other:
            raise RowError(field, "tool or image", f"message {number} has {', '.join(other)}")
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        if not isinstance(role, str) or not all(isinstance(text, str) for text in texts):
            kinds = ", ".join(f"{name}: {type(one).__name__}" for name, one in message.items())
            raise RowError(field, "messages", f"needed: role and content as text; a message has {kinds}")
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
