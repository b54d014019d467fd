"""Run a notebook, say which of its outputs are committed, and check the environment.

``python -m persona_lib.execute EXTRA`` ends with 0 if every direct requirement of the extra is installed in a
version that ``constraints.txt`` names, else with 1 and the reason; it needs PyYAML and packaging.

Papermill does not show that a notebook ran: an unknown parameter is only a warning, and the document of a
killed kernel says "completed". So only a checked ``<name>.running.ipynb`` takes its final name.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from persona_lib.settings import REPO
from persona_lib.store import content_hash, read_json


def requirements(extra: str, repo: Path = REPO) -> set[str]:
    """Return the names of the direct requirements of an extra, with those of the extras that it includes."""
    from packaging.requirements import Requirement

    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: set[str] = set()
    for wanted in map(Requirement, [*project["dependencies"], *project["optional-dependencies"][extra]]):
        included = [requirements(inner, repo) for inner in wanted.extras]
        found |= set().union(*included) if included else {wanted.name}
    return found


def unmet(extra: str, repo: Path = REPO) -> list[str]:
    """Return what the active environment lacks for an extra; empty if it can be used as it is."""
    from packaging.requirements import Requirement

    lines = (repo / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    wanted, missing = requirements(extra, repo), []
    for pin in pins:
        if pin.name not in wanted or (pin.marker and not pin.marker.evaluate()):
            continue
        try:
            version = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{pin}: not installed")
            continue
        if version not in pin.specifier:
            missing.append(f"{pin}: {version} is installed")
    return missing


Document = dict[str, Any]
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def clock(seconds: float) -> str:
    """Return a duration in words: "45 s", "4 min 49 s", "26 min", "18 h 20 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return " ".join([f"{minutes} min"] * (minutes > 0) + [f"{rest} s"] * (minutes < 10 and rest > 0)) or "0 s"


class StepError(RuntimeError):
    """A notebook that failed, or whose outputs cannot be shown; the message says why, and where it is."""


def tags(cell: Document) -> list[str]:
    """Return the tags of a cell."""
    return cell["metadata"].get("tags", [])


def cells_of_code(document: Document) -> list[Document]:
    """Return the code cells, without what papermill injected."""
    cells = (cell for cell in document["cells"] if cell["cell_type"] == "code")
    return [cell for cell in cells if "injected-parameters" not in tags(cell)]


def code_of(document: Document) -> list[str]:
    """Return the sources of a notebook's code cells; a source may be a list of lines."""
    return ["".join(cell["source"]).rstrip() for cell in cells_of_code(document)]


def notebook_hash(path: Path) -> str:
    """Return the hash of a notebook's code cells; prose, outputs and metadata do not count."""
    return content_hash(*filter(None, code_of(read_json(path))))


def unfinished(document: Document) -> str | None:
    """Say what shows that a notebook did not run whole and in order, or return None."""
    cells = [c for c in document["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    for number, cell in enumerate(cells, start=1):
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            return f"code cell {number} failed"
        if cell["execution_count"] != number:
            return f"code cell {number} did not run in order (execution count {cell['execution_count']})"
    return None


def run_notebook(source: Path, target: Path, parameters: dict[str, Any], log: Path) -> None:
    """Execute a notebook into ``target``, which appears once it is whole; its prints go to the log.

    Raises StepError with the traceback and the path of the half-run copy, or for a parameter that the
    notebook lacks.
    """
    # jsonschema, imported by nbformat, builds a grammar of addresses where this is there: for nothing
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import papermill
    from traitlets.config import Config

    if unknown := set(parameters) - set(papermill.inspect_notebook(str(source))):
        raise StepError(f"{source}: its parameters cell has no {', '.join(sorted(unknown))}")
    how = {  # a cell's failure is raised, not logged; a kernel that is asked to end by itself takes seconds
        "KernelManager": {"transport_encryption": "auto"},
        "NotebookClient": {"extra_arguments": ["--log-level=CRITICAL"], "shutdown_kernel": "immediate"},
    }
    running = target.with_suffix(".running.ipynb")
    for path in (running, log):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("w", encoding="utf-8") as file:
            papermill.execute_notebook(
                str(source),
                str(running),
                parameters,
                kernel_name="python3",  # whatever kernel an editor wrote into the notebook
                progress_bar=False,
                stdout_file=file,
                stderr_file=file,
                autosave_cell_every=5,
                coalesce_streams=True,  # one output for a progress bar, not one for each redraw
                config=Config(how),
            )
        problem = unfinished(read_json(running))
    except Exception as error:  # papermill's has the cell's number and traceback in its text
        problem = ANSI.sub("", f"{type(error).__name__}: {error}")
    if problem:
        raise StepError(f"{source.name}: {problem}\n\nhalf-run notebook: {running}\nlog: {log}")
    running.replace(target)


def shown_outputs(cell: Document, number: int) -> list[Document]:
    """Return a cell's outputs without stderr, widgets, the progress of a ``work`` cell, and local paths."""
    outputs = [
        output
        for output in cell["outputs"]
        if not (output["output_type"] == "stream" and (output["name"] == "stderr" or "work" in tags(cell)))
        and not any("widget" in kind for kind in output.get("data", {}))
    ]
    counted = [o | {"execution_count": number} if "execution_count" in o else o for o in outputs]
    return json.loads(re.sub(f"{re.escape(str(REPO))}/?", "", json.dumps(counted, ensure_ascii=False)))


if __name__ == "__main__":
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    if sys.argv[1:] not in [[extra] for extra in extras]:
        sys.exit(f"error: python -m persona_lib.execute EXTRA, one of {', '.join(extras)}")
    sys.exit("\n".join(unmet(sys.argv[1])) or 0)
