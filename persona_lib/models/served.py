"""Text generators behind one interface: a served model, vLLM, transformers, or a rule that needs no model.

``load_generator`` returns what a profile asks for. It has ``generate`` (of prompts) or ``write`` (of pairs).

A served model is asked in OpenAI's protocol by the ``openai`` client, which repeats timeouts, 408, 409, 429
and 5xx. Every answer is appended to a ledger, with its cost, before anything else sees it: a killed run pays
for nothing twice. The budget counts what servers report, and the most that a failed request can cost.

vLLM gets token ids (a text would get a second BOS) and returns token ids, so that texts are cut by the same
code as with transformers. Its LoRA kernels work in 16 bits only. Written against vLLM 0.30.0
(``constraints-vllm.txt``); not run by us on a GPU.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.models import generate
from persona_lib.models.generate import Completion, Sampling, TransformersGenerator, cut_at_stop
from persona_lib.models.load import load_base, load_tokenizer, model_key
from persona_lib.settings import Run, results_dir
from persona_lib.store import package_versions

KEY_VARIABLE = "OPENAI_API_KEY"  # of the environment; the key goes nowhere but into the request
FRAME_TOKENS = 64  # that a server's chat format may add to a prompt, at most
FAILURES_IN_A_ROW = 20  # after so many, nobody is at home


class EndpointError(RuntimeError):
    """Requests that failed for good; what was answered is in the ledger, a rerun asks for the rest."""


class BudgetError(EndpointError):
    """The next request might cost more than is left."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served, and what may be spent there.

    ``url`` ends with "/v1". ``kind`` is "chat" (instruction-tuned models) or "completions" (base models).
    ``timeout`` is in seconds per attempt. Prices are US dollars per million tokens. ``max_cost_usd`` is for
    all that the ledger holds; 0 means no limit.
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

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return dollars."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


@dataclass(frozen=True)
class Answer:
    """A line of the ledger. ``id`` is the hash of the request; tokens are as the server counted them.

    ``refused`` names the fields that this model does not take and was asked without (``max_tokens``: by its
    newer name); without "temperature" an answer is not greedy.
    """

    id: str
    model: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    refused: list[str] = field(default_factory=list)


