"""Text generation by a served model: any endpoint that speaks OpenAI's protocol (vLLM, SGLang, `transformers
serve`, hosted models), behind the interface of ``generate``.

Requests go out side by side, a bounded number at a time. The client of the ``openai`` package repeats what
deserves it (timeouts, lost connections, 408, 409, 429 and 5xx, with jitter, and as late as the server's
Retry-After asks); answers that cannot be read are asked for again here. Every answer is appended to a ledger,
with what it cost, before anything else sees it: a killed run pays for nothing twice. A reply that is lost on
its way (timeout, broken connection) or cannot be read may be billed: the budget counts the most it can cost.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.models.generate import Completion, Sampling
from persona_lib.models.protocol import (
    LOST,
    Answer,
    Endpoint,
    UnreadableAnswer,
    api_key,
    describe,
    most_it_can_cost,
    read_response,
    refused_field,
    request_body,
    request_id,
    to_completion,
    without,
)

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
