"""How tables of judged answers, aims and changed settings are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persona_lib.tables.cells import (
    CI,
    build,
    number,
    p_values,
    scored,
    shares,
    shares_head,
    sign_p,
    size,
    unparsed,
    widest,
    with_interval,
)
from persona_lib.tables.results_tests import with_tests

if TYPE_CHECKING:
    import pandas as pd


def judged_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show judged rows: shares, net win rates and dPQ with intervals, sign tests with Holm, quality, n."""
    table = with_tests(table)
    columns = {
        "row": lambda row: row["label"],
        shares_head(table, "personalization"): lambda row: shares(row, "p"),
        shares_head(table, "quality"): lambda row: shares(row, "q"),
        "unparsed P / Q": unparsed,
        f"personalization net {CI}": lambda row: scored(row, "p_net", "p", 2),
        "p, Holm p": lambda row: sign_p(row, "p"),
        f"quality net {CI}": lambda row: scored(row, "q_net", "q", 2),
        "quality p, Holm p": lambda row: sign_p(row, "q"),
        f"dPQ {CI}": lambda row: scored(row, "dpq", "pq", 1),
        f"mean quality difference, SD {CI}": lambda row: with_interval(row, "quality_sd", 2, True),
        "n": size,
    }
    return build(table, columns)


def filtered_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show judged rows with all pairs and with those of two sound answers, one under the other."""
    columns = {
        "row": lambda row: row["label"],
        "pairs": lambda row: row["pairs"],
        "personalization W / T / L %": lambda row: shares(row, "p"),
        "quality W / T / L %": lambda row: shares(row, "q"),
        f"personalization net {CI}": lambda row: scored(row, "p_net", "p", 2),
        "p, Holm p": lambda row: sign_p(row, "p"),
        f"quality net {CI}": lambda row: scored(row, "q_net", "q", 2),
        "quality p, Holm p": lambda row: sign_p(row, "q"),
        f"dPQ {CI}": lambda row: scored(row, "dpq", "pq", 1),
        "n": size,
    }
    return build(table, columns)


def length_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show net win rates as they are, of pairs of equal length, and of the model at equal length."""
    columns = {
        "row": lambda row: row["label"],
        "rubric": lambda row: row["rubric"],
        "words, tested / base": lambda row: f"{row['words_tested']:.1f} / {row['words_base']:.1f}",
        f"net {CI}": lambda row: with_interval(row, "net", 2, True),
        f"net, pairs of equal length {CI}": lambda row: with_interval(row, "net_matched", 2, True),
        f"net at equal length, model {CI}": lambda row: (
            with_interval(row, "net_controlled", 2, True) or f"no fit: {row['why']}"
        ),
        f"slope {CI}": lambda row: with_interval(row, "slope", 2, True),
        "decided: all / equal length": lambda row: f"{row['n_decided']:.0f} / {row['n_matched_decided']:.0f}",
        "n": size,
    }
    return build(table, columns)


def by_seed_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show the main rows seed by seed."""
    columns = {
        "row": lambda row: row["label"],
        "seed": lambda row: row["seed"],
        shares_head(table, "personalization"): lambda row: shares(row, "p"),
        shares_head(table, "quality"): lambda row: shares(row, "q"),
        "dPQ": lambda row: number(row["dpq"], 1, True),
        "n": lambda row: str(row["n"]),
    }
    return build(table, columns)


def over_seeds_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show the means over seeds with their t intervals."""
    head = "[95 % t interval over seeds]"
    columns = {
        "row": lambda row: row["label"],
        f"personalization net {head}": lambda row: with_interval(row, "p_net", 2, True),
        f"quality net {head}": lambda row: with_interval(row, "q_net", 2, True),
        f"dPQ {head}": lambda row: with_interval(row, "dpq", 1, True),
        "n": size,
    }
    return build(table, columns)


