"""Policies: every arm of a run on one base, through transformers or vLLM."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from test_llm import save_adapter
from tiny import tiny_rows, tiny_run

from persona_lib import store
from persona_lib.models import load
from persona_lib.models.generate import TransformersGenerator
from persona_lib.paper import answers as answers_module
from persona_lib.paper import swap
from persona_lib.prompts import STOP, tailoring_prompt
from persona_lib.records import RunSpec
from persona_lib.settings import Run, load_profile, set_field

PROFILE = load_profile("everyday", ["controls=true", "train_personas=none,chosen"])
ADAPTERS = ("sft-none", "dpo-none", "sft-chosen", "dpo-chosen")


def spec(method="dpo", train_persona="chosen", persona="gold-chosen", form="line") -> RunSpec:
    return RunSpec("everyday", method, train_persona, persona, 0, form)


def test_adapters_of_a_policy_are_stacked_sft_first():
    run = Run(PROFILE, "everyday", 0)
    assert answers_module.adapters_of(run, spec("few_shot")) == []
    assert answers_module.adapters_of(run, spec("sft", "none", form="first_person")) == ["sft-none"]
    assert answers_module.adapters_of(run, spec("dpo", "both")) == ["sft-both", "dpo-both"]
    assert [folder.name for folder in swap.adapters_of(run, "dpo-chosen")] == ["sft-chosen", "dpo-chosen"]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """Results with test rows and a tiny base with the adapters of two arms."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        run = tiny_run(folder / "results", patch)
    base = folder / "results" / "base"
    rows = folder / "results" / "everyday" / "everyday" / "seed-0"
    store.write_rows(rows / "tailoring" / "test.jsonl", tiny_rows(6, seed=9, split="test"))
    store.mark_done(rows / "tailoring", "tiny rows")
    for seed, name in enumerate(ADAPTERS):
        store.mark_done(save_adapter(base, rows / "adapters" / name, seed), f"key of {name}")
    return folder, run.profile


@pytest.fixture
def run(made_once, tmp_path, monkeypatch):
    """A run on a copy of ``made_once``."""
    folder, profile = made_once
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    changed = set_field(
        profile,
        methods=["sft", "dpo"],
        train_personas=["none", "chosen"],
        gen_max_new_tokens=6,
        eval_personas=["none", "gold-chosen", "gold-rejected"],
    )
    return Run(changed, "everyday", 0)


def answers(model, tokenizer, rows, persona, adapters=()):
    generator = TransformersGenerator(model, tokenizer, "x", 4, adapters)
    prompts = [tailoring_prompt(row.prompt, row.personas[persona]) for row in rows]
    found = dict(generator.generate(prompts, 6, (STOP,)))
    return {row.id: found[n].text for n, row in enumerate(rows)}


@pytest.mark.parametrize(
    "merge", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["beside", "merged"]
)
def test_every_arm_answers_with_its_own_adapters(run, monkeypatch, merge):
    """With ``merge_adapters`` all is the same, and the adapters were merged."""
    merged, plain = [], load.merged
    monkeypatch.setattr(load, "merged", lambda model: merged.append(model.active_adapters) or plain(model))
    run = dataclasses.replace(run, profile=set_field(run.profile, merge_adapters=merge))
    answers_module.generate_all(run)
    assert (["sft-none", "dpo-none"] in merged) == merge
    rows, base = answers_module.eval_rows(run), run.base_source[0]
    seen = set()
    arms = {"dpo-none": ADAPTERS[:2], "dpo-chosen": ADAPTERS[2:], "sft-chosen": ADAPTERS[2:3]}
    for arm, names in arms.items():
        made = answers_module.read_generations(run, spec(*arm.split("-")))
        found = {row.id: row.completion for row in made.values()}
        model = load.attach_adapters(load.load_base(base), [run.folder / "adapters" / name for name in names])
        assert found == answers(model, load.load_tokenizer(base), rows, "gold-chosen", list(names))
        seen.add(tuple(found.values()))
    assert len(seen) == 3


def test_merged_adapters_make_answers_and_scores_anew(run):
    """They are the same to rounding, which is not the same."""
    merged = dataclasses.replace(run, profile=set_field(run.profile, merge_adapters=True))
    for one in answers_module.grid(run):
        assert answers_module.generation_key(merged, one) != answers_module.generation_key(run, one)
    for arm in swap.swap_arms(run):
        assert swap.swap_key(merged, *arm) != swap.swap_key(run, *arm)


def test_an_nf4_base_is_written_out_for_vllm_once_as_what_it_stands_for(run, tmp_path):
    import torch

    nf4 = dataclasses.replace(run, profile=set_field(run.profile, quantization="nf4"))
    assert answers_module.plain_base(run) == run.base_source
    source, _ = answers_module.plain_base(nf4)
    before = (Path(source) / "done.json").stat().st_mtime_ns
    assert answers_module.plain_base(nf4)[0] == source
    assert (Path(source) / "done.json").stat().st_mtime_ns == before
    ids = torch.tensor([[1, 8, 9, 10]])
    with torch.no_grad():
        plain = load.load_base(source)(input_ids=ids).logits
        four_bits = load.load_base(*run.base_source, "nf4", "float32")(input_ids=ids).logits
        whole = load.load_base(*run.base_source)(input_ids=ids).logits
    assert torch.equal(plain, four_bits) and not torch.allclose(plain, whole, atol=1e-3)
    assert load.load_tokenizer(source).eos_token == "</s>"


def test_vllm_gets_one_adapter_for_a_stack_made_again_when_an_adapter_changes(run):
    folder = answers_module.joined_adapter(run, spec("dpo", "none"))
    assert store.read_json(folder / "adapter_config.json")["r"] == 8
    assert answers_module.joined_adapter(run, spec("sft", "none")).name == "sft-none"
    assert answers_module.joined_adapter(run, spec("few_shot")) is None
    before = store.read_json(folder / "done.json")["key"]
    store.mark_done(run.folder / "adapters" / "dpo-none", "another key")
    answers_module.joined_adapter(run, spec("dpo", "none"))
    assert store.read_json(folder / "done.json")["key"] != before


@pytest.mark.slow
def test_with_vllm_every_arm_gets_its_joined_adapter(run, monkeypatch):
    """The engine is a stand-in (see test_vllm); models, adapters and files are real."""
    import sys
    from types import SimpleNamespace

    from test_vllm import Engine, Params

    engines = []

    def load_engine(source, revision, dtype, ranks):
        engines.append((source, dtype, ranks, Engine()))
        return engines[-1][-1]

    monkeypatch.setattr(answers_module, "load_engine", load_engine)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=Params))
    monkeypatch.setitem(sys.modules, "vllm.lora", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.lora.request", SimpleNamespace(LoRARequest=SimpleNamespace))
    vllm = set_field(run.profile, engine="vllm", compute_dtype="bfloat16")
    vllm = dataclasses.replace(run, profile=vllm)
    specs = [spec("dpo", "none"), spec("sft", "chosen")]
    answers_module.generate_specs(vllm, specs)

    [(base, dtype, ranks, shared)] = engines
    assert (base, dtype, ranks) == (run.base_source[0], "bfloat16", [8, 4])
    adapters = [call[2] for call in shared.calls]
    assert [Path(a.lora_path).relative_to(run.folder).as_posix() for a in adapters] == [
        "joined/dpo-none", "joined/sft-chosen"
    ]  # fmt: skip
    rows = answers_module.read_generations(vllm, spec("dpo", "none"))
    assert {row.completion for row in rows.values()} == {"Response:"} and len(rows) == 6
