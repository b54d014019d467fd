"""Damage: what a run leaves is truncated, flipped, mixed up or half written, and nothing false is shown.

``python -m pytest -s tests/test_damage.py`` prints the table: kind of damage, times tried, outcome.
"""

import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import make_dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_pipeline import DATA, TOY, TRAIN, call, notebooks, toy  # noqa: F401

from persona_lib import pipeline, provenance, store, tasks
from persona_lib.data import preference
from persona_lib.models import load
from persona_lib.settings import Run, load_profile
from persona_lib.tasks import Step

Row = make_dataclass("Row", ["id", "text"])
ADAPTER = "everyday/seed-0/adapters/sft-both/adapter_model.safetensors"
MADE = {  # step -> the files that it makes
    "01_data": ["everyday/seed-0/pairs/test.jsonl", "everyday/seed-0/pairs/done.json"],
    "03_train": [ADAPTER, "everyday/seed-0/judgments/a__b/verdicts.jsonl"],
    "04_results": ["tables/main.csv", "tables/swap.csv"],
}
MAKES = {"01_data": "pairs", "03_train": "adapters/sft-* judgments"}


def content(name: str) -> bytes:
    """What a step writes into a file: thirty lines, different ones for each file."""
    return "".join(f'{{"id": "row-{n}", "text": "{name} {n * n}"}}\n' for n in range(30)).encode()


@pytest.fixture
def finished(notebooks, monkeypatch) -> Path:  # noqa: F811
    """The results of a run in which every step wrote its files."""

    def run_notebook(source, target, parameters, log):
        results = target.parent.parent
        for name in MADE.get(source.stem, []):
            store.write_text(results / name, content(name).decode())
        store.write_text(target, source.read_text())

    monkeypatch.setattr(tasks, "STEPS", {n: Step(s.per, s.inputs, MAKES.get(n, "")) for n, s in TOY.items()})
    monkeypatch.setattr(pipeline, "run_notebook", run_notebook)
    monkeypatch.setattr(pipeline, "report", lambda pipeline: False)
    assert call() == 0
    return toy().results


