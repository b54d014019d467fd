"""The paper profile from end to end with random weights of the same architectures: no hub, no GPU needed.

    python benchmarks/paper_rehearsal.py FOLDER

Makes, in FOLDER, a random Llama of 3.1's architecture with a byte-level BPE tokenizer, a random Mistral as
the judge; two layers of SmolLM2 write personas. Then it runs the pipeline as anyone would, ``run_all.sh
--profile paper`` with these folders as models: persona inference, SFT, DPO, generation, judging in both
orders and the persona swap, with the profile's own values apart from sizes (``SIZES``).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import llama31

from persona_lib.settings import REPO

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
JUDGE_SMALL = llama31.sizes(64, 128, 1, 4, 1)


def make_models(folder: Path) -> dict[str, Path]:
    """Make both models, those that are not there yet; returns the profile fields that name them."""
    texts = llama31.example_texts()
    models = {"base.model": folder / "models" / "llama", "judge.model": folder / "models" / "mistral"}
    if not (models["base.model"] / "tokenizer.json").exists():
        llama31.save_llama(models["base.model"], texts, seed=0, **llama31.SMALL)
    if not (models["judge.model"] / "tokenizer.json").exists():
        llama31.save_mistral(models["judge.model"], texts, seed=1, **JUDGE_SMALL)
    return models


def run_profile(models: dict[str, Path]) -> int:
    """Run the paper profile on these models; returns the runner's exit status.

    The judge is asked in Prometheus-2's words where the package with them is installed, else in ours.
    """
    official = importlib.util.find_spec("prometheus_eval")
    settings = {**models, **SIZES, "judge.format": "prometheus" if official else "letter"}
    changes = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "persona_lib.pipeline", "--profile", "paper", "--offline", *changes]
    return subprocess.run(command, cwd=REPO).returncode


def main() -> None:
    """Make the models and run the profile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    folder = parser.parse_args().folder.resolve()
    os.environ |= {"PERSONA_RESULTS": str(folder / "results"), "PERSONA_FIGURES": str(folder / "figures")}
    sys.exit(run_profile(make_models(folder)))


if __name__ == "__main__":
    main()
