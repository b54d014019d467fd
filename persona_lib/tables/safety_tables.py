"""Tables of safety by persona: error of the rules, shares that keep a caution, paired comparisons.

Intervals of shares are Wilson's for one seed and bootstraps over seeds and prompts else; paired tests are
exact McNemar tests (a sign test of the discordant rows) for one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.config import Run
from persona_lib.data.released import Released
from persona_lib.evaluation.safety import (
    HARMLESS,
    PARTS,
    Cell,
    Cells,
    Labelled,
    Labels,
    by_rules,
    comparisons,
    cut_alike,
    kept,
    read_labels,
    released_cells,
    run_cells,
)
from persona_lib.profiles import Profile
from persona_lib.stats.bootstrap import Interval, bootstrap_mean, interval_columns
from persona_lib.stats.caution import CLASSES
from persona_lib.stats.shares import share_interval
from persona_lib.stats.significance import holm, sign_test, wilson_interval

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


# --- the rules' error ---


def weighted_share(hits: np.ndarray, weight: np.ndarray) -> Interval:
    """Return the weighted share of 0/1 ``hits`` with its Wilson interval; undefined without an item.

    The interval uses Kish's effective sample size, (sum w)^2 / sum w^2.
    """
    if not len(hits):
        return Interval(None, None, None, 0)
    share = float((hits * weight).sum() / weight.sum())
    effective = float(weight.sum() ** 2 / (weight**2).sum())
    low, high = wilson_interval(share * effective, effective)
    return Interval(share, low, high, len(hits))


def error_line(rows: Sequence[Labelled], called: Sequence[str]) -> Row:
    """Return counts, and precision, recall and specificity of "keeps a caution", weighted."""
    truth, found = (np.array([x != "neither" for x in labels], dtype=float)
                    for labels in ([row.label for row in rows], called))  # fmt: skip
    weight, positive, yes = np.array([row.weight for row in rows]), truth == 1, found == 1
    line: Row = {"n": len(rows), "stands_for": round(weight.sum())}
    line |= {f"hand_{name}": sum(row.label == name for row in rows) for name in CLASSES}
    line |= interval_columns("precision", weighted_share(truth[yes], weight[yes]))
    line |= interval_columns("recall", weighted_share(found[positive], weight[positive]))
    return line | interval_columns("specificity", weighted_share(1 - found[~positive], weight[~positive]))


def error_table(labels: dict[Cell, list[Labels]]) -> pd.DataFrame:
    """Return how often the rules err on the hand-labelled answers, by part; empty without the files."""
    import pandas as pd

    rows = read_labels()
    if not all(row.cell in labels for row in rows):
        return pd.DataFrame()
    parts = {part: [row for row in rows if row.part == part] for part in PARTS}
    called = {part: [labels[row.cell][0][row.id] for row in own] for part, own in parts.items()}
    return pd.DataFrame([{"part": part} | error_line(own, called[part]) for part, own in parts.items()])


# --- shares and pairs ---


def flags(labels: Sequence[Labels], ids: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Return, per seed, 1 where a caution is kept and 0 where not, for the given rows."""
    return [
        np.array([kept(one)[i] for i in rows], dtype=float) for one, rows in zip(labels, ids, strict=True)
    ]


def share_table(cells: Cells, labels: dict[Cell, list[Labels]], n_resamples: int) -> pd.DataFrame:
    """Return a line per policy and persona: classes, share that keeps a caution, words."""
    import pandas as pd

    lines = []
    for cell, answers in cells.items():
        every = [label for one in labels[cell] for label in one.values()]
        values = flags(labels[cell], [sorted(one) for one in labels[cell]])
        line: Row = {**vars(cell), "n": len(every), "n_seeds": sum(bool(one) for one in answers)}
        line |= {name: every.count(name) for name in CLASSES}
        line |= interval_columns("share", share_interval(values, n_resamples))
        words = [len(text.split()) for one in answers for text in one.values()]
        lines.append(line | {"words_mean": float(np.mean(words))})
    return pd.DataFrame(lines)


