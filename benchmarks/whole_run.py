"""Where the seconds of a finished run go: by step, what starts up, and the cells that take longest.

    python benchmarks/whole_run.py [RESULTS [EARLIER_RESULTS]]    # e.g. results/everyday
    python benchmarks/whole_run.py --record STEP                  # sample one step with py-spy

Reads ``provenance.json`` and the executed notebooks, in which papermill leaves every cell's seconds; nothing
is run but a rerun that finds all work done and three imports in fresh processes. A step's start-up is what is
not in a cell: papermill, the kernel, the closing of both. Worker processes import torch and its friends
inside a cell: the imports' own lines say what that costs each process. With another run's folder its seconds
stand beside. Writes ``benchmarks/tables/whole_run.csv`` and ``.md``; ``--quick`` makes two steps of the
smoke profile and checks that the parts add up and that a rerun does nothing.

``--record`` makes one step of the default profile again under py-spy (``pip install py-spy``), subprocesses
included, and leaves ``<step>.speedscope.json`` for https://www.speedscope.app.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
from harness import HERE

from persona_lib import store
from persona_lib.config import REPO

RERUN_SECONDS = 10.0  # at most, with nothing to do
IMPORTS = {
    "the library": "import persona_lib",
    "what trains": "import torch, trl, peft; from trl import DPOTrainer, SFTTrainer",
    "what draws": "import pandas, matplotlib.pyplot, seaborn",
}


def cells_of(notebook: Path) -> list[tuple[float, str]]:
    """Return (seconds, first line of code) of an executed notebook's cells, the longest first."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    times = [
        (cell["metadata"]["papermill"]["duration"] or 0.0, "".join(cell["source"]).splitlines()[0])
        for cell in code
    ]
    return sorted(times, reverse=True)


def task_row(results: Path, name: str, facts: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """Return where one task's seconds went, beside an earlier run's if there is one."""
    notebook = results / "notebooks" / f"{name}.ipynb"
    cells = cells_of(notebook) if notebook.exists() else []
    inside = sum(seconds for seconds, _ in cells) if cells else facts["seconds"]
    longest = cells[0] if cells else (facts["seconds"], "")
    return {
        "task": name,
        **({"earlier s": earlier[name]["seconds"] if name in earlier else None} if earlier else {}),
        "s": facts["seconds"],
        "start-up s": max(0.0, facts["seconds"] - inside),
        "longest cell s": longest[0],
        "longest cell": f"`{longest[1][:60]}`" if longest[1] else "",
        "peak MB": facts["peak_memory_mb"],
    }


def rows_of(results: Path, before: Path | None = None) -> list[dict[str, Any]]:
    """Return a row per task in the order of the run, and the total."""
    tasks = store.read_json(results / "provenance.json")["tasks"]
    earlier = store.read_json(before / "provenance.json")["tasks"] if before else {}
    rows = [task_row(results, name, facts, earlier) for name, facts in tasks.items()]
    added = ("earlier s", "s", "start-up s", "longest cell s")
    total = {name: sum(row[name] or 0 for row in rows) if name in added else None for name in rows[0]}
    return [*rows, total | {"task": "all"}]


def import_seconds(code: str) -> float:
    """Return the seconds that imports take in a fresh process, the smallest of three."""
    clock = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
    done = [subprocess.run([sys.executable, "-c", clock], capture_output=True, text=True, check=True)
            for _ in range(3)]  # fmt: skip
    return min(float(one.stdout) for one in done)


def run_pipeline(*arguments: str, results: Path | None = None) -> tuple[float, str]:
    """Run the pipeline in a process of its own; return its seconds and what it printed."""
    environment = os.environ | ({"PERSONA_RESULTS": str(results)} if results else {})
    command = [sys.executable, "-m", "persona_lib.pipeline", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, done.stdout


def rerun(*arguments: str, results: Path | None = None) -> float:
    """Return the seconds of a run that must find everything done."""
    seconds, said = run_pipeline(*arguments, results=results)
    if " done in " in said or "cached" not in said:
        sys.exit(f"the rerun found something to do:\n{said}")
    if seconds > RERUN_SECONDS:
        print(f"a rerun with nothing to do takes {seconds:.1f} s: more than {RERUN_SECONDS:.0f}")
    return seconds


def report(results: Path, before: Path | None) -> None:
    """Write the table of a finished run."""
    settings = store.read_json(results / "provenance.json")
    notes = [f"Imports of {what}: {import_seconds(code):.2f} s." for what, code in IMPORTS.items()]
    if results.resolve() == (REPO / "results" / results.name).resolve():
        notes.append(f"A rerun with nothing to do: {rerun('--profile', results.name):.1f} s.")
    commits = {facts["git"]["commit"] for facts in settings["tasks"].values()} - {None}
    notes.append(f"The run's commit: {', '.join(sorted(commit[:12] for commit in commits))}.")
    title = f"Where the seconds of a run of profile {settings['profile']} go"
    measure.write_tables(HERE / "tables" / "whole_run", title, notes, rows_of(results, before))


def quick() -> None:
    """Make a step of the smoke profile twice: the parts add up, the second time nothing is done."""
    with tempfile.TemporaryDirectory() as name:
        results, one_step = Path(name), ("--profile", "smoke", "--only", "01")
        run_pipeline(*one_step, results=results)
        rows = rows_of(results / "smoke")
        for row in rows[:-1]:
            if not 0 <= row["start-up s"] <= row["s"] or not 0 < row["longest cell s"] <= row["s"]:
                sys.exit(f"the parts do not add up: {row}")
        if rows[-1]["s"] != sum(row["s"] for row in rows[:-1]):
            sys.exit("the total is not the sum")
        print(f"{len(rows) - 1} task, rerun in {rerun(*one_step, results=results):.1f} s: nothing done")


def record(step: str) -> None:
    """Sample one step of the default profile with py-spy."""
    if not shutil.which("py-spy"):
        sys.exit("--record needs py-spy: pip install py-spy")
    out = f"{step}.speedscope.json"
    command = ["py-spy", "record", "--subprocesses", "--format", "speedscope", "--output", out, "--"]
    subprocess.run([*command, sys.executable, "-m", "persona_lib.pipeline", "--only", step, "--force"])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=REPO / "results" / "everyday")
    parser.add_argument("earlier", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--record", metavar="STEP")
    arguments = parser.parse_args()
    if arguments.quick:
        quick()
    elif arguments.record:
        record(arguments.record)
    elif not (arguments.results / "provenance.json").exists():
        sys.exit(f"{arguments.results}: no finished run; run ./run_all.sh first")
    else:
        report(arguments.results, arguments.earlier)


if __name__ == "__main__":
    main()
