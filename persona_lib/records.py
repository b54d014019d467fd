"""The records that travel between the steps, one frozen dataclass per kind of row.

Every record has an ``id``; nothing is recovered by parsing a prompt, by line order or by comparing texts.
Names follow TRL (prompt, chosen, rejected, completion), the paper (persona) and the judge literature.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from pandas import DataFrame as Table
else:
    Table = Any  # pandas is loaded at the first table

Side = Literal["chosen", "rejected"]
Method = Literal["few_shot", "sft", "dpo"]
Rubric = str  # a name in facts/rubrics.yaml
Verdict = Literal["win", "tie", "loss", "unparsed"]
Winner = Literal["A", "B"] | None  # of one judgment
EvalPersona = Literal[
    "none", "system", "gold-chosen", "gold-rejected", "retrieved-chosen", "retrieved-rejected",
    "shuffled-chosen", "shuffled-rejected", "user-chosen", "user-rejected"
]  # fmt: skip

SIDES: tuple[Side, ...] = ("chosen", "rejected")
PAIR_SPLITS = ("train", "validation", "test")
HISTORY = "history"  # a fourth split: pairs of test users, of which only their persona is made
PAIR_FIELDS = ("prompt", "chosen", "rejected")
EVAL_PERSONAS: tuple[EvalPersona, ...] = get_args(EvalPersona)


class DataError(ValueError):
    """Data that cannot be used; the message says where it is, what is wrong and how to mend it."""


@dataclass(frozen=True)
class PreferencePair:
    """One row of preference data: a prompt, the response that won and the one that lost (TRL names).

    ``user`` (hashed) is who preferred, and the personas are those that the data brings; "" without.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    user: str = ""
    persona_chosen: str = ""
    persona_rejected: str = ""


@dataclass(frozen=True)
class InferredPersona:
    """A persona inferred for one side of a pair (paper section 3), and the model's whole answer (``raw``).

    ``persona`` is None when the answer is none; ``status`` then says why (``personas.parse_persona``).
    """

    id: str
    side: Side
    model: str
    persona: str | None
    status: str
    raw: str


@dataclass(frozen=True)
class UserPersona:
    """A user's persona, made of the personas of their first ``length`` pairs of history (0: all)."""

    id: str
    user: str
    length: int
    persona: str
    support: list[str]  # ids of the pairs that are most like it
    seen: bool  # in training


@dataclass(frozen=True)
class TailoringRow:
    """A preference pair with its personas: one row of the persona-tailoring data (paper section 4).

    Personas are keyed by ``EvalPersona``; a missing key or None means that there is none. ``retrieved_id``
    names the training row that both retrieved personas come from.
    """

    id: str
    split: str
    prompt: str
    chosen: str
    rejected: str
    personas: dict[str, str | None] = field(default_factory=dict)
    retrieved_id: str | None = None


@dataclass(frozen=True)
class RunSpec:
    """One cell of the grid: which policy answers, and which persona it is shown.

    ``persona_format`` is how the persona reaches the prompt: "line" is the tailored models' own
    ``Persona:`` line, "first_person" appends it to the question as the paper does for its baseline.
    """

    dataset: str
    method: Method
    train_persona: str  # a name in ``data.preference.ARMS``
    eval_persona: str
    seed: int
    persona_format: str = "line"

    @property
    def arm(self) -> str:
        """Name of the trained policy, e.g. "dpo-chosen"; also its adapter folder."""
        return f"{self.method}-{self.train_persona}"

    @property
    def slug(self) -> str:
        """Path-safe name of the run within its dataset and seed, e.g. "dpo-chosen.gold-rejected.line"."""
        return f"{self.arm}.{self.eval_persona}.{self.persona_format}"


@dataclass(frozen=True)
class Generation:
    """One completion of one run. ``finish_reason`` is "stop" (EOS or stop string) or "length"."""

    id: str
    run: str
    prompt: str
    persona: str | None
    completion: str
    finish_reason: str
    n_tokens: int


@dataclass(frozen=True)
class PairwiseComparison:
    """Two responses to compare under one rubric; the judge sees A first."""

    id: str
    prompt: str
    persona: str | None
    response_a: str
    response_b: str


@dataclass(frozen=True)
class Judgment:
    """A judge's answer to one comparison; without ``winner`` it is a ``tie``, or nothing could be read."""

    id: str
    judge: str
    rubric: Rubric
    winner: Winner
    tie: bool = False
    feedback: str = ""


def table_of(rows: Iterable[Any], columns: Sequence[str] | None = None) -> Table:
    """Return rows as a table."""
    import pandas as pd

    return pd.DataFrame(rows, columns=columns)


def stacked(tables: Iterable[Table]) -> Table:
    """Return tables below each other; an empty one of none."""
    import pandas as pd

    return pd.concat([table_of([]), *tables], ignore_index=True)
