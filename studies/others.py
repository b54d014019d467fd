"""The trained policies on preference data of others, and inferred personas beside people's own reasons.

**reversal** (RPR, or ``--data FILE`` with persona columns): rows with two responses and a wish that each
suits. The persona swap runs on them, and the profile's judges say which response suits the wish (chance is
one half). **reasons** (Community Alignment, or ``--data FILE`` whose mapping names ``reason``): personas that
a model infers for chosen responses beside what the people who chose said themselves; it compares words.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import sys
from dataclasses import replace

from persona_lib import settings, store
from persona_lib.beyond import calibration
from persona_lib.beyond.users import likeness
from persona_lib.data import intake, mapping, preference
from persona_lib.data.rows import OwnRow, read_rows
from persona_lib.intervals import drawn_columns, make_pool
from persona_lib.models.served import load_generator, role_key
from persona_lib.paper import personas, swap
from persona_lib.paper.judges import load_judge
from persona_lib.paper.judging import judge_key, judge_rubric
from persona_lib.paper.results import save_table
from persona_lib.records import SIDES, DataError, Side, Table, TailoringRow, table_of
from persona_lib.settings import Profile, Run, load_profile, set_field
from persona_lib.texts import is_persona

OTHERS = {"reversal": "microsoft/rpr", "reasons": "facebook/community-alignment-dataset"}
ROWS = 200  # of them that are used, drawn by id


def beside(profile: Profile, name: str) -> Profile:
    """Return a profile whose results are in a folder of this name within those of the profile."""
    folder = re.sub(r"[^A-Za-z0-9./]+", "-", name).strip("-").lower()
    return replace(profile, name=f"{profile.name}/{folder}")


def save_origin(profile: Profile, name: str, table: Table) -> None:
    """Write how a study's table was made, which ``python -m persona_lib.docs --keep`` shows beside it."""
    facts, command = store.git_state(), shlex.join(["python", "-m", "studies", *sys.argv[1:]])
    commit = (facts["commit"] or "not recorded")[:12] + " with uncommitted changes" * bool(facts["dirty"])
    numbers = f"seeds {' '.join(map(str, profile.seeds))}; n = {table.n.max():.0f}"
    origin = f"`{command}`; commit {commit}; {numbers}; run of {store.now()[:10]}."
    store.write_json(settings.results_dir(profile) / name / "origin.json", origin)


def read_others(given: argparse.Namespace) -> list[OwnRow]:
    """Read the usable rows of a study's data set, test rows if it has any; their ids are their numbers."""
    changes = {"data.path": given.data or OTHERS[given.study], "data.mapping": given.mapping or ""}
    profile, found = set_field(load_profile("own"), changes), []
    named = mapping.read_mapping(profile.data.mapping)
    raw, _ = read_rows(profile.data.path, named.config, named.encoding)
    known, _ = mapping.find_mapping(profile, named, raw)
    for row in raw:
        with contextlib.suppress(mapping.RowError):
            read = intake.read_pair(row, known)
            found.append(replace(read, pair=replace(read.pair, id=f"row-{row.row}")))
    print(f"{profile.data.path}: {len(raw)} rows read, {len(found)} usable")
    return [row for row in found if row.split == "test"] or found


def reversal_rows(given: argparse.Namespace) -> list[TailoringRow]:
    """Return drawn rows of others whose two personas are their two wishes; DataError without any."""
    made = []
    for pair in (row.pair for row in read_others(given)):
        wishes = {"gold-chosen": pair.persona_chosen, "gold-rejected": pair.persona_rejected}
        if all(wishes.values()):
            told: dict[str, str | None] = {}
            told |= {n: t if is_persona(t) else f"The user wants this: {t}" for n, t in wishes.items()}
            made.append(TailoringRow(pair.id, "test", pair.prompt, pair.chosen, pair.rejected, told))
    if not made:
        raise DataError("no row has a persona for both responses: name persona_chosen and persona_rejected")
    return preference.draw(made, ROWS)


