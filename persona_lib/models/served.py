"""OpenAI's protocol, as far as it is used: what is asked, what is answered, what it costs.

Pure functions and records; ``endpoint`` sends the requests.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import queue
import re
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.models import generate
from persona_lib.models.generate import Completion, Sampling, TransformersGenerator, cut_at_stop
from persona_lib.models.load import load_base, load_tokenizer, model_key
from persona_lib.settings import ConfigError, Profile, Run, near_names, results_dir
from persona_lib.store import package_versions

# --- OpenAI's protocol, as far as it is used: what is asked, what is answered, what it costs ---
# Pure functions and records; ``endpoint`` sends the requests.


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


# --- Text generation by a served model ---
# serve`, hosted models), behind the interface of ``generate``.
#
# Requests go out side by side, a bounded number at a time. The client of the ``openai`` package repeats
# what deserves it (timeouts, lost connections, 408, 409, 429 and 5xx, with jitter, and as late as the
# server's Retry-After asks); answers that cannot be read are asked for again here. Every answer is appended
# to a ledger, with what it cost, before anything else sees it: a killed run pays for nothing twice. A reply
# that is lost on its way (timeout, broken connection) or cannot be read may be billed: the budget counts
# the most it can cost.


FAILURES_IN_A_ROW = 20  # after so many, nobody is at home
NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # of the SDK's HTTP client


class EndpointError(RuntimeError):
    """Requests that failed for good; what was answered is in the ledger, a rerun asks for the rest."""


class BudgetError(EndpointError):
    """The next request might cost more than is left."""


@dataclass
class Spending:
    """What one request can cost per attempt, and what its lost attempts can have cost, in dollars."""

    most: float
    lost: float = 0.0


SPENDING: ContextVar[Spending] = ContextVar("SPENDING")  # of the request that a task is working on


class Asker:
    """Sends requests side by side and hands every answer on as soon as it is in the ledger."""

    def __init__(self, endpoint: Endpoint, ledger: Path, spent: float, give: Callable[[Any], None]) -> None:
        self.endpoint, self.ledger, self.give = endpoint, ledger, give
        self.spent, self.reserved = spent, 0.0
        self.failures: list[tuple[str, Exception]] = []
        self.in_a_row = 0
        self.stopped = threading.Event()
        self.out_of_money, self.refused = False, set[str]()

    async def ask_all(self, requests: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Ask every (id, body), ``concurrency`` at a time; stops early when told to, or when it is hopeless.

        A body is taken when its turn comes: a hundred thousand of them need not be held at once.
        """
        import openai

        self.waiting, self.room = iter(requests), asyncio.Condition()
        async with openai.AsyncOpenAI(
            base_url=self.endpoint.url,
            api_key=api_key(self.endpoint) or "none",  # a server of one's own may want no key
            timeout=self.endpoint.timeout,
            max_retries=self.endpoint.retries,
            http_client=self.http_client(),
        ) as client:
            await asyncio.gather(*(self.work(client) for _ in range(self.endpoint.concurrency)))

    def http_client(self) -> Any:
        """Return the SDK's HTTP client; it asks before every attempt and tells if the reply is lost."""
        import openai

        asker = self

        class Told(openai.DefaultAsyncHttpxClient):
            async def send(self, request: Any, **options: Any) -> Any:
                asker.check_budget()
                try:
                    return await super().send(request, **options)
                except Exception as error:
                    if type(error).__name__ not in NEVER_SENT:
                        asker.lose()
                    raise

        return Told()

    def check_budget(self) -> None:
        """Raise BudgetError where lost replies have used up what was left for another attempt."""
        if self.endpoint.max_cost_usd and self.spent + self.reserved > self.endpoint.max_cost_usd:
            self.out_of_money = True
            self.stopped.set()
            raise BudgetError("no money is left for another attempt")

    def lose(self) -> None:
        """Count a reply that never came, or that cannot be read, as the most that it can have cost."""
        spending = SPENDING.get()
        spending.lost += spending.most
        self.spent += spending.most

    async def work(self, client: Any) -> None:
        """Take one request after the other."""
        import openai

        fatal = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
        for name, body in self.waiting:
            if self.stopped.is_set() or not await self.reserve(body):
                return
            spending = Spending(most_it_can_cost(self.endpoint, body))
            SPENDING.set(spending)
            try:
                answer = await self.ask(client, name, body)
            except (openai.OpenAIError, BudgetError, UnreadableAnswer, json.JSONDecodeError) as error:
                self.failures.append((name, error))
                if spending.lost:
                    lost = Answer(name, self.endpoint.model, "", LOST, 0, 0, 0.0, lost_usd=spending.lost)
                    store.append_rows(self.ledger, [lost])
                self.in_a_row += 1
                if isinstance(error, fatal) or self.in_a_row >= FAILURES_IN_A_ROW:
                    self.stopped.set()
            else:
                self.in_a_row = 0
                self.spent += answer.cost_usd
                answer = replace(answer, lost_usd=spending.lost)
                store.append_rows(self.ledger, [answer])
                self.give(answer)
            await self.release(body)

    async def reserve(self, body: dict[str, Any]) -> bool:
        """Wait until there is money for a request, whatever it will cost; False if there will never be."""
        limit, most = self.endpoint.max_cost_usd, most_it_can_cost(self.endpoint, body)
        async with self.room:
            while limit and self.spent + self.reserved + most > limit and not self.stopped.is_set():
                if not self.reserved:
                    self.out_of_money = True
                    self.stopped.set()
                    self.room.notify_all()
                    return False
                await self.room.wait()
            self.reserved += most
        return not self.stopped.is_set()

    async def release(self, body: dict[str, Any]) -> None:
        """Give back what was reserved for a request."""
        async with self.room:
            self.reserved = max(0.0, self.reserved - most_it_can_cost(self.endpoint, body))
            if self.reserved < 1e-12:
                self.reserved = 0.0
            self.room.notify_all()

    async def ask(self, client: Any, name: str, body: dict[str, Any]) -> Answer:
        """Ask, without what the server refuses; what it refused once is left out from then on."""
        import openai

        left_out = self.refused & body.keys()
        while True:
            asked = without(body, left_out)
            try:
                answer = await self.attempt(client, name, asked)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                field = refused_field(error, asked)
                if field is None:
                    raise
                left_out |= {field}
            else:  # only now is it known that the request was refused for nothing else
                self.note_refused(left_out)
                return replace(answer, refused=tuple(sorted(left_out)))

    def note_refused(self, fields: set[str]) -> None:
        """Remember what the server refuses, and say so once where it changes how answers are drawn."""
        if "temperature" in fields - self.refused:
            warnings.warn(
                f"{self.endpoint.model} takes no temperature: its own is used, its answers are not greedy",
                stacklevel=2,
            )
        self.refused |= fields

    async def attempt(self, client: Any, name: str, body: dict[str, Any]) -> Answer:
        """Ask once, and again while the answer cannot be read."""
        create = client.chat.completions.create if self.endpoint.kind == "chat" else client.completions.create
        for attempt in range(self.endpoint.retries + 1):
            try:
                return read_response(self.endpoint, name, await create(**body))
            except (UnreadableAnswer, json.JSONDecodeError):
                self.lose()
                if attempt == self.endpoint.retries:
                    raise
        raise AssertionError("unreachable")


