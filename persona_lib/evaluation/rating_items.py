"""What of a profile is given to raters: personas of both sides, and answers of plain DPO and PT-DPO.

One run per data set, that of the profile's first seed; rows of the evaluation split, drawn at random.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from persona_lib.config import Run, main_arm
from persona_lib.evaluation.rating_sheets import Item
from persona_lib.evaluation.tailor import eval_rows, generation_folder, read_generations
from persona_lib.profiles import Profile
from persona_lib.records import SIDES, Generation, RunSpec, TailoringRow

GROUPS = {"personas": SIDES, "answers": ("PT-DPO", "DPO")}  # compared: the first minus the second


def first_runs(profile: Profile) -> list[Run]:
    """Return one run per data set: that of the profile's first seed, if its rows are there."""
    runs = [Run(profile, dataset, profile.seeds[0]) for dataset in profile.datasets]
    return [run for run in runs if (run.folder / "tailoring" / f"{profile.eval_split}.jsonl").exists()]


def persona_items(run: Run, row: TailoringRow) -> list[Item]:
    """Return a row's two gold personas, each with the response it was inferred for and the other one."""
    texts = {"chosen": (row.chosen, row.rejected), "rejected": (row.rejected, row.chosen)}
    return [
        Item(run.dataset, f"{row.id}/{side}", f"{run.dataset}/{row.id}", side,
             (row.prompt, row.personas[f"gold-{side}"] or "", *texts[side]))
        for side in SIDES
    ]  # fmt: skip


def personas_to_rate(run: Run) -> list[list[Item]]:
    """Return the rows that have responses and a persona on both sides, as items of the persona study."""
    rows = [row for row in eval_rows(run) if row.chosen.strip() and row.rejected.strip()]
    return [persona_items(run, row) for row in rows if all(row.personas.get(f"gold-{s}") for s in SIDES)]


def answers_of(run: Run, persona: str) -> dict[str, dict[str, Generation]]:
    """Return both systems' answers under a persona, by system and row; empty if one has not answered.

    As in the main comparison: plain DPO is told in the first person, PT-DPO has its own line.
    """
    arms = {"PT-DPO": (main_arm(run.profile), "line"), "DPO": ("none", "first_person")}
    specs = {
        system: RunSpec(run.dataset, "dpo", arm, persona, run.seed, form)
        for system, (arm, form) in arms.items()
    }
    if not all((generation_folder(run, spec) / "done.json").exists() for spec in specs.values()):
        return {}
    return {system: read_generations(run, spec) for system, spec in specs.items()}


def answer_units(run: Run, persona: str) -> Iterator[list[Item]]:
    """Yield, per row, the two systems' answers under one persona: they are rated together."""
    answers = answers_of(run, persona)
    for row in eval_rows(run) if answers else []:
        if all(row.id in found for found in answers.values()):
            pair = f"{run.dataset}/{row.id}/{persona}"
            yield [
                Item(run.dataset, pair, pair, system,
                     (row.prompt, row.personas[persona] or "", found[row.id].completion))
                for system, found in answers.items()
            ]  # fmt: skip


def answers_to_rate(run: Run) -> list[list[Item]]:
    """Return the units of the user study: under personas in users' own words, or gold ones without any."""
    for kind in ("user", "gold"):
        units = [unit for side in SIDES for unit in answer_units(run, f"{kind}-{side}")]
        if units:
            return units
    return []


def items_to_rate(profile: Profile, study: str, n: int, seed: int = 0) -> list[Item]:
    """Draw about ``n`` items of a study, in equal parts from the profile's data sets; maybe none."""
    find = {"personas": personas_to_rate, "answers": answers_to_rate}[study]
    items, runs = [], first_runs(profile)
    for run in runs:
        found = find(run)
        rng = random.Random(f"rated-{study}-{run.dataset}-{seed}")
        wanted = max(1, round(n / len(GROUPS[study]) / len(runs)))
        items += [item for unit in rng.sample(found, min(wanted, len(found))) for item in unit]
    return items
