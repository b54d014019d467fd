"""Persona inference (paper section 3): write a persona for a side of a pair, judge it, and count its words.

An answer that is no persona (empty, a refusal, too long, not of the asked form) is typed and counted, and
never used as a persona.
"""

from __future__ import annotations

import csv
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_lib import intervals, store
from persona_lib.data import everyday, official, preference
from persona_lib.data.preference import inference_pairs, inference_split, load_pairs
from persona_lib.data.tailoring import retrieved_ids
from persona_lib.intervals import VERDICTS, drawn_columns, make_pool, seed_columns
from persona_lib.models.served import load_generator, role_key
from persona_lib.paper.judges import Comparisons, Judge, judge_both, load_judge, model_judge
from persona_lib.paper.judging import judge_key, runs_of, sampling
from persona_lib.paper.results import Row
from persona_lib.prompts import inference_prefix, inference_query, preference_prompt
from persona_lib.records import (
    HISTORY,
    SIDES,
    InferredPersona,
    PairwiseComparison,
    PreferencePair,
    Side,
    Table,
    stacked,
    table_of,
)
from persona_lib.settings import Profile, Run, deciding

Personas = dict[str, InferredPersona]  # by row id
MAX_WORDS = 40  # longer answers are not personas
KEYED = "personas.* generator.* data.retriever generation.engine evaluation.split evaluation.limit"
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
    wrong = {
        "empty": not line,
        "refusal": REFUSAL.search(line),
        "too_long": len(line.split()) > max_words,
        "malformed": not PERSONA_FORM.match(line),
        "loop": LOOP.search(line),
    }
    status = next((reason for reason, found in wrong.items() if found), "ok")
    return (line if status == "ok" else None), status


def sides_of(pair: PreferencePair, side: Side) -> tuple[str, str]:
    """Return (preferred, other) as the persona of this side sees them."""
    return (pair.chosen, pair.rejected) if side == "chosen" else (pair.rejected, pair.chosen)


def inference_shots(profile: Profile) -> list[tuple[str, str, str, str]]:
    """Return the solved items (prompt, preferred, other, persona) put before every query, whatever is asked.

    Of training topics the pair with the shortest responses, one per dimension.
    """
    able = [item for item in everyday.items() if item.split == "train" and "+" not in item.dimension]
    able.sort(key=lambda item: len(item.response_a + item.response_b))
    shortest = {item.dimension: item for item in reversed(able)}
    n = min(profile.personas.shots, len(shortest))
    rng, shots = random.Random("inference-sides"), []
    for name in random.Random("inference-shots").sample(sorted(shortest), n):
        item, (side, other) = shortest[name], rng.sample("ab", 2)
        texts = (getattr(item, f"response_{s}") for s in (side, other))
        shots.append((item.prompt, *texts, getattr(item, f"persona_{side}")))
    return shots


def infer_personas(
    generator: Any, pairs: Sequence[PreferencePair], side: Side, profile: Profile, path: Path
) -> list[InferredPersona]:
    """Infer one persona per pair for a side, appending to ``path``; rows already there are kept.

    A language model is prompted; a generator with ``write`` is given (prompt, preferred, other) items. A
    persona that the pair brings is taken as it is. Returns the rows of ``pairs`` in their order.
    """
    brought = f"persona_{side}"

    def infer(asked: list[tuple[Path, PreferencePair]]) -> Iterator[tuple[Path, InferredPersona]]:
        for _, pair in asked:
            if text := getattr(pair, brought):
                yield path, InferredPersona(pair.id, side, "given", text, "ok", text)
        missing = [pair for _, pair in asked if not getattr(pair, brought)]
        items = [(pair.prompt, *sides_of(pair, side)) for pair in missing]
        if hasattr(generator, "write"):
            answers: Iterable[tuple[int, str]] = enumerate(generator.write(items))
        else:
            shots, most = inference_prefix(inference_shots(profile)), profile.generator.max_new_tokens
            queries = [shots + inference_query(*item) for item in items]
            answers = ((n, made.text) for n, made in generator.generate(queries, most, STOPS))
        for n, text in answers:
            persona, status = parse_persona(text, MAX_WORDS)
            yield path, InferredPersona(missing[n].id, side, generator.name, persona, status, text)

    return store.resume({path: pairs}, InferredPersona, infer, profile.generator.batch_size)[path]


