"""Torch, imported when something of it is used: collecting the tests then does not load it."""

from __future__ import annotations

import importlib
from typing import Any


class Later:
    """Stands for a module until one of its names is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # asked by pytest of all that it finds in a file
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)


torch: Any = Later("torch")
