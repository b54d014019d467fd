"""A served model, against a hostile server: nothing lost, nothing twice, the bill right."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest

from persona_lib import store
from persona_lib.models.generate import Completion
from persona_lib.models.served import (
    Answer,
    BudgetError,
    Endpoint,
    EndpointError,
    EndpointGenerator,
    most_it_can_cost,
)

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(
        find_spec("openai") is None, reason="needs the endpoint extra: pip install -e .[endpoint]"
    ),
]
KEY = "sk-secret-of-this-test"


class Hostile(BaseHTTPRequestHandler):
    """Answers "<prompt> answered", except for prompts that name another behaviour and how often it occurs.

    "busy:2 hello" is refused twice with 429 and then answered. Ten tokens in, three tokens out.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the head's receipt

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        with self.server.lock:
            self.server.asked[prompt] += 1
            number = self.server.asked[prompt]
            self.server.bodies.append(body)
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        behaviour, _, times = prompt.split(" ")[0].partition(":")
        try:
            if times and number <= int(times):
                getattr(self, behaviour)(prompt)
            else:
                time.sleep(self.server.pause)
                self.answer(prompt, body)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def send(self, status: int, text: str, length: int | None = None, **headers: str):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        if length:
            self.close_connection = True

    def answer(self, prompt, body, choice=None, usage=True, **changes):
        text = f"{prompt} answered"
        said = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        document = {
            "id": "x",
            "object": "completion",
            "created": 0,
            "model": "served-model",
            "choices": [{"index": 0, "finish_reason": "stop"} | said | (choice or {})],
            "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13} if usage else None,
        }
        with self.server.lock:
            self.server.billed += 1
        self.send(200, json.dumps(document | changes))

    def busy(self, prompt):
        self.send(429, '{"error": {"message": "slow down"}}', retry_after_ms="20")

    def broken(self, prompt):
        self.send(500, "oops", retry_after_ms="20")

    def hang(self, prompt):
        time.sleep(3)
        self.send(500, "late")

    def cut(self, prompt):
        self.send(200, '{"choices": [', length=1000)

    def garbage(self, prompt):
        self.send(200, "{not json")

    def nochoice(self, prompt):
        self.send(200, '{"id": "x", "model": "m", "choices": []}')

    def refuse(self, prompt):
        self.send(401, json.dumps({"error": {"message": f"bad key {self.headers['Authorization']}"}}))

    def strict(self, prompt):
        """A server that knows no response_format."""
        if "response_format" not in self.server.bodies[-1]:
            return self.answer(prompt, self.server.bodies[-1])
        return self.send(400, '{"error": {"message": "response_format is not supported"}}')

    def reasoning(self, prompt):
        """A model that names the first field which it does not take, as reasoning models of services do."""
        body = self.server.bodies[-1]
        for field in ("max_tokens", "temperature", "stop"):
            if field in body:
                error = {
                    "message": f"Unsupported: '{field}'",
                    "param": field,
                    "code": "unsupported_parameter",
                }
                return self.send(400, json.dumps({"error": error}))
        return self.answer(prompt, body)

    def unprocessable(self, prompt):
        self.send(422, '{"error": {"message": "unexpected field response_format"}}')

    def invalid(self, prompt):
        self.send(400, '{"error": {"message": "prompt too long"}}')


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.lock, server.asked, server.bodies = threading.Lock(), Counter(), []
    server.now = server.most = server.billed = 0
    server.pause = 0.0
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def make(server, tmp_path, **changes) -> EndpointGenerator:
    settings = {"kind": "completions", "timeout": 1.0, "retries": 3} | changes
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", "asked-model", **settings)
    return EndpointGenerator(endpoint, tmp_path / "ledger.jsonl")


def texts(generator, prompts, **changes) -> dict[int, str]:
    settings = {"max_new_tokens": 8, "stop": ()} | changes
    return {index: done.text for index, done in generator.generate(prompts, **settings)}


