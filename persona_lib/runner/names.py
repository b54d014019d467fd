"""Names in a profile that stand in a table of the library: data sets, judges, arms. Checked before a run.

Each kind is extended by one function and one line in its table, so the check reads the tables themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

from persona_lib.data.arms import ARMS
from persona_lib.data.preference import READERS
from persona_lib.evaluation.judge import JUDGES
from persona_lib.models.generators import generator_kind
from persona_lib.profiles import ConfigError, Profile, near_names


def check_names(profile: Profile) -> None:
    """Raise ConfigError for a data set, judge, arm or engine that is in no table; names the near ones."""
    fields: dict[str, tuple[Iterable[str], list[str]]] = {
        "datasets": (profile.datasets, list(READERS)),
        "judge": ([profile.judge], [*JUDGES, "none"]),
        "train_personas": (profile.train_personas, list(ARMS)),
    }
    for field, (names, known) in fields.items():
        for name in names:
            if name not in known:
                raise ConfigError(f"profile {profile.name}: {field}: {name!r}: {near_names(name, known)}")
    generator_kind(profile, "generator")
