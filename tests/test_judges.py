"""The judges: what counts as a verdict, what each is shown, and the scores of the backwards judge."""

import importlib.util
from contextlib import nullcontext

import numpy as np
import pytest
from tiny import tiny_run

from persona_lib import store
from persona_lib.data import everyday
from persona_lib.intervals import position_inconsistent, verdict_of
from persona_lib.models import load
from persona_lib.models.generate import Completion
from persona_lib.paper import judges
from persona_lib.prompts import ChatFormat
from persona_lib.records import DataError, PairwiseComparison, TailoringRow
from persona_lib.settings import Run, load_profile, set_field

PROFILE = load_profile("everyday")
ITEM = next(item for item in everyday.items() if item.dimension == "length" and item.split == "test")
ONE = PairwiseComparison("row-1", "How?", "The user is shy.", " first ", "second")
TWO = [ONE, PairwiseComparison("row-2", "Why?", None, "x", "y")]
TEMPLATES = ("SYSTEM", "<{instruction}>\nA<{response_A}>\nB<{response_B}>\nR<{rubric}>\nFeedback: ")


class Scripted:
    """A generator that gives its answers in turn and keeps what it was asked."""

    name, tokenizer = "scripted", None

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), []

    def generate(self, prompts, max_new_tokens, stop, **settings):
        self.asked.append((list(prompts), max_new_tokens, settings))
        return [(n, Completion(self.answers.pop(0), "stop", 1)) for n in range(len(prompts))]


def test_the_oracle_judges_fit_by_the_datas_wishes_and_quality_without_them():
    a, b, cut = ITEM.response_a, ITEM.response_b, ITEM.response_a[:40]
    cases = {
        "personalization": [(ITEM.persona_a, a, b), (ITEM.user_a, b, a), (ITEM.user_a, a, a), ("new", a, b)],
        "quality": [(ITEM.persona_a, a, cut), (ITEM.persona_b, a, cut)],
    }
    wanted = {"personalization": ["win", "loss", "tie", "tie"], "quality": ["win", "win"]}
    for rubric, told in cases.items():
        found = [PairwiseComparison(ITEM.id, ITEM.prompt, *each) for each in told]
        judged = judges.judge_both(judges.oracle_judge, found, rubric)
        assert [verdict_of(*pair) for pair in judged] == wanted[rubric]


LETTERS = {"A": "A", " B.": "B", "**B**": "B", "A is better": "A", "Response B: Yes": "B", "Persona A": "A",
           "Response": None, "Response to A": None, "Apple": None, "": None, "C": None}  # fmt: skip
CHOICES = {
    '```json\n{"reason": "a {brace} and a \\"winner\\": \\"A\\"", "winner": "B"}\n```': "B",
    'Let me think {about it}.\n{"winner": "B", "reason": ""} Done.': "B",
    '{"winner": "A"} no, {"winner": "B"}': None,
    '{"reason": "cut off at the le': None,
}
ENDINGS = {
    "Both are fine. [RESULT] A": "A",
    "So [Result] Response (B)": "B",
    "[RESULT] A because it is short": None,
}


@pytest.mark.parametrize(
    ("form", "answer", "winner"),
    [
        (form, *case)
        for form, cases in ((judges.LETTER, LETTERS), (judges.CHOICE, CHOICES), (judges.VERDICT, ENDINGS))
        for case in cases.items()
    ],
)
def test_one_winner_is_read_and_nothing_is_guessed(form, answer, winner):
    assert judges.winner_of(form, answer) == winner


def judge_of(monkeypatch, generator: Scripted, *settings: str):
    monkeypatch.setattr(judges, "load_generator", lambda *_: generator)
    monkeypatch.setattr(judges, "load_templates", lambda: TEMPLATES)
    given = ["evaluation.judge=lm", "judge.model=some/chat-model", "judge.max_new_tokens=64", *settings]
    return judges.load_judge(Run(load_profile("everyday", given), "everyday", 0))


ANSWERS = {"letter": "{}", "json": '{{"winner": "{}"}}', "prometheus": "[RESULT] {}"}


