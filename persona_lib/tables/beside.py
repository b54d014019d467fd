"""The paper's numbers beside ours, one line per number: what was measured, and whether the two compare.

The paper's numbers and the words about comparability are literal data; ours come from saved tables. A
number without a counterpart in a profile's tables is "not run", and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_lib.config import load_profile
from persona_lib.data.official_folders import DATASETS
from persona_lib.profiles import Profile
from persona_lib.tables.cells import shares, size, with_interval
from persona_lib.tables.results import Row, read_table
from persona_lib.tables.results_paper import reanalysed

if TYPE_CHECKING:
    import pandas as pd

NOT_RUN = "not run"
UNKNOWN = "not known to us"
THE_PAPER = "paper"  # the profile of the paper's scale
Found = tuple[str, str]  # our number with its interval, n
Lookup = Callable[[Profile, str], Found | None]  # of a profile and one of its data sets


@dataclass(frozen=True)
class Number:
    """One number of the paper: where it stands, its value as text, its data set, how ours is found.

    ``kind`` picks the words about comparability: "judged", "gain", "personas", "words" or "people".
    """

    place: str
    paper: str
    title: str
    kind: str
    ours: Lookup


# --- words: may the two be compared, and why (not) ---

COMPARABLE: dict[str, dict[str, tuple[str, str]]] = {
    "everyday": {
        "judged": ("sign only", "other data (our pairs), a model of 135 M parameters, answers read by rule"),
        "gain": ("sign only", "other data, model and judge; what the paper's baseline is told is not known"),
        "personas": ("sign only", "other data; a model of 135 M parameters infers, a calibrated one judges"),
        "words": ("no", "other pairs, another model"),
        "people": ("no", "a language model wrote the users' words; nobody was asked"),
    },
    "authors": {
        "judged": ("sign only", "the same data, but a model and a judge of 135 M parameters"),
        "gain": ("sign only", "another model and judge; what the paper's baseline is told is not known"),
        "personas": ("no", "no personas are inferred: the data brings them"),
        "words": ("yes", "the same personas, another measure of salience"),
        "people": ("no", "nobody was asked"),
    },
    "small": {
        "judged": ("sign only", "the same data, but a model of 0.36 B and another judge"),
        "gain": ("sign only", "other data, model and judge; what the paper's baseline is told is not known"),
        "personas": ("no", "another model infers and judges"),
        "words": ("yes", "the same personas, another measure of salience"),
        "people": ("no", "nobody was asked"),
    },
    "paper": {
        "judged": ("yes", "the same data, model and judge; the judge is greedy here and was sampled there"),
        "gain": ("sign only", "what the paper's baseline is told is not known"),
        "personas": ("no", "another model infers and judges"),
        "words": ("yes", "the same personas, another measure of salience"),
        "people": ("no", "nobody was asked"),
    },
}
OTHERWISE = (
    "look first",
    "a profile that is not ours: compare only if data, model and judge are the paper's",
)

# --- how ours is found ---


def one(table: pd.DataFrame, **values: str) -> Any:
    """Return the first row with these values, None if there is none."""
    for name, value in values.items():
        if name not in table:
            return None
        table = table[table[name] == value]
    return None if table.empty else table.iloc[0]


def judged(table: str, column: str, **values: str) -> Lookup:
    """Return a lookup in a judged table: "p" and "q" are shares with the net win rate, "dpq" is dPQ."""

    def find(profile: Profile, dataset: str) -> Found | None:
        row = one(read_table(profile, table), dataset=dataset, **values)
        if row is None:
            return None
        if column == "dpq":
            return with_interval(row, "dpq", 1, True), size(row)
        return f"{shares(row, column)}; net {with_interval(row, f'{column}_net', 2, True)}", size(row)

    return find


def plain(table: str, column: str, digits: int, **values: str) -> Lookup:
    """Return a lookup of an estimate with its interval."""

    def find(profile: Profile, dataset: str) -> Found | None:
        row = one(read_table(profile, table), dataset=dataset, **values)
        return None if row is None else (with_interval(row, column, digits), size(row))

    return find


def words(side: str) -> Lookup:
    """Return a lookup of the five most typical words of one side's personas."""

    def find(profile: Profile, dataset: str) -> Found | None:
        table = read_table(profile, "words")
        if table.empty:
            return None
        found = table[(table.dataset == dataset) & (table.side == side)].word.head(5)
        return (", ".join(found), "") if len(found) else None

    return find


