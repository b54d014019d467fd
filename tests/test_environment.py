"""One list of versions: every other file names packages at most."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
import yaml

from persona_lib import execute
from persona_lib.settings import REPO

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (REPO / "constraints.txt").read_text(encoding="utf-8")
VLLM = (REPO / "constraints-vllm.txt").read_text(encoding="utf-8")


def test_the_conda_file_points_at_the_one_list_and_has_none_itself():
    content = yaml.safe_load((REPO / "environment.yml").read_text(encoding="utf-8"))
    plain = [line for line in content["dependencies"] if isinstance(line, str)]
    assert plain == ["python=3.11", "pip"]
    assert content["dependencies"][-1] == {"pip": ["-c constraints.txt", "-e .[lab]"]}


def test_only_the_constraints_hold_exact_versions():
    requirements = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    assert [line for line in requirements if "==" in line] == []


@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"]))
def test_every_requirement_is_pinned(extra):
    name = "constraints-vllm.txt" if extra == "vllm" else "constraints.txt"
    assert set(execute.requirements(extra)) <= set(execute.pins(name=name))


def test_vllms_environment_trains_and_generates_with_the_versions_of_the_other_one():
    own, other = execute.pins(name="constraints-vllm.txt"), execute.pins()
    stack = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers")
    assert {name: own[name] for name in stack} == {name: other[name] for name in stack}
    assert own["vllm"] == {"0.30.0"} and "vllm" not in other


def test_the_constraints_suit_every_machine():
    lines = [line for line in (CONSTRAINTS + VLLM).splitlines() if not line.startswith("#")]
    assert all(re.match(r"^[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*( ;.*)?$", line) for line in lines)
    assert "+cpu" not in CONSTRAINTS + VLLM and "--" not in "".join(lines)
    assert execute.pins()["torch"] == {"2.13.0"}


def test_the_dev_extra_includes_the_others():
    dev, lab = set(execute.requirements("dev")), set(execute.requirements("lab"))
    assert {"torch", "papermill", "pyyaml"} <= lab < dev
    assert "vllm" not in dev  # it has an environment of its own


def test_an_environment_that_lacks_or_differs_is_told_so(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["PyYAML", "no_such.package>=1"]\n'
        "[project.optional-dependencies]\nlab = []\n"
    )
    (tmp_path / "constraints.txt").write_text("pyyaml==0.0.1\nno-such-package==1.0\n")
    missing, differing = execute.unmet("lab", tmp_path)
    assert missing == "no-such-package is not installed"
    assert differing.startswith("pyyaml ") and differing.endswith("0.0.1 is pinned")


@pytest.mark.parametrize("name", ["run_all.sh", "run_tests.sh", ".ci/run", ".ci/setup.sh"])
def test_shell_scripts_parse(name):
    assert subprocess.run(["bash", "-n", name], cwd=REPO, capture_output=True, text=True).stderr == ""


def test_the_citation_names_the_paper_and_its_authors():
    paper = yaml.safe_load((REPO / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Balepur", "Padmakumar", "Yang", "Feng", "Rudinger", "Boyd-Graber"]
    assert paper["identifiers"][0]["value"] == "arXiv:2501.11549" and paper["year"] == 2025
