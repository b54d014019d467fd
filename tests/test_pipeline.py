"""The runner: what is stale and why, what is refused, and that only whole runs count as done."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from persona_lib import execute, pipeline, store, tasks
from persona_lib import settings as settings_module
from persona_lib.data import official
from persona_lib.pipeline import only_runner
from persona_lib.settings import ConfigError
from persona_lib.tasks import STEPS, Pipeline, Step, Task

TOY = {
    "01_data": Step("data", fields=("pair_limit",), minutes={"smoke": 1}),
    "02_base": Step("base", per="profile", fields=("base_*",)),
    "03_train": Step("train", inputs=("01_data", "02_base"), fields=("sft_*",)),
    "04_results": Step("results", per="profile", inputs=("01_data", "03_train"), fields=("seeds",)),
}
OPEN = "from persona_lib import store\nfrom persona_lib.settings import open_run"


def cell(source: str, *tags: str) -> dict:
    """Return a code cell."""
    return {
        "cell_type": "code",
        "source": source,
        "metadata": {"tags": list(tags)},
        "outputs": [],
        "execution_count": None,
    }


def write_notebook(folder: Path, name: str, per: str, *sources: str) -> None:
    """Write a notebook with the parameters of its kind and the given code cells."""
    lines = ['profile: str = "smoke"  # profile']
    lines += ['dataset: str = ""  # data set'] if per == "run" else []
    lines += ["seed: int = 0  # seed"] if per == "run" else []
    lines += ["overrides: list = []  # changes"]
    cells = [cell("\n".join(lines), "parameters"), *map(cell, sources)]
    kernel = {"kernelspec": {"name": "someones-own", "display_name": "x", "language": "python"}}
    content = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}
    (folder / f"{name}.ipynb").write_text(json.dumps(content))


@pytest.fixture
def notebooks(tmp_path, monkeypatch) -> Path:
    """A folder of four tiny notebooks, one per toy step; results go beside it."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PERSONA_FIGURES", str(tmp_path / "figures"))
    folder = tmp_path / "notebooks"
    folder.mkdir()
    run = f"{OPEN}\nrun = open_run(profile, dataset, seed, overrides)"
    write_notebook(
        folder, "01_data", "run", run, "store.write_json(run.folder / 'data.json', run.profile.pair_limit)"
    )
    write_notebook(folder, "02_base", "profile", "x = 1")
    write_notebook(folder, "03_train", "run", run, "store.read_json(run.folder / 'data.json')")
    write_notebook(folder, "04_results", "profile", "x = 1")
    return folder


def toy(notebooks: Path, *overrides: str) -> Pipeline:
    """Return the toy pipeline."""
    changes = ["steps=" + ",".join(TOY), *overrides]
    return Pipeline(settings_module.load_profile("smoke", changes), tuple(changes), TOY, notebooks)


def finish(toy_pipeline: Pipeline, task_id: str, *outputs: str, content: str = "1") -> None:
    """Leave what the runner leaves after a task: outputs, executed notebook, manifest."""
    task = toy_pipeline.tasks[task_id]
    before = tasks.snapshot(toy_pipeline)
    tasks.begin(toy_pipeline, task)
    for name in outputs:
        store.write_text(toy_pipeline.results / name, content)
    store.write_text(toy_pipeline.executed(task), "{}")
    tasks.write_manifest(toy_pipeline, task, tasks.current_key(toy_pipeline, task), before, "now")


def finish_all(toy_pipeline: Pipeline) -> None:
    """Leave a finished pipeline in which every task made one table."""
    for task_id in toy_pipeline.tasks:
        finish(toy_pipeline, task_id, f"tables/{task_id}.csv")


def states(toy_pipeline: Pipeline) -> dict[str, str]:
    """Return the plan's state of every task."""
    return {line.task.id: line.state for line in tasks.plan_lines(toy_pipeline, list(toy_pipeline.tasks))}


# --- the table of steps ---


def test_steps_run_after_their_inputs():
    for name, step in STEPS.items():
        assert set(step.inputs) <= set(STEPS)
        assert all(other < name for other in step.inputs), name