@pytest.mark.parametrize("form", ANSWERS)
def test_a_win_needs_both_orders_and_an_unreadable_answer_leaves_the_pair_unparsed(monkeypatch, form):
    win, lose = map(ANSWERS[form].format, "AB")
    generator = Scripted(win, "no idea", win, lose, lose, win)
    judge = judge_of(monkeypatch, generator, f"judge.format={form}")
    pairs = judges.judge_both(judge, [*TWO, ONE], "quality")
    assert [verdict_of(*pair) for pair in pairs] == ["win", "unparsed", "tie"]
    assert pairs[1][0].feedback == "no idea" and pairs[0][0].judge == "scripted"
    assert [asked[1:] for asked in generator.asked] == [(64, {})] * 2


@pytest.mark.parametrize("template", ["its template", None])
def test_a_loaded_chat_model_is_asked_in_its_own_format_and_a_plain_one_is_not(monkeypatch, template):
    generator, judged = Scripted("A", '{"winner": "A"}'), []
    generator.tokenizer = template
    chat = ChatFormat(("[system]", "[user]", "[answer]"), ("[user]", "[answer]"), "[end]", ())
    monkeypatch.setattr(load, "chat_format", lambda tokenizer: chat)
    for form in ("letter", "json"):
        judged += judge_of(monkeypatch, generator, f"judge.format={form}")([ONE], "quality")
    assert [judgment.winner for judgment in judged] == ["A", "A"]
    for (prompt,), *_ in generator.asked:
        assert (prompt[:6] == "[user]" and prompt[-8:] == "[answer]") is bool(template)


def test_the_prompt_holds_both_responses_and_the_persona_for_personalization_only():
    odd = PairwiseComparison("row-1", "Why {persona}?", "The {prompt}.", "{a}", "b")
    text = judges.prometheus_prompt(TEMPLATES, odd, "personalization")
    assert "Request: Why {persona}?\nWho asks: The {prompt}.>\nA<{a}>" in text, "a row cannot change it"
    assert text.startswith("[INST] SYSTEM\n<") and text.endswith("Feedback:  [/INST]")
    assert "Who asks" not in judges.prometheus_prompt(TEMPLATES, ONE, "quality")
    assert judges.prometheus_prompt(TEMPLATES, ONE, "quality", chat=True).startswith("SYSTEM\n<")


