"""TRL's conversational format: lists of {"role", "content"} messages become plain text.

A single user message is its content. Several messages before the response are written one below the other,
each after its role ("System: ...", "User: ...", "Assistant: ..."), with a blank line between. A response is
one assistant message. Without a prompt column the prompt is what both conversations begin with, as in TRL.
"""

from __future__ import annotations

from typing import Any

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
