"""Served models behind a hostile server, vLLM (0.30.0) through stand-ins, personas by rule."""

import json
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
from tiny import tiny_tokenizer

from persona_lib import store, weights
from persona_lib.models import served
from persona_lib.models.generate import Completion
from persona_lib.models.served import Answer, EndpointError, EndpointGenerator
from persona_lib.settings import ModelRole

KEY = "sk-secret-of-this-test"
FAULTS = {"garbage": "{not json", "nochoice": '{"id": "x", "model": "m", "choices": []}'}  # with status 200


class Hostile:
    """Answers "<prompt> answered", except for prompts that name another behaviour and how often it occurs.

    "429:2 hello" is refused twice with 429 and then answered. Ten tokens in, three tokens out.
    """

    def __init__(self) -> None:
        self.lock, self.asked, self.bodies, self.billed = threading.Lock(), Counter(), [], 0
        self.usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}

    def __call__(self, request):
        import httpx

        body = json.loads(request.content)
        prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        behaviour, _, times = prompt.split(" ")[0].partition(":")
        with self.lock:
            self.asked[prompt] += 1
            self.bodies.append(body)
        refused = [name for name in ("max_tokens", "temperature", "stop") if name in body]
        if self.asked[prompt] <= int(times or 0):
            if behaviour == "hang":
                raise httpx.ReadTimeout("no answer in time")
            error = json.dumps({"error": {"message": f"sent {request.headers['Authorization']}"}})
            status, text = (200, FAULTS[behaviour]) if behaviour in FAULTS else (int(behaviour), error)
            kind = {"content-type": "application/json", "retry-after-ms": "20"}
            return httpx.Response(status, text=text, headers=kind)
        if behaviour == "reasoning" and refused:
            error = {"message": f"Unsupported: {refused[0]}", "param": refused[0]}
            return httpx.Response(400, json={"error": error})
        text = f"{prompt} answered"
        choice = {"index": 0, "finish_reason": "stop", "text": text, "message": {"content": text}}
        with self.lock:
            self.billed += 1
        answer = {"id": "x", "model": "served-model", "choices": [choice], "usage": self.usage}
        return httpx.Response(200, json=answer)


@pytest.fixture
def server(monkeypatch):
    openai = pytest.importorskip("openai", reason="needs the endpoint extra: pip install -e .[endpoint]")
    import httpx

    server, real = Hostile(), openai.OpenAI
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def client(**how):
        return real(**how, http_client=httpx.Client(transport=httpx.MockTransport(server)))

    monkeypatch.setattr(openai, "OpenAI", client)
    return server


def make(tmp_path, kind="completions", prices=(), **settings) -> EndpointGenerator:
    role = ModelRole("asked-model", "http://127.0.0.1:9/v1/", kind, prices)
    return EndpointGenerator(role, tmp_path / "ledger.jsonl", **({"retries": 3} | settings))


def texts(generator, prompts, **changes) -> dict[int, str]:
    settings = {"max_new_tokens": 8, "stop": ()} | changes
    return {index: done.text for index, done in generator.generate(prompts, **settings)}


def ledger_of(generator) -> list[Answer]:
    return store.read_rows(generator.ledger, Answer)


FAULTY = ["429:2 a", "hang:1 c", "plain g", "Zoë", *(f"503:{n % 3} {n}" for n in range(996))]


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_every_prompt_is_answered_once_whatever_the_server_does(server, tmp_path, kind):
    generator = make(tmp_path, kind, (2.0, 8.0), concurrency=1000)
    sent = {"max_tokens": 8, "temperature": 0, "stop": ["\n"]}
    expected = {index: f"{prompt} answered" for index, prompt in enumerate(FAULTY)}
    assert texts(generator, FAULTY, stop=("\n",)) == expected
    assert all(sent.items() <= body.items() for body in server.bodies)
    ledger = ledger_of(generator)
    assert len(ledger) == len({a.id for a in ledger}) == len(FAULTY) == server.billed
    assert sum(a.cost_usd for a in ledger) == pytest.approx(len(FAULTY) * (10 * 2 + 3 * 8) / 1e6)
    asked = sum(server.asked.values())
    assert texts(generator, FAULTY, stop=("\n",)) == expected
    assert sum(server.asked.values()) == asked, "a rerun asks for nothing again"


