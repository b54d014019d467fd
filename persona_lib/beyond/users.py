"""Users of one's own data: a persona of each user, how consistent it is, and whether a policy heeds it.

A user's persona is made of the personas of their *history*: training pairs of users who are in training
(*seen*), pairs of the split `records.HISTORY` of test users, who are not. It is told at evaluated pairs,
which have other questions. Let m(P) be how much a policy prefers the user's own choice under persona P. Then
D = m(own persona) - m(another user's) is positive in half of the pairs if it does not heed the persona.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np

from persona_lib import store
from persona_lib.data.preference import load_pairs
from persona_lib.intervals import drawn_columns, make_pool, ratio, resampled, signs, wilson_interval
from persona_lib.models.served import SURFACE, load_generator, role_key
from persona_lib.paper import judging, swap
from persona_lib.paper.personas import MAX_WORDS, STOPS, parse_persona, read_personas
from persona_lib.paper.results import Row, verdict_counts
from persona_lib.prompts import profile_query
from persona_lib.records import HISTORY, Table, UserPersona, table_of
from persona_lib.settings import Run, main_arm
from persona_lib.store import VERSIONS
from persona_lib.texts import EVAL_SPLITS, tokens, unigram_f1

LENGTHS = (1, 2, 4, 8)  # pairs of history that a persona is made of, beside all
SHOWN = 20  # personas of one user that a language model reads, and that consistency compares
COMPARED = 100  # users whose personas are compared with each other's
ALIKE = 0.5  # likeness of a pair's persona to the user's from which the pair supports it
LEAST = 5  # users without whom there is no interval
TEMPLATE = set(tokens("the user is a an and who that prefers answers responses in of to with"))
KIND = re.compile(r"^The user (?:is|prefers) (.+?)(?:,? and prefers\b|[.,;]|$).*", re.IGNORECASE)
OWN, OTHER, THIRD = "user-chosen", "user-rejected", "third-user"  # whose persona a row is told
Margins = Mapping[tuple[str, str], float]  # row id, persona's text -> m(P)


def user_of_row(run: Run) -> dict[str, str]:
    """Return the user of every pair by its id; empty for data without users."""
    return {pair.id: pair.user for part in load_pairs(run).values() for pair in part if pair.user}


def history_personas(run: Run) -> dict[str, dict[str, str]]:
    """Return the personas of the chosen responses of users' histories: user -> {pair id: persona}."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for split in ("train", HISTORY):
        part = [(pair.id, pair.user) for pair in load_pairs(run).get(split, []) if pair.user]
        known = read_personas(run, split, "chosen") if part else {}
        for id, user in part:
            if id in known and (persona := known[id].persona):
                found[user][id] = persona
    return dict(found)


@cache
def likeness(first: str, second: str) -> float:
    """Return how alike two personas are: unigram F1 of their words beyond "The user is ... and prefers"."""
    a, b = (" ".join(word for word in tokens(text) if word not in TEMPLATE) for text in (first, second))
    return unigram_f1(a, b) if a or b else float(first == second)


def medoid(personas: Sequence[str]) -> str:
    """Return the persona that is most like all of them, so a frequent one; the first of equals."""
    return max(dict.fromkeys(personas), key=lambda text: sum(likeness(text, other) for other in personas))


