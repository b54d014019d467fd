"""Cells of tables as text: numbers, intervals, counts; and whole tables as Markdown and HTML."""

from __future__ import annotations

import dataclasses
import html
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib import weights
from persona_lib.beyond import ratings
from persona_lib.beyond.calibration import BELIEVED, corrected_net, persona_accuracy
from persona_lib.beyond.ratings import (
    TEXTS,
    Filled,
    export,
    items_to_rate,
    number_items,
    open_csv,
    rating_tables,
    read_filled,
    read_key,
)
from persona_lib.data import everyday, intake
from persona_lib.data.everyday import DIMENSIONS
from persona_lib.data.official import DATASETS
from persona_lib.data.preference import (
    has_personas,
    inference_pairs,
    inference_split,
    to_dpo_rows,
    to_sft_rows,
)
from persona_lib.data.reader import shows
from persona_lib.intervals import (
    Interval,
    PersonaAccuracy,
    WinRate,
    accuracy_array,
    bootstrap_mean,
    delta_pq,
    wilson_interval,
)
from persona_lib.models.generate import TransformersGenerator
from persona_lib.models.load import format_of, load_base, load_tokenizer, model_key
from persona_lib.models.served import NAME as SURFACE
from persona_lib.paper.answers import (
    BROKEN,
    Matchup,
    eval_rows,
    generation_folder,
    grid,
    matchups,
    read_generations,
)
from persona_lib.paper.judges import RUBRICS, persona_judge_of
from persona_lib.paper.judging import (
    answer_own,
    compare,
    judged_matchups,
    judgment_folder,
    missing_policies,
    oracle_scores,
    read_verdicts,
)
from persona_lib.paper.personas import (
    WordSaliency,
    accuracy_verdicts,
    count_statuses,
    inference_shots,
    persona_texts,
    preference_verdicts,
    read_personas,
    sides_of,
    word_saliency,
)
from persona_lib.paper.results import inconsistent
from persona_lib.prompts import STOP, inference_prompt, tailoring_prompt
from persona_lib.records import (
    EVAL_PERSONAS,
    SIDES,
    InferredPersona,
    PreferencePair,
    RunSpec,
    Side,
    TailoringRow,
)
from persona_lib.settings import FACTS, REPO, Profile, Run, load_profile, main_arm, results_dir
from persona_lib.store import iter_rows, read_json, read_rows, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


# --- Cells of tables as text: numbers, intervals, counts; and whole tables as Markdown and HTML ---


LABELS = {  # whose numbers they are
    "everyday": "our pairs",
    "authors": "authors' data",
    "own": "own data",
    "paper": "paper's own numbers",
}
CI = "[95 % interval]"
MINUS = "\N{MINUS SIGN}"
SMALLEST_P = 1e-15  # smaller p-values say no more than this


def owner_of(dataset: str) -> str:
    """Say whose data a number is measured on."""
    if dataset == "everyday":
        return LABELS["everyday"]
    return LABELS["authors"] if dataset in DATASETS else LABELS["own"]


def title_of(dataset: str) -> str:
    """Return a data set's title for readers."""
    return DATASETS[dataset]["title"] if dataset in DATASETS else dataset


def persona_shown(name: str, style: str) -> str:
    """Add to a persona's or policy's name how the persona is shown, if not in the policy's own line."""
    return name + (", first person" if style == "first_person" else "")


def widest(row: Any) -> str:
    """Format the limits of dPQ if the two verdicts of a pair agree as often as the counts allow."""
    low, high = (number(row[f"dpq_{end}_widest"], 1, True) for end in ("low", "high"))
    return f"[{low}, {high}]"


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


def p_value(p: float) -> str:
    """Format a p-value to two digits that mean something."""
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


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


# --- How saved tables are shown to a reader ---
# The notebooks, the report and the documents use the same views. ``facts/views.yaml`` lists, per table,
# heading and column. A column ``x`` with ``x_low`` and ``x_high`` beside it becomes "x [low, high]"; a name
# of ``CELLS`` is a cell that is made of more than one column.


SIGNED = ("p_net", "q_net", "net", "dpq", "quality_sd", "net_matched", "net_controlled", "slope", "did",
          "rho", "kappa", "log_odds", "z", "difference", "difference_cut", "minus_dpo_p")  # fmt: skip
DIGITS = {"dpq": 1, "z": 1, "words_mean": 1, "words_tested": 1, "words_base": 1, "p_holm": 3, "flip": 3,
          "d_positive": 3, "did": 3, "did_positive": 3, "balanced": 3,
          "share": 3, "corrected": 3}  # fmt: skip


def one_decimal_for_dpq(row: Any) -> str:
    """Format what was measured for an aim; dPQ is in points."""
    digits = 1 if "dPQ" in row["aim"] else 2
    values = [number(row[name], digits) for name in ("estimate", "low", "high")]
    return f"{values[0]} [{values[1]}, {values[2]}]" if values[0] else ""


CELLS: dict[str, Callable[[Any], str]] = {
    "n": size,
    "p shares": lambda row: shares(row, "p"),
    "q shares": lambda row: shares(row, "q"),
    "p scored": lambda row: scored(row, "p_net", "p", 2),
    "q scored": lambda row: scored(row, "q_net", "q", 2),
    "dpq scored": lambda row: scored(row, "dpq", "pq", 1),
    "p sign": lambda row: sign_p(row, "p"),
    "q sign": lambda row: sign_p(row, "q"),
    "dpq p": lambda row: p_values(row, "dpq_p", "dpq_holm"),
    "dpq widest": widest,
    "unparsed counts": lambda row: "" if row.get("kind") == "paper" else unparsed(row),
    "measured interval": one_decimal_for_dpq,
    "policy told": lambda row: persona_shown(row["arm"], row.get("persona_format", "line")),
    "persona told": lambda row: persona_shown(row["eval_persona"], row["persona_format"]),
    "row of": lambda row: ", ".join(v for v in (row["dataset"], row["label"]) if v != "all"),
    "compared shows": lambda row: f"{row['compared']}, {'none' if row['shows'] == 'none' else row['shows']}",
    "mcnemar p": lambda row: (
        f"{p_value(row['p'])} ({p_value(row['p_holm'])})" if row["p"] == row["p"] else ""
    ),
    "model fit": lambda row: with_interval(row, "net_controlled", 2, True) or f"no fit: {row['why']}",
    "decides yes": lambda row: "yes" if row["decides"] else "no",
}
INTERVALS = ("p scored", "q scored", "dpq scored", "model fit", "measured interval")  # have one in the cell


@cache
def columns_of() -> dict[str, dict[str, str | list[str]]]:
    """Return what is shown of each table: heading -> column, or columns that stand in one cell."""
    import yaml

    return yaml.safe_load((FACTS / "views.yaml").read_text(encoding="utf-8"))


def cell(row: Any, name: str, signed: tuple[str, ...] = SIGNED) -> str:
    """Format one column of a row: an estimate with its interval, a number, or a text."""
    value = row[name]
    if f"{name}_low" in row:
        sign = name in signed or " - " in str(row.get("side", "")) + str(row.get("group", ""))
        return with_interval(row, name, DIGITS.get(name, 2), sign)
    if isinstance(value, float) and 0 < abs(value) < 0.005 and name not in DIGITS:
        return f"{value:.1g}"
    if isinstance(value, float):
        whole = value.is_integer() and name not in DIGITS
        return number(value, 0 if whole else DIGITS.get(name, 2), name in signed)
    return str(value)


