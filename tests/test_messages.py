"""TRL's conversational formats become the text that the documents promise."""

from __future__ import annotations

import pytest

from persona_lib.data.intake import MessageError, conversation_texts

ASK, YES, NO = (
    {"role": r, "content": c} for r, c in (("user", "How?"), ("assistant", "Yes"), ("assistant", "No"))
)
SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "text"),
    [
        ([ASK], [YES], [NO], "How?"),  # explicit prompt
        (None, [ASK, YES], [ASK, NO], "How?"),  # implicit: what both begin with
        ("How?", [ASK, YES], [ASK, NO], "How?"),  # text, repeated in the messages
        ("How?", [YES], [NO], "How?"),  # text, only the responses are messages
        ([ASK], [ASK, YES], [ASK, NO], "How?"),  # messages, repeated
        ([ASK], "Yes", "No", "How?"),  # only the prompt is messages
        ([SYSTEM, ASK], [YES], [NO], "System: Be kind.\n\nUser: How?"),
        (None, [ASK, YES, ASK, YES], [ASK, YES, ASK, NO], "User: How?\n\nAssistant: Yes\n\nUser: How?"),
        ([{"role": "user", "content": [{"type": "text", "text": "How?"}]}], [YES], [NO], "How?"),
    ],
)
def test_conversations_become_prompt_and_responses(prompt, chosen, rejected, text):
    assert conversation_texts(prompt, chosen, rejected) == (text, "Yes", "No")


def test_equal_conversations_keep_their_responses():
    assert conversation_texts(None, [ASK, YES], [ASK, YES]) == ("How?", "Yes", "Yes")


def test_plain_text_stays_as_it_is():
    assert conversation_texts("p", "c", 3) == ("p", "c", 3)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "field", "said"),
    [
        (
            None,
            [ASK, YES],
            [{"role": "user", "content": "Why?"}, NO],
            "chosen",
            "after the prompt come user, assistant",
        ),
        ("Why?", [ASK, YES], [ASK, NO], "prompt", "not what the messages of both responses begin with"),
        ([ASK], [YES, ASK], [NO], "chosen", "after the prompt come assistant, user; one assistant message"),
        ([ASK], [{"role": "assistant"}], [NO], "chosen", "a message has role; needed: role, content"),
        ([ASK], [YES], [{"role": "assistant", "content": None}], "rejected", "content is NoneType, not text"),
        (None, [YES], [NO], "prompt", "no beginning in common"),
    ],
)
def test_messages_that_make_no_pair_name_the_field(prompt, chosen, rejected, field, said):
    with pytest.raises(MessageError, match=said) as caught:
        conversation_texts(prompt, chosen, rejected)
    assert caught.value.field == field
