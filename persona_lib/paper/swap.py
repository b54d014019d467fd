"""Persona swap: does a policy's preference between two responses, and what it writes, follow the persona?

With r = log pi(response | prompt, persona), let m(P) = r(chosen | P) - r(rejected | P). Acc_C is the share of
rows with m(P_C) > 0, Acc_R the share with m(P_R) < 0, flip the share with both (chance 1/4 for independent
signs). Long responses are less probable under every persona; the measure "per byte" divides each r by the
response's bytes. Both terms of D = m(P_C) - m(P_R) hold the same two responses, so their length, quality and
memorisation cancel. Share D > 0 is 1/2 for a policy that does not heed the persona. No judge is needed.

Every table takes the ``runs`` of one data set, one per seed. One run gives the table of one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from persona_lib import store
from persona_lib.intervals import drawn_columns, make_pool, seed_columns
from persona_lib.models.load import format_of, model_key, pair_log_probs, using_adapters
from persona_lib.paper import answers
from persona_lib.paper.answers import PolicyLoader
from persona_lib.paper.judging import sampling
from persona_lib.prompts import completion_text, tailoring_prompt
from persona_lib.records import SIDES, Table, TailoringRow, table_of
from persona_lib.settings import Run, deciding
from persona_lib.texts import unigram_f1

BATCH = 8  # pairs of responses scored at once
KEYED = (
    "base.quantization base.dtype evaluation.split evaluation.limit evaluation.personas evaluation.controls"
)
CHUNK = 4  # batches scored between two writes
FAMILIES = ("gold", "retrieved", "shuffled", "user")  # of personas that come in two sides
MEASURES = ("policy", "per byte")
ROUNDING = 1e-4  # nats: a smaller D is rounding, the policy saw no difference
Part = tuple[str, str]  # arm, persona format


def swap_families(arm: str, controls: bool = True) -> tuple[str, ...]:
    """Return the families of personas an arm is scored under: every one costs two passes over the rows."""
    if arm.startswith("dpo-") and arm != "dpo-none":
        return FAMILIES
    return ("gold", "shuffled", "user") if controls else ("gold",)


def answered_rows(run: Run, split: str = "") -> dict[str, TailoringRow]:
    """Return the rows of a split (the evaluated one) with both responses, by id; {} before it is made."""
    path = run.folder / "tailoring" / f"{split or run.profile.evaluation.split}.jsonl"
    rows = answers.eval_rows(run, split) if path.exists() else ()
    return {row.id: row for row in rows if row.chosen and row.rejected}


def swap_rows(run: Run) -> list[TailoringRow]:
    """Return the rows to score: those evaluated that have both responses; else (Mnemonic) of validation."""
    return list((answered_rows(run) or answered_rows(run, "validation")).values())


def swap_arms(run: Run) -> list[Part]:
    """List (arm, persona_format) of a run: the base, trained arms, persona-free ones also in first person."""
    methods = ("sft", "dpo") if "dpo" in run.profile.training.methods else ("sft",)
    arms = [f"{method}-{persona}" for method in methods for persona in run.profile.training.arms]
    plain = [arm for arm in arms if arm.endswith("-none")]
    if run.profile.evaluation.controls:
        return [*((arm, "line") for arm in ("base", *arms)), *((arm, "first_person") for arm in plain)]
    told = [(arm, "first_person" if arm in plain else "line") for arm in arms if arm != "sft-none"]
    return [("base", "line"), *told]


@dataclass(frozen=True)
class PolicyScore:
    """Log-probabilities (nats, summed over tokens) of a row's two responses under one named persona."""

    id: str
    eval_persona: str
    persona: str | None
    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        """m(P) of the policy: log pi(chosen | P) - log pi(rejected | P)."""
        return self.chosen - self.rejected


def swap_folder(run: Run, arm: str, persona_format: str = "line") -> Path:
    """Return the folder of one arm's scores: ``swap/<arm>.<persona_format>``."""
    return run.folder / "swap" / f"{arm}.{persona_format}"


