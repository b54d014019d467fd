"""Safety by persona: which answers of which policy under which persona keep a caution or a refusal.

The paper names the risk that a persona buys compliance. Here answers are read by the rules of
``stats.caution``, for the authors' released answers and for any run on real prompts.
``facts/safety_labels.csv`` holds hand labels of 460 released answers, by file and item id, never a text.
They are a stratified draw: each stands for ``weight`` answers. The part "written" was read while the rules
were written, "held_out" was labelled before they ran on it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

from persona_lib.config import FACTS, Run, main_arm
from persona_lib.data.released import Released
from persona_lib.evaluation.tailor import generation_folder, grid, read_generations
from persona_lib.profiles import Profile
from persona_lib.records import DataError, RunSpec
from persona_lib.stats import caution

Texts = dict[str, str]  # id of a row -> its answer
Labels = dict[str, str]  # id of a row -> "refusal", "caution" or "neither"
LABELS_FILE = FACTS / "safety_labels.csv"
PARTS = ("written", "held_out")
SAFETY_DATASET = "beavertails"  # whose released answers are read
HARMLESS = ("everyday",)  # data sets without a prompt that calls for caution


@dataclass(frozen=True)
class Cell:
    """Whose answers: a policy ("dpo-chosen") under one persona ("none", "gold-rejected") in one format."""

    dataset: str
    arm: str
    eval_persona: str
    persona_format: str = "line"


Cells = dict[Cell, list[Texts]]  # answers, one dict per seed
SHOWN = ("tailored", "same persona", "told", "no persona")  # what a comparison shows


def released_cells(data: Released, dataset: str = SAFETY_DATASET) -> Cells:
    """Return the authors' released answers: PT-DPO, and plain DPO without and with a persona."""
    cells = {}
    for file, outputs in data.outputs.items():
        if file.dataset == dataset:
            told = file.train_persona == "none" and file.eval_persona != "none"
            style = "first_person" if told else "line"
            cell = Cell(dataset, file.arm, file.eval_persona, style)
            cells[cell] = [{output.id: output.text for output in outputs}]
    return cells


def run_cells(profile: Profile) -> Cells:
    """Return the finished answers of a profile's DPO arms (SFT where it has no DPO) to prompts of real data.

    Seeds that lack an answer file are empty; data sets that call for no caution are left out.
    """
    from persona_lib.evaluation.judged import runs_of  # needs numpy, which a plan does without

    cells: Cells = {}
    for dataset in profile.datasets:
        if dataset in HARMLESS:
            continue
        runs = runs_of(profile, dataset)
        for spec in safety_specs(runs[0]):
            found = [answers_of(run, spec) for run in runs]
            if any(found):
                cells[Cell(dataset, spec.arm, spec.eval_persona, spec.persona_format)] = found
    return cells


def safety_specs(run: Run) -> list[RunSpec]:
    """Return the runs of the grid whose answers are read: the main tailored arm and the persona-free one."""
    method, arms = "dpo" if "dpo" in run.profile.methods else "sft", ("none", main_arm(run.profile))
    return [spec for spec in grid(run) if spec.method == method and spec.train_persona in arms]


def answers_of(run: Run, spec: RunSpec) -> Texts:
    """Return a run's answers by row id; {} if they are not finished."""
    own = RunSpec(
        run.dataset, spec.method, spec.train_persona, spec.eval_persona, run.seed, spec.persona_format
    )
    if not (generation_folder(run, own) / "done.json").exists():
        return {}
    return {i: answer.completion for i, answer in read_generations(run, own).items()}


def by_rules(answers: Sequence[Texts]) -> list[Labels]:
    """Label answers by the documented rules."""
    return [{i: caution.classify(text) for i, text in texts.items()} for texts in answers]


def kept(labels: Labels) -> dict[str, bool]:
    """Return, by row id, whether a caution or a refusal is kept."""
    return {i: label != "neither" for i, label in labels.items()}


def cut_to_words(text: str, n: int) -> str:
    """Return the first ``n`` white-space separated words of a text."""
    return " ".join(text.split()[:n])


def cut_alike(first: Texts, second: Texts) -> tuple[Texts, Texts]:
    """Cut the two answers to every row to the words of the shorter one: a longer answer has no more room."""
    ids = first.keys() & second.keys()
    room = {i: min(len(first[i].split()), len(second[i].split())) for i in ids}
    return tuple({i: cut_to_words(texts[i], room[i]) for i in ids} for texts in (first, second))


# --- what is compared with what ---


def comparisons(cells: Cells) -> list[tuple[Cell, Cell, str]]:
    """Return (tested, compared, what it shows) among the cells at hand, in the order of ``SHOWN``.

    "tailored": the persona-trained policy against the plain one without a persona; "same persona": against
    the plain one told the same persona; "told": the plain one told a persona against itself without one;
    "no persona": the two policies when neither is shown a persona.
    """
    found = []
    for cell in cells:
        method = cell.arm.partition("-")[0]
        plain = Cell(cell.dataset, f"{method}-none", "none")
        told = Cell(cell.dataset, plain.arm, cell.eval_persona, "first_person")
        pairs = {plain: "tailored" if cell.eval_persona != "none" else "no persona", told: "same persona"}
        if cell.arm == plain.arm:
            pairs = {plain: "told"} if cell.persona_format == "first_person" else {}
        found += [(cell, other, shows) for other, shows in pairs.items() if other in cells]
    return sorted(found, key=lambda one: SHOWN.index(one[2]))


# --- the hand labels ---


@dataclass(frozen=True)
class Labelled:
    """One labelled answer: which one it is, its stratum, what it stands for, and what a reader called it."""

    train_persona: str
    eval_persona: str
    id: str
    group: str
    pile: str
    part: str
    weight: float
    label: str

    @property
    def cell(self) -> Cell:
        """The cell that the answer is in."""
        told = self.train_persona == "none" and self.eval_persona != "none"
        style = "first_person" if told else "line"
        return Cell(SAFETY_DATASET, f"dpo-{self.train_persona}", self.eval_persona, style)


def read_labels() -> list[Labelled]:
    """Read the shipped labels; DataError names a row with an unknown class or part."""
    with LABELS_FILE.open(encoding="utf-8", newline="") as file:
        rows = [Labelled(**row | {"weight": float(row["weight"])}) for row in csv.DictReader(file)]
    for number, row in enumerate(rows, 2):
        if row.label not in caution.CLASSES or row.part not in PARTS:
            raise DataError(f"{LABELS_FILE.name}, line {number}: label {row.label!r}, part {row.part!r}")
    return rows
