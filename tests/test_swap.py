"""Persona swap: by-hand margins, a persona-blind policy is at chance, scores resume and match the models."""

from __future__ import annotations

import math
import random
import shutil
from dataclasses import replace

import pytest

from persona_lib import store, texts
from persona_lib.models import load
from persona_lib.models.load import attach_adapters, load_base, load_tokenizer, sequence_log_probs
from persona_lib.paper import swap
from persona_lib.prompts import completion_text, tailoring_prompt
from persona_lib.records import Generation, TailoringRow
from persona_lib.settings import set_field


def score(id: str, name: str, policy: float, reference: float | None = None, persona="x") -> swap.SwapScore:
    """A score whose policy margin is ``policy`` and whose reference margin is ``reference``."""
    ref = (None, None) if reference is None else (reference - 10.0, -10.0)
    return swap.SwapScore(id, name, persona + name, policy - 20.0, -20.0, *ref)


# --- the table, by hand ---


def test_accuracy_flip_and_interaction_by_hand():
    margins = {"a": (2.0, -1.0), "b": (1.0, 0.5), "c": (-1.0, 3.0), "d": (-2.0, -3.0)}
    scores = [
        score(i, f"gold-{s}", m)
        for i, pair in margins.items()
        for s, m in zip(("chosen", "rejected"), pair, strict=True)
    ]
    values = swap.swap_values(scores, "gold", "policy")
    assert values["acc_chosen"].tolist() == [1, 1, 0, 0]
    assert values["acc_rejected"].tolist() == [1, 0, 0, 1]
    assert values["flip"].tolist() == [1, 0, 0, 0]
    assert values["d"].tolist() == [3.0, 0.5, -4.0, 1.0]
    assert values["d_positive"].tolist() == [1, 1, 0, 1]


def test_the_implicit_reward_subtracts_the_reference_and_is_absent_without_one():
    scores = [score("a", "gold-chosen", 2.0, 3.0), score("a", "gold-rejected", 2.0, 1.0)]
    assert swap.swap_values(scores, "gold", "implicit reward")["d"].tolist() == [-2.0]
    assert swap.swap_values(scores, "gold", "policy")["d"].tolist() == [0.0]
    base = [replace(s, reference_chosen=None, reference_rejected=None) for s in scores]
    assert len(swap.swap_values(base, "gold", "implicit reward")["d"]) == 0


def test_rows_whose_two_personas_are_the_same_text_say_nothing_about_the_swap():
    same = [
        replace(score("a", f"gold-{s}", m), persona="same") for s, m in (("chosen", 1.0), ("rejected", 1.001))
    ]
    values = swap.swap_values(same, "gold", "policy")
    assert math.isnan(values["d_positive"][0]) and math.isnan(values["d"][0])
    assert values["acc_chosen"].tolist() == [1]


def test_a_difference_that_is_only_rounding_counts_as_none():
    scores = [score("a", "gold-chosen", 1.000001), score("a", "gold-rejected", 1.0)]
    scores += [score("b", "gold-chosen", 1.01), score("b", "gold-rejected", 1.0)]
    values = swap.swap_values(scores, "gold", "policy")
    assert math.isnan(values["d_positive"][0]) and values["d_positive"][1] == 1


def test_rows_that_lack_a_side_are_left_out():
    scores = [
        score("a", "gold-chosen", 1.0),
        score("b", "gold-rejected", -1.0),
        score("c", "gold-chosen", 1.0),
    ]
    scores.append(score("c", "gold-rejected", -1.0))
    assert swap.swap_values(scores, "gold", "policy")["flip"].tolist() == [1]


def test_without_persona_there_are_base_rates_and_no_swap():
    scores = [score("a", "none", 1.0), score("b", "none", -1.0), score("c", "none", -2.0)]
    table = swap.swap_table([scores], 200).set_index(["measure", "persona"])
    row = table.loc[("policy", "none")]
    assert (row.acc_chosen, row.acc_rejected, row.flip) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 0)
    assert row.d_positive is None or math.isnan(row.d_positive)


def test_a_policy_that_ignores_the_persona_is_at_chance_and_length_cannot_help_it():
    rng = random.Random(0)
    scores = []
    for n in range(400):
        length = rng.gauss(-30, 5)  # the chosen response is longer: every margin is negative
        scores += [
            score(f"r{n}", f"gold-{side}", length + rng.gauss(0, 1)) for side in ("chosen", "rejected")
        ]
    row = swap.swap_table([scores], 500).set_index("persona").loc["gold"]
    assert row.acc_chosen == 0 and row.acc_rejected == 1
    assert row.d_positive_low < 0.5 < row.d_positive_high


