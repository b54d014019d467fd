"""Judging in both orders (paper section 5): an oracle or a language model behind one interface.

A judge is a function (comparisons, rubric) -> judgments. Every comparison is judged as A/B and as B/A,
both judgments are stored, and a win needs both. An answer that cannot be read stays unparsed. A profile
may name a second judge; its judgments have a folder of their own, so that the two can be compared.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.data import everyday
from persona_lib.data.official import ROLE_MARK
from persona_lib.data.reader import fit, quality
from persona_lib.intervals import (
    Pool,
    WinRate,
    bootstrap,
    make_pool,
    mean_columns,
    net_columns,
    ratio,
    verdict_of,
)
from persona_lib.models import trainers
from persona_lib.models.served import role_key
from persona_lib.paper.answers import (
    Matchup,
    adapters_of,
    ask_prompt,
    eval_rows,
    generation_folder,
    generators,
    matchups,
    persona_of,
    read_generations,
    whole_answer,
)
from persona_lib.paper.judges import (
    RUBRICS,
    Judge,
    load_judge,
    model_judge,
)
from persona_lib.paper.judges import judge_key as backwards_key
from persona_lib.prompts import STOP
from persona_lib.records import Generation, Judgment, PairwiseComparison, Rubric, RunSpec, Verdict
from persona_lib.settings import Profile, Run, judge_settings, main_arm
from persona_lib.store import (
    VERSIONS,
    append_rows,
    clear_unless,
    content_hash,
    file_hash,
    is_done,
    iter_rows,
    mark_done,
    read_json,
    repair_rows,
    write_json,
    write_rows,
)

if TYPE_CHECKING:
    import pandas as pd


# --- Judging in both orders (paper section 5): an oracle or a language model behind one interface ---
# A judge is a function (comparisons, rubric) -> judgments. Every comparison is judged as A/B and as B/A,
# both judgments are stored, and a win needs both. An answer that cannot be read stays unparsed. A profile
# may name a second judge; its judgments have a folder of their own, so that the two can be compared.


ORDERS = ("AB", "BA")  # the tested response as A, as B
CHUNK = 256  # comparisons judged between two writes
FOLDERS = {"judge": "judgments", "second_judge": "second_judgments"}


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


def compare(run: Run, matchup: Matchup) -> list[PairwiseComparison]:
    """Return the comparisons of a matchup: rows that both runs answered and that have the judged persona."""
    tested, base = read_generations(run, matchup.test), read_generations(run, matchup.base)
    found = []
    for row in eval_rows(run):
        persona = persona_of(row, matchup.judge_persona)
        if row.id in tested and row.id in base and persona:
            texts = tested[row.id].completion, base[row.id].completion
            found.append(PairwiseComparison(row.id, row.prompt, persona, *texts))
    return found


def judgment_folder(run: Run, matchup: Matchup, role: str = "judge") -> Path:
    """Folder of a matchup's judgments by the first or the second judge."""
    return run.folder / FOLDERS[role] / matchup.slug


def judgment_key(run: Run, matchup: Matchup, role: str = "judge") -> str:
    """Hash of all that a matchup's judgments depend on."""
    done = [
        read_json(generation_folder(run, spec) / "done.json")["key"] for spec in (matchup.test, matchup.base)
    ]
    return content_hash(
        VERSIONS["judging"],
        matchup,
        done,
        judge_key(run, role),
    )


def judge_key(run: Run, role: str = "judge") -> list[Any]:
    """Return all that decides what a judge says of given texts."""
    profile = run.profile
    if role == "judge" and profile.judge == "backwards":
        return [profile.judge, backwards_key(run)]
    if role == "judge" and profile.judge != "lm":
        return [profile.judge]
    how = [profile.compute_dtype, profile.engine]
    if profile.judge_texts:
        how.append(file_hash(Path(profile.judge_texts).expanduser()))
    return [*judge_settings(profile, role), *how, role_key(run, role)]


def judge_matchup(run: Run, matchup: Matchup, judge: Judge, role: str = "judge") -> Path:
    """Judge a matchup under both rubrics and orders; writes <rubric>.jsonl, verdicts.jsonl, done.json."""
    folder, key = judgment_folder(run, matchup, role), judgment_key(run, matchup, role)
    return judge_comparisons(judge, lambda: compare(run, matchup), folder, key, matchup)


