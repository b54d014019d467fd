"""Persona inference (paper section 3): write a persona for a side of a pair, and say whether it is one.

An answer that is no persona (empty, a refusal, too long, not of the asked form) is typed and counted,
and never used as a persona.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib import store
from persona_lib.data import everyday, official
from persona_lib.data.preference import (
    has_personas,
    inference_key,
    inference_pairs,
    inference_split,
    load_pairs,
)
from persona_lib.data.tailoring import retrieved_train_ids
from persona_lib.intervals import (
    Interval,
    PersonaAccuracy,
    WinRate,
    accuracy_array,
    bootstrap_mean,
    holm_adjusted,
    interval_columns,
    make_pool,
    mean_columns,
    mean_of,
    net_columns,
    net_of,
    position_inconsistent,
    verdict_of,
)
from persona_lib.intervals import difference as minus
from persona_lib.models.served import load_generator, role_key
from persona_lib.paper import results
from persona_lib.paper.answers import eval_rows, persona_of, read_generations
from persona_lib.paper.judges import BackwardsJudge, Judge, asked_of, lm_judge, load_judge, persona_judge_of
from persona_lib.paper.judging import judge_both, runs_of, same_items
from persona_lib.paper.swap import finished_specs
from persona_lib.prompts import inference_prefix, inference_query, preference_prompt
from persona_lib.records import (
    SIDES,
    InferredPersona,
    PairwiseComparison,
    PreferencePair,
    Rubric,
    Side,
    Verdict,
)
from persona_lib.settings import Profile, Run, main_arm
from persona_lib.store import VERSIONS, read_rows
from persona_lib.texts import measures, persona_status

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


# --- Persona inference ---
# An answer that is no persona (empty, a refusal, too long, not of the asked form) is typed and counted, and
# never used as a persona.


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


# --- How good inferred personas are: accuracy, preference, salient words (paper section 3) ---


Row = dict[str, Any]


def read_personas(run: Run, split: str, side: Side) -> dict[str, InferredPersona]:
    """Return the inferred personas of a split and side by row id."""
    return {
        row.id: row for row in read_rows(run.folder / "personas" / f"{split}-{side}.jsonl", InferredPersona)
    }


def accuracy_verdicts(run: Run, split: str, side: Side) -> list[tuple[str, Verdict | None, bool]]:
    """Return ``judge_personas`` of the personas that a run inferred for a split and side."""
    scored = inference_split(run.profile, run.dataset)
    pairs = inference_pairs(run) if split == scored else load_pairs(run)[split]
    return judge_personas(
        load_judge(run, persona_judge_of(run.profile)), pairs, read_personas(run, split, side).values(), side
    )


def judge_personas(
    judge: Judge, pairs: Iterable[PreferencePair], personas: Iterable[InferredPersona], side: Side
) -> list[tuple[str, Verdict | None, bool]]:
    """Return (id, verdict, contradicted) per persona: does a judge shown it pick its response?

    "win" means yes in both orders; None that no valid persona was inferred. ``contradicted`` marks the ties
    of a judge that named the same place, not the same response, in both orders. (Paper: persona accuracy.)
    """
    by_id, rows = {pair.id: pair for pair in pairs}, list(personas)
    comparisons = [
        PairwiseComparison(row.id, by_id[row.id].prompt, row.persona, *sides_of(by_id[row.id], side))
        for row in rows
        if row.persona
    ]
    judged = judge_both(judge, comparisons, "personalization")
    verdicts = {pair[0].id: (verdict_of(*pair), position_inconsistent(*pair)) for pair in judged}
    return [(row.id, *verdicts.get(row.id, (None, False))) for row in rows]


def preference_verdicts(run: Run, split: str) -> list[tuple[str, Verdict | None]]:
    """Return (id, verdict) per pair: is P_C the more plausible user (win), or P_R (loss)? (Paper Fig. 4.)

    A language model judge is asked in both orders; the backwards judge compares log p(persona | question) per
    word. Without either nothing is judged and the list is empty.
    """
    sides = [read_personas(run, split, side) for side in SIDES]
    both = {name: [side[name].persona if name in side else None for side in sides] for name in sides[0]}
    judged = plausible_users(run, split, {name: found for name, found in both.items() if None not in found})
    return [(name, judged.get(name)) for name in both] if judged else []


def plausible_users(run: Run, split: str, personas: dict[str, list[str]]) -> dict[str, Verdict]:
    """Return the verdict on each pair's two personas, by id; {} without a judge for it."""
    judge = plausibility_judge(run)
    if judge is None:
        return {}
    scored = inference_split(run.profile, run.dataset)
    pairs = inference_pairs(run) if split == scored else load_pairs(run)[split]
    prompts = {pair.id: pair.prompt for pair in pairs}
    comparisons = [PairwiseComparison(i, prompts[i], None, *found) for i, found in personas.items()]
    judged = judge_both(judge, comparisons, "personalization")
    return {pair[0].id: verdict_of(*pair) for pair in judged}


