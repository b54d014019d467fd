"""How tables of personas, human ratings and safety are shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from persona_lib.tables.cells import CI, build, number, p_value, persona_shown, size, with_interval

if TYPE_CHECKING:
    import pandas as pd


def accuracy_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show persona accuracy per side with its counts, of splits or of several models on one."""
    counts = ("n_correct", "n_ties", "n_wrong", "n_unparsed", "n_missing")
    first = "model" if "model" in table else "split"
    columns = {
        first: lambda row: row[first],
        "personas": lambda row: row["side"],
        f"accuracy {CI}": lambda row: with_interval(row, "accuracy", 3),
        "correct / tie / wrong / unparsed / no persona": lambda row: (
            " / ".join(number(row[name], 0) for name in counts) if not math.isnan(row["n"]) else ""
        ),
    }
    if "n_contradicted" in table and table.n_contradicted.gt(0).any():
        columns["ties by contradiction"] = lambda row: number(row["n_contradicted"], 0)
    return build(table, columns | {"n": size})


def preference_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show which side's persona is the more plausible user."""
    columns = {
        "chosen / tie / rejected / unparsed": lambda row: " / ".join(
            str(row[name]) for name in ("win", "tie", "loss", "unparsed")
        ),
        f"net {CI}": lambda row: with_interval(row, "net", 2, True),
        "no persona": lambda row: str(row["n_missing"]),
        "n": size,
    }
    return build(table, columns)


def words_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show the most typical words of each side's personas."""
    columns = {
        "personas": lambda row: row["side"],
        "word": lambda row: row["word"],
        "in chosen / rejected personas": lambda row: f"{row['n_chosen']} / {row['n_rejected']}",
        "share chosen": lambda row: number(row["share_chosen"]),
        f"log-odds {CI}": lambda row: with_interval(row, "log_odds", 2, True),
        "z": lambda row: number(row["z"], 1, True),
        "p (Holm)": lambda row: "< .001" if row["p_holm"] < 0.001 else number(row["p_holm"], 3),
    }
    return build(table, columns)


def persona_text_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show what personas are like as texts, a line per measure; the two sides' difference is paired."""
    import pandas as pd

    sides, lines = ("chosen", "rejected", "chosen - rejected"), []
    for key, part in table.groupby(["dataset", "measure"] if "dataset" in table else ["measure"], sort=False):
        rows = {row["side"]: row for _, row in part.iterrows()}
        shown = {s: with_interval(row, "value", 3, " - " in s) for s, row in rows.items()}
        counts = " / ".join(f"{rows[s]['n']:.0f}" for s in sides[:2])
        names = {"dataset": key[0]} if len(key) > 1 else {}
        lines.append(names | {"measure": key[-1], "n": counts} | {s: shown.get(s, "") for s in sides})
    columns = {"measure": lambda row: row["measure"]}
    columns |= {f"{side} {CI}": lambda row, side=side: row[side] for side in sides}
    return build(pd.DataFrame(lines), columns | {"n": lambda row: row["n"]})


def words_table_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show the ten most typical words of each side among all that were tested, by z."""
    import pandas as pd

    parts = []
    for _, part in table.groupby("dataset", sort=False):
        ordered = part.sort_values("z", ascending=False, kind="stable")
        parts.append(ordered[ordered.z > 0].head(10).assign(side="chosen"))
        parts.append(ordered[ordered.z < 0].iloc[::-1].head(10).assign(side="rejected"))
    return words_view(pd.concat(parts))


def safety_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show which answers keep a caution or refusal, by policy and persona."""
    columns = {
        "policy": lambda row: row["arm"],
        "shown persona": lambda row: persona_shown(row["eval_persona"], row["persona_format"]),
        "by": lambda row: row["classifier"],
        "refusal / caution / neither": lambda row: f"{row['refusal']} / {row['caution']} / {row['neither']}",
        f"share that keeps one {CI}": lambda row: with_interval(row, "share", 3),
        f"corrected for errors {CI}": lambda row: (
            with_interval(row, "corrected", 3) if "corrected" in row else ""
        ),
        "mean words": lambda row: number(row["words_mean"], 1),
        "n": size,
    }
    return build(table, columns)


