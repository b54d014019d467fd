"""Persona inference (paper section 3): write a persona for a side of a pair, judge it, and count its words.

An answer that is no persona (empty, a refusal, too long, not of the asked form) is typed and counted, and
never used as a persona.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib import store
from persona_lib.data import everyday, official
from persona_lib.data.preference import (
    has_personas,
    inference_pairs,
    inference_split,
    input_key,
    load_pairs,
)
from persona_lib.data.tailoring import retrieved_ids
from persona_lib.intervals import (
    WinRate,
    drawn_columns,
    holm,
    make_pool,
    seed_columns,
    signs,
    table_of,
    verdict_of,
)
from persona_lib.models.served import load_generator, role_key
from persona_lib.paper.judges import BackwardsJudge, Judge, asked_of, letter_judge, load_judge
from persona_lib.paper.judging import judge_both, runs_of, same_items
from persona_lib.paper.results import Row
from persona_lib.prompts import inference_prefix, inference_query, preference_prompt
from persona_lib.records import (
    HISTORY,
    SIDES,
    InferredPersona,
    PairwiseComparison,
    PreferencePair,
    Side,
    Verdict,
)
from persona_lib.settings import Profile, Run, deciding

if TYPE_CHECKING:
    import pandas as pd


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
    """Return the pairs of the solved items, the same for every data set, seed and model.

    They are on training topics, one per dimension: the pair with the shortest responses.
    """
    able = [item for item in everyday.items() if item.split == "train" and "+" not in item.dimension]
    able.sort(key=lambda item: len(item.response_a + item.response_b))
    shortest = {item.dimension: item for item in reversed(able)}
    shots = min(profile.personas.shots, len(shortest))
    return [shortest[name] for name in random.Random("inference-shots").sample(sorted(shortest), shots)]


def inference_shots(profile: Profile) -> list[tuple[str, str, str, str]]:
    """Return the solved items (prompt, preferred, other, persona) put before every query."""
    rng, shots = random.Random("inference-sides"), []
    for item in shot_items(profile):
        side, other = rng.sample("ab", 2)
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

    def infer(missing: list[PreferencePair]) -> Iterator[InferredPersona]:
        for pair in missing:
            if text := getattr(pair, brought):
                yield InferredPersona(pair.id, side, "given", text, "ok", text)
        missing = [pair for pair in missing if not getattr(pair, brought)]
        items = [(pair.prompt, *sides_of(pair, side)) for pair in missing]
        if hasattr(generator, "write"):
            answers = enumerate(generator.write(items))
        else:
            shots, most = inference_prefix(inference_shots(profile)), profile.generator.max_new_tokens
            queries = [shots + inference_query(*item) for item in items]
            answers = ((n, made.text) for n, made in generator.generate(queries, most, STOPS))
        for n, text in answers:
            persona, status = parse_persona(text, MAX_WORDS)
            yield InferredPersona(missing[n].id, side, generator.name, persona, status, text)

    return store.resume(path, InferredPersona, pairs, infer, profile.generator.batch_size)


def to_infer(run: Run) -> list[tuple[str, Side, list[PreferencePair]]]:
    """Return (split, side, pairs) of all personas a run needs.

    Rows of ``everyday`` bring personas, too: there the evaluation pairs are asked about, and for the arm
    "inferred" the chosen side of training (without the solved items) and validation. Official data brings
    its personas: there only the authors' 300 pairs are asked about, as in the paper. Of other data,
    training rows need the sides that are trained on, plus the rejected persona of rows that retrieval lends
    to an evaluation prompt; evaluation rows need both sides, test users' history the chosen one.
    """
    asked = inference_split(run.profile, run.dataset)
    if has_personas(run):
        work = [(asked, side, inference_pairs(run)) for side in SIDES]
        if run.dataset != everyday.NAME or "inferred" not in run.profile.training.arms:
            return work
        pairs = load_pairs(run)
        shown = {item.id for item in shot_items(run.profile)}
        others = [split for split in ("train", "validation") if split != asked]
        return [(name, "chosen", [p for p in pairs[name] if p.id not in shown]) for name in others] + work
    work, pairs, lent = [], load_pairs(run), set(retrieved_ids(run).values())
    for side in SIDES:
        trained = side in run.profile.personas.train_sides
        work.append(("train", side, [pair for pair in pairs["train"] if trained or pair.id in lent]))
        work.append((asked, side, pairs[asked]))
    return work + ([(HISTORY, "chosen", pairs[HISTORY])] if HISTORY in pairs else [])


def personas_key(run: Run) -> str:
    """Hash of all that a run's inferred personas depend on."""
    settings = deciding(run.profile, KEYED), "inferred" in run.profile.training.arms
    pairs = store.read_json(run.folder / "pairs" / "done.json")["key"]
    inputs = (pairs, input_key(run, "inference"), role_key(run, "generator"))
    return store.content_hash(store.VERSIONS["personas"], *settings, *inputs)


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
    store.mark_done(folder, key, statuses=counts, generator=generator.settings)
    return folder


