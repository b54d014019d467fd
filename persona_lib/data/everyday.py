"""``everyday``: our own pairs, two answers that suit different users, and the reader: which value one shows.

The pairs (``facts/everyday.jsonl``; data card: EVERYDAY.md) were written by a language model. The two
responses of a pair answer about equally well and show opposite values of one dimension (of two, in a fifth of
the pairs). Each side has a persona, and its wish in a user's own words. Every topic is in one split. A data
seed draws which value of a dimension most users like, and so which response of a pair is *chosen*: no side is
better by nature.

The reader of answers (``oracle``) says by rule which value of a dimension a text shows; its words are in
``facts/reader_words.yaml``. It sees one text and nothing else; ``figures/published/everyday/reader.csv`` says
how often it is right. `quality`, a graded rule, cannot see a wrong fact or bad advice.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from persona_lib.records import PAIR_SPLITS, SIDES, PreferencePair, TailoringRow
from persona_lib.store import facts, read_rows
from persona_lib.texts import repetition

NAME = "everyday"
FILE = Path(__file__).resolve().parent.parent / "facts" / "everyday.jsonl"
# dimension -> its two values; the first five are style, the others content
DIMENSIONS: dict[str, tuple[str, str]] = {
    "length": ("brief", "thorough"),
    "format": ("steps", "prose"),
    "tone": ("warm", "formal"),
    "detail": ("plain", "technical"),
    "initiative": ("decides", "asks"),
    "budget": ("cheap", "premium"),
    "pace": ("quick", "patient"),
    "risk": ("cautious", "bold"),
    "company": ("alone", "together"),
    "table": ("abstains", "indulges"),
}
Wish = tuple[tuple[str, str], ...]  # (dimension, value) pairs that a user wants


@dataclass(frozen=True)
class Item:
    """One row of ``everyday.jsonl``.

    ``dimension``, ``value_a`` and ``value_b`` name one dimension, or two joined by "+". ``wording`` says
    whether the personas name the surface of the answer ("explicit") or only the situation ("implicit").
    """

    id: str
    topic: str
    split: str
    prompt: str
    response_a: str
    response_b: str
    dimension: str
    value_a: str
    value_b: str
    persona_a: str
    persona_b: str
    user_a: str
    user_b: str
    wording: str

    def wish(self, side: str) -> Wish:
        """Return what the user of side "a" or "b" wants."""
        values = (self.value_a if side == "a" else self.value_b).split("+")
        return tuple(zip(self.dimension.split("+"), values, strict=True))


@cache
def items() -> tuple[Item, ...]:
    """Return all items, in the file's order."""
    return tuple(read_rows(FILE, Item))


def common_values(seed: int) -> dict[str, str]:
    """Return which value of each dimension most users like, drawn by the data seed."""
    rng = random.Random(f"everyday-common-{seed}")
    return {dimension: rng.choice(values) for dimension, values in DIMENSIONS.items()}


def sides(item: Item, majority_share: float, seed: int) -> dict[str, str]:
    """Return which side, "a" or "b", is chosen and rejected: the common value with ``majority_share``."""
    dimension, value = item.wish("a")[0]
    like_most = random.Random(f"everyday-{seed}-{item.id}").random() < majority_share
    chosen = (value == common_values(seed)[dimension]) == like_most
    return dict(zip(SIDES, "ab" if chosen else "ba", strict=True))


def pairs(majority_share: float, seed: int, limit: int = 0) -> dict[str, list[PreferencePair]]:
    """Return the preference pairs of a data seed by split; ``limit`` keeps the first rows of each split."""
    found: dict[str, list[PreferencePair]] = {split: [] for split in PAIR_SPLITS}
    for item in items():
        side = sides(item, majority_share, seed)
        texts = (getattr(item, f"response_{side[name]}") for name in SIDES)
        found[item.split].append(PreferencePair(item.id, item.prompt, *texts))
    return {split: part[:limit] if limit else part for split, part in found.items()}


def personas(majority_share: float, seed: int) -> dict[str, dict[str, str]]:
    """Return, by row id, the data's personas ("gold-chosen", ...) and the users' own words ("user-...")."""
    return {
        item.id: {
            f"{kind}-{name}": getattr(item, f"{field}_{side}")
            for name, side in sides(item, majority_share, seed).items()
            for kind, field in (("gold", "persona"), ("user", "user"))
        }
        for item in items()
    }


@cache
def wishes() -> dict[str, Wish]:
    """Return what each persona and each user's text of the data wants, by the text."""
    return {
        getattr(item, f"{field}_{side}"): item.wish(side)
        for item in items()
        for field in ("persona", "user")
        for side in "ab"
    }