def user_personas(run: Run) -> list[UserPersona]:
    """Return a persona per user and length of history; ``users/personas.jsonl``, made once. [] without users.

    A generator that is a language model writes one sentence from several; else, or if it fails: the `medoid`.
    """
    users, folder, generator = user_of_row(run), run.folder / "users", run.profile.generator
    if not users:
        return []
    files = [run.folder / "personas" / f"{split}-chosen.jsonl" for split in ("train", HISTORY)]
    hashes = [store.file_hash(path) for path in files if path.exists()]
    key = store.content_hash(VERSIONS["users"], hashes, users, role_key(run, "generator"))
    path, found, train = folder / "personas.jsonl", history_personas(run), load_pairs(run)["train"]
    if store.is_done(folder, key):
        return store.read_rows(path, UserPersona)
    parts = {(user, n): dict(list(own.items())[: n or None])
             for user, own in found.items() for n in (0, *LENGTHS) if n < len(own)}  # fmt: skip
    texts = {place: medoid(list(part.values())) for place, part in parts.items()}
    asked = [place for place, part in parts.items() if len({*part.values()}) > 1]
    by_rule = generator.model == SURFACE and not generator.url
    if asked and not by_rule and not any(pair.persona_chosen for pair in train):
        queries = [profile_query(list(parts[place].values())[-SHOWN:]) for place in asked]
        writer = load_generator(run, "generator")
        for n, made in writer.generate(queries, generator.max_new_tokens, STOPS):
            texts[asked[n]] = parse_persona(made.text, MAX_WORDS)[0] or texts[asked[n]]
    trained, rows = {pair.user for pair in train}, []
    for (user, n), text in texts.items():
        alike = [id for id, own in parts[user, n].items() if likeness(own, text) >= ALIKE]
        rows.append(UserPersona(f"{user}/{n}", user, n, text, alike, user in trained))
    store.write_rows(path, rows)
    store.mark_done(folder, key, users=len(found))
    return rows


def told_personas(run: Run) -> dict[str, dict[str, str]]:
    """Return what each evaluated pair is told: id -> {`OWN`, `OTHER`, `THIRD` (drawn), "own-4": text}."""
    known: dict[str, dict[int, str]] = defaultdict(dict)
    for row in user_personas(run):
        known[row.user][row.length] = row.persona
    lengths = sorted({n for own in known.values() for n in own} - {0})
    first = {user: next(iter(own)) for user, own in history_personas(run).items()}
    pairs, told = load_pairs(run), {}
    for pair in (pair for split in EVAL_SPLITS for pair in pairs[split] if pair.user in known):
        own = known[pair.user]
        drawn = sorted(known, key=lambda user: store.content_hash(pair.id, first[user]))
        others = dict.fromkeys(known[user][0] for user in drawn if known[user][0] != own[0])
        told[pair.id] = {OWN: own[0], **dict(zip((OTHER, THIRD), others, strict=False))}
        told[pair.id] |= {f"own-{n}": own.get(n, own[0]) for n in lengths}
    return told


def row_personas(run: Run) -> dict[str, dict[str, str]]:
    """Return the personas `OWN` and `OTHER` of evaluated pairs by row id: what tailoring rows carry."""
    told = told_personas(run).items()
    return {id: {name: row[name] for name in (OWN, OTHER) if name in row} for id, row in told}


def tailored(run: Run) -> str:
    """Return the arm that is told personas in training, of the last method of training."""
    return f"{'dpo' if 'dpo' in run.profile.training.methods else 'sft'}-{main_arm(run.profile)}"


def arms_of(run: Run) -> list[swap.Part]:
    """Return the policies that are compared: the base, and those of the last method of training."""
    kept = "base", tailored(run).partition("-")[0]
    return [part for part in swap.swap_arms(run) if part[0].startswith(kept)]


def comparisons(run: Run, arm: str) -> dict[tuple[str, int], tuple[str, str]]:
    """Return which personas an arm is compared under: (compared with, pairs of history or 0) -> two names."""
    found = {("another user's", 0): (OWN, OTHER)}
    if arm == tailored(run):
        found["control", 0] = OTHER, THIRD
        found |= {("another user's", n): (f"own-{n}", OTHER) for n in LENGTHS}
    return found


