"""Tables of judged comparisons over all data sets and seeds of a profile, with intervals and sign tests.

A row is a ``Matchup``: a tested run against a base run, judged for a persona, its verdicts pooled over seeds.
Rows without verdicts are left out.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from persona_lib import intervals
from persona_lib.data import everyday
from persona_lib.intervals import VERDICTS, Interval, drawn_columns, interval_columns, seed_columns
from persona_lib.paper import answers, judging
from persona_lib.paper.judging import RUBRIC_NAMES, Judged, matchups, runs_of
from persona_lib.records import Generation, Table, stacked, table_of
from persona_lib.settings import Profile, results_dir
from persona_lib.store import people_csv, read_csv, write_text
from persona_lib.texts import has_suffix_loop, repetition

AVERAGED = ("gold-chosen", "gold-rejected", "retrieved-chosen", "retrieved-rejected")  # the paper's rows
MIN_EACH = 5  # wins and losses that the length model needs of each: fewer tell nothing about a slope
N_EXAMPLES = 3  # rows of the evaluation split: its first, not selected
Row = dict[str, Any]


def row_names(row: Judged) -> Row:
    """Return what identifies a row, with its size."""
    m = row.matchup
    return {"dataset": m.test.dataset, "kind": m.kind, "label": m.label, "judge_persona": m.judge_persona,
            "test": m.test.slug, "base": m.base.slug, "n": row.counts("quality").total(),
            **seed_columns(row.seeds)}  # fmt: skip


def verdict_counts(short: str, counts: Mapping[str, int]) -> Row:
    """Name counts of verdicts as columns."""
    return {f"{short}_{verdict}": counts.get(verdict, 0) for verdict in VERDICTS}


def inconsistent(path: Path) -> int:
    """Count the pairs of a file of judgments in which the judge named the same position in both orders."""
    return sum(intervals.position_inconsistent(*both.values()) for both in judging.read_orders(path).values())


def decided_prompts(row: Judged, rubric: str) -> tuple[int, int]:
    """Return how many prompts a row wins and how many it loses; ties and unparsed ones are neither.

    Seeds that drew their own prompts give one vote each. Seeds that answer the same prompts vote together.
    """
    shared = judging.same_items(row.runs)
    votes: dict[tuple[int, str], float] = defaultdict(float)
    for number, verdicts in enumerate(row.verdicts[rubric]):
        for name, verdict in verdicts.items():
            votes[0 if shared else number, name] += intervals.SIGNS.get(verdict, 0)
    return sum(v > 0 for v in votes.values()), sum(v < 0 for v in votes.values())


def verdict_columns(row: Judged) -> Row:
    """Return, per rubric, the verdicts' counts and the two-sided p of the exact sign test over prompts."""
    columns: Row = {}
    for short, rubric in RUBRIC_NAMES.items():
        columns |= verdict_counts(short, row.counts(rubric))
        columns[f"{short}_sign"] = intervals.sign_test(*decided_prompts(row, rubric))
    return columns


def with_holm(table: Table) -> Table:
    """Add Holm's p over all rows of a table, for each rubric that has sign tests; NaN for an average."""
    names = [f"{short}_sign" for short in RUBRIC_NAMES if f"{short}_sign" in table]
    return table.assign(**{name.replace("sign", "holm"): intervals.holm(table[name]) for name in names})


def judged_rows(profile: Profile, kinds: Sequence[str], role: str = "judge") -> list[Judged]:
    """Return the judged rows of some kinds of matchups."""
    return [row for row in judging.read_judgments(profile, role) if row.matchup.kind in kinds]


def judged_table(profile: Profile, kinds: Sequence[str], role: str = "judge") -> Table:
    """Return the rows of some kinds of matchups: counts, sign tests, and scores with their intervals."""
    lines = []
    for row in judged_rows(profile, kinds, role):
        line = row_names(row) | verdict_columns(row)
        folders = [judging.judgment_folder(run, row.matchup, role) for run in row.runs]
        for short, rubric in RUBRIC_NAMES.items():
            line[f"{short}_inconsistent"] = sum(inconsistent(path / f"{rubric}.jsonl") for path in folders)
        lines.append(line | drawn_columns(row.scores))
    return with_holm(table_of(lines))


# Every row that the second judge has judged; empty without one.
second_judge_table = functools.partial(judged_table, kinds=("main",), role="second_judge")


def main_table(profile: Profile) -> Table:
    """Return PT-DPO against DPO that is told the persona in the first person, and the average (paper 5).

    As in the paper the average is the mean of the rows' dPQ, over the rows of gold and retrieved personas.
    Its line has no verdicts, since rows are averaged, not counted.
    """
    table = judged_table(profile, ("main",))
    rows = [row for row in judged_rows(profile, ("main",)) if row.matchup.judge_persona in AVERAGED]
    if not rows:
        return table
    seeds, n = sorted({s for row in rows for s in row.seeds}), sum(r.counts("quality").total() for r in rows)
    line = {"dataset": "all", "kind": "average", "label": "average of gold and retrieved rows", "n": n}
    means = {name: np.mean([row.scores[name] for row in rows], axis=0) for name in rows[0].scores}
    return stacked([table, table_of([line | seed_columns(seeds) | drawn_columns(means)])])


