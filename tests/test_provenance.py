"""A run's RO-Crate names files with their hashes and passes the validator of its profile."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from test_damage import ADAPTER, content, finished  # noqa: F401
from test_pipeline import DATA, TRAIN, notebooks  # noqa: F401

from persona_lib import settings, store

# The validator fetches one document, the context of RO-Crate; here it is that of the package rocrate.
VALIDATE = """
import importlib.resources, json, sys
from rocrate_validator import services
from rocrate_validator.models import Severity
from rocrate_validator.utils import document_loader, http

text = (importlib.resources.files("rocrate") / "data" / "ro-crate.jsonld").read_text(encoding="utf-8")
kind = type("Answer", (), {"status_code": 200, "content": text.encode(),
    "json": lambda self: json.loads(text), "raise_for_status": lambda self: None,
    "headers": {"Content-Type": "application/ld+json"}})
document_loader._fetch_json_ld = lambda url: json.loads(text)
http.HttpRequester.__getattr__ = lambda self, name: lambda *_, **__: kind()
found = services.validate({"rocrate_uri": sys.argv[1], "profile_identifier": "process-run-crate",
    "requirement_severity": Severity.REQUIRED})
print(*(issue.message for issue in found.get_issues()), f"{len(found.get_issues())} faults", sep="\\n")
"""


def validate(folder: Path) -> list[str]:
    """Return what the validator says of a crate; it has an environment of its own, found on PATH."""
    program = shutil.which("rocrate-validator")
    if not program:
        pytest.skip("no rocrate-validator on PATH: pip install roc-validator rocrate, in a venv of its own")
    command = [Path(program).with_name("python"), "-c", VALIDATE, folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_crate_names_what_tasks_were_given_and_made_and_the_validator_finds_no_fault(finished):  # noqa: F811
    graph = {e["@id"]: e for e in store.read_json(finished / "ro-crate-metadata.json")["@graph"]}
    assert graph[ADAPTER]["sha256"] == hashlib.sha256(content(ADAPTER)).hexdigest()
    assert {"@id": ADAPTER} in graph[f"#{TRAIN}"]["result"]
    assert {"@id": "everyday/seed-0/pairs/test.jsonl"} in graph[f"#{TRAIN}"]["object"]
    assert graph[f"#{DATA}/seed"]["value"] == "0"
    assert graph[f"#{DATA}"]["startTime"] <= graph[f"#{TRAIN}"]["endTime"]
    assert validate(finished) == ["0 faults"]
    (finished / ADAPTER).unlink()
    assert validate(finished)[-1] != "0 faults", "a missing file is a fault"


def test_what_a_run_writes_is_ignored_by_git():
    names = ("results/smoke/x.csv", "figures/smoke/x.png", ".venv/x")
    written = [settings.REPO / name for name in names]
    if not (settings.REPO / ".git").exists():
        pytest.skip("no git repository")
    command = ["git", "check-ignore", *map(str, written)]
    done = subprocess.run(command, cwd=settings.REPO, capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(path) for path in written]