def judge_comparisons(
    judge: Judge, comparisons: Callable[[], list[PairwiseComparison]], folder: Path, key: str, what: Any
) -> Path:
    """Judge comparisons under both rubrics and orders into a folder, unless it was finished for this key.

    Judgments are appended a chunk at a time; a rerun goes on after the last whole pair of orders.
    """
    if is_done(folder, key):
        return folder
    clear_unless(folder, key)
    write_json(folder / "spec.json", what)
    found = comparisons()
    verdicts: dict[str, dict[str, Any]] = {c.id: {"id": c.id} for c in found}
    judges: set[str] = set()
    for rubric in RUBRICS:
        for pair in judge_rubric(judge, found, rubric, folder / f"{rubric}.jsonl"):
            verdicts[pair[0].id][rubric] = verdict_of(*pair)
            judges.add(pair[0].judge)
    write_rows(folder / "verdicts.jsonl", verdicts.values())
    mark_done(folder, key, n=len(verdicts), judge=sorted(judges))
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
    """Judge every matchup of the run that is not finished yet; returns their folders."""
    judge = load_judge(run)
    return [judge_matchup(run, matchup, judge) for matchup in matchups(run)]


def judge_second(run: Run) -> list[Path]:
    """Let the second judge, where the profile names one, judge the kinds of comparisons that are its own."""
    if not run.profile.second_judge_model:
        return []
    judge = model_judge(run, "second_judge")
    return [judge_matchup(run, m, judge, "second_judge") for m in judged_matchups(run, "second_judge")]


def judged_matchups(run: Run, role: str = "judge") -> list[Matchup]:
    """Return the matchups that a judge is asked about."""
    every = matchups(run)
    if role == "judge":
        return every
    return [m for m in every if m.kind in run.profile.second_judge_matchups]


def read_verdicts(run: Run, matchup: Matchup, role: str = "judge") -> list[dict[str, str]]:
    """Return a matchup's verdicts: rows {"id", "personalization", "quality"}."""
    return list(iter_rows(judgment_folder(run, matchup, role) / "verdicts.jsonl"))


def oracle_scores(run: Run, spec: RunSpec, judge_persona: str) -> list[dict[str, Any]]:
    """Return the oracle's scores of a run's answers: fit to a persona, and quality."""
    wishes = everyday.wishes()
    answers: dict[str, Generation] = read_generations(run, spec)
    return [
        {
            "id": row.id,
            "fit": fit(wishes.get(persona, ()), answers[row.id].completion),
            "quality": quality(row.prompt, answers[row.id].completion),
        }
        for row in eval_rows(run)
        if row.id in answers and (persona := persona_of(row, judge_persona))
    ]


# --- Read the judged comparisons of all seeds of a profile and pool them for paired intervals ---
# Intervals are bootstraps over prompts, or over seeds where there are several, one draw per data set for
# all rows (``persona_lib.intervals``). The tables made from this are in ``results``.


RUBRIC_NAMES = {"p": "personalization", "q": "quality"}


def runs_of(profile: Profile, dataset: str) -> list[Run]:
    """Return the runs of one data set, one per seed."""
    return [Run(profile, dataset, seed) for seed in profile.seeds]


@functools.cache
def same_items(runs: tuple[Run, ...]) -> bool:
    """Return True if all seeds are evaluated on the same questions, False if each has its own.

    In ``everyday`` a seed draws which response of a pair was chosen; the questions are the same.
    """
    seen = set()
    for run in runs:
        path = run.folder / "tailoring" / f"{run.profile.eval_split}.jsonl"
        if path.exists():
            rows = [(row["id"], row["prompt"]) for row in iter_rows(path)]
            seen.add(tuple(sorted(rows)))
    return len(seen) == 1 and len(runs) > 1


@dataclass(frozen=True)
class Judged:
    """One row over seeds: a matchup, and per run its verdicts {id: verdict} by rubric (empty: not judged)."""

    matchup: Matchup
    runs: tuple[Run, ...]
    verdicts: dict[str, list[dict[str, str]]]
    role: str = "judge"

    @property
    def slug(self) -> str:
        """Name of the row's columns in a pool."""
        return self.matchup.slug

    @property
    def seeds(self) -> list[int]:
        """Seeds that have verdicts."""
        return [r.seed for r, found in zip(self.runs, self.verdicts["quality"], strict=True) if found]

    def counts(self, rubric: str) -> WinRate:
        """Return the verdicts of all seeds, counted."""
        return WinRate.from_verdicts(v for by_id in self.verdicts[rubric] for v in by_id.values())


