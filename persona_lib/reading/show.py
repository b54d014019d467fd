"""Small tables and texts for the notebooks on data and training: they read files and compute little.

Everything returns a pandas DataFrame or a string. What concerns the base model, personas and answers is
in ``show_base``, ``show_personas`` and ``show_answers``, so that a notebook depends only on what it shows.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib.config import Run
from persona_lib.data.arms import to_dpo_rows, to_sft_rows
from persona_lib.published import trained_personas
from persona_lib.records import PreferencePair, TailoringRow
from persona_lib.store import iter_rows, read_json, read_rows, write_text

if TYPE_CHECKING:
    import pandas as pd

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
NO_HISTORY = ["arm", "epoch", "validation loss", "kept"]  # the columns of a history without any arm
COUNTS = ("rows", "without_persona", "truncated", "dropped", "prompt_tokens", "completion_tokens", "longest")
LOSSES = {
    "loss": "training loss",
    "eval_loss": "validation loss",
    "eval_rewards/accuracies": "validation reward accuracy",
    "eval_rewards/margins": "validation reward margin",
    "grad_norm": "gradient norm",
}


def quiet() -> None:
    """Keep progress bars and routine warnings out of a notebook; let tables show all rows and whole texts.

    To be called before transformers is imported; what the user has set in the environment is kept.
    """
    import pandas as pd

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="Cannot enable progress bars")
    pd.set_option("display.max_colwidth", 160)
    pd.set_option("display.max_rows", 200)
    pd.set_option("display.precision", 3)


def save_table(run: Run, name: str, table: pd.DataFrame, index: bool = False) -> Path:
    """Write a table to ``tables/<name>.csv`` of the run, atomically, and return the path."""
    path = run.folder / "tables" / f"{name}.csv"
    write_text(path, table.to_csv(index=index))
    return path


# --- preference pairs ---


def pair_text(pair: PreferencePair | TailoringRow) -> str:
    """Return a pair as text for a reader."""
    return f"PROMPT\n{pair.prompt}\n\nCHOSEN\n{pair.chosen}\n\nREJECTED\n{pair.rejected}"


def example_pair(run: Run) -> str:
    """Return the first preference pair of a run as text; of the training split if it has any."""
    pairs = (pair for split in ("train", "validation", "test") for pair in read_pairs(run, split))
    return pair_text(next(pairs))


def contrast_table(run: Run, split: str = "train") -> pd.DataFrame:
    """Count, per dimension of the synthetic world, the pairs that contrast it and who has the common value.

    Read back from the responses by the oracle. Empty for real data, whose contrasts nobody knows.
    """
    import pandas as pd

    from persona_lib.world.vocabulary import COMMON, DIMENSIONS

    columns = ["dimension", "common", "uncommon", "contrasted", "chosen has the common value"]
    if run.dataset != "synthetic":
        return pd.DataFrame(columns=columns).set_index("dimension")
    claims = [claim for pair in read_pairs(run, split) for claim in contrasts(pair)]
    rows = []
    for dimension, values in DIMENSIONS.items():
        found = [value == COMMON[dimension] for name, value in claims if name == dimension]
        rows.append((dimension, *values, len(found), sum(found) / len(found) if found else float("nan")))
    return pd.DataFrame(rows, columns=columns).set_index("dimension")


def topic_table(run: Run) -> pd.DataFrame:
    """Count the synthetic world's topics per split and those shared with training; empty for real data."""
    import pandas as pd

    from persona_lib.world.oracle import read_topic

    splits = ("train", "validation", "test") if run.dataset == "synthetic" else ()
    seed = run.profile.world_seed
    topics = {s: {read_topic(pair.prompt, seed).name for pair in read_pairs(run, s)} for s in splits}
    rows = [
        (s, len(found), 0 if s == "train" else len(found & topics["train"])) for s, found in topics.items()
    ]
    return pd.DataFrame(rows, columns=["split", "topics", "shared with train"]).set_index("split")


def read_pairs(run: Run, split: str) -> list[PreferencePair]:
    """Read the preference pairs of a split."""
    return read_rows(run.folder / "pairs" / f"{split}.jsonl", PreferencePair)


