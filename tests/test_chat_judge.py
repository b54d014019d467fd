"""A chat model as judge: its JSON is read strictly, and a schema goes only to generators that take one."""

from __future__ import annotations

import pytest

from persona_lib import prompts as prompts_module
from persona_lib.intervals import verdict_of
from persona_lib.models.generate import Completion
from persona_lib.models.load import chat_text
from persona_lib.paper import judges, judging
from persona_lib.records import PairwiseComparison
from persona_lib.settings import ConfigError, Run, load_profile

ONE = PairwiseComparison("row-1", "How?", "The user is shy.", " first ", "second")


class Scripted:
    """A generator that gives its answers in turn and keeps what it was asked."""

    name = "scripted"

    def __init__(self, *answers: str, takes_schema: bool = False) -> None:
        self.answers, self.asked, self.takes_schema = list(answers), [], takes_schema

    def generate(self, prompts, max_new_tokens, stop, **settings):
        self.asked.append((list(prompts), max_new_tokens, stop, settings))
        return [(n, Completion(self.answers.pop(0), "stop", 1)) for n in range(len(prompts))]


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ('{"reason": "it fits", "winner": "A"}', "A"),
        ('```json\n{"reason": "a {brace} and a \\"quote\\"", "winner": "B"}\n```', "B"),
        ('Let me think {about it}.\n{"winner": "B", "reason": ""} Done.', "B"),
        ('{"winner": "A"} {"winner": "A"}', "A"),
        ("Both answer.\nWinner: **B**", "B"),
        ("winner: a.", "A"),
        (" (A)\n", "A"),
        ('{"winner": "A"} no, {"winner": "B"}', None),
        ('{"winner": "C", "reason": ""}', None),
        ('{"winner": null}', None),
        ('{"winner": ["A"]}', None),
        ('{"reason": "the winner: A"}', None),
        ('{"reason": "cut off at the le', None),
        ("A is better", None),
        ("The winner is A or B", None),
        ("", None),
        ("[1, 2]", None),
    ],
)
def test_one_winner_is_read_and_nothing_is_guessed(text, winner):
    assert judges.parse_choice(text) == winner


def test_the_prompt_shows_the_persona_for_personalization_only_and_asks_for_json():
    text = prompts_module.chat_judge_prompt("personalization", "How?", "The user is shy.", " one ", "two")
    assert "The user is shy." in text and "Response A:\none\n" in text and '"winner"' in text
    assert "shy" not in prompts_module.chat_judge_prompt("quality", "How?", "The user is shy.", "one", "two")


def test_both_orders_are_asked_and_an_unreadable_one_leaves_the_pair_unparsed():
    generator = Scripted('{"winner": "A"}', "no idea", '{"winner": "B"}', '{"winner": "B"}')
    two = [ONE, PairwiseComparison("row-2", "Why?", None, "x", "y")]
    pairs = judging.judge_both(judges.chat_judge(generator, 64), two, "quality")
    assert [verdict_of(*pair) for pair in pairs] == ["win", "unparsed"]
    assert pairs[1][0].feedback == "no idea" and pairs[0][0].judge == "scripted"
    assert [settings for *_, settings in generator.asked] == [{}, {}]


def test_a_generator_that_takes_a_schema_gets_it():
    generator = Scripted('{"winner": "A"}', takes_schema=True)
    judges.chat_judge(generator, 64)([ONE], "quality")
    assert generator.asked[0][1:] == (64, (), {"schema": judges.SCHEMA})
    assert list(judges.SCHEMA["properties"]) == ["reason", "winner"]


class Template:
    """The part of a tokenizer that ``chat_text`` uses, with or without a BOS of its own."""

    bos_token, bos_token_id, eos_token = "<s>", 1, "</s>"
    chat_template, all_special_tokens, added_tokens_decoder = "its template", [], {}

    def __init__(self, adds_bos: bool) -> None:
        self.adds_bos = adds_bos

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, 7] if self.adds_bos else [7]}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        turns = "".join(f"[{m['role']}] {m['content']} " for m in messages)
        return f"<s>{turns}[assistant]"


@pytest.mark.parametrize(("adds_bos", "start"), [(True, "[user]"), (False, "<s>[user]")])
def test_a_chat_prompt_has_bos_once(adds_bos, start):
    assert chat_text(Template(adds_bos), "hello") == f"{start} hello [assistant]"


@pytest.mark.parametrize("form", ["letter", "json"])
def test_a_loaded_chat_model_is_asked_in_its_own_format_and_a_plain_one_is_not(monkeypatch, form):
    profile = load_profile("everyday", ["judge=lm", "judge_model=some/chat-model", f"judge_format={form}"])
    for template, framed in (("its template", True), (None, False)):
        generator = Scripted("A")
        generator.tokenizer = Template(adds_bos=True)
        generator.tokenizer.chat_template = template
        monkeypatch.setattr(judges, "load_generator", lambda *_, g=generator: g)
        (judgment,) = judges.load_judge(Run(profile, "everyday", 0))([ONE], "quality")
        assert judgment.winner == "A"
        assert generator.asked[0][0][0].startswith("[user]") is framed


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["second_judge_model=m", "judge=none"], "name the first judge, too"),
        (["second_judge_url=http://h/v1"], "name the model that it serves in second_judge_model"),
        (["second_judge_model=m", "second_judge_matchups=mein"], "second_judge_matchups=\\['mein'\\]"),
        (["second_judge_format=xml"], "use one of letter, json, prometheus"),
        (
            ["judge=lm", "judge_model=m", "second_judge_model=m", "judge_format=json"]
            + ["judge_max_new_tokens=256"],
            "are the same judge",
        ),
    ],
)
def test_a_wrong_judge_is_refused_with_the_mend(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_profile("everyday", settings)
