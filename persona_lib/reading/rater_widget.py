"""Rate a sheet in the notebook: one item at a time, with buttons; every click is saved in the CSV file.

``still`` shows the first item as plain HTML where nobody can click (papermill, a web page). The widget reads
and writes nothing but the rater's own sheet, so it is as blind as the sheet.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persona_lib.evaluation.rating_sheets import QUESTIONS, SCALE, TEXTS, to_csv
from persona_lib.evaluation.ratings import open_csv, read_value, study_of
from persona_lib.store import write_text

Row = dict[str, str]


def texts_html(study: str, row: Row) -> str:
    """Return an item's texts as HTML, escaped, line breaks kept."""
    return "".join(
        f"<p><b>{name.replace('_', ' ')}</b><br><span style='white-space:pre-wrap'>"
        f"{html.escape(row[name])}</span></p>"
        for name in TEXTS[study]
    )


def still(sheet: Path, number: int = 0) -> str:
    """Return one item of a sheet, with its questions, as static HTML."""
    columns, rows = open_csv(sheet)
    study = study_of(sheet, columns)
    questions = "".join(
        f"<li><b>{name}</b>: {html.escape(text)}</li>" for name, text in QUESTIONS[study].items()
    )
    head = f"<p>{html.escape(sheet.name)}, item {number + 1} of {len(rows)}</p>"
    return f"{head}{texts_html(study, rows[number])}<ul>{questions}</ul>"


def first_open(study: str, rows: list[Row]) -> int:
    """Return the place of the first item that lacks a rating; the last item's if none does."""
    lacking = (n for n, row in enumerate(rows) if any(read_value(row[q]) is None for q in QUESTIONS[study]))
    return next(lacking, len(rows) - 1)


def question_buttons(name: str, text: str) -> Any:
    """Return the five buttons of a question."""
    import ipywidgets

    return ipywidgets.ToggleButtons(
        options=[("-", None), *((str(value), value) for value in SCALE)],
        description=name,
        tooltips=[text] * (len(SCALE) + 1),
        style={"description_width": "10em", "button_width": "3em"},
    )


def step_button(text: str, move: Callable[[int], None], by: int) -> Any:
    """Return a button that moves on or back."""
    import ipywidgets

    button = ipywidgets.Button(description=text)
    button.on_click(lambda _: move(by))
    return button


def rater(sheet: Path) -> Any:
    """Return a widget that rates a sheet, beginning at the first item that lacks a rating.

    Every click writes the file anew (atomically), so closing the notebook loses nothing.
    """
    import ipywidgets

    columns, rows = open_csv(sheet)
    study = study_of(sheet, columns)
    at = [first_open(study, rows)]
    texts, place = ipywidgets.HTML(), ipywidgets.HTML()
    buttons = {name: question_buttons(name, text) for name, text in QUESTIONS[study].items()}

    def show() -> None:
        row = rows[at[0]]
        texts.value = texts_html(study, row)
        place.value = f"item {at[0] + 1} of {len(rows)}"
        for name, button in buttons.items():
            button.value = read_value(row[name])

    def save(name: str, value: int | None) -> None:
        text = "" if value is None else str(value)
        if rows[at[0]][name] != text:
            rows[at[0]][name] = text
            write_text(sheet, to_csv(columns, [[row[column] for column in columns] for row in rows]))

    def move(by: int) -> None:
        at[0] = min(max(at[0] + by, 0), len(rows) - 1)
        show()

    show()
    for name, button in buttons.items():
        button.observe(lambda change, name=name: save(name, change["new"]), names="value")
    steps = [step_button("back", move, -1), step_button("next", move, 1), place]
    asked = [ipywidgets.HTML(f"<b>{n}</b>: {html.escape(text)}") for n, text in QUESTIONS[study].items()]
    return ipywidgets.VBox([texts, *asked, *buttons.values(), ipywidgets.HBox(steps)])