def read_judged(runs: Sequence[Run], role: str = "judge") -> list[Judged]:
    """Read the verdicts of every matchup that at least one seed has judged."""
    judged = []
    for matchup in judged_matchups(runs[0], role):
        rows = [
            read_verdicts(run, matchup, role)
            if (judgment_folder(run, matchup, role) / "done.json").exists()
            else []
            for run in runs
        ]
        if any(rows):
            verdicts = {
                rubric: [{row["id"]: row[rubric] for row in found} for found in rows]
                for rubric in RUBRIC_NAMES.values()
            }
            judged.append(Judged(matchup, tuple(runs), verdicts, role))
    return judged


@dataclass(frozen=True)
class Judgments:
    """All judged rows of one data set, with the pool that their intervals come from."""

    dataset: str
    rows: list[Judged]
    pool: Pool


# --- quality on the oracle's own scale ---


@functools.cache
def answer_scores(run: Run, spec: RunSpec, persona: str) -> dict[str, dict[str, float]]:
    """Return the oracle's fit and quality of a run's answers by row id; {} where it has no answers."""
    if run.profile.judge != "oracle" or not (generation_folder(run, spec) / "done.json").exists():
        return {}
    return {score["id"]: score for score in oracle_scores(run, spec, persona)}


def quality_differences(row: Judged) -> list[dict[str, float]]:
    """Return, per seed, quality of the tested answer minus the base's, in standard deviations of the base's.

    The unit is pooled over seeds; without oracle scores, or if all base scores are equal, there are none.
    """
    m = row.matchup
    pairs = [
        [answer_scores(run, spec, m.judge_persona) if found else {} for spec in (m.test, m.base)]
        for run, found in zip(row.runs, row.verdicts["quality"], strict=True)
    ]
    base = [score["quality"] for _, scores in pairs for score in scores.values()]
    unit = float(np.std(base, ddof=1)) if len(base) > 1 else 0.0
    if unit == 0:
        return [{} for _ in pairs]
    return [{i: (test[i]["quality"] - b["quality"]) / unit for i, b in base_scores.items() if i in test}
            for test, base_scores in pairs]  # fmt: skip


def pool_of(rows: Sequence[Judged], seed: int) -> Pool:
    """Put all rows of a data set into one pool."""
    columns: dict[str, Any] = {}
    for row in rows:
        for short, rubric in RUBRIC_NAMES.items():
            columns |= net_columns(f"{row.slug}/{short}", row.verdicts[rubric])
        columns |= mean_columns(f"{row.slug}/dq", quality_differences(row))
    runs = rows[0].runs
    return make_pool(columns, runs[0].profile.bootstrap_samples, seed, same_items(runs))


@functools.lru_cache(maxsize=4)
def read_judgments(profile: Profile, role: str = "judge") -> tuple[Judgments, ...]:
    """Read and resample all that a judge has judged; the bootstrap seed is the data set's number, from 0."""
    found = []
    for seed, dataset in enumerate(profile.datasets):
        rows = read_judged(runs_of(profile, dataset), role)
        if rows:
            found.append(Judgments(dataset, rows, pool_of(rows, seed)))
    return tuple(found)


def forget_judged() -> None:
    """Drop what was read before, so that files written since are seen."""
    for cached in (read_judgments, answer_scores, same_items):
        cached.cache_clear()


# --- How far two judges agree on the same comparisons: raw agreement and Cohen's kappa, with intervals ---
# The unit is a verdict (win, tie or loss, both orders seen). Comparisons that either judge left unparsed
# are counted and left out. Intervals resample seeds and prompts; all comparisons of a prompt go together.


VERDICTS = ("win", "tie", "loss")
SAME, DECIDED = [0, 4, 8], [0, 2, 6, 8]  # places in the 3 x 3 table, row by row
LIMITS = {"agreement": (0, 1), "kappa": (-1, 1), "agreement_decided": (0, 1)}  # least and greatest value
COLUMNS = tuple(LIMITS)
Triple = tuple[str, Verdict, Verdict]  # prompt id, what the first judge says, what the second says


def both_verdicts(run: Run, rubric: Rubric) -> list[Triple]:
    """Return the verdicts of every comparison of a run that both judges have judged."""
    found: list[Triple] = []
    for matchup in judged_matchups(run, "second_judge"):
        if all((judgment_folder(run, matchup, r) / "done.json").exists() for r in ("judge", "second_judge")):
            first, second = (
                {row["id"]: row[rubric] for row in read_verdicts(run, matchup, role)}
                for role in ("judge", "second_judge")
            )
            found += [(name, first[name], second[name]) for name in first if name in second]
    return found


