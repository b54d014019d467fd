"""The studies: the rule that picks training settings, and persona inference by several models."""

import json
from dataclasses import dataclass

import pandas as pd
import pytest
from tiny import tiny_policies

from persona_lib.data import everyday
from persona_lib.paper import personas, swap
from persona_lib.records import Judgment
from persona_lib.settings import Run, load_profile, results_dir, set_field
from persona_lib.store import read_rows
from studies import __main__ as studies
from studies import others


def measured(fit, quality, sd=1.0, unfinished=0.0):
    found = {"quality": quality, "quality_sd": sd, "unfinished": unfinished, "n": 10}
    return {"fit_chosen": fit, "fit_rejected": fit} | found


def row(arm, rate, *values, **more):
    return {"arm": arm, "dpo.learning_rate": rate} | measured(*values, **more)


def picked(*rows):
    table = pd.DataFrame(rows)
    return [table["dpo.learning_rate"][label] for label in studies.pick(table)]


def test_the_plain_arm_gives_up_a_tenth_of_a_deviation_of_quality_for_fit_and_pt_keeps_its_quality():
    plain = [row("none", 1, 0.1, 5.0), row("none", 2, 0.2, 4.91), row("none", 3, 0.9, 4.89)]
    tailored = [row("both", 1, 0.1, 4.9), row("both", 2, 0.5, 4.82), row("both", 3, 0.9, 4.8)]
    assert picked(*plain, *tailored) == [2, 2]
    assert picked(row("none", 1, 0.1, 6.0), *tailored) == [1, 1], "none is as good: the best"
    # a candidate whose answers do not end is out, whatever its fit
    ends, near = row("both", 1, 0.1, 5.0), row("both", 2, 0.2, 5.0, unfinished=0.05)
    never = row("both", 3, 0.9, 5.0, unfinished=0.06)
    assert picked(row("none", 1, 0.1, 5.0), ends, near, never) == [1, 2]


def test_candidates_see_validation_topics_and_seeds_of_no_result_and_are_averaged(results_here, monkeypatch):
    runs, by_seed = [], {106: measured(0.2, 4.0, sd=1.0), 107: measured(0.4, 5.0, sd=7.0)}
    monkeypatch.setattr(studies, "measure", lambda run, arm: runs.append(run) or by_seed[run.seed])
    for study in ("selection", "reader"):
        studies.main([study])
    folder = results_here.parent / "figures/published/everyday"
    table = pd.read_csv(folder / "selection_dpo.csv")
    assert list(table.arm) == ["none", "none", "both", "both"] and (folder / "reader.csv").exists()
    assert table.fit_chosen[0] == pytest.approx(0.3) and (table.n[0], table.seeds[0]) == (20, "106 107")
    assert (table.quality[0], table.quality_sd[0]) == (4.5, 5.0)  # root of the mean of 1 and 49
    assert {run.profile.evaluation.split for run in runs} == {"validation"}
    rates = [(run.profile.dpo.learning_rate, run.profile.plain.dpo_learning_rate) for run in runs]
    default = load_profile("everyday")
    told, plain = default.dpo.learning_rate, default.plain.dpo_learning_rate
    assert rates[:4] == [(told, 5e-4), (told, 1e-3), (5e-4, plain), (1e-3, plain)]


SMALL = ["data.pair_limit=4", "evaluation.persona_judge=oracle", "seeds=0,1"]


@dataclass
class Writer:
    """Reads a pair right, or takes the other side of it; counts how often it is asked."""

    name: str
    asked: int = 0

    def write(self, items):
        self.asked += len(items)
        sides = [(item, side) for item in everyday.items() for side in "ab"]
        known = {getattr(i, f"response_{side}"): getattr(i, f"persona_{side}") for i, side in sides}
        return [known[preferred if self.name == "right" else other] for _, preferred, other in items]


@pytest.fixture
def writers(results_here, monkeypatch):
    made = {name: Writer(name) for name in ("right", "wrong")}
    monkeypatch.setattr(personas, "load_generator", lambda run, role: made[run.profile.generator.model])
    monkeypatch.setattr(personas, "role_key", lambda run, role: run.profile.generator.model)
    monkeypatch.setattr(personas, "parse_persona", lambda raw, words: (raw, "ok"))
    monkeypatch.setattr(everyday, "UNREADABLE", ())  # responses of the pairs are read well on all dimensions
    return made


@pytest.mark.slow
def test_right_personas_have_accuracy_1_others_0_and_no_model_is_asked_twice(writers):
    words = [w for name in writers for w in ("--model", name, f"generator.model={name}")]
    for _ in range(2):
        studies.main(["persona-models", *(w for value in SMALL for w in ("--set", value)), *words])
    table = pd.read_csv(results_dir(load_profile("everyday")) / "tables" / "persona_models.csv")
    by_side = table.set_index(["side", "model"])
    for side in ("chosen", "rejected"):
        assert list(by_side.accuracy[side]) == [1, 0] and list(by_side.n[side]) == [8, 8]
        assert by_side.n_wrong[side, "wrong"] == 8 and set(by_side.seeds[side]) == {"0 1"}
    assert by_side.accuracy["chosen - rejected", "right"] == 0
    assert {writer.asked for writer in writers.values()} == {16}


