"""How far two judges agree on the same comparisons: raw agreement and Cohen's kappa, with intervals.

The unit is a verdict (win, tie or loss, both orders seen). Comparisons that either judge left unparsed
are counted and left out. Intervals resample seeds and prompts; all comparisons of a prompt go together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.config import Run
from persona_lib.evaluation.judge import RUBRICS, judged_matchups, judgment_folder, read_verdicts
from persona_lib.evaluation.judged import runs_of
from persona_lib.profiles import Profile
from persona_lib.records import Judgment, Rubric, Verdict
from persona_lib.stats.bootstrap import bootstrap, ratio
from persona_lib.store import iter_rows

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = ("win", "tie", "loss")
SAME, DECIDED = [0, 4, 8], [0, 2, 6, 8]  # places in the 3 x 3 table, row by row
LIMITS = {"agreement": (0, 1), "kappa": (-1, 1), "agreement_decided": (0, 1)}  # least and greatest value
COLUMNS = tuple(LIMITS)
Triple = tuple[str, Verdict, Verdict]  # prompt id, what the first judge says, what the second says


def both_verdicts(run: Run, rubric: Rubric) -> list[Triple]:
    """Return the verdicts of every comparison of a run that both judges have judged."""
    found: list[Triple] = []
    for matchup in judged_matchups(run, "second_judge"):
        if all((judgment_folder(run, matchup, r) / "done.json").exists() for r in ("judge", "second_judge")):
            first, second = (
                {row["id"]: row[rubric] for row in read_verdicts(run, matchup, role)}
                for role in ("judge", "second_judge")
            )
            found += [(name, first[name], second[name]) for name in first if name in second]
    return found


def judge_names(run: Run, role: str) -> list[str]:
    """Return the names that stand in a judge's saved judgments of a run."""
    names: set[str] = set()
    for matchup in judged_matchups(run, "second_judge"):
        path = judgment_folder(run, matchup, role) / "quality.jsonl"
        first = next(iter_rows(path), None) if path.exists() else None
        if first:
            first.pop("order")
            names.add(Judgment(**first).judge)
    return sorted(names)


def cells(verdicts: Iterable[Triple]) -> np.ndarray:
    """Count verdict pairs per prompt: (prompts, 9), the rows of a 3 x 3 table one after the other."""
    counts: dict[str, np.ndarray] = {}
    for name, first, second in verdicts:
        row = counts.setdefault(name, np.zeros(9))
        if "unparsed" not in (first, second):
            row[3 * VERDICTS.index(first) + VERDICTS.index(second)] += 1
    return np.stack(list(counts.values()))


def agreement_of(sums: np.ndarray) -> np.ndarray:
    """Return the share of equal verdicts of (n, 9) counts, (n,); NaN where nothing was judged by both."""
    return ratio(sums[:, SAME].sum(axis=1), sums.sum(axis=1))


def kappa_of(sums: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa of (n, 9) counts: (p_o - p_e) / (1 - p_e); NaN where chance alone would agree."""
    table = sums.reshape(-1, 3, 3)
    n = table.sum(axis=(1, 2))
    expected = ratio((table.sum(axis=2) * table.sum(axis=1)).sum(axis=1), n**2)
    return ratio(agreement_of(sums) - expected, 1 - expected)


def decided_of(sums: np.ndarray) -> np.ndarray:
    """Return the share of equal verdicts among the comparisons that both judges decide (no tie)."""
    return ratio(sums[:, [0, 8]].sum(axis=1), sums[:, DECIDED].sum(axis=1))


def agreement_row(by_seed: Sequence[Sequence[Triple]], n_resamples: int, seed: int = 0) -> dict[str, Any]:
    """Return counts, agreement, kappa and agreement where both decide, with 95 % bootstrap intervals."""
    verdicts = [verdict for part in by_seed for verdict in part]
    blocks = [cells(part) for part in by_seed if part]
    unparsed = [Counter(verdict[place] for verdict in verdicts)["unparsed"] for place in (1, 2)]
    counts = sum(block.sum(axis=0) for block in blocks)
    line: dict[str, Any] = {"n": int(counts.sum()), "n_seeds": len(blocks),
                            "n_prompts": sum(map(len, blocks)), "n_decided": int(counts[DECIDED].sum()),
                            "first_unparsed": unparsed[0], "second_unparsed": unparsed[1]}  # fmt: skip
    for name, statistic in zip(COLUMNS, (agreement_of, kappa_of, decided_of), strict=True):
        interval = bootstrap(blocks, statistic, n_resamples, seed, limits=LIMITS[name])
        line |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    names = [f"{a}_{b}" for a in VERDICTS for b in VERDICTS]
    return line | {name: int(count) for name, count in zip(names, counts, strict=True)}


def agreement_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a line per rubric for the runs of one data set; empty where nothing has two judgments.

    Columns ``win_tie`` and so on count comparisons: the first judge's verdict, then the second's.
    """
    import pandas as pd

    lines = []
    for rubric in RUBRICS:
        by_seed = [both_verdicts(run, rubric) for run in runs]
        if any(by_seed):
            judges = {
                name: ", ".join(sorted({judge for run in runs for judge in judge_names(run, role)}))
                for name, role in (("first", "judge"), ("second", "second_judge"))
            }
            row = agreement_row(by_seed, runs[0].profile.bootstrap_samples)
            lines.append({"dataset": runs[0].dataset, "rubric": rubric, **judges, **row})
    return pd.DataFrame(lines)


def agreement_of_profile(profile: Profile) -> pd.DataFrame:
    """Return the lines of all data sets, over all seeds; empty without a second judge."""
    import pandas as pd

    if not profile.second_judge_model:
        return pd.DataFrame()
    tables = [agreement_table(runs_of(profile, dataset)) for dataset in profile.datasets]
    return pd.concat(tables, ignore_index=True)
