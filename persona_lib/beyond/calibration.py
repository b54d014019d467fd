"""How far a judge may be believed: measured where the answer is known, before its verdicts are used.

Persona fit: gold pairs of the evaluation split, the persona of either side with both responses (P_C should
lead to the chosen response, P_R to the rejected one). Quality: the written response of a pair against a
damaged copy. Reading: the reader's verdict on generated answers that were labelled blind (``reader_check``).
A judge whose accuracy has a 95 % lower bound of at most ``BELIEVED`` is shown but decides nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import store
from persona_lib.data.reader import UNREADABLE, shows
from persona_lib.intervals import position_inconsistent, verdict_of, wilson_interval
from persona_lib.paper.answers import eval_rows
from persona_lib.paper.judges import Judge, load_judge, persona_judge_of
from persona_lib.paper.judging import judge_both, judge_key
from persona_lib.records import SIDES, Judgment, PairwiseComparison, Rubric, TailoringRow
from persona_lib.settings import FACTS, Run
from persona_lib.store import VERSIONS

if TYPE_CHECKING:
    import pandas as pd


BELIEVED = 0.6
FIT, READING = "persona fit", "reading of generated answers"  # tests of personalization
LABELS = FACTS / "reader_labels.jsonl"
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")
MODAL = re.compile(r"\b(is|are|can|will|should|must|does|may|was|has)\b")


# --- damaged copies ---


def other_answer(row: TailoringRow, rows: Sequence[TailoringRow], number: int) -> str:
    """The answer to another question."""
    return rows[(number + len(rows) // 2) % len(rows)].chosen


def cut(row: TailoringRow, rows: Sequence[TailoringRow], number: int) -> str:
    """The answer, broken off in the middle of a sentence."""
    words = row.chosen.split(" ")
    return " ".join(words[: max(3, len(words) // 2)]).rstrip(".!?:;,")


def shuffled(row: TailoringRow, rows: Sequence[TailoringRow], number: int) -> str:
    """The answer with its sentences in reverse order."""
    return " ".join(reversed(SENTENCE.split(row.chosen.strip())))


def contradicted(row: TailoringRow, rows: Sequence[TailoringRow], number: int) -> str:
    """The answer with a "not" in each sentence: advice and facts turned round."""
    sentences = []
    for sentence in SENTENCE.split(row.chosen.strip()):
        turned = MODAL.sub(r"\1 not", sentence, count=1)
        sentences.append(turned if turned != sentence else f"Do not {sentence[:1].lower()}{sentence[1:]}")
    return " ".join(sentences)


def repeated(row: TailoringRow, rows: Sequence[TailoringRow], number: int) -> str:
    """The answer's first sentence over and over."""
    first = SENTENCE.split(row.chosen.strip())[0]
    return " ".join([first] * 4)


DAMAGES: dict[str, Callable[[TailoringRow, Sequence[TailoringRow], int], str]] = {
    "answer to another question": other_answer,
    "cut in the middle": cut,
    "sentences reversed": shuffled,
    "facts contradicted": contradicted,
    "first sentence repeated": repeated,
}


# --- comparisons whose answer is known; the first response is the right one ---


def gold_comparisons(rows: Sequence[TailoringRow]) -> list[PairwiseComparison]:
    """Return, per row and side, the persona with its own response first."""
    found = []
    for row in rows:
        texts = {"chosen": (row.chosen, row.rejected), "rejected": (row.rejected, row.chosen)}
        for side in SIDES:
            persona = row.personas.get(f"gold-{side}")
            if persona and row.chosen and row.rejected:
                found.append(PairwiseComparison(f"{row.id}/{side}", row.prompt, persona, *texts[side]))
    return found


def damaged_comparisons(rows: Sequence[TailoringRow], damage: str) -> list[PairwiseComparison]:
    """Return, per row, the written response and its damaged copy."""
    rows = [row for row in rows if row.chosen]
    return [
        PairwiseComparison(row.id, row.prompt, None, row.chosen, DAMAGES[damage](row, rows, n))
        for n, row in enumerate(rows)
    ]


# --- measuring ---


def score_of(judgment: Judgment) -> float | None:
    """Return how sure a scoring judge is, |a - b| of its two scores; None for a judge without scores."""
    parts = re.fullmatch(r"(-?[\d.]+) : (-?[\d.]+)", judgment.feedback)
    return abs(float(parts[1]) - float(parts[2])) if parts else None


