"""Personas without a language model: what can be counted in two responses, said as who would like which.

This is not the paper's persona inference. It sees length, lists, numbers and tone, and nothing of what a
response says. It stands in where no model at hand can infer a persona, so that own data runs offline; results
with it are about such surface wishes only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

NAME = "surface"
LEAST = 0.3  # of a log ratio of counts: a third more is a difference
Measure = Callable[[str], float]


def counter(pattern: str, flags: int = re.IGNORECASE | re.MULTILINE) -> Measure:
    """Return a measure: how often a pattern occurs."""
    compiled = re.compile(pattern, flags)
    return lambda text: float(len(compiled.findall(text)))


# what is counted -> (measure, who likes more of it, who likes less of it), each (attribute, explanation)
FEATURES: dict[str, tuple[Measure, tuple[str, str], tuple[str, str]]] = {
    "words": (
        counter(r"\S+"),
        ("thorough", "long, detailed answers"),
        ("busy", "short, direct answers"),
    ),
    "list items": (
        counter(r"^\s*(?:[-*\u2022]|\d+[.)])\s"),
        ("organized", "answers laid out as a list of points"),
        ("easygoing", "answers in flowing sentences"),
    ),
    "numbers": (
        counter(r"(?<![\w.])\d+(?:[.,]\d+)?(?![.)]\s)"),
        ("exact", "answers with figures and amounts"),
        ("relaxed", "answers without figures"),
    ),
    "examples": (
        counter(r"\b(?:for example|for instance|such as|e\.g\.)"),
        ("practical", "answers with examples"),
        ("focused", "answers that keep to the point"),
    ),
    "hedges": (
        counter(r"\b(?:may|might|could|perhaps|possibly|usually|depends)\b"),
        ("careful", "answers that say what is uncertain"),
        ("decisive", "answers that commit themselves"),
    ),
    "warmth": (
        counter(r"!|\b(?:sorry|glad|happy|great|thanks|thank you|please|enjoy)\b"),
        ("warm", "answers in a friendly tone"),
        ("sober", "answers in a neutral tone"),
    ),
    "questions": (
        counter(r"\?"),
        ("talkative", "answers that ask back"),
        ("independent", "answers that ask nothing back"),
    ),
}


def differences(preferred: str, other: str) -> list[tuple[float, str]]:
    """Return (log ratio of counts, feature) from the largest difference to the smallest."""
    found = [(math.log((measure(preferred) + 1) / (measure(other) + 1)), name)
             for name, (measure, _, _) in FEATURES.items()]  # fmt: skip
    large = [pair for pair in found if abs(pair[0]) >= LEAST]
    return sorted(large, key=lambda pair: (-abs(pair[0]), pair[1]))


def surface_persona(preferred: str, other: str) -> str:
    """Return a persona from the one or two largest differences; "" if nothing that is counted differs."""
    said = [FEATURES[name][1 if ratio > 0 else 2] for ratio, name in differences(preferred, other)[:2]]
    if not said:
        return ""
    return f"The user is {said[0][0]} and prefers {', and '.join(phrase for _, phrase in said)}."


class SurfaceGenerator:
    """Writes personas by rule. It is asked about pairs, not prompts: `write` takes the two responses."""

    name = NAME
    settings: dict[str, Any] = {"model": NAME}

    def write(self, items: Sequence[tuple[str, str, str]]) -> list[str]:
        """Return a persona for each (prompt, preferred, other)."""
        return [surface_persona(preferred, other) for _, preferred, other in items]
