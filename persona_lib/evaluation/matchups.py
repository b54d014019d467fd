"""Which runs of the grid are compared with which: the rows of the results tables, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from persona_lib.config import Run, main_arm
from persona_lib.evaluation.tailor import grid
from persona_lib.records import RunSpec


@dataclass(frozen=True)
class Matchup:
    """A row of a results table: a tested run against a base run, judged for ``judge_persona``.

    ``kind`` says what it shows: "main" (the paper's table), "sft" or "few_shot" (the same method without
    personas), "stage" (DPO against SFT), "arm" (another training persona), "control" (expected null)
    or "published" (a published arm against few-shot, which needs no training).
    """

    label: str
    kind: str
    test: RunSpec
    base: RunSpec
    judge_persona: str

    @property
    def slug(self) -> str:
        """Path-safe name: tested run, base run, judged persona."""
        return f"{self.test.slug}__{self.base.slug}__{self.judge_persona}"


def matchups(run: Run) -> list[Matchup]:
    """Return the rows of the results tables for one data set and seed, among the runs of the grid."""
    cells, main = {spec.slug: spec for spec in grid(run)}, main_arm(run.profile)

    def cell(method: str, train: str, persona: str, form: str) -> RunSpec | None:
        return cells.get(f"{method}-{train}.{persona}.{form}")

    rows: list[tuple[str, str, RunSpec | None, RunSpec | None, str]] = []
    for persona in run.profile.eval_personas:
        tested, plain = cell("dpo", main, persona, "line"), cell("dpo", "none", persona, "first_person")
        if persona.startswith(("gold", "retrieved", "user")):
            rows.append((f"{persona}", "main", tested, plain, persona))
            rows.append(
                (
                    f"{persona}, Persona line for DPO",
                    "control",
                    tested,
                    cell("dpo", "none", persona, "line"),
                    persona,
                )
            )
            rows.append(
                (
                    f"{persona}, DPO never told",
                    "control",
                    tested,
                    cell("dpo", "none", "none", "line"),
                    persona,
                )
            )
            rows.append(
                (
                    f"{persona}, PT-DPO against PT-SFT",
                    "stage",
                    tested,
                    cell("sft", main, persona, "line"),
                    persona,
                )
            )
            for method in ("sft", "few_shot"):
                arm = "chosen" if method == "few_shot" else main
                pair = cell(method, arm, persona, "line"), cell(method, "none", persona, "first_person")
                rows.append((f"{persona}, {method}", method, *pair, persona))
            for train in (name for name in run.profile.train_personas if name not in ("none", main)):
                rows.append(
                    (
                        f"{persona}, PT trained on {train}",
                        "control" if train == "shuffled" else "arm",
                        cell("dpo", train, persona, "line"),
                        plain,
                        persona,
                    )
                )
        elif persona.startswith("shuffled"):
            gold = persona.replace("shuffled", "gold")
            rows.append((f"{persona} persona, judged for {gold}", "control", tested, plain, gold))
    for side in ("gold-chosen", "gold-rejected"):
        none = cell("dpo", main, "none", "line"), cell("dpo", "none", "none", "line")
        rows.append((f"no persona, judged for {side}", "control", *none, side))
        system = cell("dpo", main, "system", "line"), cell("dpo", "none", "system", "first_person")
        rows.append((f"system persona, judged for {side}", "control", *system, side))
    return [Matchup(label, kind, a, b, judged) for label, kind, a, b, judged in rows if a and b]
