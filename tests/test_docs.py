"""The documents show kept tables, and every command that they print exists; notebooks are written back."""

import json
import re
import shutil

import pytest
import yaml
from conftest import run_there
from test_pipeline import finish
from test_report import filled  # noqa: F401  (a fixture)

from examples.every_eval_ever import records
from persona_lib import docs, execute, store
from persona_lib.settings import REPO, ConfigError, load_profile, published_dir
from persona_lib.tasks import Pipeline


def block(name, inside="stale\n"):
    return f"before\n<!-- table:{name} -->\n{inside}<!-- end -->\nafter\n"


def test_a_block_gets_its_kept_table_with_label_and_provenance(filled, monkeypatch, tmp_path):
    docs.keep(filled, ["main"])
    assert {path.suffix for path in published_dir(filled).glob("main.*")} == {".csv", ".pdf", ".png"}
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))  # the run is gone
    text = docs.rewrite(block("smoke/main"))
    assert text.startswith("before\n<!-- table:smoke/main -->\n**Our pairs.** `./run_all.sh --profile smoke")
    assert "commit abcdef012345; seeds 0 1; run of 2026-01-02." in text
    assert "| gold \\| chosen | 10 / 20 / 10 |" in text
    assert text.endswith("<!-- end -->\nafter\n") and "stale" not in text
    assert docs.rewrite(text) == text
    with pytest.raises(FileNotFoundError, match="swap.csv"):
        docs.keep(filled, ["swap"])
    unclosed = "<!-- table:smoke/main -->\nno end"
    for text, said in ((unclosed, "1 blocks begin and 0 end"), (block("smoke/mian"), "mian is not kept: ")):
        with pytest.raises(ConfigError, match=said):
            docs.rewrite(text)


@pytest.mark.slow
def test_the_repositorys_document_shows_the_kept_tables(monkeypatch):
    monkeypatch.delenv("PERSONA_FIGURES", raising=False)
    text = docs.DOCUMENT.read_text(encoding="utf-8")
    assert docs.rewrite(text) == text, "no number is typed by hand"


def test_the_list_of_files_is_written_from_their_first_lines_and_lacks_none():
    library = REPO / "persona_lib"
    listed = docs.list_files()
    assert (library / "README.md").read_text(encoding="utf-8") == listed, "run python -m persona_lib.docs"
    assert all(f"({path.relative_to(library)})" in listed for path in library.rglob("[a-z]*.py"))


def test_the_readme_names_every_notebook_and_option():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    for path in (REPO / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{path.name})" in text
    code = (REPO / "persona_lib" / "pipeline.py").read_text(encoding="utf-8")
    options = set(re.findall(r'add\(\s*"(--[a-z]+)"', code))
    assert len(options) > 8 and all(f"`{option}" in text for option in options)
    pictures = list((REPO / "figures" / "published").rglob("*.png"))
    assert pictures and all(path.with_suffix(".pdf").exists() for path in pictures)


@pytest.mark.parametrize("document", ["README.md", "RESPONSIBLE_NLP.md"])
def test_links_lead_to_files_and_headings_that_exist(document):
    links = re.findall(r"\]\(([\w./]+)#?([\w-]*)\)", (REPO / document).read_text(encoding="utf-8"))
    assert len(links) > 20
    for file, anchor in links:
        assert (REPO / file).exists(), file
        lines = (REPO / file).read_text(encoding="utf-8").lower().splitlines() if anchor else []
        headings = [re.sub(r"[^\w -]", "", line.lstrip("# ")) for line in lines if line[:1] == "#"]
        assert not anchor or anchor in [heading.replace(" ", "-") for heading in headings], (file, anchor)


def test_an_address_fills_clone_line_badges_citation_and_the_cell_that_colab_clones_from(
    tmp_path, monkeypatch
):
    files = ("README.md", "CITATION.cff", docs.NOTEBOOK)
    (tmp_path / "notebooks").mkdir()
    before = [(REPO / file).read_text(encoding="utf-8") for file in files]
    for file in files:
        shutil.copy(REPO / file, tmp_path / file)
    monkeypatch.setattr(docs, "REPO", tmp_path)
    assert docs.main(["--address", "https://example.org/me/boat"]) == 2
    for address in ("https://github.com/other/name", "https://github.com/me/boat.git"):  # the last one counts
        assert docs.main(["--address", address]) == 0
    readme, citation, notebook = ((tmp_path / file).read_text(encoding="utf-8") for file in files)
    assert (
        readme.count("git clone https://github.com/me/boat && cd boat\n") == 1 and "other/name" not in readme
    )
    title, empty, *badges = readme.splitlines()[:7]
    assert (title, empty) == (before[0].splitlines()[0], "") and not readme.splitlines()[7]
    links = [line.split("](")[-1].rstrip(")") for line in badges]
    assert links[3:] == [
        "https://colab.research.google.com/github/me/boat/blob/main/notebooks/00_contents.ipynb",
        "https://mybinder.org/v2/gh/me/boat/main?urlpath=lab/tree/notebooks/00_contents.ipynb",
    ]
    assert all(
        (REPO / path).exists() for path in (*links[1:3], ".github/workflows/tests.yml", "environment.yml")
    )
    assert yaml.safe_load(citation)["repository-code"] == "https://github.com/me/boat"
    (changed,) = [line for line in notebook.splitlines() if line not in before[2].splitlines()]
    assert json.loads(changed.strip())[:-1].startswith('repository: str = "https://github.com/me/boat"')