def swap_reversal(given: argparse.Namespace) -> None:
    """Score the rows with every policy of a profile, ask its judges, and write both tables."""
    profile, used = load_profile(given.profile, given.overrides), reversal_rows(given)
    runs = [Run(profile, profile.datasets[0], seed) for seed in profile.seeds]
    source, jobs = store.content_hash(used), [(row, *told) for row in used for told in row.personas.items()]

    def items(run: Run) -> swap.Found:
        scores, loader = {}, swap.PolicyLoader(run)
        for arm, form in swap.swap_arms(run):
            print(f"seed {run.seed}: {arm} ({form}), {len(jobs)} pairs of responses", flush=True)
            key = store.content_hash(swap.swap_key(run, arm, form), source)
            where = run.folder / "reversal" / source / f"{arm}.{form}"
            scores[arm, form] = swap.score_jobs(run, arm, form, jobs, loader, where, key)
        return swap.row_items(used, scores)

    table = swap.items_table(runs, items, "arm", "persona_format", "measure", "persona")
    lines, compared = [], calibration.gold_comparisons(used)
    for name in dict.fromkeys((profile.evaluation.judge, profile.persona_judge)):
        if name != "none":
            key = store.content_hash(judge_key(runs[0], name=name))
            path = runs[0].folder / "reversal" / source / f"{name}-{key}.jsonl"
            judged = judge_rubric(load_judge(runs[0], name), compared, "personalization", path)
            lines.append({"judge": name, "test": "wishes of others"} | calibration.measure(judged))
    for name, made in (("reversal", table), ("reversal_judges", table_of(lines))):
        save_table(profile, name, made)
        print(made.to_string(index=False))
    save_origin(profile, "reversal", table)


def compare_reasons(given: argparse.Namespace) -> None:
    """Infer personas for drawn rows with a reason; write them beside it, and how alike their words are."""
    profile = beside(load_profile("own", given.overrides), "reasons")
    reasons = {row.pair.id: (row.pair, row.reason) for row in read_others(given) if row.reason}
    if len(reasons) < 2:
        raise DataError("fewer than two rows have a reason: name its column (reason: COLUMN) in --mapping")
    run, pairs = Run(profile, "own", 0), preference.draw([pair for pair, _ in reasons.values()], ROWS)
    model, found = load_generator(run, "generator"), {}
    key = store.content_hash(pairs, role_key(run, "generator"), profile.personas, profile.generator)
    for side in SIDES:
        path = run.folder / key / f"{side}.jsonl"
        made = personas.infer_personas(model, pairs, side, profile, path)
        found[side] = {row.id: row.persona for row in made if row.persona}
    pairs = [pair for pair in pairs if pair.id in found["chosen"] and pair.id in found["rejected"]]
    told = [reasons[pair.id][1] for pair in pairs]
    others = preference.derangement(len(told), 0)
    heads: dict[str, tuple[Side, list[str]]]
    heads = {"chosen": ("chosen", told), "rejected": ("rejected", told),
             "chosen, another person's reason": ("chosen", [told[other] for other in others])}  # fmt: skip
    alike = {head: [{p.id: likeness(found[side][p.id], text) for p, text in zip(pairs, texts, strict=True)}]
             for head, (side, texts) in heads.items()}  # fmt: skip
    pool = make_pool(alike, profile.evaluation.bootstrap_samples)
    for head in list(heads)[1:]:
        pool[f"chosen - ({head})"] = pool["chosen"] - pool[head]
    lines = [{"persona of": head, "n": len(pairs)} | drawn_columns({"likeness": drawn})
             for head, drawn in pool.items()]  # fmt: skip
    beside_each = [{"id": p.id, "prompt": p.prompt, "reason": text, "persona": found["chosen"][p.id],
                    "persona of the rejected": found["rejected"][p.id]}
                   for p, text in zip(pairs, told, strict=True)]  # fmt: skip
    folder = settings.results_dir(profile) / "tables"
    store.write_text(folder / "reasons_pairs.csv", store.people_csv(table_of(beside_each)))
    store.write_text(folder / "reasons.csv", table_of(lines).to_csv(index=False))
    print(table_of(lines).to_string(index=False), folder / "reasons_pairs.csv", sep="\n")
