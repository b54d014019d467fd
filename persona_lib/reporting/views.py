"""How saved tables are shown to a reader: rounded, with intervals, counts and plain column names.

The notebook, the report and the documents use the same views. A view maps a saved table to one of text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from persona_lib.data.official import DATASETS
from persona_lib.reporting.results_tests import with_tests

if TYPE_CHECKING:
    import pandas as pd

LABELS = {  # whose numbers they are
    "synthetic": "synthetic world",
    "authors": "authors' data",
    "own": "own data",
    "paper": "paper's own numbers",
}
CI = "[95 % interval]"
MINUS = "\N{MINUS SIGN}"
SMALLEST_P = 1e-15  # smaller p-values say no more than this


def world_of(dataset: str) -> str:
    """Say whose data a number is measured on."""
    if dataset == "synthetic":
        return LABELS["synthetic"]
    return LABELS["authors"] if dataset in DATASETS else LABELS["own"]


def title_of(dataset: str) -> str:
    """Return a data set's title for readers; a synthetic one says what it is."""
    return DATASETS[dataset]["title"] if dataset in DATASETS else dataset


# --- cells ---


def number(value: Any, digits: int = 2, sign: bool = False) -> str:
    """Format a number; "" for None or NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("+-")


def with_interval(row: Any, name: str, digits: int = 2, sign: bool = False) -> str:
    """Format "estimate [low, high]"; "" where there is no estimate."""
    estimate = number(row[name], digits, sign)
    low, high = (number(row[f"{name}_{end}"], digits, sign) for end in ("low", "high"))
    return f"{estimate} [{low}, {high}]" if estimate and low else estimate


def span(row: Any, name: str, digits: int = 2) -> str:
    """Say an estimate with its interval."""
    values = [number(getattr(row, f"{name}{end}"), digits) for end in ("", "_low", "_high")]
    return f"{values[0]} ({values[1]} to {values[2]})" if values[1] else values[0]


def shares(row: Any, rubric: str) -> str:
    """Format W/T/L in per cent of the parsed comparisons; "" for the average row.

    Where it is known how often the judge contradicts itself, that is a fourth share, taken from the ties.
    """
    counts = [row[f"{rubric}_{verdict}"] for verdict in ("win", "tie", "loss")]
    contradicted = row.get(f"{rubric}_inconsistent", math.nan)
    n = sum(counts)
    if math.isnan(n) or not n:
        return ""
    if not math.isnan(contradicted):
        counts = [counts[0], counts[1] - contradicted, counts[2], contradicted]
    return " / ".join(f"{100 * count / n:.1f}" for count in counts)


def shares_head(table: pd.DataFrame, rubric: str) -> str:
    """Name the column of ``shares``; published counts do not tell ties from contradictions."""
    known = f"{rubric[0]}_inconsistent" in table
    return f"{rubric} W / T / L{' / contradicted' if known else ''} %"


def scored(row: Any, name: str, rubrics: str, digits: int) -> str:
    """Format a net win rate or dPQ with its interval; says so where nothing is decided under a rubric."""
    undecided = [r for r in rubrics if row[f"{r}_win"] + row[f"{r}_loss"] == 0]
    return "undefined: nothing decided" if undecided else with_interval(row, name, digits, True)


def p_values(row: Any, *names: str) -> str:
    """Format p-values, separated by commas; "" for a row without (an average)."""
    values = [row[name] for name in names]
    if any(math.isnan(p) for p in values):
        return ""
    return ", ".join(
        f"{p:.{3 if p >= 0.001 else 2}g}" if p >= SMALLEST_P else f"< {SMALLEST_P:g}" for p in values
    )


def sign_p(row: Any, rubric: str) -> str:
    """Format the p of the sign test and Holm's."""
    return p_values(row, f"{rubric}_sign", f"{rubric}_holm")


