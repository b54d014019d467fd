"""Tables of judged comparisons over all data sets and seeds of a profile, with intervals and sign tests.

A row is a ``Matchup``: a tested run against a base run, judged for a persona, its verdicts pooled over seeds.
Rows without verdicts are left out.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.intervals import (
    SIGNS,
    WinRate,
    drawn_columns,
    holm,
    position_inconsistent,
    seed_columns,
    sign_test,
    table_of,
)
from persona_lib.paper.answers import generation_folder, matchups
from persona_lib.paper.judging import (
    RUBRIC_NAMES,
    Judged,
    Judgments,
    agreement_table,
    compare,
    judgment_folder,
    read_judgments,
    read_orders,
    runs_of,
    same_items,
)
from persona_lib.settings import Profile, results_dir
from persona_lib.store import people_csv, write_text

if TYPE_CHECKING:
    import pandas as pd

TABLES = {  # file of a judged table -> the kinds of matchups in it
    "main": ("main",),
    "stage": ("stage",),
    "methods": ("sft", "few_shot"),
    "arms": ("arm",),
    "controls": ("control",),
}
AVERAGED = ("gold-chosen", "gold-rejected", "retrieved-chosen", "retrieved-rejected")  # the paper's rows
N_EXAMPLES = 3  # rows of the evaluation split: its first, not selected
Row = dict[str, Any]


# --- the columns of a row ---


def scores(pool: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return net win rates and dPQ (paper section 5) of the columns ``name/p`` and ``name/q`` of a pool."""
    p, q = pool[f"{name}/p"], pool[f"{name}/q"]
    return {"p_net": p, "q_net": q, "dpq": 50 * (p + q)}


def judged_scores(judgments: Judgments, row: Judged) -> dict[str, np.ndarray]:
    """Return all that is estimated for a judged row: its scores, and the difference in quality."""
    return scores(judgments.pool, row.slug) | {"quality_sd": judgments.pool[f"{row.slug}/dq"]}


def row_names(dataset: str, row: Judged) -> Row:
    """Return what identifies a row, with its size."""
    m = row.matchup
    return {"dataset": dataset, "kind": m.kind, "label": m.label, "judge_persona": m.judge_persona,
            "test": m.test.slug, "base": m.base.slug, "n": row.counts("quality").n,
            **seed_columns(row.seeds)}  # fmt: skip


def verdict_counts(short: str, rate: WinRate) -> Row:
    """Name the counts of verdicts as columns."""
    return {f"{short}_win": rate.n_wins, f"{short}_tie": rate.n_ties, f"{short}_loss": rate.n_losses,
            f"{short}_unparsed": rate.n_unparsed}  # fmt: skip


def inconsistent(path: Path) -> int:
    """Count the pairs of a file of judgments in which the judge named the same position in both orders."""
    return sum(position_inconsistent(both["AB"], both["BA"]) for both in read_orders(path).values())


def count_columns(row: Judged) -> Row:
    """Return the counts of a row: verdicts, and pairs in which the judge chose one position both times."""
    columns: Row = {}
    for short, rubric in RUBRIC_NAMES.items():
        folders = [judgment_folder(run, row.matchup, row.role) for run in row.runs]
        columns |= verdict_counts(short, row.counts(rubric))
        columns[f"{short}_inconsistent"] = sum(inconsistent(path / f"{rubric}.jsonl") for path in folders)
    return columns


def decided_prompts(row: Judged, rubric: str) -> tuple[int, int]:
    """Return how many prompts a row wins and how many it loses; ties and unparsed ones are neither.

    Seeds that drew their own prompts give one vote each. Seeds that answer the same prompts vote together.
    """
    shared = same_items(row.runs)
    votes: Counter[tuple[int, str]] = Counter()
    for number, verdicts in enumerate(row.verdicts[rubric]):
        for name, verdict in verdicts.items():
            votes[0 if shared else number, name] += SIGNS.get(verdict, 0)
    return sum(v > 0 for v in votes.values()), sum(v < 0 for v in votes.values())


def sign_columns(row: Judged) -> Row:
    """Return the two-sided p of the exact sign test over prompts, as columns ``p_sign`` and ``q_sign``."""
    return {f"{s}_sign": sign_test(*decided_prompts(row, rubric)) for s, rubric in RUBRIC_NAMES.items()}


def with_holm(table: pd.DataFrame) -> pd.DataFrame:
    """Add Holm's p over all rows of a table, for each rubric that has sign tests; NaN for an average."""
    names = [f"{short}_sign" for short in RUBRIC_NAMES if f"{short}_sign" in table]
    return table.assign(**{name.replace("sign", "holm"): holm(table[name]) for name in names})


# --- tables ---


def judged_rows(
    profile: Profile, kinds: Sequence[str], role: str = "judge"
) -> list[tuple[Judgments, Judged]]:
    """Return the judged rows of some kinds of matchups, each with its data set's judgments."""
    return [(j, row) for j in read_judgments(profile, role) for row in j.rows if row.matchup.kind in kinds]


