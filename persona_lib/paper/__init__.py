"""The paper's steps: persona inference, answers, judges and judging, results, persona swaps."""
