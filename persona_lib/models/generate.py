"""Generate text in batches: ``generate(prompts, ...)`` yields (index, Completion).

Batched, sorted by length, padded on the left, with stop strings per row; a long beginning that all prompts
share is computed once. In float32 greedy completions equal those of one prompt at a time; in bfloat16 they
may differ: a batch size of 1 is exact.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from persona_lib.models.load import using_adapters

LEAST_SHARED = 32  # tokens from which a common beginning is computed once
ONE_AT_A_TIME = threading.Lock()  # several pages may ask at once, and each step may run in another thread


@dataclass(frozen=True)
class Completion:
    """One completion, cut before the stop string; ``finish_reason``: "stop", "length" or a server's own."""

    text: str
    finish_reason: str
    n_tokens: int


@dataclass(frozen=True)
class Decoding:
    """What every ``generate`` takes after its prompts; greedy, unless ``temperature`` is above 0."""

    max_new_tokens: int
    stop: Sequence[str]
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Cut a text before the first stop string in it; say whether there was one."""
    ends = [at for s in stop if (at := text.find(s)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def logits_processors(penalty: float, prompt_width: int, how: Decoding) -> Any:
    """Return transformers' processors: ``penalty`` for generated tokens only, then those for sampling."""
    import transformers as hf

    found = hf.LogitsProcessorList()
    if penalty != 1:
        found.append(hf.RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=prompt_width))
    if how.temperature:
        found.append(hf.RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
        found += [hf.TemperatureLogitsWarper(how.temperature), hf.TopPLogitsWarper(how.top_p)]
    return found


def to_completion(tokenizer: Any, ids: list[int], stop: Sequence[str]) -> Completion:
    """Turn generated ids into a completion: up to EOS, padding and stop string excluded."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ended = eos in ids
    ids = ids[: ids.index(eos)] if ended else [i for i in ids if i != pad]
    text, stopped = cut_at_stop(tokenizer.decode(ids), stop)
    return Completion(text.strip(), "stop" if ended or stopped else "length", len(ids))


@dataclass
class TransformersGenerator:
    """A loaded causal language model that completes prompts; ``adapters``: see ``load.using_adapters``."""

    model: Any
    tokenizer: Any
    name: str
    batch_size: int
    adapters: Sequence[str] = ()
    merge: bool = False
    repetition_penalty: float = 1.0  # above 1: of tokens that the answer (not the prompt) has already

    def generate(self, prompts: Sequence[str], *how: Any, **more: Any) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion) batch by batch, shortest prompts first; see ``Decoding``."""
        import torch

        decoding = Decoding(*how, **more)
        rows = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        if decoding.temperature:
            torch.manual_seed(decoding.seed)
        with using_adapters(self.model, self.adapters, self.merge), torch.inference_mode():
            head = os.path.commonprefix(rows)[: len(rows[order[0]]) - 1] if len(rows) > 1 else []
            cache = self.read_head(head if len(head) >= LEAST_SHARED else [])
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                *_, found = self.steps([rows[i] for i in chosen], copy.deepcopy(cache), decoding)
                for index, ids in zip(chosen, found, strict=True):
                    yield index, to_completion(self.tokenizer, ids, decoding.stop)

    def stream(self, prompt: str, *how: Any, **more: Any) -> Iterator[str]:
        """Yield one prompt's completion so far after every token; adapters are switched under a lock."""
        import torch

        decoding = Decoding(*how, **more)
        steps = self.steps([self.tokenizer(prompt)["input_ids"]], self.read_head([]), decoding)
        while True:
            with ONE_AT_A_TIME, using_adapters(self.model, self.adapters, self.merge), torch.inference_mode():
                new = next(steps, None)
            if new is None:
                return
            yield to_completion(self.tokenizer, new[0], decoding.stop).text

    def read_head(self, head: list[int]) -> Any:
        """Return the keys and values of a shared beginning, in one row; an empty cache without one."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        if head:
            ids = torch.tensor([head], device=self.model.device)
            self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    def steps(self, rows: list[list[int]], cache: Any, how: Decoding) -> Iterator[list[list[int]]]:
        """Yield the new tokens of each row after every step; rows that have ended leave the batch.

        A row is [head, in ``cache`` | padding | rest]. Greedy tokens are those of transformers' ``generate``.
        """
        import torch

        head, longest = cache.get_seq_length(), max(map(len, rows))
        pads, where = [longest - len(row) for row in rows], self.model.device
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        ids = [row[:head] + [pad] * n + row[head:] for row, n in zip(rows, pads, strict=True)]
        seen = [[1] * head + [0] * n + [1] * (longest - head - n) for n in pads]
        texts, mask = torch.tensor(ids, device=where), torch.tensor(seen, device=where)
        if head:
            cache.batch_repeat_interleave(len(rows))
        processors = logits_processors(self.repetition_penalty, longest, how)
        recent = max(map(len, how.stop), default=0)  # a token is at least one character long
        new: list[list[int]] = [[] for _ in rows]
        alive = list(range(len(rows)))
        inputs, at = texts[:, head:], mask.cumsum(-1).sub(1).clamp(min=0)[:, head:]
        for step in range(how.max_new_tokens):
            given = {"attention_mask": mask, "position_ids": at, "past_key_values": cache, "use_cache": True}
            logits = self.model(input_ids=inputs, **given, logits_to_keep=1).logits[:, -1]
            logits = processors(texts, logits)
            if step < how.min_new_tokens:
                logits[:, eos] = -torch.inf
            tokens = logits.float().softmax(-1).multinomial(1)[:, 0] if how.temperature else logits.argmax(-1)
            for row, token in zip(alive, tokens.tolist(), strict=True):
                new[row].append(token)
            texts = torch.cat([texts, tokens[:, None]], dim=1)
            last = self.tokenizer.batch_decode(texts[:, max(longest, texts.shape[1] - recent) :])
            stopped = torch.tensor([any(s in text for s in how.stop) for text in last], device=where)
            keep = (~((tokens == eos) | stopped)).nonzero().flatten()
            yield new
            if not len(keep):
                return
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            at = at[:, -1:] + 1
            if len(keep) < len(alive):
                cache.batch_select_indices(keep)
                texts, tokens, mask, at = texts[keep], tokens[keep], mask[keep], at[keep]
                alive = [alive[i] for i in keep.tolist()]
            inputs = tokens[:, None]
