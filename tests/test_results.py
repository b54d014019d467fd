"""Judged tables over seeds: counts, scores and tests by hand, intervals paired, and missing parts."""

import math

import pandas as pd
import pytest
from test_intervals import VERDICTS, scores
from tiny_results import line, main_row

from persona_lib import store
from persona_lib.paper import judging, results
from persona_lib.records import TailoringRow
from persona_lib.settings import Run, load_profile

HAND = {  # persona -> per seed (personalization, quality), one letter per row
    "gold-chosen": [("WWLT", "WLTT"), ("WWW?", "LLWT")],
    "gold-rejected": [("WWWW", "WWTT"), ("WWWL", "WTTL")],
    "retrieved-chosen": [("LLLL", "TTTT"), ("LLLW", "TTTT")],
}


@pytest.fixture
def profile(results_here):
    """Two seeds of a small profile whose results go to a temporary folder; nothing scores quality."""
    return load_profile("smoke", ["seeds=0,1", "evaluation.judge=backwards"])


def write_verdicts(profile, hand=HAND):
    """Write hand-made verdicts of the main rows as the judging step would."""
    for number, seed in enumerate(profile.seeds):
        run = Run(profile, "everyday", seed)
        for persona, by_seed in hand.items():
            folder = run.folder / "judgments" / main_row(run, persona).slug
            ties = dict.fromkeys(judging.RUBRICS, "tie")
            rows = [ties | {"id": f"r{i}", "personalization": VERDICTS[a], "quality": VERDICTS[b]}
                    for i, (a, b) in enumerate(zip(*by_seed[number], strict=True))]  # fmt: skip
            store.write_rows(folder / "verdicts.jsonl", rows)
            store.mark_done(folder, "hand")


def test_counts_and_scores_of_a_row_are_those_of_both_seeds_and_a_missing_seed_is_left_out(profile):
    write_verdicts(profile)
    table = results.main_table(profile)
    row = line(table, judge_persona="gold-chosen")
    assert [row[f"p_{v}"] for v in ("win", "tie", "loss", "unparsed")] == [5, 1, 1, 1]
    assert [row[f"q_{v}"] for v in ("win", "tie", "loss", "unparsed")] == [2, 3, 3, 0]
    assert (row.n, row.n_seeds, row.seeds) == (8, 2, "0 1")
    assert row.p_net == pytest.approx(4 / 6) and row.q_net == pytest.approx(-1 / 5)
    assert row.dpq == pytest.approx(100 * (4 / 6 - 1 / 5) / 2)
    undecided = math.isnan(line(table, judge_persona="retrieved-chosen").dpq)
    assert undecided and pd.isna(line(table, kind="average").dpq), "no score and no average"
    run = Run(profile, "everyday", 1)
    (run.folder / "judgments" / main_row(run).slug / "done.json").unlink()
    judging.forget_judged()
    row = line(results.main_table(profile), judge_persona="gold-chosen")
    assert (row.n, row.n_seeds, row.seeds) == (4, 1, "0")


@pytest.mark.parametrize("shared", [False, True])
def test_intervals_are_those_of_the_bootstrap_and_seeds_that_share_rows_are_drawn_together(profile, shared):
    rows = [TailoringRow(f"r{i}", "test", f"prompt {i}", "c", "d") for i in range(4)]
    for seed in profile.seeds if shared else ():
        store.write_rows(Run(profile, "everyday", seed).folder / "tailoring" / "test.jsonl", rows)
    write_verdicts(profile)
    p, q = ([seed[i] for seed in HAND["gold-chosen"]] for i in (0, 1))
    wanted = scores(p, q, profile.evaluation.bootstrap_samples, shared_items=shared)["dpq"]
    row = line(results.main_table(profile), judge_persona="gold-chosen")
    assert (row.dpq_low, row.dpq_high) == pytest.approx((wanted.low, wanted.high))


def test_the_average_is_the_mean_of_the_rows_and_leaves_user_written_personas_out(profile):
    kept = {name: HAND[name] for name in ("gold-chosen", "gold-rejected")}
    write_verdicts(profile, hand=kept | {"user-chosen": [("LLLL", "LLLL")] * 2})
    table = results.main_table(profile)
    rejected = 100 * (6 / 8 + 2 / 4) / 2  # P: 7 wins, 1 loss; Q: 3 wins, 1 loss
    chosen = 100 * (4 / 6 - 1 / 5) / 2
    assert line(table, kind="average").dpq == pytest.approx((rejected + chosen) / 2)
    assert line(table, judge_persona="user-chosen").dpq == -100
    assert line(results.side_difference(profile), personas="gold").dpq == pytest.approx(rejected - chosen)


@pytest.mark.parametrize(("shared", "votes"), [(False, (4, 4)), (True, (2, 2))])
def test_seeds_with_their_own_prompts_count_each_and_shared_prompts_count_once(monkeypatch, shared, votes):
    monkeypatch.setattr(judging, "same_items", lambda runs: shared)
    # together: r0 WW, r1 WL: even, r2 LL, r3 TW, r4 ?L
    verdicts = [{f"r{i}": VERDICTS[v] for i, v in enumerate(letters)} for letters in ("WWLT?", "WLLWL")]
    row = judging.Judged(None, (), {"personalization": verdicts, "quality": verdicts}, {})
    assert results.decided_prompts(row, "personalization") == votes
