"""Does a judged row hold without broken answers, and at equal length? The same rows, counted again.

"filtered": only pairs in which both answers are sound (they stop, and do not repeat themselves). "length":
only pairs of about equal length, and a logistic model with the length difference. Both stand beside the
rows as they are, from the same draws of prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from persona_lib.config import Run
from persona_lib.data import everyday
from persona_lib.evaluation.calibration import calibration_path
from persona_lib.evaluation.judged import RUBRICS, Judged, read_judgments, runs_of, same_items
from persona_lib.evaluation.tailor import generation_folder, read_generations
from persona_lib.profiles import Profile
from persona_lib.records import Generation, RunSpec
from persona_lib.stats.bootstrap import VERDICT_VALUES, interval_columns
from persona_lib.stats.length import length_controlled, length_matched
from persona_lib.stats.pooled import delta_pq_of, make_pool, net_columns, net_of
from persona_lib.stats.text_metrics import count_degenerate, n_words
from persona_lib.tables.results import Row, verdict_counts
from persona_lib.tables.results_tests import sign_columns, with_tests

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("main", "stage", "sft", "few_shot", "arm", "control")
LENGTH_KINDS = ("main", "stage")
Answers = dict[str, Generation]


# --- answers of a row ---


@functools.lru_cache(maxsize=256)
def answers_of(run: Run, spec: RunSpec) -> Answers:
    """Return a policy's answers by row id; {} where it has none."""
    done = (generation_folder(run, spec) / "done.json").exists()
    return read_generations(run, spec) if done else {}


@functools.lru_cache(maxsize=256)
def sound_answers(run: Run, spec: RunSpec) -> frozenset[str]:
    """Return the ids whose answer stops, repeats at most half of its 4-grams and does not end in a loop."""
    return frozenset(name for name, answer in answers_of(run, spec).items() if is_sound(answer))


def is_sound(answer: Generation) -> bool:
    """Return False for a degenerate answer: without an end, rep4 > .5, or with a loop as its end."""
    counts = count_degenerate([answer.completion], [answer.finish_reason == "stop"])
    return not (counts.no_eos or counts.rep4_over_50 or counts.suffix_loop)


def forget_answers() -> None:
    """Drop what was read before, so that files written since are seen."""
    answers_of.cache_clear()
    sound_answers.cache_clear()


def rows_with_answers(profile: Profile, kinds: tuple[str, ...]) -> Iterator[tuple[str, int, Judged]]:
    """Yield (data set, bootstrap seed, row) of the judged rows whose answers are all at hand."""
    for number, judgments in enumerate(read_judgments(profile)):
        for row in judgments.rows:
            judged = [run for run in row.runs if run.seed in row.seeds]
            specs = (row.matchup.test, row.matchup.base)
            if row.matchup.kind in kinds and all(answers_of(run, spec) for run in judged for spec in specs):
                yield judgments.dataset, number, row


def kept(row: Judged, keep: list[set[str]]) -> Judged:
    """Return a row with only some of its items, given per seed."""
    verdicts = {
        rubric: [
            {i: v for i, v in found.items() if i in ids} for found, ids in zip(by_seed, keep, strict=True)
        ]
        for rubric, by_seed in row.verdicts.items()
    }
    return Judged(row.matchup, row.runs, verdicts, row.role)


def names_of(dataset: str, row: Judged) -> Row:
    """Return what identifies a row, with its size."""
    return {"dataset": dataset, "kind": row.matchup.kind, "label": row.matchup.label,
            "judge_persona": row.matchup.judge_persona, "n": row.counts("quality").n,
            "n_seeds": len(row.seeds), "seeds": " ".join(map(str, row.seeds))}  # fmt: skip


# --- without degenerate answers ---


def filtered_row(dataset: str, seed: int, row: Judged) -> list[Row]:
    """Return a row as it is and, below it, without pairs in which either answer is degenerate.

    Rows of ``everyday`` also apart for explicit personas (the wording names the surface) and implicit ones.
    """
    m = row.matchup
    keep = [set(sound_answers(run, m.test) & sound_answers(run, m.base)) for run in row.runs]
    parts = {"all pairs": row, "both answers sound": kept(row, keep)}
    if dataset == everyday.NAME and m.judge_persona.startswith(("gold", "user")):
        for wording in ("explicit", "implicit"):
            ids = {item.id for item in everyday.items() if item.wording == wording}
            parts[f"{wording} personas"] = kept(row, [ids] * len(row.runs))
    columns: dict[str, Any] = {}
    for which, part in parts.items():
        for short, rubric in RUBRICS.items():
            columns |= net_columns(f"{which}/{short}", part.verdicts[rubric])
    pool = make_pool(columns, row.runs[0].profile.bootstrap_samples, seed, same_items(row.runs))
    lines = []
    for which, part in parts.items():
        line = names_of(dataset, row) | {"pairs": which, "n": part.counts("quality").n}
        for short, rubric in RUBRICS.items():
            line |= verdict_counts(short, part.counts(rubric))
            line |= interval_columns(f"{short}_net", pool.interval(net_of(f"{which}/{short}")))
        dpq = pool.interval(delta_pq_of(f"{which}/p", f"{which}/q"))
        lines.append(line | interval_columns("dpq", dpq) | sign_columns(part))
    return lines


