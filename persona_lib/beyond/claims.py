"""Check the claims: the paper's table re-analysed, judged rows counted again, aims; all tables of a profile.

The paper's table: ``facts/paper_table.csv`` has the only integer counts that give the printed percentages and
dPQ. They do not say how the two verdicts of one pair of answers go together, and dPQ adds both. So dPQ has
two intervals: the verdicts taken as independent, and the widest, as much agreement as the counts allow.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from persona_lib import intervals
from persona_lib.beyond.calibration import calibration_path
from persona_lib.beyond.users import USER_TABLES
from persona_lib.data import everyday
from persona_lib.data.preference import inference_split
from persona_lib.intervals import Interval, drawn_columns, interval_columns
from persona_lib.paper import judging, results
from persona_lib.paper.answers import read_generations
from persona_lib.paper.judging import RUBRIC_NAMES, Judged, runs_of, same_items, sampling
from persona_lib.paper.personas import PERSONA_TABLES
from persona_lib.paper.swap import SWAP_TABLES
from persona_lib.records import DataError, Generation, Table, stacked, table_of
from persona_lib.settings import FACTS, Profile, Run, main_arm, set_field
from persona_lib.store import facts, read_csv
from persona_lib.texts import has_suffix_loop, repetition

# --- the paper's table (DPO against PT-DPO) from its exact counts ---

N_RESAMPLES = 20_000  # enough that the limits move by about .1 from one bootstrap seed to another


def paper_table() -> list[dict[str, Any]]:
    """Read the paper's DPO vs PT-DPO table: ten rows of exact counts, printed percentages and dPQ."""
    return read_csv(FACTS / "paper_table.csv").to_dict("records")


def joint_table(p: Sequence[int], q: Sequence[int], dependence: str) -> np.ndarray:
    """Return counts of (personalization, quality) verdicts, (3, 3) by win, tie, loss, with these margins.

    "independent": products of the margins. "agree": as many equal verdicts as can be (upper Frechet bound).
    """
    rows, columns = np.array(p, dtype=float), np.array(q, dtype=float)
    if dependence == "independent":
        return np.outer(rows, columns) / rows.sum()
    cumulative = np.minimum.outer(np.cumsum(rows), np.cumsum(columns))
    return np.diff(np.diff(cumulative, axis=0, prepend=0), axis=1, prepend=0)


