"""Run one notebook through papermill, and believe the result only if every cell ran in order.

Papermill alone is not enough: an unknown parameter is only a warning, ``sys.exit(0)`` in a cell
passes, and the document of a killed kernel says "completed". So parameters are checked first, the
run goes into ``<name>.running.ipynb``, and only a checked document takes its final name.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

from persona_lib.store import content_hash
from persona_lib.workers import COLLECT_AFTER

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class StepError(RuntimeError):
    """A notebook that failed; the message holds the traceback and where the half-run copy is."""


def code_cells(path: Path) -> list[str]:
    """Return the sources of a notebook's code cells, without what papermill injected."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        "".join(cell["source"]).rstrip()
        for cell in cells
        if cell["cell_type"] == "code" and "injected-parameters" not in cell["metadata"].get("tags", [])
    ]


def notebook_hash(path: Path) -> str:
    """Return the hash of a notebook's code cells; prose, outputs and metadata do not count."""
    return content_hash(*(source for source in code_cells(path) if source.strip()))


def python_code(source: str) -> str:
    """Return a code cell with IPython's magic lines (% and !) blanked, so that ``ast`` can read it."""
    lines = source.splitlines()
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)


def parameter_names(notebook: Path) -> list[str]:
    """Return the names assigned in the notebook's one cell tagged ``parameters``."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise StepError(f"{notebook}: {len(tagged)} cells are tagged 'parameters'; exactly one must be")
    names = []
    for node in ast.parse(python_code("".join(tagged[0]["source"]))).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Raise StepError if the notebook lacks one of the parameters; papermill would only warn."""
    unknown = set(parameters) - set(parameter_names(notebook))
    if unknown:
        raise StepError(f"{notebook}: its parameters cell has no {', '.join(sorted(unknown))}")


def unfinished(document: dict[str, Any]) -> str | None:
    """Say what shows that a notebook did not run whole and in order, or return None."""
    cells = [c for c in document["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    for number, cell in enumerate(cells, start=1):
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            return f"code cell {number} failed"
        if cell["execution_count"] != number:
            return f"code cell {number} did not run in order (execution count {cell['execution_count']})"
    return None


def peak_memory_mb(pids: list[int]) -> float:
    """Return the sum of the processes' peak resident memory in MB; 0 where the system does not tell."""
    total = 0.0
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        except OSError:
            continue
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        total += int(found[1]) / 1000 if found else 0
    return total


def clock(seconds: float) -> str:
    """Return a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class LiveLine:
    """A line that shows a step's elapsed and expected time while it runs, and watches its memory.

    On a terminal it is redrawn four times a second; elsewhere one line is printed at the start, one every
    minute and one at the end.
    """

    def __init__(self, label: str, expected: float | None) -> None:
        self.label, self.expected = label, expected
        self.started = time.monotonic()
        self.peak_mb = 0.0
        self.tty = sys.stdout.isatty()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started

    def text(self) -> str:
        """The line itself."""
        expected = f" of about {clock(self.expected)}" if self.expected else ""
        return f"{self.label}  {clock(self.seconds)}{expected}"

    def __enter__(self) -> LiveLine:
        print(self.text(), end="" if self.tty else "\n", flush=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        """Redraw and look at the children's memory until stopped."""
        import psutil

        process, printed = psutil.Process(), 0
        while not self.stop.wait(0.25):  # short steps, too, are seen a few times
            self.peak_mb = max(
                self.peak_mb, peak_memory_mb([c.pid for c in process.children(recursive=True)])
            )
            if self.tty:
                print(f"\r{self.text()}", end="", flush=True)
            elif int(self.seconds) // 60 > printed:
                printed = int(self.seconds) // 60
                print(self.text(), flush=True)

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self.stop.set()
        self.thread.join()
        word = "done" if kind is None else "stopped" if kind is KeyboardInterrupt else "FAILED"
        line = f"{self.label}  {word} in {clock(self.seconds)}"
        print(f"\r{line}\x1b[K" if self.tty else line, flush=True)


# ipykernel warns of an unencrypted local connection, and calls it an error that a kernel which has nothing
# more to do is interrupted before it is shut down. What fails in a cell is not logged but raised.
# A kernel whose cells have all run has nothing left to do; asked to end by itself it takes seconds.
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


def call_papermill(source: Path, target: Path, parameters: dict[str, Any], log: Path) -> None:
    """Execute a notebook; its prints go to the log. Raises what papermill raises."""
    # jsonschema, imported by nbformat, builds a grammar of addresses where this is there: for nothing
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from traitlets.config import Config

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


def running_copy(target: Path) -> Path:
    """Where a notebook stands while it runs, and stays if it fails."""
    return target.with_suffix(".running.ipynb")


def run_notebook(source: Path, target: Path, parameters: dict[str, Any], log: Path) -> Path:
    """Execute a notebook into ``<target>.running.ipynb`` and return that path once it is known to be whole.

    Raises StepError with the traceback and the path of the half-run copy.
    """
    check_parameters(source, parameters)
    running = running_copy(target)
    running.parent.mkdir(parents=True, exist_ok=True)
    where = f"half-run notebook: {running}\nlog: {log}"
    try:
        call_papermill(source, running, parameters, log)
    except Exception as error:
        raise StepError(f"{failure_text(error)}\n\n{where}") from error
    problem = unfinished(json.loads(running.read_text(encoding="utf-8")))
    if problem:
        raise StepError(f"{source.name}: {problem}\n\n{where}")
    return running


def finish_notebook(running: Path, target: Path, facts: dict[str, Any]) -> None:
    """Write the provenance into the executed notebook and give it its final name, atomically."""
    document = json.loads(running.read_text(encoding="utf-8"))
    document["metadata"]["persona"] = facts
    document["metadata"].pop("widgets", None)
    running.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    running.replace(target)
