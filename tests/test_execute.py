"""One list of versions, what the environment decides, and the outputs that executed notebooks show."""

from __future__ import annotations

import re
import tomllib

import pytest

from persona_lib import execute
from persona_lib.models.trainers import trainer_settings
from persona_lib.settings import REPO, load_profile

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = ("constraints.txt", "constraints-vllm.txt")


def test_only_the_constraints_hold_exact_versions_and_they_pin_every_requirement():
    requirements = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    assert [line for line in requirements if "==" in line] == []
    lines = [line for name in FILES for line in (REPO / name).read_text().splitlines() if line[:1] != "#"]
    assert all(re.match(r"^[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*( ;.*)?$", line) for line in lines)
    for extra in PROJECT["optional-dependencies"]:
        assert set(execute.requirements(extra)) <= set(execute.pins(name=FILES[extra == "vllm"])), extra


def test_vllms_environment_trains_and_generates_with_the_versions_of_the_other_one():
    own, other = execute.pins(name="constraints-vllm.txt"), execute.pins()
    stack = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers")
    assert {name: own[name] for name in stack} == {name: other[name] for name in stack}
    assert "vllm" in own and "vllm" not in other


def test_an_environment_that_lacks_or_differs_is_told_so(tmp_path):
    project = '[project]\ndependencies = ["PyYAML", "no_such.package>=1"]\noptional-dependencies.lab = []'
    (tmp_path / "pyproject.toml").write_text(project)
    (tmp_path / "constraints.txt").write_text("pyyaml==0.0.1\nno-such-package==1.0\n")
    missing, differing = execute.unmet("lab", tmp_path)
    assert missing == "no-such-package: none is installed, 1.0 is pinned"
    assert differing.startswith("pyyaml: ") and differing.endswith("0.0.1 is pinned")


def test_the_environment_alone_names_trackers(tmp_path, monkeypatch):
    monkeypatch.delenv("PERSONA_REPORT_TO", raising=False)
    assert trainer_settings(load_profile("smoke"), "sft", 0, tmp_path)["report_to"] == ["none"]
    monkeypatch.setenv("PERSONA_REPORT_TO", "a,b")
    assert trainer_settings(load_profile("smoke"), "sft", 0, tmp_path)["report_to"] == ["a", "b"]


# --- outputs of an executed notebook in its source ---


def cell(text, outputs=(), number=None, **metadata):
    """A code cell."""
    return {"cell_type": "code", "execution_count": number, "metadata": metadata, "outputs": list(outputs),
            "source": text.splitlines(keepends=True)}  # fmt: skip


def executed(second="train()"):
    """A run of SOURCE, as papermill leaves it."""
    stream = {"output_type": "stream", "name": "stdout", "text": ["one\n", f"done in {REPO}/results\n"]}
    shown = {"output_type": "execute_result", "execution_count": 9, "metadata": {}}
    widget = {**shown, "data": {"application/vnd.jupyter.widget-view+json": {"model_id": 1}}}
    image = {**shown, "data": {"image/png": "iVBORw0KGgo="}}
    cells = [
        cell("x = 1", number=1, tags=["parameters"]),
        cell("x = 2", number=2, tags=["injected-parameters"]),
        cell(second, [stream], 3, tags=["work"], papermill={"hour": 1}),
        cell("show()", [stream | {"name": "stderr"}, stream, widget, image], 4, execution={"busy": 1}),
    ]
    return {"cells": cells, "metadata": {"papermill": {}, "persona": {}}}


CELLS = [cell("x = 1", tags=["parameters"]), cell("train()", tags=["work"]), cell("show()")]
SOURCE = {"cells": CELLS, "metadata": {}}


def test_what_a_reader_sees_is_kept_and_counted_nothing_of_one_run_and_none_of_other_code():
    document = execute.with_outputs(SOURCE, executed(), {"code": "c"})
    _, work, show = document["cells"]
    assert [c["execution_count"] for c in document["cells"]] == [1, 2, 3]
    assert document["metadata"] == {"shown": {"code": "c"}} and work["outputs"] == []
    assert not {"papermill", "execution"} & {*work["metadata"], *show["metadata"]}
    printed, image = show["outputs"]
    assert printed["text"] == ["one\n", "done in results\n"] and image["execution_count"] == 3
    assert execute.with_outputs(document, document, {"code": "c"}) == document
    with pytest.raises(execute.StepError, match="other code"):
        execute.with_outputs(SOURCE, executed("train(more)"), {})
