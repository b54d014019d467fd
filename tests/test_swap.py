"""Persona swap: measures and tables by hand, a persona-blind policy is at chance, scores match the models."""

import math
from dataclasses import replace

import numpy as np
import pytest
from tiny import tiny_policies
from tiny_results import line

from persona_lib import store
from persona_lib.models.load import attach_adapters, load_base, load_tokenizer, pair_log_probs
from persona_lib.paper import swap
from persona_lib.paper.answers import adapters_of
from persona_lib.paper.judging import runs_of
from persona_lib.prompts import completion_text, tailoring_prompt
from persona_lib.records import SIDES, Generation, TailoringRow
from persona_lib.settings import load_profile

NAN = math.nan


def gold(**pairs: tuple[float, float]) -> list[swap.PolicyScore]:
    """Scores of rows whose margins under P_C and P_R are given."""
    return [swap.PolicyScore(i, f"gold-{s}", s, m - 20.0, -20.0)
            for i, pair in pairs.items() for s, m in zip(SIDES, pair, strict=True)]  # fmt: skip


def values(scores, lengths=None):
    found = swap.swap_values(scores, "gold", lengths)
    return {name: pytest.approx(list(by_id.values()), nan_ok=True) for name, by_id in found.items()}


def test_accuracy_flip_and_difference_by_hand():
    found = values(gold(a=(2.0, -1.0), b=(1.0, 0.5), c=(-1.0, 3.0), d=(-2.0, -3.0)))
    assert found == {"acc_chosen": [1, 1, 0, 0], "acc_rejected": [1, 0, 0, 1], "flip": [1, 0, 0, 0],
                     "d_positive": [1, 1, 0, 1], "d": [3.0, 0.5, -4.0, 1.0]}  # fmt: skip


def test_margins_per_byte_divide_each_response_by_its_length():
    scores = gold(a=(-5.0, -10.0))  # log p(chosen | P_C) = -25, (chosen | P_R) = -30, rejected -20
    found = values(scores, {"a": (10, 4)})
    # (-2.5 + 5) * 7 = 17.5 and (-3 + 5) * 7 = 14: the rejected response is the more probable one by sum only
    assert found["d"] == [3.5] and found["acc_chosen"] == [1] and values(scores)["acc_chosen"] == [0]
    assert values(scores, {"a": (6, 6)})["d"] == [5.0] == values(scores)["d"]
    assert values(scores, {"b": (6, 6)})["d"] == []


def test_equal_personas_and_differences_of_rounding_say_nothing_and_rows_without_a_side_are_left_out():
    same = [replace(s, persona="same") for s in gold(a=(1.0, 1.001))]
    found = values([*same, *gold(b=(1.000001, 1.0), c=(1.01, 1.0)), *gold(d=(1.0, 1.0))[:1]])
    assert found["d_positive"] == [NAN, NAN, 1] and found["acc_chosen"] == [1, 1, 1]


def test_flip_and_did_of_answers_by_hand():
    chosen, rejected = ["a b"] * 4, ["c d"] * 4
    # right way; wrong way; the persona is ignored (nearer to chosen both times); equal distance under P_C
    found = swap.flip_and_did(["a b", "c d", "a b", "a c"], ["c d", "a b", "a b", "c d"], chosen, rejected)
    assert found["did"].tolist() == [2, -2, 0, 1] and found["flip"].tolist() == [1, 0, 0, 0]
    assert found["did_positive"].tolist() == pytest.approx([1, 0, NAN, 1], nan_ok=True)
    with pytest.raises(ValueError, match="shorter"):
        swap.flip_and_did(["a", "b"], ["a"], ["a", "b"], ["a", "b"])


@pytest.fixture
def runs(results_here):
    settings = ["seeds=0,1", "evaluation.controls=true", "training.arms=none,chosen"]
    return runs_of(load_profile("smoke", settings), "everyday")


def write_swap(runs, arm, margins):
    """Write margins (under P_C, under P_R) per seed and row, as the scoring step would."""
    for run, pairs in zip(runs, margins, strict=True):
        folder = swap.swap_folder(run, arm)
        store.write_rows(folder / "policy.jsonl", gold(**{f"r{i}": pair for i, pair in enumerate(pairs)}))
        store.mark_done(folder, "hand")


def test_the_table_and_the_difference_to_the_twin_by_hand(runs):
    assert all(make(runs).empty for make in swap.SWAP_TABLES.values()), "nothing is scored"
    write_swap(runs, "dpo-chosen", [[(1, -1), (2, 1)], [(1, -2), (-1, 1)]])
    write_swap(runs, "dpo-none", [[(1, 2), (2, 1)], [(1, 2), (-1, 1)]])
    row = line(swap.swap_table(runs), arm="dpo-chosen", measure="policy", persona="gold")
    assert (row.d_positive, row.flip, row.d, row.n, row.seeds) == (0.75, 0.5, (2 + 1 + 3 - 2) / 4, 4, "0 1")
    twin = line(swap.swap_differences(runs), compared="dpo-none.line", measure="policy")
    assert (twin.d_positive, twin.flip, twin.n, twin.n_seeds) == (0.5, 0.5, 4, 2)
    assert line(swap.swap_table(runs[:1]), arm="dpo-chosen", measure="policy").d_positive == 1.0