def test_every_profile_field_makes_some_step_stale_unless_it_changes_no_result():
    selects = {"name", "description", "steps", *settings_module.CHANGE_NO_RESULT}
    profile = settings_module.load_profile("everyday")
    read = set().union(*(tasks.field_values(profile, step.fields) for step in STEPS.values()))
    assert set(settings_module.field_types()) - selects - read == set()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "0: no paid service is called"),
        (
            ["judge_url=http://h/v1", "judge_model=m"],
            "0: no paid service is called",
        ),  # the judge is the oracle
        (
            ["generator_url=http://h/v1", "generator_model=m", "generator_prices=0.5,1.5", "max_cost_usd=3"],
            "m at http://h/v1 (0.5 + 1.5 dollars per million tokens); "
            "at most 3 dollars in all (--max-cost-usd)",
        ),
        (
            ["judge=lm", "judge_url=http://h/v1", "judge_model=m"],
            "m at http://h/v1 (no price given); no limit is set (--max-cost-usd)",
        ),
    ],
)
def test_the_plan_says_who_is_paid_and_how_much_at_most(settings, said):
    assert tasks.api_need(settings_module.load_profile("everyday", settings)) == said


def test_every_field_pattern_matches_a_field():
    profile = settings_module.load_profile("everyday")
    for name, step in STEPS.items():
        for pattern in step.fields:
            assert tasks.field_values(profile, (pattern,)), f"{name}: {pattern}"


# --- tasks ---


def test_a_step_expands_over_data_sets_and_seeds(notebooks):
    many = toy(notebooks, "datasets=beavertails,hhh", "seeds=0,1,2")
    assert len(many.tasks) == 6 + 1 + 6 + 1
    trained = many.tasks["03_train.hhh.seed-2"]
    assert trained.inputs == ("01_data.hhh.seed-2", "02_base")
    assert many.parameters(trained)["seed"] == 2 and many.parameters(trained)["dataset"] == "hhh"
    assert len(many.tasks["04_results"].inputs) == 12
    assert set(many.parameters(many.tasks["02_base"])) == {"profile", "overrides"}


def test_an_input_that_the_profile_leaves_out_is_not_waited_for(notebooks):
    short = dataclasses.replace(toy(notebooks).profile, steps=("01_data", "03_train"))
    tailored = Pipeline(short, (), TOY, notebooks)
    assert tailored.tasks["03_train.everyday.seed-0"].inputs == ("01_data.everyday.seed-0",)


def test_an_unknown_step_is_an_error_that_lists_the_near_ones(notebooks):
    with pytest.raises(ConfigError, match="unknown step '01_dat'.*did you mean 01_data"):
        _ = toy(notebooks, "steps=01_dat").tasks


# --- staleness ---


def test_a_finished_pipeline_is_current_and_a_new_one_is_not(notebooks):
    new = toy(notebooks)
    assert set(states(new).values()) == {"run"}
    finish_all(new)
    assert set(states(new).values()) == {"cached"}


def test_a_changed_field_names_itself_and_moves_what_follows(notebooks):
    finish_all(toy(notebooks))
    changed = toy(notebooks, "pair_limit=9")
    assert states(changed) == {
        "01_data.everyday.seed-0": "run",
        "02_base": "cached",
        "03_train.everyday.seed-0": "maybe",
        "04_results": "maybe",
    }
    assert tasks.stale_reasons(changed, changed.tasks["01_data.everyday.seed-0"]) == ["pair_limit: 16 -> 9"]


def test_the_same_result_again_leaves_the_next_step_current(notebooks):
    finish_all(toy(notebooks))
    changed = toy(notebooks, "pair_limit=9")
    finish(changed, "01_data.everyday.seed-0", "tables/01_data.everyday.seed-0.csv", content="1")
    assert set(states(changed).values()) == {"cached"}


def test_another_result_makes_the_next_step_stale(notebooks):
    finish_all(toy(notebooks))
    changed = toy(notebooks, "pair_limit=9")
    finish(changed, "01_data.everyday.seed-0", "tables/01_data.everyday.seed-0.csv", content="2")
    reasons = tasks.stale_reasons(changed, changed.tasks["03_train.everyday.seed-0"])
    assert reasons == ["its input changed: 01_data.everyday.seed-0"]


def test_more_seeds_leave_finished_runs_current(notebooks):
    finish_all(toy(notebooks))
    more = states(toy(notebooks, "seeds=0,1"))
    assert more["01_data.everyday.seed-0"] == more["02_base"] == more["03_train.everyday.seed-0"] == "cached"
    assert more["01_data.everyday.seed-1"] == more["04_results"] == "run"


