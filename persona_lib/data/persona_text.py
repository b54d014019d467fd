"""What a persona's text tells about itself: whether it is one, and whether it names the other response.

A persona begins with "The user". The annotator's refusals and error messages were kept as personas in the
official data and are none (paper section 3). Most gold personas are contrastive: they also say what their
user does not want, "rather than ...", which is the response that the persona was inferred against.
"""

from __future__ import annotations

import re

REFUSAL = re.compile(r"^(i'?m sorry|sorry|i can(no|')t|i won't|i('| a)m unable|as an ai)\b", re.IGNORECASE)
STRICT_FORM = re.compile(r"^The user is\b.+\band prefers\b.+", re.DOTALL)  # the form that the paper asks for
CONTRAST = re.compile(r"\b(rather than|instead of|over)\b", re.IGNORECASE)


def persona_status(text: str | None) -> str:
    """Say what an annotated persona is: "ok", "empty", "refusal" or "malformed"."""
    text = (text or "").strip()
    if not text:
        return "empty"
    if REFUSAL.match(text.replace("\u2019", "'")):
        return "refusal"
    return "ok" if text.lower().startswith("the user") else "malformed"


def is_contrastive(persona: str) -> bool:
    """Say whether a persona names what its user does not want."""
    return CONTRAST.search(persona) is not None


def strip_contrast(persona: str) -> str:
    """Cut a persona before "rather than", "instead of" or "over": what it says about the other response."""
    match = CONTRAST.search(persona)
    return persona if match is None else persona[: match.start()].rstrip(" ,") + "."


def measures(raw: str | None) -> dict[str, float]:
    """Return one answer's measures: 1 or 0, words as a count; NaN where only a persona can have it.

    ``persona``, ``refusal``, ``malformed``, ``empty``: what the answer is (`persona_status`).
    ``strict_form``: "The user is ... and prefers ...". ``contrastive``: says what its user does not want.
    """
    text, status = (raw or "").strip(), persona_status(raw)
    found = {"persona": float(status == "ok")}
    found |= {kind: float(status == kind) for kind in ("refusal", "malformed", "empty")}
    if status != "ok":
        return found | dict.fromkeys(("words", "strict_form", "contrastive"), float("nan"))
    strict = float(STRICT_FORM.match(text) is not None)
    return found | {
        "words": float(len(text.split())), "strict_form": strict, "contrastive": float(is_contrastive(text))
    }  # fmt: skip
