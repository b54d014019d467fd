"""Answer the evaluation prompts with every policy and persona of the grid (paper section 5).

A policy is the base with a stack of adapters; one loaded base serves all. Each run appends to its own
``generations/<slug>/rows.jsonl`` and resumes by row id. ``matchups`` says which runs are compared with which.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.data.preference import draw
from persona_lib.models import kernels, load
from persona_lib.models.generate import TransformersGenerator
from persona_lib.models.served import VllmGenerator, load_engine
from persona_lib.models.train import adapter_folder
from persona_lib.prompts import STOP, beginning, completion_text, few_shot_prefix, tailoring_prompt
from persona_lib.records import Generation, RunSpec, TailoringRow
from persona_lib.settings import Profile, Run, deciding, main_arm, results_dir
from persona_lib.texts import count_degenerate

BROKEN = 0.05  # share of degenerate answers from which a policy is not sound
KEYED = "generation.* base.quantization base.dtype evaluation.limit"
STACKS = {"base": (), "few_shot": (), "sft": ("sft",), "dpo": ("sft", "dpo")}  # adapters, lowest first


def adapters_of(run: Run, arm: str) -> list[Path]:
    """Return the adapter folders of a policy, lowest first; ``arm`` is "base" or <method>-<train_persona>."""
    method, _, train_persona = arm.partition("-")
    return [adapter_folder(run, one, train_persona) for one in STACKS[method]]


def policy_key(run: Run, arm: str) -> list[Any]:
    """Return the keys of the adapters of an arm's policy."""
    return [store.read_json(folder / "done.json")["key"] for folder in adapters_of(run, arm)]


class PolicyLoader:
    """The base of a run, loaded at the first use, with the adapters of all arms that were asked for."""

    def __init__(self, run: Run) -> None:
        self.run, self.model, self.tokenizer = run, None, None

    def load(self, arm: str) -> tuple[Any, Any, list[str]]:
        """Return (model, tokenizer, names of the arm's adapters); a CPU gets four-bit weights expanded."""
        base, source, folders = self.run.profile.base, self.run.base_source, adapters_of(self.run, arm)
        if self.model is None:
            self.tokenizer = load.load_tokenizer(*source)
            model = load.load_base(*source, base.quantization, base.dtype)
            if base.quantization == "nf4" and load.device() == "cpu":
                # once instead of in every forward pass: the same function
                model = kernels.lean_linear(model.dequantize())
            self.model = model.requires_grad_(False)
        if folders:
            self.model = load.attach_adapters(self.model, folders)
        return self.model, self.tokenizer, [folder.name for folder in folders]


def generators(run: Run, specs: Sequence[RunSpec]) -> Iterator[tuple[list[RunSpec], Any]]:
    """Yield (specs, generator) for every arm of the specs; the base is loaded once, adapters are switched."""
    profile, arms = run.profile, {spec.arm: [s for s in specs if s.arm == spec.arm] for spec in specs}
    if profile.generation.engine == "vllm":
        yield from vllm_generators(run, arms)
        return
    loader, how = PolicyLoader(run), profile.generation
    for arm, its in arms.items():
        model, tokenizer, names = loader.load(arm)
        settings = how.batch_size, names, profile.merge_adapters, how.repetition_penalty
        yield its, TransformersGenerator(model, tokenizer, arm, *settings)


def joined_adapter(run: Run, arm: str) -> Path | None:
    """Return the folder of the adapter that equals an arm's stack, made at the first use; None without."""
    folders = adapters_of(run, arm)
    if not folders:
        return None
    folder, key = run.folder / "joined" / arm, store.content_hash(policy_key(run, arm))
    if not store.is_done(folder, key):
        load.join_adapters(folders, folder)
        store.mark_done(folder, key)
    return folder


def plain_base(run: Run) -> tuple[str, str]:
    """Return the base as vLLM loads it; one in NF4 is written out once, to ``expanded`` (16 GB of 8B)."""
    base = run.profile.base
    if base.quantization == "none":
        return run.base_source
    key = store.content_hash(load.model_key(*run.base_source), base.quantization, base.dtype)
    folder = results_dir(run.profile) / "expanded" / key
    if not store.is_done(folder, key):
        load.load_base(*run.base_source, base.quantization, base.dtype).dequantize().save_pretrained(folder)
        load.load_tokenizer(*run.base_source).save_pretrained(folder)
        store.mark_done(folder, key)
    return str(folder), ""


