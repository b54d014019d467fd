"""The benchmarks' harness, and every benchmark in its quick mode: results equal, ratios within reason."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys

import harness
import pytest

from persona_lib.settings import REPO

BENCHMARKS = importlib.import_module("benchmarks.__main__")


def equal(a, b) -> str:
    if a != b:
        raise harness.NotEqual(f"{a} and {b}")
    return f"both {a}"


def way(seconds: float, result: int, order: list[str], name: str):
    """A way that says how long it took."""

    def work() -> harness.Timed:
        order.append(name)
        return harness.Timed(result, seconds)

    return work


def test_a_comparison_alternates_and_keeps_the_ratio_of_every_pair(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    order = []
    line = harness.compare("x", way(3.0, 7, order, "a"), way(1.5, 7, order, "b"), equal, 3, "ours", "theirs")
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert line["ratio"] == {"min": 2.0, "median": 2.0, "max": 2.0} and line["equal"] == "both 7"
    assert json.loads((tmp_path / "x.json").read_text()) == json.loads(json.dumps(line))
    assert "x: 2.00 times as fast (2.00 to 2.00, 3 pairs" in capsys.readouterr().out
    assert set(line) >= {"hardware", "git", "versions", "command", "date"}


def test_results_that_differ_are_an_error_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    with pytest.raises(harness.NotEqual, match="7 and 8"):
        harness.compare("x", way(3.0, 7, [], "a"), way(1.5, 8, [], "b"), equal)
    assert not list(tmp_path.iterdir())


def test_a_quick_comparison_makes_one_pair_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    order = []
    line = harness.compare("x", way(3.0, 7, order, "a"), way(1.5, 7, order, "b"), equal, quick=True)
    assert order == ["a", "b"] and line["pairs"] == 1
    assert not list(tmp_path.iterdir())


def test_a_way_without_a_clock_of_its_own_is_timed():
    done = harness.timed(lambda: sum(range(1000)))
    assert done.result == 499500 and 0 < done.seconds < 1


def test_the_table_has_a_line_per_result(tmp_path, monkeypatch):
    assert BENCHMARKS.table_text(tmp_path) == "*Not run yet.*\n"
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    for name in ("b", "a"):
        harness.compare(name, way(3.0, 7, [], "a"), way(1.5, 7, [], "b"), equal, what=f"what {name}")
    lines = BENCHMARKS.table_text(tmp_path).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| what a |") and "**2.00** (2.00 to 2.00)" in lines[2]


def test_the_committed_table_is_that_of_the_committed_results():
    text = (REPO / "benchmarks" / "README.md").read_text(encoding="utf-8")
    block = re.search(BENCHMARKS.BLOCK.pattern.replace(".*?", "(.*?)"), text, re.DOTALL)[2]
    assert block == BENCHMARKS.table_text(REPO / "benchmarks" / "results")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BENCHMARKS.BENCHMARKS))
def test_a_quick_run_checks_equality_and_writes_nothing(name):
    """The machine may be noisy and the models are tiny: only a ratio far off is an error."""
    command = [sys.executable, "-m", "benchmarks", "--quick", name]
    status = ["git", "status", "--porcelain", "benchmarks"]
    before = subprocess.run(status, cwd=REPO, capture_output=True, text=True).stdout
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ratios = [float(found) for found in re.findall(r": ([\d.]+) times as fast", done.stdout)]
    assert ratios and all(ratio > 0.3 for ratio in ratios), done.stdout
    assert subprocess.run(status, cwd=REPO, capture_output=True, text=True).stdout == before