@store.one_at_a_time
def score_users(run: Run) -> Table:
    """Score evaluated pairs under users' personas that the swap has not scored; returns `swap_by_users`."""
    told, loader = told_personas(run), swap.PolicyLoader(run)
    rows = [row for row in swap.swap_rows(run) if row.id in told]
    if not rows:
        return table_of([])
    for arm, form in arms_of(run):
        wanted = {name for both in comparisons(run, arm).values() for name in both}
        texts = [(row, {text: n for n, text in told[row.id].items() if n in wanted}) for row in rows]
        inputs = swap.swap_key(run, arm, form), [(row.id, found) for row, found in texts]
        known = {(score.id, score.persona) for score in swap.swap_scores(run, arm, form)}
        jobs = [(row, n, t) for row, found in texts for t, n in found.items() if (row.id, t) not in known]
        folder, key = run.folder / "users" / f"{arm}.{form}", store.content_hash(VERSIONS["users"], *inputs)
        swap.score_jobs(run, arm, form, jobs, loader, folder, key)
        print(f"{arm} ({form}): {len(rows)} pairs under users' personas", flush=True)
    table = swap_by_users([run])
    store.write_text(run.folder / "tables" / "user_swap.csv", table.to_csv(index=False))
    return table


def margins_of(run: Run, arm: str, form: str) -> Margins:
    """Return m(P) by row id and persona text: of the users' scores and of the persona swap's."""
    path = run.folder / "users" / f"{arm}.{form}" / "policy.jsonl"
    scores = store.read_rows(path, swap.PolicyScore) if path.exists() else []
    return {(s.id, s.persona): s.margin for s in (*scores, *swap.swap_scores(run, arm, form)) if s.persona}


def part_of(run: Run) -> dict[str, str]:
    """Return by pair whether training had seen its user, who has a persona: "seen" or "unseen"."""
    parts = {row.user: "seen" if row.seen else "unseen" for row in user_personas(run)}
    return {id: parts[user] for id, user in user_of_row(run).items() if user in parts}


def mean_line(
    run: Run, name: str, by_run: Sequence[Mapping[str, float]], users: Mapping[str, str], least: float = 0
) -> Row:
    """Return n, users, seeds, and the mean of pairs' values from ``least`` to 1 (NaN: none), users resampled.

    There is no interval with fewer than `LEAST` users. Where all pairs are 1 (or 0) drawing users shows no
    spread: a share then has Wilson's interval, in which each user counts once.
    """
    values = [by_pair for by_pair in by_run if by_pair]
    drawn = sorted({users[id] for by_pair in values for id in by_pair})
    blocks = [np.zeros((len(drawn), 2)) for _ in values]  # sum and number of each user's values
    for block, by_pair in zip(blocks, values, strict=True):
        for id, value in by_pair.items():
            block[drawn.index(users[id])] += np.nan_to_num(value), not np.isnan(value)
    how = run.profile.evaluation.bootstrap_samples, 0, len(values) > 1
    means = resampled(blocks, lambda sums: ratio(sums[:, 0], sums[:, 1]), *how)
    mean = drawn_columns({name: np.clip(means, least, 1)})
    limits, share = dict.fromkeys((f"{name}_low", f"{name}_high")), mean[name]
    if len(drawn) < LEAST:
        mean |= limits
    elif least == 0 and share is not None and share in (0, 1):
        mean |= zip(limits, wilson_interval(share * len(drawn), len(drawn)), strict=True)
    return {"n": sum(map(len, values)), "n_users": len(drawn), "n_seeds": len(values)} | mean


def swap_by_users(runs: Sequence[Run]) -> Table:
    """Return share D > 0 by policy, unseen and seen users, length of history, and what is compared."""
    users, parts, told, lines = user_of_row(runs[0]), part_of(runs[0]), told_personas(runs[0]), []
    for arm, form in arms_of(runs[0]):
        margins = [margins_of(run, arm, form) for run in runs]
        for (compared, history), both in comparisons(runs[0], arm).items():
            for part in ("unseen", "seen"):
                mine = {id: row for id, row in told.items() if parts[id] == part}
                if any(found := [leans(known, mine, *both) for known in margins]):
                    head = {"dataset": runs[0].dataset, "arm": arm, "persona_format": form, "users": part,
                            "history": history, "compared": compared}  # fmt: skip
                    lines.append(head | mean_line(runs[0], "d_positive", found, users))
    return table_of(lines)