def vllm_generators(run: Run, arms: Mapping[str, list[RunSpec]]) -> Iterator[tuple[list[RunSpec], Any]]:
    """Yield the specs and the generator of every arm, on one vLLM engine, each with its joined adapter."""
    where = plain_base(run)
    folders = {arm: joined_adapter(run, arm) for arm in arms}
    ranks = (store.read_json(folder / "adapter_config.json")["r"] for folder in folders.values() if folder)
    engine, tokenizer = load_engine(*where, run.profile.base.dtype, tuple(ranks)), load.load_tokenizer(*where)
    for arm, its in arms.items():
        yield its, VllmGenerator(engine, tokenizer, arm, folders[arm])


def grid(run: Run) -> list[RunSpec]:
    """Return every cell of the grid for one data set and seed: which arm is shown which persona, and how.

    Arms trained without personas get them in the first person (the paper's baseline), tailored ones in
    their own line. All get gold ones; plain DPO and the main tailored arm (``settings.main_arm``) none,
    retrieved and user-written ones, too. Few-shot has the arms "none" and "chosen" only.
    ``evaluation.controls`` adds more.
    """
    profile, specs = run.profile, []
    personas, controls = profile.evaluation.personas, profile.evaluation.controls
    for method, arm in product(profile.training.methods, profile.training.arms):
        arm = "chosen" if method == "few_shot" and arm != "none" else arm
        form = "first_person" if arm == "none" else "line"
        compared = method == "dpo" and arm in ("none", main_arm(profile))
        wanted = [("gold", form)]
        if method != "few_shot" and (controls or compared):
            wanted += [("retrieved", form), ("user", form)]
        if compared and controls:
            wanted += [("shuffled", form), ("system", form)]
            wanted += [("gold", "line"), ("retrieved", "line")] if arm == "none" else []
        cells = [(p, how) for family, how in wanted for p in personas if p.partition("-")[0] == family]
        cells += [("none", "line")] if compared else []
        specs += [RunSpec(run.dataset, method, arm, persona, run.seed, how) for persona, how in cells]
    return list(dict.fromkeys(specs))


def eval_rows(run: Run, split: str = "") -> list[TailoringRow]:
    """Return the rows of a split (the one evaluated): all, or ``evaluation.limit`` drawn by id."""
    path = run.folder / "tailoring" / f"{split or run.profile.evaluation.split}.jsonl"
    return draw(store.read_rows(path, TailoringRow), run.profile.evaluation.limit)


def few_shot_examples(run: Run, spec: RunSpec) -> str:
    """Return the worked examples before every few-shot prompt, drawn by the seed."""
    rows = store.read_rows(run.folder / "tailoring" / "sft_train.jsonl", TailoringRow)
    usable = [row for row in rows if row.personas.get("gold-chosen")]
    drawn = random.Random(f"few-shot-{run.seed}").sample(usable, run.profile.generation.few_shot_examples)
    told = spec.train_persona != "none"
    shots = [(row.prompt, row.personas["gold-chosen"] if told else None, row.chosen) for row in drawn]
    return few_shot_prefix(shots, load.format_of(*run.base_source))


def generation_folder(run: Run, spec: RunSpec) -> Path:
    """Folder of one run's generations."""
    return run.folder / "generations" / spec.slug


def is_answered(run: Run, *specs: RunSpec) -> bool:
    """Say whether all of these runs have finished answers."""
    return all((generation_folder(run, spec) / "done.json").exists() for spec in specs)


def generation_key(run: Run, spec: RunSpec) -> str:
    """Hash of all that a run's generations depend on."""
    names = ("sft_train", run.profile.evaluation.split)
    data = [store.file_hash(run.folder / "tailoring" / f"{name}.jsonl") for name in names]
    settings = deciding(run.profile, KEYED)
    models = policy_key(run, spec.arm), load.model_key(*run.base_source)
    return store.content_hash(store.VERSIONS["answers"], spec, *models, data, settings)