def plausibility_judge(run: Run) -> Judge | None:
    """Return a judge of which of two personas is the more plausible user of a prompt; None without one."""
    name = persona_judge_of(run.profile)
    if name == "backwards":
        return BackwardsJudge(run).plausible
    if name != "lm":
        return None
    generator = load_generator(run, "judge", run.profile.judge_batch_size)
    asked = asked_of(generator, run.profile.judge_kind)
    return lm_judge(generator, run.profile.judge_max_new_tokens, asked, persona_question)


def persona_question(c: PairwiseComparison, rubric: Rubric) -> str:
    """Return the prompt of a comparison whose two texts are personas."""
    return preference_prompt(c.prompt, c.response_a, c.response_b)


def persona_texts(run: Run, split: str) -> tuple[list[str], list[str]]:
    """Return the valid personas of both sides of a split."""
    chosen, rejected = (
        [row.persona for row in read_personas(run, split, side).values() if row.persona] for side in SIDES
    )
    return chosen, rejected


# --- Tables of what personas are like as texts ---
# Shares and lengths have intervals (bootstrap over seeds and pairs, the two sides paired by pair).


N_WORDS = 10  # of each side, the most telling
Texts = dict[str, dict[str, str]]  # side -> id of the pair -> the annotator's whole answer


def inferred_texts(run: Run, split: str) -> Texts:
    """Return the answers of persona inference on a split, by side and pair; {} if a side is missing."""
    paths = {side: run.folder / "personas" / f"{split}-{side}.jsonl" for side in SIDES}
    if not all(path.exists() for path in paths.values()):
        return {}
    return {
        side: {row.id: row.raw for row in read_rows(path, InferredPersona)} for side, path in paths.items()
    }


def released_texts(data_dir: str, dataset: str) -> Texts:
    """Return the authors' gold personas of all splits, as released, by side and row."""
    folder = official.find_data_dir(data_dir, [dataset])
    tables = official.open_tailoring(folder, dataset)
    rows = {
        official.row_id(dataset, split, number): row
        for split, table in tables.items()
        if split != "fewshot"  # its rows are copies of training rows
        for number, row in enumerate(table.to_list())
    }
    return {side: {i: row[f"{side}_persona_gold"] for i, row in rows.items()} for side in SIDES}


def valid(texts: dict[str, str]) -> list[str]:
    """Return the answers that are personas."""
    return [text.strip() for text in texts.values() if persona_status(text) == "ok"]


