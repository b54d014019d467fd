"""A page to ask the trained policies oneself: ``python -m persona_lib.demo`` or ``./run_all.sh --demo``.

A question and a persona in one's own words, or one of the data, and two answers side by side as they are
written: of plain DPO and persona-tailored DPO, or of any two policies that a profile has trained, told the
persona or not. Below them stand what the reader of answers sees in each, and the persona swap. The page is
served to this machine only, sends nothing anywhere, loads nothing from elsewhere and shows texts as text.
Needs the ``[demo]`` extra.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_lib import weights
from persona_lib.data import everyday
from persona_lib.data.official import ROLE_MARK
from persona_lib.data.reader import UNREADABLE, shows
from persona_lib.models import trainers
from persona_lib.models.generate import ONE_AT_A_TIME, stream_text
from persona_lib.models.load import ModelError, format_of, sequence_log_probs, using_adapters
from persona_lib.paper.answers import eval_rows, forced_beginning, whole_answer
from persona_lib.paper.swap import ROUNDING, PolicyLoader, adapters_of, swap_arms
from persona_lib.prompts import STOP, begun_prompt, completion_text, tailoring_prompt
from persona_lib.settings import ConfigError, Run, main_arm, open_run

if TYPE_CHECKING:
    import pandas as pd

# --- Ask the trained policies of a run one's own questions, as the demo and the notebooks' widget do ---
# A policy that was trained without personas is told the persona in the first person, a tailored one in its
# ``Persona:`` line: as in every comparison of the paper's main table.


MAX_CHARACTERS = 2000  # of a question or a persona that is typed in


@dataclass(frozen=True)
class Swap:
    """How far one policy prefers the second of two answers (nats), told the one and the other persona."""

    margin: float
    other_margin: float

    @property
    def score(self) -> float:
        """D of the persona swap: above 0, the preference follows the persona (see ``swap_tables``)."""
        return self.margin - self.other_margin


def trained_arms(run: Run) -> list[str]:
    """Return the arms that can be asked: those whose adapters are finished; ConfigError if there is none."""
    arms = dict.fromkeys(arm for arm, _ in swap_arms(run) if arm != "base")
    there = [arm for arm in arms if all((f / "done.json").exists() for f in adapters_of(run, arm))]
    if not there:
        raise ConfigError(
            f"no trained policy in {run.folder / 'adapters'}: "
            f"run ./run_all.sh --profile {run.profile.name} first"
        )
    return there


def default_arms(run: Run, arms: list[str]) -> tuple[str, str]:
    """Return plain DPO and PT-DPO, or what comes closest of the arms that are there."""
    plain = [arm for arm in ("dpo-none", "sft-none") if arm in arms]
    tailored = [
        arm for arm in (f"dpo-{main_arm(run.profile)}", f"sft-{main_arm(run.profile)}") if arm in arms
    ]
    return (plain or arms)[0], (tailored or arms)[0]


def told_as(arm: str) -> str:
    """Return how an arm is told a persona."""
    return "first_person" if arm.endswith("-none") else "line"


def known_personas(run: Run, question: str) -> dict[str, str]:
    """Return the personas that the evaluation row with this prompt has, by kind; {} for another question."""
    row = next((row for row in eval_rows(run) if row.prompt == question), None)
    return {kind: text for kind, text in row.personas.items() if text} if row else {}


class Asker:
    """The policies of a run, loaded at the first question: one base, adapters switched."""

    def __init__(self, run: Run) -> None:
        self.run, self.arms, self.loader = run, trained_arms(run), PolicyLoader(run)
        self.chat = format_of(*run.base_source)

    def load(self, arm: str) -> tuple[Any, Any, list[str]]:
        """Return (model, tokenizer, names of the adapters to activate) of an arm."""
        if arm not in self.arms:
            raise ConfigError(f"arm {arm!r}: use one of {', '.join(self.arms)}")
        with ONE_AT_A_TIME, trainers.quiet_libraries():
            model, tokenizer = self.loader.load(arm)
        return model, tokenizer, [folder.name for folder in adapters_of(self.run, arm)]

    def prompt(self, arm: str, question: str, persona: str) -> str:
        """Return what an arm is asked; an empty persona is none. ConfigError without a question."""
        question, persona = question.strip(), persona.strip()
        if not question or max(len(question), len(persona)) > MAX_CHARACTERS:
            raise ConfigError(
                f"write a question; question and persona have up to {MAX_CHARACTERS} characters"
            )
        role = (
            self.run.dataset == "hhh" and not self.run.profile.strip_roles and not ROLE_MARK.match(question)
        )
        asked = f"Human: {question}" if role else question  # as HHH's own prompts begin
        return tailoring_prompt(asked, persona or None, told_as(arm), self.chat)

    def answer(self, arm: str, question: str, persona: str) -> Iterator[str]:
        """Yield an arm's answer as it grows."""
        model, tokenizer, adapters = self.load(arm)
        profile = self.run.profile
        begun = forced_beginning(self.run, question)
        prompt = begun_prompt(self.prompt(arm, question, persona), begun, self.chat)
        sizes = (profile.gen_max_new_tokens, profile.gen_min_new_tokens)
        penalty = profile.gen_repetition_penalty
        for text in stream_text(model, tokenizer, prompt, adapters, *sizes, (STOP,), penalty):
            yield whole_answer(self.run, question, text)

    def whole(self, arm: str, question: str, persona: str) -> str:
        """Return an arm's whole answer."""
        return [*self.answer(arm, question, persona)][-1]

    def swap(self, arm: str, question: str, personas: tuple[str, str], answers: tuple[str, str]) -> Swap:
        """Return how an arm's preference between two answers turns when the persona is exchanged."""
        model, tokenizer, adapters = self.load(arm)
        prompts = [self.prompt(arm, question, persona) for persona in personas for _ in answers]
        texts = [completion_text(answer, self.chat) for answer in answers] * 2
        with ONE_AT_A_TIME, using_adapters(model, adapters):
            values = sequence_log_probs(model, tokenizer, prompts, texts, len(texts)).tolist()
        return Swap(values[1] - values[0], values[3] - values[2])


