"""Write what a run found into the repository: the documents' tables, the list of files, the notebooks.

``python -m persona_lib.docs`` fills the blocks ``<!-- table:PROFILE/NAME -->`` of REPRODUCTION.md from
``figures/published/PROFILE``, draws the figures there, and lists the library's files. ``--keep NAME ...``
first copies tables of the run there. ``--notebooks [STEP ...]`` puts executed notebooks' outputs into them.
``--address URL`` enters the repository's address on GitHub wherever readers look for it.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from persona_lib import settings
from persona_lib.execute import StepError, cells_of_code, notebook_hash, shown_outputs
from persona_lib.figures import FIGURES, draw
from persona_lib.paper.results import table_path
from persona_lib.report import origin
from persona_lib.settings import REPO, ConfigError, Parser, Profile, load_profile
from persona_lib.show import owner_of, render, to_markdown
from persona_lib.store import facts, now, read_csv, read_json, write_json, write_text
from persona_lib.tasks import Pipeline, stale_reasons

DOCUMENT, LIBRARY = REPO / "REPRODUCTION.md", REPO / "persona_lib"
PACKAGES = ("data", "models", "paper", "beyond")
BLOCK = re.compile(r"<!-- table:([\w-]+)/(\w+) -->\n.*?<!-- end -->", re.DOTALL)
NOTEBOOK = "notebooks/00_contents.ipynb"  # which sets itself up on Colab and Binder
BADGES = f"""
[![tests](https://github.com/OWNER/NAME/actions/workflows/tests.yml/badge.svg)](https://github.com/OWNER/NAME/actions)
[![licence](https://img.shields.io/badge/licence-Apache--2.0-blue)](LICENSE)
[![Python](https://img.shields.io/badge/python-3.11_to_3.13-blue)](pyproject.toml)
[![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/NAME/blob/main/{NOTEBOOK})
[![Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/NAME/main?urlpath=lab/tree/{NOTEBOOK})
"""  # noqa: E501
# The rows that documents show of long tables; the columns are those of the view NAME_short, if there is one.
ROWS = {
    "swap": "measure == 'policy' and persona in ('gold', 'retrieved', 'shuffled', 'user')",
    "persona_models": "n > 0",
}


def kept(profile: Profile) -> tuple[Path, dict[str, str]]:
    """Return the folder of kept tables, and how each was made, by name."""
    folder = settings.published_dir(profile)
    return folder, read_json(folder / "origin.json") if (folder / "origin.json").exists() else {}


def keep(profile: Profile, names: Sequence[str]) -> None:
    """Copy tables of the run, with figures and provenance; FileNotFoundError for one that was not made."""
    for name in names:
        folder, origins = kept(profile)
        source = table_path(profile, name)
        if not source.exists():
            raise FileNotFoundError(f"{source}: there is no such table; run notebook 12_results first")
        known = origin(profile, "13_released_outputs" if name.startswith("released") else "12_results")
        made = "`{command}`; commit {commit}; seeds {seeds}; run of {date}.".format_map(known)
        study = settings.results_dir(profile) / name / "origin.json"
        origins[name] = read_json(study) if study.exists() else made
        folder.mkdir(parents=True, exist_ok=True)
        for path in (source, *settings.figures_dir(profile).glob(f"{name}.p*")):  # PDF and PNG
            shutil.copy(path, folder)
        write_json(folder / "origin.json", origins)


def table_block(profile: Profile, name: str) -> str:
    """Return the text of a table's block: whose numbers, provenance, table. ConfigError if it is not kept."""
    folder, origins = kept(profile)
    if name not in origins:
        command = f"python -m persona_lib.docs --profile {profile.name} --keep {name}"
        raise ConfigError(f"table:{profile.name}/{name} is not kept: {command}")
    table = read_csv(folder / f"{name}.csv")
    table = table.query(ROWS[name]) if name in ROWS else table
    datasets = table.dataset if "dataset" in table else profile.datasets
    label = " and ".join(dict.fromkeys(owner_of(dataset) for dataset in datasets if dataset != "all"))
    shown = f"{name}_short" if f"{name}_short" in facts("views") else name
    return f"**{label.capitalize()}.** {origins[name]}\n\n{to_markdown(render(shown, table))}"


def rewrite(text: str) -> str:
    """Return a document with its blocks written again; ConfigError for an unclosed block."""
    opened, closed = text.count("<!-- table:"), len(BLOCK.findall(text))
    if opened != closed:
        raise ConfigError(f"{opened} blocks begin and {closed} end: close each with <!-- end -->")

    def block(found: re.Match[str]) -> str:
        table = table_block(load_profile(found[1]), found[2])
        return f"<!-- table:{found[1]}/{found[2]} -->\n{table}\n<!-- end -->"

    return BLOCK.sub(block, text)


def redraw(profile: Profile) -> None:
    """Draw the kept figures again from the kept tables."""
    folder, _ = kept(profile)
    for path in folder.glob("*.p*"):  # PDF and PNG
        tables = [read_csv(folder / f"{name}.csv") for name in FIGURES[path.stem].tables]
        path.write_bytes(draw(FIGURES[path.stem], *tables)[0][path.suffix[1:]])


def list_files() -> str:
    """Return persona_lib/README.md: every file of the library with its first line, by package."""
    lines = ["# The library, file by file", "", "Written by `python -m persona_lib.docs` from the first "
             "line of every file.", "Packages use only those above them; a test holds that."]  # fmt: skip
    for folder in (LIBRARY, *(LIBRARY / name for name in PACKAGES)):
        for path in sorted(folder.glob("*.py")):  # __init__ comes first
            said = path.read_text(encoding="utf-8").splitlines()[0].strip('"')
            line = f"- [{path.stem}]({path.relative_to(LIBRARY)}): {said}"
            lines += ["", f"## `{folder.name}/`: {said}", ""] if path.stem == "__init__" else [line]
    return "\n".join(lines) + "\n"


def publish(address: str) -> None:
    """Enter an address on GitHub: README.md's badges and clone line, CITATION.cff, and notebook 00 for Colab.

    A second call replaces the first one's. ConfigError for another kind of address.
    """
    found = re.fullmatch(r"https://github\.com/([\w.-]+/([\w.-]+?))(?:\.git|/)?", address)
    if not found:
        raise ConfigError(f"--address {address}: use https://github.com/OWNER/NAME")
    owned, name = found.groups()
    url, badges = f"https://github.com/{owned}", BADGES.replace("OWNER/NAME", owned)
    cited = f"repository-code: {url}\ndate-released: {now()[:10]}\n"
    places = (  # file, what stands there, what will
        ("README.md", r"\A(# .*\n)(\n(\[!\[.*\n)+)?", f"\\1{badges}"),
        ("README.md", r"(?m)^git clone .*", f"git clone {url} && cd {name}"),
        ("CITATION.cff", r"(?m)^(version: .*\n)(repository-code: .*\ndate-released: .*\n)?", f"\\1{cited}"),
        (NOTEBOOK, r'repository: str = \\"[^"\\]*', f'repository: str = \\\\"{url}'),
    )
    for file, pattern, text in places:
        write_text(REPO / file, re.sub(pattern, text, (REPO / file).read_text(encoding="utf-8"), count=1))


def write_back(pipeline: Pipeline, wanted: Sequence[str] = ()) -> None:
    """Write outputs of the wanted steps (default: all), first data set and seed, into the notebooks.

    StepError for a step that has not run with the notebook, the library and the settings as they are.
    """
    known, written = pipeline.known(), set()
    for task in pipeline.tasks.values():
        source = pipeline.source(task)
        if source in written or (wanted and not task.step.startswith(tuple(wanted))):
            continue
        if reasons := stale_reasons(pipeline, task, known):
            command = f"./run_all.sh --profile {pipeline.profile.name}"
            raise StepError(f"{task.id}: {'; '.join(reasons)}; run {command}")
        document, executed = read_json(source), read_json(pipeline.executed(task))
        pairs = zip(cells_of_code(document), cells_of_code(executed), strict=True)
        for number, (cell, ran) in enumerate(pairs, start=1):
            cell.update(outputs=shown_outputs(ran, number), execution_count=number)
        # a fast test compares the code's hash: so outputs of other code are found without running anything
        document["metadata"]["shown"] = {"profile": pipeline.profile.name, "code": notebook_hash(source)}
        write_json(source, document)
        written.add(source)


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0: done, 2: a run is missing or does not fit."""
    parser = Parser(prog="python -m persona_lib.docs", description=__doc__)
    add = parser.add_argument
    add("--profile", default="everyday", help="whose results to write (default: everyday)")
    add("--keep", nargs="+", default=[], metavar="NAME", help="tables of the run to keep first")
    add("--notebooks", nargs="*", metavar="STEP", help="write notebooks back, all or e.g. 03; no document")
    add(
        "--address",
        metavar="URL",
        help="enter the repository's address, https://github.com/OWNER/NAME; no more",
    )
    given = parser.parse_args(argv)
    try:
        if given.address is not None:
            publish(given.address)
            return 0
        profile = load_profile(given.profile)
        if given.notebooks is not None:
            write_back(Pipeline(profile), given.notebooks)
            return 0
        keep(profile, given.keep)
        redraw(profile)
        write_text(DOCUMENT, rewrite(DOCUMENT.read_text(encoding="utf-8")))
        write_text(LIBRARY / "README.md", list_files())
    except (ConfigError, StepError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
