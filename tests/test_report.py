"""The report page and the documents: self-contained, escaped, written from saved tables only."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest
from test_figures import tables

from persona_lib import docs, figures, report, show, store
from persona_lib.beyond import claims
from persona_lib.paper import results
from persona_lib.report import command_of
from persona_lib.settings import REPO, load_profile, results_dir

HOSTILE = '<script>alert("x")</script> & "quotes"'


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """An empty profile in a temporary folder."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PERSONA_FIGURES", str(tmp_path / "figures"))
    return load_profile("smoke")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A profile with saved tables, figures, provenance and one executed notebook; made once."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_RESULTS", str(folder / "results"))
        patch.setenv("PERSONA_FIGURES", str(folder / "figures"))
        profile = load_profile("smoke")
        fill(profile)
        yield profile


def fill(profile):
    """Save what a finished run leaves for the report."""
    for name in ("persona_accuracy", "swap"):
        results.save_table(profile, name, tables()[name])
    results.save_table(profile, "main", results.with_holm(hand_main()))
    results.save_table(profile, "paper", claims.paper_rows(profile))
    texts = {"prompt": HOSTILE, "persona": HOSTILE, "plain_dpo": HOSTILE, "pt_dpo": "short\nand clear"}
    example = {"dataset": "everyday", "seed": 0, "id": "r0", "eval_persona": "gold-chosen", **texts}
    results.save_table(profile, "examples", pd.DataFrame([example]))
    results.save_table(profile, "primary", claims.primary_results(profile))
    with pytest.MonkeyPatch.context() as patch:
        drawn = {name: kind for name, kind in figures.FIGURES.items() if name in ("main", "swap")}
        patch.setattr(figures, "FIGURES", drawn)  # drawing takes most of the time
        figures.save_figures(profile)
    store.write_json(results_dir(profile) / "provenance.json", {"tasks": {"12_results": FACTS}})
    write_notebook(profile)


FACTS = {
    "parameters": {"profile": "smoke", "overrides": ["seeds=0,1", "dpo_beta=0.2"]},
    "finished": "2026-01-02T03:04:05+00:00", "longest_seconds": 61.0, "peak_memory_mb": 500,
    "git": {"commit": "abcdef0123456789", "dirty": False},
    "python": "3.11.9", "versions": {"torch": "2.13.0"},
    "hardware": {"cpu": "a <fast> one", "cores": 2, "memory_gb": 4.0, "gpus": []},
}  # fmt: skip


def hand_main():
    """One main row with an average."""
    row = {"dataset": "everyday", "kind": "main", "label": "gold | chosen", "judge_persona": "gold-chosen",
           "n": 8, "n_seeds": 2, "seeds": "0 1", "p_sign": 0.453125, "q_sign": 1.0}  # fmt: skip
    row |= {"p_win": 5, "p_tie": 1, "p_loss": 2, "p_unparsed": 0, "p_inconsistent": 0}
    row |= {"q_win": 2, "q_tie": 3, "q_loss": 3, "q_unparsed": 0, "q_inconsistent": 1}
    for name, value in (("p_net", 0.43), ("q_net", -0.2), ("dpq", 11.5), ("quality_sd", 0.02)):
        row |= {name: value, f"{name}_low": value - 1, f"{name}_high": value + 1}
    return pd.DataFrame([row, {"dataset": "all", "kind": "average", "label": "average", "dpq": 11.5, "n": 8,
                               "n_seeds": 2, "seeds": "0 1"}])  # fmt: skip


def write_notebook(profile):
    """Leave an executed notebook."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell("# A title"), nbformat.v4.new_code_cell("1 + 1")]
    path = results_dir(profile) / "notebooks" / "12_results.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


class Page(HTMLParser):
    """Collect what a page loads, its images' alt texts, and whether its tags nest."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.alts, self.open, self.crossed = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.sources += [attrs[name] for name in ("src", "href") if name in attrs]
        if tag == "img":
            self.alts.append(attrs.get("alt", ""))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)


# --- the report ---


