"""Ask the trained policies from a notebook: a table for every reader, and a form where a kernel runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from persona_lib.config import Run
from persona_lib.evaluation.ask import Asker, default_arms, known_personas
from persona_lib.evaluation.tailor import eval_rows
from persona_lib.profiles import ConfigError

if TYPE_CHECKING:
    import pandas as pd

N_QUESTIONS = 20  # offered in the form


def ask_table(run: Run, question: str, personas: Sequence[str]) -> pd.DataFrame:
    """Return the answers of plain DPO and PT-DPO to one question, a line per persona ("" is none)."""
    import pandas as pd

    asker = Asker(run)
    arms = default_arms(run, asker.arms)
    rows = [
        {"persona": persona or "(none)"} | {arm: last(asker, arm, question, persona) for arm in arms}
        for persona in personas
    ]
    return pd.DataFrame(rows).set_index("persona")


def last(asker: Asker, arm: str, question: str, persona: str) -> str:
    """Return an arm's whole answer."""
    text = ""
    for text in asker.answer(arm, question, persona):  # noqa: B007
        pass
    return text


def ask_widget(run: Run) -> Any:
    """Return a form: question, persona, and the two answers as they are written. Needs a running kernel."""
    import ipywidgets

    asker = Asker(run)
    questions = list(dict.fromkeys(row.prompt for row in eval_rows(run)))[:N_QUESTIONS]
    wide = ipywidgets.Layout(width="95%")
    question = ipywidgets.Combobox(value=questions[0], options=questions, description="question", layout=wide)
    first = known_personas(run, questions[0]).get("gold-chosen", "")
    persona = ipywidgets.Textarea(first, description="persona", layout=wide)
    button, said = ipywidgets.Button(description="ask both", button_style="primary"), ipywidgets.Label()
    boxes = {arm: ipywidgets.Textarea(description=arm, disabled=True, rows=6, layout=wide)
             for arm in default_arms(run, asker.arms)}  # fmt: skip

    def ask(_: Any) -> None:
        said.value = ""
        try:
            for arm, box in boxes.items():
                for text in asker.answer(arm, question.value, persona.value):
                    box.value = text
        except ConfigError as error:
            said.value = str(error)

    button.on_click(ask)
    return ipywidgets.VBox([question, persona, button, said, ipywidgets.HBox(list(boxes.values()))])
