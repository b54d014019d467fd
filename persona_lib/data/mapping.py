"""The mapping of a user's own data: which columns mean what, known formats, and messages as plain text."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from persona_lib.data.rows import OwnRow
from persona_lib.records import PAIR_SPLITS, DataError
from persona_lib.settings import Profile, check_name, results_dir
from persona_lib.store import facts, write_text

SPLITS = {name: name for name in PAIR_SPLITS} | dict.fromkeys(("dev", "val", "valid", "eval"), "validation")
MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]""")  # messages written as text
TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant|User|System):[ \t]*")  # of a transcript
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
LEAF = {"role", "from", "value"}  # fields of a message, or of an annotator's answer
NOT_TEXT = {"tool_calls", "function_call", "audio", "images"}  # fields of a message
FORMATS = facts("own_formats")
TWINS = [[{one}, {two}] for one, two in FORMATS["twins"]]  # marks of two columns that belong together
NUMBER = re.compile(r"\s*-?\d+(\.\d+)?\s*")
WORDS = {name: frozenset(words.split()) for name, words in FORMATS["words"].items()}
MISSING = object()


class RowError(ValueError):
    """A row that is left out; its arguments are the field, the code of the finding and a detail."""


# --- the mapping: which columns mean what ---


@dataclass(frozen=True)
class Mapping:
    """Names of columns, and what their values mean: a YAML file of "field: column" lines (DATA.md has them).

    A column may be a path into nested values ("answers.0.text"). The columns ``named`` have to be there.
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
    category: str = ""  # may be named, and is not used
    split: str = "split"
    splits: dict[str, str] = field(default_factory=SPLITS.copy)
    config: str = ""
    encoding: str = ""
    user: str = ""
    persona_chosen: str = ""
    persona_rejected: str = ""
    reason: str = ""
    split_by: str = ""
    show_users: bool = False
    named: frozenset[str] = frozenset()

    @property
    def sides(self) -> tuple[str, ...]:
        """The columns of the responses."""
        one = self.ranking or self.response
        return (one,) if one else self.responses or (self.chosen, self.rejected)

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that every row has to have, but for the prompt's."""
        return (*self.sides, *filter(None, [self.label]), *self.scores)


LABELS = ("first", "second", "tie")
LISTS = ("responses", "scores", "prompt", *LABELS)  # fields that may have several values
OPTIONAL = ("id", "category", "split", "user", "persona_chosen", "persona_rejected", "reason")  # columns
FIELDS = [one.name for one in fields(Mapping) if one.name != "named"]
WAYS = {  # field that says where the responses are -> fields that go with it
    "responses": {"responses", "label", "scores", *LABELS},
    "response": {"response", "label", *LABELS},
    "ranking": {"ranking", "answer", "rank", "score"},
    "chosen": {"chosen", "rejected", "scores"},
}


def lookup(value: Any, path: str) -> Any:
    """Return what stands at a path of names and places from 0 joined by dots, or MISSING."""
    if isinstance(value, (list, tuple)):
        value = {str(place): item for place, item in enumerate(value)}
    if not isinstance(value, dict):
        return MISSING
    head, _, rest = path.partition(".")
    if path in value or not rest:  # a name may hold dots itself
        return value.get(path, MISSING)
    return lookup(value.get(head), rest)


def plain(value: Any) -> str:
    """Return a label, split or id as text (0, 0.0 and "0 " are the same); of several annotators, all."""
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
        said = " ".join(str(error).split())  # YAML's has lines
        if isinstance(error, OSError):
            said = f"{error.strerror} (paths are relative to the repository)"
        raise DataError(f"{path}: no mapping file: {said}") from error


def mapping_of(content: dict[str, Any]) -> Mapping:
    """Return the mapping that a file's lines describe; ValueError says what is wrong with them."""
    content = {"persona_chosen" if name == "persona" else name: value for name, value in content.items()}
    found = {name: field_value(name, value) for name, value in content.items()}
    mapping = Mapping(**found, named=frozenset(found))
    check_mapping(mapping)
    return mapping


def field_value(name: str, value: Any) -> Any:
    """Return the value of a mapping's field in its type; ValueError says what is wrong with it."""
    check_name(name, FIELDS, "unknown field")
    if "WHICH " in str(value):
        raise ValueError(f"{name}: write your column or values in place of {value!r}")
    several = value if name in LISTS and isinstance(value, list) else [value]
    fewest, most = {"responses": (2, 99), "scores": (2, 2), "tie": (0, 99)}.get(name, (1, 99))
    match name, value:
        case "splits", dict() if all(ours in PAIR_SPLITS for ours in value.values()):
            return {plain(theirs): ours for theirs, ours in value.items()}
        case "margin", str() if NUMBER.fullmatch(value):
            return float(value)
        case "show_users", "true" | "false":
            return value == "true"
        case "split_by", "user" | "prompt":
            return value
        case (("splits" | "margin" | "show_users" | "split_by"), _):
            pass
        case _ if fewest <= len(several) <= most and all(isinstance(one, str) and one for one in several):
            return tuple(plain(one) if name in LABELS else one for one in several) if name in LISTS else value
    raise ValueError(f"{name}={value!r} is not what this field may be: see its line in DATA.md")