def filtered_table(profile: Profile) -> pd.DataFrame:
    """Return every judged row unfiltered and filtered for both arms, one under the other.

    Holm's adjustment is over the rows of one kind and one filter: those that stand together in a table.
    """
    import pandas as pd

    forget_answers()
    found = rows_with_answers(profile, KINDS)
    table = pd.DataFrame([line for part in found for line in filtered_row(*part)])
    if table.empty:
        return table
    groups = [with_tests(part) for _, part in table.groupby(["kind", "pairs"], sort=False)]
    return pd.concat(groups).sort_index()


# --- at equal length ---


def length_facts(row: Judged) -> list[dict[str, tuple[int, int]]]:
    """Return, per seed, the words of both answers of each judged item: {id: (tested, base)}."""
    m = row.matchup
    return [
        {i: (n_words(answers_of(run, m.test)[i].completion), n_words(answers_of(run, m.base)[i].completion))
         for i in found}
        for run, found in zip(row.runs, row.verdicts["quality"], strict=True)
    ]  # fmt: skip


def length_lines(dataset: str, seed: int, row: Judged) -> list[Row]:
    """Return a line per rubric: net win rate as it is, of length-matched pairs, and of the logistic model."""
    facts = length_facts(row)
    words = [pair for part in facts for pair in part.values()]
    keep = [{i for i, pair in part.items() if length_matched(*zip(pair))[0]} for part in facts]
    matched = kept(row, keep)
    columns: dict[str, Any] = {}
    for short, rubric in RUBRICS.items():
        columns |= net_columns(f"all/{short}", row.verdicts[rubric])
        columns |= net_columns(f"matched/{short}", matched.verdicts[rubric])
    pool = make_pool(columns, row.runs[0].profile.bootstrap_samples, seed, same_items(row.runs))
    lines = []
    for short, rubric in RUBRICS.items():
        line = names_of(dataset, row) | {"rubric": rubric}
        line |= {"words_tested": sum(a for a, _ in words) / len(words),
                 "words_base": sum(b for _, b in words) / len(words),
                 "n_decided": row.counts(rubric).n_decided, "n_matched": matched.counts(rubric).n,
                 "n_matched_decided": matched.counts(rubric).n_decided}  # fmt: skip
        line |= interval_columns("net", pool.interval(net_of(f"all/{short}")))
        line |= interval_columns("net_matched", pool.interval(net_of(f"matched/{short}")))
        lines.append(line | model_columns(row, rubric, facts))
    return lines


def model_columns(row: Judged, rubric: str, facts: list[dict[str, tuple[int, int]]]) -> Row:
    """Return what the logistic model says: net win rate at equal length, slope, or why there is no fit."""
    shared = same_items(row.runs)
    signs, differences, prompts = [], [], []
    for number, (verdicts, words) in enumerate(zip(row.verdicts[rubric], facts, strict=True)):
        for name, verdict in verdicts.items():
            signs.append(VERDICT_VALUES[verdict])
            differences.append(words[name][0] - words[name][1])
            prompts.append(name if shared else f"{number}/{name}")
    model = length_controlled(signs, differences, prompts)
    columns = interval_columns("net_controlled", model.net) | interval_columns("slope", model.slope)
    return columns | {"why": model.why}


def length_table(profile: Profile) -> pd.DataFrame:
    """Return the main rows and those of PT-DPO against PT-SFT with length held equal, two ways."""
    import pandas as pd

    forget_answers()
    found = rows_with_answers(profile, LENGTH_KINDS)
    return pd.DataFrame([line for part in found for line in length_lines(*part)])


# --- the judges ---


def calibration_table(profile: Profile) -> pd.DataFrame:
    """Return the calibration of every judge that a run has measured (``evaluation.calibration``), by seed."""
    import pandas as pd

    runs = [(dataset, run) for dataset in profile.datasets for run in runs_of(profile, dataset)]
    found = [(dataset, run.seed, calibration_path(run)) for dataset, run in runs]
    parts = [
        pd.read_csv(path).assign(dataset=dataset, seed=seed) for dataset, seed, path in found if path.exists()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


CHECK_TABLES = {"filtered": filtered_table, "length": length_table, "calibration": calibration_table}
