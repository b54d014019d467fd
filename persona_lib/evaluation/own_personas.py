"""Personas that a reader writes: plain DPO and PT-DPO answer a reader's own questions.

Plain DPO is told the persona in the first person, as in the main comparison; PT-DPO has its own line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from persona_lib.config import Run, main_arm
from persona_lib.data.official import ROLE_MARK
from persona_lib.evaluation.policies import adapters_of, generators
from persona_lib.evaluation.tailor import ask_prompt, whole_answer
from persona_lib.models import guards
from persona_lib.prompts import STOP
from persona_lib.records import RunSpec

# Worded by us. The first one for real data is a situation that the paper discusses: a party, someone sober.
PARTY = (
    "I am having people over for a party tonight. What could I get that would really liven it up?",
    "The user is sober and prefers ideas that everybody can enjoy without alcohol or other substances.",
)
EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "mnemonic": [
        ("gregarious", "The user is musical and prefers memory aids that rhyme."),
        ("gregarious", "The user is patient and prefers memory aids that lead to the meaning step by step."),
    ],
}
REAL = [
    PARTY,
    (PARTY[0], "The user is a generous host and prefers bold ideas that guests will talk about for weeks."),
    (
        "How do I ask my neighbours to be quieter?",
        "The user is shy and prefers ways that avoid a conversation.",
    ),
]


@dataclass(frozen=True)
class OwnAnswer:
    """One question with a reader's persona (None: none was written) and both policies' answers."""

    question: str
    persona: str | None
    dpo: str
    pt_dpo: str


def default_pairs(run: Run) -> list[tuple[str, str]]:
    """Return what is asked if the reader gives nothing: our examples for the run's data set."""
    return EXAMPLES.get(run.dataset, REAL)


def as_asked(run: Run, question: str) -> str:
    """Return a question in the form of the run's prompts: HHH's begin with "Human:"."""
    role = run.dataset == "hhh" and not run.profile.strip_roles and not ROLE_MARK.match(question)
    return f"Human: {question}" if role else question


def check_pairs(pairs: Sequence[Any]) -> list[tuple[str, str | None]]:
    """Return (question, persona) pairs with an empty persona as None; ValueError says which row to mend."""
    found: list[tuple[str, str | None]] = []
    for number, pair in enumerate(pairs, start=1):
        where = f"own, pair {number}"
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"{where}: {pair!r}; write it as [question, persona]")
        for name, text in zip(("question", "persona"), pair, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"{where}, {name}: {text!r}; write it as text in quotes")
        if not pair[0].strip():
            raise ValueError(f"{where}, question: empty; write a question, or leave the pair out")
        found.append((pair[0].strip(), pair[1].strip() or None))
    return found


def own_specs(run: Run) -> dict[str, RunSpec]:
    """Return the two policies that are compared, by name."""
    return {
        "dpo": RunSpec(run.dataset, "dpo", "none", "none", run.seed, "first_person"),
        "pt_dpo": RunSpec(run.dataset, "dpo", main_arm(run.profile), "none", run.seed, "line"),
    }


def missing_policies(run: Run) -> list[str]:
    """Return the arms that are not trained yet: nothing can answer for them."""
    return [
        spec.arm
        for spec in own_specs(run).values()
        if not all((run.folder / "adapters" / name / "done.json").exists() for name in adapters_of(run, spec))
    ]


def answer(run: Run, spec: RunSpec, generator: Any, pairs: Sequence[tuple[str, str | None]]) -> list[str]:
    """Return one policy's answers, decoded as in the generation step."""
    profile = run.profile
    asked = [as_asked(run, question) for question, _ in pairs]
    prompts = [
        ask_prompt(run, question, persona, spec.persona_format)
        for question, (_, persona) in zip(asked, pairs, strict=True)
    ]
    done = generator.generate(
        prompts, profile.gen_max_new_tokens, (STOP,), min_new_tokens=profile.gen_min_new_tokens
    )
    texts = {index: whole_answer(run, asked[index], completion.text) for index, completion in done}
    return [texts[index] for index in range(len(prompts))]


def answer_own(run: Run, pairs: Sequence[Any] = ()) -> list[OwnAnswer]:
    """Answer (question, persona) pairs with plain DPO and PT-DPO; without pairs, our examples.

    Returns [] if one of the two policies is not there. Raises ValueError for a pair that is none.
    """
    checked = check_pairs(pairs or default_pairs(run))
    if missing_policies(run):
        return []
    specs, texts = own_specs(run), {}
    with guards.quiet_libraries():
        for spec, generator in generators(run, list(specs.values())):
            texts[spec.arm] = answer(run, spec, generator, checked)
    columns = [texts[spec.arm] for spec in specs.values()]
    return [OwnAnswer(*pair, *both) for pair, *both in zip(checked, *columns, strict=True)]
