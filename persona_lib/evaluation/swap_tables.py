r"""Persona-swap accuracy: does a policy's preference turn round when the persona does? No judge needed.

With r = log pi(response | prompt, persona), less the reference's for the implicit reward, let

    m(P) = r(chosen | P) - r(rejected | P).

Acc_C is the share of rows with m(P_C) > 0, Acc_R that with m(P_R) < 0, flip that with both (chance 1/4
for independent signs). D = m(P_C) - m(P_R): both terms hold the same two responses, so their length,
quality and memorisation cancel, and share D > 0 is 1/2 for a policy that does not heed the persona.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_lib.records import TailoringRow

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FAMILIES = ("gold", "stripped", "retrieved", "shuffled", "user")  # of personas that come in two sides
SINGLE = ("none", "system")  # controls without sides: base rates of both accuracies
MEASURES = ("policy", "implicit reward")
ROUNDING = 1e-4  # nats: a smaller D is rounding, the policy saw no difference


@dataclass(frozen=True)
class PolicyScore:
    """Log-probabilities (nats, summed over tokens) of a row's two responses under one persona, by one policy.

    ``eval_persona`` names the persona ("gold-chosen", "none", ...), ``persona`` is its text.
    """

    id: str
    eval_persona: str
    persona: str | None
    chosen: float
    rejected: float


@dataclass(frozen=True)
class SwapScore:
    """A `PolicyScore` with the scores of the policy's reference, None where it has none."""

    id: str
    eval_persona: str
    persona: str | None
    policy_chosen: float
    policy_rejected: float
    reference_chosen: float | None
    reference_rejected: float | None

    def margin(self, measure: str) -> float | None:
        """Return m(P) by "policy" or "implicit reward" (without its factor beta); None if there is none."""
        policy = self.policy_chosen - self.policy_rejected
        if measure == "policy":
            return policy
        if self.reference_chosen is None or self.reference_rejected is None:
            return None
        return policy - (self.reference_chosen - self.reference_rejected)


def join_reference(scores: Sequence[PolicyScore], reference: Sequence[PolicyScore]) -> list[SwapScore]:
    """Put the reference's scores of the same row and persona beside the policy's."""
    known = {(s.id, s.eval_persona, s.persona): (s.chosen, s.rejected) for s in reference}
    return [
        SwapScore(
            s.id, s.eval_persona, s.persona, s.chosen, s.rejected,
            *known.get((s.id, s.eval_persona, s.persona), (None, None)),
        )
        for s in scores
    ]  # fmt: skip


# --- what is reported: pure functions of the scores ---


def acc_chosen(m: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return whether P_C makes the policy prefer the chosen response."""
    return m[:, 0] > 0


def acc_rejected(m: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return whether P_R makes it prefer the rejected one."""
    return m[:, 1] < 0


def flip(m: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return whether both hold."""
    return (m[:, 0] > 0) & (m[:, 1] < 0)


def d_positive(m: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return whether D > 0; NaN where it is undefined or 0 to rounding."""
    import numpy as np

    return np.where(np.isnan(d) | (np.abs(d) < ROUNDING), np.nan, (d > 0).astype(float))


def difference(m: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return D in nats."""
    return d


# name -> a function of the margins m (row, persona) and of D (row), one value per row; each gets an interval
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "acc_chosen": acc_chosen,
    "acc_rejected": acc_rejected,
    "flip": flip,
    "d_positive": d_positive,
    "d": difference,
}


def swap_values(scores: Sequence[SwapScore], family: str, measure: str) -> dict[str, np.ndarray]:
    """Return per-row values of one family of personas, arrays in the order of row ids.

    acc_chosen, acc_rejected and flip are 0/1; d is in nats; d_positive is 1/0, NaN where d is 0 (to
    rounding) or the two personas are the same text. Families of ``SINGLE`` (no persona, the system's)
    score a row once: both accuracies are base rates, flip is 0, d is NaN. Rows that lack a side are left out.
    """
    import numpy as np

    names = (family, family) if family in SINGLE else (f"{family}-chosen", f"{family}-rejected")
    by_name = {name: {s.id: s for s in scores if s.eval_persona == name} for name in names}
    shared = sorted(set(by_name[names[0]]) & set(by_name[names[1]]))
    both = [(by_name[names[0]][id], by_name[names[1]][id]) for id in shared]
    both = [pair for pair in both if None not in (pair[0].margin(measure), pair[1].margin(measure))]
    m = np.array([[one.margin(measure) for one in pair] for pair in both], dtype=float).reshape(len(both), 2)
    same = np.array([a.persona == b.persona for a, b in both], dtype=bool)
    d = np.where(same, np.nan, m[:, 0] - m[:, 1])
    return {name: np.asarray(metric(m, d), dtype=float) for name, metric in METRICS.items()}


def swap_table(
    scores_by_seed: Sequence[Sequence[SwapScore]], n_resamples: int = 2000, shared_items: bool = False
) -> pd.DataFrame:
    """Summarise one arm: a row per measure and persona family, each value with its 95 % bootstrap interval.

    One list of scores per seed; ``shared_items`` says that the seeds scored the same rows.
    """
    rows = []
    for measure in MEASURES:
        for family in (*FAMILIES, *SINGLE):
            values = [swap_values(scores, family, measure) for scores in scores_by_seed]
            if all(len(v["flip"]) for v in values):
                rows.append(
                    {"measure": measure, "persona": family}
                    | interval_columns(values, n_resamples, shared_items)
                )
    return to_frame(rows, ["measure", "persona"])


def interval_columns(
    values: Sequence[dict[str, np.ndarray]], n_resamples: int, shared_items: bool
) -> dict[str, float]:
    """Return n and, for each value, its mean and interval: columns x, x_low, x_high."""
    from persona_lib.stats.bootstrap import bootstrap_mean

    columns: dict[str, Any] = {"n": sum(len(v["flip"]) for v in values), "n_seeds": len(values)}
    for name in values[0]:
        interval = bootstrap_mean([v[name] for v in values], n_resamples, shared_items=shared_items)
        columns |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return columns


def to_frame(rows: list[dict], index: list[str]) -> pd.DataFrame:
    """Return rows as a table that has its index columns even when it is empty."""
    import pandas as pd

    return pd.DataFrame(rows, columns=None if rows else index)


def flip_columns(
    rows: dict[str, TailoringRow], under_chosen: dict, under_rejected: dict, n_resamples: int
) -> dict[str, float]:
    """Return flip, DiD and share DiD > 0 with intervals, over rows with both outputs and both responses."""
    from persona_lib.stats.text_metrics import flip_and_did  # needs numpy

    ids = sorted(i for i in set(under_chosen) & set(under_rejected) if rows[i].chosen and rows[i].rejected)
    outputs = [[side[i].completion for i in ids] for side in (under_chosen, under_rejected)]
    flips = flip_and_did(*outputs, [rows[i].chosen for i in ids], [rows[i].rejected for i in ids])
    values = {"flip": flips.flip, "did_positive": flips.did_positive, "did": flips.did}
    return interval_columns([values], n_resamples, False)
