"""Build the tailoring data: pairs with their personas, split for training and evaluation (paper section 4).

A test row carries every persona it may be shown: gold (inferred from its own pair), retrieved (those of
the training row whose prompt is most like its own), shuffled (another row's gold ones: a null), system (one
for all), and user-written ones (of ``everyday``, or what the caller adds). Official data comes with gold and
retrieved personas. Retrieval is by BM25, or by a model of sentence-transformers: "dense" compares one vector
per prompt, "late" each token of one with each of the other (ColBERT, as in the paper).
"""

from __future__ import annotations

import random
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from persona_lib import store, weights
from persona_lib.data import everyday, intake, official, preference
from persona_lib.data.preference import derangement
from persona_lib.records import PAIR_SPLITS, SIDES, InferredPersona, PreferencePair, TailoringRow
from persona_lib.settings import Run
from persona_lib.texts import EVAL_SPLITS, POOL_SPLITS, leakage_report, normal

EVERYDAY_SHARES = {"sft_train": 0.5, "dpo_train": 0.5}  # it has validation topics of its own
TRAIN_SHARES = {"sft_train": 0.4, "sft_val": 0.1, "dpo_train": 0.4, "dpo_val": 0.1}
# One persona for everybody, worded by us after what the chosen personas of each data set have in common.
SYSTEM_PERSONAS = {
    "everyday": "The user is practical and prefers helpful answers that are easy to act on.",
    "beavertails": "The user is thorough and prefers answers that look at a question from several sides.",
    "hhh": "The user is practical and prefers factual answers that help to solve the problem.",
    "mnemonic": "The user is patient and prefers memory aids that lead to the meaning in small steps.",
}
CLAIMS = re.compile(r"^The user is (.+?),? and prefers (.+?)\.?$")
Rows = dict[str, list[TailoringRow]]
Personas = Mapping[str, Mapping[str, str | None]]  # id of a row -> name of a persona -> its text
Prompts = Sequence[tuple[str, str]]  # (id, prompt)
Scores = Iterable[Sequence[float]]  # one line per query, one column per pool row


def split_train(
    pairs: list[PreferencePair], seed: int, shares: dict[str, float] = TRAIN_SHARES
) -> dict[str, list[PreferencePair]]:
    """Split training pairs 40/10/40/10 (the paper's shares), all pairs of one prompt to one split."""
    groups: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        groups.setdefault(normal(pair.prompt), []).append(pair)
    prompts = sorted(groups)
    random.Random(f"tailoring-splits-{seed}").shuffle(prompts)
    return intake.fill_shares((groups[prompt] for prompt in prompts), shares)


def train_parts(run: Run, pairs: preference.Pairs) -> preference.Pairs:
    """Return a run's pairs for training and validation, by part."""
    if run.dataset != everyday.NAME:
        return split_train(pairs["train"], run.seed)
    parts = split_train(pairs["train"], run.seed, EVERYDAY_SHARES)
    return parts | dict.fromkeys(("sft_val", "dpo_val"), pairs["validation"])


def retrieved_ids(run: Run) -> dict[str, str]:
    """Return, by the id of a validation or test pair, the training pair whose personas it borrows."""
    pairs = preference.load_pairs(run)
    parts = train_parts(run, pairs)
    pool = [(pair.id, pair.prompt) for split in POOL_SPLITS for pair in parts[split]]
    queries = [(pair.id, pair.prompt) for split in EVAL_SPLITS for pair in pairs[split]]
    nearest = retrieve(queries, pool, *run.profile.data.retriever.split(":", 1))
    return {id: pool[best][0] for (id, _), best in zip(queries, nearest, strict=True)}


def persona_files(run: Run, parts: Iterable[str] = PAIR_SPLITS) -> list[Path]:
    """List the files of inferred personas that are there."""
    paths = [run.folder / "personas" / f"{split}-{side}.jsonl" for split in parts for side in SIDES]
    return [path for path in paths if path.exists()]


