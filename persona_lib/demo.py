"""A web page on which you ask the trained policies: ``./run_all.sh --demo`` (``python -m persona_lib.demo``).

One question, one user, and the answers of plain DPO and PT-DPO (or of any two trained policies) side by side
as they are written, with what the reader of answers sees in each. As in the paper's main table, a policy
that was trained without personas is told the persona in the first person, a tailored one in its ``Persona:``
line. The page is served to this machine only, sends nothing anywhere, loads nothing from elsewhere and shows
texts as text. Needs the ``[demo]`` extra.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from persona_lib.data.reader import shows
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
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
N_QUESTIONS = 40  # of the evaluation split, offered in the list
INTRODUCTION = (
    "# Whose boat does it float?\n"
    "Two models that were trained on the same preferences answer one question for one user. DPO without "
    "personas is told about the user inside the question. Persona-tailored DPO (PT-DPO) was trained with "
    "personas. Pick a question or write any everyday one; pick a user or describe one.\n\n"
    "The default run's model is **small** (135 million parameters): it errs on facts, check before use. "
    "Below each answer stands what a rule sees in its style."
)
SEEN = {  # values of the dimensions that the reader reads well -> words; prose and plain are what is absent
    "brief": "few words", "thorough": "many words", "steps": "steps", "warm": "warm words",
    "formal": "formal words", "technical": "figures and technical terms",
}  # fmt: skip
# Worded by us. The first one is a situation that the paper discusses: a party, someone sober.
PARTY = "I am having people over for a party tonight. What could I get that would really liven it up?"
EXAMPLES = [
    (PARTY, "The user is sober and prefers ideas that everybody can enjoy without alcohol."),
    (PARTY, "The user is a generous host and prefers bold ideas that guests will talk about for weeks."),
    ("How do I ask my neighbours to be quieter?", "The user is shy and prefers to avoid a conversation."),
]


class Asker:
    """The trained policies of a run, loaded at the first question: one base, adapters switched.

    Raises ConfigError if none is trained.
    """

    def __init__(self, run: Run) -> None:
        arms = dict.fromkeys(arm for arm, _ in swap_arms(run))  # the base has no adapters: always there
        self.arms = [arm for arm in arms if all((f / "done.json").exists() for f in adapters_of(run, arm))]
        if self.arms == ["base"]:
            command = f"./run_all.sh --profile {run.profile.name}"
            raise ConfigError(f"no trained policy in {run.folder / 'adapters'}: run {command} first")
        self.run, self.loader, self.chat = run, PolicyLoader(run), format_of(*run.base_source)

    def prompt(self, arm: str, question: str, persona: str) -> str:
        """Return what an arm is asked; an empty persona is none. ConfigError without a question."""
        question, persona = question.strip(), persona.strip()
        if not question or max(len(question), len(persona)) > MAX_CHARACTERS:
            raise ConfigError(
                f"write a question; question and persona have up to {MAX_CHARACTERS} characters"
            )
        style = "first_person" if arm.endswith("-none") else "line"
        return tailoring_prompt(question, persona or None, style, self.chat)

    def answer(self, arm: str, question: str, persona: str) -> Iterator[str]:
        """Yield an arm's answer as it grows."""
        told, settings = self.prompt(arm, question, persona), self.run.profile.generation
        with ONE_AT_A_TIME, trainers.quiet_libraries():
            loaded = self.loader.load(arm)
        adapters = [folder.name for folder in adapters_of(self.run, arm)]
        penalty = settings.repetition_penalty
        generator = TransformersGenerator(*loaded, arm, 1, adapters, repetition_penalty=penalty)
        prompt = begun_prompt(told, beginning(self.run.dataset, question), self.chat)
        for text in generator.stream(prompt, settings.max_new_tokens, (STOP,), settings.min_new_tokens):
            yield whole_answer(self.run, question, text)


