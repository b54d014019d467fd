"""What the base model did not see: its pretraining text, made again and read by rule.

Persona tailoring is only learned in tailoring if the base never saw a persona next to a question or an
answer about a topic of the experiments. The text is deterministic, so this is counted, not assumed.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from persona_lib.models.base import BOS, EOS, PAD, WORD_PATTERN, synthetic_windows
from persona_lib.profiles import Profile
from persona_lib.world.synthetic import Topic, all_prompts, make_topics, topics_of
from persona_lib.world.vocabulary import (
    CONTENT_SENTENCES,
    EXPERIMENT_TEMPLATES,
    HELD_OUT_FRAMES,
    LEXICON,
    OPENERS,
    VARIANTS,
)

EXPERIMENT_SPLITS = ("train", "validation", "test")
TOPIC = re.compile(rf"\b((?:{'|'.join(VARIANTS)}) [a-z]+)\b")
INFERRED = re.compile(r"\nPersona:(.*)")  # the answer in a persona-inference document
FORBIDDEN = (
    "persona next to an experiment topic",
    "prompt of the experiments",
    "held-out word in an inference persona",
    "held-out frame in an inference document",
)


def persona_words(part: str | None = None) -> set[str]:
    """Return the adjectives and phrases of personas: the "known" or "held_out" ones, or all."""
    parts = [part] if part else ["known", "held_out"]
    kinds = [kind for entry in LEXICON.values() for kind in entry.values()]
    return {word for kind in kinds for name in parts for word in kind[name]}


def any_word(words: Iterable[str]) -> re.Pattern:
    """Compile a pattern that finds any of the words, whole."""
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(words)))})\b")


def any_frame(frames: Iterable[str]) -> re.Pattern:
    """Compile a pattern that finds a sentence of any of the frames, whatever fills it."""
    fillers = {"adjective": r"\w+", "phrase": r"[\w ]+"}
    parts = [re.escape(frame).replace(r"\{", "{").replace(r"\}", "}").format(**fillers) for frame in frames]
    return re.compile("|".join(parts))


def without_answers(text: str) -> str:
    """Cut out the sentences by which responses show a value: "Take the daring route." is no persona."""
    for sentences in (*CONTENT_SENTENCES.values(), *OPENERS.values()):
        for sentence in sentences:
            text = text.replace(sentence, "")
    return text


@dataclass(frozen=True)
class Pieces:
    """The encoding of a text by `SplitTokenizer`: its pieces stand where token ids would."""

    ids: list[str]


class SplitTokenizer:
    """Splits text as the world's tokenizer does, and keeps the pieces instead of their numbers.

    It has what ``base.encode_documents`` uses of a tokenizer and of its core.
    """

    bos_token_id, eos_token_id, pad_token_id = BOS, EOS, PAD

    @property
    def backend_tokenizer(self) -> SplitTokenizer:
        """Its own core."""
        return self

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool = False) -> list[Pieces]:
        """Return the pieces of every text; joined they are the text again."""
        return [Pieces([sys.intern(p) for p in re.findall(WORD_PATTERN, text)]) for text in texts]


def documents_seen(profile: Profile, base_seed: int) -> Iterator[str]:
    """Yield the documents in the very windows that a base model of the synthetic world is trained on."""
    for windows in synthetic_windows(profile, base_seed, SplitTokenizer()):
        for window in windows:
            text = "".join(piece for piece in window["input_ids"] if piece not in (EOS, PAD))
            yield from text.split(BOS)[1:]


def prompts_by_topic(topics: Iterable[Topic]) -> dict[str, list[str]]:
    """Return every prompt that the experiments can draw, by topic name."""
    prompts: dict[str, list[str]] = {}
    for topic, prompt in all_prompts(list(topics), EXPERIMENT_TEMPLATES):
        prompts.setdefault(topic.name, []).append(prompt)
    return prompts


def check_documents(documents: Iterable[str], world_seed: int) -> dict[str, int]:
    """Count the kinds of documents and, among them, what must not occur (the keys of ``FORBIDDEN``)."""
    experiment = prompts_by_topic(topics_of(make_topics(world_seed), *EXPERIMENT_SPLITS))
    persona, held_out = any_word(persona_words()), any_word(persona_words("held_out"))
    frame = any_frame(HELD_OUT_FRAMES)
    counts: Counter[str] = Counter()
    for text in documents:
        topics = set(TOPIC.findall(text)) & experiment.keys()
        told = persona.search(without_answers(text)) is not None
        inferred = INFERRED.findall(text)
        counts["documents"] += 1
        counts["persona inference" if inferred else "with a persona" if told else "plain"] += 1
        counts[FORBIDDEN[0]] += told and bool(topics)
        counts[FORBIDDEN[1]] += any(prompt in text for topic in topics for prompt in experiment[topic])
        counts[FORBIDDEN[2]] += any(held_out.search(line) for line in inferred)
        counts[FORBIDDEN[3]] += bool(inferred) and frame.search(text) is not None
    return {"documents": 0, "plain": 0, "with a persona": 0, "persona inference": 0} | dict(counts)


def check_texts(texts: Iterable[str], prompts: Iterable[str]) -> dict[str, int]:
    """Count texts of real data, and those with a persona beside a response or with a prompt to keep out."""
    kept_out, counts = set(prompts), Counter[str]()
    for text in texts:
        told, answered = "\nPersona:" in text, "\nResponse:" in text
        prompt = re.split(r"\n(?:Persona|Response):", text.removeprefix("Prompt: "))[0]
        counts["documents"] += 1
        counts["with a persona" if told else "plain"] += 1
        counts[FORBIDDEN[0]] += told and answered
        counts[FORBIDDEN[1]] += prompt in kept_out
    return dict(counts)


def check_unseen(profile: Profile, base_seed: int) -> dict[str, int]:
    """Count, over all text that a base model of this profile saw, what must not be in it.

    For real data: the training texts against the validation and test prompts. A hub model's text is
    not known: the result is empty.
    """
    if profile.base_model != "scratch":
        return {}
    if profile.datasets == ("synthetic",):
        return check_documents(documents_seen(profile, base_seed), profile.world_seed)
    from persona_lib.data.preference import held_out_prompts, pretraining_texts

    return check_texts(pretraining_texts(profile), held_out_prompts(profile))


def violations(counts: dict[str, Any]) -> dict[str, int]:
    """Return the forbidden things that do occur, with their counts."""
    return {name: counts[name] for name in FORBIDDEN if counts.get(name)}