def test_the_page_needs_nothing_from_elsewhere_and_every_image_has_words(filled):
    path = report.write_report(filled)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(source.startswith(("data:image/png;base64,", "notebooks/")) for source in page.sources)
    assert len(page.alts) == 2 and all(len(alt) > 20 for alt in page.alts)
    assert not re.search(r"https?://|@import|url\(", text)
    assert 'name="viewport"' in text
    assert page.crossed == [] and page.open == []


def test_text_from_data_is_escaped(filled):
    text = report.write_report(filled).read_text(encoding="utf-8")
    assert "<script" not in text and "a <fast> one" not in text
    assert text.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp;") == 3


def test_the_page_says_status_aims_numbers_and_provenance(filled):
    text = report.write_report(filled).read_text(encoding="utf-8")
    assert f"1 of {len(filled.steps)} notebooks ran" in text and "1:01 in all" in text
    assert '<td class="yes">yes</td>' in text and "not run" in text  # persona accuracy .90 is met
    assert "+11.5 [+10.5, +12.5]" in text and "62.5 / 12.5 / 25.0" in text
    assert "abcdef012345" in text and "--seeds 2 --set dpo_beta=0.2" in text
    assert "our pairs" in text.lower() and "paper&#x27;s own numbers" in text


def test_executed_notebooks_become_pages_that_load_nothing(filled):
    index = report.write_report(filled)
    page = index.parent / "notebooks" / "12_results.html"
    assert f"notebooks/{page.name}" in index.read_text(encoding="utf-8")
    assert "A title" in page.read_text(encoding="utf-8")
    assert not [s for s in Page(page.read_text(encoding="utf-8")).sources if s.startswith(("http", "//"))]


@pytest.mark.parametrize(
    ("text", "kept", "formulas"),
    [("a $x_1$ and `$HOME`", "`$HOME`", 1), ("```\n$$x$$\n```", "$$x$$", 0), ("$5 or $6", "$5 or $6", 0),
     ("$$\\frac{W - L}\n{W + L}$$ then $\\Delta$", " then ", 2)],
)  # fmt: skip
def test_formulas_become_mathml_and_code_stays(text, kept, formulas):
    taken = []
    left = report.without_formulas(text, taken)
    assert kept in left and len(taken) == formulas
    assert all(formula.startswith("<math") for formula in taken)


def test_a_formula_reaches_the_page_through_nbconverts_cleaning(tmp_path):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell("The rate is $\\frac{1}{2}$; $\\left($ is none.")]
    nbformat.write(notebook, tmp_path / "n.ipynb")
    page = report.notebook_page(tmp_path / "n.ipynb")
    assert "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>" in page
    assert "<code>\\left(</code>" in page and "\ue000" not in page


def test_a_page_of_a_notebook_that_is_gone_goes_too(filled):
    page = report.write_report(filled).parent / "notebooks" / "12_results.html"
    (results_dir(filled) / "notebooks" / "12_results.ipynb").unlink()
    report.write_report(filled)
    assert not page.exists()
    write_notebook(filled)


# --- the documents ---


def block(name, inside="stale\n"):
    """A block of a document."""
    return f"before\n<!-- table:{name} -->\n{inside}<!-- end -->\nafter\n"


def test_a_block_gets_its_table_with_label_and_provenance(filled):
    text = docs.rewrite(block("smoke/main"), filled)
    assert text.startswith("before\n<!-- table:smoke/main -->\n**Our pairs.** `./run_all.sh --profile smoke")
    assert "commit abcdef012345; seeds 0 1; n = 8; run of 2026-01-02." in text
    assert "| gold \\| chosen | 62.5 / 12.5 / 25.0 / 0.0 | 25.0 / 25.0 / 37.5 / 12.5 | 0 / 0 |" in text
    assert text.endswith("<!-- end -->\nafter\n") and "stale" not in text
    assert docs.rewrite(text, filled) == text


def test_blocks_of_other_profiles_stay_and_missing_tables_are_not_run(filled):
    assert docs.rewrite(block("authors/swap"), filled) == block("authors/swap")
    assert docs.rewrite(block("smoke/arms"), filled) == block("smoke/arms", "*Not run yet.*\n")
    paper = docs.rewrite(block("smoke/paper"), filled)
    assert "**Paper's own numbers.**" in paper and "+18.4 [" in paper


