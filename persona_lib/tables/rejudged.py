"""The authors' released answers, judged again: PT-DPO against DPO+P, with no training and no generation.

The judge is the profile's language model (``judge_*``, and ``second_judge_*`` if there is one). Each file
is judged into a folder of its own and resumes; the paper's row for the same files stands beside ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib.config import Run, results_dir
from persona_lib.data.arms import draw
from persona_lib.data.official_folders import DATASETS
from persona_lib.data.released import Released, ReleasedFile
from persona_lib.evaluation.agreement import agreement_row
from persona_lib.evaluation.judge import RUBRICS, judge_comparisons, judge_key, model_judge
from persona_lib.evaluation.judged import RUBRICS as SHORT
from persona_lib.models.generate import cut_at_stop
from persona_lib.profiles import Profile
from persona_lib.prompts import STOP
from persona_lib.records import PairwiseComparison
from persona_lib.stats.bootstrap import interval_columns
from persona_lib.stats.metrics import WinRate
from persona_lib.stats.pooled import delta_pq_of, make_pool, net_columns, net_of
from persona_lib.store import VERSIONS, content_hash, iter_rows, read_json
from persona_lib.tables.results import Row, inconsistent, verdict_counts
from persona_lib.tables.results_paper import paper_rows

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("judge", "second_judge")


def judges_of(profile: Profile) -> list[str]:
    """Return the judges of a profile that can read these answers: language models of their own."""
    if profile.judge != "lm" or profile.judge_model == "base":
        return []
    return [role for role in ROLES if getattr(profile, f"{role}_model") not in ("", "base")]


def what_judges(profile: Profile) -> str:
    """Say who judges the released answers, or how to have them judged."""
    names = [getattr(profile, f"{role}_model") for role in judges_of(profile)]
    if names:
        return f"judged by {' and by '.join(names)}"
    return (
        f"nobody judges them: judge={profile.judge}, judge_model={profile.judge_model}. Name a language "
        "model that is not the run's own: --set judge=lm --set judge_model=NAME (of the hub, or with "
        "judge_url of a server), and judge_format"
    )


def judgeable(data: Released) -> list[tuple[str, str]]:
    """Return the (data set, eval persona) of which both policies' files are at hand, in the paper's order."""
    tested = [file for file in data.outputs if file.train_persona == "chosen"]
    pairs = [(f.dataset, f.eval_persona) for f in tested]
    return [p for p in pairs if ReleasedFile(p[0], "none", p[1]) in data.outputs]


def released_comparisons(
    data: Released, dataset: str, eval_persona: str, limit: int = 0
) -> list[PairwiseComparison]:
    """Return the comparisons of a pair of files: PT-DPO's answer as A, that of DPO+P as B, in test order.

    Rows whose persona is none (a refusal of the annotator) are left out; at most ``limit`` rows are drawn.
    """
    tested, base = (
        {o.id: o for o in data.outputs[ReleasedFile(dataset, arm, eval_persona)]}
        for arm in ("chosen", "none")
    )
    found = []
    for row in draw(data.rows[dataset], limit):
        if persona := row.personas.get(eval_persona):
            texts = (cut_at_stop(side[row.id].text, (STOP,))[0] for side in (tested, base))
            found.append(PairwiseComparison(row.id, row.prompt, persona, *texts))
    return found


def folder_of(profile: Profile, role: str, dataset: str, eval_persona: str) -> Path:
    """Folder of one judge's judgments of one pair of files."""
    return results_dir(profile) / "released_judgments" / role / dataset / eval_persona


