"""Measures of text, near duplicates and leaks against numbers by hand and slow literal transcriptions."""

from dataclasses import replace

import pytest

from persona_lib import texts
from persona_lib.records import TailoringRow


def test_tokens_overlap_and_repetition_by_hand():
    found = texts.tokens("It's 3 o'clock, DON'T (re-)panic!")
    assert found == ["it's", "3", "o'clock", "don't", "re", "panic"]
    # output a a b, reference a b c d: overlap a, b = 2; F1 = 2 x 2 / (3 + 4)
    assert texts.unigram_f1("A a, b", "a b c d") == pytest.approx(4 / 7)
    assert texts.unigram_f1("", "a") == texts.unigram_f1("!", "?") == 0.0
    assert texts.unigram_f1("a " * 200 + "b " * 300, "b") == 0.0  # only the output is cut to 200 tokens
    assert texts.repetition("a b c") == texts.repetition("a b c d e") == 0.0
    assert texts.repetition("a a a a a a") == pytest.approx(2 / 3)  # 3 4-grams, 1 distinct


def test_a_loop_is_the_same_block_of_at_most_80_words_three_times_at_the_end_and_is_counted():
    blocks = [" ".join([*map(str, range(n))] * 3) for n in (80, 81)]
    looping = [texts.has_suffix_loop(text) for text in ("start x y x y x y", "x y x y x y end", *blocks)]
    assert looping == [True, False, True, False]
    found = texts.count_degenerate(["fine and short", "a a a a a a", "no end here"], [True, False, False])
    assert list(found.values()) == [3, 2, 1, 1]


def test_near_duplicates_by_hand():
    # {how do i, do i bake, i bake cake} and {how do i, do i bake, i bake bread}: 2 of 4
    pool = ["nothing", "how do I bake bread", "how do I bake bread", "do so"]
    assert texts.near_duplicates(["How do I bake cake?"], pool, 0.5) == [(0, 1, 0.5)], "the first of equals"
    assert texts.near_duplicates(["How do I bake cake?"], pool, 0.51) == []
    found = texts.near_duplicates(["", "do SO!", "How do I bake bread"], pool, 0.9)
    assert found == [(1, 3, 1.0), (2, 1, 1.0)]
    assert texts.near_duplicates(["System: x\n\nUser: do so"], ["User: do so"], 1.0) == [(0, 0, 1.0)]
    template = [f"please answer this question about {n}" for n in range(12)]  # 3-grams that all texts have
    assert texts.near_duplicates(template[:6], template[6:], 0.3) == []


def row(id: str, split: str, prompt: str, retrieved_id=None) -> TailoringRow:
    return TailoringRow(id, split, prompt, "the blue kettle boils fast now", "no idea", {}, retrieved_id)


def found(rows, words: str) -> int:
    report = texts.leakage_report(rows, 0.5)
    [count] = report[report.check.str.contains(words)].found
    return count


@pytest.fixture
def clean() -> dict[str, list[TailoringRow]]:
    splits = ("sft_train", "sft_val", "dpo_train", "dpo_val", "validation", "test")
    return {s: [row(s, s, f"{s} asks", "sft_train" if s in texts.EVAL_SPLITS else None)] for s in splits}


def test_each_leak_is_found_and_clean_data_has_none(clean):
    report = texts.leakage_report(clean, 0.5)
    assert report[report.must_be_zero].found.sum() == 0 and report.must_be_zero.sum() == 15 + 6
    test = clean["test"][0]
    leaks = {
        "prompts shared by dpo_train and test": replace(test, prompt="dpo_train asks"),
        "test rows that retrieve themselves": replace(test, retrieved_id="test"),
        "test rows that retrieve from outside": replace(test, retrieved_id="sft_val"),
        "test rows that retrieve a row with their own prompt": replace(test, prompt="sft_train asks"),
    }
    for check, bad in leaks.items():
        assert found(clean | {"test": [bad]}, check) == 1
    for id, leaks in (("sft_val", 0), ("other", 1)):  # a prompt in two splits may be the same row
        again = [replace(clean["sft_val"][0], id=id, split="validation")]
        assert found(clean | {"validation": again}, "prompts shared by sft_val and validation") == leaks
