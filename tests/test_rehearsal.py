"""The paper profile from end to end with random weights of Llama-3.1's architecture."""

import importlib.util
import math
from pathlib import Path

import llama31
import pytest
from conftest import REPO, run_there
from safetensors.torch import load_file
from test_settings import PAPER

from persona_lib import store

SIZES = {  # sizes alone: everything else is the paper profile's
    "datasets": "everyday",
    "steps": "01_preference_data,02_base_model,03_persona_inference,05_tailoring_data,"
    "06_supervised_tailoring,07_preference_tailoring,08_generation,09_judging,11_persona_swap,12_results",
    "data.pair_limit": 32,
    "training.rows": 16,
    "training.validation_rows": 4,
    "evaluation.limit": 4,
    "evaluation.controls": "false",
    "generator.model": "pypi:smollm2-135m-instruct/2",
    "generator.kind": "chat",
    "training.arms": "none,chosen",
    "evaluation.personas": "none,gold-chosen,gold-rejected",
    "sft.epochs": 1,
    "dpo.epochs": 1,
    "generation.max_new_tokens": 12,
    "generator.max_new_tokens": 24,
    "judge.max_new_tokens": 12,
    "evaluation.bootstrap_samples": 100,
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Where the rows of a run are: random Llamas as policy and judge, two layers of SmolLM2 for personas."""
    folder = tmp_path_factory.mktemp("rehearsal")
    for seed, name in enumerate(("policy", "judge")):
        llama31.save_llama(folder / name, llama31.example_texts(), seed, **llama31.SMALL)
    kind = "prometheus" if importlib.util.find_spec("prometheus_eval") else "letter"
    models = {"base.model": folder / "policy", "judge.model": folder / "judge", "judge.format": kind}
    changes = " ".join(f"--set {name}={value}" for name, value in {**models, **SIZES}.items())
    command = f"python -m persona_lib.pipeline --profile paper --offline {changes}"
    folders = {name: str(folder / name.lower()) for name in ("RESULTS", "FIGURES")}
    run_there(REPO, command, **{f"PERSONA_{name}": value for name, value in folders.items()})
    return folder / "results" / "paper" / "everyday" / "seed-0"


def rows_of(folder: Path, pattern: str) -> list[dict]:
    return [row for path in folder.glob(pattern) for row in store.iter_rows(path)]


def test_adapters_are_trained_with_the_papers_values_start_right_and_move(run):
    folders = sorted((run / "adapters").iterdir())
    assert [path.name for path in folders] == ["dpo-chosen", "dpo-none", "sft-chosen", "sft-none"]
    for path in folders:
        method = path.name[:3]
        settings = store.read_json(path / "spec.json")["settings"]
        wanted = {name: PAPER[name] for name in (PAPER.keys() & settings) - SIZES.keys()}
        assert {name: settings[name] for name in wanted} == wanted and len(wanted) > 8
        adapter = store.read_json(path / "adapter_config.json")
        assert adapter["lora_alpha"] == 32 and sorted(adapter["target_modules"]) == ["q_proj", "v_proj"]
        weights = load_file(path / "adapter_model.safetensors")
        assert len(weights) == 2 * 2 * 2, "A and B of two layers' q and v"
        assert {str(w.dtype) for w in weights.values()} == {"torch.float32"}
        assert all(bool(w.any()) for name, w in weights.items() if "lora_B" in name), "it did not move"
        first = next(row["loss"] for row in store.iter_rows(path / "log.jsonl") if "loss" in row)
        assert abs(first - math.log(2)) < 0.01 if method == "dpo" else 5 < first < 8  # ln of about 800 tokens


def test_every_policy_answers_is_judged_in_both_orders_and_swapped(run):
    answers = rows_of(run, "generations/*/rows.jsonl")
    assert answers and all(10 <= row["n_tokens"] <= 12 for row in answers), "between the least and the most"
    judged = list(store.iter_rows(next(run.glob("judgments/dpo-chosen*/personalization.jsonl"))))
    assert len(judged) % 2 == 0 and {row["order"] for row in judged} == {"AB", "BA"}
    assert all(Path(row["judge"]).name == "judge" for row in judged)
    assert all(row["winner"] is None and row["feedback"] for row in judged), "random weights write no verdict"
    verdicts = rows_of(run, "judgments/*/verdicts.jsonl")
    said = {row["personalization"] for row in verdicts}
    assert "unparsed" in said and said <= {"unparsed", "tie"}, "a tie: both policies wrote the same text"
    scores = rows_of(run, "swap/*/policy.jsonl")
    assert scores and all(math.isfinite(row["chosen"]) and row["chosen"] < 0 for row in scores)
