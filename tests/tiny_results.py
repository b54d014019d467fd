"""Finished result folders without any model: invented answers, judged by the real oracle."""

from __future__ import annotations

import csv
import random

from persona_lib import store
from persona_lib.config import Run
from persona_lib.evaluation import judge, persona_quality, tailor
from persona_lib.evaluation.swap import swap_arms, swap_folder
from persona_lib.evaluation.swap_tables import FAMILIES, SwapScore
from persona_lib.records import Generation, InferredPersona, RunSpec, TailoringRow
from persona_lib.world import synthetic
from persona_lib.world.oracle import contrast_claims

SIDES = ("chosen", "rejected")


def tailoring_rows(run: Run) -> list[TailoringRow]:
    """Evaluation rows of the synthetic world with every persona; user-written ones use held-out words."""
    rows = []
    for number, pair in enumerate(synthetic.make_pairs(run.profile, run.seed)["test"]):
        personas = {"system": "The user is busy and prefers short answers."}
        texts = {"chosen": (pair.chosen, pair.rejected), "rejected": (pair.rejected, pair.chosen)}
        for side, (mine, other) in texts.items():
            claims = contrast_claims(mine, other)
            for kind in ("gold", "retrieved", "shuffled"):
                rng = random.Random(f"{kind}{number}{side}")
                personas[f"{kind}-{side}"] = synthetic.persona_sentence(claims, rng)
            personas[f"user-{side}"] = synthetic.user_persona(pair.id, claims)
        rows.append(TailoringRow(pair.id, "test", pair.prompt, pair.chosen, pair.rejected, personas))
    return rows


def chance_to_follow(spec: RunSpec) -> float:
    """How often an arm's answer follows its persona here: invented, so that tables have something to show."""
    if spec.train_persona in ("none", "shuffled"):
        return 0.55
    return {"few_shot": 0.6, "sft": 0.75, "dpo": 0.85}[spec.method]


def answer(spec: RunSpec, row: TailoringRow, rng: random.Random) -> str:
    """One of the row's two responses, sometimes cut short."""
    wanted = "rejected" if spec.eval_persona.endswith("rejected") else "chosen"
    follows = rng.random() < chance_to_follow(spec)
    text = getattr(row, wanted if follows else {"chosen": "rejected", "rejected": "chosen"}[wanted])
    return text if rng.random() < 0.8 else text[: len(text) // 2]


def fill_generations(run: Run, rows: list[TailoringRow]) -> None:
    """Write finished answers for every cell of the grid."""
    for spec in tailor.grid(run):
        rng = random.Random(f"{spec.slug}-{run.seed}")
        folder = tailor.generation_folder(run, spec)
        store.write_rows(
            folder / "rows.jsonl",
            [Generation(r.id, spec.slug, r.prompt, None, answer(spec, r, rng), "stop", 9) for r in rows],
        )
        store.mark_done(folder, "tiny")


def fill_swaps(run: Run, rows: list[TailoringRow], shift: float = 1.0) -> None:
    """Write finished swap scores: tailored arms lean towards the persona's side by ``shift`` nats."""
    for arm, form in swap_arms(run):
        rng = random.Random(f"swap-{arm}-{form}-{run.seed}")
        scores = []
        for row in rows:
            for name in ("none", *(f"{family}-{side}" for family in FAMILIES for side in SIDES)):
                lean = {"chosen": shift, "rejected": -shift}.get(name.rpartition("-")[2], 0.0)
                lean *= arm.endswith(("chosen", "both")) and not name.startswith("shuffled")
                reference = (None, None) if arm == "base" else (-40.0, -40.0)
                scores.append(SwapScore(row.id, name, name, -40 + rng.gauss(lean, 2), -40.0, *reference))
        store.write_rows(swap_folder(run, arm, form) / "rows.jsonl", scores)
        store.mark_done(swap_folder(run, arm, form), "tiny")


def fill_personas(run: Run, rows: list[TailoringRow]) -> None:
    """Write inferred personas, one in seven of the wrong side, and the items of their accuracy."""
    store.write_rows(run.folder / "pairs" / "test.jsonl", synthetic.make_pairs(run.profile, run.seed)["test"])
    store.write_rows(run.folder / "pairs" / "train.jsonl", [])
    store.write_rows(run.folder / "pairs" / "validation.jsonl", [])
    store.mark_done(run.folder / "pairs", "tiny")
    for side, other in (SIDES, SIDES[::-1]):
        personas = [
            InferredPersona(r.id, side, "base", r.personas[f"gold-{side if n % 7 else other}"], "ok", "")
            for n, r in enumerate(rows)
        ]
        store.write_rows(run.folder / "personas" / f"test-{side}.jsonl", personas)
    path = run.folder / "tables" / "persona_accuracy_items.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "side", "verdict", "contradicted"])
        for side in SIDES:
            for name, verdict, contradicted in persona_quality.accuracy_verdicts(run, "test", side):
                writer.writerow([name, "test", side, verdict or "", contradicted])
    with path.with_name("persona_preference_items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "verdict"])
        writer.writerows((i, v or "") for i, v in persona_quality.preference_verdicts(run, "test"))


def fill_run(run: Run) -> list[TailoringRow]:
    """Fill a run's folder with rows, answers, judgments, swap scores and personas."""
    rows = tailoring_rows(run)
    store.write_rows(run.folder / "tailoring" / "test.jsonl", rows)
    fill_generations(run, rows)
    fill_swaps(run, rows)
    if run.profile.judge != "none":
        fill_personas(run, rows)
        judge.judge_all(run)
    return rows