def size(row: Any) -> str:
    """Format n with the number of seeds."""
    if math.isnan(row["n"]):
        return ""
    seeds = row.get("n_seeds")
    return f"{row['n']:.0f}" + (f" ({seeds:.0f} seed{'s' if seeds > 1 else ''})" if seeds else "")


def unparsed(row: Any) -> str:
    """Format the numbers of comparisons that the judge left unparsed, personalization and quality."""
    counts = [row[f"{rubric}_unparsed"] for rubric in "pq"]
    return "" if math.isnan(counts[0]) else " / ".join(f"{count:.0f}" for count in counts)


def build(
    table: pd.DataFrame, columns: dict[str, Callable[[Any], str]], name_dataset: bool = True
) -> pd.DataFrame:
    """Make a table of text from a function per column; the data set is named if there are several."""
    import pandas as pd

    if name_dataset and "dataset" in table and len(set(table.dataset) - {"all"}) > 1:
        columns = {"data set": lambda row: title_of(row["dataset"])} | columns
    rows = [{name: make(row) for name, make in columns.items()} for _, row in table.iterrows()]
    return pd.DataFrame(rows, columns=list(columns))


# --- views ---


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
        "seed (base)": lambda row: f"{row['seed']} ({row['base_seed']})",
        shares_head(table, "personalization"): lambda row: shares(row, "p"),
        shares_head(table, "quality"): lambda row: shares(row, "q"),
        "dPQ": lambda row: number(row["dpq"], 1, True),
        "n": lambda row: str(row["n"]),
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


def accuracy_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show persona accuracy per side with its counts."""
    counts = ("n_correct", "n_ties", "n_wrong", "n_unparsed", "n_missing")
    columns = {
        "split": lambda row: row["split"],
        "personas": lambda row: row["side"],
        f"accuracy {CI}": lambda row: with_interval(row, "accuracy", 3),
        "correct / tie / wrong / unparsed / no persona": lambda row: (
            " / ".join(number(row[name], 0) for name in counts) if not math.isnan(row["n"]) else ""
        ),
        "n": size,
    }
    return build(table, columns)


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


def swap_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show persona-swap accuracy; margins of one answer alone stand beside the swap, which is what counts."""
    columns = {
        "policy": lambda row: f"{row['arm']}, {row['persona_format']}",
        "measure": lambda row: row["measure"],
        "personas": lambda row: row["persona"],
        f"share D > 0 {CI}": lambda row: with_interval(row, "d_positive", 3),
        f"flip {CI}": lambda row: with_interval(row, "flip", 3),
        "Acc_C": lambda row: number(row["acc_chosen"], 3),
        "Acc_R": lambda row: number(row["acc_rejected"], 3),
        "n": size,
    }
    return build(table, columns)


def swap_length_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show share D > 0 by which response is longer, policy log-probabilities."""
    columns = {
        "policy": lambda row: f"{row['arm']}, {row['persona_format']}",
        "personas": lambda row: row["persona"],
        f"chosen longer {CI}": lambda row: with_interval(row, "chosen_longer", 3),
        f"rejected longer {CI}": lambda row: with_interval(row, "rejected_longer", 3),
        f"balanced {CI}": lambda row: with_interval(row, "balanced", 3),
        "n, chosen / rejected longer": lambda row: f"{row['n_chosen_longer']} / {row['n_rejected_longer']}",
    }
    return build(table[table.measure == "policy"], columns)


def swap_seed_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show persona-swap accuracy seed by seed, gold and shuffled personas, policy log-probabilities."""
    kept = table[(table.measure == "policy") & table.persona.isin(["gold", "shuffled"])]
    columns = {
        "policy": lambda row: f"{row['arm']}, {row['persona_format']}",
        "personas": lambda row: row["persona"],
        "seed": lambda row: str(row["seed"]),
        "share D > 0": lambda row: number(row["d_positive"], 3),
        "flip": lambda row: number(row["flip"], 3),
        "n": lambda row: str(row["n"]),
    }
    return build(kept, columns)


