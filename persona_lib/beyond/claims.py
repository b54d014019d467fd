"""What the results claim: the paper's table re-analysed, judged rows checked, aims; all tables of a profile.

The paper's table: ``facts/paper_table.csv`` has the only integer counts that give the printed percentages and
dPQ. They do not say how the two verdicts of one pair of answers go together, and dPQ adds both. So dPQ has
two intervals: the verdicts taken as independent, and the widest, as much agreement as the counts allow.

The checks count the judged rows again: without broken answers, and with answers of equal length.
"""

from __future__ import annotations

import csv
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.beyond.calibration import calibration_path
from persona_lib.data import everyday
from persona_lib.data.preference import inference_split
from persona_lib.intervals import (
    SIGNS,
    Interval,
    Pool,
    WinRate,
    delta_pq,
    holm,
    interval_columns,
    make_pool,
    net_columns,
    percentile_interval,
    ratio,
    sign_test,
    table_of,
)
from persona_lib.paper import results
from persona_lib.paper.answers import generation_folder, read_generations
from persona_lib.paper.judging import RUBRIC_NAMES, Judged, forget_judged, read_judgments, runs_of, same_items
from persona_lib.paper.personas import PERSONA_TABLES
from persona_lib.paper.results import (
    Row,
    judged_tables,
    read_table,
    row_names,
    save_table,
    sign_columns,
    verdict_counts,
    with_holm,
)
from persona_lib.paper.swap import SWAP_TABLES
from persona_lib.records import EVAL_PERSONAS, TRAIN_PERSONAS, Generation, RunSpec
from persona_lib.settings import FACTS, Profile, Run, main_arm
from persona_lib.texts import count_degenerate

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


# --- the paper's table (DPO against PT-DPO) from its exact counts ---


N_RESAMPLES = 20_000  # enough that the limits move by about .1 from one bootstrap seed to another
SUFFIX = {"independent": "", "agree": "_widest"}  # how two verdicts go together -> suffix of columns


