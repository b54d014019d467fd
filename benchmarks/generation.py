"""Greedy answers here beside the authors' procedure and transformers' ``generate``: the same texts.

The model is the default's, with its real weights in float32. The authors' procedure, written anew: one prompt
at a time, a stop criterion that decodes what was generated after every token, and the file with all answers
rewritten after every prompt. transformers: all prompts in one padded batch. Ours: batches sorted by
length, rows appended; the few-shot prefix is read and kept once for all prompts (or not, for comparison).
llama.cpp: its server with the same weights in float32, all prompts in one request, in the fastest of four
settings tried; LLAMA_SERVER and LLAMA_MODEL name it (README.md).

Every answer has the same number of tokens. Where two tokens are equally probable to rounding, texts may part:
in at most one answer of twenty.
"""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import epochs
import harness
import llama31
import training
from epochs import MODEL
from training import SEED, words_of

from persona_lib import store
from persona_lib.data import everyday
from persona_lib.models import generate, load
from persona_lib.prompts import completion_text, tailoring_prompt

STOP = "\nPrompt:"
BATCH = 64
CASES = {
    "few_shot": ("unshared",),
    "batch": ("transformers", "llama.cpp", "authors"),
}  # the longest last
LLAMA = {name: os.environ.get(name, "") for name in ("LLAMA_SERVER", "LLAMA_MODEL")}  # program, GGUF file
PORT = 8093


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
    """Return prompts of BeaverTails' lengths, and questions of everyday with personas after five examples."""
    tokens, items = 8 if quick else 64, everyday.items()
    shots, asked = ([item for item in items if item.split == split] for split in ("train", "test"))
    told = [tailoring_prompt(item.prompt, item.persona_a) for item in asked[: 6 if quick else 24]]
    prefix = "".join(
        tailoring_prompt(item.prompt, item.persona_a) + completion_text(item.response_a) + "\n\n"
        for item in shots[: 2 if quick else 5]
    )
    return {
        "batch": Task(make_prompts(words_of(tokenizer), training.PAPER.prompt, tokens), "", tokens),
        "few_shot": Task(told, prefix, tokens // 2),
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


def one_batch(model: Any, tokenizer: Any, task: Task) -> list[str]:
    """Answer as a user of transformers would: all prompts in one batch, padded on the left."""
    import torch

    prompts = [task.prefix + prompt for prompt in task.prompts]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    how = {"min_new_tokens": task.new_tokens, "max_new_tokens": task.new_tokens, "do_sample": False}
    with torch.inference_mode():
        found = model.generate(**inputs, **how, pad_token_id=tokenizer.pad_token_id)
    answers = tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :])
    return [answer.split(STOP)[0].strip() for answer in answers]


def ours(model: Any, tokenizer: Any, task: Task, least_shared: int = generate.LEAST_SHARED) -> list[str]:
    """Answer as this package does; beginnings of fewer tokens than ``least_shared`` are not shared."""
    generator = generate.TransformersGenerator(model, tokenizer, "base", BATCH)
    answers = [""] * len(task.prompts)
    prompts = [task.prefix + prompt for prompt in task.prompts]
    with tempfile.TemporaryDirectory() as folder, patch.object(generate, "LEAST_SHARED", least_shared):
        for index, completion in generator.generate(prompts, task.new_tokens, (STOP,), task.new_tokens):
            answers[index] = completion.text
            store.append_rows(Path(folder) / "answers.jsonl", [{"id": index, "answer": completion.text}])
    return answers


def ask_llama(path: str, body: dict[str, Any] | None = None) -> Any:
    """Return what llama.cpp's server answers."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/{path}", data)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@contextmanager
def llama_server() -> Iterator[None]:
    """Serve the model by llama.cpp within the block."""
    program, model = LLAMA.values()
    how = (
        f"-np {BATCH} -c {BATCH * 256} -no-kvu -fa off -b 4096 -ub 2048 -ctk f32 -ctv f32 -t {os.cpu_count()}"
    )
    command = [program, "-m", model, "--port", str(PORT), *how.split()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(60):
                with suppress(OSError):  # refused, or 503 while it loads
                    ask_llama("health")
                    break
                time.sleep(1)
            else:
                raise RuntimeError(
                    f"llama.cpp's server does not answer; it was called as: {' '.join(command)}"
                )
            yield
        finally:
            server.terminate()


def by_llama(model: Any, tokenizer: Any, task: Task) -> list[str]:
    """Answer by llama.cpp's server, in greedy decoding."""
    prompts = [tokenizer(task.prefix + prompt)["input_ids"] for prompt in task.prompts]
    how = {"n_predict": task.new_tokens, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
    answers = ask_llama("completion", {"prompt": prompts, **how})
    return [answer["content"].split(STOP)[0].strip() for answer in answers]


WAYS: dict[str, tuple[Callable[..., list[str]], str]] = {  # name -> how it answers, and in words
    "authors": (one_at_a_time, "authors' procedure: one prompt at a time, all answers rewritten each time"),
    "transformers": (one_batch, "transformers' generate, one padded batch"),
    "llama.cpp": (by_llama, "llama.cpp's server (llama-cpp-python 0.3.36), the same weights in float32"),
    "unshared": (partial(ours, least_shared=10**9), "this package, the prefix not shared"),
}


def equal_answers(a: list[str], b: list[str]) -> str:
    """Say that the answers are the same texts, or raise NotEqual."""
    same = sum(x == y for x, y in zip(a, b, strict=True))
    if same < 0.95 * len(a) or len(set(a)) < len(a) / 2:
        raise harness.NotEqual(f"{same} of {len(a)} answers are the same; {len(set(a))} different ones")
    return f"{same} of {len(a)} answers the same text"


def main(quick: bool) -> None:
    """Compare answers with those of every other way; a quick run has a tiny random model."""
    if quick:
        tokenizer = llama31.example_tokenizer()
        config = llama31.llama_config(**llama31.SMALL, **llama31.ids_of(tokenizer), initializer_range=0.04)
        model = llama31.random_base(config, seed=SEED)
    else:
        tokenizer, model = load.load_tokenizer(MODEL), load.load_base(MODEL)
    plain = epochs.without_kernels(copy.deepcopy(model))
    shared = ", few-shot with a shared prefix"
    tasks = make_tasks(tokenizer, quick)
    for name, ways in CASES.items():
        task, n = tasks[name], len(tasks[name].prompts)
        for way in ways:
            served = way == "llama.cpp"
            if served and (quick or not all(LLAMA.values())):
                print("llama.cpp: not run", "" if quick else "(set LLAMA_SERVER and LLAMA_MODEL: README.md)")
                continue
            with llama_server() if served else nullcontext():
                harness.compare(
                    f"generation-{name}-{way}",
                    partial(WAYS[way][0], model if way == "unshared" else plain, tokenizer, task),
                    partial(ours, model, tokenizer, task),
                    equal_answers,
                    what=f"generation, {n} prompts x {task.new_tokens} tokens{shared * bool(task.prefix)}",
                    against=WAYS[way][1],
                    note=lambda seconds, n=n, task=task: f"{n * task.new_tokens / seconds:,.0f} tokens/s",
                    quick=quick,
                )