def item_arrays(by_seed: Sequence[Texts]) -> dict[str, dict[str, list[np.ndarray]]]:
    """Return, per measure and side, one array per seed of the pairs' values, pairs in one order."""
    arrays: dict[str, dict[str, list[np.ndarray]]] = {}
    for texts in by_seed:
        names = list(dict.fromkeys(i for side in SIDES for i in texts[side]))
        for side in SIDES:
            found = [measures(texts[side].get(name)) for name in names]
            for measure in found[0]:
                values = np.array([row[measure] for row in found])
                arrays.setdefault(measure, {}).setdefault(side, []).append(values)
    return arrays


def estimate(arrays: Sequence[np.ndarray], n_resamples: int) -> Row:
    """Return n, and the mean over pairs and seeds with its interval."""
    kept = [array[~np.isnan(array)] for array in arrays]
    kept = [array for array in kept if len(array)]
    interval = bootstrap_mean(kept, n_resamples) if kept else Interval(None, None, None, 0)
    return {"n": sum(map(len, kept)), "n_seeds": len(kept), **interval_columns("value", interval)}


def text_table(by_seed: Sequence[Texts], n_resamples: int) -> pd.DataFrame:
    """Return a line per measure and side, and the difference chosen - rejected, paired by pair.

    Raises nothing on missing personas: they count in the shares of refusals and the like, not in lengths.
    """
    import pandas as pd

    lines: list[Row] = []
    for measure, sides in item_arrays(by_seed).items():
        lines += [{"measure": measure, "side": s} | estimate(sides[s], n_resamples) for s in SIDES]
        gaps = [c - r for c, r in zip(sides["chosen"], sides["rejected"], strict=True)]
        lines.append({"measure": measure, "side": "chosen - rejected"} | estimate(gaps, n_resamples))
    return pd.DataFrame(lines)


def run_table(run: Run) -> pd.DataFrame:
    """Return the text measures of a run's inferred personas on the split that they are scored on."""
    texts = inferred_texts(run, inference_split(run.profile, run.dataset))
    return text_table([texts] if texts else [], run.profile.bootstrap_samples)


def released_datasets(profile: Profile) -> Iterator[str]:
    """Yield the profile's data sets for which the authors released personas."""
    yield from (name for name in profile.datasets if official.DATASETS.get(name, {}).get("tailoring"))


def released_tables(profile: Profile) -> dict[str, pd.DataFrame]:
    """Return the same for the authors' released gold personas, and their salient words (Table 1).

    Tables ``released_personas`` and ``released_words`` (the most telling of each side); {} without real data.
    """
    import pandas as pd

    parts: dict[str, list[pd.DataFrame]] = {}
    for dataset in released_datasets(profile):
        texts = released_texts(profile.data_dir, dataset)
        words = sorted(word_saliency(*(valid(texts[side]) for side in SIDES)), key=lambda word: -word.z)
        ends = {"chosen": words[:N_WORDS], "rejected": words[: -N_WORDS - 1 : -1]}
        tables = {
            "released_personas": text_table([texts], profile.bootstrap_samples),
            "released_words": pd.DataFrame(
                [{"side": side} | dataclasses.asdict(word) for side, part in ends.items() for word in part]
            ),
        }
        for name, table in tables.items():
            table.insert(0, "dataset", dataset)
            parts.setdefault(name, []).append(table)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}


# --- Tables about personas over seeds: accuracy, preference, salient words; and answers side by side ---
# Accuracy and preference come from the per-item verdicts that notebook 04 leaves.


ITEMS = "persona_accuracy_items.csv"  # of notebook 04: a row per pair and side
SHOWN_WORDS = 15  # words shown per side
N_EXAMPLES = 3  # rows of the evaluation split shown side by side: its first, not selected
Verdicts = dict[str, str | None]


# --- accuracy and preference ---


def read_items(path: Path) -> pd.DataFrame | None:
    """Read a file of persona accuracy, a row per pair and side, as text; None if there is none.

    Raises ValueError for a file without the columns.
    """
    import pandas as pd

    if not path.exists():
        return None
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = {"id", "split", "side", "verdict", "contradicted"} - set(table)
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(sorted(missing))}; run notebook 04_persona_quality again"
        )
    return table


