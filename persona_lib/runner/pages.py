"""Executed notebooks as HTML pages that load nothing: formulas are MathML, figures have words."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from persona_lib.runner.normalise import headings, text_of

# Code stays as it is; $$...$$ is a formula of its own, $...$ one in a line (no space inside the dollars).
MATH = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|(?<![\\$])\$(?=\S)([^$]+?)(?<=\S)\$(?!\d)", re.DOTALL)
IN_MARKDOWN = {"*": "&#42;", "_": "&#95;", "|": "&#124;", "~": "&#126;", "[": "&#91;"}
STYLE = """<style>
math { font-size: 1.1em; } math[display=block] { margin: 1em 0; overflow-x: auto; } img { max-width: 100%; }
@media (max-width: 40rem) {
  .jp-InputPrompt, .jp-OutputPrompt { display: none; } .jp-Notebook { padding: .5rem !important; }
  .jp-OutputArea-output { overflow-x: auto; }
}
</style>"""


def mathml(formula: str, display: str) -> str:
    """Return a TeX formula as MathML that Markdown leaves alone; what is none of TeX stays, as code."""
    from latex2mathml import converter, exceptions

    errors = tuple(kind for kind in vars(exceptions).values() if isinstance(kind, type))
    try:
        made = converter.convert(formula.strip(), display=display)
    except errors:
        return f"<code>{html.escape(formula.strip())}</code>"
    return "".join(IN_MARKDOWN.get(sign, sign) for sign in made)


def formulas(text: str) -> str:
    """Return Markdown with its formulas as MathML."""

    def replaced(match: re.Match[str]) -> str:
        code, block, line = match.groups()
        return code or mathml(block or line, "block" if block else "inline")

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
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = formulas(text_of(cell.source))
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", embed_images=True)
    body, _ = exporter.from_notebook_node(notebook)
    back = '<p style="margin: 1rem"><a href="../index.html">report</a></p>'
    body = body.replace("</head>", f"{STYLE}</head>", 1)
    return re.sub(r"(<body[^>]*>)", rf"\1{back}", body, count=1)
