"""The normal form in which executed notebooks are committed: what they show, nothing of one machine or hour.

Dropped are whatever goes to stderr, what cells tagged ``work`` print while they compute (it depends on how
much was finished before), widgets, metadata of the run, terminal colours, memory addresses and paths; cells
are counted 1 to N, and images lose their text chunks and get a text for those who cannot see them. What is
left depends on results alone, so two runs give the same bytes. The record ``metadata.shown`` names the
profile and the hash of the code that printed it: outputs of other code are found without running anything.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persona_lib.config import REPO
from persona_lib.runner.execute import notebook_hash

WORK = "work"  # tag of cells whose printed lines tell only how far they are
KEPT = ("image/png", "image/svg+xml", "text/html", "text/latex", "text/markdown", "text/plain")
RUN_METADATA = ("papermill", "persona", "widgets")
MAX_BYTES = 1_000_000  # code hosts show larger notebooks slowly or not at all
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n)")  # a line that a progress bar drew over
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
PLACES = re.compile(rf"{re.escape(str(REPO))}/?")
TEMPORARY = re.compile(rf"{re.escape(tempfile.gettempdir())}/[\w./-]+")
PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"pHYs")
Document = dict[str, Any]


class NormalError(ValueError):
    """A notebook that cannot be brought into the normal form; the message says which and what to do."""


def tags(cell: Document) -> list[str]:
    """Return the tags of a cell."""
    return cell["metadata"].get("tags", [])


def code_cells(document: Document) -> list[Document]:
    """Return the code cells, without what papermill injected."""
    cells = (cell for cell in document["cells"] if cell["cell_type"] == "code")
    return [cell for cell in cells if "injected-parameters" not in tags(cell)]


def text_of(value: Any) -> str:
    """Return a text of a notebook, which may be a list of lines."""
    return value if isinstance(value, str) else "".join(value)


# --- one output ---


def clean(text: str) -> str:
    """Take colours, overwritten lines, addresses and paths of one machine out of a text."""
    text = OVERWRITTEN.sub("", ANSI.sub("", text))
    return TEMPORARY.sub("...", PLACES.sub("", ADDRESS.sub("0x...", text)))


def bare_png(data: str) -> str:
    """Return a PNG (base64) without its text and time chunks, which name versions and dates."""
    raw = base64.b64decode(data)
    kept, at = raw[:8], 8
    while at < len(raw):
        end = at + 12 + int.from_bytes(raw[at : at + 4], "big")
        kept += raw[at:end] if raw[at + 4 : at + 8] in PNG_KEPT else b""
        at = end
    return base64.b64encode(kept).decode()


def normal_data(data: Document) -> Document:
    """Return the kept representations of a shown object, text by lines; none for a widget."""
    if any("widget" in kind for kind in data):
        return {}
    found = {kind: text_of(data[kind]) for kind in KEPT if kind in data}
    return {
        kind: bare_png(value) if kind == "image/png" else clean(value).splitlines(keepends=True)
        for kind, value in found.items()
    }


def normal_shown(output: Document, heading: str, number: int) -> Document | None:
    """Return the normal form of a displayed object or a cell's value; None if nothing of it is kept."""
    data = normal_data(output["data"])
    if not data:
        return None
    metadata = {}
    if "image/png" in data:
        said = output.get("metadata", {}).get("image/png", {}).get("alt")
        metadata = {"image/png": {"alt": said or f"Figure of the section {heading}"}}
    counted = {"execution_count": number} if output["output_type"] == "execute_result" else {}
    return {"data": data, **counted, "metadata": metadata, "output_type": output["output_type"]}


def normal_outputs(cell: Document, heading: str, number: int) -> Iterator[Document]:
    """Yield the normal outputs of a cell; what it printed between two shown objects is one output."""
    printed = ""
    for output in [*cell["outputs"], None]:
        if output and output["output_type"] == "error":
            raise NormalError(f"code cell {number} failed: mend it and run the notebook again")
        if output and output["output_type"] == "stream":
            printed += text_of(output["text"]) if output["name"] == "stdout" else ""
            continue
        if clean(printed) and WORK not in tags(cell):
            lines = clean(printed).splitlines(keepends=True)
            yield {"name": "stdout", "output_type": "stream", "text": lines}
        printed = ""
        shown = output and normal_shown(output, heading, number)
        if shown:
            yield shown


# --- whole notebooks ---


def headings(document: Document) -> list[str]:
    """Return, per code cell that counts, the last heading above it."""
    found, heading = [], ""
    for cell in document["cells"]:
        titles = re.findall(r"^#+ (.+)$", text_of(cell["source"]), re.MULTILINE)
        if cell["cell_type"] == "markdown":
            heading = titles[-1] if titles else heading
        elif "injected-parameters" not in tags(cell):
            found.append(heading)
    return found


def normal_document(source: Document, executed: Document, shown: Document) -> Document:
    """Return the source with the executed copy's outputs in normal form; ``shown`` is their record.

    Raises NormalError if the copy ran other code, or a cell of it failed.
    """
    document = copy.deepcopy(source)
    own, ran = code_cells(document), code_cells(executed)
    texts = [[text_of(cell["source"]).rstrip() for cell in cells] for cells in (own, ran)]
    if texts[0] != texts[1]:
        raise NormalError("the executed copy ran other code: run the step again")
    number = 0
    for cell, copied, heading in zip(own, ran, headings(document), strict=True):
        number += bool(text_of(cell["source"]).strip())
        cell["outputs"] = list(normal_outputs(copied, heading, number))
        cell["execution_count"] = number if text_of(cell["source"]).strip() else None
    return tidy(document) | {"metadata": tidy(document)["metadata"] | {"shown": shown}}


def tidy(document: Document) -> Document:
    """Take the metadata of one run out of a notebook, in place."""
    for name in RUN_METADATA:
        document["metadata"].pop(name, None)
    for cell in document["cells"]:
        for name in ("papermill", "execution"):
            cell["metadata"].pop(name, None)
    return document


def to_text(document: Document) -> str:
    """Return a notebook's file."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def read(path: Path) -> Document:
    """Read a notebook."""
    return json.loads(path.read_text(encoding="utf-8"))


def problems(path: Path) -> list[str]:
    """Say what of a committed notebook is not in normal form; a notebook without outputs has no problem."""
    document = read(path)
    shown = document["metadata"].get("shown")
    if not any(cell["outputs"] or cell["execution_count"] for cell in code_cells(document)):
        return ["metadata.shown is there, but no outputs"] if shown else []
    if not shown:
        return ["its outputs are of an unrecorded run: write it back, or clear them"]
    found = []
    if shown.get("code") != notebook_hash(path):
        found.append("its code changed after its outputs were made: run it again and write it back")
    if len(path.read_bytes()) > MAX_BYTES:
        found.append(f"it is larger than {MAX_BYTES / 1e6:.0f} MB: show less or smaller figures")
    if normal_document(document, document, shown) != document:
        found.append("its outputs are not in normal form: write it back")
    return found