def part_of(table: pd.DataFrame | None, split: str, side: str) -> pd.DataFrame:
    """Return the items of one split and side; empty if there are none."""
    import pandas as pd

    if table is None:
        return pd.DataFrame(columns=["id", "verdict", "contradicted"])
    return table[(table.split == split) & (table.side == side)]


def verdicts_in(part: pd.DataFrame) -> Verdicts:
    """Return {id: verdict} of items, None = no valid persona."""
    return {name: verdict or None for name, verdict in zip(part.id, part.verdict, strict=True)}


def right(verdicts: Verdicts) -> dict[str, float]:
    """Return 1 for correct in both orders, .5 for a tie, else 0 (wrong, unparsed, no persona)."""
    return dict(zip(verdicts, accuracy_array(verdicts.values()).tolist(), strict=True))


def accuracy_table(profile: Profile) -> pd.DataFrame:
    """Return persona accuracy per data set, split and side, and chosen minus rejected (paper Fig. 3)."""
    import pandas as pd

    lines: list[results.Row] = []
    for number, dataset in enumerate(profile.datasets):
        runs = runs_of(profile, dataset)
        items = {run.seed: read_items(run.folder / "tables" / ITEMS) for run in runs}
        shared = same_items(tuple(runs))
        lines += accuracy_rows({"dataset": dataset}, items, profile.bootstrap_samples, number, shared)
    return pd.DataFrame(lines)


def accuracy_rows(
    head: results.Row, items: dict[int, pd.DataFrame | None], samples: int, number: int, shared: bool
) -> list[results.Row]:
    """Return a row per split and side of the items of several seeds, and per split chosen minus rejected.

    ``number`` seeds the bootstrap; ``shared`` says that all seeds have the same pairs.
    """
    known = [table for table in items.values() if table is not None]
    keys = list(dict.fromkeys(key for table in known for key in zip(table.split, table.side, strict=True)))
    if not keys:
        return []
    parts = {key: {seed: part_of(table, *key) for seed, table in items.items()} for key in keys}
    columns: dict[str, Any] = {}
    for key, by_seed in parts.items():
        columns |= mean_columns("/".join(key), [right(verdicts_in(part)) for part in by_seed.values()])
    pool, lines = make_pool(columns, samples, number, shared), []
    for split in dict.fromkeys(split for split, _ in keys):
        found = [side for side in SIDES if (split, side) in keys]
        for side in found:
            interval = pool.interval(mean_of(f"{split}/{side}"))
            lines.append(head | {"split": split, "side": side} | accuracy_row(parts[split, side], interval))
        if len(found) == 2:
            gap = minus(mean_of(f"{split}/chosen"), mean_of(f"{split}/rejected"))
            line = {"split": split, "side": "chosen - rejected", "n_seeds": lines[-1]["n_seeds"]}
            lines.append(head | line | interval_columns("accuracy", pool.interval(gap)))
    return lines


def accuracy_row(by_seed: dict[int, pd.DataFrame], interval: Interval) -> results.Row:
    """Return one side's accuracy with its counts, of its items by seed."""
    counts = PersonaAccuracy.from_verdicts(
        verdict for part in by_seed.values() for verdict in verdicts_in(part).values()
    )
    seeds = [seed for seed, part in by_seed.items() if len(part)]
    contradicted = sum(int((part.contradicted == "True").sum()) for part in by_seed.values())
    return {"n": counts.n, "n_seeds": len(seeds), "seeds": " ".join(map(str, seeds)),
            "n_correct": counts.n_correct, "n_ties": counts.n_ties,
            "n_contradicted": contradicted, "n_wrong": counts.n_wrong,
            "n_unparsed": counts.n_unparsed, "n_missing": counts.n_missing,
            "strict": counts.strict, **interval_columns("accuracy", interval)}  # fmt: skip


