"""Users: splits keep them apart, their history gives personas, intervals draw them, no page names them."""

import json
import re

import numpy as np
import pytest

from persona_lib import report, settings, store
from persona_lib.beyond import claims, users
from persona_lib.data import intake, preference, tailoring
from persona_lib.data.rows import OwnRow
from persona_lib.paper import personas, results, swap
from persona_lib.paper.answers import eval_rows
from persona_lib.records import HISTORY, DataError, PreferencePair
from persona_lib.settings import Run, load_profile, set_field

EXAMPLE = settings.REPO / "examples" / "users.jsonl"
BRIEF = "The user is busy and prefers short answers."
WARM = "The user is lonely and prefers kind words."
BUSY = "The user is busy and prefers quick, short answers."


def rows_of(asked: dict[str, list[str]], split: str = "") -> list[OwnRow]:
    places = [(user, prompt) for user, prompts in asked.items() for prompt in prompts]
    return [
        OwnRow(n, f"line {n}", None, split, pair=PreferencePair(f"r{n}", prompt, "yes", "no", user))
        for n, (user, prompt) in enumerate(places)
    ]


def word(n: int) -> str:
    return f"w{n} x{n} y{n} z{n}"


def by_split(rows: list[OwnRow], what: str) -> dict[str, set[str]]:
    splits = {row.split for row in rows}
    return {split: {getattr(row.pair, what) for row in rows if row.split == split} for split in splits}


APART = {f"u{n}": [word(10 * n + k) for k in range(10)] for n in range(12)}
SHARED = {f"u{n}": [word(k) for k in range(20)] for n in range(8)}  # the same questions for all


@pytest.mark.parametrize(("asked", "n_unseen"), [(APART, 5), (SHARED, 3)])
def test_no_test_user_and_no_test_question_is_in_training_and_history_is_not_evaluated(asked, n_unseen):
    rows, how = intake.assign_splits(rows_of(asked), 0.5)
    people, prompts = by_split(rows, "user"), by_split(rows, "prompt")
    unseen = people["test"] - people["train"]
    assert len(unseen) == n_unseen == len(people[HISTORY]) and how == "by user and by prompt"
    assert people[HISTORY] == unseen and not unseen & people["validation"]
    assert not prompts["test"] & (prompts["train"] | prompts[HISTORY] | prompts["validation"])
    assert people["test"] - unseen and sum(row.split == "train" for row in rows) > 0.4 * len(rows)
    renamed = {f"other {user}": prompts for user, prompts in reversed(asked.items())}
    again = by_split(intake.assign_splits(rows_of(renamed), 0.5)[0], "prompt")
    assert again == prompts, "neither the rows' order nor users' names decide"


def test_few_users_give_splits_by_prompt():
    few = rows_of({f"u{n}": [word(10 * n + k) for k in range(20)] for n in range(3)})
    assert by_split(intake.assign_splits(few, 0.5)[0], "user").keys() == {"train", "validation", "test"}
    with pytest.raises(DataError, match="needs 4 users"):
        intake.assign_splits(few, 0.5, "user")
    assert HISTORY not in by_split(intake.assign_splits(rows_of(APART), 0.5, "prompt")[0], "user")


def test_near_prompts_of_all_users_that_leave_no_test_split_are_parted():
    asked = {f"u{n}": [f"{word(k)} and more of {word(k)} for u{n}" for k in range(5)] for n in range(8)}
    rows, how = intake.assign_splits(rows_of(asked), 0.5)
    assert how == "by user and by prompt, only equal prompts together" and not intake.short_splits(rows)
    assert by_split(rows, "user")[HISTORY] <= by_split(rows, "user")["test"]


def test_users_of_a_given_test_split_alone_get_a_history_and_users_of_both_are_noted():
    train = rows_of({"u0": APART["u0"] + APART["u1"], "u2": APART["u2"] + APART["u3"]}, "train")
    rows, how = intake.assign_splits(train + rows_of({"u0": [word(90)], "u4": APART["u4"]}, "test"), 0.5)
    people = by_split(rows, "user")
    assert how == "as given, validation taken from train" and people["test"] == {"u0", "u4"}
    assert people[HISTORY] == {"u4"} and sum(row.split == HISTORY for row in rows) == 5
    assert {f.code for f in intake.between_splits(rows, 0.5)} == {"user in two splits"}