def test_seeds_are_pooled_and_the_interval_holds_the_estimate():
    rng = random.Random(1)
    seeds = [
        [
            score(f"r{n}", f"gold-{s}", rng.gauss(m, 1))
            for n in range(60)
            for s, m in (("chosen", 1), ("rejected", -1))
        ]
        for _ in range(3)
    ]
    row = swap.swap_table(seeds, 300, shared_items=True).set_index("persona").loc["gold"]
    assert (row.n, row.n_seeds) == (180, 3)
    assert row.d_positive_low <= row.d_positive <= row.d_positive_high
    assert row.d_low > 0


# --- what is scored ---


def test_contrast_is_stripped_from_both_sides_if_either_names_one():
    assert texts.strip_contrast("The user likes facts, rather than jokes.") == "The user likes facts."
    row = TailoringRow("a", "test", "p", "c", "r", {
        "gold-chosen": "The user is calm and prefers facts over jokes.",
        "gold-rejected": "The user is fun.",
        "system": "The user is anyone.",
        "user-chosen": None,
    })  # fmt: skip
    wanted = ["none", "system", "gold-chosen", "gold-rejected", "user-chosen"]
    assert list(swap.swap_personas(row, wanted, ("none", "gold"))) == ["none", "gold-chosen", "gold-rejected"]
    personas = swap.swap_personas(row, wanted, ("none", *swap.FAMILIES))
    assert personas == {
        "none": None,
        "gold-chosen": row.personas["gold-chosen"],
        "gold-rejected": "The user is fun.",
        "stripped-chosen": "The user is calm and prefers facts.",
        "stripped-rejected": "The user is fun.",
    }


def test_an_arm_that_cannot_be_scored_is_an_error_that_names_the_choices(run):
    for arm in ("few_shot-none", "sft", "nonsense"):
        with pytest.raises(ValueError, match="use base, sft-"):
            swap.adapters_of(run, arm)
    with pytest.raises(FileNotFoundError, match="dpo-chosen"):
        swap.persona_swap(run, "dpo-chosen")


# --- with real (tiny, random) models ---


def tiny_lora(run, name: str, seed: int) -> None:
    """Write a random LoRA adapter for the run's base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tiny import tiny_model

    torch.manual_seed(seed)
    model = get_peft_model(
        tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    folder = run.folder / "adapters" / name
    model.save_pretrained(folder)
    store.mark_done(folder, f"key of {name}")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with a tiny random base, two adapters of the arm "chosen", and six test rows."""
    from tiny import tiny_rows, tiny_run

    run = tiny_run(
        tmp_path, monkeypatch, swap_batch_size=4, train_personas=["chosen"], methods=["sft", "dpo"]
    )
    rows = tiny_rows(6, seed=9, split="test")
    rows.append(replace(rows[0], id="no-response", chosen="", rejected=""))
    store.write_rows(run.folder / "tailoring" / "test.jsonl", rows)
    store.mark_done(run.folder / "tailoring", "tiny rows")
    tiny_lora(run, "sft-chosen", 1)
    return run


@pytest.mark.parametrize(
    "merge", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["beside", "merged"]
)
def test_scores_are_those_of_the_policy_and_of_its_reference(run, monkeypatch, merge):
    """Whether adapters are computed beside the weights or added to them."""

    merged, plain = [], load.merged
    monkeypatch.setattr(load, "merged", lambda model: merged.append(model.active_adapters) or plain(model))
    run = replace(run, profile=set_field(run.profile, merge_adapters=merge))
    tiny_lora(run, "dpo-chosen", 2)
    scores = {(s.id, s.eval_persona): s for s in swap.persona_swap(run, "dpo-chosen")}
    assert {name for _, name in scores} == {"none", "gold-chosen", "gold-rejected"}
    assert len(scores) == 6 * 3
    row = store.read_rows(run.folder / "tailoring" / "test.jsonl", TailoringRow)[2]
    one = scores[row.id, "gold-rejected"]
    base = run.base_source[0]
    sft, dpo = (run.folder / "adapters" / f"{m}-chosen" for m in ("sft", "dpo"))
    prompt = tailoring_prompt(row.prompt, row.personas["gold-rejected"])
    for folders, got in (([sft, dpo], one.policy_chosen), ([sft], one.reference_chosen)):
        model = attach_adapters(load_base(base), folders)
        [expected] = sequence_log_probs(
            model, load_tokenizer(base), [prompt], [completion_text(row.chosen)], 1
        )
        assert got == pytest.approx(expected, abs=1e-4)
    assert one.policy_chosen != pytest.approx(one.reference_chosen, abs=1e-2)
    assert merged == ([["sft-chosen", "dpo-chosen"], ["sft-chosen"]] if merge else [])


def test_validation_rows_stand_in_where_no_evaluated_row_has_responses(run):
    folder = run.folder / "tailoring"
    *rows, unanswered = store.read_rows(folder / f"{run.profile.eval_split}.jsonl", TailoringRow)
    assert unanswered.chosen == ""
    validation = [replace(row, id=f"v-{row.id}", split="validation") for row in rows]
    validation[0] = replace(validation[0], rejected="")
    store.write_rows(folder / "validation.jsonl", validation)
    assert swap.swap_rows(run) == rows
    store.write_rows(folder / f"{run.profile.eval_split}.jsonl", [replace(rows[0], chosen=""), *rows[1:]])
    assert swap.swap_rows(run) == rows[1:]
    empty = [replace(row, chosen="", rejected="") for row in rows]
    store.write_rows(folder / f"{run.profile.eval_split}.jsonl", empty)
    assert swap.swap_rows(run) == validation[1:]