def test_the_pinned_format_is_read_without_running_it_and_another_file_is_refused(results_here, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = results_here / "downloads" / "prometheus" / "prompts.py"
    store.write_text(path, 'REL_SYSTEM_PROMPT = "S"\nRELATIVE_PROMPT_WO_REF = """T"""\nraise SystemExit\n')
    with pytest.raises(DataError, match="prompts.py: not the pinned prompt format"):
        judges.load_templates()
    monkeypatch.setattr(judges, "SHA256", store.file_hash(path))
    assert judges.load_templates() == ("S", "T")


def test_official_judging_samples_unread_answers_again_with_new_seeds_at_most_ten_times(monkeypatch):
    generator = Scripted("[RESULT] A", "?", *["?"] * 9)
    judge = judge_of(monkeypatch, generator, "judge.format=prometheus", "judge.decoding=official")
    assert [j.winner for j in judge(TWO, "quality")] == ["A", None]
    assert [len(prompts) for prompts, *_ in generator.asked] == [2, *[1] * 9]
    drawn = {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.03}
    assert [settings for *_, settings in generator.asked] == [drawn | {"seed": seed} for seed in range(10)]


PERSONA = "The user is calm and prefers tea."


@pytest.fixture
def paper_lines(monkeypatch):
    """A base model that is no chat model."""
    monkeypatch.setattr(load, "format_of", lambda *source: None)


@pytest.fixture
def backwards(monkeypatch, paper_lines):
    """A judge whose score is the number of times that a prompt says "tea", and what it was asked."""
    asked = []

    def log_probs(model, tokenizer, prompts, completions, batch_size):
        asked.extend((prompt, text) for prompt, (text,) in zip(prompts, completions, strict=True))
        return np.array([[float(prompt.count("tea"))] for prompt in prompts])

    monkeypatch.setattr(load, "using_adapters", lambda model, names, merge: nullcontext(asked.append(names)))
    monkeypatch.setattr(load, "pair_log_probs", log_probs)
    judge = judges.BackwardsJudge(Run(PROFILE, "everyday", 0))
    judge.model, judge.tokenizer = object(), object()
    return judge, asked


def compare(a: str, b: str) -> PairwiseComparison:
    return PairwiseComparison("row", "What now?", PERSONA, a, b)


@pytest.mark.parametrize("rubric", judges.RULED)
def test_the_higher_score_wins_in_both_orders_and_equal_scores_are_a_tie(backwards, rubric):
    found = [compare("tea tea", "tea"), compare("beer", "tea"), compare("x", "y")]
    pairs = judges.judge_both(backwards[0], found, rubric)
    assert [verdict_of(*pair) for pair in pairs] == ["win", "loss", "tie"]
    assert [judgment.feedback for judgment in pairs[0]] == ["2.0000 : 1.0000", "1.0000 : 2.0000"]


def test_each_text_is_scored_once_and_only_fit_to_a_persona_is_scored_with_the_adapter(backwards):
    judge, asked = backwards
    judges.judge_both(judge, [compare("tea", "beer"), compare("tea", "milk")], "personalization")
    adapters, *scored = asked
    assert adapters == ["backwards"] and len(scored) == 3  # two orders, and one response twice
    assert all(PERSONA in completion and PERSONA not in prompt for prompt, completion in scored)
    asked.clear()
    judges.judge_both(judge, [compare("tea", "beer")], "quality")
    adapters, *scored = asked
    assert adapters == [] and {completion for _, completion in scored} == {" What now?"}
    asked.clear()
    users = "The user prefers it.", "The user prefers a lot of it."
    (verdict,) = judge.plausible([PairwiseComparison("row", "tea or tea?", None, *users)], "personalization")
    assert verdict.feedback == "0.5000 : 0.2857" and asked[0] == []  # per word: 2 / 4 and 2 / 7


def test_of_everyday_it_learns_from_both_sides_of_training_topics_and_validates_on_others(paper_lines):
    few, whole = (Run(set_field(PROFILE, {"evaluation.backwards_rows": n}), "everyday", 0) for n in (80, 0))
    assert [len(judges.persona_rows(few, part)) for part in ("train", "val")] == [80, 10]
    for part, split in (("train", "train"), ("val", "validation")):
        rows = {row["id"]: row for row in judges.persona_rows(whole, part)}
        first, *rest = [item for item in everyday.items() if item.split == split]
        assert set(rows) == {f"{item.id}/{side}" for item in (first, *rest) for side in "ab"}
        row = rows[f"{first.id}/b"]
        assert row["completion"] == f" {first.persona_b}" and first.response_b in row["prompt"]
        assert first.persona_b not in row["prompt"] and first.response_a not in row["prompt"]


def test_of_other_data_it_reads_sfts_rows_with_their_personas(results_here, paper_lines):
    run, both = Run(load_profile("authors"), "hhh", 0), {"gold-chosen": "P", "gold-rejected": "N"}
    rows = [TailoringRow(name, "sft_val", "q", "c", "r", told) for name, told in (("a", both), ("b", {}))]
    store.write_rows(run.folder / "tailoring" / "sft_val.jsonl", rows)  # no other file is there to read
    found = {(row["id"], row["completion"]) for row in judges.persona_rows(run, "val")}
    assert found == {("a/chosen", " P"), ("a/rejected", " N")}


def test_its_key_follows_what_decides_its_scores_and_nothing_else():
    def key(**changes):
        return judges.backwards_key(Run(set_field(PROFILE, changes), "everyday", 0))

    same = [{"judge.batch_size": 2}, {"sft.learning_rate": 0.5}, {"training.rows": 3}]
    other = [{"evaluation.backwards_rows": 8}, {"lora.r": 8}, {"training.max_length": 99}]
    assert {key(**changes) for changes in same} == {key()}
    assert len({key(**changes) for changes in other} | {key()}) == len(other) + 1


@pytest.mark.slow
def test_it_trains_once_and_its_verdict_does_not_depend_on_the_order(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, monkeypatch, **{"evaluation.backwards_rows": 16, "training.max_length": 128})
    folder = judges.train_backwards(run)
    before = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    judge = judges.BackwardsJudge(run)
    ((ab, ba),) = judges.judge_both(judge, [compare("w1 w2", "w4 w5")], "personalization")
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == before, "trained once"
    assert ab.feedback.split(" : ") == ba.feedback.split(" : ")[::-1] and not position_inconsistent(ab, ba)