def load_personas(run: Run) -> Personas:
    """Read all inferred personas of a run: pair id -> {"gold-chosen": ..., "gold-rejected": ...}."""
    for split, side in [("train", "chosen"), *((run.profile.evaluation.split, side) for side in SIDES)]:
        if not (path := run.folder / "personas" / f"{split}-{side}.jsonl").exists():
            raise FileNotFoundError(f"{path} is missing: run notebook 03_persona_inference first")
    personas: dict[str, dict[str, str | None]] = {}
    for row in (row for path in persona_files(run) for row in store.read_rows(path, InferredPersona)):
        personas.setdefault(row.id, {})[f"gold-{row.side}"] = row.persona
    return personas


def to_rows(
    pairs: Iterable[PreferencePair], split: str, personas: Personas, retrieved: Mapping[str, str]
) -> list[TailoringRow]:
    """Give pairs their own personas and, where ``retrieved`` names a training row, its two gold ones."""
    rows = []
    for pair in pairs:
        source = retrieved.get(pair.id)
        borrowed = personas.get(source or "", {}).items()
        own = dict(personas.get(pair.id, {})) | {name.replace("gold", "retrieved"): p for name, p in borrowed}
        rows.append(TailoringRow(pair.id, split, pair.prompt, pair.chosen, pair.rejected, own, source))
    return rows


def shuffled_personas(rows: list[TailoringRow], seed: int) -> dict[str, dict[str, str | None]]:
    """Give every row with both gold personas those of another such row: a derangement fixed by the seed."""
    able = [row for row in rows if all(row.personas.get(f"gold-{side}") for side in SIDES)]
    givers = [able[index] for index in derangement(len(able), seed)] if len(able) > 1 else []
    return {
        row.id: {f"shuffled-{side}": giver.personas[f"gold-{side}"] for side in SIDES}
        for row, giver in zip(able, givers, strict=False)
    }


def add_personas(rows: list[TailoringRow], extra: Personas) -> list[TailoringRow]:
    """Return the rows with more personas, given by row id."""
    return [replace(row, personas=row.personas | dict(extra.get(row.id, {}))) for row in rows]


def common_persona(personas: Iterable[str | None]) -> str | None:
    """Return the system persona: the most common "is ..." and "prefers ..." (ties: the first by alphabet)."""
    claims = [match.groups() for match in map(CLAIMS.match, filter(None, personas)) if match]
    modes = [statistics.mode(sorted(said)) for said in zip(*claims, strict=True)]
    return "The user is {} and prefers {}.".format(*modes) if modes else None


def rows_from_pairs(run: Run) -> Rows:
    """Build all splits from a run's pairs and their personas, inferred or (``everyday``) brought, or both."""
    pairs, retrieved, brought = preference.load_pairs(run), retrieved_ids(run), run.dataset == everyday.NAME
    parts = train_parts(run, pairs)
    personas: Personas
    if brought:
        known = everyday.personas(run.profile.data.majority_share, run.seed)
        personas = {id: {f"gold-{s}": texts[f"gold-{s}"] for s in SIDES} for id, texts in known.items()}
    else:
        personas = load_personas(run)
    rows = {split: to_rows(part, split, personas, {}) for split, part in parts.items()}
    rows |= {split: to_rows(pairs[split], split, personas, retrieved) for split in EVAL_SPLITS}
    files = persona_files(run, ("train", "validation")) if brought else []
    found = [row for path in files for row in store.read_rows(path, InferredPersona) if row.side == "chosen"]
    inferred = {row.id: {"inferred-chosen": row.persona} for row in found}
    return {split: add_personas(part, inferred) for split, part in rows.items()}


def rows_from_official(run: Run) -> Rows:
    """Take the official rows over; validation is the released sft_val and dpo_val (the same ids)."""
    rows = official.load_official(preference.data_folder(run), run.dataset, run.profile.data.strip_roles)
    validation = [replace(row, split="validation") for row in rows["sft_val"] + rows["dpo_val"]]
    return {split: rows[split] for split in (*TRAIN_SHARES, "test")} | {"validation": validation}


