"""The benchmarks: their harness, equal results in quick runs, and what the GPU script writes."""

from __future__ import annotations

import csv
import importlib
import json
import re

import harness
import llama31
import pytest
from conftest import REPO, run_there

BENCHMARKS = importlib.import_module("benchmarks.__main__")


def equal(a, b) -> str:
    if a != b:
        raise harness.NotEqual(f"{a} and {b}")
    return f"both {a}"


def way(seconds: float, result: int, order: list[str], name: str):
    """A way that says how long it took."""
    return lambda: order.append(name) or harness.Timed(result, seconds)


def test_a_comparison_alternates_keeps_every_ratio_and_refuses_unequal_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    with pytest.raises(harness.NotEqual, match="7 and 8"):
        harness.compare("x", way(3.0, 7, [], "a"), way(1.5, 8, [], "b"), equal)
    assert not list(tmp_path.iterdir()) and BENCHMARKS.table_text(tmp_path) == "*Not run yet.*\n"
    order = []
    line = harness.compare("x", way(3.0, 7, order, "a"), way(1.5, 7, order, "b"), equal, 3, "ours", "theirs")
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert line["ratio"] == {"min": 2.0, "median": 2.0, "max": 2.0} and line["equal"] == "both 7"
    assert json.loads((tmp_path / "x.json").read_text()) == json.loads(json.dumps(line))
    assert "x: 2.00 times as fast (2.00 to 2.00, 3 pairs" in capsys.readouterr().out
    assert set(line) >= {"hardware", "git", "versions", "date"}
    shown = BENCHMARKS.table_text(tmp_path).splitlines()
    assert len(shown) == 3 and shown[2].startswith("| ours | theirs | **2.00** (2.00 to 2.00) |")


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS.BENCHMARKS)
def test_a_quick_run_checks_equality_and_writes_nothing(name):
    """The machine may be noisy and the models are tiny: only a ratio far off is an error."""
    before = run_there(REPO, "git status --porcelain benchmarks")
    said = run_there(REPO, f"python -m benchmarks --quick {name}")
    ratios = [float(found) for found in re.findall(r": ([\d.]+) times as fast", said)]
    assert ratios and all(ratio > 0.3 for ratio in ratios), said
    assert run_there(REPO, "git status --porcelain benchmarks") == before


@pytest.mark.slow
def test_the_gpu_script_times_training_steps_in_every_way(tmp_path):
    out = tmp_path / "training.csv"
    run_there(REPO, f"python benchmarks/gpu_training.py {out} --shrink")
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13 and {row["way"] for row in rows} == {"authors", "TRL defaults", "this package"}
    assert all(float(row["fastest"]) <= float(row["ms per step"]) <= float(row["slowest"]) for row in rows)
    assert all(0 <= float(row["loss difference"]) <= 1e-4 and not row["remark"] for row in rows)


def test_the_configuration_is_llama_31_8b():
    """8.03 billion parameters, 32 layers, four query heads per key-value head: as Meta states them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llama31.llama_config())
    assert model.num_parameters() == 8_030_261_248
    assert len(model.model.layers) == 32
    assert model.model.layers[0].self_attn.k_proj.out_features == 1024
