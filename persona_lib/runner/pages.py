"""Executed notebooks as HTML pages that load nothing: formulas are MathML, figures have words."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from persona_lib.runner.normalise import headings, text_of

# Code stays as it is; $$...$$ is a formula of its own, $...$ one in a line (no space inside the dollars).
MATH = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|(?<![\\$])\$(?=\S)([^$]+?)(?<=\S)\$(?!\d)", re.DOTALL)
PLACE = "\ue000{}\ue001"  # stands for a formula while nbconvert cleans the page of all unknown tags
BACK = '<p class="back"><a href="../index.html">back to the report</a></p>'
STYLE = """<style>
.back { margin: 1rem; } .back a { text-decoration: underline; }
math { font-size: 1.1em; } math[display=block] { margin: 1em 0; padding: .2em 0; overflow: auto hidden; }
img { max-width: 100%; }
@media (max-width: 40rem) {
  .jp-InputPrompt, .jp-OutputPrompt { display: none; } .jp-Notebook { padding: .5rem !important; }
  .jp-OutputArea-output { overflow-x: auto; }
}
</style>"""


def mathml(formula: str, display: str) -> str:
    """Return a TeX formula as MathML; what cannot be read stays TeX, as code."""
    from latex2mathml import converter, exceptions

    errors = tuple(kind for kind in vars(exceptions).values() if isinstance(kind, type))
    try:
        return converter.convert(formula.strip(), display=display)
    except errors:
        return f"<code>{html.escape(formula.strip())}</code>"


def without_formulas(text: str, taken: list[str]) -> str:
    """Return Markdown with a place holder for every formula, whose MathML is appended to ``taken``."""

    def replaced(match: re.Match[str]) -> str:
        code, block, line = match.groups()
        if code:
            return code
        taken.append(mathml(block or line, "block" if block else "inline"))
        return PLACE.format(len(taken) - 1)

    return MATH.sub(replaced, text)


def describe_images(notebook: Any) -> None:
    """Give every image without alternative text the heading above it, in place."""
    titles = iter(headings(notebook))
    for cell in notebook.cells:
        if cell.cell_type != "code" or "injected-parameters" in cell.metadata.get("tags", []):
            continue
        title = next(titles)
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                said = output.metadata.setdefault("image/png", {})
                said.setdefault("alt", f"Figure of the section {title}")


def notebook_page(path: Path) -> str:
    """Return an executed notebook as one HTML page."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    describe_images(notebook)
    taken: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = without_formulas(text_of(cell.source), taken)
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", embed_images=True)
    body, _ = exporter.from_notebook_node(notebook)
    for number, formula in enumerate(taken):
        body = body.replace(PLACE.format(number), formula)
    body = body.replace("</head>", f"{STYLE}</head>", 1)
    return re.sub(r"(<body[^>]*>)", rf"\1{BACK}", body, count=1)
