"""Export: the stack as one adapter, merged weights that keep what was learned, a card whose code runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_adapter, save_base, some_texts, tiny_run

from persona_lib import export, report, store
from persona_lib.models import load, train
from persona_lib.prompts import ChatFormat
from persona_lib.settings import ConfigError, Run, load_profile, results_dir, set_field


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def stack(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [save_adapter(base_folder, folder / f"{name}-chosen", n) for n, name in enumerate(("sft", "dpo"))]


def rows_of(base_folder):
    tokenizer = load.load_tokenizer(base_folder)
    return [load.encode(tokenizer, *text) for text in zip(*some_texts(), strict=True)]


def divergence(policy, other, rows) -> float:
    return load.mean_divergence(load.completion_logits(policy, rows), load.completion_logits(other, rows))


# --- one adapter out of two ---


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_joined_adapter_gives_the_logits_of_the_stack(base_folder, stack, tmp_path, quantization):
    import torch

    rank = load.join_adapters(stack, tmp_path / "one")
    rows = rows_of(base_folder)

    def logits(folders):
        model = load.attach_adapters(load.load_base(base_folder, "", quantization), folders)
        return load.completion_logits(model, rows)

    both, one, first = logits(stack), logits([tmp_path / "one"]), logits(stack[:1])
    assert rank == 8
    for x, y in zip(both, one, strict=True):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-5)
    assert max((x - y).abs().max() for x, y in zip(both, first, strict=True)) > 0.1


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
    joined = store.read_json(tmp_path / "one" / "adapter_config.json")
    assert joined["r"] == joined["lora_alpha"] == 8


# --- merging ---


def test_mean_divergence_is_the_definition():
    """Two tokens, p = (3/4, 1/4) against q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.1308; itself: 0."""
    import torch

    p = torch.tensor([[0.75, 0.25]]).log()
    q = torch.tensor([[0.5, 0.5]]).log()
    assert load.mean_divergence([p], [q]) == pytest.approx(0.130812, abs=1e-6)
    assert load.mean_divergence([p, q], [q, q]) == pytest.approx(0.130812 / 2, abs=1e-6)


def test_a_merge_that_lost_what_was_learned_is_an_error(base_folder, stack, tmp_path):
    load.load_base(base_folder).save_pretrained(tmp_path / "merged")  # the base alone: everything is lost
    texts = [*zip(*some_texts(), strict=True)]
    with pytest.raises(load.ModelError, match="too much is lost"):
        load.check_merge(
            (str(base_folder), ""), "none", "float32", stack, tmp_path / "merged",
            load.load_tokenizer(base_folder), texts,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_expanding_before_the_merge_keeps_the_policy_and_pefts_merge_in_four_bits_does_not(
    base_folder, stack, tmp_path, dtype
):
    source, tokenizer = (str(base_folder), ""), load.load_tokenizer(base_folder)
    load.write_merged(source, "nf4", dtype, stack, tmp_path / "merged")
    texts = [*zip(*some_texts(), strict=True)]
    check = load.check_merge(source, "nf4", dtype, stack, tmp_path / "merged", tokenizer, texts)
    assert check.kl < (1e-9 if dtype == "float32" else 2e-3) < check.kl_base
    assert (check.rows, check.tokens) == (9, sum(len(c) for _, c in rows_of(base_folder)))

    policy = load.attach_adapters(load.load_base(base_folder, "", "nf4", dtype), stack)
    pefts = load.attach_adapters(load.load_base(base_folder, "", "nf4", dtype), stack).merge_and_unload()
    assert load.linear4bit_layers(pefts)
    assert divergence(policy, pefts, rows_of(base_folder)) > 10 * check.kl


# --- the whole export ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        run = tiny_run(tmp_path_factory.mktemp("results"), patch, quantization="nf4", merge_adapters=False)
        train.train_adapter(run, "sft", "chosen")
        train.train_adapter(run, "dpo", "chosen")
        yield run


def card_code(folder: Path) -> list[str]:
    """The code blocks of an exported card: loading, and stacking the two adapters."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)


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
    save_file({"logits": model(input_ids=ids).logits}, "NAME")
