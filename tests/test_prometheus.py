"""Prometheus-2's format: prompts, verdicts, both ways of decoding, and judging that resumes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from persona_lib import store
from persona_lib.intervals import verdict_of
from persona_lib.models import load
from persona_lib.models.generate import Completion, Sampling, TransformersGenerator
from persona_lib.paper import judges, judging
from persona_lib.records import DataError, Judgment, PairwiseComparison
from persona_lib.settings import ConfigError, Run, load_profile

TEMPLATES = ("SYSTEM", "<{instruction}>\nA<{response_A}>\nB<{response_B}>\nR<{rubric}>\nFeedback: ")
ONE = PairwiseComparison("row-1", "How?", "The user is shy.", " first ", "second")
ENDINGS = {
    "Both are fine. [RESULT] A": "A",
    "Long feedback.\n[RESULT] B\n": "B",
    "So [Result] Response B": "B",
    "So [RESULT] (A)": "A",
    "Result: b": "B",
    "[RESULT: A]": "A",
    "A is better than B": None,
    "[RESULT] A because it is short": None,
    "[RESULT] C": None,
    "[RESULT] Both": None,
    "The results favour A": None,
    "": None,
}


class Scripted:
    """A generator that gives its answers in turn and keeps what it was asked."""

    name = "scripted"

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), []

    def generate(self, prompts, max_new_tokens, stop, sampling=None):
        self.asked.append((list(prompts), max_new_tokens, sampling))
        return [(n, Completion(self.answers.pop(0), "stop", 1)) for n in range(len(prompts))]


@pytest.mark.parametrize("text, winner", ENDINGS.items())
def test_only_a_verdict_at_the_end_is_read(text, winner):
    assert judges.parse_verdict(text) == winner


def test_verdicts_are_read_as_the_package_reads_them_where_it_is_installed():
    package = importlib.util.find_spec("prometheus_eval")
    if package is None:
        pytest.skip("prometheus-eval is not installed: pip install --no-deps prometheus-eval==0.1.20")
    path = Path(package.submodule_search_locations[0]) / "parser.py"
    spec = importlib.util.spec_from_file_location("prometheus_parser", path)
    parser = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parser)
    theirs = {text: parser.parse_output(text, mode="relative")[1] for text in ENDINGS}
    ours = {text: judges.parse_verdict(text) for text in ENDINGS}
    differing = {text for text in ENDINGS if theirs[text] != ours[text]}
    assert differing <= {"So [RESULT] (A)"}, "we also read a letter in round brackets"
    system, template = judges.load_templates()
    assert "{response_A}" in template and "{instruction}" in template and system


def test_the_prompt_holds_both_responses_and_the_persona_for_personalization_only():
    text = judges.prometheus_prompt(TEMPLATES, "personalization", ONE)
    assert text.startswith("[INST] SYSTEM\n<") and text.endswith("Feedback:  [/INST]")
    assert "A<first>\nB<second>" in text and "The user is shy." in text and "How?" in text
    assert "shy" not in judges.prometheus_prompt(TEMPLATES, "quality", ONE)
    assert judges.prometheus_prompt(TEMPLATES, "quality", ONE, chat=True).startswith("SYSTEM\n<")


OWN_TEXTS = """
quality: {criterion: "Is it good?", instruction: "Ask: {prompt}"}
personalization: {criterion: "Does it suit?", instruction: "Ask: {prompt} Who: {persona}"}
mnemonic:
  quality: {instruction: "Term: {prompt}"}
