"""A user's own preference data (``--data FILE``): read, validated and split, with an account of every row.

Rows of a file, a folder or a hub id become pairs; what is wrong with a row is a `Finding` with a code of
REJECTED (the row is left out) or NOTED (it is kept).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import json
import math
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from persona_lib.data.retrieval import normal
from persona_lib.data.rows import KINDS, REJECTED, Finding, OwnRow, read_rows, source_key
from persona_lib.data.splits import assign_splits, between_splits, check_splits
from persona_lib.records import HISTORY, PAIR_FIELDS, PAIR_SPLITS, DataError, PreferencePair
from persona_lib.settings import FACTS, ConfigError, Profile, near_names, results_dir
from persona_lib.store import VERSIONS, content_hash, file_hash, write_text

if TYPE_CHECKING:
    import pandas as pd

NAME = "own"  # the data set's name in profiles and results
READ = 2  # raised when the same file gives other pairs or splits
OURS = {name: name for name in PAIR_SPLITS}
SPLIT_NAMES = OURS | dict.fromkeys(("dev", "val", "valid", "eval"), "validation")
LEAST_PROMPTS = 20  # different prompts without which there is nothing to train and test on
BROKEN_TEXT = {
    "lost characters": re.compile("[\ufffd\ud800-\udfff]"),
    "control character": re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
}
MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]""")  # messages written as text
TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant|User|System):[ \t]*")  # of a transcript
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
NOT_TEXT = ("tool_calls", "function_call", "audio", "images")  # fields of a message
FORMATS = yaml.safe_load((FACTS / "own_formats.yaml").read_text(encoding="utf-8"))
WORDS = {field: frozenset(words.split()) for field, words in FORMATS["words"].items()}
ODD = {code: re.compile(pattern) for code, pattern in FORMATS["odd"].items()}
SECRET = ("e-mail", "phone", "key")  # findings that show the beginning alone
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
    implicit = any(all(is_conversation(lookup(row, side)) for side in mapping.sides) for row in readable)
    prompt = () if implicit and "prompt" not in mapping.named else mapping.prompt
    extra = [getattr(mapping, name) for name in OPTIONAL if name in mapping.named]
    wanted = [*prompt, *mapping.needed, *extra]
    lost = [name for name in wanted if not is_there(readable, name)]
    if not lost:
        return mapping, ""
    default = lost[0] in Mapping().needed + Mapping().prompt
    near = "." if default else f"; {near_names(lost[0], present)}"
    said = f"{source}: no column {lost[0]!r}{near} Columns there: {', '.join(present)}. "
    if not profile.data.mapping:
        for shape in FORMATS["shapes"]:
            if all(is_there(readable[:100], column) for column in shape["has"]):
                return mapping_of(shape["mapping"]), f"{shape['name']}:\n{lines_of(shape['mapping'])}"
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
        found = {"label": pick("label"), "response": pick("response")}
        found |= {"first": WORDS["up"], "second": WORDS["down"]}
        if other := pick("response"):  # two responses: what tells their names apart is in the label
            both = found.pop("response"), other
            first, second = map(words_of, both)
            found |= {"responses": both, "first": first - second, "second": second - first}
        if not all(found.values()):
            return {}
        values = dict.fromkeys(plain(row[found["label"]]) for row in rows if found["label"] in row)
        ties = [value for value in values if words_of(value) & WORDS["tie"]]
        for name in ("first", "second"):
            marked = [value for value in values if value not in ties and words_of(value) & found[name]]
            found[name] = marked or ["WHICH VALUE?"]
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


# --- one row becomes a pair, or says why it is none ---

Side = tuple[str, Any]  # a response's column and value


def check_text(column: str, value: Any) -> None:
    """Raise RowError for a value that is unusable by itself."""
    if value is None:
        raise RowError(column, "null")
    if not isinstance(value, str):
        raise RowError(column, "not text", f"{type(value).__name__}: {str(value)[:60]}")
    if not value.strip():
        raise RowError(column, "empty")
    for code, pattern in BROKEN_TEXT.items():
        if match := pattern.search(value):
            raise RowError(column, code, excerpt(match))


def excerpt(match: re.Match[str]) -> str:
    """Return what stands around a match, escaped so that what cannot be printed is seen."""
    return ascii(match.string[max(0, match.start() - 15) : match.end() + 15])


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