def nothing(profile: Profile, dataset: str) -> Found | None:
    """Find nothing: no profile measures this."""
    return None


# --- the paper's numbers ---

GAINS = {  # persona tailoring against the same strategy without personas, dPQ: (retrieved, gold) by data set
    "few-shot": {"BeaverTails": (46.3, 55.0), "Anthropic HHH": (2.5, 12.5), "Mnemonic": (20.3, None)},
    "SFT": {"BeaverTails": (12.3, 23.0), "Anthropic HHH": (9.3, 27.8), "Mnemonic": (20.5, None)},
    "DPO": {"BeaverTails": (36.8, 41.6), "Anthropic HHH": (8.4, 23.0), "Mnemonic": (28.6, None)},
}
GAIN_ROWS = {"few-shot": ("methods", "few_shot"), "SFT": ("methods", "sft")}  # table and kind of ours
SALIENT = {  # Table 1, salient words of personas, as far as known
    ("BeaverTails", "chosen"): "multiple, meticulous, diverse",
    ("BeaverTails", "rejected"): "to-the-point, concise",
    ("Mnemonic", "chosen"): "step-by-step, indirect, essence",
    ("Mnemonic", "rejected"): "story-like, romantic",
}
QUOTED = "quoted in notes on the paper"  # we have not seen the page


def main_numbers() -> Iterator[Number]:
    """Yield the cells of the main table (DPO against PT-DPO), with our intervals for them."""
    for _, row in reanalysed().iterrows():
        if row["kind"] == "average":
            find = judged("main", "dpq", kind="average")
            text = with_interval(row, "dpq", 1, True)
            yield Number("Main table, average: dPQ", text, "all", "judged", find)
            continue
        side, persona = row["label"].split(", ")
        values = {"kind": "main", "judge_persona": f"{persona}-{side}"}
        place = f"Main table, {row['dataset']}, {side}, {persona}"
        for short, name in (("p", "personalization"), ("q", "quality")):
            text = f"{shares(row, short)}; net {with_interval(row, f'{short}_net', 2, True)}"
            found = judged("main", short, **values)
            yield Number(f"{place}: {name} W / T / L %", text, row["dataset"], "judged", found)
        text = with_interval(row, "dpq", 1, True)
        yield Number(f"{place}: dPQ", text, row["dataset"], "judged", judged("main", "dpq", **values))


def gain_numbers() -> Iterator[Number]:
    """Yield dPQ of persona tailoring against the same strategy without personas."""
    for strategy, by_title in GAINS.items():
        for title, values in by_title.items():
            for source, value in zip(("retrieved", "gold"), values, strict=True):
                if value is None:
                    continue
                persona = f"{source}-chosen"
                if strategy in GAIN_ROWS:
                    table, kind = GAIN_ROWS[strategy]
                    find = judged(table, "dpq", kind=kind, judge_persona=persona)
                else:
                    find = judged("controls", "dpq", label=f"{persona}, DPO never told")
                place = f"PT-{strategy} against {strategy}, {title}, {source}: dPQ ({QUOTED})"
                yield Number(place, f"{value:+.1f}", title, "gain", find)


