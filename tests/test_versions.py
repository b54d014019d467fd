"""A step's code cannot change without a decision: other results (bump its version) or the same ones."""

import ast
from pathlib import Path

import pytest

from persona_lib.settings import REPO
from persona_lib.store import VERSIONS, content_hash, file_hash

PACKAGE = REPO / "persona_lib"

# The files that make a step's results, and the hash of their code when somebody last decided.
# After a change: results differ -> bump store.VERSIONS; then `python tests/test_versions.py` writes these.
FILES = {
    "pairs": "data.preference data.everyday data.official data.rows data.mapping data.intake "
    "facts/own_formats.yaml",
    "personas": "paper.personas prompts",
    "tailoring": "data.tailoring",
    "training": "models.train models.trainers models.packing models.kernels",
    "answers": "paper.answers models.generate models.kernels prompts",
    "judging": "paper.judging paper.judges data.everyday intervals prompts "
    "facts/reader_words.yaml facts/rubrics.yaml",
    "swap": "paper.swap",
    "calibration": "beyond.calibration paper.judges",
    "rejudged": "beyond.released paper.judges",
    "users": "beyond.users",
}
DECIDED = {
    "pairs": (1, "562064d730b93a75"),
    "personas": (1, "ebfba0b5957c2f52"),
    "tailoring": (1, "fb56e268573c479c"),
    "training": (1, "b612695811197c7c"),
    "answers": (1, "21be245a9d0b5370"),
    "judging": (2, "519aed02b8595370"),
    "swap": (1, "773c04593bfa21b8"),
    "calibration": (2, "6bc19f7aad37ee4c"),
    "rejudged": (2, "5cb16a35dd1a2ae0"),
    "users": (1, "be13852fbc7fd628"),
}


def code_of(step: str) -> str:
    """Return the hash of what Python executes in a step's files: docstrings and comments do not count."""
    names = FILES[step].split()
    facts = [file_hash(PACKAGE / name) for name in names if "/" in name]
    modules = [PACKAGE / f"{name.replace('.', '/')}.py" for name in names if "/" not in name]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in modules]
    for node in (node for tree in trees for node in ast.walk(tree)):
        match getattr(node, "body", None):
            case [ast.Expr(value=ast.Constant()), _, *_] as body:
                del body[0]
    return content_hash(*map(ast.unparse, trees), *facts)


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
