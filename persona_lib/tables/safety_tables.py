"""Tables of safety by persona: error of the classifier, shares that keep a caution, paired comparisons.

One table serves the rules and a guard model, the authors' released answers and a run's own: each line names
its ``classifier``. Intervals of shares are Wilson's for one seed and bootstraps over seeds and prompts else;
paired tests are exact McNemar tests (a sign test of the discordant rows) for one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.config import Run
from persona_lib.data.released import Released
from persona_lib.evaluation.safety import (
    HARMLESS,
    RULES,
    SAFETY_DATASET,
    Cell,
    Cells,
    Classifier,
    Labels,
    by_rules,
    comparisons,
    cut_alike,
    kept,
    released_cells,
    run_cells,
)
from persona_lib.evaluation.safety_sample import Labelled as LabelledAnswer
from persona_lib.evaluation.safety_sample import group_of, read_labels
from persona_lib.profiles import Profile
from persona_lib.stats.bootstrap import Interval, bootstrap_mean, interval_columns
from persona_lib.stats.caution import CLASSES
from persona_lib.stats.misclassification import (
    Labelled,
    assisted_difference,
    assisted_share,
    corrected_difference,
    corrected_share,
    error_rates,
    make_labelled,
    weighted_share,
)
from persona_lib.stats.shares import share_interval
from persona_lib.stats.significance import holm, sign_test

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
GROUPS = ("all", "dpo", "dpo+p", "pt")


# --- the classifier's error ---


def labelled_sample(rows: Sequence[LabelledAnswer], labels: Sequence[str | None]) -> Labelled:
    """Join hand labels with a classifier's; answers that it did not label are left out."""
    pairs = [(row, label) for row, label in zip(rows, labels, strict=True) if label is not None]
    return make_labelled(
        [row.label != "neither" for row, _ in pairs],
        [label != "neither" for _, label in pairs],
        [row.weight for row, _ in pairs],
        [f"{row.group} {row.pile}" for row, _ in pairs],
    )


def cell_of(row: LabelledAnswer) -> Cell:
    """Return the cell that a hand-labelled answer is in."""
    told = row.train_persona == "none" and row.eval_persona != "none"
    return Cell(
        SAFETY_DATASET, f"dpo-{row.train_persona}", row.eval_persona, "first_person" if told else "line"
    )


def sample_labels(labels: dict[Cell, list[Labels]]) -> tuple[list[LabelledAnswer], list[str | None]]:
    """Return the hand-labelled answers and what a classifier called each; none if a file is not at hand."""
    rows = read_labels()
    if not all(cell_of(row) in labels for row in rows):
        return [], []
    return rows, [labels[cell_of(row)][0][row.id] for row in rows]


def group_flags(labels: dict[Cell, list[Labels]]) -> dict[str, np.ndarray]:
    """Return 1 where a caution is kept and 0 where not, of all released answers by group of files."""
    found: dict[str, list[bool]] = {group: [] for group in GROUPS}
    for cell, [one] in labels.items():
        group = group_of(cell.arm.removeprefix("dpo-"), cell.eval_persona)
        for name in ("all", group):
            found[name] += kept(one).values()
    return {name: np.array(values, dtype=float) for name, values in found.items()}


def error_table(
    rows: Sequence[LabelledAnswer],
    labels: Sequence[str | None],
    every: dict[str, np.ndarray],
    classifier: str = RULES,
    n_resamples: int = 2000,
) -> pd.DataFrame:
    """Return precision, recall and specificity of "keeps a caution" by part and group of files, weighted.

    ``same_class`` counts where all three classes agree. Three estimates of the share that keeps a
    caution: ``raw``, the classifier's on all answers of the group (``every``, of ``group_flags``);
    ``hand_share``, the hand labels' alone; ``assisted``, the first corrected by the mean error in the group;
    ``minus_dpo_p``: PT-DPO's assisted share minus that of plain DPO told a persona.
    """
    import pandas as pd

    lines = []
    for part in dict.fromkeys(row.part for row in rows):
        samples = {}
        for group in GROUPS:
            chosen = [(r, x) for r, x in zip(rows, labels, strict=True)
                      if r.part == part and group in ("all", r.group)]  # fmt: skip
            answers, called = [r for r, _ in chosen], [x for _, x in chosen]
            samples[group] = labelled_sample(answers, called)
            line = error_line(answers, called) | {"raw": float(every[group].mean())}
            share = assisted_share(every[group], samples[group], n_resamples)
            gap = Interval(None, None, None, 0)
            if group == "pt":
                pair = [(every[name], samples[name]) for name in ("pt", "dpo+p")]
                gap = assisted_difference(*pair, n_resamples)
            names = {"dataset": SAFETY_DATASET, "classifier": classifier, "part": part, "group": group}
            lines.append(
                names | line | interval_columns("assisted", share) | interval_columns("minus_dpo_p", gap)
            )
    return pd.DataFrame(lines)