@pytest.mark.slow
def test_a_killed_step_resumes_where_it_was_and_a_finished_one_is_not_run_again(run, monkeypatch):
    whole = swap.persona_swap(run, "sft-chosen")
    folder = swap.swap_folder(run, "sft-chosen")
    path = folder / "policy.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(swap, "load_base", lambda *_: pytest.fail("a finished arm was loaded again"))
        assert swap.persona_swap(run, "sft-chosen") == whole

    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]) + lines[5][:20])
    (folder / "done.json").unlink()
    again = swap.persona_swap(run, "sft-chosen")
    assert store.read_rows(folder / "rows.jsonl", swap.SwapScore) == again
    assert len(again) == len(whole) == len({(s.id, s.eval_persona) for s in again})
    for old, new in zip(sorted(whole, key=str), sorted(again, key=str), strict=True):
        assert (old.id, old.eval_persona) == (new.id, new.eval_persona)
        assert old.policy_chosen == pytest.approx(new.policy_chosen, abs=1e-4)


@pytest.mark.slow
def test_the_table_of_a_run_has_every_arm_and_the_base(run):
    tiny_lora(run, "dpo-chosen", 2)
    table = swap.swap_all(run)
    assert list(dict.fromkeys(table.arm)) == ["base", "sft-chosen", "dpo-chosen"]
    assert set(table[table.arm == "base"].measure) == {"policy"}
    assert (run.folder / "tables" / "persona_swap.csv").exists()


@pytest.mark.slow
def test_two_workers_leave_the_very_scores_of_one(run):

    tiny_lora(run, "dpo-chosen", 2)
    paths = [swap.swap_folder(run, arm) / "policy.jsonl" for arm in ("base", "sft-chosen", "dpo-chosen")]
    scores = []
    for workers in (1, 2):
        swap.score_all(replace(run, profile=set_field(run.profile, workers=workers)))
        scores.append([path.read_bytes() for path in paths])
        shutil.rmtree(run.folder / "swap")
    assert scores[0] == scores[1] and all(scores[0])


def test_the_persona_free_baseline_is_also_asked_in_first_person(run):

    profile = set_field(run.profile, train_personas=["none", "chosen"], methods=["dpo"])
    arms = swap.swap_arms(replace(run, profile=profile))
    trained = [(f"{method}-{persona}", "line") for method in ("sft", "dpo") for persona in ("none", "chosen")]
    first_person = [("sft-none", "first_person"), ("dpo-none", "first_person")]
    assert arms == [("base", "line"), *trained, *first_person]


def test_controls_are_scored_where_they_are_needed():
    assert swap.swap_families("base", "line") == ("none", "gold")
    for arm in ("dpo-none", "sft-chosen"):
        assert swap.swap_families(arm, "line") == ("none", "gold", "shuffled", "user")
    assert "shuffled" not in swap.swap_families("sft-none", "line")
    assert {"none", "gold", "shuffled", "retrieved"} <= set(swap.swap_families("dpo-chosen", "line"))


def test_a_reference_counts_only_for_the_same_row_and_persona_text():
    policy = [swap.PolicyScore("a", "gold-chosen", "P", -1.0, -2.0)]
    reference = [swap.PolicyScore("a", "gold-chosen", "P", -3.0, -5.0)]
    [joined] = swap.join_reference(policy, reference)
    assert (joined.margin("policy"), joined.margin("implicit reward")) == (1.0, -1.0)
    [alone] = swap.join_reference(policy, [replace(reference[0], persona="Q")])
    assert (alone.margin("policy"), alone.margin("implicit reward")) == (1.0, None)


# --- generations ---


def test_generation_flip_reads_the_finished_runs_of_both_sides(run):
    rows = store.read_rows(run.folder / "tailoring" / "test.jsonl", TailoringRow)

    def write(slug: str, side: str) -> None:
        outputs = [Generation(r.id, slug, r.prompt, "x", getattr(r, side), "stop", 3) for r in rows]
        store.write_rows(run.folder / "generations" / slug / "rows.jsonl", outputs)
        store.mark_done(run.folder / "generations" / slug, "k")

    write("dpo-chosen.gold-chosen.line", "chosen")
    write("dpo-chosen.gold-rejected.line", "rejected")
    write("dpo-chosen.retrieved-chosen.line", "chosen")
    table = swap.generation_flip(run)
    assert table[["arm", "persona_format", "persona", "n", "flip"]].values.tolist() == [
        ["dpo-chosen", "line", "gold", 6, 1.0]
    ]
    assert table.did[0] > 0.5
