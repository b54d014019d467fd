"""Load the generator that a profile asks for: a served model, vLLM, transformers, or a rule without a model.

A served model is asked in OpenAI's protocol. Every answer is appended to a ledger, with its cost, before
anything else sees it: a killed run pays for nothing twice. The budget counts what servers report, and the
most that a failed request can cost. vLLM (0.30.0; not run by us on a GPU) gets token ids: a text would get a
second BOS.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from persona_lib import store, weights
from persona_lib.models import generate
from persona_lib.models.generate import Completion, Decoding, TransformersGenerator, cut_at_stop
from persona_lib.models.load import load_base, load_tokenizer, model_key
from persona_lib.settings import ModelRole, Run, results_dir
from persona_lib.texts import SPACELESS

FAILURES_IN_A_ROW = 20  # after so many, nobody is at home
# After a response of such a status nothing more is asked.
HOPELESS = dict.fromkeys((401, 403), "the server refuses the key of OPENAI_API_KEY: set another one; ")
HOPELESS[404] = "the server knows no such model or path: change the role's model, url or kind; "


class EndpointError(RuntimeError):
    """Requests that failed for good, or that the budget forbids; a rerun asks for what the ledger lacks."""


@dataclass(frozen=True)
class Answer:
    """A line of the ledger. ``id`` is the hash of the request; tokens are as the server counted them."""

    id: str
    model: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    refused: list[str] = field(default_factory=list)  # fields that the model was asked without


@dataclass
class EndpointGenerator:
    """A served model that completes prompts; requests go side by side, each in a thread."""

    role: ModelRole
    ledger: Path
    max_cost_usd: float = 0.0  # for all that the ledger holds, also from others who share it; 0: no limit
    concurrency: int = 16
    timeout: float = 120.0  # seconds per attempt
    retries: int = 5

    def __post_init__(self) -> None:
        self.name, self.url, self.chat = self.role.model, self.role.url.rstrip("/"), self.role.kind == "chat"
        self.lock, self.spent = threading.Lock(), 0.0
        self.refused: set[str] = set()
        store.repair_rows(self.ledger)

    def generate(self, prompts: Sequence[str], *how: Any, **more: Any) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion): those of the ledger first, then as they arrive; see ``Decoding``.

        Equal prompts are asked once. Raises ValueError for ``min_new_tokens``; EndpointError at the end if
        requests failed or ``max_cost_usd`` forbids the rest.
        """
        decoding = Decoding(*how, **more)
        if decoding.min_new_tokens:
            raise ValueError("the protocol has no min_new_tokens: set generation.min_new_tokens=0")
        rows = store.read_rows(self.ledger, Answer) if self.ledger.exists() else []
        known, self.spent = {row.id: row for row in rows}, sum(row.cost_usd for row in rows)
        bodies: dict[str, dict[str, Any]] = {}
        places: dict[str, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            body = self.request(prompt, decoding)
            name = store.content_hash(self.url, self.role.kind, body)
            bodies[name] = body
            places[name].append(index)
        missing = {name: body for name, body in bodies.items() if name not in known}
        answered = [known[name] for name in bodies if name in known]
        for answer in chain(answered, self.ask_all(missing) if missing else ()):
            filtered = answer.finish_reason == "content_filter"  # what it cut short counts as empty
            text, stopped = cut_at_stop("" if filtered else answer.text, decoding.stop)
            finish = "stop" if stopped else answer.finish_reason
            for index in places[answer.id]:
                yield index, Completion(text.strip(), finish, answer.completion_tokens)

    def request(self, prompt: str, how: Decoding) -> dict[str, Any]:
        """Return the body of a request; vLLM, SGLang and others take the penalty as an extra field."""
        told = {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        body = {"model": self.name, "max_tokens": how.max_new_tokens, "temperature": how.temperature} | told
        if how.temperature:
            body |= {"top_p": how.top_p, "seed": how.seed}
            body |= {"extra_body": {"repetition_penalty": how.repetition_penalty}}
        return body | ({"stop": list(how.stop)} if how.stop else {})

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return dollars."""
        prices = self.role.prices or (0.0, 0.0)  # per million tokens
        return (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6

    def ask_all(self, bodies: Mapping[str, dict[str, Any]]) -> Iterator[Answer]:
        """Yield the answers to requests (id -> body) as they arrive; then raise what stopped or failed."""
        import openai

        key = os.environ.get("OPENAI_API_KEY") or "no key"  # a server of one's own may want none
        client = openai.OpenAI(base_url=self.url, api_key=key, timeout=self.timeout, max_retries=self.retries)
        running: dict[Future[Answer], float] = {}  # -> the most that it can cost
        failures: list[Exception] = []
        waiting, in_a_row, why, hopeless = [*bodies.items()][::-1], 0, "", ""
        with client, ThreadPoolExecutor(self.concurrency) as pool:
            while running or waiting:
                while waiting and len(running) < self.concurrency:
                    body = waiting[-1][1]
                    most = self.cost(len(json.dumps(body)), body["max_tokens"])  # a token is a byte, at least
                    if self.spent + sum(running.values()) + most > (self.max_cost_usd or math.inf):
                        break
                    running[pool.submit(self.ask, client, *waiting.pop())] = most
                if not running:
                    why = f"{self.spent:.4f} of max_cost_usd={self.max_cost_usd} spent: the next may not fit"
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    most = running.pop(future)
                    try:
                        answer = future.result()
                    except (openai.OpenAIError, ValueError) as error:
                        failures.append(error)
                        self.spent, in_a_row = self.spent + most, in_a_row + 1
                        hopeless = hopeless or HOPELESS.get(getattr(error, "status_code", 0), "")
                        if hopeless or in_a_row == FAILURES_IN_A_ROW:
                            waiting.clear()
                    else:
                        self.spent, in_a_row = self.spent + answer.cost_usd, 0
                        yield answer
        if failures and not why:
            first = f"{type(failures[0]).__name__}: {failures[0]}".replace(key, "(key)")[:300]
            why = f"{hopeless}{len(failures)} of {len(bodies)} requests failed, the first with {first}"
        if why:
            kept = f"what was answered is kept in {self.ledger}: run again to go on"
            raise EndpointError(f"{self.name} at {self.url}: {why}; {kept}")

    def ask(self, client: Any, name: str, body: dict[str, Any]) -> Answer:
        """Ask without the fields that the server refuses by name, and append the answer to the ledger.

        Raises ValueError for a response without an answer, or without token counts if there is a budget.
        """
        import openai

        create, response = client.chat.completions.create if self.chat else client.completions.create, None
        while response is None:
            asked = {key: value for key, value in body.items() if key not in self.refused}
            if "max_tokens" in self.refused:
                asked["max_completion_tokens"] = body["max_tokens"]
            try:
                response = create(**asked)
            except openai.BadRequestError as error:
                if error.param not in asked or error.param in ("model", "prompt", "messages"):
                    raise
                if error.param == "temperature":
                    warnings.warn(f"{self.name} takes no temperature: answers are not greedy", stacklevel=2)
                self.refused.add(error.param)
        choices, usage = getattr(response, "choices", None), getattr(response, "usage", None)
        if not choices or (self.max_cost_usd and usage is None):
            raise ValueError("no usage, so that max_cost_usd could not be kept" if choices else "no choices")
        text = choices[0].message.content if self.chat else choices[0].text
        tokens: tuple[int, int] = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        finish, refused = choices[0].finish_reason or "stop", sorted(self.refused & body.keys())
        answer = Answer(name, response.model, text or "", finish, *tokens, self.cost(*tokens), refused)
        with self.lock:
            store.append_rows(self.ledger, [answer])
        return answer


# --- vLLM in this process ---

CHUNK = 512  # prompts given to the engine at a time: what is finished is on disk after each


@lru_cache(maxsize=1)
def load_engine(source: str, revision: str, dtype: str, ranks: tuple[int, ...] = ()) -> Any:
    """Return the vLLM engine of a model, for adapters of these ranks; another one is given up first."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # nothing is reported to anyone
    try:
        import torch
        from vllm import LLM
    except ImportError as error:
        install = "pip install -c constraints-vllm.txt -e '.[lab]' vllm"
        text = f"engine: vllm needs vLLM and a GPU: {install}, or set engine: transformers"
        raise ImportError(text) from error
    name, commit = weights.pinned(source, revision)
    load_engine.cache_clear()  # an engine takes nearly all of a GPU's memory
    gc.collect()  # and ends when nobody holds it any more
    torch.cuda.empty_cache()
    how: dict[str, Any] = {"revision": commit, "tokenizer_revision": commit}
    how["dtype"] = dtype  # "auto" would make float16 of float32 weights
    how["max_model_len"] = -1  # what fits into memory, at most the model's own
    how["generation_config"] = "vllm"  # no sampling defaults of the model's authors
    if ranks:  # adapters are used one after the other; vLLM takes ranks that are powers of two
        how |= {"enable_lora": True, "max_lora_rank": max(8, 1 << (max(ranks) - 1).bit_length())}
    return LLM(model=name, seed=0, enable_prefix_caching=True, **how)


@dataclass
class VllmGenerator:
    """A loaded vLLM engine that completes prompts, with the finished adapter of a folder or none."""

    engine: Any
    tokenizer: Any
    name: str
    adapter: Path | None = None

    def generate(self, prompts: Sequence[str], *how: Any, **more: Any) -> Iterator[tuple[int, Completion]]:
        """Yield (index, completion) in order; see ``Decoding``. RuntimeError for a request that broke off."""
        from vllm import SamplingParams

        decoding, lora = Decoding(*how, **more), None
        if self.adapter:
            from vllm.lora.request import LoRARequest

            key = store.read_json(self.adapter / "done.json")["key"]  # of its content: vLLM tells by it
            names = {"lora_name": f"{self.name}@{key}", "lora_int_id": int(key[:7], 16) + 1}
            lora = LoRARequest(**names, lora_path=str(self.adapter))
        given: dict[str, Any] = {"max_tokens": decoding.max_new_tokens, "min_tokens": decoding.min_new_tokens}
        given |= {"stop": list(decoding.stop), "include_stop_str_in_output": True}
        given |= {"skip_special_tokens": False, "temperature": decoding.temperature, "top_k": 0}
        given |= {"top_p": decoding.top_p, "repetition_penalty": decoding.repetition_penalty}
        params = SamplingParams(**given, seed=decoding.seed)
        for start in range(0, len(prompts), CHUNK):
            ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts[start : start + CHUNK]]
            asked = [{"prompt_token_ids": row} for row in ids]
            outputs = self.engine.generate(asked, params, lora_request=lora, use_tqdm=False)
            for index, output in enumerate(outputs, start):
                (found,) = output.outputs
                if found.finish_reason not in ("stop", "length"):
                    ended = f"with finish_reason={found.finish_reason!r}"
                    raise RuntimeError(f"vLLM ended request {output.request_id} {ended}")
                yield index, generate.to_completion(self.tokenizer, list(found.token_ids), decoding.stop)


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
    (rf"[{SPACELESS}]|[^\s{SPACELESS}]+",
     ("thorough", "long, detailed answers"), ("busy", "short, direct answers")),
)  # fmt: skip


