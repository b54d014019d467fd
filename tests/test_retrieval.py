"""Retrieval never gives a row back to itself, and always gives the same answer."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from persona_lib.data import retrieval
from persona_lib.data.retrieval import retrieve

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


# --- encoders: what they score, and a model in Stanford's own format ---


@pytest.mark.parametrize(
    ("retriever", "kind"), [("dense", "SentenceTransformer"), ("late", "MultiVectorEncoder")]
)
def test_an_encoders_similarities_are_rounded_so_that_batches_do_not_matter(monkeypatch, retriever, kind):
    import torch

    class Encoder:
        encode_query = encode_document = staticmethod(lambda texts, show_progress_bar: texts)

        @staticmethod
        def similarity(queries, pool):
            return torch.tensor([[len(q) / 3 + n * 1e-7 for n, _ in enumerate(pool)] for q in queries])

    loaded = []
    monkeypatch.setattr(retrieval, "load_model", lambda *asked: loaded.append(asked) or Encoder)
    scores = retrieval.SCORERS[retriever](["a", "ab"], ["x", "y"], "any")
    assert scores.tolist() == [[0.33333, 0.33333], [0.66667, 0.66667]]
    assert retrieve([("q", "a"), POOL[0]], POOL, retriever, "any") == [0, 1]
    assert loaded == [(kind, "any")] * 2


def test_without_sentence_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[retrieval\]'"):
        retrieve([("q", "a")], POOL, "dense", "colbert-ir/colbertv2.0")


def saved_colbert(folder, words: list[str], length: int):
    """Save a tiny random checkpoint as Stanford's ColBERT does; returns its vectors of a list of tokens."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), architectures=["HF_ColBERT"], **sizes)
    model, projection = BertModel(config).eval(), torch.randn(16, 32)
    config.save_pretrained(folder)
    weights = {f"bert.{name}": value.clone() for name, value in model.state_dict().items()}
    save_file(weights | {"linear.weight": projection}, folder / "model.safetensors", {"format": "pt"})
    facts = {"query_maxlen": length, "doc_maxlen": 32, "mask_punctuation": True}
    marks = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "attend_to_mask_tokens": False}
    (folder / "artifact.metadata").write_text(json.dumps(facts | marks))

    def vectors(tokens: list[str], seen: int) -> np.ndarray:
        ids = torch.tensor([[vocabulary[token] for token in tokens]])
        mask = torch.tensor([[int(n < seen) for n in range(len(tokens))]])
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=mask).last_hidden_state[0] @ projection.T
        return (found / found.norm(dim=-1, keepdim=True)).numpy()

    return vectors


def test_late_interaction_sums_the_best_match_of_every_query_token(tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the extra: pip install -e '.[retrieval]'")
    queries = [("q0", "bicycle chain to repair ?"), ("q1", "how do i learn spanish"), POOL[1]]
    split = {text: text.lower().replace("?", " ?").split() for _, text in (*POOL, *queries)}
    vectors = saved_colbert(tmp_path, sorted({word for words in split.values() for word in words}), 12)

    def max_sim(query: str, text: str) -> float:
        asked = ["[CLS]", "[unused0]", *split[query], "[SEP]"]
        filled = asked + ["[MASK]"] * (12 - len(asked))  # not seen, but they do score
        tokens = ["[CLS]", "[unused1]", *split[text], "[SEP]"]
        kept = [number for number, token in enumerate(tokens) if token != "?"]
        return (vectors(filled, len(asked)) @ vectors(tokens, len(tokens))[kept].T).max(axis=1).sum()

    expected = np.array([[max_sim(query, text) for _, text in POOL] for _, query in queries])
    texts = [[text for _, text in rows] for rows in (queries, POOL)]
    np.testing.assert_allclose(retrieval.SCORERS["late"](*texts, str(tmp_path)), expected, atol=1e-4)
    expected[2, 1] = -np.inf  # a row of the pool never gets itself
    assert retrieve(queries, POOL, "late", str(tmp_path)) == expected.argmax(axis=1).tolist()
