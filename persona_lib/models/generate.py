"""Text generation behind one small interface: ``generate(prompts, ...)`` yields (index, Completion).

Greedy, batched, sorted by length, padded on the left, with stop strings per row; a prefix that all prompts
share is computed once. In float32 the completions equal those of one prompt at a time; in bfloat16 they may
differ: ``settings`` (dtype, batch size) are recorded with every run, and a batch size of 1 is the exact mode.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from persona_lib.models.load import using_adapters

LEAST_SHARED = 32  # tokens from which a common beginning is computed once


@dataclass(frozen=True)
class Completion:
    """One completion, cut before the stop string.

    ``finish_reason`` is "stop" (EOS or stop string) or "length"; a served model may have others.
    """

    text: str
    finish_reason: str
    n_tokens: int


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens instead of taking the most probable one."""

    temperature: float
    top_p: float
    repetition_penalty: float
    seed: int

    def with_seed(self, seed: int) -> Sampling:
        """Return the same with another seed."""
        return replace(self, seed=seed)


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Cut a text before the first stop string in it; say whether there was one."""
    ends = [at for s in stop if (at := text.find(s)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def common_head(rows: Sequence[list[int]]) -> list[int]:
    """Return the tokens that all of several rows begin with, at least one less than the shortest row has.

    Fewer than ``LEAST_SHARED`` are not worth a pass of their own: then an empty list.
    """
    if len(rows) < 2:
        return []
    first, last = min(rows), max(rows)  # what these two share, all share
    most = min(map(len, rows)) - 1
    size = next((i for i in range(most) if first[i] != last[i]), most)
    return first[:size] if size >= LEAST_SHARED else []


def penalties(repetition_penalty: float, prompt_width: int) -> Any:
    """Return transformers' processors of logits for a repetition penalty on generated tokens; none for 1."""
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    if repetition_penalty == 1:
        return LogitsProcessorList()
    penalty = RepetitionPenaltyLogitsProcessor(repetition_penalty, prompt_ignore_length=prompt_width)
    return LogitsProcessorList([penalty])