def test_the_medoid_is_the_persona_that_is_most_like_all_and_likeness_is_of_the_words_that_tell():
    assert users.likeness(BRIEF, BUSY) == pytest.approx(2 * 2 / (2 + 3))  # busy short / busy quick short
    assert users.likeness(BRIEF, WARM) == 0
    assert users.medoid([WARM, BRIEF, BUSY]) == BRIEF and users.medoid([WARM, BRIEF]) == WARM


def test_consistency_compares_a_users_personas_with_those_of_other_users(shipped, monkeypatch):
    found = {"u": {"1": BRIEF, "2": BUSY}, "v": {"3": WARM, "4": BRIEF}}
    monkeypatch.setattr(users, "history_personas", lambda run: found)
    row = users.consistency([shipped]).iloc[0]  # within u .8, v 0; between (0 + 1 + 0 + .8) / 4 for both
    assert (row["within"], row["between"], row["gap"]) == pytest.approx((0.4, 0.45, -0.05))


@pytest.fixture(scope="module")
def shipped(results_shared):
    """A run on the shipped users, up to its tailoring data."""
    mapping = EXAMPLE.with_suffix(".yaml")
    changes = {"data.path": str(EXAMPLE), "data.mapping": str(mapping), "datasets": ["own"]}
    run = Run(set_field(load_profile("own"), changes), "own", 0)
    preference.write_pairs(run)
    personas.infer_run(run)
    tailoring.build_tailoring(run, users.row_personas(run))
    return run


def test_the_shipped_users_get_personas_of_their_history_and_are_told_those(shipped):
    pairs, told = preference.load_pairs(shipped), users.told_personas(shipped)
    history = {pair.id for split in ("train", HISTORY) for pair in pairs[split]}
    rows = users.user_personas(shipped)
    assert {row.user for row in rows} == {p.user for part in pairs.values() for p in part}
    assert {id for row in rows for id in row.support} <= history and not history & set(told)
    assert {row.length for row in rows} >= {0, 1, 2, 4}
    whole = {row.user: row.persona for row in rows if not row.length}
    for row in eval_rows(shipped):
        user = users.user_of_row(shipped)[row.id]
        assert row.personas["user-chosen"] == whole[user] != row.personas["user-rejected"]
        assert row.personas["user-rejected"] in whole.values()
    found = users.consistency([shipped]).iloc[0]  # their pair personas agree
    assert found.gap_low > 0.15 and found.within > 0.4 > 2 * found["between"]


def fill_scores(run: Run) -> None:
    """Write scores by hand: the tailored arm prefers the user's choice under the user's own persona alone."""
    for arm, form in users.arms_of(run):
        scores = []
        for id, told in users.told_personas(run).items():
            for text in dict.fromkeys(told.values()):
                prefers = arm == users.tailored(run) and text == told[users.OWN]
                scores.append(swap.PolicyScore(id, "by hand", text, float(prefers), 0.0))
        store.write_rows(run.folder / "users" / f"{arm}.{form}" / "policy.jsonl", scores)


def test_the_swap_is_1_for_the_own_persona_seen_and_unseen_apart_and_undefined_without_a_difference(shipped):
    fill_scores(shipped)
    table = users.swap_by_users([shipped])
    rows = table[table.history == 0].set_index(["arm", "compared", "users"])
    assert list(rows.index) == [("dpo-both", "another user's", part) for part in ("unseen", "seen")]
    parts = users.part_of(shipped)
    told = [parts[id] for id in users.told_personas(shipped)]
    assert rows.d_positive.tolist() == [1, 1]
    assert rows.n.tolist() == [told.count(part) for part in ("unseen", "seen")]
    low = [n / (n + 1.96**2) for n in rows.n_users]  # all users agree: Wilson's limit for n of n users
    assert rows.d_positive_low.tolist() == pytest.approx(low, abs=1e-4) and min(rows.n_users) >= 5


