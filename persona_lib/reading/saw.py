"""What we saw: the words at the end of a notebook, written from the numbers above them.

Whether something is more, less or not clearly different is decided by a 95 % interval and nothing else, so
the words hold for whatever profile was run. One seed is one draw: intervals here are over the items of one
seed; notebook 12 has those over seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from persona_lib.records import TailoringRow
from persona_lib.stats.bootstrap import Interval
from persona_lib.stats.significance import wilson_interval

if TYPE_CHECKING:
    import pandas as pd

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


def span(interval: Interval) -> str:
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