def judge_names(run: Run, role: str) -> list[str]:
    """Return the names that stand in a judge's saved judgments of a run."""
    names: set[str] = set()
    for matchup in judged_matchups(run, "second_judge"):
        path = judgment_folder(run, matchup, role) / "quality.jsonl"
        first = next(iter_rows(path), None) if path.exists() else None
        if first:
            first.pop("order")
            names.add(Judgment(**first).judge)
    return sorted(names)


def cells(verdicts: Iterable[Triple]) -> np.ndarray:
    """Count verdict pairs per prompt: (prompts, 9), the rows of a 3 x 3 table one after the other."""
    counts: dict[str, np.ndarray] = {}
    for name, first, second in verdicts:
        row = counts.setdefault(name, np.zeros(9))
        if "unparsed" not in (first, second):
            row[3 * VERDICTS.index(first) + VERDICTS.index(second)] += 1
    return np.stack(list(counts.values()))


def agreement_of(sums: np.ndarray) -> np.ndarray:
    """Return the share of equal verdicts of (n, 9) counts, (n,); NaN where nothing was judged by both."""
    return ratio(sums[:, SAME].sum(axis=1), sums.sum(axis=1))


def kappa_of(sums: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa of (n, 9) counts: (p_o - p_e) / (1 - p_e); NaN where chance alone would agree."""
    table = sums.reshape(-1, 3, 3)
    n = table.sum(axis=(1, 2))
    expected = ratio((table.sum(axis=2) * table.sum(axis=1)).sum(axis=1), n**2)
    return ratio(agreement_of(sums) - expected, 1 - expected)


def decided_of(sums: np.ndarray) -> np.ndarray:
    """Return the share of equal verdicts among the comparisons that both judges decide (no tie)."""
    return ratio(sums[:, [0, 8]].sum(axis=1), sums[:, DECIDED].sum(axis=1))


def agreement_row(by_seed: Sequence[Sequence[Triple]], n_resamples: int, seed: int = 0) -> dict[str, Any]:
    """Return counts, agreement, kappa and agreement where both decide, with 95 % bootstrap intervals."""
    verdicts = [verdict for part in by_seed for verdict in part]
    blocks = [cells(part) for part in by_seed if part]
    unparsed = [Counter(verdict[place] for verdict in verdicts)["unparsed"] for place in (1, 2)]
    counts = sum(block.sum(axis=0) for block in blocks)
    line: dict[str, Any] = {"n": int(counts.sum()), "n_seeds": len(blocks),
                            "n_prompts": sum(map(len, blocks)), "n_decided": int(counts[DECIDED].sum()),
                            "first_unparsed": unparsed[0], "second_unparsed": unparsed[1]}  # fmt: skip
    for name, statistic in zip(COLUMNS, (agreement_of, kappa_of, decided_of), strict=True):
        interval = bootstrap(blocks, statistic, n_resamples, seed, limits=LIMITS[name])
        line |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    names = [f"{a}_{b}" for a in VERDICTS for b in VERDICTS]
    return line | {name: int(count) for name, count in zip(names, counts, strict=True)}


def agreement_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a line per rubric for the runs of one data set; empty where nothing has two judgments.

    Columns ``win_tie`` and so on count comparisons: the first judge's verdict, then the second's.
    """
    import pandas as pd

    lines = []
    for rubric in RUBRICS:
        by_seed = [both_verdicts(run, rubric) for run in runs]
        if any(by_seed):
            judges = {
                name: ", ".join(sorted({judge for run in runs for judge in judge_names(run, role)}))
                for name, role in (("first", "judge"), ("second", "second_judge"))
            }
            row = agreement_row(by_seed, runs[0].profile.bootstrap_samples)
            lines.append({"dataset": runs[0].dataset, "rubric": rubric, **judges, **row})
    return pd.DataFrame(lines)


def agreement_of_profile(profile: Profile) -> pd.DataFrame:
    """Return the lines of all data sets, over all seeds; empty without a second judge."""
    import pandas as pd

    if not profile.second_judge_model:
        return pd.DataFrame()
    tables = [agreement_table(runs_of(profile, dataset)) for dataset in profile.datasets]
    return pd.concat(tables, ignore_index=True)


# --- Personas that a reader writes: plain DPO and PT-DPO answer a reader's own questions ---
# Plain DPO is told the persona in the first person, as in the main comparison; PT-DPO has its own line.


# Worded by us. The first one for real data is a situation that the paper discusses: a party, someone sober.
PARTY = (
    "I am having people over for a party tonight. What could I get that would really liven it up?",
    "The user is sober and prefers ideas that everybody can enjoy without alcohol or other substances.",
)
EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "mnemonic": [
        ("gregarious", "The user is musical and prefers memory aids that rhyme."),
        ("gregarious", "The user is patient and prefers memory aids that lead to the meaning step by step."),
    ],
}
REAL = [
    PARTY,
    (PARTY[0], "The user is a generous host and prefers bold ideas that guests will talk about for weeks."),
    (
        "How do I ask my neighbours to be quieter?",
        "The user is shy and prefers ways that avoid a conversation.",
    ),
]