def side_difference(profile: Profile) -> Table:
    """Return main-row scores for rejected minus chosen personas, paired by prompt (paper, claim 2)."""
    rows = {(r.matchup.test.dataset, r.matchup.judge_persona): r for r in judged_rows(profile, ("main",))}
    lines = []
    for dataset, source in itertools.product(profile.datasets, ("gold", "retrieved", "user")):
        rejected, chosen = (rows.get((dataset, f"{source}-{side}")) for side in ("rejected", "chosen"))
        if rejected and chosen:
            n = min(row.counts("quality").total() for row in (rejected, chosen))
            line = {"dataset": dataset, "personas": source, "n_seeds": len(rejected.seeds), "n": n}
            gap = {name: rejected.scores[name] - chosen.scores[name] for name in ("p_net", "q_net", "dpq")}
            lines.append(line | drawn_columns(gap))
    return table_of(lines)


def example_table(profile: Profile) -> Table:
    """Return the first rows of each evaluation split with plain DPO's and PT-DPO's answers side by side."""
    lines = []
    for run in (runs_of(profile, dataset)[0] for dataset in profile.datasets):
        for m in matchups(run):
            shown = m.kind == "main" and m.judge_persona.startswith(("gold", "user"))
            if shown and answers.is_answered(run, m.test, m.base):
                lines += [{"dataset": run.dataset, "seed": run.seed, "id": c.id, "prompt": c.prompt,
                           "eval_persona": m.judge_persona, "persona": c.persona,
                           "plain_dpo": c.response_b, "pt_dpo": c.response_a}
                          for c in judging.compare(run, m)[:N_EXAMPLES]]  # fmt: skip
    return table_of(lines).sort_values(["dataset", "id"], kind="stable") if lines else table_of([])


# --- The rows counted again: without degenerate answers, by a persona's wording, and at equal length ---


@functools.cache
def is_sound(answer: Generation) -> bool:
    """Return False for a degenerate answer: without an end, rep4 > .5, or with a loop as its end."""
    text = answer.completion
    return answer.finish_reason == "stop" and repetition(text) <= 0.5 and not has_suffix_loop(text)


def answers_of(row: Judged) -> list[dict[str, tuple[Generation, Generation]]]:
    """Return, per run, the tested and the base answer of every judged item."""
    specs, found = (row.matchup.test, row.matchup.base), []
    for run, verdicts in zip(row.runs, row.verdicts["quality"], strict=True):
        tested, base = (answers.read_generations(run, spec) if verdicts else {} for spec in specs)
        found.append({i: (tested[i], base[i]) for i in verdicts})
    return found


def kept(row: Judged, keep: Sequence[set[str]]) -> Judged:
    """Return a row with only some of its items, given per run."""
    verdicts = {}
    for rubric, runs in row.verdicts.items():
        verdicts[rubric] = [{i: run[i] for i in run if i in ids} for run, ids in zip(runs, keep, strict=True)]
    return replace(row, scores={}, verdicts=verdicts)


def filtered_lines(row: Judged) -> list[Row]:
    """Return a row whole and without degenerate answers; rows of ``everyday`` also by a persona's wording.

    An explicit persona names what it wants on the surface. All parts have the same draws of prompts.
    """
    sound = [{i for i, both in found.items() if all(map(is_sound, both))} for found in answers_of(row)]
    parts = {"all pairs": row, "both answers sound": kept(row, sound)}
    if row.matchup.test.dataset == everyday.NAME and row.matchup.judge_persona.startswith(("gold", "user")):
        for wording in ("explicit", "implicit"):
            ids = {item.id for item in everyday.items() if item.wording == wording}
            parts[f"{wording} personas"] = kept(row, [ids] * len(row.runs))
    columns = {f"{name}/{short}": intervals.signs(part.verdicts[rubric])
               for name, part in parts.items() for short, rubric in RUBRIC_NAMES.items()}  # fmt: skip
    pool, lines = intervals.make_pool(columns, *judging.sampling(row.runs), lambda _: -1), []
    for name, part in parts.items():
        line = row_names(row) | {"pairs": name, "n": part.counts("quality").total()}
        lines.append(line | verdict_columns(part) | drawn_columns(intervals.scores(pool, name)))
    return lines


def filtered_table(profile: Profile) -> Table:
    """Return every judged row whole and filtered; Holm's adjustment is over rows of one kind and filter."""
    table = table_of(line for row in judging.read_judgments(profile) for line in filtered_lines(row))
    for short in RUBRIC_NAMES if len(table) else ():
        table[f"{short}_holm"] = table.groupby(["kind", "pairs"])[f"{short}_sign"].transform(intervals.holm)
    return table