HOSTILE = [
    "busy:2 a",
    "broken:2 b",
    "hang:1 c",
    "cut:1 d",
    "garbage:2 e",
    "nochoice:2 f",
    "plain g",
    "Zoë 🚣 h",
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_every_prompt_is_answered_once_whatever_the_server_does(server, tmp_path, kind):
    generator = make(server, tmp_path, kind=kind, prompt_price=2.0, completion_price=8.0)
    expected = {index: f"{prompt} answered" for index, prompt in enumerate(HOSTILE)}
    assert texts(generator, HOSTILE) == expected
    ledger = store.read_rows(generator.ledger, Answer)
    assert len(ledger) == len({a.id for a in ledger}) == len(HOSTILE) == server.billed
    assert {a.model for a in ledger} == {"served-model"}
    assert sum(a.cost_usd for a in ledger) == pytest.approx(len(HOSTILE) * (10 * 2 + 3 * 8) / 1e6)
    asked = sum(server.asked.values())
    assert texts(generator, HOSTILE) == expected
    assert sum(server.asked.values()) == asked, "a rerun asks for nothing again"


def test_the_request_is_greedy_and_holds_prefix_stop_and_length(server, tmp_path):
    assert texts(make(server, tmp_path), ["q"], prefix="shots ", stop=("\n",), max_new_tokens=5) == {
        0: "shots q answered"
    }
    assert server.bodies == [
        {"model": "asked-model", "max_tokens": 5, "temperature": 0.0, "stop": ["\n"], "prompt": "shots q"}
    ]
    texts(make(server, tmp_path, kind="chat"), ["q"])
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "q"}]


SCHEMA = {"type": "object", "properties": {"winner": {"enum": ["A", "B"]}}}


def test_a_chat_model_is_held_to_a_schema_and_a_completion_model_has_none(server, tmp_path):
    texts(make(server, tmp_path, kind="chat"), ["q"], schema=SCHEMA)
    held = server.bodies[0]["response_format"]
    assert held["type"] == "json_schema" and held["json_schema"]["schema"] == SCHEMA
    assert held["json_schema"]["strict"] is True
    texts(make(server, tmp_path), ["q"], schema=SCHEMA)
    assert "response_format" not in server.bodies[1]


def test_a_server_that_refuses_the_schema_is_asked_without_it_once_known(server, tmp_path):
    generator = make(server, tmp_path, kind="chat", concurrency=1, prompt_price=1.0, completion_price=1.0)
    prompts = ["strict:9 a", "strict:9 b", "strict:9 c"]
    expected = {n: f"{prompt} answered" for n, prompt in enumerate(prompts)}
    assert texts(generator, prompts, schema=SCHEMA) == expected
    assert ["response_format" in body for body in server.bodies] == [True, False, False, False]
    ledger = store.read_rows(generator.ledger, Answer)
    assert [answer.refused for answer in ledger] == [("response_format",)] * 3
    assert server.billed == 3 and sum(a.cost_usd for a in ledger) == pytest.approx(3 * 13e-6)
    assert texts(make(server, tmp_path, kind="chat"), prompts, schema=SCHEMA) == expected
    assert server.billed == 3, "a rerun asks for nothing again"


def test_a_422_is_a_refusal_too_and_a_prompt_that_is_bad_either_way_stays_an_error(server, tmp_path):
    generator = make(server, tmp_path, kind="chat", concurrency=1)
    assert texts(generator, ["unprocessable:1 a"], schema=SCHEMA) == {0: "unprocessable:1 a answered"}
    with pytest.raises(EndpointError, match="1 of 2 requests failed.*prompt too long"):
        texts(generator, ["invalid:9 b", "fine c"], schema=SCHEMA)
    (answer,) = (a for a in store.read_rows(generator.ledger, Answer) if a.text.startswith("fine"))
    assert not answer.refused


def test_fields_that_a_model_refuses_are_left_out_and_an_answer_that_is_not_greedy_is_said(server, tmp_path):
    generator = make(server, tmp_path, kind="chat", concurrency=1, prompt_price=1.0, completion_price=1.0)
    with pytest.warns(UserWarning, match="takes no temperature.*not greedy") as warned:
        given = texts(generator, ["reasoning:9 a", "reasoning:9 b"], stop=(" ans",))
    said = [w for w in warned if w.category is UserWarning]  # a slow machine may add a ResourceWarning
    assert len(said) == 1 and given == {0: "reasoning:9 a", 1: "reasoning:9 b"}, "the stop is cut here"
    last = server.bodies[-1]
    assert last["max_completion_tokens"] == 8 and not {"max_tokens", "temperature", "stop"} & set(last)
    assert len(server.bodies) == 3 + 1 + 1, "three refusals, once; then one request per prompt"
    ledger = store.read_rows(generator.ledger, Answer)
    assert [answer.refused for answer in ledger] == [("max_tokens", "stop", "temperature")] * 2
    assert texts(make(server, tmp_path, kind="chat"), ["reasoning:9 a"], stop=(" ans",)) == {
        0: "reasoning:9 a"
    }
    assert server.billed == 2, "the ledger knows the answer by what was first asked"


