"""Two judges on the same comparisons: kappa by hand, judgments kept apart, unparsed left out and counted."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import tiny_results

from persona_lib import show, store
from persona_lib.beyond import claims
from persona_lib.intervals import verdict_of
from persona_lib.models.generate import Completion
from persona_lib.paper import answers, judges, judging, results
from persona_lib.records import Judgment
from persona_lib.settings import Run, load_profile


def triples(**counts: int) -> list[tuple[str, str, str]]:
    """Verdict pairs on different prompts: win_loss=5 means five times first win, second loss."""
    pairs = [name.split("_") for name, count in counts.items() for _ in range(count)]
    return [(f"row-{n}", *pair) for n, pair in enumerate(pairs)]


def test_kappa_of_a_table_worked_out_by_hand():
    # p_o = 35 / 50 = .7; the first says win 25 of 50 times, the second 30: p_e = .5 x .6 + .5 x .4 = .5
    row = judging.agreement_row([triples(win_win=20, win_loss=5, loss_win=10, loss_loss=15)], 400)
    assert (row["n"], row["agreement"]) == (50, 0.7)
    assert row["kappa"] == pytest.approx(0.4)
    assert row["agreement_decided"] == 0.7 and row["n_decided"] == 50
    assert row["kappa_low"] < 0.4 < row["kappa_high"] and row["agreement_low"] < 0.7 < row["agreement_high"]


def test_kappa_of_three_kinds_of_verdicts_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    first, second = rng.choice(3, 200), rng.choice(3, 200, p=[0.5, 0.3, 0.2])
    same = np.mean(first == second)
    chance = sum(np.mean(first == k) * np.mean(second == k) for k in range(3))
    pairs = [(f"r{n}", judging.VERDICTS[a], judging.VERDICTS[b])
             for n, (a, b) in enumerate(zip(first, second, strict=True))]  # fmt: skip
    row = judging.agreement_row([pairs], 50)
    assert row["kappa"] == pytest.approx((same - chance) / (1 - chance))
    assert row["n_decided"] == sum(
        v not in (1,) and w not in (1,) for v, w in zip(first, second, strict=True)
    )


def test_judges_that_never_differ_have_full_agreement_and_no_kappa_without_variety():
    row = judging.agreement_row([triples(tie_tie=4)], 20)
    assert row["agreement"] == 1 and row["kappa"] is None and row["agreement_decided"] is None
    assert judging.agreement_row([triples(tie_tie=4, win_win=4)], 20)["kappa"] == 1


def test_unparsed_comparisons_are_counted_and_left_out():
    row = judging.agreement_row([triples(win_win=3, unparsed_win=2, loss_unparsed=1)], 20)
    assert (row["n"], row["first_unparsed"], row["second_unparsed"]) == (3, 2, 1)


def test_comparisons_of_one_prompt_are_drawn_together():
    pairs = [("same", "win", "win"), ("same", "win", "loss")] * 10
    row = judging.agreement_row([pairs], 50)
    assert (row["n"], row["n_prompts"]) == (20, 1)
    assert row["agreement"] == row["agreement_low"] == row["agreement_high"] == 0.5


class Shorter:
    """A served model that prefers the shorter response and cannot decide on equal lengths."""

    name, takes_schema = "shorter-first", True

    def __init__(self) -> None:
        self.asked = 0

    def generate(self, prompts, max_new_tokens, stop, schema):
        for n, prompt in enumerate(prompts):
            self.asked += 1
            a, b = prompt.partition("Response A:\n")[2].split("\n\nAnswer with")[0].split("\n\nResponse B:\n")
            letter = {"winner": "A" if len(a) < len(b) else "B"} if len(a) != len(b) else {}
            yield n, Completion(json.dumps({"reason": "length"} | letter), "stop", 5)


SERVED = ["second_judge_model=shorter-first", "second_judge_url=http://localhost:1/v1"]
TWO_JUDGES = load_profile("smoke", [*SERVED, "pair_limit=8", "bootstrap_samples=40", "seeds=0,1"])


@pytest.fixture(scope="module")
def judged_once(tmp_path_factory):
    """A results folder of two seeds, judged by the oracle; made once and copied."""
    folder = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_RESULTS", str(folder))
        for seed in TWO_JUDGES.seeds:
            tiny_results.fill_run(Run(TWO_JUDGES, "everyday", seed))
    return folder


@pytest.fixture
def two_judges(judged_once, tmp_path, monkeypatch):
    """A profile whose first judge is the oracle and whose second is ``Shorter``, judged by the first."""
    shutil.copytree(judged_once, tmp_path / "results")
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    second = Shorter()
    monkeypatch.setattr(judges, "load_generator", lambda run, role, batch: second)
    judging.forget_judged()
    return TWO_JUDGES, second


def saved(run: Run, matchup, role: str, rubric: str) -> list[Judgment]:
    """The judgments of one matchup on disk, both orders in turn."""
    rows = list(store.iter_rows(judging.judgment_folder(run, matchup, role) / f"{rubric}.jsonl"))
    return [Judgment(**{k: v for k, v in row.items() if k != "order"}) for row in rows]


def test_both_judges_judge_the_same_comparisons_and_are_kept_apart(two_judges):
    profile, second = two_judges
    run = Run(profile, "everyday", 0)
    folders = judging.judge_second(run)
    wanted = [m for m in answers.matchups(run) if m.kind == "main"]
    assert [folder.name for folder in folders] == [m.slug for m in wanted]
    assert second.asked == sum(4 * len(judging.compare(run, m)) for m in wanted), "two rubrics, two orders"
    for role, name in (("judge", "oracle"), ("second_judge", "shorter-first")):
        assert {j.judge for m in wanted for j in saved(run, m, role, "quality")} == {name}
    asked = second.asked
    assert judging.judge_second(run) == folders and second.asked == asked, "nothing is judged twice"


def test_the_table_of_agreement_counts_what_the_saved_judgments_say(two_judges):
    profile, _ = two_judges
    runs = [Run(profile, "everyday", seed) for seed in profile.seeds]
    for run in runs:
        judging.judge_second(run)
    table = results.judged_tables()["judge_agreement"](profile).set_index("rubric")
    for rubric in judges.RUBRICS:
        pairs = []
        for run in runs:
            for m in judging.judged_matchups(run, "second_judge"):
                both = [saved(run, m, role, rubric) for role in ("judge", "second_judge")]
                verdicts = [[verdict_of(*pair) for pair in zip(j[::2], j[1::2], strict=True)] for j in both]
                pairs += zip(*verdicts, strict=True)
        known = [(a, b) for a, b in pairs if b != "unparsed"]
        row = table.loc[rubric]
        assert (row["n"], row.second_unparsed, row.first_unparsed) == (len(known), len(pairs) - len(known), 0)
        assert row.agreement == pytest.approx(np.mean([a == b for a, b in known]))
        assert (row["first"], row["second"], row.n_seeds) == ("oracle", "shorter-first", 2)
    shown = show.render("judge_agreement", table.reset_index())
    assert list(shown.judges) == ["oracle / shorter-first"] * 2


def test_the_second_judges_rows_have_a_table_of_their_own(two_judges):
    profile, _ = two_judges
    assert results.judged_tables()["second_judge"](profile).empty, "not judged yet"
    for seed in profile.seeds:
        judging.judge_second(Run(profile, "everyday", seed))
    judging.forget_judged()
    first = results.judged_table(profile, ("main",))
    second = results.judged_tables()["second_judge"](profile)
    assert list(second.label) == list(first.label) and list(second.n) == list(first.n)
    assert (second.p_unparsed.sum() > 0) and first.p_unparsed.sum() == 0


@pytest.mark.slow
def test_without_a_second_judge_there_is_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    profile = load_profile("smoke", ["pair_limit=4", "bootstrap_samples=20"])
    run = Run(profile, "everyday", 0)
    tiny_results.fill_run(run)
    assert judging.judge_second(run) == [] and not (run.folder / "second_judgments").exists()
    for name in ("judge_agreement", "second_judge"):
        assert results.judged_tables()[name](profile).empty
    assert not set(claims.save_tables(profile)) & {"judge_agreement", "second_judge"}
    assert math.isnan(judging.agreement_of(np.zeros((1, 9)))[0])
