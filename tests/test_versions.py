"""A step's code cannot change without a decision: other results (bump its version) or the same ones."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from codemap import module_path

from persona_lib.store import VERSIONS, content_hash

# The files that make a step's results, and the hash of their code when somebody last decided.
# After a change: results differ -> bump store.VERSIONS; then `python tests/test_versions.py` writes these.
FILES = {
    "pairs": ("data.preference", "data.everyday", "data.official", "data.own", "data.own_rows"),
    "personas": ("evaluation.personas", "prompts", "models.generators"),
    "tailoring": ("data.tailoring", "data.retrieval"),
    "training": ("training.train", "training.trainers", "training.row_packing", "data.arms"),
    "answers": ("evaluation.tailor", "models.generate", "prompts"),
    "judging": ("evaluation.judge", "evaluation.reader", "evaluation.quality"),
    "swap": ("evaluation.swap",),
    "calibration": ("evaluation.calibration", "evaluation.backwards"),
    "rejudged": ("tables.rejudged",),
}
DECIDED = {
    "pairs": (1, "c3589ca8830ae983"),
    "personas": (1, "395784fd91977cd2"),
    "tailoring": (1, "281783691f17c630"),
    "training": (1, "2b21a37493030564"),
    "answers": (1, "d6726f59efc46d90"),
    "judging": (1, "9cfddfa2d909ac6a"),
    "swap": (1, "96d918a36509fc2b"),
    "calibration": (1, "ca0d848004de5eea"),
    "rejudged": (1, "292bad1f0b32efab"),
}


def code_of(step: str) -> str:
    """Return the hash of what Python executes in a step's files: docstrings and comments do not count."""
    trees = [ast.parse(module_path(name).read_text(encoding="utf-8")) for name in FILES[step]]
    for node in (node for tree in trees for node in ast.walk(tree)):
        match getattr(node, "body", None):
            case [ast.Expr(value=ast.Constant()), _, *_] as body:
                del body[0]
    return content_hash(*map(ast.unparse, trees))


@pytest.mark.parametrize("step", VERSIONS)
def test_changed_code_of_a_step_asks_for_a_decision(step):
    assert (VERSIONS[step], code_of(step)) == DECIDED[step], (
        f"the code of {step} changed. Other results: bump store.VERSIONS[{step!r}]. "
        "Then, either way: python tests/test_versions.py"
    )


def test_every_version_has_its_files():
    assert set(FILES) == set(VERSIONS) == set(DECIDED)


if __name__ == "__main__":
    lines = "".join(f'    "{step}": ({VERSIONS[step]}, "{code_of(step)}"),\n' for step in VERSIONS)
    path = Path(__file__)
    head, _, rest = path.read_text(encoding="utf-8").partition("DECIDED = {\n")
    path.write_text(head + "DECIDED = {\n" + lines + rest[rest.index("}\n") :], encoding="utf-8")
