"""SIMULATED raters, to check the rating kit: they read nothing, are not people, and mean nothing.

Every item has a true value, drawn from a table that is made up (the first question of a study has a
difference between the two groups, the others have none). A rater reports it with probability c, and
otherwise draws from all items' values. Two ratings of an item then agree by more than chance exactly if
both report the truth, so Krippendorff's alpha is c squared, for every level of measurement.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path

from persona_lib.beyond.ratings import QUESTIONS, SCALE, KeyRow, open_csv, to_csv
from persona_lib.store import write_text

TRUE_ALPHA = 0.6
SHARES = {"first": (1, 2, 3, 4, 2), "other": (2, 4, 3, 2, 1)}  # weights of 1 to 5, of a made-up difference
MISSING = 0.02  # share of cells left empty
IMPOSSIBLE = 0.005  # share of cells with a number that is not on the scale


def exact_draw(n: int, weights: Sequence[int], rng: random.Random) -> list[int]:
    """Return ``n`` values of the scale in random order, exactly as often as the weights say."""
    limits = list(itertools.accumulate(weights))
    places = ((number + 0.5) / n * limits[-1] for number in range(n))
    values = [SCALE[bisect.bisect_left(limits, place)] for place in places]
    rng.shuffle(values)
    return values


def true_values(study: str, key: Sequence[KeyRow], seed: int) -> dict[str, dict[str, int]]:
    """Draw a true value per question and item: question -> item -> value."""
    groups: dict[str, list[str]] = {}
    for row in key:
        groups.setdefault(row.group, []).append(row.item)
    values: dict[str, dict[str, int]] = {}
    for place, question in enumerate(QUESTIONS[study]):
        rng, values[question] = random.Random(f"truth-{question}-{seed}"), {}
        for number, group in enumerate(sorted(groups)):
            weights = SHARES["other" if place == 0 and number else "first"]
            values[question] |= zip(groups[group], exact_draw(len(groups[group]), weights, rng), strict=True)
    return values


def simulate(values: dict[str, int], rater: str, alpha: float, seed: int) -> dict[str, int]:
    """Return one rater's ratings of the items: the truth with probability sqrt(alpha), else another's."""
    rng, pool, honest = random.Random(f"{rater}-{seed}"), list(values.values()), math.sqrt(alpha)
    return {item: value if rng.random() < honest else rng.choice(pool) for item, value in values.items()}


def spoil(value: int, rng: random.Random) -> str:
    """Return a cell as people leave it: mostly the value, sometimes nothing or a slip of the finger."""
    draw = rng.random()
    return "" if draw < MISSING else "44" if draw < MISSING + IMPOSSIBLE else str(value)


def fill_sheets(
    study: str, key: Sequence[KeyRow], sheets: Path, filled: Path, alpha: float = TRUE_ALPHA, seed: int = 0
) -> list[Path]:
    """Fill the exported sheets of a study with simulated ratings, marked as such in every row's comment."""
    truth, paths = true_values(study, key, seed), []
    for sheet in sorted(sheets.glob("*.csv")):
        columns, rows = open_csv(sheet)
        given = {
            question: simulate(truth[question], f"{sheet.stem}-{question}", alpha, seed)
            for question in QUESTIONS[study]
        }
        rng = random.Random(f"slips-{sheet.stem}-{seed}")
        for row in rows:
            row |= {question: spoil(given[question][row["item"]], rng) for question in QUESTIONS[study]}
            row["comment"] = "simulated"
        paths.append(filled / sheet.name)
        write_text(paths[-1], to_csv(columns, [[row[name] for name in columns] for row in rows]))
    return paths
