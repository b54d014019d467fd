"""The primary results: each aim that was set beforehand, what was measured, and whether it was met.

Everything is computed from the saved tables. Aims about judged answers need a judge; those about persona
swaps are set for our own pairs and for the authors' data. None is moved to fit what came out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from persona_lib.config import main_arm
from persona_lib.data.preference import inference_split
from persona_lib.evaluation.judge import persona_judge_of
from persona_lib.evaluation.judged import forget_judged, runs_of
from persona_lib.profiles import Profile
from persona_lib.records import EVAL_PERSONAS, TRAIN_PERSONAS
from persona_lib.tables.results import Row, judged_tables, read_table, save_table
from persona_lib.tables.results_checks import CHECK_TABLES
from persona_lib.tables.results_length import LENGTH_TABLES
from persona_lib.tables.results_paper import PAPER_TABLES
from persona_lib.tables.results_personas import PERSONA_TABLES
from persona_lib.tables.results_swap import SWAP_TABLES, forget_swap

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

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
