"""Answers: which runs there are, what policies are shown, adapters through transformers or vLLM, resuming."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_served import Engine
from tiny import Echo, tiny_policies

from persona_lib import store
from persona_lib.models import load
from persona_lib.models.generate import TransformersGenerator
from persona_lib.paper import answers
from persona_lib.prompts import STOP, tailoring_prompt
from persona_lib.records import RunSpec, TailoringRow
from persona_lib.settings import Run, load_profile, set_field

PROFILE = load_profile("everyday", ["evaluation.controls=true", "generation.few_shot_examples=5"])
PERSONA = "The user is shy and prefers quiet."
TOLD = {"gold-chosen": PERSONA}
ROWS = [TailoringRow(f"row-{n}", "test", f"Question {n}?", "c", "r", TOLD if n else {}) for n in range(4)]
SHOTS = [TailoringRow(f"shot-{n}", "sft_train", f"q{n}", f"a{n}", "b", TOLD) for n in range(5)]
ADAPTERS = ("sft-none", "dpo-none", "sft-chosen", "dpo-chosen")


def spec(method="dpo", train="chosen", dataset="everyday") -> RunSpec:
    return RunSpec(dataset, method, train, "gold-chosen", 0)


def run_in(monkeypatch, dataset="everyday", **changes) -> Run:
    """A run with rows on disk whose base is no chat model and whose adapters are not looked at."""
    monkeypatch.setattr(load, "format_of", lambda *source: None)
    monkeypatch.setattr(load, "model_key", lambda *source: "")
    monkeypatch.setattr(answers, "policy_key", lambda run, arm: [])
    run = Run(set_field(PROFILE, {"datasets": [dataset], **changes}), dataset, 0)
    store.write_rows(run.folder / "tailoring" / "test.jsonl", ROWS)
    store.write_rows(run.folder / "tailoring" / "sft_train.jsonl", SHOTS)
    return run


def test_the_grid_has_every_method_with_and_without_personas():
    cells = {s.slug: s for s in answers.grid(Run(PROFILE, "everyday", 0))}
    assert {"few_shot-none.gold-chosen.first_person", "few_shot-chosen.gold-rejected.line"} <= cells.keys()
    assert {"sft-none.user-chosen.first_person", "dpo-both.system.line", "dpo-none.none.line"} <= cells.keys()
    assert "dpo-none.gold-chosen.line" in cells, "the baseline told in the tailored models' own format"
    assert {s.train_persona for s in cells.values() if s.method == "few_shot"} == {"none", "chosen"}
    few = answers.grid(Run(set_field(PROFILE, {"evaluation.controls": False}), "everyday", 0))
    assert {s.eval_persona.rpartition("-")[0] for s in few if s.method == "sft"} == {"gold"}
    assert "dpo-none.gold-chosen.line" not in {s.slug for s in few}


def test_a_run_answers_rows_with_their_own_persona_and_goes_on_where_it_stopped(results_here, monkeypatch):
    run = run_in(monkeypatch, **{"generation.batch_size": 1})
    with pytest.raises(KeyboardInterrupt):
        answers.generate_runs(run, [spec()], Echo(die_after=2))
    with pytest.raises(FileNotFoundError, match="run the generation step first"):
        answers.read_generations(run, spec())
    second = Echo()
    answers.generate_runs(run, [spec()], second)
    assert second.asked == [f"Prompt: Question 1?\nPersona: {PERSONA}\nResponse:"]
    found = answers.read_generations(run, spec())
    assert set(found) == {"row-1", "row-2", "row-3"}, "row-0 has no such persona"
    assert store.read_json(answers.generation_folder(run, spec()) / "done.json")["n_without_persona"] == 1
    assert found["row-2"].completion == f"answer to Prompt: Question 2?\nPersona: {PERSONA}\nResponse:"
    answers.generate_runs(run, [spec()], None)  # a finished run asks nothing


def test_a_mnemonic_begins_with_its_term_and_few_shot_arms_see_worked_examples(results_here, monkeypatch):
    row, one = dataclasses.replace(ROWS[1], prompt="negligible"), spec(dataset="mnemonic")
    run, echo = run_in(monkeypatch, "mnemonic"), Echo()
    ((_, made),) = answers.completions(run, echo, [(one, row)])
    assert echo.asked[0].rpartition("\n")[2] == "Response: Negligible sounds like"
    assert made.completion.splitlines()[0] == "Negligible sounds like answer to Prompt: negligible"
    told, plain = (answers.few_shot_examples(run, spec("few_shot", arm)) for arm in ("chosen", "none"))
    assert [text.count("Persona:") for text in (told, plain)] == [5, 0]
    assert told.count("Response: a") == plain.count("Response: a") == 5


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on disk: test rows, and a tiny base with the adapters of two arms."""
    arms = {"training.methods": ["sft", "dpo"], "training.arms": ["none", "chosen"]}
    personas = {"evaluation.personas": ["none", "gold-chosen", "gold-rejected"]}
    changes = arms | personas | {"generation.max_new_tokens": 6}
    return tiny_policies(tmp_path, monkeypatch, *ADAPTERS, **changes)