def check_mapping(mapping: Mapping) -> None:
    """Raise ValueError if the sides and labels of a mapping are not complete or contradict each other."""
    way = next(name for name in ("responses", "response", "ranking", "chosen") if getattr(mapping, name))
    if others := sorted(mapping.named & set().union(*WAYS.values()) - WAYS[way]):
        raise ValueError(f"{others[0]} does not go with {way}: DATA.md says what goes together")
    if way == "ranking" and not (mapping.answer and (mapping.rank or mapping.score)):
        raise ValueError("ranking needs answer, and rank or score: the fields of its items")
    many, labelled = len(mapping.responses) > 2, way in ("response", "responses") and not mapping.scores
    if many and (mapping.scores or mapping.first or mapping.second):
        raise ValueError("more than two responses need a label that names the best one's column, or its end")
    needs = ("label",) if many else ("label", "first", "second")
    if lack := [name for name in needs if labelled and not getattr(mapping, name)]:
        raise ValueError(f"{way} without {lack[0]}: a label's column and its values for each side are needed")
    if mapping.split_by == "user" and not mapping.user:
        raise ValueError("split_by: user needs user: the column of who preferred")
    labels = [*mapping.first, *mapping.second, *mapping.tie]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"the label {twice[0]!r} stands for two outcomes")


# --- no mapping: formats that are known (facts/own_formats.yaml), and proposals by the names of columns ---


def find_mapping(profile: Profile, mapping: Mapping, rows: Sequence[OwnRow]) -> tuple[Mapping, str]:
    """Return the mapping of the rows, and the name and lines of the format they were recognised by.

    DataError names a column that is in no row, those there are, and the mapping that is proposed, if any.
    """
    source, readable = profile.data.path, [row.value for row in rows if isinstance(row.value, dict)]
    present = list(dict.fromkeys(path for row in readable[:1000] for path in paths_in(row)))
    if not present:
        raise DataError(f"{source}: no row can be read; {rows[0].place}: {rows[0].value or 'no field'}")
    talks = ([messages_in(lookup(row, side), transcript=True) for side in mapping.sides] for row in readable)
    implicit = any(map(all, talks))
    texts = [*(() if implicit and "prompt" not in mapping.named else mapping.prompt), *mapping.needed]
    wanted = texts + [getattr(mapping, name) for name in OPTIONAL if name in mapping.named]
    lost = [name for name in wanted if all(lookup(row, name) is MISSING for row in readable)]
    if not lost:
        return mapping, ""
    said = f"{source}: no column {lost[0]!r}. Columns there: {', '.join(present)}. "
    if lost[0] in texts and not mapping.named & {"prompt", *set().union(*WAYS.values())}:  # names no text
        for shape in FORMATS["shapes"]:
            if all(any(lookup(row, name) is not MISSING for row in readable[:100]) for name in shape["has"]):
                more = {name: getattr(mapping, name) for name in mapping.named} | {"named": mapping.named}
                known = replace(mapping_of(shape["mapping"]), **more)
                return known, f"{shape['name']}:\n{lines_of(shape['mapping'])}"
        if proposed := propose(readable[:1000], present):
            path, lines = results_dir(profile) / "proposed_mapping.yaml", lines_of(proposed)
            write_text(path, lines + "\n")
            raise DataError(f"{said}They look like this; check it, then add --mapping {path}\n{lines}")
    ways = "A row needs a prompt and two responses, or one with a label: say in --mapping FILE (lines like"
    raise DataError(f"{said}{ways} 'prompt: question'; see DATA.md) which column is which")


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


