"""How varied a set of texts is: distinct n-grams, and how much any two of them have in common."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from persona_lib.stats.words import tokens


def distinct(texts: Sequence[str], n: int, n_grams: int | None = None, seed: int = 0) -> float | None:
    """Return the share of word n-grams that are different (distinct-n); None without any.

    The share falls as texts are added, so sets are only comparable at equal size: ``n_grams`` counts that
    many n-grams of the texts in random order.
    """
    order = random.Random(seed).sample(list(texts), len(texts))
    grams = [gram for text in order for gram in zip(*(tokens(text)[i:] for i in range(n)), strict=False)]
    kept = grams[:n_grams]
    return len(set(kept)) / len(kept) if kept else None


def count_ngrams(texts: Sequence[str], n: int) -> int:
    """Return how many word n-grams texts have."""
    return sum(max(0, len(tokens(text)) - n + 1) for text in texts)


def self_similarity(texts: Sequence[str]) -> float | None:
    """Return the mean cosine of the word counts of two different texts; None for fewer than two.

    With unit vectors u the sum over all ordered pairs is |sum u|^2 - n, so no pair is ever formed.
    """
    bags = [Counter(tokens(text)) for text in texts]
    bags = [bag for bag in bags if bag]
    if len(bags) < 2:
        return None
    places = {word: n for n, word in enumerate(dict.fromkeys(word for bag in bags for word in bag))}
    total = np.zeros(len(places))
    for bag in bags:
        counts = np.array(list(bag.values()), dtype=float)
        total[[places[word] for word in bag]] += counts / np.linalg.norm(counts)
    return float((total @ total - len(bags)) / (len(bags) * (len(bags) - 1)))
