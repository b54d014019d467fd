"""Retrieval never gives a row back to itself, and always gives the same answer."""

from __future__ import annotations

import pytest

from persona_lib.retrieval import retrieve

POOL = [
    ("t0", "How do I bake a potato?"),
    ("t1", "How do I fix a bicycle tyre?"),
    ("t2", "What is the best way to learn Spanish?"),
    ("t3", "How do I repair a bicycle chain?"),
]


def test_the_row_that_shares_the_rare_words_is_found():
    queries = [("q0", "bicycle chain slips, what to repair"), ("q1", "A good way to learn Greek")]
    assert retrieve(queries, POOL) == [3, 2]


def test_a_row_never_retrieves_itself_nor_its_own_prompt():
    queries = [POOL[1], ("q", "how do i FIX a  bicycle tyre?")]
    assert retrieve(queries, POOL) == [3, 3]


def test_equal_scores_go_to_the_earlier_row():
    pool = [("a", "red kettle"), ("b", "blue kettle"), ("c", "green kettle")]
    assert retrieve([("q", "kettle"), ("r", "nothing in common")], pool) == [0, 0]


def test_a_query_without_an_allowed_row_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="'q'"):
        retrieve([("q", "Same prompt")], [("a", "same  prompt")])
    with pytest.raises(ValueError, match="pool is empty"):
        retrieve([("q", "x")], [])