def persona_numbers() -> Iterator[Number]:
    """Yield what the paper says of the personas themselves: Figures 3 and 4, Table 1, people's ratings."""
    test = {"split": "test"}
    for side in ("chosen", "rejected"):
        place = f"Figure 3, bars of nine models on four data sets, {side} personas: accuracy"
        yield Number(
            place, UNKNOWN, "all", "personas", plain("persona_accuracy", "accuracy", 2, side=side, **test)
        )
    gap = plain("persona_accuracy", "accuracy", 2, side="chosen - rejected", **test)
    yield Number(f"Figure 3, the best model, mean accuracy ({QUOTED})", "0.91", "all", "personas",
                 plain("persona_accuracy", "accuracy", 2, side="chosen", **test))  # fmt: skip
    yield Number(
        f"Figure 3, the best model, chosen minus rejected ({QUOTED})", "0.06", "all", "personas", gap
    )
    yield Number("Figure 4, shares of preferred personas: net for chosen", UNKNOWN, "all", "personas",
                 plain("persona_preference", "net", 2))  # fmt: skip
    for (title, side), text in SALIENT.items():
        yield Number(f"Table 1, {title}, {side} ({QUOTED})", text, title, "words", words(side))
    ratings = "People rate personas (plausible, applicable, harmful, overfitting)"
    yield Number(ratings, UNKNOWN, "all", "people", nothing)


def other_numbers() -> Iterator[Number]:
    """Yield the user study and the ablations, whose numbers are not known to us."""
    for side in ("chosen", "rejected"):
        place = f"User study: PT-DPO on users' own personas (ours: written by a language model, {side})"
        found = judged("main", "p", kind="main", judge_persona=f"user-{side}")
        yield Number(place, UNKNOWN, "all", "people", found)
    for train in ("rejected", "both"):
        label = f"gold-chosen, PT trained on {train}"
        yield Number(f"PT trained on {train} (gold, chosen): dPQ", UNKNOWN, "all", "judged",
                     judged("arms", "dpq", label=label))  # fmt: skip
    yield Number("System persona instead of the user's: dPQ", UNKNOWN, "all", "judged",
                 judged("controls", "dpq", label="system persona, judged for gold-chosen"))  # fmt: skip


# --- the table ---


def counterpart(profile: Profile, title: str) -> str | None:
    """Return which of a profile's data sets stands for one of the paper's; our own pairs for any."""
    if title == "all":
        return "all" if len(profile.datasets) > 1 else profile.datasets[0]
    named = [name for name in profile.datasets if DATASETS.get(name, {}).get("title") == title]
    return named[0] if named else "everyday" if "everyday" in profile.datasets else None


def find(profile: Profile, number: Number) -> Found | None:
    """Return ours for one number of the paper; the average row is that of all data sets."""
    dataset = counterpart(profile, number.title)
    if dataset is None:
        return None
    found = number.ours(profile, dataset)
    return found or (number.ours(profile, "all") if number.title == "all" else None)


def why_missing(profile: Profile, number: Number) -> str:
    """Say why a profile has no counterpart of a number."""
    if number.ours is nothing:
        return "needs people: nobody was asked"
    if counterpart(profile, number.title) is None:
        return f"{number.title} is not among the profile's data sets"
    if profile.judge == "none":
        return "the profile has no judge"
    return "no such row in the saved tables"


def beside_line(profile: Profile, number: Number, at_scale: Profile) -> Row:
    """Return one line of the table."""
    found = find(profile, number)
    known = COMPARABLE.get(profile.name, {}).get(number.kind, OTHERWISE)
    answer, why = known if found else ("", why_missing(profile, number))
    scale = find(at_scale, number)
    return {"place": number.place, "paper": number.paper, "ours": found[0] if found else NOT_RUN,
            "size": found[1] if found else "", "profile": profile.name, "comparable": answer, "why": why,
            "at_scale": scale[0] if scale else NOT_RUN}  # fmt: skip


def beside_table(profile: Profile) -> pd.DataFrame:
    """Return a line per number of the paper: the paper's, ours, n, profile, comparable or why not."""
    import pandas as pd

    at_scale = load_profile(THE_PAPER)
    numbers = [*main_numbers(), *gain_numbers(), *persona_numbers(), *other_numbers()]
    return pd.DataFrame([beside_line(profile, number, at_scale) for number in numbers])