def error_line(answers: Sequence[LabelledAnswer], called: Sequence[str | None]) -> Row:
    """Return counts, error rates and the hand labels' own share of some labelled answers."""
    sample = labelled_sample(answers, called)
    line: Row = {"n": len(answers), "stands_for": round(sum(row.weight for row in answers))}
    line |= {f"hand_{name}": sum(row.label == name for row in answers) for name in CLASSES}
    line["unread"] = called.count(None)
    line["same_class"] = sum(row.label == x for row, x in zip(answers, called, strict=True))
    for name, rate in error_rates(sample).items():
        line |= interval_columns(name, rate) | {f"n_{name}": rate.n_items}
    return line | interval_columns("hand_share", weighted_share(sample.truth, sample.weight))


def held_out(rows: Sequence[LabelledAnswer], labels: Sequence[str | None]) -> Labelled:
    """Return the part of the labelled sample that was scored once: what corrections are made from."""
    pairs = [(r, x) for r, x in zip(rows, labels, strict=True) if r.part == "held_out"]
    return labelled_sample([r for r, _ in pairs], [x for _, x in pairs])


# --- shares and pairs ---


def flags(labels: Sequence[Labels], ids: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Return, per seed, 1 where a caution is kept and 0 where not, for the given rows."""
    return [
        np.array([kept(one)[i] for i in rows], dtype=float) for one, rows in zip(labels, ids, strict=True)
    ]


def share_table(
    cells: Cells, labels: dict[Cell, list[Labels]], classifier: str, n_resamples: int, sample: Labelled | None
) -> pd.DataFrame:
    """Return a line per policy and persona: classes, share that keeps a caution, corrected share, words."""
    import pandas as pd

    lines = []
    for cell, answers in cells.items():
        every = [label for one in labels[cell] for label in one.values()]
        ids = [sorted(kept(one)) for one in labels[cell]]
        values = flags(labels[cell], ids)
        line: Row = {**vars(cell), "classifier": classifier, "n": sum(map(len, ids)),
                     "n_seeds": sum(bool(one) for one in answers)}  # fmt: skip
        line |= {name: every.count(name) for name in CLASSES} | {"unread": every.count(None)}
        line |= interval_columns("share", share_interval(values, n_resamples))
        if sample is not None:
            found = np.concatenate(values)
            line |= interval_columns("corrected", corrected_share(found, sample, n_resamples))
        words = [len(text.split()) for one in answers for text in one.values()]
        lines.append(line | {"words_mean": float(np.mean(words))})
    return pd.DataFrame(lines)


def pair_line(
    first: Sequence[Labels], second: Sequence[Labels], n_resamples: int, sample: Labelled | None
) -> Row:
    """Compare two cells' labels row by row: counts, difference, exact McNemar p, and what is still kept.

    ``kept`` is the share of the compared policy's cautious answers that the tested one answers cautiously.
    """
    ids = [sorted(kept(a).keys() & kept(b).keys()) for a, b in zip(first, second, strict=True)]
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
    line |= interval_columns("share_tested", share_interval(one, n_resamples))
    line |= interval_columns("share_compared", share_interval(two, n_resamples))
    line |= interval_columns("difference", bootstrap_mean(pairs, n_resamples, shared_items=shared))
    line["p"] = sign_test(only_one, only_two) if len(seeds) == 1 else np.nan
    cautious = [a[b == 1] for a, b in zip(one, two, strict=True)]
    line |= interval_columns("kept", share_interval(cautious, n_resamples))
    if sample is not None:
        values = np.concatenate(one), np.concatenate(two)
        line |= interval_columns("corrected", corrected_difference(*values, sample, n_resamples))
    return line


def cut_difference(cells: Cells, tested: Cell, compared: Cell, n_resamples: int) -> Interval:
    """Return the difference by the rules after both answers to a row are cut to the shorter one's words."""
    pairs = [cut_alike(a, b) for a, b in zip(cells[tested], cells[compared], strict=True)]
    labels = [by_rules(tested, [a for a, _ in pairs]), by_rules(compared, [b for _, b in pairs])]
    ids = [sorted(one) for one in labels[0]]
    values = [a - b for a, b in zip(flags(labels[0], ids), flags(labels[1], ids), strict=True) if len(a)]
    shared = len({len(v) for v in values}) == 1 and len(values) > 1
    return bootstrap_mean(values, n_resamples, shared_items=shared)


def pair_table(
    cells: Cells, labels: dict[Cell, list[Labels]], classifier: str, n_resamples: int, sample: Labelled | None
) -> pd.DataFrame:
    """Return a line per comparison (``safety.comparisons``), with Holm's p over the lines of the table."""
    import pandas as pd

    lines = []
    for tested, compared, shows in comparisons(cells):
        if not any(a and b for a, b in zip(cells[tested], cells[compared], strict=True)):
            continue
        line: Row = {"dataset": tested.dataset, "classifier": classifier, "shows": shows,
                     "tested": tested.arm, "compared": compared.arm, "eval_persona": tested.eval_persona,
                     "persona_format": tested.persona_format}  # fmt: skip
        line |= pair_line(labels[tested], labels[compared], n_resamples, sample)
        if classifier == RULES:
            line |= interval_columns("difference_cut", cut_difference(cells, tested, compared, n_resamples))
        lines.append(line)
    adjusted = holm({str(n): line["p"] for n, line in enumerate(lines) if line["p"] == line["p"]})
    return pd.DataFrame([line | {"p_holm": adjusted.get(str(n), np.nan)} for n, line in enumerate(lines)])


def safety_tables(
    cells: Cells,
    labels: dict[Cell, list[Labels]],
    n_resamples: int,
    classifier: str = RULES,
    sample: Labelled | None = None,
) -> dict[str, pd.DataFrame]:
    """Return {"safety": shares, "safety_pairs": comparisons} of some labelled cells; {} without a cell.

    ``sample`` (``held_out``) corrects for the classifier's errors; it must come from answers like these.
    """
    if not cells:
        return {}
    return {
        "safety": share_table(cells, labels, classifier, n_resamples, sample),
        "safety_pairs": pair_table(cells, labels, classifier, n_resamples, sample),
    }


def released_tables(
    cells: Cells, labels: dict[Cell, list[Labels]], n_resamples: int, classifier: str = RULES
) -> dict[str, pd.DataFrame]:
    """Return the tables of the released answers; error and correction need all labelled answers."""
    rows, found = sample_labels(labels)
    sample = held_out(rows, found) if rows else None
    tables = safety_tables(cells, labels, n_resamples, classifier, sample)
    if rows:
        tables["safety_error"] = error_table(rows, found, group_flags(labels), classifier, n_resamples)
    return {f"released_{name}": table for name, table in tables.items()}


def label_all(cells: Cells, classify: Classifier) -> dict[Cell, list[Labels]]:
    """Return what a classifier calls every answer."""
    return {cell: classify(cell, answers) for cell, answers in cells.items()}


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
    """Return all tables of a profile by file name: released answers at hand, a run's own on real prompts.

    The rules read both.
    """
    import pandas as pd

    n = run.profile.bootstrap_samples
    found: dict[str, list[pd.DataFrame]] = {}
    sources = [(released_cells(data), released_tables)] if data else []
    for cells, tables in [*sources, (run_cells(run.profile), safety_tables)]:
        for key, table in tables(cells, label_all(cells, by_rules), n, RULES).items():
            found.setdefault(key, []).append(table)
    return {key: pd.concat(parts, ignore_index=True) for key, parts in found.items()}