@dataclass(frozen=True)
class OwnAnswer:
    """One question with a reader's persona (None: none was written) and both policies' answers."""

    question: str
    persona: str | None
    dpo: str
    pt_dpo: str


def default_pairs(run: Run) -> list[tuple[str, str]]:
    """Return what is asked if the reader gives nothing: our examples for the run's data set."""
    return EXAMPLES.get(run.dataset, REAL)


def as_asked(run: Run, question: str) -> str:
    """Return a question in the form of the run's prompts: HHH's begin with "Human:"."""
    role = run.dataset == "hhh" and not run.profile.strip_roles and not ROLE_MARK.match(question)
    return f"Human: {question}" if role else question


def check_pairs(pairs: Sequence[Any]) -> list[tuple[str, str | None]]:
    """Return (question, persona) pairs with an empty persona as None; ValueError says which row to mend."""
    found: list[tuple[str, str | None]] = []
    for number, pair in enumerate(pairs, start=1):
        where = f"own, pair {number}"
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"{where}: {pair!r}; write it as [question, persona]")
        for name, text in zip(("question", "persona"), pair, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"{where}, {name}: {text!r}; write it as text in quotes")
        if not pair[0].strip():
            raise ValueError(f"{where}, question: empty; write a question, or leave the pair out")
        found.append((pair[0].strip(), pair[1].strip() or None))
    return found


def own_specs(run: Run) -> dict[str, RunSpec]:
    """Return the two policies that are compared, by name."""
    return {
        "dpo": RunSpec(run.dataset, "dpo", "none", "none", run.seed, "first_person"),
        "pt_dpo": RunSpec(run.dataset, "dpo", main_arm(run.profile), "none", run.seed, "line"),
    }


def missing_policies(run: Run) -> list[str]:
    """Return the arms that are not trained yet: nothing can answer for them."""
    return [
        spec.arm
        for spec in own_specs(run).values()
        if not all((run.folder / "adapters" / name / "done.json").exists() for name in adapters_of(run, spec))
    ]


def answer(run: Run, spec: RunSpec, generator: Any, pairs: Sequence[tuple[str, str | None]]) -> list[str]:
    """Return one policy's answers, decoded as in the generation step."""
    profile = run.profile
    asked = [as_asked(run, question) for question, _ in pairs]
    prompts = [
        ask_prompt(run, question, persona, spec.persona_format)
        for question, (_, persona) in zip(asked, pairs, strict=True)
    ]
    done = generator.generate(
        prompts, profile.gen_max_new_tokens, (STOP,), min_new_tokens=profile.gen_min_new_tokens
    )
    texts = {index: whole_answer(run, asked[index], completion.text) for index, completion in done}
    return [texts[index] for index in range(len(prompts))]


def answer_own(run: Run, pairs: Sequence[Any] = ()) -> list[OwnAnswer]:
    """Answer (question, persona) pairs with plain DPO and PT-DPO; without pairs, our examples.

    Returns [] if one of the two policies is not there. Raises ValueError for a pair that is none.
    """
    checked = check_pairs(pairs or default_pairs(run))
    if missing_policies(run):
        return []
    specs, texts = own_specs(run), {}
    with trainers.quiet_libraries():
        for spec, generator in generators(run, list(specs.values())):
            texts[spec.arm] = answer(run, spec, generator, checked)
    columns = [texts[spec.arm] for spec in specs.values()]
    return [OwnAnswer(*pair, *both) for pair, *both in zip(checked, *columns, strict=True)]
