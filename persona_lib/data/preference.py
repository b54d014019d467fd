"""Preference data: the readers of every data set, the training arms, and what is counted before use.

Each data set is read by one function of the table READERS into the splits train, validation and test.

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
from typing import TYPE_CHECKING, Any

from persona_lib.data import everyday, intake, official
from persona_lib.data.rows import source_key
from persona_lib.prompts import ChatFormat, completion_text, tailoring_prompt
from persona_lib.records import HISTORY, PAIR_FIELDS, PAIR_SPLITS, SIDES, PreferencePair, TailoringRow
from persona_lib.settings import ConfigError, Profile, Run, near_names
from persona_lib.store import VERSIONS, content_hash, is_done, mark_done, read_rows, write_rows
from persona_lib.texts import is_contrastive, near_duplicates

if TYPE_CHECKING:
    import pandas as pd


TWO_SIDED = ("both", "relabelled")  # arms with a row for each side of a pair
CARD_PERSONAS = tuple(f"{kind}-{side}" for kind in ("gold", "retrieved") for side in SIDES)
ArmRow = tuple[str, str, str | None, str, str]  # id, prompt, persona, target, other


def derangement(n: int, seed: int) -> list[int]:
    """Return a random permutation of range(n) without fixed points, from the seed; n must not be 1."""
    if n == 1:
        raise ValueError("train_persona=shuffled gives a row the persona of another: it needs at least two")
    order = random.Random(seed).sample(range(n), n)
    result = [0] * n
    for place, index in enumerate(order):
        result[index] = order[(place + 1) % n]
    return result


def draw(rows: list[Any], limit: int) -> list[Any]:
    """Return ``limit`` rows drawn by id, in their order; 0: all of them; negative: all but the drawn.

    The draw depends on nothing else, so it is the same for every arm and seed.
    """
    if not limit:
        return rows
    drawn = {row.id for row in sorted(rows, key=lambda row: content_hash(row.id))[: abs(limit)]}
    return [row for row in rows if (row.id in drawn) == (limit > 0)]


def side_rows(rows: list[TailoringRow], side: str, kind: str = "gold") -> list[ArmRow]:
    """Return (id, prompt, persona, target, other) for rows that have a persona of this kind and side.

    The target is the response that the persona prefers: for "rejected" the roles are swapped.
    """
    other = SIDES[1 - SIDES.index(side)]
    found = ((r, r.personas.get(f"{kind}-{side}")) for r in rows)
    return [(r.id, r.prompt, p, getattr(r, side), getattr(r, other)) for r, p in found if p is not None]


def both_arm(rows: list[TailoringRow], seed: int) -> list[ArmRow]:
    """Return the rows of the two sides; ids say which."""
    return [(f"{id}/{side}", *rest) for side in SIDES for id, *rest in side_rows(rows, side)]


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
    """Return DPO rows {"id", "prompt", "chosen", "rejected"} of one arm.

    For P_R the preferred response is the rejected one. Rows without a persona are left out.
    """
    if train_persona not in ARMS:
        raise ValueError(f"train_persona={train_persona!r}: use one of {', '.join(ARMS)}")
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

    With an even batch size the two rows of a pair (arm "both") then meet in one step: what they ask for
    whoever reads cancels, and what depends on the persona remains. Pairs with one persona come last.
    """
    rows = random.Random(f"dpo-order-{seed}").sample(rows, len(rows))
    if train_persona not in TWO_SIDED:
        return to_dpo_rows(rows, train_persona, seed, chat)
    made = [to_dpo_rows([row], train_persona, seed, chat) for row in rows]
    return [row for pair in sorted(made, key=len, reverse=True) for row in pair]


Pairs = dict[str, list[PreferencePair]]


def read_official(run: Run) -> Pairs:
    """Read the released pairs of an official data set; test pairs alone if that is all there is."""
    if official.DATASETS[run.dataset]["tailoring"] is None:
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


def input_key(run: Run) -> str:
    """Return a hash of what a run's pairs are made from: official files, or our own pairs and the seed."""
    data = run.profile.data
    if run.dataset == everyday.NAME:
        return content_hash(everyday.key(), data.majority_share, run.seed, data.pair_limit)
    if run.dataset == intake.NAME:
        return intake.own_key(run.profile)
    if run.dataset not in official.DATASETS:  # a reader that somebody added
        return content_hash(run.dataset, run.seed, data.path and source_key(data.path))
    if official.DATASETS[run.dataset]["tailoring"] is None:
        return inference_key(run)
    return content_hash(official.official_key(data_folder(run), run.dataset), data.strip_roles)


def inference_split(profile: Profile, dataset: str) -> str:
    """Return the split whose personas are scored: the authors' pairs for it, else the evaluation split."""
    return "inference" if dataset in official.DATASETS else profile.evaluation.split


