"""The library's arrows point one way, and importing it is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from codemap import FOLDER, imported_modules, imports_of

from persona_lib import docs

REPO = Path(__file__).resolve().parent.parent
FILES = sorted(p for p in FOLDER.rglob("*.py") if p.stem != "__init__")
MODULES = [".".join(p.relative_to(FOLDER).with_suffix("").parts) for p in FILES]
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "pandas",
    "scipy",
    "statsmodels",
    "matplotlib",
    "bm25s",
    "papermill",
    "openai",
)

# From the ground up: a module imports from its own package (without circles) and from those before it.
GROUND = ["settings", "records", "store", "prompts", "workers", "weights", "intervals", "texts"]
ORDER = ["ground", *docs.PACKAGES, "top"]


def package_of(name: str) -> str:
    """Return the floor of a module; those directly in persona_lib are the ground, or the top."""
    package, dot, _ = name.partition(".")
    return package if dot else "ground" if name in GROUND else "top"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_package_and_those_before_it(name):
    place = ORDER.index(package_of(name))
    upward = {other for other in imports_of(name) if ORDER.index(package_of(other)) > place}
    assert not upward, f"{name} imports upward: {upward}"


def test_the_library_stays_small():
    assert len(MODULES) <= 44


def test_imports_have_no_circle():
    order = list(TopologicalSorter({name: imports_of(name) for name in MODULES}).static_order())
    assert set(order) >= set(MODULES)


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_any_module_loads_nothing_heavy():
    imports = "; ".join(f"import persona_lib.{name}" for name in MODULES)
    loaded = run_python(f"import sys; {imports}; print(*sorted(m for m in {HEAVY} if m in sys.modules))")
    assert loaded.split() == []


def test_importing_the_package_takes_under_three_tenths_of_a_second():
    code = "import time; t = time.perf_counter(); import persona_lib; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(5)) < 0.3


def test_an_import_inside_a_function_is_seen():
    tree = ast.parse(
        "def f():\n    from persona_lib.pipeline import main\n    from persona_lib.models import load\n"
        "    from persona_lib import store\n    import persona_lib.data.intake\n"
    )
    assert imported_modules(tree) == {"pipeline", "models.load", "store", "data.intake"}
