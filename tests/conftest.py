"""Shared by all tests: slow tests only with --slow, the authors' data where it is, quiet threads."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from persona_lib.paper import judging

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow each other down on few cores
os.environ.setdefault("GOMP_SPINCOUNT", "100")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Where this is there, jsonschema (nbformat imports it) builds a grammar of addresses: seconds for nothing.
sys.modules.setdefault("rfc3987_syntax", None)

REPO = Path(__file__).resolve().parent.parent
# Slow tests that take minutes begin first; a group of tests runs in one process (``--dist loadgroup``).
LONG_FIRST = ("test_own_run", "test_notebooks", "test_demo", "test_rehearsal", "test_benchmarks")
ONE_RUN = {"test_notebooks": "smoke", "test_demo": "smoke"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that train or run notebooks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group(ONE_RUN.get(item.path.stem, item.path.stem)))
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: give --slow"))
    if config.getoption("--slow"):
        order = {name: place for place, name in enumerate(LONG_FIRST)}
        items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def data_folder(name: str) -> Path:
    """Return a folder of data that is never in the repository, or skip and say where it was sought."""
    place = Path(os.environ.get("PERSONA_DATA", REPO.parent / "shared" / "data"))
    for folder in (place, place / name):
        if folder.name == name and folder.is_dir():
            return folder
    pytest.skip(f"no {name!r} in {place}: set PERSONA_DATA")


@pytest.fixture(scope="session")
def official_data() -> Path:
    """The authors' data: a folder of ``datasets.load_from_disk`` folders."""
    return data_folder("official")


@pytest.fixture(scope="session")
def released_outputs() -> Path:
    """The authors' released generations: one folder per data set."""
    return data_folder("released_outputs")


@pytest.fixture
def results_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results and figures of one test go beside it; returns the folder of results."""
    monkeypatch.setenv("PERSONA_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    judging.forget_judged()
    return tmp_path / "results"


@pytest.fixture(scope="module")
def results_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Results and figures of all tests of a file go to one folder; returns that of results."""
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_FIGURES", str(folder / "figures"))
        patch.setenv("PERSONA_RESULTS", str(folder / "results"))
        judging.forget_judged()
        yield folder / "results"


def run_there(folder: Path, command: str, **variables: str) -> str:
    """Run a command in a folder with this environment; returns what it printed, fails with the end of it."""
    here = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    here |= {"PYTHONPATH": str(folder), **variables}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PERSONA_")}
    how = {"cwd": folder, "env": kept | here, "capture_output": True, "text": True, "timeout": 1800}
    done = subprocess.run(shlex.split(command), **how)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def smoke_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's files in which the smallest profile has run."""
    folder = tmp_path_factory.mktemp("copy") / "repository"
    for name in run_there(REPO, "git ls-files -co --exclude-standard").splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / name, folder / name)
    run_there(folder, "./run_all.sh --profile smoke --offline")
    return folder
