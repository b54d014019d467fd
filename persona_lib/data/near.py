"""Prompts that nearly repeat each other: word 3-grams in common, found through an inverted index."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from persona_lib.stats.words import tokens

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
