"""The studies: the rule that picks training settings, and persona inference by several models."""

import pandas as pd
import pytest

from persona_lib import studies
from persona_lib.data import everyday, reader
from persona_lib.paper import personas
from persona_lib.settings import load_profile, results_dir

# --- selection ---


def row(arm, seed, rate, fit, quality, sd=1.0, unfinished=0.0):
    head = {"method": "sft", "arm": arm, "seed": seed, "sft.learning_rate": rate}
    measured = {"quality": quality, "quality_sd": sd, "unfinished": unfinished, "n": 10}
    return head | {"fit_chosen": fit, "fit_rejected": fit} | measured


RATES = [*(candidate["sft.learning_rate"] for candidate in studies.CANDIDATES["sft"]), 1.0]


def test_candidates_are_averaged_over_seeds():
    rows = [row("none", 106, RATES[0], 0.2, 4.0, sd=1.0), row("none", 107, RATES[0], 0.4, 5.0, sd=7.0)]
    others = [row(arm, 106, rate, 9.0, 9.0) for arm in studies.ARMS for rate in RATES[:2]][1:]
    pooled = studies.pool_seeds([*rows, *others], "sft")[0]
    assert round(pooled["fit_chosen"], 9) == 0.3 and pooled["quality"] == 4.5
    assert pooled["quality_sd"] == 5.0  # root of the mean of 1 and 49
    assert pooled["n"] == 20 and pooled["seeds"] == "106 107"


def test_plain_arm_gives_up_at_most_a_tenth_of_a_deviation_of_quality_for_fit():
    best = row("none", 106, RATES[0], 0.1, 5.0)
    near, far = row("none", 106, RATES[1], 0.2, 4.91), row("none", 106, RATES[2], 0.9, 4.89)
    assert studies.pick([best, near, far])["fit_chosen"] == 0.2


@pytest.mark.parametrize("plain_quality", [5.0, 6.0])
def test_pt_keeps_the_quality_of_the_plain_arms_pick_or_takes_its_best(plain_quality):
    plain = row("none", 106, RATES[0], 0.1, plain_quality)
    good, bad = row("both", 106, RATES[1], 0.5, 4.95), row("both", 106, RATES[2], 0.9, 4.8)
    assert studies.pick_both([plain, good, bad]) == {"none": plain, "both": good}


def test_a_candidate_whose_answers_do_not_end_is_out_whatever_its_fit():
    ends, near = row("both", 106, RATES[0], 0.1, 5.0), row("both", 106, RATES[1], 0.2, 5.0, unfinished=0.05)
    never = row("both", 106, RATES[2], 0.9, 5.0, unfinished=0.06)
    assert studies.pick([ends, near, never]) is near


def test_a_candidate_sets_its_arms_own_fields_on_validation_topics_and_seeds_of_no_result():
    profile = studies.tuning_profile(load_profile("everyday"))
    assert profile.evaluation.split == "validation" and min(studies.SEEDS) >= 100
    plain = studies.with_candidate(profile, "none", {"sft.learning_rate": 0.5})
    tailored = studies.with_candidate(profile, "chosen", {"sft.learning_rate": 0.5})
    assert plain.plain.sft_learning_rate == 0.5 and plain.sft.learning_rate == profile.sft.learning_rate
    assert tailored.sft.learning_rate == 0.5
    assert tailored.plain.sft_learning_rate == profile.plain.sft_learning_rate


# --- persona-models ---

SMALL = ["data.pair_limit=4", "evaluation.persona_judge=oracle"]


class Writer:
    """Writes what it is told to, and counts how often it is asked."""

    name, settings = "writer", {"generation.engine": "none"}

    def __init__(self, say):
        self.say, self.asked = say, 0

    def write(self, items):
        self.asked += len(items)
        return [self.say(*item) for item in items]


def true_persona(prompt, preferred, other):
    """Return the persona of the side that is preferred."""
    item = next(item for item in everyday.items() if item.prompt == prompt)
    return item.persona_a if item.response_a == preferred else item.persona_b


@pytest.fixture
def writers(tmp_path, monkeypatch):
    """Served models: one reads the pair right, one takes the other side of it, one says nothing."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PERSONA_FIGURES", str(tmp_path / "figures"))
    made = {
        "right": Writer(lambda prompt, preferred, other: true_persona(prompt, preferred, other)),
        "wrong": Writer(lambda prompt, preferred, other: true_persona(prompt, other, preferred)),
        "silent": Writer(lambda *item: ""),
    }
    monkeypatch.setattr(studies, "load_generator", lambda run, role, size: made[run.profile.generator.model])
    monkeypatch.setattr(reader, "UNREADABLE", ())  # responses of the pairs are read well on all dimensions
    monkeypatch.setattr(studies, "role_key", lambda run, role: run.profile.generator.model)
    monkeypatch.setattr(personas, "parse_persona", lambda raw, words: (raw or None, "ok" if raw else "empty"))
    return made


def run(*models):
    words = [w for name in models for w in ("--model", name, f"generator.model={name}")]
    overrides = [w for value in SMALL for w in ("--set", value)]
    studies.main(["persona-models", *overrides, "--seeds", "2", *words])
    return pd.read_csv(results_dir(load_profile("everyday")) / "tables" / "persona_models.csv")


def of(table, model, side="chosen"):
    (row,) = table[(table.model == model) & (table.side == side)].itertuples()
    return row


@pytest.mark.slow
def test_right_personas_have_accuracy_1_others_0_and_no_model_is_asked_twice(writers):
    first = run("right", "wrong")
    table = run("right", "wrong", "silent")
    for side in ("chosen", "rejected"):
        assert [of(table, name, side).accuracy for name in writers] == [1, 0, 0]
        assert (of(table, "right", side).n, of(table, "right", side).seeds) == (8, "0 1")
        assert (of(table, "silent", side).n_missing, of(table, "wrong", side).n_wrong) == (8, 8)
    assert of(table, "right", "chosen - rejected").accuracy == 0
    assert {writer.asked for writer in writers.values()} == {16}
    kept = table[table.model != "silent"].reset_index(drop=True)
    pd.testing.assert_frame_equal(first.drop(columns="n_missing"), kept.drop(columns="n_missing"),
                                  check_dtype=False)  # fmt: skip


def test_another_prompt_is_another_question(writers):
    profile = load_profile("everyday", SMALL)
    for shots in (5, 3):
        changed = {"generator.model": "right", "personas.shots": shots}
        studies.ask(profile, "right", changed, "everyday", 0)
    assert writers["right"].asked == 2 * 2 * 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "a", "generator.modle=x"], "unknown setting 'generator.modle'"),
        (["--model", "a", "--model", "A"], "two models of this name"),
        (
            ["--set", "evaluation.persona_judge=none", "--set", "evaluation.judge=none"],
            "has evaluation.judge=none",
        ),
    ],
)
def test_what_cannot_be_asked_is_said_before_any_model_is(writers, words, said):
    with pytest.raises(SystemExit) as stopped:
        studies.main(["persona-models", *words])
    assert said in str(stopped.value)
    assert not any(writer.asked for writer in writers.values())