def ranked(values: dict[str, Any], mapping: Mapping) -> tuple[list[Any], list[float]]:
    """Return the answers of a ranking, and numbers of which the highest is best."""
    answers, order = lookup(values, mapping.ranking), mapping.rank or mapping.score
    found = [[lookup(one, path) for path in (mapping.answer, order)] for one in answers or ()]
    if len(found) < 2 or any(MISSING in one for one in found):
        said = f"it needs two answers or more, each with {mapping.answer} and {order}"
        raise RowError(mapping.ranking, "ranking", said)
    sign = -1 if mapping.rank else 1
    return [text for text, _ in found], [sign * number_of(order, number) for _, number in found]


def sides_of(values: dict[str, Any], mapping: Mapping) -> tuple[Side, Side]:
    """Return the best and the worst response, the later of equally bad ones; RowError for a tie."""
    sides = [(column, lookup(values, column)) for column in (mapping.sides * 2)[:2]]
    orders, decided = [1.0, 0.0], mapping.label
    if mapping.ranking:
        texts, orders = ranked(values, mapping)
        sides, decided = [(mapping.ranking, text) for text in texts], mapping.rank or mapping.score
    elif mapping.scores:
        decided = mapping.scores[0]
        orders = [number_of(column, lookup(values, column)) for column in mapping.scores]
    elif mapping.responses and not is_first(values, mapping):
        orders = [0.0, 1.0]
    places = range(len(orders))
    best, worst = max(places, key=lambda n: (orders[n], -n)), max(places, key=lambda n: (-orders[n], n))
    apart = orders[best] - orders[worst]
    if apart == 0 or apart < mapping.margin or (best and mapping.scores and not mapping.responses):
        raise RowError(decided, "tie", f"{orders}"[:60])
    return sides[best], sides[worst]


def prompt_of(values: dict[str, Any], mapping: Mapping) -> Any:
    """Return a row's prompt: of several columns, those that hold text below each other."""
    given = [lookup(values, column) for column in mapping.prompt]
    if len(given) == 1 or all(value is MISSING for value in given):
        return given[0]
    given = [value for value in given if value is not MISSING]
    if other := [value for value in given if not isinstance(value, (str, type(None)))]:
        raise RowError(" + ".join(mapping.prompt), "not text", f"{type(other[0]).__name__}"[:60])
    return "\n\n".join(text.strip() for text in given if text and text.strip())


def texts_of(values: dict[str, Any], mapping: Mapping) -> dict[str, str]:
    """Return prompt, chosen and rejected of a row as text; RowError says what is wrong."""
    prompt = prompt_of(values, mapping)
    lost = [column for column in mapping.needed if lookup(values, column) is MISSING]
    if not lost and prompt is MISSING:
        inside = all(is_conversation(lookup(values, side)) for side in mapping.sides)
        lost = [] if inside and "prompt" not in mapping.named else list(mapping.prompt)
    if lost:
        raise RowError(lost[0], "missing", f"it has {', '.join(map(str, values)) or 'nothing'}")
    (good, chosen), (bad, rejected) = sides_of(values, mapping)
    columns = dict(zip(PAIR_FIELDS, (" + ".join(mapping.prompt), good, bad), strict=True))
    try:
        found = conversation_texts(None if prompt is MISSING else prompt, chosen, rejected)
    except RowError as error:
        field, *said = error.args
        raise RowError(columns[field], *said) from error
    texts = dict(zip(PAIR_FIELDS, found, strict=True))
    for field, text in texts.items():
        check_text(columns[field], text)
    if texts["chosen"].strip() == texts["rejected"].strip() and not mapping.response:
        raise RowError(bad, "identical")
    return texts


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


def read_pair(row: OwnRow, mapping: Mapping, salt: bytes = b"") -> OwnRow:
    """Return a row with its pair, split and category; RowError says why it makes none.

    An unpaired thumb has one side only (`join_thumbs`). Without a ``salt`` users are shown as they are.
    """
    if not isinstance(row.value, dict):
        raise RowError("row", "unreadable", str(row.value))
    split, texts = split_of(row, mapping), texts_of(row.value, mapping)
    if mapping.response:
        texts["rejected" if is_first(row.value, mapping) else "chosen"] = ""
    for name in ("persona_chosen", "persona_rejected"):
        texts[name] = optional(row, getattr(mapping, name))
        if texts[name]:
            check_text(getattr(mapping, name), texts[name])
    user = optional(row, mapping.user)
    if mapping.user and not user:
        raise RowError(mapping.user, "user")
    if user and salt:
        user = hashlib.blake2b(user.encode("utf-8", "replace"), key=salt, digest_size=6).hexdigest()
    pair = PreferencePair(optional(row, mapping.id) or f"{NAME}-{row.row:06d}", user=user, **texts)
    return replace(row, value=None, pair=pair, split=split, category=optional(row, mapping.category))


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
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()


