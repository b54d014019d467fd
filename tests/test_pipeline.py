"""The runner: what is stale and why, what is refused, and that only whole runs count as done."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from persona_lib import execute, pipeline, report, settings, store, tasks
from persona_lib.settings import ConfigError, load_profile
from persona_lib.tasks import STEPS, Pipeline, Step

TOY = {
    "01_data": Step("data", fields="data.pair_limit", minutes={"smoke": 1}),
    "02_base": Step("base", per="profile", fields="base.*"),
    "03_train": Step("train", inputs="01 02", fields="sft.*"),
    "04_results": Step("results", per="profile", inputs="01 03", fields="seeds"),
}
DATA, TRAIN = "01_data.everyday.seed-0", "03_train.everyday.seed-0"
STEPS_TOO = "steps=" + ",".join(TOY)
OPEN = "from persona_lib import store\nfrom persona_lib.settings import open_run"


def cell(source: str, *tags: str) -> dict:
    """Return a code cell."""
    empty = {"cell_type": "code", "outputs": [], "execution_count": None}
    return empty | {"source": source, "metadata": {"tags": list(tags)}}


def write_notebook(folder: Path, name: str, per: str, *sources: str) -> None:
    """Write a notebook with the parameters of its kind and the given code cells."""
    lines = ['profile: str = "smoke"  # profile', "overrides: list = []  # changes"]
    lines += ['dataset: str = ""  # data set', "seed: int = 0  # seed"] if per == "run" else []
    cells = [cell("\n".join(lines), "parameters"), *map(cell, sources)]
    kernel = {"kernelspec": {"name": "someones-own", "display_name": "x", "language": "python"}}
    content = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}
    (folder / f"{name}.ipynb").write_text(json.dumps(content))


def write_report(profile: settings.Profile) -> None:
    store.write_text(settings.results_dir(profile) / "report" / "index.html", "report")


@pytest.fixture
def notebooks(tmp_path, monkeypatch) -> Path:
    """A folder of four tiny notebooks, one per toy step; results go beside it."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PERSONA_FIGURES", str(tmp_path / "figures"))
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(tasks, "STEPS", TOY)
    monkeypatch.setattr(tasks, "NOTEBOOKS", folder)
    monkeypatch.setattr(report, "write_report", write_report)
    run = f"{OPEN}\nrun = open_run(profile, dataset, seed, overrides)"
    save = "store.write_json(run.folder / 'data.json', run.profile.data.pair_limit)"
    write_notebook(folder, "01_data", "run", run, save)
    write_notebook(folder, "02_base", "profile", "x = 1")
    write_notebook(folder, "03_train", "run", run, "store.read_json(run.folder / 'data.json')")
    write_notebook(folder, "04_results", "profile", "x = 1")
    return folder


def toy(*overrides: str) -> Pipeline:
    """Return the toy pipeline."""
    changes = [STEPS_TOO, *overrides]
    return Pipeline(load_profile("smoke", changes), tuple(changes))


def finish(toy_pipeline: Pipeline, task_id: str, *outputs: str, content: str = "1") -> dict:
    """Leave what the runner leaves after a task; returns the manifest's outputs."""
    task = toy_pipeline.tasks[task_id]
    tasks.begin(toy_pipeline, task)
    for name in outputs:
        store.write_text(toy_pipeline.results / name, content)
    store.write_text(toy_pipeline.executed(task), "{}")
    tasks.finish(toy_pipeline, task, tasks.current_key(toy_pipeline, task), "now")
    return store.read_json(toy_pipeline.manifest(task_id))["outputs"]


@pytest.fixture
def done(notebooks) -> Pipeline:
    """A finished pipeline in which every task made one table."""
    toy_pipeline = toy()
    for task_id in toy_pipeline.tasks:
        finish(toy_pipeline, task_id, f"tables/{task_id}.csv")
    return toy_pipeline


def states(toy_pipeline: Pipeline) -> dict[str, str]:
    """Return the plan's state of every task."""
    return {line.task.id: line.state for line in tasks.plan_lines(toy_pipeline, list(toy_pipeline.tasks))}


def reasons(toy_pipeline: Pipeline, task_id: str) -> list[str]:
    return tasks.stale_reasons(toy_pipeline, toy_pipeline.tasks[task_id])


# --- the table of steps, and tasks ---


def test_every_profile_field_makes_some_step_stale_unless_it_changes_no_result():
    profile = load_profile("everyday")
    selects = {"name", "description", "steps"} | set(
        settings.flat(profile, " ".join(settings.CHANGE_NO_RESULT))
    )
    read = set().union(*(tasks.field_values(profile, step.fields.split()) for step in STEPS.values()))
    assert set(settings.field_types()) - selects - read == set()


@pytest.mark.parametrize("name", STEPS)
def test_a_steps_inputs_come_before_it_and_its_field_patterns_and_versions_are_known(name):
    step, profile = STEPS[name], load_profile("everyday")
    assert set(step.inputs.split()) <= {other[:2] for other in STEPS if other < name}
    assert all(tasks.field_values(profile, [pattern]) for pattern in step.fields.split())
    assert set(step.versions.split()) <= set(store.VERSIONS)


