"""Real training on a tiny model: arms, the stacked DPO adapter, best epoch, resume, what is written."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny import TINY, tiny_run

from persona_lib import store
from persona_lib.data.preference import to_dpo_rows, to_ordered_dpo_rows, to_sft_rows
from persona_lib.models import load, train, trainers
from persona_lib.models.load import ModelError
from persona_lib.records import TailoringRow
from persona_lib.settings import REPO, Run, set_field


def row(name: str, persona: str | None = "PC", other: str | None = "PR") -> TailoringRow:
    personas = {"gold-chosen": persona, "gold-rejected": other}
    return TailoringRow(name, "train", "Q", "good", " bad ", personas)


def test_each_arm_shows_its_persona_and_targets_the_response_that_it_prefers():
    def sft(arm):
        return [(r["prompt"], r["completion"]) for r in to_sft_rows([row("a")], arm, 0)]

    chosen = ("Prompt: Q\nPersona: PC\nResponse:", " good")
    rejected = ("Prompt: Q\nPersona: PR\nResponse:", " bad")
    assert sft("none") == [("Prompt: Q\nResponse:", " good")]
    assert (sft("chosen"), sft("rejected"), sft("both")) == ([chosen], [rejected], [chosen, rejected])
    dpo = [(r["id"], r["chosen"], r["rejected"]) for r in to_dpo_rows([row("a")], "both", 0)]
    assert dpo == [("a/chosen", " good", " bad"), ("a/rejected", " bad", " good")]
    with pytest.raises(ValueError, match="needs at least two"):
        to_sft_rows([row("a")], "shuffled", 0)
    with pytest.raises(ValueError, match="no training arm .choosen.; did you mean chosen"):
        to_sft_rows([row("a")], "choosen", 0)


def test_shuffled_gives_every_row_another_rows_persona_fixed_by_the_seed():
    rows = [row(f"r{i}", persona=f"P{i}") for i in range(20)]
    drawn = {seed: [r["prompt"].split()[3] for r in to_sft_rows(rows, "shuffled", seed)] for seed in (3, 4)}
    assert sorted(drawn[3]) == sorted(f"P{i}" for i in range(20)) and drawn[3] != drawn[4]
    assert not any(persona == f"P{i}" for i, persona in enumerate(drawn[3]))


def test_ordered_dpo_rows_are_the_same_rows_with_those_of_a_pair_side_by_side_and_lone_ones_last():
    rows = [row(f"r{i}", other=None if i < 3 else "PR") for i in range(20)]
    ordered = to_ordered_dpo_rows(rows, "both", 0)
    assert sorted(ordered, key=str) == sorted(to_dpo_rows(rows, "both", 0), key=str)
    ids = [made["id"].split("/")[0] for made in ordered]
    assert ids[:34:2] == ids[1:34:2] != sorted(ids[:34:2]) and set(ids[34:]) == {"r0", "r1", "r2"}


def test_dpo_trains_on_the_splits_it_is_given_as_far_as_its_steps_come(tmp_path, monkeypatch):
    changes = {"dpo.splits": ["sft_train", "dpo_train"], "dpo.batch_size": 2}
    whole, limited = (tiny_run(tmp_path, monkeypatch, n=8, **changes | {"dpo.max_steps": m}) for m in (99, 3))
    rows, fewer = (train.load_rows(run, "dpo", "chosen")[0] for run in (whole, limited))
    assert {r["id"].rpartition("-")[0] for r in rows["train"]} == {"train-0", "train-1"}
    assert fewer["train"] == rows["train"][:6] and len(rows["train"]) == 16
    assert {r["id"].rpartition("-")[0] for r in rows["val"]} == {"train-3"} and fewer["val"] == rows["val"]


def weights(folder: Path) -> dict:
    return load_file(folder / "adapter_model.safetensors")


def build(run: Run, method: str, train_persona: str = "chosen"):
    """A trainer as train_adapter builds it."""
    folder = train.adapter_folder(run, method, train_persona)
    tokenizer = load.load_tokenizer(*run.base_source)
    rows, _ = train.load_rows(run, method, train_persona)
    return train.build_trainer(run, method, tokenizer, rows, folder)


def evaluation_losses(folder: Path) -> list[float]:
    return [log["eval_loss"] for log in store.iter_rows(folder / "log.jsonl") if "eval_loss" in log]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose arm "chosen" was trained by SFT and then by DPO."""
    with pytest.MonkeyPatch.context() as patch:
        run = tiny_run(tmp_path_factory.mktemp("results"), patch)
        train.train_adapter(run, "sft", "chosen")
        train.train_adapter(run, "dpo", "chosen")
        yield run


