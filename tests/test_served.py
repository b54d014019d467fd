"""Served models against a hostile server, vLLM through stand-ins, and personas by rule.

What is handed to vLLM and what is made of its answers, with stand-ins for its classes whose fields are those
of vLLM 0.30.0.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from tiny import save_base, tiny_tokenizer

from persona_lib import store
from persona_lib.models import served
from persona_lib.models.generate import Completion, Sampling
from persona_lib.models.served import Answer, EndpointError, EndpointGenerator
from persona_lib.settings import ConfigError, ModelRole, Run, load_profile, set_field

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
        time.sleep(0.8)
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
        for name in ("max_tokens", "temperature", "stop"):
            if name in body:
                error = {"message": f"Unsupported: '{name}'", "param": name, "code": "unsupported"}
                return self.send(400, json.dumps({"error": error}))
        return self.answer(prompt, body)

    def invalid(self, prompt):
        self.send(400, '{"error": {"message": "prompt too long"}}')


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai", reason="needs the endpoint extra: pip install -e .[endpoint]")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.lock, server.asked, server.bodies = threading.Lock(), Counter(), []
    server.now = server.most = server.billed = 0
    server.pause = 0.0
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()


def make(server, tmp_path, kind="completions", prices=(), **settings) -> EndpointGenerator:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1/"
    role = ModelRole("asked-model", url, kind, prices)
    return EndpointGenerator(role, tmp_path / "ledger.jsonl", **({"timeout": 0.4, "retries": 3} | settings))


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
    "Zoë 🚣",
]


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_every_prompt_is_answered_once_whatever_the_server_does(server, tmp_path, kind):
    generator = make(server, tmp_path, kind=kind, prices=(2.0, 8.0))
    expected = {index: f"{prompt} answered" for index, prompt in enumerate(HOSTILE)}
    assert texts(generator, HOSTILE) == expected
    ledger = store.read_rows(generator.ledger, Answer)
    assert len(ledger) == len({a.id for a in ledger}) == len(HOSTILE) == server.billed
    assert {a.model for a in ledger} == {"served-model"}
    assert sum(a.cost_usd for a in ledger) == pytest.approx(len(HOSTILE) * (10 * 2 + 3 * 8) / 1e6)
    asked = sum(server.asked.values())
    assert texts(generator, HOSTILE) == expected
    assert sum(server.asked.values()) == asked, "a rerun asks for nothing again"


SCHEMA = {"type": "object", "properties": {"winner": {"enum": ["A", "B"]}}}


def test_requests_are_greedy_hold_prefix_stop_and_length_and_a_schema_for_chat_models_only(server, tmp_path):
    server.pause = 0.02
    settings = {"stop": ("\n",), "max_new_tokens": 5, "schema": SCHEMA}
    assert texts(make(server, tmp_path), ["shots q"], **settings) == {0: "shots q answered"}
    texts(make(server, tmp_path, kind="chat", concurrency=3), [str(n) for n in range(9)], schema=SCHEMA)
    body, *chats = server.bodies
    asked = {"model": "asked-model", "max_tokens": 5, "temperature": 0.0, "stop": ["\n"]}
    assert body == asked | {"prompt": "shots q"}
    held = chats[0]["response_format"]["json_schema"]
    assert held["schema"] == SCHEMA and held["strict"] is True
    assert {body["messages"][0]["content"] for body in chats} == {str(n) for n in range(9)}
    assert server.most == 3, "no more requests are out than asked for"


def test_a_filtered_answer_is_empty_and_a_text_is_cut_at_its_stop(server):
    answer = Answer("id", "m", " one\ntwo", "length", 10, 3, 0.0)
    assert served.to_completion(answer, ("\n",)) == Completion("one", "stop", 3)
    filtered = replace(answer, finish_reason="content_filter")
    assert served.to_completion(filtered, ()) == Completion("", "content_filter", 3)


def test_a_ledger_counts_what_others_add_and_a_line_that_is_no_answer_is_named(server, tmp_path):
    prices = {"prices": (1.0, 10.0), "max_cost_usd": 1.0}
    one, other = make(server, tmp_path, **prices), make(server, tmp_path, **prices)
    texts(one, ["a"])
    texts(other, ["b"])
    assert texts(one, ["a", "b"]) == {0: "a answered", 1: "b answered"}
    assert server.billed == 2 and one.spent == pytest.approx(2 * 40e-6)
    with one.ledger.open("a") as file:
        file.write('{"id": 1}\n')
    with pytest.raises(ValueError, match="ledger.jsonl:3: not a Answer"):
        texts(one, ["a"])


def test_a_server_that_refuses_the_schema_is_asked_without_it_once_known(server, tmp_path):
    generator = make(server, tmp_path, kind="chat", concurrency=1, prices=(1.0, 1.0))
    prompts = ["strict:9 a", "strict:9 b", "strict:9 c"]
    expected = {n: f"{prompt} answered" for n, prompt in enumerate(prompts)}
    assert texts(generator, prompts, schema=SCHEMA) == expected
    assert ["response_format" in body for body in server.bodies] == [True, False, False, False]
    ledger = store.read_rows(generator.ledger, Answer)
    assert [answer.refused for answer in ledger] == [["response_format"]] * 3
    assert server.billed == 3 and sum(a.cost_usd for a in ledger) == pytest.approx(3 * 13e-6)


def test_fields_that_a_model_refuses_are_left_out_and_an_answer_that_is_not_greedy_is_said(server, tmp_path):
    generator = make(server, tmp_path, kind="chat", concurrency=1, prices=(1.0, 1.0))
    with pytest.warns(UserWarning, match="takes no temperature.*not greedy") as warned:
        given = texts(generator, ["reasoning:9 a", "reasoning:9 b"], stop=(" ans",))
    said = [w for w in warned if w.category is UserWarning]  # a slow machine may add a ResourceWarning
    assert len(said) == 1 and given == {0: "reasoning:9 a", 1: "reasoning:9 b"}, "the stop is cut here"
    last = server.bodies[-1]
    assert last["max_completion_tokens"] == 8 and not {"max_tokens", "temperature", "stop"} & set(last)
    assert len(server.bodies) == 3 + 1 + 1, "three refusals, once; then one request per prompt"
    ledger = store.read_rows(generator.ledger, Answer)
    assert [answer.refused for answer in ledger] == [["max_tokens", "stop", "temperature"]] * 2


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


def test_a_dead_endpoint_is_given_up_and_costs_nothing(tmp_path, server):
    server.shutdown()
    server.server_close()
    prices = {"prices": (1.0, 1.0), "max_cost_usd": 1.0}
    generator = make(server, tmp_path, retries=0, **prices)
    with pytest.raises(EndpointError, match="of 500 requests failed.*APIConnectionError"):
        texts(generator, [str(n) for n in range(500)])
    assert not generator.ledger.exists(), "what was never sent costs nothing"


def test_the_budget_is_never_passed_and_a_larger_one_goes_on(server, tmp_path):
    # In millionths of a dollar: an answer costs 10 x 1 + 3 x 10 = 40; at most 9 bytes x 1 + 8 x 10 = 89.
    # Of 300, one at a time: the next is asked while 40 k + 89 <= 300, for k = 0 to 5, which makes six.
    prices = {"prices": (1.0, 10.0), "concurrency": 1}
    prompts = [f"question{n}" for n in range(9)]
    with pytest.raises(EndpointError, match="max_cost_usd"):
        texts(make(server, tmp_path, max_cost_usd=300e-6, **prices), prompts)
    assert server.billed == 6
    assert len(texts(make(server, tmp_path, max_cost_usd=1.0, **prices), prompts)) == 9
    assert server.billed == 9


def test_side_by_side_requests_keep_the_budget_too(server, tmp_path):
    server.pause = 0.02
    prices = {"prices": (1.0, 10.0), "concurrency": 8}
    with pytest.raises(EndpointError, match="max_cost_usd"):
        texts(make(server, tmp_path, max_cost_usd=300e-6, **prices), [f"question{n}" for n in range(30)])
    ledger = store.read_rows(tmp_path / "ledger.jsonl", Answer)
    assert server.billed == len(ledger)
    assert 200e-6 < sum(a.cost_usd for a in ledger) <= 300e-6


def test_a_budget_needs_token_counts(server, tmp_path, monkeypatch):
    whole = Hostile.answer
    monkeypatch.setattr(Hostile, "answer", lambda self, prompt, body: whole(self, prompt, body, usage=False))
    generator = make(server, tmp_path, max_cost_usd=1.0, prices=(1.0, 1.0), retries=0)
    with pytest.raises(EndpointError, match="no usage"):
        texts(generator, ["a"])
    assert texts(make(server, tmp_path), ["a"]) == {0: "a answered"}


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
    with pytest.raises(ValueError, match="generation.min_new_tokens"):
        next(generator.generate(["a"], 8, (), min_new_tokens=1))


# --- vLLM: what it is given, and what is made of its answers ---

WARM = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.1, seed=3)


@dataclass
class Params:
    """Stands in for vllm.SamplingParams."""

    max_tokens: int
    min_tokens: int
    stop: list
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None


def output(ids, finish_reason="stop"):
    """Stands in for vllm.RequestOutput."""
    found = SimpleNamespace(token_ids=ids, finish_reason=finish_reason)
    return SimpleNamespace(request_id="7", outputs=[found])


@dataclass
class Engine:
    """Stands in for a loaded vllm.LLM: answers with the last token and EOS, and keeps the calls."""

    calls: list = field(default_factory=list)

    def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
        self.calls.append((prompts, sampling_params, lora_request))
        return [output([prompt["prompt_token_ids"][-1], 2]) for prompt in prompts]


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=Params))
    return Engine()


def test_vllm_gets_token_ids_with_one_bos_and_its_answers_come_back_in_order(engine, monkeypatch):
    monkeypatch.setattr(served, "CHUNK", 2)
    generator = served.VllmGenerator(engine, tiny_tokenizer(), "tiny", "float32")
    found = list(generator.generate(["w1 w2 w3 w4", "w5", "w6"], 8, ("w9",), min_new_tokens=2))
    assert [(i, c.text, c.finish_reason, c.n_tokens) for i, c in found] == [
        (0, "w4", "stop", 1), (1, "w5", "stop", 1), (2, "w6", "stop", 1)
    ]  # fmt: skip
    (first, (greedy, _), _), (second, _, _) = engine.calls  # two prompts at a time
    bos, w1, w2, w3, w4 = 1, 8, 9, 10, 11
    assert first[0] == {"prompt_token_ids": [bos, w1, w2, w3, w4]} and len(second) == 1
    assert greedy == Params(8, 2, ["w9"], True, False, temperature=0.0)


def test_vllm_draws_with_a_seed_of_its_own_for_every_prompt_and_attempt(engine, monkeypatch):
    monkeypatch.setattr(served, "CHUNK", 2)
    generator = served.VllmGenerator(engine, tiny_tokenizer(), "tiny", "float32")
    for sampling in (WARM, WARM, replace(WARM, seed=4)):
        list(generator.generate(["w3", "w3", "w3"], 8, (), sampling=sampling))
    params = [p for _, some, _ in engine.calls for p in some]
    assert {(p.temperature, p.top_p, p.top_k, p.repetition_penalty) for p in params} == {(0.7, 0.9, 0, 1.1)}
    seeds = [p.seed for p in params]
    assert seeds[:3] == seeds[3:6] and len(set(seeds)) == 6


@pytest.mark.parametrize("ranks, largest, on_gpu", [([32, 16, 32], 32, 3), ([33], 64, 1), ([8] * 6, 8, 4)])
def test_the_engine_is_told_precision_revision_and_room_for_all_adapters(monkeypatch, ranks, largest, on_gpu):
    monkeypatch.setattr(served, "LOADED", {})
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda **arguments: arguments))
    plain = served.load_engine("some/model", "a1b2", "bfloat16")
    assert (plain["dtype"], plain["generation_config"]) == ("bfloat16", "vllm")
    assert plain["revision"] == plain["tokenizer_revision"] == "a1b2"
    assert plain["enable_prefix_caching"] is True and "enable_lora" not in plain
    arguments = served.load_engine("some/model", "", "bfloat16", ranks)
    assert (arguments["max_lora_rank"], arguments["max_loras"]) == (largest, on_gpu)
    assert arguments["max_cpu_loras"] == len(ranks)


def test_a_profile_chooses_the_engine_for_models_that_are_loaded_here(monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    monkeypatch.setattr(served, "load_engine", lambda *args: loaded.append(args) or Engine())
    source = save_base(tmp_path / "base")
    settings = {
        "generation.engine": "vllm",
        "base.dtype": "bfloat16",
        "generation.repetition_penalty": 1.0,
    }
    run = Run(set_field(load_profile("everyday"), {"base.model": str(source), **settings}), "everyday", 0)
    generator = served.load_generator(run, "generator", 4)
    assert isinstance(generator, served.VllmGenerator) and loaded == [(str(source), "", "bfloat16")]
    assert generator.settings["dtype"] == "bfloat16" and generator.settings["engine"].startswith("vllm ")


def test_vllm_in_float32_is_refused_because_its_adapters_work_in_16_bits_only():
    with pytest.raises(ConfigError, match="generation.engine='vllm': needs base.dtype=bfloat16"):
        set_field(load_profile("everyday"), {"generation.engine": "vllm"})


def test_adapters_of_one_name_but_another_content_are_never_mistaken(monkeypatch, tmp_path):
    """vLLM keeps adapters by number and prompts by adapter name for as long as an engine lives."""
    request = SimpleNamespace(LoRARequest=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.lora", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.lora.request", request)
    made = [
        served.lora_request(name, key, tmp_path)
        for name, key in (("dpo-chosen", "k1"), ("dpo-chosen", "k2"), ("dpo-none", "k1"))
    ]
    assert len({one.lora_int_id for one in made}) == len({one.lora_name for one in made}) == 3
    assert all(one.lora_int_id >= 1 and one.lora_path == str(tmp_path) for one in made)
    assert served.lora_request("dpo-chosen", "k1", tmp_path) == made[0]


@pytest.mark.parametrize(
    "ids, theirs, text, reason, n",
    [
        ([8, 9, 2], "stop", "w1 w2", "stop", 2),  # EOS, which vLLM counts among the tokens
        ([8, 9, 16], "stop", "w1 w2", "stop", 3),  # the stop string w9 is cut off
        ([8, 9], "length", "w1 w2", "length", 2),
        ([8, 16, 9], "length", "w1", "stop", 3),  # w9 among the first min_tokens, where vLLM does not look
        ([2], "stop", "", "stop", 0),
    ],
)
def test_an_answer_is_cut_and_counted_as_with_transformers(ids, theirs, text, reason, n):
    reader = served.VllmGenerator(None, tiny_tokenizer(), "tiny", "float32")
    found = reader.read_output(output(ids, theirs), ("w9",))
    assert (found.text, found.finish_reason, found.n_tokens) == (text, reason, n)
    with pytest.raises(RuntimeError, match="request 7 with finish_reason='abort'"):
        reader.read_output(output([8], "abort"), ())


# --- personas by rule ---

LONG = "Take the train to the coast, and then walk along the path until you see the old lighthouse there."


@pytest.mark.parametrize(
    ("preferred", "other", "persona"),
    [
        ("Take the train.", LONG, "The user is busy and prefers short, direct answers."),
        (LONG, "Take the train.", "The user is thorough and prefers long, detailed answers."),
        ("Well:\n1. a b\n2. c d", "Well, a b and c d.",
         "The user is organized and prefers answers laid out as a list of points."),
        ("It may rain.", "It will rain.",
         "The user is careful and prefers answers that say what is uncertain."),
        ("same words", "words same", ""),
    ],
)  # fmt: skip
def test_a_persona_says_what_differs_most(preferred, other, persona):
    assert served.surface_persona(preferred, other) == persona
    assert served.SurfaceGenerator().write([("q", preferred, other)]) == [persona]