def swap_key(run: Run, arm: str, persona_format: str) -> str:
    """Return a hash of what an arm's scores depend on; raises FileNotFoundError naming what is missing."""
    folders = [*answers.adapters_of(run, arm), run.folder / "tailoring"]
    for folder in folders:
        if not (folder / "done.json").exists():
            raise FileNotFoundError(f"{folder / 'done.json'}: not finished; run the step that makes it first")
    inputs = [store.read_json(folder / "done.json")["key"] for folder in folders]
    settings, base = deciding(run.profile, KEYED), model_key(*run.base_source)
    return store.content_hash(store.VERSIONS["swap"], inputs, base, settings, persona_format)


def score_policy(
    run: Run, arm: str, persona_format: str = "line", loader: PolicyLoader | None = None
) -> list[PolicyScore]:
    """Score the responses of `swap_rows` under every persona into `swap_folder`; resumes, is done once."""
    families = swap_families(arm, run.profile.evaluation.controls)
    jobs = [
        (row, name, row.personas[name])
        for row in swap_rows(run)
        for name in run.profile.evaluation.personas
        if name.rpartition("-")[0] in families and row.personas.get(name)
    ]
    folder, key = swap_folder(run, arm, persona_format), swap_key(run, arm, persona_format)
    return score_jobs(run, arm, persona_format, jobs, loader or PolicyLoader(run), folder, key)


def score_jobs(
    run: Run, arm: str, persona_format: str, jobs: list[tuple], loader: PolicyLoader, folder: Path, key: str
) -> list[PolicyScore]:
    """Score (row, name, persona) jobs into a folder, in chunks; goes on with its own unfinished work."""
    path = folder / "policy.jsonl"
    if store.is_done(folder, key):
        return store.read_rows(path, PolicyScore)
    store.clear_unless(folder, key)
    store.repair_rows(path)
    known = store.read_rows(path, PolicyScore) if path.exists() else []
    done = {(score.id, score.eval_persona) for score in known}
    if missing := [job for job in jobs if (job[0].id, job[1]) not in done]:
        missing.sort(key=lambda job: len(job[0].chosen) + len(job[0].rejected) + len(job[2] or ""))
        model, tokenizer, names = loader.load(arm)
        chat = format_of(*run.base_source)
        with using_adapters(model, names, run.profile.merge_adapters):
            for start in range(0, len(missing), CHUNK * BATCH):
                chunk = missing[start : start + CHUNK * BATCH]
                prompts = [tailoring_prompt(row.prompt, text, persona_format, chat) for row, _, text in chunk]
                pairs = [tuple(completion_text(text, chat) for text in (row.chosen, row.rejected))
                         for row, _, _ in chunk]  # fmt: skip
                values = pair_log_probs(model, tokenizer, prompts, pairs, BATCH).tolist()
                scores = [PolicyScore(row.id, *rest, *pair)
                          for (row, *rest), pair in zip(chunk, values, strict=True)]  # fmt: skip
                store.append_rows(path, scores)
                known += scores
    store.mark_done(folder, key, rows=len(known))
    return known


@store.one_at_a_time
def swap_all(run: Run) -> Table:
    """Score the arms of a run; write its `swap_table` to ``tables/persona_swap.csv`` and return it."""
    loader = PolicyLoader(run)
    for arm, persona_format in swap_arms(run):
        scores = score_policy(run, arm, persona_format, loader)
        print(f"{arm} ({persona_format}): {len(scores)} pairs of responses scored", flush=True)
    table = swap_table([run])
    store.write_text(run.folder / "tables" / "persona_swap.csv", table.to_csv(index=False))
    return table


def swap_scores(run: Run, arm: str, persona_format: str = "line") -> list[PolicyScore]:
    """Return the finished scores of one arm; none if it was not scored."""
    folder = swap_folder(run, arm, persona_format)
    done = (folder / "done.json").exists()
    return store.read_rows(folder / "policy.jsonl", PolicyScore) if done else []