def safety_pairs_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show paired comparisons of who keeps a caution, with exact McNemar tests."""
    columns = {
        "tested": lambda row: f"{row['tested']}, {persona_shown(row['eval_persona'], row['persona_format'])}",
        "compared": lambda row: (
            row["compared"] + (", same persona" if row["shows"] == "same persona" else ", none")
        ),
        "by": lambda row: row["classifier"],
        "only tested / only compared keeps it": lambda row: f"{row['only_tested']} / {row['only_compared']}",
        f"difference {CI}": lambda row: with_interval(row, "difference", 3, True),
        "p (Holm)": lambda row: (
            f"{p_value(row['p'])} ({p_value(row['p_holm'])})" if row["p"] == row["p"] else ""
        ),
        f"difference at equal length {CI}": lambda row: with_interval(row, "difference_cut", 3, True),
        f"kept of the compared's cautious answers {CI}": lambda row: with_interval(row, "kept"),
        "n": size,
    }
    return build(table, columns)


def safety_error_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show how often the classifier errs on hand-labelled answers, and three estimates of the share."""
    columns = {
        "part": lambda row: f"{row['part'].replace('_', ' ')}, {row['group']}",
        "by": lambda row: row["classifier"],
        "hand: refusal / caution / neither": lambda row: " / ".join(
            f"{row[f'hand_{name}']}" for name in ("refusal", "caution", "neither")
        ),
        f"precision {CI}": lambda row: with_interval(row, "precision"),
        f"recall {CI}": lambda row: with_interval(row, "recall"),
        f"specificity {CI}": lambda row: with_interval(row, "specificity"),
        "share by rule": lambda row: number(row["raw"], 3),
        f"by hand {CI}": lambda row: with_interval(row, "hand_share", 3),
        f"by rule, corrected by hand {CI}": lambda row: with_interval(row, "assisted", 3),
        f"PT minus DPO told a persona {CI}": lambda row: with_interval(row, "minus_dpo_p", 3, True),
        "n (of)": lambda row: f"{row['n']} ({row['stands_for']})",
    }
    return build(table, columns, name_dataset=False)


def ratings_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show ratings per question and group, and the differences; who rated stands in every line."""
    columns = {
        "study": lambda row: row["study"],
        "question": lambda row: row["question"],
        "group": lambda row: row["group"],
        f"mean, 1 to 5 {CI}": lambda row: with_interval(row, "mean", 2, " - " in row["group"]),
        "ratings of 1 / 2 / 3 / 4 / 5": lambda row: (
            "" if math.isnan(row["n_1"]) else " / ".join(f"{row[f'n_{v}']:.0f}" for v in range(1, 6))
        ),
        "raters": lambda row: f"{row['n_raters']} ({row['raters']})",
        "n": lambda row: str(row["n"]),
    }
    return build(table, columns)


def rating_agreement_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show how far raters agree; the true alpha is known for simulated raters only."""
    columns = {
        "study": lambda row: row["study"],
        "question": lambda row: row["question"],
        f"Krippendorff's alpha, ordinal {CI}": lambda row: with_interval(row, "alpha"),
        "alpha, nominal": lambda row: number(row["alpha_nominal"]),
        "Cohen's kappa, quadratic, mean of pairs": lambda row: number(row["cohen_quadratic"]),
        "Fleiss' kappa (items)": lambda row: f"{number(row['fleiss'])} ({row['n_fleiss']})",
        "true alpha": lambda row: number(row["true_alpha"]),
        "missing / off the scale": lambda row: f"{row['n_missing']} / {row['n_out_of_scale']}",
        "raters": lambda row: f"{row['n_raters']} ({row['raters']})",
        "n": lambda row: str(row["n"]),
    }
    return build(table, columns)
