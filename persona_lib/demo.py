"""A page to ask the trained policies oneself: ``python -m persona_lib.demo`` or ``./run_all.sh --demo``.

One question, one user, and the answers of plain DPO and PT-DPO (or of any two trained policies) side by side
as they are written; below them what the reader of answers sees in each. As in the paper's main table, a
policy that was trained without personas is told the persona in the first person, a tailored one in its
``Persona:`` line. The page is served to this machine only, sends nothing anywhere, loads nothing from
elsewhere and shows texts as text. Needs the ``[demo]`` extra.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from persona_lib.data import everyday
from persona_lib.data.official import ROLE_MARK
from persona_lib.data.reader import UNREADABLE, shows
from persona_lib.models import trainers
from persona_lib.models.generate import ONE_AT_A_TIME, TransformersGenerator
from persona_lib.models.load import ModelError, format_of
from persona_lib.paper.answers import adapters_of, eval_rows, whole_answer
from persona_lib.paper.swap import PolicyLoader, swap_arms
from persona_lib.prompts import STOP, beginning, begun_prompt, tailoring_prompt
from persona_lib.settings import ConfigError, Run, main_arm, open_run

if TYPE_CHECKING:
    import pandas as pd

MAX_CHARACTERS = 2000  # of a question or a persona that is typed in
HOST = "127.0.0.1"
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
N_QUESTIONS = 40  # of the evaluation split, offered in the list
INTRODUCTION = (
    "# Whose boat does it float?\n"
    "Two models that were trained on the same preferences answer one question for one user. Plain DPO was "
    "trained without personas and is told about the user inside the question. Tailored DPO was trained "
    "with personas. Pick a question or write any everyday one; pick a user or describe one.\n\n"
    "The default run's model is **small** (135 million parameters): it errs on facts, check before use."
)
ABSENT = ("prose", "plain")  # what a text shows by lacking something: nothing to point at
# Worded by us. The first one for real data is a situation that the paper discusses: a party, someone sober.
PARTY = "I am having people over for a party tonight. What could I get that would really liven it up?"
EXAMPLES = [
    (PARTY, "The user is sober and prefers ideas that everybody can enjoy without alcohol."),
    (PARTY, "The user is a generous host and prefers bold ideas that guests will talk about for weeks."),
    ("How do I ask my neighbours to be quieter?", "The user is shy and prefers to avoid a conversation."),
]
MNEMONIC = [
    ("gregarious", "The user is musical and prefers memory aids that rhyme."),
    ("gregarious", "The user is patient and prefers memory aids that lead to the meaning step by step."),
]


# --- a run's policies ---


def trained_arms(run: Run) -> list[str]:
    """Return the arms that can be asked: those whose adapters are finished; ConfigError if there is none."""
    arms = dict.fromkeys(arm for arm, _ in swap_arms(run) if arm != "base")
    there = [arm for arm in arms if all((f / "done.json").exists() for f in adapters_of(run, arm))]
    if not there:
        command = f"./run_all.sh --profile {run.profile.name}"
        raise ConfigError(f"no trained policy in {run.folder / 'adapters'}: run {command} first")
    return there


def words_of(arm: str) -> str:
    """Return a policy's name in words: "dpo-none" is "plain DPO"."""
    method, _, trained = arm.partition("-")
    name = {"sft": "fine-tuning", "dpo": "DPO"}.get(method, method)
    return f"plain {name}" if trained == "none" else f"tailored {name} ({trained} personas)"