def relabelled(rows: list[TailoringRow], seed: int) -> list[TailoringRow]:
    """Return rows whose two personas are exchanged where the seed relabels their (first) dimension.

    The control for stereotypes of pretraining: a policy that follows them has learned it from these rows.
    """
    half = len(DIMENSIONS) // 2
    flipped = random.Random(f"everyday-relabelled-{seed}").sample(sorted(DIMENSIONS), half)
    exchanged = {item.id for item in items() if item.dimension.split("+")[0] in flipped}

    def source(name: str) -> str:
        kind, _, side = name.rpartition("-")
        return f"{kind}-{SIDES[1 - SIDES.index(side)]}" if side in SIDES else name

    def exchange(row: TailoringRow) -> TailoringRow:
        return replace(row, personas={name: row.personas.get(source(name)) for name in row.personas})

    return [exchange(row) if row.id in exchanged else row for row in rows]


# --- the reader of answers ---

BRIEF_WORDS, THOROUGH_WORDS = 42, 53  # up to, from; in between a text is neither
MARGIN = 2  # points by which one value must lead
STRONG, WEAK, MOST_WEAK = 2, 1, 6  # points of a word of either kind; most that weak words of a value can add
# Read with a precision below .85 on generated answers, or in fewer than five (the study `reader`).
UNREADABLE = ("initiative", "budget", "pace", "risk", "company", "table")
TECHNICAL = 1.5  # figures and terms together, from

# What a text says just before words that it turns down.
DENIED = re.compile(
    r"\b(?:no|not|never|\w+n't|without|(?<!n't )(?<!not )(?:skip\w*|forget|drop)|dispense with|instead of"
    r"|rather than|hardly) (?:(?:the|a|an|any|all|your) )?(?:(?!to |only |just |forget )[\w-]+ )?$",
    re.I,
)
LIST_LINE = re.compile(r"(?m)^\s*(?:(?:step )?\d{1,2}[.):]|[-*•](?![-*]))\s*\S", re.I)
INLINE_STEP = re.compile(r"(?:^|[\s:])(?:step )?(\d)[.):]\s+(?=[A-Za-z])", re.I)
SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)]?\s+|\n+")
CONTRACTION = re.compile(
    r"\b\w+(?:n't|'(?:ll|re|ve|m|d))\b|\b(?:it|that|there|here|what|who|let|he|she)'s\b", re.I
)
OWN_QUESTION = re.compile(r"\b(?:i|my|me)\b", re.I)
QUESTION_TO_USER = re.compile(
    r"\b(?:you|your|yours|(?:may|might|could|can) (?:i|one)(?: also)? (?:ask|enquire|know))\b", re.I
)
REQUEST = re.compile(
    r"\b(?:let me know|tell me)(?: a (?:bit|little))? (?:more|what|how|which|where|when|whether|about)", re.I
)
NUMBER = r"\d+(?:[.,]\d+)?"
UNITS = (
    r"%|°|percent|per cent|degrees|[µnmck]?m|m[²³]|[µmk]?g|[mdc]?l|kcal|[kmg]?hz|dbm?|k?w|k?wh|v|lux|bar"
    r"|psi|rpm|dpi|[kmg]b|mp|bits?|lit(?:re|er)s?|grams?|kilos?|(?:centi|milli|kilo)?met(?:re|er)s?"
    r"|inch(?:es)?|feet|ft|oz|lbs?|cups?|teaspoons?|tablespoons?|tbsp|tsp|microns?|km/h|cd|words? per minute"
)
TIMES = r"seconds?|minutes?|mins?|hours?|days?|weeks?|months?|years?|s"
FIGURE = re.compile(rf"{NUMBER}[ -]?(?:{UNITS})(?!\w)", re.I)
LOOSE_FIGURE = re.compile(
    rf"{NUMBER}[ -](?:{TIMES})(?!\w)|\d[:/]\d|[a-z]/\d|O\(\w+\)|\b\d{{2,}}\b|\d[ -][a-z]", re.I
)
TERM = re.compile(
    r"\b(?!(?:TV|DIY|OK|UK|US|USA|ID)\b)[A-Z]{2,}\d*\b|\b(?i:ratios?|humidity|torque|emulsi\w+|proteins?|enzym\w+"
    r"|thermo\w+|ambient|coefficients?|aperture|oxid\w+|viscosity|density|voltage|wattage|calibrat\w+|parameters?"
    r"|bandwidth|frequenc\w+|latency|encrypt\w+|authenticat\w+|entropy|algorithms?|variance|compounding|liquidity"
    r"|exponential|carbohydrates?|glyc\w+|circadian|melatonin|caffeine|hydrat\w+|nitrogen|calcium|ammoni\w+|starch"
    r"|conduction|condensation|compression|insulation|moisture|bacteria\w*|coagulat\w+|dilution|quadratic|thresholds?"
    r"|valves?|gradients?|protocols?|firmware|nutrients?|solub\w+|acidity|alkalin\w+|metabol\w+|hormon\w+)\b"
)


def lead(first: float, second: float, values: tuple[str, str], margin: float = MARGIN) -> str | None:
    """Return the value with more evidence, None if it leads by less than ``margin``."""
    if abs(first - second) < margin:
        return None
    return values[0] if first > second else values[1]