def read_personas(run: Run, split: str, side: Side) -> Personas:
    """Return the inferred personas of a split and side by row id."""
    rows = store.read_rows(run.folder / "personas" / f"{split}-{side}.jsonl", InferredPersona)
    return {row.id: row for row in rows}


def user_personas(run: Run) -> dict[str, dict[str, str]]:
    """Return the evaluation rows' personas in users' own words, by row id; only ``everyday`` has any."""
    if run.dataset != everyday.NAME:
        return {}
    known, pairs = everyday.personas(run.profile.data.majority_share, run.seed), load_pairs(run)
    return {
        pair.id: {f"user-{side}": known[pair.id][f"user-{side}"] for side in SIDES}
        for pair in [*pairs["validation"], *pairs["test"]]
    }


# --- Judging inferred personas: accuracy (Figure 3) and preference (Figure 4) ---


ACCURACY = {"win": 1.0, "tie": 0.5}  # any other verdict, or no persona, is 0: the mean is the accuracy
ITEMS = "persona_accuracy_items.csv"  # verdicts that ``judge_run`` leaves: a row per pair and side
PREFERENCES = "persona_preference_items.csv"  # a row per pair: "win" if P_C is the more plausible user
ITEM = ["id", "side", "verdict"]  # verdict: "" without a persona
Items = Sequence[Mapping[str, str]]  # rows of ``ITEMS``


def verdicts_of(judge: Judge, comparisons: Sequence[PairwiseComparison]) -> dict[str, Verdict]:
    """Return the verdict of both orders by id."""
    judged = judge_both(judge, comparisons, "personalization")
    return {pair[0].id: verdict_of(*pair) for pair in judged}


def judge_personas(
    judge: Judge, pairs: Sequence[PreferencePair], personas: Iterable[InferredPersona], side: Side
) -> list[tuple[str, Verdict | None]]:
    """Return (id, verdict) per pair: does a judge that is shown its persona pick its response (accuracy)?

    "win" means yes in both orders; None that no valid persona was inferred.
    """
    found = {row.id: row.persona for row in personas}
    told = [(pair, persona) for pair in pairs if (persona := found[pair.id])]
    verdicts = verdicts_of(
        judge, [PairwiseComparison(p.id, p.prompt, persona, *sides_of(p, side)) for p, persona in told]
    )
    return [(pair.id, verdicts.get(pair.id)) for pair in pairs]


def judge_preferences(run: Run, chosen: Personas, rejected: Personas) -> list[tuple[str, Verdict | None]]:
    """Return (id, verdict) per scored pair: is P_C the more plausible user (win), or P_R (loss)?

    None where a side has no persona. A language model is asked in both orders; the backwards judge compares
    log p(persona | question) per word. Without either nothing is judged and the list is empty.
    """
    name, role = run.profile.persona_judge, run.profile.judge
    if name == "lm":
        generator = load_generator(run, "judge")
        how = role.max_new_tokens, asked_of(generator, role.kind), preference_prompt
        judge = letter_judge(generator, *how)
    elif name == "backwards":
        judge = BackwardsJudge(run).plausible
    else:
        return []
    pairs = inference_pairs(run)
    both = [(pair, chosen[pair.id].persona, rejected[pair.id].persona) for pair in pairs]
    comparisons = [PairwiseComparison(p.id, p.prompt, None, *two) for p, *two in both if all(two)]
    verdicts = verdicts_of(judge, comparisons)
    return [(pair.id, verdicts.get(pair.id)) for pair in pairs]


