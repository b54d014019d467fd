"""Retrieve, for a new prompt, the training prompt that resembles it most (paper section 4).

The personas of the nearest training row stand in for the unknown user's. The default is BM25, which needs no
model. The paper used ColBERT: late interaction, each token of the query against each of the other prompt
("late"). "dense" compares one vector per prompt. Both load a model through sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

from persona_lib import weights

Rows = Sequence[tuple[str, str]]  # (id, prompt)
Scores = Iterable[Sequence[float]]  # one line per query, one column per pool row
# Similarities that differ by less count as equal: a model's depend on what else is in the batch.
DIGITS = 5


def normal(prompt: str) -> str:
    """Return a prompt without differences in case and white space: what counts as the same prompt."""
    return " ".join(prompt.lower().split())


def retrieve(queries: Rows, pool: Rows, retriever: str = "bm25", model: str = "") -> list[int]:
    """Return for each (id, prompt) query the index of the most similar pool row.

    Never the row itself (same id) nor a row with the same prompt. Equal scores go to the earlier pool
    row, so the result depends on the texts, their order and the model alone. ``retriever`` is a name in
    SCORERS, ``model`` what "dense" and "late" load. Raises ValueError for a query without an allowed row.
    """
    import numpy as np

    if not pool:
        raise ValueError("retrieve: the pool is empty; retrieval needs training rows")
    places: dict[tuple[str, str], list[int]] = {}  # ("id", id) and ("prompt", prompt) -> where they are
    for index, (name, text) in enumerate(pool):
        for key in (("id", name), ("prompt", normal(text))):
            places.setdefault(key, []).append(index)
    found = []
    scores = SCORERS[retriever]([text for _, text in queries], [text for _, text in pool], model)
    for (name, text), line in zip(queries, scores, strict=True):
        allowed = np.array(line, dtype=float)
        allowed[places.get(("id", name), []) + places.get(("prompt", normal(text)), [])] = -np.inf
        if allowed.max() == -np.inf:
            raise ValueError(f"retrieve: no row for query {name!r}: all have its id or its prompt")
        found.append(int(allowed.argmax()))
    return found


def bm25_scores(queries: Sequence[str], pool: Sequence[str], model: str = "") -> Scores:
    """Return the BM25 score of every pool text for every query; there is no model to name."""
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(pool), show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(queries), return_ids=False, show_progress=False)
    return (index.get_scores(words) for words in tokens)  # one line at a time: queries x pool is a lot


def encoder_scores(kind: str, queries: Sequence[str], pool: Sequence[str], model: str) -> Scores:
    """Return the similarities, rounded, of a model's encodings: of one vector per text, or MaxSim of many."""
    encoder = load_model(kind, model)
    similarities = encoder.similarity(
        encoder.encode_query(list(queries), show_progress_bar=False),
        encoder.encode_document(list(pool), show_progress_bar=False),
    )
    return similarities.cpu().double().numpy().round(DIGITS)


SCORERS: dict[str, Callable[[Sequence[str], Sequence[str], str], Scores]] = {
    "bm25": bm25_scores,
    "dense": partial(encoder_scores, "SentenceTransformer"),
    "late": partial(encoder_scores, "MultiVectorEncoder"),
}


@cache
def load_model(kind: str, source: str) -> Any:
    """Load an encoder of sentence-transformers, also ColBERT's own; ImportError names the missing extra."""
    try:
        import sentence_transformers
    except ImportError as error:
        raise ImportError(
            "retriever dense and late need sentence-transformers: "
            "pip install -e '.[retrieval]' -c constraints.txt"
        ) from error
    name, commit = weights.pinned(source)
    return getattr(sentence_transformers, kind)(name, revision=commit)
