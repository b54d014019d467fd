"""The whole pipeline on data of one's own: the pairs that ship here, and Auto-J's file where it is there."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import REPO, data_folder, run_there

FIRST = "01_preference_data,02_base_model,03_persona_inference,05_tailoring_data,06_supervised_tailoring"
STEPS = f"--set steps={FIRST},07_preference_tailoring,08_generation,11_persona_swap,12_results"
FEWER = "--set training.methods=sft,dpo --set evaluation.limit=6"  # its answers are long


def run_own(folder: Path, arguments: str) -> tuple[str, Path]:
    """Run own_smoke on some data into a folder; returns what it said and where its results are."""
    moved = {"PERSONA_RESULTS": str(folder / "results"), "PERSONA_FIGURES": str(folder / "figures")}
    command = f"python -m persona_lib.pipeline --profile own_smoke --offline {arguments}"
    return run_there(REPO, command, **moved), folder / "results" / "own_smoke"


def swap_rows(results: Path) -> pd.DataFrame:
    table = pd.read_csv(results / "tables" / "swap.csv").query("dataset == 'own' and measure == 'policy'")
    return table.query("arm == 'dpo-both' and persona == 'gold'")


@pytest.mark.slow
def test_the_shipped_pairs_run_from_file_to_report_and_again_without_work(tmp_path):
    said, results = run_own(tmp_path, STEPS)
    assert "120 rows read, 120 usable, 0 rejected" in said
    assert len(swap_rows(results)) == 1 and (results / "report" / "data.html").exists()
    assert "own data" in (results / "report" / "index.html").read_text(encoding="utf-8")
    assert (results / "adapter" / "README.md").exists() and (results / "tables" / "user_swap.csv").exists()
    again, _ = run_own(tmp_path, STEPS)
    assert all(line.endswith("cached") for line in again.splitlines() if line.startswith("["))


@pytest.mark.slow
def test_autoj_runs_with_its_mapping_and_every_row_is_accounted_for(tmp_path):
    data = f"--data {data_folder('autoj') / 'autoj_pairwise.json'} --mapping examples/autoj.yaml"
    said, results = run_own(tmp_path, f"{data} {FEWER}")
    assert "1392 rows read, 1017 usable, 375 rejected (373 tie, 1 empty, 1 identical)" in said
    assert len(swap_rows(results)) == 1
    assert not list((results / "notebooks").glob("16*"))
    assert sum(pd.read_csv(results / "report" / "data_findings.csv").outcome == "rejected") == 375