def resampled_dpq(joint: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return dPQ, in points, of a joint table and then of its multinomial resamples."""
    draws = rng.multinomial(round(joint.sum()), joint.ravel() / joint.sum(), size=N_RESAMPLES)
    counts = np.concatenate([joint[None], draws.reshape(-1, 3, 3)])
    margins = [counts.sum(axis=axis) for axis in (2, 1)]
    personal, quality = (intervals.ratio(m[:, 0] - m[:, 2], m[:, 0] + m[:, 2]) for m in margins)
    return 50 * (personal + quality)


def dpq_test(p: Sequence[int], q: Sequence[int]) -> float:
    """Return the two-sided p of dPQ = 0 for independent verdicts; both rubrics need decided verdicts.

    Normal approximation: a net win rate has the variance (1 - net^2) / decided (delta method).
    """
    from scipy.stats import norm

    wins, _, losses = np.array([p, q]).T
    net = (wins - losses) / (wins + losses)
    return float(2 * norm.sf(abs(net.sum()) / np.sqrt(((1 - net**2) / (wins + losses)).sum())))


@functools.cache
def reanalysed() -> Table:
    """Return the ten rows (counts, dPQ with both intervals, our tests) and their average.

    The average takes the rows as independent. They are not: rows of a data set share prompts and, in part,
    answers. Its widest limits are the means of the rows' widest limits, as if all rows erred together.
    """
    lines, drawn = [], []
    for number, row in enumerate(paper_table()):
        line: results.Row = {"dataset": row["dataset"], "kind": "paper"}
        line |= {"label": f"{row['side']}, {row['persona']}", "n": row["n"]}
        rng = np.random.default_rng(number)
        margins: list[list[int]] = []
        for short in "pq":
            counts: dict[str, int] = {verdict: row[f"{short}_{verdict}"] for verdict in judging.PARSED}
            line |= results.verdict_counts(short, counts)
            line[f"{short}_sign"] = intervals.sign_test(counts["win"], counts["loss"])
            margins.append(list(counts.values()))
        p, q = margins
        drawn.append(resampled_dpq(joint_table(p, q, "independent"), rng))
        widest = intervals.interval_of(resampled_dpq(joint_table(p, q, "agree"), rng))
        line |= drawn_columns({"dpq": drawn[-1]}) | {"dpq_p": dpq_test(p, q)}
        lines.append(line | {"dpq_low_widest": widest.low, "dpq_high_widest": widest.high})
    average: results.Row = {"dataset": "all", "kind": "average", "label": "average of the ten rows"}
    average |= drawn_columns({"dpq": np.mean(drawn, axis=0)})
    average |= {end: np.mean([line[end] for line in lines]) for end in ("dpq_low_widest", "dpq_high_widest")}
    table = results.with_holm(table_of([*lines, average]))
    return table.assign(dpq_holm=intervals.holm(table.dpq_p))


# --- does a judged row hold without broken answers, and at equal length? ---

MIN_EACH = 5  # wins and losses that the length model needs of each: fewer tell nothing about a slope


@functools.cache
def is_sound(answer: Generation) -> bool:
    """Return False for a degenerate answer: without an end, rep4 > .5, or with a loop as its end."""
    text = answer.completion
    return answer.finish_reason == "stop" and repetition(text) <= 0.5 and not has_suffix_loop(text)


def answers_of(row: Judged) -> list[dict[str, tuple[Generation, Generation]]]:
    """Return, per run, the tested and the base answer of every judged item."""
    specs, found = (row.matchup.test, row.matchup.base), []
    for run, verdicts in zip(row.runs, row.verdicts["quality"], strict=True):
        tested, base = (read_generations(run, spec) if verdicts else {} for spec in specs)
        found.append({i: (tested[i], base[i]) for i in verdicts})
    return found


def kept(row: Judged, keep: Sequence[set[str]]) -> Judged:
    """Return a row with only some of its items, given per run."""
    verdicts = {}
    for rubric, runs in row.verdicts.items():
        verdicts[rubric] = [{i: run[i] for i in run if i in ids} for run, ids in zip(runs, keep, strict=True)]
    return replace(row, scores={}, verdicts=verdicts)


def filtered_lines(row: Judged) -> list[results.Row]:
    """Return a row whole and without degenerate answers; rows of ``everyday`` also by a persona's wording.

    An explicit persona names what it wants on the surface. All parts have the same draws of prompts.
    """
    sound = [{i for i, both in found.items() if all(map(is_sound, both))} for found in answers_of(row)]
    parts = {"all pairs": row, "both answers sound": kept(row, sound)}
    if row.matchup.test.dataset == everyday.NAME and row.matchup.judge_persona.startswith(("gold", "user")):
        for wording in ("explicit", "implicit"):
            ids = {item.id for item in everyday.items() if item.wording == wording}
            parts[f"{wording} personas"] = kept(row, [ids] * len(row.runs))
    columns = {f"{which}/{short}": intervals.signs(part.verdicts[rubric])
               for which, part in parts.items() for short, rubric in RUBRIC_NAMES.items()}  # fmt: skip
    pool, lines = intervals.make_pool(columns, *sampling(row.runs), lambda name: -1), []
    for which, part in parts.items():
        line = results.row_names(row) | {"pairs": which, "n": part.counts("quality").total()}
        lines.append(line | results.verdict_columns(part) | drawn_columns(intervals.scores(pool, which)))
    return lines


def filtered_table(profile: Profile) -> Table:
    """Return every judged row whole and filtered; Holm's adjustment is over rows of one kind and filter."""
    import pandas as pd

    table = table_of(line for row in judging.read_judgments(profile) for line in filtered_lines(row))
    if table.empty:
        return table
    return pd.concat([results.with_holm(part) for _, part in table.groupby(["kind", "pairs"])]).sort_index()


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
    if min(wins.sum(), len(wins) - wins.sum()) < MIN_EACH or lengths.std() == 0:
        return Interval()
    groups = np.unique([prompt for _, _, prompt in decided], return_inverse=True)[1]
    terms = np.column_stack([np.ones_like(wins), np.tanh(lengths / lengths.std())])
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerfectSeparationWarning)
        try:
            fitted = GLM(wins, terms, family=Binomial()).fit(cov_type="cluster", cov_kwds={"groups": groups})
        except PerfectSeparationWarning:
            return Interval()
    return Interval(*(float(np.tanh(a / 2)) for a in (fitted.params[0], *fitted.conf_int()[0])))