def judge_run(run: Run) -> list[Path]:
    """Judge a run's inferred personas into ``ITEMS`` and ``PREFERENCES``; both are empty without a judge."""
    items, preferences, name = [], [], run.profile.persona_judge
    if name != "none":
        split, judge = inference_split(run.profile, run.dataset), load_judge(run, name)
        personas = {side: read_personas(run, split, side) for side in SIDES}
        for side, found in personas.items():
            judged = judge_personas(judge, inference_pairs(run), found.values(), side)
            items += [(i, side, verdict) for i, verdict in judged]
        preferences = judge_preferences(run, *personas.values())
    folder = run.folder / "tables"
    store.write_text(folder / ITEMS, table_of(items, columns=ITEM).to_csv(index=False))
    columns = ["id", "verdict"]
    store.write_text(folder / PREFERENCES, table_of(preferences, columns=columns).to_csv(index=False))
    return [folder / ITEMS, folder / PREFERENCES]


def read_items(path: Path) -> Items:
    """Return the rows of ``ITEMS`` or ``PREFERENCES``; none without the file."""
    import pandas as pd

    return pd.read_csv(path, dtype=str, na_filter=False).to_dict("records") if path.exists() else []


def accuracy_table(profile: Profile) -> pd.DataFrame:
    """Return persona accuracy per data set and side, and chosen minus rejected (paper Fig. 3)."""
    lines: list[Row] = []
    for number, dataset in enumerate(profile.datasets):
        runs = runs_of(profile, dataset)
        items = {run.seed: read_items(run.folder / "tables" / ITEMS) for run in runs}
        how = profile.evaluation.bootstrap_samples, number, same_items(tuple(runs))
        head = {"dataset": dataset, "split": inference_split(profile, dataset)}
        lines += accuracy_rows(head, items, *how)
    return table_of(lines)


def accuracy_rows(head: Row, items: dict[int, Items], samples: int, number: int, shared: bool) -> list[Row]:
    """Return a row per side of the items of several seeds, and chosen minus rejected; none without items.

    One pair is one observation: right in both orders is correct, wrong in both is wrong, otherwise a tie.
    Pairs without a verdict or without a valid persona stay in ``n``. ``number`` seeds the bootstrap;
    ``shared`` says that all seeds have the same pairs.
    """
    if not any(items.values()):
        return []
    rows_of = {
        side: [[row for row in rows if row["side"] == side] for rows in items.values()] for side in SIDES
    }
    columns = {
        side: [{row["id"]: ACCURACY.get(row["verdict"], 0.0) for row in rows} for rows in by_seed]
        for side, by_seed in rows_of.items()
    }
    pool, seeds, lines = make_pool(columns, samples, number, shared), [s for s in items if items[s]], []
    for side, by_seed in rows_of.items():
        verdicts = [row["verdict"] for rows in by_seed for row in rows]
        counts = WinRate.from_verdicts(filter(None, verdicts))
        lines.append(head | {
            "side": side, "n": len(verdicts), **seed_columns(seeds),
            "n_correct": counts.n_wins, "n_ties": counts.n_ties, "n_wrong": counts.n_losses,
            "n_unparsed": counts.n_unparsed, "n_missing": len(verdicts) - counts.n,
            **drawn_columns({"accuracy": pool[side]}),
        })  # fmt: skip
    gap = drawn_columns({"accuracy": pool["chosen"] - pool["rejected"]})
    return [*lines, head | {"side": "chosen - rejected", "n_seeds": len(seeds)} | gap]


