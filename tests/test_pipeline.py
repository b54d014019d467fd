"""The runner: what is stale and why, what a plan says, what is refused, and what a whole run leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from persona_lib import pipeline, store, tasks, weights
from persona_lib.data import official
from persona_lib.settings import REPO, ConfigError, Run, load_profile
from persona_lib.tasks import Pipeline, Step

TOY = {
    "01_data": Step(minutes={"smoke": 1}, makes="pairs"),
    "02_base": Step(per="profile"),
    "03_train": Step(inputs="01 02"),
    "04_results": Step(per="profile", inputs="01 03"),
}
DATA, TRAIN = "01_data.everyday.seed-0", "03_train.everyday.seed-0"
STEPS_TOO = "steps=" + ",".join(TOY)
PACKAGED = "pypi:smollm2-135m-instruct"


def cell(text: str, **metadata: object) -> dict:
    empty = {"cell_type": "code", "execution_count": None, "outputs": []}
    return empty | {"metadata": metadata, "source": text.splitlines(keepends=True)}


def write_notebook(folder: Path, name: str, per: str, *sources: str) -> None:
    """Write a notebook with the parameters of its kind and the given code cells."""
    lines = ['profile: str = "smoke"  # profile', "overrides: list = []  # changes"]
    lines += ['dataset: str = ""  # data set', "seed: int = 0  # seed"] if per == "run" else []
    cells = [cell("\n".join(lines), tags=["parameters"]), *map(cell, sources)]
    kernel = {"kernelspec": {"name": "someones-own", "display_name": "x", "language": "python"}}
    content = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}
    (folder / f"{name}.ipynb").write_text(json.dumps(content))


@pytest.fixture
def notebooks(results_here, tmp_path, monkeypatch) -> Path:
    """A folder of four tiny notebooks, one per toy step; results go beside it."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(tasks, "STEPS", TOY)
    monkeypatch.setattr(tasks, "NOTEBOOKS", folder)
    for name, step in TOY.items():
        write_notebook(folder, name, step.per, "x = 1")
    return folder


def toy(*overrides: str) -> Pipeline:
    changes = [STEPS_TOO, *overrides]
    return Pipeline(load_profile("smoke", changes), tuple(changes))


def finish(pipeline: Pipeline, task_id: str, when: str = "then") -> None:
    """Leave what the runner leaves after a task."""
    task, known = pipeline.tasks[task_id], pipeline.known()
    facts = {"key": tasks.current_key(pipeline, task, known), "finished": when, "longest_seconds": 3}
    store.write_text(pipeline.executed(task), "{}")
    store.write_json(pipeline.provenance, {"tasks": known | {task_id: facts}})


@pytest.fixture
def done(notebooks) -> Pipeline:
    pipeline = toy()
    for task_id in pipeline.tasks:
        finish(pipeline, task_id)
    return pipeline


def states(pipeline: Pipeline) -> dict[str, str]:
    reasons = tasks.plan(pipeline, list(pipeline.tasks))
    return {name: "run" if reason else "cached" for name, reason in reasons.items()}


def reasons(pipeline: Pipeline, task_id: str) -> list[str]:
    return tasks.stale_reasons(pipeline, pipeline.tasks[task_id], pipeline.known())


def test_a_step_expands_over_data_sets_and_seeds(notebooks):
    many = toy("datasets=beavertails,hhh", "seeds=0,1,2")
    assert len(many.tasks) == 6 + 1 + 6 + 1
    trained = many.tasks["03_train.hhh.seed-2"]
    assert trained.inputs == ("01_data.hhh.seed-2", "02_base")
    assert many.parameters(trained) | {"seed": 2, "dataset": "hhh"} == many.parameters(trained)
    assert len(many.tasks["04_results"].inputs) == 12
    assert toy("steps=01_data,03_train").tasks[TRAIN].inputs == (DATA,), "what is left out is not waited for"
    with pytest.raises(ConfigError, match="unknown step '01_dat'.*did you mean 01_data"):
        _ = toy("steps=01_dat").tasks


def test_a_changed_setting_names_itself_and_an_input_that_ran_again_moves_what_follows(done):
    changed = toy("data.pair_limit=9")
    assert set(states(changed).values()) == {"run"}
    assert reasons(changed, DATA) == ["data.pair_limit: 16 -> 9"]
    finish(done, DATA, "later")
    assert reasons(done, TRAIN) == [f"input {DATA}: then -> later"]
    assert list(states(done).values()) == ["cached", "cached", "run", "run"]


