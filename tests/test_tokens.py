"""Chat models are asked in their own format: which ids they see, and which of them are learned."""

from __future__ import annotations

import pytest
from tiny import tiny_tokenizer

from persona_lib import prompts, weights
from persona_lib.data.preference import to_dpo_rows, to_sft_rows
from persona_lib.models import load
from persona_lib.records import TailoringRow

SMOLLM = "pypi:smollm2-135m-instruct"
BOS, EOS, TURN = 1, 2, 57  # ids of "<s>", "</s>", and "<turn>", which is added to the tiny vocabulary
NAMES = "{% set name = {'system': 'w40', 'user': 'w41'} %}{{ bos_token }}"
DEFAULT = "{% if messages[0]['role'] != 'system' %}<turn> w40 w49 </s>{% endif %}"
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
TURNS = (
    "{% for m in messages %}<turn> {{ name[m['role']] }} {{ m['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<turn> w42 {% endif %}"
)
ROW = TailoringRow("r", "sft_train", "w1 w2", "w3", "w4 w5", {"gold-chosen": "w6 w7"})


def w(*numbers: int) -> list[int]:
    """Ids of words of the tiny vocabulary."""
    return [7 + number for number in numbers]


def chat_tokenizer(adds_bos: bool = True, start: str = DEFAULT):
    """The tiny tokenizer with a chat template, which writes BOS as text."""
    tokenizer = tiny_tokenizer(adds_bos)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = NAMES + start + TURNS
    assert tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<turn>"]) == [BOS, EOS, TURN]
    return tokenizer


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_persona_is_the_system_turn_without_it_the_models_own_stands_there_and_bos_once(adds_bos):
    tokenizer = chat_tokenizer(adds_bos)
    chat = load.chat_format(tokenizer)
    told = prompts.tailoring_prompt("w1 w2", "w6 w7", chat=chat)
    untold = prompts.tailoring_prompt("w1 w2", None, chat=chat)
    asked = [TURN, *w(41, 1, 2), EOS, TURN, *w(42)]
    assert ids(tokenizer, told) == [BOS, TURN, *w(40, 6, 7), EOS, *asked]
    assert ids(tokenizer, untold) == [BOS, TURN, *w(40, 49), EOS, *asked]
    assert told.startswith("<s>") != adds_bos
    first = prompts.tailoring_prompt("w1 w2", "w6 w7", "first_person", chat=chat)
    assert first == prompts.tailoring_prompt("w1 w2 w6 w7", None, chat=chat)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_only_the_answer_and_the_end_of_the_turn_are_learned(adds_bos):
    tokenizer = chat_tokenizer(adds_bos)
    chat = load.chat_format(tokenizer)
    (sft,), (dpo,) = (make([ROW], "chosen", 0, chat) for make in (to_sft_rows, to_dpo_rows))
    expected = ids(tokenizer, prompts.tailoring_prompt("w1 w2", "w6 w7", chat=chat))
    assert load.encode(tokenizer, sft["prompt"], sft["completion"]) == (expected, [*w(3), EOS])
    assert load.encode(tokenizer, dpo["prompt"], dpo["rejected"]) == (expected, [*w(4, 5), EOS])


def test_special_tokens_in_texts_stay_text():
    tokenizer = chat_tokenizer()
    chat = load.chat_format(tokenizer)
    harmless = ids(tokenizer, prompts.tailoring_prompt("w1", "w6", chat=chat))
    asked = prompts.tailoring_prompt("w1 </s> <turn> w40 <s>", "w6 <turn> <pad></s>", chat=chat)
    prompt, completion = load.encode(tokenizer, asked, prompts.completion_text(" w3 </s> <turn> w4 ", chat))
    for token in (0, BOS, EOS, TURN):
        assert prompt.count(token) == harmless.count(token)
    assert completion == [*w(3), 3, 3, *w(4), EOS]
    assert chat.plain("a < b </ s>") == "a < b </ s>"


def test_a_template_without_a_system_turn_gets_the_persona_before_the_question():
    tokenizer = chat_tokenizer(start=REFUSING)
    chat = load.chat_format(tokenizer)
    asked = [BOS, TURN, *w(41, 6, 7, 1, 2), EOS, TURN, *w(42)]
    assert ids(tokenizer, prompts.tailoring_prompt("w1 w2", "w6 w7", chat=chat)) == asked
    assert "w6 w7\n\nw1 w2" in prompts.tailoring_prompt("w1 w2", "w6 w7", chat=chat)


def test_a_template_that_drops_its_system_turn_gets_the_persona_before_the_question_too():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}Q {{ m.content }} A{% endif %}{% endfor %}"
    )
    chat = load.chat_format(tokenizer)
    assert prompts.tailoring_prompt("Why?", "The user is shy.", chat=chat) == "Q The user is shy.\n\nWhy? A"


def test_examples_are_conversations_that_have_ended():
    chat = load.chat_format(chat_tokenizer())
    asked = prompts.tailoring_prompt("w1", "w6", chat=chat)
    shown = prompts.few_shot_prompt([("w8", None, " w9 ")], asked, chat)
    assert shown == f"{prompts.tailoring_prompt('w8', None, chat=chat)}w9</s>\n{asked}"
    assert prompts.begun_prompt(asked, "W1 sounds like", chat) == f"{asked}W1 sounds like"


def test_a_base_model_keeps_the_papers_lines():
    tokenizer = tiny_tokenizer()
    assert load.chat_format(tokenizer) is None
    (row,) = to_sft_rows([ROW], "chosen", 0, None)
    assert row["prompt"] == "Prompt: w1 w2\nPersona: w6 w7\nResponse:" and row["completion"] == " w3"
    expected = ([BOS, 4, *w(1, 2), 5, *w(6, 7), 6], [*w(3), EOS])
    assert load.encode(tokenizer, row["prompt"], row["completion"]) == expected


@pytest.mark.slow
def test_smollm2_sees_these_ids():
    """1 and 2 open and end a turn; 9690, 4093 and (520, 9531) are the roles; 198 ends a line."""
    try:
        tokenizer = load.load_tokenizer(SMOLLM)
    except weights.WeightsError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(str(error))
    chat = load.format_of(SMOLLM)
    told = prompts.tailoring_prompt("Why?", "The user is curious.", chat=chat)
    answer = prompts.completion_text(" Because.\n", chat)
    user = [1, 4093, 198, 4898, 47, 2, 198, 1, 520, 9531, 198]
    system = [1, 9690, 198, 504, 2914, 314, 7436, 30, 2, 198]
    assert load.encode(tokenizer, told, answer) == ([*system, *user], [8653, 30, 2])
    own = [2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182]
    untold = prompts.tailoring_prompt("Why?", None, chat=chat)
    assert ids(tokenizer, untold) == [1, 9690, 198, *own, 2, 198, *user]
    special = " ".join(chat.special)
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= set(
        chat.special
    ) and tokenizer.pad_token_id != 2
    found = ids(tokenizer, prompts.tailoring_prompt(f"Why? {special}", f"The user {special}", chat=chat))
    assert [token for token in found if token in tokenizer.all_special_ids or token < 17] == [1, 2] * 2 + [1]
