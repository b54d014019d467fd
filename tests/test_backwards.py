"""The judge that reads persona inference backwards: scores, verdicts, its rows and its key."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from persona_lib import store
from persona_lib.data import everyday, preference
from persona_lib.intervals import position_inconsistent, verdict_of
from persona_lib.models.generate import Completion
from persona_lib.paper import judges, personas
from persona_lib.paper.judging import judge_both, judge_key
from persona_lib.records import InferredPersona, PairwiseComparison, TailoringRow
from persona_lib.settings import Run, load_profile, set_field

PROFILE = load_profile("everyday")
PERSONA = "The user is calm and prefers tea."


@pytest.fixture
def judged(monkeypatch):
    """A judge whose score is the number of times that a prompt says "tea", and what it was asked."""
    asked = []

    def log_probs(model, tokenizer, prompts, completions, batch_size):
        asked.extend(zip(prompts, completions, strict=True))
        return np.array([float(prompt.count("tea")) for prompt in prompts])

    monkeypatch.setattr(judges, "format_of", lambda *source: None)
    monkeypatch.setattr(
        judges, "using_adapters", lambda model, names, merge: nullcontext(asked.append(names))
    )
    monkeypatch.setattr(judges, "sequence_log_probs", log_probs)
    judge = judges.BackwardsJudge(Run(PROFILE, "everyday", 0))
    judge.model, judge.tokenizer, judge.adapters = object(), object(), ["backwards"]
    return judge, asked


def compare(a: str, b: str) -> PairwiseComparison:
    return PairwiseComparison("row", "What now?", PERSONA, a, b)


@pytest.mark.parametrize("rubric", ["personalization", "quality"])
@pytest.mark.parametrize(
    "a, b, verdict", [("tea tea", "tea", "win"), ("beer", "tea", "loss"), ("x", "y", "tie")]
)
def test_the_higher_score_wins_in_both_orders_and_equal_scores_are_a_tie(judged, rubric, a, b, verdict):
    ((ab, ba),) = judge_both(judged[0], [compare(a, b)], rubric)
    assert verdict_of(ab, ba) == verdict and not position_inconsistent(ab, ba)
    assert (ab.tie, ba.tie) == (verdict == "tie",) * 2
    scores = [f"{text.count('tea'):.4f}" for text in (a, b)]
    assert ab.feedback == " : ".join(scores) and ba.feedback == " : ".join(scores[::-1])


def test_each_text_is_scored_once_and_only_fit_to_a_persona_is_scored_with_the_adapter(judged):
    judge, asked = judged
    judge_both(judge, [compare("tea", "beer"), compare("tea", "milk")], "personalization")
    adapters, *scored = asked
    assert adapters == ["backwards"] and len(scored) == 3  # two orders, and one response twice
    assert all(PERSONA in completion and PERSONA not in prompt for prompt, completion in scored)
    asked.clear()
    judge_both(judge, [compare("tea", "beer")], "quality")
    adapters, *scored = asked
    assert adapters == [] and {completion for _, completion in scored} == {" What now?"}


def test_a_plausible_user_is_scored_per_word_and_without_a_response(judged):
    judge, asked = judged
    pair = PairwiseComparison(
        "row", "tea or tea?", None, "The user prefers it.", "The user prefers a lot of it."
    )
    (verdict,) = judge.plausible([pair], "personalization")
    assert verdict.feedback == "0.5000 : 0.2857" and verdict.winner == "A"  # 2 / 4 and 2 / 7
    assert asked[0] == []


# --- its rows and its key ---


def test_of_everyday_it_learns_from_both_sides_of_training_topics_and_validates_on_others(monkeypatch):
    monkeypatch.setattr(judges, "format_of", lambda *source: None)
    run = Run(set_field(PROFILE, backwards_rows=0), "everyday", 0)
    for part, split in (("train", "train"), ("val", "validation")):
        rows = {row["id"]: row for row in judges.persona_rows(run, part)}
        items = [item for item in everyday.items() if item.split == split]
        assert set(rows) == {f"{item.id}/{side}" for item in items for side in "ab"}
        for item in items:
            row = rows[f"{item.id}/b"]
            assert row["completion"] == f" {item.persona_b}" and item.response_b in row["prompt"]
            assert item.persona_b not in row["prompt"] and item.response_a not in row["prompt"]


def test_its_rows_are_a_draw_by_id_with_an_eighth_for_validation(monkeypatch):
    monkeypatch.setattr(judges, "format_of", lambda *source: None)
    few = {n: Run(set_field(PROFILE, backwards_rows=n), "everyday", 0) for n in (4, 80)}
    assert [len(judges.persona_rows(run, part)) for run in few.values() for part in ("train", "val")] == [
        4, 1, 80, 10
    ]  # fmt: skip
    large = [row["id"] for row in judges.persona_rows(few[80], "train")]
    assert [row["id"] for row in judges.persona_rows(few[4], "train")] == large[:4]


def test_of_other_data_it_reads_sfts_rows_only_and_leaves_missing_personas_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    monkeypatch.setattr(judges, "format_of", lambda *source: None)
    run = Run(load_profile("authors"), "hhh", 0)
    for split in ("sft_train", "dpo_train", "sft_val", "test"):
        both = {"gold-chosen": f"{split} P", "gold-rejected": f"{split} N"}
        rows = [TailoringRow(split, split, "q", "c", "r", both), TailoringRow("x", split, "q", "c", "r", {})]
        store.write_rows(run.folder / "tailoring" / f"{split}.jsonl", rows)
    found = {part: judges.persona_rows(run, part) for part in ("train", "val")}
    assert {r["completion"] for r in found["train"]} == {" sft_train P", " sft_train N"}
    assert {r["id"] for r in found["val"]} == {"sft_val/chosen", "sft_val/rejected"}


def test_its_key_follows_what_decides_its_scores_and_nothing_else():
    def keys(**changes):
        run = Run(set_field(PROFILE, judge="backwards", **changes), "everyday", 0)
        return judges.judge_key(run), judge_key(run)

    same = [{"judge_batch_size": 2}, {"sft_learning_rate": 0.5}, {"train_limit": 3}]
    other = [{"backwards_rows": 8}, {"backwards_epochs": 2}, {"backwards_learning_rate": 0.5}, {"lora_r": 8},
             {"lora_dropout": 0.1}, {"lr_scheduler": "cosine"}, {"completion_only_loss": False},
             {"max_length": 99}, {"base_model": "pypi:smollm2-135m-instruct/2"}]  # fmt: skip
    assert all(keys(**changes) == keys() for changes in same)
    for part in (0, 1):
        assert len({str(keys(**changes)[part]) for changes in other} | {str(keys()[part])}) == len(other) + 1


@pytest.mark.slow
def test_it_trains_once_and_its_verdict_does_not_depend_on_the_order(tmp_path, monkeypatch):
    from tiny import tiny_run

    run = tiny_run(tmp_path, monkeypatch, backwards_rows=16, max_length=128)
    folder = judges.train_judge(run)
    before = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    assert judges.train_judge(run) == folder == tmp_path / "everyday" / "everyday" / "backwards"
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == before
    ((ab, ba),) = judge_both(judges.BackwardsJudge(run), [compare("w1 w2 w3", "w4 w5")], "personalization")
    assert ab.feedback.split(" : ") == ba.feedback.split(" : ")[::-1] and not position_inconsistent(ab, ba)


# --- which of two users is the more plausible ---


class Scripted:
    """A language model that gives its answers in turn."""

    name, tokenizer = "scripted", None

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    def generate(self, prompts, max_new_tokens, stop):

        return [(n, Completion(self.answers.pop(0), "stop", 1)) for n in range(len(prompts))]


@pytest.fixture
def inferred(tmp_path, monkeypatch):
    """Personas of four pairs, one of them without the rejected persona: open(persona_judge) -> run."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    monkeypatch.setattr(judges, "format_of", lambda *source: None)

    def open_run(judge: str) -> Run:
        run = Run(set_field(load_profile("smoke"), pair_limit=4, persona_judge=judge), "everyday", 0)

        preference.write_pairs(run)
        for side in ("chosen", "rejected"):
            found = [None if (side, n) == ("rejected", 3) else f"The user is {side} {n}." for n in range(4)]
            rows = [
                InferredPersona(pair.id, side, "m", text, "ok" if text else "empty", "")
                for pair, text in zip(preference.load_pairs(run)["test"], found, strict=True)
            ]
            store.write_rows(run.folder / "personas" / f"test-{side}.jsonl", rows)
        return run

    return open_run


@pytest.mark.parametrize("judge", ["oracle", "none"])
def test_without_a_judge_for_it_no_user_is_called_the_more_plausible(inferred, judge):
    assert personas.preference_verdicts(inferred(judge), "test") == []


def test_the_backwards_judge_compares_both_users_of_a_pair(inferred, monkeypatch):
    likely = {"The user is chosen 0.": 3.0, "The user is rejected 1.": 3.0}
    monkeypatch.setattr(
        judges.BackwardsJudge,
        "scores",
        lambda self, asked, adapted: [likely.get(text.strip(), 1.0) for _, text in asked],
    )
    verdicts = personas.preference_verdicts(inferred("backwards"), "test")
    assert [verdict for _, verdict in verdicts] == ["win", "loss", "tie", None]


def test_a_language_model_is_asked_in_both_orders_and_never_read_into(inferred, monkeypatch):
    model = Scripted("A", "A", "A", "B", "A", "hm")
    monkeypatch.setattr(personas, "load_generator", lambda run, role, size: model)
    verdicts = personas.preference_verdicts(inferred("lm"), "test")
    assert [verdict for _, verdict in verdicts] == ["win", "tie", "unparsed", None] and model.answers == []