def preference_items(run: Run) -> Verdicts:
    """Read ``tables/persona_preference_items.csv``: {id: verdict}, None where a side has no persona."""
    import pandas as pd

    path = run.folder / "tables" / "persona_preference_items.csv"
    if not path.exists():
        return {}
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return {row.id: row.verdict or None for row in table.itertuples()}


def preference_table(profile: Profile) -> pd.DataFrame:
    """Return how often P_C is the more plausible user than P_R, and the net rate (paper Fig. 4)."""
    import pandas as pd

    lines = []
    for number, dataset in enumerate(profile.datasets):
        runs = runs_of(profile, dataset)
        by_seed = [preference_items(run) for run in runs]
        valid = [{i: v for i, v in verdicts.items() if v} for verdicts in by_seed]
        if not any(valid):
            continue
        counts = WinRate.from_verdicts(v for verdicts in valid for v in verdicts.values())
        columns = net_columns("preference", valid)
        pool = make_pool(columns, profile.bootstrap_samples, number, same_items(tuple(runs)))
        seeds = [run.seed for run, found in zip(runs, by_seed, strict=True) if found]
        lines.append({"dataset": dataset, "split": inference_split(profile, dataset), "n": counts.n,
                      "n_seeds": len(seeds), "seeds": " ".join(map(str, seeds)), "win": counts.n_wins,
                      "tie": counts.n_ties, "loss": counts.n_losses, "unparsed": counts.n_unparsed,
                      "n_missing": sum(map(len, by_seed)) - counts.n,
                      **interval_columns("net", pool.interval(net_of("preference")))})  # fmt: skip
    return pd.DataFrame(lines)


def words_table(profile: Profile) -> pd.DataFrame:
    """Return the words that are most typical of each side's personas, over all seeds (paper Table 1)."""
    import pandas as pd

    lines = []
    for dataset in profile.datasets:
        texts: tuple[list[str], list[str]] = ([], [])
        for run in runs_of(profile, dataset):
            split = inference_split(profile, dataset)
            paths = [run.folder / "personas" / f"{split}-{side}.jsonl" for side in SIDES]
            if all(path.exists() for path in paths):
                for pooled, found in zip(texts, persona_texts(run, split), strict=True):
                    pooled.extend(found)
        words = word_saliency(*texts)
        by_z = sorted(words, key=lambda word: word.z)
        for side, chosen in (("chosen", by_z[::-1][:SHOWN_WORDS]), ("rejected", by_z[:SHOWN_WORDS])):
            typical = [word for word in chosen if (word.z > 0) == (side == "chosen")]
            lines += [{"dataset": dataset, "side": side, **vars(word)} for word in typical]
    return pd.DataFrame(lines)


def persona_text_table(profile: Profile) -> pd.DataFrame:
    """Return the text measures of the inferred personas per data set, over all seeds."""
    import pandas as pd

    tables = []
    for dataset in profile.datasets:
        split = inference_split(profile, dataset)
        by_seed = [texts for run in runs_of(profile, dataset) if (texts := inferred_texts(run, split))]
        if by_seed:
            table = text_table(by_seed, profile.bootstrap_samples)
            table.insert(0, "dataset", dataset)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


# --- examples ---


def example_table(profile: Profile) -> pd.DataFrame:
    """Return the first rows of each evaluation split with plain DPO's and PT-DPO's answers side by side."""
    import pandas as pd

    lines = []
    for dataset in profile.datasets:
        run = runs_of(profile, dataset)[0]
        if not (run.folder / "tailoring").exists():
            continue
        for persona in ("gold-chosen", "gold-rejected", "user-chosen", "user-rejected"):
            arms = ("dpo-none", "first_person"), (f"dpo-{main_arm(profile)}", "line")
            specs = [finished_specs(run).get((*arm, persona)) for arm in arms]
            if None in specs:
                continue
            plain, tailored = (read_generations(run, spec) for spec in specs)
            rows = [row for row in eval_rows(run) if row.id in plain and row.id in tailored]
            lines += [{"dataset": dataset, "seed": run.seed, "id": row.id, "prompt": row.prompt,
                       "eval_persona": persona, "persona": persona_of(row, persona),
                       "plain_dpo": plain[row.id].completion, "pt_dpo": tailored[row.id].completion}
                      for row in rows[:N_EXAMPLES]]  # fmt: skip
    return pd.DataFrame(lines).sort_values(["dataset", "id"], kind="stable") if lines else pd.DataFrame()


