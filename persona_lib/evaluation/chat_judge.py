"""Any chat model as a judge, with a prompt of ours: it gives a reason and then its verdict, as JSON.

Where the server can hold its answer to a schema it is asked to; where it cannot, the same prompt asks for
the same JSON, and what comes is read strictly. An answer that names no winner, or two, stays unparsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from persona_lib.prompts import chat_judge_prompt
from persona_lib.records import Judgment, PairwiseComparison, Rubric

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "winner": {"type": "string", "enum": ["A", "B"]}},
    "required": ["reason", "winner"],  # in this order: the reason is written first
    "additionalProperties": False,
}
# What counts besides JSON: a last line "winner: A", or an answer that is a letter and nothing else.
LAST_LINE = re.compile(r"(?:^|\n)\W*winner\W+([AB])\W*$", re.IGNORECASE)
LETTER = re.compile(r"\W*([AB])\W*")


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in a text, whatever stands around them; what is cut off is left out."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            found, at = decoder.raw_decode(text, at)
            yield found
        except json.JSONDecodeError:
            at += 1
        at = text.find("{", at)


def parse_choice(text: str) -> str | None:
    """Read the one winner, "A" or "B", that an answer names; None if there is none, or if there are two."""
    named = [found["winner"] for found in json_objects(text) if "winner" in found]
    if not named:
        match = LAST_LINE.search(text.strip()) or LETTER.fullmatch(text.strip())
        return match[1].upper() if match else None
    return named[0] if named[0] in ("A", "B") and all(winner == named[0] for winner in named) else None


def chat_judge(
    generator: Any, max_new_tokens: int, asked: Callable[[str], str] = str
) -> Callable[[Sequence[PairwiseComparison], Rubric], list[Judgment]]:
    """Return a judge (see ``judge``) that asks a chat model, greedily, for a reason and a winner.

    ``asked`` frames the prompt, for a model that is loaded here. A generator that ``takes_schema`` gets ours.
    """
    structured = {"schema": SCHEMA} if getattr(generator, "takes_schema", False) else {}

    def judge(comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> list[Judgment]:
        prompts = [
            asked(chat_judge_prompt(rubric, c.prompt, c.persona, c.response_a, c.response_b))
            for c in comparisons
        ]
        answers = dict(generator.generate(prompts, max_new_tokens, (), **structured))
        return [
            Judgment(c.id, generator.name, rubric, parse_choice(answers[n].text), feedback=answers[n].text)
            for n, c in enumerate(comparisons)
        ]

    return judge