class EndpointGenerator:
    """A served model that completes prompts greedily; the interface of ``generate.TransformersGenerator``."""

    takes_schema = True

    def __init__(self, endpoint: Endpoint, ledger: Path) -> None:
        self.endpoint, self.ledger, self.name = endpoint, Path(ledger), endpoint.model
        self.known: dict[str, Answer] = {}
        self.spent, self.read_to = 0.0, 0  # dollars and bytes of the ledger

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

        Equal prompts are asked once. A chat model is asked to hold to ``schema``, unless its server refuses
        (``Answer.refused``). Raises ValueError for ``min_new_tokens``, which the protocol does not
        know; at the end, BudgetError if ``max_cost_usd`` forbids the rest, EndpointError if requests failed.
        """
        if min_new_tokens:
            raise ValueError("an endpoint cannot be asked for min_new_tokens: set gen_min_new_tokens to 0")
        self.read_ledger()

        def body_of(index: int) -> dict[str, Any]:
            whole = prefix + prompts[index]
            return request_body(self.endpoint, whole, max_new_tokens, stop, sampling, schema)

        places: dict[str, list[int]] = {}
        for index in range(len(prompts)):
            name = request_id(self.endpoint, body_of(index))
            if name in self.known:
                yield index, to_completion(self.known[name], stop)
            else:
                places.setdefault(name, []).append(index)
        requests = ((name, body_of(indices[0])) for name, indices in places.items())
        for answer in self.ask(requests, len(places)):
            for index in places[answer.id]:
                yield index, to_completion(answer, stop)

    def read_ledger(self) -> None:
        """Read what the ledger has got since the last look, from this generator and from others."""
        if self.read_to == 0:
            store.repair_rows(self.ledger)
        if not self.ledger.exists():
            return
        with self.ledger.open("rb") as file:
            file.seek(self.read_to)
            for number, line in enumerate(file, start=1):
                try:
                    answer = Answer(**json.loads(line))
                except (ValueError, TypeError) as error:
                    where = f"{self.ledger}, line {number} after byte {self.read_to}"
                    raise EndpointError(f"{where}: not an answer ({error}); mend or delete it") from error
                if answer.finish_reason != LOST:
                    self.known[answer.id] = answer
                self.spent += answer.cost_usd + answer.lost_usd
            self.read_to = file.tell()

    def ask(self, requests: Iterable[tuple[str, dict[str, Any]]], count: int) -> Iterator[Answer]:
        """Yield the answers as they arrive; the event loop has its own thread (a notebook has one)."""
        if not count:
            return
        answers: queue.Queue[Any] = queue.Queue()
        asker = Asker(self.endpoint, self.ledger, self.spent, answers.put)

        def run() -> None:
            try:
                asyncio.run(asker.ask_all(requests))
                answers.put(None)
            except BaseException as error:
                answers.put(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while (answer := answers.get()) is not None:
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        finally:
            asker.stopped.set()
            thread.join()
        self.report(asker, count)

    def report(self, asker: Asker, asked: int) -> None:
        """Raise what stopped the asker, or what failed."""
        where = f"{self.endpoint.model} at {self.endpoint.url}"
        kept = f"what was answered is kept in {self.ledger}: run again to go on"
        if asker.out_of_money:
            raise BudgetError(
                f"{where}: {asker.spent:.4f} dollars spent of {self.endpoint.max_cost_usd}, and the next "
                f"request might not fit; raise max_cost_usd; {kept}"
            )
        if asker.failures:
            name, error = asker.failures[0]
            raise EndpointError(
                f"{where}: {len(asker.failures)} of {asked} requests failed, the first ({name}) with "
                f"{describe(error, api_key(self.endpoint))}; {kept}"
            )


# --- vLLM in this process, behind the interface of ``generate`` ---
# Prompts go in as token ids (a text would get a second BOS) and token ids come back, so that texts are made
# and cut by the same code as with transformers. Prompts that begin alike share their keys and values
# (prefix caching), and adapters of one base are served side by side, one per request. Its LoRA kernels work
# in 16 bits only, so adapters are rounded to bfloat16 there. Written against the source of vLLM 0.30.0,
# which ``constraints-vllm.txt`` pins; it has not been run by us: there was no GPU.


RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM takes for max_lora_rank
ON_GPU = 4  # adapters in GPU memory at a time; the others wait in main memory
LOADED: dict[tuple, Any] = {}  # the one engine of this process: it takes nearly all of a GPU's memory
CHUNK = 512  # prompts given to the engine at a time: what is finished is on disk after each


def engine_arguments(source: str, revision: str, dtype: str, ranks: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of ``vllm.LLM``; ``ranks`` are those of the adapters that it will serve.

    Raises ValueError for a rank above vLLM's largest.
    """
    arguments = {
        "model": source,
        "revision": revision or None,
        "tokenizer_revision": revision or None,
        "dtype": dtype,  # "auto" would make float16 of float32 weights
        "seed": 0,
        "max_model_len": -1,  # what fits into memory, at most the model's own
        "generation_config": "vllm",  # no sampling defaults of the model's authors
        "enable_prefix_caching": True,
    }
    if not ranks:
        return arguments
    if max(ranks) > RANKS[-1]:
        raise ValueError(f"an adapter has rank {max(ranks)}; vLLM takes at most {RANKS[-1]}")
    return arguments | {
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in RANKS if rank >= max(ranks)),
        "max_loras": min(len(ranks), ON_GPU),
        "max_cpu_loras": len(ranks),
    }


