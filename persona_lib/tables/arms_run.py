"""Which arms were run and which were not, and why: one row for every arm that the package knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persona_lib.config import Run
from persona_lib.evaluation.judged import runs_of
from persona_lib.evaluation.tailor import generation_folder, grid
from persona_lib.profiles import Profile
from persona_lib.records import METHODS, TRAIN_PERSONAS

if TYPE_CHECKING:
    import pandas as pd

FEW_SHOT_PERSONAS = ("none", "chosen")  # few-shot examples come with their own persona or without


def known_arms() -> list[tuple[str, str]]:
    """Return every (method, train persona) there is."""
    return [(m, p) for m in METHODS for p in TRAIN_PERSONAS if m != "few_shot" or p in FEW_SHOT_PERSONAS]


def answered(run: Run, method: str, persona: str) -> tuple[int, int]:
    """Return how many runs of the grid an arm has, and how many of them are answered."""
    specs = [s for s in grid(run) if (s.method, s.train_persona) == (method, persona)]
    return len(specs), sum((generation_folder(run, spec) / "done.json").exists() for spec in specs)


def reason(profile: Profile, method: str, persona: str, planned: int, done: int) -> str:
    """Say why an arm is not or not wholly there; empty if it is."""
    if method not in profile.methods:
        return f"{method} is not in methods of this run"
    if persona not in profile.train_personas:
        return f"{persona} is not in train_personas of this run: --set train_personas=...,{persona}"
    return "" if done == planned else f"{planned - done} of its runs have no finished answers"


def arms_run(profile: Profile) -> pd.DataFrame:
    """Return a row per data set and arm: its runs in the grid of all seeds, and why not all are answered."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for dataset in profile.datasets:
        for method, persona in known_arms():
            counts = [answered(run, method, persona) for run in runs_of(profile, dataset)]
            planned, done = (sum(column) for column in zip(*counts, strict=True))
            state = "run" if planned and done == planned else "partly" if done else "not run"
            why = reason(profile, method, persona, planned, done)
            rows.append({"dataset": dataset, "arm": f"{method}-{persona}", "state": state, "runs": planned,
                         "answered": done, "why": why})  # fmt: skip
    return pd.DataFrame(rows)
