"""The notebooks' shape: what papermill, JupyterLab and a reader on a code host all rely on."""

from __future__ import annotations

import ast
import json
import re
import resource
from functools import cache
from pathlib import Path

import pytest
from codemap import closure, imported_modules, module_path
from conftest import run_there

from persona_lib import execute, settings, store, tasks
from persona_lib.tasks import STEPS

FOLDER = settings.REPO / "notebooks"
CONTENTS = FOLDER / "00_contents.ipynb"  # no step: it leads to the others
NOTEBOOKS = sorted(set(FOLDER.glob("*.ipynb")) - {CONTENTS})
ORDER = ("profile", "dataset", "seed", "own", "filled", "overrides")
PARAMETERS = {
    "run": {"profile": "str", "dataset": "str", "seed": "int", "overrides": "list"},
    "profile": {"profile": "str", "overrides": "list"},
}
EXTRA = {  # parameters of single notebooks, for a reader who runs them by hand
    "10_user_personas": {"own": "list"},
    "14_human_ratings": {"filled": "str"},
}
OWN_PATH = re.compile(rf"{re.escape(str(settings.REPO))}\b|(?:^|[\s\"'(=])(?:/(?:home|Users|root)/|[A-Z]:\\)")
TIMING = re.compile(r"\b\d+(\.\d+)? s$|it/s|s/it|\b\d+:\d\d\b")
ELIDED = re.compile(r"\b\d+ rows [x×] \d+ columns")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict:
    """Return a notebook's document."""
    return json.loads(path.read_text(encoding="utf-8"))


def code(path: Path) -> list[dict]:
    """Return a notebook's code cells."""
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    """Return a cell's text."""
    return "".join(cell["source"])