def to_completion(tokenizer: Any, ids: list[int], stop: Sequence[str]) -> Completion:
    """Turn generated ids into a completion: up to EOS, padding and stop string excluded."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ended = eos in ids
    ids = ids[: ids.index(eos)] if ended else [i for i in ids if i != pad]
    text, stopped = cut_at_stop(tokenizer.decode(ids), stop)
    return Completion(text.strip(), "stop" if ended or stopped else "length", len(ids))


class TransformersGenerator:
    """A loaded causal language model that completes prompts greedily.

    ``adapters`` are active while it generates; ``merge`` adds them to the weights meanwhile (see
    ``load.using_adapters``). ``repetition_penalty`` above 1 makes tokens that the answer has already less
    probable, which keeps small models out of loops; tokens of the prompt are as probable as ever.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        batch_size: int,
        adapters: Sequence[str] = (),
        merge: bool = False,
        repetition_penalty: float = 1.0,
    ) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.batch_size, self.adapters, self.merge = batch_size, tuple(adapters), merge
        self.repetition_penalty = repetition_penalty

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the completions besides weights and prompts."""
        return {
            "model": self.name,
            "adapters": list(self.adapters),
            "merged": bool(self.merge and self.adapters),
            "decoding": "greedy",
            "repetition_penalty": self.repetition_penalty,
            "batch_size": self.batch_size,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
        }

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: Sequence[str],
        min_new_tokens: int = 0,
        prefix: str = "",
        sampling: Sampling | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion) batch by batch, shortest prompts first; greedy without ``sampling``.

        ``prefix`` is put before every prompt and computed once if it ends at a token boundary of every
        prompt. Without one, a long beginning of all prompts (a judge's instructions) is computed once.
        """
        import torch

        rows = [self.tokenizer(prefix + p)["input_ids"] for p in prompts]
        head = self.tokenizer(prefix)["input_ids"] if prefix else common_head(rows)
        if any(row[: len(head)] != head for row in rows):
            head = []
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        if sampling:
            torch.manual_seed(sampling.seed)
        with using_adapters(self.model, self.adapters, self.merge), torch.inference_mode():
            cache = self._prefix_cache(head)
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                tails = [rows[i][len(head) :] for i in chosen]
                outputs = self._complete(head, tails, cache, max_new_tokens, min_new_tokens, stop, sampling)
                yield from zip(chosen, outputs, strict=True)

    def _prefix_cache(self, head: list[int]) -> Any:
        """Return the keys and values of the shared prefix, in one row; empty without one."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        if head:
            ids = torch.tensor([head], device=self.model.device)
            self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    def _complete(
        self,
        head: list[int],
        tails: list[list[int]],
        cache: Any,
        max_new_tokens: int,
        min_new_tokens: int,
        stop: Sequence[str],
        sampling: Sampling | None,
    ) -> list[Completion]:
        """Complete one batch: [prefix | padding | rest of the prompt] per row."""
        import torch

        width, pad = max(map(len, tails)), self.tokenizer.pad_token_id
        ids = [head + [pad] * (width - len(t)) + t for t in tails]
        mask = [[1] * len(head) + [0] * (width - len(t)) + [1] * len(t) for t in tails]
        where = self.model.device
        ids, mask = torch.tensor(ids, device=where), torch.tensor(mask, device=where)
        cache = copy.deepcopy(cache)
        if head:
            cache.batch_repeat_interleave(len(tails))
        if sampling is None:
            *_, found = self.greedy(ids, mask, cache, max_new_tokens, min_new_tokens, stop)
            return [to_completion(self.tokenizer, row, stop) for row in found]
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens or None,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            repetition_penalty=sampling.repetition_penalty,
            num_beams=1,
            pad_token_id=pad,
            eos_token_id=self.tokenizer.eos_token_id,
            stopping_criteria=self._stopping_criteria(stop, len(head) + width),
            logits_processor=penalties(self.repetition_penalty, len(head) + width),
            past_key_values=cache,
        )
        return [to_completion(self.tokenizer, row[len(head) + width :].tolist(), stop) for row in output]

    def greedy(
        self, ids: Any, mask: Any, cache: Any, max_new_tokens: int, min_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[list[list[int]]]:
        """Yield the new tokens of each row of a batch after every step; rows that have ended leave the batch.

        The tokens are those of transformers' ``generate``, which computes ended rows to the end of the batch.
        """
        import torch

        stops, eos = self._stopping_criteria(stop, ids.shape[1]), self.tokenizer.eos_token_id
        penalised = penalties(self.repetition_penalty, ids.shape[1])
        new: list[list[int]] = [[] for _ in ids]
        alive, texts = list(range(len(ids))), ids
        positions = mask.cumsum(-1).sub(1).clamp(min=0)
        seen = cache.get_seq_length()
        inputs, at = ids[:, seen:], positions[:, seen:]
        for step in range(max_new_tokens):
            given = {"attention_mask": mask, "position_ids": at, "past_key_values": cache, "use_cache": True}
            logits = self.model(input_ids=inputs, **given, logits_to_keep=1).logits[:, -1]
            logits = penalised(texts, logits)
            if step < min_new_tokens:
                logits[:, eos] = -torch.inf
            tokens = logits.argmax(-1)
            for row, token in zip(alive, tokens.tolist(), strict=True):
                new[row].append(token)
            texts = torch.cat([texts, tokens[:, None]], dim=1)
            keep = (~((tokens == eos) | stops(texts, logits))).nonzero().flatten()
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

    def _stopping_criteria(self, stop: Sequence[str], prompt_width: int) -> Any:
        """Stop each row by itself once a stop string is in the text generated for it.

        The last tokens of every row are read: a token is at least one character long.
        """
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        tokenizer, longest = self.tokenizer, max(map(len, stop), default=0)

        class StopStrings(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                recent = input_ids[:, max(prompt_width, input_ids.shape[1] - longest) :]
                texts = tokenizer.batch_decode(recent)
                return torch.tensor([any(s in t for s in stop) for t in texts], device=input_ids.device)

        return StoppingCriteriaList([StopStrings()] if stop else [])


ONE_AT_A_TIME = threading.Lock()  # several pages may ask at once, and each step may run in another thread


def stream_text(
    model: Any,
    tokenizer: Any,
    prompt: str,
    adapters: Sequence[str],
    max_new_tokens: int,
    min_new_tokens: int = 0,
    stop: Sequence[str] = (),
    repetition_penalty: float = 1.0,
) -> Iterator[str]:
    """Yield one prompt's completion so far after every token, for pages that show it while it is written.

    The text is that of ``TransformersGenerator``, greedy. Every step switches the adapters under a lock.
    """
    import torch
    from transformers import DynamicCache

    generator = TransformersGenerator(model, tokenizer, "", 1, repetition_penalty=repetition_penalty)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
    given = ids, torch.ones_like(ids), DynamicCache(config=model.config)
    steps = generator.greedy(*given, max_new_tokens, min_new_tokens, stop)
    while True:
        with ONE_AT_A_TIME, using_adapters(model, adapters), torch.inference_mode():
            new = next(steps, None)
        if new is None:
            return
        yield to_completion(tokenizer, new[0], stop).text
