"""The oracle of the synthetic world: reads prompts, responses and personas by rule.

It knows what a response shows, which of its facts are right, and how well it fits a persona. Quality
is graded 0 to 7 and the same for every style: 4 x share of right facts among those stated, and one
point each for naming the topic, for not repeating itself and for being well formed throughout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from persona_lib.world.synthetic import Claim, Topic, Values, make_topics
from persona_lib.world.vocabulary import (
    CONTENT_SENTENCES,
    DIMENSIONS,
    FACT_PHRASES,
    FILLERS,
    LEXICON,
    OPENERS,
    opposite,
)

MAX_QUALITY = 7.0


@dataclass(frozen=True)
class Reading:
    """What a response says: values shown, facts stated as (slot, filler), the rest of its text."""

    values: Values
    facts: tuple[tuple[str, str], ...]
    topic: str | None
    repeats: bool
    leftover: str


@cache
def _patterns() -> dict[str, re.Pattern]:
    """Compile the fact patterns, one per slot."""
    return {
        slot: re.compile(phrase.format(f"({'|'.join(FILLERS[slot])})"), re.IGNORECASE)
        for slot, phrase in FACT_PHRASES.items()
    }


@lru_cache(maxsize=100_000)
def read_response(text: str) -> Reading:
    """Read a response; a dimension shown with both values or not at all is absent from ``values``.

    Length is brief with one fact and detailed with at least three. The well-formed parts are
    taken out of the text one after the other; ``leftover`` is what remains.
    """
    rest, repeats, values = text.strip(), False, {}
    shown: dict[str, set[str]] = {d: set() for d in DIMENSIONS}
    for dimension, options in DIMENSIONS.items():
        for value in options:
            sentences = OPENERS.get(value, ()) if dimension == "tone" else CONTENT_SENTENCES.get(value, ())
            for sentence in sentences:
                count = rest.count(sentence)
                repeats |= count > 1
                if count:
                    shown[dimension].add(value)
                    rest = rest.replace(sentence, "")
    match = re.search(r"For the (\w+ \w+)([:,])", rest)
    topic = match.group(1) if match else None
    if match:
        shown["format"].add("list" if match.group(2) == ":" and re.search(r"\n\d\. ", rest) else "prose")
        rest = rest.replace(match.group(0), "", 1)
    facts = []
    for slot, pattern in _patterns().items():
        found = pattern.findall(rest)
        repeats |= len(found) > 1
        facts += [(slot, filler.lower()) for filler in found]
        rest = pattern.sub("", rest)
    shown["length"] |= {"brief"} if len(facts) == 1 else {"detailed"} if len(facts) >= 3 else set()
    values = {d: next(iter(v)) for d, v in shown.items() if len(v) == 1}
    leftover = re.sub(r"\n\d\. |[\s.,]|\band\b", "", rest)
    return Reading(values, tuple(facts), topic, repeats, leftover)


@cache
def _topics(world_seed: int) -> dict[str, Topic]:
    """Return the world's topics, made once per process."""
    return make_topics(world_seed)


def read_topic(prompt: str, world_seed: int) -> Topic:
    """Return the topic that a prompt asks about; raises ValueError if it names none or several."""
    topics = _topics(world_seed)
    found = [topics[name] for name in re.findall(r"my (\w+ \w+)", prompt) if name in topics]
    if len(found) != 1:
        raise ValueError(
            f"the prompt {prompt!r} names {len(found)} topics of the synthetic world; it should name one"
        )
    return found[0]


def fact_accuracy(prompt: str, response: str, world_seed: int) -> float:
    """Return the share of right facts among those stated; 0 if none is stated."""
    topic, reading = read_topic(prompt, world_seed), read_response(response)
    right = sum(topic.facts[slot] == filler for slot, filler in reading.facts)
    return right / len(reading.facts) if reading.facts else 0.0


def quality(prompt: str, response: str, world_seed: int) -> float:
    """Grade a response from 0 to 7, without looking at style or persona."""
    topic, reading = read_topic(prompt, world_seed), read_response(response)
    return (
        4.0 * fact_accuracy(prompt, response, world_seed)
        + (reading.topic == topic.name)
        + (bool(reading.facts) and not reading.repeats)
        + (bool(reading.facts) and not reading.leftover)
    )


@cache
def read_persona(persona: str | None) -> frozenset[Claim]:
    """Return the claims of a persona: the values whose words occur in it."""
    if not persona:
        return frozenset()
    text = persona.lower()
    words = set(re.findall(r"[a-z]+", text))
    claims = set()
    for claim, entry in LEXICON.items():
        adjectives = entry["adjectives"]["known"] + entry["adjectives"]["held_out"]
        phrases = entry["phrases"]["known"] + entry["phrases"]["held_out"]
        if words & set(adjectives) or any(p in text for p in phrases):
            claims.add(claim)
    return frozenset(claims)


def persona_fit(persona: str | None, response: str) -> float:
    """Score how a response fits a persona: per claim +1 if shown, -1 if the opposite is shown, else 0."""
    values = read_response(response).values
    return float(
        sum(
            (values.get(d) == value) - (values.get(d) == opposite(d, value))
            for d, value in read_persona(persona)
        )
    )


def contrast_claims(response: str, other: str) -> list[Claim]:
    """Return two claims that explain a response against another: values it shows and the other opposes.

    Raises ValueError if the two contrast in no dimension.
    """
    mine, theirs = read_response(response).values, read_response(other).values
    claims = [(d, v) for d, v in mine.items() if theirs.get(d) == opposite(d, v)]
    if not claims:
        raise ValueError(f"the responses show no contrast: {response!r} / {other!r}")
    return claims[:2] if len(claims) > 1 else claims * 2
