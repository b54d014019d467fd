"""The policies of a run behind the generator interface: one loaded base serves every arm.

Adapters are switched, and merged only while they are active (``merge_adapters``). ``engine`` chooses between
transformers and vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.config import Run, results_dir
from persona_lib.models.generate import TransformersGenerator
from persona_lib.models.llm import attach_adapters, load_base, load_tokenizer
from persona_lib.models.vllm_engine import VllmGenerator, load_engine, lora_request
from persona_lib.records import RunSpec
from persona_lib.training.merging import join_adapters, lora_rank
from persona_lib.training.train import adapter_folder, base_key, release_memory


def adapters_of(run: Run, spec: RunSpec) -> list[str]:
    """Return the adapters that make up a run's policy, lowest first."""
    stack = {"few_shot": [], "sft": ["sft"], "dpo": ["sft", "dpo"]}[spec.method]
    return [f"{method}-{spec.train_persona}" for method in stack]


def policy_key(run: Run, spec: RunSpec) -> list[Any]:
    """Return the keys of the adapters of a run's policy."""
    folders = [run.folder / "adapters" / name for name in adapters_of(run, spec)]
    return [store.read_json(folder / "done.json")["key"] for folder in folders]


def generators(run: Run, specs: Sequence[RunSpec]) -> Iterator[tuple[RunSpec, Any]]:
    """Yield (spec, generator) for runs of the grid; the base is loaded once for all of them."""
    make = vllm_generators if run.profile.engine == "vllm" else transformers_generators
    yield from make(run, specs)


def transformers_generators(
    run: Run, specs: Sequence[RunSpec]
) -> Iterator[tuple[RunSpec, TransformersGenerator]]:
    """Yield the generators of runs on the base as it was trained on."""
    profile = run.profile
    quantised = (profile.quantization, profile.compute_dtype, profile.gen_expand_weights)
    model, tokenizer = load_base(*run.base_source, *quantised), load_tokenizer(*run.base_source)
    for name in dict.fromkeys(name for spec in specs for name in adapters_of(run, spec)):
        model = attach_adapters(model, [adapter_folder(run, *name.split("-", 1))])
    for spec in specs:
        settings = adapters_of(run, spec), profile.merge_adapters, profile.gen_repetition_penalty
        yield spec, TransformersGenerator(model, tokenizer, spec.arm, profile.gen_batch_size, *settings)


# --- vLLM: one adapter per request, a base in plain weights ---


def joined_adapter(run: Run, spec: RunSpec) -> Path | None:
    """Return the folder of the one adapter that equals a run's stack, made at the first use; None without."""
    names = adapters_of(run, spec)
    if not names:
        return None
    folder, key = run.folder / "joined" / names[-1], store.content_hash(policy_key(run, spec))
    if not store.is_done(folder, key):
        join_adapters([run.folder / "adapters" / name for name in names], folder)
        store.mark_done(folder, key)
    return folder


def plain_base(run: Run) -> tuple[str, str]:
    """Return the base as vLLM loads it; one that is trained on in NF4 is written out as what it stands for.

    The copy has the precision ``compute_dtype`` and lies in ``results/<profile>/expanded``: 16 GB for an
    8B model in bfloat16.
    """
    profile = run.profile
    if profile.quantization == "none":
        return run.base_source
    key = store.content_hash(base_key(run), profile.quantization, profile.compute_dtype)
    folder = results_dir(profile) / "expanded" / key
    if not store.is_done(folder, key):
        model = load_base(*run.base_source, profile.quantization, profile.compute_dtype, expand=True)
        model.save_pretrained(folder)
        load_tokenizer(*run.base_source).save_pretrained(folder)
        store.mark_done(folder, key)
        del model
        release_memory()
    return str(folder), ""


def vllm_generators(run: Run, specs: Sequence[RunSpec]) -> Iterator[tuple[RunSpec, VllmGenerator]]:
    """Yield the generators of runs on one vLLM engine, each with its arm's joined adapter."""
    where = plain_base(run)
    folders = {spec.arm: joined_adapter(run, spec) for spec in specs}
    ranks = [lora_rank(folder) for folder in folders.values() if folder]
    engine = load_engine(*where, run.profile.compute_dtype, ranks)
    tokenizer = load_tokenizer(*where)
    for spec in specs:
        folder = folders[spec.arm]
        key = store.read_json(folder / "done.json")["key"] if folder else ""
        adapter = lora_request(spec.arm, key, folder) if folder else None
        yield spec, VllmGenerator(engine, tokenizer, spec.arm, run.profile.compute_dtype, adapter)
