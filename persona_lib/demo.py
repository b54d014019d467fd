"""A page to ask the trained policies oneself: ``python -m persona_lib.demo`` or ``./run_all.sh --demo``.

A question and a persona in one's own words, or one that was inferred, and the answers of plain DPO and PT-DPO
side by side as they are written, with the persona swap of the two answers. Any two arms that a profile has
trained can be compared. The page is served to this machine only, sends nothing anywhere, loads nothing from
elsewhere and shows texts as text. Needs the ``[demo]`` extra.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any

from persona_lib.config import Run, open_run
from persona_lib.evaluation.ask import Asker, default_arms, known_personas
from persona_lib.evaluation.swap_tables import ROUNDING
from persona_lib.evaluation.tailor import eval_rows
from persona_lib.models.llm import ModelError
from persona_lib.profiles import ConfigError

HOST = "127.0.0.1"
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
N_QUESTIONS = 40  # of the evaluation split, offered in the list
FONTS = ["system-ui", "sans-serif"]
STYLE = "footer {display: none !important}"
SWAP_HEAD = ["policy", "m, this user", "m, the other user", "D", "preference follows the persona"]
INTRODUCTION = (
    "# Whose boat does it float?\n"
    "Two models that were trained on the same preferences answer one question for one user. The one "
    "trained without personas (`-none`) is told about the user in the first person; tailored ones read a "
    "persona. Pick a question of the test split or write one; pick an inferred persona or write one."
)
EXPLANATION = (
    "**Persona swap.** *m* is how much more probable a policy finds the right answer than the left one, as a "
    "difference of log-probabilities (nats). Exchange the persona and *m* should change: *D* > 0 means that "
    "the right answer is preferred more for the first user than for the other one."
)


def answer_both(
    asker: Asker, left: str, right: str, question: str, persona: str
) -> Iterator[tuple[str, str]]:
    """Yield both answers as they grow, the left one first."""
    first = second = ""
    for first in asker.answer(left, question, persona):
        yield first, second
    for second in asker.answer(right, question, persona):
        yield first, second
    yield first, second


def swap_table(
    asker: Asker, arms: tuple[str, str], question: str, personas: tuple[str, str], answers: tuple[str, str]
) -> str:
    """Return a line per policy: its preference between the answers under both personas, and D."""
    if not all(answers):
        return "One of the answers is empty: nothing to compare."
    lines = [SWAP_HEAD, ["---"] * len(SWAP_HEAD)]
    for arm in dict.fromkeys(arms):
        found = asker.swap(arm, question, personas, answers)
        numbers = [f"{value:+.1f}" for value in (found.margin, found.other_margin, found.score)]
        lines.append([arm, *numbers, "yes" if found.score > ROUNDING else "no"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def play(asker: Asker, left: str, right: str, question: str, persona: str, other: str) -> Iterator[tuple]:
    """Yield (left answer, right answer, swap table) while they come; what is wrong is said on the page."""
    import gradio

    first = second = ""
    try:
        for first, second in answer_both(asker, left, right, question, persona):
            yield first, second, ""
        yield first, second, swap_table(asker, (left, right), question, (persona, other), (first, second))
    except (ConfigError, ModelError) as error:
        raise gradio.Error(str(error)) from error


def choices(run: Run, question: str) -> list[tuple[str, str]]:
    """Return the personas offered for a question as (label, text)."""
    return [(f"{kind}: {text}", text) for kind, text in known_personas(run, question or "").items()]


def offered(run: Run, question: str) -> tuple[Any, str, str]:
    """Return the list of personas for a newly picked question, its first one, and the other side's."""
    import gradio

    known = known_personas(run, question or "")
    first, other = (known.get(f"gold-{side}", "") for side in ("chosen", "rejected"))
    return gradio.Dropdown(choices=choices(run, question), value=None), first, other


def build(asker: Asker) -> Any:
    """Return the page."""
    import gradio

    run, (left_arm, right_arm) = asker.run, default_arms(asker.run, asker.arms)
    questions = list(dict.fromkeys(row.prompt for row in eval_rows(run)))[:N_QUESTIONS]
    _, first, second = offered(run, questions[0])
    with gradio.Blocks(title="Whose boat does it float?", analytics_enabled=False) as page:
        gradio.Markdown(INTRODUCTION)
        question = gradio.Dropdown(questions, value=questions[0], allow_custom_value=True,
                                   label="Question", elem_id="question")  # fmt: skip
        known = gradio.Dropdown(choices(run, questions[0]), value=None, label="Inferred personas (pick one)")
        persona = gradio.Textbox(first, label="Persona", lines=2, elem_id="persona")
        other = gradio.Textbox(second, label="Another user, for the swap (empty: no persona)", lines=2)
        with gradio.Row():
            left = gradio.Dropdown(asker.arms, value=left_arm, label="Left policy")
            right = gradio.Dropdown(asker.arms, value=right_arm, label="Right policy")
        ask = gradio.Button("Ask both", variant="primary", elem_id="ask")
        with gradio.Row():
            boxes = [
                gradio.Textbox(label=f"{side} answer", lines=6, elem_id=f"{side.lower()}-answer")
                for side in ("Left", "Right")
            ]
        table = gradio.Markdown(elem_id="swap")
        gradio.Markdown(EXPLANATION)
        question.input(lambda q: offered(run, q), question, [known, persona, other], api_name=False)
        known.input(lambda text: text or "", known, persona, api_name=False)
        ask.click(lambda *given: (yield from play(asker, *given)), [left, right, question, persona, other],
                  [*boxes, table], api_name=False)  # fmt: skip
    return page


def launch(asker: Asker, port: int | None, block: bool = True) -> str:
    """Serve the page on the loopback address and return where; returns at the end if ``block``."""
    import gradio

    page, theme = build(asker), gradio.themes.Default(font=FONTS, font_mono=["monospace"])
    _, url, _ = page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        theme=theme,
        css=STYLE,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        ssr_mode=False,
    )
    print(f"the demo of profile {asker.run.profile.name} is at {url} (end it with Ctrl-C)", flush=True)
    if block:
        page.block_thread()
    return url


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m persona_lib.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: ./run_all.sh && ./run_all.sh --demo",
    )
    add = parser.add_argument
    add("--profile", default="everyday", metavar="NAME", help="whose policies to ask (default: everyday)")
    add("--dataset", default="", help="default: the profile's first")
    add("--seed", type=int, default=0, help="default: 0")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as for run_all.sh")
    add("--port", type=int, help="default: the first free one from 7860 on")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Entry point; 2 for what the user has to mend."""
    os.environ.update(QUIET)
    arguments = parse_arguments(argv)
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        print(f'error: {error}: pip install -c constraints.txt -e ".[demo]"', file=sys.stderr)
        return 2
    try:
        run = open_run(arguments.profile, arguments.dataset, arguments.seed, arguments.set)
        launch(Asker(run), arguments.port)
    except (ConfigError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
