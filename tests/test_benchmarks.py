"""The GPU benchmarks, shrunk: they run to the end on a CPU and write what they say."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import time

import gpu_training
import llama31
import newcomer
import pytest

from persona_lib.config import REPO


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


@pytest.mark.slow
def test_shapes_and_what_is_left_out_are_timed_and_the_largest_operators_named(tmp_path):
    rows, text = run_shrunk("gpu_sweep", tmp_path / "sweep")
    shapes = [(row["rows per step"], row["lengths"]) for row in rows]
    assert shapes == [("2", "48 each")] * 2
    tokens = {
        (r["method"], *shape): float(r["tokens per step"]) for r, shape in zip(rows, shapes, strict=True)
    }
    assert tokens["sft", "2", "48 each"] == 2 * 48 and tokens["dpo", "2", "48 each"] == 2 * 2 * 48
    less = read_csv(tmp_path / "sweep_less.csv")
    ways = [row["way"].removeprefix("this package") for row in less]
    assert ways == ["", ", side by side", ", reference online", "", ", side by side"]
    plain, online, shared = ([r for r in less if r["method"] == "dpo" and r["way"].endswith(end)]
                             for end in ("package", "online", "side"))  # fmt: skip
    for row, other, fewer in zip(plain, online, shared, strict=True):
        assert float(row["tokens per step"]) == float(other["tokens per step"])
        assert float(fewer["tokens per step"]) < float(row["tokens per step"]), "prompts once"
    operators = read_csv(tmp_path / "sweep_profile.csv")
    assert len(operators) == 15 and 0 < sum(float(row["share"]) for row in operators) <= 1


@pytest.mark.slow
def test_generation_is_timed_against_the_memory_rate_and_answers_agree(tmp_path):
    rows, text = run_shrunk("gpu_generation", tmp_path / "generation")
    assert (
        "Answers equal to one prompt at a time" in text
        and "a shared prefix, " in text
        and "two adapters" in text
    )
    bases = ("nf4", "nf4, expanded", "bfloat16")
    plain = [(base, batch) for batch in ("1", "4") for base in bases]
    assert [(row["base"], row["batch"]) for row in rows] == plain + [(f"{b} + adapters", "4") for b in bases]
    for row in rows:
        share = float(row["tokens/s"]) / float(row["ceiling tokens/s"])
        assert 0 < float(row["of ceiling"]) == pytest.approx(share)
    assert (
        float(rows[0]["weights GB"])
        < 0.5 * float(rows[1]["weights GB"])
        == 0.5 * float(rows[2]["weights GB"])
    )


def test_a_newcomer_has_an_empty_home_and_nothing_of_the_environment_that_is_active(tmp_path, monkeypatch):
    monkeypatch.setenv("VIRTUAL_ENV", "/active")
    monkeypatch.setenv("PATH", os.pathsep.join(("/active/bin", "/usr/bin")))
    monkeypatch.setenv("PERSONA_RESULTS", "elsewhere")
    monkeypatch.setenv("PIP_CERT", "certificate")
    found = newcomer.empty_environment(tmp_path)
    assert (found["PATH"], found["HOME"], found["PIP_CERT"]) == ("/usr/bin", str(tmp_path), "certificate")
    assert not {"PERSONA_RESULTS", "PYTHONPATH", "VIRTUAL_ENV"} & set(found)


@pytest.mark.slow
def test_a_newcomers_first_figure_is_the_first_that_is_drawn_after_the_start(tmp_path):
    command = [
        sys.executable,
        "-c",
        "import time; time.sleep(1); open('figures/a.png', 'w'); print('set up in 1 s')",
    ]
    (tmp_path / "there" / "figures").mkdir(parents=True)
    (tmp_path / "there" / "figures" / "old.png").touch()
    time.sleep(0.05)
    found = newcomer.watch(command, tmp_path / "there", tmp_path / "there" / "figures", dict(os.environ))
    assert 1 <= found["first figure after"] <= found["done after"] and found["set up after"]
    with pytest.raises(SystemExit, match="no such thing"):
        newcomer.watch([sys.executable, "-c", "exit('no such thing')"], tmp_path / "there", tmp_path, {})


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["growth", "whole_run"])
def test_profiles_of_growth_and_of_a_run_check_what_they_measure(name):
    command = [sys.executable, str(REPO / "benchmarks" / f"{name}.py"), "--quick"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(REPO)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    if name == "growth":
        lines = [line for line in done.stdout.splitlines() if line.startswith("| ") and line.count("|") == 9]
        exponents = [float(line.split("|")[-2]) for line in lines if not line.startswith("| ---")]
        assert len(exponents) == 3 * 9 and max(exponents) < 2.5, done.stdout
    else:
        assert "nothing done" in done.stdout
