"""Every shell command that the documents and the notebooks' prose print is run, or it is said why not.

Commands run in a copy of the repository in which the smallest profile has run. What would take hours, a GPU,
the network or real data is run as far as its arguments are checked, or skipped with the reason below.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import run_there

from persona_lib.settings import REPO

DOCUMENTS = ("README.md", "DATA.md", "SCALING.md")
FENCE = re.compile(r"```bash\n(.*?)```", re.DOTALL)
INLINE = re.compile(
    r"`((?:\./run_all\.sh|\./run_tests\.sh|python -m|python tests/|papermill|pip install|git) [^`]+)`"
)
CHECKED = "--check"  # only arguments and settings: the command itself is what CI or a large machine runs
RULES = [  # (pattern, how it is run: a replacement of the pattern, or a reason to skip)
    (r"^\./run_tests\.sh", "skip: this test is part of it"),
    (r"^vllm |constraints-vllm|^pytest --slow|engine=vllm", "skip: needs a GPU and its own environment"),
    (r"^(python3 -m venv|pip install|pre-commit|git )", "skip: changes the environment, asks the network"),
    (r"^python tests/browser\.py", "skip: tests/test_browser.py does it"),
    (r"^python -m benchmarks", "skip: a quarter of an hour alone; the slow suite runs its quick mode"),
    (r"--demo", "skip: serves until it is ended; tests/test_browser.py does it"),
    (r"^accelerate launch", "skip: needs several GPUs; tests/test_ranks.py trains in two processes"),
    (r"--push", "skip: uploads"),
    (r"generator_url=|judge_url=|HOST|COMMIT", "skip: needs a served or a published model"),
    (r"my_pairs|my_mapping|PATH|--data", "skip: needs data of yours; the tests of the readers do it"),
    (r"[A-Z]{4,}|\.\.\.|KEY=VALUE", "skip: a pattern with a place holder"),
    (r"^\./run_all\.sh .*--(plan|list|check)|^\./run_all\.sh --profile smoke", "run"),
    (r"^\./run_all\.sh", CHECKED),
    (r"^python -m persona_lib\.(docs|export)", "smoke"),
    (r"^python -m persona_lib\.", "help"),
    (r"^papermill ", "run"),
]


def commands_of(text: str) -> list[str]:
    """Return the commands of a document: lines of bash blocks (continued ones joined), and inline ones."""
    found = [line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    found += [match.replace("\n", " ") for match in INLINE.findall(FENCE.sub("", text))]
    stripped = (re.sub(r"\s+#.*$", "", line).strip().rstrip("&").strip() for line in found)
    return [re.sub(r"\s+", " ", line) for line in stripped if line and not line.startswith("#")]


def prose(path: Path) -> str:
    """Return the text of a document or of a notebook's Markdown cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n\n".join(
        "".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"
    )


PATHS = [REPO / name for name in DOCUMENTS] + sorted((REPO / "notebooks").glob("*.ipynb"))
COMMANDS = sorted({command for path in PATHS for command in commands_of(prose(path))})


def rule_of(command: str) -> str:
    """Return how a command is treated; "" if nobody has said."""
    return next((how for pattern, how in RULES if re.search(pattern, command)), "")


def as_run(command: str) -> str:
    """Return what is run for a command."""
    how = rule_of(command)
    if how == CHECKED:
        return f"{command} --check"
    if how == "help":
        return " ".join(command.split()[:3]) + " --help"
    if how == "smoke":
        rest = command.replace("--profile everyday", "--profile smoke")
        return rest if "--profile" in rest else f"{rest} --profile smoke"
    return command


def test_somebody_has_said_what_to_do_with_every_command():
    assert len(COMMANDS) > 20 and [command for command in COMMANDS if not rule_of(command)] == []


def test_comments_continuations_and_inline_commands_are_read():
    text = "```bash\n# no\n./run_all.sh --a \\\n    --b   # why\nx & \n```\nor `python -m y --z` and `code`"
    assert commands_of(text) == ["./run_all.sh --a --b", "x", "python -m y --z"]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_command_runs(command, smoke_repository):
    if rule_of(command).startswith("skip"):
        pytest.skip(f"{command}: {rule_of(command)}")
    run_there(smoke_repository, as_run(command))