def user_written(run: Run) -> dict[str, dict[str, str]]:
    """Return the evaluation rows' personas in users' own words, by row id; only ``everyday`` has any."""
    if run.dataset != everyday.NAME:
        return {}
    known, pairs = everyday.personas(run.profile.data.majority_share, run.seed), preference.load_pairs(run)
    rows = [pair for split in EVAL_SPLITS for pair in pairs[split]]
    return {pair.id: {f"user-{side}": known[pair.id][f"user-{side}"] for side in SIDES} for pair in rows}


def build_tailoring(run: Run, extra_personas: Personas | None = None) -> Path:
    """Write ``tailoring/<split>.jsonl`` and the leakage report of a run, once, and return the folder.

    ``extra_personas``: row id -> {"user-chosen": ..., "user-rejected": ...}, added to the rows.
    Raises ValueError, before anything is marked as finished, if a leakage check fails.
    """
    extra_personas = user_written(run) | dict(extra_personas or {})
    folder, key = run.folder / "tailoring", tailoring_key(run, extra_personas)
    if store.is_done(folder, key):
        return folder
    (folder / "done.json").unlink(missing_ok=True)
    rows = (rows_from_official if run.dataset in official.DATASETS else rows_from_pairs)(run)
    gold = [row.personas.get("gold-chosen") for split in TRAIN_SHARES for row in rows[split]]
    system = {"system": SYSTEM_PERSONAS.get(run.dataset) or common_persona(gold)}
    for split, part in rows.items():
        part = add_personas(part, {row.id: system for row in part})
        null = shuffled_personas(part, run.seed) if split in EVAL_SPLITS else {}
        rows[split] = add_personas(add_personas(part, null), extra_personas)
    write_tables(run, rows)
    for split, part in rows.items():
        store.write_rows(folder / f"{split}.jsonl", part)
    store.mark_done(folder, key, rows={split: len(part) for split, part in rows.items()})
    return folder


def tailoring_key(run: Run, extra_personas: Personas) -> str:
    """Return a hash of all that the tailoring data is made from."""
    data = run.profile.data
    settings = (data.near_duplicates, run.profile.evaluation.split, data.retriever)
    made_from = preference.input_key(run), run.seed, settings
    inputs = {path.name: store.file_hash(path) for path in persona_files(run)}
    return store.content_hash(store.VERSIONS["tailoring"], *made_from, inputs, dict(extra_personas))


def load_tailoring(run: Run) -> Rows:
    """Read the rows that `build_tailoring` wrote, by split."""
    folder = run.folder / "tailoring"
    if not (folder / "done.json").exists():
        raise FileNotFoundError(f"{folder}: no tailoring data yet; run notebook 05_tailoring_data first")
    splits = (*TRAIN_SHARES, *EVAL_SPLITS)
    return {split: store.read_rows(folder / f"{split}.jsonl", TailoringRow) for split in splits}


def write_tables(run: Run, rows: Rows) -> None:
    """Write the data card and the leakage report of a run; ValueError on a leak."""
    tables, threshold = run.folder / "tables", run.profile.data.near_duplicates
    report, place = leakage_report(rows, threshold), tables / "tailoring_leakage.csv"
    store.write_text(tables / "tailoring_card.csv", preference.data_card(rows, threshold).to_csv())
    store.write_text(place, report.to_csv(index=False))
    leaks = report[report.must_be_zero & (report.found > 0)]
    if found := [f"{leak.check}: {leak.found} of {leak.of}" for leak in leaks.itertuples()]:
        raise ValueError(f"{run.folder / 'tailoring'}: {'; '.join(found)}; the table is {place}")


# --- retrieval: for a new prompt, the training prompt that is most like it ---

# Similarities that differ by less count as equal: a model's depend on what else is in the batch.
DIGITS = 5


def retrieve(queries: Prompts, pool: Prompts, retriever: str = "bm25", model: str = "") -> list[int]:
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
