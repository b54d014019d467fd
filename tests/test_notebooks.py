"""The notebooks' shape: what papermill, JupyterLab and a reader on a code host all rely on."""

import ast
import json
import re

import pytest

from persona_lib import settings, store
from persona_lib.execute import code_of, notebook_hash, tags, unfinished
from persona_lib.tasks import STEPS

FOLDER = settings.REPO / "notebooks"
CONTENTS = FOLDER / "00_contents.ipynb"  # no step: it leads to the others
NOTEBOOKS = sorted(set(FOLDER.glob("*.ipynb")) - {CONTENTS})
BY_HAND = {"10_user_personas": {"own"}, "14_human_ratings": {"filled"}}  # parameters for a reader alone
OWN_PATH = re.compile(rf"{re.escape(str(settings.REPO))}\b|(?:^|[\s\"'(=])(?:/(?:home|Users|root)/|[A-Z]:\\)")
TIMING = re.compile(r"\b\d+(\.\d+)? s$|it/s|s/it|\b\d+:\d\d\b")
ELIDED = re.compile(r"\b\d+ rows [x×] \d+ columns")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_every_step_has_a_notebook_and_the_contents_link_to_it_and_to_the_papers_figures_and_tables():
    assert [path.stem for path in NOTEBOOKS] == list(STEPS)
    prose = "".join("".join(cell["source"]) for cell in store.read_json(CONTENTS)["cells"])
    assert all(f"({path.name})" in prose for path in NOTEBOOKS)
    assert all(f"| {name}" in prose for name in ("Section 3", "Section 5", "Figure 3", "Figure 4", "Table 1"))


@every_notebook
def test_parameters_are_literals_with_a_help_text_and_code_defines_nothing(path):
    (cell,) = [cell for cell in store.read_json(path)["cells"] if "parameters" in tags(cell)]
    lines, run = "".join(cell["source"]).splitlines(), STEPS[path.stem].per == "run"
    found = {node.target.id: ast.literal_eval(node.value) for node in ast.parse("\n".join(lines)).body}
    wanted = {"profile", "overrides"} | ({"dataset", "seed"} if run else set())
    assert set(found) == wanted | BY_HAND.get(path.stem, set())
    assert all(line.partition("#")[2].strip() for line in lines), "no help text"
    assert all(line.count("=") == 1 for line in lines), "papermill does not see one with a second '='"
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    trees = [ast.parse(source) for source in code_of(store.read_json(path))]
    assert not [node for tree in trees for node in ast.walk(tree) if isinstance(node, defining)]


@every_notebook
def test_a_notebooks_minutes_are_those_of_steps_yaml(path):
    lines = store.read_json(path)["cells"][0]["source"]
    rows = [line.strip().strip("|").split("|")[1:] for line in lines if line[:5] in ("| pro", "| min")]
    said = {name.strip("` "): float(minutes) for name, minutes in zip(*rows, strict=True)}
    assert said and said.items() <= STEPS[path.stem].minutes.items()


@every_notebook
def test_a_notebook_is_stored_in_normal_form_without_traces_of_one_persons_run(path):
    document = store.read_json(path)
    outputs = [output for cell in document["cells"] for output in cell.get("outputs", [])]
    shown = document["metadata"].get("shown", {}).get("code")
    assert not outputs or shown == notebook_hash(path), "run it again, then persona_lib.docs --notebooks"
    assert document["metadata"]["kernelspec"]["name"] == "python3"
    assert not set(document["metadata"]) & {"papermill", "widgets", "persona"}
    text = json.dumps(document["cells"], ensure_ascii=False)
    assert "injected-parameters" not in text
    assert not OWN_PATH.search(text), "a path of one machine"
    assert not ELIDED.search(text), "an output leaves out rows of a table"
    assert not [o for o in outputs if o.get("name") == "stderr" or "widget" in str(o.get("data", {}).keys())]
    printed = [line for o in outputs if o["output_type"] == "stream" for line in o["text"]]
    assert [line for line in printed if TIMING.search(line)] == [], "tag the cell `work`"


@pytest.mark.slow
def test_the_whole_smoke_profile_runs_and_every_notebook_ran_in_order(smoke_repository):
    results = smoke_repository / "results" / "smoke"
    executed = sorted((results / "notebooks").glob("*.ipynb"))
    assert [p.name.partition(".")[0] for p in executed] == sorted(settings.load_profile("smoke").steps)
    assert [unfinished(store.read_json(path)) for path in executed] == [None] * len(executed)
    assert list((results / "tables").glob("*.csv"))
    assert (results / "report" / "index.html").exists()
    assert list((smoke_repository / "figures" / "smoke").glob("*.png"))
