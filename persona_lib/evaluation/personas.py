"""Persona inference (paper section 3): write a persona for a side of a pair, and say whether it is one.

An answer that is no persona (empty, a refusal, too long, not of the asked form) is typed and counted,
and never used as a persona.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.config import Run
from persona_lib.data import everyday
from persona_lib.data.preference import (
    has_personas,
    inference_key,
    inference_pairs,
    inference_split,
    load_pairs,
)
from persona_lib.data.tailoring import retrieved_train_ids
from persona_lib.models.generators import load_generator, role_key
from persona_lib.profiles import Profile
from persona_lib.prompts import inference_prefix, inference_query
from persona_lib.records import SIDES, InferredPersona, PreferencePair, Side
from persona_lib.store import VERSIONS

STOPS = ("\n",)
REFUSAL = re.compile(
    r"\b(I can(?:'|no)t|I cannot|I'm sorry|I am sorry|as an AI|unable to|error in|cannot provide)\b",
    re.IGNORECASE,
)
LOOP = re.compile(r"\b(\w+(?:\W+\w+){0,3})(?:\W+\1\b){2}", re.IGNORECASE)
PERSONA_FORM = re.compile(r"^The user (is|prefers)\b", re.IGNORECASE)


def parse_persona(raw: str, max_words: int) -> tuple[str | None, str]:
    """Return (persona, "ok"), or (None, reason): "empty", "refusal", "too_long", "malformed" or "loop".

    The persona is the first line of the answer and must begin "The user is" or "The user prefers".
    A line that says the same one to four words three times running is a loop.
    """
    line = next((text.strip() for text in raw.splitlines() if text.strip()), "")
    if not line:
        return None, "empty"
    if REFUSAL.search(line):
        return None, "refusal"
    if len(line.split()) > max_words:
        return None, "too_long"
    if not PERSONA_FORM.match(line):
        return None, "malformed"
    if LOOP.search(line):
        return None, "loop"
    return line, "ok"


def sides_of(pair: PreferencePair, side: Side) -> tuple[str, str]:
    """Return (preferred, other) as the persona of this side sees them."""
    return (pair.chosen, pair.rejected) if side == "chosen" else (pair.rejected, pair.chosen)


def shot_items(profile: Profile) -> list[everyday.Item]:
    """Return the pairs that the solved items come from, the same for every data set, seed and model.

    They are on training topics, one per dimension: the one with the shortest responses, which every query is
    read after.
    """
    able = [item for item in everyday.items() if item.split == "train" and "+" not in item.dimension]
    shortest: dict[str, everyday.Item] = {}
    for item in sorted(able, key=lambda item: len(item.response_a + item.response_b)):
        shortest.setdefault(item.dimension, item)
    drawn = random.Random("inference-shots").sample(sorted(shortest), min(profile.pi_shots, len(shortest)))
    return [shortest[name] for name in drawn]


def inference_shots(profile: Profile) -> list[tuple[str, str, str, str]]:
    """Return the solved items (prompt, preferred, other, persona) put before every query."""
    rng, shots = random.Random("inference-sides"), []
    for item in shot_items(profile):
        side, other = rng.sample("ab", 2)
        texts = (getattr(item, f"response_{s}") for s in (side, other))
        shots.append((item.prompt, *texts, getattr(item, f"persona_{side}")))
    return shots


def written(
    generator: Any, items: Sequence[tuple[str, str, str]], profile: Profile
) -> Iterator[tuple[int, str]]:
    """Yield (index, answer) for (prompt, preferred, other) items.

    A language model is prompted; a generator with ``write`` is given the items themselves.
    """
    if hasattr(generator, "write"):
        yield from enumerate(generator.write(items))
        return
    queries, shots = [inference_query(*item) for item in items], inference_prefix(inference_shots(profile))
    answers = generator.generate(queries, profile.pi_max_new_tokens, STOPS, prefix=shots)
    yield from ((index, completion.text) for index, completion in answers)


def infer_personas(
    generator: Any, pairs: Sequence[PreferencePair], side: Side, profile: Profile, path: Path
) -> list[InferredPersona]:
    """Infer one persona per pair for a side, appending to ``path``; rows already there are kept.

    Returns all rows of the file that belong to ``pairs``, in their order.
    """
    store.repair_rows(path)
    known = {row.id: row for row in store.read_rows(path, InferredPersona)} if path.exists() else {}
    missing = [pair for pair in pairs if pair.id not in known]
    items = [(pair.prompt, *sides_of(pair, side)) for pair in missing]
    batch: list[InferredPersona] = []
    for index, text in written(generator, items, profile):
        persona, status = parse_persona(text, profile.pi_max_words)
        batch.append(InferredPersona(missing[index].id, side, generator.name, persona, status, text))
        if len(batch) >= profile.pi_batch_size:
            store.append_rows(path, batch)
            known |= {row.id: row for row in batch}
            batch = []
    store.append_rows(path, batch)
    known |= {row.id: row for row in batch}
    return [known[pair.id] for pair in pairs]


def count_statuses(personas: Sequence[InferredPersona]) -> dict[str, int]:
    """Count how the answers were read: ok, empty, refusal, too_long, malformed, loop."""
    return dict(Counter(row.status for row in personas))


def to_infer(run: Run) -> list[tuple[str, Side, list[PreferencePair]]]:
    """Return (split, side, pairs) of all personas a run needs.

    Rows of ``everyday`` bring personas, too: there the evaluation pairs are asked about, and for the arm
    "inferred" the chosen side of training (without the solved items) and validation. Training rows need the
    sides that are trained on, plus the rejected persona of those rows that retrieval lends to an evaluation
    prompt; evaluation rows need both sides. Official data brings its personas: there only the authors' 300
    pairs are asked about, as in the paper.
    """
    if run.dataset == everyday.NAME:
        pairs, split = load_pairs(run), run.profile.eval_split
        work = [(split, side, inference_pairs(run)) for side in SIDES]
        if "inferred" not in run.profile.train_personas:
            return work
        shown = {item.id for item in shot_items(run.profile)}
        asked = {
            name: [pair for pair in pairs[name] if pair.id not in shown] for name in ("train", "validation")
        }
        return [(name, "chosen", found) for name, found in asked.items() if name != split] + work
    if has_personas(run):
        return [(inference_split(run.profile, run.dataset), side, inference_pairs(run)) for side in SIDES]
    pairs, work = load_pairs(run), []
    lent = set(retrieved_train_ids(run))
    for side in SIDES:
        trained = side in run.profile.pi_train_sides
        work.append(("train", side, [pair for pair in pairs["train"] if trained or pair.id in lent]))
        work.append((run.profile.eval_split, side, pairs[run.profile.eval_split]))
    return work


def personas_key(run: Run) -> str:
    """Hash of all that a run's inferred personas depend on."""
    settings = {
        n: v
        for n, v in vars(run.profile).items()
        if n.startswith(("pi_", "retriever"))
        or n in ("generator_model", "generator_url", "generator_kind", "engine", "eval_split", "eval_limit")
    }
    return store.content_hash(
        VERSIONS["personas"],
        settings,
        "inferred" in run.profile.train_personas,
        store.read_json(run.folder / "pairs" / "done.json")["key"],
        inference_key(run),
        role_key(run, "generator"),
    )