def growth(run: Run) -> dict[str, Any]:
    """Return per length of history: how many evaluated users have more pairs, how many personas change."""
    known, users = {row.id: row.persona for row in user_personas(run)}, user_of_row(run)
    told = {users[row.id] for row in swap.swap_rows(run) if f"{users.get(row.id)}/0" in known}
    first = [[(known[f"{u}/{n}"], known[f"{u}/0"]) for u in told if f"{u}/{n}" in known] for n in LENGTHS]
    changed = [sum(a != b for a, b in both) for both in first]
    return {"pairs": LENGTHS, "users": len(told), "longer": [*map(len, first)], "changed": changed}


def leans(margins: Margins, told: Mapping[str, dict[str, str]], first: str, second: str) -> dict[str, float]:
    """Return 1 or 0 per pair: is D = m(first) - m(second) positive? Left out: equal texts, no difference."""
    found = {}
    for id, row in told.items():
        one, other = (margins.get((id, row.get(name, ""))) for name in (first, second))
        if one is not None and other is not None and abs(one - other) >= swap.ROUNDING:
            found[id] = float(one > other)
    return found


def user_wins(runs: Sequence[Run]) -> Table:
    """Return W / T / L and net of PT's answers under users' personas against plain ones, where judged."""
    users, parts, lines = user_of_row(runs[0]), part_of(runs[0]), []
    told = [m for m in judging.matchups(runs[0]) if m.judge_persona == OWN and m.kind in ("main", "sft")]
    for m, part in product([m for m in told if m.test.arm == tailored(runs[0])], ("unseen", "seen")):
        verdicts = [{row["id"]: row["personalization"] for row in judging.read_verdicts(run, m)
                     if parts[row["id"]] == part} for run in runs]  # fmt: skip
        if any(verdicts):
            head = {"dataset": runs[0].dataset, "label": m.label, "users": part}
            head |= verdict_counts("p", Counter(v for by_pair in verdicts for v in by_pair.values()))
            lines.append(head | mean_line(runs[0], "p_net", signs(verdicts), users, -1))
    return table_of(lines)


def consistency(runs: Sequence[Run]) -> Table:
    """Return the likeness of users' own pair personas (within) and of others' to them (between), one row."""
    personas = {user: list(own.values())[:SHOWN] for user, own in history_personas(runs[0]).items()}
    kept = {user: personas[user] for user in sorted(personas)[:COMPARED] if len(personas[user]) > 1}
    if len(kept) < 2:
        return table_of([])
    within, between = {}, {}
    for user, own in kept.items():
        others = [text for other, part in kept.items() if other != user for text in part]
        within[user] = float(np.mean([likeness(*pair) for pair in combinations(own, 2)]))
        between[user] = float(np.mean([likeness(*pair) for pair in product(own, others)]))
    columns = {"within": [within], "between": [between]}
    pool = make_pool(columns, runs[0].profile.evaluation.bootstrap_samples)
    pool["gap"] = pool["within"] - pool["between"]
    sizes = {"dataset": runs[0].dataset, "n_users": len(kept), "n": sum(map(len, kept.values()))}
    return table_of([sizes | drawn_columns(pool)])


def users_table(runs: Sequence[Run]) -> Table:
    """Return a line per user: history, persona, its kind, and the share and ids of supporting pairs."""
    found = history_personas(runs[0])
    return table_of([
        {"dataset": runs[0].dataset, "user": row.user, "users": "seen" if row.seen else "unseen",
         "history": len(found[row.user]), "kind": KIND.sub(r"\1", row.persona), "persona": row.persona,
         "support": len(row.support) / len(found[row.user]), "pairs": " ".join(row.support)}
        for row in user_personas(runs[0]) if not row.length
    ])  # fmt: skip


def of_users(make: Callable[[Sequence[Run]], Table]) -> Callable[[Sequence[Run]], Table]:
    """Return a table function that is empty for data without users."""
    return lambda runs: make(runs) if (runs[0].folder / "users" / "done.json").exists() else table_of([])


USER_TABLES = {
    "user_personas": of_users(users_table),
    "user_consistency": of_users(consistency),
    "user_swap": of_users(swap_by_users),
    "user_wins": of_users(user_wins),
}