def render(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return a saved table as text for readers; empty if the table is.

    Columns that a table lacks are left out, and so are counts of contradictions where there are none.
    """
    if table.empty:
        return table
    if name not in columns_of():
        return build(table, {c: (lambda row, c=c: cell(row, c, ())) for c in table.columns}, False)
    if "n_contradicted" in table and not table.n_contradicted.gt(0).any():
        table = table.drop(columns="n_contradicted")
    columns: dict[str, Callable[[Any], str]] = {}
    for heading, content in columns_of()[name].items():
        names = [content] if isinstance(content, str) else content
        if names[0] in CELLS:
            rubric = {"p shares": "personalization", "q shares": "quality"}.get(names[0])
            title = shares_head(table, rubric) if rubric else heading
            columns[f"{title} {CI}" if names[0] in INTERVALS else title] = CELLS[names[0]]
            continue
        if not all(one in table for one in names):
            continue
        title = f"{heading} {CI}" if f"{names[0]}_low" in table else heading
        columns[title] = lambda row, names=names: join([cell(row, one) for one in names])
    whole = name in ("paper", "released_judged", "released_words")
    return build(table, columns, name_dataset=not whole)


def join(cells: list[str]) -> str:
    """Return cells side by side; "" if all are empty."""
    return " / ".join(cells) if any(cells) else ""


# --- What we saw: the words at the end of a notebook, written from the numbers above them ---
# Whether something is more, less or not clearly different is decided by a 95 % interval and nothing else,
# so the words hold for whatever profile was run. One seed is one draw: intervals here are over the items of
# one seed; notebook 12 has those over seeds.


HALF = ("less than half", "not clearly different from half", "more than half")
SAME_ANSWERS = ("sft-chosen", "sft-inferred", "sft-shuffled")  # as sft-none: the chosen responses
LIKED = "chosen has what most like"  # a column of ``show.contrast_table``
ONE_SEED = "(one seed; no interval, since losses of single rows are not kept)"


# --- words and numbers ---


def against(low: float, high: float, value: float, words: Sequence[str] = HALF) -> str:
    """Return the first, second or third phrase: the interval lies below the value, holds it, lies above."""
    return words[0] if high < value else words[2] if low > value else words[1]


def share(successes: float, n: float) -> str:
    """Say a share of n with its 95 % Wilson interval."""
    low, high = wilson_interval(round(successes), round(n))
    return f"{successes / n:.2f} [{low:.2f}, {high:.2f}] of {n:.0f}" if n else "none (n = 0)"


def between(estimate: float, low: float, high: float, form: str = ".2f") -> str:
    """Say an estimate with its 95 % interval."""
    return f"{estimate:{form}} [{low:{form}}, {high:{form}}]"


def interval_text(interval: Interval) -> str:
    """Say a bootstrap estimate with its interval."""
    return f"{interval.estimate:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}], n = {interval.n_items}"


def listed(sentences: Iterable[str]) -> str:
    """Return sentences as a list in Markdown; without any, say so."""
    return "\n".join(f"- {sentence}" for sentence in sentences) or "- nothing to say of this profile"


# --- data (notebooks 01 and 05) ---


def preference_data(contrast: pd.DataFrame, card: pd.DataFrame, majority_share: float) -> str:
    """Say whom the chosen responses serve, and whether length gives them away."""
    said = []
    words = [
        f"{word} the profile's majority_share, {majority_share:g}"
        for word in ("below", "not clearly different from", "above")
    ]
    n, liked = int(contrast.pairs.sum()), (contrast.pairs * contrast[LIKED]).sum()
    if n:
        verdict = against(*wilson_interval(round(liked), n), majority_share, words)
        said.append(f"The chosen response has what most users like in {share(liked, n)}; {verdict}.")
    for split, row in card[card.rows > card["without responses"]].iterrows():
        n = row.rows - row["without responses"]
        longer = row["chosen longer"] * n
        verdict = against(*wilson_interval(round(longer), int(n)), 0.5)
        said.append(f"{split}: the chosen response has more words in {share(longer, n)}, {verdict}.")
    return listed(said)


def tailoring_data(rows: Mapping[str, list[TailoringRow]], split: str, report: pd.DataFrame) -> str:
    """Say what leaked (nothing), and how often a borrowed persona is the prompt's own one."""
    said = [f"Of {report.must_be_zero.sum()} kinds of leaks that must not be, "
            f"{(report[report.must_be_zero].found > 0).sum()} occur."]  # fmt: skip
    for side in ("chosen", "rejected"):
        names = (f"gold-{side}", f"retrieved-{side}")
        both = [pair for row in rows[split] if all(pair := [row.personas.get(name) for name in names])]
        same = sum(gold == borrowed for gold, borrowed in both)
        verdict = against(*wilson_interval(same, len(both)), 0.5)
        said.append(f"{side} side: the borrowed persona equals the prompt's own one in "
                    f"{share(same, len(both))}, {verdict}.")  # fmt: skip
    return listed(said)


# --- training (notebooks 02, 06, 07) ---


def base_model(answers: pd.DataFrame) -> str:
    """Say how far the untrained model follows the personas that it was told; from ``show_base``."""
    changed = answers.groupby("question").answer.nunique() > 1
    right = int((answers.wished == answers.shown).sum())
    return listed([
        f"Told the other persona, the untrained model writes another answer to {changed.sum()} of "
        f"{len(changed)} questions.",
        f"Its answer shows the value that the persona wishes in {share(right, len(answers))}. So few answers "
        "only illustrate; notebook 09 compares policies on the whole test split.",
    ])  # fmt: skip


def kept_epochs(history: pd.DataFrame) -> pd.DataFrame:
    """Return the kept epoch of every arm, by arm."""
    kept = history[history.kept.astype(bool)].reset_index()
    return kept.drop_duplicates("arm").set_index("arm")


def supervised(history: pd.DataFrame) -> str:
    """Say what the persona is worth: the loss of arms that write the same answers against the plain one's."""
    kept = kept_epochs(history)
    plain = kept["validation loss"].get("sft-none")
    said = []
    for arm, row in kept.iterrows():
        text = (
            f"{arm}: epoch {row.epoch:g} was kept, validation loss {row['validation loss']:.3f} nats a token"
        )
        gain = 0 if plain is None else plain - row["validation loss"]
        if gain and arm in SAME_ANSWERS:
            text += f", {abs(gain):.3f} {'below' if gain > 0 else 'above'} that of sft-none {ONE_SEED}"
        said.append(f"{text}.")
    return listed(said)


def preference(history: pd.DataFrame, counts: pd.DataFrame) -> str:
    """Say in how many validation pairs the policy moved towards the preferred answer."""
    said = []
    for arm, row in kept_epochs(history).iterrows():
        n = counts.loc[(arm, "val"), "rows"] - counts.loc[(arm, "val"), "dropped"]
        right = row["validation reward accuracy"] * n
        verdict = against(*wilson_interval(round(right), int(n)), 0.5)
        said.append(f"{arm}: epoch {row.epoch:g} was kept; it moved towards the preferred answer in "
                    f"{share(right, n)} validation pairs, {verdict}.")  # fmt: skip
    return listed(said)


# --- What we saw in notebooks 04 and 11 to 16, said from their tables; see ``reading.saw`` ---


MORE = ("lower", "not clearly different", "higher")
ABOUT_ZERO = ("below 0", "not clearly different from 0", "above 0")


def persona_quality(items: pd.DataFrame, preference: pd.DataFrame, split: str) -> str:
    """Say how accurate each side's personas of a split are, and whose personas are of likelier users."""
    if items.empty:
        return listed(["Nobody judged the personas: the profile has no judge of them."])
    part = items[items.split == split].astype({"verdict": object})
    right = {
        side: dict(zip(found.id, accuracy_array(found.verdict), strict=True))
        for side, found in part.groupby("side")
    }
    said = []
    for side in SIDES:
        interval = bootstrap_mean([np.array(list(right[side].values()))])
        if interval.estimate is not None and interval.low is not None and interval.high is not None:
            said.append(f"{side} side: accuracy {between(interval.estimate, interval.low, interval.high)}, "
                        f"n = {interval.n_items}, {against(interval.low, interval.high, 0.5)}.")  # fmt: skip
    both = sorted(right["chosen"].keys() & right["rejected"].keys())
    gap = bootstrap_mean([np.array([right["chosen"][i] - right["rejected"][i] for i in both])])
    if gap.low is not None and gap.high is not None:
        said.append(f"Chosen minus rejected, by pair: {interval_text(gap)}; chosen personas' accuracy is "
                    f"{against(gap.low, gap.high, 0, MORE)}.")  # fmt: skip
    wins, losses = (int(preference[name].sum()) for name in ("P_C", "P_R"))
    if wins + losses:
        verdict = against(*wilson_interval(wins, wins + losses), 0.5)
        said.append(f"The persona of the chosen response is the likelier user in "
                    f"{share(wins, wins + losses)} decided pairs, {verdict}.")  # fmt: skip
    return listed(said)


def swap(table: pd.DataFrame, families: Sequence[str] = ("gold", "retrieved", "shuffled")) -> str:
    """Say, per policy after DPO and kind of persona, whether its preference follows the persona's side."""
    kept = table[(table.measure == "policy") & table.persona.isin(families) & table.d_positive.notna()]
    said = []
    for _, row in kept[kept.arm.str.startswith("dpo-")].iterrows():
        told = "" if row.persona_format == "line" else ", told in the first person"
        verdict = against(row.d_positive_low, row.d_positive_high, 0.5)
        found = between(row.d_positive, row.d_positive_low, row.d_positive_high)
        said.append(
            f"{row.arm}{told}, {row.persona} personas: D > 0 in {found} of {row.n:.0f} rows, {verdict}."
        )
    return listed(said)


def aims(primary: pd.DataFrame) -> str:
    """Say how many aims are met, and name every aim that is not; a run on own data may have none."""
    if primary.empty:
        return "- No aims were set beforehand for this profile's data."
    met, unmet, missing = (int((primary.met == word).sum()) for word in ("yes", "no", "not run"))
    said = [f"Of {met + unmet} aims that this run can decide, {met} are met and {unmet} are not; "
            f"{missing} need arms or data that it lacks."]  # fmt: skip
    for _, row in primary[primary.met == "no"].iterrows():
        said.append(f"Not met: {row.aim}, {row['where']}: {measured(row)}; aimed at: {row.criterion}.")
    for _, row in primary[primary.met == "reported"].iterrows():
        verdict = "" if row["aim"].startswith("PT-DPO") else f", {against(row.low, row.high, 0, ABOUT_ZERO)}"
        said.append(f"Reported: {row.aim}, {row['where']}: {measured(row)}{verdict}.")
    return listed(said)


def measured(row: Any) -> str:
    """Say what was measured for an aim."""
    return f"{between(row.estimate, row.low, row.high)}, n = {row.n:.0f}"


def released_flip(table: pd.DataFrame) -> str:
    """Say, per kind of personas and policy, how often an answer's side turns with the persona, and DiD."""
    said = []
    for _, row in table.iterrows():
        flip, did = ([row[f"{name}{end}"] for end in ("", "_low", "_high")] for name in ("flip", "did"))
        said.append(
            f"{row.dataset}, {row.personas} personas, {row.arm}: flip {between(*flip, '.3f')}, "
            f"DiD {between(*did, '+.3f')}, n = {row.n:.0f}, {against(did[1], did[2], 0, ABOUT_ZERO)}."
        )
    return listed(said)


def say_ratings(table: pd.DataFrame) -> str:
    """Say in which questions raters put the two groups of a study apart."""
    said = []
    for _, row in table[table.group.str.contains(" - ")].iterrows():
        verdict = against(row.mean_low, row.mean_high, 0, ABOUT_ZERO)
        found = between(row["mean"], row.mean_low, row.mean_high)
        said.append(f"{row.n_raters} raters, {row.study}, {row.question}: {row.group} is {found}, {verdict}.")
    return listed(said)


def safety(pairs: pd.DataFrame) -> str:
    """Say, per comparison, who keeps fewer cautions, and whether also at equal length."""
    said = []
    for _, row in pairs.iterrows():
        names = ("difference", "difference_cut")
        whole, cut = ([row[f"{name}{end}"] for end in ("", "_low", "_high")] for name in names)
        told = "told the same persona" if row.shows == "same persona" else "told none"
        shown = persona_shown(row.eval_persona, row.persona_format)
        said.append(
            f"{row.tested} under {shown} against {row.compared} {told}: cautions kept "
            f"{between(*whole, '+.2f')}, n = {row.n:.0f}, "
            f"{against(whole[1], whole[2], 0, ABOUT_ZERO)}; at equal length {between(*cut, '+.2f')}, "
            f"{against(cut[1], cut[2], 0, ABOUT_ZERO)}."
        )
    return listed(said)


# --- What we saw in the notebooks on persona inference, generation and judging; see ``reading.saw`` ---


def persona_inference(run: Run, statuses: pd.DataFrame) -> str:
    """Say how many answers have the form of a persona, and how often a pair's two personas differ."""
    said = [f"{name}: {share(row.ok, row.asked)} answers have the form of a persona."
            for name, row in statuses.iterrows()]  # fmt: skip
    split = inferred_splits(run)[-1]
    chosen, rejected = (read_personas(run, split, side) for side in ("chosen", "rejected"))
    both = [(chosen[pair.id].persona, rejected[pair.id].persona) for pair in inference_pairs(run)]
    both = [pair for pair in both if all(pair)]
    differ = sum(first != second for first, second in both)
    verdict = against(*wilson_interval(differ, len(both)), 0.5)
    said.append(f"Where both sides have one, the two personas of a {split} pair differ in "
                f"{share(differ, len(both))}, {verdict}.")  # fmt: skip
    return listed(said)


def changed(run: Run, arm: str, persona_format: str) -> dict[str, float] | None:
    """Return 1 per prompt whose answer changes from one gold persona to the other, else 0; None: not run."""
    method, _, train_persona = arm.partition("-")
    specs = [RunSpec(run.dataset, method, train_persona, f"gold-{side}", run.seed, persona_format)
             for side in ("chosen", "rejected")]  # fmt: skip
    if not all((generation_folder(run, spec) / "done.json").exists() for spec in specs):
        return None
    first, second = (read_generations(run, spec) for spec in specs)
    both = first.keys() & second.keys()
    return {i: float(first[i].completion != second[i].completion) for i in sorted(both)}


def generation(run: Run, degenerate: pd.DataFrame, tailored: str) -> str:
    """Say how many answers are none, and which policy's answers follow the persona at all."""
    bad = int(degenerate.no_eos.sum())
    loops = int(degenerate.suffix_loop.sum())
    broken = degenerate[["rep4_over_50", "suffix_loop"]].max(axis=1) / degenerate.n.clip(lower=1)
    unsound = [f"{name} ({share:.0%})" for name, share in broken[broken > BROKEN].items()]
    said = (
        [f"**Not sound:** more than {BROKEN:.0%} degenerate answers in {', '.join(unsound)}."]
        if unsound
        else []
    )
    said += [f"Of {degenerate.n.sum()} answers {bad} never ended and {loops} ended in a loop."]
    told = {tailored: changed(run, tailored, "line"), "dpo-none": changed(run, "dpo-none", "first_person")}
    if not all(told.values()):
        return listed(said)
    for arm, found in told.items():
        said.append(f"{arm}: another gold persona, another answer in "
                    f"{share(sum(found.values()), len(found))} prompts.")  # fmt: skip
    pairs = [told[tailored][i] - told["dpo-none"][i] for i in told[tailored] if i in told["dpo-none"]]
    interval = bootstrap_mean([pairs])
    words = ("less often than", "not clearly more or less often than", "more often than")
    verdict = against(interval.low, interval.high, 0, words)
    span_said = interval_text(interval)
    said.append(f"So {tailored} changes its answer {verdict} dpo-none does ({span_said} prompts). "
                "Whether for the better is for the judge to say.")  # fmt: skip
    return listed(said)


def calibration(table: pd.DataFrame) -> str:
    """Say, per judge and test with a known answer, how often it is right, and whether its verdicts decide."""
    said = []
    for _, row in table.iterrows():
        right = between(row.accuracy, row.accuracy_low, row.accuracy_high)
        word = "decides" if row.decides else f"decides nothing (its lower bound is not above {BELIEVED})"
        said.append(f"Judge {row.judge}, {row.test}: right in {right} of {row.n:.0f}; it {word}.")
    return listed(said)


def net_of(row: Any, letter: str) -> tuple[str, float, float]:
    """Return a net win rate in words and its 95 % interval, from the Wilson interval of W / (W + L)."""
    wins, decided = row[f"{letter}_W"], row[f"{letter}_W"] + row[f"{letter}_L"]
    low, high = (2 * end - 1 for end in wilson_interval(int(wins), int(decided)))
    if not decided:
        return f"nothing decided of {row.n:.0f}", low, high
    return (
        f"net {row[f'{letter}_net']:+.2f} [{low:+.2f}, {high:+.2f}], {decided:.0f} of {row.n:.0f} decided",
        low,
        high,
    )


def judging(table: pd.DataFrame) -> str:
    """Say, per main comparison, who suits the persona better and who writes the better answers."""
    said = []
    words = {"P": ("suits the persona worse", "suits the persona neither clearly better nor worse",
                   "suits the persona better"),
             "Q": ("worse", "neither clearly better nor worse", "better")}  # fmt: skip
    for _, row in table[(table.kind == "main") & (table.n > 0)].iterrows():
        (p, *p_ends), (q, *q_ends) = net_of(row, "P"), net_of(row, "Q")
        said.append(f"{row.label}: PT-DPO {against(*p_ends, 0, words['P'])} ({p}); "
                    f"its quality is {against(*q_ends, 0, words['Q'])} ({q}).")  # fmt: skip
    return listed(said)


# --- Small tables and texts for the notebooks on data and training: they read files and compute little ---
# Everything returns a pandas DataFrame or a string. What concerns personas and answers is in
# ``show_personas`` and ``show_answers``, so that a notebook depends only on what it shows.


QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
PERSONAS = {"WHO PREFERS CHOSEN": "gold-chosen", "WHO PREFERS REJECTED": "gold-rejected"}
NO_HISTORY = ["arm", "epoch", "validation loss", "kept"]  # the columns of a history without any arm
COUNTS = ("rows", "without_persona", "truncated", "dropped", "prompt_tokens", "completion_tokens", "longest")
LOSSES = {
    "loss": "training loss",
    "eval_loss": "validation loss",
    "eval_rewards/accuracies": "validation reward accuracy",
    "eval_rewards/margins": "validation reward margin",
    "grad_norm": "gradient norm",
}


def quiet() -> None:
    """Keep progress bars and routine warnings out of a notebook; let tables show all rows and whole texts.

    To be called before transformers is imported; what the user has set in the environment is kept.
    """
    import pandas as pd

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="Cannot enable progress bars")
    pd.set_option("display.max_colwidth", 160)
    pd.set_option("display.max_rows", 200)
    pd.set_option("display.precision", 3)