def test_more_seeds_and_settings_that_change_no_result_leave_finished_runs_current(done):
    more = states(toy("seeds=0,1", "served.max_cost_usd=1", "judge.prices=1,2"))
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
    assert reasons(done, "02_base")[0].startswith("the notebook's code: ")


def test_a_rerun_that_was_killed_is_not_taken_for_the_finished_run_before_it(done):
    facts = done.known()
    store.write_json(done.provenance, {"tasks": facts | {"02_base": facts["02_base"] | {"key": None}}})
    assert reasons(done, "02_base") == ["stopped half way: goes on where it was"]
    assert reasons(done, TRAIN) == ["input 02_base: then -> None"]


def test_force_deletes_what_a_task_made_and_nothing_else(done):
    run = Run(done.profile, "everyday", 0).folder
    for name in ("pairs", "personas"):
        store.write_text(run / name / "done.json", "{}")
    tasks.forget(done, done.tasks[DATA])
    assert [path.name for path in run.iterdir()] == ["personas"]
    assert reasons(done, DATA) == [f"missing: {done.executed(done.tasks[DATA])}"]


def test_a_plan_names_megabytes_and_licence_of_what_is_not_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    named = ["base.model=pypi:gemma-3-270m", f"generator.model={PACKAGED}/2", "evaluation.judge=lm"]
    unknown = f"data.retriever=dense:x/y@{'0' * 40}"
    profile = load_profile("everyday", [*named, f"judge.model={PACKAGED}", unknown])
    lines = [
        f"download   {PACKAGED}: 93 MB, Apache-2.0",
        "download   pypi:gemma-3-270m: 241 MB, Gemma terms of use, not an open licence: set "
        "PERSONA_ACCEPT_LICENCE=gemma-3-270m to accept it",
        "download   x/y: size unknown, no licence known",
    ]
    assert sorted(tasks.needs(profile)) == sorted(lines)
    store.mark_done(weights.folder_of(PACKAGED), weights.entry(PACKAGED)["sha256"])
    assert sorted(tasks.needs(profile)) == sorted(lines[1:])
    (llama,) = [line for line in tasks.needs(load_profile("paper")) if "Llama" in line]
    assert "16,100 MB, Llama 3.1 Community License, not an open licence" in llama
    (tmp_path / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "x").mkdir(parents=True)
    assert llama not in tasks.needs(load_profile("paper"))


def test_a_plan_names_missing_data_of_the_authors_and_the_limit_of_served_models(results_here, monkeypatch):
    monkeypatch.setattr(official, "REPO", results_here)
    monkeypatch.delenv("PERSONA_DATA", raising=False)
    served = ["judge.url=http://h/v1", "judge.model=m", "served.max_cost_usd=3", "judge.prices=1,2"]
    profile = load_profile("authors", ["datasets=hhh", "evaluation.judge=lm", *served])
    asked = tasks.needs(profile)
    assert asked[-2].startswith("download   the authors' data: 20 MB")
    assert asked[-1] == "served     judge m at http://h/v1: at most 3 dollars in all"
    assert tasks.needs(load_profile("everyday", served)) == tasks.needs(load_profile("everyday")), "oracle"


def test_a_plan_says_state_reason_and_time(notebooks, capsys):
    finish(toy(), DATA)
    assert call("--plan") == 0
    said = capsys.readouterr().out
    assert f"cached  {DATA}" in said and "not run yet" in said
    assert "to run     3 of 4 tasks" in said and "time " in said