def length_table(profile: Profile) -> Table:
    """Return the main rows and PT-DPO against PT-SFT by rubric: net as it is, and at equal length."""
    lines = []
    for row in results.judged_rows(profile, ("main", "stage")):
        words = [{i: [len(answer.completion.split()) for answer in both] for i, both in found.items()}
                 for found in answers_of(row)]  # fmt: skip
        longer = [{i: tested - base for i, (tested, base) in found.items()} for found in words]
        means = np.mean([pair for found in words for pair in found.values()], axis=0)
        sizes = dict(zip(("words_tested", "words_base"), means, strict=True))
        shared, signs = same_items(row.runs), intervals.SIGNS
        for short, rubric in RUBRIC_NAMES.items():
            items = [(signs.get(verdict, 0.0), longer[run][i], i if shared else f"{run}/{i}")
                     for run, verdicts in enumerate(row.verdicts[rubric])
                     for i, verdict in verdicts.items()]  # fmt: skip
            line = results.row_names(row) | {"rubric": rubric, **sizes}
            line |= {"n_decided": sum(row.counts(rubric)[verdict] for verdict in signs)}
            line |= drawn_columns({"net": row.scores[f"{short}_net"]})
            lines.append(line | interval_columns("net_controlled", length_model(*zip(*items, strict=True))))
    return table_of(lines)


# --- the aims that were set beforehand ---


def pick(table: Table, values: Mapping[str, Any]) -> Table:
    """Return the rows of a table with these values; none of an empty table."""
    for name, value in values.items():
        table = table[table[name] == value] if name in table else table.iloc[:0]
    return table


def measured(table: Table, column: str, condition: str) -> results.Row:
    """Return estimate, interval and size of an aim's one row, and if it is met; without a value, not run."""
    line: results.Row = dict.fromkeys(("estimate", "low", "high", "n", "n_seeds")) | {"met": "not run"}
    if table.empty or table[column].isna().item():
        return line
    row = table.iloc[0]
    line |= {"estimate": row[column], "low": row[f"{column}_low"], "high": row[f"{column}_high"]}
    line |= {size: int(row[size]) for size in ("n", "n_seeds") if row.get(size, math.nan) > 0}
    met = table_of([line]).eval(condition).item() if condition else None
    return line | {"met": {None: "reported", True: "yes", False: "no"}[met]}


def aims_of(profile: Profile, dataset: str, aims: Mapping[str, Any], group: str) -> list[results.Row]:
    """Return a line per aim of a group for one data set."""
    names, lines = {"arm": main_arm(profile), "split": inference_split(profile, dataset)}, []
    names["over"] = aims["over_half"].get(dataset)
    for entry in aims[group]:
        rows = {"dataset": dataset} | {name: text.format(**names) for name, text in entry["rows"].items()}
        of = entry["of"] if isinstance(entry["of"], dict) else {name: name for name in entry["of"]}
        words, condition = (text.format(**names) for text in aims["criteria"][entry["criterion"]])
        for name, value in of.items():
            line = {"aim": entry["aim"], "where": f"{dataset}, {name}", "criterion": words}
            found = pick(results.read_table(profile, entry["table"]), rows | {entry["by"]: value})
            lines.append(line | measured(found, entry["column"], condition))
    return lines


def primary_results(profile: Profile) -> Table:
    """Return a line per aim of ``facts/aims.yaml``, from saved tables; a judge not believed meets none."""
    aims = facts("aims")
    lines = []
    judges = {"inferred": profile.persona_judge, "judged": profile.evaluation.judge}
    for dataset in profile.datasets:
        for group, judge in judges.items() if profile.evaluation.judge != "none" else ():
            fit = persona_fit(profile, dataset, judge)
            for line in aims_of(profile, dataset, aims, group):
                unsure = line["met"] in ("yes", "no") and len(fit) and not fit.decides.all()
                lines.append(line | {"met": "judge not believed"} if unsure else line)
        if dataset in aims["over_half"]:
            lines += aims_of(profile, dataset, aims, "swapped")
    return table_of(lines)


# --- all tables of a profile ---


def every_dataset(profile: Profile, make: Callable[[Sequence[Run]], Table]) -> Table:
    """Return the table of every data set's runs, one under the other; empty ones are left out."""
    tables = [make(runs_of(profile, dataset)) for dataset in profile.datasets]
    return stacked(table for table in tables if len(table))


def calibrations(runs: Sequence[Run]) -> Table:
    """Return the calibration of every judge that a run has measured (``beyond.calibration``), by seed."""
    there = [run for run in runs if calibration_path(run).exists()]
    return stacked(read_csv(calibration_path(r)).assign(dataset=r.dataset, seed=r.seed) for r in there)


def persona_fit(profile: Profile, dataset: str, judge: str) -> Table:
    """Return how often a judge was right in gold pairs, from the saved calibration: a row per seed."""
    values = {"dataset": dataset, "judge": judge, "rubric": "personalization"}
    return pick(results.read_table(profile, "calibration"), values)


