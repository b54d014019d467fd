"""Run a notebook, check the environment, and bring executed notebooks into their normal form.

``python -m persona_lib.execute EXTRA``: does the active environment satisfy the pins? Exit status 0 if every
direct requirement of the extra is installed in the version that ``constraints.txt`` names, else 1 and the
reason. It runs before anything but PyYAML is installed. ``--pin torch`` prints one pinned version.

Papermill alone does not show that a notebook ran: an unknown parameter is only a warning, ``sys.exit(0)``
passes, and the document of a killed kernel says "completed". So parameters are checked first, the run goes
into ``<name>.running.ipynb``, and only a checked document takes its final name.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import json
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from persona_lib.settings import REPO
from persona_lib.store import content_hash
from persona_lib.workers import COLLECT_AFTER

# --- The environment ---

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
            (waiting if inner else names).append(inner[1] if inner else line)
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


# --- One notebook through papermill ---

ANSI = re.compile(r"\x1b\[[0-9;]*m")
# What fails in a cell is raised, not logged. A kernel that is asked to end by itself takes seconds.
CONFIG = {
    "KernelManager": {"transport_encryption": "auto"},
    "NotebookClient": {
        "extra_arguments": [
            "--log-level=CRITICAL",
            f"--IPKernelApp.exec_lines=import gc; gc.set_threshold{COLLECT_AFTER}",
        ],
        "shutdown_kernel": "immediate",
    },
}


class StepError(RuntimeError):
    """A notebook that failed; the message holds the traceback and where the half-run copy is."""


def code_cells(path: Path) -> list[str]:
    """Return the sources of a notebook's code cells, without what papermill injected."""
    return [text_of(cell["source"]).rstrip() for cell in cells_of_code(read(path))]


def notebook_hash(path: Path) -> str:
    """Return the hash of a notebook's code cells; prose, outputs and metadata do not count."""
    return content_hash(*(source for source in code_cells(path) if source.strip()))


