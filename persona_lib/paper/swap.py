"""Score the persona swap: every evaluation row's two responses under every persona, for every arm.

What the scores mean and how they are summarised stands in `persona_lib.paper.swap`.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib import intervals, store
from persona_lib.intervals import (
    Interval,
    Pool,
    Statistic,
    bootstrap_mean,
    make_pool,
    mean_columns,
    mean_of,
)
from persona_lib.models import trainers
from persona_lib.models.load import (
    attach_adapters,
    format_of,
    load_base,
    load_tokenizer,
    model_key,
    using_adapters,
)
from persona_lib.models.train import adapter_folder
from persona_lib.paper.answers import eval_rows, generation_folder, grid, read_generations
from persona_lib.paper.judges import pair_log_probs
from persona_lib.paper.judging import runs_of, same_items
from persona_lib.paper.results import Row
from persona_lib.prompts import completion_text, tailoring_prompt
from persona_lib.records import Generation, RunSpec, TailoringRow
from persona_lib.settings import Profile, Run
from persona_lib.store import VERSIONS, read_rows
from persona_lib.texts import is_contrastive, strip_contrast, unigram_f1
from persona_lib.workers import run_jobs, share_out

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


# --- Score the persona swap: every evaluation row's two responses under every persona, for every arm ---
# What the scores mean and how they are summarised stands in `persona_lib.paper.swap`.


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
    with trainers.quiet_libraries():
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


# --- Persona-swap accuracy ---
# With r = log pi(response | prompt, persona), less the reference's for the implicit reward, let
#
#     m(P) = r(chosen | P) - r(rejected | P).
#
# Acc_C is the share of rows with m(P_C) > 0, Acc_R that with m(P_R) < 0, flip that with both (chance 1/4
# for independent signs). D = m(P_C) - m(P_R): both terms hold the same two responses, so their length,
# quality and memorisation cancel, and share D > 0 is 1/2 for a policy that does not heed the persona.


FAMILIES = ("gold", "stripped", "retrieved", "shuffled", "user")  # of personas that come in two sides
SINGLE = ("none", "system")  # controls without sides: base rates of both accuracies
MEASURES = ("policy", "implicit reward")
ROUNDING = 1e-4  # nats: a smaller D is rounding, the policy saw no difference


@dataclass(frozen=True)
class PolicyScore:
    """Log-probabilities (nats, summed over tokens) of a row's two responses under one persona, by one policy.

    ``eval_persona`` names the persona ("gold-chosen", "none", ...), ``persona`` is its text.
    """

    id: str
    eval_persona: str
    persona: str | None
    chosen: float
    rejected: float


@dataclass(frozen=True)
class SwapScore:
    """A `PolicyScore` with the scores of the policy's reference, None where it has none."""

    id: str
    eval_persona: str
    persona: str | None
    policy_chosen: float
    policy_rejected: float
    reference_chosen: float | None
    reference_rejected: float | None

    def margin(self, measure: str) -> float | None:
        """Return m(P) by "policy" or "implicit reward" (without its factor beta); None if there is none."""
        policy = self.policy_chosen - self.policy_rejected
        if measure == "policy":
            return policy
        if self.reference_chosen is None or self.reference_rejected is None:
            return None
        return policy - (self.reference_chosen - self.reference_rejected)


def join_reference(scores: Sequence[PolicyScore], reference: Sequence[PolicyScore]) -> list[SwapScore]:
    """Put the reference's scores of the same row and persona beside the policy's."""
    known = {(s.id, s.eval_persona, s.persona): (s.chosen, s.rejected) for s in reference}
    return [
        SwapScore(
            s.id, s.eval_persona, s.persona, s.chosen, s.rejected,
            *known.get((s.id, s.eval_persona, s.persona), (None, None)),
        )
        for s in scores
    ]  # fmt: skip


# --- what is reported: pure functions of the scores ---


