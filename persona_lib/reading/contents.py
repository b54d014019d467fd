"""For the contents notebook: which notebooks there are, which have run, and the main figure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib.config import REPO, figures_dir, results_dir
from persona_lib.drawing.figures import alt_text
from persona_lib.profiles import Profile

if TYPE_CHECKING:
    import pandas as pd

FOLDER = REPO / "notebooks"
CONTENTS = "00_contents.ipynb"
LINK = re.compile(r"\]\((\d\d_\w+\.ipynb)\)")


def notebook_names(folder: Path = FOLDER) -> set[str]:
    """Return the file names of all notebooks but the contents."""
    return {path.name for path in folder.glob("*.ipynb")} - {CONTENTS}


def linked_notebooks(folder: Path = FOLDER) -> set[str]:
    """Return the notebooks that the contents link to."""
    cells = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))["cells"]
    prose = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return set(LINK.findall(prose))


def title_of(path: Path) -> str:
    """Return a notebook's title, without its number."""
    first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).splitlines()[0]
    return re.sub(r"^#\s*\d*\s*", "", first)


def steps_table(profile: Profile, folder: Path = FOLDER) -> pd.DataFrame:
    """Return every notebook with its title and how many executed copies of it the profile's results hold."""
    import pandas as pd

    executed = results_dir(profile) / "notebooks"
    rows = []
    for name in sorted(notebook_names(folder)):
        stem = Path(name).stem
        copies = [p for p in executed.glob(f"{stem}.*ipynb") if not p.name.endswith(".running.ipynb")]
        rows.append(
            {"notebook": stem, "title": title_of(folder / name), f"runs of {profile.name}": len(copies)}
        )
    return pd.DataFrame(rows).set_index("notebook")


def first_figure(profile: Profile) -> Any:
    """Return the main figure to be shown, or a word that there is none yet."""
    path = figures_dir(profile) / "main.png"
    if not path.exists():
        return f"no figure yet: ./run_all.sh --profile {profile.name}"
    from IPython.display import Image

    return Image(path, alt=alt_text(profile, "main"))