class Asker:
    """The policies of a run, loaded at the first question: one base, adapters switched."""

    def __init__(self, run: Run) -> None:
        self.run, self.arms, self.loader = run, trained_arms(run), PolicyLoader(run)
        self.chat = format_of(*run.base_source)

    def load(self, arm: str) -> TransformersGenerator:
        """Return an arm's generator."""
        with ONE_AT_A_TIME, trainers.quiet_libraries():
            model, tokenizer = self.loader.load(arm)
        adapters = [folder.name for folder in adapters_of(self.run, arm)]
        penalty = self.run.profile.generation.repetition_penalty
        return TransformersGenerator(model, tokenizer, arm, 1, adapters, repetition_penalty=penalty)

    def prompt(self, arm: str, question: str, persona: str) -> str:
        """Return what an arm is asked; an empty persona is none. ConfigError without a question."""
        question, persona = question.strip(), persona.strip()
        if not question or max(len(question), len(persona)) > MAX_CHARACTERS:
            raise ConfigError(
                f"write a question; question and persona have up to {MAX_CHARACTERS} characters"
            )
        style = "first_person" if arm.endswith("-none") else "line"
        roles = self.run.dataset == "hhh" and not self.run.profile.data.strip_roles
        if roles and not ROLE_MARK.match(question):
            question = f"Human: {question}"  # as HHH's own prompts begin
        return tailoring_prompt(question, persona or None, style, self.chat)

    def answer(self, arm: str, question: str, persona: str) -> Iterator[str]:
        """Yield an arm's answer as it grows."""
        told, settings = self.prompt(arm, question, persona), self.run.profile.generation
        prompt = begun_prompt(told, beginning(self.run.dataset, question), self.chat)
        sizes = settings.max_new_tokens, (STOP,), settings.min_new_tokens
        for text in self.load(arm).stream(prompt, *sizes):
            yield whole_answer(self.run, question, text)


# --- a reader's own personas, in notebook 10 ---


def check_own(pairs: Sequence[Any]) -> list[tuple[str, str]]:
    """Return a reader's (question, persona) pairs; ValueError names a wrong one. A persona may be empty."""
    for number, pair in enumerate(pairs, start=1):
        texts = not isinstance(pair, str) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        if not texts or not pair[0].strip():
            wanted = "write it as [question, persona], two texts in quotes; only the persona may be empty"
            raise ValueError(f"own, pair {number}: {pair!r}; {wanted}")
    return [(question.strip(), persona.strip()) for question, persona in pairs]


def answer_own(run: Run, pairs: Sequence[Any] = ()) -> pd.DataFrame:
    """Return plain DPO's and PT-DPO's answers to (question, persona) pairs; without pairs, to our examples.

    Empty, with a line that says why, if one of the two is not trained. Raises ValueError for a wrong pair.
    """
    import pandas as pd

    checked = check_own(pairs or (MNEMONIC if run.dataset == "mnemonic" else EXAMPLES))
    arms = {"plain_dpo": "dpo-none", "pt_dpo": f"dpo-{main_arm(run.profile)}"}
    folders = {arm: adapters_of(run, arm) for arm in arms.values()}
    missing = [arm for arm, found in folders.items() if not all((f / "done.json").exists() for f in found)]
    if missing:
        print(f"no answers: {' and '.join(missing)} not trained; run the steps before this one")
        return pd.DataFrame(columns=["prompt", "persona", *arms])
    asker, table = Asker(run), pd.DataFrame(checked, columns=["prompt", "persona"])
    answers = {name: [[*asker.answer(arm, *pair)][-1] for pair in checked] for name, arm in arms.items()}
    return table.assign(**answers)


# --- what the page shows ---


def seen(text: str) -> str:
    """Return what the reader sees in a text, of what it reads well, in words; "" for an empty text."""
    read_well = [name for name in everyday.DIMENSIONS if name not in UNREADABLE]
    found = [shows(dimension, text) for dimension in read_well] if text else []
    marks = [value for value in found if value and value not in ABSENT]
    return f"the reader sees: {', '.join(marks) or 'nothing particular'}" if text else ""


def play(asker: Asker, left: str, right: str, question: str, persona: str) -> Iterator[tuple]:
    """Yield (left answer, right answer, what is seen in each) while they come.

    What is wrong is said on the page.
    """
    import gradio

    first = second = ""
    try:
        for first in asker.answer(left, question, persona):
            yield first, second, seen(first), ""
        for second in asker.answer(right, question, persona):
            yield first, second, seen(first), seen(second)
    except (ConfigError, ModelError) as error:
        raise gradio.Error(str(error)) from error


