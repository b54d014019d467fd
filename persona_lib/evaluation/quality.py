"""Quality of an answer by rule: on the question's subject, finished, without repeats, with some substance.

Each part lies in [0, 1] and ``quality`` is their mean, so that answers have a graded scale with spread. It
reads English answers to everyday questions. It cannot see a wrong fact, bad advice or sentences in the wrong
order: the calibration (``evaluation.calibration``) shows what it finds and what it misses.
"""

from __future__ import annotations

import re

STEM = 5  # letters of a word that count as its stem
COMMON = frozenset(
    """
    about after again also anything because before being best better could does doing dont every from
    getting give going good have help here idea ideas just keep know like little make many more most
    much need never only other over people please really should some something still take tell than that
    their them then there these they thing things think this those time want well were what when where
    which while will with without would your
    """.split()  # noqa: SIM905
)
ENOUGH_WORDS, ENOUGH_STEMS = 20, 3


def stems(text: str) -> set[str]:
    """Return the stems of a text's words of four letters or more, without the commonest."""
    found = re.findall(r"[a-z]{4,}", text.lower().replace("'", "").replace("’", ""))
    return {word[:STEM] for word in found if word not in COMMON}


def on_subject(prompt: str, text: str) -> float:
    """Return how far the answer takes up the question's words: 1 with ENOUGH_STEMS shared stems (or all)."""
    asked = stems(prompt)
    return min(1.0, len(asked & stems(text)) / max(1, min(ENOUGH_STEMS, len(asked))))


def finished(text: str) -> float:
    """Return 1 for a text that ends like a sentence or a list line, 0 for one that breaks off."""
    lines = text.strip().splitlines() or [""]
    listed = re.match(r"\s*(?:\d+[.)]|[-*•])\s", lines[-1])
    return float(
        bool(re.search(r"[.!?)\"”']$", lines[-1]))
        or bool(listed and len(lines) > 2 and len(lines[-1].split()) > 2)
    )


def quality(prompt: str, text: str) -> float:
    """Return the quality of an answer in [0, 1]; 0 for an empty one."""
    from persona_lib.stats.text_metrics import repetition  # needs numpy, which a plan does without

    if not text.strip():
        return 0.0
    substance = min(1.0, len(text.split()) / ENOUGH_WORDS)
    return (on_subject(prompt, text) + finished(text) + 1 - repetition(text.lower()) + substance) / 4
