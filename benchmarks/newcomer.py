"""How long a newcomer waits: from ``git clone`` to the first figure, to the end, and when it is run again.

    python benchmarks/newcomer.py [--profile NAME] [--repository PLACE] [--folder PLACE]

Clones the repository into an empty folder (a temporary one, or ``--folder``, which stays) and runs README's
first command there with an empty home and no environment active, so that it sets everything up and fetches
the weights, then runs it again. Packages come from pip's own cache and configuration as the machine has them;
the table says how long set-up took apart. The default profile writes tables/newcomer.csv and .md. Leave the
machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import measure

HERE = Path(__file__).resolve().parent
KEPT = ("LANG", "LC_ALL", "TERM", "PIP_*", "*_proxy", "*_PROXY", "SSL_*", "REQUESTS_*", "PERSONA_TORCH_INDEX")
POLL = 0.2


def empty_environment(home: Path) -> dict[str, str]:
    """Return the environment of somebody who has just logged in: no packages of ours, nothing active."""
    active = os.environ.get("VIRTUAL_ENV", "")
    kept = {name: value for name, value in os.environ.items() if any(Path(name).match(p) for p in KEPT)}
    parts = [
        part for part in os.environ["PATH"].split(os.pathsep) if not active or not part.startswith(active)
    ]
    return kept | {"PATH": os.pathsep.join(parts), "HOME": str(home)}


def figure_time(folder: Path, started: float) -> float | None:
    """Return how long after the start a run drew its first figure; None if it has not yet."""
    drawn = [path.stat().st_mtime for path in folder.glob("*.png")]
    later = [moment - started for moment in drawn if moment > started]
    return min(later) if later else None


def watch(command: list[str], folder: Path, figures: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a command; return its seconds, when set-up was done and when the first figure was there."""
    found: dict[str, Any] = {"set up after": None, "first figure after": None}
    started, log = time.time(), folder.parent / "log.txt"
    with log.open("w", encoding="utf-8") as out:
        running = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
        while running.poll() is None:
            time.sleep(POLL)
            if found["set up after"] is None and "set up in" in log.read_text(encoding="utf-8"):
                found["set up after"] = time.time() - started
            found["first figure after"] = found["first figure after"] or figure_time(figures, started)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    return found | {"done after": time.time() - started}


def main() -> None:
    """Clone, run, run again, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="everyday")
    parser.add_argument("--repository", default=str(HERE.parent), help="what is cloned (default: this one)")
    parser.add_argument("--folder", help="a new folder for the clone and its results; else they are deleted")
    given = parser.parse_args()
    command = ["./run_all.sh", *(["--profile", given.profile] if given.profile != "everyday" else [])]
    with nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory() as place:
        folder, home = Path(place) / "repository", Path(place) / "home"
        home.mkdir(parents=True)
        started = time.time()
        subprocess.run(["git", "clone", "--quiet", given.repository, str(folder)], check=True)
        cloned = time.time() - started
        figures, environment = folder / "figures" / given.profile, empty_environment(home)
        first = watch(command, folder, figures, environment)
        again = watch(command, folder, figures, environment)
    rows = [{"from git clone": name, "s": cloned + seconds} for name, seconds in first.items() if seconds]
    rows.append({"from git clone": "run again, with nothing to do", "s": again["done after"]})
    notes = [f"`{' '.join(command)}` in a new clone with an empty home; one run."]
    path = HERE / "tables" / "newcomer" if given.profile == "everyday" else Path(f"newcomer_{given.profile}")
    measure.write_tables(path, "What a newcomer waits for", notes, rows)


if __name__ == "__main__":
    main()