def odd_texts(own: OwnRow) -> Iterator[Finding]:
    """Yield what a reader should know about the texts of a row that is kept."""
    for field, (code, pattern) in itertools.product(PAIR_FIELDS, ODD.items()):
        if match := pattern.search(getattr(own.pair, field)):
            yield own.found(field, code, f"{match[0][:4]}..." if code in SECRET else excerpt(match))


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
        found = {finding.row: finding for finding in reversed(self.findings) if finding.rejected}
        return dict(sorted(found.items()))

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
            pairs.append(read_pair(row, mapping, salt))
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
    findings += between_splits(rows, threshold) if split else []
    findings.sort(key=lambda found: found.row)
    return OwnData(source, len(raw), tuple(rows), tuple(findings), split, how, shape)


def check_enough(source: str, pairs: Sequence[OwnRow], findings: Sequence[Finding]) -> None:
    """Raise DataError if there are too few prompts to train and to test on; says what became of the rows."""
    prompts = len({normal(pair.pair.prompt) for pair in pairs})
    if prompts < LEAST_PROMPTS:
        rejected = [finding for finding in findings if finding.rejected]
        said = counted(f"{f.code} ({f.field})" for f in rejected) or "none"
        first = "".join(f"; first: {f.place}, {f.field}: {f.code} {f.detail}".rstrip() for f in rejected[:1])
        ways = "".join(f". {code}: {REJECTED[code][1]}" for code in dict.fromkeys(f.code for f in rejected))
        raise DataError(
            f"{source}: {len(pairs)} usable pairs with {prompts} different prompts; at least {LEAST_PROMPTS} "
            f"prompts are needed. Rows rejected: {said}{first}{ways}"
        )


# --- what is said about them ---


def finding_table(data: OwnData) -> pd.DataFrame:
    """Return a line per finding: row, place, field, code, whether the row was rejected, detail."""
    import pandas as pd

    first = data.rejected
    lines = [asdict(f) | {"outcome": "rejected" if f.row in first else "kept"} for f in data.findings]
    return pd.DataFrame(lines, columns=["row", "place", "field", "code", "outcome", "detail"])


def account(data: OwnData) -> dict[str, int]:
    """Return the account of the rows: read, usable, rejected by reason; all but the first add up to it."""
    reasons = Counter(finding.code for finding in data.rejected.values())
    return {"read": data.n_read, "usable": len(data.rows)} | dict(reasons.most_common())


def describe(data: OwnData) -> list[str]:
    """Say in a few lines what was read, what was left out and why, and how it was split."""
    reasons = counted(finding.code for finding in data.rejected.values())
    noted = counted(finding.code for finding in data.findings if not finding.rejected)
    sizes = {split: len(part) for split, part in data.pairs().items()}
    how = "as given" if data.given_splits else "by prompt, near duplicates together"
    how = "by user and by prompt" if HISTORY in sizes and not data.given_splits else how
    name = Path(data.source).name if Path(data.source).expanduser().exists() else data.source
    read = f"{name}: {data.n_read} rows read, {len(data.rows)} usable, {len(data.rejected)} rejected"
    lines = [
        read + (f" ({reasons})" if reasons else ""),
        f"splits {how}: {', '.join(f'{split} {n}' for split, n in sizes.items())}",
        *describe_users(data),
        data.how and f"read {data.how}",
        data.shape and f"recognised as {data.shape}",
        noted and f"noted: {noted}",
    ]
    return list(filter(None, lines))


def describe_users(data: OwnData) -> list[str]:
    """Say how many users there are, who of them is evaluated, and what the split by user cost."""
    users = {split: Counter(pair.user for pair in part) for split, part in data.pairs().items()}
    if not (everybody := set().union(*users.values()) - {""}):
        return []
    old = {user: n for user, n in users["test"].items() if user in users["train"]}
    seen, history = sum(old.values()), users.get(HISTORY, Counter()).total()
    said = [
        f"users: {len(everybody)}; evaluated: {users['test'].total() - seen} pairs of "
        f"{len(users['test']) - len(old)} users who are not in training (unseen), "
        f"{seen} pairs of {len(old)} who are (seen)"
    ]
    cost = f"cost of the split by user: {history} pairs of unseen users serve for their persona only"
    return [*said, f"{cost}; no question is in two of train, validation and test"] if history else said


def counted(codes: Iterable[str]) -> str:
    """Return how often each code occurs, the most frequent first: "3 tie, 1 empty"."""
    return ", ".join(f"{count} {code}" for code, count in Counter(codes).most_common())
