"""Run the benchmarks and write the tables and the figure of benchmarks/README.md from what they left.

    python -m benchmarks [--quick] [--table] [NAME ...]

Each runs in a process of its own. ``--quick`` is small, checks equality and writes nothing; ``--table`` runs
nothing and writes them again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from persona_lib import store
from persona_lib.show import QUIET, to_markdown

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from harness import RESULTS  # noqa: E402

DOCUMENT = HERE / "README.md"
BLOCK = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
BENCHMARKS = ("scoring", "epochs", "growth", "generation")  # modules of this folder
COLUMNS = ["what", "against", "times as fast: median (min to max)", "seconds, against / ours", "pairs"]
COLUMNS += ["equal", "machine", "commit, date"]


def run_benchmark(module: str, quick: bool) -> None:
    """Run one benchmark in a process of its own; a difference between the results ends everything."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH")]))
    git = json.dumps(store.environment()["git"])  # before the results of the first one change the checkout
    command = [sys.executable, "-c", f"import {module}; {module}.main({quick})"]
    subprocess.run(command, check=True, env=os.environ | QUIET | {"PYTHONPATH": path, "BENCHMARK_GIT": git})


def table_row(line: dict[str, Any]) -> list[str]:
    """Return a line's cells."""
    ratio, hardware, git = line["ratio"], line["hardware"], line["git"]
    commit = (git["commit"] or "not recorded")[:10] + (" + changes" if git["dirty"] else "")
    return [
        line["what"],
        line["against"],
        f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})",
        f"{line['baseline_seconds']['median']:.3g} / {line['ours_seconds']['median']:.3g}",
        str(line["pairs"]),
        "; ".join(filter(None, [line["equal"], line["note"]])),
        ", ".join(hardware["gpus"])
        or f"{hardware['cpu']}, {hardware['cores']} cores, {line['instructions']}",
        f"{commit}, {line['date'][:10]}",
    ]


def table_text(name: str, folder: Path) -> str:
    """Return a table: a CSV file of a folder, or ``benchmarks`` with the lines of all comparisons in it."""
    lines = [store.read_json(path) for path in sorted(folder.glob("*.json"))]
    table = pd.DataFrame(map(table_row, lines), columns=COLUMNS)
    if name != "benchmarks":
        path = folder / f"{name}.csv"
        table = pd.read_csv(path, dtype=str) if path.exists() else table.iloc[:0]
    return to_markdown(table) + "\n" if len(table) else "*Not run yet.*\n"


def draw_growth(table: pd.DataFrame, path: Path) -> None:
    """Draw seconds and memory by rows, both relative to the smallest size of each piece of work."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained", dpi=150)
    axes = figure.subplots(1, 2)
    for axis, name in zip(axes, ("seconds", "gb"), strict=True):
        for line, marker in zip(table.to_dict("records"), "osD^v", strict=True):
            rows, found = ([float(value) for value in line[key].split(" / ")] for key in ("rows", name))
            sizes = [size / rows[0] for size in rows]
            axis.plot(sizes, [value / found[0] for value in found], marker=marker, label=line["what"])
        axis.plot([1, 4], [1, 4], color="0.6", linestyle=":", label="as the rows")
        axis.set(xlabel="rows, relative", ylabel=f"{name.replace('gb', 'peak memory')}, relative")
        axis.set(xscale="log", yscale="log", xticks=[1, 2, 4], yticks=[1, 2, 4], ylim=(0.9, 6))
        for both in (axis.xaxis, axis.yaxis):
            both.set_major_formatter("{x:.0f}")
            both.set_minor_formatter("")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Read the command line, run, write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="small, equality only, writes nothing")
    parser.add_argument("--table", action="store_true", help="write the table from results/ and run nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: use some of {', '.join(BENCHMARKS)}")
    for name in [] if arguments.table else arguments.names or BENCHMARKS:
        run_benchmark(name, arguments.quick)
    if not arguments.quick:
        text = DOCUMENT.read_text(encoding="utf-8")
        made = BLOCK.sub(lambda match: f"{match[1]}{table_text(match[2], RESULTS)}{match[3]}", text)
        store.write_text(DOCUMENT, made)
        if (RESULTS / "growth.csv").exists():
            draw_growth(pd.read_csv(RESULTS / "growth.csv", dtype=str), HERE / "growth.png")


if __name__ == "__main__":
    main()
