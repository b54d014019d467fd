"""Retrieval never gives a row back to itself, and always gives the same answer."""

from __future__ import annotations

import json
import shutil
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


# --- late interaction in Stanford's format, built here, against MaxSim by hand ---

WORDS = sorted(
    {word for _, text in POOL for word in text.lower().replace("?", " ?").split()} | {"what", "to"}
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
QUERIES = [("q0", "what bicycle chain to repair ?"), ("q1", "how do i learn spanish"), ("t1", POOL[1][1])]
QUERY_LENGTH = 12  # of the late model: shorter queries are filled with [MASK]


@pytest.fixture(scope="module")
def encoders():
    """The module sentence_transformers, or a skip."""
    return pytest.importorskip(
        "sentence_transformers", reason="needs the extra: pip install -e '.[retrieval]'"
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny random BERT with a word-level tokenizer, and the folder that both were saved to."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **names)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=len(vocabulary), initializer_range=0.3, **sizes)).eval()
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, vocabulary, folder


def token_vectors(bert, tokens, attended=None):
    """The model's last hidden states of a list of tokens; ``attended`` says how many of them are seen."""
    import torch

    model, vocabulary, _ = bert
    ids = torch.tensor([[vocabulary[token] for token in tokens]])
    seen = torch.tensor([[int(n < (attended or len(tokens))) for n in range(len(tokens))]])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=seen).last_hidden_state[0].double().numpy()


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def split_words(text):
    return text.lower().replace("?", " ?").split()


@pytest.fixture(scope="module")
def colbert(bert, tmp_path_factory):
    """A checkpoint as Stanford's ColBERT saves them: an encoder, ``linear.weight`` and artifact.metadata."""
    import torch
    from safetensors.torch import save_file

    model, _, source = bert
    folder = tmp_path_factory.mktemp("colbert")
    shutil.copytree(source, folder, dirs_exist_ok=True)
    projection = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    weights = {f"bert.{name}": value.clone() for name, value in model.state_dict().items()}
    save_file(weights | {"linear.weight": projection}, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["HF_ColBERT"]}))
    facts = {"query_maxlen": QUERY_LENGTH, "doc_maxlen": 32, "mask_punctuation": True}
    marks = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "attend_to_mask_tokens": False}
    (folder / "artifact.metadata").write_text(json.dumps(facts | marks))
    return folder, projection.double().numpy()


def test_late_interaction_sums_the_best_match_of_every_query_token(encoders, bert, colbert):
    folder, projection = colbert

    def query_vectors(text):
        tokens = ["[CLS]", "[unused0]", *split_words(text), "[SEP]"]
        filled = tokens + ["[MASK]"] * (QUERY_LENGTH - len(tokens))  # not seen, but they do score
        return unit(token_vectors(bert, filled, len(tokens)) @ projection.T)

    def text_vectors(text):
        tokens = ["[CLS]", "[unused1]", *split_words(text), "[SEP]"]
        kept = [number for number, token in enumerate(tokens) if token != "?"]
        return unit(token_vectors(bert, tokens) @ projection.T)[kept]

    expected = [
        [(query_vectors(query) @ text_vectors(text).T).max(axis=1).sum() for _, text in POOL]
        for _, query in QUERIES
    ]
    scores = retrieval.late_scores([q for _, q in QUERIES], [t for _, t in POOL], str(folder))
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    expected = np.array(expected)
    expected[2, 1] = -np.inf  # a row of the pool never gets itself
    assert retrieve(QUERIES, POOL, "late", str(folder)) == expected.argmax(axis=1).tolist()


def test_dense_similarity_is_that_of_the_encoder_rounded_so_that_batches_do_not_matter(monkeypatch):
    import torch

    class Encoder:
        encode_query = encode_document = staticmethod(lambda texts, show_progress_bar: texts)

        @staticmethod
        def similarity(queries, pool):
            return torch.tensor([[len(q) / 3 + n * 1e-7 for n, _ in enumerate(pool)] for q in queries])

    monkeypatch.setattr(retrieval, "load_model", lambda kind, model: Encoder)
    scores = retrieval.dense_scores(["a", "ab"], ["x", "y"], "any")
    assert scores.tolist() == [[0.33333, 0.33333], [0.66667, 0.66667]]
    assert retrieve([("q", "a")], POOL, "dense", "any") == [0]


def test_without_sentence_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[retrieval\]'"):
        retrieval.dense_scores(["a"], ["b"], "colbert-ir/colbertv2.0")
