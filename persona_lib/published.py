"""Published arms: whole models, such as the authors' merged checkpoints, in place of arms trained here.

A profile lists them in ``published_arms`` as DATASET/ARM=MODEL, a hub id (@REVISION) or a folder. Such an arm
answers, is judged and scored like any other; it has no adapters, and what only it would need is not trained.
The functions take a profile; ``config`` uses them, so nothing is imported from there.
"""

from __future__ import annotations

import re
from typing import Any

ENTRY = re.compile(r"(?P<dataset>[^/=]+)/(?P<arm>(?:sft|dpo)-\w+)=(?P<source>[^@]+)(?:@(?P<revision>.+))?")


def what_is_wrong(profile: Any) -> str:
    """Say which entry of ``published_arms`` cannot be used, and the mend; empty if all can."""
    return next(filter(None, (entry_problem(profile, text) for text in profile.published_arms)), "")


def entry_problem(profile: Any, text: str) -> str:
    """Say why one entry cannot be used; empty if it can."""
    match = ENTRY.fullmatch(text)
    if not match:
        return f"{text!r}: write DATASET/ARM=MODEL or DATASET/ARM=MODEL@REVISION, ARM like dpo-chosen"
    dataset, (method, _, persona) = match["dataset"], match["arm"].partition("-")
    if dataset not in profile.datasets:
        return f"{text!r}: no data set {dataset!r} here; known: {', '.join(profile.datasets)}"
    if method not in profile.methods or persona not in profile.train_personas:
        return f"{text!r}: {match['arm']} is not an arm here: add it to methods and train_personas"
    higher = f"dpo-{persona}"
    if method == "sft" and "dpo" in profile.methods and not published_model(profile, dataset, higher):
        return (
            f"{text!r}: {higher} would be trained on this arm's adapter, which a published model has not: "
            f"publish {higher}, too"
        )
    return ""


def published_model(profile: Any, dataset: str, arm: str) -> tuple[str, str] | None:
    """Return (hub id or folder, revision) of the whole model that an arm is; None if it is trained here."""
    for match in map(ENTRY.fullmatch, profile.published_arms):
        if match and (match["dataset"], match["arm"]) == (dataset, arm):
            return match["source"], match["revision"] or ""
    return None


def published_models(profile: Any) -> list[tuple[str, str]]:
    """Return (hub id or folder, revision) of every whole model of a profile."""
    matches = map(ENTRY.fullmatch, profile.published_arms)
    return [(match["source"], match["revision"] or "") for match in matches if match]


def trained_personas(profile: Any, dataset: str, method: str) -> tuple[str, ...]:
    """Return the train personas whose adapters of a method are trained here.

    Published arms are not; nor is an SFT adapter that is no arm itself and whose DPO arm is published.
    """
    personas = [p for p in profile.train_personas if not published_model(profile, dataset, f"{method}-{p}")]
    if method == "sft" and "sft" not in profile.methods:
        personas = [p for p in personas if not published_model(profile, dataset, f"dpo-{p}")]
    return tuple(personas)
