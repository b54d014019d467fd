"""For the guide to your own data: the worked example, its mapping, and one line per check of a small run."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from persona_lib.config import REPO, Run, load_profile
from persona_lib.data import own, own_rows
from persona_lib.evaluation.personas import count_statuses
from persona_lib.records import InferredPersona
from persona_lib.store import read_rows

if TYPE_CHECKING:
    import pandas as pd

AUTOJ = ("autoj", "autoj_pairwise.json")
EXAMPLES = REPO / "examples"


def find_autoj() -> Path | None:
    """Return Auto-J's file below ``$PERSONA_DATA`` or ``../shared/data``, None where it is not."""
    places = [Path(os.environ["PERSONA_DATA"])] if os.environ.get("PERSONA_DATA") else []
    found = [place.joinpath(*AUTOJ) for place in (*places, REPO.parent / "shared" / "data")]
    return next((path for path in found if path.is_file()), None)


def guide_run(name: str, overrides: list[str]) -> Run:
    """Return the run of the worked example, in a results folder of its own.

    Its data is what the overrides name, else Auto-J's file where it is at hand, else the shipped pairs.
    Raises ConfigError for a profile whose judge cannot read it.
    """
    profile = load_profile(name, overrides)
    own.check_judge(profile)
    changes = {"name": f"{profile.name}_guide", "datasets": (own_rows.NAME,)}
    autoj = find_autoj()
    if any(override.startswith("data_dir=") for override in overrides):
        pass
    elif autoj:
        changes |= {"data_dir": str(autoj), "data_mapping": str(EXAMPLES / "autoj.yaml")}
    else:
        changes |= {"data_dir": str(EXAMPLES / "pairs.jsonl"), "data_mapping": ""}
    return Run(dataclasses.replace(profile, **changes), own_rows.NAME, profile.seeds[0])


def source_text(run: Run) -> str:
    """Say which data the guide uses, and show its mapping."""
    path = run.profile.data_mapping
    mapping = Path(path).read_text(encoding="utf-8") if path else "(no mapping: prompt, chosen, rejected)\n"
    return f"{Path(run.profile.data_dir).name}\n\n{mapping}"


def persona_counts(run: Run) -> pd.DataFrame:
    """Count, per file of personas, how the answers were read: a persona ("ok"), or why not."""
    import pandas as pd

    files = sorted((run.folder / "personas").glob("*.jsonl"))
    counts = {path.stem: count_statuses(read_rows(path, InferredPersona)) for path in files}
    return pd.DataFrame.from_dict(counts, orient="index").fillna(0).astype(int).rename_axis("split and side")