@pytest.mark.parametrize("least", [0, -1])  # shares, and net win rates
def test_an_interval_draws_users_not_pairs(shipped, least):
    """Six users of 50 pairs that all say the same: by pairs +-.06, by users as wide as six coins."""
    values = {f"{user}-{n}": 1.0 if user < 3 else least for user in range(6) for n in range(50)}
    line = users.mean_line(shipped, "x", [values], {id: id.split("-")[0] for id in values}, least)
    assert (line["n"], line["n_users"], line["x"]) == (300, 6, (1 + least) / 2)
    coins = np.percentile(np.random.default_rng(1).binomial(6, 0.5, 100_000) / 6, [2.5, 97.5])
    exact = coins * (1 - least) + least
    assert [line["x_low"], line["x_high"]] == pytest.approx(exact.tolist(), abs=0.02)


def test_judged_answers_are_counted_seen_and_unseen_apart_and_the_page_says_so(shipped, monkeypatch):
    parts, verdicts = users.part_of(shipped), []
    for part, words in {"unseen": ["win", "win", "tie", "loss"], "seen": ["win", "unparsed"]}.items():
        ids = [row.id for row in eval_rows(shipped) if parts[row.id] == part]
        verdicts += [{"id": ids[n], "personalization": word} for n, word in enumerate(words)]
    monkeypatch.setattr(users.judging, "read_verdicts", lambda run, m: verdicts)
    table = users.USER_TABLES["user_wins"]([shipped])
    assert list(table.users) == ["unseen", "seen"] and set(table.label) == {users.OWN}
    counts = table[["n", "p_win", "p_tie", "p_loss", "p_unparsed"]].to_numpy().tolist()
    assert counts == [[4, 2, 1, 1, 0], [2, 1, 0, 0, 1]]
    assert table.p_net.tolist() == pytest.approx([1 / 3, 1])  # a tie and what is unparsed decide nothing
    results.save_table(shipped.profile, "user_wins", table)
    page = " ".join(report.write_report(shipped.profile).read_text(encoding="utf-8").split())
    assert "not in training: answers of the tailored model win 2, tie 1 and lose 1 of 4 comparisons" in page


def test_growth_counts_evaluated_users_with_more_pairs_and_changed_personas(shipped, monkeypatch):
    parts, whose = users.part_of(shipped), users.user_of_row(shipped)
    first, second, *_ = dict.fromkeys(whose[id] for id, part in parts.items() if part == "unseen")
    texts = {(first, 0): "x", (first, 1): "x", (second, 0): "y", (second, 1): "z", (second, 2): "y"}
    made = [users.UserPersona(f"{user}/{n}", user, n, text, [], False) for (user, n), text in texts.items()]
    monkeypatch.setattr(users, "user_personas", lambda run: made)
    counts = {"pairs": (1, 2, 4, 8), "users": 2, "longer": [2, 1, 0, 0], "changed": [1, 0, 0, 0]}
    assert users.growth(shipped) == counts


def test_the_page_says_who_the_users_are_and_names_none(shipped):
    fill_scores(shipped)
    claims.save_tables(shipped.profile)
    page = report.write_report(shipped.profile).read_text(encoding="utf-8")
    names = {json.loads(line)["user"] for line in EXAMPLE.read_text().splitlines()}
    hashed = set(users.user_of_row(shipped).values())
    assert not any(f">{name}<" in page or f'"{name}"' in page for name in names)
    assert not any(name in page for name in hashed) and "user 1" in page
    assert "12 users have a history" in page and "dPQ" not in page and "Aims" not in page
    table = users.users_table([shipped])
    kinds = re.findall(r"<td>([\w-]+)</td><td class=.n.>(\d+)</td>", page[page.index("Users by kind") :])
    assert {kind: int(n) for kind, n in kinds[: table.kind.nunique()]} == table.kind.value_counts().to_dict()
    assert "for example\nthis one: " in page
    assert "PeftModel.from_pretrained" in page and "convert_lora_to_gguf.py" in page