def to_infer(run: Run) -> list[tuple[str, Side, list[PreferencePair]]]:
    """Return (split, side, pairs) of all personas a run needs.

    Rows of ``everyday`` bring personas, too: there the evaluation pairs are asked about, and for the arm
    "inferred" the chosen side of training (without the solved items) and validation. Official data brings
    its personas: there only the authors' 300 pairs are asked about, as in the paper. Of other data,
    training rows need the sides that are trained on, plus the rejected persona of rows that retrieval lends
    to an evaluation prompt; evaluation rows need both sides, test users' history the chosen one.
    """
    profile, pairs, asked = run.profile, load_pairs(run), inference_split(run.profile, run.dataset)
    if preference.has_personas(run):
        work = [(asked, side, inference_pairs(run)) for side in SIDES]
        if run.dataset != everyday.NAME or "inferred" not in profile.training.arms:
            return work
        shown = {prompt for prompt, *_ in inference_shots(profile)}
        others = [split for split in ("train", "validation") if split != asked]
        return [(s, "chosen", [p for p in pairs[s] if p.prompt not in shown]) for s in others] + work
    work, lent = [], set(retrieved_ids(run).values())
    for side in SIDES:
        trained = side in profile.personas.train_sides
        work.append(("train", side, [pair for pair in pairs["train"] if trained or pair.id in lent]))
        work.append((asked, side, pairs[asked]))
    return work + ([(HISTORY, "chosen", pairs[HISTORY])] if HISTORY in pairs else [])


def personas_key(run: Run) -> str:
    """Hash of all that a run's inferred personas depend on."""
    settings = deciding(run.profile, KEYED), "inferred" in run.profile.training.arms
    pairs = store.read_json(run.folder / "pairs" / "done.json")["key"]
    inputs = (pairs, preference.input_key(run, "inference"), role_key(run, "generator"))
    return store.content_hash(store.VERSIONS["personas"], *settings, *inputs)


@store.one_at_a_time
def infer_run(run: Run) -> Path:
    """Infer all personas of a run into ``personas/<split>-<side>.jsonl``; resumes by row."""
    folder, key = run.folder / "personas", personas_key(run)
    if store.is_done(folder, key):
        return folder
    store.clear_unless(folder, key)
    generator, counts = load_generator(run, "generator"), {}
    for split, side, pairs in to_infer(run):
        rows = infer_personas(generator, pairs, side, run.profile, folder / f"{split}-{side}.jsonl")
        counts[f"{split}-{side}"] = found = dict(Counter(row.status for row in rows))
        print(f"{split}, {side} side: {len(rows)} personas asked for, {found}", flush=True)
    store.mark_done(folder, key, statuses=counts)
    return folder


def read_personas(run: Run, split: str, side: Side) -> Personas:
    """Return the inferred personas of a split and side by row id."""
    rows = store.read_rows(run.folder / "personas" / f"{split}-{side}.jsonl", InferredPersona)
    return {row.id: row for row in rows}


# --- Judging inferred personas: accuracy (Figure 3) and preference (Figure 4) ---

ITEMS = "persona_accuracy_items.csv"  # verdicts that ``judge_run`` leaves: a row per pair and side
PREFERENCES = "persona_preference_items.csv"  # a row per pair: "win" if P_C is the more plausible user
Verdicts = dict[str, str]  # by id of a pair; "" where there was nothing to judge
Items = Mapping[str, Mapping[int, Verdicts]]  # by side ("both" of a preference) and seed


def verdicts_of(judge: Judge, pairs: Sequence[PreferencePair], compared: Comparisons) -> Verdicts:
    """Return the verdict of both orders by id of a pair."""
    judged = judge_both(judge, compared, "personalization")
    return {pair.id: "" for pair in pairs} | {ab.id: intervals.verdict_of(ab, ba) for ab, ba in judged}


def judge_personas(judge: Judge, pairs: Sequence[PreferencePair], personas: Personas, side: Side) -> Verdicts:
    """Return verdicts: does a judge that is told a persona pick its response? "" without a valid persona."""
    both = [(pair, persona) for pair in pairs if (persona := personas[pair.id].persona)]
    compared = [PairwiseComparison(p.id, p.prompt, told, *sides_of(p, side)) for p, told in both]
    return verdicts_of(judge, pairs, compared)