def save_table(run: Run, name: str, table: pd.DataFrame, index: bool = False) -> Path:
    """Write a table to ``tables/<name>.csv`` of the run, atomically, and return the path."""
    path = run.folder / "tables" / f"{name}.csv"
    write_text(path, table.to_csv(index=index))
    return path


# --- preference pairs ---


def pair_text(pair: PreferencePair | TailoringRow) -> str:
    """Return a pair as text for a reader."""
    return f"PROMPT\n{pair.prompt}\n\nCHOSEN\n{pair.chosen}\n\nREJECTED\n{pair.rejected}"


def example_pair(run: Run) -> str:
    """Return the first preference pair of a run as text, of training if it has any, with its personas."""
    pair = next(pair for split in ("train", "validation", "test") for pair in read_pairs(run, split))
    known = everyday.personas(run.profile.majority_share, run.seed) if run.dataset == everyday.NAME else {}
    brought = known.get(pair.id, {})
    said = [f"{name}\n{brought[key]}" for name, key in PERSONAS.items() if key in brought]
    return "\n\n".join([pair_text(pair), *said])


def contrast_table(run: Run, split: str = "train") -> pd.DataFrame:
    """Count, per dimension of ``everyday``, the pairs that differ in it and who has what most users like.

    Empty for other data, whose contrasts nobody knows.
    """
    import pandas as pd

    columns = ["dimension", "most like", "fewer like", "pairs", "chosen has what most like"]
    if run.dataset != everyday.NAME:
        return pd.DataFrame(columns=columns).set_index("dimension")
    common, by_id = everyday.common_values(run.seed), {item.id: item for item in everyday.items()}
    found: dict[str, list[bool]] = {name: [] for name in everyday.DIMENSIONS}
    for pair in read_pairs(run, split):
        item = by_id[pair.id]
        dimension, value = item.wish(everyday.sides(item, run.profile.majority_share, run.seed)["chosen"])[0]
        found[dimension].append(value == common[dimension])
    rows = []
    for dimension, hits in found.items():
        first, second = everyday.DIMENSIONS[dimension]
        values = (first, second) if common[dimension] == first else (second, first)
        rows.append((dimension, *values, len(hits), sum(hits) / len(hits) if hits else float("nan")))
    return pd.DataFrame(rows, columns=columns).set_index("dimension")


