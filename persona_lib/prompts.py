"""Every prompt of the package, as text constants and pure functions that render them.

The wording is ours. A chat model is asked in its own chat format, the persona as the system turn; a base
model in the paper's lines ("Prompt: / Persona: / Response:"). There a prompt ends right after the colon and a
completion starts with one space, so that the prompt's tokens are a prefix of the whole text's tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from persona_lib.records import PairwiseComparison
from persona_lib.store import facts

STOP = "\nPrompt:"

INFERENCE_INSTRUCTION = (
    "Describe in one short sentence a user who would like the preferred response more than the other."
    " Begin with The user is and say what they prefer."
)

JUDGE_RUBRICS: dict[str, dict[str, str]] = facts("rubrics")
LETTER_ALONE = "Answer with one letter: A or B."

FIRST_PERSON = (
    (r"^The user is\b", "I am"),
    (r"^The user prefers\b", "I prefer"),
    (r"\band prefers\b", "and prefer"),
    (r"\btheir\b", "my"),
    (r"\bthey are\b", "I am"),
    (r"\bthey\b", "I"),
    (r"\bthem\b", "me"),
)


def first_person(persona: str) -> str:
    """Rewrite "The user is X and prefers Y." as "I am X and prefer Y." (for the arm without personas)."""
    text = persona.strip()
    for pattern, word in FIRST_PERSON:
        text = re.sub(pattern, word, text)
    return text


@dataclass(frozen=True)
class ChatFormat:
    """The pieces of a chat model's own format, made from its template by ``models.load.chat_format``.

    ``told`` is around (persona, prompt), the persona as system turn; ``untold`` is around the prompt alone:
    both empty for a base model, which reads the paper's lines. ``end`` follows an answer. ``special`` are the
    special tokens, which must stay text in a user's text.
    """

    told: tuple[str, ...]
    untold: tuple[str, ...]
    end: str
    special: tuple[str, ...]

    def plain(self, text: str) -> str:
        """Return a user's text with a word joiner inside every special token's text."""
        for token in self.special:
            text = text.replace(token, f"{token[:1]}\u2060{token[1:]}")
        return text


def tailoring_prompt(
    prompt: str, persona: str | None, persona_format: str = "line", chat: ChatFormat | None = None
) -> str:
    """Render the prompt of a policy (paper section 4); ``chat`` None is a base model's.

    ``persona_format`` "line" gives the persona as the system turn (a base model: as a ``Persona:`` line),
    "first_person" appends it to the question. Without a persona there is no such turn or line.
    """
    if persona is not None and persona_format == "first_person":
        prompt, persona = f"{prompt} {first_person(persona)}", None
    if chat is not None:
        prompt, persona = chat.plain(prompt), None if persona is None else chat.plain(persona)
    if chat is None or not chat.told:
        line = "" if persona is None else f"Persona: {persona}\n"
        return f"Prompt: {prompt}\n{line}Response:"
    if persona is None:
        return f"{chat.untold[0]}{prompt.strip()}{chat.untold[1]}"
    return f"{chat.told[0]}{persona.strip()}{chat.told[1]}{prompt.strip()}{chat.told[2]}"


def beginning(dataset: str, prompt: str) -> str:
    """Return what answers begin with in the paper's runs: "TERM sounds like" for mnemonics (section 5)."""
    term = prompt.strip()
    return f"{term[:1].upper()}{term[1:]} sounds like" if dataset == "mnemonic" else ""


def completion_text(text: str, chat: ChatFormat | None = None) -> str:
    """Render a response (or its beginning) to ``tailoring_prompt``; a base model's begins with one space."""
    text = (text if chat is None else chat.plain(text)).strip()
    return f" {text}" if text and (chat is None or not chat.told) else text


def few_shot_prefix(shots: Sequence[tuple[str, str | None, str]], chat: ChatFormat | None = None) -> str:
    """Render worked examples (prompt, persona, response), each a conversation that has ended."""
    end = f"{chat.end}\n" if chat is not None and chat.told else "\n\n"
    asked = [(tailoring_prompt(prompt, persona, chat=chat), response) for prompt, persona, response in shots]
    return "".join(prompt + completion_text(response, chat) + end for prompt, response in asked)


def inference_query(prompt: str, preferred: str, other: str) -> str:
    """Render one persona-inference item; the persona is to follow (paper section 3)."""
    responses = f"Other response: {other.strip()}\nPreferred response: {preferred.strip()}"
    return f"Prompt: {prompt}\n{responses}\nPersona:"


def inference_prefix(shots: Sequence[tuple[str, str, str, str]]) -> str:
    """Render instruction and shots (prompt, preferred, other, persona): the part all queries share."""
    blocks = [f"{inference_query(p, preferred, other)} {persona}" for p, preferred, other, persona in shots]
    return "".join(f"{block}\n\n" for block in [INFERENCE_INSTRUCTION, *blocks])


def profile_query(personas: Sequence[str]) -> str:
    """Render what a user's persona is written from: the personas of several of the user's choices."""
    notes = "\n".join(f"- {persona}" for persona in personas)
    return (
        f"Notes about one user, each from one choice between two answers:\n{notes}\n\n"
        "Write one short sentence about what most of the notes agree on. Begin with The user is.\nPersona:"
    )


def judge_prompt(c: PairwiseComparison, rubric: str) -> str:
    """Render a comparison for a judge that answers "A" or "B"; quality is judged without the persona."""
    persona = f"Persona: {c.persona}\n" if rubric == "personalization" and c.persona else ""
    return (
        f"{JUDGE_RUBRICS[rubric]['question']} {LETTER_ALONE}\n\nPrompt: {c.prompt}\n{persona}"
        f"Response A: {c.response_a.strip()}\nResponse B: {c.response_b.strip()}\nBetter response:"
    )


def chat_judge_prompt(c: PairwiseComparison, rubric: str) -> str:
    """Render the same for a chat model, which is to give a reason and then "A" or "B" as JSON."""
    told = rubric == "personalization" and c.persona
    persona = f"Persona of the person who asks: {c.persona}\n" if told else ""
    return (
        f"Two responses to one prompt are to be compared. {JUDGE_RUBRICS[rubric]['question']}"
        " Neither their order nor their length is a reason.\n\n"
        f"Prompt: {c.prompt}\n{persona}\n"
        f"Response A:\n{c.response_a.strip()}\n\nResponse B:\n{c.response_b.strip()}\n\n"
        'Answer with one JSON object and nothing else: {"reason": one short sentence, "winner": "A" or "B"}'
    )


def preference_prompt(c: PairwiseComparison, rubric: str = "") -> str:
    """Render a zero-shot comparison of two personas of one prompt (paper Figure 4)."""
    return (
        f"Which persona describes a more plausible user of this prompt? {LETTER_ALONE}\n\n"
        f"Prompt: {c.prompt}\n"
        f"Persona A: {c.response_a}\nPersona B: {c.response_b}\nBetter persona:"
    )


def backwards_query(prompt: str, response: str) -> str:
    """Render what a persona is written from: a question and one response, or the question alone."""
    liked = f"The user liked this answer:\n{response.strip()}\n\n" if response else ""
    return (
        f"A user asked:\n{prompt.strip()}\n\n{liked}"
        "Describe this user in one sentence that begins with: The user"
    )


def relevance_query(response: str) -> str:
    """Render what a question is to be guessed from: an answer alone."""
    return f"Here is an answer:\n{response.strip()}\n\nWrite the question that it answers."
