"""A hash moves with what Python executes, and with nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persona_lib import fingerprint


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in which ``top`` imports ``middle`` imports ``low`` imports ``store`` (plumbing)."""
    (tmp_path / "store.py").write_text("X = 1\n")
    (tmp_path / "low.py").write_text("from persona_lib import store\n\n\ndef f():\n    return store.X\n")
    (tmp_path / "middle.py").write_text("def g():\n    from persona_lib.low import f\n\n    return f()\n")
    (tmp_path / "top.py").write_text('"""Doc."""\nfrom persona_lib import middle\n\nY = middle.g\n')
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    """Replace text in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_module_covers_what_it_imports_even_inside_functions(package):
    assert list(fingerprint.module_hashes("top", folder=package)) == ["low", "middle", "top"]
    before = fingerprint.module_hash("top", folder=package)
    edit(package / "low.py", "store.X", "store.X + 1")
    assert fingerprint.module_hash("top", folder=package) != before


def test_docstrings_comments_and_layout_do_not_count(package):
    before = fingerprint.module_hash("top", folder=package)
    edit(package / "top.py", '"""Doc."""', '"""Another."""\n# why\n')
    edit(package / "low.py", "def f():\n", 'def f():\n    """Say more."""\n\n')
    assert fingerprint.module_hash("top", folder=package) == before


def test_plumbing_does_not_count(package):
    before = fingerprint.module_hash("top", folder=package)
    edit(package / "store.py", "1", "2")
    assert fingerprint.module_hash("top", folder=package) == before


def test_a_string_that_is_no_docstring_counts(package):
    edit(package / "top.py", "Y = middle.g", 'Y = "a"')
    before = fingerprint.module_hash("top", folder=package)
    edit(package / "top.py", '"a"', '"b"')
    assert fingerprint.module_hash("top", folder=package) != before


def test_an_unknown_module_is_an_error():
    with pytest.raises(FileNotFoundError):
        fingerprint.module_hash("no_such_module")


def notebook(path: Path, *cells: dict) -> Path:
    """Write a notebook of the given cells."""
    path.write_text(json.dumps({"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def code(source: str, **extra) -> dict:
    """Return a code cell."""
    cell = {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": None}
    return cell | extra


def test_a_notebook_counts_by_its_code_alone(tmp_path):
    plain = notebook(tmp_path / "a.ipynb", code("x = 1"))
    prose = {"cell_type": "markdown", "source": "# Title", "metadata": {}}
    injected = code("x = 2", metadata={"tags": ["injected-parameters"]})
    run = code("x = 1", execution_count=7, outputs=[{"output_type": "stream", "text": "hi"}])
    assert fingerprint.notebook_hash(notebook(tmp_path / "b.ipynb", prose, injected, run)) == (
        fingerprint.notebook_hash(plain)
    )
    assert fingerprint.notebook_hash(notebook(tmp_path / "c.ipynb", code("x = 3"))) != (
        fingerprint.notebook_hash(plain)
    )


def test_a_notebooks_modules_are_found_past_magic_lines(tmp_path):
    path = notebook(
        tmp_path / "a.ipynb",
        code("%matplotlib inline\nfrom persona_lib import store"),
        code("!ls\nimport persona_lib.config"),
    )
    assert fingerprint.notebook_modules(path) == ["config", "store"]