class SurfaceGenerator:
    """Writes personas by rule, of pairs of responses instead of prompts."""

    name = SURFACE

    def write(self, items: Sequence[tuple[str, str, str]]) -> list[str]:
        """Return a persona for each (prompt, preferred, other); "" where nothing that is counted differs."""
        return [self.persona(preferred, other) for _, preferred, other in items]

    def persona(self, preferred: str, other: str) -> str:
        """Return a persona from the one or two largest differences of form."""
        found, flags = [], re.IGNORECASE | re.MULTILINE
        for pattern, more, less in FEATURES:
            a, b = (len(re.findall(pattern, text, flags)) for text in (preferred, other))
            ratio = math.log((a + 1) / (b + 1))
            if abs(ratio) >= LEAST:
                found.append((abs(ratio), *(more if ratio > 0 else less)))
        said = sorted(found, key=lambda one: -one[0])[:2]
        likes = ", and ".join(phrase for *_, phrase in said)
        return f"The user is {said[0][1]} and prefers {likes}." if said else ""


# --- Which text generator a role of a run uses ---

GENERATORS: dict[str, Callable[[Run, str], Any]] = {SURFACE: lambda run, role: SurfaceGenerator()}


def role_source(run: Run, role: str) -> tuple[str, str]:
    """Return where the model of a role is, and its revision: the run's own base, a hub model or a folder."""
    name = getattr(run.profile, role).model
    return run.base_source if name == "base" else (name, "")


def role_key(run: Run, role: str) -> str:
    """Return what identifies the model of a role: its weights, or its name and address if it is served."""
    named = getattr(run.profile, role)
    if named.url:
        return f"{named.model} at {named.url}"
    return named.model if named.model in GENERATORS else model_key(*role_source(run, role))


def load_generator(run: Run, role: str) -> Any:
    """Return a role's generator, which has ``generate`` (of prompts) or ``write`` (of pairs of responses).

    Models that are not served run in ``generation.engine``. Served ones share a profile's ledger and budget.
    """
    profile, named = run.profile, getattr(run.profile, role)
    if named.url:
        ledger = results_dir(profile) / "endpoint" / "answers.jsonl"
        return EndpointGenerator(named, ledger, profile.served.max_cost_usd)
    if named.model in GENERATORS:
        return GENERATORS[named.model](run, role)
    source, dtype = role_source(run, role), profile.base.dtype
    tokenizer, name = load_tokenizer(*source), profile.base.model if named.model == "base" else named.model
    if profile.generation.engine == "vllm":
        return VllmGenerator(load_engine(*source, dtype), tokenizer, name)
    return TransformersGenerator(load_base(*source, "none", dtype), tokenizer, name, named.batch_size)