def load_engine(source: str, revision: str, dtype: str, ranks: Sequence[int] = ()) -> Any:
    """Load a model into vLLM, or return the engine that is loaded already; another one is given up first.

    Raises ImportError with the mend if vLLM is not installed.
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
    LOADED[key] = LLM(**engine_arguments(source, revision, dtype, ranks))
    return LOADED[key]


def lora_request(name: str, key: str, folder: Path) -> Any:
    """Return vLLM's handle for an adapter whose content ``key`` identifies.

    vLLM knows adapters by number and their cached prompts by name, so both are made of the key: an engine
    that is asked again later never mistakes one adapter for another.
    """
    from vllm.lora.request import LoRARequest

    name = f"{name}@{key}"
    number = zlib.crc32(name.encode()) % 2**31 or 1
    return LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(folder))


def sampling_arguments(
    index: int,
    max_new_tokens: int,
    stop: Sequence[str],
    min_new_tokens: int = 0,
    sampling: Sampling | None = None,
) -> dict[str, Any]:
    """Return the arguments of ``vllm.SamplingParams`` for one prompt; greedy without ``sampling``.

    vLLM draws for every request from a generator of its own, so each prompt gets a seed made of the
    run's seed and its place.
    """
    arguments = {
        "max_tokens": max_new_tokens,
        "min_tokens": min_new_tokens,
        "stop": list(stop),
        "include_stop_str_in_output": True,  # cut by to_completion, as everywhere
        "skip_special_tokens": False,
        "temperature": 0.0,
    }
    if sampling is None:
        return arguments
    return arguments | {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": zlib.crc32(f"{sampling.seed}-{index}".encode()),
    }


def read_output(output: Any, tokenizer: Any, stop: Sequence[str]) -> Completion:
    """Turn vLLM's ``RequestOutput`` into a completion; raises RuntimeError for one that was broken off."""
    (found,) = output.outputs
    if found.finish_reason not in ("stop", "length"):
        raise RuntimeError(
            f"vLLM ended request {output.request_id} with finish_reason={found.finish_reason!r}"
        )
    completion = generate.to_completion(tokenizer, list(found.token_ids), stop)
    reason = "stop" if "stop" in (completion.finish_reason, found.finish_reason) else "length"
    return Completion(completion.text, reason, completion.n_tokens)


