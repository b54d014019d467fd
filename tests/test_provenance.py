"""What a result says of the code that made it."""

import subprocess

from persona_lib import store


def test_a_commit_is_dirty_by_its_code_and_not_by_what_runs_write(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "REPO", tmp_path)

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True)

    assert store.git_state() == {"commit": None, "dirty": None}
    files = [tmp_path / name for name in ("figures/main.png", "benchmarks/results/a.json", "code.py")]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("as committed", encoding="utf-8")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    commit = git("rev-parse", "HEAD").stdout.strip()
    (tmp_path / "notes.txt").write_text("not tracked", encoding="utf-8")
    for path in files[:2]:
        path.write_text("written by a run", encoding="utf-8")
    assert store.git_state() == {"commit": commit, "dirty": False}
    files[2].write_text("changed", encoding="utf-8")
    assert store.git_state() == {"commit": commit, "dirty": True}
