"""The paper's table (DPO against PT-DPO) from its exact counts: intervals and tests that it does not print.

``facts/paper_table.csv`` has the only integer counts that give the printed percentages and dPQ. They say how
often a row was won on personalization and on quality, not how the two verdicts of one pair of answers go
together, and dPQ adds both. So every interval is given three times: the verdicts taken as independent, and
the two extremes, as much agreement as the counts allow (the widest interval) and as much opposition
(the narrowest). Whatever was true lies between these two.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.beyond.calibration import calibration_path
from persona_lib.data import everyday
from persona_lib.data.preference import inference_split
from persona_lib.intervals import (
    VERDICT_VALUES,
    Interval,
    WinRate,
    delta_pq,
    delta_pq_of,
    holm,
    interval_columns,
    make_pool,
    net_columns,
    net_of,
    percentile_interval,
    ratio,
)
from persona_lib.paper.answers import generation_folder, read_generations
from persona_lib.paper.judges import persona_judge_of
from persona_lib.paper.judging import RUBRIC_NAMES, Judged, forget_judged, read_judgments, runs_of, same_items
from persona_lib.paper.personas import PERSONA_TABLES
from persona_lib.paper.results import (
    Row,
    judged_tables,
    read_table,
    save_table,
    sign_columns,
    verdict_counts,
    with_tests,
)
from persona_lib.paper.swap import LENGTH_TABLES, SWAP_TABLES, forget_swap, length_controlled, length_matched
from persona_lib.records import EVAL_PERSONAS, TRAIN_PERSONAS, Generation, RunSpec
from persona_lib.settings import FACTS, Profile, Run, main_arm
from persona_lib.texts import count_degenerate, n_words

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


# --- The paper's table (DPO against PT-DPO) from its exact counts ---
# ``facts/paper_table.csv`` has the only integer counts that give the printed percentages and dPQ. They say
# how often a row was won on personalization and on quality, not how the two verdicts of one pair of answers
# go together, and dPQ adds both. So every interval is given three times: the verdicts taken as independent,
# and the two extremes, as much agreement as the counts allow (the widest interval) and as much opposition
# (the narrowest). Whatever was true lies between these two.


PAPER_TABLE = FACTS / "paper_table.csv"
DEPENDENCE = ("independent", "agree", "oppose")
N_RESAMPLES = 20_000  # enough that the limits move by about .1 from one bootstrap seed to another


def paper_table() -> list[dict[str, str]]:
    """Read the paper's DPO vs PT-DPO table: ten rows of exact counts, printed percentages and dPQ."""
    with PAPER_TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def paper_win_rates(row: Mapping[str, str]) -> tuple[WinRate, WinRate]:
    """Return personalization and quality counts of one row of ``paper_table``."""
    return tuple(WinRate(*(int(row[f"{m}_{v}"]) for v in ("win", "tie", "loss"))) for m in "pq")


# --- how the two verdicts of a pair may go together ---


def joint_table(p: WinRate, q: WinRate, dependence: str) -> np.ndarray:
    """Return counts of (personalization, quality) verdicts, (3, 3) by win, tie, loss, with these margins.

    "independent": products of the margins. "agree": as many equal verdicts as can be, sorted against sorted.
    "oppose": sorted against reversed. Raises ValueError if the margins do not add up to the same n.
    """
    if p.n != q.n or dependence not in DEPENDENCE:
        raise ValueError(f"{p.n} and {q.n} verdicts, dependence {dependence!r}: one n, one of {DEPENDENCE}")
    rows, columns = (np.array([c.n_wins, c.n_ties, c.n_losses], dtype=float) for c in (p, q))
    if dependence == "independent":
        return np.outer(rows, columns) / p.n
    if dependence == "oppose":
        return sorted_against_sorted(rows, columns[::-1])[:, ::-1]
    return sorted_against_sorted(rows, columns)