def test_the_ledger_is_read_once_and_what_others_add_to_it_counts(server, tmp_path):
    prices = {"prompt_price": 1.0, "completion_price": 10.0, "max_cost_usd": 1.0}
    one, other = make(server, tmp_path, **prices), make(server, tmp_path, **prices)
    texts(one, ["a"])
    texts(other, ["b"])
    assert texts(one, ["a", "b"]) == {0: "a answered", 1: "b answered"}
    assert server.billed == 2 and one.spent == pytest.approx(2 * 40e-6)
    whole = one.ledger.read_bytes()
    one.ledger.write_bytes(b"x" * len(whole))  # what was read is not read again
    assert texts(one, ["a", "b"]) == {0: "a answered", 1: "b answered"}
    one.ledger.write_bytes(whole + b'{"id": 1}\n')
    with pytest.raises(EndpointError, match="ledger.jsonl, line 1 after byte .*not an answer"):
        texts(one, ["a"])


def test_equal_prompts_are_asked_once_and_other_lengths_anew(server, tmp_path):
    generator = make(server, tmp_path)
    assert texts(generator, ["a", "b", "a"]) == {0: "a answered", 1: "b answered", 2: "a answered"}
    assert server.asked == {"a": 1, "b": 1}
    texts(generator, ["a"], max_new_tokens=9)
    assert server.asked["a"] == 2


def test_finish_reasons_are_kept_and_a_filtered_answer_is_empty(server, tmp_path, monkeypatch):
    reasons = {"one": "length", "two": "content_filter", "three": "stop"}
    whole = Hostile.answer

    def answer(self, prompt, body):
        whole(self, prompt, body, choice={"finish_reason": reasons[prompt]})

    monkeypatch.setattr(Hostile, "answer", answer)
    done = dict(make(server, tmp_path).generate(list(reasons), 8, ()))
    assert done == {
        0: Completion("one answered", "length", 3),
        1: Completion("", "content_filter", 3),
        2: Completion("three answered", "stop", 3),
    }


def test_failed_requests_are_told_at_the_end_and_only_they_are_asked_again(server, tmp_path):
    generator = make(server, tmp_path, retries=1)
    prompts = ["broken:9 a", "fine b", "garbage:9 c", "invalid:1 d"]
    found = {}
    with pytest.raises(EndpointError, match="3 of 4 requests failed.*ledger.jsonl: run again"):
        for index, done in generator.generate(prompts, 8, ()):
            found[index] = done.text
    assert found == {1: "fine b answered"}
    assert server.asked["invalid:1 d"] == 1, "a bad request is not repeated"
    with pytest.raises(EndpointError, match="2 of 3 requests failed"):
        texts(generator, prompts)
    assert server.asked["fine b"] == 1


def test_a_refused_key_stops_at_once_and_is_not_shown(server, tmp_path):
    generator = make(server, tmp_path, concurrency=2)
    with pytest.raises(EndpointError, match="bad key Bearer") as caught:
        texts(generator, [f"refuse:9 {n}" for n in range(50)])
    assert KEY not in str(caught.value) and "(key)" in str(caught.value)
    assert sum(server.asked.values()) <= 4