def known_personas(run: Run, question: str) -> dict[str, str]:
    """Return the personas that the evaluation row with this prompt has, by kind; {} for another question."""
    row = next((row for row in eval_rows(run) if row.prompt == question), None)
    return {kind: text for kind, text in row.personas.items() if text} if row else {}


def offered(run: Run, question: str) -> tuple[Any, str]:
    """Return the list of personas for a newly picked question, and its first one."""
    import gradio

    known = known_personas(run, question or "")
    choices = [(f"{kind}: {text}", text) for kind, text in known.items()]
    label = "Users of this question (pick one)"
    return gradio.Dropdown(choices=choices, value=None, label=label), known.get("gold-chosen", "")


def build(asker: Asker) -> Any:
    """Return the page."""
    import gradio

    run, arms = asker.run, asker.arms
    questions = list(dict.fromkeys(row.prompt for row in eval_rows(run)))[:N_QUESTIONS]
    policies = [(words_of(arm), arm) for arm in arms]
    wanted = {"Left": "dpo-none", "Right": f"dpo-{main_arm(run.profile)}"}
    sides = {side: arm if arm in arms else arms[0] for side, arm in wanted.items()}
    with gradio.Blocks(title="Whose boat does it float?", analytics_enabled=False) as page:
        gradio.Markdown(INTRODUCTION)
        question = gradio.Dropdown(questions, value=questions[0], allow_custom_value=True,
                                   label="Question", elem_id="question")  # fmt: skip
        known, first = offered(run, questions[0])
        persona = gradio.Textbox(first, label="This user (empty: not told)", lines=2, elem_id="persona")
        with gradio.Row():
            asked = [gradio.Dropdown(policies, value=arm, label=f"{n} policy") for n, arm in sides.items()]
        ask = gradio.Button("Ask both", variant="primary", elem_id="ask")
        with gradio.Row():
            boxes = [
                gradio.Textbox(label=f"{n} answer", lines=6, elem_id=f"{n.lower()}-answer") for n in sides
            ]
        with gradio.Row():
            marks = [gradio.Markdown(elem_id=f"{n.lower()}-seen") for n in sides]
        question.input(lambda q: offered(run, q), question, [known, persona], api_name=False)
        known.input(lambda text: text or "", known, persona, api_name=False)
        ask.click(lambda *given: (yield from play(asker, *given)), [*asked, question, persona],
                  [*boxes, *marks], api_name=False)  # fmt: skip
    return page


def launch(asker: Asker, port: int | None, block: bool = True) -> str:
    """Serve the page on the loopback address and return where; returns at the end if ``block``."""
    import gradio

    page = build(asker)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    _, url, _ = page.launch(server_name=HOST, server_port=port, share=False, theme=theme, quiet=True,
                            css="footer {display: none !important}", prevent_thread_lock=True,
                            footer_links=[], ssr_mode=False)  # fmt: skip
    print(f"the demo of profile {asker.run.profile.name} is at {url} (end it with Ctrl-C)", flush=True)
    if block:
        page.block_thread()
    return url


def main(argv: list[str] | None = None) -> int:
    """Entry point; 2 for what the user has to correct."""
    os.environ.update(QUIET)
    parser = argparse.ArgumentParser(prog="python -m persona_lib.demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--profile", default="everyday", metavar="NAME", help="whose policies to ask (default: everyday)")
    add("--dataset", default="", help="default: the profile's first")
    add("--seed", type=int, default=0, help="default: 0")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as for run_all.sh")
    add("--port", type=int, help="default: the first free one from 7860 on")
    given = parser.parse_args(argv)
    try:
        import gradio  # noqa: F401

        launch(Asker(open_run(given.profile, given.dataset, given.seed, given.set)), given.port)
    except ModuleNotFoundError as error:
        print(f'error: {error}: pip install -c constraints.txt -e ".[demo]"', file=sys.stderr)
        return 2
    except (ConfigError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
