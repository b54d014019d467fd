"""Retrieval never gives a row back to itself, and always gives the same answer."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizerFast

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


def saved_colbert(folder, words: list[str]):
    """Save a tiny random checkpoint as Stanford's ColBERT does."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", "?"]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    BertTokenizerFast(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), architectures=["HF_ColBERT"], **sizes)
    config.save_pretrained(folder)
    weights = {f"bert.{name}": value.clone() for name, value in BertModel(config).state_dict().items()}
    weights["linear.weight"] = torch.randn(16, 32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    marks = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "attend_to_mask_tokens": False}
    facts = {"query_maxlen": 12, "doc_maxlen": 32, "mask_punctuation": True, **marks}
    (folder / "artifact.metadata").write_text(json.dumps(facts))


def test_a_checkpoint_of_colbert_is_read_and_a_row_never_gets_itself(tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the extra: pip install -e '.[retrieval]'")
    prompts = [text for _, text in POOL]
    saved_colbert(tmp_path, sorted({word for text in prompts for word in text.lower().rstrip("?").split()}))
    expected = np.array(retrieval.SCORERS["late"](prompts, prompts, str(tmp_path)))
    assert expected.shape == (4, 4) and (expected > 0).all() and (expected <= 12).all()  # 12 tokens, cosines
    np.fill_diagonal(expected, -np.inf)
    assert retrieve(POOL, POOL, "late", str(tmp_path)) == expected.argmax(axis=1).tolist()