def measure(judge: Judge, comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> dict[str, Any]:
    """Return how often the judge names the first response, in both orders; a tie counts one half.

    ``at_half`` is the accuracy in the half of the comparisons with the larger score difference.
    """
    judged = judge_both(judge, comparisons, rubric)
    values = [{"win": 1.0, "tie": 0.5}.get(verdict_of(*pair), 0.0) for pair in judged]
    sure = [score_of(pair[0]) for pair in judged]
    n = len(values)
    low, high = wilson_interval(sum(values), n) if n else (float("nan"), float("nan"))
    order = sorted(range(n), key=lambda i: -(sure[i] or 0.0))[: n // 2] if n and None not in sure else []
    return {
        "n": n,
        "accuracy": sum(values) / n if n else float("nan"),
        "accuracy_low": low,
        "accuracy_high": high,
        "at_half": sum(values[i] for i in order) / len(order) if order else float("nan"),
        "ties": sum(verdict_of(*pair) == "tie" for pair in judged),
        "contradicted": sum(position_inconsistent(*pair) for pair in judged),
        "unparsed": sum(verdict_of(*pair) == "unparsed" for pair in judged),
        "decides": low > BELIEVED,
    }


def judges_of(run: Run) -> dict[str, str]:
    """Return the judges that a run uses, by what they judge."""
    found = {"answers": run.profile.judge, "inferred personas": persona_judge_of(run.profile)}
    return {what: name for what, name in found.items() if name != "none"}


def labelled() -> list[tuple[str, str, str]]:
    """Return the labelled generated answers as (dimension, value or "neither", text)."""
    return [(row["dimension"], row["label"], row["text"]) for row in store.iter_rows(LABELS)]


def reading_accuracy() -> dict[str, Any]:
    """Return how often the reader agrees with the blind labels ("neither" is one) where it judges."""
    kept = [line for line in labelled() if line[0] not in UNREADABLE]
    right = [(shows(dimension, text) or "neither") == label for dimension, label, text in kept]
    low, high = wilson_interval(sum(right), len(right))
    found = {"n": len(right), "accuracy": sum(right) / len(right), "accuracy_low": low, "accuracy_high": high}
    return found | {
        "at_half": float("nan"),
        "ties": 0,
        "contradicted": 0,
        "unparsed": 0,
        "decides": low > BELIEVED,
    }


def calibrate(run: Run, limit: int = 64) -> pd.DataFrame:
    """Measure every judge of a run and write ``tables/calibration.csv``; one line per judge and test.

    A run that was measured already is read: a served judge is asked once.
    """
    import pandas as pd

    folder, key = run.folder / "calibration", calibration_key(run, limit)
    if store.is_done(folder, key) and calibration_path(run).exists():
        return pd.read_csv(calibration_path(run))
    rows = random.Random("calibration").sample(found := eval_rows(run), min(limit, len(found)))
    lines = []
    for name in dict.fromkeys(judges_of(run).values()):
        judge = load_judge(run, name)
        tests = {FIT: ("personalization", gold_comparisons(rows))}
        if name == run.profile.judge:
            tests |= {damage: ("quality", damaged_comparisons(rows, damage)) for damage in DAMAGES}
        for test, (rubric, comparisons) in tests.items():
            head = {"judge": name, "rubric": rubric, "test": test}
            lines.append(head | measure(judge, comparisons, rubric))
        if name == "oracle":
            lines.append({"judge": name, "rubric": "personalization", "test": READING} | reading_accuracy())
    table = pd.DataFrame(lines)
    store.write_text(calibration_path(run), table.to_csv(index=False))
    store.mark_done(folder, key, n=len(rows))
    return table


def calibration_key(run: Run, limit: int) -> str:
    """Return a hash of all that a run's calibration depends on."""
    tailored = store.read_json(run.folder / "tailoring" / "done.json")["key"]
    judges = [
        judge_key(replace(run, profile=replace(run.profile, judge=name))) for name in judges_of(run).values()
    ]
    code = VERSIONS["calibration"]
    return store.content_hash(code, tailored, judges, run.profile.eval_limit, run.profile.eval_split, limit)


def calibration_path(run: Run) -> Path:
    """Return where a run's calibration is kept."""
    return run.folder / "tables" / "calibration.csv"