def test_another_prompt_is_another_question_and_the_same_is_not_asked_again(writers):
    own = Run(load_profile("everyday", SMALL), "everyday", 0)
    for shots in (5, 5, 3):
        found = studies.ask(own, "right", {"generator.model": "right", "personas.shots": shots})
    assert writers["right"].asked == 2 * 2 * 4 and {len(rows) for rows in found.values()} == {4}


@pytest.mark.slow
def test_every_judge_meets_the_same_gold_personas_in_both_orders_and_is_asked_once(results_here, monkeypatch):
    right = {getattr(i, f"persona_{s}"): getattr(i, f"response_{s}") for i in everyday.items() for s in "ab"}
    asked = []

    def load(run, kind):  # the backwards judge is right, the model always says A
        def judge(compared, rubric):
            asked.append((kind, [c.id for c in compared]))
            named = ("AB"[kind == "backwards" and c.response_a != right[c.persona]] for c in compared)
            return [Judgment(c.id, kind, rubric, one) for c, one in zip(compared, named, strict=True)]

        return judge

    monkeypatch.setattr(studies, "load_judge", load)
    monkeypatch.setattr(studies, "judge_key", lambda run, name: name)
    for _ in range(2):
        studies.main(["judges", "--set", "data.pair_limit=4", "--model", "small", "judge.model=x"])
    table = pd.read_csv(results_dir(load_profile("everyday")) / "tables" / "judges.csv").set_index("judge")
    found = table[["n", "accuracy", "contradicted"]].T.to_dict("list")
    assert found == {"backwards": [8, 1, 0], "small": [8, 0.5, 8]}
    (_, first), *others_asked = asked
    assert [kind for kind, _ in asked] == ["backwards"] * 2 + ["lm"] * 2
    assert all(ids == first for _, ids in others_asked) and len(set(first)) == 8


def lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_trained_policies_and_judges_meet_the_test_rows_of_others_under_both_wishes(tmp_path, monkeypatch):
    run = tiny_policies(tmp_path, monkeypatch, "sft-none", "dpo-none", "sft-chosen", "dpo-chosen")
    profile = set_field(run.profile, {"evaluation.persona_judge": ""})
    load = others.load_profile
    monkeypatch.setattr(others, "load_profile", lambda name, *_: load(name) if name == "own" else profile)

    def judge(compared, rubric):  # right if the wish is w1, always A else
        named = ("AB"[c.response_a != "w2 w3" and c.persona.endswith("w1")] for c in compared)
        return [Judgment(c.id, "oracle", rubric, one) for c, one in zip(compared, named, strict=True)]

    monkeypatch.setattr(others, "load_judge", lambda run, name: judge)
    rows = [{"prompt": f"w{n}", "response_a": "w2 w3", "response_b": "w4 w5 w6", "criteria_x": "w1",
             "criteria_y": "The user is w9", "split": "train" if n > 3 else "test"}
            for n in range(6)]  # fmt: skip
    studies.main(["reversal", "--data", lines(tmp_path / "rpr.jsonl", rows)])
    tables = results_dir(profile) / "tables"
    table = pd.read_csv(tables / "reversal.csv")
    assert set(table.n) == {4}, "the test rows alone"
    assert set(zip(table.arm, table.persona_format, strict=True)) == set(swap.swap_arms(run))
    judged = pd.read_csv(tables / "reversal_judges.csv").iloc[0]
    assert (judged.n, judged.accuracy, judged.contradicted) == (8, 0.75, 4)
    (scored,) = run.folder.glob("reversal/*/dpo-chosen.line/policy.jsonl")
    told = {(score.eval_persona, score.persona) for score in read_rows(scored, swap.PolicyScore)}
    assert told == {("gold-chosen", "The user wants this: w1"), ("gold-rejected", "The user is w9")}
    monkeypatch.setattr(swap.PolicyLoader, "load", None)
    studies.main(["reversal", "--data", str(tmp_path / "rpr.jsonl")])  # finished work is read


def test_inferred_personas_stand_beside_the_reasons_that_people_gave(tmp_path, results_here):
    said = {"lists": ("jokes", "lists please"), "brevity": ("tales", "brevity"), "depth": ("noise", "")}
    rows = [{"prompt": f"What is {liked}?", "chosen": liked, "rejected": other, "why": why,
             "p": f"The user prefers {liked}", "q": f"The user prefers {other}"}
            for liked, (other, why) in said.items()]  # fmt: skip
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("persona_chosen: p\npersona_rejected: q\nreason: why\n")
    data = ["--data", lines(tmp_path / "own.jsonl", rows)]
    studies.main(["reasons", *data, "--mapping", str(mapping)])
    table = pd.read_csv(results_here / "own" / "reasons" / "tables" / "reasons.csv").set_index("persona of")
    # F1 of "lists" and "lists please" is 2/3, of "brevity" and "brevity" 1; no other pair shares a word
    assert table.likeness["chosen"] == pytest.approx((2 / 3 + 1) / 2) and set(table.n) == {2}
    assert table.likeness["rejected"] == table.likeness["chosen, another person's reason"] == 0
    assert table.likeness["chosen - (rejected)"] == table.likeness["chosen"]
    with pytest.raises(SystemExit, match="not run: fewer than two rows have a reason"):
        studies.main(["reasons", *data])
    with pytest.raises(SystemExit, match="not run: gone.jsonl: no such file"):
        studies.main(["reversal", "--data", "gone.jsonl"])
