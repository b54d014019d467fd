"""Judging in both orders (paper section 5): an oracle or a language model behind one interface.

A judge is a function (comparisons, rubric) -> judgments. Every comparison is judged as A/B and as B/A,
both judgments are stored, and a win needs both. An answer that cannot be read stays unparsed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lib.config import Run
from persona_lib.fingerprint import module_hash
from persona_lib.generators import load_generator
from persona_lib.metrics import verdict_of
from persona_lib.prompts import judge_prompt
from persona_lib.published import published_model
from persona_lib.records import Generation, Judgment, PairwiseComparison, Rubric, RunSpec
from persona_lib.store import (
    append_rows,
    clear_unless,
    content_hash,
    is_done,
    iter_rows,
    mark_done,
    read_json,
    repair_rows,
    write_json,
    write_rows,
)
from persona_lib.tailor import eval_rows, generation_folder, grid, persona_of, read_generations

Judge = Callable[[Sequence[PairwiseComparison], Rubric], list[Judgment]]
RUBRICS: tuple[Rubric, ...] = ("personalization", "quality")
ORDERS = ("AB", "BA")  # the tested response as A, as B
CHUNK = 256  # comparisons judged between two writes


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


def oracle_judge(world_seed: int) -> Judge:
    """Return the judge that reads responses of the synthetic world by rule; it can call a tie."""
    from persona_lib.oracle import persona_fit, quality

    def judge(comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> list[Judgment]:
        judgments = []
        for c in comparisons:
            scores = [
                persona_fit(c.persona, text)
                if rubric == "personalization"
                else quality(c.prompt, text, world_seed)
                for text in (c.response_a, c.response_b)
            ]
            winner = None if scores[0] == scores[1] else "A" if scores[0] > scores[1] else "B"
            judgments.append(
                Judgment(c.id, "oracle", rubric, winner, winner is None, f"{scores[0]:g} : {scores[1]:g}")
            )
        return judgments

    return judge


def parse_winner(text: str) -> str | None:
    """Read "A" or "B" at the start of a judge's answer; None if it says neither."""
    word = text.strip().lstrip("*([").split(maxsplit=1)[:1]
    return next((letter for letter in ("A", "B") if word and word[0].rstrip(".):]*,") == letter), None)


def lm_judge(generator: Any, max_new_tokens: int = 4) -> Judge:
    """Return a judge that asks a text generator, greedily, for "A" or "B"."""

    def judge(comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> list[Judgment]:
        prompts = [judge_prompt(rubric, c.prompt, c.persona, c.response_a, c.response_b) for c in comparisons]
        answers = dict(generator.generate(prompts, max_new_tokens=max_new_tokens, stop=("\n",)))
        return [
            Judgment(c.id, generator.name, rubric, parse_winner(answers[n].text), feedback=answers[n].text)
            for n, c in enumerate(comparisons)
        ]

    return judge


def load_judge(run: Run) -> Judge:
    """Return the judge of a run's profile; ValueError if it has none."""
    if run.profile.judge == "oracle":
        return oracle_judge(run.profile.world_seed)
    if run.profile.judge == "lm":
        return model_judge(run)
    raise ValueError(f"profile {run.profile.name} has judge=none: nothing can be judged; see persona_swap")


def model_judge(run: Run) -> Judge:
    """Return the language model ``judge_model`` as a judge: served, of the hub, or "base" (the run's own)."""
    profile = run.profile
    generator = load_generator(run, "judge", profile.judge_batch_size)
    if profile.judge_format == "letter":
        return lm_judge(generator, profile.judge_max_new_tokens)
    from persona_lib.prometheus import prometheus_judge

    chat = bool(profile.judge_url) and profile.judge_kind == "chat"
    return prometheus_judge(generator, profile.judge_max_new_tokens, profile.judge_decoding, chat)


def swap_order(c: PairwiseComparison) -> PairwiseComparison:
    """Return the comparison with A and B exchanged."""
    return PairwiseComparison(c.id, c.prompt, c.persona, c.response_b, c.response_a)


def judge_both(
    judge: Judge, comparisons: Sequence[PairwiseComparison], rubric: Rubric
) -> list[tuple[Judgment, Judgment]]:
    """Judge every comparison in both orders: (tested response as A, tested response as B)."""
    first = judge(comparisons, rubric)
    second = judge([swap_order(c) for c in comparisons], rubric)
    return list(zip(first, second, strict=True))


def matchups(run: Run) -> list[Matchup]:
    """Return the rows of the results tables for one data set and seed, among the runs of the grid."""
    cells = {spec.slug: spec for spec in grid(run)}

    def cell(method: str, train: str, persona: str, form: str) -> RunSpec | None:
        return cells.get(f"{method}-{train}.{persona}.{form}")

    rows: list[tuple[str, str, RunSpec | None, RunSpec | None, str]] = []
    for persona in run.profile.eval_personas:
        tested, plain = cell("dpo", "chosen", persona, "line"), cell("dpo", "none", persona, "first_person")
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
                    cell("sft", "chosen", persona, "line"),
                    persona,
                )
            )
            if published_model(run.profile, run.dataset, "dpo-chosen"):
                shown = cell("few_shot", "chosen", persona, "line")
                rows.append(
                    (f"{persona}, PT-DPO (published) against few-shot", "published", tested, shown, persona)
                )
            for method in ("sft", "few_shot"):
                pair = cell(method, "chosen", persona, "line"), cell(method, "none", persona, "first_person")
                rows.append((f"{persona}, {method}", method, *pair, persona))
            for train in ("rejected", "both", "shuffled"):
                rows.append(
                    (
                        f"{persona}, PT trained on {train}",
                        "arm",
                        cell("dpo", train, persona, "line"),
                        plain,
                        persona,
                    )
                )
        elif persona.startswith("shuffled"):
            gold = persona.replace("shuffled", "gold")
            rows.append((f"{persona} persona, judged for {gold}", "control", tested, plain, gold))
    for side in ("gold-chosen", "gold-rejected"):
        none = cell("dpo", "chosen", "none", "line"), cell("dpo", "none", "none", "line")
        rows.append((f"no persona, judged for {side}", "control", *none, side))
        system = cell("dpo", "chosen", "system", "line"), cell("dpo", "none", "system", "first_person")
        rows.append((f"system persona, judged for {side}", "control", *system, side))
    return [Matchup(label, kind, a, b, judged) for label, kind, a, b, judged in rows if a and b]