def lines(path: Path, change) -> None:
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def flip(path: Path) -> None:
    """Flip a byte, and leave size and time as they were: only reading the file shows it."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def of_another_run(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"row-1", b"row-7"))


KINDS = {  # kind -> what it does to a file
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 99),
    "empty": lambda path: os.truncate(path, 0),
    "cut to a third": lambda path: lines(path, lambda rows: rows[: len(rows) // 3]),
    "a line is missing": lambda path: lines(path, lambda rows: rows[:3] + rows[4:]),
    "a line stands twice": lambda path: lines(path, lambda rows: [*rows, rows[-1]]),
    "two lines exchanged": lambda path: lines(path, lambda rows: [rows[1], rows[0], *rows[2:]]),
    "file of another run": of_another_run,
    "deleted": Path.unlink,
}


def test_every_damage_to_every_file_stops_the_run_and_the_command_that_it_names_mends_it(finished, capsys):
    table = Counter()
    for step, names in MADE.items():
        for name in names:
            for kind, damage in KINDS.items():
                damage(finished / name)
                assert call() == 2, (kind, name)
                said = capsys.readouterr().err
                assert str(finished / name) in said and f"--force --only {step}" in said
                table[kind] += 1
                (finished / name).write_bytes(content(name))
            os.truncate(finished / name, 9)
            assert call("--force", "--only", step[:2]) == 0 and call() == 0
            assert (finished / name).read_bytes() == content(name)
            flip(finished / name)
            with pytest.raises(ValueError, match="is not what this task left"):
                provenance.check_files(toy(), every=True)  # as --verify does
            table["a byte flipped, size and time as before"] += 1
            (finished / name).write_bytes(content(name))
    capsys.readouterr()
    with capsys.disabled():
        print("", *(f"{kind:<42} {tried} files tried, all found" for kind, tried in table.items()), sep="\n")


def test_a_copied_folder_and_rows_written_again_alike_are_no_damage(finished, capsys):
    for path in finished.rglob("*.*"):
        os.utime(path, ns=(1, 1))
    assert call() == 0 and capsys.readouterr().out.count("cached") == 4
    known = toy().known()
    assert {name for name in known[TRAIN]["files"] if "pairs" in name} == set()
    shutil.rmtree(finished / "everyday/seed-0/pairs")
    assert call("--force", "--only", "01") == 0 and call() == 0
    assert {*MADE["01_data"]} < {*toy().known()[DATA]["files"]}, "what a task left stays its own"


def test_the_crate_names_what_tasks_were_given_and_made(finished):
    graph = {e["@id"]: e for e in store.read_json(finished / "ro-crate-metadata.json")["@graph"]}
    assert graph[ADAPTER]["sha256"] == hashlib.sha256(content(ADAPTER)).hexdigest()
    assert {"@id": ADAPTER} in graph[f"#{TRAIN}"]["result"]
    assert {"@id": "everyday/seed-0/pairs/test.jsonl"} in graph[f"#{TRAIN}"]["object"]
    assert graph[f"#{DATA}/seed"]["value"] == "0"
    assert graph[f"#{DATA}"]["startTime"] <= graph[f"#{TRAIN}"]["endTime"]


def test_an_adapter_that_is_cut_or_not_finite_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    save_file({"a": torch.ones(9), "b": torch.tensor([1.0, float("nan")])}, path)
    store.write_json(tmp_path / "adapter_config.json", {"lora_alpha": 1, "r": 1})
    with pytest.raises(load.ModelError, match=r"adapter_model.safetensors: b is not finite"):
        load.join_adapters([tmp_path], tmp_path / "to")
    os.truncate(path, 60)
    with pytest.raises(load.ModelError, match=r"adapter_model.safetensors: not readable"):
        load.read_adapter(tmp_path)


def in_child(work) -> int:
    """Run something in a process of its own; returns the process id."""
    if pid := os.fork():
        return pid
    try:
        work()
    except OSError:
        os._exit(28)
    finally:
        os._exit(0)


def test_a_disk_that_fills_up_at_any_byte_leaves_the_old_file_or_whole_rows(tmp_path):
    old, new, rows = "old\n", "new" * 400, [Row(f"row-{n}", "x" * 20) for n in range(30)]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in range(1, 1201, 40):
        text, path = tmp_path / "text.json", tmp_path / f"rows-{limit}.jsonl"
        text.write_text(old)

        def work(limit=limit, text=text, path=path):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                store.resume({path: rows}, Row, list, 7)
            finally:
                store.write_text(text, new)

        assert os.waitstatus_to_exitcode(os.waitpid(in_child(work), 0)[1]) == 28, "an error, not silence"
        assert text.read_text() == old and not list(tmp_path.glob(".*"))
        assert store.resume({path: rows}, Row, list, 7)[path] == rows, "goes on where the disk was full"
        assert store.read_rows(path, Row) == rows


def test_rows_survive_kill_9_at_thirty_random_moments(tmp_path):
    jobs, path = [Row(f"row-{n}", "x" * 50) for n in range(400)], tmp_path / "rows.jsonl"
    rng = random.Random(0)
    for _ in range(30):
        pid = in_child(lambda: store.resume({path: jobs}, Row, list, 3))
        time.sleep(rng.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if path.exists():
            with path.open("a") as file:
                file.write('{"id": "row-')  # the worst place to be killed at
    assert store.resume({path: jobs}, Row, list, 50)[path] == jobs
    assert store.read_rows(path, Row) == jobs, "none lost, none twice"


def test_a_results_folder_that_cannot_be_written_is_said_in_one_line(notebooks, capsys, monkeypatch):  # noqa: F811
    (notebooks.parent / "file").write_text("no folder")
    monkeypatch.setenv("PERSONA_RESULTS", str(notebooks.parent / "file"))
    assert call() == 2
    assert capsys.readouterr().err.startswith("error: results go to ")


@pytest.mark.parametrize("words", ["execute", "execute nix", "beyond.released TO"])
def test_modules_called_wrongly_or_without_a_network_say_one_line(tmp_path, words):
    command = [sys.executable, "-m", *f"persona_lib.{words}".replace("TO", str(tmp_path)).split()]
    nowhere = os.environ | {"https_proxy": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1"}
    done = subprocess.run(command, cwd=store.REPO, env=nowhere, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_folder_of_an_older_version_is_made_again(results_here, monkeypatch):
    run = Run(load_profile("smoke"), "everyday", 0)
    preference.write_pairs(run)
    path = run.folder / "pairs" / "test.jsonl"
    before = path.read_bytes()
    path.write_text("old\n")
    monkeypatch.setitem(store.VERSIONS, "pairs", store.VERSIONS["pairs"] + 1)
    preference.write_pairs(run)
    assert path.read_bytes() == before
