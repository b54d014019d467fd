"""Tables about personas over seeds: accuracy, preference, salient words; and answers side by side.

Accuracy and preference come from the per-item verdicts that notebook 04 leaves.
"""

from __future__ import annotations

from persona_lib.records import SIDES

from typing import TYPE_CHECKING, Any

from persona_lib.config import Run, main_arm
from persona_lib.data.preference import inference_split
from persona_lib.evaluation.judged import runs_of, same_items
from persona_lib.evaluation.persona_quality import persona_texts
from persona_lib.evaluation.tailor import eval_rows, persona_of, read_generations
from persona_lib.profiles import Profile
from persona_lib.stats.bootstrap import Interval, accuracy_array, interval_columns
from persona_lib.stats.metrics import PersonaAccuracy, WinRate
from persona_lib.stats.pooled import difference as minus
from persona_lib.stats.pooled import make_pool, mean_columns, mean_of, net_columns, net_of
from persona_lib.stats.saliency import word_saliency
from persona_lib.tables.persona_text_tables import inferred_texts, text_table
from persona_lib.tables.results import Row
from persona_lib.tables.results_swap import find_spec

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

ITEMS = "persona_accuracy_items.csv"  # of notebook 04: a row per pair and side
N_WORDS = 15  # words shown per side
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

    lines: list[Row] = []
    for number, dataset in enumerate(profile.datasets):
        runs = runs_of(profile, dataset)
        items = {run.seed: read_items(run.folder / "tables" / ITEMS) for run in runs}
        shared = same_items(tuple(runs))
        lines += accuracy_rows({"dataset": dataset}, items, profile.bootstrap_samples, number, shared)
    return pd.DataFrame(lines)


def accuracy_rows(
    head: Row, items: dict[int, pd.DataFrame | None], samples: int, number: int, shared: bool
) -> list[Row]:
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


def accuracy_row(by_seed: dict[int, pd.DataFrame], interval: Interval) -> Row:
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
        for side, chosen in (("chosen", by_z[::-1][:N_WORDS]), ("rejected", by_z[:N_WORDS])):
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
            specs = [find_spec(run, arm, persona) for arm in arms]
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
