"""Judging: both orders, ties, unparsed answers, and the rows of the results tables."""

import pytest

from persona_lib.data import everyday
from persona_lib.intervals import verdict_of
from persona_lib.models.generate import Completion
from persona_lib.paper import answers as answers_module
from persona_lib.paper import judges, judging
from persona_lib.paper.answers import grid
from persona_lib.records import PairwiseComparison
from persona_lib.settings import Run, load_profile, set_field

PROFILE = load_profile("everyday", ["controls=true", "train_personas=none,chosen"])
PROMPT = "How do I clean my old kettle?"
CHEAP = "For the old kettle, use the brush. Choose the cheap kind."
DEAR = "For the old kettle, use the brush. Buy the finest brand."
ITEM = next(item for item in everyday.items() if item.dimension == "length" and item.split == "test")


class Scripted:
    """A generator that gives the answers it was made with."""

    name = "scripted"

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    def generate(self, prompts, max_new_tokens, stop):
        return [(n, Completion(self.answers.pop(0), "stop", 1)) for n in range(len(prompts))]


def compare(
    a: str, b: str, persona: str = "The user is thrifty and prefers low prices."
) -> PairwiseComparison:
    return PairwiseComparison("row-1", PROMPT, persona, a, b)


@pytest.mark.parametrize("tested, base, verdict", [("a", "b", "win"), ("b", "a", "loss"), ("a", "a", "tie")])
def test_the_oracle_gives_the_same_verdict_in_both_orders(tested, base, verdict):
    texts = (getattr(ITEM, f"response_{side}") for side in (tested, base))
    for persona in (ITEM.persona_a, ITEM.user_a):
        c = PairwiseComparison(ITEM.id, ITEM.prompt, persona, *texts)
        ((ab, ba),) = judging.judge_both(judges.oracle_judge(), [c], "personalization")
        assert verdict_of(ab, ba) == verdict
        assert (ab.tie, ba.tie) == (verdict == "tie",) * 2
        texts = (c.response_a, c.response_b)


def test_a_persona_that_the_data_do_not_hold_is_a_tie():
    c = PairwiseComparison(
        "1", ITEM.prompt, "The user is new and prefers it.", ITEM.response_a, ITEM.response_b
    )
    ((ab, ba),) = judging.judge_both(judges.oracle_judge(), [c], "personalization")
    assert verdict_of(ab, ba) == "tie"


def test_quality_does_not_look_at_the_persona():
    for persona in (ITEM.persona_a, ITEM.persona_b):
        c = PairwiseComparison("1", ITEM.prompt, persona, ITEM.response_a, ITEM.response_a[:40])
        ((ab, ba),) = judging.judge_both(judges.oracle_judge(), [c], "quality")
        assert verdict_of(ab, ba) == "win"


@pytest.mark.parametrize(
    "answers, verdict",
    [
        (("A", "B"), "win"),
        (("B", "A"), "loss"),
        (("A", "A"), "tie"),
        (("A", "hmm"), "unparsed"),
        (("", "B"), "unparsed"),
    ],
)
def test_a_language_model_wins_only_with_both_orders_and_is_never_read_into(answers, verdict):
    ((ab, ba),) = judging.judge_both(
        judges.lm_judge(Scripted(*answers)), [compare(CHEAP, DEAR)], "personalization"
    )
    assert verdict_of(ab, ba) == verdict


@pytest.mark.parametrize(
    "text, winner",
    [
        ("A", "A"),
        (" B.", "B"),
        ("(A)", "A"),
        ("**B**", "B"),
        ("A is better", "A"),
        ("Apple", None),
        ("", None),
        ("C", None),
    ],
)
def test_parse_winner_reads_a_letter_that_stands_alone(text, winner):
    assert judges.parse_winner(text) == winner


def test_matchups_compare_the_tailored_arm_with_the_plain_one_told_the_same_persona():
    run = Run(PROFILE, "everyday", 0)
    main = [m for m in answers_module.matchups(run) if m.kind == "main"]
    assert [m.judge_persona for m in main] == [
        f"{kind}-{side}" for kind in ("gold", "retrieved", "user") for side in ("chosen", "rejected")
    ]
    for m in main:
        assert (m.test.arm, m.test.persona_format) == ("dpo-chosen", "line")
        assert (m.base.arm, m.base.persona_format) == ("dpo-none", "first_person")
        assert m.test.eval_persona == m.base.eval_persona == m.judge_persona


def test_shuffled_system_and_absent_personas_are_judged_for_the_rows_own_persona():
    controls = [m for m in answers_module.matchups(Run(PROFILE, "everyday", 0)) if m.kind == "control"]
    judged = {
        m.test.eval_persona: m.judge_persona for m in controls if m.test.eval_persona.startswith("shuffled")
    }
    assert judged == {"shuffled-chosen": "gold-chosen", "shuffled-rejected": "gold-rejected"}
    for persona in ("none", "system"):
        assert {m.judge_persona for m in controls if m.test.eval_persona == persona} == {
            "gold-chosen",
            "gold-rejected",
        }


def test_an_arm_trained_on_other_rows_personas_is_a_control_told_and_judged_like_the_tailored_one():
    run = Run(set_field(PROFILE, train_personas=["none", "chosen", "shuffled"]), "everyday", 0)
    rows = [m for m in answers_module.matchups(run) if m.test.train_persona == "shuffled"]
    main = [m for m in answers_module.matchups(run) if m.kind == "main"]
    assert {m.kind for m in rows} == {"control"}
    assert [(m.test.eval_persona, m.test.persona_format, m.base, m.judge_persona) for m in rows] == [
        (m.test.eval_persona, m.test.persona_format, m.base, m.judge_persona) for m in main
    ]


def test_slugs_of_matchups_and_runs_are_unique_and_path_safe():
    profile = set_field(PROFILE, train_personas=["none", "chosen", "rejected", "both", "shuffled"])
    run = Run(profile, "everyday", 0)
    for slugs in ([s.slug for s in grid(run)], [m.slug for m in answers_module.matchups(run)]):
        assert len(set(slugs)) == len(slugs)
        assert all(set(slug) <= set("abcdefghijklmnopqrstuvwxyz_-.") for slug in slugs)


def test_every_matchup_is_about_runs_of_the_grid():
    run = Run(PROFILE, "everyday", 0)
    cells = set(grid(run))
    assert all({m.test, m.base} <= cells for m in answers_module.matchups(run))


def test_without_a_judge_nothing_is_judged_and_it_is_said():
    with pytest.raises(ValueError, match="judge=none"):
        judges.load_judge(Run(set_field(PROFILE, judge="none"), "everyday", 0))