def test_every_arm_answers_with_its_own_adapters_sft_below_dpo(run):
    answers.generate_all(run)
    rows, base, seen = answers.eval_rows(run), run.base_source[0], set()
    prompts = [tailoring_prompt(row.prompt, row.personas["gold-chosen"]) for row in rows]
    arms = {"dpo-none": ADAPTERS[:2], "dpo-chosen": ADAPTERS[2:], "sft-chosen": ADAPTERS[2:3]}
    for arm, names in arms.items():
        model = load.attach_adapters(load.load_base(base), [run.folder / "adapters" / name for name in names])
        generator = TransformersGenerator(model, load.load_tokenizer(base), "x", 4, list(names))
        wanted = {rows[n].id: done.text for n, done in generator.generate(prompts, 6, (STOP,))}
        made = answers.read_generations(run, spec(*arm.split("-")))
        assert {row.id: row.completion for row in made.values()} == wanted
        seen.add(tuple(wanted[row.id] for row in rows))
    assert len(seen) == 3


def test_an_nf4_base_is_written_out_for_vllm_once_with_the_weights_it_has(run):
    nf4 = dataclasses.replace(run, profile=set_field(run.profile, {"base.quantization": "nf4"}))
    ids = torch.tensor([[1, 8, 9, 10]])
    (source, _), bases = answers.plain_base(nf4), [answers.plain_base(each)[0] for each in (run, nf4)]
    assert bases == [run.base_source[0], source] and load.load_tokenizer(source).eos_token == "</s>"
    with torch.no_grad():
        plain = load.load_base(source)(input_ids=ids).logits
        four_bits = load.load_base(*run.base_source, "nf4", "float32")(input_ids=ids).logits
        whole = load.load_base(*run.base_source)(input_ids=ids).logits
    assert torch.equal(plain, four_bits) and not torch.allclose(plain, whole, atol=1e-3)


def test_vllm_gets_one_adapter_for_a_stack_made_again_when_an_adapter_changes(run):
    folder = answers.joined_adapter(run, "dpo-none")
    assert store.read_json(folder / "adapter_config.json")["r"] == 8
    assert answers.joined_adapter(run, "sft-none").name == "sft-none"
    assert answers.joined_adapter(run, "few_shot-chosen") is None
    before = store.read_json(folder / "done.json")["key"]
    store.mark_done(run.folder / "adapters" / "dpo-none", "another key")
    answers.joined_adapter(run, "dpo-none")
    assert store.read_json(folder / "done.json")["key"] != before


@pytest.mark.slow
def test_with_vllm_every_arm_gets_its_joined_adapter(run, monkeypatch):
    """The engine is a stand-in (see test_served); models, adapters and files are real."""
    shared, asked = Engine(), []
    monkeypatch.setattr(answers, "load_engine", lambda *given: [asked.append(given), shared][1])
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    monkeypatch.setitem(sys.modules, "vllm.lora", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.lora.request", SimpleNamespace(LoRARequest=SimpleNamespace))
    profile = set_field(run.profile, {"generation.engine": "vllm", "base.dtype": "bfloat16"})
    vllm = dataclasses.replace(run, profile=profile)
    monkeypatch.setattr(answers, "grid", lambda run: [spec("dpo", "none"), spec("sft", "chosen")])
    answers.generate_all(vllm)

    assert asked == [(*run.base_source, "bfloat16", (8, 4))]
    adapters = [Path(call[2].lora_path).relative_to(run.folder).as_posix() for call in shared.calls]
    assert adapters == ["joined/dpo-none", "joined/sft-chosen"]
    rows = answers.read_generations(vllm, spec("dpo", "none"))
    assert {row.completion for row in rows.values()} == {"Response:"} and len(rows) == 7
