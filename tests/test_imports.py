"""The library's arrows point one way, and importing it is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from persona_lib import fingerprint

REPO = Path(__file__).resolve().parent.parent
MODULES = sorted(p.stem for p in fingerprint.FOLDER.glob("*.py") if p.stem != "__init__")
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "pandas",
    "scipy",
    "matplotlib",
    "bm25s",
    "sentence_transformers",
    "papermill",
    "openai",
    "vllm",
)

# A module imports from its own level (without circles) and from lower ones.
LEVELS = {
    0: "records store config fingerprint prompts metrics bootstrap text_metrics tokens vocabulary "
    "environment provenance workers ranks hub persona_text published",
    1: "synthetic oracle official raw model_personas data released retrieval llm merging generate "
    "vllm_engine endpoint generators arms guards leakage origin views",
    2: "base unseen prometheus chat_judge personas persona_quality tailoring trainers train train_rank "
    "policies tailor matchups judge judged agreement pooled swap swap_tables released_tables",
    3: "docs flaws figures selection axes show show_answers show_base show_lm_judge show_personas "
    "results rejudged results_personas results_swap primary swap_plots plots report steps tasks execute "
    "workload cost plan runner pipeline ahead card export",
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names.split()}


def imports_of(name: str) -> set[str]:
    """Return the library's modules that a module imports, anywhere in it."""
    return fingerprint.imported_modules(ast.parse(fingerprint.module_path(name).read_text(encoding="utf-8")))


def test_every_module_has_a_level():
    assert sorted(set(MODULES) - set(LEVEL)) == [], "give new modules a level in LEVELS"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_level_and_below(name):
    upward = {other for other in imports_of(name) if LEVEL.get(other, 0) > LEVEL.get(name, 3)}
    assert not upward, f"{name} (level {LEVEL[name]}) imports upward: {upward}"


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


def test_importing_the_package_takes_under_half_a_second():
    code = "import time; t = time.perf_counter(); import persona_lib; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.5


def test_a_level_check_would_see_an_import_inside_a_function():
    tree = ast.parse(
        "def f():\n    from persona_lib.pipeline import main\n    from persona_lib import store\n"
    )
    assert fingerprint.imported_modules(tree) == {"pipeline", "store"}
