"""One list of versions, and what the environment decides."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from persona_lib import execute
from persona_lib.settings import REPO

TOML = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = TOML["project"]
FILES = ("constraints.txt", "constraints-vllm.txt")


def pins(name: str) -> dict[str, str]:
    """Return the exact versions of a file by package; the last line of those with several."""
    lines = (line.split(" ;")[0] for line in (REPO / name).read_text().splitlines() if line[:1] != "#")
    return dict(line.split("==") for line in lines)


def test_only_the_constraints_hold_exact_versions_and_they_pin_every_requirement():
    requirements = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    assert [line for line in requirements if "==" in line] == []
    lines = [line for name in FILES for line in (REPO / name).read_text().splitlines() if line[:1] != "#"]
    assert all(re.match(r"^[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*( ;.*)?$", line) for line in lines)
    for extra in PROJECT["optional-dependencies"]:
        assert execute.requirements(extra) <= set(pins("constraints.txt")), extra


def uv_lines():
    """Return constraints.txt as pyproject.toml shows it to uv."""
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return "".join(f'    "{line}",\n' for line in lines if line[:1] != "#")


def test_uv_is_held_to_the_same_versions_as_pip():
    text = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    assert text.endswith(f"constraint-dependencies = [\n{uv_lines()}]\n"), "run python tests/test_execute.py"


def test_a_wheel_holds_every_file_of_the_library_and_asks_for_a_checkout_in_one_line(tmp_path):
    command = ["git", "ls-files", "persona_lib"]
    tracked = subprocess.run(command, cwd=REPO, capture_output=True, text=True).stdout
    patterns = [*TOML["tool"]["setuptools"]["package-data"]["persona_lib"], "**/*.py"]
    files = [Path(line).relative_to("persona_lib") for line in tracked.splitlines()]
    assert [f for f in files if not any(f.match(p.removeprefix("**/")) for p in patterns)] == [] and files
    shutil.copytree(REPO / "persona_lib", tmp_path / "persona_lib")
    command = [sys.executable, "-m", "persona_lib.pipeline", "--plan"]
    ran = subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and "git clone" in ran.stderr, ran.stderr


def test_an_environment_that_uv_made_is_used_as_it_is_and_a_half_made_one_is_not(tmp_path):
    for name in (".ci", "persona_lib", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(REPO / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    command = ["bash", "-c", "source .ci/setup.sh; environment_ready train && echo $PYTHON"]
    for made_by, found in (("uv = 0.13.9", f"{python}\n"), ("version = 3.11.7", "")):
        (tmp_path / ".venv" / "pyvenv.cfg").write_text(f"home = /usr/bin\n{made_by}\n")
        given = {"cwd": tmp_path, "env": {"PATH": "/usr/bin:/bin"}, "capture_output": True, "text": True}
        ran = subprocess.run(command, **given)
        assert ran.stdout == found, ran.stderr


def test_vllms_environment_trains_and_generates_with_the_versions_of_the_other_one():
    other, own = map(pins, FILES)
    stack = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers")
    assert {name: own[name] for name in stack} == {name: other[name] for name in stack}
    assert "vllm" in own and "vllm" not in other


def test_an_environment_that_lacks_or_differs_is_told_so(tmp_path):
    project = '[project]\ndependencies = ["pyyaml", "no-such-package>=1"]\noptional-dependencies.lab = []'
    (tmp_path / "pyproject.toml").write_text(project)
    elsewhere = "pyyaml==0.0.2 ; sys_platform == 'nowhere'\n"
    (tmp_path / "constraints.txt").write_text(f"{elsewhere}pyyaml==0.0.1\nno-such-package==1.0\n")
    differing, missing = execute.unmet("lab", tmp_path)
    assert missing == "no-such-package==1.0: not installed"
    assert differing.startswith("pyyaml==0.0.1: ") and differing.endswith(" is installed")


if __name__ == "__main__":
    file = REPO / "pyproject.toml"
    head, _, _ = file.read_text(encoding="utf-8").partition("constraint-dependencies = [\n")
    file.write_text(f"{head}constraint-dependencies = [\n{uv_lines()}]\n", encoding="utf-8")