def inference_pairs(run: Run) -> list[PreferencePair]:
    """Return the pairs of `inference_split` that are evaluated: of an official data set the paper's 300."""
    if run.dataset not in official.DATASETS:
        return draw(load_pairs(run)[run.profile.evaluation.split], run.profile.evaluation.limit)
    folder = data_folder(run, "inference")
    return official.load_inference_pairs(folder, run.dataset, run.profile.data.strip_roles)


def inference_key(run: Run) -> str:
    """Return a hash of what `inference_pairs` reads."""
    if run.dataset not in official.DATASETS:
        return input_key(run)
    key = official.official_key(data_folder(run, "inference"), run.dataset, "inference")
    return content_hash(key, run.profile.data.strip_roles)


def write_pairs(run: Run) -> Path:
    """Write a run's preference pairs to ``pairs/<split>.jsonl`` once and return the folder.

    Raises ConfigError for a data set without a reader, ValueError for an unusable pair.
    """
    if run.dataset not in READERS:
        raise ConfigError(f"no reader for data set {run.dataset!r}; {near_names(run.dataset, list(READERS))}")
    folder, key = run.folder / "pairs", content_hash(VERSIONS["pairs"], input_key(run))
    if is_done(folder, key):
        return folder
    pairs = READERS[run.dataset](run)
    check_pairs(pairs, run.dataset)
    if run.dataset == intake.NAME:
        print("\n".join(intake.describe(intake.read_own(run.profile))), flush=True)
    (folder / f"{HISTORY}.jsonl").unlink(missing_ok=True)
    for split, rows in pairs.items():
        write_rows(folder / f"{split}.jsonl", rows)
    mark_done(folder, key, rows={split: len(rows) for split, rows in pairs.items()})
    return folder


def load_pairs(run: Run) -> Pairs:
    """Read the pairs that `write_pairs` wrote, by split; `HISTORY` only where test users have any."""
    folder = run.folder / "pairs"
    if not (folder / "done.json").exists():
        raise FileNotFoundError(f"{folder}: no preference pairs yet; run notebook 01_preference_data first")
    names = [*PAIR_SPLITS, *([HISTORY] if (folder / f"{HISTORY}.jsonl").exists() else [])]
    return {split: read_rows(folder / f"{split}.jsonl", PreferencePair) for split in names}


def check_pairs(pairs: Pairs, dataset: str) -> None:
    """Raise ValueError, naming row and field, unless ids are unique and every field has text.

    The prompt may occur more than once.
    """
    seen: set[str] = set()
    for split, rows in pairs.items():
        for row in rows:
            where = f"{dataset}, split {split}, row {row.id}"
            if row.id in seen:
                raise ValueError(f"{where}: the id occurs twice; ids must be unique over all splits")
            seen.add(row.id)
            for field in PAIR_FIELDS:
                if not getattr(row, field).strip():
                    raise ValueError(f"{where}: {field} is empty; drop the row in the reader")


def data_card(rows_by_split: dict[str, list], near_duplicate_threshold: float = 0.5) -> pd.DataFrame:
    """Describe a data set, one row per split: counts, mean words, personas, near duplicates of training.

    Takes splits of `PreferencePair` or `TailoringRow`. Near duplicates are prompts that resemble one of
    a training split (any split whose name holds "train"); shares are over the rows that have the text.
    """
    import pandas as pd

    pool = [row.prompt for split, rows in rows_by_split.items() if "train" in split for row in rows]
    cards = {}
    for split, rows in rows_by_split.items():
        texts = pd.DataFrame(
            {name: [getattr(row, name) for row in rows] for name in PAIR_FIELDS}, dtype=object
        )
        marked = texts.map(lambda text: bool(official.ROLE_MARK.match(text)))
        words = texts.map(lambda text: len(text.split())).where(texts != "")
        answered = words.dropna()
        card = {
            "rows": len(rows),
            "different prompts": texts.prompt.nunique(),
            "without responses": len(rows) - len(answered),
            "with a role": int(marked.any(axis=1).sum()),
            **{f"words of {name}": words[name].mean() for name in PAIR_FIELDS},
            "chosen longer": (answered.chosen > answered.rejected).mean(),
        }
        if "train" not in split and split != "fewshot":
            found = near_duplicates(texts.prompt.tolist(), pool, near_duplicate_threshold)
            card["near duplicates of train"] = len(found)
        for name in CARD_PERSONAS if rows and isinstance(rows[0], TailoringRow) else ():
            there = pd.Series([row.personas[name] for row in rows if row.personas.get(name)], dtype=str)
            card[f"{name}: without"] = len(rows) - len(there)
            card[f"{name}: words"] = there.str.split().str.len().astype(float).mean()
            card[f"{name}: contrastive"] = there.map(is_contrastive).astype(float).mean()
        cards[split] = card
    return pd.DataFrame.from_dict(cards, orient="index").rename_axis("split")
