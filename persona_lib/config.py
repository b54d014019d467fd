"""Opening a run: profiles read from ``configs/<name>.yaml``, overrides, and the folders of results.

A file may say ``extends: other`` and then lists only what differs.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from persona_lib.profiles import (
    ConfigError,
    Profile,
    check_fields,
    check_profile,
    field_types,
    near_names,
)

REPO = Path(__file__).resolve().parent.parent
FACTS = REPO / "persona_lib" / "facts"  # tables that ship with the package


def parse_override(text: str) -> tuple[str, Any]:
    """Read one ``key=value`` of ``--set`` into a typed value; tuples are comma-separated.

    Raises ConfigError on a missing "=", an unknown name (with near names) or an ill-typed value.
    """
    where = f"--set {text}"
    name, equals, raw = text.partition("=")
    if not equals:
        raise ConfigError(f"{where}: write key=value")
    types = field_types()
    if name not in types:
        raise ConfigError(f"{where}: unknown field {name!r}; {near_names(name, list(types))}")
    wanted = types[name]
    try:
        if get_origin(wanted) is tuple:
            return name, tuple(get_args(wanted)[0](v) for v in raw.split(",") if v)
        if wanted is bool:
            return name, {"true": True, "false": False}[raw.lower()]
        return name, wanted(raw)
    except (ValueError, KeyError) as error:
        kind = wanted.__name__ if isinstance(wanted, type) else str(wanted)
        raise ConfigError(f"{where}: {raw!r} is not a valid {kind} for {name}") from error


def read_profile_file(name: str, folder: Path) -> dict[str, Any]:
    """Read one YAML file and what it extends into a flat dict of checked fields."""
    import yaml

    path = folder / f"{name}.yaml"
    if not path.exists():
        names = sorted(p.stem for p in folder.glob("*.yaml"))
        raise ConfigError(f"no profile {name!r} in {folder}; {near_names(name, names)}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it is built: six times as fast
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: should be a list of 'field: value' lines")
    parent = content.pop("extends", None)
    values = read_profile_file(parent, folder) if parent else {}
    return values | check_fields(content, str(path)) | {"name": name}


def load_profile(
    name: str, overrides: list[str] | tuple[str, ...] = (), folder: Path | None = None
) -> Profile:
    """Load ``configs/<name>.yaml`` and apply ``key=value`` overrides.

    Raises ConfigError for a missing profile, missing, unknown or ill-typed fields.
    """
    folder = folder or REPO / "configs"
    values = read_profile_file(name, folder)
    values |= dict(parse_override(text) for text in overrides)
    missing = [f.name for f in dataclasses.fields(Profile) if f.name not in values]
    if missing:
        raise ConfigError(f"{folder / name}.yaml: missing field(s) {', '.join(missing)}")
    profile = Profile(**values)
    check_profile(profile)
    return profile


def set_field(profile: Profile, **changes: Any) -> Profile:
    """Return a copy of the profile with some fields changed, checked like a file's."""
    changed = dataclasses.replace(profile, **check_fields(changes, f"profile {profile.name}"))
    check_profile(changed)
    return changed


def results_root() -> Path:
    """Folder of all results: ``results``, or ``$PERSONA_RESULTS``."""
    return Path(os.environ.get("PERSONA_RESULTS", REPO / "results"))


def results_dir(profile: Profile) -> Path:
    """Folder of a profile's results: ``results/<profile>``."""
    return results_root() / profile.name


def figures_dir(profile: Profile) -> Path:
    """Folder of a profile's figures: ``figures/<profile>`` (or below ``$PERSONA_FIGURES``)."""
    return Path(os.environ.get("PERSONA_FIGURES", REPO / "figures")) / profile.name


def run_dir(profile: Profile, dataset: str, seed: int) -> Path:
    """Folder of one data set and seed: ``results/<profile>/<dataset>/seed-<seed>``."""
    if dataset not in profile.datasets:
        raise ConfigError(
            f"data set {dataset!r} is not one of profile {profile.name}: {', '.join(profile.datasets)}"
        )
    return results_dir(profile) / dataset / f"seed-{seed}"


def main_arm(profile: Profile) -> str:
    """The tailored arm that is compared with the persona-free one: "chosen", the paper's, if there is one."""
    return "chosen" if "chosen" in profile.train_personas else profile.train_personas[-1]


@dataclass(frozen=True)
class Run:
    """One data set and seed of a profile: what every per-run step works on."""

    profile: Profile
    dataset: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where this run's rows, adapters, generations and tables are."""
        return run_dir(self.profile, self.dataset, self.seed)

    @property
    def base_source(self) -> tuple[str, str]:
        """Where the base model is (``pypi:NAME``, a hub id or a folder), and its revision."""
        return self.profile.base_model, self.profile.base_revision


def open_run(
    profile: str, dataset: str = "", seed: int = 0, overrides: list[str] | tuple[str, ...] = ()
) -> Run:
    """Open what a notebook works on, from its parameters; an empty data set means the profile's first."""
    loaded = load_profile(profile, overrides)
    return Run(loaded, dataset or loaded.datasets[0], seed)
