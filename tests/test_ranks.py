"""Training in two processes is training in one: same losses, same adapter."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from tiny import tiny_run

from persona_lib import store
from persona_lib.models import train, trainers
from persona_lib.settings import REPO, ConfigError

LOSSES = ("loss", "eval_loss", "rewards/margins", "eval_rewards/margins")
SCRIPT = """
import pickle, sys
from persona_lib.models import train
run = pickle.load(open(sys.argv[1], "rb"))
for method in ("sft", "dpo"):
    train.train_adapter(run, method, "chosen")
"""


def logged(folder) -> dict[str, list[float]]:
    """The losses and margins of an adapter's log, by name."""
    rows = list(store.iter_rows(folder / "log.jsonl"))
    return {name: [row[name] for row in rows if name in row] for name in LOSSES}


def test_a_batch_that_ranks_cannot_share_is_refused_with_the_mend(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert trainers.part(8) == 4
    with pytest.raises(ConfigError, match="a batch of 5 rows cannot be shared by 2 processes"):
        trainers.part(5)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 4.0], ids=["dpo", "dpo with an SFT term"])
def test_two_ranks_train_what_one_process_trains(tmp_path, monkeypatch, weight):
    """NF4, stacked adapters; the SFT term is a mean over the tokens of the whole batch, not of a rank's."""
    from safetensors.numpy import load_file

    folders = []
    for name in ("one", "two"):
        changes = {"dpo.sft_weight": weight, "base.quantization": "nf4"}
        run = tiny_run(tmp_path / name, monkeypatch, **changes)
        (tmp_path / "run.pickle").write_bytes(pickle.dumps(run))
        (tmp_path / "train.py").write_text(SCRIPT)
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [sys.executable, *(launch if name == "two" else []), str(tmp_path / "train.py")]
        environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, str(tmp_path / "run.pickle")], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        folders.append({method: train.adapter_folder(run, method, "chosen") for method in ("sft", "dpo")})
    for method in ("sft", "dpo"):
        one, two = (found[method] for found in folders)
        assert [store.read_json(folder / "done.json")["processes"] for folder in (one, two)] == [1, 2]
        first, second = logged(one), logged(two)
        for name in LOSSES if weight == 0 else ("loss", "rewards/margins"):
            np.testing.assert_allclose(second[name], first[name], rtol=1e-5, atol=1e-5, err_msg=name)
        weights, others = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
        for name, value in weights.items():
            np.testing.assert_allclose(others[name], value, atol=5e-4, err_msg=name)
