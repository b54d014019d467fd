"""``python -m persona_lib.runner.environment EXTRA``: does the active environment satisfy the pins?

Exit status 0 if every direct requirement of the extra is installed in the version that
``constraints.txt`` names, else 1 and the reason. Standard library only: it runs before anything is
installed. Also prints one pinned version: ``python -m persona_lib.runner.environment --pin torch``.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from persona_lib.config import REPO

NAME = re.compile(r"^[A-Za-z0-9._-]+")
SELF = re.compile(r"^persona-lib\[([a-z]+)\]$")


def plain(name: str) -> str:
    """Return a package name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(extra: str, repo: Path = REPO) -> list[str]:
    """Return the names of the direct requirements of an extra, with those of the extras that it includes."""
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names, waiting = list(project["dependencies"]), [extra]
    while waiting:
        for line in project["optional-dependencies"][waiting.pop()]:
            inner = SELF.match(line)
            waiting += [inner[1]] if inner else []
            names += [] if inner else [line]
    return sorted({plain(NAME.match(line)[0]) for line in names})


def pins(repo: Path = REPO, name: str = "constraints.txt") -> dict[str, set[str]]:
    """Return the versions that a constraints file allows for each package (several for some)."""
    found: dict[str, set[str]] = {}
    for line in (repo / name).read_text(encoding="utf-8").splitlines():
        if "==" in line and not line.startswith("#"):
            name, _, rest = line.partition("==")
            found.setdefault(plain(name), set()).add(rest.partition(";")[0].strip())
    return found


def unmet(extra: str, repo: Path = REPO) -> list[str]:
    """Return what the active environment lacks for an extra; empty if it can be used as it is."""
    allowed, missing = pins(repo), []
    for name in requirements(extra, repo):
        try:
            version = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{name} is not installed")
            continue
        if version not in allowed[name]:
            missing.append(f"{name} {version} is installed, {' or '.join(sorted(allowed[name]))} is pinned")
    return missing


if __name__ == "__main__":
    if sys.argv[1] == "--pin":
        print(*pins()[sys.argv[2]])
    else:
        problems = unmet(sys.argv[1])
        print("\n".join(problems), end="\n" if problems else "")
        sys.exit(1 if problems else 0)
