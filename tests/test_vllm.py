"""vLLM behind the generator interface.

Without vLLM: what is handed to it and what is made of its answers, with stand-ins for its classes whose
fields are those of vLLM 0.30.0. With vLLM and a GPU: the real engine against transformers, token by token.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from test_llm import save_adapter, some_texts
from tiny import save_base, tiny_tokenizer

from persona_lib.models import load, served
from persona_lib.models.generate import Sampling, TransformersGenerator
from persona_lib.settings import ConfigError, Run, load_profile, set_field

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
    return SimpleNamespace(
        request_id="7", outputs=[SimpleNamespace(token_ids=ids, finish_reason=finish_reason)]
    )


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


# --- what vLLM is given ---


def test_prompts_go_in_as_token_ids_with_one_bos_and_come_back_in_order(engine):
    generator = served.VllmGenerator(engine, tiny_tokenizer(), "tiny", "float32", chunk=2)
    found = list(generator.generate(["w3 w4", "w5", "w6"], 8, (), prefix="w1 w2 "))
    assert [(i, c.text, c.finish_reason, c.n_tokens) for i, c in found] == [
        (0, "w4", "stop", 1), (1, "w5", "stop", 1), (2, "w6", "stop", 1)
    ]  # fmt: skip
    (first, _, _), (second, _, _) = engine.calls  # two prompts at a time
    bos, w1, w2, w3, w4 = 1, 8, 9, 10, 11
    assert first[0] == {"prompt_token_ids": [bos, w1, w2, w3, w4]}
    assert [len(first), len(second)] == [2, 1]


def test_greedy_is_temperature_zero_and_stop_strings_and_limits_are_handed_over(engine):
    generator = served.VllmGenerator(engine, tiny_tokenizer(), "tiny", "float32")
    list(generator.generate(["w3"], 8, ("w9", "w8"), min_new_tokens=2))
    [params] = engine.calls[0][1]
    assert params == Params(8, 2, ["w9", "w8"], True, False, temperature=0.0)


def test_sampling_is_handed_over_with_a_seed_of_its_own_for_every_prompt_and_attempt(engine):
    generator = served.VllmGenerator(engine, tiny_tokenizer(), "tiny", "float32", chunk=2)
    for sampling in (WARM, WARM, WARM.with_seed(4)):
        list(generator.generate(["w3", "w3", "w3"], 8, (), sampling=sampling))
    params = [p for _, some, _ in engine.calls for p in some]
    assert {(p.temperature, p.top_p, p.top_k, p.repetition_penalty) for p in params} == {(0.7, 0.9, 0, 1.1)}
    seeds = [p.seed for p in params]
    assert seeds[:3] == seeds[3:6] and len(set(seeds)) == 6


def test_the_engine_never_chooses_precision_or_sampling_by_itself_and_caches_prefixes():
    arguments = served.engine_arguments("some/model", "a1b2", "bfloat16", [])
    assert (arguments["dtype"], arguments["generation_config"]) == ("bfloat16", "vllm")
    assert arguments["revision"] == arguments["tokenizer_revision"] == "a1b2"
    assert arguments["enable_prefix_caching"] is True and "enable_lora" not in arguments


@pytest.mark.parametrize(
    "ranks, largest, on_gpu", [([16], 16, 1), ([32, 16, 32], 32, 3), ([33], 64, 1), ([8] * 6, 8, 4)]
)
def test_room_is_made_for_all_adapters_at_a_rank_that_vllm_knows(ranks, largest, on_gpu):
    arguments = served.engine_arguments("m", "", "float32", ranks)
    assert (arguments["max_lora_rank"], arguments["max_loras"]) == (largest, on_gpu)
    assert arguments["max_cpu_loras"] == len(ranks)


def test_a_rank_above_vllms_largest_is_an_error():
    with pytest.raises(ValueError, match="rank 513; vLLM takes at most 512"):
        served.engine_arguments("m", "", "float32", [16, 513])


def test_a_profile_chooses_the_engine_for_models_that_are_loaded_here(monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    monkeypatch.setattr(served, "load_engine", lambda *args: loaded.append(args) or Engine())
    source = save_base(tmp_path / "base")
    settings = {
        "engine": "vllm",
        "compute_dtype": "bfloat16",
        "merge_adapters": False,
        "gen_repetition_penalty": 1.0,
    }
    run = Run(set_field(load_profile("everyday"), base_model=str(source), **settings), "everyday", 0)
    generator = served.load_generator(run, "generator", 4)
    assert isinstance(generator, served.VllmGenerator) and loaded == [(str(source), "", "bfloat16")]
    assert generator.settings["dtype"] == "bfloat16" and generator.settings["engine"].startswith("vllm ")


def test_vllm_in_float32_is_refused_because_its_adapters_work_in_16_bits_only():
    with pytest.raises(ConfigError, match="engine=vllm needs compute_dtype=bfloat16"):
        set_field(load_profile("everyday"), engine="vllm")


@pytest.mark.slow
def test_one_engine_is_kept_and_given_up_before_another_is_loaded(monkeypatch):
    """A GPU has room for one: the first must be gone when the second begins to load."""
    alive = []

    class Heavy:
        def __init__(self, **arguments):
            assert alive == [], "two engines at once"
            self.name = arguments["model"]
            alive.append(self.name)
            weakref.finalize(self, alive.remove, self.name)

    monkeypatch.setattr(served, "LOADED", {})
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Heavy))
    first = served.load_engine("first", "", "bfloat16")
    assert served.load_engine("first", "", "bfloat16") is first
    del first
    served.load_engine("second", "", "bfloat16", [16])
    assert alive == ["second"]


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


def test_without_vllm_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"constraints-vllm\.txt, or set engine: transformers"):
        served.load_engine("m", "", "float32")


# --- what is made of vLLM's answers ---


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
    found = served.read_output(output(ids, theirs), tiny_tokenizer(), ("w9",))
    assert (found.text, found.finish_reason, found.n_tokens) == (text, reason, n)


@pytest.mark.parametrize("reason", ["abort", "error", "repetition", None])
def test_an_answer_that_was_broken_off_is_an_error_and_never_a_completion(reason):
    with pytest.raises(RuntimeError, match=f"request 7 with finish_reason={reason!r}"):
        served.read_output(output([8], reason), tiny_tokenizer(), ())


# --- the real thing, where it is ---


@pytest.fixture(scope="module")
def gpu():
    pytest.importorskip("vllm", reason="no vLLM: pip install -e '.[lab,vllm]' -c constraints-vllm.txt")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("vLLM's wheels need a GPU")


def complete(generator, n=12, **how):
    prompts, _ = some_texts()
    return dict(generator.generate(prompts, n, ("w9",), min_new_tokens=2, **how))


@pytest.mark.slow
def test_vllm_and_transformers_complete_alike_in_float32(gpu, tmp_path):
    base = save_base(tmp_path / "base")
    tokenizer = load.load_tokenizer(base)
    engine = served.load_engine(str(base), "", "float32")
    theirs = served.VllmGenerator(engine, tokenizer, "tiny", "float32")
    ours = TransformersGenerator(load.load_base(base), tokenizer, "tiny", 4)
    assert complete(theirs) == complete(ours)
    assert complete(theirs, sampling=WARM) == complete(theirs, sampling=WARM)


@pytest.mark.slow
def test_vllm_serves_an_adapter_beside_the_base_as_transformers_does(gpu, tmp_path):
    """In bfloat16 near ties may fall either way, so most first words have to agree, not all."""
    base = save_base(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "sft-chosen", 1)
    tokenizer = load.load_tokenizer(base)
    engine = served.load_engine(str(base), "", "bfloat16", [4])
    request = served.lora_request("sft-chosen", "k", adapter)
    found = [
        complete(served.VllmGenerator(engine, tokenizer, "tiny", "bfloat16", handle))
        for handle in (None, request)
    ]
    model = load.attach_adapters(load.load_base(base, "", "none", "bfloat16"), [adapter])
    ours = [
        complete(TransformersGenerator(model, tokenizer, "tiny", 4, names)) for names in ((), ("sft-chosen",))
    ]
    firsts = [[c.text.split()[:1] for _, c in sorted(one.items())] for one in (*found, *ours)]
    for theirs, own in zip(firsts[:2], firsts[2:], strict=True):
        assert sum(a == b for a, b in zip(theirs, own, strict=True)) >= 7
    assert firsts[2] != firsts[3]