def judge_run(run: Run) -> list[Path]:
    """Judge a run's inferred personas, once, into ``ITEMS`` and ``PREFERENCES``; empty without a judge.

    Of preferences, a language model is asked in both orders; the backwards judge compares
    log p(persona | question) per word. Rules judge none.
    """
    name, accuracy, preferences = run.profile.persona_judge, [], {}
    texts = [store.file_hash(path) for path in sorted((run.folder / "personas").glob("*.jsonl"))]
    key = store.content_hash(store.VERSIONS["personas"], judge_key(run, name=name), texts)
    folder, paths = run.folder / "judged_personas", [run.folder / "tables" / f for f in (ITEMS, PREFERENCES)]
    if store.is_done(folder, key) and all(path.exists() for path in paths):
        return paths
    if name != "none":
        judge, pairs = load_judge(run, name), inference_pairs(run)
        personas = [read_personas(run, inference_split(run.profile, run.dataset), side) for side in SIDES]
        for side, found in zip(SIDES, personas, strict=True):
            verdicts = judge_personas(judge, pairs, found, side)
            accuracy += [(id, side, verdict) for id, verdict in verdicts.items()]
        asked = getattr(judge, "plausible", None)
        if name == "lm":
            asked = model_judge(run, prompt=preference_prompt)
        users = [(pair, personas[0][pair.id].persona, personas[1][pair.id].persona) for pair in pairs]
        compared = [PairwiseComparison(p.id, p.prompt, None, c, r) for p, c, r in users if c and r]
        preferences = verdicts_of(asked, pairs, compared) if asked else {}
    tables = (table_of(accuracy, ["id", "side", "verdict"]),
              table_of(list(preferences.items()), ["id", "verdict"]))  # fmt: skip
    for path, table in zip(paths, tables, strict=True):
        store.write_text(path, store.people_csv(table))
    store.mark_done(folder, key)
    return paths


def read_items(profile: Profile, file: str) -> Iterator[tuple[Row, Items, tuple[int, int, bool]]]:
    """Yield, per data set with verdicts, what identifies it, the verdicts, and how they are resampled."""
    for dataset in profile.datasets:
        runs = runs_of(profile, dataset)
        items: dict[str, dict[int, Verdicts]] = {}
        for run in runs:
            path = run.folder / "tables" / file
            for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines() if path.exists() else ()):
                by_seed = items.setdefault(row.get("side", "both"), {})
                by_seed.setdefault(run.seed, {})[row["id"]] = row["verdict"]
        if items:
            yield {"dataset": dataset, "split": inference_split(profile, dataset)}, items, sampling(runs)


def accuracy_table(profile: Profile) -> Table:
    """Return persona accuracy per data set and side, and chosen minus rejected (paper Fig. 3)."""
    found = read_items(profile, ITEMS)
    return table_of(line for head, items, how in found for line in accuracy_rows(head, items, *how))


def accuracy_rows(head: Row, items: Items, samples: int, number: int, shared: bool) -> list[Row]:
    """Return a row per side of the verdicts of several seeds, and chosen minus rejected.

    One pair is one observation: right in both orders is correct, wrong in both is wrong, otherwise a tie.
    Pairs without a verdict or a valid persona stay in ``n``. See `judging.sampling` for the last three.
    """
    points, lines = {"win": 1.0, "tie": 0.5}, []  # any other verdict, or no persona, is 0
    right = {side: [{i: points.get(v, 0.0) for i, v in found.items()} for found in by_seed.values()]
             for side, by_seed in items.items()}  # fmt: skip
    pool = make_pool(right, samples, number, shared, lambda side: 0)
    for side, by_seed in items.items():
        counts = Counter(verdict for found in by_seed.values() for verdict in found.values())
        lines.append(head | {
            "side": side, "n": counts.total(), **seed_columns([*by_seed]),
            "n_correct": counts["win"], "n_ties": counts["tie"], "n_wrong": counts["loss"],
            "n_unparsed": counts["unparsed"], "n_missing": counts[""],
            **drawn_columns({"accuracy": pool[side]}),
        })  # fmt: skip
    gap = drawn_columns({"accuracy": pool["chosen"] - pool["rejected"]})
    return [*lines, head | {"side": "chosen - rejected", "n_seeds": len(items["chosen"])} | gap]