def judge_released(run: Run, data: Released | None) -> list[Path]:
    """Let every judge of the profile judge every pair of files; returns the folders, none without data."""
    folders: list[Path] = []
    for role in judges_of(run.profile) if data else ():
        judge = model_judge(run, role)
        for dataset, eval_persona in judgeable(data):
            found = released_comparisons(data, dataset, eval_persona, run.profile.eval_limit)
            what = {
                "dataset": dataset,
                "eval_persona": eval_persona,
                "test": "dpo-chosen",
                "base": "dpo-none",
            }
            key = content_hash(VERSIONS["rejudged"], judge_key(run, role), found)
            folder = folder_of(run.profile, role, dataset, eval_persona)
            folders.append(judge_comparisons(judge, lambda found=found: found, folder, key, what))
            print(f"{role}, {dataset}, {eval_persona}: {len(found)} pairs of answers judged", flush=True)
    return folders


# --- tables ---


def rejudged_row(profile: Profile, role: str, dataset: str, eval_persona: str) -> Row:
    """Return counts, net win rates and dPQ of one judge on one pair of files, with 95 % intervals."""
    folder = folder_of(profile, role, dataset, eval_persona)
    verdicts = list(iter_rows(folder / "verdicts.jsonl"))
    source, side = eval_persona.split("-")
    judges = ", ".join(read_json(folder / "done.json")["judge"])
    line: Row = {"dataset": DATASETS[dataset]["title"], "label": f"{side}, {source}", "kind": "judged again",
                 "judge": judges, "n": len(verdicts)}  # fmt: skip
    columns: dict[str, Any] = {}
    for short, rubric in SHORT.items():
        by_id = {row["id"]: row[rubric] for row in verdicts}
        line |= verdict_counts(short, WinRate.from_verdicts(by_id.values()))
        line[f"{short}_inconsistent"] = inconsistent(folder / f"{rubric}.jsonl")
        columns |= net_columns(short, [by_id])
    pool = make_pool(columns, profile.bootstrap_samples)
    for name, statistic in (("p_net", net_of("p")), ("q_net", net_of("q")), ("dpq", delta_pq_of("p", "q"))):
        line |= interval_columns(name, pool.interval(statistic, len(verdicts)))
    return line


def rejudged_table(profile: Profile, data: Released) -> pd.DataFrame:
    """Return each pair of files as our judges see it and as the paper printed it, one under the other."""
    import pandas as pd

    paper = paper_rows(profile).assign(judge="the paper (Prometheus-2 7B, sampled)")
    rows: list[Row] = []
    for dataset, eval_persona in judgeable(data):
        ours = [rejudged_row(profile, role, dataset, eval_persona) for role in judges_of(profile)]
        theirs = paper[(paper.dataset == ours[0]["dataset"]) & (paper.label == ours[0]["label"])]
        rows += [*ours, *theirs.to_dict("records")]
    return pd.DataFrame(rows)


def agreement_on_released(profile: Profile, data: Released) -> pd.DataFrame:
    """Return how far two judges agree on the released answers, a line per data set and rubric."""
    import pandas as pd

    lines = []
    for dataset in dict.fromkeys(dataset for dataset, _ in judgeable(data)):
        personas = [persona for name, persona in judgeable(data) if name == dataset]
        for rubric in RUBRICS:
            triples, names = [], {}
            for persona in personas:
                folders = [folder_of(profile, role, dataset, persona) for role in ROLES]
                first, second = (
                    {r["id"]: r[rubric] for r in iter_rows(f / "verdicts.jsonl")} for f in folders
                )
                triples += [(i, first[i], second[i]) for i in first if i in second]
                judges = [", ".join(read_json(f / "done.json")["judge"]) for f in folders]
                names = dict(zip(("first", "second"), judges, strict=True))
            row = agreement_row([triples], profile.bootstrap_samples)
            lines.append({"dataset": dataset, "rubric": rubric, **names, **row})
    return pd.DataFrame(lines)


def rejudged_tables(run: Run, data: Released | None) -> dict[str, pd.DataFrame]:
    """Return the tables of what was judged again by file name; none without data or a judge."""
    if data is None or not judges_of(run.profile) or not judgeable(data):
        return {}
    tables = {"released_judged": rejudged_table(run.profile, data)}
    if len(judges_of(run.profile)) == 2:
        tables["released_agreement"] = agreement_on_released(run.profile, data)
    return tables
