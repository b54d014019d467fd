"""Greedy completion of one prompt, token by token, for pages that show an answer while it is written.

The text is that of ``TransformersGenerator``. Every step switches the adapters itself and under a lock:
several pages may ask at once, and each step may run in another thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from persona_lib.models.generate import cut_at_stop, penalties
from persona_lib.models.llm import using_adapters

ONE_AT_A_TIME = threading.Lock()


def next_token(
    model: Any,
    adapters: Sequence[str],
    ids: list[int],
    past: Any,
    banned: int | None,
    written: Sequence[int] = (),
    repetition_penalty: float = 1.0,
) -> tuple:
    """Return the most probable next token and the keys and values of everything up to it."""
    import torch

    with ONE_AT_A_TIME, using_adapters(model, adapters), torch.inference_mode():
        given = torch.tensor([ids], device=model.device)
        output = model(input_ids=given, past_key_values=past, use_cache=True)
        logits = output.logits[0, -1].float()
        if written:
            seen = torch.tensor([list(written)], device=model.device)
            logits = penalties(repetition_penalty, 0)(seen, logits[None])[0]
        if banned is not None:
            logits[banned] = -torch.inf
        return int(logits.argmax()), output.past_key_values


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
    """Yield the completion so far after every token, up to EOS, a stop string or ``max_new_tokens``."""
    ids, past, written = tokenizer(prompt)["input_ids"], None, []
    for number in range(max_new_tokens):
        banned = tokenizer.eos_token_id if number < min_new_tokens else None
        token, past = next_token(model, adapters, ids, past, banned, written, repetition_penalty)
        if token == tokenizer.eos_token_id:
            return
        written.append(token)
        text, stopped = cut_at_stop(tokenizer.decode(written), stop)
        yield text.strip()
        if stopped:
            return
        ids = [token]