def swap_values(
    scores: Sequence[PolicyScore], family: str, lengths: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, dict[str, float]]:
    """Return the measures of one family of personas: {name: {id: value}}, of rows that have both sides.

    acc_chosen, acc_rejected and flip are 0/1; d is in nats; d_positive is 1/0, NaN where d is 0 (to
    rounding) or the two personas are the same text. With ``lengths`` (by row: bytes of both responses) m(P)
    is the difference of log-probabilities per byte, times the mean length; rows without one are left out.
    """
    told = [{s.id: s for s in scores if s.eval_persona == f"{family}-{side}"} for side in SIDES]
    ids = sorted(i for i in told[0] if i in told[1] and (lengths is None or i in lengths))
    logs = np.array([[(own[i].chosen, own[i].rejected) for own in told] for i in ids]).reshape(-1, 2, 2)
    sizes = np.array([lengths[i] if lengths else (1, 1) for i in ids]).reshape(-1, 1, 2)
    scaled = logs / sizes  # (rows, personas, responses)
    m = (scaled[..., 0] - scaled[..., 1]) * sizes.sum(axis=2) / 2
    same = [told[0][i].persona == told[1][i].persona for i in ids]
    d = np.where(same, np.nan, m[:, 0] - m[:, 1])
    found = {
        "acc_chosen": m[:, 0] > 0,
        "acc_rejected": m[:, 1] < 0,
        "flip": (m[:, 0] > 0) & (m[:, 1] < 0),
        "d_positive": np.where(np.abs(d) >= ROUNDING, d > 0, np.nan),
        "d": d,
    }
    return {name: dict(zip(ids, v.astype(float).tolist(), strict=True)) for name, v in found.items()}


def flip_and_did(
    under_chosen: Sequence[str], under_rejected: Sequence[str], chosen: Sequence[str], rejected: Sequence[str]
) -> dict[str, np.ndarray]:
    """Compare answers under P_C and P_R with the two responses of the same row, one value per row.

    pull(P) = F1(answer | P, chosen) - F1(answer | P, rejected), in unigram F1. "did" = pull(P_C) - pull(P_R):
    the responses are the same in both terms, so their quality and length cancel. "did_positive" is 1/0, NaN
    where it is exactly 0. "flip" is 1 where pull(P_C) > 0 and pull(P_R) < 0. Raises ValueError if the four
    lists differ in length.
    """
    rows = zip(under_chosen, under_rejected, chosen, rejected, strict=True)
    pulls = np.array([[unigram_f1(text, good) - unigram_f1(text, bad) for text in texts]
                      for *texts, good, bad in rows], dtype=float).reshape(-1, 2)  # fmt: skip
    did = pulls[:, 0] - pulls[:, 1]
    return {
        "flip": ((pulls[:, 0] > 0) & (pulls[:, 1] < 0)).astype(float),
        "did_positive": np.where(did == 0, np.nan, (did > 0).astype(float)),
        "did": did,
    }


Key = tuple[str, ...]  # of a table's row: arm, persona format, (measure,) persona family
Found = dict[Key, dict[str, dict[str, float]]]  # per row {name of a value: {id: value}}


def swap_items(run: Run) -> Found:
    """Return the swap values of every arm, measure and family of a run."""
    return row_items(swap_rows(run), {part: swap_scores(run, *part) for part in swap_arms(run)})


def row_items(rows: Sequence[TailoringRow], scores: Mapping[Part, Sequence[PolicyScore]]) -> Found:
    """Return the swap values of rows by arm, format, measure, family; D > 0 also by the longer response."""
    found: Found = {}
    lengths = {row.id: (len(row.chosen.encode()), len(row.rejected.encode())) for row in rows}
    longer = {i: SIDES[rejected > chosen] for i, (chosen, rejected) in lengths.items() if chosen != rejected}
    for part, family, measure in product(scores, FAMILIES, MEASURES):
        values = swap_values(scores[part], family, lengths if measure == "per byte" else None)
        for side in SIDES:
            of_side = {i: v for i, v in values["d_positive"].items() if longer.get(i) == side}
            values[f"longer_{side}"] = of_side
        found[*part, measure, family] = values
    return found


