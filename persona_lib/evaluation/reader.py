"""The reader of answers (``oracle``): which value of an ``everyday`` dimension a text shows, by rule.

Rules read what a small model really writes: word counts, list lines, contractions, figures with units, closing
questions, and families of words. They see one text and nothing else: not the persona, not the policy, not the
other answer. A text that shows neither value, or both alike, shows None. How often they are right, on written
and on generated answers, stands in ``figures/published/reader.csv``.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from persona_lib.data.everyday import DIMENSIONS, Wish, wishes

BRIEF_WORDS, THOROUGH_WORDS = 36, 48  # up to, from
LIST_LINE = re.compile(r"(?m)^\s*(?:\d{1,2}[.):]|[-*•])\s+\S")
SENTENCE = re.compile(r"(?<=[.!?])\s+")
QUESTION_TO_USER = re.compile(r"\b(you|your|yours|it|its|they|there|any)\b", re.I)


def words(text: str) -> list[str]:
    """Return the lower-case words of a text."""
    return re.findall(r"[a-z]+(?:['’][a-z]+)?", text.lower())


def balance(first: float, second: float, values: tuple[str, str], margin: float = 1) -> str | None:
    """Return the value with more evidence, None if the difference is below ``margin``."""
    if abs(first - second) < margin:
        return None
    return values[0] if first > second else values[1]


def family(pattern: str) -> re.Pattern[str]:
    """Compile a family of words and phrases, matched at word boundaries."""
    return re.compile(rf"\b(?:{pattern})\b", re.I)


def read_length(text: str) -> str | None:
    """Brief up to BRIEF_WORDS words, thorough from THOROUGH_WORDS on."""
    n = len(text.split())
    return "brief" if n <= BRIEF_WORDS else "thorough" if n >= THOROUGH_WORDS else None


def read_format(text: str) -> str | None:
    """Steps are two numbered or bulleted lines or more."""
    return "steps" if len(LIST_LINE.findall(text)) >= 2 else "prose"