def test_code_makes_stale_but_prose_and_outputs_do_not(notebooks):
    done = toy(notebooks)
    finish_all(done)
    path = notebooks / "02_base.ipynb"
    content = json.loads(path.read_text())
    content["cells"].append({"cell_type": "markdown", "source": "More.", "metadata": {}})
    content["cells"][0]["execution_count"] = 3
    path.write_text(json.dumps(content))
    assert states(done)["02_base"] == "cached"
    content["cells"].append(cell("y = 2"))
    path.write_text(json.dumps(content))
    assert tasks.stale_reasons(done, done.tasks["02_base"]) == ["the notebook's code changed"]


def test_a_missing_output_is_made_again(notebooks):
    done = toy(notebooks)
    finish_all(done)
    (done.results / "tables" / "02_base.csv").unlink()
    assert tasks.stale_reasons(done, done.tasks["02_base"]) == ["missing: tables/02_base.csv"]


def test_a_rerun_that_was_killed_is_not_taken_for_the_finished_run_before_it(notebooks):
    done = toy(notebooks)
    finish_all(done)
    tasks.begin(done, done.tasks["02_base"])
    assert tasks.stale_reasons(done, done.tasks["02_base"]) == ["stopped half way: goes on where it was"]


def test_a_resumed_step_still_lists_what_it_made_before(notebooks):
    done = toy(notebooks)
    finish_all(done)
    finish(done, "02_base")  # finds everything done and writes nothing
    assert list(store.read_json(done.manifest("02_base"))["outputs"]) == ["tables/02_base.csv"]


def test_weights_count_by_the_key_in_done_json(notebooks):
    done = toy(notebooks)
    folder = "base"
    store.write_json(done.results / folder / "done.json", {"key": "k1", "seconds": 3})
    finish(done, "02_base", f"{folder}/model/model.safetensors", f"{folder}/model/log.json")
    store.write_json(done.results / folder / "done.json", {"key": "k1", "seconds": 4})
    finish(done, "02_base", f"{folder}/done.json", content='{"key": "k1", "seconds": 4}')
    assert store.read_json(done.manifest("02_base"))["outputs"] == {
        f"{folder}/done.json": {"key": "k1"},
        f"{folder}/model/log.json": {},
        f"{folder}/model/model.safetensors": {},
    }


def test_force_forgets_what_a_task_made_and_nothing_else(notebooks):
    done = toy(notebooks)
    finish_all(done)
    tasks.forget(done, done.tasks["02_base"])
    assert sorted(path.name for path in (done.results / "tables").iterdir()) == [
        "01_data.everyday.seed-0.csv",
        "03_train.everyday.seed-0.csv",
        "04_results.csv",
    ]
    assert states(done)["02_base"] == "run"


# --- the command line ---


def call(notebooks: Path, *arguments: str) -> int:
    """Call the runner on the toy pipeline."""
    steps = "steps=" + ",".join(TOY)
    return pipeline.main(["--profile", "smoke", "--set", steps, *arguments], notebooks, TOY)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "sft_lerning_rate=1"], "did you mean sft_learning_rate"),
        (["--profile", "smok"], "did you mean smoke"),
        (["--only", "05"], "--only 05: no such step"),
        (["--only", "03"], "needs 01_data.everyday.seed-0, which has not been run"),
        (["--from", "results2"], "--from results2: no such step"),
        (["--seeds", "many"], "write a count (5) or a list (0,3)"),
        (["--seeds", "0"], "at least one seed"),
    ],
)
def test_a_wrong_setting_is_said_in_one_line_and_nothing_is_run(notebooks, capsys, arguments, complaint):
    assert call(notebooks, *arguments) == 2
    said = capsys.readouterr().err
    assert complaint in said and "Traceback" not in said
    assert not (notebooks.parent / "results").exists()


def test_seeds_are_a_count_or_a_list():
    assert pipeline.parse_seeds("3") == "seeds=0,1,2"
    assert pipeline.parse_seeds("3,7") == "seeds=3,7"
    assert pipeline.parse_seeds("3,") == "seeds=3"


