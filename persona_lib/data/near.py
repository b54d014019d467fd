"""Prompts that nearly repeat each other: word 3-grams in common, found through an inverted index."""

from __future__ import annotations

from collections import Counter, defaultdict
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

    Returns (index in prompts, index in pool, Jaccard), at most one per prompt. An inverted index keeps
    the work in proportion to the shared 3-grams.
    """
    pool_grams, holders = gram_index(pool)
    found = []
    for index, text in enumerate(prompts):
        grams = ngrams(tokens(text), 3)
        shared = Counter(other for gram in grams for other in holders.get(gram, ()))
        scores = [(n / (len(grams) + len(pool_grams[other]) - n), -other) for other, n in shared.items()]
        best, other = max(scores, default=(0.0, 0))
        if best >= threshold > 0:
            found.append((index, -other, best))
    return found
