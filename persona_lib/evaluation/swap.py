"""Score the persona swap: every evaluation row's two responses under every persona, for every arm.

What the scores mean and how they are summarised stands in `persona_lib.evaluation.swap_tables`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import store
from persona_lib.config import Run
from persona_lib.data.persona_text import is_contrastive, strip_contrast
from persona_lib.evaluation.pair_scores import pair_log_probs
from persona_lib.evaluation.swap_tables import (
    FAMILIES,
    SINGLE,
    PolicyScore,
    SwapScore,
    flip_columns,
    join_reference,
    swap_table,
    to_frame,
)
from persona_lib.evaluation.tailor import eval_rows
from persona_lib.models import guards
from persona_lib.models.llm import (
    attach_adapters,
    format_of,
    load_base,
    load_tokenizer,
    model_key,
    using_adapters,
)
from persona_lib.prompts import completion_text, tailoring_prompt
from persona_lib.records import Generation, TailoringRow
from persona_lib.store import VERSIONS
from persona_lib.training.train import adapter_folder
from persona_lib.workers import run_jobs, share_out

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 4  # batches scored between two writes


# --- what is scored ---


def swap_families(arm: str, persona_format: str, controls: bool = True) -> tuple[str, ...]:
    """Return the families of personas an arm is scored under: every one costs two passes over the rows.

    The tailored DPO arms get all of them with their controls, the others what they are compared on: SFT no
    retrieved or stripped personas, persona-free SFT no shuffled ones either, and the base and the
    first-person format gold personas (and user-written ones). Without ``controls`` tailored DPO arms get
    gold, retrieved, shuffled and user-written personas, all others gold ones.
    """
    if not controls:
        tailored = arm.startswith("dpo-") and arm != "dpo-none"
        return ("gold", "retrieved", "shuffled", "user") if tailored else ("gold",)
    if arm == "base":
        return ("none", "gold")
    if persona_format == "first_person":
        return ("gold", "user")
    if arm == "sft-none":
        return ("none", "gold", "user")
    if arm == "dpo-none" or arm.startswith("sft-"):
        return ("none", "gold", "shuffled", "user")
    return (*SINGLE, *FAMILIES)


def swap_personas(row: TailoringRow, wanted: Iterable[str], families: Sequence[str]) -> dict[str, str | None]:
    """Return the personas a row is scored under: those it has of ``wanted`` and of ``families``.

    "stripped" ones are made from the gold ones, for rows where at least one of the two names a contrast.
    """
    wanted = [name for name in wanted if (name.rpartition("-")[0] or name) in families]
    personas: dict[str, str | None] = {"none": None} if "none" in families else {}
    personas |= {name: row.personas[name] for name in wanted if row.personas.get(name)}
    gold = {side: personas.get(f"gold-{side}") for side in ("chosen", "rejected")}
    contrast = all(gold.values()) and any(map(is_contrastive, gold.values()))
    if contrast and "stripped" in families:
        personas |= {f"stripped-{side}": strip_contrast(persona) for side, persona in gold.items()}
    return personas


def swap_rows(run: Run) -> list[TailoringRow]:
    """Return the rows whose responses are scored: those of the evaluation split that have both.

    Where none has (Mnemonic's test split was released without), those of validation.
    """
    rows = [row for row in eval_rows(run) if row.chosen and row.rejected]
    return rows or [row for row in eval_rows(run, "validation") if row.chosen and row.rejected]


def adapters_of(run: Run, arm: str) -> list[Path]:
    """Return the adapter folders of an arm's policy, lowest first.

    ``arm`` is "base", "sft-<train_persona>" or "dpo-<train_persona>"; others raise ValueError.
    """
    method, _, train_persona = arm.partition("-")
    if arm == "base":
        return []
    if method not in ("sft", "dpo") or not train_persona:
        raise ValueError(f"arm {arm!r}: use base, sft-<train_persona> or dpo-<train_persona>")
    methods = ("sft",) if method == "sft" else ("sft", "dpo")
    return [adapter_folder(run, one, train_persona) for one in methods]


def reference_of(run: Run, arm: str) -> str | None:
    """Return the arm that is the reference of an arm's implicit reward; None for the base."""
    if arm == "base":
        return None
    return "base" if arm.startswith("sft-") else arm.replace("dpo-", "sft-")


def swap_folder(run: Run, arm: str, persona_format: str = "line") -> Path:
    """Return the folder of one arm's scores: ``swap/<arm>.<persona_format>``."""
    return run.folder / "swap" / f"{arm}.{persona_format}"


def swap_key(run: Run, arm: str, persona_format: str) -> str:
    """Return a hash of what an arm's scores depend on; raises FileNotFoundError naming what is missing."""
    folders = [*adapters_of(run, arm), run.folder / "tailoring"]
    for folder in folders:
        if not (folder / "done.json").exists():
            raise FileNotFoundError(f"{folder / 'done.json'}: not finished; run the step that makes it first")
    inputs = [store.read_json(folder / "done.json")["key"] for folder in folders]
    p = run.profile
    settings = (
        *(p.quantization, p.compute_dtype, p.merge_adapters, p.gen_expand_weights),
        *(p.swap_batch_size, p.eval_split, p.eval_limit, p.eval_personas, p.controls),
    )
    return store.content_hash(VERSIONS["swap"], inputs, model_key(*run.base_source), settings, persona_format)


class PolicyLoader:
    """The model that holds an arm, loaded at the first use: a run's base serves all arms with adapters."""

    def __init__(self, run: Run) -> None:
        self.run, self.model, self.tokenizer = run, None, None

    def load(self, arm: str) -> tuple[Any, Any]:
        """Return (model, tokenizer) with the arm's adapters loaded."""
        profile = self.run.profile
        if self.model is None:
            quantised = (profile.quantization, profile.compute_dtype, profile.gen_expand_weights)
            self.model = load_base(*self.run.base_source, *quantised)
            self.tokenizer = load_tokenizer(*self.run.base_source)
        folders = adapters_of(self.run, arm)
        if folders:
            self.model = attach_adapters(self.model, folders)
        return self.model, self.tokenizer


def score_policy(
    run: Run, arm: str, persona_format: str = "line", loader: PolicyLoader | None = None
) -> list[PolicyScore]:
    """Score the two responses of every row of `swap_rows` under every persona; resumes, and is done once.

    Writes ``swap/<arm>.<persona_format>/policy.jsonl``. "first_person" shows the personas as the paper
    shows them to its persona-free baseline.
    """
    folder, key = swap_folder(run, arm, persona_format), swap_key(run, arm, persona_format)
    path = folder / "policy.jsonl"
    if store.is_done(folder, key):
        return store.read_rows(path, PolicyScore)
    store.clear_unless(folder, key)
    store.repair_rows(path)
    known = (
        {(row.id, row.eval_persona) for row in store.read_rows(path, PolicyScore)} if path.exists() else set()
    )
    families = swap_families(arm, persona_format, run.profile.controls)
    jobs = [
        (row, name, persona)
        for row in swap_rows(run)
        for name, persona in swap_personas(row, run.profile.eval_personas, families).items()
        if (row.id, name) not in known
    ]
    score_jobs(run, arm, persona_format, jobs, loader or PolicyLoader(run), path)
    scores = store.read_rows(path, PolicyScore)
    store.mark_done(folder, key, rows=len(scores))
    return scores


def score_jobs(
    run: Run, arm: str, persona_format: str, jobs: list[tuple], loader: PolicyLoader, path: Path
) -> None:
    """Score (row, name, persona) jobs in chunks and append each chunk to ``path``."""
    if not jobs:
        return
    adapters = adapters_of(run, arm)
    model, tokenizer = loader.load(arm)
    batch = run.profile.swap_batch_size
    how = persona_format, (chat := format_of(*run.base_source))
    jobs = sorted(jobs, key=lambda job: len(job[0].chosen) + len(job[0].rejected) + len(job[2] or ""))
    with using_adapters(model, [folder.name for folder in adapters], run.profile.merge_adapters):
        for start in range(0, len(jobs), CHUNK * batch):
            chunk = jobs[start : start + CHUNK * batch]
            prompts = [tailoring_prompt(row.prompt, persona, *how) for row, _, persona in chunk]
            pairs = [
                tuple(completion_text(t, chat) for t in (row.chosen, row.rejected)) for row, _, _ in chunk
            ]
            values = pair_log_probs(model, tokenizer, prompts, pairs, batch).tolist()
            found = zip(chunk, values, strict=True)
            store.append_rows(path, [PolicyScore(row.id, *rest, *pair) for (row, *rest), pair in found])


def persona_swap(
    run: Run, arm: str, persona_format: str = "line", loader: PolicyLoader | None = None
) -> list[SwapScore]:
    """Score an arm and join its reference's scores of the same prompts; both are computed once and kept.

    Writes ``rows.jsonl`` beside the policy's own scores. The base is scored under gold personas only, in
    the line format: where a reference has no score, the implicit reward is
    left out and the policy's own measure stays.
    """
    loader = loader or PolicyLoader(run)
    scores, reference = score_policy(run, arm, persona_format, loader), reference_of(run, arm)
    there = reference is not None and (reference, persona_format) in swap_arms(run)
    joined = join_reference(scores, score_policy(run, reference, persona_format, loader) if there else [])
    path = swap_folder(run, arm, persona_format) / "rows.jsonl"
    if not path.exists() or store.read_rows(path, SwapScore) != joined:
        store.write_rows(path, joined)
    return joined


def swap_arms(run: Run) -> list[tuple[str, str]]:
    """List (arm, persona_format) of a run: the base, every trained arm, and the persona-free ones also in
    first person, as the paper prompts its baseline."""
    arms = [
        f"{method}-{persona}"
        for method in (("sft", "dpo") if "dpo" in run.profile.methods else ("sft",))
        for persona in run.profile.train_personas
    ]
    plain = [arm for arm in arms if arm.endswith("-none")]
    if not run.profile.controls:  # plain arms are told in the first person, as in every comparison
        told = [(arm, "first_person" if arm in plain else "line") for arm in arms if arm != "sft-none"]
        return [("base", "line"), *told]
    return [("base", "line"), *((arm, "line") for arm in arms), *((arm, "first_person") for arm in plain)]


def collect(parts: Iterable[tuple[str, str]], table: Callable[[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Stack the tables of several (arm, persona_format) parts, with two columns that name them."""
    import pandas as pd

    frames = []
    for arm, persona_format in parts:
        frame = table(arm, persona_format)
        frame.insert(0, "arm", arm)
        frame.insert(1, "persona_format", persona_format)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def score_arms(run: Run, arms: Sequence[tuple[str, str]]) -> None:
    """Score some (arm, persona_format) of a run."""
    loader = PolicyLoader(run)
    with guards.quiet_libraries():
        for arm, persona_format in arms:
            scores = score_policy(run, arm, persona_format, loader)
            print(f"{arm} ({persona_format}): {len(scores)} pairs of responses scored", flush=True)


def score_all(run: Run) -> None:
    """Score the arms of a run that are not scored yet, shared out over ``workers`` processes."""
    arms, workers = swap_arms(run), run.profile.workers
    missing = [arm for arm in arms if not store.is_done(swap_folder(run, *arm), swap_key(run, *arm))]
    shares = share_out(missing, [len(swap_families(*arm, run.profile.controls)) for arm in missing], workers)
    run_jobs(score_arms, [(run, share) for share in shares], workers)


def swap_all(run: Run) -> pd.DataFrame:
    """Score all arms of a run, write ``tables/persona_swap.csv`` and return it."""
    score_all(run)

    def one(arm: str, persona_format: str) -> pd.DataFrame:
        scores = persona_swap(run, arm, persona_format)
        return swap_table([scores], run.profile.bootstrap_samples)

    return save_table(run, "persona_swap", collect(swap_arms(run), one))


def save_table(run: Run, name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Write a table to ``tables/<name>.csv`` and return it."""
    path = run.folder / "tables" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return table


# --- the same question, asked of generated text ---


def generation_flip(run: Run) -> pd.DataFrame:
    """Compare generations under P_C and P_R with the two responses (flip, DiD in unigram F1), per arm.

    Covers every arm and format that has finished generations for both sides of a persona family;
    writes ``tables/generation_flip.csv``.
    """
    rows = {row.id: row for row in eval_rows(run)}
    answered = any(row.chosen and row.rejected for row in rows.values())  # not so in Mnemonic's test split
    folder = run.folder / "generations"
    slugs = {path.parent.name for path in folder.glob("*/done.json")}
    parts = sorted({(slug.split(".")[0], slug.split(".")[2]) for slug in slugs})

    def one(arm: str, persona_format: str) -> pd.DataFrame:
        found = []
        for family in FAMILIES:
            sides = [f"{arm}.{family}-{side}.{persona_format}" for side in ("chosen", "rejected")]
            if answered and slugs.issuperset(sides):
                outputs = [
                    {g.id: g for g in store.read_rows(folder / s / "rows.jsonl", Generation)} for s in sides
                ]
                found.append(
                    {"persona": family} | flip_columns(rows, *outputs, run.profile.bootstrap_samples)
                )
        return to_frame(found, ["persona"])

    return save_table(run, "generation_flip", collect(parts, one))