def test_a_plan_says_state_reason_time_and_needs(notebooks, capsys):
    finish(toy(notebooks), "01_data.everyday.seed-0")
    assert call(notebooks, "--plan") == 0
    said = capsys.readouterr().out
    assert "cached  01_data.everyday.seed-0" in said and "not run yet" in said
    for word in ("to run     3 of 4 tasks", "time ", "download   ", "disk ", "GPU ", "API cost   0"):
        assert word in said


def test_a_folder_as_base_model_is_no_download_and_its_new_weights_make_steps_stale(tmp_path):
    folder = tmp_path / "model"
    store.write_text(folder / "model.safetensors", "a")
    profile = settings_module.load_profile(
        "paper", [f"base_model={folder}", "generator_model=base", "judge=none"]
    )
    assert [name for name, _, _ in tasks.downloads(profile)] == ["the authors' data"]
    assert not any("needs a commit" in note for note in tasks.not_ready(profile))
    before = tasks.field_values(profile, ("base_*", "generator_*"))
    assert before["generator_model"] == "base" and before["base_model"].startswith(f"{folder} (")
    assert tasks.field_values(profile, ("base_*", "generator_*")) == before
    store.write_text(folder / "model.safetensors", "bc")
    after = tasks.field_values(profile, ("base_*", "generator_*"))
    assert tasks.differing(before, after) == ["base_model"]


def test_a_model_that_is_not_set_is_no_folder_and_files_of_the_repository_do_not_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("written between two runs", encoding="utf-8")
    assert (
        tasks.field_values(settings_module.load_profile("everyday"), ("retriever_*",))["retriever_model"]
        == ""
    )


def test_the_plan_of_the_paper_names_models_memory_and_what_is_not_ready():
    paper = settings_module.load_profile("paper")
    named = {what: (size, remark) for what, size, remark in tasks.downloads(paper)}
    assert named["meta-llama/Llama-3.1-8B"][0] in (0.0, 16.1)
    assert named["prometheus-eval/prometheus-7b-v2.0"][0] in (0.0, 14.5)
    assert "meta-llama/Llama-3.1-8B 16.1 GB" in tasks.gpu_need(paper)
    assert any("not been run" in note for note in tasks.not_ready(paper))


def test_the_plan_sees_the_data_that_are_here_and_those_that_are_not(tmp_path, monkeypatch):
    def needed(*settings: str) -> tuple[float, str]:
        profile = settings_module.load_profile("authors", ["datasets=hhh", *settings])
        return {what: (size, remark) for what, size, remark in tasks.downloads(profile)}["the authors' data"]

    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(official, "REPO", tmp_path / "repository")
    monkeypatch.delenv("PERSONA_DATA", raising=False)
    assert needed() == (tasks.OFFICIAL_DATA_GB, "pinned public copy, checked; or give --data PATH")
    assert needed("data_dir=hub") == (tasks.OFFICIAL_DATA_GB, "from the hub, pinned")
    assert needed(f"data_dir={tmp_path}")[1] == f"NOT in {tmp_path}: the run will stop; give --data PATH"
    folder = official.DATASETS["hhh"]["tailoring"]
    for place, setting in ((official.download_dir(), ""), (tmp_path, f"data_dir={tmp_path}")):
        store.write_text(place / folder / "dataset_dict.json", "{}")
        assert needed(*filter(None, [setting])) == (0.0, f"on this machine, in {place}")


def test_a_plan_and_a_refusal_need_neither_torch_nor_papermill():
    code = (
        "import sys; from persona_lib import pipeline; "
        "status = pipeline.main(['--plan', '--profile', 'smoke']); "
        "print([m for m in ('torch', 'papermill', 'psutil', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=settings_module.REPO, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_two_runs_at_once_are_refused(notebooks, capsys):

    with only_runner(toy(notebooks)):
        assert call(notebooks) == 2
    assert "another run is at work" in capsys.readouterr().err


# --- running ---


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ([cell("x", "a") | {"execution_count": 1}, cell("y") | {"execution_count": 2}], None),
        ([cell("x") | {"execution_count": 1}, cell("  ")], None),
        ([cell("x") | {"execution_count": 2}], "code cell 1 did not run in order"),
        ([cell("x") | {"execution_count": 1}, cell("y")], "code cell 2 did not run in order"),
        ([cell("x") | {"execution_count": 1, "outputs": [{"output_type": "error"}]}], "code cell 1 failed"),
    ],
)
def test_only_a_notebook_that_ran_whole_and_in_order_counts(cells, problem):
    found = execute.unfinished({"cells": cells})
    assert found is None if problem is None else problem in found