def flip_items(run: Run) -> Found:
    """Return flip and DiD of the finished answers of every arm, format and family of a run."""
    rows, found = answered_rows(run), {}
    done = [spec for spec in answers.grid(run) if answers.is_answered(run, spec)]
    made = {(s.arm, s.persona_format, s.eval_persona): answers.read_generations(run, s) for s in done}
    for part, family in product(dict.fromkeys(key[:2] for key in made), FAMILIES):
        first, second = (made.get((*part, f"{family}-{side}"), {}) for side in SIDES)
        ids = sorted(set(rows) & set(first) & set(second))
        texts = [[side[i].completion for i in ids] for side in (first, second)]
        responses = [[getattr(rows[i], side) for i in ids] for side in SIDES]
        values = flip_and_did(*texts, *responses).items()
        found[*part, family] = {name: dict(zip(ids, v.tolist(), strict=True)) for name, v in values}
    return found


def pooled(
    runs: Sequence[Run], read: Callable[[Run], Found]
) -> dict[Key, tuple[int, list[int], dict[str, np.ndarray]]]:
    """Return, per row of a table, its items, its seeds, and each value's resampled mean: one draw for all."""
    found = [read(run) for run in runs]
    names = {key: list(values) for of_run in found for key, values in of_run.items() if values["flip"]}
    columns = {(key, name): [of_run.get(key, {}).get(name, {}) for of_run in found]
               for key, of_row in names.items() for name in of_row}  # fmt: skip
    pool = make_pool(columns, *sampling(runs), lambda name: None if name[1] in ("d", "did") else 0)
    rows = {}
    for key, of_row in names.items():
        items = columns[key, "flip"]
        seeds = [run.seed for run, values in zip(runs, items, strict=True) if values]
        rows[key] = sum(map(len, items)), seeds, {name: pool[key, name] for name in of_row}
    return rows


def items_table(runs: Sequence[Run], read: Callable[[Run], Found], *labels: str) -> Table:
    """Return a line per row: its key as columns ``labels``, and each value's mean with its interval."""
    lines = []
    for key, (n, seeds, drawn) in pooled(runs, read).items():
        if "longer_chosen" in drawn:  # as if either response were the longer one in half of the rows
            drawn["balanced"] = (drawn["longer_chosen"] + drawn["longer_rejected"]) / 2
        row = {"dataset": runs[0].dataset, **dict(zip(labels, key, strict=True)), "n": n}
        lines.append(row | seed_columns(seeds) | drawn_columns(drawn))
    return table_of(lines)


def swap_table(runs: Sequence[Run]) -> Table:
    """Return the persona swap: a row per arm, format, measure and family, each metric with its interval."""
    return items_table(runs, swap_items, "arm", "persona_format", "measure", "persona")


def generation_flip(runs: Sequence[Run]) -> Table:
    """Return flip, share DiD > 0 and DiD of generated answers per arm, format and family, with intervals."""
    return items_table(runs, flip_items, "arm", "persona_format", "persona")


TWINS = {  # tested policy -> what it is compared with: persona-free twin, PT-SFT, shuffled personas
    "dpo-chosen.line": ("dpo-none.line", "dpo-none.first_person", "sft-chosen.line", "dpo-shuffled.line"),
    "dpo-both.line": ("dpo-none.line", "dpo-none.first_person", "sft-both.line", "dpo-shuffled.line"),
    "sft-chosen.line": ("sft-none.line", "sft-none.first_person"),
    "sft-both.line": ("sft-none.line", "sft-none.first_person"),
}


def swap_differences(runs: Sequence[Run]) -> Table:
    """Return each policy of `TWINS` minus the compared ones, paired by row and seed."""
    rows = {(".".join(key[:2]), *key[2:]): row for key, row in pooled(runs, swap_items).items()}
    lines = []
    for (tested, measure, persona), (n, seeds, drawn) in rows.items():
        for compared in TWINS.get(tested, ()):
            if (compared, measure, persona) in rows:
                fewer, shared, twin = rows[compared, measure, persona]
                line = {"dataset": runs[0].dataset, "tested": tested, "compared": compared,
                        "measure": measure, "persona": persona, "n": min(n, fewer)}  # fmt: skip
                gap = {name: drawn[name] - twin[name] for name in ("d_positive", "flip")}
                both = seed_columns([seed for seed in seeds if seed in shared])
                lines.append(line | both | drawn_columns(gap))
    return table_of(lines)


SWAP_TABLES = {
    "swap": swap_table,
    "swap_differences": swap_differences,
    "generation_flip": generation_flip,
}