def request_body(
    endpoint: Endpoint,
    prompt: str,
    max_new_tokens: int,
    stop: Sequence[str],
    sampling: Sampling | None = None,
    schema: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what is asked; without ``sampling`` greedy. The prompt is one user message, or stands as it is.

    vLLM, SGLang and others take the repetition penalty as an extra field. Only chat models have a ``schema``.
    """
    body: dict[str, Any] = {"model": endpoint.model, "max_tokens": max_new_tokens, "temperature": 0.0}
    if sampling:
        body |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        body |= {"extra_body": {"repetition_penalty": sampling.repetition_penalty}}
    if stop:
        body["stop"] = list(stop)
    if endpoint.kind != "chat":
        return body | {"prompt": prompt}
    if schema:
        held = {"name": "answer", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": held}
    return body | {"messages": [{"role": "user", "content": prompt}]}


def most_it_can_cost(endpoint: Endpoint, body: dict[str, Any]) -> float:
    """Return an upper bound of an attempt's cost, made before it is sent: no token is less than a byte."""
    text = body.get("prompt") or body["messages"][0]["content"]
    schema = json.dumps(body["response_format"]) if "response_format" in body else ""
    frame = FRAME_TOKENS if endpoint.kind == "chat" else 0
    return endpoint.cost(len((text + schema).encode()) + frame, body["max_tokens"])


def read_response(endpoint: Endpoint, name: str, response: Any) -> Answer:
    """Read a response of either kind; raises ValueError if it holds no answer or no token counts."""
    choices, usage = getattr(response, "choices", None), getattr(response, "usage", None)
    if not choices:
        raise ValueError("no choices")
    if endpoint.max_cost_usd > 0 and usage is None:
        raise ValueError("no usage, so that max_cost_usd could not be kept")
    choice = choices[0]
    text = choice.message.content if endpoint.kind == "chat" else choice.text
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    reason = choice.finish_reason or "stop"
    return Answer(name, response.model, text or "", reason, *tokens, endpoint.cost(*tokens))


def to_completion(answer: Answer, stop: Sequence[str]) -> Completion:
    """Cut an answer at its stop string; what a content filter cut short counts as empty."""
    text, stopped = cut_at_stop(answer.text, stop)
    if answer.finish_reason == "content_filter":
        text = ""
    return Completion(text.strip(), "stop" if stopped else answer.finish_reason, answer.completion_tokens)


class EndpointGenerator:
    """A served model that completes prompts greedily; the interface of ``generate.TransformersGenerator``.

    Requests go side by side, each in a thread. ``spent`` are dollars, also those of others who share the
    ledger; ``reserved`` is the most that each request under way may cost.
    """

    takes_schema = True

    def __init__(self, endpoint: Endpoint, ledger: Path) -> None:
        self.endpoint, self.ledger, self.name = endpoint, Path(ledger), endpoint.model
        self.known: dict[str, Answer] = {}
        self.reserved: dict[str, float] = {}
        self.lock = threading.RLock()
        self.refused: set[str] = set()
        store.repair_rows(self.ledger)
        self.begin()

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the completions besides weights and prompts. The dtype is the server's business."""
        return {
            "model": self.endpoint.model,
            "url": self.endpoint.url,
            "kind": self.endpoint.kind,
            "decoding": "greedy (temperature 0) unless asked otherwise",
        }

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: Sequence[str],
        min_new_tokens: int = 0,
        prefix: str = "",
        sampling: Sampling | None = None,
        schema: dict[str, Any] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion): those of the ledger first, then as they arrive.

        Equal prompts are asked once. A chat model is asked to hold to ``schema``, unless its server refuses.
        Raises ValueError for ``min_new_tokens``, which the protocol does not know; at the end, BudgetError if
        ``max_cost_usd`` forbids the rest, EndpointError if requests failed.
        """
        if min_new_tokens:
            raise ValueError("an endpoint takes no min_new_tokens: set generation.min_new_tokens=0")
        self.begin()

        def body_of(index: int) -> dict[str, Any]:
            whole = prefix + prompts[index]
            return request_body(self.endpoint, whole, max_new_tokens, stop, sampling, schema)

        places: dict[str, list[int]] = {}
        for index in range(len(prompts)):
            name = store.content_hash(self.endpoint.url, self.endpoint.kind, body_of(index))
            if name in self.known:
                yield index, to_completion(self.known[name], stop)
            else:
                places.setdefault(name, []).append(index)
        if not places:
            return
        for answer in self.ask_all((name, body_of(indices[0])) for name, indices in places.items()):
            for index in places[answer.id]:
                yield index, to_completion(answer, stop)
        self.report(len(places))

    def begin(self) -> None:
        """Read what the ledger holds, from this generator and from others, and forget earlier failures."""
        rows = store.read_rows(self.ledger, Answer) if self.ledger.exists() else []
        self.known = {row.id: row for row in rows}
        self.spent = sum(row.cost_usd for row in rows)
        self.failures: list[tuple[str, Exception]] = []
        self.in_a_row, self.stopped, self.out_of_money = 0, False, False

    def ask_all(self, requests: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[Answer]:
        """Yield the answers to (id, body) as they arrive; stops early when it is hopeless.

        A body is taken when its turn comes: a hundred thousand of them need not be held at once.
        """
        import openai

        running: set[Future[Answer | None]] = set()
        size = self.endpoint.concurrency
        key = os.environ.get(KEY_VARIABLE) or "none"  # a server of one's own may want no key
        how = {"timeout": self.endpoint.timeout, "max_retries": self.endpoint.retries}
        client = openai.OpenAI(base_url=self.endpoint.url, api_key=key, **how)
        with client, ThreadPoolExecutor(size) as pool:
            for name, body in requests:
                most = most_it_can_cost(self.endpoint, body)
                while running and (len(running) == size or not self.has_room(most)):
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from filter(None, (future.result() for future in done))
                self.out_of_money |= not self.has_room(most)
                if self.stopped or self.out_of_money:
                    break
                with self.lock:
                    self.reserved[name] = most
                running.add(pool.submit(self.work, client, name, body))
            yield from filter(None, (future.result() for future in as_completed(running)))

    def has_room(self, most: float) -> bool:
        """Say whether the budget allows ``most`` dollars more, whatever the requests under way will cost."""
        with self.lock:
            limit = self.endpoint.max_cost_usd
            return not limit or self.spent + sum(self.reserved.values()) + most <= limit

    def work(self, client: Any, name: str, body: dict[str, Any]) -> Answer | None:
        """Ask for one answer and keep it in the ledger; return None for a request that failed."""
        import openai

        fatal = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
        answer = None
        try:
            answer = self.ask(client, name, body)
        except (openai.OpenAIError, ValueError) as error:
            with self.lock:
                self.failures.append((name, error))
                self.in_a_row += 1
                self.stopped |= isinstance(error, fatal) or self.in_a_row >= FAILURES_IN_A_ROW
        with self.lock:
            most = self.reserved.pop(name)
            self.spent += answer.cost_usd if answer else most
            if answer:
                self.in_a_row = 0
                store.append_rows(self.ledger, [answer])
        return answer

    def ask(self, client: Any, name: str, body: dict[str, Any]) -> Answer:
        """Ask without the fields that the server refuses, and again while the answer cannot be read.

        A server names the field that it complains about; one that names none is taken to mean the schema.
        """
        import openai

        create = client.chat.completions.create if self.endpoint.kind == "chat" else client.completions.create
        left_out, unread = self.refused & body.keys(), 0
        while True:
            asked = {key: value for key, value in body.items() if key not in left_out}
            if "max_tokens" in left_out:
                asked["max_completion_tokens"] = body["max_tokens"]
            try:
                answer = read_response(self.endpoint, name, create(**asked))
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused = error.param or "response_format"
                if refused not in asked or refused in ("model", "prompt", "messages"):
                    raise
                left_out |= {refused}
            except ValueError:
                unread += 1
                if unread > self.endpoint.retries:
                    raise
            else:  # only now is it known that the request was refused for nothing else
                if "temperature" in left_out - self.refused:
                    text = f"{body['model']} takes no temperature: its answers are not greedy"
                    warnings.warn(text, stacklevel=2)
                self.refused |= left_out
                return replace(answer, refused=sorted(left_out))

    def report(self, asked: int) -> None:
        """Raise what stopped the requests, or what failed; a key that a server repeats is not shown."""
        where = f"{self.endpoint.model} at {self.endpoint.url}"
        kept = f"what was answered is kept in {self.ledger}: run again to go on"
        if self.out_of_money:
            raise BudgetError(
                f"{where}: {self.spent:.4f} dollars spent of {self.endpoint.max_cost_usd}, and the next "
                f"request might not fit; raise max_cost_usd; {kept}"
            )
        if self.failures:
            name, error = self.failures[0]
            key, said = os.environ.get(KEY_VARIABLE), f"{type(error).__name__}: {error}"
            said = (said.replace(key, "(key)") if key else said)[:300]
            count = f"{len(self.failures)} of {asked} requests failed"
            raise EndpointError(f"{where}: {count}, the first ({name}) with {said}; {kept}")


# --- vLLM in this process ---

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM takes for max_lora_rank
ON_GPU = 4  # adapters in GPU memory at a time; the others wait in main memory
LOADED: dict[tuple, Any] = {}  # the one engine of this process: it takes nearly all of a GPU's memory
CHUNK = 512  # prompts given to the engine at a time: what is finished is on disk after each


def load_engine(source: str, revision: str, dtype: str, ranks: Sequence[int] = ()) -> Any:
    """Load a model into vLLM, or return the engine that is loaded already; another one is given up first.

    ``ranks`` are those of the adapters that it will serve. Raises ImportError with the way out if vLLM is not
    installed.
    """
    key = (source, revision, dtype, *ranks)
    if key in LOADED:
        return LOADED[key]
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # nothing is reported to anyone
    try:
        from vllm import LLM
    except ImportError as error:
        raise ImportError(
            "engine: vllm needs vLLM and a GPU: pip install -e '.[lab,vllm]' -c constraints-vllm.txt, or set "
            "engine: transformers"
        ) from error
    LOADED.clear()
    gc.collect()  # an engine ends when nobody holds it any more
    how: dict[str, Any] = {
        "model": source,
        "revision": revision or None,
        "tokenizer_revision": revision or None,
    }
    how["dtype"] = dtype  # "auto" would make float16 of float32 weights
    how["max_model_len"] = -1  # what fits into memory, at most the model's own
    how["generation_config"] = "vllm"  # no sampling defaults of the model's authors
    if ranks:
        how |= {"enable_lora": True, "max_loras": min(len(ranks), ON_GPU), "max_cpu_loras": len(ranks)}
        how["max_lora_rank"] = min(rank for rank in RANKS if rank >= max(ranks))
    LOADED[key] = LLM(seed=0, enable_prefix_caching=True, **how)
    return LOADED[key]


def lora_request(name: str, key: str, folder: Path) -> Any:
    """Return vLLM's handle for an adapter whose content ``key`` identifies.

    vLLM knows adapters by number and cached prompts by name: both are made of the key, so none is mistaken.
    """
    from vllm.lora.request import LoRARequest

    name = f"{name}@{key}"
    number = zlib.crc32(name.encode()) % 2**31 or 1
    return LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(folder))


class VllmGenerator:
    """A loaded vLLM engine that completes prompts, with one adapter or none.

    ``adapter`` is what ``lora_request`` returns; ``dtype`` is the precision that the engine was loaded in.
    """

    def __init__(self, engine: Any, tokenizer: Any, name: str, dtype: str, adapter: Any = None) -> None:
        self.engine, self.tokenizer, self.name = engine, tokenizer, name
        self.dtype, self.adapter = dtype, adapter

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the completions besides weights and prompts."""
        return {
            "model": self.name,
            "adapters": [self.adapter.lora_name] if self.adapter else [],  # name and key
            "decoding": "greedy",
            "engine": f"vllm {package_versions().get('vllm', 'of unknown version')}",
            "dtype": self.dtype,
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
        """Yield (index, completion) in order, ``CHUNK`` prompts at a time; greedy without ``sampling``.

        ``prefix`` is put before every prompt. Each prompt's seed is made of the run's and its place.
        """
        from vllm import SamplingParams

        how: dict[str, Any] = {
            "max_tokens": max_new_tokens,
            "min_tokens": min_new_tokens,
            "stop": list(stop),
            "include_stop_str_in_output": True,  # cut by to_completion, as everywhere
            "skip_special_tokens": False,
            "temperature": 0.0,
        }
        if sampling:
            how |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            how |= {"repetition_penalty": sampling.repetition_penalty}
        for start in range(0, len(prompts), CHUNK):
            indices = range(start, min(start + CHUNK, len(prompts)))
            seeds = [zlib.crc32(f"{sampling.seed}-{i}".encode()) if sampling else None for i in indices]
            outputs = self.engine.generate(
                [{"prompt_token_ids": self.tokenizer(prefix + prompts[i])["input_ids"]} for i in indices],
                [SamplingParams(**how, seed=seed) for seed in seeds],
                lora_request=self.adapter,
                use_tqdm=False,
            )
            for index, output in zip(indices, outputs, strict=True):
                yield index, self.read_output(output, stop)

    def read_output(self, output: Any, stop: Sequence[str]) -> Completion:
        """Turn vLLM's ``RequestOutput`` into a completion; raises RuntimeError for one broken off."""
        (found,) = output.outputs
        if found.finish_reason not in ("stop", "length"):
            raise RuntimeError(
                f"vLLM ended request {output.request_id} with finish_reason={found.finish_reason!r}"
            )
        completion = generate.to_completion(self.tokenizer, list(found.token_ids), stop)
        reason = "stop" if "stop" in (completion.finish_reason, found.finish_reason) else "length"
        return replace(completion, finish_reason=reason)


# --- Personas without a language model ---

SURFACE = "surface"  # the name of the rule
LEAST = 0.3  # of a log ratio of counts: a third more is a difference
# What is counted, and (attribute, explanation) of who likes more of it and of who likes less of it.
FEATURES = (
    (r"\b(?:for example|for instance|such as|e\.g\.)",
     ("practical", "answers with examples"), ("focused", "answers that keep to the point")),
    (r"\b(?:may|might|could|perhaps|possibly|usually|depends)\b",
     ("careful", "answers that say what is uncertain"), ("decisive", "answers that commit themselves")),
    (r"^\s*(?:[-*\u2022]|\d+[.)])\s",
     ("organized", "answers laid out as a list of points"), ("easygoing", "answers in flowing sentences")),
    (r"(?<![\w.])\d+(?:[.,]\d+)?(?![.)]\s)",
     ("exact", "answers with figures and amounts"), ("relaxed", "answers without figures")),
    (r"\?", ("talkative", "answers that ask back"), ("independent", "answers that ask nothing back")),
    (r"!|\b(?:sorry|glad|happy|great|thanks|thank you|please|enjoy)\b",
     ("warm", "answers in a friendly tone"), ("sober", "answers in a neutral tone")),
    (r"\S+", ("thorough", "long, detailed answers"), ("busy", "short, direct answers")),
)  # fmt: skip


def surface_persona(preferred: str, other: str) -> str:
    """Return a persona from the one or two largest differences; "" if nothing that is counted differs.

    Not the paper's persona inference: it sees length, lists, numbers and tone, and nothing of what is said.
    """
    found = []
    for pattern, more, less in FEATURES:
        a, b = (len(re.findall(pattern, text, re.IGNORECASE | re.MULTILINE)) for text in (preferred, other))
        ratio = math.log((a + 1) / (b + 1))
        if abs(ratio) >= LEAST:
            found.append((abs(ratio), more if ratio > 0 else less))
    said = [liked for _, liked in sorted(found, key=lambda pair: -pair[0])[:2]]
    if not said:
        return ""
    return f"The user is {said[0][0]} and prefers {', and '.join(phrase for _, phrase in said)}."


class SurfaceGenerator:
    """Writes personas by rule. It is asked about pairs, not prompts: ``write`` takes the two responses."""

    name = SURFACE
    settings: dict[str, Any] = {"model": SURFACE}

    def write(self, items: Sequence[tuple[str, str, str]]) -> list[str]:
        """Return a persona for each (prompt, preferred, other)."""
        return [surface_persona(preferred, other) for _, preferred, other in items]


# --- Which text generator a role of a run uses ---


def role_source(run: Run, role: str) -> tuple[str, str]:
    """Return where the model of a role is, and its revision: the run's own base, a hub model or a folder."""
    name = getattr(run.profile, role).model
    return run.base_source if name == "base" else (name, "")


def role_key(run: Run, role: str) -> str:
    """Return what identifies the model of a role: its weights, or its name and address if it is served."""
    name, url = getattr(run.profile, role).model, getattr(run.profile, role).url
    if url:
        return f"{name} at {url}"
    return name if name in GENERATORS else model_key(*role_source(run, role))


# name -> function of run, role, batch size; see ``load_generator``
GENERATORS: dict[str, Callable[[Run, str, int], Any]] = {
    SURFACE: lambda run, role, batch_size: SurfaceGenerator(),
}


def load_generator(run: Run, role: str, batch_size: int) -> Any:
    """Return the run's "generator" (persona inference) or "judge", as the profile's group of that name says.

    A name of GENERATORS stands for itself; another one is a model, which is asked where it is served or by
    ``generation.engine``. Served models of a profile share ledger and budget.
    """
    profile, named = run.profile, getattr(run.profile, role)
    name = named.model
    if named.url:
        ledger = results_dir(profile) / "endpoint" / "answers.jsonl"
        prices = dict(zip(("prompt_price", "completion_price"), named.prices, strict=False))
        limit = {"max_cost_usd": profile.served.max_cost_usd}
        return EndpointGenerator(Endpoint(named.url.rstrip("/"), name, named.kind, **prices, **limit), ledger)
    if name in GENERATORS:
        return GENERATORS[name](run, role, batch_size)
    source, dtype = role_source(run, role), profile.base.dtype
    tokenizer, name = load_tokenizer(*source), profile.base.model if name == "base" else name
    if profile.generation.engine == "vllm":
        return VllmGenerator(load_engine(*source, dtype), tokenizer, name, dtype)
    return TransformersGenerator(load_base(*source, "none", dtype), tokenizer, name, batch_size)
