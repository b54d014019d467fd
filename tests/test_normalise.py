"""Committed outputs: two runs give the same bytes, and outputs of other code are found without running."""

from __future__ import annotations

import base64
import io
import json
import shutil

import pytest

from persona_lib import docs, execute
from persona_lib.settings import REPO, load_profile
from persona_lib.tasks import Pipeline


def png(**text: str) -> str:
    """Return a small image with text chunks, as notebooks hold it."""
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    for name, value in text.items():
        info.add_text(name, value)
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "png", pnginfo=info)
    return base64.b64encode(file.getvalue()).decode()


def cell(text: str, outputs: list | None = None, number: int | None = None, **metadata) -> dict:
    """Return a code cell."""
    return {"cell_type": "code", "execution_count": number, "id": text[:8], "metadata": metadata,
            "outputs": outputs or [], "source": text.splitlines(keepends=True)}  # fmt: skip


def stream(text: str, name: str = "stdout") -> dict:
    """Return what a cell printed."""
    return {"output_type": "stream", "name": name, "text": text}


def notebook(*cells: dict, **metadata) -> dict:
    """Return a notebook whose first cell is a heading."""
    head = {"cell_type": "markdown", "id": "head", "metadata": {}, "source": ["# Title\n", "## A section\n"]}
    return {"cells": [head, *cells], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def executed(hour: int) -> dict:
    """Return one run of a notebook; all that depends on ``hour`` is of no interest to a reader."""
    shown = {"output_type": "execute_result", "execution_count": 9 + hour, "metadata": {}}
    return notebook(
        cell("x = 1", number=1, tags=["parameters"]),
        cell("x = 2", number=2, tags=["injected-parameters"]),
        cell("train()", [stream(f"step 1, {hour} s\n")], 3, tags=["work"], papermill={"hour": hour}),
        cell(
            "show()",
            [
                stream("\x1b[31mone\x1b[0m\n"),
                stream(f"warning {hour}", "stderr"),
                stream(f"two at 0x7f00aa{hour:02d}\n{hour} %\rdone in {REPO}/results\n"),
                {**shown, "data": {"application/vnd.jupyter.widget-view+json": {"model_id": hour}}},
                {**shown, "data": {"image/png": png(Software=f"made at {hour}"), "text/plain": "<Figure>"}},
            ],
            4,
            execution={"iopub.status.busy": hour},
        ),
        papermill={"start": hour},
        persona={"hour": hour},
        widgets={"state": hour},
    )


SOURCE = notebook(cell("x = 1", tags=["parameters"]), cell("train()", tags=["work"]), cell("show()"))


def test_two_runs_give_the_same_bytes_and_the_normal_form_is_its_own_normal_form():
    first, second = (
        execute.to_text(execute.normal_document(SOURCE, executed(hour), {"code": "c"})) for hour in (1, 2)
    )
    assert first == second
    once = json.loads(first)
    assert execute.normal_document(once, once, {"code": "c"}) == once
    assert execute.normal_document(once, executed(3), {"code": "c"}) == once


def test_what_a_reader_sees_is_kept_and_counted():
    document = execute.normal_document(SOURCE, executed(1), {})
    parameters, work, show = execute.cells_of_code(document)
    assert [c["execution_count"] for c in (parameters, work, show)] == [1, 2, 3]
    assert work["outputs"] == []
    printed, image = show["outputs"]
    assert printed["text"] == ["one\n", "two at 0x...\n", "done in results\n"]
    assert image["metadata"]["image/png"]["alt"] == "Figure of the section A section"
    assert base64.b64decode(image["data"]["image/png"]) and "iTXt" not in image["data"]["image/png"]
    assert image["execution_count"] == 3


def test_a_bare_png_is_the_same_picture_without_its_texts():
    from PIL import Image

    made = png(Software="version 9", Comment="today")
    bare = execute.bare_png(made)
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in (made, bare)]
    assert pictures[0].text and not pictures[1].text
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert bare == execute.bare_png(png()) == execute.bare_png(bare)


def test_other_code_and_failed_cells_are_refused():
    changed = executed(1)
    changed["cells"][4]["source"] = ["show(more)"]
    with pytest.raises(execute.NormalError, match="other code"):
        execute.normal_document(SOURCE, changed, {})
    failed = executed(1)
    failed["cells"][4]["outputs"] = [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]
    with pytest.raises(execute.NormalError, match="code cell 3 failed"):
        execute.normal_document(SOURCE, failed, {})


# --- the command, on the repository's own notebooks ---


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A profile with one step, its notebook in a folder of its own, and an executed copy of it."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    folder = tmp_path / "notebooks"
    folder.mkdir()
    profile = load_profile("smoke", ["steps=01_preference_data"])
    found = Pipeline(profile, notebooks=folder)
    source = folder / "01_preference_data.ipynb"
    shutil.copy(REPO / "notebooks" / source.name, source)
    document = execute.read(source)
    for one in execute.cells_of_code(document):
        one["outputs"] = [stream("seen\n")]
    document["metadata"]["persona"] = {"parameters": {"overrides": []}}
    target = found.executed(next(iter(found.tasks.values())))
    target.parent.mkdir(parents=True)
    target.write_text(execute.to_text(document), encoding="utf-8")
    return found


def rewrite(path, change):
    """Change a notebook's document on disk."""
    document = execute.read(path)
    change(document)
    path.write_text(execute.to_text(document), encoding="utf-8")


def test_writing_back_changes_no_code_hash_and_twice_changes_nothing(pipeline):
    source = pipeline.notebooks / "01_preference_data.ipynb"
    before = execute.notebook_hash(source)
    assert docs.write_back(pipeline, []) == [source]
    assert execute.notebook_hash(source) == before
    assert execute.read(source)["metadata"]["shown"] == {"profile": "smoke", "code": before}
    assert docs.write_back(pipeline, ["01"]) == [] and docs.check(pipeline.notebooks) == []


def test_outputs_of_other_code_of_no_record_or_not_normal_are_found(pipeline):
    source = pipeline.notebooks / "01_preference_data.ipynb"
    docs.write_back(pipeline, [])
    good = source.read_text(encoding="utf-8")
    rewrite(source, lambda d: execute.cells_of_code(d)[-1]["source"].append("\nprint(1)"))
    assert ["its code changed" in line for line in docs.check(pipeline.notebooks)] == [True]
    source.write_text(good, encoding="utf-8")
    rewrite(source, lambda d: execute.cells_of_code(d)[0]["outputs"].append(stream("x", "stderr")))
    assert ["not in normal form" in line for line in docs.check(pipeline.notebooks)] == [True]
    source.write_text(good, encoding="utf-8")
    rewrite(source, lambda d: d["metadata"].pop("shown"))
    assert ["unrecorded run" in line for line in docs.check(pipeline.notebooks)] == [True]


def test_a_missing_run_and_one_with_changed_settings_are_errors_that_name_the_command(pipeline):
    (task,) = pipeline.tasks.values()
    executed_copy = pipeline.executed(task)
    rewrite(executed_copy, lambda d: d["metadata"]["persona"]["parameters"].update(overrides=["seeds=1"]))
    with pytest.raises(execute.NormalError, match="ran with seeds=1.*run_all.sh --profile smoke"):
        docs.write_back(pipeline, [])
    executed_copy.unlink()
    with pytest.raises(execute.NormalError, match="has not run: ./run_all.sh --profile smoke"):
        docs.write_back(pipeline, [])


def test_the_check_of_the_repository_passes(capsys):
    assert docs.write_notebooks(["--check"]) == 0, capsys.readouterr().out