def topic_table(run: Run) -> pd.DataFrame:
    """Count the topics of ``everyday`` per split and those shared with training; empty for other data."""
    import pandas as pd

    splits = ("train", "validation", "test") if run.dataset == everyday.NAME else ()
    topic = {item.id: item.topic for item in everyday.items()}
    topics = {s: {topic[pair.id] for pair in read_pairs(run, s)} for s in splits}
    rows = [
        (s, len(found), 0 if s == "train" else len(found & topics["train"])) for s, found in topics.items()
    ]
    return pd.DataFrame(rows, columns=["split", "topics", "shared with train"]).set_index("split")


def read_pairs(run: Run, split: str) -> list[PreferencePair]:
    """Read the preference pairs of a split."""
    return read_rows(run.folder / "pairs" / f"{split}.jsonl", PreferencePair)


# --- training ---


def training_example(run: Run, method: str, train_persona: str, number: int = 0) -> str:
    """Return one training row of an arm as the trainer gets it, its fields under their TRL names."""
    source = read_rows(run.folder / "tailoring" / f"{method}_train.jsonl", TailoringRow)
    make = to_sft_rows if method == "sft" else to_dpo_rows
    row = make(source, train_persona, run.seed, format_of(*run.base_source))[number]
    return "\n\n".join(f"{name}\n{text!r}" for name, text in row.items())


