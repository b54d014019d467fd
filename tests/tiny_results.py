"""Finished result folders without any model: invented answers, judged by the real oracle."""

import random

from persona_lib import store
from persona_lib.data import everyday, preference
from persona_lib.paper import answers, judging
from persona_lib.records import SIDES, Generation, InferredPersona, RunSpec, TailoringRow
from persona_lib.settings import Run


def tailoring_rows(run: Run) -> list[TailoringRow]:
    """The evaluation rows of ``everyday`` with every persona; retrieved ones say the same as gold ones."""
    known = everyday.personas(run.profile.data.majority_share, run.seed)
    pairs = preference.READERS[run.dataset](run)["test"]
    rows = []
    for number, pair in enumerate(pairs):
        personas = {"system": "The user is busy and prefers short answers.", **known[pair.id]}
        for side in SIDES:
            personas[f"retrieved-{side}"] = personas[f"gold-{side}"]
            personas[f"shuffled-{side}"] = known[pairs[number - 1].id][f"gold-{side}"]
        rows.append(TailoringRow(pair.id, "test", pair.prompt, pair.chosen, pair.rejected, personas))
    return rows


def answer(spec: RunSpec, row: TailoringRow, rng: random.Random) -> str:
    """One of the row's two responses, sometimes cut short; tailored arms follow the persona more often."""
    chance = {"few_shot": 0.6, "sft": 0.75, "dpo": 0.85}[spec.method]
    follows = rng.random() < (0.55 if spec.train_persona in ("none", "shuffled") else chance)
    text = row.rejected if spec.eval_persona.endswith("rejected") == follows else row.chosen
    return text if rng.random() < 0.8 else text[: len(text) // 2]


def fill_generations(run: Run, rows: list[TailoringRow]) -> None:
    """Write finished answers for every cell of the grid."""
    for spec in answers.grid(run):
        rng = random.Random(f"{spec.slug}-{run.seed}")
        folder = answers.generation_folder(run, spec)
        store.write_rows(
            folder / "rows.jsonl",
            [Generation(r.id, spec.slug, r.prompt, None, answer(spec, r, rng), "stop", 9) for r in rows],
        )
        store.mark_done(folder, "tiny")


def fill_personas(run: Run, rows: list[TailoringRow]) -> None:
    """Write inferred personas, one in seven of the wrong side."""
    preference.write_pairs(run)
    for side, other in (SIDES, SIDES[::-1]):
        personas = [
            InferredPersona(r.id, side, "base", r.personas[f"gold-{side if n % 7 else other}"], "ok", "")
            for n, r in enumerate(rows)
        ]
        store.write_rows(run.folder / "personas" / f"test-{side}.jsonl", personas)


def line(table, **values):
    """The one row of a table with these values."""
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def main_row(run: Run, persona: str = "gold-chosen") -> judging.Matchup:
    """The main matchup of a run that is judged for a persona."""
    return next(m for m in judging.matchups(run) if m.kind == "main" and m.judge_persona == persona)


def fill_run(run: Run) -> list[TailoringRow]:
    """Fill a run's folder with rows, answers, judgments and personas."""
    rows = tailoring_rows(run)
    store.write_rows(run.folder / "tailoring" / "test.jsonl", rows)
    fill_generations(run, rows)
    if run.profile.evaluation.judge != "none":
        fill_personas(run, rows)
        judging.judge_all(run)
    return rows