# Worded by us. The first one for real data is a situation that the paper discusses: a party, someone sober.
PARTY = "I am having people over for a party tonight. What could I get that would really liven it up?"
MNEMONIC = [
    ("gregarious", "The user is musical and prefers memory aids that rhyme."),
    ("gregarious", "The user is patient and prefers memory aids that lead to the meaning step by step."),
]
EXAMPLES = [
    (
        PARTY,
        "The user is sober and prefers ideas that everybody can enjoy without alcohol or other substances.",
    ),
    (PARTY, "The user is a generous host and prefers bold ideas that guests will talk about for weeks."),
    (
        "How do I ask my neighbours to be quieter?",
        "The user is shy and prefers ways that avoid a conversation.",
    ),
]


def check_own(pairs: Sequence[Any]) -> list[tuple[str, str]]:
    """Return a reader's (question, persona) pairs; ValueError names a wrong one. A persona may be empty."""
    for number, pair in enumerate(pairs, start=1):
        texts = not isinstance(pair, str) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        if not texts or not pair[0].strip():
            raise ValueError(
                f"own, pair {number}: {pair!r}; write it as [question, persona], two texts in quotes; only "
                "the persona may be empty"
            )
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
    answers = {name: [asker.whole(arm, *pair) for pair in checked] for name, arm in arms.items()}
    return table.assign(**answers)


# --- A page to ask the trained policies oneself ---
# A question and a persona in one's own words, or one of the data, and two answers side by side as they are
# written: of plain DPO and persona-tailored DPO, or of any two policies that a profile has trained, told
# the persona or not. Below them stand what the reader of answers sees in each, and the persona swap. The
# page is served to this machine only, sends nothing anywhere, loads nothing from elsewhere and shows texts
# as text. Needs the ``[demo]`` extra.


HOST = "127.0.0.1"
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
N_QUESTIONS = 40  # of the evaluation split, offered in the list
FONTS = ["system-ui", "sans-serif"]
STYLE = "footer {display: none !important}"
SWAP_HEAD = ["policy", "leans to the right answer for this user", "for the other user", "follows the user"]
INTRODUCTION = (
    "# Whose boat does it float?\n"
    "Two models that were trained on the same preferences answer one question for one user. Plain DPO was "
    "trained without personas and is told about the user inside the question. Tailored DPO was trained "
    "with personas. Pick a question or write any everyday one; pick a user or describe one.\n\n"
)
SMALL = (
    "**A small model**: {parameters} million parameters. "
    "It writes English and errs on facts: check before use."
)
EXPLANATION = (
    "**Persona swap.** How much more likely does a policy find the right answer than the left one "
    "(difference of log-probabilities)? Exchange the user, and the number should change in the user's "
    "favour."
)
METHODS = {"sft": "fine-tuning", "dpo": "DPO"}
TRAINED = {
    "none": "plain {}",
    "both": "tailored {} (both personas)",
    "chosen": "tailored {} (chosen personas)",
}
UNTOLD = "/not told"  # behind a policy that is asked without the persona
ABSENT = ("prose", "plain")  # what a text shows by lacking something: nothing to point at


def answer_both(
    asker: Asker, left: str, right: str, question: str, persona: str
) -> Iterator[tuple[str, str]]:
    """Yield both answers as they grow, the left one first."""
    first = second = ""
    for first in asker.answer(*told(left, question, persona)):
        yield first, second
    for second in asker.answer(*told(right, question, persona)):
        yield first, second
    yield first, second