def adapter_dir(run: Run, arm: str) -> Path:
    """Return the folder of one arm's adapter, e.g. of "sft-chosen"."""
    return run.folder / "adapters" / arm


def row_counts(run: Run, method: str) -> pd.DataFrame:
    """Return, per arm and part, how many rows were used, left out, cut or dropped, and their tokens."""
    import pandas as pd

    rows = []
    for arm in (f"{method}-{persona}" for persona in run.profile.train_personas):
        for part, counts in read_json(adapter_dir(run, arm) / "counts.json").items():
            rows.append({"arm": arm, "part": part} | {name: counts[name] for name in COUNTS})
    return pd.DataFrame(rows, columns=["arm", "part", *COUNTS]).set_index(["arm", "part"])


def training_history(run: Run, method: str) -> pd.DataFrame:
    """Return the losses of every epoch of every arm, and which epoch was kept."""
    import pandas as pd

    tables = []
    for persona in run.profile.train_personas:
        folder = adapter_dir(run, f"{method}-{persona}")
        best = read_json(folder / "done.json")["best_eval_loss"]
        tables += [
            {"arm": folder.name, **row, "kept": row["validation loss"] == best} for row in epochs(folder)
        ]
    columns = [*dict.fromkeys(name for row in tables for name in row)] or NO_HISTORY
    return pd.DataFrame(tables, columns=columns).set_index(["arm", "epoch"])


def epochs(folder: Path) -> list[dict[str, Any]]:
    """Merge the training and validation logs of an adapter into one row per epoch."""
    merged: dict[float, dict[str, Any]] = {}
    for entry in iter_rows(folder / "log.jsonl"):
        found = {LOSSES[name]: value for name, value in entry.items() if name in LOSSES}
        if found:
            merged.setdefault(entry["epoch"], {"epoch": entry["epoch"]}).update(found)
    ordered = [merged[epoch] for epoch in sorted(merged) if "validation loss" in merged[epoch]]
    return [{"epoch": row["epoch"]} | {n: row[n] for n in LOSSES.values() if n in row} for row in ordered]


def adapter_sizes(run: Run, method: str) -> pd.DataFrame:
    """Return the number of trained parameters and the file size of every arm's adapter."""
    import pandas as pd
    from safetensors import safe_open

    rows = []
    for persona in run.profile.train_personas:
        path = adapter_dir(run, f"{method}-{persona}") / "adapter_model.safetensors"
        with safe_open(path, framework="np") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        parameters = sum(rows * columns for rows, columns in shapes)
        rows.append(
            {"arm": path.parent.name, "parameters": parameters, "megabytes": path.stat().st_size / 1e6}
        )
    return pd.DataFrame(rows, columns=["arm", "parameters", "megabytes"]).set_index("arm")


# --- speed ---


def matrix_rate(size: int = 1024, tries: int = 5) -> float:
    """Return the best measured rate of float32 matrix products on this machine now, in GFLOP/s."""
    import time

    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds) / 1e9


def speed_table(run: Run, method: str) -> pd.DataFrame:
    """Return tokens and seconds of each trained arm, beside the arithmetic floor; evaluation is left out.

    The floor is what the arithmetic needs: four FLOP per parameter and token (forward, and backward to the
    activations; a shared prompt counts once) at the measured rate of matrix products. Empty on a GPU, and for
    a base whose size the table of weights does not know.
    """
    import pandas as pd
    import torch

    source = run.profile.base_model
    whole = weights.is_packaged(source) and not weights.entry(source)["layers"]
    if not whole or torch.cuda.is_available():
        return pd.DataFrame()
    rate, rows = matrix_rate(), []
    for arm in run.profile.train_personas:
        folder = adapter_dir(run, f"{method}-{arm}")
        counts, log = read_json(folder / "counts.json")["train"], list(iter_rows(folder / "log.jsonl"))
        epochs = next(entry["epoch"] for entry in reversed(log) if "epoch" in entry)
        tokens = (counts["prompt_tokens"] + counts["completion_tokens"]) * epochs
        spent = sum(e.get("train_runtime", 0) for e in log) - sum(e.get("eval_runtime", 0) for e in log)
        floor = 4 * weights.entry(source)["parameters"] * tokens / 1e9 / rate
        rows.append((folder.name, round(tokens), spent, tokens / spent, rate, floor, floor / spent))
    names = ["arm", "tokens", "seconds", "tokens per second", "GFLOP/s of this machine", "floor, seconds"]
    return pd.DataFrame(rows, columns=[*names, "share of the floor"]).set_index("arm")


# --- For the notebook on the base model: which weights, how they are asked, and their untrained answers ---


QUESTIONS = ("working-from-home-2", "coffee-at-home-1")  # of validation: explicit personas, implicit ones
SHOWN = ("licence", "architecture", "parameters", "quantised", "megabytes", "packages", "hub")


def facts_table(run: Run) -> pd.Series:
    """Return what is known of the base: where it comes from, its size, its licence, what identifies it."""
    import pandas as pd
    from transformers import AutoConfig

    source, revision = run.base_source
    facts = {"base model": source, "identified by": model_key(source, revision)}
    if weights.is_packaged(source):
        row = weights.entry(source)
        facts |= {name: row[name] for name in SHOWN}
        facts |= {"parameters": f"{row['parameters']:,}", "packages": ", ".join(row["packages"])}
    name, commit = weights.pinned(source, revision)
    config = AutoConfig.from_pretrained(name, revision=commit)
    kind = f"{config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size}"
    return pd.Series(facts | {"loaded here": f"{kind}, {run.profile.compute_dtype}"}, name="").to_frame()


def chat_example(run: Run) -> str:
    """Return the first question as a policy is asked it, without a persona and with one."""
    item, chat = next(i for i in everyday.items() if i.id == QUESTIONS[0]), format_of(*run.base_source)
    told = {"no persona": None, "a persona": item.persona_a}
    return "\n".join(f"--- {how}\n{tailoring_prompt(item.prompt, p, chat=chat)}" for how, p in told.items())


def untrained_answers(run: Run) -> pd.DataFrame:
    """Return the base's answers to both questions under either persona; the value wished, the one shown."""
    import pandas as pd

    asked = [(item, side) for item in everyday.items() if item.id in QUESTIONS for side in "ab"]
    told = [(item.prompt, getattr(item, f"persona_{side}")) for item, side in asked]
    prompts = [tailoring_prompt(*pair, chat=format_of(*run.base_source)) for pair in told]
    profile, tokenizer = run.profile, load_tokenizer(*run.base_source)
    model = load_base(*run.base_source, profile.quantization, profile.compute_dtype)
    how = {"batch_size": len(prompts), "repetition_penalty": profile.gen_repetition_penalty}
    generator = TransformersGenerator(model, tokenizer, "base", **how)
    answers = dict(generator.generate(prompts, profile.gen_max_new_tokens, (STOP,)))
    values = [(i.wish(side)[0][1], shows(i.dimension, answers[n].text)) for n, (i, side) in enumerate(asked)]
    rows = [(*told[n], *values[n], answers[n].text) for n in range(len(asked))]
    return pd.DataFrame(rows, columns=["question", "persona", "wished", "shown", "answer"])


