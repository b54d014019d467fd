"""For the notebook on users' personas: what plain DPO and PT-DPO answer to a reader's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from persona_lib.config import Run
from persona_lib.evaluation.own_personas import answer_own, missing_policies

if TYPE_CHECKING:
    import pandas as pd

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
