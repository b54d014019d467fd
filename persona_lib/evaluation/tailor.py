"""Answer the evaluation prompts with every policy and persona of the grid (paper section 5).

Each run appends to its own ``generations/<slug>/rows.jsonl`` and resumes by row id; ``policies`` loads the
models that answer.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.config import Run, main_arm
from persona_lib.data.arms import draw
from persona_lib.evaluation.policies import generators, policy_key
from persona_lib.models import guards
from persona_lib.models.llm import format_of, model_key
from persona_lib.profiles import Profile
from persona_lib.prompts import STOP, beginning, begun_prompt, few_shot_prompt, tailoring_prompt
from persona_lib.records import SIDES, Generation, RunSpec, TailoringRow
from persona_lib.store import VERSIONS
from persona_lib.workers import run_jobs, share_out

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
    from persona_lib.stats.text_metrics import count_degenerate  # needs numpy, which a plan does without

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
    with guards.quiet_libraries():
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