# --- For the notebooks on generation, judging and user-written personas: tables and pages of examples ---


DEGENERATE = ("n", "no_eos", "rep4_over_20", "rep4_over_50", "suffix_loop", "n_without_persona")


# --- generation ---


def grid_table(run: Run) -> pd.DataFrame:
    """Return the grid as a table: arms down, personas across, the persona's format(s) in the cells."""
    import pandas as pd

    cells: dict[str, dict[str, str]] = {}
    for spec in grid(run):
        row = cells.setdefault(spec.arm, {})
        row[spec.eval_persona] = ", ".join(filter(None, [row.get(spec.eval_persona), spec.persona_format]))
    columns = [p for p in run.profile.eval_personas if any(p in row for row in cells.values())]
    return pd.DataFrame.from_dict(cells, orient="index", columns=columns).fillna("").rename_axis("arm")


def degenerate_table(run: Run) -> pd.DataFrame:
    """Count, per run of the grid, the answers that never end, repeat themselves or end in a loop."""
    import pandas as pd

    rows = []
    for spec in grid(run):
        facts = read_json(generation_folder(run, spec) / "done.json")
        rows.append({"run": spec.slug} | {name: facts[name] for name in DEGENERATE})
    return pd.DataFrame(rows).set_index("run")


def one_prompt(
    run: Run, arm: str = "dpo-chosen", number: int = 0, kinds: Sequence[str] = EVAL_PERSONAS
) -> str:
    """Return one arm's answers to one prompt under the personas it was run with, as text for a reader.

    ``kinds`` are what the wanted eval personas begin with ("none", "gold", "user-chosen", ...).
    """
    row = eval_rows(run)[number]
    parts = [f"PROMPT  {row.prompt}"]
    for spec in grid(run):
        wanted = spec.arm == arm and spec.eval_persona.startswith(tuple(kinds))
        answers = read_generations(run, spec) if wanted else {}
        if row.id in answers:
            shown = answers[row.id]
            parts.append(
                f"[{spec.eval_persona}, {spec.persona_format}]  {shown.persona or '-'}\n{shown.completion}"
            )
    return "\n\n".join(parts)


# --- judging ---


def judging_row(run: Run, matchup: Matchup, role: str = "judge") -> dict[str, Any]:
    """Return one line of the judging table: counts of both rubrics, net win rates and dPQ.

    T are ties proper; pairs in which the judge names the same position twice are "contradicted".
    """
    verdicts = read_verdicts(run, matchup, role)
    rates = {rubric: WinRate.from_verdicts(v[rubric] for v in verdicts) for rubric in RUBRICS}
    line: dict[str, Any] = {"label": matchup.label, "kind": matchup.kind, "n": len(verdicts)}
    for rubric, rate in rates.items():
        letter = rubric[0].upper()
        contradicted = inconsistent(judgment_folder(run, matchup, role) / f"{rubric}.jsonl")
        line |= {f"{letter}_W": rate.n_wins, f"{letter}_T": rate.n_ties - contradicted}
        line |= {f"{letter}_L": rate.n_losses, f"{letter}_contradicted": contradicted}
        line |= {f"{letter}_unparsed": rate.n_unparsed, f"{letter}_net": rate.net}
    accuracy = persona_accuracy(run, run.profile.judge if role == "judge" else role)
    line["P_net_corrected"] = corrected_net(rates["personalization"].net, accuracy)
    return line | {"dPQ": delta_pq(rates["personalization"], rates["quality"])}


def judging_table(run: Run, role: str = "judge") -> pd.DataFrame:
    """Return a line per matchup: label, kind, W/T/L and unparsed under both rubrics, nets and dPQ."""
    import pandas as pd

    table = pd.DataFrame([judging_row(run, matchup, role) for matchup in judged_matchups(run, role)])
    return table.astype(
        {"P_net": float, "P_net_corrected": float, "Q_net": float, "dPQ": float}
    )  # nothing decided: NaN


def score_table(run: Run) -> pd.DataFrame:
    """Return the oracle's absolute scores, averaged, of every policy in the main comparisons and the like."""
    import pandas as pd

    pairs = {
        (spec.slug, m.judge_persona): (spec, m.judge_persona)
        for m in matchups(run)
        if m.kind in ("main", "stage")
        for spec in (m.test, m.base)
    }
    rows = []
    for spec, persona in pairs.values():
        scores = pd.DataFrame(oracle_scores(run, spec, persona), columns=["id", "fit", "quality"])
        row = {"persona": persona, "policy": spec.arm, "format": spec.persona_format, "n": len(scores)}
        means = {
            "fit": scores.fit.mean(),
            "quality": scores.quality.mean(),
            "quality sd": scores.quality.std(),
        }
        rows.append(row | means)
    table = pd.DataFrame(rows)
    return table.set_index(["persona", "policy", "format"]).sort_index()


def judged_example(run: Run, label: str = "gold-chosen") -> str:
    """Return one comparison of a matchup with the judge's answers in both orders and the verdicts.

    It is the first one that is not a tie under personalization, if there is one. Where no matchup has this
    label, the first matchup is shown.
    """
    found = matchups(run)
    matchup = next((m for m in found if m.label == label), found[0])
    verdicts = {verdict["id"]: verdict for verdict in read_verdicts(run, matchup)}
    comparisons = compare(run, matchup)
    if not comparisons:
        return f"no answers to compare under {label}"
    decided = [c for c in comparisons if verdicts[c.id]["personalization"] != "tie"]
    c = (decided or comparisons)[0]
    parts = [f"PROMPT   {c.prompt}\nPERSONA  {c.persona}", f"TESTED ({matchup.test.slug})\n{c.response_a}"]
    parts.append(f"BASE ({matchup.base.slug})\n{c.response_b}")
    for rubric in RUBRICS:
        path = judgment_folder(run, matchup) / f"{rubric}.jsonl"
        answers = [f"{j['order']}: {say(j)} ({j['feedback']})" for j in iter_rows(path) if j["id"] == c.id]
        parts.append(f"{rubric}: {'; '.join(answers)} -> {verdicts[c.id][rubric]}")
    return "\n\n".join(parts)


def values_read(run: Run, arm: str = "dpo-chosen", number: int = 0) -> pd.DataFrame:
    """Return what the reader of answers sees in a row's responses and in one arm's answers, by dimension."""
    import pandas as pd

    row = eval_rows(run)[number]
    texts = {"chosen response": row.chosen, "rejected response": row.rejected}
    for spec in grid(run):
        if spec.arm == arm and spec.eval_persona.startswith("gold"):
            texts[f"{arm}, {spec.eval_persona}"] = read_generations(run, spec)[row.id].completion
    found = {name: {d: shows(d, text) or "-" for d in DIMENSIONS} for name, text in texts.items()}
    return pd.DataFrame(found).rename_axis("dimension")


def say(judgment: dict[str, Any]) -> str:
    """Return what a judgment says in one word or two."""
    return "tie" if judgment["tie"] else judgment["winner"] or "unparsed"


# --- user-written personas and the page of examples ---