def paper_table() -> list[dict[str, str]]:
    """Read the paper's DPO vs PT-DPO table: ten rows of exact counts, printed percentages and dPQ."""
    with (FACTS / "paper_table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def paper_win_rates(row: Mapping[str, str]) -> tuple[WinRate, WinRate]:
    """Return personalization and quality counts of one row of ``paper_table``."""
    return tuple(WinRate(*(int(row[f"{m}_{v}"]) for v in ("win", "tie", "loss"))) for m in "pq")


def joint_table(p: WinRate, q: WinRate, dependence: str) -> np.ndarray:
    """Return counts of (personalization, quality) verdicts, (3, 3) by win, tie, loss, with these margins.

    "independent": products of the margins. "agree": as many equal verdicts as can be; the cumulative counts
    are the smaller of the margins' (the upper Frechet bound). Raises ValueError for margins of unequal n.
    """
    if p.n != q.n:
        raise ValueError(f"{p.n} and {q.n} verdicts: both rubrics need the same pairs of answers")
    rows, columns = (np.array([c.n_wins, c.n_ties, c.n_losses], dtype=float) for c in (p, q))
    if dependence == "independent":
        return np.outer(rows, columns) / p.n
    cumulative = np.minimum.outer(np.cumsum(rows), np.cumsum(columns))
    return np.diff(np.diff(cumulative, axis=0, prepend=0), axis=1, prepend=0)


def resampled_dpq(
    p: WinRate, q: WinRate, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> dict[str, np.ndarray]:
    """Return dPQ, in points, of multinomial resamples of published counts, for each name of ``SUFFIX``."""

    def net(counts: np.ndarray) -> np.ndarray:
        return ratio(counts[:, 0] - counts[:, 2], counts[:, 0] + counts[:, 2])

    rng, found = np.random.default_rng(seed), {}
    for dependence in SUFFIX:
        joint = joint_table(p, q, dependence)
        draws = rng.multinomial(p.n, joint.ravel() / joint.sum(), size=n_resamples).reshape(-1, 3, 3)
        found[dependence] = 50 * (net(draws.sum(axis=2)) + net(draws.sum(axis=1)))
    return found


def dpq_test(p: WinRate, q: WinRate) -> float:
    """Return the two-sided p of dPQ = 0 for independent verdicts; both rubrics need decided verdicts.

    Normal approximation: a net win rate has the variance (1 - net^2) / decided (delta method).
    """
    from scipy.stats import norm

    error = sum((1 - rate.net**2) / rate.n_decided for rate in (p, q)) ** 0.5
    return float(2 * norm.sf(abs(p.net + q.net) / error))


def paper_line(number: int, row: dict[str, str]) -> tuple[Row, np.ndarray]:
    """Return one row of the table (counts, dPQ with both intervals, tests) and its independent resamples."""
    p, q = paper_win_rates(row)
    line: Row = {"dataset": row["dataset"], "kind": "paper", "label": f"{row['side']}, {row['persona']}",
                 "n": p.n, "dpq": delta_pq(p, q), "dpq_p": dpq_test(p, q)}  # fmt: skip
    for short, rate in {"p": p, "q": q}.items():
        line |= verdict_counts(short, rate) | {f"{short}_sign": sign_test(rate.n_wins, rate.n_losses)}
    resamples = resampled_dpq(p, q, number)
    for dependence, values in resamples.items():
        line |= dpq_limits(percentile_interval(line["dpq"], values, p.n), SUFFIX[dependence])
    return line, resamples["independent"]


def dpq_limits(interval: Interval, suffix: str) -> Row:
    """Name the limits of dPQ under one assumption of how the two verdicts go together."""
    return {f"dpq_low{suffix}": interval.low, f"dpq_high{suffix}": interval.high}


@functools.cache
def reanalysed() -> pd.DataFrame:
    """Return the ten rows and their average; the tests are ours.

    The average takes the rows as independent. They are not: rows of a data set share prompts and, in part,
    answers. Its widest limits are the means of the rows' widest limits, as if all rows erred together.
    """
    import pandas as pd

    found = [paper_line(number, row) for number, row in enumerate(paper_table())]
    table = with_holm(pd.DataFrame([line for line, _ in found]))
    table["dpq_holm"] = holm(table.dpq_p)
    mean, n = table.dpq.mean(), int(table.n.sum())
    together = percentile_interval(mean, np.mean([values for _, values in found], axis=0), n)
    line = {"dataset": "all", "kind": "average", "label": "average of the ten rows", "dpq": mean}
    line |= dpq_limits(together, "")
    line |= {name: table[name].mean() for name in ("dpq_low_widest", "dpq_high_widest")}
    return pd.concat([table, pd.DataFrame([line])], ignore_index=True)


# --- does a judged row hold without broken answers, and at equal length? ---


KINDS = ("main", "stage", "sft", "few_shot", "arm", "control")
LENGTH_KINDS = ("main", "stage")
MATCHED = 0.1  # answers count as equally long if they differ by at most this share of the longer one
MIN_EACH = 5  # wins and losses that the length model needs of each: fewer tell nothing about a slope
Z = 1.959963984540054  # of a 95 % interval
Facts = list[dict[str, tuple[tuple[bool, int], tuple[bool, int]]]]  # by run: id -> both answers: sound, words


def is_sound(answer: Generation) -> bool:
    """Return False for a degenerate answer: without an end, rep4 > .5, or with a loop as its end."""
    counts = count_degenerate([answer.completion], [answer.finish_reason == "stop"])
    return not (counts["no_eos"] or counts["rep4_over_50"] or counts["suffix_loop"])


@functools.lru_cache(maxsize=256)
def facts_of(run: Run, spec: RunSpec) -> dict[str, tuple[bool, int]]:
    """Return whether each of a policy's answers is sound, and its words, by row id; {} without answers."""
    if not (generation_folder(run, spec) / "done.json").exists():
        return {}
    answers = read_generations(run, spec)
    return {name: (is_sound(answer), len(answer.completion.split())) for name, answer in answers.items()}


def rows_with_answers(profile: Profile, kinds: tuple[str, ...]) -> Iterator[tuple[str, int, Judged, Facts]]:
    """Yield (data set, bootstrap seed, row, facts) of the judged rows whose answers are all at hand."""
    for number, judgments in enumerate(read_judgments(profile)):
        for row in judgments.rows:
            if row.matchup.kind not in kinds:
                continue
            specs = row.matchup.test, row.matchup.base
            both = [[facts_of(run, spec) for spec in specs] for run in row.runs]
            pairs = [(*pair, found) for pair, found in zip(both, row.verdicts["quality"], strict=True)]
            if all(test and base for test, base, found in pairs if found):
                facts = [{i: (test[i], base[i]) for i in found} for test, base, found in pairs]
                yield judgments.dataset, number, row, facts


def kept(row: Judged, keep: Sequence[set[str]]) -> Judged:
    """Return a row with only some of its items, given per seed."""
    verdicts: dict[str, list[dict[str, str]]] = {}
    for rubric, by_seed in row.verdicts.items():
        pairs = zip(by_seed, keep, strict=True)
        verdicts[rubric] = [{i: v for i, v in found.items() if i in ids} for found, ids in pairs]
    return Judged(row.matchup, row.runs, verdicts, row.role)


def pool_parts(parts: Mapping[str, Judged], seed: int) -> Pool:
    """Pool parts of one row, so that all have the same draws of prompts."""
    columns: dict[str, Any] = {}
    for which, part in parts.items():
        for short, rubric in RUBRIC_NAMES.items():
            columns |= net_columns(f"{which}/{short}", part.verdicts[rubric])
    runs = next(iter(parts.values())).runs
    return make_pool(columns, runs[0].profile.evaluation.bootstrap_samples, seed, same_items(runs))


def filtered_lines(dataset: str, seed: int, row: Judged, facts: Facts) -> list[Row]:
    """Return a row as it is and, below it, without pairs in which either answer is degenerate.

    Rows of ``everyday`` also apart for explicit personas (the wording names the surface) and implicit ones.
    """
    sound = [{i for i, ((test, _), (base, _)) in found.items() if test and base} for found in facts]
    parts = {"all pairs": row, "both answers sound": kept(row, sound)}
    if dataset == everyday.NAME and row.matchup.judge_persona.startswith(("gold", "user")):
        for wording in ("explicit", "implicit"):
            ids = {item.id for item in everyday.items() if item.wording == wording}
            parts[f"{wording} personas"] = kept(row, [ids] * len(row.runs))
    pool, lines = pool_parts(parts, seed), []
    for which, part in parts.items():
        line = row_names(dataset, row) | {"pairs": which, "n": part.counts("quality").n}
        for short, rubric in RUBRIC_NAMES.items():
            line |= verdict_counts(short, part.counts(rubric))
        for name, statistic in results.scores(which).items():
            line |= interval_columns(name, pool.interval(statistic))
        lines.append(line | sign_columns(part))
    return lines


def filtered_table(profile: Profile) -> pd.DataFrame:
    """Return every judged row unfiltered and, below it, filtered for sound answers of both arms.

    Holm's adjustment is over the rows of one kind and one filter: those that stand together in a table.
    """
    import pandas as pd

    table = pd.DataFrame([line for row in rows_with_answers(profile, KINDS) for line in filtered_lines(*row)])
    if table.empty:
        return table
    groups = table.groupby(["kind", "pairs"], sort=False)
    return pd.concat([with_holm(part) for _, part in groups]).sort_index()


def length_lines(dataset: str, seed: int, row: Judged, facts: Facts) -> list[Row]:
    """Return a line per rubric: net win rate as it is, of length-matched pairs, and of the logistic model."""
    words = [{i: (test, base) for i, ((_, test), (_, base)) in found.items()} for found in facts]
    every = [pair for found in words for pair in found.values()]
    matched = kept(row, [{i for i, pair in found.items() if same_length(*pair)} for found in words])
    pool, shared = pool_parts({"all": row, "matched": matched}, seed), same_items(row.runs)
    lines = []
    for short, rubric in RUBRIC_NAMES.items():
        line = row_names(dataset, row) | {"rubric": rubric}
        line |= dict(zip(("words_tested", "words_base"), np.mean(every, axis=0), strict=True))
        line |= {"n_decided": row.counts(rubric).n_decided, "n_matched": matched.counts(rubric).n,
                 "n_matched_decided": matched.counts(rubric).n_decided}  # fmt: skip
        for name, which in (("net", "all"), ("net_matched", "matched")):
            line |= interval_columns(name, pool.interval(results.scores(which)[f"{short}_net"]))
        items = [
            (SIGNS.get(verdict, 0.0), found[i][0] - found[i][1], i if shared else f"{number}/{i}")
            for number, (verdicts, found) in enumerate(zip(row.verdicts[rubric], words, strict=True))
            for i, verdict in verdicts.items()
        ]
        lines.append(line | interval_columns("net_controlled", length_model(*zip(*items, strict=True))))
    return lines


def same_length(words: int, base_words: int) -> bool:
    """Return whether two answers differ by at most ``MATCHED`` of the longer one."""
    return abs(words - base_words) <= MATCHED * max(words, base_words)


def length_model(signs: Sequence[float], differences: Sequence[float], prompts: Sequence[str]) -> Interval:
    """Fit the net win rate at equal length to verdicts (+1, -1, else 0) and length differences in words.

    Length-controlled AlpacaEval 2 (Dubois et al. 2024, eq. 1) without its term for the instruction: among
    decided comparisons logit P(win) = a + b tanh(d / sd). The net win rate at d = 0 is tanh(a / 2). Standard
    errors are clustered by prompt: seeds that answer the same prompts do not count as independent. Undefined
    with fewer than ``MIN_EACH`` wins or losses, for equal differences, and where length tells all verdicts.
    """
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM
    from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

    decided = [item for item in zip(signs, differences, prompts, strict=True) if abs(item[0]) == 1]
    wins = np.array([sign > 0 for sign, _, _ in decided], dtype=float)
    lengths = np.array([difference for _, difference, _ in decided], dtype=float)
    nothing = Interval(None, None, None, len(wins))
    if min(wins.sum(), len(wins) - wins.sum()) < MIN_EACH or lengths.std() == 0:
        return nothing
    groups = np.unique([prompt for _, _, prompt in decided], return_inverse=True)[1]
    terms = np.column_stack([np.ones_like(wins), np.tanh(lengths / lengths.std())])
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerfectSeparationWarning)
        try:
            fitted = GLM(wins, terms, family=Binomial()).fit(cov_type="cluster", cov_kwds={"groups": groups})
        except PerfectSeparationWarning:
            return nothing
    a, error = fitted.params[0], fitted.bse[0]
    return Interval(*(float(np.tanh(v / 2)) for v in (a, a - Z * error, a + Z * error)), len(wins))


def length_table(profile: Profile) -> pd.DataFrame:
    """Return the main rows and those of PT-DPO against PT-SFT with length held equal, two ways."""
    found = rows_with_answers(profile, LENGTH_KINDS)
    return table_of([line for row in found for line in length_lines(*row)])


# --- the aims that were set beforehand ---


Criterion = tuple[str, Callable[[float, float, float], bool] | None]  # in words, and of estimate, low, high
CRITERIA: dict[str, Criterion] = {
    "positive": ("> 0, interval excludes 0", lambda estimate, low, high: low > 0),
    "null": ("interval includes .5", lambda estimate, low, high: low <= 0.5 <= high),
    "reported": ("reported whichever way it falls", None),
}


@functools.cache
def set_aims() -> dict[str, list[dict[str, Any]]]:
    """Read the aims by group: ``inferred`` and ``judged`` need a judge, ``swapped`` needs none."""
    import yaml

    return yaml.safe_load((FACTS / "aims.yaml").read_text(encoding="utf-8"))


def criterion_of(entry: Mapping[str, Any], dataset: str) -> Criterion:
    """Return the criterion of an aim."""
    if "over_half" in entry:
        value = entry["over_half"][dataset]
        words = f">= {value:.2f}, interval above .5"
        return words, lambda estimate, low, high: estimate >= value and low > 0.5
    if "least" in entry:
        return entry["criterion"], lambda estimate, low, high: estimate >= entry["least"]
    return CRITERIA[entry["criterion"]]


def aim(text: str, where: str, table: pd.DataFrame, name: str, criterion: Criterion) -> Row:
    """Return one line: the aim, where it was measured, the estimate with its interval, whether it is met.

    ``table`` holds the one row that answers it; without a row, or without a value, it was not run. Raises
    ValueError for more than one row.
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
    line |= {size: int(row[size]) for size in ("n", "n_seeds") if row.get(size, math.nan) > 0}
    return line | {"met": "reported" if holds is None else "yes" if holds(*values) else "no"}


def pick(table: pd.DataFrame, values: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of a table with these values; none of an empty table."""
    for name, value in values.items():
        table = table[table[name] == value] if name in table else table.iloc[:0]
    return table


def measured_aims(
    profile: Profile, dataset: str, group: str, tables: Mapping[str, pd.DataFrame]
) -> list[Row]:
    """Return a line per aim of a group for one data set."""
    names = {"arm": main_arm(profile), "split": inference_split(profile, dataset)}
    lines = []
    for entry in set_aims()[group]:
        rows = {"dataset": dataset} | {name: text.format(**names) for name, text in entry["rows"].items()}
        of = entry["of"] if isinstance(entry["of"], dict) else {name: name for name in entry["of"]}
        for name, value in of.items():
            found = pick(tables[entry["table"]], rows | {entry["by"]: value})
            criterion = criterion_of(entry, dataset)
            lines.append(aim(entry["aim"], f"{dataset}, {name}", found, entry["column"], criterion))
    return lines


def without_verdict(lines: list[Row], calibration: pd.DataFrame, dataset: str, judge: str) -> list[Row]:
    """Return aims as undecided if the judge's calibration says that it decides nothing."""
    found = pick(calibration, {"dataset": dataset, "judge": judge, "rubric": "personalization"})
    if found.empty or found.decides.all():
        return lines
    return [line | {"met": "judge not believed"} if line["met"] in ("yes", "no") else line for line in lines]


def primary_results(profile: Profile) -> pd.DataFrame:
    """Return a line per aim of ``facts/aims.yaml``, computed from the profile's saved tables."""
    aims = set_aims()
    names = {entry["table"] for group in ("inferred", "judged", "swapped") for entry in aims[group]}
    tables = {name: read_table(profile, name) for name in names}
    calibration = read_table(profile, "calibration")
    judges = {"inferred": profile.persona_judge, "judged": profile.evaluation.judge}
    lines = []
    for dataset in profile.datasets:
        for group, judge in judges.items() if profile.evaluation.judge != "none" else ():
            found = measured_aims(profile, dataset, group, tables)
            lines += without_verdict(found, calibration, dataset, judge)
        if dataset in aims["swapped"][0]["over_half"]:
            lines += measured_aims(profile, dataset, "swapped", tables)
    return table_of(lines)


# --- all tables of a profile ---


def calibration_table(profile: Profile) -> pd.DataFrame:
    """Return the calibration of every judge that a run has measured (``beyond.calibration``), by seed."""
    import pandas as pd

    runs = [run for dataset in profile.datasets for run in runs_of(profile, dataset)]
    there = [run for run in runs if calibration_path(run).exists()]
    parts = [pd.read_csv(calibration_path(r)).assign(dataset=r.dataset, seed=r.seed) for r in there]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def not_run(profile: Profile) -> pd.DataFrame:
    """List what the tables do not hold, and why: data sets and seeds without results, arms, personas."""
    parts = {"persona swaps": "swap/*/done.json", "generated answers": "generations/*/done.json"}
    lines = []
    if profile.evaluation.judge == "none":
        lines.append(("judged tables", "this profile has no judge"))
    else:
        parts |= {
            "judgments": "judgments/*/done.json",
            "persona accuracy": "tables/persona_accuracy_items.csv",
        }
    for run in [run for dataset in profile.datasets for run in runs_of(profile, dataset)]:
        lines += [(f"{run.dataset}, seed {run.seed}: {what}", "no finished files in its folder")
                  for what, pattern in parts.items() if not any(run.folder.glob(pattern))]  # fmt: skip
    lines += [(f"arms trained on personas: {name}", "not in train_personas of this run")
              for name in TRAIN_PERSONAS if name not in profile.training.arms]  # fmt: skip
    lines += [(f"evaluation personas: {name}", "not in eval_personas of this run")
              for name in EVAL_PERSONAS if name not in profile.evaluation.personas]  # fmt: skip
    if not profile.evaluation.controls:
        cells = "control cells (a system turn for plain DPO, shuffled and system personas)"
        lines.append((cells, "evaluation.controls=false"))
    return table_of(lines, columns=["what", "why"])


def every_dataset(profile: Profile, make: Callable[[Sequence[Run]], pd.DataFrame]) -> pd.DataFrame:
    """Return the table of every data set's runs, one under the other."""
    import pandas as pd

    tables = [make(runs_of(profile, dataset)) for dataset in profile.datasets]
    tables = [table for table in tables if not table.empty]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def save_tables(profile: Profile) -> dict[str, Path]:
    """Compute and write every table of the profile; returns the paths of those that are not empty."""
    forget_judged()
    facts_of.cache_clear()
    makers = {
        **judged_tables(),
        "paper": lambda profile: reanalysed(),
        "filtered": filtered_table,
        "length": length_table,
        "calibration": calibration_table,
        **PERSONA_TABLES,
        **{name: functools.partial(every_dataset, make=make) for name, make in SWAP_TABLES.items()},
        "primary": primary_results,
        "not_run": not_run,
    }
    paths = {name: save_table(profile, name, make(profile)) for name, make in makers.items()}
    return {name: path for name, path in paths.items() if path}
