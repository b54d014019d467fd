"""What readers are shown is what the files hold: tables, sentences and pages from a small run by hand."""

import math

import pandas as pd
import pytest
import tiny_results

from persona_lib import figures, show
from persona_lib.paper.answers import generation_folder, grid
from persona_lib.settings import Run, load_profile, set_field
from persona_lib.store import mark_done, write_rows


@pytest.fixture(scope="module")
def answered(results_shared) -> Run:
    """A run in which every run of the grid has answered and was judged."""
    changes = {"data.pair_limit": 8, "training.arms": ["none", "chosen"], "evaluation.controls": True}
    run = Run(set_field(load_profile("smoke"), changes), "everyday", 0)
    tiny_results.fill_run(run)
    return run


def judged_row(**more: object) -> pd.DataFrame:
    """One judged row: 10 wins, 20 ties of which 5 contradict themselves, and 10 losses."""
    known = {"dataset": "everyday", "kind": "main", "label": "gold", "n": 40, "n_seeds": 2, "seeds": "0 1"}
    for short in "pq":
        known |= {f"{short}_win": 10, f"{short}_tie": 20, f"{short}_loss": 10, f"{short}_unparsed": 0,
                  f"{short}_inconsistent": 5, f"{short}_sign": 0.0001234, f"{short}_holm": 1.0}  # fmt: skip
    for name in ("p_net", "q_net", "dpq", "quality_sd"):
        known |= {name: 0.25, f"{name}_low": -0.1, f"{name}_high": 0.6}
    return pd.DataFrame([known | more])


def test_a_table_is_shown_by_its_view_with_intervals_shares_and_n():
    shown = show.render("main", judged_row()).iloc[0]
    assert shown["personalization W / T / L / contradicted %"] == "25.0 / 37.5 / 25.0 / 12.5"
    assert shown["personalization net [95 % interval]"] == "+0.25 [−0.10, +0.60]"
    assert (shown["p / Holm p"], shown["n"]) == ("0.00012 / 1", "40 (2 seeds)")
    assert "data set" not in shown
    both = show.render("main", pd.concat([judged_row(), judged_row(dataset="hhh")]))
    assert both["data set"].tolist() == ["everyday", "Anthropic HHH"]
    assert "p / Holm p" not in show.render("main", judged_row().drop(columns="p_holm"))
    plain = pd.DataFrame({"word": ["a"], "found": [True], "share": [0.25]})
    assert show.render("x", plain).iloc[0].tolist() == ["a", "yes", "0.250"]
    assert show.render("main", None) is None and show.render("main", plain.head(0)) is None


def test_a_sentence_is_decided_by_the_interval_alone_and_a_difference_is_compared_with_zero():
    places = ((0.51, 0.9, "above"), (0.1, 0.49, "below"), (0.5, 0.6, "not clearly different from"))
    for low, high, word in places:
        table = pd.DataFrame([{"arm": "dpo", "n": 9, "share": 0.5, "share_low": low, "share_high": high}])
        said = f"- dpo: share 0.500 [{low:.3f}, {high:.3f}], n = 9, {word} 0.5."
        assert show.say(table, "share", ["arm"], 0.5) == said
    table = pd.DataFrame([{"side": "chosen - rejected", "x": 0.3, "x_low": 0.1, "x_high": 0.4}])
    assert show.say(table, "x", ["side"], 0.5) == "- chosen - rejected: x 0.30 [0.10, 0.40], above 0."
    for value in (math.nan, None):
        none = pd.DataFrame({"side": ["a"], "n": 3, "x": [value], "x_low": [value], "x_high": [value]})
        assert show.say(none, "x", ["side"]) == "- a: x undefined, n = 3."


def test_a_curve_starts_at_margin_0_and_a_history_marks_the_epoch_that_is_kept(answered, results_here):
    run = Run(set_field(answered.profile, {"training.arms": ["none"]}), "everyday", 0)
    log = [{"loss": 3.0, "rewards/margins": 0.1, "epoch": 0.5, "step": 2},
           {"loss": 2.0, "rewards/margins": 0.2, "epoch": 1.0, "step": 4},
           {"eval_loss": 2.4, "eval_rewards/margins": 0.3, "epoch": 1.0, "step": 4},
           {"loss": 1.0, "rewards/margins": 0.4, "epoch": 2.0, "step": 6},
           {"eval_loss": 2.7, "eval_rewards/margins": 0.2, "epoch": 2.0, "step": 6},
           {"train_runtime": 9.0, "train_loss": 2.5, "epoch": 2.0}]  # fmt: skip
    folder = run.folder / "adapters" / "dpo-none"
    write_rows(folder / "log.jsonl", log)
    mark_done(folder, "hand", best_eval_loss=2.4)
    curve = show.training_curve(run, "dpo").set_index("row")
    assert curve.loc["training", "margin"].tolist() == [0, 0.1, 0.2, 0.4]
    assert curve.loc["validation", "margin"].tolist() == [0, 0.3, 0.2]
    assert "dpo-none, validation: 0.00, 0.30, 0.20" in figures.picture("dpo", curve.reset_index()).alt
    table = show.training_history(run, "dpo")
    assert table["training loss"].tolist() == [2.5, 1.0] and table.kept.tolist() == [True, False]


def test_broken_answers_are_counted_by_arm_and_an_unsound_run_is_named(answered, results_here):
    counts = {"n": 6, "no_eos": 1, "rep4_over_50": 0, "n_without_persona": 2}
    for spec in grid(answered):
        loops = 6 * (spec.slug == "dpo-none.none.line")
        mark_done(generation_folder(answered, spec), "hand", suffix_loop=loops, **counts)
    table = show.degenerate_table(answered)
    assert (table.n + table.n_without_persona).sum() == 8 * len(grid(answered))
    assert table.unsound.str.strip().to_dict()["dpo-none"] == "none" and table.suffix_loop.sum() == 6