def user_examples(run: Run, n: int = 5) -> pd.DataFrame:
    """Return user-written personas beside the gold ones of the same rows; empty without any."""
    import pandas as pd

    rows = [
        {"id": row.id, "side": side, "persona": row.personas.get(f"gold-{side}"), "user-written": written}
        for row in eval_rows(run)
        for side in ("chosen", "rejected")
        if (written := row.personas.get(f"user-{side}"))
    ]
    return pd.DataFrame(rows[:n], columns=["id", "side", "persona", "user-written"])


def side_by_side(
    run: Run, ids: Sequence[str] = (), kinds: Sequence[str] = ("user",), n: int = 4
) -> pd.DataFrame:
    """Return prompt, persona, plain DPO's answer and PT-DPO's answer, for both sides of each row.

    ``ids`` names the rows (default: the first ``n``), ``kinds`` the personas ("user", "gold", ...). Plain
    DPO is told the persona in the first person, as in the paper. Rows without such a persona are left out.
    """
    import pandas as pd

    wanted = list(ids) or [row.id for row in eval_rows(run)[:n]]
    rows = []
    for name in (f"{kind}-{side}" for kind in kinds for side in ("chosen", "rejected")):
        specs = [RunSpec(run.dataset, "dpo", "none", name, run.seed, "first_person")]
        specs.append(RunSpec(run.dataset, "dpo", main_arm(run.profile), name, run.seed))
        if not all((generation_folder(run, spec) / "done.json").exists() for spec in specs):
            continue
        plain, tailored = (read_generations(run, spec) for spec in specs)
        for i in (i for i in wanted if i in plain and i in tailored):
            answer = tailored[i]
            rows.append((i, name, answer.prompt, answer.persona, plain[i].completion, answer.completion))
    columns = ["id", "eval_persona", "prompt", "persona", "DPO", "PT-DPO"]
    return pd.DataFrame(sorted(rows, key=lambda row: wanted.index(row[0])), columns=columns)


def examples_text(table: pd.DataFrame) -> str:
    """Return a side-by-side table as a page to read: each prompt once, then its personas and answers."""
    parts: list[str] = []
    for prompt, part in table.groupby("prompt", sort=False):
        parts.append(f"===== {prompt}")
        parts += [
            f"PERSONA  {row.persona}  [{row.eval_persona}]\n\nDPO\n{row.DPO}\n\nPT-DPO\n{row[6]}"
            for row in part.itertuples()
        ]
    return "\n\n".join(parts) if parts else "no answers under such personas"


# --- For the notebooks on persona inference ---


STATUSES = ("ok", "empty", "refusal", "too_long", "malformed", "loop")


def inferred_splits(run: Run) -> tuple[str, ...]:
    """Return the splits whose personas are inferred; the last one is what they are scored on."""
    scored = inference_split(run.profile, run.dataset)
    return (scored,) if has_personas(run) else ("train", scored)


def inference_prompt_text(run: Run, side: Side = "chosen", number: int = 0) -> str:
    """Return the whole few-shot prompt for one evaluation pair and side; says so where none is prompted."""
    if run.profile.generator_model == SURFACE:
        return "No language model is prompted: personas are written by rule from the two responses."
    pair = inference_pairs(run)[number]
    return inference_prompt(inference_shots(run.profile), pair.prompt, *sides_of(pair, side))


def status_table(run: Run) -> pd.DataFrame:
    """Count, per split and side, how the answers were read."""
    import pandas as pd

    counts = read_json(run.folder / "personas" / "done.json")["statuses"]
    rows = [
        {"personas of": name, "asked": sum(found.values())} | {s: found.get(s, 0) for s in STATUSES}
        for name, found in counts.items()
    ]
    return pd.DataFrame(rows).set_index("personas of")


def persona_examples(run: Run, n: int = 5) -> str:
    """Return evaluation pairs with both inferred personas as text for a reader."""
    chosen, rejected = (read_personas(run, inferred_splits(run)[-1], side) for side in SIDES)
    parts = [
        f"PROMPT    {pair.prompt}\nCHOSEN    {pair.chosen}\nREJECTED  {pair.rejected}\n"
        f"   P_C    {chosen[pair.id].persona}\n   P_R    {rejected[pair.id].persona}"
        for pair in inference_pairs(run)[:n]
    ]
    return "\n\n".join(parts)


def accuracy_items(run: Run) -> pd.DataFrame:
    """Judge every inferred persona; one row per pair and side with its verdict (None: no persona).

    Empty where nobody judges personas.
    """
    import pandas as pd

    rows = [
        (name, split, side, verdict, contradicted)
        for split in (inferred_splits(run) if persona_judge_of(run.profile) != "none" else ())
        for side in SIDES
        for name, verdict, contradicted in accuracy_verdicts(run, split, side)
    ]
    return pd.DataFrame(rows, columns=["id", "split", "side", "verdict", "contradicted"])


def accuracy_table(items: pd.DataFrame, bootstrap_samples: int) -> pd.DataFrame:
    """Count the verdicts per split and side; accuracy with a 95 % bootstrap interval over pairs.

    Where a judge contradicted itself, "contradicted" counts the ties that come from that.
    """
    import pandas as pd

    rows = []
    for (split, side), part in items.groupby(["split", "side"], sort=False):
        verdicts = [verdict if isinstance(verdict, str) else None for verdict in part.verdict]
        counts = PersonaAccuracy.from_verdicts(verdicts)
        interval = bootstrap_mean([accuracy_array(verdicts)], bootstrap_samples)
        rows.append(
            {"split": split, "side": side, "n": counts.n}
            | {name.removeprefix("n_"): value for name, value in dataclasses.asdict(counts).items()}
            | ({"contradicted": int(part.contradicted.sum())} if items.contradicted.any() else {})
            | {
                "accuracy": counts.accuracy,
                "low": interval.low,
                "high": interval.high,
                "strict": counts.strict,
            }
        )
    return pd.DataFrame(rows).set_index(["split", "side"]) if rows else pd.DataFrame()


def preference_items(run: Run) -> pd.DataFrame:
    """Return, per evaluation pair, which of its two personas is the more plausible user ("win": P_C)."""
    import pandas as pd

    return pd.DataFrame(preference_verdicts(run, inferred_splits(run)[-1]), columns=["id", "verdict"])


def preference_table(items: pd.DataFrame) -> pd.DataFrame:
    """Count the pairs in which P_C, neither or P_R is the more plausible user."""
    import pandas as pd

    counts = WinRate.from_verdicts(verdict for verdict in items.verdict if isinstance(verdict, str))
    row = {
        "n": len(items),
        "P_C": counts.n_wins,
        "neither": counts.n_ties,
        "P_R": counts.n_losses,
        "unparsed": counts.n_unparsed,
        "without a persona": len(items) - counts.n,
        "net for P_C": float("nan") if counts.net is None else counts.net,
    }
    return pd.DataFrame([row])


def word_table(run: Run, min_count: int = 10) -> pd.DataFrame:
    """Rank the words of the evaluation personas from the most chosen to the most rejected (Table 1)."""
    import pandas as pd

    rows = word_saliency(*persona_texts(run, inferred_splits(run)[-1]), min_count=min_count)
    columns = [field.name for field in dataclasses.fields(WordSaliency)]
    return pd.DataFrame([dataclasses.asdict(row) for row in rows], columns=columns).set_index("word")


