"""A web page on which you ask the trained policies: ``./run_all.sh --demo`` (``python -m persona_lib.demo``).

One question, one user, and the answers of any two policies side by side as they are written, each with what
the reader of answers sees in it. A policy is told the persona as in the paper's main table. The page is
served to this machine only, sends nothing, loads nothing from elsewhere and shows texts as text. Needs the
``[demo]`` extra.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from persona_lib.data.everyday import DIMENSIONS, UNREADABLE, shows
from persona_lib.models.generate import ONE_AT_A_TIME, TransformersGenerator
from persona_lib.models.load import ModelError, format_of
from persona_lib.paper.answers import PolicyLoader, adapters_of, eval_rows
from persona_lib.paper.swap import swap_arms
from persona_lib.prompts import STOP, beginning, completion_text, tailoring_prompt
from persona_lib.provenance import asked_run
from persona_lib.records import DataError, Table, table_of
from persona_lib.settings import ConfigError, Parser, Run, main_arm
from persona_lib.show import policy_name, quiet

MAX_CHARACTERS = 2000  # of a question or a persona that is typed in
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
N_QUESTIONS = 40  # of the evaluation split, offered with their users
INTRODUCTION = (
    "# Whose boat does it float?\n"
    "Two models that were trained on the same preferences answer one question for one user. DPO without "
    "personas is told about the user inside the question. Persona-tailored DPO (PT-DPO) was trained with "
    "personas. Pick a question with its user from the list, or write your own.\n\n"
    "The default run's model is **small** (135 million parameters): it errs on facts, check before use. "
    "Below each answer stands what a rule reads in its style."
)
# Worded by us. The first one is a situation that the paper discusses: a party, someone sober.
PARTY = "I am having people over for a party tonight. What could I get that would really liven it up?"
EXAMPLES = [
    (PARTY, "The user is sober and prefers ideas that everybody can enjoy without alcohol."),
    (PARTY, "The user is a generous host and prefers bold ideas that guests will talk about for weeks."),
    ("How do I ask my neighbours to be quieter?", "The user is shy and prefers to avoid a conversation."),
]


class Asker:
    """The trained policies of a run, loaded at the first question; ConfigError if none is trained."""

    def __init__(self, run: Run) -> None:
        self.arms = {  # arm -> how it is told the persona; the base has no adapters: always there
            arm: told
            for arm, told in swap_arms(run)
            if all((folder / "done.json").exists() for folder in adapters_of(run, arm))
        }
        if [*self.arms] == ["base"]:
            command = f"./run_all.sh --profile {run.profile.name}"
            raise ConfigError(f"no trained policy in {run.folder / 'adapters'}: run {command} first")
        self.run, self.loader, self.chat = run, PolicyLoader(run), format_of(*run.base_source)

    def prompt(self, arm: str, question: str, persona: str) -> str:
        """Return what an arm is asked; an empty persona is none. ConfigError without a question."""
        question, persona = question.strip(), persona.strip()
        if not question or max(len(question), len(persona)) > MAX_CHARACTERS:
            raise ConfigError(f"write a question; it and the persona have up to {MAX_CHARACTERS} characters")
        return tailoring_prompt(question, persona or None, self.arms[arm], self.chat)

    def answer(self, arm: str, question: str, persona: str) -> Iterator[str]:
        """Yield an arm's answer as it grows."""
        asked, settings = self.prompt(arm, question, persona), self.run.profile.generation
        with ONE_AT_A_TIME:
            model, tokenizer, adapters = self.loader.load(arm)
        penalty = settings.repetition_penalty
        generator = TransformersGenerator(model, tokenizer, arm, 1, adapters, repetition_penalty=penalty)
        begun = beginning(self.run.dataset, question)
        prompt = asked + completion_text(begun, self.chat)
        for text in generator.stream(prompt, settings.max_new_tokens, (STOP,), settings.min_new_tokens):
            yield f"{begun} {text}".strip()