def told(policy: str, question: str, persona: str) -> tuple[str, str, str]:
    """Return (arm, question, persona) to ask; the persona is empty for a policy that is not told it."""
    return policy.removesuffix(UNTOLD), question, "" if policy.endswith(UNTOLD) else persona


def swap_table(
    asker: Asker, arms: tuple[str, str], question: str, personas: tuple[str, str], answers: tuple[str, str]
) -> str:
    """Return a line per policy: its preference between the answers under both personas, and D."""
    if not all(answers):
        return "One of the answers is empty: nothing to compare."
    lines = [SWAP_HEAD, ["---"] * len(SWAP_HEAD)]
    for arm in dict.fromkeys(arm.removesuffix(UNTOLD) for arm in arms):
        found = asker.swap(arm, question, personas, answers)
        numbers = [f"{value:+.1f}" for value in (found.margin, found.other_margin)]
        lines.append([words_of(arm), numbers[0], numbers[1], "yes" if found.score > ROUNDING else "no"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def words_of(arm: str) -> str:
    """Return a policy's name in words: "dpo-none" is "plain DPO"."""
    method, _, trained = arm.partition("-")
    return TRAINED.get(trained, "tailored {} (" + trained + ")").format(METHODS.get(method, method))


def seen(text: str) -> str:
    """Return what the reader sees in a text, of what it reads well, in words; "" for an empty text."""
    read_well = [name for name in everyday.DIMENSIONS if name not in UNREADABLE]
    found = [shows(dimension, text) for dimension in read_well] if text else []
    marks = [value for value in found if value and value not in ABSENT]
    return f"the reader sees: {', '.join(marks) or 'nothing particular'}" if text else ""


def play(asker: Asker, left: str, right: str, question: str, persona: str, other: str) -> Iterator[tuple]:
    """Yield (left answer, right answer, swap table) while they come; what is wrong is said on the page."""
    import gradio

    first = second = ""
    try:
        for first, second in answer_both(asker, left, right, question, persona):
            yield first, second, seen(first), seen(second), ""
        table = swap_table(asker, (left, right), question, (persona, other), (first, second))
        yield first, second, seen(first), seen(second), table
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


def small_note(asker: Asker) -> str:
    """Say how large the model is, where the table of weights knows it."""
    source = asker.run.profile.base_model
    row = weights.entry(source) if weights.is_packaged(source) else None
    return SMALL.format(parameters=round(row["parameters"] / 1e6)) if row else ""


def build(asker: Asker) -> Any:
    """Return the page."""
    import gradio

    run, (left_arm, right_arm) = asker.run, default_arms(asker.run, asker.arms)
    questions = list(dict.fromkeys(row.prompt for row in eval_rows(run)))[:N_QUESTIONS]
    _, first, second = offered(run, questions[0])
    with gradio.Blocks(title="Whose boat does it float?", analytics_enabled=False) as page:
        gradio.Markdown(INTRODUCTION + small_note(asker))
        question = gradio.Dropdown(questions, value=questions[0], allow_custom_value=True,
                                   label="Question", elem_id="question")  # fmt: skip
        known = gradio.Dropdown(
            choices(run, questions[0]), value=None, label="Users of this question (pick one)"
        )
        persona = gradio.Textbox(first, label="This user", lines=2, elem_id="persona")
        other = gradio.Textbox(second, label="Another user, for the swap (empty: no persona)", lines=2)
        with gradio.Row():
            named = [(words_of(arm), arm) for arm in asker.arms]
            named += [(f"{words}, not told who asks", arm + UNTOLD) for words, arm in named]
            left = gradio.Dropdown(named, value=left_arm, label="Left policy")
            right = gradio.Dropdown(named, value=right_arm, label="Right policy")
        ask = gradio.Button("Ask both", variant="primary", elem_id="ask")
        with gradio.Row():
            boxes = [
                gradio.Textbox(label=f"{side} answer", lines=6, elem_id=f"{side.lower()}-answer")
                for side in ("Left", "Right")
            ]
        with gradio.Row():
            marks = [gradio.Markdown(elem_id=f"{side}-marks") for side in ("left", "right")]
        table = gradio.Markdown(elem_id="swap")
        gradio.Markdown(EXPLANATION)
        question.input(lambda q: offered(run, q), question, [known, persona, other], api_name=False)
        known.input(lambda text: text or "", known, persona, api_name=False)
        ask.click(lambda *given: (yield from play(asker, *given)), [left, right, question, persona, other],
                  [*boxes, *marks, table], api_name=False)  # fmt: skip
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
