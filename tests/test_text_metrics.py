"""Text measures against numbers derived by hand and against slow literal transcriptions."""

import math
import random

import pytest

from persona_lib import texts as texts_module
from persona_lib.paper import swap


def test_tokens_are_lower_case_words_digits_and_apostrophes():
    assert texts_module.tokens("It's 3 o'clock, DON'T (re-)panic!") == [
        "it's",
        "3",
        "o'clock",
        "don't",
        "re",
        "panic",
    ]


def test_unigram_f1_by_hand():
    # output a a b, reference a b c d: overlap a, b = 2; F1 = 2 x 2 / (3 + 4)
    assert texts_module.unigram_f1("A a, b", "a b c d") == pytest.approx(4 / 7)
    assert texts_module.unigram_f1("same words", "words same") == 1.0
    assert (
        texts_module.unigram_f1("", "a")
        == texts_module.unigram_f1("x", "a")
        == texts_module.unigram_f1("!", "?")
        == 0.0
    )


def test_only_the_output_is_cut_to_200_tokens():
    assert texts_module.unigram_f1("a " * 200 + "b " * 300, "b") == 0.0
    assert texts_module.unigram_f1("a " * 300, "a " * 300) == pytest.approx(2 * 200 / (200 + 300))


def slow_f1(output: str, reference: str) -> float:
    """Count the overlap by striking out reference tokens one by one."""
    first, left = texts_module.tokens(output)[:200], texts_module.tokens(reference)
    size, overlap = len(first) + len(left), 0
    for token in first:
        if token in left:
            left.remove(token)
            overlap += 1
    return 2 * overlap / size if size else 0.0


def random_text(rng: random.Random, longest: int = 300) -> str:
    return " ".join(rng.choices([*"abcdefg", "don't", "12"], k=rng.randrange(longest)))


def test_unigram_f1_equals_the_literal_count():
    rng = random.Random(0)
    for _ in range(100):
        output, reference = random_text(rng), random_text(rng)
        assert texts_module.unigram_f1(output, reference) == pytest.approx(slow_f1(output, reference))


def test_flip_and_did_by_hand():
    chosen, rejected = ["a b", "a b", "a b", "a b"], ["c d", "c d", "c d", "c d"]
    # right way; wrong way; the persona is ignored (nearer to chosen both times); equal distance under P_C
    under_chosen, under_rejected = ["a b", "c d", "a b", "a c"], ["c d", "a b", "a b", "c d"]
    scores = swap.flip_and_did(under_chosen, under_rejected, chosen, rejected)
    assert scores.pull_chosen.tolist() == [1, -1, 1, 0] and scores.pull_rejected.tolist() == [-1, 1, 1, -1]
    assert scores.did.tolist() == [2, -2, 0, 1]
    assert scores.flip.tolist() == [1, 0, 0, 0]
    positive = scores.did_positive.tolist()
    assert positive[:2] == [1, 0] and math.isnan(positive[2]) and positive[3] == 1


def test_flip_and_did_refuses_lists_that_do_not_match():
    with pytest.raises(ValueError, match="shorter"):
        swap.flip_and_did(["a", "b"], ["a"], ["a", "b"], ["a", "b"])
    assert swap.flip_and_did([], [], [], []).did.shape == (0,)


def test_length_steering_is_a_rank_correlation():
    assert swap.length_steering([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1.0)
    # ranks 1 2 3 4 and 2 1 4 3: rho = 1 - 6 x 4 / (4 x 15) = .6
    assert swap.length_steering([1, 2, 3, 4], [5, 4, 9, 8]) == pytest.approx(0.6)
    assert swap.length_steering([1, 1, 1], [1, 2, 3]) is None
    assert swap.length_steering_interval([1, 1, 1], [1, 2, 3], 50) is None


def test_length_steering_interval_covers_a_known_correlation():
    rng = random.Random(1)
    first = [rng.gauss(0, 1) for _ in range(400)]
    second = [0.5 * x + rng.gauss(0, 0.75**0.5) for x in first]
    low, high = swap.length_steering_interval(first, second, 500)
    assert low < swap.length_steering(first, second) < high
    assert high - low == pytest.approx(2 * 1.96 * (1 - 0.48**2) / 20, rel=0.25)  # Spearman of r = .5 is .48


def test_repetition_by_hand():
    assert texts_module.repetition("a b c") == 0.0  # no 4-gram
    assert texts_module.repetition("a b c d e") == 0.0
    assert texts_module.repetition("a a a a a a") == pytest.approx(2 / 3)  # 3 4-grams, 1 distinct
    assert texts_module.repetition("a b a b", n=2) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("", False),
        ("a a", False),
        ("a a a", True),
        ("start x y x y x y", True),
        ("x y x y x y end", False),
        ("x y x y x", False),
        (" ".join(list(map(str, range(80))) * 3), True),
        (" ".join(list(map(str, range(81))) * 3), False),
    ],
)
def test_suffix_loop_is_the_same_block_of_at_most_80_words_three_times_at_the_end(text, loops):
    assert texts_module.has_suffix_loop(text) == loops


def test_degenerate_counts():
    texts = ["fine and short", "a a a a a a", "no end here"]
    assert texts_module.count_degenerate(texts, [True, False, False]) == texts_module.Degenerate(
        3, 2, 1, 1, 1
    )
    with pytest.raises(ValueError, match="zip"):
        texts_module.count_degenerate(texts, [True])
