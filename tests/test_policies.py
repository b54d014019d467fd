"""Policies: arms on one base, and published whole models in place of arms that would be trained here."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from test_llm import save_adapter
from tiny import tiny_model, tiny_rows, tiny_run

from persona_lib import published, store
from persona_lib.config import Run, load_profile, set_field
from persona_lib.evaluation import judge, policies, swap, tailor
from persona_lib.models import llm
from persona_lib.models.generate import TransformersGenerator
from persona_lib.profiles import ConfigError
from persona_lib.prompts import STOP, completion_text, tailoring_prompt
from persona_lib.records import RunSpec
from persona_lib.training import train

PROFILE = load_profile("everyday", ["controls=true", "train_personas=none,chosen"])


def spec(method="dpo", train_persona="chosen", persona="gold-chosen", form="line") -> RunSpec:
    return RunSpec("everyday", method, train_persona, persona, 0, form)


def publish(*entries, **changes) -> Run:
    return Run(set_field(PROFILE, published_arms=list(entries), **changes), "everyday", 0)


# --- which arm is what ---


def test_adapters_of_a_policy_are_stacked_sft_first_and_a_published_arm_has_none():
    run = publish("everyday/dpo-chosen=someone/model")
    assert policies.adapters_of(run, spec("few_shot")) == []
    assert policies.adapters_of(run, spec("sft", "none", form="first_person")) == ["sft-none"]
    assert policies.adapters_of(run, spec("dpo", "both")) == ["sft-both", "dpo-both"]
    assert policies.adapters_of(run, spec("dpo", "chosen")) == []
    assert swap.adapters_of(run, "dpo-chosen") == []
    assert policies.policy_name(run, spec()) == "dpo-chosen = someone/model"


def test_a_published_arm_is_named_by_data_set_arm_model_and_revision():
    profile = publish("everyday/dpo-chosen=someone/model@a1b2", "everyday/sft-chosen=models/own").profile
    assert published.published_model(profile, "everyday", "dpo-chosen") == ("someone/model", "a1b2")
    assert published.published_model(profile, "everyday", "sft-chosen") == ("models/own", "")
    assert published.published_model(profile, "everyday", "dpo-none") is None
    assert published.published_model(profile, "hhh", "dpo-chosen") is None


@pytest.mark.parametrize(
    "entry, said",
    [
        ("dpo-chosen=someone/model", "write DATASET/ARM=MODEL"),
        ("everyday/dpo-chosen", "write DATASET/ARM=MODEL"),
        ("everyday/few_shot-chosen=someone/model", "write DATASET/ARM=MODEL"),
        ("everydy/dpo-chosen=someone/model", "no data set 'everydy' here; known: everyday"),
        ("everyday/dpo-both=someone/model", "dpo-both is not an arm here"),
        ("everyday/sft-chosen=someone/model", "publish dpo-chosen, too"),
    ],
)
def test_a_published_arm_that_cannot_be_is_refused_with_the_mend(entry, said):
    with pytest.raises(ConfigError, match=f"published_arms: .*{said}"):
        publish(entry)


def test_only_what_is_not_published_is_trained_and_sft_only_where_something_needs_it(monkeypatch):
    entry, jobs = "everyday/dpo-chosen=someone/model", []
    monkeypatch.setattr(train, "is_trained", lambda *_: False)
    monkeypatch.setattr(
        train, "run_jobs", lambda _, missing, workers: jobs.extend(job[1:] for job in missing)
    )

    def trained(**changes):
        jobs.clear()
        run = publish(entry, **changes)
        for method in ("sft", "dpo"):
            train.train_arms(run, method)
        return list(jobs)

    assert trained() == [("sft", "none"), ("sft", "chosen"), ("dpo", "none")]
    assert trained(methods=["few_shot", "dpo"]) == [("sft", "none"), ("dpo", "none")]
    assert trained(methods=["few_shot", "dpo"], train_personas=["chosen"]) == []


def test_with_nothing_trained_a_published_arm_is_compared_with_few_shot():
    run = publish("everyday/dpo-chosen=m", methods=["few_shot", "dpo"], train_personas=["none", "chosen"])
    assert "few_shot-chosen.gold-chosen.line" in {
        m.base.slug for m in judge.matchups(run) if m.kind == "published"
    }
    alone = publish("everyday/dpo-chosen=m", methods=["few_shot", "dpo"], train_personas=["chosen"])
    assert [(m.test.arm, m.base.arm) for m in judge.matchups(alone)] == [
        ("dpo-chosen", "few_shot-chosen")
    ] * 2
    assert swap.swap_arms(alone) == [("base", "line"), ("dpo-chosen", "line")]


# --- a published model beside trained arms ---


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """Results with test rows and a tiny base with adapters of three arms; beside them another whole model."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        run = tiny_run(folder / "results", patch)
    theirs = folder / "theirs"
    tiny_model(seed=5).save_pretrained(theirs)
    base = folder / "results" / "base"
    llm.load_tokenizer(base).save_pretrained(theirs)
    rows = folder / "results" / "everyday" / "everyday" / "seed-0"
    store.write_rows(rows / "tailoring" / "test.jsonl", tiny_rows(6, seed=9, split="test"))
    store.mark_done(rows / "tailoring", "tiny rows")
    for seed, name in enumerate(("sft-none", "dpo-none", "sft-chosen")):
        store.mark_done(save_adapter(base, rows / "adapters" / name, seed), f"key of {name}")
    return folder, run.profile