def test_a_ledger_counts_what_others_add(server, tmp_path):
    one, other = (make(tmp_path, prices=(1.0, 10.0), max_cost_usd=1.0) for _ in range(2))
    texts(other, ["a", "b"])
    assert texts(one, ["a", "b"]) == {0: "a answered", 1: "b answered"}
    assert server.billed == 2 and one.spent == pytest.approx(2 * 40e-6)


def test_fields_that_a_model_refuses_are_left_out_once_known_and_recorded(server, tmp_path):
    generator = make(tmp_path, "chat", concurrency=1)
    with pytest.warns(UserWarning, match="takes no temperature.*not greedy"):
        given = texts(generator, ["reasoning a", "reasoning b"], stop=(" ans",))
    assert given == {0: "reasoning a", 1: "reasoning b"}, "the stop is cut here"
    last = server.bodies[-1]
    assert last["max_completion_tokens"] == 8 and not {"max_tokens", "temperature", "stop"} & set(last)
    assert len(server.bodies) == 3 + 1 + 1, "three refusals, once; then one request per prompt"
    assert [a.refused for a in ledger_of(generator)] == [["max_tokens", "stop", "temperature"]] * 2
    store.write_rows(generator.ledger, [replace(ledger_of(generator)[0], finish_reason="content_filter")])
    assert texts(generator, ["reasoning a"], stop=(" ans",)) == {0: ""}


def test_failed_requests_are_told_at_the_end_and_only_they_are_asked_again(server, tmp_path):
    generator = make(tmp_path, retries=0)
    prompts, found = ["429:9 a", "fine b", "garbage:1 c", "nochoice:1 d", "400:9 e"], {}
    with pytest.raises(EndpointError, match="4 of 5 requests failed.*ledger.jsonl: run again"):
        for index, done in generator.generate(prompts, 8, ()):
            found[index] = done.text
    assert found == {1: "fine b answered"}
    with pytest.raises(EndpointError, match="2 of 4 requests failed"):
        texts(generator, prompts)
    assert server.asked["fine b"] == 1


STOPPED = [("401:9", "the key of OPENAI_API_KEY.*sent Bearer .key.", 2), ("403:9", "OPENAI_API_KEY", 2)]
STOPPED += [("404:9", "no such model", 2), ("hang:9", "of 50 requests failed.*timed out", 21)]


@pytest.mark.parametrize("behaviour, said, most", STOPPED)
def test_a_refused_key_a_wrong_model_and_a_dead_endpoint_stop_it(server, tmp_path, behaviour, said, most):
    generator = make(tmp_path, prices=(1.0, 1.0), max_cost_usd=1.0, concurrency=2, retries=0)
    with pytest.raises(EndpointError, match=said) as caught:
        texts(generator, [f"{behaviour} {n}" for n in range(50)])
    assert KEY not in str(caught.value)
    assert sum(server.asked.values()) <= most and not generator.ledger.exists()


def test_the_budget_is_never_passed_and_a_larger_one_goes_on(server, tmp_path):
    # In millionths of a dollar: an answer costs 3 x 10 = 30, at most 8 x 10 = 80.
    # Of 300, one at a time: the next is asked while 30 k + 80 <= 300, for k = 0 to 7, which makes eight.
    prices, prompts = (0.0, 10.0), [f"question{n}" for n in range(20)]
    with pytest.raises(EndpointError, match="max_cost_usd"):
        texts(make(tmp_path, prices=prices, max_cost_usd=300e-6, concurrency=1), prompts)
    assert server.billed == 8
    with pytest.raises(EndpointError, match="max_cost_usd"):
        texts(make(tmp_path, prices=prices, max_cost_usd=500e-6, concurrency=8), prompts)
    assert 8 < server.billed <= 15  # 14 x 30 + 80 = 500
    larger = make(tmp_path, prices=prices, max_cost_usd=651e-6, concurrency=1)  # 19 x 30 + 80
    assert len(texts(larger, prompts)) == server.billed == 20
    with pytest.raises(EndpointError, match="0.0000 of max_cost_usd"):
        texts(make(tmp_path / "other", prices=(1.0, 0.0), max_cost_usd=999e-6), ["a" * 1000])
    server.usage = None
    with pytest.raises(EndpointError, match="no usage"):
        texts(make(tmp_path, prices=prices, max_cost_usd=1.0), ["no token counts"])


