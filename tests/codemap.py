"""What the library's files import, read with ``ast``: for tests of its structure."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "persona_lib"


def module_path(name: str) -> Path:
    """Return the file of a module, named "training.train"."""
    return FOLDER / (name.replace(".", "/") + ".py")


def imported_modules(tree: ast.AST) -> set[str]:
    """Return the library's modules that code imports, at any depth: ``{"store", "training.train"}``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name.removeprefix("persona_lib.") for a in node.names}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "persona_lib":
            inner = node.module.removeprefix("persona_lib").lstrip(".")
            names |= {inner} | {f"{inner}.{a.name}".lstrip(".") for a in node.names}
    return {name for name in names if module_path(name).exists()}


def imports_of(name: str) -> set[str]:
    """Return the library's modules that a module imports, anywhere in it."""
    return imported_modules(ast.parse(module_path(name).read_text(encoding="utf-8")))


def closure(names: set[str]) -> set[str]:
    """Return the modules and all that they import, directly or not."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        found |= (now := {waiting.pop()})
        waiting |= imports_of(*now) - found
    return found
