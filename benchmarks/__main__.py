"""Run the benchmarks and write the table of benchmarks/README.md from what they left.

    python -m benchmarks [--quick] [--table] [NAME ...]

Each runs in a process of its own. ``--quick`` is small, checks equality and writes nothing; ``--table`` runs
nothing and writes the table again.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from persona_lib import store

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE / "README.md"
BLOCK = re.compile(r"(<!-- table:benchmarks -->\n).*?(<!-- end -->)", re.DOTALL)
BENCHMARKS = ("generation", "dpo_epoch", "sft_epoch", "grid")  # modules of this folder


def run_benchmark(module: str, quick: bool) -> None:
    """Run one benchmark in a process of its own; a difference between the results ends everything."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(HERE / f"{module}.py"), *(["--quick"] if quick else [])]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path})


def table_row(line: dict[str, Any]) -> list[str]:
    """Return a line's cells."""
    ratio, hardware, git = line["ratio"], line["hardware"], line["git"]
    commit = (git["commit"] or "not recorded")[:10] + (" + changes" if git["dirty"] else "")
    where = ", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {hardware['cores']} cores"
    return [
        line["what"],
        line["against"],
        f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})",
        f"{line['baseline_seconds']['median']:.3g} / {line['ours_seconds']['median']:.3g}",
        str(line["pairs"]),
        "; ".join(filter(None, [line["equal"], line["note"]])),
        where,
        f"{commit}, {line['date'][:10]}",
        f"`{line['command']}`",
    ]


def table_text(folder: Path) -> str:
    """Return the table of all lines in a folder."""
    lines = [store.read_json(path) for path in sorted(folder.glob("*.json"))]
    if not lines:
        return "*Not run yet.*\n"
    columns = ["what", "against", "times as fast: median (min to max)", "seconds, against / ours", "pairs"]
    columns += ["equal", "machine", "commit, date", "command"]
    rows = [columns, ["---"] * len(columns), *map(table_row, lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_table() -> None:
    """Write the table's block of README.md again."""
    text = DOCUMENT.read_text(encoding="utf-8")
    made = table_text(HERE / "results")
    store.write_text(DOCUMENT, BLOCK.sub(lambda match: f"{match[1]}{made}{match[2]}", text))


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
        write_table()


if __name__ == "__main__":
    main()
