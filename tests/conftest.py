"""Shared by all tests: slow tests only with --slow, the authors' data where it is, quiet threads."""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow each other down on few cores
os.environ.setdefault("GOMP_SPINCOUNT", "100")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Where this is there, jsonschema (nbformat imports it) builds a grammar of addresses: seconds for nothing.
sys.modules.setdefault("rfc3987_syntax", None)

REPO = Path(__file__).resolve().parent.parent
LOADS_MODELS = re.compile(r"^\s*(import torch|torch = |from tiny import)|\b(load_base|run_notebook)\b", re.M)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that train or run notebooks")


@cache
def process_group(path: Path) -> str:
    """Name what is tested in one process where there are several: a file, or all files that load models.

    Importing torch, transformers and peft takes as long as many tests: one process is to do it, not each.
    """
    return "models" if LOADS_MODELS.search(path.read_text(encoding="utf-8")) else path.stem


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give each group to one process, whatever ``--dist`` says; of the slow tests, each file."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = REPO / nodeid.split("::")[0]
            return path.stem if config.getoption("--slow") else process_group(path)

    return ByGroup(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: give --slow"))


def data_folder(name: str) -> Path:
    """Return a folder of data that is never in the repository, or skip and say where it was sought."""
    places = [Path(os.environ["PERSONA_DATA"])] if "PERSONA_DATA" in os.environ else []
    places.append(REPO.parent / "shared" / "data")
    for place in places:
        if place.name == name and place.is_dir():
            return place
        if (place / name).is_dir():
            return place / name
    pytest.skip(f"no {name!r} in {' or '.join(map(str, places))}: set PERSONA_DATA")


@pytest.fixture(scope="session")
def official_data() -> Path:
    """The authors' data: a folder of ``datasets.load_from_disk`` folders."""
    return data_folder("official")


@pytest.fixture(scope="session")
def released_outputs() -> Path:
    """The authors' released generations: one folder per data set."""
    return data_folder("released_outputs")


@pytest.fixture(scope="session")
def autoj_data() -> Path:
    """The folder of Auto-J's pairwise test set."""
    return data_folder("autoj")
