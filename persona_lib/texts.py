"""Measures of text that need no model: words, overlap, repetition, near duplicates, leaks, personas as texts.

The words of a text are defined here once; the released outputs and our own generations use the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_lib.records import SIDES, TailoringRow

if TYPE_CHECKING:
    import pandas as pd


TOKEN = re.compile(r"[a-z0-9']+")


def tokens(text: str, limit: int | None = None) -> list[str]:
    """Return the lower-cased ``[a-z0-9']+`` tokens of a text, at most the first ``limit``."""
    return TOKEN.findall(text.lower())[:limit]


def unigram_f1(output: str, reference: str, limit: int | None = 200) -> float:
    """Return 2 x multiset overlap / (len output + len reference), in tokens; 0 when both are empty.

    Only the output is cut to its first ``limit`` tokens, so that a loop does not dilute it.
    """
    first, second = tokens(output, limit), tokens(reference)
    overlap = (Counter(first) & Counter(second)).total()
    return 2 * overlap / (len(first) + len(second)) if first or second else 0.0


def repetition(text: str, n: int = 4) -> float:
    """Return 1 - distinct / total word n-grams (rep4 for n = 4); 0 if the text has none."""
    words = text.split()
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def has_suffix_loop(text: str, max_block: int = 80, times: int = 3) -> bool:
    """Return True if the text ends in the same block of 1 to ``max_block`` words ``times`` times over."""
    words = text.split()
    for size in range(1, min(max_block, len(words) // times) + 1):
        block = words[-size:]
        if all(words[-size * k : len(words) - size * (k - 1)] == block for k in range(2, times + 1)):
            return True
    return False


def count_degenerate(texts: Sequence[str], ended: Sequence[bool]) -> dict[str, int]:
    """Count outputs (of n) that never stopped, repeat 4-grams (share > .2 and > .5) or end in a loop."""
    rep4 = [repetition(text) for text in texts]
    return {
        "n": len(texts),
        "no_eos": sum(not end for _, end in zip(texts, ended, strict=True)),
        "rep4_over_20": sum(r > 0.2 for r in rep4),
        "rep4_over_50": sum(r > 0.5 for r in rep4),
        "suffix_loop": sum(map(has_suffix_loop, texts)),
    }


# --- near duplicates: word 3-grams in common, found through an inverted index ---


Gram = tuple[str, ...]


def ngrams(words: Sequence[str], n: int) -> set[Gram]:
    """Return the set of word n-grams; a shorter text is one gram of all its words."""
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def gram_index(texts: Sequence[str]) -> tuple[list[set[Gram]], dict[Gram, list[int]]]:
    """Return the word 3-grams of every text, and for each 3-gram the texts that hold it, in their order."""
    grams = [ngrams(tokens(text), 3) for text in texts]
    holders: dict[Gram, list[int]] = defaultdict(list)
    for index, own in enumerate(grams):
        for gram in own:
            holders[gram].append(index)
    return grams, holders


def near_duplicates(
    prompts: Sequence[str], pool: Sequence[str], threshold: float = 0.5
) -> list[tuple[int, int, float]]:
    """Find the prompts whose most similar pool prompt has a word 3-gram Jaccard >= ``threshold``.

    Returns (index in prompts, index in pool, Jaccard), at most one per prompt. A pool prompt that is similar
    enough shares at least ``threshold`` of a prompt's 3-grams, so it has one of any larger rest: only the
    holders of the rarest are looked at, however many prompts share a template.
    """
    if threshold <= 0:
        return []
    pool_grams, holders = gram_index(pool)
    found = []
    for index, text in enumerate(prompts):
        grams = ngrams(tokens(text), 3)
        rarest = sorted(grams, key=lambda gram: len(holders.get(gram, ())))
        enough = rarest[: len(grams) - max(1, math.ceil(threshold * len(grams) - 1e-9)) + 1]
        near = {other for gram in enough for other in holders.get(gram, ())}
        scores = [(len(grams & pool_grams[o]) / len(grams | pool_grams[o]), -o) for o in near]
        best, other = max(scores, default=(0.0, 0))
        if best >= threshold:
            found.append((index, -other, best))
    return found


# --- what tailoring data must not contain, and what its reader should know (paper section 4) ---


POOL_SPLITS = ("sft_train", "dpo_train")  # what personas are retrieved from; never validation rows
EVAL_SPLITS = ("validation", "test")
Rows = dict[str, list[TailoringRow]]


def leakage_report(rows: Rows, threshold: float = 0.5) -> pd.DataFrame:
    """Count what must not happen and what a reader should know; columns check, found, of, must_be_zero.

    Prompts are the same if their texts are (the near-duplicate count shows the looser cases). A row that
    stands in two splits under one id (official validation rows) is not an overlap.
    """
    import pandas as pd

    names = list(rows)
    checks = [
        (f"prompts shared by {a} and {b}", len(shared_prompts(rows[a], rows[b])), len(rows[b]), True)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    pool = {row.id: row for split in POOL_SPLITS for row in rows[split]}
    for split in EVAL_SPLITS:
        checks += retrieval_checks(split, rows[split], pool)
        prompts, known = ([row.prompt for row in part] for part in (rows[split], pool.values()))
        near = len(near_duplicates(prompts, known, threshold))
        label = f"{split} prompts that nearly repeat a training prompt (Jaccard >= {threshold})"
        checks.append((label, near, len(rows[split]), False))
    checks += quote_checks(rows)
    return pd.DataFrame(checks, columns=["check", "found", "of", "must_be_zero"])


def shared_prompts(first: list[TailoringRow], second: list[TailoringRow]) -> list[str]:
    """List the ids of rows of ``second`` whose prompt is also that of another row in ``first``."""
    owners: dict[str, set[str]] = {}
    for row in first:
        owners.setdefault(row.prompt, set()).add(row.id)
    return [row.id for row in second if owners.get(row.prompt, set()) - {row.id}]


def retrieval_checks(split: str, rows: list[TailoringRow], pool: dict[str, TailoringRow]) -> list[tuple]:
    """Check where a split's retrieved personas come from."""
    named = [row for row in rows if row.retrieved_id is not None]
    own = sum(row.retrieved_id == row.id for row in named)
    outside = sum(row.retrieved_id not in pool for row in named)
    same = sum(pool[r.retrieved_id].prompt == r.prompt for r in named if r.retrieved_id in pool)
    one_sided = sum(not all(row.personas.get(f"retrieved-{side}") for side in SIDES) for row in rows)
    untraced = len(rows) - len(named)
    return [
        (f"{split} rows that retrieve themselves", own, len(named), True),
        (f"{split} rows that retrieve a row with their own prompt", same, len(named), True),
        (f"{split} rows that retrieve from outside {' and '.join(POOL_SPLITS)}", outside, len(named), True),
        (f"{split} rows whose retrieved personas cannot be traced to a row", untraced, len(rows), False),
        (f"{split} rows without both retrieved personas", one_sided, len(rows), False),
    ]


def quotes(persona: str, response: str, prompt: str, n: int = 4) -> bool:
    """Say whether a persona repeats ``n`` words in a row of the response that are not in the prompt."""
    shared = ngrams(tokens(persona), n) & ngrams(tokens(response), n)
    return bool({gram for gram in shared if len(gram) == n} - ngrams(tokens(prompt), n))


def quote_checks(rows: Rows) -> list[tuple]:
    """Count, per split and side, the gold personas that quote the response they were inferred for."""
    checks = []
    for split, side in ((split, side) for split in rows for side in SIDES):
        there = [row for row in rows[split] if row.personas.get(f"gold-{side}")]
        found = sum(quotes(r.personas[f"gold-{side}"], getattr(r, side), r.prompt) for r in there)
        label = f"{split} gold-{side} personas that quote 4 words of their response"
        checks.append((label, found, len(there), False))
    return checks


# --- personas as texts (paper section 3) ---

# The annotator's refusals and error messages were kept as personas in the official data and are none.
REFUSAL = re.compile(r"^(i'?m sorry|sorry|i can(no|')t|i won't|i('| a)m unable|as an ai)\b", re.IGNORECASE)
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
