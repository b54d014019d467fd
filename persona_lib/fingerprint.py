"""Hashes of code: what a step's result depends on besides its numbers and its inputs.

Only what Python would execute counts: comments, docstrings and layout do not, nor do a notebook's
prose, outputs and metadata. A module's hash covers everything in ``persona_lib`` that it imports,
directly or not, except ``PLUMBING``, which carries values and files but computes none.
"""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

PACKAGE = "persona_lib"
FOLDER = Path(__file__).resolve().parent
PLUMBING = ("config", "profiles", "store", "fingerprint")


def short_hash(text: str) -> str:
    """Return 16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def without_docstrings(tree: ast.Module) -> ast.Module:
    """Remove docstrings in place; a body that was only a docstring becomes ``pass``."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
            continue
        if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
            body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return tree


def imported_modules(tree: ast.AST, folder: Path = FOLDER) -> set[str]:
    """Return the package's modules that the code imports, at any depth: ``{"store", "training.train"}``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                a.name.removeprefix(f"{PACKAGE}.") for a in node.names if a.name.startswith(f"{PACKAGE}.")
            }
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module == PACKAGE or module.startswith(f"{PACKAGE}."):
                inner = module.removeprefix(PACKAGE).lstrip(".")
                names |= {inner} | {f"{inner}.{a.name}".lstrip(".") for a in node.names}
    return {name for name in names if module_path(name, folder).exists()}


def module_path(name: str, folder: Path = FOLDER) -> Path:
    """Return the file of a module, named "training.train" or "persona_lib.training.train"."""
    return folder / (name.removeprefix(f"{PACKAGE}.").replace(".", "/") + ".py")


@cache
def read_module(path: Path, modified: int, folder: Path) -> tuple[str, frozenset[str]]:
    """Return a module's own hash and what it imports; ``modified`` makes an edited file be read again."""
    tree = without_docstrings(ast.parse(path.read_text(encoding="utf-8")))
    return short_hash(ast.unparse(tree)), frozenset(imported_modules(tree, folder))


def module_hashes(*names: str, folder: Path = FOLDER) -> dict[str, str]:
    """Return the own hash of every named module and of all that they import, by module name.

    Raises FileNotFoundError for a module that is not there.
    """
    found: dict[str, str] = {}
    waiting = [name.removeprefix(f"{PACKAGE}.") for name in names]
    while waiting:
        name = waiting.pop()
        if name in found or name in PLUMBING:
            continue
        path = module_path(name, folder)
        found[name], imports = read_module(path, path.stat().st_mtime_ns, folder)
        waiting += sorted(imports)
    return dict(sorted(found.items()))


def module_hash(*names: str, folder: Path = FOLDER) -> str:
    """Return one hash of the named modules and of all that they import; used in ``done.json`` keys."""
    return short_hash(json.dumps(module_hashes(*names, folder=folder)))


def code_cells(path: Path) -> list[str]:
    """Return the sources of a notebook's code cells, without what papermill injected."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        "".join(cell["source"]).rstrip()
        for cell in cells
        if cell["cell_type"] == "code" and "injected-parameters" not in cell["metadata"].get("tags", [])
    ]


def notebook_hash(path: Path) -> str:
    """Return the hash of a notebook's code cells; prose, outputs and metadata do not count."""
    return short_hash(json.dumps([source for source in code_cells(path) if source.strip()]))


def python_code(source: str) -> str:
    """Return a code cell with IPython's magic lines (% and !) blanked, so that ``ast`` can read it."""
    lines = source.splitlines()
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)


def notebook_modules(path: Path, folder: Path = FOLDER) -> list[str]:
    """Return the modules of the package that a notebook's code cells import."""
    trees = [ast.parse(python_code(source), str(path)) for source in code_cells(path)]
    return sorted(set().union(*(imported_modules(tree, folder) for tree in trees)))