def compare(run: Run, matchup: Matchup) -> list[PairwiseComparison]:
    """Return the comparisons of a matchup: rows that both runs answered and that have the judged persona."""
    tested, base = read_generations(run, matchup.test), read_generations(run, matchup.base)
    return [
        PairwiseComparison(row.id, row.prompt, persona, tested[row.id].completion, base[row.id].completion)
        for row in eval_rows(run)
        if row.id in tested and row.id in base and (persona := persona_of(row, matchup.judge_persona))
    ]


def judgment_key(run: Run, matchup: Matchup) -> str:
    """Hash of all that a matchup's judgments depend on."""
    done = [
        read_json(generation_folder(run, spec) / "done.json")["key"] for spec in (matchup.test, matchup.base)
    ]
    profile = run.profile
    judge = [profile.judge]
    if profile.judge == "lm":
        fields = ("model", "url", "kind", "format", "decoding", "max_new_tokens")
        judge += [
            profile.compute_dtype,
            profile.engine,
            *(getattr(profile, f"judge_{name}") for name in fields),
        ]
    return content_hash(module_hash("judge", "oracle"), matchup, done, judge, profile.world_seed)


def judge_matchup(run: Run, matchup: Matchup, judge: Judge) -> Path:
    """Judge a matchup under both rubrics and orders; writes <rubric>.jsonl, verdicts.jsonl, done.json.

    Judgments are appended a chunk at a time; a rerun goes on after the last whole pair of orders.
    """
    folder, key = run.folder / "judgments" / matchup.slug, judgment_key(run, matchup)
    if is_done(folder, key):
        return folder
    clear_unless(folder, key)
    write_json(folder / "spec.json", matchup)
    comparisons = compare(run, matchup)
    verdicts: dict[str, dict[str, Any]] = {c.id: {"id": c.id} for c in comparisons}
    for rubric in RUBRICS:
        for pair in judge_rubric(judge, comparisons, rubric, folder / f"{rubric}.jsonl"):
            verdicts[pair[0].id][rubric] = verdict_of(*pair)
    write_rows(folder / "verdicts.jsonl", verdicts.values())
    mark_done(folder, key, n=len(verdicts), judge=run.profile.judge)
    return folder


def judge_rubric(
    judge: Judge, comparisons: Sequence[PairwiseComparison], rubric: Rubric, path: Path
) -> list[tuple[Judgment, Judgment]]:
    """Return the judgments (A/B, B/A) of all comparisons; those in the file already are not made again."""
    repair_rows(path)
    known: dict[str, dict[str, Judgment]] = {}
    for row in iter_rows(path) if path.exists() else ():
        order = row.pop("order")
        known.setdefault(row["id"], {})[order] = Judgment(**row)
    missing = [c for c in comparisons if len(known.get(c.id, {})) < 2]
    for start in range(0, len(missing), CHUNK):
        pairs = judge_both(judge, missing[start : start + CHUNK], rubric)
        known |= {pair[0].id: dict(zip(ORDERS, pair, strict=True)) for pair in pairs}
        rows = [{"order": o, **vars(j)} for pair in pairs for o, j in zip(ORDERS, pair, strict=True)]
        append_rows(path, rows)
    return [(known[c.id]["AB"], known[c.id]["BA"]) for c in comparisons]


def judge_all(run: Run) -> list[Path]:
    """Judge every matchup of the run that is not finished yet."""
    judge = load_judge(run)
    return [judge_matchup(run, matchup, judge) for matchup in matchups(run)]


def read_verdicts(run: Run, matchup: Matchup) -> list[dict[str, str]]:
    """Return a matchup's verdicts: rows {"id", "personalization", "quality"}."""
    return list(iter_rows(run.folder / "judgments" / matchup.slug / "verdicts.jsonl"))


def oracle_scores(run: Run, spec: RunSpec, judge_persona: str) -> list[dict[str, Any]]:
    """Return the oracle's scores of a run's answers: fit to a persona, quality, share of right facts."""
    from persona_lib.oracle import fact_accuracy, persona_fit, quality

    seed = run.profile.world_seed
    answers: dict[str, Generation] = read_generations(run, spec)
    return [
        {
            "id": row.id,
            "fit": persona_fit(persona, answers[row.id].completion),
            "quality": quality(row.prompt, answers[row.id].completion, seed),
            "facts": fact_accuracy(row.prompt, answers[row.id].completion, seed),
        }
        for row in eval_rows(run)
        if row.id in answers and (persona := persona_of(row, judge_persona))
    ]
