"""For the notebook on the base model: a document of each kind it is pretrained on, and what it completes."""

from __future__ import annotations

import random
from typing import Any

from persona_lib.config import base_source
from persona_lib.profiles import Profile

LABELS = ("Response:", "Liked answer:", "Persona:")
HUB_DOCUMENTS = {"question": "Prompt: How do I repot a plant?\nResponse: Water it first."}


def base_documents(profile: Profile, seed: int = 0) -> dict[str, str]:
    """Return a fresh document of each kind that the base model is pretrained on, by kind.

    In the synthetic world they are drawn anew, as the model's own text is. For a hub model, whose text
    is not known, one question of ours stands in.
    """
    if profile.base_model != "scratch":
        return HUB_DOCUMENTS
    rng = random.Random(f"shown-{seed}")
    if profile.datasets != ("synthetic",):
        from persona_lib.data.preference import pretraining_texts

        texts = [text for text in pretraining_texts(profile) if len(text) < 500]
        return {f"training text {number}": rng.choice(texts) for number in (1, 2)}
    from persona_lib.world.synthetic import (
        inference_document,
        make_topics,
        plain_document,
        story_document,
        topics_of,
    )

    topics = make_topics(profile.world_seed)
    library = topics_of(topics, "library")
    documents = {
        "plain": plain_document(profile, list(topics.values()), rng),
        "story": story_document(profile, library, rng),
        "persona inference": inference_document(profile, library, rng, 2),
    }
    return {kind: "".join(text for text, _ in document) for kind, document in documents.items()}


def documents_text(documents: dict[str, str]) -> str:
    """Return the documents as text for a reader."""
    return "\n\n\n".join(f"--- {kind} ---\n{text}" for kind, text in documents.items())


def split_document(text: str) -> tuple[str, str]:
    """Cut a document after its last label: (what is given, what followed); ValueError without a label."""
    label = max(LABELS, key=text.rfind)
    head, found, tail = text.rpartition(label)
    if not found:
        raise ValueError(f"no label of {', '.join(LABELS)} in {text!r}")
    return head + found, tail.strip()


def complete_documents(profile: Profile, seed: int, documents: dict[str, str], max_new_tokens: int) -> str:
    """Let the base model complete each document after its last label; return text for a reader."""
    cut = {kind: split_document(text) for kind, text in documents.items()}
    completions = dict(
        load(profile, seed).generate([head for head, _ in cut.values()], max_new_tokens, ("\nPrompt:",))
    )
    parts = [
        f"--- {kind} ---\n{head}\n   model: {completions[number].text!r}\n   text : {tail!r}"
        for number, (kind, (head, tail)) in enumerate(cut.items())
    ]
    return "\n\n\n".join(parts)


def load(profile: Profile, seed: int) -> Any:
    """Return the base model as a text generator."""
    from persona_lib.models.generate import TransformersGenerator
    from persona_lib.models.llm import load_base, load_tokenizer

    source, revision = base_source(profile, seed)
    model = load_base(source, revision, "none", profile.compute_dtype)
    return TransformersGenerator(model, load_tokenizer(source, revision), f"base-{seed}", batch_size=4)