def primary_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show each aim, what was measured, and whether it was met."""

    def measured(row: Any) -> str:
        values = [number(row[name], 1 if "dPQ" in row["aim"] else 2) for name in ("estimate", "low", "high")]
        return f"{values[0]} [{values[1]}, {values[2]}]" if values[0] else ""

    columns = {
        "aim": lambda row: row["aim"],
        "where": lambda row: row["where"],
        "met": lambda row: row["met"],
        f"measured {CI}": measured,
        "criterion": lambda row: row["criterion"],
        "n": size,
    }
    return build(table, columns)


def side_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show rejected minus chosen personas."""
    columns = {
        "personas": lambda row: row["personas"],
        f"dPQ {CI}": lambda row: with_interval(row, "dpq", 1, True),
        f"personalization net {CI}": lambda row: with_interval(row, "p_net", 2, True),
        f"quality net {CI}": lambda row: with_interval(row, "q_net", 2, True),
        "n": size,
    }
    return build(table, columns)


def ladder_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show what each training stage reaches, with and without persona tailoring."""
    columns = {
        "method": lambda row: row["method"],
        "trained with personas": lambda row: "yes" if row["arm"] == "PT" else "no",
        "personas": lambda row: row["persona"],
        "measure": lambda row: row["measure"],
        f"value {CI}": lambda row: with_interval(row, "value", 2),
        f"mean quality {CI}": lambda row: with_interval(row, "quality", 2) if "quality" in row else "",
        "n": size,
    }
    return build(table, columns)


def paper_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show the paper's own ten rows and their average; intervals and tests are ours, from its counts."""
    columns = {
        "row": lambda row: f"{row['dataset']}, {row['label']}" if row["kind"] == "paper" else row["label"],
        "personalization W / T / L %": lambda row: shares(row, "p"),
        "quality W / T / L %": lambda row: shares(row, "q"),
        "personalization p, Holm p": lambda row: sign_p(row, "p"),
        "quality p, Holm p": lambda row: sign_p(row, "q"),
        f"dPQ {CI}": lambda row: with_interval(row, "dpq", 1, True),
        "widest interval": widest,
        "dPQ p, Holm p": lambda row: p_values(row, "dpq_p", "dpq_holm"),
        "the same, widest": lambda row: p_values(row, "dpq_p_widest", "dpq_holm_widest"),
        "n": size,
    }
    return build(table, columns, name_dataset=False)


def beside_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show each number of the paper beside ours, and whether the two may be compared."""
    names = {"place": "in the paper", "paper": "paper's number", "ours": f"ours {CI}", "size": "n",
             "profile": "profile", "comparable": "comparable?", "why": "why, or why not",
             "at_scale": "profile `paper`"}  # fmt: skip
    return table.fillna("").rename(columns=names)[list(names.values())]


def rejudged_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show the released answers as our judges see them, each above the paper's row for the same files."""
    columns = {
        "row": lambda row: f"{row['dataset']}, {row['label']}",
        "judge": lambda row: row["judge"],
        shares_head(table, "personalization"): lambda row: shares(row, "p"),
        shares_head(table, "quality"): lambda row: shares(row, "q"),
        "unparsed P / Q": lambda row: unparsed(row) if row["kind"] == "judged again" else "",
        f"dPQ {CI}": lambda row: with_interval(row, "dpq", 1, True),
        "n": size,
    }
    return build(table, columns, name_dataset=False)


def agreement_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show how far two judges agree per rubric; unparsed comparisons are counted and left out."""
    columns = {
        "rubric": lambda row: row["rubric"],
        "judges": lambda row: f"{row['first']}; {row['second']}",
        f"same verdict {CI}": lambda row: with_interval(row, "agreement"),
        f"Cohen's kappa {CI}": lambda row: with_interval(row, "kappa", 2, True),
        f"same, where both decide {CI}": lambda row: with_interval(row, "agreement_decided"),
        "both decide": lambda row: number(row["n_decided"], 0),
        "unparsed by first / second": lambda row: f"{row['first_unparsed']} / {row['second_unparsed']}",
        "n": size,
    }
    return build(table, columns)