def test_a_parameter_that_the_notebook_lacks_is_an_error(notebooks):
    with pytest.raises(execute.StepError, match="parameters cell has no sead"):
        execute.check_parameters(notebooks / "01_data.ipynb", {"profile": "smoke", "sead": 1})


@pytest.mark.slow
def test_a_step_runs_leaves_its_provenance_and_is_then_skipped(notebooks, capsys):
    arguments = ["--only", "01", "--set", "pair_limit=7"]
    assert call(notebooks, *arguments) == 0
    results = notebooks.parent / "results" / "smoke"
    assert store.read_json(results / "everyday" / "seed-0" / "data.json") == 7
    facts = store.read_json(results / "provenance.json")["tasks"]["01_data.everyday.seed-0"]
    executed = json.loads((results / "notebooks" / "01_data.everyday.seed-0.ipynb").read_text())
    assert executed["metadata"]["persona"] == facts
    assert facts["parameters"]["overrides"][-1] == "pair_limit=7"
    assert facts["seconds"] > 0 and facts["peak_memory_mb"] > 0 and facts["hardware"]["cores"] >= 1
    assert {"git", "python", "versions", "started", "finished"} <= set(facts)
    capsys.readouterr()
    started = time.monotonic()
    assert call(notebooks, *arguments) == 0
    assert "cached" in capsys.readouterr().out and time.monotonic() - started < 3


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
    assert call(notebooks, "--only", "02", "04") == 2, "04 has inputs that were not run"
    assert call(notebooks, "--only", "02") == 1
    shown = capsys.readouterr().out
    half = notebooks.parent / "results" / "smoke" / "notebooks" / "02_base.running.ipynb"
    assert said in shown and str(half) in shown and half.exists()
    assert not half.with_name("02_base.ipynb").exists()


@pytest.mark.slow
def test_a_mended_step_goes_on_where_the_run_stopped(notebooks, capsys):
    write_notebook(notebooks, "02_base", "profile", "1 / 0")
    assert call(notebooks) == 1
    write_notebook(notebooks, "02_base", "profile", "x = 1")
    capsys.readouterr()
    assert call(notebooks) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "[1/4] 01_data.everyday.seed-0 cached" in shown and "[4/4] 04_results done" in shown
    assert not list((notebooks.parent / "results").rglob("*.running.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_kernel_and_exits_130(notebooks, number):
    write_notebook(
        notebooks, "02_base", "profile", "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(300)"
    )
    code = (
        "import sys\nfrom pathlib import Path\nfrom persona_lib import pipeline\n"
        "from persona_lib.runner import steps\n"
        "arguments = ['--profile', 'smoke', '--set', 'steps=02_base']\n"
        "table = {'02_base': steps.Step('b', per='profile')}\n"
        f"sys.exit(pipeline.main(arguments, Path({str(notebooks)!r}), table))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=settings_module.REPO,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background job ignores it
    )
    log = notebooks.parent / "results" / "smoke" / "logs" / "02_base.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.2)
    kernel = int(log.read_text())
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    assert process.wait(30) == 130
    assert not log.parent.parent.joinpath("notebooks", "02_base.ipynb").exists()
    time.sleep(2)
    with contextlib.suppress(ProcessLookupError):
        os.kill(kernel, 0)
        pytest.fail("the kernel is still there")


def test_the_report_task_follows_every_other(monkeypatch):
    arguments = pipeline.parse_arguments(["--profile", "smoke"])
    laid_out = pipeline.open_pipeline(arguments)
    assert list(laid_out.tasks)[-1] == tasks.REPORT
    assert laid_out.tasks[tasks.REPORT] == Task(tasks.REPORT, tasks.REPORT, {}, tuple(laid_out.tasks)[:-1])


@pytest.mark.parametrize(("gpus", "wanted"), [([], "1"), (["a card"], None)])
def test_torchs_compiler_is_left_out_only_where_there_is_no_gpu(monkeypatch, gpus, wanted):
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    monkeypatch.setattr(pipeline, "hardware", lambda: {"gpus": gpus})
    assert pipeline.main(["--check", "--profile", "smoke"]) == 0
    assert os.environ.get("TORCHDYNAMO_DISABLE") == wanted and os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