"""


def test_texts_of_the_users_reach_the_judge_and_a_data_set_may_have_its_own(tmp_path):
    path = tmp_path / "texts.yaml"
    path.write_text(OWN_TEXTS)
    hhh, mnemonic = (judges.read_texts(str(path), name) for name in ("hhh", "mnemonic"))
    odd = PairwiseComparison("row-1", "Why {persona}?", "The {prompt}.", "a", "b")
    assert judges.instruction("personalization", odd, hhh) == "Ask: Why {persona}? Who: The {prompt}."
    assert judges.instruction("quality", odd, hhh) == "Ask: Why {persona}?"
    assert judges.instruction("quality", odd, mnemonic) == "Term: Why {persona}?"
    text = judges.prometheus_prompt(TEMPLATES, "quality", ONE, texts=mnemonic)
    assert "<Term: How?>" in text and "R<Is it good?>" in text
    assert judges.read_texts("", "hhh") is judges.TEXTS


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("a list: [", "cannot be read"),
        ("- one", "should have the blocks personalization and quality"),
        (OWN_TEXTS.replace("Who: {persona}", ""), "personalization: instruction: {persona} does not stand"),
        (OWN_TEXTS.replace('Ask: {prompt}"}', 'Ask"}'), "quality: instruction: {prompt} does not stand"),
        (OWN_TEXTS.replace('"Is it good?"', "7"), "quality: criterion: 7; should be a text"),
        (OWN_TEXTS.replace("criterion", "criteria"), "'criteria': use criterion and instruction"),
    ],
)
def test_a_wrong_file_of_texts_is_named_with_its_place(tmp_path, wrong, said):
    path = tmp_path / "texts.yaml"
    path.write_text(wrong)
    with pytest.raises(ConfigError) as error:
        judges.read_texts(str(path), "hhh")
    assert str(path) in str(error.value) and said in str(error.value)
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot be read"):
        judges.read_texts(str(tmp_path / "nowhere.yaml"), "hhh")


def test_texts_without_prometheus_are_an_error_and_their_content_is_part_of_the_key(tmp_path, monkeypatch):
    path = tmp_path / "texts.yaml"
    path.write_text(OWN_TEXTS)
    with pytest.raises(ConfigError, match="judge_texts needs judge=lm and judge_format=prometheus"):
        load_profile("everyday", [f"judge_texts={path}"])
    monkeypatch.setattr(judging, "role_key", lambda run, role: "")
    run = Run(load_profile("paper", [f"judge_texts={path}"]), "hhh", 0)
    before = judging.judge_key(run)
    path.write_text(OWN_TEXTS + " ")
    assert judging.judge_key(run) != before


def test_constants_are_read_without_running_the_file(tmp_path):
    path = tmp_path / "prompts.py"
    path.write_text('REL_SYSTEM_PROMPT = "S"\nRELATIVE_PROMPT_WO_REF = """T"""\nraise SystemExit\n')
    assert judges.load_templates(path) == ("S", "T")


def test_another_file_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    store.write_text(tmp_path / "downloads" / "prometheus" / "prompts.py", "REL_SYSTEM_PROMPT = 'x'\n")
    with pytest.raises(DataError, match="prompts.py: not the pinned prompt format"):
        judges.template_file()


def test_deterministic_judging_asks_once_and_keeps_what_it_cannot_read():
    generator = Scripted("[RESULT] A", "no idea", "[RESULT] B", "[RESULT] B")
    judged = judges.prometheus_judge(generator, 64, templates=TEMPLATES)
    two = [ONE, PairwiseComparison("row-2", "Why?", None, "x", "y")]
    pairs = judging.judge_both(judged, two, "quality")
    assert [verdict_of(*pair) for pair in pairs] == ["win", "unparsed"]
    assert [(tokens, sampling) for _, tokens, sampling in generator.asked] == [(64, None)] * 2
    assert pairs[1][0].feedback == "no idea"


def test_official_judging_samples_unread_answers_again_with_new_seeds_at_most_ten_times():
    generator = Scripted("[RESULT] A", "?", "?", "[RESULT] B")
    judged = judges.prometheus_judge(generator, 64, "official", templates=TEMPLATES)
    two = [ONE, PairwiseComparison("row-2", "Why?", None, "x", "y")]
    assert [j.winner for j in judged(two, "quality")] == ["A", "B"]
    assert [len(prompts) for prompts, _, _ in generator.asked] == [2, 1, 1]
    assert [sampling for _, _, sampling in generator.asked] == [
        Sampling(1.0, 0.9, 1.03, seed) for seed in (0, 1, 2)
    ]
    stubborn = Scripted(*["?"] * 10)
    (judgment,) = judges.prometheus_judge(stubborn, 64, "official", templates=TEMPLATES)([ONE], "quality")
    assert judgment.winner is None and len(stubborn.asked) == 10


def test_judging_that_was_killed_goes_on_after_the_last_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "CHUNK", 2)
    rows = [PairwiseComparison(f"row-{n}", "q", None, "a", "b") for n in range(5)]
    asked = []

    def first_is_better(comparisons, rubric):
        asked.extend(c.id for c in comparisons)
        if len(asked) > limit:
            raise KeyboardInterrupt
        return [Judgment(c.id, "test", rubric, "A" if c.response_a == "a" else "B") for c in comparisons]

    path, limit = tmp_path / "quality.jsonl", 6
    with pytest.raises(KeyboardInterrupt):
        judging.judge_rubric(first_is_better, rows, "quality", path)
    assert [row["id"] for row in store.iter_rows(path)] == ["row-0", "row-0", "row-1", "row-1"]
    asked.clear()
    limit = 100
    pairs = judging.judge_rubric(first_is_better, rows, "quality", path)
    assert sorted(set(asked)) == ["row-2", "row-3", "row-4"]
    assert [verdict_of(*pair) for pair in pairs] == ["win"] * 5
    assert len(list(store.iter_rows(path))) == 10


@pytest.mark.slow
def test_a_tiny_mistral_judges_in_this_format_from_end_to_end(tmp_path):
    """Random weights write no verdict: everything is kept, counted as unparsed, and not asked again."""
    import torch
    from tiny import save_base
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    tokenizer = load.load_tokenizer("pypi:smollm2-135m-instruct")
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=64, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = save_base(tmp_path / "mistral", MistralForCausalLM(config), tokenizer)
    generator = TransformersGenerator(load.load_base(folder), load.load_tokenizer(folder), "tiny", 4)
    rows = [PairwiseComparison(f"row-{n}", f"row {n}", "The user is shy.", "one", "two") for n in range(3)]
    for decoding in ("deterministic", "official"):
        judged = judges.prometheus_judge(generator, 8, decoding, templates=TEMPLATES)
        path = tmp_path / f"{decoding}.jsonl"
        pairs = judging.judge_rubric(judged, rows, "personalization", path)
        assert [verdict_of(*pair) for pair in pairs] == ["unparsed"] * 3
        assert all(j.feedback for pair in pairs for j in pair)
        assert judging.judge_rubric(None, rows, "personalization", path) == pairs
