"""The studies: the rule that picks training settings, and persona inference by several models."""

from dataclasses import dataclass

import pandas as pd
import pytest

from persona_lib import studies
from persona_lib.data import everyday, reader
from persona_lib.paper import personas
from persona_lib.settings import Run, load_profile, results_dir

# --- selection ---


def row(arm, rate, fit, quality, sd=1.0, unfinished=0.0, seed=106):
    head = {"arm": arm, "seed": seed, "dpo.learning_rate": rate}
    measured = {"quality": quality, "quality_sd": sd, "unfinished": unfinished, "n": 10}
    return head | {"fit_chosen": fit, "fit_rejected": fit} | measured


def picked(*rows):
    """Return the rates that the rule picks for plain DPO and PT."""
    table = pd.DataFrame(rows)
    return [table["dpo.learning_rate"][label] for label in studies.pick(table)]


def test_candidates_are_averaged_over_seeds(monkeypatch):
    monkeypatch.setattr(studies, "CANDIDATES", [{"dpo.learning_rate": 1}, {"dpo.learning_rate": 2}])
    rows = [row("none", 1, 0.2, 4.0, sd=1.0), row("both", 2, 9.0, 9.0)]
    pooled = studies.pool_seeds([*rows, row("none", 1, 0.4, 5.0, sd=7.0, seed=107)])
    assert list(pooled.arm) == ["none", "both"] and pooled.fit_chosen[0] == pytest.approx(0.3)
    assert pooled.quality[0] == 4.5 and pooled.quality_sd[0] == 5.0  # root of the mean of 1 and 49
    assert pooled.n[0] == 20 and pooled.seeds[0] == "106 107"


def test_the_plain_arm_gives_up_a_tenth_of_a_deviation_of_quality_for_fit_and_pt_keeps_its_quality():
    plain = [row("none", 1, 0.1, 5.0), row("none", 2, 0.2, 4.91), row("none", 3, 0.9, 4.89)]
    tailored = [row("both", 1, 0.1, 4.9), row("both", 2, 0.5, 4.82), row("both", 3, 0.9, 4.8)]
    assert picked(*plain, *tailored) == [2, 2]
    assert picked(row("none", 1, 0.1, 6.0), *tailored) == [1, 1], "none is as good: the best"


def test_a_candidate_whose_answers_do_not_end_is_out_whatever_its_fit():
    ends, near = row("both", 1, 0.1, 5.0), row("both", 2, 0.2, 5.0, unfinished=0.05)
    never = row("both", 3, 0.9, 5.0, unfinished=0.06)
    assert picked(row("none", 1, 0.1, 5.0), ends, near, never) == [1, 2]


def test_a_candidate_sets_its_arms_own_fields_on_validation_topics_and_seeds_of_no_result():
    profile = load_profile("everyday")
    plain, tailored = (studies.with_candidate(profile, arm, 1) for arm in studies.ARMS)
    assert plain.evaluation.split == "validation" and min(studies.SEEDS) >= 100
    rates = [(one.dpo.learning_rate, one.plain.dpo_learning_rate) for one in (plain, tailored)]
    kept = profile.dpo.learning_rate, profile.plain.dpo_learning_rate
    assert rates == [(kept[0], 1e-3), (1e-3, kept[1])] and plain.name == "everyday/selection/none-1"


def test_selection_and_reader_write_where_their_documents_say(results_here, monkeypatch):
    monkeypatch.setattr(studies, "measure", lambda run, arm: row(arm, 1e-3, 0.5, 1.0))
    for study in ("selection", "reader"):
        studies.main([study])
    written = {path.name for path in (results_here.parent / "figures/published/everyday").glob("*.csv")}
    assert written == {"selection_dpo.csv", "reader.csv"}
    assert "figures/published/everyday/{selection_dpo,reader}.csv" in studies.__doc__


# --- persona-models ---

SMALL = ["data.pair_limit=4", "evaluation.persona_judge=oracle", "seeds=0,1"]


@dataclass
class Writer:
    """Reads a pair right, or takes the other side of it; counts how often it is asked."""

    name: str
    asked: int = 0
    settings = {}

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
    monkeypatch.setattr(reader, "UNREADABLE", ())  # responses of the pairs are read well on all dimensions
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


def test_without_a_judge_no_model_is_asked(writers):
    with pytest.raises(SystemExit, match="has evaluation.judge=none"):
        studies.main(["persona-models", "--profile", "own"])
    assert not any(writer.asked for writer in writers.values())
