"""Real pages in a real browser: ``python tests/browser.py [--out DIR] [NOTEBOOK ...]``.

Starts JupyterLab on this machine, opens every notebook in Chromium, runs all its cells with the smallest
profile and looks at what was saved; a screenshot of each goes to DIR. Requests to other machines are refused
and counted. Needs ``pip install -c constraints.txt -e ".[lab,browser]"`` and Chromium; nothing is downloaded,
and notebooks and results of the repository stay as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from persona_lib import execute
from persona_lib.settings import REPO

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
LOCAL = ("127.0.0.1", "localhost", "")  # file: and data: addresses have no host
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
SETTINGS = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
SECONDS = 900  # for one notebook
STEP_MS = 60_000


def missing() -> str:
    """Say what a browser test lacks here; "" if nothing."""
    try:
        import playwright  # noqa: F401
    except ModuleNotFoundError:
        return "playwright is not installed: the [browser] extra has it"
    return "" if chromium() else f"no browser: none of {', '.join(CHROMIUMS)} is installed"


def chromium() -> str | None:
    """Return where a Chromium is."""
    return next(filter(None, map(shutil.which, CHROMIUMS)), None)


@dataclass
class Seen:
    """What a page did besides showing itself."""

    errors: list[str] = field(default_factory=list)  # of its console, and exceptions
    elsewhere: list[str] = field(default_factory=list)  # hosts it asked for


@contextlib.contextmanager
def browser_page(width: int = 1400, height: int = 1000) -> Iterator[tuple[Any, Seen]]:
    """Open a page in a fresh browser; whatever it wants from another machine is refused and noted."""
    from playwright.sync_api import sync_playwright

    seen = Seen()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(STEP_MS)
        page.on("console", lambda m: seen.errors.append(f"{m.text} {m.location.get('url', '')}")
                if m.type == "error" else None)  # fmt: skip
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.route("**/*", lambda route: answer(route, seen))
        try:
            yield page, seen
        finally:
            browser.close()


def answer(route: Any, seen: Seen) -> None:
    """Let a request through if it stays on this machine."""
    host = urlsplit(route.request.url).hostname or ""
    if host in LOCAL:
        route.continue_()
    else:
        seen.elsewhere.append(host)
        route.abort()


# --- JupyterLab ---


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def lab_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which JupyterLab and its kernels touch nothing of the user's."""
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "PERSONA_RESULTS": "results",
              "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "JUPYTERLAB_SETTINGS_DIR": "settings",
              "PERSONA_FIGURES": "figures", "IPYTHONDIR": "ipython"}  # fmt: skip
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
    own = {name: str(folder / part) for name, part in places.items()}
    return (
        os.environ | own | {"PYTHONPATH": str(REPO), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    )


@contextlib.contextmanager
def lab(folder: Path, root: Path) -> Iterator[str]:
    """Run JupyterLab on a folder of notebooks; yields an address to which a path can be added."""
    port, token = free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1",
               f"--ServerApp.port={port}", f"--IdentityProvider.token={token}", "--allow-root",
               f"--ServerApp.root_dir={root}", "--LabApp.news_url="]  # fmt: skip
    with (folder / "lab.log").open("w") as log:
        process = subprocess.Popen(command, env=lab_environment(folder), stdout=log, stderr=log,
                                   cwd=folder, start_new_session=True)  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/api?token={token}", process, folder / "lab.log")
            yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}&reset"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def wait_for(address: str, process: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    """Wait until a server answers; RuntimeError with the end of its log if it does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not come up:\n{log.read_text()[-2000:]}")


def run_all_cells(page: Any, address: str, path: Path, screenshot: Path) -> str | None:
    """Open a notebook, run all cells, save; returns what is wrong with the saved document, or None."""
    page.goto(address.format(path.name))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.get_by_text("| Idle").wait_for()  # a circle says so before there is a kernel; this text does not
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    problem = wait_until_ran(page, path)
    page.locator(".jp-Notebook").first.click(position={"x": 5, "y": 5})
    page.screenshot(path=screenshot)
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Shut Down Kernel", exact=True).click()
    return problem


def wait_until_ran(page: Any, path: Path) -> str | None:
    """Save now and then until every cell ran, one failed, or the time is over."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        page.wait_for_timeout(2000)
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        document = execute.read(path)
        problem = execute.unfinished(document)
        if problem is None or "failed" in problem:
            return problem
    return f"not finished after {SECONDS} s: {problem}"


# --- the script ---


def smoke_copies(folder: Path, names: list[str]) -> list[Path]:
    """Copy notebooks, without outputs and with the smallest profile in their parameters cell."""
    folder.mkdir(parents=True)
    copies = []
    for source in sorted((REPO / "notebooks").glob("*.ipynb")):
        if names and not source.stem.startswith(tuple(names)):
            continue
        document = execute.read(source)
        for cell in execute.cells_of_code(document):
            cell.update(outputs=[], execution_count=None)
            if "parameters" in execute.tags(cell):
                lines = execute.text_of(cell["source"]).splitlines(keepends=True)
                cell["source"] = [
                    'profile: str = "smoke"\n'
                    if line.startswith("profile:") and "own_smoke" not in line
                    else line
                    for line in lines
                ]
        copies.append(folder / source.name)
        copies[-1].write_text(execute.to_text(document), encoding="utf-8")
    return copies


def run_notebooks(out: Path, names: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Run notebooks in JupyterLab, in their order; returns per notebook what was wrong and seen.

    What they make is left in ``folder/results`` and ``folder/figures``.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    copies = smoke_copies(folder / "notebooks", names)
    with lab(folder, folder / "notebooks") as address:
        for path in copies:
            started = time.monotonic()
            with browser_page() as (page, seen):
                problem = run_all_cells(page, address, path, out / f"{path.stem}.png")
            found[path.stem] = {"problem": problem, "errors": seen.errors, "elsewhere": seen.elsewhere}
            print(path.stem, found[path.stem], f"{time.monotonic() - started:.0f} s", flush=True)
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 if every notebook ran and no page erred or asked another machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="e.g. 01 02 (default: all)")
    parser.add_argument("--out", type=Path, default=Path("results/browser"), help="folder of screenshots")
    arguments = parser.parse_args(argv)
    if missing():
        print(f"error: {missing()}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="persona-lab-") as folder:
        found = run_notebooks(arguments.out, arguments.notebooks, Path(folder))
    bad = [name for name, facts in found.items() if any(facts.values())]
    print(
        f"{len(found) - len(bad)} of {len(found)} notebooks without a fault; screenshots in {arguments.out}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