@pytest.fixture
def run(made_once, tmp_path, monkeypatch):
    """A run of which dpo-chosen is published, on a copy of ``made_once``."""
    folder, profile = made_once
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    changed = set_field(
        profile,
        methods=["sft", "dpo"],
        train_personas=["none", "chosen"],
        gen_max_new_tokens=6,
        eval_personas=["none", "gold-chosen", "gold-rejected"],
        published_arms=[f"everyday/dpo-chosen={tmp_path / 'theirs'}"],
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
def test_the_published_model_answers_for_its_arm_and_adapters_for_the_others(
    run, tmp_path, monkeypatch, merge
):
    """With ``merge_adapters`` all is the same, and the adapters were merged."""
    merged, plain = [], llm.merged
    monkeypatch.setattr(llm, "merged", lambda model: merged.append(model.active_adapters) or plain(model))
    run = dataclasses.replace(run, profile=set_field(run.profile, merge_adapters=merge))
    tailor.generate_all(run)
    assert (["sft-none", "dpo-none"] in merged) == merge
    rows, tokenizer = tailor.eval_rows(run), llm.load_tokenizer(tmp_path / "theirs")
    found = {
        arm: {row.id: row.completion for row in tailor.read_generations(run, spec(*arm.split("-"))).values()}
        for arm in ("dpo-chosen", "sft-chosen", "dpo-none")
    }
    theirs = answers(llm.load_base(tmp_path / "theirs"), tokenizer, rows, "gold-chosen")
    folders = [run.folder / "adapters" / name for name in ("sft-none", "dpo-none")]
    ours = llm.attach_adapters(llm.load_base(run.base_source[0]), folders)
    assert found["dpo-chosen"] == theirs
    assert found["dpo-none"] == answers(ours, tokenizer, rows, "gold-chosen", ["sft-none", "dpo-none"])
    assert len({tuple(one.values()) for one in found.values()}) == 3
    made = store.read_json(tailor.generation_folder(run, spec()) / "spec.json")["generator"]
    assert made["merged"] is False  # it has no adapters
    assert made["model"] == f"dpo-chosen = {tmp_path / 'theirs'}" and made["adapters"] == []


@pytest.mark.slow
def test_a_model_is_gone_before_the_next_one_is_loaded(run, monkeypatch):
    """Two 8B models do not fit where one does."""
    import weakref

    alive, load = [], policies.load_base

    def watched(*where):
        assert alive == [], "two models at once"
        model = load(*where)
        alive.append(str(where[0]))
        weakref.finalize(model, alive.pop)
        return model

    monkeypatch.setattr(policies, "load_base", watched)
    specs = [spec("dpo", "none"), spec(), spec("sft", "none"), spec(persona="none")]
    assert [[s.arm for s in group] for group in policies.same_model(run, specs)] == [
        ["dpo-none", "sft-none"], ["dpo-chosen", "dpo-chosen"]
    ]  # fmt: skip
    tailor.generate_specs(run, specs)
    assert all((tailor.generation_folder(run, one) / "done.json").exists() for one in specs)


def test_merged_adapters_make_answers_and_scores_anew(run):
    """They are the same to rounding, which is not the same."""
    merged = dataclasses.replace(run, profile=set_field(run.profile, merge_adapters=True))
    for one in tailor.grid(run):
        assert tailor.generation_key(merged, one) != tailor.generation_key(run, one)
    for arm in swap.swap_arms(run):
        assert swap.swap_key(merged, *arm) != swap.swap_key(run, *arm)


def test_another_published_model_makes_its_answers_again_and_no_others(run, tmp_path):
    keys = {s.slug: tailor.generation_key(run, s) for s in tailor.grid(run)}
    tiny_model(seed=6).save_pretrained(tmp_path / "theirs")
    changed = {s.slug for s in tailor.grid(run) if tailor.generation_key(run, s) != keys[s.slug]}
    assert changed == {slug for slug in keys if slug.startswith("dpo-chosen.")}


@pytest.mark.slow
def test_the_swap_scores_the_published_model_and_claims_no_reference_for_it(run, tmp_path):
    table = swap.swap_all(run)
    assert set(table[table.arm == "dpo-chosen"].measure) == {"policy"}
    assert set(table[table.arm == "dpo-none"].measure) == {"policy", "implicit reward"}
    row = tailor.eval_rows(run)[2]
    [score] = [
        s for s in swap.score_policy(run, "dpo-chosen") if (s.id, s.eval_persona) == (row.id, "gold-rejected")
    ]
    prompt = tailoring_prompt(row.prompt, row.personas["gold-rejected"])
    model, tokenizer = llm.load_base(tmp_path / "theirs"), llm.load_tokenizer(tmp_path / "theirs")
    [expected] = llm.sequence_log_probs(model, tokenizer, [prompt], [completion_text(row.chosen)], 1)
    assert score.chosen == pytest.approx(expected, abs=1e-4)


def test_a_published_arm_has_nothing_to_export(run, tmp_path):
    from persona_lib import export

    with pytest.raises(ValueError, match="'dpo-chosen' has no adapters"):
        export.export_arm(run, "dpo-chosen", tmp_path / "out")


def test_an_nf4_base_is_written_out_for_vllm_once_as_what_it_stands_for(run, tmp_path):
    import torch

    nf4 = dataclasses.replace(run, profile=set_field(run.profile, quantization="nf4"))
    assert policies.plain_base(run) == run.base_source
    source, _ = policies.plain_base(nf4)
    before = (Path(source) / "done.json").stat().st_mtime_ns
    assert policies.plain_base(nf4)[0] == source
    assert (Path(source) / "done.json").stat().st_mtime_ns == before
    ids = torch.tensor([[1, 8, 9, 10]])
    with torch.no_grad():
        plain = llm.load_base(source)(input_ids=ids).logits
        four_bits = llm.load_base(*run.base_source, "nf4", "float32")(input_ids=ids).logits
        whole = llm.load_base(*run.base_source)(input_ids=ids).logits
    assert torch.equal(plain, four_bits) and not torch.allclose(plain, whole, atol=1e-3)
    assert llm.load_tokenizer(source).eos_token == "</s>"


def test_vllm_gets_one_adapter_for_a_stack_made_again_when_an_adapter_changes(run):
    folder = policies.joined_adapter(run, spec("dpo", "none"))
    assert store.read_json(folder / "adapter_config.json")["r"] == 8
    assert policies.joined_adapter(run, spec("sft", "none")).name == "sft-none"
    assert policies.joined_adapter(run, spec()) is None  # published
    before = store.read_json(folder / "done.json")["key"]
    store.mark_done(run.folder / "adapters" / "dpo-none", "another key")
    policies.joined_adapter(run, spec("dpo", "none"))
    assert store.read_json(folder / "done.json")["key"] != before


@pytest.mark.slow
def test_with_vllm_every_arm_gets_its_joined_adapter_and_a_published_one_none(run, monkeypatch):
    """The engine is a stand-in (see test_vllm); models, adapters and files are real."""
    import sys
    from types import SimpleNamespace

    from test_vllm import Engine, Params

    engines = []

    def load_engine(source, revision, dtype, ranks):
        engines.append((source, dtype, ranks, Engine()))
        return engines[-1][-1]

    monkeypatch.setattr(policies, "load_engine", load_engine)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=Params))
    monkeypatch.setitem(sys.modules, "vllm.lora", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.lora.request", SimpleNamespace(LoRARequest=SimpleNamespace))
    vllm = set_field(run.profile, engine="vllm", compute_dtype="bfloat16")
    vllm = dataclasses.replace(run, profile=vllm)
    specs = [spec("dpo", "none"), spec(), spec("sft", "chosen")]
    tailor.generate_specs(vllm, specs)

    (base, dtype, ranks, shared), (theirs, _, none, whole) = engines
    assert (base, theirs) == (run.base_source[0], policies.source_of(vllm, spec())[0])
    assert (dtype, ranks, none) == ("bfloat16", [8, 4], [])
    adapters = [call[2] for call in shared.calls]
    assert [Path(a.lora_path).relative_to(run.folder).as_posix() for a in adapters] == [
        "joined/dpo-none", "joined/sft-chosen"
    ]  # fmt: skip
    assert [call[2] for call in whole.calls] == [None]
    rows = tailor.read_generations(vllm, spec())
    assert {row.completion for row in rows.values()} == {"Response:"} and len(rows) == 6


@pytest.mark.slow
def test_a_published_arm_beside_trained_ones_leaves_every_aim_with_one_answer(tmp_path, monkeypatch):
    from tiny_results import fill_run

    from persona_lib.tables import primary
    from persona_lib.tables.results import read_table

    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    beside = publish("everyday/dpo-chosen=someone/model", pair_limit=12, bootstrap_samples=50)
    fill_run(beside)
    primary.save_tables(beside.profile)
    aims = read_table(beside.profile, "primary")
    judged = aims[aims.aim == "PT-DPO against PT-SFT, personalization net win rate"]
    assert len(judged) == 4 and "not run" not in set(judged.met)
    assert "published" in set(read_table(beside.profile, "methods").kind)


@pytest.mark.slow
def test_an_exported_merged_arm_published_again_answers_as_its_adapters_did(tmp_path, monkeypatch):
    from persona_lib import export

    own = tiny_run(
        tmp_path / "results", monkeypatch, quantization="nf4", methods=["sft", "dpo"],
        train_personas=["chosen"], gen_max_new_tokens=6, eval_personas=["gold-chosen"],
    )  # fmt: skip
    store.write_rows(own.folder / "tailoring" / "test.jsonl", tiny_rows(6, seed=9, split="test"))
    for method in ("sft", "dpo"):
        train.train_arms(own, method)
    tailor.generate_all(own)
    before = tailor.read_generations(own, spec())
    merged = export.export_arm(own, "dpo-chosen", tmp_path / "out", merge=True) / "merged"
    profile = set_field(own.profile, published_arms=[f"everyday/dpo-chosen={merged}"])
    theirs = dataclasses.replace(own, profile=profile)
    tailor.generate_all(theirs)
    assert tailor.read_generations(theirs, spec()) == before
    made = store.read_json(tailor.generation_folder(theirs, spec()) / "spec.json")["generator"]
    assert made["model"].endswith("merged")


@pytest.mark.slow
def test_every_table_can_be_made_of_a_published_arm_alone(tmp_path, monkeypatch):
    """Nothing is trained: the notebooks on training have nothing to show, few-shot is the other side."""
    from tiny_results import fill_run

    from persona_lib.reading import show, show_answers
    from persona_lib.tables import primary
    from persona_lib.tables.results import read_table

    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    alone = publish(
        "everyday/dpo-chosen=someone/model",
        methods=["few_shot", "dpo"],
        train_personas=["chosen"],
        pair_limit=12,
        bootstrap_samples=50,
    )
    fill_run(alone)
    for table in (show.row_counts(alone, "sft"), show.training_history(alone, "dpo")):
        assert len(table) == 0
    assert len(show.adapter_sizes(alone, "dpo")) == 0
    labels = [f"gold-{side}, PT-DPO (published) against few-shot" for side in ("chosen", "rejected")]
    assert show_answers.judging_table(alone).label.tolist() == labels
    assert "TESTED (dpo-chosen.gold-chosen.line)" in show_answers.judged_example(alone)
    assert set(show_answers.score_table(alone).reset_index().policy) == {"dpo-chosen", "few_shot-chosen"}
    primary.save_tables(alone.profile)
    assert set(read_table(alone.profile, "methods").label) == set(labels)
    aims = read_table(alone.profile, "primary")
    assert set(aims[aims.aim.str.startswith("PT-DPO against")].met) == {
        "not run"
    }  # few-shot is no DPO or SFT
    assert len(read_table(alone.profile, "main")) == 0 and len(read_table(alone.profile, "swap")) > 0
