"""OpenAI's protocol, as far as it is used: what is asked, what is answered, what it costs.

Pure functions and records; ``endpoint`` sends the requests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from persona_lib import store
from persona_lib.models.generate import Completion, Sampling, cut_at_stop
from persona_lib.profiles import Profile

KINDS = ("chat", "completions")
# Reasoning models of hosted services take none of the first four.
MAY_BE_REFUSED = ("max_tokens", "temperature", "stop", "top_p", "seed", "response_format")
FRAME_TOKENS = 64  # that a server's chat format may add to a prompt, at most
LOST = "lost"  # finish_reason of a ledger's line that is no answer


class UnreadableAnswer(ValueError):
    """A response with a good status that holds no answer."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served, and what may be spent there.

    ``url`` ends with "/v1". ``kind`` is "chat" (instruction-tuned models) or "completions" (base models).
    ``timeout`` is in seconds per attempt. Prices are US dollars per million tokens. ``max_cost_usd`` is for
    all that the ledger holds; 0 means no limit. The key is read from the environment variable
    ``key_variable`` and goes nowhere but into the request.
    """

    url: str
    model: str
    kind: str = "chat"
    concurrency: int = 16
    timeout: float = 120.0
    retries: int = 5
    prompt_price: float = 0.0
    completion_price: float = 0.0
    max_cost_usd: float = 0.0
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Endpoint.kind={self.kind!r}: use one of {', '.join(KINDS)}")
        if self.max_cost_usd > 0 and not (self.prompt_price and self.completion_price):
            raise ValueError("max_cost_usd needs prompt_price and completion_price, in dollars per million")


def endpoint_of(profile: Profile, role: str) -> Endpoint:
    """Return the endpoint of a profile's "generator" or "judge", as its ``<role>_*`` fields say."""
    prices = getattr(profile, f"{role}_prices") or (0.0, 0.0)
    return Endpoint(
        url=getattr(profile, f"{role}_url").rstrip("/"),
        model=getattr(profile, f"{role}_model"),
        kind=getattr(profile, f"{role}_kind"),
        concurrency=profile.endpoint_concurrency,
        timeout=profile.endpoint_timeout,
        retries=profile.endpoint_retries,
        prompt_price=prices[0],
        completion_price=prices[1],
        max_cost_usd=profile.max_cost_usd,
    )


@dataclass(frozen=True)
class Answer:
    """A line of the ledger. ``id`` is the hash of the request; tokens are as the server counted them.

    ``refused`` names the request's fields that this model does not take: it was asked without them
    (``max_tokens``: by its newer name). Without "temperature" an answer is not greedy. ``lost_usd`` is the
    most that attempts whose reply was lost or unreadable can have cost; a request that has only such has a
    line with finish_reason "lost", and is asked again.
    """

    id: str
    model: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    refused: tuple[str, ...] = ()
    lost_usd: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "refused", tuple(self.refused))  # JSON knows lists only


def request_body(
    endpoint: Endpoint,
    prompt: str,
    max_new_tokens: int,
    stop: Sequence[str],
    sampling: Sampling | None = None,
    schema: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what is asked; without ``sampling`` greedy. The prompt is one user message, or stands as it is.

    OpenAI's protocol has no repetition penalty; vLLM, SGLang and others take it as an extra field. It has
    a ``schema`` (JSON) for chat models only.
    """
    body: dict[str, Any] = {"model": endpoint.model, "max_tokens": max_new_tokens, "temperature": 0.0}
    if sampling:
        body |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        body |= {"extra_body": {"repetition_penalty": sampling.repetition_penalty}}
    if stop:
        body["stop"] = list(stop)
    if schema and endpoint.kind == "chat":
        held = {"name": "answer", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": held}
    if endpoint.kind == "chat":
        return body | {"messages": [{"role": "user", "content": prompt}]}
    return body | {"prompt": prompt}


def without(body: dict[str, Any], refused: Iterable[str]) -> dict[str, Any]:
    """Return a request without the fields that a model refuses; max_tokens gets its newer name."""
    refused = set(refused)
    kept = {field: value for field, value in body.items() if field not in refused}
    return kept | ({"max_completion_tokens": body["max_tokens"]} if "max_tokens" in refused else {})


def refused_field(error: Exception, body: dict[str, Any]) -> str | None:
    """Return the field that a server's complaint is about: the one it names, else the schema, if any.

    None if it is about something that cannot be left out.
    """
    named = getattr(error, "param", None)
    if named in body and named in MAY_BE_REFUSED:
        return named
    if named is None and "response_format" in body:
        return "response_format"
    return None


def request_id(endpoint: Endpoint, body: dict[str, Any]) -> str:
    """Return the hash that a request is known by: endpoint, kind and body."""
    return store.content_hash(endpoint.url, endpoint.kind, body)


def cost(endpoint: Endpoint, prompt_tokens: float, completion_tokens: float) -> float:
    """Return dollars."""
    return (prompt_tokens * endpoint.prompt_price + completion_tokens * endpoint.completion_price) / 1e6


def most_it_can_cost(endpoint: Endpoint, body: dict[str, Any]) -> float:
    """Return an upper bound of an attempt's cost, made before it is sent: no token is less than a byte."""
    text = body.get("prompt") or body["messages"][0]["content"]
    schema = json.dumps(body["response_format"]) if "response_format" in body else ""
    frame = FRAME_TOKENS if endpoint.kind == "chat" else 0
    return cost(endpoint, len((text + schema).encode()) + frame, body["max_tokens"])


def read_response(endpoint: Endpoint, name: str, response: Any) -> Answer:
    """Read a response of either kind; raises UnreadableAnswer if it holds no answer or no token counts."""
    choices, usage = getattr(response, "choices", None), getattr(response, "usage", None)
    if not choices:
        raise UnreadableAnswer("no choices")
    if endpoint.max_cost_usd > 0 and usage is None:
        raise UnreadableAnswer("no usage, so that max_cost_usd could not be kept")
    choice = choices[0]
    text = choice.message.content if endpoint.kind == "chat" else choice.text
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    reason = choice.finish_reason or "stop"
    return Answer(name, response.model, text or "", reason, *tokens, cost(endpoint, *tokens))


def to_completion(answer: Answer, stop: Sequence[str]) -> Completion:
    """Cut an answer at its stop string; what a content filter cut short counts as empty."""
    text, stopped = cut_at_stop(answer.text, stop)
    if answer.finish_reason == "content_filter":
        text = ""
    return Completion(text.strip(), "stop" if stopped else answer.finish_reason, answer.completion_tokens)


def api_key(endpoint: Endpoint) -> str:
    """Return the key from the environment; "" without one."""
    return os.environ.get(endpoint.key_variable, "")


def describe(error: Exception, key: str) -> str:
    """Return an error as text, without the key, should a server have repeated it."""
    text = f"{type(error).__name__}: {error}"
    return (text.replace(key, "(key)") if key else text)[:300]
