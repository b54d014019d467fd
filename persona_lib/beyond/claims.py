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
from persona_lib.paper import answers, judging, personas, results, swap
from persona_lib.records import DataError, Generation, Table, stacked, table_of
from persona_lib.settings import FACTS, Profile, Run, main_arm, set_field
from persona_lib.store import facts, read_csv
from persona_lib.texts import has_suffix_loop, repetition

N_RESAMPLES = 20_000  # enough that the limits move by about .1 from one bootstrap seed to another


def paper_table() -> list[dict[str, Any]]:
    """Read the paper's DPO vs PT-DPO table: ten rows of exact counts, printed percentages and dPQ."""
    return read_csv(FACTS / "paper_table.csv").to_dict("records")


def resampled_dpq(p: Sequence[int], q: Sequence[int], agree: bool, rng: np.random.Generator) -> np.ndarray:
    """Return dPQ, in points, of counts of verdicts (win, tie, loss), and then of their multinomial resamples.

    A pair's two verdicts are independent, or ``agree`` as often as the counts allow (upper Frechet bound).
    """
    joint = np.outer(p, q) / sum(p)
    if agree:
        cumulative = np.minimum.outer(np.cumsum(p), np.cumsum(q))
        joint = np.diff(np.diff(cumulative, axis=0, prepend=0), axis=1, prepend=0)
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
        p, q = ([row[f"{short}_{verdict}"] for verdict in judging.PARSED] for short in "pq")
        for short, counts in (("p", p), ("q", q)):
            line |= results.verdict_counts(short, dict(zip(judging.PARSED, counts, strict=True)))
            line[f"{short}_sign"] = intervals.sign_test(counts[0], counts[2])
        rng = np.random.default_rng(number)
        drawn.append(resampled_dpq(p, q, False, rng))
        widest = intervals.interval_of(resampled_dpq(p, q, True, rng))
        line |= drawn_columns({"dpq": drawn[-1]}) | {"dpq_p": dpq_test(p, q)}
        lines.append(line | {"dpq_low_widest": widest.low, "dpq_high_widest": widest.high})
    average: results.Row = {"dataset": "all", "kind": "average", "label": "average of the ten rows"}
    average |= drawn_columns({"dpq": np.mean(drawn, axis=0)})
    average |= table_of(lines)[["dpq_low_widest", "dpq_high_widest"]].mean().to_dict()
    table = results.with_holm(table_of([*lines, average]))
    return table.assign(dpq_holm=intervals.holm(table.dpq_p))


MIN_EACH = 5  # wins and losses that the length model needs of each: fewer tell nothing about a slope


@functools.cache
def is_sound(answer: Generation) -> bool:
    """Return False for a degenerate answer: without an end, rep4 > .5, or with a loop as its end."""
    text = answer.completion
    return answer.finish_reason == "stop" and repetition(text) <= 0.5 and not has_suffix_loop(text)


def answers_of(row: judging.Judged) -> list[dict[str, tuple[Generation, Generation]]]:
    """Return, per run, the tested and the base answer of every judged item."""
    specs, found = (row.matchup.test, row.matchup.base), []
    for run, verdicts in zip(row.runs, row.verdicts["quality"], strict=True):
        tested, base = (answers.read_generations(run, spec) if verdicts else {} for spec in specs)
        found.append({i: (tested[i], base[i]) for i in verdicts})
    return found


def kept(row: judging.Judged, keep: Sequence[set[str]]) -> judging.Judged:
    """Return a row with only some of its items, given per run."""
    verdicts = {}
    for rubric, runs in row.verdicts.items():
        verdicts[rubric] = [{i: run[i] for i in run if i in ids} for run, ids in zip(runs, keep, strict=True)]
    return replace(row, scores={}, verdicts=verdicts)


def filtered_lines(row: judging.Judged) -> list[results.Row]:
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
               for name, part in parts.items() for short, rubric in judging.RUBRIC_NAMES.items()}  # fmt: skip
    pool, lines = intervals.make_pool(columns, *judging.sampling(row.runs), lambda _: -1), []
    for name, part in parts.items():
        line = results.row_names(row) | {"pairs": name, "n": part.counts("quality").total()}
        lines.append(line | results.verdict_columns(part) | drawn_columns(intervals.scores(pool, name)))
    return lines


def filtered_table(profile: Profile) -> Table:
    """Return every judged row whole and filtered; Holm's adjustment is over rows of one kind and filter."""
    table = table_of(line for row in judging.read_judgments(profile) for line in filtered_lines(row))
    for short in judging.RUBRIC_NAMES if len(table) else ():
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