def difference_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show differences of persona-swap accuracy between two policies."""
    columns = {
        "policy": lambda row: row["tested"],
        "minus": lambda row: row["compared"],
        "measure": lambda row: row["measure"],
        "personas": lambda row: row["persona"],
        f"share D > 0 {CI}": lambda row: with_interval(row, "d_positive", 3, True),
        f"flip {CI}": lambda row: with_interval(row, "flip", 3, True),
        "n": size,
    }
    return build(table, columns)


def flip_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show flip and difference in differences of generated answers."""
    columns = {
        "policy": lambda row: (
            f"{row['arm']}, {row['persona_format']}" if "persona_format" in row else row["arm"]
        ),
        "personas": lambda row: row["persona"] if "persona" in row else row["personas"],
        f"flip {CI}": lambda row: with_interval(row, "flip", 3),
        f"DiD {CI}": lambda row: with_interval(row, "did", 3, True),
        f"share DiD > 0 {CI}": lambda row: with_interval(row, "did_positive", 3),
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


def plain_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show a table as it is, numbers to four digits."""
    return table.map(lambda v: f"{v:.4g}" if isinstance(v, float) and v == v else "" if v != v else str(v))


def axes_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show what a change of world or training does: oracle fit of both arms, and what tailoring gains."""
    columns = {
        "change": lambda row: row["change"],
        f"fit, plain DPO {CI}": lambda row: with_interval(row, "fit_plain"),
        f"fit, PT-DPO {CI}": lambda row: with_interval(row, "fit_tailored"),
        f"fit gained {CI}": lambda row: with_interval(row, "fit_gain", sign=True),
        f"quality gained, SD {CI}": lambda row: with_interval(row, "quality_gain_sd", sign=True),
        "n": size,
        "seeds": lambda row: str(row["seeds"]),
    }
    return build(table, columns, name_dataset=False)


def faults_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show a fault, the setting that repeats it, the fits under it and the changes that it brings."""

    def change(name: str, digits: int = 2) -> Callable[[Any], str]:
        def cell(row: Any) -> str:
            if row["change"] == "as-is":
                return with_interval(row, name, digits)
            return with_interval(row, f"{name}_change", digits, True)

        return cell

    columns = {
        "fault (where in their code)": lambda row: row["what"],
        "setting": lambda row: row["setting"] if isinstance(row["setting"], str) else "",
        f"fit, plain DPO {CI}": lambda row: with_interval(row, "fit_plain"),
        f"fit, PT-DPO {CI}": lambda row: with_interval(row, "fit_tailored"),
        f"change: fit gained {CI}": change("fit_gain"),
        f"quality gained, SD {CI}": change("quality_gain_sd"),
        f"dPQ {CI}": change("dpq", 1),
        f"share of ties {CI}": change("ties"),
        f"flip, plain DPO {CI}": change("flip_plain"),
        f"flip, PT-DPO {CI}": change("flip_tailored"),
        "n": size,
        "seeds": lambda row: row["seeds"] if isinstance(row["seeds"], str) else "",
    }
    return build(table, columns, name_dataset=False)


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


def widest(row: Any) -> str:
    """Format the limits of dPQ if the two verdicts of a pair agree as often as the counts allow."""
    low, high = (number(row[f"dpq_{end}_widest"], 1, True) for end in ("low", "high"))
    return f"[{low}, {high}]"


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


def persona_shown(name: str, style: str) -> str:
    """Add to a persona's or policy's name how the persona is shown, if not in the policy's own line."""
    return name + (", first person" if style == "first_person" else "")


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


def p_value(p: float) -> str:
    """Format a p-value to two digits that mean something."""
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


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


def noise_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show leakage and format noise of answers, in per cent of the answers."""

    def percent(row: Any, *names: str) -> str:
        return " / ".join("" if row[name] is None else number(100 * row[name], 1) for name in names)

    columns = {
        "policy": lambda row: row["arm"],
        "shown persona": lambda row: persona_shown(row["eval_persona"], row["persona_format"]),
        "copies the persona / another's, %": lambda row: percent(row, "copies_persona", "copies_other"),
        "names a persona, %": lambda row: percent(row, "names_persona"),
        "role at the start / inside, %": lambda row: percent(row, "role_start", "role_inside"),
        "lists / template tokens, %": lambda row: percent(row, "list", "template"),
        "no end / loops, %": lambda row: percent(row, "endless", "repeats"),
        "words: median, mean": lambda row: f"{row['words_median']:.0f}, {row['words_mean']:.1f}",
        "n": size,
    }
    return build(table, columns)


def steering_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show how far personas steer length."""
    columns = {
        "policy": lambda row: (
            row["arm"] + (", first person" if row["persona_format"] == "first_person" else "")
        ),
        "personas": lambda row: row["persona"],
        f"Spearman's rho {CI}": lambda row: with_interval(row, "rho", 2, True),
        "n": size,
    }
    return build(table, columns)


def reward_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show accuracy of policies as reward models, by persona and category."""
    columns = {
        "policy": lambda row: (
            row["arm"] + (", first person" if row["persona_format"] == "first_person" else "")
        ),
        "measure": lambda row: row["measure"],
        "personas": lambda row: row["persona"],
        "category": lambda row: row["category"],
        f"accuracy {CI}": lambda row: with_interval(row, "accuracy"),
        "chosen under P_C / rejected under P_R": lambda row: " / ".join(
            filter(None, (number(row["acc_chosen"]), number(row["acc_rejected"])))
        ),
        "n": size,
    }
    return build(table, columns)


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


VIEWS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "primary": primary_view,
    "main": judged_view,
    "side_difference": side_view,
    "stage": judged_view,
    "methods": judged_view,
    "arms": judged_view,
    "controls": judged_view,
    "ladder": ladder_view,
    "main_by_seed": by_seed_view,
    "persona_accuracy": accuracy_view,
    "persona_preference": preference_view,
    "words": words_view,
    "swap": swap_view,
    "swap_differences": difference_view,
    "swap_by_seed": swap_seed_view,
    "swap_length": swap_length_view,
    "generation_flip": flip_view,
    "released_flip": flip_view,
    "paper": paper_view,
    "beside": beside_view,
    "filtered": filtered_view,
    "length": length_view,
    "second_judge": judged_view,
    "judge_agreement": agreement_view,
    "released_judged": rejudged_view,
    "released_agreement": agreement_view,
    "persona_text": persona_text_view,
    "released_personas": persona_text_view,
    "released_words": words_table_view,
    "ratings": ratings_view,
    "rating_agreement": rating_agreement_view,
    "not_run": plain_view,
    "selection_sft": plain_view,
    "selection_dpo": plain_view,
    "axes": axes_view,
    "released_safety": safety_view,
    "released_safety_pairs": safety_pairs_view,
    "released_safety_error": safety_error_view,
    "released_noise": noise_view,
    "answer_noise": noise_view,
    "length_steering": steering_view,
    "reward_accuracy": reward_view,
    "safety": safety_view,
    "safety_pairs": safety_pairs_view,
    "arms_run": plain_view,
    "faults": faults_view,
}


def show(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return a saved table as text for readers; empty if the table is."""
    return VIEWS[name](table) if len(table) else table


# --- formats ---


def to_markdown(table: pd.DataFrame) -> str:
    """Return a table as GitHub Markdown; bars and line breaks in cells are escaped."""

    def line(cells: Any) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    return "\n".join([line(table.columns), line("---" for _ in table.columns), *map(line, table.to_numpy())])


def to_html(table: pd.DataFrame, caption: str) -> str:
    """Return a table as HTML with a caption; all text is escaped, line breaks are kept by the style."""
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in table.columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in table.to_numpy()
    )
    return (f'<div class="wide"><table><caption>{html.escape(caption)}</caption>'
            f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>")  # fmt: skip
