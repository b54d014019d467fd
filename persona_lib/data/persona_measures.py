"""What a persona is like, measured on its text alone: form, length, contrast, refusals, protected attributes.

The word lists are ours, short and in English: they count mentions and miss what is only implied, and a word
may be meant otherwise ("young plants"). They are for finding texts to read, not for certifying a data set.
"""

from __future__ import annotations

import re

from persona_lib.data.persona_text import is_contrastive, persona_status

STRICT_FORM = re.compile(r"^The user is\b.+\band prefers\b.+", re.DOTALL)  # the form that the paper asks for
PROTECTED = {  # kinds of attributes that a persona should not rest on (paper section 3 and ethics statement)
    "age": r"elderly|elder|senior citizens?|seniors|teen(age|ager|agers|aged)?s?|middle-aged|millennials?"
    r"|boomers?|\d+[- ]years?[- ]old|young(er)? (person|people|adults?|m[ae]n|wom[ae]n)"
    r"|old(er)? (person|people|adults?|m[ae]n|wom[ae]n)",
    "gender": r"m[ae]n|wom[ae]n|males?|females?|boys?|girls?|gentlem[ae]n|lad(y|ies)|masculine|feminine"
    r"|feminists?|non-?binary|transgender|mothers?|fathers?|wives|wife|husbands?",
    "sexual orientation": r"gays?|lesbians?|bisexuals?|queer|lgbtq?\+?|heterosexuals?|homosexuals?"
    r"|straight m[ae]n",
    "ethnicity": r"african[- ]americans?|asians?|hispanics?|latin[oax]s?|caucasians?|native americans?"
    r"|arabs?|jews?|jewish|roma|indigenous|(black|white) (person|people|m[ae]n|wom[ae]n)|people of colou?r"
    r"|ethnicity|racial|immigrants?",
    "religion": r"christians?|catholics?|protestants?|muslims?|islamic|hindus?|buddhists?|atheists?|religious"
    r"|devout|pious|mormons?|evangelicals?",
    "disability": r"disabled|disabilit(y|ies)|deaf|blind person|blind people|wheelchairs?|autistic|autism"
    r"|adhd|dyslexi[ac]|mentally ill|neurodivergent",
    "politics": r"republicans?|democrats?|conservatives?|liberals?|left-wing|right-wing|socialists?"
    r"|libertarians?",
}
PATTERNS = {kind: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for kind, words in PROTECTED.items()}


def protected_mentions(persona: str) -> dict[str, list[str]]:
    """Return the words of a persona that name a protected attribute, by kind; absent kinds have none."""
    found = {kind: [m.group(0) for m in pattern.finditer(persona)] for kind, pattern in PATTERNS.items()}
    return {kind: words for kind, words in found.items() if words}


def measures(raw: str | None) -> dict[str, float]:
    """Return one answer's measures: 1 or 0, words as a count; NaN where only a persona can have it.

    ``persona``, ``refusal``, ``malformed``, ``empty``: what the answer is (`persona_status`).
    ``strict_form``: "The user is ... and prefers ...". ``contrastive``: says what its user does not want.
    ``protected``: names a protected attribute, with one measure per kind.
    """
    text, status = (raw or "").strip(), persona_status(raw)
    flags = {kind: float(status == kind) for kind in ("refusal", "malformed", "empty")}
    nan = float("nan")
    if status != "ok":
        names = ("words", "strict_form", "contrastive", "protected", *(f"protected: {k}" for k in PROTECTED))
        return {"persona": 0.0, **flags, **dict.fromkeys(names, nan)}
    named = protected_mentions(text)
    return {
        "persona": 1.0, **flags, "words": float(len(text.split())),
        "strict_form": float(STRICT_FORM.match(text) is not None), "contrastive": float(is_contrastive(text)),
        "protected": float(bool(named)), **{f"protected: {k}": float(k in named) for k in PROTECTED},
    }  # fmt: skip