def test_a_dead_endpoint_is_given_up(tmp_path, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(EndpointError, match="of 500 requests failed.*APIConnectionError"):
        texts(make(server, tmp_path, retries=0), [str(n) for n in range(500)])


def test_no_more_requests_are_out_than_asked_for(server, tmp_path):
    server.pause = 0.05
    texts(make(server, tmp_path, concurrency=3), [str(n) for n in range(12)])
    assert server.most == 3


def test_the_budget_is_never_passed_and_a_larger_one_goes_on(server, tmp_path):
    # In millionths of a dollar: an answer costs 10 x 1 + 3 x 10 = 40; at most 9 bytes x 1 + 8 x 10 = 89.
    # Of 300, one at a time: the next is asked while 40 k + 89 <= 300, for k = 0 to 5, which makes six.
    prices = {"prompt_price": 1.0, "completion_price": 10.0, "concurrency": 1}
    prompts = [f"question{n}" for n in range(9)]
    with pytest.raises(BudgetError, match="max_cost_usd"):
        texts(make(server, tmp_path, max_cost_usd=300e-6, **prices), prompts)
    assert server.billed == 6
    assert len(texts(make(server, tmp_path, max_cost_usd=1.0, **prices), prompts)) == 9
    assert server.billed == 9


@pytest.mark.slow
def test_a_lost_or_unreadable_reply_counts_as_the_most_it_can_cost_and_a_refused_one_as_nothing(
    server, tmp_path
):
    # In millionths of a dollar: prompts of 8 bytes cost at most 8 x 1 + 8 x 10 = 88 per attempt.
    prices = {"prompt_price": 1.0, "completion_price": 10.0, "max_cost_usd": 1.0, "timeout": 2.0}
    generator = make(server, tmp_path, **prices)
    texts(generator, ["hang:1 a", "cut:1 bc", "busy:2 d", "broken:1"])
    texts(generator, ["garbage:1"])
    most = {"hang:1 a": 88e-6, "cut:1 bc": 88e-6, "busy:2 d": 0, "broken:1": 0, "garbage:1": 89e-6}
    ledger = {a.text.removesuffix(" answered"): a for a in store.read_rows(generator.ledger, Answer)}
    assert {name: answer.lost_usd for name, answer in ledger.items()} == pytest.approx(most)
    assert all(answer.cost_usd == pytest.approx(40e-6) for answer in ledger.values())
    again = make(server, tmp_path, **prices)
    again.read_ledger()
    assert again.spent == pytest.approx(5 * 40e-6 + sum(most.values()))


@pytest.mark.slow
def test_lost_replies_cannot_pass_the_budget_and_what_failed_is_asked_again(server, tmp_path):
    # 88 per attempt of 200: two are sent and lost, a third would not fit; nothing is known of the answer.
    prices = {"prompt_price": 1.0, "completion_price": 10.0, "retries": 3, "timeout": 0.5}
    with pytest.raises(BudgetError, match="max_cost_usd"):
        texts(make(server, tmp_path, max_cost_usd=200e-6, **prices), ["hang:2 a"])
    assert server.asked["hang:2 a"] == 2
    (line,) = store.read_rows(tmp_path / "ledger.jsonl", Answer)
    assert (line.finish_reason, line.cost_usd, line.lost_usd) == ("lost", 0, pytest.approx(176e-6))
    assert texts(make(server, tmp_path, max_cost_usd=1.0, **prices), ["hang:2 a"]) == {0: "hang:2 a answered"}


def test_a_server_that_is_not_there_costs_nothing(server, tmp_path):
    server.shutdown()
    server.server_close()
    generator = make(server, tmp_path, retries=0, prompt_price=1.0, completion_price=1.0, max_cost_usd=1.0)
    with pytest.raises(EndpointError, match="APIConnectionError"):
        texts(generator, ["a"])
    assert not generator.ledger.exists()


def test_no_prompt_can_have_more_tokens_than_the_budget_reckons_with(server, tmp_path):
    endpoint = make(server, tmp_path, prompt_price=1e6, completion_price=1e6).endpoint
    body = {"prompt": "船是谁的", "max_tokens": 5}  # a byte-level tokenizer may need a token per byte
    assert most_it_can_cost(endpoint, body) == 4 * 3 + 5


def test_side_by_side_requests_keep_the_budget_too(server, tmp_path):
    server.pause = 0.02
    prices = {"prompt_price": 1.0, "completion_price": 10.0, "concurrency": 8}
    with pytest.raises(BudgetError):
        texts(make(server, tmp_path, max_cost_usd=300e-6, **prices), [f"question{n}" for n in range(30)])
    ledger = store.read_rows(tmp_path / "ledger.jsonl", Answer)
    assert server.billed == len(ledger)
    assert 200e-6 < sum(a.cost_usd for a in ledger) <= 300e-6


def test_a_budget_needs_token_counts_and_prices(server, tmp_path, monkeypatch):
    whole = Hostile.answer
    monkeypatch.setattr(Hostile, "answer", lambda self, prompt, body: whole(self, prompt, body, usage=False))
    generator = make(server, tmp_path, max_cost_usd=1.0, prompt_price=1.0, completion_price=1.0, retries=0)
    with pytest.raises(EndpointError, match="no usage"):
        texts(generator, ["a"])
    assert texts(make(server, tmp_path), ["a"]) == {0: "a answered"}
    with pytest.raises(ValueError, match="needs prompt_price"):
        Endpoint("http://x/v1", "m", max_cost_usd=1.0)


def test_a_reader_who_stops_early_loses_nothing(server, tmp_path):
    generator = make(server, tmp_path, concurrency=1)
    answers = generator.generate([str(n) for n in range(50)], 8, ())
    next(answers)
    answers.close()
    known = len(store.read_rows(generator.ledger, Answer))
    assert server.billed == known < 50
    assert len(texts(generator, [str(n) for n in range(50)])) == 50
    assert server.billed == 50


def test_settings_do_not_hold_the_key_and_min_new_tokens_is_an_error(server, tmp_path):
    generator = make(server, tmp_path)
    assert KEY not in json.dumps(generator.settings)
    with pytest.raises(ValueError, match="gen_min_new_tokens"):
        next(generator.generate(["a"], 8, (), min_new_tokens=1))
