"""The authors' counting of judgments, case by case as their code does it, and what is drawn by a seed."""

import pytest

from persona_lib.evaluation.released_counts import (
    make_biased,
    make_unreadable,
    merged_votes,
    released_verdict,
)
from persona_lib.stats.metrics import combine


@pytest.mark.parametrize(
    ("votes", "ours", "theirs"),
    [
        ((1, 1), "win", "win"),
        ((-1, -1), "loss", "loss"),
        ((1, -1), "tie", "tie"),
        ((0, 0), "tie", "tie"),
        ((None, 1), "unparsed", "win"),  # read as a vote for the tested response
        ((None, -1), "unparsed", "tie"),
        ((1, None), "unparsed", "tie"),  # in the other order it stays out of wins and losses
        ((-1, None), "unparsed", "tie"),
        ((None, None), "unparsed", "tie"),
    ],
)
def test_an_unreadable_answer_is_a_win_for_the_tested_response_in_one_order_only(votes, ours, theirs):
    assert (combine(votes), released_verdict(votes)) == (ours, theirs)


def test_items_of_one_instruction_get_one_verdict_and_only_if_all_votes_agree():
    votes = {"a": (1, 1), "b": (1, 1), "c": (1, -1), "d": (-1, -1), "e": (1, 1)}
    texts = {"a": "same", "b": "same", "c": "x", "d": "other", "e": "other"}
    merged = merged_votes(votes, texts)
    assert merged == {"a": (1, 1), "c": (1, -1), "d": (0, 0)}
    assert merged_votes(votes, {name: name for name in votes}) == votes


def test_a_share_of_judgments_is_unreadable_and_the_seed_says_which():
    votes = {f"i{n}": (1, -1) for n in range(2000)}
    lost = make_unreadable(votes, 0.05, 3)
    assert lost == make_unreadable(votes, 0.05, 3) != make_unreadable(votes, 0.05, 4)
    singles = [v for pair in lost.values() for v in pair]
    assert singles.count(None) / len(singles) == pytest.approx(0.05, abs=0.015)
    assert all(new in (None, old) for name in votes for new, old in zip(lost[name], votes[name], strict=True))


def test_a_biased_judge_names_a_which_is_the_tested_response_in_the_first_order_only():
    assert make_biased({"i": (-1, -1), "j": (1, 1)}, 1.0, 0) == {"i": (1, -1), "j": (1, -1)}
    assert make_biased({"i": (-1, -1)}, 0.0, 0) == {"i": (-1, -1)}