def infer_run(run: Run) -> Path:
    """Infer all personas of a run into ``personas/<split>-<side>.jsonl``; resumes by row."""
    folder, key = run.folder / "personas", personas_key(run)
    if store.is_done(folder, key):
        return folder
    store.clear_unless(folder, key)
    generator, counts = load_generator(run, "generator", run.profile.pi_batch_size), {}
    for split, side, pairs in to_infer(run):
        rows = infer_personas(generator, pairs, side, run.profile, folder / f"{split}-{side}.jsonl")
        counts[f"{split}-{side}"] = count_statuses(rows)
        print(
            f"{split}, {side} side: {len(rows)} personas asked for, {counts[f'{split}-{side}']}", flush=True
        )
    store.mark_done(folder, key, statuses=counts, generator=generator.settings)
    return folder


def user_personas(run: Run) -> dict[str, dict[str, str]]:
    """Return the evaluation rows' personas in users' own words, by row id; only ``everyday`` has any."""
    if run.dataset != everyday.NAME:
        return {}
    known, pairs = everyday.personas(run.profile.majority_share, run.seed), load_pairs(run)
    return {
        pair.id: {f"user-{side}": known[pair.id][f"user-{side}"] for side in SIDES}
        for pair in [*pairs["validation"], *pairs["test"]]
    }