def recomputed_loss(run: Run) -> float:
    """TRL's DPO + SFT loss on the validation rows: base and both adapters loaded again, and our own code."""
    tokenizer = load.load_tokenizer(*run.base_source)
    rows = train.load_rows(run, "dpo", "chosen")[0]["val"]
    folders = [train.adapter_folder(run, method, "chosen") for method in ("sft", "dpo")]
    model = load.attach_adapters(load.load_base(*run.base_source), folders)

    def score(names, side):
        with load.using_adapters(model, names):
            prompts, completions = [r["prompt"] for r in rows], [(r[side],) for r in rows]
            return load.pair_log_probs(model, tokenizer, prompts, completions, 4)[:, 0]

    both, reference = ["sft-chosen", "dpo-chosen"], ["sft-chosen"]
    good = score(both, "chosen")
    margin = good - score(reference, "chosen") - score(both, "rejected") + score(reference, "rejected")
    tokens = sum(len(tokenizer(r["chosen"])["input_ids"]) for r in rows)  # BOS counted where EOS is meant
    profile = run.profile
    return np.log1p(np.exp(-profile.dpo.beta * margin)).mean() - profile.dpo.sft_weight * good.sum() / tokens


@pytest.mark.slow
@pytest.mark.parametrize("merge", [False, True], ids=["stacked", "merged"])
def test_the_best_epoch_not_the_last_is_saved_also_when_killed_before_it(tmp_path, monkeypatch, merge):
    """Its loss is recomputed without TRL. With a rate that overfits 4 rows, validation is best early."""
    changes = {"sft.epochs": 1, "dpo.learning_rate": 0.02, "dpo.epochs": 4}
    run = tiny_run(tmp_path, monkeypatch, n=4, merge_adapters=merge, **changes)
    train.train_adapter(run, "sft", "chosen")
    with monkeypatch.context() as patch:
        patch.setattr(train, "save_adapter", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train.train_adapter(run, "dpo", "chosen")
    folder = train.train_adapter(run, "dpo", "chosen")
    losses, best = evaluation_losses(folder), store.read_json(folder / "done.json")["best_eval_loss"]
    assert losses[-1] > min(losses) + 0.1
    assert best == min(losses) == pytest.approx(recomputed_loss(run), rel=1e-5)


def test_dpo_needs_its_sft_adapter_and_is_stale_with_another_or_other_steps(tmp_path, monkeypatch):
    run, specs = tiny_run(tmp_path, monkeypatch), []
    with pytest.raises(FileNotFoundError, match="DPO starts from it; train this arm by SFT first"):
        train.train_adapter(run, "dpo", "chosen")
    for sft, change in (("one", {}), ("another", {}), ("one", {"dpo.max_steps": 3})):
        store.mark_done(train.adapter_folder(run, "sft", "chosen"), sft)
        other = Run(set_field(run.profile, change), run.dataset, run.seed)
        specs.append(store.content_hash(train.training_spec(other, "dpo", "chosen")))
    assert len(set(specs)) == 3
    (run.folder / "tailoring" / "sft_val.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="sft_val.jsonl is missing: run the step that builds"):
        train.train_adapter(run, "sft", "chosen")


@pytest.mark.slow
def test_truncated_and_dropped_rows_are_counted_as_trl_treats_them(tmp_path, monkeypatch, capsys):
    run = tiny_run(tmp_path, monkeypatch, **{"training.max_length": 17})
    path = run.folder / "tailoring" / "sft_train.jsonl"
    store.write_rows(path, [*store.read_rows(path, TailoringRow), row("without", persona=None)])
    counts = store.read_json(train.train_adapter(run, "sft", "chosen") / "counts.json")["train"]
    assert counts["rows"] == 16 and counts["dropped"] > 0 and counts["truncated"] > 0
    kept = build(run, "sft").train_dataset["input_ids"]
    assert len(kept) == counts["rows"] - counts["dropped"]
    assert sum(2 not in ids for ids in kept) == counts["truncated"], "rows that have lost EOS"
    assert "rows without a persona, left out: {'train': 1, 'val': 0}" in capsys.readouterr().out


def test_rows_that_trl_leaves_out_and_we_did_not_count_are_an_error_with_both_numbers(tmp_path, monkeypatch):
    run, trainer = tiny_run(tmp_path, monkeypatch), SimpleNamespace(train_dataset="r" * 16, eval_dataset="r")
    monkeypatch.setattr(train, "build_trainer", lambda *_: trainer)
    with pytest.raises(ModelError, match="sft-chosen val: TRL keeps 1 rows, count_rows counted 6"):
        train.train_adapter(run, "sft", "chosen")


def gradients(trainer, batch) -> dict:
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    return {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_dpo_that_forgets_the_sft_adapter_is_caught_before_training(trained):
    trainer = build(trained, "dpo")
    trainers.check_dpo_start(trainer, trained.profile)
    trainer.model.set_adapter("default")
    with pytest.raises(ModelError, match="reward margin before the first step"):
        trainers.check_dpo_start(trainer, trained.profile)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_training_killed_in_its_second_epoch_ends_with_equal_weights(trained, monkeypatch, tmp_path, method):
    """Dropout is on in SFT, so the random state must come back too; in DPO the stack must."""
    from transformers import TrainerCallback

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise KeyboardInterrupt

    whole = train.adapter_folder(trained, method, "chosen")  # before PERSONA_RESULTS changes
    run = tiny_run(tmp_path, monkeypatch)
    if method == "dpo":
        train.train_adapter(run, "sft", "chosen")
    with monkeypatch.context() as patch:
        patch.setattr(trainers, "progress_lines", lambda name: Interrupt())
        with pytest.raises(KeyboardInterrupt):
            train.train_adapter(run, method, "chosen")
    folder = train.adapter_folder(run, method, "chosen")
    assert [p.name for p in (folder / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    train.train_adapter(run, method, "chosen")
    assert folder != whole and evaluation_losses(folder) == evaluation_losses(whole)
    one, two = weights(folder), weights(whole)
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def test_a_checkpoint_cut_short_is_deleted_and_one_of_other_settings_not_resumed(tmp_path):
    folder = tmp_path / "sft-chosen"
    assert train.prepare_folder(folder, "one", {}) is None
    for number, state in ((4, "{}"), (8, '{"global_st'), (12, None)):
        (folder / "checkpoints" / f"checkpoint-{number}").mkdir(parents=True)
        if state is not None:
            (folder / "checkpoints" / f"checkpoint-{number}" / "trainer_state.json").write_text(state)
    assert train.prepare_folder(folder, "one", {}) == str(folder / "checkpoints" / "checkpoint-4")
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["checkpoint-4"]
    assert train.prepare_folder(folder, "another", {}) is None
    assert not (folder / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_two_processes_train_what_one_trains(tmp_path, monkeypatch, packing):
    """Training and validation losses, and the adapters, by the entry that ``accelerate launch`` starts."""
    changes = {"base.quantization": "nf4", "training.packing": packing, "dpo.sft_weight": 0.0}
    logs, adapters = {}, {}
    for count in (1, 2):
        run = tiny_run(tmp_path / str(count), monkeypatch, **changes)
        texts = {k: ",".join(v) if isinstance(v, list) else v for k, v in (TINY | changes).items()}
        texts |= {"base.model": tmp_path / str(count) / "base", "training.arms": "chosen"}
        given = ["--profile=everyday", "--dataset=everyday", "--seed=0", "--arm=chosen"]
        given += [f"--set={name}={text}" for name, text in texts.items()]
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"] * (count - 1)
        command = [sys.executable, "-m", *launch, "persona_lib.models.train", *given, "--method"]
        own = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        for method in ("sft", "dpo"):
            done = subprocess.run([*command, method], env=own, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            folder = train.adapter_folder(run, method, "chosen")
            assert done.stdout.splitlines().count(str(folder)) == 1, "one process speaks"
            rows = list(store.iter_rows(folder / "log.jsonl"))
            logs[count, method] = [r[k] for r in rows for k in ("loss", "eval_loss") if k in r]
            adapters[count, method] = weights(folder)
    for method in ("sft", "dpo"):
        assert len(logs[1, method]) >= 4, "two epochs"
        np.testing.assert_allclose(logs[2, method], logs[1, method], rtol=0, atol=1e-5)
        for name, value in adapters[1, method].items():
            np.testing.assert_allclose(adapters[2, method][name], value, atol=5e-4, err_msg=name)
