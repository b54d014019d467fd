"""Greedy answers here beside the authors' procedure: batched, with a shared prefix computed once; same texts.

    python benchmarks/generation.py [--quick]

The authors' procedure, written anew: one prompt at a time, a stop criterion that decodes what was generated
after every token, and the file with all answers rewritten after every prompt. Ours: batches sorted by length,
the few-shot prefix's keys and values computed once for all prompts, rows appended. Float32, so answers are
compared word by word. Random weights, drawn wide so that no two tokens are nearly equally probable; every
answer has the same number of tokens.

A third line keeps all of ours but the cache (``persona_lib.models.generate``): transformers' own
copies earlier keys and values for every new token. Its model has the widths of SmolLM2-135M and four layers,
asked as in persona inference of the default profile: a batch of queries after five examples.

The ceilings are measured in the same run: a decoding step reads all weights once for the whole batch
(memory), and multiplies them with every row (arithmetic). Each is the number of tokens per second that
cannot be exceeded, prompts not counted; weights that stay in a processor's cache pass the first.
"""

from __future__ import annotations

import copy
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import llama31
import measure
from gpu_training import words_of
from training_rows import DRAWN, SEED, SMOLLM2

from persona_lib import store
from persona_lib.models import generate
from persona_lib.models.generate import TransformersGenerator
from persona_lib.settings import load_profile

STOP = "\nPrompt:"
WIDE, SMALL_WIDE = 0.04, 0.2  # standard deviation of the weights; of a narrower model's, to hear its prompt
SIZES = {
    "hidden_size": 384,
    "intermediate_size": 1344,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
BATCH = 32


@dataclass(frozen=True)
class Task:
    """Prompts to answer, after a prefix that all share (or none), with so many tokens each."""

    prompts: list[str]
    prefix: str
    new_tokens: int
    batch: int


def make_prompts(words: list[str], tokens: tuple[int, int], n: int) -> list[str]:
    """Return prompts of random words that are one token each."""
    rng = random.Random(SEED)
    return [f"Prompt: {' '.join(rng.choices(words, k=rng.randint(*tokens)))}\nResponse:" for _ in range(n)]


def make_task(tokenizer: Any, few_shot: bool, quick: bool) -> Task:
    """Return 64 prompts of BeaverTails' lengths, to answer with 64 tokens each.

    Or, few-shot, 24 short ones after five examples of 150 tokens, to answer with 32.
    """
    words = words_of(tokenizer)
    if few_shot:
        shots = make_prompts(words, (140, 140), 2 if quick else 5)
        prefix = "\n\n".join(f"{shot} {words[0]}." for shot in shots) + "\n\n"
        return Task(make_prompts(words, (8, 30), 6 if quick else 24), prefix, 8 if quick else 32, BATCH)
    return Task(make_prompts(words, DRAWN["paper"][0], 8 if quick else 64), "", 8 if quick else 64, BATCH)


def one_at_a_time(model: Any, tokenizer: Any, task: Task) -> list[str]:
    """Answer as the authors' procedure does."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class StopString(StoppingCriteria):
        prompt_tokens = 0

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> bool:
            return STOP in tokenizer.decode(input_ids[0, self.prompt_tokens :])

    stop, answers = StopString(), []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for prompt in task.prompts:
            inputs = tokenizer(task.prefix + prompt, return_tensors="pt")
            stop.prompt_tokens = inputs["input_ids"].shape[1]
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                min_new_tokens=task.new_tokens,
                max_new_tokens=task.new_tokens,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([stop]),
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            answers.append(tokenizer.decode(output[0, stop.prompt_tokens :]).split(STOP)[0].strip())
            rows = [{"prompt": p, "answer": a} for p, a in zip(task.prompts, answers, strict=False)]
            (Path(folder) / "answers.json").write_text(json.dumps(rows), encoding="utf-8")
    return answers


def batched(model: Any, tokenizer: Any, task: Task) -> list[str]:
    """Answer as this package does."""
    generator = TransformersGenerator(model, tokenizer, "base", task.batch)
    answers = [""] * len(task.prompts)
    with tempfile.TemporaryDirectory() as folder:
        for index, completion in generator.generate(
            task.prompts, task.new_tokens, (STOP,), task.new_tokens, task.prefix
        ):
            answers[index] = completion.text
            store.append_rows(Path(folder) / "answers.jsonl", [{"id": index, "answer": completion.text}])
    return answers


def copying_cache(config: Any, prefix: Any, rows: int) -> Any:
    """Return what ``growing_cache`` does, in transformers' own cache."""
    from transformers import DynamicCache

    if prefix is None:
        return DynamicCache(config=config)
    cache = copy.deepcopy(prefix)
    cache.batch_repeat_interleave(rows)
    return cache


def batched_with_copies(model: Any, tokenizer: Any, task: Task) -> list[str]:
    """Answer as this package does but for the cache."""
    with mock.patch.object(generate, "growing_cache", copying_cache):
        return batched(model, tokenizer, task)


def inference_task(tokenizer: Any, quick: bool) -> tuple[dict[str, int], Task]:
    """Return the sizes of a model like the default profile's, and a batch of its persona inference."""
    profile, words = load_profile("everyday"), words_of(tokenizer)
    shots = make_prompts(words, (100, 100), profile.pi_shots)
    queries = make_prompts(words, (50, 100), 8 if quick else profile.pi_batch_size)
    tokens = 4 if quick else profile.pi_max_new_tokens
    task = Task(queries, "\n\n".join(shots) + "\n\n", tokens, profile.pi_batch_size)
    return llama31.SMALL if quick else SMOLLM2, task


def equal_answers(a: list[str], b: list[str]) -> str:
    """Say that all answers are the same texts, or raise NotEqual."""
    same = sum(x == y for x, y in zip(a, b, strict=True))
    if same < len(a) or len(set(a)) < len(a) / 2:
        raise harness.NotEqual(f"{same} of {len(a)} answers are the same; {len(set(a))} different ones")
    return f"{same} of {len(a)} answers the same text"


def ceilings(model: Any, task: Task, quick: bool) -> tuple[float, float]:
    """Return tokens per second that memory and arithmetic allow at most, as measured here and now."""
    memory = measure.memory_rate(10**6 if quick else 4 * 10**8)
    arithmetic = measure.matrix_rate("float32", 128 if quick else 2048)
    table = model.get_input_embeddings().weight  # a decoding step reads one of its rows
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p is not table)
    rows = min(task.batch, len(task.prompts))
    return rows * memory / weights, arithmetic / (2 * weights / 4)


