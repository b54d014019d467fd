"""The library's arrows point one way, and importing it is cheap."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from persona_lib import docs
from persona_lib.settings import REPO

FOLDER = REPO / "persona_lib"
FILES = sorted(p for p in FOLDER.rglob("*.py") if p.stem != "__init__")
MODULES = {".".join(p.relative_to(FOLDER).with_suffix("").parts): p for p in FILES}
LIBRARIES = "torch transformers trl peft datasets pandas scipy statsmodels matplotlib bm25s papermill openai"
# From the ground up: a module imports from its own package (without circles) and from those before it.
GROUND = ["settings", "records", "store", "prompts", "weights", "intervals", "texts"]
ORDER = ["ground", *docs.PACKAGES, "top"]


def imported_modules(tree: ast.AST) -> set[str]:
    """Return the library's modules that code imports, at any depth: ``{"store", "models.train"}``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name.removeprefix("persona_lib.") for a in node.names}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "persona_lib":
            inner = node.module.removeprefix("persona_lib").lstrip(".")
            names |= {inner} | {f"{inner}.{a.name}".lstrip(".") for a in node.names}
    return names & set(MODULES)


IMPORTS = {n: imported_modules(ast.parse(p.read_text(encoding="utf-8"))) for n, p in MODULES.items()}


def floor_of(name: str) -> int:
    """Return the floor of a module; those directly in persona_lib are the ground, or the top."""
    package, dot, _ = name.partition(".")
    return ORDER.index(package if dot else "ground" if name in GROUND else "top")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_package_and_those_before_it(name):
    upward = {other for other in IMPORTS[name] if floor_of(other) > floor_of(name)}
    assert not upward, f"{name} imports upward: {upward}"


def test_imports_have_no_circle_and_the_library_stays_small():
    assert set(TopologicalSorter(IMPORTS).static_order()) == set(MODULES)
    assert len(MODULES) <= 43


def test_importing_is_quick_and_a_plan_loads_nothing_heavy():
    imports = "; ".join(f"import persona_lib.{name}" for name in MODULES)
    heavy = f"print(*sorted(m for m in {LIBRARIES.split()} if m in sys.modules))"
    first = "import sys, time; t = time.perf_counter(); import persona_lib; print(time.perf_counter() - t)"
    plan = "persona_lib.pipeline.main(['--plan', '--profile', 'paper'])"
    command = [sys.executable, "-c", f"{first}; {imports}; {plan}; {heavy}"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    seconds, *_, loaded = done.stdout.splitlines()
    assert float(seconds) < 0.3 and loaded == ""