def parameters_cell(path: Path) -> dict:
    """Return the one cell tagged ``parameters``."""
    tagged = [cell for cell in code(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    return tagged[0]


def test_there_is_a_notebook_for_every_step_and_a_step_for_every_notebook():
    assert [path.stem for path in NOTEBOOKS] == list(STEPS)


@pytest.mark.parametrize("name", sorted(path.stem for path in (settings.REPO / "configs").glob("*.yaml")))
def test_a_profiles_steps_are_in_the_notebooks_order(name):
    steps = list(settings.load_profile(name).steps)
    assert steps == [step for step in STEPS if step in steps]


def test_the_contents_link_to_every_notebook_and_to_every_figure_and_table_of_the_paper():
    prose = "".join(source(cell) for cell in read(CONTENTS)["cells"])
    assert all(f"({path.name})" in prose for path in NOTEBOOKS)
    assert all(f"| {name}" in prose for name in ("Section 2", "Section 3", "Section 4", "Section 5"))
    assert all(f"| {name}" in prose for name in ("Figure 3", "Figure 4", "Table 1"))


@every_notebook
def test_parameters_are_typed_literals_with_a_help_text(path):
    lines = source(parameters_cell(path)).splitlines()
    wanted = PARAMETERS[STEPS[path.stem].per] | EXTRA.get(path.stem, {})
    tree = ast.parse("\n".join(lines))
    assert [type(node) for node in tree.body] == [ast.AnnAssign] * len(wanted)
    assert {node.target.id: node.annotation.id for node in tree.body} == wanted
    assert [node.target.id for node in tree.body] == [name for name in ORDER if name in wanted]
    for node, line in zip(tree.body, lines, strict=True):
        ast.literal_eval(node.value)
        assert line.partition("#")[2].strip(), f"no help text: {line}"
        assert line.count("=") == 1, f"papermill does not see a parameter with a second '=': {line}"


@every_notebook
def test_a_notebook_calls_the_library_and_defines_nothing(path):
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for cell in code(path):
        tree = ast.parse(source(cell))
        assert [node.name for node in ast.walk(tree) if isinstance(node, defining)] == []


def imported(tree: ast.AST) -> dict[str, str]:
    """Return what the package's names mean in a piece of code: {"judge": "evaluation.judge"}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "persona_lib":
            inner = node.module.removeprefix("persona_lib").lstrip(".")
            found |= {name.asname or name.name: f"{inner}.{name.name}".lstrip(".") for name in node.names}
    return found


def uses(node: ast.AST, known: dict[str, str], module: str) -> tuple[set[str], set[str]]:
    """Return (what a piece of code may call, profile fields that it reads).

    A call is "module.function", or ".method" where only the name is known.
    """
    calls, fields = set(), set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            calls.add(known.get(part.id, f"{module}.{part.id}"))
        elif isinstance(part, ast.Attribute):
            owner = known.get(ast.unparse(part.value), "")
            calls.add(f"{owner}.{part.attr}")
            field = ast.unparse(part).partition("profile.")[2]
            if field in settings.field_types():
                fields.add(field)
    return calls, fields


@cache
def functions_of(module: str) -> list[tuple[set[str], set[str], set[str]]]:
    """Return (names, calls, fields) of every function and class of a library module."""
    tree, kinds = ast.parse(module_path(module).read_text(encoding="utf-8")), ast.FunctionDef
    methods = {
        m for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for m in ast.walk(c) if isinstance(m, kinds)
    }
    known = imported(tree)
    return [
        (
            {f"{module}.{node.name}"} | ({f".{node.name}"} if node in methods else set()),
            *uses(node, known, module),
        )
        for node in ast.walk(tree)
        if isinstance(node, (kinds, ast.ClassDef))
    ]


def fields_reached(path: Path) -> set[str]:
    """Return the fields that a notebook reads, itself or in library functions that it may reach."""
    whole = ast.parse("\n".join(map(source, code(path))))
    waiting, fields = uses(whole, imported(whole), "notebook")
    modules, seen = closure(imported_modules(whole)) - {"settings"}, set()
    functions = [function for module in modules for function in functions_of(module)]
    while waiting:
        seen |= waiting
        reached = [function for function in functions if function[0] & waiting]
        fields = fields.union(*(read_there for _, _, read_there in reached))
        waiting = set().union(*(calls for _, calls, _ in reached)) - seen
    return fields


@cache
def declared_fields(name: str) -> set[str]:
    """Return the fields that make a step stale, by itself or through its inputs."""
    step = STEPS[name]
    inputs = [other for other in STEPS if other[:2] in step.inputs.split()]
    own = set(tasks.field_values(settings.load_profile("everyday"), step.fields.split()))
    return own.union(*map(declared_fields, inputs))


@every_notebook
def test_every_field_that_a_notebook_reaches_makes_its_step_stale(path):
    selects = {"name", "description", "steps", "seeds", "datasets"}
    selects |= set(settings.flat(settings.load_profile("everyday"), " ".join(settings.CHANGE_NO_RESULT)))
    undeclared = fields_reached(path) - selects - declared_fields(path.stem)
    assert undeclared == set(), f"add to tasks.STEPS[{path.stem!r}].fields"


@every_notebook
def test_a_notebook_shows_outputs_of_its_code_without_traces_of_one_persons_run(path):
    document = read(path)
    outputs = [output for cell in code(path) for output in cell["outputs"]]
    shown = document["metadata"].get("shown", {}).get("code")
    assert not outputs or shown == execute.notebook_hash(path), "run it again, then persona_lib.docs"
    assert document["metadata"]["kernelspec"]["name"] == "python3"
    assert not set(document["metadata"]) & {"papermill", "widgets", "persona"}
    text = json.dumps(document["cells"], ensure_ascii=False)
    assert "injected-parameters" not in text
    assert not OWN_PATH.search(text), "a path of one machine"
    assert not ELIDED.search(text), "an output leaves out rows of a table"
    printed = [line for o in outputs if o["output_type"] == "stream" for line in o["text"]]
    assert [line for line in printed if TIMING.search(line)] == [], "tag the cell `work`"


@pytest.mark.slow
def test_the_whole_smoke_profile_runs_and_every_notebook_ran_in_order(smoke_repository):
    results = smoke_repository / "results" / "smoke"
    profile = settings.load_profile("smoke")
    executed = sorted((results / "notebooks").glob("*.ipynb"))
    assert [path.name.partition(".")[0] for path in executed] == sorted(profile.steps)
    for path in executed:
        document = read(path)
        assert execute.unfinished(document) is None, path
        assert document["metadata"]["persona"]["parameters"]["profile"] == "smoke"
    known = store.read_json(results / "provenance.json")["tasks"]
    assert {path.stem for path in executed} <= set(known)
    assert list((results / "tables").glob("*.csv"))
    assert (results / "report" / "index.html").exists()
    assert list((smoke_repository / "figures" / "smoke").glob("*.png"))


@pytest.mark.slow
def test_running_again_does_nothing_and_is_quick(smoke_repository):
    tables = {path: path.read_bytes() for path in (smoke_repository / "results").rglob("*.csv")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    said = run_there(smoke_repository, "./run_all.sh --profile smoke --offline")
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert used < 10, "seconds of the processor, whatever else runs beside it"
    steps = [line for line in said.splitlines() if line.startswith("[")]
    assert steps and all(line.endswith("cached") for line in steps), said
    assert {path: path.read_bytes() for path in (smoke_repository / "results").rglob("*.csv")} == tables
