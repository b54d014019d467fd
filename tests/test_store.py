"""Files that processes are killed over, and the commit that a run was made with."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import make_dataclass

import nbformat
import pandas as pd
import pytest
from test_demo import CHROMIUM, FLAGS

from persona_lib import store

Row = make_dataclass("Row", ["id", "winner"])


@pytest.mark.parametrize("line", ['{"ids": 1}', "not json", "[1]"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"id": "a", "winner": "A"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2: not"):
        store.read_rows(path, Row)


def test_a_commit_is_dirty_by_tracked_files_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "REPO", tmp_path)
    assert store.git_state() == {"commit": None, "dirty": None}
    (code := tmp_path / "code.py").write_text("as committed")
    for words in ("init -q", "add .", "-c user.name=a -c user.email=a@b.c commit -qm all"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    (tmp_path / "main.png").write_text("written by a run", encoding="utf-8")
    assert len(store.git_state()["commit"]) == 40 and store.git_state()["dirty"] is False
    code.write_text("changed", encoding="utf-8")
    assert store.git_state()["dirty"] is True


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that spreadsheets run
ODD = ["=1+1", "+1", "-First", "@now()", "\t=2", "\r=3", "a\r=4", "a\r\n=5", '=HYPERLINK("x")', '"=7"']
ODD += ["\0=8", "\x1b\0+8", "a;=9", "a\t=10", "a\n-11", "a\n- Second ;-)"]  # LibreOffice drops the NUL


def test_no_cell_for_people_is_a_formula_also_for_readers_that_begin_a_cell_within_a_text():
    text = store.people_csv(pd.DataFrame({"text": ODD}))
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == 1 + len(ODD) and "\r" not in text and "\0" not in text
    assert not [row for row in rows if row[0].startswith(FORMULA)]
    assert not re.search(r"[;\t\n][=+@\t]|[;\n]-1", text) and rows[-1] == ["a\n- Second ;-)"]


WORKER = """
import sys, time
from pathlib import Path
from persona_lib import store
from persona_lib.settings import open_run

@store.one_at_a_time
def train_arms(run, method):
    done = Path(sys.argv[1]) / "done"
    if done.exists():
        return "found"
    for step in (1, 2):
        print(f"step {step}/2", flush=True)
        while not (Path(sys.argv[1]) / "go").exists():
            time.sleep(0.05)
    done.touch()
    return "trained"

print("result:", train_arms(open_run("smoke"), "sft"), flush=True)
"""


def test_a_second_process_waits_shows_the_firsts_progress_and_repeats_nothing(tmp_path):
    """A kernel trains on after its tab was closed; the notebook is opened with another kernel."""

    def start(notebook: str) -> subprocess.Popen[str]:
        known = {"PERSONA_RESULTS": str(tmp_path), "JPY_SESSION_NAME": f"notebooks/{notebook}"}
        command = [sys.executable, "-c", WORKER, str(tmp_path)]
        return subprocess.Popen(command, env=os.environ | known, text=True, stdout=subprocess.PIPE)

    first = start("06.ipynb")
    assert first.stdout.readline() == "step 1/2\n"
    second = start("again.ipynb")
    whose, progress = second.stdout.readline(), second.stdout.readline()
    assert whose.startswith(f"train_arms.sft: process {first.pid} (06.ipynb), begun ")
    assert progress == "step 1/2\n" and first.poll() is None  # shown while the first is at work
    (tmp_path / "go").touch()
    assert first.communicate(timeout=60)[0] == "step 2/2\nresult: trained\n"
    assert second.communicate(timeout=60)[0] == "step 2/2\nresult: found\n"
    later = start("again.ipynb").communicate(timeout=60)[0]
    assert later == f"{whose}step 1/2\nstep 2/2\nresult: found\n"


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_notebook_00_shows_in_jupyterlab_how_a_cell_goes_on_whose_tab_was_closed(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="the [browser] extra is not installed")
    slow = nbformat.read(shutil.copy(store.REPO / "notebooks" / "00_contents.ipynb", tmp_path), 4)
    slow.cells = [nbformat.v4.new_code_cell(WORKER.replace("sys.argv[1]", '"."'))]
    nbformat.write(slow, tmp_path / "slow.ipynb")
    lab = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--IdentityProvider.token=t"]
    known = {"HOME": str(tmp_path), "PERSONA_RESULTS": str(tmp_path / "results")}
    given = {"cwd": tmp_path, "env": os.environ | known, "text": True, "stderr": subprocess.PIPE}
    with playwright.sync_playwright() as started, subprocess.Popen(lab, **given) as server:
        try:
            address = next(m[0] for line in server.stderr if (m := re.search(r"http://127[^/]*", line)))
            browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            playwright.expect.set_options(timeout=120_000)

            def run(notebook):
                page = browser.new_context().new_page()
                page.goto(f"{address}/lab/tree/{notebook}.ipynb?token=t", wait_until="commit")
                playwright.expect(page.locator("#jp-main-statusbar")).to_contain_text("Idle")
                page.get_by_role("menuitem", name="Run", exact=True).click()
                page.get_by_text("Run All Cells", exact=True).click()
                return page, playwright.expect(page.locator(".jp-Notebook:visible"))

            page, shown = run("slow")
            shown.to_contain_text("step 1/2")
            page.context.close()
            page, shown = run("00_contents")
            shown.to_contain_text("step 1/2")
            (tmp_path / "go").touch()
            shown.to_contain_text("step 2/2")
        finally:
            server.terminate()
