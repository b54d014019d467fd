"""How far a judge may be believed: measured where the answer is known, before its verdicts are used.

Persona fit: gold pairs of the evaluation split, the persona of either side with both responses (P_C should
lead to the chosen response, P_R to the rejected one). Quality: the written response of a pair against a
damaged copy. Reading: the reader's verdict on generated answers that were labelled blind.
A judge whose accuracy has a 95 % lower bound of at most ``BELIEVED`` is shown but decides nothing.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.data.everyday import UNREADABLE, shows
from persona_lib.intervals import position_inconsistent, verdict_of, wilson_interval
from persona_lib.paper.answers import eval_rows
from persona_lib.paper.judges import load_judge
from persona_lib.paper.judging import judge_key, judge_rubric
from persona_lib.records import SIDES, Judgment, PairwiseComparison, Table, TailoringRow, table_of
from persona_lib.settings import FACTS, Run

BELIEVED = 0.6
LIMIT = 64  # rows drawn of the evaluation split
FIT, READING = "persona fit", "reading of generated answers"  # tests of personalization
LABELS = FACTS / "reader_labels.jsonl"
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")
SCORES = re.compile(r"(-?[\d.]+) : (-?[\d.]+)")  # the feedback of a judge that scores
MODAL = re.compile(r"\b(is|are|can|will|should|must|does|may|was|has)\b")


def contradicted(sentence: str) -> str:
    """Return a sentence with a "not": advice and facts turned round."""
    turned = MODAL.sub(r"\1 not", sentence, count=1)
    return turned if turned != sentence else f"Do not {sentence[:1].lower()}{sentence[1:]}"


def damaged_comparisons(rows: Sequence[TailoringRow]) -> dict[str, list[PairwiseComparison]]:
    """Return, per kind of damage and row, the written response and its damaged copy."""
    rows = [row for row in rows if row.chosen]
    found: dict[str, list[PairwiseComparison]] = {}
    for number, row in enumerate(rows):
        words, sentences = row.chosen.split(" "), SENTENCE.split(row.chosen.strip())
        copies = {
            "answer to another question": rows[(number + len(rows) // 2) % len(rows)].chosen,
            "cut in the middle": " ".join(words[: max(3, len(words) // 2)]).rstrip(".!?:;,"),
            "sentences reversed": " ".join(reversed(sentences)),
            "facts contradicted": " ".join(map(contradicted, sentences)),
            "first sentence repeated": " ".join(sentences[:1] * 4),
        }
        for damage, text in copies.items():
            comparison = PairwiseComparison(row.id, row.prompt, None, row.chosen, text)
            found.setdefault(damage, []).append(comparison)
    return found


def gold_comparisons(rows: Sequence[TailoringRow]) -> list[PairwiseComparison]:
    """Return, per row and side, the persona with its own response first."""
    return [
        PairwiseComparison(f"{row.id}/{side}", row.prompt, persona, *texts)
        for row in rows
        for side, texts in zip(SIDES, ((row.chosen, row.rejected), (row.rejected, row.chosen)), strict=True)
        if (persona := row.personas.get(f"gold-{side}")) and all(texts)
    ]


def drawn_rows(run: Run) -> list[TailoringRow]:
    """Return the rows of a run's evaluation split on which its judges are measured."""
    return random.Random("calibration").sample(found := eval_rows(run), min(LIMIT, len(found)))


def measure(judged: Sequence[tuple[Judgment, Judgment]]) -> dict[str, Any]:
    """Return how often a judge names the first response, in both orders (a tie: one half), with counts."""
    verdicts = [verdict_of(*pair) for pair in judged]
    right = [{"win": 1.0, "tie": 0.5}.get(verdict, 0.0) for verdict in verdicts]
    gaps = [abs(float(s[1]) - float(s[2])) for one, _ in judged if (s := SCORES.fullmatch(one.feedback))]
    accuracy, at_half = sum(right) / len(right) if right else math.nan, math.nan
    if len(gaps) == len(right) > 1:  # the half of the comparisons with the larger score differences
        surer = sorted(range(len(gaps)), key=lambda i: -gaps[i])[: len(gaps) // 2]
        at_half = sum(right[i] for i in surer) / len(surer)
    low, high = wilson_interval(sum(right), len(right))
    return {"n": len(right), "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high,
            "at_half": at_half, "ties": verdicts.count("tie"),
            "contradicted": sum(position_inconsistent(*pair) for pair in judged),
            "unparsed": verdicts.count("unparsed"), "decides": low > BELIEVED}  # fmt: skip


def labelled() -> list[tuple[str, str, str]]:
    """Return the labelled generated answers as (dimension, value or "neither", text)."""
    return [(row["dimension"], row["label"], row["text"]) for row in store.iter_rows(LABELS)]


@store.one_at_a_time
def calibrate(run: Run) -> Table:
    """Measure every judge of a run, once, and write ``tables/calibration.csv``: a line per judge and test."""
    tailored = store.read_json(run.folder / "tailoring" / "done.json")["key"]
    names = [name for name in (run.profile.evaluation.judge, run.profile.persona_judge) if name != "none"]
    judges = [judge_key(run, name=name) for name in names]
    drawn = run.profile.evaluation.limit, run.profile.evaluation.split, LIMIT
    key = store.content_hash(store.VERSIONS["calibration"], tailored, judges, *drawn)
    folder, lines = run.folder / "calibration", []
    if store.is_done(folder, key) and calibration_path(run).exists():
        return store.read_csv(calibration_path(run))
    store.clear_unless(folder, key)
    rows = drawn_rows(run)
    for name in dict.fromkeys(names):
        judge, tests = load_judge(run, name), {FIT: gold_comparisons(rows)}
        if name == run.profile.evaluation.judge:
            tests |= damaged_comparisons(rows)
        for test, comparisons in tests.items():
            rubric = "personalization" if test == FIT else "quality"
            path = folder / f"{name}-{test.replace(' ', '-')}.jsonl"
            judged = judge_rubric(judge, comparisons, rubric, path)
            lines.append({"judge": name, "rubric": rubric, "test": test} | measure(judged))
        if name == "oracle":  # how often the reader agrees with the blind labels, where it judges
            line = {"judge": name, "rubric": "personalization", "test": READING}
            a, b = Judgment("", name, "personalization", "A"), Judgment("", name, "personalization", "B")
            read = [(a, b) if (shows(dimension, text) or "neither") == label else (b, a)  # in both orders
                    for dimension, label, text in labelled() if dimension not in UNREADABLE]  # fmt: skip
            lines.append(line | measure(read))
    table = table_of(lines)
    store.write_text(calibration_path(run), table.to_csv(index=False))
    store.mark_done(folder, key, n=len(rows))
    return table


def calibration_path(run: Run) -> Path:
    """Return where a run's calibration is kept."""
    return run.folder / "tables" / "calibration.csv"