PERSONA_TABLES = {
    "persona_text": persona_text_table,
    "persona_accuracy": accuracy_table,
    "persona_preference": preference_table,
    "words": words_table,
    "examples": example_table,
}


PERSONA_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class WordSaliency:
    """One word: its occurrences per side, the share on the chosen side (the paper's ratio), its log-odds.

    ``log_odds`` > 0: more chosen; ``log_odds_low`` and ``log_odds_high`` are its 95 % limits, ``z`` is it in
    standard errors, ``p_holm`` two-sided and corrected for the number of words that are tested.
    """

    word: str
    n_chosen: int
    n_rejected: int
    share_chosen: float
    log_odds: float
    log_odds_low: float
    log_odds_high: float
    z: float
    p_holm: float


def persona_words(text: str) -> list[str]:
    """Return the lower-cased words of a persona; hyphenated words ("to-the-point") stay whole."""
    return PERSONA_WORD.findall(text.lower())


def log_odds(y1: int, n1: int, y2: int, n2: int, prior: float, prior_total: float) -> tuple[float, float]:
    """Return a word's log-odds between two corpora under a Dirichlet prior, and their standard error.

    Monroe et al. (2008), eq. 16-22: delta = log((y1+a)/(n1+a0-y1-a)) - log((y2+a)/(n2+a0-y2-a)),
    variance = 1/(y1+a) + 1/(y2+a); y = the word's count, n = all words, a and a0 = its prior and their sum.
    """
    delta = math.log((y1 + prior) / (n1 + prior_total - y1 - prior))
    delta -= math.log((y2 + prior) / (n2 + prior_total - y2 - prior))
    return delta, math.sqrt(1 / (y1 + prior) + 1 / (y2 + prior))


def holm(z_scores: list[float]) -> list[float]:
    """Return two-sided p-values of z-scores with Holm's correction for their number."""
    from scipy.stats import norm

    return holm_adjusted([2 * norm.sf(abs(z)) for z in z_scores])


def word_saliency(
    chosen: Iterable[str], rejected: Iterable[str], min_count: int = 10, prior_size: float = 500.0
) -> list[WordSaliency]:
    """Rank words by the share of their occurrences that stand in chosen personas (paper Table 1).

    Words with fewer than ``min_count`` occurrences on both sides together are left out of the list, not
    of the totals. ``prior_size`` words of prior are spread as in both sides together (shrinks rare words).
    Returns the most chosen first; ties in share are ordered by z, then by word.
    """
    first = Counter(word for text in chosen for word in persona_words(text))
    second = Counter(word for text in rejected for word in persona_words(text))
    both = first + second
    if len(both) < 2:
        return []
    counts = [(word, first[word], second[word]) for word, n in both.items() if n >= min_count]
    odds = [
        log_odds(y1, first.total(), y2, second.total(), prior_size * both[word] / both.total(), prior_size)
        for word, y1, y2 in counts
    ]
    corrected = holm([delta / error for delta, error in odds])
    rows = [
        WordSaliency(
            *count, count[1] / both[count[0]], delta, delta - NORMAL_95 * error, delta + NORMAL_95 * error,
            delta / error, p,
        )
        for count, (delta, error), p in zip(counts, odds, corrected, strict=True)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row.share_chosen, -row.z, row.word))
