"""Measures of text without a model: words, overlap, repetition, near duplicates, leaks, personas as texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from persona_lib.records import SIDES, Table, TailoringRow, table_of

TOKEN = re.compile(r"[a-z0-9']+")


def tokens(text: str, limit: int | None = None) -> list[str]:
    """Return the lower-cased ``[a-z0-9']+`` tokens of a text, at most the first ``limit``."""
    return TOKEN.findall(text.lower())[:limit]


def normal(prompt: str) -> str:
    """Return a prompt without differences in case and white space: what counts as the same prompt."""
    return " ".join(prompt.lower().split())


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
    sizes = range(1, min(max_block, len(words) // times) + 1)
    return any(words[-size * times :] == words[-size:] * times for size in sizes)


def count_degenerate(texts: Sequence[str], ended: Sequence[bool]) -> dict[str, int]:
    """Count outputs (of n) that never stopped, are repeated 4-grams by more than half, or end in a loop."""
    return {
        "n": len(texts),
        "no_eos": sum(not end for _, end in zip(texts, ended, strict=True)),
        "rep4_over_50": sum(repetition(text) > 0.5 for text in texts),
        "suffix_loop": sum(map(has_suffix_loop, texts)),
    }


# --- near duplicates: word 3-grams in common, counted by a sparse matrix product ---

# Scripts without spaces between words (Thai to Khmer, kana, Han): there each character counts as a word.
SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
UNIT = re.compile(rf"[{SPACELESS}]|(?:[^\W_{SPACELESS}]|')+")
SYSTEM_TURN = re.compile(r"\ASystem: .*?\n\n(?=User: )", re.DOTALL)
LEAST_HOLDERS, MOST_HOLDERS = 10, 2000  # texts that may share a 3-gram before it counts as a template's
BLOCK = 500  # texts compared with all others at once


def gram_matrix(texts: Sequence[str]) -> Any:
    """Return which word 3-grams (columns) every text (row) has, sparse; one of two words is one gram."""
    import numpy as np
    from scipy.sparse import csr_matrix

    codes: list[int] = []
    ends = [0]
    for text in texts:
        text = SYSTEM_TURN.sub("", text).lower()
        words = (TOKEN if text.isascii() else UNIT).findall(text)
        starts = range(max(1, len(words) - 2)) if words else ()
        codes += {hash(tuple(words[start : start + 3])) for start in starts}
        ends.append(len(codes))
    grams, columns = np.unique(np.array(codes, dtype=np.int64), return_inverse=True)
    ones = np.ones(len(columns), dtype=np.int32)
    return csr_matrix((ones, columns, ends), shape=(len(texts), len(grams)))


def close_pairs(first: Any, second: Any, threshold: float) -> list[Any]:
    """Return arrays: row of first, row of second, Jaccard, of the pairs with a Jaccard >= ``threshold``."""
    import numpy as np

    found = []
    sizes, others = (np.asarray(matrix.sum(axis=1)).ravel() for matrix in (first, second))
    turned = second.T.tocsr()
    for start in range(0, first.shape[0], BLOCK):
        shared = (first[start : start + BLOCK] @ turned).tocoo()
        rows = shared.row + start
        jaccard = shared.data / (sizes[rows] + others[shared.col] - shared.data)
        close = jaccard >= threshold
        found.append((rows[close], shared.col[close], jaccard[close]))
    return [np.concatenate(part) for part in zip(*found, strict=True)]


def near_groups(texts: Sequence[str], threshold: float) -> list[int]:
    """Return each text's group: texts with a 3-gram Jaccard >= ``threshold``, also through others, share it.

    What many texts share (a template, a system prompt) says nothing of one text: 3-grams of more than a
    fifth of all texts do not count, then of more than a tenth and so on, until no group has more than a
    tenth of the texts. Where that does not help, every text is a group of its own.
    """
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(texts)
    if threshold <= 0 or n < 2:
        return list(range(n))
    matrix = gram_matrix(texts)
    holders, most = np.asarray(matrix.sum(axis=0)).ravel(), min(max(LEAST_HOLDERS, n // 5), MOST_HOLDERS)
    while most >= LEAST_HOLDERS:
        kept = matrix[:, holders <= most]
        one, other, jaccard = close_pairs(kept, kept, threshold)
        links = coo_matrix((jaccard, (one, other)), shape=(n, n))
        groups = connected_components(links, directed=False)[1]
        if np.bincount(groups).max() <= max(LEAST_HOLDERS, n // 10):
            return groups.tolist()
        most //= 2
    return list(range(n))


def near_duplicates(prompts: list[str], pool: list[str], threshold: float) -> list[tuple[int, int, float]]:
    """Find the prompts whose most similar pool prompt has a word 3-gram Jaccard >= ``threshold``.

    Returns (index in prompts, index in pool, Jaccard), at most one per prompt, the first of equally similar
    ones. 3-grams that half of all texts have, a template's, do not count.
    """
    import numpy as np
    import pandas as pd

    if threshold <= 0 or not prompts or not pool:
        return []
    matrix = gram_matrix([*pool, *prompts])
    most = min(max(LEAST_HOLDERS, matrix.shape[0] // 2), MOST_HOLDERS)
    matrix = matrix[:, np.asarray(matrix.sum(axis=0)).ravel() <= most]
    found = close_pairs(matrix[len(pool) :], matrix[: len(pool)], threshold)
    table = pd.DataFrame(dict(zip(("row", "of", "jaccard"), found, strict=True)))
    best = table.sort_values(["row", "jaccard", "of"], ascending=[True, False, True]).drop_duplicates("row")
    return list(best.itertuples(index=False, name=None))


# --- what tailoring data must not contain, and what its reader should know (paper section 4) ---

POOL_SPLITS = ("sft_train", "dpo_train")  # what personas are retrieved from; never validation rows
EVAL_SPLITS = ("validation", "test")


def leakage_report(rows: dict[str, list[TailoringRow]], threshold: float = 0.5) -> Table:
    """Count what must not happen and what a reader should know; columns check, found, of, must_be_zero.

    Prompts are the same if their texts are (the near-duplicate count shows the looser cases). A row that
    stands in two splits under one id (official validation rows) is not an overlap.
    """
    checks = []
    for a, b in combinations(rows, 2):
        asked, known = Counter(row.prompt for row in rows[a]), {(row.id, row.prompt) for row in rows[a]}
        shared = sum(asked[row.prompt] > ((row.id, row.prompt) in known) for row in rows[b])
        checks.append((f"prompts shared by {a} and {b}", shared, len(rows[b]), True))
    pools, pool = " and ".join(POOL_SPLITS), {row.id: row for split in POOL_SPLITS for row in rows[split]}
    for split in EVAL_SPLITS:
        part, named = rows[split], [row for row in rows[split] if row.retrieved_id is not None]
        own = sum(row.retrieved_id == row.id for row in named)
        outside = sum(row.retrieved_id not in pool for row in named)
        same = sum(pool[r.retrieved_id].prompt == r.prompt for r in named if r.retrieved_id in pool)
        one_sided = sum(not all(row.personas.get(f"retrieved-{side}") for side in SIDES) for row in part)
        near = len(near_duplicates([r.prompt for r in part], [r.prompt for r in pool.values()], threshold))
        repeats = f"{split} prompts that nearly repeat a training prompt (Jaccard >= {threshold})"
        checks += [
            (f"{split} rows that retrieve themselves", own, len(named), True),
            (f"{split} rows that retrieve a row with their own prompt", same, len(named), True),
            (f"{split} rows that retrieve from outside {pools}", outside, len(named), True),
            (f"{split} rows without both retrieved personas", one_sided, len(part), False),
            (repeats, near, len(part), False),
        ]
    return table_of(checks, columns=["check", "found", "of", "must_be_zero"])


# --- personas as texts (paper section 3) ---

# The annotator's refusals and error messages were kept as personas in the official data and are none.
REFUSAL = re.compile(r"^(i'?m sorry|sorry|i can(no|')t|i won't|i('| a)m unable|as an ai)\b", re.IGNORECASE)


def is_persona(text: str | None) -> bool:
    """Return whether an annotated persona is one: no refusal, and about "the user"."""
    text = (text or "").strip().replace("\u2019", "'")
    return not REFUSAL.match(text) and text.lower().startswith("the user")
