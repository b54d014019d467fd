"""The one definition of a text's words, for measures and for near duplicates; needs no package."""

from __future__ import annotations

import re

TOKEN = re.compile(r"[a-z0-9']+")


def tokens(text: str, limit: int | None = None) -> list[str]:
    """Return the lower-cased ``[a-z0-9']+`` tokens of a text, at most the first ``limit``."""
    return TOKEN.findall(text.lower())[:limit]