class VllmGenerator:
    """A loaded vLLM engine that completes prompts, with one adapter or none.

    ``adapter`` is what ``lora_request`` returns; ``dtype`` is the precision that the engine was loaded in.
    """

    def __init__(
        self, engine: Any, tokenizer: Any, name: str, dtype: str, adapter: Any = None, chunk: int = CHUNK
    ) -> None:
        self.engine, self.tokenizer, self.name = engine, tokenizer, name
        self.dtype, self.adapter, self.chunk = dtype, adapter, chunk

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
        """Yield (index, completion) in order, ``chunk`` prompts at a time; greedy without ``sampling``.

        ``prefix`` is put before every prompt; vLLM computes what prompts have in common once.
        """
        from vllm import SamplingParams

        for start in range(0, len(prompts), self.chunk):
            indices = range(start, min(start + self.chunk, len(prompts)))
            how = (max_new_tokens, stop, min_new_tokens, sampling)
            outputs = self.engine.generate(
                [{"prompt_token_ids": self.tokenizer(prefix + prompts[i])["input_ids"]} for i in indices],
                [SamplingParams(**sampling_arguments(i, *how)) for i in indices],
                lora_request=self.adapter,
                use_tqdm=False,
            )
            for index, output in zip(indices, outputs, strict=True):
                yield index, read_output(output, self.tokenizer, stop)


