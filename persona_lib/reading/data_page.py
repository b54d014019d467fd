"""The page that says what was found in a user's own data: an account of every row, before anything runs.

One self-contained HTML file; all text of the data is escaped and shortened.
"""

from __future__ import annotations

import html
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import weights
from persona_lib.data import own
from persona_lib.data.own import OwnData
from persona_lib.data.own_checks import NOTED, REJECTED, Finding
from persona_lib.data.own_mapping import SPLITS
from persona_lib.data.own_rows import PAIR_FIELDS
from persona_lib.profiles import Profile
from persona_lib.prompts import completion_text, tailoring_prompt
from persona_lib.store import write_text
from persona_lib.tables.cells import to_html

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 200  # findings of one kind that the page lists; the table has all
NAME = "data.html"
STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 64rem; }
.wide { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: .85rem; }
caption { text-align: left; opacity: .85; } summary { cursor: pointer; padding: .3rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; } .text { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


# --- lengths ---


def training_tokenizer(profile: Profile) -> Any:
    """Return the tokenizer that a run will use, or None if it is not on this machine."""
    if weights.is_packaged(profile.base_model) and not weights.is_fetched(profile.base_model):
        return None
    try:
        from persona_lib.models.llm import load_tokenizer

        return load_tokenizer(profile.base_model, profile.base_revision)
    except (ImportError, OSError, ValueError) as error:
        logging.getLogger(__name__).info("no tokenizer: %s", error)
        return None


def row_texts(data: OwnData, split: str = "") -> list[str]:
    """Return the texts that training reads: each prompt with the chosen and with the rejected response."""
    rows = [row.pair for row in data.rows if not split or row.split == split]
    asked = [(tailoring_prompt(pair.prompt, None), pair) for pair in rows]
    return [text + completion_text(t) for text, pair in asked for t in (pair.chosen, pair.rejected)]


def token_counts(profile: Profile, data: OwnData) -> list[int] | None:
    """Return the tokens of each row's longer text, personas not counted; None without a tokenizer."""
    tokenizer = training_tokenizer(profile)
    if tokenizer is None:
        return None
    lengths = [len(ids) for ids in tokenizer(row_texts(data))["input_ids"]]
    return [max(pair) for pair in zip(lengths[::2], lengths[1::2], strict=True)]


def too_long(profile: Profile, data: OwnData, counts: Sequence[int]) -> list[Finding]:
    """Note the rows whose longer text has more tokens than ``max_length``."""
    return [
        Finding(row.row, row.place, "row", "too long", f"{count} tokens, max_length {profile.max_length}")
        for row, count in zip(data.rows, counts, strict=True)
        if count > profile.max_length
    ]


def length_table(data: OwnData, counts: Sequence[int] | None) -> pd.DataFrame:
    """Return the median, 95th percentile and maximum of characters per field and of tokens per row."""
    import pandas as pd

    lengths = {f"characters of {name}": [len(getattr(r.pair, name)) for r in data.rows] for name in PAIR_FIELDS}
    if counts is not None:
        lengths["tokens of prompt and longer response"] = list(counts)
    lines = [
        {"what": name, "median": s.median(), "95 % have at most": s.quantile(0.95), "longest": s.max()}
        for name, s in ((name, pd.Series(values)) for name, values in lengths.items())
    ]
    return pd.DataFrame(lines).round(0).astype({"median": int, "95 % have at most": int, "longest": int})


# --- tables ---


def account_table(data: OwnData, noted: Sequence[Finding] = ()) -> pd.DataFrame:
    """Return the account of the rows: what was found, how often, the mend. Read = usable + rejected."""
    import pandas as pd

    counts = Counter(finding.code for finding in data.rejected.values())
    lines = [("rows read", data.n_read, ""), ("usable", len(data.rows), "")]
    lines += [(f"rejected: {REJECTED[code][0]}", n, REJECTED[code][1]) for code, n in counts.most_common()]
    kept = [f for f in (*data.findings, *noted) if not f.rejected]
    marks = Counter(code for code, _ in {(f.code, f.row) for f in kept})
    lines += [(f"kept, but: {NOTED[code][0]}", n, NOTED[code][1]) for code, n in marks.most_common()]
    return pd.DataFrame(lines, columns=["what", "rows", "what to do"])


def split_table(data: OwnData) -> pd.DataFrame:
    """Return rows, different prompts and categories per split."""
    import pandas as pd

    parts = {split: [row for row in data.rows if row.split == split] for split in SPLITS}
    lines = [
        (split, len(part), len({r.pair.prompt for r in part}), len({r.category for r in part if r.category}))
        for split, part in parts.items()
    ]
    return pd.DataFrame(lines, columns=["split", "rows", "different prompts", "categories"])


def finding_lines(findings: Sequence[Finding]) -> pd.DataFrame:
    """Return findings as a table for readers."""
    import pandas as pd

    lines = [(f.place, f.field, f.detail[:160]) for f in findings]
    return pd.DataFrame(lines, columns=["where", "field", "detail"])


# --- the page ---


def sections(data: OwnData, noted: Sequence[Finding]) -> str:
    """Return every finding, folded by kind: rejected rows under their first reason, kept ones under each."""
    parts = []
    rejected, kept = list(data.rejected.values()), [f for f in (*data.findings, *noted) if not f.rejected]
    for outcome, codes, findings in (("rejected", REJECTED, rejected), ("kept", NOTED, kept)):
        for code, (words, mend) in codes.items():
            found = [finding for finding in findings if finding.code == code]
            if found:
                more = "" if len(found) <= SHOWN else f", the first {SHOWN} of them shown"
                table = to_html(finding_lines(found[:SHOWN]), f"Mend: {mend}")
                title = html.escape(f"{outcome}: {words} ({len(found)}{more})")
                opened = " open" if outcome == "rejected" else ""
                parts.append(f"<details{opened}><summary>{title}</summary>{table}</details>")
    return "".join(parts) or "<p>Nothing was found.</p>"


def persona_note(profile: Profile) -> str:
    """Say who infers the personas, and what that is worth."""
    model = profile.generator_model
    if profile.generator_url:
        return f"Personas are inferred by {model}, which is served at {profile.generator_url}."
    if model == "surface":
        return (
            "Personas are written by rule from what can be counted in the two responses (length, lists, "
            "numbers, tone). They know nothing of what a response says, and are not the paper's persona "
            "inference. For that, name an able language model: --set generator_url=http://... "
            "--set generator_model=NAME."
        )
    return f"Personas are inferred by {profile.base_model if model == 'base' else model}."


def example(data: OwnData) -> str:
    """Return the first usable row as it will be read."""
    row = data.rows[0]
    texts = [f"{name}\n{getattr(row.pair, name)[:600]}" for name in PAIR_FIELDS]
    shown = html.escape("\n".join(texts))
    return f'<p>{html.escape(row.place)}, split {row.split}:</p><div class="text">{shown}</div>'


def page_text(profile: Profile, data: OwnData) -> str:
    """Return the page."""
    counts = token_counts(profile, data)
    noted = too_long(profile, data, counts) if counts is not None else []
    how = "as given" if data.given_splits else (
        "by prompt; prompts whose word 3-grams overlap by "
        f"{profile.near_duplicate_threshold} or more (Jaccard) stay together"
    )  # fmt: skip
    unknown = "" if counts is not None else " The tokenizer is not here yet: tokens were not counted."
    parts = {
        "Every row accounted for": to_html(account_table(data, noted), "Read = usable + rejected"),
        "Splits": to_html(split_table(data), f"Split {how}"),
        "Lengths": to_html(length_table(data, counts), f"max_length is {profile.max_length}.{unknown}"),
        "Personas": f"<p>{html.escape(persona_note(profile))}</p>",
        "What was found, row by row": sections(data, noted),
        "The first usable row": example(data),
    }
    body = "".join(f"<h2>{title}</h2>{part}" for title, part in parts.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Your data</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><main><h1>Your data: what was found</h1>"
        f"<p>{html.escape(data.source)}</p>{body}</main></body></html>\n"
    )


def write_page(profile: Profile, data: OwnData, folder: Path) -> Path:
    """Write the page and, beside it, all rows and findings as CSV; returns the page's path."""
    for name, table in (("rows", own.row_table(data)), ("findings", own.finding_table(data))):
        write_text(folder / f"data_{name}.csv", table.to_csv(index=False))
    write_text(folder / NAME, page_text(profile, data))
    return folder / NAME