def corrected_main(profile: Profile) -> Table:
    """Return the main table with ``p_corrected``: the net win rate without the judge's errors.

    A judge that is right in a share a of the gold pairs that it decides shrinks the net to (2a - 1) of itself
    (Rogan and Gladen, 1978). NaN where no judge was measured, or it decides nothing.
    """
    table = results.JUDGED_TABLES["main"](profile)
    for dataset in profile.datasets if len(table) else ():
        fit, gain = persona_fit(profile, dataset, profile.evaluation.judge), math.nan
        if len(fit) and fit.decides.all():
            right, decided = (fit.accuracy * fit.n - fit.ties / 2).sum(), (fit.n - fit.ties).sum()
            gain = 2 * right / decided - 1
        table.loc[table.dataset == dataset, "p_corrected"] = (table.p_net / gain).clip(-1, 1)
    return table


def save_tables(profile: Profile) -> dict[str, Path]:
    """Write every table of the profile, of several seeds also ``by_seed``; returns the paths that exist."""
    parts = []
    for seed in profile.seeds if len(profile.seeds) > 1 else ():
        alone = set_field(profile, {"seeds": [seed]})
        save_tables(alone)
        if len(found := results.read_table(alone, "primary")):
            parts.append(found.dropna(subset="estimate").assign(seed=seed))
    judging.forget_judged()
    by_dataset = {"calibration": calibrations, **SWAP_TABLES, **USER_TABLES}
    # in this order: the main table reads the calibration, the aims read all before them
    makers: dict[str, Callable[[Profile], Table]] = {
        **{name: functools.partial(every_dataset, make=make) for name, make in by_dataset.items()},
        **results.JUDGED_TABLES,
        "main": corrected_main,
        "paper": lambda profile: reanalysed(),
        "filtered": filtered_table,
        "length": length_table,
        **PERSONA_TABLES,
        "primary": primary_results,
        "by_seed": lambda profile: stacked(parts),
    }
    paths = {name: results.save_table(profile, name, make(profile)) for name, make in makers.items()}
    return {name: path for name, path in paths.items() if path}


# --- does a run agree with the published one? ---

DECIDING = ("PT-DPO, share D > 0", "everyday, gold")  # the aim whose band decides


def prediction_band(values: Sequence[float], n_new: int, resolution: float) -> Interval:
    """Return the mean of published seeds and the 95 % band for the mean of ``n_new`` further ones.

    Student's t over k seeds, m +- t s sqrt(1 / n_new + 1 / k), s at least ``resolution``; no band for k < 3.
    """
    from scipy import stats

    k, mean = len(values), float(np.mean(values))
    if k < 3:
        return Interval(mean)
    error = max(float(np.std(values, ddof=1)), resolution) * math.sqrt(1 / n_new + 1 / k)
    return Interval(mean, *map(float, stats.t.interval(0.95, k - 1, mean, error)))


def verify(profile: Profile, published: Table) -> Table:
    """Compare a run with the published seeds (a table ``by_seed``): a line per aim. DataError: no results.

    ``inside``: the run is in its band. ``same``: a run of one published seed gives its value.
    """
    run, seeds, lines = results.read_table(profile, "primary"), profile.seeds, []
    if run.empty:
        raise DataError(f"profile {profile.name} has no results to verify: ./run_all.sh")
    for (aim, where), found in published.groupby(["aim", "where"], sort=False):
        own = pick(run, {"aim": aim, "where": where}).estimate.dropna()
        if own.empty:
            continue
        value, alone = own.item(), pick(found, {"seed": seeds[0]}).estimate if len(seeds) == 1 else own[:0]
        band = prediction_band(list(found.estimate), len(seeds), 1 / found.n.max())
        lines.append({
            "aim": aim, "where": where, "run": value, **interval_columns("published", band),
            "n_seeds": len(found),
            "inside": None if band.low is None else band.low <= value <= band.high,
            "same": abs(alone.item() - value) < 1e-5 if len(alone) else None,
        })  # fmt: skip
    return table_of(lines)


def verdict(table: Table) -> tuple[str, bool]:
    """Say in a line whether a run agrees with the published one, and whether it does (`DECIDING`)."""
    aim, where = DECIDING
    found = pick(table, {"aim": aim, "where": where})
    if found.empty or found.inside.isna().item():
        return "verify: this run has no number that decides", False
    row, bands, same = found.iloc[0], table.inside.dropna(), table.same.dropna()
    said = (
        f"verify: {'agrees' if row.inside else 'DOES NOT AGREE'} with the published run: {aim} under gold "
        f"personas {row.run:.2f}, band {row.published_low:.2f} to {row.published_high:.2f}; "
        f"{sum(bands)} of {len(bands)} numbers in their bands"
    )
    said += f"; {sum(same)} of {len(same)} as published for this seed" if len(same) else ""
    return said, bool(row.inside)