def acc_chosen(m: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return whether P_C makes the policy prefer the chosen response."""
    return m[:, 0] > 0


def acc_rejected(m: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return whether P_R makes it prefer the rejected one."""
    return m[:, 1] < 0


def flip(m: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return whether both hold."""
    return (m[:, 0] > 0) & (m[:, 1] < 0)


def d_positive(m: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return whether D > 0; NaN where it is undefined or 0 to rounding."""
    import numpy as np

    return np.where(np.isnan(d) | (np.abs(d) < ROUNDING), np.nan, (d > 0).astype(float))


def difference(m: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return D in nats."""
    return d


# name -> a function of the margins m (row, persona) and of D (row), one value per row; each gets an interval
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "acc_chosen": acc_chosen,
    "acc_rejected": acc_rejected,
    "flip": flip,
    "d_positive": d_positive,
    "d": difference,
}


def swap_values(scores: Sequence[SwapScore], family: str, measure: str) -> dict[str, np.ndarray]:
    """Return per-row values of one family of personas, arrays in the order of row ids.

    acc_chosen, acc_rejected and flip are 0/1; d is in nats; d_positive is 1/0, NaN where d is 0 (to
    rounding) or the two personas are the same text. Families of ``SINGLE`` (no persona, the system's)
    score a row once: both accuracies are base rates, flip is 0, d is NaN. Rows that lack a side are left out.
    """
    import numpy as np

    names = (family, family) if family in SINGLE else (f"{family}-chosen", f"{family}-rejected")
    by_name = {name: {s.id: s for s in scores if s.eval_persona == name} for name in names}
    shared = sorted(set(by_name[names[0]]) & set(by_name[names[1]]))
    both = [(by_name[names[0]][id], by_name[names[1]][id]) for id in shared]
    both = [pair for pair in both if None not in (pair[0].margin(measure), pair[1].margin(measure))]
    m = np.array([[one.margin(measure) for one in pair] for pair in both], dtype=float).reshape(len(both), 2)
    same = np.array([a.persona == b.persona for a, b in both], dtype=bool)
    d = np.where(same, np.nan, m[:, 0] - m[:, 1])
    return {name: np.asarray(metric(m, d), dtype=float) for name, metric in METRICS.items()}


def swap_table(
    scores_by_seed: Sequence[Sequence[SwapScore]], n_resamples: int = 2000, shared_items: bool = False
) -> pd.DataFrame:
    """Summarise one arm: a row per measure and persona family, each value with its 95 % bootstrap interval.

    One list of scores per seed; ``shared_items`` says that the seeds scored the same rows.
    """
    rows = []
    for measure in MEASURES:
        for family in (*FAMILIES, *SINGLE):
            values = [swap_values(scores, family, measure) for scores in scores_by_seed]
            if all(len(v["flip"]) for v in values):
                rows.append(
                    {"measure": measure, "persona": family}
                    | interval_columns(values, n_resamples, shared_items)
                )
    return to_frame(rows, ["measure", "persona"])


def interval_columns(
    values: Sequence[dict[str, np.ndarray]], n_resamples: int, shared_items: bool
) -> dict[str, float]:
    """Return n and, for each value, its mean and interval: columns x, x_low, x_high."""

    columns: dict[str, Any] = {"n": sum(len(v["flip"]) for v in values), "n_seeds": len(values)}
    for name in values[0]:
        interval = bootstrap_mean([v[name] for v in values], n_resamples, shared_items=shared_items)
        columns |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return columns


def to_frame(rows: list[dict], index: list[str]) -> pd.DataFrame:
    """Return rows as a table that has its index columns even when it is empty."""
    import pandas as pd

    return pd.DataFrame(rows, columns=None if rows else index)


def flip_columns(
    rows: dict[str, TailoringRow], under_chosen: dict, under_rejected: dict, n_resamples: int
) -> dict[str, float]:
    """Return flip, DiD and share DiD > 0 with intervals, over rows with both outputs and both responses."""

    ids = sorted(i for i in set(under_chosen) & set(under_rejected) if rows[i].chosen and rows[i].rejected)
    outputs = [[side[i].completion for i in ids] for side in (under_chosen, under_rejected)]
    flips = flip_and_did(*outputs, [rows[i].chosen for i in ids], [rows[i].rejected for i in ids])
    values = {"flip": flips.flip, "did_positive": flips.did_positive, "did": flips.did}
    return interval_columns([values], n_resamples, False)


# --- Judge-free tables over seeds: persona swaps by log-probability, and the flip of generated answers ---
# The measures are those of ``swap_tables`` and ``text_metrics``; here they are pooled over seeds, with
# paired intervals for the difference between a tailored policy and its persona-free twin.


Part = tuple[str, str]  # arm, persona format
FLIP_VALUES = ("flip", "did_positive", "did")
TWINS: list[tuple[Part, Part]] = [  # tested policy, what it is compared with
    pair
    for arm in ("chosen", "both")
    for pair in (
        ((f"dpo-{arm}", "line"), ("dpo-none", "line")),
        ((f"dpo-{arm}", "line"), ("dpo-none", "first_person")),
        ((f"dpo-{arm}", "line"), (f"sft-{arm}", "line")),
        ((f"dpo-{arm}", "line"), ("dpo-shuffled", "line")),
        ((f"sft-{arm}", "line"), ("sft-none", "line")),
        ((f"sft-{arm}", "line"), ("sft-none", "first_person")),
    )
]


@dataclass(frozen=True)
class PerItem:
    """Per-item values over seeds, by part, what ("policy/gold") and value ("flip"), and their pool."""

    dataset: str
    seeds: dict[Part, list[int]]
    values: dict[tuple[Part, str, str], list[dict[str, float]]]
    pool: Pool

    def column(self, part: Part, what: str, value: str) -> str:
        """Name of the values' column in the pool."""
        return f"{part}/{what}/{value}"

    def n(self, part: Part, what: str, value: str = "flip") -> int:
        """Number of items over all seeds."""
        return sum(map(len, self.values.get((part, what, value), ())))


# --- reading ---


def finished_scores(run: Run, part: Part) -> list[SwapScore]:
    """Return the swap scores of one arm and format, none if it was not scored."""
    folder = swap_folder(run, *part)
    done = (folder / "done.json").exists() and (folder / "rows.jsonl").exists()
    return read_rows(folder / "rows.jsonl", SwapScore) if done else []


def swap_items(scores: Sequence[SwapScore]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield ("measure/family", value name, {id: value}) of one arm and seed."""
    for family in (*FAMILIES, *SINGLE):
        names = {family} if family in SINGLE else {f"{family}-chosen", f"{family}-rejected"}
        by_name = [{s.id for s in scores if s.eval_persona == name} for name in names]
        ids = sorted(set.intersection(*by_name))
        for measure in MEASURES:
            values = swap_values(scores, family, measure)
            if ids and len(values["flip"]) == len(ids):  # an arm without a reference has no implicit reward
                for name in METRICS:
                    yield f"{measure}/{family}", name, dict(zip(ids, values[name].tolist(), strict=True))


def flip_items(run: Run, part: Part) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield (family, value name, {id: value}) of the generated answers of one arm and seed."""
    if not (run.folder / "tailoring" / f"{run.profile.eval_split}.jsonl").exists():
        return
    rows = {row.id: row for row in eval_rows(run) if row.chosen and row.rejected}
    for family in FAMILIES:
        specs = [find_spec(run, part, f"{family}-{side}") for side in ("chosen", "rejected")]
        if None in specs:
            continue
        outputs = [read_generations(run, spec) for spec in specs]
        ids = sorted(set(rows) & set(outputs[0]) & set(outputs[1]))
        texts = [[side[i].completion for i in ids] for side in outputs]
        scores = flip_and_did(*texts, [rows[i].chosen for i in ids], [rows[i].rejected for i in ids])
        for name in FLIP_VALUES:
            yield family, name, dict(zip(ids, getattr(scores, name).tolist(), strict=True))


def find_spec(run: Run, part: Part, persona: str) -> RunSpec | None:
    """Return the run of the grid with finished answers for an arm, persona and format, or None."""
    for spec in grid(run):
        if (spec.arm, spec.persona_format, spec.eval_persona) == (*part, persona):
            return spec if (generation_folder(run, spec) / "done.json").exists() else None
    return None


def collect_items(profile: Profile, dataset: str, reader: Any, parts: Sequence[Part]) -> PerItem | None:
    """Read the per-item values of all seeds and pool them; None if there are none."""
    runs = runs_of(profile, dataset)
    values: dict[tuple[Part, str, str], list[dict[str, float]]] = {}
    seeds: dict[Part, list[int]] = {}
    for number, run in enumerate(runs):
        for part in parts:
            for what, name, by_id in reader(run, part):
                values.setdefault((part, what, name), [{} for _ in runs])[number] = by_id
                if by_id and run.seed not in seeds.setdefault(part, []):
                    seeds[part].append(run.seed)
    if not seeds:
        return None
    columns: dict[str, Any] = {}
    for key, by_seed in values.items():
        columns |= mean_columns(f"{key[0]}/{key[1]}/{key[2]}", by_seed)
    pool = make_pool(
        columns, profile.bootstrap_samples, profile.datasets.index(dataset), same_items(tuple(runs))
    )
    return PerItem(dataset, seeds, values, pool)


@functools.lru_cache(maxsize=4)
def swap_data(profile: Profile) -> tuple[PerItem, ...]:
    """Read the swap scores of all data sets."""
    found = [
        collect_items(profile, d, lambda run, part: swap_items(finished_scores(run, part)), parts)
        for d in profile.datasets
        if (parts := swap_arms(runs_of(profile, d)[0]))
    ]
    return tuple(items for items in found if items)


@functools.lru_cache(maxsize=4)
def flip_data(profile: Profile) -> tuple[PerItem, ...]:
    """Read what generated answers say about flips, of all data sets with finished answers."""
    found = []
    for dataset in profile.datasets:
        specs = grid(runs_of(profile, dataset)[0])
        parts = list(dict.fromkeys((spec.arm, spec.persona_format) for spec in specs))
        found.append(collect_items(profile, dataset, flip_items, parts))
    return tuple(items for items in found if items)


def forget_swap() -> None:
    """Drop what was read before."""
    swap_data.cache_clear()
    flip_data.cache_clear()


# --- tables ---


def value_row(items: PerItem, part: Part, what: str, names: Sequence[str]) -> Row:
    """Return one line: n and each value's mean with its interval."""
    n, seeds = items.n(part, what), items.seeds[part]
    line: Row = {"dataset": items.dataset, "arm": part[0], "persona_format": part[1], "n": n,
                 "n_seeds": len(seeds), "seeds": " ".join(map(str, seeds))}  # fmt: skip
    for name in names:
        statistic = mean_of(items.column(part, what, name))
        line |= intervals.interval_columns(name, items.pool.interval(statistic, n, len(seeds)))
    return line


def swap_results(profile: Profile) -> pd.DataFrame:
    """Return persona-swap accuracy per arm, format, measure and persona family, over seeds."""
    import pandas as pd

    lines = []
    for items in swap_data(profile):
        for part, what in dict.fromkeys((part, what) for part, what, _ in items.values):
            measure, family = what.split("/")
            line = value_row(items, part, what, tuple(METRICS))
            lines.append({"measure": measure, "persona": family} | line)
    return pd.DataFrame(lines)


def swap_by_seed(profile: Profile) -> pd.DataFrame:
    """Return the swap table seed by seed: means without intervals."""
    import pandas as pd

    lines = []
    for items in swap_data(profile):
        for number, seed in enumerate(profile.seeds):
            for part, what in dict.fromkeys((part, what) for part, what, _ in items.values):
                values = {name: items.values[part, what, name][number] for name in METRICS}
                if values["flip"]:
                    measure, family = what.split("/")
                    names = {"dataset": items.dataset, "seed": seed, "arm": part[0],
                             "persona_format": part[1], "measure": measure, "persona": family,
                             "n": len(values["flip"])}  # fmt: skip
                    means = {name: mean(by_id.values()) for name, by_id in values.items()}
                    lines.append(names | means)
    return pd.DataFrame(lines)


def swap_differences(profile: Profile) -> pd.DataFrame:
    """Return tested minus compared policy (persona-free twin, PT-SFT, shuffled), paired by row and seed."""
    import pandas as pd

    lines = []
    for items in swap_data(profile):
        for tested, other in TWINS:
            for what in dict.fromkeys(what for part, what, _ in items.values if part == tested):
                if (other, what, "flip") not in items.values or what.partition("/")[2] in SINGLE:
                    continue
                measure, family = what.split("/")
                lines.append({
                    "dataset": items.dataset, "tested": ".".join(tested), "compared": ".".join(other),
                    "measure": measure, "persona": family,
                    "n": min(items.n(tested, what), items.n(other, what)),
                    "n_seeds": len(set(items.seeds[tested]) & set(items.seeds[other])),
                    **difference_columns(items, tested, other, what),
                })  # fmt: skip
    return pd.DataFrame(lines)


def mean(values: Iterable[float]) -> float | None:
    """Return the mean of the values that are there, None if there are none."""
    kept = [v for v in values if not math.isnan(v)]
    return sum(kept) / len(kept) if kept else None


def difference_columns(items: PerItem, tested: Part, other: Part, what: str) -> Row:
    """Return the differences of share D > 0 and of flip with their intervals."""
    line: Row = {}
    for name in ("d_positive", "flip"):
        pair = [mean_of(items.column(part, what, name)) for part in (tested, other)]
        line |= intervals.interval_columns(name, items.pool.interval(intervals.difference(*pair)))
    return line


def generation_flip_table(profile: Profile) -> pd.DataFrame:
    """Return flip, share DiD > 0 and DiD of generated answers per arm, format and persona family."""
    import pandas as pd

    lines = []
    for items in flip_data(profile):
        for part, family in dict.fromkeys((part, family) for part, family, _ in items.values):
            lines.append({"persona": family} | value_row(items, part, family, FLIP_VALUES))
    return pd.DataFrame(lines)


SWAP_TABLES = {
    "swap": swap_results,
    "swap_by_seed": swap_by_seed,
    "swap_differences": swap_differences,
    "generation_flip": generation_flip_table,
}


# --- Win rates at equal length ---
# Judges like longer answers, so a win may be bought with words. The model is that of length-controlled
# AlpacaEval 2 (Dubois et al. 2024, eq. 1) without its term for the instruction: among decided comparisons
# logit P(win) = a + b tanh(d / sd), with d the tested answer's words minus the base's. The win rate that
# the model gives for answers of one length is 1 / (1 + exp(-a)), as a net win rate tanh(a / 2).


MATCHED = 0.1  # answers count as equally long if they differ by at most this share of the longer one
MIN_EACH = 5  # wins and losses that the model needs of each: fewer tell nothing about a slope
Z = 1.959963984540054  # of a 95 % interval


def length_matched(words: Sequence[int], base_words: Sequence[int], within: float = MATCHED) -> np.ndarray:
    """Return, per comparison, whether the two answers differ by at most ``within`` of the longer one."""
    tested, base = np.asarray(words, dtype=float), np.asarray(base_words, dtype=float)
    return np.abs(tested - base) <= within * np.maximum(tested, base)


@dataclass(frozen=True)
class LengthControlled:
    """Net win rate at equal length and the slope b, each with a 95 % interval; None where it has no fit.

    ``why`` says what stood in the way of a fit, and is empty otherwise.
    """

    net: Interval
    slope: Interval
    why: str = ""


def no_fit(why: str, n: int) -> LengthControlled:
    """Return the result of a model that cannot be fitted."""
    return LengthControlled(Interval(None, None, None, n), Interval(None, None, None, n), why)


def length_controlled(
    signs: Sequence[float], differences: Sequence[float], prompts: Sequence[str]
) -> LengthControlled:
    """Fit the logistic model to verdicts (+1, 0, -1, NaN) and length differences in words.

    Standard errors are clustered by prompt, so that seeds which answer the same prompts do not count as
    independent. Raises ValueError if the three differ in length.
    """
    rows = list(zip(signs, differences, prompts, strict=True))
    decided = [row for row in rows if abs(row[0]) == 1]
    wins = np.array([row[0] > 0 for row in decided], dtype=float)
    spread = float(np.std([row[1] for row in decided])) if decided else 0.0
    if min(wins.sum(), len(wins) - wins.sum()) < MIN_EACH:
        return no_fit(f"fewer than {MIN_EACH} wins or losses", len(wins))
    if spread == 0:
        return no_fit("all length differences are equal", len(wins))
    terms = np.tanh(np.array([row[1] for row in decided]) / spread)
    return fit_logistic(wins, terms, [row[2] for row in decided])


def fit_logistic(wins: np.ndarray, terms: np.ndarray, prompts: Sequence[str]) -> LengthControlled:
    """Fit logit P(win) = a + b term by maximum likelihood, with standard errors clustered by prompt."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM
    from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

    groups = np.unique(np.asarray(prompts), return_inverse=True)[1]
    model = GLM(wins, np.column_stack([np.ones_like(terms), terms]), family=Binomial())
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerfectSeparationWarning)
        try:
            fitted = model.fit(cov_type="cluster", cov_kwds={"groups": groups})
        except PerfectSeparationWarning:
            return no_fit("length alone tells every win from every loss", len(wins))
    (a, b), (error_a, error_b) = fitted.params, fitted.bse
    limits = [float(np.tanh(v / 2)) for v in (a, a - Z * error_a, a + Z * error_a)]
    return LengthControlled(
        Interval(*limits, len(wins)),
        Interval(float(b), float(b - Z * error_b), float(b + Z * error_b), len(wins)),
    )


# --- Is a persona swap about the row ---
# Chosen responses are often the longer ones, so the personas of chosen responses differ from those of
# rejected ones as groups. A policy that only learned "personas of the chosen kind go with long answers" has
# D > 0 where the chosen response is longer and D < 0 where it is shorter. The mean of the two shares, each
# weighing one half whatever the data hold more of, is .5 for it; what is left above .5 is not length.


STRATA = ("chosen_longer", "rejected_longer")  # which response has more characters; equal ones are left out


def longer_response(run: Run) -> dict[str, str]:
    """Return the stratum of every row whose responses are there and differ in length."""
    return {
        row.id: STRATA[len(row.chosen) < len(row.rejected)]
        for row in eval_rows(run)
        if row.chosen and row.rejected and len(row.chosen) != len(row.rejected)
    }


def length_items(run: Run, part: Part) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield ("measure/family", stratum, {id: 1 if D > 0 else 0}) of one arm and seed."""
    scores = finished_scores(run, part)
    stratum_of = longer_response(run) if scores else {}
    for what, name, by_id in swap_items(scores):
        if name == "d_positive" and what.partition("/")[2] not in SINGLE:
            for stratum in STRATA:
                yield what, stratum, {i: v for i, v in by_id.items() if stratum_of.get(i) == stratum}


def balanced(items: PerItem, part: Part, what: str) -> Statistic:
    """Return the statistic "mean of the two strata's shares"."""
    first, second = (mean_of(items.column(part, what, stratum)) for stratum in STRATA)
    return lambda means: (first(means) + second(means)) / 2


def length_row(items: PerItem, part: Part, what: str) -> Row:
    """Return one line: the share in each stratum and balanced, each with its interval."""
    measure, family = what.split("/")
    sizes = {f"n_{stratum}": items.n(part, what, stratum) for stratum in STRATA}
    n, seeds = sum(sizes.values()), items.seeds[part]
    line: Row = {"dataset": items.dataset, "measure": measure, "persona": family, "arm": part[0],
                 "persona_format": part[1], "n": n, **sizes, "n_seeds": len(seeds),
                 "seeds": " ".join(map(str, seeds))}  # fmt: skip
    statistics = {stratum: mean_of(items.column(part, what, stratum)) for stratum in STRATA}
    for name, statistic in (statistics | {"balanced": balanced(items, part, what)}).items():
        line |= intervals.interval_columns(name, items.pool.interval(statistic, n, len(seeds)))
    return line


def swap_length_table(profile: Profile) -> pd.DataFrame:
    """Return share D > 0 where the chosen, where the rejected response is longer, and their mean."""
    import pandas as pd

    lines = []
    for dataset in profile.datasets:
        parts = swap_arms(runs_of(profile, dataset)[0])
        if items := collect_items(profile, dataset, length_items, parts):
            asked = dict.fromkeys((part, what) for part, what, _ in items.values)
            lines += [length_row(items, part, what) for part, what in asked]
    return pd.DataFrame(lines)


LENGTH_TABLES = {"swap_length": swap_length_table}


@dataclass(frozen=True)
class FlipScores:
    """Per-item scores of the flip test, arrays over items in the order given.

    ``pull_chosen`` = F1(o|P_C, chosen) - F1(o|P_C, rejected), ``pull_rejected`` the same for o|P_R.
    """

    pull_chosen: np.ndarray
    pull_rejected: np.ndarray

    @property
    def did(self) -> np.ndarray:
        """Difference in differences per item, in F1: > 0 if the persona moves the output the right way."""
        return self.pull_chosen - self.pull_rejected

    @property
    def did_positive(self) -> np.ndarray:
        """1 where DiD > 0, 0 where < 0, NaN where exactly 0 (left out of the share)."""
        return np.where(self.did == 0, np.nan, (self.did > 0).astype(float))

    @property
    def flip(self) -> np.ndarray:
        """1 where o|P_C is nearer to chosen AND o|P_R is nearer to rejected, else 0."""
        return ((self.pull_chosen > 0) & (self.pull_rejected < 0)).astype(float)


def length_steering(data_differences: Sequence[float], output_differences: Sequence[float]) -> float | None:
    """Return Spearman's rho of (chosen - rejected) against (output under P_C - under P_R) lengths.

    It says whether the personas steer length the way the data do. None if either side is constant.
    """
    from scipy.stats import spearmanr

    if len(set(data_differences)) < 2 or len(set(output_differences)) < 2:
        return None
    return float(spearmanr(data_differences, output_differences).statistic)


def length_steering_interval(
    data_differences: Sequence[float],
    output_differences: Sequence[float],
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of ``length_steering``, resampling items; None if undefined."""
    from scipy.stats import rankdata

    pairs = np.array([data_differences, output_differences], dtype=float)
    draws = np.random.default_rng(seed).integers(pairs.shape[1], size=(n_resamples, pairs.shape[1]))
    ranks = rankdata(pairs[:, draws], axis=-1)
    centred = ranks - ranks.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred[0] ** 2).sum(axis=-1) * (centred[1] ** 2).sum(axis=-1))
    defined = (centred[0] * centred[1]).sum(axis=-1)[scale > 0] / scale[scale > 0]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def flip_and_did(
    under_chosen: Sequence[str], under_rejected: Sequence[str], chosen: Sequence[str], rejected: Sequence[str]
) -> FlipScores:
    """Compare outputs under P_C and under P_R with the two responses of the same row.

    The responses are the same in both terms of DiD, so their quality and length cancel. Raises
    ValueError if the four lists differ in length.
    """
    rows = list(zip(under_chosen, under_rejected, chosen, rejected, strict=True))
    pulls = [
        [unigram_f1(output, good) - unigram_f1(output, bad) for output in (under_c, under_r)]
        for under_c, under_r, good, bad in rows
    ]
    array = np.array(pulls, dtype=float).reshape(len(rows), 2)
    return FlipScores(array[:, 0], array[:, 1])