def generate_runs(run: Run, specs: Sequence[RunSpec], generator: Any) -> None:
    """Generate the completions of one policy's runs together, resuming by row, of rows with their persona."""
    rows, specs_of, jobs = eval_rows(run), {generation_folder(run, s) / "rows.jsonl": s for s in specs}, {}
    keys = {path: generation_key(run, spec) for path, spec in specs_of.items()}
    for path, spec in specs_of.items():
        store.clear_unless(path.parent, keys[path])
        told = spec.eval_persona
        jobs[path] = [row for row in rows if told == "none" or row.personas.get(told)]

    def complete(missing: list[tuple[Path, TailoringRow]]) -> Iterator[tuple[Path, Generation]]:
        asked = [(specs_of[path], row) for path, row in missing]
        for n, made in completions(run, generator, asked):
            yield missing[n][0], made

    for path, made in store.resume(jobs, Generation, complete, run.profile.generation.batch_size).items():
        ended = [row.finish_reason == "stop" for row in made]
        degenerate = count_degenerate([row.completion for row in made], ended)
        store.mark_done(path.parent, keys[path], n_without_persona=len(rows) - len(made), **degenerate)


def completions(
    run: Run, generator: Any, asked: Sequence[tuple[RunSpec, TailoringRow]]
) -> Iterator[tuple[int, Generation]]:
    """Yield (place in ``asked``, completion) of rows told their runs' personas, as they are made."""
    how, chat = run.profile.generation, load.format_of(*run.base_source)
    few_shot = dict.fromkeys(spec for spec, _ in asked if spec.method == "few_shot")
    shots = {spec: few_shot_examples(run, spec) for spec in few_shot}
    prompts, begun = [], []
    for spec, row in asked:
        begun.append(beginning(run.dataset, row.prompt))  # "", or a mnemonic's "TERM sounds like"
        text = tailoring_prompt(row.prompt, row.personas.get(spec.eval_persona), spec.persona_format, chat)
        prompts.append(shots.get(spec, "") + text + completion_text(begun[-1], chat))
    for n, done in generator.generate(prompts, how.max_new_tokens, (STOP,), how.min_new_tokens):
        spec, row = asked[n]
        made = row.personas.get(spec.eval_persona), f"{begun[n]} {done.text}".strip()
        yield n, Generation(row.id, spec.slug, row.prompt, *made, done.finish_reason, done.n_tokens)


def broken_share(facts: dict[str, Any]) -> float:
    """Return the share of a run's answers that repeat themselves, from its ``done.json``."""
    return max(facts["rep4_over_50"], facts["suffix_loop"]) / max(1, facts["n"])


def unsound(profile: Profile) -> list[str]:
    """Name the runs of a profile of whose answers more than `BROKEN` repeat themselves."""
    found = []
    for run in (Run(profile, *one) for one in product(profile.datasets, profile.seeds)):
        for spec in (spec for spec in grid(run) if is_answered(run, spec)):
            if broken_share(store.read_json(generation_folder(run, spec) / "done.json")) > BROKEN:
                found.append(f"{spec.slug}, seed {run.seed}")
    return found


@store.one_at_a_time
def generate_all(run: Run) -> list[Path]:
    """Generate every run of the grid that is not finished yet."""
    specs = grid(run)
    missing = [s for s in specs if not store.is_done(generation_folder(run, s), generation_key(run, s))]
    for its, generator in generators(run, missing) if missing else ():
        generate_runs(run, its, generator)
        for spec in its:
            facts = store.read_json(generation_folder(run, spec) / "done.json")
            said = f"{spec.slug}: {facts['n']} answers, {facts['no_eos']} never ended"
            if broken_share(facts) > BROKEN:
                said += f"; WARNING: {broken_share(facts):.0%} are loops: compare nothing with them"
            print(said, flush=True)
    return [generation_folder(run, spec) for spec in specs]


def read_generations(run: Run, spec: RunSpec) -> dict[str, Generation]:
    """Return a run's generations by row id; raises FileNotFoundError if the run is not finished."""
    folder = generation_folder(run, spec)
    if not is_answered(run, spec):
        raise FileNotFoundError(f"{folder} is not finished: run the generation step first")
    path = folder / "rows.jsonl"  # not written where no row has the persona
    return {row.id: row for row in store.read_rows(path, Generation)} if path.exists() else {}