def test_a_reader_who_stops_early_loses_nothing(server, tmp_path):
    generator, prompts = make(tmp_path, concurrency=1), [str(n) for n in range(50)]
    answers = generator.generate(prompts, 8, ())
    next(answers)
    answers.close()
    assert server.billed == len(ledger_of(generator)) < 50
    assert len(texts(generator, prompts)) == server.billed == 50


@dataclass
class Engine:
    """Stands in for a loaded vllm.LLM: answers with the last token and EOS, and keeps the calls."""

    ends: tuple = (2,)
    reason: str = "stop"
    calls: list = field(default_factory=list)

    def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
        self.calls.append((prompts, sampling_params, lora_request))
        made = [[prompt["prompt_token_ids"][-1], *self.ends] for prompt in prompts]
        outputs = [[SimpleNamespace(token_ids=ids, finish_reason=self.reason)] for ids in made]
        return [SimpleNamespace(request_id="7", outputs=found) for found in outputs]


@pytest.mark.parametrize(
    "ends, theirs, text, reason, n",
    [
        ((2,), "stop", "w4", "stop", 1),  # EOS, which vLLM counts among the tokens
        ((9, 16), "stop", "w4 w2", "stop", 3),  # the stop string w9 is cut off
        ((9,), "length", "w4 w2", "length", 2),
    ],
)
def test_vllm_gets_token_ids_with_one_bos_and_its_answers_are_cut_and_counted_as_with_transformers(
    monkeypatch, ends, theirs, text, reason, n
):
    monkeypatch.setattr(served, "CHUNK", 2)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    engine = Engine(ends, theirs)
    generator = served.VllmGenerator(engine, tiny_tokenizer(), "tiny")
    found = list(generator.generate(["w1 w4", "w5 w4", "w6 w4"], 8, ("w9",), 2))
    assert found == [(i, Completion(text, reason, n)) for i in range(3)]
    (first, greedy, _), (second, _, _) = engine.calls  # two prompts at a time
    bos, w1, w4 = 1, 8, 11
    assert first[0] == {"prompt_token_ids": [bos, w1, w4]} and len(second) == 1
    given = {"include_stop_str_in_output": True, "skip_special_tokens": False, "temperature": 0.0}
    given |= {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "seed": 0}
    assert greedy == SimpleNamespace(max_tokens=8, min_tokens=2, stop=["w9"], **given)
    engine.reason = "abort"
    with pytest.raises(RuntimeError, match="request 7 with finish_reason='abort'"):
        list(generator.generate(["w1"], 8, ()))


def test_the_engine_is_told_precision_pinned_revision_and_the_largest_rank(monkeypatch, tmp_path):
    served.load_engine.cache_clear()
    monkeypatch.setattr(served.gc, "collect", int)  # half a second each, beside torch
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda **arguments: arguments))
    plain = served.load_engine("some/model", "a1" * 20, "bfloat16")
    assert (plain["dtype"], plain["generation_config"]) == ("bfloat16", "vllm")
    assert plain["revision"] == plain["tokenizer_revision"] == "a1" * 20 and "enable_lora" not in plain
    for ranks, largest in (((32, 16, 32), 32), ((33,), 64), ((4,), 8)):
        assert served.load_engine(str(tmp_path), "", "bfloat16", ranks)["max_lora_rank"] == largest
    with pytest.raises(weights.WeightsError, match="commit"):
        served.load_engine("some/model", "", "bfloat16")


LONG = "Take the train to the coast, and then walk along the path until you see the old lighthouse there."


def test_a_persona_says_what_differs_most():
    pairs = [("q", "Take the train.", LONG), ("q", LONG, "Take the train."), ("q", "a b", "b a")]
    short, long, neither = served.SurfaceGenerator().write(pairs)
    assert short == "The user is busy and prefers short, direct answers."
    assert long == "The user is thorough and prefers long, detailed answers." and neither == ""
