"""How much faster generation and scoring are with NF4 weights expanded once (``gen_expand_weights``).

    python benchmarks/expand_weights.py BASE_FOLDER ADAPTER_FOLDER

Times both ways side by side on a pretrained base and an adapter of a finished run (for example
``results/synthetic/base/seed-0`` and ``results/synthetic/synthetic/seed-0/adapters/sft-chosen``), in
interleaved pairs on one thread, checks that answers and log-probabilities are the very same, and prints the
median ratio with the smallest and largest.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persona_lib.models import llm
from persona_lib.models.generate import TransformersGenerator
from persona_lib.prompts import completion_text, tailoring_prompt
from persona_lib.world.synthetic import all_prompts, make_topics, topics_of
from persona_lib.world.vocabulary import EXPERIMENT_TEMPLATES

ROWS, NEW_TOKENS, BATCH, PAIRS = 128, 48, 128, 7
WORLD_SEED = 11
PERSONA = "The user is shy and prefers quiet solitude."
COMPLETION = (
    "Certainly. For the old kettle, use the brush, check the edge and add some soap. Do it all alone."
)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def main() -> None:
    """Time generation and scoring both ways and print the ratios."""
    import torch

    if len(sys.argv) != 3:
        sys.exit(__doc__)
    base, adapter = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    tokenizer = llm.load_tokenizer(base)
    topics = topics_of(make_topics(WORLD_SEED), "train")
    prompts = [tailoring_prompt(p, PERSONA) for _, p in all_prompts(topics, EXPERIMENT_TEMPLATES)[:ROWS]]
    models = {
        name: llm.attach_adapters(llm.load_base(base, "", "nf4", "float32", expand), [adapter])
        for name, expand in (("four bits", False), ("expanded", True))
    }

    def generation(model: Any) -> list[str]:
        generator = TransformersGenerator(model, tokenizer, "base", BATCH, (adapter.name,))
        return [c.text for _, c in generator.generate(prompts, NEW_TOKENS, ())]

    def scoring(model: Any) -> list[float]:
        completions = [completion_text(COMPLETION)] * len(prompts)
        return llm.sequence_log_probs(model, tokenizer, prompts, completions, 16).tolist()

    for name, work in (("generation", generation), ("scoring", scoring)):
        ratios = []
        for _ in range(PAIRS):
            slow, one = timed(lambda work=work: work(models["four bits"]))
            fast, other = timed(lambda work=work: work(models["expanded"]))
            if one != other:
                sys.exit(f"{name}: the results differ")
            ratios.append(slow / fast)
        print(
            f"{name}: {statistics.median(ratios):.2f} times as fast expanded "
            f"({min(ratios):.2f} to {max(ratios):.2f}, {PAIRS} pairs, {ROWS} rows), results equal"
        )


if __name__ == "__main__":
    main()