def preference_table(profile: Profile) -> pd.DataFrame:
    """Return how often P_C is the more plausible user than P_R, and the net rate (paper Fig. 4)."""
    lines = []
    for number, dataset in enumerate(profile.datasets):
        runs = runs_of(profile, dataset)
        by_seed = [read_items(run.folder / "tables" / PREFERENCES) for run in runs]
        valid = [{row["id"]: row["verdict"] for row in rows if row["verdict"]} for rows in by_seed]
        if not any(valid):
            continue
        counts = WinRate.from_verdicts(v for verdicts in valid for v in verdicts.values())
        columns = {"net": signs(valid)}
        pool = make_pool(columns, profile.evaluation.bootstrap_samples, number, same_items(tuple(runs)))
        seeds = [run.seed for run, found in zip(runs, by_seed, strict=True) if found]
        lines.append({"dataset": dataset, "split": inference_split(profile, dataset), "n": counts.n,
                      **seed_columns(seeds), "win": counts.n_wins,
                      "tie": counts.n_ties, "loss": counts.n_losses, "unparsed": counts.n_unparsed,
                      "n_missing": sum(map(len, by_seed)) - counts.n,
                      **drawn_columns(pool)})  # fmt: skip
    return table_of(lines)


# --- Words that mark one side's personas (Table 1) ---


SHOWN_WORDS = 15  # words shown per side
WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")  # hyphenated words ("to-the-point") stay whole
NORMAL_95 = 1.959964


def word_saliency(
    chosen: Iterable[str], rejected: Iterable[str], min_count: int = 10, prior_size: float = 500.0
) -> pd.DataFrame:
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
        "share_chosen": y[0] / y.sum(axis=0), "log_odds": delta, "log_odds_low": delta - NORMAL_95 * error,
        "log_odds_high": delta + NORMAL_95 * error, "z": z, "p_holm": holm(2 * norm.sf(abs(z))),
    }).sort_values("z", kind="stable")  # fmt: skip


def typical_words(texts: Mapping[str, Mapping[Side, Iterable[str | None]]]) -> pd.DataFrame:
    """Return, per data set, the words most typical of each side's personas, by z, the most typical first."""
    import pandas as pd

    parts = []
    for dataset, by_side in texts.items():
        table = word_saliency(*([text for text in by_side[side] if text] for side in SIDES))
        for side, words in zip(SIDES, (table[table.z > 0][::-1], table[table.z <= 0]), strict=True):
            named = words.head(SHOWN_WORDS)
            named.insert(0, "dataset", dataset)
            named.insert(1, "side", side)
            parts.append(named)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def words_table(profile: Profile) -> pd.DataFrame:
    """Return the words that are most typical of each side's personas, over all seeds (paper Table 1)."""
    texts = {}
    for dataset in profile.datasets:
        files = [f"{inference_split(profile, dataset)}-{side}.jsonl" for side in SIDES]
        folders = [run.folder / "personas" for run in runs_of(profile, dataset)]
        there = [folder for folder in folders if all((folder / file).exists() for file in files)]
        texts[dataset] = {
            side: [row["persona"] for folder in there for row in store.iter_rows(folder / file)]
            for side, file in zip(SIDES, files, strict=True)
        }
    return typical_words(texts)


def released_words(profile: Profile) -> pd.DataFrame:
    """Return the same for the authors' released gold personas, of all splits; empty without real data."""
    texts = {}
    for dataset in profile.datasets:
        if official.DATASETS.get(dataset, {}).get("tailoring"):
            splits = official.load_official(official.find_data_dir(profile.data.path, [dataset]), dataset)
            rows = [row for split, part in splits.items() if split != "fewshot" for row in part]
            texts[dataset] = {side: [row.personas[f"gold-{side}"] for row in rows] for side in SIDES}
    return typical_words(texts)


PERSONA_TABLES = {
    "persona_accuracy": accuracy_table,
    "persona_preference": preference_table,
    "words": words_table,
}
