r"""Entry point of one rank that trains one adapter together with others; ``train.train_adapter`` starts it.

FOLDER/job.json describes the job (``train.launch``). ``train_launcher`` names the file of configs/accelerate:

    accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 2 \
        -m persona_lib.train_rank FOLDER
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from persona_lib import ranks, store, train
from persona_lib.config import Profile, Run, check_fields


def read_run(job: dict[str, Any]) -> Run:
    """Return the run of a job; JSON has lists where a profile has tuples."""
    return Run(Profile(**check_fields(job["profile"], "job.json")), job["dataset"], job["seed"])


def main() -> None:
    """Join the other ranks and train; a failure leaves its traceback in the job's folder."""
    folder = Path(sys.argv[1])
    try:
        job = store.read_json(folder / "job.json")
        ranks.begin_rank(job["parent"])
        run = read_run(job)
        ranks.check_ranks(run.profile.train_processes)
        train.train_adapter(run, job["method"], job["train_persona"])
    except BaseException:
        store.write_text(folder / f"rank-{ranks.rank()}.txt", traceback.format_exc())
        raise


if __name__ == "__main__":
    main()