def judged_table(profile: Profile, kinds: Sequence[str], role: str = "judge") -> pd.DataFrame:
    """Return the rows of some kinds of matchups: counts, sign tests, and scores with their intervals."""
    lines = [
        row_names(judgments.dataset, row) | count_columns(row) | sign_columns(row)
        | drawn_columns(judged_scores(judgments, row))
        for judgments, row in judged_rows(profile, kinds, role)
    ]  # fmt: skip
    return with_holm(table_of(lines))


def second_judge_table(profile: Profile) -> pd.DataFrame:
    """Return every row that the second judge has judged; empty without one."""
    return judged_table(profile, ("main",) if profile.second_judge.model else (), "second_judge")


def main_table(profile: Profile) -> pd.DataFrame:
    """Return PT-DPO against DPO that is told the persona in the first person, and the average (paper 5).

    As in the paper the average is the mean of the rows' dPQ, over the rows of gold and retrieved personas.
    Its line has no verdicts, since rows are averaged, not counted.
    """
    import pandas as pd

    table, main = judged_table(profile, TABLES["main"]), judged_rows(profile, TABLES["main"])
    parts = [(j, row) for j, row in main if row.matchup.judge_persona in AVERAGED]
    if not parts:
        return table
    seeds = sorted({seed for _, row in parts for seed in row.seeds})
    line: Row = {"dataset": "all", "kind": "average", "label": "average of gold and retrieved rows",
                 "n": sum(row.counts("quality").n for _, row in parts), **seed_columns(seeds)}  # fmt: skip
    drawn = [judged_scores(*part) for part in parts]
    line |= drawn_columns({name: np.mean([of[name] for of in drawn], axis=0) for name in drawn[0]})
    return pd.concat([table, pd.DataFrame([line])], ignore_index=True)


def side_difference(profile: Profile) -> pd.DataFrame:
    """Return main-row scores for rejected minus chosen personas, paired by prompt (paper, claim 2)."""
    lines = []
    for judgments in read_judgments(profile):
        rows = {r.matchup.judge_persona: r for r in judgments.rows if r.matchup.kind == "main"}
        for source in ("gold", "retrieved", "user"):
            pair = [rows.get(f"{source}-{side}") for side in ("rejected", "chosen")]
            if None in pair:
                continue
            line: Row = {"dataset": judgments.dataset, "personas": source, "n_seeds": len(pair[0].seeds),
                         "n": min(row.counts("quality").n for row in pair)}  # fmt: skip
            rejected, chosen = (scores(judgments.pool, row.slug) for row in pair)
            lines.append(line | drawn_columns({name: rejected[name] - chosen[name] for name in chosen}))
    return table_of(lines)


def example_table(profile: Profile) -> pd.DataFrame:
    """Return the first rows of each evaluation split with plain DPO's and PT-DPO's answers side by side."""
    lines = []
    for dataset in profile.datasets:
        run = runs_of(profile, dataset)[0]
        for m in matchups(run):
            done = all((generation_folder(run, spec) / "done.json").exists() for spec in (m.test, m.base))
            if done and m.kind == "main" and m.judge_persona.startswith(("gold", "user")):
                lines += [{"dataset": dataset, "seed": run.seed, "id": c.id, "prompt": c.prompt,
                           "eval_persona": m.judge_persona, "persona": c.persona,
                           "plain_dpo": c.response_b, "pt_dpo": c.response_a}
                          for c in compare(run, m)[:N_EXAMPLES]]  # fmt: skip
    return table_of(lines).sort_values(["dataset", "id"], kind="stable") if lines else table_of([])


JUDGED_TABLES: dict[str, Callable[[Profile], pd.DataFrame]] = {
    **{name: functools.partial(judged_table, kinds=kinds) for name, kinds in TABLES.items()},
    "main": main_table,
    "side_difference": side_difference,
    "second_judge": second_judge_table,
    "judge_agreement": agreement_table,
    "examples": example_table,
}


# --- files ---


def table_path(profile: Profile, name: str) -> Path:
    """Return where an aggregated table is: ``results/<profile>/tables/<name>.csv``."""
    return results_dir(profile) / "tables" / f"{name}.csv"


def save_table(profile: Profile, name: str, table: pd.DataFrame) -> Path | None:
    """Write a table; an empty one is not written and an older file of that name is removed."""
    path = table_path(profile, name)
    if table.empty:
        path.unlink(missing_ok=True)
        return None
    write_text(path, people_csv(table, float_format="%.6g"))
    return path


def read_table(profile: Profile, name: str) -> pd.DataFrame:
    """Read a table; an empty one if it was not made."""
    import pandas as pd

    path = table_path(profile, name)
    return pd.read_csv(path, dtype={"seeds": str}) if path.exists() else pd.DataFrame()
