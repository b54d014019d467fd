"""Retrieve, for a new prompt, the training prompt that resembles it most (paper section 4).

At test time nobody knows the user's persona, so the personas of the nearest training row stand in for
it. The paper used ColBERT; here it is BM25, which needs no model and gives the same answer everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence


def normal(prompt: str) -> str:
    """Return a prompt without differences in case and white space: what counts as the same prompt."""
    return " ".join(prompt.lower().split())


def retrieve(queries: Sequence[tuple[str, str]], pool: Sequence[tuple[str, str]]) -> list[int]:
    """Return for each (id, prompt) query the index of the most similar pool row, by BM25.

    Never the row itself (same id) nor a row with the same prompt. Equal scores go to the earlier pool
    row, so the result depends on nothing but the texts and their order. Raises ValueError for a query
    that the whole pool is forbidden to.
    """
    import bm25s

    if not pool:
        raise ValueError("retrieve: the pool is empty; retrieval needs training rows")
    index = bm25s.BM25()
    index.index(bm25s.tokenize([text for _, text in pool], show_progress=False), show_progress=False)
    tokens = bm25s.tokenize([text for _, text in queries], return_ids=False, show_progress=False)
    keys = [normal(text) for _, text in pool]
    return [
        best_allowed(index.get_scores(words), query, pool, keys)
        for query, words in zip(queries, tokens, strict=True)
    ]


def best_allowed(
    scores: Sequence[float], query: tuple[str, str], pool: Sequence[tuple[str, str]], keys: Sequence[str]
) -> int:
    """Return the index of the highest score among the pool rows that the query may use."""
    key = normal(query[1])
    allowed = [i for i, (id, _) in enumerate(pool) if id != query[0] and keys[i] != key]
    if not allowed:
        raise ValueError(
            f"retrieve: no pool row is left for query {query[0]!r}: all have its id or its prompt"
        )
    return max(allowed, key=lambda i: (scores[i], -i))
