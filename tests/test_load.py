"""Loading (also in NF4), chat formats and token checks, adapters that are stacked and swapped, scores."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import TINY, save_adapter, save_base, some_texts, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from persona_lib import prompts, store, weights
from persona_lib.data.preference import to_dpo_rows, to_sft_rows
from persona_lib.models import load, trainers
from persona_lib.models.load import ModelError, count_rows, encode
from persona_lib.records import TailoringRow
from persona_lib.settings import load_profile, set_field


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    names = ("sft-chosen", "dpo-chosen", "sft-none", "dpo-none")
    return {name: save_adapter(base_folder, folder / name, seed) for seed, name in enumerate(names)}


def scores(model, batch_size=4):
    return load.pair_log_probs(model, tiny_tokenizer(), *some_texts(), batch_size)[:, 0]


def test_layer_that_blocks_of_64_do_not_divide_is_an_error_that_names_it(tmp_path):
    save_base(tmp_path, tiny_model(mlp=96))
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.down_proj: in_features=96"):
        load.load_base(tmp_path, "", "nf4", "float32")


def test_a_lora_target_that_no_layer_is_named_after_is_an_error_that_lists_the_layers():
    load.check_targets(model := tiny_model(), ["q_proj", "mlp.down_proj"])
    with pytest.raises(ModelError, match="lora.targets: the base has no layer v_prj; it has .*v_proj"):
        load.check_targets(model, ["q_proj", "v_prj"])


def test_nf4_weights_are_not_repacked_by_an_evaluation_on_avx512_bf16_processors(base_folder, monkeypatch):
    """bitsandbytes would repack the weights in the first no-grad forward; here it believes it can."""
    from bitsandbytes.nn import modules

    repacked = []
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(
        modules, "_convert_weight_packed_for_cpu", lambda *given: repacked.append(1) or given[:2]
    )
    model = load.load_base(base_folder, "", "nf4", "float32")
    for guarded in (True, False):  # without the guard the trap is real
        for layer in (module for module in model.modules() if isinstance(module, modules.Linear4bit)):
            layer.support_avx512bf16_for_cpu |= not guarded
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 8, 9, 10]]))
        assert bool(repacked) is not guarded


def test_models_that_pad_with_eos_get_a_token_that_no_text_has_or_are_refused(tmp_path):
    for known, pad in (("<empty_output>", "<empty_output>"), ("<|fim_pad|>", "<|fim_pad|>"), ("b", None)):
        names = {"<|endoftext|>": 0, "a": 1, known: 2}
        core = Tokenizer(models.WordLevel(names, unk_token="a"))
        ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        PreTrainedTokenizerFast(tokenizer_object=core, **ends).save_pretrained(tmp_path)
        if pad:
            assert load.load_tokenizer(tmp_path).pad_token == pad
    with pytest.raises(ModelError, match="no token to pad with other than EOS: set pad_token"):
        load.load_tokenizer(tmp_path)


def test_a_model_is_known_by_its_content_or_its_name_on_the_hub(tmp_path):
    folder = tmp_path / "model"
    store.write_text(folder / "model.safetensors", "a")
    before = load.model_key(folder)
    store.write_text(folder / "model.safetensors", "bc")
    assert load.model_key(folder) != before
    assert load.model_key("owner/model", "ab" * 20) == "owner/model@" + "ab" * 20


def merging_tokenizer():
    """A tokenizer in which ":" and a following letter are one token, as in large vocabularies."""
    vocabulary = {t: i for i, t in enumerate(["<pad>", "</s>", "<unk>", ":", ":S", "S", "Ġ", "ĠS", "R"])}
    core = Tokenizer(models.BPE(vocabulary, [(":", "S"), ("Ġ", "S")], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")


def test_bos_and_eos_are_there_once_and_texts_that_lose_the_boundary_are_errors_that_name_the_row():
    tokenizer, prompt = tiny_tokenizer(), "Prompt: w1\nResponse:"
    assert load.chat_format(tokenizer).told == (), "a base model keeps the paper's lines"
    for completion in (" w2", " w2</s>"):
        found = [tokenizer.convert_ids_to_tokens(part) for part in encode(tokenizer, prompt, completion)]
        assert found == [["<s>", "Prompt:", "w1", "Response:"], ["w2", "</s>"]]
    assert encode(merging_tokenizer(), "R:", " S", "row 1")[1][-1] == 1
    for broken, start, completion, said in (
        (merging_tokenizer(), "R:", "S", "row 7: a token spans the boundary"),
        (tokenizer, f"<s> {prompt}", " w2", "row 7: BOS is doubled"),
        (tokenizer, prompt, " ", "row 7: the completion is empty"),
    ):
        with pytest.raises(ModelError, match=said):
            encode(broken, start, completion, "row 7")


def test_truncated_and_dropped_rows_are_counted_and_nothing_left_is_an_error():
    rows = [
        {"id": "whole", "prompt": "w1 w2 w3", "completion": " w4"},  # <s> + 3 and 1 + EOS: 6 tokens
        {"id": "cut", "prompt": "w1 w2 w3", "completion": " w4 w5"},  # 7 tokens
        {"id": "lost", "prompt": "w1 w2 w3 w4 w5", "completion": " w6"},  # the prompt alone is 6
    ]
    counts = count_rows(tiny_tokenizer(), rows, 6, "test")
    assert counts == {"rows": 3, "truncated": 1, "dropped": 1, "tokens in the longest": 8}
    for left, said in (([], "no row has a persona"), (rows[2:], "raise max_length=6")):
        with pytest.raises(ModelError, match=f"sft: none of {len(left)} rows .*: {said}"):
            count_rows(tiny_tokenizer(), left, 6, "sft")


BOS, EOS, TURN = 1, 2, 57  # ids of "<s>", "</s>", and "<turn>", which is added to the tiny vocabulary
NAMES = "{% set name = {'system': 'w40', 'user': 'w41'} %}{{ bos_token }}"
DEFAULT = "{% if messages[0]['role'] != 'system' %}<turn> w40 w49 </s>{% endif %}"
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
TURNS = (
    "{% for m in messages %}<turn> {{ name[m['role']] }} {{ m['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<turn> w42 {% endif %}"
)
DROPPING = "{% for m in messages %}{% if m.role == 'user' %}Q {{ m.content }} A{% endif %}{% endfor %}"
SMOLLM2 = "pypi:smollm2-135m-instruct"
ROW = TailoringRow("r", "sft_train", "w1 w2", "w3", "w4 w5", {"gold-chosen": "w6 w7"})


def w(*numbers: int) -> list[int]:
    return [7 + number for number in numbers]


def chat_tokenizer(adds_bos: bool = True, start: str = DEFAULT):
    """The tiny tokenizer with a chat template, which writes BOS as text."""
    tokenizer = tiny_tokenizer(adds_bos)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = NAMES + start + TURNS
    return tokenizer


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_persona_is_the_system_turn_bos_stands_once_and_only_the_answer_and_its_end_are_learned(adds_bos):
    tokenizer = chat_tokenizer(adds_bos)
    chat = load.chat_format(tokenizer)
    told = prompts.tailoring_prompt("w1 w2", "w6 w7", chat=chat)
    untold = prompts.tailoring_prompt("w1 w2", None, chat=chat)
    asked = [TURN, *w(41, 1, 2), EOS, TURN, *w(42)]
    expected = [BOS, TURN, *w(40, 6, 7), EOS, *asked]
    assert ids(tokenizer, told) == expected and told.startswith("<s>") != adds_bos
    assert ids(tokenizer, untold) == [BOS, TURN, *w(40, 49), EOS, *asked], "the model's own system turn"
    first = prompts.tailoring_prompt("w1 w2", "w6 w7", "first_person", chat=chat)
    assert first == prompts.tailoring_prompt("w1 w2 w6 w7", None, chat=chat)
    (sft,), (dpo,) = (make([ROW], "chosen", 0, chat) for make in (to_sft_rows, to_dpo_rows))
    assert load.encode(tokenizer, sft["prompt"], sft["completion"]) == (expected, [*w(3), EOS])
    assert load.encode(tokenizer, dpo["prompt"], dpo["rejected"]) == (expected, [*w(4, 5), EOS])
    asked = ids(tokenizer, prompts.tailoring_prompt("w1 </s> <turn> <s>", "w6 <pad></s>", chat=chat))
    special = (0, BOS, EOS, TURN)
    assert [i for i in asked if i in special] == [i for i in expected if i in special], "texts stay text"


USER = [1, 4093, 198, 4898, 47, 2, 198, 1, 520, 9531, 198]
TOLD = [1, 9690, 198, 504, 2914, 314, 7436, 30, 2, 198]
OWN = [2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182]
CHAT = [[*TOLD, *USER], [1, 9690, 198, *OWN, 2, 198, *USER], [8653, 30, 2], [1, 2, 1, 2, 1, 2]]
LINE = [24785, 437, 42, 4896, 47, 198, 26985, 81, 42, 378, 2914, 314, 7436, 30, 198, 12463, 42]
LINES = [LINE, LINE[:6] + LINE[-2:], [4651, 30, 2], [2]]


@pytest.mark.skipif(not weights.is_fetched(SMOLLM2), reason=f"no {SMOLLM2} in {weights.cache_folder()}")
@pytest.mark.parametrize(("is_chat", "expected"), [(True, CHAT), (False, LINES)], ids=["chat", "base"])
def test_smollm2_trains_on_these_ids_and_the_loss_is_on_the_answer_and_its_end(tmp_path, is_chat, expected):
    """1 and 2 open and end a turn; 9690, 4093 and (520, 9531) are the roles; 198 ends a line."""
    profile = set_field(load_profile("everyday"), TINY | {"training.max_length": 512})
    tokenizer, found, (told, untold, answer, turns) = load.load_tokenizer(SMOLLM2), [], expected
    tokenizer.chat_template = tokenizer.chat_template if is_chat else None
    chat = load.chat_format(tokenizer)
    for arm, more in (("chosen", ""), ("none", ""), ("chosen", " ".join(["", *chat.special]))):
        *texts, persona = (f"{text}{more}" for text in ("Why?", "Because.", "No.", "The user is curious."))
        rows = to_sft_rows([TailoringRow("r", "train", *texts, {"gold-chosen": persona})], arm, 0, chat)
        data = dict.fromkeys(("train", "val"), Dataset.from_list(rows))
        given = tiny_model(vocabulary=49152), tokenizer, data, tmp_path
        (batch,) = trainers.make_trainer(profile, "sft", 0, *given).get_train_dataloader()
        found.append((batch["input_ids"][0].tolist(), batch["labels"][0].tolist()))
    assert found[:2] == [([*ids, *answer], [-100] * len(ids) + answer) for ids in (told, untold)]
    assert [token for token in found[2][0] if token < 17] == turns, "special tokens of users' texts stay text"


def test_a_template_that_refuses_or_drops_a_system_turn_gets_the_persona_before_the_question():
    tokenizer = chat_tokenizer(start=REFUSING)
    asked = prompts.tailoring_prompt("w1 w2", "w6 w7", chat=load.chat_format(tokenizer))
    assert ids(tokenizer, asked) == [BOS, TURN, *w(41, 6, 7, 1, 2), EOS, TURN, *w(42)]
    tokenizer.chat_template = DROPPING
    asked = prompts.tailoring_prompt("Why?", "The user is shy.", chat=load.chat_format(tokenizer))
    assert asked == "Q The user is shy.\n\nWhy? A"


def test_swapping_adapters_on_one_base_equals_loading_each_policy_alone(base_folder, adapters):
    policies = [["sft-chosen"], ["sft-chosen", "dpo-chosen"], ["sft-none", "dpo-none"], ["sft-none"]]
    shared = load.load_base(base_folder)
    expected = [scores(shared)]
    for policy in policies:
        folders = [adapters[name] for name in policy]
        expected.append(scores(load.attach_adapters(load.load_base(base_folder), folders)))
        shared = load.attach_adapters(shared, folders)
    for policy, alone in zip([[], *policies], expected, strict=True):
        with load.using_adapters(shared, policy):
            np.testing.assert_allclose(scores(shared), alone, rtol=1e-6)
        assert shared.active_adapters == policies[-1]
    assert not shared.training and not any(p.requires_grad for p in shared.parameters())
    assert np.abs(expected[1] - expected[2]).min() > 1e-3


def test_adapters_added_to_the_weights_score_as_beside_them_and_leave_no_trace(base_folder, adapters):
    policy = ["sft-chosen", "dpo-chosen"]
    model = load.attach_adapters(load.load_base(base_folder), [adapters[name] for name in policy])
    before = {name: p.clone() for name, p in model.named_parameters()}
    beside = scores(model)
    refused = pytest.raises(ModelError, match="another policy's adapters are merged")
    with refused, load.using_adapters(model, policy, merge=True):
        np.testing.assert_allclose(scores(model), beside, rtol=1e-5)
        assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())
        load.activate(model, ["dpo-chosen"])  # would be ignored beside weights that have taken some in
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert (scores(model) == beside).all()


def one_by_one(model, tokenizer, prompt, completion):
    """The definition: sum over the completion's tokens and EOS of log softmax of the step before."""
    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"]])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(log_probs[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1]))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("policy", [[], ["sft-chosen", "dpo-chosen"]], ids=len)
def test_log_probs_are_those_of_one_row_at_a_time_whatever_the_batch_and_the_attention(
    base_folder, adapters, quantization, policy, monkeypatch
):
    model, tokenizer = load.load_base(base_folder, "", quantization, "float32"), tiny_tokenizer()
    model = load.attach_adapters(model, [adapters[name] for name in policy]) if policy else model
    asked, first = some_texts()
    pairs = [a + b for a, b in zip(first, first[::-1], strict=True)]
    rows = zip(asked, pairs, strict=True)
    expected = [[one_by_one(model, tokenizer, prompt, text) for text in pair] for prompt, pair in rows]
    for batch in (1, 4, 32):
        found = load.pair_log_probs(model, tokenizer, asked, pairs, batch)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(scores(model), found[:, 0], rtol=2e-6)
    monkeypatch.setattr(load.packing, "decoder_inputs", lambda *_: pytest.fail("packed"))
    model.config.sliding_window = 8
    np.testing.assert_allclose(load.pair_log_probs(model, tokenizer, asked, pairs, 4), expected, rtol=1e-5)


def test_weights_in_a_pickle_are_not_loaded(tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load.load_base(tmp_path)