def test_the_length_balanced_share_weighs_both_kinds_of_rows_equally(runs):
    """A policy that always moves to the longer response is right whenever the chosen one is longer."""
    rows = [TailoringRow(f"r{i}", "test", "q", "a" * (1 if i == 3 else 9), "b" * 5, {}) for i in range(4)]
    store.write_rows(runs[0].folder / "tailoring" / "test.jsonl", rows)
    write_swap(runs[:1], "dpo-none", [[(2, 1), (2, 1), (2, 1), (1, 2)]])
    row = line(swap.swap_table(runs[:1]), measure="policy")
    assert (row.d_positive, row.balanced, row.longer_chosen, row.longer_rejected) == (0.75, 0.5, 1, 0)


def test_answers_of_both_sides_are_compared_and_a_missing_side_is_left_out(runs):
    rows = [TailoringRow(f"r{i}", "test", "q", "yes do it", "no never", {}) for i in range(3)]
    store.write_rows(runs[0].folder / "tailoring" / "test.jsonl", rows)
    for slug in ("gold-chosen", "gold-rejected", "retrieved-chosen"):
        side, folder = slug.partition("-")[2], runs[0].folder / "generations" / f"dpo-chosen.{slug}.line"
        answers = [Generation(r.id, slug, r.prompt, "x", getattr(r, side), "stop", 3) for r in rows]
        store.write_rows(folder / "rows.jsonl", answers)
        store.mark_done(folder, "k")
    row = line(swap.generation_flip(runs))
    assert (row.arm, row.persona_format, row.persona, row.n, row.flip, row.did) == (
        "dpo-chosen", "line", "gold", 3, 1.0, 2.0)  # fmt: skip


def test_arms_and_families_with_and_without_controls(runs):
    controls = {("sft-none", "line"), ("sft-none", "first_person"), ("dpo-none", "line")}
    plain = runs_of(load_profile("smoke", ["training.arms=none,chosen"]), "everyday")[0]
    few = {("base", "line"), ("sft-chosen", "line"), ("dpo-none", "first_person"), ("dpo-chosen", "line")}
    assert {*swap.swap_arms(plain)} == few and {*swap.swap_arms(runs[0])} == few | controls
    assert swap.swap_families("dpo-none") == ("gold", "shuffled", "user")
    assert swap.swap_families("dpo-chosen") == swap.FAMILIES
    assert swap.swap_families("dpo-none", controls=False) == ("gold",)


@pytest.fixture
def run(tmp_path, monkeypatch):
    settings = {"training.arms": ["none", "chosen"], "training.methods": ["sft", "dpo"]}
    return tiny_policies(tmp_path, monkeypatch, "sft-chosen", "dpo-chosen", **settings)


def test_an_arm_without_its_adapters_cannot_be_scored(run):
    with pytest.raises(FileNotFoundError, match="sft-none"):
        swap.score_policy(run, "sft-none")


def test_validation_rows_stand_in_where_no_evaluated_row_has_responses(run):
    path = run.folder / "tailoring" / "test.jsonl"
    *rows, unanswered = store.read_rows(path, TailoringRow)
    assert unanswered.chosen == "" and swap.swap_rows(run) == rows
    validation = [replace(row, id=f"v-{row.id}", split="validation") for row in rows]
    validation[0] = replace(validation[0], rejected="")
    store.write_rows(run.folder / "tailoring" / "validation.jsonl", validation)
    store.write_rows(path, [replace(row, chosen="", rejected="") for row in rows])
    assert swap.swap_rows(run) == validation[1:]


def test_scores_are_those_of_the_policy_with_its_adapters_stacked(run):
    row = store.read_rows(run.folder / "tailoring" / "test.jsonl", TailoringRow)[2]
    prompt = tailoring_prompt(row.prompt, row.personas["gold-rejected"])
    base, found = run.base_source[0], []
    for arm in ("dpo-chosen", "sft-chosen"):
        scores = {(s.id, s.eval_persona): s for s in swap.score_policy(run, arm)}
        assert {name for _, name in scores} == {"gold-chosen", "gold-rejected"} and len(scores) == 6 * 2
        model = attach_adapters(load_base(base), adapters_of(run, arm))
        text = [(completion_text(row.chosen),)]
        [[expected]] = pair_log_probs(model, load_tokenizer(base), [prompt], text, 1)
        found.append(scores[row.id, "gold-rejected"].chosen)
        assert found[-1] == pytest.approx(expected, abs=1e-4)
    assert found[0] != pytest.approx(found[1], abs=1e-2)


def test_a_killed_step_resumes_where_it_was_and_a_finished_one_is_not_run_again(run, monkeypatch):
    whole = swap.score_policy(run, "sft-chosen")
    folder = swap.swap_folder(run, "sft-chosen")
    path = folder / "policy.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(swap.PolicyLoader, "load", lambda *_: pytest.fail("a finished arm was loaded again"))
        assert swap.score_policy(run, "sft-chosen") == whole

    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]) + lines[5][:20])
    (folder / "done.json").unlink()
    again = swap.score_policy(run, "sft-chosen")
    assert len(again) == len(whole) == len({(s.id, s.eval_persona) for s in again})
    for old, new in zip(sorted(whole, key=str), sorted(again, key=str), strict=True):
        assert (old.id, old.eval_persona) == (new.id, new.eval_persona)
        assert np.allclose((old.chosen, old.rejected), (new.chosen, new.rejected), atol=1e-4)
