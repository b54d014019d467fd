"""The runner: what is refused, and that only whole runs count as done."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from test_tasks import DATA, STEPS_TOO, finish, notebooks, toy, write_notebook  # noqa: F401  (a fixture)

from persona_lib import pipeline, settings, store


def call(*arguments: str) -> int:
    """Call the runner on the toy pipeline."""
    return pipeline.main(["--profile", "smoke", "--set", STEPS_TOO, *arguments])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--profile", "smok"], "did you mean smoke"),
        (["--only", "05"], "--only 05: no such step"),
        (["--only", "03"], "needs 01_data.everyday.seed-0, which has not been run"),
        (["--only", "01", "--from", "03"], "--only names no step after that of --from"),
        (["--seeds", "many"], "write a count (5) or a list (0,3)"),
        (["--base", "/nix/da"], "/nix/da: no such folder"),
        (["--base", "pypi:nix"], "known: pypi:smollm2-135m-instruct"),
        (["--base", "owner/name"], "it needs a commit"),
        (["--set", "evaluation.persona_judge=backward"], "did you mean backwards?"),
        (["--set", "datasets=hhh", "--data", "/nix/da"], "data.path=/nix/da: no folder"),
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
    assert "to run     3 of 4 tasks" in said and "time " in said


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


def test_two_runs_at_once_are_refused(notebooks, capsys):
    with pipeline.only_runner(toy()):
        assert call() == 2
    assert "another run is at work" in capsys.readouterr().err


def test_steps_run_leave_provenance_and_the_report_and_are_then_skipped(notebooks, capsys, monkeypatch):
    def run_notebook(source, target, parameters, log):
        store.write_text(target.with_suffix(".running.ipynb"), source.read_text())
        return target.with_suffix(".running.ipynb")

    monkeypatch.setattr(pipeline, "run_notebook", run_notebook)
    results = notebooks.parent / "results" / "smoke"
    page, changed = results / "report" / "index.html", ["--set", "data.pair_limit=7"]
    assert call("--only", "01", *changed) == 0 and not page.exists()
    assert f"{DATA}  begins, about 0:01:00" in (said := capsys.readouterr().out) and "done in 0:00:0" in said
    facts = store.read_json(results / "provenance.json")["tasks"][DATA]
    executed = json.loads((results / "notebooks" / f"{DATA}.ipynb").read_text())
    assert executed["metadata"]["persona"] == facts
    assert facts["parameters"]["overrides"][-1] == "data.pair_limit=7"
    assert {"git", "hardware", "python", "versions", "finished"} <= set(facts)
    assert call(*changed) == 0 and page.exists()
    assert capsys.readouterr().out.startswith(f"[1/4] {DATA:<24}  cached")
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
    process = subprocess.Popen([sys.executable, "-c", code], cwd=settings.REPO)
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


def test_verify_compares_what_ran_not_what_is_asked_now(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    assert pipeline.main(["--verify"]) == 2 and "has no results to verify" in capsys.readouterr().err
    ran = settings.load_profile("everyday", ["dpo.beta=0.2"])
    pipeline.write_facts(pipeline.Pipeline(ran), {})
    assert pipeline.main(["--verify"]) == 2 and "this one changed dpo.beta" in capsys.readouterr().err
    assert pipeline.main(["--verify", "--profile", "smoke"]) == 2
    assert "no published run" in capsys.readouterr().err
