"""What ``--data FILE`` adds to a run: the data set "own", the steps it needs, and validation first."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from persona_lib import config
from persona_lib.config import results_dir
from persona_lib.data import official_folders, own, own_rows
from persona_lib.profiles import Profile
from persona_lib.runner.steps import STEPS

PROFILE = "own"  # the profile that runs it where none is named
JUDGING = ("04_persona_quality", "09_judging", "10_user_personas")  # nothing to do without a judge
NEVER = ("13_released_outputs", "16_your_own_data")  # about the authors' data; the guide


def is_own(data: str | None, settings: list[str]) -> bool:
    """Say whether ``--data`` names a user's own data: not the authors', no data set was chosen by name."""
    if not data or data == official_folders.FROM_HUB or any(s.startswith("datasets=") for s in settings):
        return False
    place = Path(data).expanduser()
    folders = [f for f in (place, place / "official") if any(f.glob("persona-*"))]
    return not (place.is_dir() and folders)


def own_overrides(name: str, overrides: list[str]) -> list[str]:
    """Return what else changes for own data: the data set, and the steps unless they were chosen by hand.

    Own data brings no personas, so that they have to be inferred; without a judge nothing is judged.
    """
    changes = [f"datasets={own_rows.NAME}"]
    if any(override.startswith("steps=") for override in overrides):
        return changes
    profile = config.load_profile(name, [*overrides, *changes])
    skipped = NEVER + (JUDGING if profile.judge == "none" else ())
    steps = [step for step in STEPS if step in (*profile.steps, "03_persona_inference") or step in JUDGING]
    return [*changes, "steps=" + ",".join(step for step in steps if step not in skipped)]


def validate(profile: Profile, only_asked: bool = False) -> None:
    """Read and check the user's own data before anything runs; writes the page that says what was found.

    Does nothing for a profile without own data. Raises DataError or ConfigError.
    """
    if own_rows.NAME not in profile.datasets:
        return
    own.check_judge(profile)
    try:
        data = own.read_own(profile)
    except ImportError as error:  # the Python that runs before anything is set up has no packages
        print(f"{profile.data_dir}: is checked when {error.name} is installed", flush=True)
        return
    print("\n".join(own.describe(data)))
    if not only_asked and importlib.util.find_spec("pandas"):
        from persona_lib.reading.data_page import write_page

        page = write_page(profile, data, results_dir(profile) / "report")
        print(f"what was found, row by row: {page}\n", flush=True)