def length_model(*rubrics: tuple[Sequence[float], Sequence[float], Sequence[str]]) -> Interval:
    """Fit the net win rate at equal length to (verdicts: +1, -1, else 0; differences in words; prompts).

    Length-controlled AlpacaEval 2 (Dubois et al. 2024, eq. 1) without its term for the instruction: among
    decided comparisons logit P(win) = a + b tanh(d / sd). The net win rate at d = 0 is tanh(a / 2); of two
    rubrics, fitted together, the mean of theirs (dPQ / 100), with limits by the delta method. Standard errors
    are clustered by prompt: seeds that answer the same prompts do not count as independent. Undefined with
    fewer than ``MIN_EACH`` wins or losses, for equal differences, and where length tells all verdicts.
    """
    from scipy.linalg import block_diag
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM
    from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

    outcomes, terms, asked = [], [], []
    for signs, differences, prompts in rubrics:
        decided = np.flatnonzero(signs)
        wins, lengths = (np.take(signs, decided) + 1) / 2, np.take(differences, decided)
        if min(wins.sum(), len(wins) - wins.sum()) < MIN_EACH or lengths.std() == 0:
            return Interval()
        outcomes.append(wins)
        terms.append(np.column_stack([np.ones_like(wins), np.tanh(lengths / lengths.std())]))
        asked.append(np.take(prompts, decided))
    groups = np.unique(np.concatenate(asked), return_inverse=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerfectSeparationWarning)
        try:
            model = GLM(np.concatenate(outcomes), block_diag(*terms), family=Binomial())
            fitted = model.fit(cov_type="cluster", cov_kwds={"groups": groups})
        except PerfectSeparationWarning:
            return Interval()
    nets = np.tanh(fitted.params[::2] / 2)
    if len(rubrics) == 1:
        return Interval(float(nets[0]), *map(float, np.tanh(fitted.conf_int()[0] / 2)))
    slopes = (1 - nets**2) / 2 / len(nets)
    margin = 1.96 * math.sqrt(slopes @ fitted.cov_params()[::2, ::2] @ slopes)
    return Interval(float(nets.mean()), float(nets.mean() - margin), float(nets.mean() + margin))


def lengths_of(row: Judged) -> tuple[np.ndarray, dict[str, tuple]]:
    """Return words of tested and base answers, [2, items], and by rubric what ``length_model`` is given."""
    shared = judging.same_items(row.runs)
    items = [(i if shared else f"{run}/{i}", *(len(answer.completion.split()) for answer in both))
             for run, found in enumerate(answers_of(row)) for i, both in found.items()]  # fmt: skip
    prompts, *words = zip(*items, strict=True)
    signs = {short: [intervals.SIGNS.get(v, 0.0) for by_id in row.verdicts[rubric] for v in by_id.values()]
             for short, rubric in RUBRIC_NAMES.items()}  # fmt: skip
    return np.array(words), {short: (own, np.subtract(*words), prompts) for short, own in signs.items()}


def length_table(profile: Profile) -> Table:
    """Return the main rows and PT-DPO against PT-SFT by rubric: net as it is, and at equal length."""
    lines = []
    for row in judged_rows(profile, ("main", "stage")):
        words, rubrics = lengths_of(row)
        for short, given in rubrics.items():
            lines.append(row_names(row) | {
                "rubric": RUBRIC_NAMES[short], "words_tested": words[0].mean(),
                "words_base": words[1].mean(), "n_decided": np.count_nonzero(given[0]),
                **drawn_columns({"net": row.scores[f"{short}_net"]}),
                **interval_columns("net_controlled", length_model(given)),
            })  # fmt: skip
    return table_of(lines)


JUDGED_TABLES: dict[str, Callable[[Profile], Table]] = {
    "main": main_table,
    "stage": functools.partial(judged_table, kinds=("stage",)),
    "methods": functools.partial(judged_table, kinds=("sft", "few_shot")),
    "arms": functools.partial(judged_table, kinds=("arm",)),
    "controls": functools.partial(judged_table, kinds=("control",)),
    "side_difference": side_difference,
    "second_judge": second_judge_table,
    "judge_agreement": judging.agreement_table,
    "examples": example_table,
}


def table_path(profile: Profile, name: str) -> Path:
    """Return where an aggregated table is: ``results/<profile>/tables/<name>.csv``."""
    return results_dir(profile) / "tables" / f"{name}.csv"


def save_table(profile: Profile, name: str, table: Table) -> Path | None:
    """Write a table; an empty one is not written and an older file of that name is removed."""
    path = table_path(profile, name)
    if table.empty:
        path.unlink(missing_ok=True)
        return None
    write_text(path, people_csv(table, float_format="%.6g"))
    return path


def read_table(profile: Profile, name: str) -> Table:
    """Read a table; an empty one if it was not made."""
    return read_csv(table_path(profile, name))
