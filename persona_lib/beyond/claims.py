"""Check the claims: the aims set beforehand, a run against the published one; all tables of a profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_lib.beyond.calibration import calibration_path
from persona_lib.beyond.released import reanalysed
from persona_lib.beyond.users import USER_TABLES
from persona_lib.data.preference import inference_split
from persona_lib.intervals import Interval, interval_columns
from persona_lib.paper import judging, personas, results, swap
from persona_lib.records import DataError, Table, stacked, table_of
from persona_lib.settings import Profile, Run, main_arm, set_field
from persona_lib.store import facts, read_csv


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
        fit = [share and 100 * share for share in results.length_model(*results.lengths_of(row)[1].values())]
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
        "filtered": results.filtered_table,
        "length": results.length_table,
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
