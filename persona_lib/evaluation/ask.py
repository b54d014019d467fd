"""Ask the trained policies of a run one's own questions, as the demo and the notebooks' widget do.

A policy that was trained without personas is told the persona in the first person, a tailored one in its
``Persona:`` line: as in every comparison of the paper's main table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from persona_lib.config import Run, main_arm
from persona_lib.evaluation.swap import PolicyLoader, adapters_of, swap_arms
from persona_lib.evaluation.tailor import eval_rows, forced_beginning, whole_answer
from persona_lib.models import guards
from persona_lib.models.llm import format_of, sequence_log_probs, using_adapters
from persona_lib.models.stream import ONE_AT_A_TIME, stream_text
from persona_lib.profiles import ConfigError
from persona_lib.prompts import STOP, begun_prompt, completion_text, tailoring_prompt

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
        with ONE_AT_A_TIME, guards.quiet_libraries():
            model, tokenizer = self.loader.load(arm)
        return model, tokenizer, [folder.name for folder in adapters_of(self.run, arm)]

    def prompt(self, arm: str, question: str, persona: str) -> str:
        """Return what an arm is asked; an empty persona is none. ConfigError without a question."""
        question, persona = question.strip(), persona.strip()
        if not question or max(len(question), len(persona)) > MAX_CHARACTERS:
            raise ConfigError(
                f"write a question; question and persona have up to {MAX_CHARACTERS} characters"
            )
        return tailoring_prompt(question, persona or None, told_as(arm), self.chat)

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

    def swap(self, arm: str, question: str, personas: tuple[str, str], answers: tuple[str, str]) -> Swap:
        """Return how an arm's preference between two answers turns when the persona is exchanged."""
        model, tokenizer, adapters = self.load(arm)
        prompts = [self.prompt(arm, question, persona) for persona in personas for _ in answers]
        texts = [completion_text(answer, self.chat) for answer in answers] * 2
        with ONE_AT_A_TIME, using_adapters(model, adapters):
            values = sequence_log_probs(model, tokenizer, prompts, texts, len(texts)).tolist()
        return Swap(values[1] - values[0], values[3] - values[2])