def test_a_step_expands_over_data_sets_and_seeds(notebooks):
    many = toy("datasets=beavertails,hhh", "seeds=0,1,2")
    assert len(many.tasks) == 6 + 1 + 6 + 1
    trained = many.tasks["03_train.hhh.seed-2"]
    assert trained.inputs == ("01_data.hhh.seed-2", "02_base")
    assert many.parameters(trained)["seed"] == 2 and many.parameters(trained)["dataset"] == "hhh"
    assert len(many.tasks["04_results"].inputs) == 12
    assert set(many.parameters(many.tasks["02_base"])) == {"profile", "overrides"}
    assert toy("steps=01_data,03_train").tasks[TRAIN].inputs == (DATA,), "what is left out is not waited for"


def test_an_unknown_step_is_an_error_that_lists_the_near_ones(notebooks):
    with pytest.raises(ConfigError, match="unknown step '01_dat'.*did you mean 01_data"):
        _ = toy("steps=01_dat").tasks


# --- staleness ---


def test_a_changed_field_names_itself_and_moves_what_follows(done):
    changed = toy("data.pair_limit=9")
    assert list(states(changed).values()) == ["run", "cached", "maybe", "maybe"]
    assert reasons(changed, DATA) == ["data.pair_limit: 16 -> 9"]


@pytest.mark.parametrize(("content", "said"), [("1", []), ("2", [f"its input changed: {DATA}"])])
def test_only_another_result_makes_the_next_step_stale(done, content, said):
    changed = toy("data.pair_limit=9")
    finish(changed, DATA, f"tables/{DATA}.csv", content=content)
    assert reasons(changed, TRAIN) == said


def test_more_seeds_leave_finished_runs_current(done):
    more = states(toy("seeds=0,1"))
    assert more[DATA] == more["02_base"] == more[TRAIN] == "cached"
    assert more["01_data.everyday.seed-1"] == more["04_results"] == "run"


def test_code_makes_stale_but_prose_and_outputs_do_not(done):
    path = done.notebooks / "02_base.ipynb"
    content = json.loads(path.read_text())
    content["cells"].append({"cell_type": "markdown", "source": "More.", "metadata": {}})
    content["cells"][0]["execution_count"] = 3
    path.write_text(json.dumps(content))
    assert reasons(done, "02_base") == []
    content["cells"].append(cell("y = 2"))
    path.write_text(json.dumps(content))
    assert reasons(done, "02_base") == ["the notebook's code changed"]


def test_a_missing_output_is_made_again(done):
    path = done.results / "tables" / "02_base.csv"
    path.unlink()
    assert reasons(done, "02_base") == [f"missing: {path}"]


def test_a_rerun_that_was_killed_is_not_taken_for_the_finished_run_before_it(done):
    tasks.begin(done, done.tasks["02_base"])
    assert reasons(done, "02_base") == ["stopped half way: goes on where it was"]
    assert reasons(done, TRAIN) == ["its input changed: 02_base"]


def test_weights_count_by_the_key_in_done_json_and_other_data_by_content(done):
    made = [f"base/{name}" for name in ("log.json", "model.safetensors")]
    store.write_json(done.results / "base" / "done.json", {"key": "k1", "seconds": 3})
    outputs = finish(done, "02_base", *made, "base/done.json", "other/done.json", content='{"key": "k1"}')
    assert outputs.pop("tables/02_base.csv")["bytes"] == 1
    assert outputs.pop("base/done.json") == {"key": "k1"} and not any(outputs.values())


def test_force_forgets_what_a_task_made_and_nothing_else(done):
    tasks.forget(done, done.tasks["02_base"])
    left = sorted(path.stem for path in (done.results / "tables").iterdir())
    assert left == [DATA, TRAIN, "04_results"]
    assert states(done)["02_base"] == "run"


def test_a_models_folder_counts_by_its_files_and_a_model_that_is_not_set_is_no_folder(tmp_path):
    folder = tmp_path / "model"
    store.write_text(folder / "model.safetensors", "a")
    profile = load_profile("paper", [f"base.model={folder}", "generator.model=base"])
    before = tasks.field_values(profile, ["base.*", "generator.*"])
    assert before["generator.model"] == "base" and before["base.model"].startswith(f"{folder} (")
    assert tasks.field_values(profile, ["base.*", "generator.*"]) == before
    store.write_text(folder / "model.safetensors", "bc")
    assert tasks.field_values(profile, ["base.model"])["base.model"] != before["base.model"]
    assert tasks.field_values(load_profile("everyday"), ["second_judge.model"]) == {"second_judge.model": ""}


# --- the command line ---


