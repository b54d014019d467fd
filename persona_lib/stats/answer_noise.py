"""What stands in an answer beside the answer: the persona's own words, role marks, lists, template tokens.

A persona that is quoted or named has leaked; marks of the training format are noise. All by rule, no judge.
"""

from __future__ import annotations

import re

from persona_lib.stats.saliency import persona_words

NAMES_PERSONA = re.compile(r"\bthe user (is|prefers|wants|likes|values)\b|\bpersona:", re.IGNORECASE)
ROLE = r"(human|assistant|user|prompt|response)\s*:"
ROLE_START = re.compile(rf"\A\s*{ROLE}", re.IGNORECASE)
ROLE_INSIDE = re.compile(rf"\S\s*\n\s*{ROLE}", re.IGNORECASE)
LIST = re.compile(r"(^|\s)1[.)]\s.*\s2[.)]\s|^\s*[-*\u2022]\s.*\n\s*[-*\u2022]\s", re.DOTALL | re.MULTILINE)
TEMPLATE = re.compile(r"<\|\w+\|>|\[/?INST\]|</?s>|<(start|end)_of_turn>|###")
MARKS = {
    "names_persona": NAMES_PERSONA,
    "role_start": ROLE_START,
    "role_inside": ROLE_INSIDE,
    "list": LIST,
    "template": TEMPLATE,
}


def grams(text: str, n: int = 3) -> set[tuple[str, ...]]:
    """Return the n-grams of a text's lower-cased words; hyphenated words stay whole."""
    words = persona_words(text)
    return set(zip(*(words[i:] for i in range(n)), strict=False))


def copies_persona(answer: str, persona: str, prompt: str, n: int = 3) -> bool:
    """Say whether an answer holds an n-gram of the persona that the prompt does not hold."""
    return bool(grams(answer, n) & (grams(persona, n) - grams(prompt, n)))


def marks(answer: str) -> dict[str, bool]:
    """Say which marks an answer has: names a persona, begins with or holds a role, lists, template tokens."""
    return {name: rule.search(answer) is not None for name, rule in MARKS.items()}
