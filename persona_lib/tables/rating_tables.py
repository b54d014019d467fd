"""Tables of human ratings: means per group with intervals over items, agreement of the raters, problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.evaluation.rating_items import GROUPS
from persona_lib.evaluation.rating_sheets import QUESTIONS, SCALE
from persona_lib.evaluation.ratings import Filled, Problem
from persona_lib.stats.bootstrap import Interval, bootstrap_mean, interval_columns
from persona_lib.stats.reliability import (
    alpha_interval,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
)

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def paired_means(filled: Filled, question: str) -> dict[str, np.ndarray]:
    """Return, per group, the mean rating of its item in every pair (NaN without one), pairs in one order."""
    items, ratings = filled.array(question)
    pairs = list(dict.fromkeys(filled.key[item].pair for item in items))
    means = {group: np.full(len(pairs), np.nan) for group in GROUPS[filled.study]}
    for item, row in zip(items, ratings, strict=True):
        if not np.isnan(row).all():
            means[filled.key[item].group][pairs.index(filled.key[item].pair)] = np.nanmean(row)
    return means


def value_columns(filled: Filled, question: str, group: str) -> Row:
    """Count a group's ratings by value."""
    items, ratings = filled.array(question)
    own = ratings[[filled.key[item].group == group for item in items]]
    return {"n_ratings": int((~np.isnan(own)).sum())} | {f"n_{v}": int((own == v).sum()) for v in SCALE}


def mean_row(values: np.ndarray, n_resamples: int) -> Row:
    """Return n and the mean of per-item values with its interval; undefined without any value."""
    there = values[~np.isnan(values)]
    interval = bootstrap_mean([there], n_resamples) if len(there) else Interval(None, None, None, 0)
    return {"n": len(there), **interval_columns("mean", interval)}


def ratings_table(filled: dict[str, Filled], n_resamples: int) -> pd.DataFrame:
    """Return a line per study, question and group, and per question the first group minus the second.

    An item's value is the mean of its ratings; differences are paired. Intervals draw items (pairs).
    """
    import pandas as pd

    lines: list[Row] = []
    for study, found in filled.items():
        for question in QUESTIONS[study]:
            head = {"study": study, "question": question, "n_raters": len(found.raters)}
            means = paired_means(found, question)
            for group, values in means.items():
                counts = value_columns(found, question, group)
                lines.append(head | {"group": group} | mean_row(values, n_resamples) | counts)
            first, second = GROUPS[study]
            line = mean_row(means[first] - means[second], n_resamples)
            lines.append(head | {"group": f"{first} - {second}"} | line)
    return pd.DataFrame(lines)


def agreement_row(filled: Filled, question: str, n_resamples: int) -> Row:
    """Return how far the raters agree on one question."""
    _, ratings = filled.array(question)
    fleiss, n_fleiss = fleiss_kappa(ratings, SCALE)
    kinds = [p.kind for p in filled.problems if p.field == question]
    return {
        "study": filled.study, "question": question, "n_raters": len(filled.raters),
        "n": int(((~np.isnan(ratings)).sum(axis=1) > 1).sum()), "n_ratings": int((~np.isnan(ratings)).sum()),
        "n_missing": kinds.count("missing"), "n_out_of_scale": kinds.count("out of scale"),
        **interval_columns("alpha", alpha_interval(ratings, SCALE, "ordinal", n_resamples)),
        "alpha_nominal": krippendorff_alpha(ratings, SCALE, "nominal"),
        "cohen_quadratic": cohen_kappa(ratings, SCALE, "quadratic"), "fleiss": fleiss, "n_fleiss": n_fleiss,
    }  # fmt: skip


def agreement_table(filled: dict[str, Filled], n_resamples: int) -> pd.DataFrame:
    """Return a line per study and question: Krippendorff's alpha with interval, kappas, what is missing."""
    import pandas as pd

    return pd.DataFrame(
        [agreement_row(found, q, n_resamples) for found in filled.values() for q in QUESTIONS[found.study]]
    )


def problems_table(filled: Iterable[Filled]) -> pd.DataFrame:
    """Return every rating that is not there, with file, row, field, value and the mend."""
    import pandas as pd

    rows: list[dict[str, Any]] = [dataclasses.asdict(p) for found in filled for p in found.problems]
    return pd.DataFrame(rows, columns=[field.name for field in dataclasses.fields(Problem)])


def rating_tables(filled: dict[str, Filled], n_resamples: int) -> dict[str, pd.DataFrame]:
    """Return all tables of a set of filled sheets, by file name."""
    return {
        "ratings": ratings_table(filled, n_resamples),
        "rating_agreement": agreement_table(filled, n_resamples),
        "rating_problems": problems_table(filled.values()),
    }
