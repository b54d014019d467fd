"""For the notebooks on generation, judging and user-written personas: tables and pages of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from persona_lib.config import Run, main_arm
from persona_lib.data.everyday import DIMENSIONS
from persona_lib.evaluation.calibration import corrected_net, persona_accuracy
from persona_lib.evaluation.judge import (
    RUBRICS,
    compare,
    judged_matchups,
    judgment_folder,
    matchups,
    oracle_scores,
    read_verdicts,
)
from persona_lib.evaluation.matchups import Matchup
from persona_lib.evaluation.reader import shows
from persona_lib.evaluation.tailor import eval_rows, generation_folder, grid, read_generations
from persona_lib.records import EVAL_PERSONAS, RunSpec
from persona_lib.stats.metrics import WinRate, delta_pq
from persona_lib.store import iter_rows, read_json
from persona_lib.tables.results import inconsistent

if TYPE_CHECKING:
    import pandas as pd

DEGENERATE = ("n", "no_eos", "rep4_over_20", "rep4_over_50", "suffix_loop", "n_without_persona")


# --- generation ---


def grid_table(run: Run) -> pd.DataFrame:
    """Return the grid as a table: arms down, personas across, the persona's format(s) in the cells."""
    import pandas as pd

    cells: dict[str, dict[str, str]] = {}
    for spec in grid(run):
        row = cells.setdefault(spec.arm, {})
        row[spec.eval_persona] = ", ".join(filter(None, [row.get(spec.eval_persona), spec.persona_format]))
    columns = [p for p in run.profile.eval_personas if any(p in row for row in cells.values())]
    return pd.DataFrame.from_dict(cells, orient="index", columns=columns).fillna("").rename_axis("arm")


def degenerate_table(run: Run) -> pd.DataFrame:
    """Count, per run of the grid, the answers that never end, repeat themselves or end in a loop."""
    import pandas as pd

    rows = []
    for spec in grid(run):
        facts = read_json(generation_folder(run, spec) / "done.json")
        rows.append({"run": spec.slug} | {name: facts[name] for name in DEGENERATE})
    return pd.DataFrame(rows).set_index("run")


def one_prompt(
    run: Run, arm: str = "dpo-chosen", number: int = 0, kinds: Sequence[str] = EVAL_PERSONAS
) -> str:
    """Return one arm's answers to one prompt under the personas it was run with, as text for a reader.

    ``kinds`` are what the wanted eval personas begin with ("none", "gold", "user-chosen", ...).
    """
    row = eval_rows(run)[number]
    parts = [f"PROMPT  {row.prompt}"]
    for spec in grid(run):
        wanted = spec.arm == arm and spec.eval_persona.startswith(tuple(kinds))
        answers = read_generations(run, spec) if wanted else {}
        if row.id in answers:
            shown = answers[row.id]
            parts.append(
                f"[{spec.eval_persona}, {spec.persona_format}]  {shown.persona or '-'}\n{shown.completion}"
            )
    return "\n\n".join(parts)


# --- judging ---


def judging_row(run: Run, matchup: Matchup, role: str = "judge") -> dict[str, Any]:
    """Return one line of the judging table: counts of both rubrics, net win rates and dPQ.

    T are ties proper; pairs in which the judge names the same position twice are "contradicted".
    """
    verdicts = read_verdicts(run, matchup, role)
    rates = {rubric: WinRate.from_verdicts(v[rubric] for v in verdicts) for rubric in RUBRICS}
    line: dict[str, Any] = {"label": matchup.label, "kind": matchup.kind, "n": len(verdicts)}
    for rubric, rate in rates.items():
        letter = rubric[0].upper()
        contradicted = inconsistent(judgment_folder(run, matchup, role) / f"{rubric}.jsonl")
        line |= {f"{letter}_W": rate.n_wins, f"{letter}_T": rate.n_ties - contradicted}
        line |= {f"{letter}_L": rate.n_losses, f"{letter}_contradicted": contradicted}
        line |= {f"{letter}_unparsed": rate.n_unparsed, f"{letter}_net": rate.net}
    accuracy = persona_accuracy(run, run.profile.judge if role == "judge" else role)
    line["P_net_corrected"] = corrected_net(rates["personalization"].net, accuracy)
    return line | {"dPQ": delta_pq(rates["personalization"], rates["quality"])}


def judging_table(run: Run, role: str = "judge") -> pd.DataFrame:
    """Return a line per matchup: label, kind, W/T/L and unparsed under both rubrics, nets and dPQ."""
    import pandas as pd

    table = pd.DataFrame([judging_row(run, matchup, role) for matchup in judged_matchups(run, role)])
    return table.astype(
        {"P_net": float, "P_net_corrected": float, "Q_net": float, "dPQ": float}
    )  # nothing decided: NaN


