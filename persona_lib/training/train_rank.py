r"""Entry point of one rank that trains one adapter together with others; ``train.train_adapter`` starts it.

FOLDER/job.json describes the job (``train.launch``). ``train_launcher`` names the file of configs/accelerate:

    accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 2 \
        -m persona_lib.training.train_rank FOLDER
"""

from __future__ import annotations

from typing import Any

from persona_lib.config import Run
from persona_lib.profiles import Profile, check_fields
from persona_lib.training import ranks, train


def read_run(job: dict[str, Any]) -> Run:
    """Return the run of a job; JSON has lists where a profile has tuples."""
    return Run(Profile(**check_fields(job["profile"], "job.json")), job["dataset"], job["seed"])


def train_one(job: dict[str, Any]) -> None:
    """Join the other ranks and train the job's adapter."""
    run = read_run(job)
    ranks.check_ranks(run.profile.train_processes)
    train.train_adapter(run, job["method"], job["train_persona"])


if __name__ == "__main__":
    ranks.run_as_rank(train_one)