def answer_own(run: Run, pairs: Sequence[tuple[str, str]] = ()) -> pd.DataFrame:
    """Return plain DPO's and PT-DPO's answers to (question, persona) pairs; without pairs, to our examples.

    Raises ValueError for what is no such pair.
    """
    import pandas as pd

    for number, pair in enumerate(pairs, start=1):
        if isinstance(pair, str) or [type(text) for text in pair] != [str, str]:
            raise ValueError(f"own, pair {number}: {pair!r}; write it as [question, persona], two texts")
    asker, table = Asker(run), pd.DataFrame(list(pairs) or EXAMPLES, columns=["prompt", "persona"])
    for name, arm in (("plain_dpo", "dpo-none"), ("pt_dpo", f"dpo-{main_arm(run.profile)}")):
        asked = zip(table.prompt, table.persona, strict=True)
        known = arm in asker.arms
        table[name] = [[*asker.answer(arm, *pair)][-1] if known else f"({arm} not trained)" for pair in asked]
    return table


# --- the page ---


def name_of(arm: str) -> str:
    """Name a policy in words."""
    method, _, personas = arm.partition("-")
    known = {"": "untrained model", "none": f"{method.upper()} without personas, told the persona"}
    of = "" if personas == "both" else f", {personas} personas"
    return known.get(personas, f"persona-tailored {method.upper()} (PT-{method.upper()}{of})")


def seen(answer: str) -> str:
    """Say in words what the reader sees in an answer."""
    values = [shows(dimension, answer) for dimension in ("length", "format", "tone", "detail")]
    return f"the reader sees: {', '.join(SEEN[v] for v in values if v in SEEN) or 'nothing particular'}"


def play(asker: Asker, left: str, right: str, question: str, persona: str) -> Iterator[tuple[str, ...]]:
    """Yield both answers and what is seen in each, while they come; what is wrong is said on the page."""
    import gradio

    first = second = ""
    yield ("",) * 4
    try:
        for first in asker.answer(left, question, persona):
            yield first, "", "", ""
        for second in asker.answer(right, question, persona):
            yield first, second, seen(first), ""
        yield first, second, seen(first), seen(second)
    except (ConfigError, ModelError) as error:
        raise gradio.Error(str(error)) from error


def build(asker: Asker) -> Any:
    """Return the page."""
    import gradio

    rows = {row.prompt: row for row in eval_rows(asker.run)[:N_QUESTIONS]}
    arms, wanted = asker.arms, {"left": "dpo-none", "right": f"dpo-{main_arm(asker.run.profile)}"}
    named = [(name_of(arm), arm) for arm in arms]

    def users(question: str) -> tuple[Any, str]:
        """Return the list of a listed question's users, and the chosen answer's; else keep what is typed."""
        known = rows[question].personas if question in rows else {}
        choices = [text for kind, text in known.items() if text and kind.startswith(("gold-", "user-"))]
        label = "Users of this question (pick one)"
        listed = gradio.Dropdown(choices, value=None, label=label, visible=bool(choices))
        return listed, (known.get("gold-chosen") or "") if known else gradio.skip()

    with gradio.Blocks(title="Whose boat does it float?", analytics_enabled=False) as page:
        gradio.Markdown(INTRODUCTION)
        first = next(iter(rows))
        question = gradio.Dropdown(list(rows), value=first, allow_custom_value=True, label="Question",
                                   elem_id="question")  # fmt: skip
        known, text = users(first)
        persona = gradio.Textbox(text, label="This user (empty: not told)", lines=2, elem_id="persona")
        with gradio.Row():
            asked = [gradio.Dropdown(named, value=arm if arm in arms else arms[-1], label=f"{side} policy")
                     for side, arm in wanted.items()]  # fmt: skip
        ask = gradio.Button("Ask both", variant="primary", elem_id="ask")
        with gradio.Row():
            boxes = [gradio.Textbox(label=f"{n} answer", lines=6, elem_id=f"{n}-answer") for n in wanted]
        with gradio.Row():
            boxes += [gradio.Markdown(elem_id=f"{n}-seen") for n in wanted]
        question.input(users, question, [known, persona], api_name=False)
        known.input(lambda text: text or gradio.skip(), known, persona, api_name=False)
        ask.click(lambda *given: (yield from play(asker, *given)), [*asked, question, persona], boxes,
                  api_name=False)  # fmt: skip
    return page


def launch(asker: Asker, port: int | None, block: bool = True) -> str:
    """Serve the page on the loopback address and return where; returns at the end if ``block``."""
    import gradio

    page = build(asker)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    _, url, _ = page.launch(server_name="127.0.0.1", server_port=port, share=False, theme=theme, quiet=True,
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
