"""How seconds and memory grow with the rows, and peak memory beside TRL's and plain scoring's.

The growing work: reading own data, asking a served model, SFT, DPO, answers.
The served model answers at once, within the process: what is left is the client's own work. Each size runs
in a process of its own, which tells its seconds (without loading the model) and its peak memory. The
exponent is the slope of log seconds over log rows: 1 is a cost per row that stays the same.

The peaks are those of one training step, or of one batch of scoring, with prompt and response of 256 tokens
together. Their seconds are those of the whole process, from its start to its end.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import epochs
import generation
import numpy as np
import pandas as pd
import scoring
import training
from harness import RESULTS

from persona_lib import store
from persona_lib.data import intake
from persona_lib.models.served import EndpointGenerator
from persona_lib.settings import ModelRole, load_profile

SIZES = {
    "reading": (25000, 50000, 100000),
    "served": (25000, 50000, 100000),
    "sft": (16, 32, 64),
    "dpo": (16, 32, 64),
    "answers": (32, 64, 128),
}
WAYS = ("theirs", "ours")
PEAKS = (("sft", 4), ("sft", 8), ("dpo", 2), ("dpo", 8), ("swap", 8))  # rows of a step: the default's, TRL's


def reading(n: int) -> float:
    """Return the seconds to read and check n pairs whose prompts share a template."""
    rng, words = random.Random(training.SEED), [f"word{number}" for number in range(5000)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        texts = (" ".join(rng.choices(words, k=12)) for _ in range(3 * n))
        names = ("prompt", "chosen", "rejected")
        store.write_rows(path, ({name: f"Assistant: {next(texts)}" for name in names} for _ in range(n)))
        started = time.perf_counter()
        intake.read_own(load_profile("own", [f"data.path={path}"]))
        return time.perf_counter() - started


def served(n: int) -> float:
    """Return the seconds to ask n prompts and to keep every answer and its cost in the ledger."""
    import httpx
    import openai

    choice = {"index": 0, "finish_reason": "stop", "text": "The user is calm and prefers tea."}
    usage = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}
    answer = {"id": "x", "model": "m", "choices": [choice], "usage": usage}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=answer))
    client, role = openai.OpenAI, ModelRole("m", "http://127.0.0.1:9/v1", "completions", (1.0, 1.0))
    ours = mock.patch.object(
        openai, "OpenAI", lambda **how: client(**how, http_client=httpx.Client(transport=transport))
    )
    with tempfile.TemporaryDirectory() as folder, ours, mock.patch.dict(os.environ, {"OPENAI_API_KEY": "no"}):
        generator = EndpointGenerator(role, Path(folder) / "ledger.jsonl", max_cost_usd=1e3)
        started = time.perf_counter()
        if sum(1 for _ in generator.generate([f"Question {i}?" for i in range(n)], 8, ())) != n:
            raise AssertionError("not every prompt was answered")
        return time.perf_counter() - started


def work(name: str, n: int, quick: bool) -> float:
    """Return the seconds that a piece of work takes for n rows."""
    if name in ("reading", "served"):
        return {"reading": reading, "served": served}[name](n)
    setup = epochs.make_setup("sft" if name == "answers" else name, "everyday", quick, n)
    if name != "answers":
        return epochs.ours(setup, name, training.TRL).seconds
    task = generation.Task([row["prompt"] for row in setup.data["train"]], "", 32)
    model, started = setup.base("float32"), time.perf_counter()
    generation.ours(model, setup.tokenizer, task)
    return time.perf_counter() - started


def one_step(name: str, rows: int, way: str) -> float:
    """Train one step on rows of 256 tokens, or score both responses to as many prompts; returns seconds."""
    setup = epochs.make_setup("dpo" if name == "swap" else name, "256 tokens", False, rows)
    if name != "swap":
        return getattr(epochs, way)(setup, name, training.TRL).seconds
    data, model, started = setup.data["train"], setup.base("float32"), time.perf_counter()
    score, model = (scoring.ours, model) if way == "ours" else (scoring.plain, epochs.without_kernels(model))
    score(model, setup.tokenizer, data["prompt"], [*zip(data["chosen"], data["rejected"], strict=True)])
    return time.perf_counter() - started


def tell(name: str, n: int, how: str = "") -> dict[str, Any]:
    """Do the work, or ("ours", "theirs") one step; returns and prints size, seconds and peak gigabytes."""
    seconds = one_step(name, n, how) if how in WAYS else work(name, n, how == "quick")
    found = {"what": name, "rows": n, "seconds": seconds}
    found |= {"gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    print(json.dumps(found), flush=True)
    return found


def measure(name: str, n: int, how: str = "") -> dict[str, Any]:
    """Do the work in a process of its own, so that peak memory is its own; ``process``: its seconds."""
    command = [sys.executable, "-c", f"import growth; growth.tell({name!r}, {n}, {how!r})"]
    started = time.perf_counter()
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1]) | {"process": time.perf_counter() - started}


def compare_peaks() -> pd.DataFrame:
    """Return peak memory and seconds of a process, here and as TRL does by default (swap: plain scoring)."""
    lines = []
    for name, rows in PEAKS:
        line: dict[str, Any] = {"what": name, "rows of a step": rows}
        for way in WAYS:
            found = measure(name, rows, way)
            line |= {f"GB, {way}": f"{found['gb']:.2f}", f"seconds, {way}": f"{found['process']:.1f}"}
        print("; ".join(f"{key}: {value}" for key, value in line.items()), flush=True)
        lines.append(line)
    return pd.DataFrame(lines)


def main(quick: bool) -> None:
    """Measure, print, write ``results/growth.csv`` and ``peaks.csv``; quick: growth alone, in one process."""
    lines = []
    for name, sizes in SIZES.items():
        less = 100 if name == "served" else 4
        said = [tell(name, n // less, "quick") if quick else measure(name, n) for n in sizes]
        found = pd.DataFrame(said)[["what", "rows", "seconds", "gb"]]
        slope = np.polyfit(np.log(found["rows"]), np.log(found["seconds"]), 1)[0]
        print(f"{name}: exponent {slope:.2f}", flush=True)
        cells = {
            key: " / ".join(f"{value:.6g}" for value in found[key].round(2)) for key in found.columns[1:]
        }
        lines.append({"what": name, **cells, "exponent": f"{slope:.2f}"})
    if not quick:
        store.write_text(RESULTS / "growth.csv", pd.DataFrame(lines).to_csv(index=False))
        store.write_text(RESULTS / "peaks.csv", compare_peaks().to_csv(index=False))