def propose(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Return the mapping that the names of columns and the values of labels suggest; {} if they do not."""
    cells = {name: [lookup(row, name) for row in rows] for name in names}
    cells = {name: [cell for cell in of if cell not in (MISSING, None, "")] for name, of in cells.items()}
    taken: list[str] = []

    def pick(field: str) -> str:
        free = (name for name in names if name not in taken and words_of(name) & WORDS[field])
        taken.append(next(free, ""))
        return taken[-1]

    found: dict[str, Any] = {name: pick(name) for name in ("rejected", "chosen")}
    if not all(found.values()):
        marks_of = {(a, b): [words_of(a) - words_of(b), words_of(b) - words_of(a)]
                    for a, b in itertools.permutations(names, 2)}  # fmt: skip
        twins = [pair for pair, marks in marks_of.items() if marks in TWINS]  # as a and b, 0 and 1
        numbers = {name for name in names if all(NUMBER.fullmatch(str(cell)) for cell in cells[name])}
        scores = next((pair for pair in twins if {*pair} <= numbers), None)
        texts = [pair for pair in twins if not {*pair} <= numbers]
        taken[:] = [name for pair in twins for name in pair]
        if texts:
            one, two = max(texts, key=lambda pair: sum(len(str(cell)) for cell in cells[pair[0]]))
            marks = marks_of[one, two]
            found, label = {"responses": [one, two]}, pick("label")
        else:  # one response in a row, with a thumb
            marks = [set(WORDS["up"]), set(WORDS["down"])]
            found, label = {"response": pick("response")}, pick("label")
            if not (found["response"] and label):
                return {}
        if scores and texts and not label:
            found["scores"] = list(scores)
        else:
            found["label"] = label or "WHICH COLUMN?"
            labels = cells[label] if label else []
            shown = {plain(one): one.strip() if isinstance(one, str) else plain(one) for one in labels}
            values = list(shown.values())
            outcomes = {"tie": WORDS["tie"], "first": marks[0], "second": marks[1]}
            told = {name: [one for one in values if words_of(one) & of] for name, of in outcomes.items()}
            left = {*values} - set().union(*map(set, told.values()))
            sure = not any(map(NUMBER.fullmatch, left))  # of 0, 1 and 2 each might mean either side
            for name, of in told.items():
                if name != "tie" or (of and sure):
                    found[name] = of if of and sure else ["WHICH VALUE?", *(() if sure else values[:9])]
    prompt, user = pick("prompt") or "WHICH COLUMN?", pick("user")
    return {"prompt": prompt} | dict(sorted(found.items())) | ({"user": user} if user else {})


def unused(rows: Sequence[OwnRow], mapping: Mapping) -> str:
    """Name the columns that the mapping does not use, and one that may name users; "" if there is none."""
    used = {*mapping.prompt, *mapping.needed, *(getattr(mapping, name) for name in OPTIONAL)}
    columns = dict.fromkeys(path for row in rows[:100] for path in paths_in(row.value))
    left = [name for name in columns if not any(f"{name}.".startswith(f"{one}.") for one in used)]
    if not left:
        return ""
    user = next((name for name in left if words_of(name) & WORDS["user"]), "")
    hint = f"; a mapping file (--mapping FILE) with the line 'user: {user}' gives each user a persona"
    return f"not used: {', '.join(left)}" + (hint if user and not mapping.user else "")


# --- messages (role, content), and what is written as text: they become plain text ---


def messages_in(value: Any, transcript: bool = False) -> list[dict[str, Any]]:
    """Return the messages of a value: a list, one message, a text that holds a list, or a transcript."""
    if isinstance(value, dict) and {"role", "from"} & set(value):
        value = [value]
    if isinstance(value, str) and MESSAGES.match(value):
        value = literal(value)
    if transcript and isinstance(value, str) and TURN.match(value):
        _, *parts = TURN.split(value)
        turns = zip(parts[::2], parts[1::2], strict=True)
        value = [{"role": role, "content": text.strip()} for role, text in turns if text.strip()]
    messages = isinstance(value, (list, tuple)) and all(isinstance(message, dict) for message in value)
    return list(value) if messages else []


def literal(text: str) -> Any:
    """Return the value of JSON, a Python literal or a list as numpy prints it; a mark of others."""
    text = re.sub(r"\}\s*\n\s*\{", "}, {", text.strip())
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    return [{"a text that cannot be parsed": text}]  # `read_messages` names it


def read_messages(value: Any, field: str, transcript: bool = False) -> list[tuple[str, str]]:
    """Return the messages of one field, [] for none; RowError for a tool's call, an image and the like."""
    found = []
    for message in messages_in(value, transcript):
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        parts = content if isinstance(content, (list, tuple)) else [content]
        texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in parts]
        other = [name for name in NOT_TEXT if message.get(name)]
        other += [str(part.get("type")) for part in parts if isinstance(part, dict) and "text" not in part]
        if other or role in ("tool", "function"):
            raise RowError(field, "tool or image", f"a message has {', '.join(other) or f'the role {role}'}")
        if not isinstance(role, str) or not all(isinstance(text, str) for text in texts):
            kinds = ", ".join(f"{name}: {type(one).__name__}" for name, one in message.items())
            raise RowError(field, "messages", f"needed: role and content as text; a message has {kinds}")
        found.append((ROLES.get(role.lower(), role.lower()), "\n".join(texts)))
    return found


def render(messages: list[tuple[str, str]]) -> str:
    """Write the messages before a response as text: one user message as it is, several with their roles."""
    messages = [(role, content) for role, content in messages if content.strip()]
    if [role for role, _ in messages] == ["user"]:
        return messages[0][1]
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in messages)


def conversation_texts(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Return (prompt, chosen, rejected) as text where they are messages; other values stay as they are.

    ``prompt`` None means that it is the common beginning of the two responses. A prompt that is text may be
    repeated at the head of the responses' messages; a response is one assistant message.
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
    return (render(asked) if asked else prompt), texts[0], texts[1]