def unfinished(document: dict[str, Any]) -> str | None:
    """Say what shows that a notebook did not run whole and in order, or return None."""
    cells = [c for c in document["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    for number, cell in enumerate(cells, start=1):
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            return f"code cell {number} failed"
        if cell["execution_count"] != number:
            return f"code cell {number} did not run in order (execution count {cell['execution_count']})"
    return None


def clock(seconds: float) -> str:
    """Return a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def timed_line(label: str, expected: float | None) -> Iterator[Callable[[], float]]:
    """Print when a step begins, with its expected time, and how it ended; yields its seconds so far."""
    started = time.monotonic()
    print(f"{label}  begins{f', about {clock(expected)}' if expected else ''}", flush=True)
    word = "FAILED"
    try:
        yield lambda: time.monotonic() - started
        word = "done"
    except KeyboardInterrupt:
        word = "stopped"
        raise
    finally:
        print(f"{label}  {word} in {clock(time.monotonic() - started)}", flush=True)


def call_papermill(source: Path, target: Path, parameters: dict[str, Any], log: Path) -> None:
    """Execute a notebook; its prints go to the log. Raises what papermill raises.

    A parameter that the notebook lacks is a StepError; papermill would only warn.
    """
    # jsonschema, imported by nbformat, builds a grammar of addresses where this is there: for nothing
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from traitlets.config import Config

    if unknown := set(parameters) - set(papermill.inspect_notebook(str(source))):
        raise StepError(f"{source}: its parameters cell has no {', '.join(sorted(unknown))}")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters,
            kernel_name="python3",  # whatever kernel an editor wrote into the notebook
            progress_bar=False,
            stdout_file=file,
            stderr_file=file,
            autosave_cell_every=5,
            coalesce_streams=True,  # one output for a progress bar, not one for each redraw
            config=Config(CONFIG),
        )


def failure_text(error: BaseException) -> str:
    """Return the failing cell's traceback without terminal colours, or the error itself."""
    lines = getattr(error, "traceback", None)
    cell = getattr(error, "exec_count", None)
    text = "\n".join(lines) if isinstance(lines, list) else f"{type(error).__name__}: {error}"
    return (f"In code cell {cell}:\n" if cell else "") + ANSI.sub("", text)


def run_notebook(source: Path, target: Path, parameters: dict[str, Any], log: Path) -> Path:
    """Execute a notebook into ``<target>.running.ipynb`` and return that path once it is known to be whole.

    Raises StepError with the traceback and the path of the half-run copy.
    """
    running = target.with_suffix(".running.ipynb")
    running.parent.mkdir(parents=True, exist_ok=True)
    try:
        call_papermill(source, running, parameters, log)
        problem = unfinished(read(running))
    except Exception as error:
        problem = failure_text(error)
    if problem:
        raise StepError(f"{source.name}: {problem}\n\nhalf-run notebook: {running}\nlog: {log}")
    return running


def finish_notebook(running: Path, target: Path, facts: dict[str, Any]) -> None:
    """Write the provenance into the executed notebook and give it its final name, atomically."""
    document = read(running)
    document["metadata"]["persona"] = facts
    document["metadata"].pop("widgets", None)
    running.write_text(to_text(document), encoding="utf-8")
    running.replace(target)


# --- The normal form in which executed notebooks are committed ---

WORK = "work"  # tag of cells whose printed lines tell only how far they are
KEPT = ("image/png", "image/svg+xml", "text/html", "text/latex", "text/markdown", "text/plain")
RUN_METADATA = ("papermill", "persona", "widgets", "execution")
MAX_BYTES = 1_000_000  # code hosts show larger notebooks slowly or not at all
CHANGING = (  # what differs from run to run -> what stands for it
    (re.compile(r"\x1b\[[0-9;]*[A-Za-z]"), ""),  # colours
    (re.compile(r"[^\n]*\r(?!\n)"), ""),  # a line that a progress bar drew over
    (re.compile(r"\b0x[0-9a-f]{6,}\b"), "0x..."),  # addresses
    (re.compile(rf"{re.escape(str(REPO))}/?"), ""),
    (re.compile(rf"{re.escape(tempfile.gettempdir())}/[\w./-]+"), "..."),
)
Document = dict[str, Any]


class NormalError(ValueError):
    """A notebook that cannot be brought into the normal form; the message says which and what to do."""


def tags(cell: Document) -> list[str]:
    """Return the tags of a cell."""
    return cell["metadata"].get("tags", [])


def cells_of_code(document: Document) -> list[Document]:
    """Return the code cells, without what papermill injected."""
    cells = (cell for cell in document["cells"] if cell["cell_type"] == "code")
    return [cell for cell in cells if "injected-parameters" not in tags(cell)]


def text_of(value: Any) -> str:
    """Return a text of a notebook, which may be a list of lines."""
    return value if isinstance(value, str) else "".join(value)


def clean(text: Any) -> list[str]:
    """Return the lines of a text without colours, overwritten lines, addresses and paths of one machine."""
    text = text_of(text)
    for pattern, other in CHANGING:
        text = pattern.sub(other, text)
    return text.splitlines(keepends=True)


def normal_outputs(cell: Document, number: int) -> list[Document]:
    """Return the outputs of a cell that depend on results alone.

    Left out are stderr, widgets, and what cells tagged ``work`` print while they compute. Images stay as
    they are: figures are saved without dates (``figures.save``).
    """
    printed: list[Document] = []
    for output in cell["outputs"]:
        kind, data = output["output_type"], output.get("data", {})
        if kind == "error":
            raise NormalError(f"code cell {number} failed: correct it and run the notebook again")
        if kind != "stream" and not any("widget" in name for name in data):
            kept = {n: data[n] if n == "image/png" else clean(data[n]) for n in KEPT if n in data}
            counted = {"execution_count": number} if kind == "execute_result" else {}
            printed.append({"data": kept, **counted, "metadata": output["metadata"], "output_type": kind})
        elif kind == "stream" and output["name"] == "stdout" and WORK not in tags(cell):
            before = printed.pop()["text"] if printed and "text" in printed[-1] else ""
            text = before + text_of(output["text"])
            printed.append({"name": "stdout", "output_type": "stream", "text": text})
    outputs = [one | {"text": clean(one["text"])} if "text" in one else one for one in printed]
    return [one for one in outputs if one.get("text") or one.get("data")]


def normal_document(source: Document, executed: Document, shown: Document) -> Document:
    """Return the source with those of the executed copy's outputs that depend on results alone.

    So two runs give the same bytes. ``shown`` names the profile and the hash of the code: outputs of other
    code are found without running anything. NormalError if the copy ran other code, or a cell of it failed.
    """
    document = copy.deepcopy(source)
    own, ran = cells_of_code(document), cells_of_code(executed)
    texts = [[text_of(cell["source"]).rstrip() for cell in cells] for cells in (own, ran)]
    if texts[0] != texts[1]:
        raise NormalError("the executed copy ran other code: run the step again")
    number = 0
    for cell, copied, text in zip(own, ran, texts[0], strict=True):
        number += bool(text)
        cell["outputs"], cell["execution_count"] = normal_outputs(copied, number), number if text else None
    for metadata in (document["metadata"], *(cell["metadata"] for cell in document["cells"])):
        for name in RUN_METADATA:
            metadata.pop(name, None)
    document["metadata"]["shown"] = shown
    return document


def to_text(document: Document) -> str:
    """Return a notebook's file."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def read(path: Path) -> Document:
    """Read a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))


def problems(path: Path) -> list[str]:
    """Say what of a committed notebook is not in normal form; a notebook without outputs has no problem."""
    document = read(path)
    shown = document["metadata"].get("shown")
    if not any(cell["outputs"] or cell["execution_count"] for cell in cells_of_code(document)):
        return ["metadata.shown is there, but no outputs"] if shown else []
    if not shown:
        return ["its outputs are of an unrecorded run: write it back, or clear them"]
    found = []
    if shown.get("code") != notebook_hash(path):
        found.append("its code changed after its outputs were made: run it again and write it back")
    if len(path.read_bytes()) > MAX_BYTES:
        found.append(f"it is larger than {MAX_BYTES / 1e6:.0f} MB: show less or smaller figures")
    if normal_document(document, document, shown) != document:
        found.append("its outputs are not in normal form: write it back")
    return found


if __name__ == "__main__":
    if sys.argv[1] == "--pin":
        print(*pins()[sys.argv[2]])
        sys.exit()
    lacking = unmet(sys.argv[1])
    print("\n".join(lacking), end="\n" if lacking else "")
    sys.exit(bool(lacking))