def score_table(run: Run) -> pd.DataFrame:
    """Return the oracle's absolute scores, averaged, of every policy in the main comparisons and the like."""
    import pandas as pd

    pairs = {
        (spec.slug, m.judge_persona): (spec, m.judge_persona)
        for m in matchups(run)
        if m.kind in ("main", "stage")
        for spec in (m.test, m.base)
    }
    rows = []
    for spec, persona in pairs.values():
        scores = pd.DataFrame(oracle_scores(run, spec, persona), columns=["id", "fit", "quality"])
        row = {"persona": persona, "policy": spec.arm, "format": spec.persona_format, "n": len(scores)}
        means = {
            "fit": scores.fit.mean(),
            "quality": scores.quality.mean(),
            "quality sd": scores.quality.std(),
        }
        rows.append(row | means)
    table = pd.DataFrame(rows)
    return table.set_index(["persona", "policy", "format"]).sort_index()


def judged_example(run: Run, label: str = "gold-chosen") -> str:
    """Return one comparison of a matchup with the judge's answers in both orders and the verdicts.

    It is the first one that is not a tie under personalization, if there is one. Where no matchup has this
    label, the first matchup is shown.
    """
    found = matchups(run)
    matchup = next((m for m in found if m.label == label), found[0])
    verdicts = {verdict["id"]: verdict for verdict in read_verdicts(run, matchup)}
    comparisons = compare(run, matchup)
    if not comparisons:
        return f"no answers to compare under {label}"
    decided = [c for c in comparisons if verdicts[c.id]["personalization"] != "tie"]
    c = (decided or comparisons)[0]
    parts = [f"PROMPT   {c.prompt}\nPERSONA  {c.persona}", f"TESTED ({matchup.test.slug})\n{c.response_a}"]
    parts.append(f"BASE ({matchup.base.slug})\n{c.response_b}")
    for rubric in RUBRICS:
        path = judgment_folder(run, matchup) / f"{rubric}.jsonl"
        answers = [f"{j['order']}: {say(j)} ({j['feedback']})" for j in iter_rows(path) if j["id"] == c.id]
        parts.append(f"{rubric}: {'; '.join(answers)} -> {verdicts[c.id][rubric]}")
    return "\n\n".join(parts)


def values_read(run: Run, arm: str = "dpo-chosen", number: int = 0) -> pd.DataFrame:
    """Return what the reader of answers sees in a row's responses and in one arm's answers, by dimension."""
    import pandas as pd

    row = eval_rows(run)[number]
    texts = {"chosen response": row.chosen, "rejected response": row.rejected}
    for spec in grid(run):
        if spec.arm == arm and spec.eval_persona.startswith("gold"):
            texts[f"{arm}, {spec.eval_persona}"] = read_generations(run, spec)[row.id].completion
    found = {name: {d: shows(d, text) or "-" for d in DIMENSIONS} for name, text in texts.items()}
    return pd.DataFrame(found).rename_axis("dimension")


def say(judgment: dict[str, Any]) -> str:
    """Return what a judgment says in one word or two."""
    return "tie" if judgment["tie"] else judgment["winner"] or "unparsed"


# --- user-written personas and the page of examples ---


def user_examples(run: Run, n: int = 5) -> pd.DataFrame:
    """Return user-written personas beside the gold ones of the same rows; empty without any."""
    import pandas as pd

    rows = [
        {"id": row.id, "side": side, "persona": row.personas.get(f"gold-{side}"), "user-written": written}
        for row in eval_rows(run)
        for side in ("chosen", "rejected")
        if (written := row.personas.get(f"user-{side}"))
    ]
    return pd.DataFrame(rows[:n], columns=["id", "side", "persona", "user-written"])


def side_by_side(
    run: Run, ids: Sequence[str] = (), kinds: Sequence[str] = ("user",), n: int = 4
) -> pd.DataFrame:
    """Return prompt, persona, plain DPO's answer and PT-DPO's answer, for both sides of each row.

    ``ids`` names the rows (default: the first ``n``), ``kinds`` the personas ("user", "gold", ...). Plain
    DPO is told the persona in the first person, as in the paper. Rows without such a persona are left out.
    """
    import pandas as pd

    wanted = list(ids) or [row.id for row in eval_rows(run)[:n]]
    rows = []
    for name in (f"{kind}-{side}" for kind in kinds for side in ("chosen", "rejected")):
        specs = [RunSpec(run.dataset, "dpo", "none", name, run.seed, "first_person")]
        specs.append(RunSpec(run.dataset, "dpo", main_arm(run.profile), name, run.seed))
        if not all((generation_folder(run, spec) / "done.json").exists() for spec in specs):
            continue
        plain, tailored = (read_generations(run, spec) for spec in specs)
        for i in (i for i in wanted if i in plain and i in tailored):
            answer = tailored[i]
            rows.append((i, name, answer.prompt, answer.persona, plain[i].completion, answer.completion))
    columns = ["id", "eval_persona", "prompt", "persona", "DPO", "PT-DPO"]
    return pd.DataFrame(sorted(rows, key=lambda row: wanted.index(row[0])), columns=columns)


def examples_text(table: pd.DataFrame) -> str:
    """Return a side-by-side table as a page to read: each prompt once, then its personas and answers."""
    parts: list[str] = []
    for prompt, part in table.groupby("prompt", sort=False):
        parts.append(f"===== {prompt}")
        parts += [
            f"PERSONA  {row.persona}  [{row.eval_persona}]\n\nDPO\n{row.DPO}\n\nPT-DPO\n{row[6]}"
            for row in part.itertuples()
        ]
    return "\n\n".join(parts) if parts else "no answers under such personas"
