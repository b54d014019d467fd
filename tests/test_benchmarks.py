"""The benchmarks: their harness, equal results in quick runs, and what the GPU script writes."""

import importlib
import json
import re

import harness
import pytest
import torch
from conftest import REPO, run_there

BENCHMARKS = importlib.import_module("benchmarks.__main__")


def equal(a, b) -> str:
    if a != b:
        raise harness.NotEqual(f"{a} and {b}")
    return f"both {a}"


def way(seconds: float, result: int):
    return lambda: harness.Timed(result, seconds)


def test_a_comparison_keeps_every_ratio_and_refuses_unequal_results(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    with pytest.raises(harness.NotEqual, match="7 and 8"):
        harness.compare("x", way(3.0, 7), way(1.5, 8), equal)
    assert BENCHMARKS.table_text("benchmarks", tmp_path) == "*Not run yet.*\n"
    line = harness.compare("x", way(3.0, 7), way(1.5, 7), equal, 3, "ours", "theirs")
    assert line["ratio"] == {"min": 2.0, "median": 2.0, "max": 2.0} and line["equal"] == "both 7"
    shown = BENCHMARKS.table_text("benchmarks", tmp_path).splitlines()
    assert len(shown) == 3 and shown[2].startswith("| ours | theirs | **2.00** (2.00 to 2.00) |")


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS.BENCHMARKS)
def test_a_quick_run_checks_equality_and_writes_nothing(name):
    """The machine may be noisy and the models are tiny: only a ratio far off is an error."""
    before = run_there(REPO, "git status --porcelain benchmarks")
    said = run_there(REPO, f"python -m benchmarks --quick {name}")
    lacking = torch.backends.cpu.get_cpu_capability() != "AVX512"  # where bfloat16 is emulated, hence slow
    timed = re.sub("(?m)^.*-float32: .*$", "", said) if lacking else said
    found = [float(number) for number in re.findall(r": (?:exponent )?(-?[\d.]+)(?: times as fast)?", timed)]
    assert len(found) > (1 if name == "scoring" else 2) and (name == "growth" or min(found) > 0.3), said
    assert run_there(REPO, "git status --porcelain benchmarks") == before


@pytest.mark.slow
def test_the_gpu_script_measures_every_way_and_keeps_each_line(tmp_path):
    out = tmp_path / "gpu.jsonl"
    run_there(REPO, f"python benchmarks/gpu.py {out} --shrink")
    first, *rows = map(json.loads, out.read_text().splitlines())
    assert len(first["differences"]) == 6 and max(first["differences"].values()) <= 1e-4
    assert len(rows) == 14 and {row["way"] for row in rows} == {"authors", "TRL defaults", "this package"}
    assert all(row["tokens_per_second"] > row["rows_per_second"] > 0 and row["seconds"] > 0 for row in rows)
    assert all(0 < row["operations_per_second"] < first["matrix_rate"] * 10 for row in rows[:-1])
