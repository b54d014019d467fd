"""Retrieval never gives a row back to itself, and always gives the same answer."""

import sys
from types import SimpleNamespace

import pytest
import torch

from persona_lib.data import retrieval
from persona_lib.data.retrieval import retrieve

POOL = [
    ("t0", "How do I bake a potato?"),
    ("t1", "How do I fix a bicycle tyre?"),
    ("t2", "What is the best way to learn Spanish?"),
    ("t3", "How do I repair a bicycle chain?"),
]


def test_the_nearest_row_is_found_never_itself_nor_its_prompt_and_the_earlier_of_equals():
    queries = [("q0", "bicycle chain slips, what to repair"), ("q1", "A good way to learn Greek"),
               POOL[1], ("q", "how do i FIX a  bicycle tyre?")]  # fmt: skip
    assert retrieve(queries, POOL) == [3, 2, 3, 3]
    pool = [("a", "red kettle"), ("b", "blue kettle"), ("c", "green kettle")]
    assert retrieve([("q", "kettle"), ("r", "nothing in common")], pool) == [0, 0]
    with pytest.raises(ValueError, match="'q'"):
        retrieve([("q", "Same prompt")], [("a", "same  prompt")])
    with pytest.raises(ValueError, match="pool is empty"):
        retrieve([("q", "x")], [])


def test_an_encoders_similarities_are_rounded_so_that_batches_do_not_matter(monkeypatch):
    near = torch.tensor([[1 / 3, 1 / 3 + 1e-7], [2 / 3, 2 / 3 + 1e-7]])
    same = {name: lambda texts, **_: texts for name in ("encode_query", "encode_document")}
    encoder = SimpleNamespace(similarity=lambda queries, pool: near, **same)
    monkeypatch.setattr(retrieval, "load_model", lambda kind, source: encoder)
    for retriever in ("dense", "late"):
        scores = retrieval.SCORERS[retriever](["a", "b"], ["x", "y"], "any")
        assert scores.tolist() == [[0.33333, 0.33333], [0.66667, 0.66667]]


def test_without_sentence_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[retrieval\]'"):
        retrieve([("q", "a")], POOL, "dense", "colbert-ir/colbertv2.0")
