"""The section on QLoRA: it really trains on a base in four bits, once, and says what that cost."""

from __future__ import annotations

import pytest
from tiny import tiny_run

from persona_lib import store
from persona_lib.models import train


@pytest.mark.slow
def test_a_few_steps_in_four_bits_are_trained_once_and_their_costs_are_kept(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, monkeypatch)
    costs = train.qlora_section(run, steps=2, rows=8)
    assert costs.measured["steps"] == 2 and (costs.measured > 0).all()
    assert costs.measured["weights in NF4, MB"] < costs.measured["weights in float32, MB"]
    folder = run.folder / "qlora"
    spec = store.read_json(folder / "spec.json")
    assert spec["settings"]["quantization"] == "nf4" and (folder / "adapter_model.safetensors").exists()
    assert not (folder / "checkpoints").exists() and not (run.folder / "adapters").exists()
    monkeypatch.setattr(train, "ProcessPoolExecutor", None)  # nothing is trained again
    assert train.qlora_section(run, steps=2, rows=8).equals(costs)
