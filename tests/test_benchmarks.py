"""The GPU benchmarks, shrunk: they run to the end on a CPU and write what they say."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys

import gpu_training
import llama31
import pytest

from persona_lib.settings import REPO


def run_shrunk(name: str, out) -> tuple[list[dict[str, str]], str]:
    """Run a benchmark as a person would, and return the rows of its CSV and its markdown."""
    command = [sys.executable, str(REPO / "benchmarks" / f"{name}.py"), str(out), "--shrink"]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert text.strip() in done.stdout
    return read_csv(out.with_suffix(".csv")), text


def read_csv(path) -> list[dict[str, str]]:
    """Return the rows of a table that a benchmark wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_training_steps_are_timed_in_every_way_and_their_losses_agree(tmp_path):
    rows, text = run_shrunk("gpu_training", tmp_path / "training")
    assert text.count("equal to") == 4, "two methods against two ways"
    assert len(rows) == 13 and {row["way"] for row in rows} == {"authors", "TRL defaults", "this package"}
    assert all(float(row["fastest"]) <= float(row["ms per step"]) <= float(row["slowest"]) for row in rows)
    full = [row for row in rows if row["lengths"] == "48 each"]
    tokens = [(row["method"], row["base"], float(row["tokens per step"])) for row in full]
    assert tokens == [("sft", "bfloat16", 4 * 48), ("dpo", "bfloat16", 2 * 2 * 48), ("dpo", "nf4", 2 * 48)]
    for row in rows:
        speed = 1000 * float(row["tokens per step"]) / float(row["ms per step"])
        assert float(row["tokens/s"]) == pytest.approx(speed)
    assert "torch" in text and re.search(r"Commit [0-9a-f]{12}|not recorded", text)


def test_the_configuration_is_llama_31_8b(tmp_path):
    """8.03 billion parameters, 32 layers, four query heads per key-value head: as Meta states them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llama31.llama_config())
    assert model.num_parameters() == 8_030_261_248
    assert len(model.model.layers) == 32
    assert model.model.layers[0].self_attn.k_proj.out_features == 1024


def test_the_arithmetic_of_a_token_is_that_of_the_linear_layers_and_the_head():
    """8,030,261,248 parameters less norms (266,240) and the embedding (525,336,576), twice per pass."""
    weights = 8_030_261_248 - 266_240 - 128_256 * 4096
    config = llama31.llama_config()
    sft = gpu_training.Case("sft", "this package", "none", "bfloat16", 1)
    assert gpu_training.flops_per_token(config, sft, 1.0) == 2 * 2 * weights
    online = gpu_training.Case("dpo", "authors", "none", "bfloat16", 1)
    assert gpu_training.flops_per_token(config, online, 1.0) == 3 * 2 * weights
    beforehand = gpu_training.Case("dpo", "this package", "none", "bfloat16", 1)
    assert gpu_training.flops_per_token(config, beforehand, 0.0) == 2 * 2 * (weights - 128_256 * 4096)


def test_rows_have_the_wanted_tokens_with_bos_and_eos():
    bench = gpu_training.make_bench(shrink=True)
    for method, names in (("sft", ("completion",)), ("dpo", ("chosen", "rejected"))):
        for row in gpu_training.make_rows(bench, method, 5, 48):
            assert {len(bench.tokenizer(row["prompt"] + row[name])["input_ids"]) + 1 for name in names} == {
                48
            }