def test_with_only_some_names_the_other_blocks_of_the_profile_stay(filled):
    text = block("smoke/main") + block("smoke/arms")
    written = docs.rewrite(text, filled, only=["main"])
    assert written == docs.rewrite(block("smoke/main"), filled) + block("smoke/arms")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table:smoke/main -->\nno end", "1 blocks begin and 0 end"),
        (block("smoke/mian"), "table:smoke/mian: no such table; use one of "),
        ("<!-- figure:smoke/mian -->\n<!-- end -->", "no such figure"),
    ],
)
def test_a_block_that_cannot_be_written_is_an_error(profile, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        docs.rewrite(text, profile)


def test_the_repositorys_documents_can_be_written_for_every_profile_they_name(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PERSONA_FIGURES", str(tmp_path / "figures"))
    for name in docs.DOCUMENTS:
        text = (REPO / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text, encoding="utf-8")
        named = {owner for _, _, owner, *_ in docs.BLOCK.findall(text)}
        assert named <= {"everyday", "authors"} and named
    for profile in ("everyday", "authors"):
        docs.update(load_profile(profile), tmp_path)
    for name in docs.DOCUMENTS:
        inside = [found[4] for found in docs.BLOCK.findall((tmp_path / name).read_text(encoding="utf-8"))]
        assert set(inside) == {"*Not run yet.*\n"}


@pytest.mark.slow
def test_the_documents_show_the_tables_as_they_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("PERSONA_FIGURES", raising=False)
    for name in docs.DOCUMENTS:
        shutil.copy(REPO / name, tmp_path / name)
    assert docs.update(load_profile("everyday"), tmp_path) == [], "no number is typed by hand"
    text = (tmp_path / "REPRODUCTION.md").read_text(encoding="utf-8")
    (tmp_path / "REPRODUCTION.md").write_text(text.replace("<!-- end -->", "| 801 |\n<!-- end -->", 1))
    assert docs.update(load_profile("everyday"), tmp_path) == [tmp_path / "REPRODUCTION.md"]
    assert (tmp_path / "REPRODUCTION.md").read_text(encoding="utf-8") == text


@pytest.mark.slow
def test_the_list_of_files_is_written_from_their_first_lines_and_lacks_none():
    library = REPO / "persona_lib"
    assert (library / "README.md").read_text(encoding="utf-8") == docs.list_files(library), (
        "run persona_lib.docs"
    )
    listed = set(re.findall(r"\]\(([\w/]+\.py)\): ..", docs.list_files(library)))
    modules = {str(path.relative_to(library)) for path in library.rglob("*.py")}
    assert listed == {name for name in modules if not name.endswith("__init__.py")}


def test_the_readme_names_every_notebook_and_option():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    for path in (REPO / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{path.name})" in text
    options = set(
        re.findall(
            r'add\(\s*"(--[a-z]+)"', (REPO / "persona_lib" / "pipeline.py").read_text(encoding="utf-8")
        )
    )
    assert len(options) > 8 and all(f"`{option}" in text for option in options)
    assert [link for link in re.findall(r"\]\(([\w./]+)\)", text) if not (REPO / link).exists()] == []


# --- pieces ---


def test_the_command_line_is_that_of_the_settings():
    overrides = ["seeds=0,1,2", "data_dir=/somewhere/private", "dpo_beta=0.2", "seeds=3,5"]
    assert command_of(load_profile("authors"), overrides) == (
        "./run_all.sh --profile authors --seeds 3 --data PATH --set dpo_beta=0.2 --set seeds=3,5"
    )
    assert command_of(load_profile("everyday"), []) == "./run_all.sh"
    models = ["base_model=/somewhere/private", "judge_model=owner/name"]
    assert command_of(load_profile("everyday"), models) == (
        "./run_all.sh --set base_model=FOLDER --set judge_model=owner/name"
    )


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(0.125, False, "0.12"), (-0.5, True, "\N{MINUS SIGN}0.50"), (0.5, True, "+0.50"), (-0.001, True, "0.00"),
     (float("nan"), False, ""), (None, True, "")],
)  # fmt: skip
def test_numbers_are_shown_with_a_real_minus_and_no_signed_zero(value, sign, text):
    assert show.number(value, 2, sign) == text