def answer_own(run: Run, pairs: Sequence[tuple[str, str]] = ()) -> Table:
    """Return plain DPO's and PT-DPO's answers to (question, persona) pairs, or to our examples."""
    for number, pair in enumerate(pairs, start=1):
        if isinstance(pair, str) or [type(text) for text in pair] != [str, str]:
            raise ValueError(f"own, pair {number}: {pair!r}; write it as [question, persona], two texts")
    asker, table = Asker(run), table_of(list(pairs) or EXAMPLES, columns=["prompt", "persona"])
    for name, arm in (("plain_dpo", "dpo-none"), ("pt_dpo", f"dpo-{main_arm(run.profile)}")):
        asked = zip(table.prompt, table.persona, strict=True)
        known = arm in asker.arms
        table[name] = [[*asker.answer(arm, *pair)][-1] if known else f"({arm} not trained)" for pair in asked]
    return table


def seen(policy: str, answer: str) -> str:
    """Say which value of which dimension the reader sees in an answer, of those that it reads well."""
    values = {name: shows(name, answer) for name in DIMENSIONS if name not in UNREADABLE}
    said = ", ".join(f"{name}: {value}" for name, value in values.items() if value)
    return f"In the answer of {policy}, the reader rule sees {said or 'nothing'}."


def play(asker: Asker, question: str, persona: str, left: str, right: str) -> Iterator[tuple[str, ...]]:
    """Yield both answers with what is seen in each, while they come; what is wrong is said on the page."""
    import gradio

    shown = [""] * 4
    try:
        for place, arm in ((0, left), (2, right)):
            yield tuple(shown)
            for shown[place] in asker.answer(arm, question, persona):
                yield tuple(shown)
            shown[place + 1] = seen(policy_name(arm, asker.arms[arm]), shown[place])
        yield tuple(shown)
    except (ConfigError, ModelError) as error:
        raise gradio.Error(str(error)) from error


def build(asker: Asker) -> Any:
    """Return the page: questions with their users, and two policies side by side, each above its answer."""
    import gradio

    named = [(policy_name(*arm), arm[0]) for arm in asker.arms.items()]
    boxes: list[Any] = []
    listed = [
        [row.prompt, text]
        for row in eval_rows(asker.run)[:N_QUESTIONS]
        for kind, text in row.personas.items()
        if text and kind.startswith(("gold-", "user-"))
    ]
    with gradio.Blocks(title="Whose boat does it float?", analytics_enabled=False) as page:
        gradio.Markdown(INTRODUCTION)
        question = gradio.Textbox(listed[0][0], label="Question", elem_id="question")
        who = "This user (may stay empty)"
        persona = gradio.Textbox(listed[0][1], label=who, lines=2, elem_id="persona")
        ask, policies = gradio.Button("Ask both", variant="primary"), []
        with gradio.Row():
            for side, arm in (("first", "dpo-none"), ("second", f"dpo-{main_arm(asker.run.profile)}")):
                with gradio.Column(min_width=320):  # on a phone below each other
                    value = arm if arm in asker.arms else named[-1][1]
                    policies.append(gradio.Dropdown(named, value=value, label=f"{side} model"))
                    boxes.append(gradio.Textbox(label=f"{side} answer", lines=6, elem_id=f"{side}-answer"))
                    boxes.append(gradio.Markdown(elem_id=f"{side}-seen"))
        gradio.Examples(listed, [question, persona], label="Questions with their users")
        ask.click(lambda *given: (yield from play(asker, *given)), [question, persona, *policies], boxes,
                  api_visibility="private")  # fmt: skip
    return page


def launch(asker: Asker, port: int | None) -> Any:
    """Serve the page on the loopback address, from another thread, and return it."""
    import gradio

    page = build(asker)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.launch(server_name="127.0.0.1", server_port=port, share=False, theme=theme, quiet=True,
                css="td, td div {text-align: left !important; white-space: normal !important}",
                prevent_thread_lock=True, footer_links=[], ssr_mode=False)  # fmt: skip
    print(f"the demo of {asker.run.profile.name} is at {page.local_url} (end it with Ctrl-C)", flush=True)
    return page


def main(argv: list[str] | None = None) -> int:
    """Entry point; 2 for what the user has to correct."""
    os.environ.update(QUIET)
    quiet()
    parser = Parser(prog="./run_all.sh --demo", description=__doc__)
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    try:
        run, given = asked_run(parser, argv)
        launch(Asker(run), given.port).block_thread()
    except (ConfigError, DataError, FileNotFoundError, ModuleNotFoundError) as error:
        way_out = ': pip install -c constraints.txt -e ".[demo]"' if isinstance(error, ImportError) else ""
        print(f"error: {error}{way_out}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
