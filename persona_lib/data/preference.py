"""Preference data: the readers of every data set, the training arms, and what is counted before use.

An arm, named by ``train_persona``, says which persona a row shows and which response is its target (paper
section 4). none: no persona line. chosen: P_C and the chosen response. rejected: P_R and the rejected
response (for DPO the roles of the two are swapped). both: the rows of the two. shuffled (a control): the
chosen response with the P_C of another row. inferred: the chosen response with the persona that this run
inferred for it. relabelled (a control, ``everyday`` only): in half of the dimensions each persona stands for
the other side.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persona_lib.data import everyday, intake, official
from persona_lib.data.rows import source_key
from persona_lib.prompts import ChatFormat, completion_text, tailoring_prompt
from persona_lib.records import PAIR_FIELDS, SIDES, PreferencePair, Table, TailoringRow
from persona_lib.settings import Profile, Run, check_name
from persona_lib.store import VERSIONS, content_hash, is_done, mark_done, read_json, read_rows, write_rows
from persona_lib.texts import near_duplicates

TWO_SIDED = ("both", "relabelled")  # arms with a row for each side of a pair
CONTRASTIVE = r"\b(?:rather than|instead of|over)\b"  # a persona that names what its user does not want
ArmRow = tuple[str, str, str | None, str, str]  # id, prompt, persona, target, other


def derangement(n: int, seed: int) -> list[int]:
    """Return a random permutation of range(n) without fixed points, from the seed; n must not be 1."""
    if n == 1:
        raise ValueError("train_persona=shuffled gives a row the persona of another: it needs at least two")
    order = random.Random(seed).sample(range(n), n)
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [following[index] for index in range(n)]


def draw(rows: list[Any], limit: int) -> list[Any]:
    """Return ``limit`` rows drawn by id alone, in their order; 0: all rows; negative: all but the drawn."""
    if not limit:
        return rows
    drawn = {row.id for row in sorted(rows, key=lambda row: content_hash(row.id))[: abs(limit)]}
    return [row for row in rows if (row.id in drawn) == (limit > 0)]


def side_rows(rows: list[TailoringRow], side: str, kind: str = "gold") -> list[ArmRow]:
    """Return rows (id, prompt, persona, response it prefers, other) for personas of this kind and side."""
    other = SIDES[1 - SIDES.index(side)]
    found = ((r, r.personas.get(f"{kind}-{side}")) for r in rows)
    return [(r.id, r.prompt, p, getattr(r, side), getattr(r, other)) for r, p in found if p is not None]


def both_arm(rows: list[TailoringRow], seed: int) -> list[ArmRow]:
    """Return the rows of the two sides; ids say which."""
    return [(f"{row[0]}/{side}", *row[1:]) for side in SIDES for row in side_rows(rows, side)]


def shuffled_arm(rows: list[TailoringRow], seed: int) -> list[ArmRow]:
    """Return the chosen responses with the P_C of another row."""
    own = side_rows(rows, "chosen")
    others = derangement(len(own), seed)
    return [(*row[:2], own[other][2], *row[3:]) for row, other in zip(own, others, strict=True)]


ARMS: dict[str, Callable[[list[TailoringRow], int], list[ArmRow]]] = {
    "none": lambda rows, seed: [(r.id, r.prompt, None, r.chosen, r.rejected) for r in rows],
    "chosen": lambda rows, seed: side_rows(rows, "chosen"),
    "rejected": lambda rows, seed: side_rows(rows, "rejected"),
    "both": both_arm,
    "shuffled": shuffled_arm,
    "inferred": lambda rows, seed: side_rows(rows, "chosen", "inferred"),
    "relabelled": lambda rows, seed: both_arm(everyday.relabelled(rows, seed), seed),
}


def to_sft_rows(
    rows: list[TailoringRow], train_persona: str, seed: int, chat: ChatFormat | None = None
) -> list[dict[str, str]]:
    """Return SFT rows {"id", "prompt", "completion"} of one arm (TRL's prompt-completion format)."""
    made = to_dpo_rows(rows, train_persona, seed, chat)
    return [{"id": row["id"], "prompt": row["prompt"], "completion": row["chosen"]} for row in made]


def to_dpo_rows(
    rows: list[TailoringRow], train_persona: str, seed: int, chat: ChatFormat | None = None
) -> list[dict[str, str]]:
    """Return DPO rows {"id", "prompt", "chosen", "rejected"} of one arm, of rows that have its persona."""
    check_name(train_persona, ARMS, "no training arm")
    return [
        {
            "id": name,
            "prompt": tailoring_prompt(prompt, persona, chat=chat),
            "chosen": completion_text(target, chat),
            "rejected": completion_text(other, chat),
        }
        for name, prompt, persona, target, other in ARMS[train_persona](rows, seed)
    ]


def to_ordered_dpo_rows(
    rows: list[TailoringRow], train_persona: str, seed: int, chat: ChatFormat | None = None
) -> list[dict[str, str]]:
    """Return the rows of ``to_dpo_rows`` shuffled once by the seed, those of one pair side by side.

    With an even batch size the two rows of a pair then meet in one step: what they ask for whoever reads
    cancels, and what depends on the persona remains. Pairs with one persona come last.
    """
    rows = random.Random(f"dpo-order-{seed}").sample(rows, len(rows))
    if train_persona not in TWO_SIDED:
        return to_dpo_rows(rows, train_persona, seed, chat)
    made = [to_dpo_rows([row], train_persona, seed, chat) for row in rows]
    return [row for pair in sorted(made, key=len, reverse=True) for row in pair]


Pairs = dict[str, list[PreferencePair]]


def read_official(run: Run) -> Pairs:
    """Read the released pairs of an official data set; test pairs alone if that is all there is."""
    if not official.DATASETS[run.dataset]["rows"]:
        return {"train": [], "validation": [], "test": inference_pairs(run)}
    return official.official_pairs(data_folder(run), run.dataset, run.profile.data.strip_roles)


READERS: dict[str, Callable[[Run], Pairs]] = {
    everyday.NAME: lambda run: everyday.pairs(
        run.profile.data.majority_share, run.seed, run.profile.data.pair_limit
    ),
    **dict.fromkeys(official.DATASETS, read_official),
    intake.NAME: lambda run: intake.read_own(run.profile).pairs(),
}


def data_folder(run: Run, kind: str = "tailoring") -> Path:
    """Return where a run's official data is (found or fetched, see `official.find_data_dir`)."""
    return official.find_data_dir(run.profile.data.path, [run.dataset], kind=kind)


def has_personas(run: Run) -> bool:
    """Return True if the data set comes with personas (``everyday``, the official ones)."""
    return run.dataset in (everyday.NAME, *official.DATASETS)


def input_key(run: Run, kind: str = "tailoring") -> str:
    """Return a hash of what a run's pairs are made from; "inference": of what `inference_pairs` reads."""
    data = run.profile.data
    if run.dataset == everyday.NAME:
        return content_hash(source_key(everyday.FILE), data.majority_share, run.seed, data.pair_limit)
    if run.dataset == intake.NAME:
        return intake.own_key(run.profile)
    if run.dataset not in official.DATASETS:  # a reader that somebody added
        return content_hash(run.dataset, run.seed, data.path and source_key(data.path))
    return content_hash(official.official_key(data_folder(run, kind), run.dataset, kind), data.strip_roles)


def inference_split(profile: Profile, dataset: str) -> str:
    """Return the split whose personas are scored: the authors' pairs for it, else the evaluation split."""
    return "inference" if dataset in official.DATASETS else profile.evaluation.split


def inference_pairs(run: Run) -> list[PreferencePair]:
    """Return the pairs of `inference_split` that are evaluated: of an official data set the paper's 300."""
    if run.dataset not in official.DATASETS:
        return draw(load_pairs(run)[run.profile.evaluation.split], run.profile.evaluation.limit)
    folder = data_folder(run, "inference")
    return official.load_inference_pairs(folder, run.dataset, run.profile.data.strip_roles)


def write_pairs(run: Run) -> Path:
    """Write a run's pairs to ``pairs/<split>.jsonl``, once; ConfigError: no reader; see `check_pairs`."""
    check_name(run.dataset, READERS, "no reader for data set")
    folder, key = run.folder / "pairs", content_hash(VERSIONS["pairs"], input_key(run))
    if is_done(folder, key):
        return folder
    pairs = READERS[run.dataset](run)
    check_pairs(pairs, run.dataset)
    for split, rows in pairs.items():
        write_rows(folder / f"{split}.jsonl", rows)
    mark_done(folder, key, rows={split: len(rows) for split, rows in pairs.items()})
    return folder


def load_pairs(run: Run) -> Pairs:
    """Read the pairs that `write_pairs` wrote, by split; `records.HISTORY` only where test users have any."""
    folder = run.folder / "pairs"
    if not (folder / "done.json").exists():
        raise FileNotFoundError(f"{folder}: no preference pairs yet; run notebook 01_preference_data first")
    splits = read_json(folder / "done.json")["rows"]
    return {split: read_rows(folder / f"{split}.jsonl", PreferencePair) for split in splits}


def check_pairs(pairs: Pairs, dataset: str) -> None:
    """Raise ValueError, naming split and row, unless ids are unique and every field has text."""
    seen: set[str] = set()
    for split, row in ((split, row) for split, rows in pairs.items() for row in rows):
        where = f"{dataset}, split {split}, row {row.id}"
        if row.id in seen:
            raise ValueError(f"{where}: the id occurs twice; ids must be unique over all splits")
        seen.add(row.id)
        if empty := [field for field in PAIR_FIELDS if not getattr(row, field).strip()]:
            raise ValueError(f"{where}: {empty[0]} is empty; drop the row in the reader")


def data_card(rows_by_split: dict[str, list], near_duplicate_threshold: float = 0.5) -> Table:
    """Describe a data set, one row per split: counts, mean words, personas, near duplicates of training.

    Takes splits of `PreferencePair` or `TailoringRow`. Shares are over the rows that have the text.
    """
    import pandas as pd

    pool = [row.prompt for split, rows in rows_by_split.items() if "train" in split for row in rows]
    cards = {}
    for split, rows in rows_by_split.items():
        texts = pd.DataFrame([vars(row) for row in rows], columns=PAIR_FIELDS, dtype=object)
        words = texts.map(lambda text: len(text.split())).where(texts != "")
        answered = words.dropna()
        card = {
            "rows": len(rows),
            "different prompts": texts.prompt.nunique(),
            "without responses": len(rows) - len(answered),
            "with a role": sum(any(map(official.ROLE_MARK.match, line)) for line in texts.values),
            **{f"words of {name}": words[name].mean() for name in PAIR_FIELDS},
            "chosen longer": (answered.chosen > answered.rejected).mean(),
        }
        if "train" not in split:
            near = near_duplicates(texts.prompt.tolist(), pool, near_duplicate_threshold)
            card["near duplicates of train"] = len(near)
        told = rows and isinstance(rows[0], TailoringRow)
        for name in official.PERSONA_COLUMNS if told else ():
            there = pd.Series([row.personas[name] for row in rows if row.personas.get(name)], dtype=str)
            card[f"{name}: without"] = len(rows) - len(there)
            card[f"{name}: words"] = there.str.split().str.len().astype(float).mean()
            card[f"{name}: contrastive"] = there.str.contains(CONTRASTIVE, case=False).astype(float).mean()
        cards[split] = card
    return pd.DataFrame.from_dict(cards, orient="index").rename_axis("split")