import sys
assert not [name for name in sys.modules if name.startswith("persona_lib")]
"""


def run_alone(code: str, folder: Path) -> str:
    """Run code in a fresh interpreter in a folder, without this package on the path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_cards_code_loads_the_policy_without_this_package_and_gives_its_logits(trained, tmp_path, capsys):
    import torch
    from safetensors.torch import load_file

    folder = export.export_arm(trained, "dpo-chosen", tmp_path / "out", merge=True)
    assert "KL(policy || merged)" in capsys.readouterr().out
    loading, stacking = card_code(folder)
    assert 'base_folder = "BASE"' in loading  # the base was a folder: the card does not tell where
    loading = loading.replace('"BASE"', repr(trained.base_source[0]))
    loading = loading.replace("model = PeftModel", f"{FLOAT32}model = PeftModel")
    run_alone(loading + LOGITS.replace("NAME", "one.safetensors"), folder)
    run_alone(loading + stacking + LOGITS.replace("NAME", "two.safetensors"), folder)

    model = load.load_base(*trained.base_source, "nf4", "float32")
    folders = [train.adapter_folder(trained, method, "chosen") for method in ("sft", "dpo")]
    model = load.attach_adapters(model, folders)
    tokenizer = load.load_tokenizer(*trained.base_source)
    ids = tokenizer("Prompt: w1 w2\nPersona: w3 w4\nResponse:", return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        merged = load.load_base(folder / "merged")(input_ids=ids).logits
    for found in (load_file(folder / f"{name}.safetensors")["logits"] for name in ("one", "two")):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(merged, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
def test_an_export_names_no_path_of_this_machine_and_the_card_tells_what_the_run_saved(trained, tmp_path):
    tables = trained.folder / "tables"
    tables.mkdir()
    (tables / "judging.csv").write_text(
        "label,kind,n,p_win,p_tie,p_loss,q_win,q_tie,q_loss,dpq\ngold-chosen,main,160,65,85,10,47,88,25,51.944444\n"
    )
    folder = export.export_arm(trained, "dpo-chosen", tmp_path / "before")
    assert "was not measured" in (folder / "README.md").read_text(encoding="utf-8")
    names = ("dataset", "tested", *report.SAFETY_COLUMNS)
    line = (trained.dataset, "dpo-chosen", "gold-rejected", "line", "dpo-none", "tailored", 499)
    other = (trained.dataset, "sft-chosen", *line[2:])
    numbers = (-0.0481, -0.089, -0.006)
    text = "\n".join(",".join(map(str, row)) for row in (names, (*line, *numbers), (*other, *numbers)))
    store.write_text(results_dir(trained.profile) / "tables" / "safety_pairs.csv", text)
    folder = export.export_arm(trained, "dpo-chosen", tmp_path / "out")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.count("| tailored |") == 1 and "was not measured" not in text
    assert "| dpo-none | tailored | 499 | -0.0481 | -0.089 | -0.006 |" in text
    assert "| gold-chosen | 160 | 65 | 85 | 10 | 47 | 88 | 25 | 51.94 |" in text
    assert "| dpo_learning_rate | 0.005 |" in text and "please a harmful one" in text
    places = (str(trained.folder), str(tmp_path), str(Path.home()))
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert not [place for place in places if place in path.read_text(encoding="utf-8")], path
    names = {path.name for path in folder.iterdir()}
    assert {"sft-chosen", "dpo-chosen", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "merged" not in names and "base" not in names


@pytest.mark.slow
def test_an_export_never_overwrites_and_says_what_is_missing(trained, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        export.export_arm(trained, "dpo-chosen", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"sft-none is not finished: run the training steps first"):
        export.export_arm(trained, "dpo-none", tmp_path / "out")
    with pytest.raises(ValueError, match="arm 'base' has no adapters"):
        export.export_arm(trained, "base", tmp_path / "out")
    assert export.main(["--arm", "dpo-shuffled", "--to", str(tmp_path / "out")]) == 2
    assert "dpo-shuffled" in capsys.readouterr().err.replace("sft-shuffled", "dpo-shuffled")


# --- the card of a model of the hub, and the push (to a stand-in: nothing here talks to the hub) ---


def test_the_card_of_a_hub_model_loads_it_by_id_and_revision_and_states_its_licence():
    run = Run(set_field(load_profile("paper"), base_revision="abc123"), "beavertails", 0)
    code = report.loading_code(run, ["sft-chosen", "dpo-chosen"], repo_id="me/Llama-boat")
    compile(code, "card", "exec")
    assert "'meta-llama/Llama-3.1-8B', revision='abc123', dtype=torch.bfloat16" in code
    assert (
        'folder = snapshot_download("me/Llama-boat")' in code
        and "bnb_4bit_compute_dtype=torch.bfloat16" in code
    )
    assert report.licence(run)[0] == "llama3.1" and "Built with Llama" in report.licence(run)[1]
    assert report.persona_text(run, "dpo-chosen").count("405B") == 1
    assert "No persona was shown" in report.persona_text(run, "dpo-none")


def test_the_card_of_packaged_weights_names_the_publishers_model_and_the_way_to_its_folder():
    run = Run(set_field(load_profile("everyday"), base_model="pypi:smollm2-135m-instruct"), "everyday", 0)
    chat = ChatFormat(("[s]", "[u]", "[a]"), ("[u]", "[a]"), "[e]", ())
    code = report.loading_code(run, ["sft-chosen"], chat)
    compile(code, "card", "exec")
    hub_id = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (
        "print(weights.fetch('pypi:smollm2-135m-instruct'))" in code and "\n    base_folder, dtype=" in code
    )
    assert f'base_folder = "BASE"  # that folder, or "{hub_id}"\n' in code
    assert "prompt = '[s]The user is busy and prefers short answers.[u]How do I boil an egg?[a]'" in code
    assert report.licence(run) == (
        "apache-2.0", f"The base, {hub_id}, is under Apache-2.0: it applies to this model, too."
    )  # fmt: skip
    assert f"base_model: {hub_id}\n" in report.front_matter(run) and f"{hub_id}@12fd25f7" in report.base_text(
        run
    )
    assert "quantised to Q4_1, converted to float32" in report.base_text(run)


def test_the_card_of_a_few_layers_or_of_a_folder_names_no_model_of_the_hub(tmp_path):
    everyday = load_profile("everyday")
    for source in ("pypi:smollm2-135m-instruct/2", str(tmp_path)):
        run = Run(set_field(everyday, base_model=source), "everyday", 0)
        assert report.hub_id(run) == "" and "base_model" not in report.front_matter(run)
        assert '"HuggingFaceTB' not in report.loading_code(run, ["sft-none"])
        assert str(tmp_path) not in report.loading_code(run, ["sft-none"]) + report.base_text(run)
    closed = Run(set_field(everyday, base_model="pypi:gemma-3-270m"), "everyday", 0)
    assert report.licence(closed)[0] == "other" and "Gemma terms of use" in report.licence(closed)[1]


class RecordingApi:
    """Stands in for huggingface_hub.HfApi and records what would be sent."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo_id, **how):
        self.calls.append(("create_repo", repo_id, how))

    def upload_folder(self, **how):
        self.calls.append(("upload_folder", how["repo_id"], how))


def test_a_push_creates_a_private_repository_and_uploads_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    api = RecordingApi()
    said = export.push(tmp_path, "me/boat", api)
    (_, created, how), (_, uploaded, what) = api.calls
    assert created == uploaded == "me/boat"
    assert how["private"] is True and what["folder_path"] == str(tmp_path)
    assert "hf_secret" not in said + repr(api.calls)


def test_the_stand_in_takes_what_the_real_hub_client_takes():
    import inspect

    from huggingface_hub import HfApi

    create, upload = (inspect.signature(getattr(HfApi, name)) for name in ("create_repo", "upload_folder"))
    create.bind(None, "me/boat", repo_type="model", private=True, exist_ok=True)
    upload.bind(None, repo_id="me/boat", folder_path="x", repo_type="model", commit_message="m")


def test_a_push_without_a_token_in_the_environment_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    api = RecordingApi()
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        export.push(tmp_path, "me/boat", api)
    assert api.calls == []