def call(*arguments: str) -> int:
    return pipeline.main(["--profile", "smoke", "--set", STEPS_TOO, *arguments])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--profile", "smok"], "did you mean smoke"),
        (["--only", "main_table"], "did you mean main-table"),
        (["--data", ""], "--data is empty"),
        (["--data", "x.jsonl", "--set", "datasets=everyday"], "takes the package's own pairs, not x.jsonl"),
        (["--seeds", "2", "--set", "seeds=3"], "--seeds and --set seeds are the same setting"),
        (["--force", "--verify"], "--verify only compares"),
        (["--only", "03"], "needs 01_data.everyday.seed-0, which has not been run"),
        (["--only", "01", "--from", "03"], "--only names no step after that of --from"),
        (["--set", "datasets=hhh", "--data", "/nix/da"], "data.path=/nix/da: no folder"),
        (["--data", "x.jsonl", "--profile", "everyday"], "evaluation.judge=oracle reads the package"),
        (["--mapping", "m.yaml"], "--mapping says what the columns of --data mean"),
        (["--profile", "own", "--set", "data.path="], "no data: say where it is, --data FILE"),
    ],
)
def test_a_wrong_setting_is_said_in_one_line_and_nothing_is_run(notebooks, capsys, arguments, complaint):
    assert call(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and complaint in said and "Traceback" not in said
    assert not (notebooks.parent / "results").exists()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["base.model=meta-llama/Llama-3.1-8B"], "no GPU, and meta-llama/Llama-3.1-8B needs one"),
        (["base.model=HuggingFaceTB/SmolLM2-360M"], "no model hub, and HuggingFaceTB/SmolLM2-360M is"),
        (["generator.model=m", "generator.url=http://127.0.0.1:1/v1"], "no server answers at generator.url"),
    ],
)
def test_what_this_machine_lacks_ends_a_run(notebooks, capsys, monkeypatch, tmp_path, given, complaint):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    glob = pipeline.Path.glob
    monkeypatch.setattr(pipeline.Path, "glob", lambda at, name: glob(at, "-" if str(at) == "/dev" else name))
    monkeypatch.setattr(pipeline.tasks, "roles", lambda profile: {"generator": profile.generator.url})
    arguments = [word for one in given for word in ("--set", one)]
    assert call(*arguments) == 2 and complaint in capsys.readouterr().err
    assert call("--check", *arguments) == 0 and complaint in capsys.readouterr().out


def test_the_main_table_alone_trains_two_policies_and_counts_its_own_hours(results_here):
    def hours(*given):
        pipe = pipeline.open_pipeline(pipeline.parse_arguments(["--profile", "paper", *given]))
        return pipe, sum(tasks.expected_seconds(pipe, task, {}) for task in pipe.tasks.values()) / 3600

    (pipe, short), (_, whole) = hours("--only", "main-table"), hours()
    assert pipe.profile.training.arms == ("none", "chosen") and not pipe.profile.evaluation.controls
    assert "09_judging" in pipe.profile.steps and "11_persona_swap" not in pipe.profile.steps
    assert 0 < short < whole / 2


def test_two_runs_at_once_are_refused(notebooks, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "validate", lambda *_: pytest.fail("it writes the page of the first run"))
    with pipeline.only_runner(toy()):
        assert call() == 2
    assert "another run is at work" in capsys.readouterr().err


def test_steps_run_leave_provenance_and_the_report_and_are_then_skipped(notebooks, capsys, monkeypatch):
    def run_notebook(source, target, parameters, log):
        store.write_text(target, source.read_text())

    monkeypatch.setattr(pipeline, "run_notebook", run_notebook)
    results = notebooks.parent / "results" / "smoke"
    page, changed = results / "report" / "index.html", ["--set", "data.pair_limit=7"]
    assert call("--only", "01", *changed) == 0 and not page.exists()
    assert f"{DATA}  begins, about 1 min" in (said := capsys.readouterr().out) and "done in 0 s" in said
    facts = store.read_json(results / "provenance.json")["tasks"][DATA]
    assert facts["parameters"]["overrides"][-1] == "data.pair_limit=7"
    assert {"git", "hardware", "python", "versions", "finished"} <= set(facts)
    assert call(*changed) == 0 and page.exists()
    said = capsys.readouterr().out
    assert said.startswith(f"[1/4] {DATA:<24}  cached")
    assert f"report: {page.resolve().as_uri()}\nnext: ./run_all.sh --demo " in said
    written = page.stat().st_mtime_ns
    assert call(*changed) == 0 and page.stat().st_mtime_ns == written
    assert capsys.readouterr().out.count("cached") == 4


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
        "tasks.STEPS = {'02_base': tasks.Step(per='profile')}\n"
        "sys.exit(pipeline.main(['--profile', 'smoke', '--set', 'steps=02_base']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPO)
    log = notebooks.parent / "results" / "smoke" / "logs" / "02_base.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.2)
    kernel = int(log.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert not log.parent.parent.joinpath("notebooks", "02_base.ipynb").exists()
    time.sleep(2)
    with pytest.raises(ProcessLookupError):  # the kernel is gone
        os.kill(kernel, 0)


def test_verify_compares_what_ran_not_what_is_asked_now(results_here, capsys):
    assert pipeline.main(["--verify"]) == 2 and "has no results to verify" in capsys.readouterr().err
    ran = load_profile("everyday", ["dpo.beta=0.2"])
    pipeline.write_facts(pipeline.Pipeline(ran), {"12_results": {"key": tasks.settings_of(ran)}})
    assert pipeline.main(["--verify"]) == 2 and "this one changed dpo.beta" in capsys.readouterr().err
    assert pipeline.main(["--verify", "--profile", "smoke"]) == 2
    assert "no published run" in capsys.readouterr().err