# --- Personas without a language model ---
# This is not the paper's persona inference. It sees length, lists, numbers and tone, and nothing of what a
# response says. It stands in where no model at hand can infer a persona, so that own data runs offline;
# results with it are about such surface wishes only.


NAME = "surface"
LEAST = 0.3  # of a log ratio of counts: a third more is a difference
Measure = Callable[[str], float]


def counter(pattern: str, flags: int = re.IGNORECASE | re.MULTILINE) -> Measure:
    """Return a measure: how often a pattern occurs."""
    compiled = re.compile(pattern, flags)
    return lambda text: float(len(compiled.findall(text)))


# what is counted -> (measure, who likes more of it, who likes less of it), each (attribute, explanation)
FEATURES: dict[str, tuple[Measure, tuple[str, str], tuple[str, str]]] = {
    "words": (
        counter(r"\S+"),
        ("thorough", "long, detailed answers"),
        ("busy", "short, direct answers"),
    ),
    "list items": (
        counter(r"^\s*(?:[-*\u2022]|\d+[.)])\s"),
        ("organized", "answers laid out as a list of points"),
        ("easygoing", "answers in flowing sentences"),
    ),
    "numbers": (
        counter(r"(?<![\w.])\d+(?:[.,]\d+)?(?![.)]\s)"),
        ("exact", "answers with figures and amounts"),
        ("relaxed", "answers without figures"),
    ),
    "examples": (
        counter(r"\b(?:for example|for instance|such as|e\.g\.)"),
        ("practical", "answers with examples"),
        ("focused", "answers that keep to the point"),
    ),
    "hedges": (
        counter(r"\b(?:may|might|could|perhaps|possibly|usually|depends)\b"),
        ("careful", "answers that say what is uncertain"),
        ("decisive", "answers that commit themselves"),
    ),
    "warmth": (
        counter(r"!|\b(?:sorry|glad|happy|great|thanks|thank you|please|enjoy)\b"),
        ("warm", "answers in a friendly tone"),
        ("sober", "answers in a neutral tone"),
    ),
    "questions": (
        counter(r"\?"),
        ("talkative", "answers that ask back"),
        ("independent", "answers that ask nothing back"),
    ),
}


def differences(preferred: str, other: str) -> list[tuple[float, str]]:
    """Return (log ratio of counts, feature) from the largest difference to the smallest."""
    found = [(math.log((measure(preferred) + 1) / (measure(other) + 1)), name)
             for name, (measure, _, _) in FEATURES.items()]  # fmt: skip
    large = [pair for pair in found if abs(pair[0]) >= LEAST]
    return sorted(large, key=lambda pair: (-abs(pair[0]), pair[1]))


