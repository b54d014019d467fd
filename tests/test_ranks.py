"""Training in two ranks is training in one: losses, adapters, resume; a rank that fails says why."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import save_base, tiny_run

from persona_lib import config, profiles, store
from persona_lib.config import Run, set_field
from persona_lib.training import ranks, train

TESTS = Path(__file__).resolve().parent
LOSSES = ("loss", "eval_loss", "rewards/margins", "eval_rewards/margins")
PLAIN = {"dpo_sft_weight": 0.0, "quantization": "nf4"}


def use_odd_ranks(monkeypatch, what: str) -> None:
    """Start ``odd_rank`` where ``persona_lib.training.train_rank`` would be started."""
    command, environment = ranks.launch_command, ranks.environment
    extra = {"PYTHONPATH": os.pathsep.join([str(config.REPO), str(TESTS)]), "RANK_TEST": what}
    monkeypatch.setattr(ranks, "launch_command", lambda module, *rest: command("odd_rank", *rest))
    monkeypatch.setattr(ranks, "environment", lambda count: environment(count) | extra)


def logged(folder: Path) -> dict[str, list[float]]:
    """The losses and margins of an adapter's log, by name."""
    rows = list(store.iter_rows(folder / "log.jsonl"))
    return {name: [row[name] for row in rows if name in row] for name in LOSSES}


