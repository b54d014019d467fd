"""The report and its notebooks' pages: self-contained, escaped, written from saved tables only."""

from __future__ import annotations

import re

import nbformat
import pandas as pd
import pytest

from persona_lib import figures, report, store
from persona_lib.beyond import claims
from persona_lib.paper import results
from persona_lib.settings import REPO, load_profile, results_dir

HOSTILE = '<script>alert("x")</script> & "quotes"'
FACTS = {
    "parameters": {"profile": "smoke", "overrides": ["seeds=0,1", "dpo.beta=0.2"]},
    "finished": "2026-01-02T03:04:05+00:00", "longest_seconds": 61.0,
    "git": {"commit": "abcdef0123456789", "dirty": False},
    "python": "3.11.9", "versions": {"torch": "2.13.0"},
    "hardware": {"cpu": "a <fast> one", "cores": 2, "memory_gb": 4.0, "gpus": []},
}  # fmt: skip


def hand_tables():
    """Small tables of what a finished run saves."""
    names = {"dataset": "everyday", "n": 40, "n_seeds": 2, "seeds": "0 1"}
    limits = {"accuracy": [0.9, 0.55], "accuracy_low": [0.8, 0.45], "accuracy_high": [1, 0.65]}
    accuracy = pd.DataFrame(names | {"split": "test", "side": ["chosen", "rejected"], **limits})
    row = names | {"n": 8, "kind": "main", "label": "gold | chosen", "judge_persona": "gold-chosen"}
    for short, counts in (("p", (5, 1, 2, 0, 0)), ("q", (2, 3, 3, 0, 1))):
        for name, count in zip(("win", "tie", "loss", "unparsed", "inconsistent"), counts, strict=True):
            row[f"{short}_{name}"] = count
    for name in ("p_net", "q_net", "quality_sd"):
        row |= {name: 0.2, f"{name}_low": -0.8, f"{name}_high": 1.2}
    average = names | {"dataset": "all", "kind": "average", "label": "average", "n": 8}
    texts = {"prompt": HOSTILE, "persona": HOSTILE, "plain_dpo": HOSTILE, "pt_dpo": "short\nand clear"}
    return {
        "persona_accuracy": accuracy,
        "main": pd.DataFrame([row, average]).assign(dpq=11.5, dpq_low=[-8.5, 10.5], dpq_high=[31.5, 12.5]),
        "paper": claims.reanalysed(),
        "examples": pd.DataFrame(
            [{"dataset": "everyday", "seed": 0, "id": "r0", "eval_persona": "gold-chosen", **texts}]
        ),
    }


def fill(profile):
    """Save what a finished run leaves for the report; its notebook has a formula and HTML in its prose."""
    for name, table in hand_tables().items():
        results.save_table(profile, name, table)
    results.save_table(profile, "primary", claims.primary_results(profile))
    figures.save_figures(profile, ["main", "persona_accuracy"])
    store.write_json(results_dir(profile) / "provenance.json", {"tasks": {"12_results": FACTS}})
    prose = "# A title\n\nThe rate is $\\frac{1}{2}$; `$HOME` is code. <script>x</script>"
    printed = nbformat.v4.new_output("stream", text=HOSTILE)
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell("1 + 1", outputs=[printed]),
    ]  # fmt: skip
    path = results_dir(profile) / "notebooks" / "12_results.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A profile with saved tables, figures, provenance, one executed notebook and its report; made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_RESULTS", str(tmp_path_factory.mktemp("results")))
        patch.setenv("PERSONA_FIGURES", str(tmp_path_factory.mktemp("figures")))
        profile = load_profile("smoke")
        fill(profile)
        report.write_report(profile)
        yield profile


def page_of(profile, name="index.html"):
    """The text of a page of the report."""
    return (results_dir(profile) / "report" / name).read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_elsewhere_and_every_image_has_words(filled):
    text = page_of(filled)
    sources, alts = (re.findall(f'(?:{name})="([^"]*)"', text) for name in ("src|href", "alt"))
    assert all(source.startswith(("data:image/png;base64,", "notebooks/")) for source in sources)
    assert len(alts) == 2 and all(len(alt) > 20 for alt in alts)
    assert not re.search(r"https?://|@import|url\(", text)
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text


def test_text_from_data_is_escaped(filled):
    text = page_of(filled)
    assert "<script" not in text and "a <fast> one" not in text
    assert text.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp;") == 3


def test_the_page_says_findings_aims_numbers_and_provenance(filled):
    text = page_of(filled)
    assert (
        "Personas of chosen responses lead back to them in 0.90 [0.80, 1.00] of 40 rows; above 0.5." in text
    )
    assert "in 0.55 [0.45, 0.65] of 40 rows; not clearly different from 0.5." in text
    assert "dPQ +11.5 [+10.5, +12.5], average, n = 8; above 0." in text
    assert "62.5 / 12.5 / 25.0" in text and "paper&#39;s own numbers" in text
    assert '<td class="yes">yes</td>' in text and "not run" in text  # persona accuracy .90 is met
    assert "Notebooks that ran" in text
    assert "abcdef012345" in text and "--set seeds=0,1 --set dpo.beta=0.2" in text


def test_a_profile_that_has_not_run_has_a_page_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PERSONA_FIGURES", str(tmp_path / "figures"))
    text = report.write_report(load_profile("smoke")).read_text(encoding="utf-8")
    assert "Nothing was measured yet" in text and "No table was made yet" in text and "run by hand" in text


def test_an_executed_notebook_becomes_a_page_with_formulas_that_loads_nothing(filled):
    assert 'href="notebooks/12_results.html"' in page_of(filled)
    text = page_of(filled, "notebooks/12_results.html")
    assert "A title" in text and "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>" in text
    assert "<code>$HOME</code>" in text
    assert "<script" not in text and "&lt;script&gt;x" in text
    assert re.findall('(?:src|href)="([^#"]*)"', text) == ["../index.html"]


def test_the_formulas_of_every_notebook_become_mathml():
    cells = [c for path in (REPO / "notebooks").glob("*.ipynb") for c in nbformat.read(path, 4).cells]
    shown = "".join(report.markdown_html(c.source) for c in cells if c.cell_type == "markdown")
    assert "$$" not in shown and "merror" not in shown