def sorted_against_sorted(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the table with these margins whose two verdicts are as alike as the margins allow.

    The cumulative counts of the table are the smaller of the margins' (the upper Frechet bound).
    """
    cumulative = np.minimum.outer(np.cumsum(rows), np.cumsum(columns))
    return np.diff(np.diff(cumulative, axis=0, prepend=0), axis=1, prepend=0)


def resampled_delta_pq(joint: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return dPQ, in points, of multinomial resamples of a joint table; NaN where nothing is decided."""
    n = round(joint.sum())
    draws = rng.multinomial(n, joint.ravel() / joint.sum(), size=n_resamples).reshape(-1, 3, 3)
    margins = draws.sum(axis=2), draws.sum(axis=1)
    return 50 * sum(ratio(m[:, 0] - m[:, 2], m[:, 0] + m[:, 2]) for m in margins)


# --- intervals ---


@dataclass(frozen=True)
class Reanalysed:
    """One row's dPQ: its interval for each assumption of ``DEPENDENCE``, and the resamples behind them."""

    intervals: dict[str, Interval]
    resamples: dict[str, np.ndarray]


def reanalyse(p: WinRate, q: WinRate, seed: int = 0, n_resamples: int = N_RESAMPLES) -> Reanalysed:
    """Return dPQ of published counts with 95 % multinomial bootstrap intervals, one per assumption."""
    rng = np.random.default_rng(seed)
    resamples = {d: resampled_delta_pq(joint_table(p, q, d), n_resamples, rng) for d in DEPENDENCE}
    estimate = delta_pq(p, q)
    return Reanalysed(
        {d: percentile_interval(estimate, values, p.n) for d, values in resamples.items()}, resamples
    )


def average(rows: list[Reanalysed]) -> dict[str, Interval]:
    """Return the mean of the rows' dPQ with its interval for each assumption.

    The rows are taken as independent for "independent" and "oppose". They are not: rows of a data set share
    prompts and, in part, answers. "agree" is the bound for that too: all rows err together, so its limits
    are the means of the rows' limits.
    """
    estimates = [row.intervals["agree"].estimate for row in rows]
    n = sum(row.intervals["agree"].n_items for row in rows)
    mean = float(np.mean(estimates))
    found = {
        d: percentile_interval(mean, np.mean([row.resamples[d] for row in rows], axis=0), n)
        for d in ("independent", "oppose")
    }
    low, high = (
        float(np.mean([getattr(r.intervals["agree"], end) for r in rows])) for end in ("low", "high")
    )
    return found | {"agree": Interval(mean, low, high, n)}


def net_interval(rate: WinRate, seed: int = 0, n_resamples: int = N_RESAMPLES) -> Interval:
    """Return the net win rate of published counts with its 95 % multinomial bootstrap interval."""
    counts = np.array([rate.n_wins, rate.n_ties, rate.n_losses], dtype=float)
    draws = np.random.default_rng(seed).multinomial(rate.n, counts / rate.n, size=n_resamples)
    values = ratio(draws[:, 0] - draws[:, 2], draws[:, 0] + draws[:, 2])
    return percentile_interval(rate.net, values, rate.n)


# --- a test of dPQ ---


def net_error(rate: WinRate) -> float | None:
    """Return the standard error of a net win rate by the delta method: sqrt((1 - net^2) / decided)."""
    return None if rate.net is None else ((1 - rate.net**2) / rate.n_decided) ** 0.5


def delta_pq_test(p: WinRate, q: WinRate, dependence: str = "independent") -> float:
    """Return the two-sided p of dPQ = 0 (normal approximation); 1.0 where it is undefined.

    "independent" adds the two variances; "agree" adds the two standard errors, the most they can come to.
    """
    from scipy.stats import norm

    errors = net_error(p), net_error(q)
    if None in errors or not sum(errors):
        return 1.0
    error = sum(errors) if dependence == "agree" else (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    return float(2 * norm.sf(abs(p.net + q.net) / error))


# --- The paper's own table, analysed again from its exact counts ---


SUFFIX = {
    "independent": "",
    "agree": "_widest",
    "oppose": "_narrowest",
}  # of the columns dpq_low and dpq_high


def dpq_columns(intervals: dict[str, Interval]) -> Row:
    """Return dPQ with its limits under each assumption of how the two verdicts go together."""
    columns: Row = {"dpq": intervals["independent"].estimate}
    for dependence, suffix in SUFFIX.items():
        interval = intervals[dependence]
        columns |= {f"dpq_low{suffix}": interval.low, f"dpq_high{suffix}": interval.high}
    return columns


def paper_line(number: int, row: dict[str, str], found: Reanalysed) -> Row:
    """Return one row of the table: counts, net win rates and dPQ with intervals, p of dPQ = 0."""
    rates = dict(zip(RUBRIC_NAMES, paper_win_rates(row), strict=True))
    line: Row = {"dataset": row["dataset"], "kind": "paper", "label": f"{row['side']}, {row['persona']}",
                 "n": int(row["n"])}  # fmt: skip
    for place, (short, rate) in enumerate(rates.items()):
        line |= verdict_counts(short, rate)
        line |= interval_columns(f"{short}_net", net_interval(rate, 2 * number + place))
    line |= dpq_columns(found.intervals)
    return line | {f"dpq_p{SUFFIX[d]}": delta_pq_test(*rates.values(), d) for d in ("independent", "agree")}


@functools.cache
def reanalysed() -> pd.DataFrame:
    """Return the ten rows and their average; the same for every profile."""
    import pandas as pd

    rows = paper_table()
    found = [reanalyse(*paper_win_rates(row), number) for number, row in enumerate(rows)]
    table = with_tests(
        pd.DataFrame([paper_line(i, row, f) for i, (row, f) in enumerate(zip(rows, found, strict=True))])
    )
    for suffix in ("", "_widest"):
        table[f"dpq_holm{suffix}"] = holm(table[f"dpq_p{suffix}"].to_dict()).values()
    mean = {"dataset": "all", "kind": "average", "label": "average of the ten rows"}
    mean |= dpq_columns(average(found))
    return pd.concat([table, pd.DataFrame([mean])], ignore_index=True)


def paper_rows(profile: Profile) -> pd.DataFrame:
    """Return the paper's ten rows and their average; the paper prints no intervals and no tests."""
    return reanalysed().copy()


PAPER_TABLES = {"paper": paper_rows}


# --- Does a judged row hold without broken answers, and at equal length? The same rows, counted again ---
# "filtered": only pairs in which both answers are sound (they stop, and do not repeat themselves).
# "length": only pairs of about equal length, and a logistic model with the length difference. Both stand
# beside the rows as they are, from the same draws of prompts.


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
        for short, rubric in RUBRIC_NAMES.items():
            columns |= net_columns(f"{which}/{short}", part.verdicts[rubric])
    pool = make_pool(columns, row.runs[0].profile.bootstrap_samples, seed, same_items(row.runs))
    lines = []
    for which, part in parts.items():
        line = names_of(dataset, row) | {"pairs": which, "n": part.counts("quality").n}
        for short, rubric in RUBRIC_NAMES.items():
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
    for short, rubric in RUBRIC_NAMES.items():
        columns |= net_columns(f"all/{short}", row.verdicts[rubric])
        columns |= net_columns(f"matched/{short}", matched.verdicts[rubric])
    pool = make_pool(columns, row.runs[0].profile.bootstrap_samples, seed, same_items(row.runs))
    lines = []
    for short, rubric in RUBRIC_NAMES.items():
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


# --- The primary results: each aim that was set beforehand, what was measured, and whether it was met ---
# Everything is computed from the saved tables. Aims about judged answers need a judge; those about persona
# swaps are set for our own pairs and for the authors' data. None is moved to fit what came out.


Criterion = tuple[str, Callable[[float, float, float], bool] | None]  # in words, and of estimate, low, high
POSITIVE: Criterion = ("> 0, interval excludes 0", lambda estimate, low, high: low > 0)
REPORTED: Criterion = ("reported whichever way it falls", None)
ACCURATE: Criterion = (">= .65", lambda estimate, low, high: estimate >= 0.65)
NO_WORSE: Criterion = (">= -0.1", lambda estimate, low, high: estimate >= -0.1)
NULL: Criterion = ("interval includes .5", lambda estimate, low, high: low <= 0.5 <= high)
MAIN_PERSONAS = ("gold-chosen", "gold-rejected", "retrieved-chosen", "retrieved-rejected")
SWAP_AIMS = {"everyday": 0.85, "beavertails": 0.80, "hhh": 0.85}  # share D > 0 aimed at, gold personas


def above(value: float) -> Criterion:
    """Return the criterion "at least a value, with an interval clear of one half"."""
    return f">= {value:.2f}, interval above .5", lambda estimate, low, high: estimate >= value and low > 0.5


def aim(text: str, where: str, table: pd.DataFrame, name: str, criterion: Criterion) -> Row:
    """Return one line: the aim, where it was measured, the estimate with its interval, whether it is met.

    ``table`` holds the one row that answers it; without a row, or without a value, it was not run.
    """
    words, holds = criterion
    line: Row = {"aim": text, "where": where, "criterion": words, "estimate": None, "low": None, "high": None,
                 "n": None, "n_seeds": None, "met": "not run"}  # fmt: skip
    if len(table) > 1:
        raise ValueError(f"{text}, {where}: {len(table)} rows of the table answer it, it should be one")
    if table.empty or table[name].isna().item():
        return line
    row = table.iloc[0]
    values = [float(row[name + suffix]) for suffix in ("", "_low", "_high")]
    line |= dict(zip(("estimate", "low", "high"), values, strict=True))
    line |= {
        field: int(row[field]) for field in ("n", "n_seeds") if field in row and not math.isnan(row[field])
    }
    return line | {"met": "reported" if holds is None else "yes" if holds(*values) else "no"}


def pick(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Return the rows of a table with these values; none of an empty table."""
    for name, value in values.items():
        table = table[table[name] == value] if name in table else table.iloc[:0]
    return table


def unbelieved(table: pd.DataFrame, dataset: str, judge: str) -> bool:
    """Say whether a judge's calibration says that it decides nothing about personalization."""
    found = pick(table, dataset=dataset, judge=judge, rubric="personalization")
    return not found.empty and not found.decides.all()


def without_verdict(lines: list[Row]) -> list[Row]:
    """Return aims as undecided: their judge was not believed."""
    return [line | {"met": "judge not believed"} if line["met"] in ("yes", "no") else line for line in lines]


def judged_aims(profile: Profile, dataset: str, tables: Mapping[str, pd.DataFrame]) -> list[Row]:
    """Return the aims about inferred personas and judged answers."""
    lines = []
    for side in ("chosen", "rejected"):
        found = pick(
            tables["persona_accuracy"], dataset=dataset, split=inference_split(profile, dataset), side=side
        )
        lines.append(aim("persona accuracy", f"{dataset}, {side}", found, "accuracy", ACCURATE))
    main = pick(tables["main"], dataset=dataset, kind="main")
    columns = {"PT-DPO against DPO, personalization net win rate": ("p_net", POSITIVE),
               "PT-DPO against DPO, dPQ": ("dpq", POSITIVE),
               "PT-DPO against DPO, mean quality (SD of the baseline)": ("quality_sd", NO_WORSE)}  # fmt: skip
    for text, (name, criterion) in columns.items():
        for persona in MAIN_PERSONAS:
            found = pick(main, judge_persona=persona)
            lines.append(aim(text, f"{dataset}, {persona}", found, name, criterion))
    stage = pick(tables["stage"], dataset=dataset)
    for persona in MAIN_PERSONAS:
        found = pick(stage, judge_persona=persona)
        text = "PT-DPO against PT-SFT, personalization net win rate"
        lines.append(aim(text, f"{dataset}, {persona}", found, "p_net", REPORTED))
    lines += stage_swap_aims(dataset, main_arm(profile), tables["swap_differences"])
    for text, (name, _) in list(columns.items())[:2]:
        for side in ("chosen", "rejected"):
            found = pick(main, judge_persona=f"user-{side}")
            lines.append(aim(f"user-written personas: {text}", f"{dataset}, {side}", found, name, POSITIVE))
    for source in ("gold", "retrieved"):
        found = pick(tables["side_difference"], dataset=dataset, personas=source)
        lines.append(
            aim("dPQ, rejected minus chosen personas", f"{dataset}, {source}", found, "dpq", REPORTED)
        )
    return lines


def stage_swap_aims(dataset: str, arm: str, differences: pd.DataFrame) -> list[Row]:
    """Return the aims about PT-DPO against PT-SFT on persona swaps (policy log-probabilities)."""
    found = pick(differences, dataset=dataset, tested=f"dpo-{arm}.line", compared=f"sft-{arm}.line",
                 measure="policy", persona="gold")  # fmt: skip
    names = {"flip": "persona-swap accuracy (flip)", "d_positive": "share D > 0"}
    return [
        aim(f"PT-DPO minus PT-SFT, {text}", f"{dataset}, gold", found, name, REPORTED)
        for name, text in names.items()
    ]


def swap_aims(dataset: str, arm: str, tables: Mapping[str, pd.DataFrame]) -> list[Row]:
    """Return the aims of the authors' data: share D > 0 of PT-DPO by its policy's log-probabilities.

    ``arm`` names the personas that PT-DPO was trained on.
    """
    policy = pick(tables["swap"], dataset=dataset, arm=f"dpo-{arm}", persona_format="line", measure="policy")
    lines = [
        aim("PT-DPO, share D > 0", f"{dataset}, gold", pick(policy, persona="gold"), "d_positive",
            above(SWAP_AIMS[dataset])),
        aim("PT-DPO, share D > 0 (null control)", f"{dataset}, shuffled", pick(policy, persona="shuffled"),
            "d_positive", NULL),
        aim("PT-DPO, share D > 0 (control)", f"{dataset}, retrieved", pick(policy, persona="retrieved"),
            "d_positive", REPORTED),
    ]  # fmt: skip
    for form, words in (("first_person", "told the persona in the first person"), ("line", "Persona: line")):
        found = pick(tables["swap_differences"], dataset=dataset, tested=f"dpo-{arm}.line",
                     compared=f"dpo-none.{form}", measure="policy", persona="gold")  # fmt: skip
        text = f"PT-DPO minus its persona-free twin ({words}), share D > 0"
        lines.append(aim(text, f"{dataset}, gold", found, "d_positive", POSITIVE))
    return lines


def primary_results(profile: Profile) -> pd.DataFrame:
    """Return a line per primary aim of the profile, computed from its saved tables."""
    import pandas as pd

    names = ("persona_accuracy", "main", "stage", "side_difference", "swap", "swap_differences",
             "calibration")  # fmt: skip
    tables = {name: read_table(profile, name) for name in names}
    lines = []
    for dataset in profile.datasets:
        if profile.judge != "none":
            found = judged_aims(profile, dataset, tables)
            inferred = [line for line in found if line["aim"] == "persona accuracy"]
            answers = [line for line in found if line["aim"] != "persona accuracy"]
            for part, judge in ((inferred, persona_judge_of(profile)), (answers, profile.judge)):
                weak = unbelieved(tables["calibration"], dataset, judge)
                lines += without_verdict(part) if weak else part
        if dataset in SWAP_AIMS:
            lines += swap_aims(dataset, main_arm(profile), tables)
    return pd.DataFrame(lines)


# --- what is missing ---


def not_run(profile: Profile) -> pd.DataFrame:
    """List what the tables do not hold, and why: data sets and seeds without results, arms, personas."""
    import pandas as pd

    lines = [] if profile.judge != "none" else [("judged tables", "this profile has no judge")]
    for dataset in profile.datasets:
        for run in runs_of(profile, dataset):
            lines += [(f"{run.dataset}, seed {run.seed}: {what}", "no finished files in its folder")
                      for what, pattern in parts_of(profile).items()
                      if not any(run.folder.glob(pattern))]  # fmt: skip
    lines += [(f"arms trained on personas: {name}", "not in train_personas of this run")
              for name in TRAIN_PERSONAS if name not in profile.train_personas]  # fmt: skip
    lines += [(f"evaluation personas: {name}", "not in eval_personas of this run")
              for name in EVAL_PERSONAS if name not in profile.eval_personas]  # fmt: skip
    if not profile.controls:
        lines.append(
            ("control cells (a system turn for plain DPO, shuffled and system personas)", "controls=false")
        )
    return pd.DataFrame(lines, columns=["what", "why"])


def parts_of(profile: Profile) -> dict[str, str]:
    """Return the parts that a run of this profile leaves, each with the files that show it."""
    parts = {"persona swaps": "swap/*/done.json", "generated answers": "generations/*/done.json"}
    if profile.judge != "none":
        parts |= {
            "judgments": "judgments/*/done.json",
            "persona accuracy": "tables/persona_accuracy_items.csv",
        }
    return parts


def save_tables(profile: Profile) -> dict[str, Path]:
    """Compute and write every table of the profile; returns the paths of those that are not empty."""
    forget_judged()
    forget_swap()
    makers = {
        **judged_tables(),
        **PAPER_TABLES,
        **CHECK_TABLES,
        **PERSONA_TABLES,
        **SWAP_TABLES,
        **LENGTH_TABLES,
        "primary": primary_results,
        "not_run": not_run,
    }
    paths = {name: save_table(profile, name, make(profile)) for name, make in makers.items()}
    return {name: path for name, path in paths.items() if path}
