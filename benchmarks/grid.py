"""What the cells of the grid have in common, computed once: same results, fewer passes.

    python benchmarks/grid.py [--quick]

``swap``: both responses of a pair scored with the prompt, persona included, computed once instead of twice.
``judge``: a language model judge reads both orders under both rubrics; the instructions that all prompts of a
rubric begin with are computed once. ``arms``: adapters switched on one loaded base instead of a base loaded
for every arm. Each says how many forward passes and tokens the decoder computed both ways.

What is shared without a way to time here: the base and every SFT arm are scored once and joined as reference
to all arms on top of them; one SFT adapter serves the SFT arm and the DPO arms stacked on it; DPO's reference
log-probabilities are computed once before its epochs. ``swap`` says how many arms the default profile scores
for how many margins. Tokenised rows are not shared between arms: their persona lines differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import harness
import llama31
from training_rows import SEED, make_kind, make_rows

from persona_lib.models import generate
from persona_lib.models.generate import TransformersGenerator
from persona_lib.paper.judges import pair_log_probs, plain_pair_log_probs
from persona_lib.paper.swap import reference_of, swap_arms
from persona_lib.prompts import chat_judge_prompt
from persona_lib.settings import Run, load_profile

NEVER = 10**9
TOLERANCE = 1e-5  # relative, of log-probabilities of whole responses


@contextmanager
def counted(model: Any, counts: list[int]) -> Iterator[None]:
    """Count forward passes and tokens of a model into ``counts``."""
    decoder = llm_core(model).base_model

    def see(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        counts[0] += 1
        counts[1] += ids.shape[0] * ids.shape[1]

    hook = decoder.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def llm_core(model: Any) -> Any:
    """Return the causal language model below the adapters."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def passes(model: Any, work: Callable[[], Any]) -> str:
    """Say what a way computes."""
    counts = [0, 0]
    with counted(model, counts):
        work()
    return f"{counts[0]} passes, {counts[1]:,} tokens"


def both_ways(model: Any, baseline: Callable[[], Any], ours: Callable[[], Any]) -> Callable[[float], str]:
    """Return the note that says what both ways compute."""
    words = f"{passes(model, baseline)} -> {passes(model, ours)}"
    return lambda seconds: words


def equal_numbers(a: Any, b: Any) -> str:
    """Say to how many digits numbers agree, or raise NotEqual."""
    import numpy as np

    worst = float(np.max(np.abs(a - b) / np.abs(a)))
    if worst > TOLERANCE or not np.ptp(a):
        raise harness.NotEqual(f"log-probabilities differ by {worst:.1e}, relative")
    return f"{a.size} log-probs equal to {worst:.0e}, relative"


def equal_texts(a: list[str], b: list[str]) -> str:
    """Say that all answers are the same texts, or raise NotEqual."""
    if a != b or len(set(a)) < 2:
        raise harness.NotEqual(f"{sum(x != y for x, y in zip(a, b, strict=True))} of {len(a)} answers differ")
    return f"{len(a)} answers the same text"


def swap_counts() -> str:
    """Say how many arms the default profile scores, and how many would be without joining references."""

    run = Run(load_profile("everyday"), "everyday", 0)
    arms = swap_arms(run)
    joined = sum((reference_of(run, arm), form) in arms for arm, form in arms)
    return f"default profile: {len(arms)} arms scored, not {len(arms) + joined}"


def compare_swap(name: str, quick: bool) -> None:
    """Compare the two ways to score pairs."""

    kind = make_kind(name, quick)
    model = llama31.random_base(kind.config, seed=SEED)
    rows = make_rows(kind, "dpo", 8 if quick else {"everyday": 64, "paper": 24, "long": 24}[name])
    prompts, pairs = [r["prompt"] for r in rows], [(r["chosen"], r["rejected"]) for r in rows]

    def way(score: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: score(model, kind.tokenizer, prompts, pairs, 8)

    plain, shared = way(plain_pair_log_probs), way(pair_log_probs)
    noted = both_ways(model, plain, shared)
    harness.compare(
        f"grid-swap-{name}",
        plain,
        shared,
        equal_numbers,
        what=f"persona swap: {len(rows)} pairs scored, the prompt once; {kind.title}",
        against="the prompt computed for each response",
        note=lambda seconds: f"{noted(seconds)}; {swap_counts()}" if name == "everyday" else noted(seconds),
        quick=quick,
    )


def judge_prompts(kind: Any, n: int) -> list[list[str]]:
    """Return the prompts of n comparisons: a list per rubric and order."""
    rows = make_rows(kind, "dpo", n)
    return [
        [
            chat_judge_prompt(rubric, row["prompt"], "The user is terse.", row[first], row[second])
            for row in rows
        ]
        for rubric in ("personalization", "quality")
        for first, second in (("chosen", "rejected"), ("rejected", "chosen"))
    ]


def compare_judge(quick: bool) -> None:
    """Compare judging with and without a shared beginning."""
    kind = make_kind("paper", quick)
    kind.config.initializer_range = 0.1  # so that no two tokens are nearly equally probable
    model = llama31.random_base(kind.config, seed=SEED)
    asked = judge_prompts(kind, 4 if quick else 8)

    def way(least: int) -> Callable[[], list[str]]:
        def work() -> list[str]:
            generate.LEAST_SHARED, before = least, generate.LEAST_SHARED
            try:
                return answers(model, kind.tokenizer, asked)
            finally:
                generate.LEAST_SHARED = before

        return work

    plain, shared = way(NEVER), way(generate.LEAST_SHARED)
    harness.compare(
        "grid-judge",
        plain,
        shared,
        equal_texts,
        what="a judge of two rubrics and two orders: a rubric's instructions computed once",
        against="every prompt computed whole",
        note=both_ways(model, plain, shared),
        quick=quick,
    )


def answers(
    model: Any, tokenizer: Any, asked: Sequence[Sequence[str]], adapters: Sequence[str] = ()
) -> list[str]:
    """Return the answers, of eight tokens, to lists of prompts one after the other."""
    generator = TransformersGenerator(model, tokenizer, "model", 8, adapters)
    said = [dict(generator.generate(prompts, 8, (), min_new_tokens=8)) for prompts in asked]
    return [found[n].text for found in said for n in sorted(found)]


def main(quick: bool) -> None:
    """Compare what is shared."""
    for name in ("everyday",) if quick else ("everyday", "paper", "long"):
        compare_swap(name, quick)
    compare_judge(quick)


if __name__ == "__main__":
    harness.run(main)
