"""Persona inference and judging by a real server: `transformers serve` with a tiny model on loopback."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from tiny import save_base, tiny_model

from persona_lib import store
from persona_lib.data import preference
from persona_lib.models.load import load_tokenizer
from persona_lib.models.served import Answer
from persona_lib.paper import judges, judging, personas
from persona_lib.records import InferredPersona, PairwiseComparison
from persona_lib.settings import Run, load_profile

pytestmark = [
    pytest.mark.slow,
    pytest.mark.server,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("openai", "fastapi", "uvicorn")),
        reason="needs openai, fastapi and uvicorn: pip install -e .[dev]",
    ),
]
SERVE = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_up(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=2).status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A tiny model with SmolLM2's tokenizer, without its chat format, and the address where it is served."""
    tokenizer = load_tokenizer("pypi:smollm2-135m-instruct")
    tokenizer.chat_template = None
    folder = save_base(tmp_path_factory.mktemp("served"), tiny_model(vocabulary=len(tokenizer)), tokenizer)
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-c", SERVE, "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--device", "cpu"]
    log = folder / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        for _ in range(120):
            if is_up(url) or server.poll() is not None:
                break
            time.sleep(0.5)
        assert is_up(url), log.read_text()
        yield folder, f"{url}/v1"
        server.terminate()
        server.wait(timeout=20)


@pytest.fixture
def run(served, tmp_path, monkeypatch):
    """A run whose personas are inferred and whose answers are judged by the served model."""
    folder, url = served
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    settings = [
        *(f"generator_url={url}", f"generator_model={folder}", "generator_kind=completions"),
        *(f"judge_url={url}", f"judge_model={folder}", "judge_kind=completions", "judge=lm"),
        *("pair_limit=4", "pi_max_new_tokens=8", "endpoint_concurrency=4"),
    ]
    run = Run(load_profile("everyday", settings), "everyday", 0)
    preference.write_pairs(run)
    return run


def local(run: Run, **changes) -> Run:
    """The same run, with the same model loaded here."""
    urls = ["generator_url=", "judge_url=", f"generator_model={run.profile.generator_model}", "judge=lm"]
    settings = [*urls, f"judge_model={run.profile.judge_model}", "pair_limit=4"]
    return Run(load_profile("everyday", [*settings, "pi_max_new_tokens=8"]), "everyday", 0)


def test_personas_inferred_over_a_server_equal_those_of_the_same_model_loaded_here(run):
    folder = personas.infer_run(run)
    rows = {p.name: store.read_rows(p, InferredPersona) for p in sorted(folder.glob("*.jsonl"))}
    ledger = store.read_rows(run.folder.parent.parent / "endpoint" / "answers.jsonl", Answer)
    assert 0 < len(ledger) <= sum(map(len, rows.values()))
    assert all(answer.completion_tokens > 0 for answer in ledger)
    personas.infer_run(local(run))
    again = {p.name: store.read_rows(p, InferredPersona) for p in sorted(folder.glob("*.jsonl"))}
    assert {name: {r.id: r.raw for r in part} for name, part in rows.items()} == {
        name: {r.id: r.raw for r in part} for name, part in again.items()
    }


def test_judging_over_a_server_equals_the_same_judge_loaded_here(run):
    comparisons = [
        PairwiseComparison(pair.id, pair.prompt, "The user is shy.", pair.chosen, pair.rejected)
        for pair in preference.load_pairs(run)["test"]
    ]
    over_http = judging.judge_both(judges.load_judge(run), comparisons, "personalization")
    here = judging.judge_both(judges.load_judge(local(run)), comparisons, "personalization")
    assert len(over_http) == len(comparisons) == 4
    assert [[j.feedback for j in pair] for pair in over_http] == [[j.feedback for j in pair] for pair in here]
