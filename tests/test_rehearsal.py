"""The paper profile from end to end with random weights of Llama-3.1's and Prometheus' architectures."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from persona_lib import store
from persona_lib.settings import REPO

SCRIPT = REPO / "benchmarks" / "paper_rehearsal.py"
# The paper's, by hand: section 4 and appendix.
PAPER = {
    "quantization": "nf4",
    "compute_dtype": "bfloat16",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_targets": ["q_proj", "v_proj"],
    "max_length": 512,
    "lr_scheduler": "linear",
    "warmup_share": 0.0,
}
METHOD = {
    "sft": {"completion_only_loss": False, "sft_learning_rate": 2e-5, "sft_batch_size": 1},
    "dpo": {"dpo_learning_rate": 5e-6, "dpo_batch_size": 1, "dpo_beta": 0.1, "dpo_sft_weight": 0.0},
}


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory) -> Path:
    """The folder of a rehearsal that ran as its own process, as a person would start it."""
    folder = tmp_path_factory.mktemp("rehearsal")
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def run_folder(rehearsed: Path) -> Path:
    """Where the run's rows are."""
    return rehearsed / "results" / "paper" / "everyday" / "seed-0"


@pytest.mark.slow
def test_the_models_have_the_architecture_of_the_large_ones(rehearsed):
    config = json.loads((rehearsed / "models" / "llama" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and not config["tie_word_embeddings"]
    assert config["num_attention_heads"] == 4 * config["num_key_value_heads"]
    rope = config["rope_parameters"]
    assert (rope["rope_type"], rope["rope_theta"], rope["factor"]) == ("llama3", 500000.0, 8.0)
    judge = json.loads((rehearsed / "models" / "mistral" / "config.json").read_text())
    assert judge["architectures"] == ["MistralForCausalLM"]


@pytest.mark.slow
def test_adapters_are_trained_with_the_papers_values_and_move(rehearsed):
    from safetensors.torch import load_file

    folder = run_folder(rehearsed) / "adapters"
    assert sorted(path.name for path in folder.iterdir()) == [
        "dpo-chosen",
        "dpo-none",
        "sft-chosen",
        "sft-none",
    ]
    for path in folder.iterdir():
        method = path.name[:3]
        settings = store.read_json(path / "spec.json")["settings"]
        wanted = PAPER | METHOD[method]
        assert {name: settings[name] for name in wanted} == wanted
        adapter = json.loads((path / "adapter_config.json").read_text())
        assert (adapter["r"], adapter["lora_alpha"], sorted(adapter["target_modules"])) == (
            16, 32, ["q_proj", "v_proj"],
        )  # fmt: skip
        weights = load_file(path / "adapter_model.safetensors")
        assert len(weights) == 2 * 2 * 2, "A and B of two layers' q and v"
        assert {str(w.dtype) for w in weights.values()} == {"torch.float32"}
        assert all(bool(w.any()) for name, w in weights.items() if "lora_B" in name), (
            "an adapter did not move"
        )


@pytest.mark.slow
def test_dpo_starts_at_ln_2_and_sft_counts_the_whole_text(rehearsed):
    folder = run_folder(rehearsed) / "adapters"
    losses = {
        path.name: [row["loss"] for row in store.iter_rows(path / "log.jsonl") if "loss" in row]
        for path in folder.iterdir()
    }
    assert all(abs(losses[f"dpo-{arm}"][0] - math.log(2)) < 0.01 for arm in ("none", "chosen"))
    assert all(5 < losses[f"sft-{arm}"][0] < 8 for arm in ("none", "chosen")), "ln of about 800 tokens"


@pytest.mark.slow
def test_every_policy_answers_is_judged_in_both_orders_and_swapped(rehearsed):
    run = run_folder(rehearsed)
    rows = [row for path in run.glob("generations/*/rows.jsonl") for row in store.iter_rows(path)]
    assert rows and all(10 <= row["n_tokens"] <= 12 for row in rows), "between the least and the most"
    judged = list(store.iter_rows(next(run.glob("judgments/dpo-chosen*/personalization.jsonl"))))
    assert len(judged) % 2 == 0 and {row["order"] for row in judged} == {"AB", "BA"}
    assert all(Path(row["judge"]).name == "mistral" for row in judged)
    assert all(row["winner"] is None and row["feedback"] for row in judged), "random weights write no verdict"
    verdicts = [row for path in run.glob("judgments/*/verdicts.jsonl") for row in store.iter_rows(path)]
    assert {row["personalization"] for row in verdicts} == {"unparsed"}
    scores = [row for path in run.glob("swap/*/policy.jsonl") for row in store.iter_rows(path)]
    assert scores and all(math.isfinite(row["chosen"]) and row["chosen"] < 0 for row in scores)


@pytest.mark.slow
def test_what_is_done_is_not_done_again_until_the_models_folder_changes(rehearsed):
    """A plan with the same folders finds every step cached; other weights make what reads them stale."""
    manifest = rehearsed / "results" / "paper" / "provenance.json"
    overrides = next(iter(store.read_json(manifest)["tasks"].values()))["parameters"]["overrides"]
    command = [sys.executable, "-m", "persona_lib.pipeline", "--profile", "paper", "--plan"]
    command += [word for change in overrides for word in ("--set", change)]
    environment = os.environ | {"PERSONA_RESULTS": str(rehearsed / "results"), "PYTHONPATH": str(REPO)}
    environment["PERSONA_FIGURES"] = str(rehearsed / "figures")

    def planned() -> str:
        return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True).stdout

    assert "to run     0 of 11 tasks" in planned()
    (rehearsed / "models" / "llama" / "model.safetensors").touch()
    after = planned()
    assert "cached  03_persona_inference" not in after and "cached  01_preference_data" in after
    assert "run     06_supervised_tailoring" in after
