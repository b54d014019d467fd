"""Personas copied into answers, and format noise, by policy and persona: of a run or of the released answers.

The definitions are those of ``stats.answer_noise``; shares: Wilson intervals for one seed (else bootstraps).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.data.released import Released
from persona_lib.stats.answer_noise import MARKS, copies_persona, marks
from persona_lib.stats.bootstrap import interval_columns
from persona_lib.stats.shares import share_interval
from persona_lib.stats.text_metrics import n_words, repetition

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
NOISE = ("copies_persona", "copies_other", *MARKS, "endless", "repeats")


@dataclass(frozen=True)
class Answer:
    """An answer with what it was asked; ``persona`` is None where it was shown none."""

    prompt: str
    persona: str | None
    text: str
    ended: bool


Answers = dict[str, Answer]  # by row id
Kinds = dict[tuple[str, str, str], list[Answers]]  # (arm, eval persona, format) -> one per seed


def released_answers(data: Released, dataset: str) -> Kinds:
    """Return the authors' released answers of one data set."""
    rows, found = {row.id: row for row in data.rows[dataset]}, {}
    for file, outputs in data.outputs.items():
        if file.dataset == dataset:
            told = file.train_persona == "none" and file.eval_persona != "none"
            found[file.arm, file.eval_persona, "first_person" if told else "line"] = [{
                o.id: Answer(rows[o.id].prompt, rows[o.id].personas.get(file.eval_persona), o.text, o.ended)
                for o in outputs
            }]  # fmt: skip
    return found


def noise_values(answers: Answers) -> dict[str, np.ndarray]:
    """Return 0/1 per answer (in the order of ids) for every kind of noise; leakage is NaN without a persona.

    ``copies_other`` is the control: does the answer hold a piece of the next row's persona?
    """
    ids = sorted(answers)
    rows = []
    for i, after in zip(ids, [*ids[1:], *ids[:1]], strict=True):
        one, other = answers[i], answers[after].persona
        line = {"copies_persona": leak(one, one.persona), "copies_other": leak(one, other)}
        line |= marks(one.text) | {"endless": not one.ended, "repeats": repetition(one.text) > 0.5}
        rows.append(line)
    return {name: np.array([row[name] for row in rows], dtype=float) for name in NOISE}


def leak(answer: Answer, persona: str | None) -> float:
    """Return 1 if an answer copies a piece of a persona that its prompt does not hold, NaN without one."""
    return float(copies_persona(answer.text, persona, answer.prompt)) if persona else float("nan")


def noise_table(dataset: str, kinds: Kinds, n_resamples: int) -> pd.DataFrame:
    """Return a line per policy, persona and format: leakage, marks, answers without an end, loops, words."""
    import pandas as pd

    lines = []
    for (arm, persona, style), by_seed in kinds.items():
        seeds = [answers for answers in by_seed if answers]
        values = [noise_values(answers) for answers in seeds]
        line: Row = {"dataset": dataset, "arm": arm, "eval_persona": persona, "persona_format": style,
                     "n": sum(map(len, seeds)), "n_seeds": len(seeds)}  # fmt: skip
        for name in NOISE:
            there = [v[name][~np.isnan(v[name])] for v in values]
            line |= interval_columns(name, share_interval(there, n_resamples))
        words = [n_words(answer.text) for answers in seeds for answer in answers.values()]
        lines.append(line | {"words_mean": float(np.mean(words)), "words_median": float(np.median(words))})
    return pd.DataFrame(lines)


def released_noise(data: Released, n_resamples: int) -> pd.DataFrame:
    """Return leakage and format noise of the released answers of all data sets at hand."""
    import pandas as pd

    parts = [noise_table(name, released_answers(data, name), n_resamples) for name in data.rows]
    return pd.concat(parts, ignore_index=True)
