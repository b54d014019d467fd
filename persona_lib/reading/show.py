"""Small tables and texts for the notebooks on data and training: they read files and compute little.

Everything returns a pandas DataFrame or a string. What concerns personas and answers is
in ``show_personas`` and ``show_answers``, so that a notebook depends only on what it shows.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import weights
from persona_lib.config import Run
from persona_lib.data import everyday
from persona_lib.data.arms import to_dpo_rows, to_sft_rows
from persona_lib.models.llm import format_of
from persona_lib.records import PreferencePair, TailoringRow
from persona_lib.store import iter_rows, read_json, read_rows, write_text

if TYPE_CHECKING:
    import pandas as pd

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
PERSONAS = {"WHO PREFERS CHOSEN": "gold-chosen", "WHO PREFERS REJECTED": "gold-rejected"}
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
    """Return the first preference pair of a run as text, of training if it has any, with its personas."""
    pair = next(pair for split in ("train", "validation", "test") for pair in read_pairs(run, split))
    known = everyday.personas(run.profile.majority_share, run.seed) if run.dataset == everyday.NAME else {}
    brought = known.get(pair.id, {})
    said = [f"{name}\n{brought[key]}" for name, key in PERSONAS.items() if key in brought]
    return "\n\n".join([pair_text(pair), *said])


def contrast_table(run: Run, split: str = "train") -> pd.DataFrame:
    """Count, per dimension of ``everyday``, the pairs that differ in it and who has what most users like.

    Empty for other data, whose contrasts nobody knows.
    """
    import pandas as pd

    columns = ["dimension", "most like", "fewer like", "pairs", "chosen has what most like"]
    if run.dataset != everyday.NAME:
        return pd.DataFrame(columns=columns).set_index("dimension")
    common, by_id = everyday.common_values(run.seed), {item.id: item for item in everyday.items()}
    found: dict[str, list[bool]] = {name: [] for name in everyday.DIMENSIONS}
    for pair in read_pairs(run, split):
        item = by_id[pair.id]
        dimension, value = item.wish(everyday.chosen_side(item, run.profile.majority_share, run.seed))[0]
        found[dimension].append(value == common[dimension])
    rows = []
    for dimension, hits in found.items():
        first, second = everyday.DIMENSIONS[dimension]
        values = (first, second) if common[dimension] == first else (second, first)
        rows.append((dimension, *values, len(hits), sum(hits) / len(hits) if hits else float("nan")))
    return pd.DataFrame(rows, columns=columns).set_index("dimension")


def topic_table(run: Run) -> pd.DataFrame:
    """Count the topics of ``everyday`` per split and those shared with training; empty for other data."""
    import pandas as pd

    splits = ("train", "validation", "test") if run.dataset == everyday.NAME else ()
    topic = {item.id: item.topic for item in everyday.items()}
    topics = {s: {topic[pair.id] for pair in read_pairs(run, s)} for s in splits}
    rows = [
        (s, len(found), 0 if s == "train" else len(found & topics["train"])) for s, found in topics.items()
    ]
    return pd.DataFrame(rows, columns=["split", "topics", "shared with train"]).set_index("split")


def read_pairs(run: Run, split: str) -> list[PreferencePair]:
    """Read the preference pairs of a split."""
    return read_rows(run.folder / "pairs" / f"{split}.jsonl", PreferencePair)


# --- training ---


def training_example(run: Run, method: str, train_persona: str, number: int = 0) -> str:
    """Return one training row of an arm as the trainer gets it, its fields under their TRL names."""
    source = read_rows(run.folder / "tailoring" / f"{method}_train.jsonl", TailoringRow)
    make = to_sft_rows if method == "sft" else to_dpo_rows
    row = make(source, train_persona, run.seed, format_of(*run.base_source))[number]
    return "\n\n".join(f"{name}\n{text!r}" for name, text in row.items())


def adapter_dir(run: Run, arm: str) -> Path:
    """Return the folder of one arm's adapter, e.g. of "sft-chosen"."""
    return run.folder / "adapters" / arm


def row_counts(run: Run, method: str) -> pd.DataFrame:
    """Return, per arm and part, how many rows were used, left out, cut or dropped, and their tokens."""
    import pandas as pd

    rows = []
    for arm in (f"{method}-{persona}" for persona in run.profile.train_personas):
        for part, counts in read_json(adapter_dir(run, arm) / "counts.json").items():
            rows.append({"arm": arm, "part": part} | {name: counts[name] for name in COUNTS})
    return pd.DataFrame(rows, columns=["arm", "part", *COUNTS]).set_index(["arm", "part"])


def training_history(run: Run, method: str) -> pd.DataFrame:
    """Return the losses of every epoch of every arm, and which epoch was kept."""
    import pandas as pd

    tables = []
    for persona in run.profile.train_personas:
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
    for persona in run.profile.train_personas:
        path = adapter_dir(run, f"{method}-{persona}") / "adapter_model.safetensors"
        with safe_open(path, framework="np") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        parameters = sum(rows * columns for rows, columns in shapes)
        rows.append(
            {"arm": path.parent.name, "parameters": parameters, "megabytes": path.stat().st_size / 1e6}
        )
    return pd.DataFrame(rows, columns=["arm", "parameters", "megabytes"]).set_index("arm")


# --- speed ---


def matrix_rate(size: int = 1024, tries: int = 5) -> float:
    """Return the best measured rate of float32 matrix products on this machine now, in GFLOP/s."""
    import time

    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds) / 1e9


def speed_table(run: Run, method: str) -> pd.DataFrame:
    """Return tokens and seconds of each trained arm, beside the arithmetic floor; evaluation is left out.

    The floor is what the arithmetic needs: four FLOP per parameter and token (forward, and backward to the
    activations; a shared prompt counts once) at the measured rate of matrix products. Empty on a GPU, and for
    a base whose size the table of weights does not know.
    """
    import pandas as pd
    import torch

    source = run.profile.base_model
    whole = weights.is_packaged(source) and not weights.entry(source)["layers"]
    if not whole or torch.cuda.is_available():
        return pd.DataFrame()
    rate, rows = matrix_rate(), []
    for arm in run.profile.train_personas:
        folder = adapter_dir(run, f"{method}-{arm}")
        counts, log = read_json(folder / "counts.json")["train"], list(iter_rows(folder / "log.jsonl"))
        epochs = next(entry["epoch"] for entry in reversed(log) if "epoch" in entry)
        tokens = (counts["prompt_tokens"] + counts["completion_tokens"]) * epochs
        spent = sum(e.get("train_runtime", 0) for e in log) - sum(e.get("eval_runtime", 0) for e in log)
        floor = 4 * weights.entry(source)["parameters"] * tokens / 1e9 / rate
        rows.append((folder.name, round(tokens), spent, tokens / spent, rate, floor, floor / spent))
    names = ["arm", "tokens", "seconds", "tokens per second", "GFLOP/s of this machine", "floor, seconds"]
    return pd.DataFrame(rows, columns=[*names, "share of the floor"]).set_index("arm")
