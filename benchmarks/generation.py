"""Greedy answers here beside the authors' procedure: batched, with a shared prefix computed once; same
texts.

The authors' procedure, written anew: one prompt at a time, a stop criterion that decodes what was
generated after every token, and the file with all answers rewritten after every prompt. Ours: batches
sorted by length, the few-shot prefix's keys and values computed once for all prompts, rows appended. Float32,
so answers are compared word by word. Random weights, drawn wide so that no two tokens are nearly equally
probable; every answer has the same number of tokens.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import harness
import llama31
import training
from training import SEED, words_of

from persona_lib import store
from persona_lib.models.generate import TransformersGenerator

STOP = "\nPrompt:"
SIZES = llama31.sizes(384, 1344, 3, 3, 1)
BATCH = 32


class Task(NamedTuple):
    """Prompts to answer, after a prefix that all share (or none), with so many tokens each."""

    prompts: list[str]
    prefix: str
    new_tokens: int


def make_prompts(words: list[str], tokens: tuple[int, int], n: int) -> list[str]:
    """Return prompts of random words that are one token each."""
    rng = random.Random(SEED)
    return [f"Prompt: {' '.join(rng.choices(words, k=rng.randint(*tokens)))}\nResponse:" for _ in range(n)]


def make_tasks(tokenizer: Any, quick: bool) -> dict[str, Task]:
    """Return prompts of BeaverTails' lengths, and short ones after five examples."""
    words, tokens = words_of(tokenizer), 8 if quick else 64
    shots = make_prompts(words, (140, 140), 2 if quick else 5)
    prefix = "\n\n".join(f"{shot} {words[0]}." for shot in shots) + "\n\n"
    return {
        "batch": Task(make_prompts(words, training.PAPER.prompt, tokens), "", tokens),
        "few_shot": Task(make_prompts(words, (8, 30), 6 if quick else 24), prefix, tokens // 2),
    }


def one_at_a_time(model: Any, tokenizer: Any, task: Task) -> list[str]:
    """Answer as the authors' procedure does."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class StopString(StoppingCriteria):
        prompt_tokens = 0

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> bool:
            return STOP in tokenizer.decode(input_ids[0, self.prompt_tokens :])

    stop, answers = StopString(), []
    how = {"min_new_tokens": task.new_tokens, "max_new_tokens": task.new_tokens, "do_sample": False}
    how |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    how |= {"stopping_criteria": StoppingCriteriaList([stop])}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for prompt in task.prompts:
            inputs = tokenizer(task.prefix + prompt, return_tensors="pt")
            stop.prompt_tokens = inputs["input_ids"].shape[1]
            output = model.generate(**inputs, **how)
            answers.append(tokenizer.decode(output[0, stop.prompt_tokens :]).split(STOP)[0].strip())
            rows = [{"prompt": p, "answer": a} for p, a in zip(task.prompts, answers, strict=False)]
            (Path(folder) / "answers.json").write_text(json.dumps(rows), encoding="utf-8")
    return answers


def batched(model: Any, tokenizer: Any, task: Task) -> list[str]:
    """Answer as this package does."""
    generator = TransformersGenerator(model, tokenizer, "base", BATCH)
    answers = [""] * len(task.prompts)
    with tempfile.TemporaryDirectory() as folder:
        prompts = [task.prefix + prompt for prompt in task.prompts]
        for index, completion in generator.generate(prompts, task.new_tokens, (STOP,), task.new_tokens):
            answers[index] = completion.text
            store.append_rows(Path(folder) / "answers.jsonl", [{"id": index, "answer": completion.text}])
    return answers


def equal_answers(a: list[str], b: list[str]) -> str:
    """Say that all answers are the same texts, or raise NotEqual."""
    same = sum(x == y for x, y in zip(a, b, strict=True))
    if same < len(a) or len(set(a)) < len(a) / 2:
        raise harness.NotEqual(f"{same} of {len(a)} answers are the same; {len(set(a))} different ones")
    return f"{same} of {len(a)} answers the same text"


def main(quick: bool) -> None:
    """Compare answers with the authors' procedure."""
    tokenizer = llama31.example_tokenizer()
    sizes = (llama31.SMALL if quick else SIZES) | llama31.ids_of(tokenizer)
    model = llama31.random_base(llama31.llama_config(**sizes, initializer_range=0.04), seed=SEED)
    shared = ", few-shot with a shared prefix"
    for name, task in make_tasks(tokenizer, quick).items():
        n = len(task.prompts)
        harness.compare(
            f"generation-{name}",
            lambda task=task: one_at_a_time(model, tokenizer, task),
            lambda task=task: batched(model, tokenizer, task),
            equal_answers,
            what=f"generation, {n} prompts x {task.new_tokens} tokens{shared * bool(task.prefix)}",
            against="authors' procedure: one prompt at a time, all answers rewritten each time",
            note=lambda seconds, n=n, task=task: f"{n * task.new_tokens / seconds:,.0f} tokens/s",
            quick=quick,
        )