def test_a_table_of_swaps_is_exported_as_one_record_per_policy(tmp_path):
    head = "dataset,arm,measure,persona,n,d_positive,d_positive_low,d_positive_high"
    rows = ["base,policy,gold,4,.5,.1,.9", "dpo-both,policy,gold,4,.75,.4,1", "base,per byte,gold,4,.2,.1,.3"]
    (tmp_path / "swap.csv").write_text("\nd,".join([head, *rows]))
    found = records(tmp_path / "swap.csv")
    assert list(found) == ["base", "dpo-both"]
    (made,) = found["base"]["evaluation_results"]
    details, interval = made["score_details"], made["score_details"]["uncertainty"]["confidence_interval"]
    assert (details["score"], interval["lower"], interval["upper"]) == (0.5, 0.1, 0.9)
    assert details["uncertainty"]["num_samples"] == 4 and found["base"]["model_info"]["id"].count("/") == 1


def test_writing_back_keeps_the_code_and_refuses_no_run_other_code_and_settings(results_here, tmp_path):
    source = tmp_path / "01_preference_data.ipynb"
    shutil.copy(REPO / "notebooks" / source.name, source)
    steps = "steps=01_preference_data"
    pipeline = Pipeline(load_profile("smoke", [steps]), notebooks=tmp_path)
    with pytest.raises(execute.StepError, match=r"01_.*: not run yet; run ./run_all.sh --profile smoke"):
        docs.write_back(pipeline)
    finish(pipeline, "01_preference_data.everyday.seed-0")
    document = store.read_json(source)
    for one in execute.cells_of_code(document):
        one["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["seen\n"]}]
    store.write_json(*[pipeline.executed(task) for task in pipeline.tasks.values()], document)

    before = execute.notebook_hash(source)
    docs.write_back(pipeline, ["01"])
    assert store.read_json(source)["metadata"]["shown"] == {"profile": "smoke", "code": before}
    assert execute.notebook_hash(source) == before
    assert source.read_text().count('"seen\\n"') == len(execute.cells_of_code(document))
    changed = Pipeline(load_profile("smoke", [steps, "data.pair_limit=9"]), notebooks=tmp_path)
    with pytest.raises(execute.StepError, match="data.pair_limit: 16 -> 9"):
        docs.write_back(changed)
    execute.cells_of_code(document)[-1]["source"] = ["other()"]
    store.write_json(source, document)
    with pytest.raises(execute.StepError, match="the notebook's code: "):
        docs.write_back(pipeline)


FENCE = re.compile(r"```bash\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`((?:\./run_all\.sh|python -m (?:persona_lib\.|studies)) ?[^`]*)`")
PLACEHOLDER = re.compile(r"[A-Z]{4,}|\.\.\.|my_|--demo|vllm")


def commands_of(text: str) -> list[str]:
    """Return the commands of a document: lines of bash blocks (continued ones joined), and inline ones."""
    found = [line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    found += INLINE.findall(FENCE.sub("", text))
    return [" ".join(re.sub(r"(^|\s+)#.*$", "", line).rstrip("& ").split()) for line in found]


def checks() -> list[str]:
    """Return commands that check all printed ones: a run's settings, the options of a module."""
    texts = [(REPO / name).read_text(encoding="utf-8") for name in ("README.md", "DATA.md", "SCALING.md")]
    commands = [command for text in texts for command in commands_of(text)]
    runs = [c for c in commands if c.startswith("./run_all.sh") and not PLACEHOLDER.search(c)]
    modules = [c for c in commands if c.startswith(("python -m persona_lib.", "python -m studies"))]
    exports = {re.sub(r"--export .*", "--export --help", c) for c in runs if "--export" in c}
    checked = {re.sub(" --(plan|verify|check)", "", c) + " --check" for c in runs if "--export" not in c}
    return sorted(exports | checked | {" ".join(c.split()[:3]) + " --help" for c in modules})


@pytest.mark.slow
@pytest.mark.parametrize("command", checks())
def test_a_printed_command_has_names_and_settings_that_exist(command):
    run_there(REPO, command)