def pair_line(first: Sequence[Labels], second: Sequence[Labels], n_resamples: int) -> Row:
    """Compare two cells' labels row by row: counts, difference, exact McNemar p."""
    ids = [sorted(a.keys() & b.keys()) for a, b in zip(first, second, strict=True)]
    one, two = flags(first, ids), flags(second, ids)
    both, only_one, only_two = (
        int(sum((f(a, b)).sum() for a, b in zip(one, two, strict=True)))
        for f in (lambda a, b: a * b, lambda a, b: a * (1 - b), lambda a, b: (1 - a) * b)
    )
    seeds = [len(rows) for rows in ids if rows]
    shared = len(set(seeds)) == 1 and len(seeds) > 1
    pairs = [a - b for a, b in zip(one, two, strict=True) if len(a)]
    line: Row = {"n": sum(seeds), "n_seeds": len(seeds), "both": both, "only_tested": only_one,
                 "only_compared": only_two}  # fmt: skip
    line |= interval_columns("difference", bootstrap_mean(pairs, n_resamples, shared_items=shared))
    return line | {"p": sign_test(only_one, only_two) if len(seeds) == 1 else np.nan}


def cut_difference(cells: Cells, tested: Cell, compared: Cell, n_resamples: int) -> Interval:
    """Return the difference by the rules after both answers to a row are cut to the shorter one's words."""
    pairs = [cut_alike(a, b) for a, b in zip(cells[tested], cells[compared], strict=True)]
    labels = [by_rules([a for a, _ in pairs]), by_rules([b for _, b in pairs])]
    ids = [sorted(one) for one in labels[0]]
    values = [a - b for a, b in zip(flags(labels[0], ids), flags(labels[1], ids), strict=True) if len(a)]
    shared = len({len(v) for v in values}) == 1 and len(values) > 1
    return bootstrap_mean(values, n_resamples, shared_items=shared)


def pair_table(cells: Cells, labels: dict[Cell, list[Labels]], n_resamples: int) -> pd.DataFrame:
    """Return a line per comparison (``safety.comparisons``), with Holm's p over the lines of the table."""
    import pandas as pd

    lines = []
    for tested, compared, shows in comparisons(cells):
        if not any(a and b for a, b in zip(cells[tested], cells[compared], strict=True)):
            continue
        line: Row = {**vars(tested), "shows": shows, "tested": tested.arm, "compared": compared.arm}
        line |= pair_line(labels[tested], labels[compared], n_resamples)
        cut = cut_difference(cells, tested, compared, n_resamples)
        lines.append(line | interval_columns("difference_cut", cut))
    adjusted = holm({str(n): line["p"] for n, line in enumerate(lines) if line["p"] == line["p"]})
    return pd.DataFrame([line | {"p_holm": adjusted.get(str(n), np.nan)} for n, line in enumerate(lines)])


def safety_tables(cells: Cells, n_resamples: int) -> dict[str, pd.DataFrame]:
    """Return shares ("safety"), comparisons ("safety_pairs") and the rules' errors ("safety_error") of cells.

    {} without a cell; the errors need the cells that were labelled by hand. Every answer is read once.
    """
    if not cells:
        return {}
    labels = {cell: by_rules(answers) for cell, answers in cells.items()}
    error = error_table(labels)
    return {
        "safety": share_table(cells, labels, n_resamples),
        "safety_pairs": pair_table(cells, labels, n_resamples),
        **({} if error.empty else {"safety_error": error}),
    }


def what_is_read(profile: Profile) -> str:
    """Say whose answers of the profile itself are read, or why none."""
    real = [name for name in profile.datasets if name not in HARMLESS]
    if not real:
        return (
            f"the data of profile {profile.name} has no prompt that calls for caution: "
            "its own answers are not read"
        )
    cells = run_cells(profile)
    if not cells:
        return f"no finished answers to prompts of {', '.join(real)}: run the generation step first"
    return f"{len(cells)} kinds of this run's own answers are read, to prompts of {', '.join(real)}"


def make_tables(run: Run, data: Released | None) -> dict[str, pd.DataFrame]:
    """Return all tables of a profile by file name: released answers at hand, a run's own on real prompts."""
    n = run.profile.bootstrap_samples
    theirs = safety_tables(released_cells(data), n) if data else {}
    return {f"released_{name}": table for name, table in theirs.items()} | safety_tables(
        run_cells(run.profile), n
    )
