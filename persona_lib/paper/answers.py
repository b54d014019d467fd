"""The policies of a run behind the generator interface: one loaded base serves every arm.

Adapters are switched, and merged only while they are active (``merge_adapters``). ``engine`` chooses between
transformers and vLLM.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.data.preference import draw
from persona_lib.models import trainers
from persona_lib.models.generate import TransformersGenerator
from persona_lib.models.load import (
    attach_adapters,
    format_of,
    join_adapters,
    load_base,
    load_tokenizer,
    lora_rank,
    model_key,
)
from persona_lib.models.served import VllmGenerator, load_engine, lora_request
from persona_lib.models.train import adapter_folder, base_key, release_memory
from persona_lib.prompts import STOP, beginning, begun_prompt, few_shot_prompt, tailoring_prompt
from persona_lib.records import SIDES, Generation, RunSpec, TailoringRow
from persona_lib.settings import Profile, Run, main_arm, results_dir
from persona_lib.store import VERSIONS
from persona_lib.texts import count_degenerate
from persona_lib.workers import run_jobs, share_out

# --- The policies of a run behind the generator interface: one loaded base serves every arm ---
# Adapters are switched, and merged only while they are active (``merge_adapters``). ``engine`` chooses
# between transformers and vLLM.


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


# --- Answer the evaluation prompts with every policy and persona of the grid (paper section 5) ---
# Each run appends to its own ``generations/<slug>/rows.jsonl`` and resumes by row id; ``policies`` loads
# the models that answer.


BROKEN = 0.05  # share of degenerate answers from which a policy is not sound


def kinds(profile: Profile, *names: str) -> list[str]:
    """Return the personas of these kinds, for both sides, that the profile evaluates."""
    return [f"{name}-{side}" for name in names for side in SIDES if f"{name}-{side}" in profile.eval_personas]


def plan_of(profile: Profile, method: str, train_persona: str) -> list[tuple[str, str]]:
    """Return the (eval persona, persona format) pairs that an arm is run with.

    Arms trained without personas get them in the first person (the paper's baseline); the DPO one is also
    asked without a persona. The main tailored arm (``config.main_arm``) meets gold, retrieved and
    user-written personas; SFT and the other arms gold ones. ``controls`` adds the tailored models' own line
    for plain DPO, shuffled and system personas, and retrieved and user-written ones for every arm.
    """
    controls = profile.controls
    single = [p for p in ("none", "system") if p in profile.eval_personas]
    main, users = kinds(profile, "gold", "retrieved"), kinds(profile, "user")
    shuffled, gold = kinds(profile, "shuffled"), kinds(profile, "gold")
    if method == "few_shot":
        return [(p, "line" if train_persona != "none" else "first_person") for p in kinds(profile, "gold")]
    if train_persona == "none":
        plan = [(p, "first_person") for p in (main + users if controls or method == "dpo" else gold)]
        if method == "dpo" and controls:
            plan += [(p, "first_person") for p in shuffled + [s for s in single if s != "none"]]
            plan += [(p, "line") for p in main]
        return [*plan, ("none", "line")] if method == "dpo" else plan
    if method == "dpo" and train_persona == main_arm(profile):
        return [
            (p, "line") for p in (single + main + users + shuffled if controls else ["none", *main, *users])
        ]
    return [(p, "line") for p in (main + users if controls else gold)]


def arms(profile: Profile) -> list[tuple[str, str]]:
    """Return the (method, train persona) arms of a profile; few-shot knows with and without personas only."""
    trained = profile.train_personas
    told = [
        name
        for name in ("none", "chosen")
        if name in trained or (name == "chosen" and set(trained) - {"none"})
    ]
    return [
        (method, persona)
        for method in profile.methods
        for persona in (told if method == "few_shot" else trained)
    ]


def grid(run: Run) -> list[RunSpec]:
    """Return every cell of the grid for one data set and seed: plain data, to print and filter."""
    return [
        RunSpec(run.dataset, method, train_persona, eval_persona, run.seed, persona_format)
        for method, train_persona in arms(run.profile)
        for eval_persona, persona_format in plan_of(run.profile, method, train_persona)
    ]


def eval_rows(run: Run, split: str = "") -> list[TailoringRow]:
    """Return the rows of a split (the profile's evaluation split): all, or ``eval_limit`` drawn by id."""
    path = run.folder / "tailoring" / f"{split or run.profile.eval_split}.jsonl"
    return draw(store.read_rows(path, TailoringRow), run.profile.eval_limit)


def persona_of(row: TailoringRow, eval_persona: str) -> str | None:
    """Return the persona that a row is shown; None for "none" and where the row has no such persona."""
    return None if eval_persona == "none" else row.personas.get(eval_persona)


def shot_rows(run: Run) -> list[TailoringRow]:
    """Return the worked examples of few-shot tailoring: training rows with a persona, fixed by the seed."""
    rows = store.read_rows(run.folder / "tailoring" / "sft_train.jsonl", TailoringRow)
    usable = [row for row in rows if row.personas.get("gold-chosen")]
    return random.Random(f"few-shot-{run.seed}").sample(usable, run.profile.few_shot_examples)


def render(run: Run, spec: RunSpec, row: TailoringRow) -> str:
    """Render the prompt that a run's policy completes for a row (without few-shot examples)."""
    return ask_prompt(run, row.prompt, persona_of(row, spec.eval_persona), spec.persona_format)


def ask_prompt(run: Run, prompt: str, persona: str | None, persona_format: str) -> str:
    """Render what a run's policies are asked, in the profile's wording and with the beginning it forces."""
    chat = format_of(*run.base_source)
    text = tailoring_prompt(prompt, persona, persona_format, chat)
    return begun_prompt(text, forced_beginning(run, prompt), chat)


def forced_beginning(run: Run, prompt: str) -> str:
    """Return what the answer to a prompt is made to begin with; "" for nothing (``gen_beginning``)."""
    return "" if run.profile.gen_beginning == "none" else beginning(run.dataset, prompt)


def whole_answer(run: Run, prompt: str, text: str) -> str:
    """Return a completion as it is kept: after its forced beginning, which "released" leaves out."""
    begun = forced_beginning(run, prompt) if run.profile.gen_beginning == "whole" else ""
    return f"{begun} {text}".strip()


def few_shot_prefix(run: Run, spec: RunSpec) -> str:
    """Return the few-shot examples before every prompt of the run; empty for trained policies."""
    if spec.method != "few_shot":
        return ""
    shots = [
        (row.prompt, None if spec.train_persona == "none" else row.personas["gold-chosen"], row.chosen)
        for row in shot_rows(run)
    ]
    return few_shot_prompt(shots, "", format_of(*run.base_source))


def generation_folder(run: Run, spec: RunSpec) -> Path:
    """Folder of one run's generations."""
    return run.folder / "generations" / spec.slug


def generation_key(run: Run, spec: RunSpec) -> str:
    """Hash of all that a run's generations depend on."""
    profile = run.profile
    data = [
        store.file_hash(run.folder / "tailoring" / f"{name}.jsonl")
        for name in ("sft_train", profile.eval_split)
    ]
    settings = [
        getattr(profile, f)
        for f in vars(profile)
        if f.startswith(
            ("gen_", "few_shot", "first_person", "quantization", "compute", "merge", "eval_limit", "engine")
        )
    ]
    return store.content_hash(
        VERSIONS["answers"],
        spec,
        policy_key(run, spec),
        model_key(*run.base_source),
        data,
        settings,
    )


def generate_run(run: Run, spec: RunSpec, generator: Any) -> Path:
    """Generate the completions of one run with its policy's generator, resuming by row; returns its folder.

    Rows that lack the persona are left out (and counted in done.json as ``n_without_persona``).
    """

    folder, key = generation_folder(run, spec), generation_key(run, spec)
    if store.is_done(folder, key):
        return folder
    store.clear_unless(folder, key)
    store.write_json(folder / "spec.json", {"spec": spec, "generator": generator.settings, "stop": [STOP]})
    path = folder / "rows.jsonl"
    store.repair_rows(path)
    done = set(store.row_ids(path)) if path.exists() else set()
    rows = eval_rows(run)
    usable = [row for row in rows if spec.eval_persona == "none" or persona_of(row, spec.eval_persona)]
    append_completions(run, spec, generator, [row for row in usable if row.id not in done], path)
    found = store.read_rows(path, Generation)
    ended = [row.finish_reason == "stop" for row in found]
    degenerate = dataclasses.asdict(count_degenerate([row.completion for row in found], ended))
    store.mark_done(folder, key, n_without_persona=len(rows) - len(usable), **degenerate)
    return folder


def append_completions(
    run: Run, spec: RunSpec, generator: Any, rows: Sequence[TailoringRow], path: Path
) -> None:
    """Complete the rows and append them to ``path``, a batch at a time."""
    profile, batch = run.profile, []
    completions = generator.generate(
        [render(run, spec, row) for row in rows],
        profile.gen_max_new_tokens,
        (STOP,),
        min_new_tokens=profile.gen_min_new_tokens,
        prefix=few_shot_prefix(run, spec),
    )
    for index, done in completions:
        row = rows[index]
        persona, text = persona_of(row, spec.eval_persona), whole_answer(run, row.prompt, done.text)
        batch.append(
            Generation(row.id, spec.slug, row.prompt, persona, text, done.finish_reason, done.n_tokens)
        )
        if len(batch) >= profile.gen_batch_size:
            store.append_rows(path, batch)
            batch = []
    store.append_rows(path, batch)


def generate_specs(run: Run, specs: Sequence[RunSpec]) -> None:
    """Generate some runs of the grid; the base is loaded once."""
    with trainers.quiet_libraries():
        for spec, generator in generators(run, specs):
            facts = store.read_json(generate_run(run, spec, generator) / "done.json")
            said = f"{facts['n']} answers, {facts['no_eos']} never ended{broken_note(facts)}"
            print(f"{spec.slug}: {said}", flush=True)


def broken_share(facts: dict[str, Any]) -> float:
    """Return the share of a run's answers that repeat themselves, from its ``done.json``."""
    return max(facts["rep4_over_50"], facts["suffix_loop"]) / max(1, facts["n"])


def broken_note(facts: dict[str, Any]) -> str:
    """Return a warning where more than ``BROKEN`` of a run's answers repeat themselves; "" otherwise."""
    share = broken_share(facts)
    return (
        f"; WARNING: {share:.0%} are degenerate (loops): compare nothing with them" if share > BROKEN else ""
    )


def generate_all(run: Run) -> list[Path]:
    """Generate every run of the grid that is not finished yet, in ``workers`` processes (vLLM: here)."""
    specs, workers = grid(run), 1 if run.profile.engine == "vllm" else run.profile.workers
    missing = [s for s in specs if not store.is_done(generation_folder(run, s), generation_key(run, s))]
    shares = share_out(missing, [2 if spec.method == "few_shot" else 1 for spec in missing], workers)
    run_jobs(generate_specs, [(run, share) for share in shares], workers)
    return [generation_folder(run, spec) for spec in specs]


def read_generations(run: Run, spec: RunSpec) -> dict[str, Generation]:
    """Return a run's generations by row id; raises FileNotFoundError if the run is not finished."""
    folder = generation_folder(run, spec)
    if not (folder / "done.json").exists():
        raise FileNotFoundError(f"{folder} is not finished: run the generation step first")
    return {row.id: row for row in store.read_rows(folder / "rows.jsonl", Generation)}


# --- Which runs of the grid are compared with which: the rows of the results tables, as plain data ---


@dataclass(frozen=True)
class Matchup:
    """A row of a results table: a tested run against a base run, judged for ``judge_persona``.

    ``kind`` says what it shows: "main" (the paper's table), "sft" or "few_shot" (the same method without
    personas), "stage" (DPO against SFT), "arm" (another training persona), "control" (expected null)
    or "published" (a published arm against few-shot, which needs no training).
    """

    label: str
    kind: str
    test: RunSpec
    base: RunSpec
    judge_persona: str

    @property
    def slug(self) -> str:
        """Path-safe name: tested run, base run, judged persona."""
        return f"{self.test.slug}__{self.base.slug}__{self.judge_persona}"


def matchups(run: Run) -> list[Matchup]:
    """Return the rows of the results tables for one data set and seed, among the runs of the grid."""
    cells, main = {spec.slug: spec for spec in grid(run)}, main_arm(run.profile)

    def cell(method: str, train: str, persona: str, form: str) -> RunSpec | None:
        return cells.get(f"{method}-{train}.{persona}.{form}")

    rows: list[tuple[str, str, RunSpec | None, RunSpec | None, str]] = []
    for persona in run.profile.eval_personas:
        tested, plain = cell("dpo", main, persona, "line"), cell("dpo", "none", persona, "first_person")
        if persona.startswith(("gold", "retrieved", "user")):
            rows.append((f"{persona}", "main", tested, plain, persona))
            rows.append(
                (
                    f"{persona}, Persona line for DPO",
                    "control",
                    tested,
                    cell("dpo", "none", persona, "line"),
                    persona,
                )
            )
            rows.append(
                (
                    f"{persona}, DPO never told",
                    "control",
                    tested,
                    cell("dpo", "none", "none", "line"),
                    persona,
                )
            )
            rows.append(
                (
                    f"{persona}, PT-DPO against PT-SFT",
                    "stage",
                    tested,
                    cell("sft", main, persona, "line"),
                    persona,
                )
            )
            for method in ("sft", "few_shot"):
                arm = "chosen" if method == "few_shot" else main
                pair = cell(method, arm, persona, "line"), cell(method, "none", persona, "first_person")
                rows.append((f"{persona}, {method}", method, *pair, persona))
            for train in (name for name in run.profile.train_personas if name not in ("none", main)):
                rows.append(
                    (
                        f"{persona}, PT trained on {train}",
                        "control" if train == "shuffled" else "arm",
                        cell("dpo", train, persona, "line"),
                        plain,
                        persona,
                    )
                )
        elif persona.startswith("shuffled"):
            gold = persona.replace("shuffled", "gold")
            rows.append((f"{persona} persona, judged for {gold}", "control", tested, plain, gold))
    for side in ("gold-chosen", "gold-rejected"):
        none = cell("dpo", main, "none", "line"), cell("dpo", "none", "none", "line")
        rows.append((f"no persona, judged for {side}", "control", *none, side))
        system = cell("dpo", main, "system", "line"), cell("dpo", "none", "system", "first_person")
        rows.append((f"system persona, judged for {side}", "control", *system, side))
    return [Matchup(label, kind, a, b, judged) for label, kind, a, b, judged in rows if a and b]