def note_of(task: Task, limits: tuple[float, float]) -> Any:
    """Return what says our tokens per second beside the ceilings."""

    def note(seconds: float) -> str:
        rate = len(task.prompts) * task.new_tokens / seconds
        return f"{rate:,.0f} tokens/s; ceilings: memory {limits[0]:,.0f}, arithmetic {limits[1]:,.0f}"

    return note


def make_model(tokenizer: Any, sizes: dict[str, int], spread: float) -> Any:
    """Return a model with random weights of a standard deviation."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = llama31.llama_config(**sizes, **ids, vocab_size=len(tokenizer), initializer_range=spread)
    return llama31.random_base(config, seed=SEED)


def main(quick: bool) -> None:
    """Compare answers with the authors' procedure, and the cache with transformers' own."""
    tokenizer = llama31.example_tokenizer()
    model = make_model(tokenizer, llama31.SMALL if quick else SIZES, WIDE)
    for name, few_shot in (("batch", False), ("few_shot", True)):
        task = make_task(tokenizer, few_shot, quick)
        tokens = f"{len(task.prompts)} prompts x {task.new_tokens} tokens"
        harness.compare(
            f"generation-{name}",
            lambda task=task: one_at_a_time(model, tokenizer, task),
            lambda task=task: batched(model, tokenizer, task),
            equal_answers,
            what=f"generation, {tokens}" + (", few-shot with a shared prefix" if few_shot else ""),
            against="authors' procedure: one prompt at a time, all answers rewritten each time",
            note=note_of(task, ceilings(model, task, quick)),
            quick=quick,
        )
    compare_caches(tokenizer, quick)


def compare_caches(tokenizer: Any, quick: bool) -> None:
    """Compare the cache that grows in place with transformers' own, in persona inference."""
    sizes, task = inference_task(tokenizer, quick)
    model = make_model(tokenizer, sizes, SMALL_WIDE)
    harness.compare(
        "generation-cache",
        lambda: batched_with_copies(model, tokenizer, task),
        lambda: batched(model, tokenizer, task),
        equal_answers,
        what=f"persona inference, {len(task.prompts)} queries x {task.new_tokens} tokens, default profile",
        against="the same with transformers' own cache: earlier keys and values copied for every token",
        quick=quick,
    )


if __name__ == "__main__":
    harness.run(main)