def surface_persona(preferred: str, other: str) -> str:
    """Return a persona from the one or two largest differences; "" if nothing that is counted differs."""
    said = [FEATURES[name][1 if ratio > 0 else 2] for ratio, name in differences(preferred, other)[:2]]
    if not said:
        return ""
    return f"The user is {said[0][0]} and prefers {', and '.join(phrase for _, phrase in said)}."


class SurfaceGenerator:
    """Writes personas by rule. It is asked about pairs, not prompts: `write` takes the two responses."""

    name = NAME
    settings: dict[str, Any] = {"model": NAME}

    def write(self, items: Sequence[tuple[str, str, str]]) -> list[str]:
        """Return a persona for each (prompt, preferred, other)."""
        return [surface_persona(preferred, other) for _, preferred, other in items]


# --- Which text generator a run uses: its own base model, one of the hub, one that is served, or a rule ---
# GENERATORS is the table of them. A profile's ``generator_model`` may be one of its names; otherwise it is
# a model, which is asked where it is served (``generator_url``) or by the profile's ``engine``.


def role_source(run: Run, role: str) -> tuple[str, str]:
    """Return where the model of a role is, and its revision: the run's own base, a hub model or a folder."""
    name = getattr(run.profile, f"{role}_model")
    return run.base_source if name == "base" else (name, "")


def role_key(run: Run, role: str) -> str:
    """Return what identifies the model of a role: its weights, or its name and address if it is served."""
    name, url = getattr(run.profile, f"{role}_model"), getattr(run.profile, f"{role}_url")
    if url:
        return f"{name} at {url}"
    return name if name in GENERATORS else model_key(*role_source(run, role))


def model_name(run: Run, role: str) -> str:
    """Return what a role's model is called in the rows that it writes."""
    name = getattr(run.profile, f"{role}_model")
    return run.profile.base_model if name == "base" else name


def served_generator(run: Run, role: str, batch_size: int) -> Any:
    """Return a model that is served; those of one profile share a ledger, and with it ``max_cost_usd``."""
    ledger = results_dir(run.profile) / "endpoint" / "answers.jsonl"
    return EndpointGenerator(endpoint_of(run.profile, role), ledger)


def vllm_generator(run: Run, role: str, batch_size: int) -> Any:
    """Return a model that vLLM runs here."""
    source, revision = role_source(run, role)
    dtype = run.profile.compute_dtype
    engine = load_engine(source, revision, dtype)
    return VllmGenerator(engine, load_tokenizer(source, revision), model_name(run, role), dtype)


def transformers_generator(run: Run, role: str, batch_size: int) -> Any:
    """Return a model that transformers runs here."""
    source, revision = role_source(run, role)
    model = load_base(source, revision, "none", run.profile.compute_dtype)
    return TransformersGenerator(model, load_tokenizer(source, revision), model_name(run, role), batch_size)


def surface_generator(run: Run, role: str, batch_size: int) -> Any:
    """Return the rules that write personas without a language model."""
    return SurfaceGenerator()


# name -> function of run, role, batch size; what it returns has ``generate`` (prompts) or ``write`` (pairs)
GENERATORS: dict[str, Callable[[Run, str, int], Any]] = {
    "endpoint": served_generator,
    "transformers": transformers_generator,
    "vllm": vllm_generator,
    NAME: surface_generator,
}


def generator_kind(profile: Profile, role: str) -> str:
    """Return the name in GENERATORS of what answers for a role; ConfigError if there is none."""
    name = getattr(profile, f"{role}_model")
    kind = "endpoint" if getattr(profile, f"{role}_url") else name if name in GENERATORS else profile.engine
    if kind not in GENERATORS:
        raise ConfigError(f"profile {profile.name}: engine={kind!r}: {near_names(kind, list(GENERATORS))}")
    return kind


def load_generator(run: Run, role: str, batch_size: int) -> Any:
    """Return the run's "generator" (persona inference) or "judge", as the ``<role>_*`` fields say."""
    return GENERATORS[generator_kind(run.profile, role)](run, role, batch_size)