def contrasts(pair: PreferencePair) -> list[tuple[str, str]]:
    """Return the (dimension, value) claims by which the chosen response differs from the rejected one."""
    from persona_lib.world.oracle import contrast_claims

    return list(dict.fromkeys(contrast_claims(pair.chosen, pair.rejected)))


# --- training ---


def loss_table(folder: Path) -> pd.DataFrame:
    """Return the logged loss curve of a base model, by step; empty if nothing was trained there."""
    import pandas as pd

    path = folder / "log.jsonl"
    rows = list(iter_rows(path)) if path.exists() else []
    names = ["step", "loss", "learning_rate", "grad_norm"]
    return pd.DataFrame(rows, columns=names).set_index("step")


def training_example(run: Run, method: str, train_persona: str, number: int = 0) -> str:
    """Return one training row of an arm as the trainer gets it, its fields under their TRL names."""
    source = read_rows(run.folder / "tailoring" / f"{method}_train.jsonl", TailoringRow)
    make = to_sft_rows if method == "sft" else to_dpo_rows
    row = make(source, train_persona, run.seed)[number]
    return "\n\n".join(f"{name}\n{text!r}" for name, text in row.items())


def adapter_dir(run: Run, arm: str) -> Path:
    """Return the folder of one arm's adapter, e.g. of "sft-chosen"."""
    return run.folder / "adapters" / arm


def row_counts(run: Run, method: str) -> pd.DataFrame:
    """Return, per arm and part, how many rows were used, left out, cut or dropped, and their tokens."""
    import pandas as pd

    rows = []
    for arm in (f"{method}-{persona}" for persona in trained_personas(run.profile, run.dataset, method)):
        for part, counts in read_json(adapter_dir(run, arm) / "counts.json").items():
            rows.append({"arm": arm, "part": part} | {name: counts[name] for name in COUNTS})
    return pd.DataFrame(rows, columns=["arm", "part", *COUNTS]).set_index(["arm", "part"])


def training_history(run: Run, method: str) -> pd.DataFrame:
    """Return the losses of every epoch of every arm, and which epoch was kept."""
    import pandas as pd

    tables = []
    for persona in trained_personas(run.profile, run.dataset, method):
        folder = adapter_dir(run, f"{method}-{persona}")
        best = read_json(folder / "done.json")["best_eval_loss"]
        tables += [
            {"arm": folder.name, **row, "kept": row["validation loss"] == best} for row in epochs(folder)
        ]
    columns = [*dict.fromkeys(name for row in tables for name in row)] or NO_HISTORY
    return pd.DataFrame(tables, columns=columns).set_index(["arm", "epoch"])


def epochs(folder: Path) -> list[dict[str, Any]]:
    """Merge the training and validation logs of an adapter into one row per epoch."""
    merged: dict[float, dict[str, Any]] = {}
    for entry in iter_rows(folder / "log.jsonl"):
        found = {LOSSES[name]: value for name, value in entry.items() if name in LOSSES}
        if found:
            merged.setdefault(entry["epoch"], {"epoch": entry["epoch"]}).update(found)
    ordered = [merged[epoch] for epoch in sorted(merged) if "validation loss" in merged[epoch]]
    return [{"epoch": row["epoch"]} | {n: row[n] for n in LOSSES.values() if n in row} for row in ordered]


def adapter_sizes(run: Run, method: str) -> pd.DataFrame:
    """Return the number of trained parameters and the file size of every arm's adapter."""
    import pandas as pd
    from safetensors import safe_open

    rows = []
    for persona in trained_personas(run.profile, run.dataset, method):
        path = adapter_dir(run, f"{method}-{persona}") / "adapter_model.safetensors"
        with safe_open(path, framework="np") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        parameters = sum(rows * columns for rows, columns in shapes)
        rows.append(
            {"arm": path.parent.name, "parameters": parameters, "megabytes": path.stat().st_size / 1e6}
        )
    return pd.DataFrame(rows, columns=["arm", "parameters", "megabytes"]).set_index("arm")
