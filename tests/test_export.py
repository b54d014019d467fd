"""Export: the stack as one adapter, merged weights that keep what was learned, a card whose code runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_adapter, save_base, some_texts, tiny_run

from persona_lib import export, store
from persona_lib.models import load, train
from persona_lib.prompts import ChatFormat
from persona_lib.settings import Run, load_profile, results_dir, set_field


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def stack(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [save_adapter(base_folder, folder / f"{name}-chosen", n) for n, name in enumerate(("sft", "dpo"))]


# --- one adapter out of two ---


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_joined_adapter_scores_responses_as_the_stack_does(base_folder, stack, tmp_path, quantization):
    tokenizer = load.load_tokenizer(base_folder)
    load.join_adapters(stack, tmp_path / "one")

    def scores(folders):
        model = load.attach_adapters(load.load_base(base_folder, "", quantization), folders)
        return load.sequence_log_probs(model, tokenizer, *some_texts(), 1)

    both, one, first = scores(stack), scores([tmp_path / "one"]), scores(stack[:1])
    assert both == pytest.approx(one, abs=1e-4) and abs(both - first).max() > 0.1
    assert store.read_json(tmp_path / "one" / "adapter_config.json")["r"] == 8


def test_each_adapters_own_scale_is_folded_into_the_joined_one(stack, tmp_path):
    """Entries by hand: row 4 of A is row 0 of the second A; column 4 of B is twice that of the second B."""
    from safetensors.torch import load_file, save_file

    second = tmp_path / "second"
    second.mkdir()
    save_file(load_file(stack[1] / "adapter_model.safetensors"), second / "adapter_model.safetensors")
    config = store.read_json(stack[1] / "adapter_config.json")
    store.write_json(second / "adapter_config.json", {**config, "lora_alpha": 2 * config["r"]})
    load.join_adapters([stack[0], second], tmp_path / "one")
    one, own = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "one", second))
    a = next(name for name in own if ".lora_A." in name)
    b = a.replace(".lora_A.", ".lora_B.")
    assert (one[a][4] == own[a][0]).all() and (one[b][:, 4] == 2 * own[b][:, 0]).all()


# --- the whole export ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run in NF4 with an SFT and a DPO adapter."""
    with pytest.MonkeyPatch.context() as patch:
        run = tiny_run(
            tmp_path_factory.mktemp("results"), patch, merge_adapters=False, **{"base.quantization": "nf4"}
        )
        train.train_adapter(run, "sft", "chosen")
        train.train_adapter(run, "dpo", "chosen")
        yield run


# Processors with a bfloat16 kernel for NF4 would answer in that: the card's example is compared in float32.
FLOAT32 = """
for module in base.modules():
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False
"""
LOGITS = """
from safetensors.torch import save_file
ids = tokenizer("Prompt: w1 w2\\nPersona: w3 w4\\nResponse:", return_tensors="pt").input_ids
with torch.inference_mode():
    save_file({"logits": model(input_ids=ids).logits}, "logits.safetensors")
import sys
assert not [name for name in sys.modules if name.startswith("persona_lib")]
"""


def run_alone(code: str, folder: Path) -> None:
    """Run code in a fresh interpreter in a folder, without this package on the path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_cards_code_loads_the_policy_without_this_package_and_gives_its_logits(trained, tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = export.export_arm(trained, "dpo-chosen", tmp_path / "out", merge=True)
    card = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    assert '"BASE"' in code  # the base was a folder: the card does not tell where
    code = code.replace('"BASE"', repr(trained.base_source[0])).replace(
        "model = Peft", f"{FLOAT32}model = Peft"
    )
    run_alone(code + LOGITS, folder)

    model = load.load_base(*trained.base_source, "nf4", "float32")
    model = load.attach_adapters(model, [trained.folder / "adapters" / f"{n}-chosen" for n in ("sft", "dpo")])
    tokenizer = load.load_tokenizer(*trained.base_source)
    ids = tokenizer("Prompt: w1 w2\nPersona: w3 w4\nResponse:", return_tensors="pt").input_ids
    with torch.inference_mode():
        expected, merged = (
            model(input_ids=ids).logits,
            load.load_base(folder / "merged")(input_ids=ids).logits,
        )
    torch.testing.assert_close(
        load_file(folder / "logits.safetensors")["logits"], expected, atol=2e-5, rtol=1e-5
    )
    torch.testing.assert_close(merged, expected, atol=2e-4, rtol=1e-4)
    assert "`merged/` is base and adapter as one float32 model" in card


@pytest.mark.slow
def test_an_export_names_no_path_of_this_machine_and_the_card_tells_what_the_run_saved(trained, tmp_path):
    folder = export.export_arm(trained, "dpo-chosen", tmp_path / "before")
    assert "Nothing of this model was measured" in (folder / "README.md").read_text(encoding="utf-8")
    swap = (
        "measure,persona,dataset,arm,persona_format,n,n_seeds,seeds,flip,flip_low,flip_high,"
        "d_positive,d_positive_low,d_positive_high\n"
        f"policy,gold,{trained.dataset},dpo-chosen,line,40,1,0,.1,0,.2,.8512,.725,.95\n"
        f"policy,gold,{trained.dataset},sft-chosen,line,40,1,0,.1,0,.2,.777,.725,.95\n"
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
    with pytest.raises(FileNotFoundError, match=r"sft-none is not finished: run the training steps first"):
        export.export_arm(trained, "dpo-none", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="arm 'base' has no adapters"):
        export.export_arm(trained, "base", tmp_path / "out")
    assert export.main(["--profile", "everyday", "--arm", "dpo-shuffled", str(tmp_path / "out")]) == 2
    assert "sft-shuffled is not finished" in capsys.readouterr().err


# --- the card ---


def card_of(profile, source, dataset="everyday", chat=None, **more):
    """The card of a run that trained nothing."""
    run = Run(set_field(load_profile(profile), {"base.model": source}), dataset, 0)
    return export.model_card(run, "dpo-chosen", [], chat, **more)


def test_the_card_of_a_hub_model_loads_it_by_id_and_names_its_licence():
    card = card_of("paper", "meta-llama/Llama-3.1-8B", "beavertails")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    compile(code, "card", "exec")
    assert '"meta-llama/Llama-3.1-8B", dtype' in code
    assert "bnb_4bit_compute_dtype=torch.bfloat16" in code and "base_model: meta-llama/Llama-3.1-8B\n" in card
    assert "Built with Llama" in card and "see the card of meta-llama/Llama-3.1-8B" in card


def test_the_card_of_packaged_weights_names_the_publishers_model_and_the_way_to_its_folder():
    chat = ChatFormat(("[s]", "[u]", "[a]"), ("[u]", "[a]"), "[e]", ())
    card = card_of("everyday", "pypi:smollm2-135m-instruct", chat=chat)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    compile(code, "card", "exec")
    assert "weights.fetch('pypi:smollm2-135m-instruct')" in code
    assert "tokenizer('[s]The user is busy and prefers short answers.[u]How do I boil an egg?[a]', " in code
    assert "license: apache-2.0\n" in card and "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in card
    assert "SmolLM2-135M-Instruct@12fd25f7" in card and "quantised to Q4_1" in card
    assert "those that come with the data" in card and "BitsAndBytesConfig" not in code