@cache
def families() -> dict[str, list[re.Pattern[str]]]:
    """Return, by value, the strong and the weak words that show it, matched as whole words."""
    whole = r"(?<!\w)(?:{})(?!\w)"
    return {
        value: [re.compile(whole.format(kinds[kind].replace("\n", "")), re.I) for kind in ("strong", "weak")]
        for value, kinds in facts("reader_words").items()
    }


def spans(words: re.Pattern[str], text: str) -> list[tuple[int, int]]:
    """Return where a text has the words of a family, except after a word that turns them down."""
    places = [match.span() for match in words.finditer(text)]
    return [(start, end) for start, end in places if not DENIED.search(text[max(0, start - 40) : start])]


def points(value: str, other: str, text: str) -> int:
    """Return the evidence for a value: different words, not those in the other's ("skip the trial")."""
    strong, weak = (spans(words, text) for words in families()[value])
    rival = spans(families()[other][0], text)
    said = {
        text[i:j].lower() for i, j in strong if not any(k <= i and j <= m and j - i < m - k for k, m in rival)
    }
    hinted = {text[i:j].lower() for i, j in weak if not any(i < m and k < j for k, m in [*strong, *rival])}
    return STRONG * len(said) + min(MOST_WEAK, WEAK * len(hinted))


def read_length(text: str) -> str | None:
    """Brief up to BRIEF_WORDS words, thorough from THOROUGH_WORDS on."""
    n = len(text.split())
    return "brief" if n <= BRIEF_WORDS else "thorough" if n >= THOROUGH_WORDS else None


def read_format(text: str) -> str | None:
    """Two numbered or bulleted lines or more, or the numbers 1, 2, 3 within a line, are steps."""
    inline = "".join(INLINE_STEP.findall(text))
    return "steps" if len(LIST_LINE.findall(text)) >= 2 or "123" in inline else "prose"


def read_tone(text: str) -> str | None:
    """Encouragement, exclamation marks and contractions are warm; set phrases without any of them formal."""
    warm, formal = points("warm", "formal", text), points("formal", "warm", text)
    contractions, marks = len(CONTRACTION.findall(text)), text.count("!")
    if warm or marks:  # contractions alone are not warm
        warm += STRONG * (min(3, marks) + min(2, contractions))
    if not contractions:
        formal += STRONG
    return lead(warm, formal, DIMENSIONS["tone"], 2 * MARGIN)


def read_detail(text: str) -> str | None:
    """Figures with units, other figures and technical terms are technical; hardly any of them is plain."""
    units = FIGURE.findall(text)
    loose = LOOSE_FIGURE.findall(FIGURE.sub(" ", text))
    score = len(units) + (len(loose) + len(set(TERM.findall(text)))) / 2
    return "technical" if score >= TECHNICAL else "plain" if score < TECHNICAL / 2 else None


def read_initiative(text: str) -> str | None:
    """Ask back is a question to the user in the last two sentences; a question of another kind is neither."""
    last = [part for part in SENTENCE.split(text.strip()) if part.strip()][-2:]
    questions = [part for part in last if "?" in part]
    asked = any(QUESTION_TO_USER.search(part) or not OWN_QUESTION.search(part) for part in questions)
    if asked or any(REQUEST.search(part) for part in last):
        return "asks"
    return None if questions else "decides"


STYLE: dict[str, Callable[[str], str | None]] = {
    "length": read_length,
    "format": read_format,
    "tone": read_tone,
    "detail": read_detail,
    "initiative": read_initiative,
}


def shows(dimension: str, text: str) -> str | None:
    """Return which of the two values of a dimension a text shows; None for neither, or both alike."""
    text = text.replace("’", "'").strip()
    if not text:
        return None
    if dimension in STYLE:
        return STYLE[dimension](text)
    first, second = DIMENSIONS[dimension]
    weight = 2 if dimension == "table" else 1  # meat and alcohol count double beside vegetables
    return lead(points(first, second, text), weight * points(second, first, text), (first, second))


def fit(wish: Wish, text: str) -> int:
    """Return how well a text fits a wish: +1 for each value of it, -1 for others, 0 in ``UNREADABLE``."""
    verdicts = ((shows(name, text), value) for name, value in wish if name not in UNREADABLE)
    return sum(0 if shown is None else 1 if shown == value else -1 for shown, value in verdicts)


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


def quality(prompt: str, text: str) -> float:
    """Return the quality of an answer in [0, 1], the mean of four parts in [0, 1]; 0 for an empty one.

    The parts: it takes up the question, it is finished (ends like a sentence or a list line), it does not
    repeat itself, it has some words.
    """
    if not (lines := text.strip().splitlines()):
        return 0.0
    listed = re.match(r"\s*(?:\d+[.)]|[-*•])\s", lines[-1]) and len(lines) > 2 and len(lines[-1].split()) > 2
    finished = bool(listed or re.search(r"[.!?)\"”']$", lines[-1]))
    asked = stems(prompt)
    subject = min(1.0, len(asked & stems(text)) / max(1, min(ENOUGH_STEMS, len(asked))))
    substance = min(1.0, len(text.split()) / ENOUGH_WORDS)
    return (subject + finished + 1 - repetition(text.lower()) + substance) / 4