def both_ends(words: pd.DataFrame, n: int = 10) -> pd.DataFrame:
    """Return the most chosen words beside the most rejected ones, strongest first (by log-odds z)."""
    import pandas as pd

    ordered = words.sort_values("z", ascending=False, kind="stable").reset_index()
    sides = {"chosen": ordered[ordered.z > 0].head(n), "rejected": ordered[ordered.z < 0].iloc[::-1].head(n)}
    shown = {side: part[["word", "share_chosen", "z"]].reset_index(drop=True) for side, part in sides.items()}
    return pd.concat(shown, axis=1)


# --- For the guide to your own data ---


AUTOJ = ("autoj", "autoj_pairwise.json")
EXAMPLES = REPO / "examples"


def find_autoj() -> Path | None:
    """Return Auto-J's file below ``$PERSONA_DATA`` or ``../shared/data``, None where it is not."""
    places = [Path(os.environ["PERSONA_DATA"])] if os.environ.get("PERSONA_DATA") else []
    found = [place.joinpath(*AUTOJ) for place in (*places, REPO.parent / "shared" / "data")]
    return next((path for path in found if path.is_file()), None)


def guide_run(name: str, overrides: list[str]) -> Run:
    """Return the run of the worked example, in a results folder of its own.

    Its data is what the overrides name, else Auto-J's file where it is at hand, else the shipped pairs.
    Raises ConfigError for a profile whose judge cannot read it.
    """
    profile = load_profile(name, overrides)
    intake.check_judge(profile)
    changes = {"name": f"{profile.name}_guide", "datasets": (intake.NAME,)}
    autoj = find_autoj()
    if any(override.startswith("data_dir=") for override in overrides):
        pass
    elif autoj:
        changes |= {"data_dir": str(autoj), "data_mapping": str(EXAMPLES / "autoj.yaml")}
    else:
        changes |= {"data_dir": str(EXAMPLES / "pairs.jsonl"), "data_mapping": ""}
    return Run(dataclasses.replace(profile, **changes), intake.NAME, profile.seeds[0])


def source_text(run: Run) -> str:
    """Say which data the guide uses, and show its mapping."""
    path = run.profile.data_mapping
    mapping = Path(path).read_text(encoding="utf-8") if path else "(no mapping: prompt, chosen, rejected)\n"
    return f"{Path(run.profile.data_dir).name}\n\n{mapping}"


def persona_counts(run: Run) -> pd.DataFrame:
    """Count, per file of personas, how the answers were read: a persona ("ok"), or why not."""
    import pandas as pd

    files = sorted((run.folder / "personas").glob("*.jsonl"))
    counts = {path.stem: count_statuses(read_rows(path, InferredPersona)) for path in files}
    return pd.DataFrame.from_dict(counts, orient="index").fillna(0).astype(int).rename_axis("split and side")


# --- For the notebook on users' personas: what plain DPO and PT-DPO answer to a reader's own ---


ANSWERS = ("DPO", "PT-DPO")


def own_table(run: Run, pairs: Sequence[Any] = ()) -> pd.DataFrame:
    """Return question, persona and both answers.

    Empty, with a line that says why, if one of the two policies is not there.
    """
    import pandas as pd

    rows = [(a.question, a.persona, a.dpo, a.pt_dpo) for a in answer_own(run, pairs)]
    if not rows and (missing := missing_policies(run)):
        print(f"no answers: {' and '.join(missing)} not trained; run the steps before this one")
    return pd.DataFrame(rows, columns=["question", "persona", *ANSWERS])


def own_text(table: pd.DataFrame) -> str:
    """Return the answers as a page to read: the question, who asks, and both answers below."""
    parts = []
    for row in table.to_dict("records"):
        answers = "\n\n".join(f"{name}\n{row[name]}" for name in ANSWERS)
        parts.append(f"===== {row['question']}\nPERSONA  {row['persona'] or '-'}\n\n{answers}")
    return "\n\n".join(parts) or "nothing to show"


# --- For the notebook on human ratings ---


@dataclass(frozen=True)
class Design:
    """How a study is laid out: items in all, raters, and how many of them rate each item."""

    items: int
    raters: int
    per_item: int


# Sizes as in the paper: 80 personas by three raters; 144 personas of eight users, the answers of two systems.
# Its users rated alone what they had written; here two rate each answer, or agreement could not be computed.
TABLES = ("ratings", "rating_agreement", "rating_problems")
DESIGNS = {"personas": Design(80, 3, 3), "answers": Design(288, 8, 2)}


def folder_of(profile: Profile) -> Path:
    """Folder of a profile's ratings: ``for_raters/`` and ``keys/``."""
    return results_dir(profile) / "ratings"


def export_studies(profile: Profile) -> dict[str, list[Path]]:
    """Write the sheets and keys of every study that the profile has items for; returns their files."""
    folder, written = folder_of(profile), {}
    for study, design in DESIGNS.items():
        items = items_to_rate(profile, study, design.items)
        if items:
            written[study] = export(study, number_items(study, items, design.raters, design.per_item), folder)
    return written


def export_table(written: dict[str, list[Path]]) -> pd.DataFrame:
    """Return a line per study: items, raters, ratings per item, and where the files are."""
    import pandas as pd

    rows = []
    for study, paths in written.items():
        key, root = read_key(paths[-1]), paths[-1].parent.parent
        given = [name for row in key.values() for name in row["raters"].split()]
        rows.append({
            "study": study, "items": len(key), "raters": len(set(given)),
            "ratings per item": len(given) / len(key),
            "sheets": str(paths[0].parent.relative_to(root)), "key": str(paths[-1].relative_to(root)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def collect(profile: Profile, filled: str = "") -> dict[str, Filled]:
    """Read the sheets in the folder ``filled``, by study; without one, nobody has rated."""
    return read_filled(Path(filled).expanduser(), folder_of(profile) / "keys") if filled else {}


def who_rated(filled: dict[str, Filled]) -> str:
    """Say in a sentence how many people rated."""
    counts = ", ".join(f"{study}: {len(found.raters)} raters" for study, found in filled.items())
    return (
        counts or "nobody has rated yet: hand out the sheets and give the folder of filled ones as `filled`"
    )


def first_item(written: dict[str, list[Path]], study: str) -> str:
    """Return the first item of a study's first sheet with its questions as HTML, all text escaped."""
    if study not in written:
        return f"no items for {study}"
    _, rows = open_csv(written[study][0])
    texts = "".join(
        f"<p><b>{name.replace('_', ' ')}</b><br><span style='white-space:pre-wrap'>"
        f"{html.escape(rows[0][name])}</span></p>"
        for name in TEXTS[study]
    )
    asked = "".join(
        f"<li><b>{n}</b>: {html.escape(text)}</li>" for n, text in ratings.QUESTIONS[study].items()
    )
    head = f"<p>{html.escape(written[study][0].name)}, item 1 of {len(rows)}</p>"
    return f"{head}{texts}<ul>{asked}</ul>"


def save_tables(profile: Profile, filled: dict[str, Filled]) -> dict[str, pd.DataFrame]:
    """Compute and write the tables of ratings of a profile; older ones go if nobody rated."""
    folder = results_dir(profile) / "tables"
    for name in TABLES:
        (folder / f"{name}.csv").unlink(missing_ok=True)
    tables = rating_tables(filled, profile.bootstrap_samples) if filled else {}
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    return tables


def n_cells(filled: dict[str, Filled]) -> int:
    """Return how many ratings were asked for: every given item, rater and question."""
    return sum(
        len(row["raters"].split()) * len(ratings.QUESTIONS[study])
        for study, found in filled.items()
        for row in found.key.values()
    )
