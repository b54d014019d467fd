"""What the training benchmarks train: small Llamas and rows of random words with the lengths of real ones.

Three kinds of rows. "paper": the authors' BeaverTails rows, their lengths read where the data is at hand (a
word counted as 4/3 tokens) and drawn from their middle nine tenths elsewhere. "long": prompts of several
hundred tokens, such as a persona with a history. Both are trained on a model with Llama-3.1's architecture
and proportions (heads of 128, four queries to a key, an MLP 3.5 times as wide) at a quarter of the 8B model's
width, two layers and 27 million parameters in them: as there, products with the frozen weights take most of
the time, and not adapters, attention or Python. "everyday": the lengths of the package's own pairs, on a
model with the widths and the vocabulary of the default profile's (SmolLM2-135M), four layers and random
weights.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import llama31
from gpu_training import words_of

from persona_lib.data import everyday, official
from persona_lib.prompts import tailoring_prompt
from persona_lib.records import DataError
from persona_lib.settings import Profile, load_profile, set_field

SEED = 0
TOKENS_PER_WORD = 4 / 3
DRAWN = {  # tokens of prompt (with persona) and of a response, where they are not read: from, to
    "paper": ((36, 92), (25, 225)),
    "long": ((250, 350), (30, 90)),
}
SMOLLM2 = {  # SmolLM2-135M's sizes, with four of its thirty layers
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
SMOLLM2_VOCABULARY = 49152
MIDDLE = {
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Kind:
    """One kind of rows, the model and the profile that they are trained with, in float32."""

    name: str
    profile: Profile
    config: Any
    tokenizer: Any
    title: str


def make_kind(name: str, quick: bool) -> Kind:
    """Return a kind; a quick one has a tiny model."""
    tokenizer = llama31.example_tokenizer()
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    profile = load_profile("everyday" if name == "everyday" else "paper")
    sizes = llama31.SMALL if quick else SMOLLM2 if name == "everyday" else MIDDLE
    if name == "everyday" and not quick:
        ids["vocab_size"] = SMOLLM2_VOCABULARY
    config = llama31.llama_config(**sizes, **ids, eos_token_id=tokenizer.eos_token_id)
    rates = {"sft_learning_rate": 1e-2, "dpo_learning_rate": 1e-3}  # so large that every step shows
    rates |= {"warmup_share": 0.0, "dpo_max_steps": 0, "dpo_order": "random"}
    profile = set_field(profile, quantization="none", compute_dtype="float32", **rates)
    return Kind(name, profile, config, tokenizer, title_of(name))


def title_of(name: str) -> str:
    """Say for a table whose lengths the rows have."""
    if name == "paper":
        return "BeaverTails' lengths" + ("" if authors_lengths() else " (drawn)")
    titles = {"long": "long prompts (250 to 350 tokens)", "everyday": "everyday's lengths, SmolLM2's widths"}
    return titles[name]


def everyday_lengths() -> list[tuple[int, int, int]]:
    """Return prompt (with persona) and both responses of the package's training pairs in words."""

    texts = [(tailoring_prompt(item.prompt, item.persona_a), item.response_a, item.response_b)
             for item in everyday.items() if item.split == "train"]  # fmt: skip
    return [tuple(len(text.split()) for text in row) for row in texts]


def authors_lengths() -> list[tuple[int, int, int]]:
    """Return prompt, chosen and rejected in words of the authors' DPO rows; empty if not at hand."""

    try:
        folder = official.find_data_dir(datasets=("beavertails",), offline=True)
    except DataError:
        return []
    rows = official.load_official(folder, "beavertails")["dpo_train"]
    texts = [(tailoring_prompt(r.prompt, r.personas["gold-chosen"]), r.chosen, r.rejected) for r in rows]
    return [tuple(len(text.split()) for text in row) for row in texts]


def lengths(name: str) -> Iterator[tuple[int, int, int]]:
    """Yield tokens of prompt, chosen and rejected, the same in every run."""
    rng = random.Random(SEED)
    known = authors_lengths() if name == "paper" else everyday_lengths() if name == "everyday" else []
    while True:
        if known:
            yield tuple(max(1, round(words * TOKENS_PER_WORD)) for words in rng.choice(known))
        else:
            (shortest, longest), response = DRAWN[name]
            yield rng.randint(shortest, longest), rng.randint(*response), rng.randint(*response)


def make_rows(kind: Kind, method: str, n: int) -> list[dict[str, str]]:
    """Return rows of random words as the trainers take them."""
    rng, words = random.Random(SEED), words_of(kind.tokenizer)

    def text(tokens: int) -> str:
        return " ".join(rng.choices(words, k=tokens))

    rows = []
    for (prompt, chosen, rejected), _ in zip(lengths(kind.name), range(n), strict=False):
        row = {"prompt": f"Prompt: {text(max(1, prompt - 6))}\nResponse:"}
        if method == "sft":
            rows.append(row | {"completion": " " + text(chosen)})
        else:
            rows.append(row | {"chosen": " " + text(chosen), "rejected": " " + text(rejected)})
    return rows