def lengths_of(row: judging.Judged) -> tuple[np.ndarray, dict[str, tuple]]:
    """Return words of tested and base answers, [2, items], and by rubric what ``length_model`` is given."""
    shared = judging.same_items(row.runs)
    items = [(i if shared else f"{run}/{i}", *(len(answer.completion.split()) for answer in both))
             for run, found in enumerate(answers_of(row)) for i, both in found.items()]  # fmt: skip
    prompts, *words = zip(*items, strict=True)
    signs = {short: [intervals.SIGNS.get(v, 0.0) for by_id in row.verdicts[rubric] for v in by_id.values()]
             for short, rubric in judging.RUBRIC_NAMES.items()}  # fmt: skip
    return np.array(words), {short: (own, np.subtract(*words), prompts) for short, own in signs.items()}


def length_table(profile: Profile) -> Table:
    """Return the main rows and PT-DPO against PT-SFT by rubric: net as it is, and at equal length."""
    lines = []
    for row in results.judged_rows(profile, ("main", "stage")):
        words, rubrics = lengths_of(row)
        for short, given in rubrics.items():
            lines.append(results.row_names(row) | {
                "rubric": judging.RUBRIC_NAMES[short], "words_tested": words[0].mean(),
                "words_base": words[1].mean(), "n_decided": np.count_nonzero(given[0]),
                **drawn_columns({"net": row.scores[f"{short}_net"]}),
                **interval_columns("net_controlled", length_model(given)),
            })  # fmt: skip
    return table_of(lines)


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
    lines, over = [], aims["over_half"].get(dataset)
    names = {"arm": main_arm(profile), "split": inference_split(profile, dataset), "over": over}
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


def calibrations(runs: Sequence[Run]) -> Table:
    """Return the calibration of every judge that a run has measured (``beyond.calibration``), by seed."""
    there = [run for run in runs if calibration_path(run).exists()]
    return stacked(read_csv(calibration_path(r)).assign(dataset=r.dataset, seed=r.seed) for r in there)


def persona_fit(profile: Profile, dataset: str, judge: str) -> Table:
    """Return how often a judge was right in gold pairs, from the saved calibration: a row per seed."""
    values = {"dataset": dataset, "judge": judge, "rubric": "personalization"}
    return pick(results.read_table(profile, "calibration"), values)


def corrected_main(profile: Profile) -> Table:
    """Return the main table with dPQ at equal length, and ``p_corrected``: the net without judge's errors.

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
    found = []
    for row in results.judged_rows(profile, ("main",)):
        fit = [share and 100 * share for share in length_model(*lengths_of(row)[1].values())]
        found.append(results.row_names(row) | interval_columns("dpq_controlled", Interval(*fit)))
    return table.merge(table_of(found), how="left") if found else table


def save_tables(profile: Profile) -> dict[str, Path]:
    """Write every table of the profile, of several seeds also ``by_seed``; returns the paths that exist."""
    parts, paths = [], {}
    for seed in profile.seeds if len(profile.seeds) > 1 else ():
        alone = set_field(profile, {"seeds": [seed]})
        save_tables(alone)
        if len(found := results.read_table(alone, "primary")):
            parts.append(found.dropna(subset="estimate").assign(seed=seed))
    judging.forget_judged()
    # in this order: the main table reads the calibration, the aims read all before them
    for name, of_dataset in {"calibration": calibrations, **swap.SWAP_TABLES, **USER_TABLES}.items():
        made = (of_dataset(judging.runs_of(profile, dataset)) for dataset in profile.datasets)
        paths[name] = results.save_table(profile, name, stacked(made))
    makers: dict[str, Callable[[Profile], Table]] = {
        **results.JUDGED_TABLES,
        "main": corrected_main,
        "paper": lambda profile: reanalysed(),
        "filtered": filtered_table,
        "length": length_table,
        **personas.PERSONA_TABLES,
        "primary": primary_results,
        "by_seed": lambda profile: stacked(parts),
    }
    paths |= {name: results.save_table(profile, name, make(profile)) for name, make in makers.items()}
    return {name: path for name, path in paths.items() if path}


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
    run, lines = results.read_table(profile, "primary"), []
    if run.empty:
        raise DataError(f"profile {profile.name} has no results to verify: ./run_all.sh")
    run = run.dropna(subset="estimate").set_index(["aim", "where"]).estimate
    for name, found in published.groupby(["aim", "where"], sort=False):
        if name in run:
            band = prediction_band(list(found.estimate), len(profile.seeds), 1 / found.n.max())
            alone = found.estimate[(found.seed == profile.seeds[0]) & (len(profile.seeds) == 1)]
            lines.append({
                "aim": name[0], "where": name[1], "run": run[name], **interval_columns("published", band),
                "n_seeds": len(found),
                "inside": None if band.low is None else band.low <= run[name] <= band.high,
                "same": abs(alone.item() - run[name]) < 1e-5 if len(alone) else None,
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