def preference_table(profile: Profile) -> Table:
    """Return how often P_C is the more plausible user than P_R, and the net rate (paper Fig. 4)."""
    lines = []
    for head, items, how in read_items(profile, PREFERENCES):
        by_seed = items["both"]
        counts = Counter(verdict for found in by_seed.values() for verdict in found.values())
        valid = [{i: verdict for i, verdict in found.items() if verdict} for found in by_seed.values()]
        if any(valid):
            sizes = {"n": sum(map(len, valid)), **seed_columns([*by_seed])}
            columns = {verdict: counts[verdict] for verdict in VERDICTS} | {"n_missing": counts[""]}
            net = make_pool({"net": intervals.signs(valid)}, *how, lambda name: -1)
            lines.append(head | sizes | columns | drawn_columns(net))
    return table_of(lines)


# --- Words that mark one side's personas (Table 1) ---

SHOWN_WORDS = 15  # words shown per side
WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")  # hyphenated words ("to-the-point") stay whole
NORMAL_95 = 1.959964


def word_saliency(
    chosen: Iterable[str], rejected: Iterable[str], min_count: int = 10, prior_size: float = 500.0
) -> Table:
    """Return words by how typical they are of chosen personas: the least typical first (paper Table 1).

    Log-odds under a Dirichlet prior (Monroe et al. 2008, eq. 16-22), with 95 % limits; y = a word's count on
    a side, n = all words there, a = the prior, ``prior_size`` words spread as in both sides together:
    log((y1+a) / (n1+a0-y1-a)) - log((y2+a) / (n2+a0-y2-a)), variance 1/(y1+a) + 1/(y2+a). ``z`` is the
    log-odds in standard errors, ``p_holm`` its two-sided p, corrected for the number of words. Words with
    fewer than ``min_count`` occurrences on both sides together are left out of the table, not of n.
    """
    from scipy.stats import norm

    sides = [Counter(w for text in side for w in WORD.findall(text.lower())) for side in (chosen, rejected)]
    both = sides[0] + sides[1]
    words = sorted(word for word, n in both.items() if n >= min_count) if len(both) > 1 else []
    y = np.array([[counts[word] for word in words] for counts in sides], dtype=float)
    n = np.array([[counts.total()] for counts in sides])
    prior = prior_size * y.sum(axis=0) / max(both.total(), 1)
    logs = np.log((y + prior) / (n + prior_size - y - prior))
    delta, error = logs[0] - logs[1], np.sqrt((1 / (y + prior)).sum(axis=0))
    z = delta / error
    return table_of({
        "word": words, "n_chosen": y[0].astype(int), "n_rejected": y[1].astype(int),
        "log_odds": delta, "log_odds_low": delta - NORMAL_95 * error,
        "log_odds_high": delta + NORMAL_95 * error, "z": z, "p_holm": intervals.holm(2 * norm.sf(abs(z))),
    }).sort_values("z", kind="stable")  # fmt: skip


def typical_words(dataset: str, personas: Mapping[Side, Sequence[str | None]]) -> Table:
    """Return the words most typical of each side's personas of a data set, the most typical first."""
    texts = [filter(None, personas[side]) for side in SIDES]
    table = word_saliency(texts[0], texts[1]).assign(dataset=dataset)
    chosen = table[table.z > 0][::-1].head(SHOWN_WORDS).assign(side="chosen")
    return stacked([chosen, table[table.z <= 0].head(SHOWN_WORDS).assign(side="rejected")])


def words_table(profile: Profile) -> Table:
    """Return the words that are most typical of each side's personas, over all seeds (paper Table 1)."""
    parts = []
    for dataset in profile.datasets:
        split = inference_split(profile, dataset)
        runs = [run for run in runs_of(profile, dataset) if (run.folder / "personas" / "done.json").exists()]
        texts = {side: [row.persona for run in runs for row in read_personas(run, split, side).values()]
                 for side in SIDES}  # fmt: skip
        parts.append(typical_words(dataset, texts))
    return stacked(parts)


def released_words(profile: Profile) -> Table:
    """Return the same for the authors' released gold personas, of all splits; empty without real data."""
    parts = []
    for dataset in profile.datasets:
        if official.DATASETS.get(dataset, {}).get("rows"):
            splits = official.load_official(official.find_data_dir(profile.data.path, [dataset]), dataset)
            rows = [row for split, part in splits.items() if split != "fewshot" for row in part]
            texts = {side: [row.personas[f"gold-{side}"] for row in rows] for side in SIDES}
            parts.append(typical_words(dataset, texts))
    return stacked(parts)


PERSONA_TABLES = {
    "persona_accuracy": accuracy_table,
    "persona_preference": preference_table,
    "words": words_table,
}