def call(*arguments: str) -> int:
    """Call the runner on the toy pipeline."""
    return pipeline.main(["--profile", "smoke", "--set", STEPS_TOO, *arguments])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "sft.lerning_rate=1"], "did you mean sft.learning_rate"),
        (["--profile", "smok"], "did you mean smoke"),
        (["--only", "05"], "--only 05: no such step"),
        (["--only", "03"], "needs 01_data.everyday.seed-0, which has not been run"),
        (["--from", "results2"], "--from results2: no such step"),
        (["--seeds", "many"], "write a count (5) or a list (0,3)"),
        (["--seeds", "0"], "at least one seed"),
    ],
)
def test_a_wrong_setting_is_said_in_one_line_and_nothing_is_run(notebooks, capsys, arguments, complaint):
    assert call(*arguments) == 2
    said = capsys.readouterr().err
    assert complaint in said and "Traceback" not in said
    assert not (notebooks.parent / "results").exists()


def test_a_plan_says_state_reason_time_and_needs(notebooks, capsys):
    finish(toy(), DATA)
    assert call("--plan") == 0
    said = capsys.readouterr().out
    assert f"cached  {DATA}" in said and "not run yet" in said
    for word in ("to run     4 of 5 tasks", "time ", "download ", "GPU ", "served     none"):
        assert word in said


def test_two_runs_at_once_are_refused(notebooks, capsys):
    with pipeline.only_runner(toy()):
        assert call() == 2
    assert "another run is at work" in capsys.readouterr().err


# --- running ---


def test_a_parameter_that_the_notebook_lacks_is_an_error(notebooks, tmp_path):
    with pytest.raises(execute.StepError, match="parameters cell has no sead"):
        parameters = {"profile": "smoke", "sead": 1}
        execute.run_notebook(notebooks / "01_data.ipynb", tmp_path / "x.ipynb", parameters, tmp_path / "log")


def test_a_step_runs_leaves_its_provenance_and_is_then_skipped(notebooks, capsys, monkeypatch):
    def run_notebook(source, target, parameters, log):
        store.write_text(target.with_suffix(".running.ipynb"), source.read_text())
        return target.with_suffix(".running.ipynb")

    monkeypatch.setattr(pipeline, "run_notebook", run_notebook)
    arguments = ["--only", "01", "--set", "data.pair_limit=7"]
    assert call(*arguments) == 0
    results = notebooks.parent / "results" / "smoke"
    facts = store.read_json(results / "provenance.json")["tasks"][DATA]
    executed = json.loads((results / "notebooks" / f"{DATA}.ipynb").read_text())
    assert executed["metadata"]["persona"] == facts
    assert facts["parameters"]["overrides"][-1] == "data.pair_limit=7"
    assert {"git", "hardware", "python", "versions", "started", "finished", "seconds"} <= set(facts)
    assert f"{DATA}  begins, about 1:00" in (said := capsys.readouterr().out) and "done in 0:0" in said
    assert call(*arguments) == 0
    assert capsys.readouterr().out.startswith(f"[1/1] {DATA}  cached")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(0)", "code cell 3 failed"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "DeadKernelError"),
    ],
)
def test_a_failing_step_stops_the_run_and_shows_why_and_where(notebooks, capsys, source, said):
    write_notebook(notebooks, "02_base", "profile", source, "x = 1")
    assert call("--only", "02", "04") == 2, "04 has inputs that were not run"
    assert call("--only", "02") == 1
    shown = capsys.readouterr().out
    half = notebooks.parent / "results" / "smoke" / "notebooks" / "02_base.running.ipynb"
    assert said in shown and str(half) in shown and half.exists()
    assert not half.with_name("02_base.ipynb").exists()


@pytest.mark.slow
def test_an_interrupt_ends_the_kernel_and_exits_130(notebooks):
    wait = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(300)"
    write_notebook(notebooks, "02_base", "profile", wait)
    code = (
        "import sys\nfrom pathlib import Path\nfrom persona_lib import pipeline, tasks\n"
        f"tasks.NOTEBOOKS = Path({str(notebooks)!r})\n"
        "tasks.STEPS = {'02_base': tasks.Step('b', per='profile')}\n"
        "sys.exit(pipeline.main(['--profile', 'smoke', '--set', 'steps=02_base']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=settings.REPO,
    )
    log = notebooks.parent / "results" / "smoke" / "logs" / "02_base.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.2)
    kernel = int(log.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert not log.parent.parent.joinpath("notebooks", "02_base.ipynb").exists()
    time.sleep(2)
    with contextlib.suppress(ProcessLookupError):
        os.kill(kernel, 0)
        pytest.fail("the kernel is still there")


def test_a_commit_is_dirty_by_its_code_and_not_by_what_runs_write(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "REPO", tmp_path)

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True)

    assert store.git_state() == {"commit": None, "dirty": None}
    files = [tmp_path / name for name in ("figures/main.png", "benchmarks/results/a.json", "code.py")]
    for path in files:
        store.write_text(path, "as committed")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    commit = git("rev-parse", "HEAD").stdout.strip()
    for path in files[:2]:
        path.write_text("written by a run", encoding="utf-8")
    assert store.git_state() == {"commit": commit, "dirty": False}
    files[2].write_text("changed", encoding="utf-8")
    assert store.git_state() == {"commit": commit, "dirty": True}