def adapter(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")


def check_same(one: Path, other: Path, losses: tuple[str, ...] = LOSSES) -> None:
    """Losses equal to five digits; adapters (weights up to .16) to what Adam makes of float32's rounding."""
    first, second = logged(one), logged(other)
    assert first["eval_loss"][0] != pytest.approx(first["eval_loss"][1], rel=1e-4)
    for name in losses:
        np.testing.assert_allclose(second[name], first[name], rtol=1e-5, atol=1e-5, err_msg=name)
    first, second = adapter(one), adapter(other)
    assert first.keys() == second.keys()
    for name, weights in first.items():
        np.testing.assert_allclose(second[name], weights, atol=5e-4, err_msg=name)
    assert [store.read_json(folder / "done.json")["processes"] for folder in (one, other)] == [1, 2]


def train_both(results: Path, monkeypatch, **changes) -> dict[str, Path]:
    """Train the arm "chosen" by SFT and then by DPO; return the folders."""
    run = tiny_run(results, monkeypatch, **{**PLAIN, **changes})
    return {method: train.train_adapter(run, method, "chosen") for method in ("sft", "dpo")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folders of adapters that were trained in this process."""
    with pytest.MonkeyPatch.context() as patch:
        return train_both(tmp_path_factory.mktemp("alone"), patch)


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
    with pytest.raises(profiles.ConfigError, match=complaint):
        config.load_profile("everyday", ["train_processes=2", *override])


def test_a_step_sees_the_profiles_batch_whatever_the_processes():
    from persona_lib.training.trainers import trainer_settings

    profile = set_field(
        config.load_profile("everyday"), train_processes=4, sft_batch_size=16, dpo_batch_size=8
    )
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("raise", r"in 2 ranks failed: rank 1:\nTraceback (.|\n)*ValueError: no such row"),
        ("kill", r"in 2 ranks failed: rank 1 was killed by signal 9"),
    ],
)
def test_a_failing_rank_ends_the_job_and_says_how(how, complaint, tmp_path, monkeypatch, capsys):
    use_odd_ranks(monkeypatch, "fail")
    started = time.monotonic()
    with pytest.raises(ranks.RankError, match=complaint):
        ranks.run_ranks("odd_rank", "ddp", 2, {"how": how, "mark": str(tmp_path / "mark")})
    assert time.monotonic() - started < 300  # rank 0 would sleep for 600 s
    assert "rank 0 works" in capsys.readouterr().out


def test_a_failure_without_traceback_shows_the_last_lines(tmp_path):
    message = ranks.what_failed(tmp_path, [f"line {n}" for n in range(100)])
    assert message.endswith("line 98\nline 99")
    assert "line 0\n" not in message


@pytest.mark.slow
def test_a_launcher_that_starts_one_process_is_caught(tmp_path, monkeypatch):
    """``accelerate launch --cpu --num_processes 2`` starts one, and says nothing."""
    command = ranks.launch_command

    def without_file(*job):
        python, flag, launch, _, _, *rest = command(*job)
        return [python, flag, launch, "--cpu", *rest]

    monkeypatch.setattr(ranks, "launch_command", without_file)
    run = tiny_run(tmp_path, monkeypatch, train_processes=2)
    with pytest.raises(ranks.RankError, match="asked for 2 ranks; WORLD_SIZE is 1 and 1 joined"):
        train.train_adapter(run, "sft", "chosen")
    assert not train.adapter_folder(run, "sft", "chosen").exists()


@pytest.mark.slow
def test_fsdp_without_gpus_is_refused(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, monkeypatch, train_processes=2, train_launcher="fsdp")
    with pytest.raises(ranks.RankError, match="accelerate has FSDP on GPUs only and would use DDP"):
        train.train_adapter(run, "sft", "chosen")


# --- the same training ---


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ddp", "fsdp"])
def test_two_ranks_train_what_one_process_trains(alone, tmp_path, monkeypatch, capsys, launcher):
    """NF4; DPO with the stacked adapters and the precomputed reference. FSDP runs on processors here."""
    if launcher == "fsdp":
        use_odd_ranks(monkeypatch, "fsdp")
    folders = train_both(tmp_path, monkeypatch, train_processes=2, train_launcher=launcher)
    for method, folder in folders.items():
        check_same(alone[method], folder)
        assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in alone[method].iterdir())
    lines = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if ": epoch" in line]
    assert lines == [f"{method}-chosen: epoch {n}/2" for method in ("sft", "dpo") for n in (1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed and merged"])
def test_two_ranks_weigh_the_sft_term_by_tokens_like_one_process(tmp_path, monkeypatch, packed):
    """Responses differ in length, so the mean over a rank's tokens is not the mean over the batch's."""
    folders, names = [], ("sft_packing", "dpo_prefix_sharing", "merge_adapters")
    for processes in (1, 2):
        changes = {"dpo_sft_weight": 4.0} | dict.fromkeys(names, packed)
        run = tiny_run(tmp_path / str(processes), monkeypatch, **changes)
        train.train_adapter(run, "sft", "chosen")
        run = Run(set_field(run.profile, train_processes=processes), run.dataset, run.seed)
        folders.append(train.train_adapter(run, "dpo", "chosen"))
    check_same(*folders, losses=("loss", "rewards/margins"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ddp", "fsdp"])
def test_training_whose_rank_was_killed_goes_on_and_ends_with_the_same_adapter(
    alone, tmp_path, monkeypatch, launcher
):
    run = tiny_run(tmp_path, monkeypatch, **PLAIN)
    train.train_adapter(run, "sft", "chosen")
    run = Run(set_field(run.profile, train_processes=2, train_launcher=launcher), run.dataset, run.seed)
    folder = train.adapter_folder(run, "dpo", "chosen")
    with monkeypatch.context() as patch:
        use_odd_ranks(patch, f"kill {launcher}")
        with pytest.raises(ranks.RankError, match="rank 1 was killed by signal 9"):
            train.train_adapter(run, "dpo", "chosen")
    assert [p.name for p in (folder / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    use_odd_ranks(monkeypatch, launcher)
    train.train_adapter(run, "dpo", "chosen")
    check_same(alone["dpo"], folder)


@pytest.mark.slow
def test_fsdp_split_nf4_weights_give_the_loss_and_the_gradients_of_whole_ones(tmp_path, monkeypatch):
    use_odd_ranks(monkeypatch, "shard")
    ranks.run_ranks(
        "odd_rank", "ddp", 2, {"base": str(save_base(tmp_path / "base")), "folder": str(tmp_path)}
    )
    for storage in ("float32", "bfloat16", "uint8"):
        found = store.read_json(tmp_path / f"{storage}.json")
        assert found["type"] == f"torch.{storage}"
        assert found["part"][0] * 2 == found["whole"][0]
        before, after = found["before"], found["after"]
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-6)
        assert before["gradients"].keys() == after["gradients"].keys()
        for name, whole in before["gradients"].items():
            assert np.abs(whole).max() > 0
            np.testing.assert_allclose(after["gradients"][name], whole, rtol=1e-5, atol=1e-7, err_msg=name)
