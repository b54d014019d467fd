"""Training in two ranks is training in one: losses, adapters, resume; a rank that fails says why."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import save_base, tiny_run

from persona_lib import config, ranks, store, train
from persona_lib.config import Run, set_field

TESTS = Path(__file__).resolve().parent
LOSSES = ("loss", "eval_loss", "rewards/margins", "eval_rewards/margins")
PLAIN = {"dpo_sft_weight": 0.0, "quantization": "nf4"}


def use_odd_ranks(monkeypatch, what: str) -> None:
    """Start ``odd_rank`` where ``persona_lib.train_rank`` would be started."""
    command, environment = ranks.launch_command, ranks.environment
    path = os.pathsep.join([str(config.REPO), str(TESTS)])
    monkeypatch.setattr(ranks, "launch_command", lambda module, *rest: command("odd_rank", *rest))
    monkeypatch.setattr(
        ranks, "environment", lambda n: environment(n) | {"PYTHONPATH": path, "RANK_TEST": what}
    )


def logged(run: Run, method: str) -> dict[str, list[float]]:
    """The losses and margins of an adapter's log, by name."""
    rows = list(store.iter_rows(train.adapter_folder(run, method, "chosen") / "log.jsonl"))
    return {name: [row[name] for row in rows if name in row] for name in LOSSES}


def adapter(run: Run, method: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(train.adapter_folder(run, method, "chosen") / "adapter_model.safetensors")


def check_same(one: Run, other: Run, method: str, rtol: float = 1e-5, atol: float = 5e-4) -> None:
    """Losses equal to five digits; adapters (weights up to .16) to the rounding that Adam makes of float32."""
    first, second = logged(one, method), logged(other, method)
    for name, values in first.items():
        assert len(values) == len(second[name])
        np.testing.assert_allclose(second[name], values, rtol=rtol, atol=2e-5, err_msg=f"{method} {name}")
    first, second = adapter(one, method), adapter(other, method)
    assert first.keys() == second.keys()
    for name, weights in first.items():
        np.testing.assert_allclose(second[name], weights, atol=atol, err_msg=f"{method} {name}")


def train_both(results: Path, monkeypatch, **changes) -> Run:
    """Train the arm "chosen" by SFT and then by DPO."""
    run = tiny_run(results, monkeypatch, **{**PLAIN, **changes})
    for method in ("sft", "dpo"):
        train.train_adapter(run, method, "chosen")
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run trained in this process; it is compared by its folder, which PERSONA_RESULTS gives."""
    results = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        train_both(results, patch)
    return results


def compare(alone: Path, run: Run, monkeypatch, method: str) -> None:
    """Compare a run of now with the one that was trained alone."""


# --- settings ---


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        (["sft_batch_size=15"], "sft_batch_size=15 cannot be shared by train_processes=2"),
        (["dpo_batch_size=1"], "dpo_batch_size=1 cannot be shared.*Use a multiple.*persona_lib.ahead"),
        (["train_processes=0"], "train_processes=0: use at least 1"),
        (["train_processes=1", "train_launcher=fsdp"], "at least 2 with train_launcher=fsdp"),
        (["train_launcher=mpi"], "use one of ddp, fsdp"),
    ],
)
def test_processes_that_cannot_share_a_batch_are_refused_with_the_mend(override, complaint):
    with pytest.raises(config.ConfigError, match=complaint):
        config.load_profile("synthetic", ["train_processes=2", *override])


def test_a_step_sees_the_profiles_batch_whatever_the_processes():
    from persona_lib.trainers import trainer_settings

    profile = set_field(config.load_profile("synthetic"), train_processes=4, dpo_batch_size=8)
    assert trainer_settings(profile, "sft", 0, Path("x"))["per_device_train_batch_size"] == 4
    assert trainer_settings(profile, "dpo", 0, Path("x"))["per_device_train_batch_size"] == 2


def test_another_number_of_processes_is_another_adapter(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, monkeypatch)
    two = Run(set_field(run.profile, train_processes=2), run.dataset, run.seed)
    assert train.training_spec(run, "sft", "none") != train.training_spec(two, "sft", "none")


@pytest.mark.parametrize("launcher", ranks.CONFIGS)
def test_accelerate_reads_the_launchers_files_and_starts_as_many_ranks_as_asked(launcher):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    command = ranks.launch_command("module", launcher, 3, ["folder"])
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(command[3:]))
    assert (arguments.num_processes, arguments.training_script, arguments.module) == (3, "module", True)
    assert (arguments.multi_gpu, arguments.use_fsdp) == (
        (True, False) if launcher == "ddp" else (False, True)
    )
    if launcher == "fsdp":
        assert (arguments.fsdp_version, arguments.fsdp_auto_wrap_policy) == (2, "TRANSFORMER_BASED_WRAP")


# --- failures ---


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("raise", r"in 2 ranks failed: rank 1:\nTraceback (.|\n)*ValueError: no such row"),
        ("kill", r"in 2 ranks failed: rank 1 was killed by signal 9"),
    ],
)
def test_a_failing_rank_ends_the_job_and_says_how(how, complaint, monkeypatch, capsys):
    use_odd_ranks(monkeypatch, "fail")
    started = time.monotonic()
    with pytest.raises(ranks.RankError, match=complaint):
        ranks.run_ranks("odd_rank", "ddp", 2, {"how": how})
    assert time.monotonic() - started < 45  # rank 0 sleeps for 60 s
    assert "rank 0 works" in capsys.readouterr().out


def test_a_failure_without_traceback_shows_the_last_lines(tmp_path):
    message = ranks.what_failed(tmp_path, [f"line {n}" for n in range(100)])
    assert message.endswith("line 98\nline 99")
    assert "line 0\n" not in message


@pytest.mark.slow
def test_a_launcher_that_starts_one_process_is_caught(tmp_path, monkeypatch):
    """``accelerate launch --cpu --num_processes 2`` starts one, and says nothing."""
    command = ranks.launch_command
    monkeypatch.setattr(
        ranks, "launch_command", lambda *a: [p for p in command(*a)[:3]] + ["--cpu"] + command(*a)[5:]
    )
    run = tiny_run(tmp_path, monkeypatch, train_processes=2)
    with pytest.raises(ranks.RankError, match="asked for 2 ranks; WORLD_SIZE is 1 and 1 joined"):
        train.train_adapter(run, "sft", "chosen")
    assert not train.adapter_folder(run, "sft", "chosen").exists()


@pytest.mark.slow
def test_fsdp_without_gpus_is_refused(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, monkeypatch, train_processes=2, train_launcher="fsdp")
    with pytest.raises(ranks.RankError, match="accelerate has FSDP on GPUs only and would use DDP"):
        train.train_adapter(run, "sft", "chosen")
