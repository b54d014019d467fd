"""Put the outputs of a finished run into ``notebooks/``: ``python -m persona_lib.docs --notebooks``.

The executed notebooks of a profile (its first data set and seed) are brought into a normal form that depends
on results alone (``persona_lib.execute``) and become what JupyterLab and code hosts show. Code and
prose stay as they are, so no step becomes stale, and writing back twice changes nothing. Notebooks that the
profile does not run are left alone. ``--check`` writes nothing and says which committed outputs are not in
normal form or belong to other code; it needs no run.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib.beyond.claims import paper_rows
from persona_lib.execute import NormalError, normal_document, notebook_hash, problems, read, to_text
from persona_lib.figures import FIGURES, alt_text
from persona_lib.paper.results import read_table, save_table, table_path
from persona_lib.report import origin_line
from persona_lib.settings import REPO, ConfigError, Profile, figures_dir, load_profile, results_dir
from persona_lib.show import LABELS, columns_of, owner_of, render, to_markdown
from persona_lib.store import read_json, write_json, write_text
from persona_lib.tasks import Pipeline, Task

if TYPE_CHECKING:
    import pandas as pd


# --- Write the numbers of README.md and REPRODUCTION.md from saved tables ---
# A block stands between ``<!-- table:PROFILE/NAME -->`` (or ``figure:``) and ``<!-- end -->``; whatever is
# inside is replaced. No number in those documents is typed by hand. Blocks of other profiles stay as they
# are, and with ``--only NAME ...`` all blocks but those.
#
# ``--keep NAME ...`` copies tables of the run at hand to ``figures/PROFILE/kept``, with where they come
# from. The documents show kept tables while there are no results that hold them: so the documents can be
# written, and checked, without the runs.
#
# persona_lib/README.md, the list of the library's files, is written from their first lines.


DOCUMENTS = ("README.md", "REPRODUCTION.md")
PACKAGES = ("data", "models", "paper", "beyond")
BLOCK = re.compile(r"(<!-- (table|figure):([\w-]+)/(\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NOT_RUN = "*Not run yet.*"
TRACKED = {  # tables on validation topics, kept with the figures -> the command that writes them
    "reader": "python -m persona_lib.studies reader",
    "selection_sft": "python -m persona_lib.studies selection",
    "selection_dpo": "python -m persona_lib.studies selection",
}
DERIVED = {"paper": paper_rows}  # follow from facts
SHOWN: dict[str, dict[str, Any]] = {  # what of a long table stands in a document
    "swap": {"measure": ["policy"], "persona": ["gold", "stripped", "retrieved", "shuffled", "user"]},
    "swap_differences": {"measure": ["policy"], "persona": ["gold", "retrieved", "shuffled", "user"]},
    "filtered": {"kind": ["main"]},
    "primary": {
        "met": ["yes", "no", "judge not believed"],
        "where": [
            f"everyday, {name}"
            for name in ("chosen", "rejected", "gold-chosen", "gold-rejected", "gold", "shuffled")
        ],
    },  # fmt: skip
    "reader": {"texts": ["generated"]},
    "length": {"kind": ["main"]},
}


def label_of(name: str, table: pd.DataFrame, profile: Profile) -> str:
    """Say whose numbers a table holds."""
    if name == "paper":
        return LABELS["paper"]
    names = table.dataset if "dataset" in table else profile.datasets
    return " and ".join(dict.fromkeys(owner_of(d) for d in names if d != "all")) or LABELS["everyday"]


def read_shown(profile: Profile, name: str) -> pd.DataFrame:
    """Read a table, cut to what of it stands in a document."""
    import pandas as pd

    path = kept_folder(profile) / f"{name}.csv" if name in kept_origins(profile) else None
    path = figures_dir(profile) / f"{name}.csv" if name in TRACKED else path
    table = pd.DataFrame() if name in TRACKED else read_table(profile, name)
    if table.empty and path and path.exists():
        table = pd.read_csv(path, dtype={"seeds": str})
    for column, values in SHOWN.get(name, {}).items():
        table = table[table[column].isin(values)] if column in table else table
    return table


def table_block(profile: Profile, name: str) -> str:
    """Return the text of a table's block: whose numbers, provenance, table; or that it was not run."""
    if name not in {*columns_of(), *TRACKED}:
        known = ", ".join(sorted({*columns_of(), *TRACKED}))
        raise ValueError(f"table:{profile.name}/{name}: no such table; use one of {known}")
    table = read_shown(profile, name)
    if table.empty:
        return NOT_RUN
    label = label_of(name, table, profile).capitalize()
    return f"**{label}.** {made_by(profile, name, table)}\n\n{to_markdown(render(name, table))}"


def made_by(profile: Profile, name: str, table: pd.DataFrame) -> str:
    """Say how a table was made: command, commit, seeds, n and date."""
    if name == "paper":
        return "From the exact counts; the paper prints no intervals and no tests, these are ours."
    if read_table(profile, name).empty and name in kept_origins(profile):
        return kept_origins(profile)[name]
    if name in TRACKED:
        return f"`{TRACKED[name]}`; validation topics, seeds that no result uses."
    sizes = sorted({int(n) for n in table.n.dropna()}) if "n" in table else []
    n = "see the table" if not sizes else str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    if name == "persona_models":
        return str(read_json(results_dir(profile) / name / "origin.json"))
    if "safety" in name:
        runs = "none, no model runs" if name.startswith("released") else seeds_of(profile) or "not recorded"
        return origin_line(profile, runs, n, "15_safety")
    if name.startswith("released"):
        judged = name in ("released_judged", "released_agreement")
        runs = "none, only judges run" if judged else "none, no model runs"
        return origin_line(profile, runs, n, "13_released_outputs")
    if name.startswith("rating"):
        return origin_line(profile, str(profile.seeds[0]), n, "14_human_ratings")
    named = table.seeds.dropna() if "seeds" in table else table.seed.map(str) if "seed" in table else []
    seeds = " ".join(dict.fromkeys(named)) or seeds_of(profile)
    return origin_line(profile, seeds or "not recorded", n)


# --- tables that are kept beside the figures ---


def kept_folder(profile: Profile) -> Path:
    """Return the folder of kept tables."""
    return figures_dir(profile) / "kept"


def kept_origins(profile: Profile) -> dict[str, str]:
    """Return where each kept table comes from, by name."""
    path = kept_folder(profile) / "origin.json"
    return read_json(path) if path.exists() else {}


def keep(profile: Profile, names: list[str]) -> list[Path]:
    """Copy tables of the run at hand, with their provenance; FileNotFoundError for one that was not made."""
    origins, copied = kept_origins(profile), []
    for name in names:
        source = table_path(profile, name)
        if not source.exists():
            raise FileNotFoundError(f"{source}: there is no such table; run notebook 12_results first")
        origins[name] = made_by(profile, name, read_shown(profile, name))
        copied.append(kept_folder(profile) / f"{name}.csv")
        write_text(copied[-1], source.read_text(encoding="utf-8"))
    write_json(kept_folder(profile) / "origin.json", origins)
    return copied


def refresh(profile: Profile) -> None:
    """Save the tables that follow from facts and from other tables anew, where the profile has any tables."""
    if table_path(profile, "primary").exists():
        for name, make in DERIVED.items():
            save_table(profile, name, make(profile))


# --- figures and documents ---


def seeds_of(profile: Profile) -> str:
    """Return the seeds that the profile's saved tables pool."""
    for name in ("main", "swap", "persona_accuracy"):
        table = read_table(profile, name)
        if "seeds" in table:
            return str(table.seeds.dropna().iloc[0])
    return ""


def figure_block(profile: Profile, name: str, before: str) -> str:
    """Return an image with its alt text, or that it was not run; what stood there if its tables are gone."""
    if name not in FIGURES:
        raise ValueError(f"figure:{profile.name}/{name}: no such figure; use one of {', '.join(FIGURES)}")
    if not (figures_dir(profile) / f"{name}.png").exists():
        return NOT_RUN
    try:
        return f"![{alt_text(profile, name)}](figures/{profile.name}/{name}.png)"
    except FileNotFoundError:
        return before


def rewrite(text: str, profile: Profile, only: Collection[str] = ()) -> str:
    """Return a document with the blocks of one profile written again, all or ``only`` those of these names.

    ValueError for an unclosed block.
    """
    opened, closed = text.count("<!-- table:") + text.count("<!-- figure:"), len(BLOCK.findall(text))
    if opened != closed:
        raise ValueError(f"{opened} blocks begin and {closed} end: close each with <!-- end -->")

    def block(match: re.Match[str]) -> str:
        head, kind, owner, name, inside, end = match.groups()
        if owner != profile.name or (only and name not in only):
            return match.group(0)
        before = inside.removesuffix("\n")
        made = table_block(profile, name) if kind == "table" else figure_block(profile, name, before)
        return f"{head}{made}\n{end}"

    return BLOCK.sub(block, text)


def update(profile: Profile, folder: Path = REPO, only: Collection[str] = ()) -> list[Path]:
    """Rewrite the blocks of a profile in all documents, as `rewrite` does; returns those that changed."""
    changed = []
    for path in (folder / name for name in DOCUMENTS):
        old = path.read_text(encoding="utf-8")
        try:
            new = rewrite(old, profile, only)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if new != old:
            write_text(path, new)
            changed.append(path)
    return changed


# --- the list of files ---


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"(?<=[.;?])\s", text.replace("\n", " "), maxsplit=1)[0]
    return sentence.replace("``", "`").strip(" .;:")


def list_files(library: Path) -> str:
    """Return persona_lib/README.md: every module of the library with what it does, by package."""
    lines = ["# The library, file by file", "", "Written by `python -m persona_lib.docs` from the first "
             "sentence of every file.", "Packages use only those above them; a test holds that."]  # fmt: skip
    for package in ("", *PACKAGES):
        folder = library / package
        title = f"`{package}/`: {first_sentence(folder / '__init__.py')}" if package else "The top level"
        lines += ["", f"## {title}", ""]
        files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        lines += [f"- [{path.stem}]({path.relative_to(library)}): {first_sentence(path)}" for path in files]
    return "\n".join(lines) + "\n"


def write_list(library: Path = REPO / "persona_lib") -> list[Path]:
    """Write persona_lib/README.md again; returns it if it changed."""
    path, made = library / "README.md", list_files(library)
    if path.exists() and path.read_text(encoding="utf-8") == made:
        return []
    write_text(path, made)
    return [path]


def main(argv: list[str] | None = None) -> int:
    """Rewrite the documents from the results of ``--profile``; prints what changed."""
    parser = argparse.ArgumentParser(prog="python -m persona_lib.docs", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="everyday", help="whose blocks to write (default: everyday)")
    parser.add_argument(
        "--keep", nargs="+", default=[], metavar="NAME", help="tables to keep; writes no document"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="only the blocks of these tables or figures"
    )
    given = parser.parse_args(argv)
    profile = load_profile(given.profile)
    if given.keep:
        print("\n".join(map(str, keep(profile, given.keep))))
        return 0
    refresh(profile)
    changed = [*update(profile, only=given.only), *write_list()]
    print("\n".join(f"{path.relative_to(REPO)}: written" for path in changed) or "nothing to change")
    return 0


# --- Put the outputs of a finished run into ``notebooks/``: ``python -m persona_lib.docs --notebooks`` ---
# The executed notebooks of a profile (its first data set and seed) are brought into a normal form that
# depends on results alone (``persona_lib.execute``) and become what JupyterLab and code hosts show. Code
# and prose stay as they are, so no step becomes stale, and writing back twice changes nothing. Notebooks
# that the profile does not run are left alone. ``--check`` writes nothing and says which committed outputs
# are not in normal form or belong to other code; it needs no run.


NOTEBOOKS = REPO / "notebooks"


def first_tasks(pipeline: Pipeline, wanted: list[str]) -> dict[str, Task]:
    """Return the first task of every step, or of the steps that begin with one of the wanted names."""
    first: dict[str, Task] = {}
    for task in pipeline.tasks.values():
        if not wanted or task.step.startswith(tuple(wanted)):
            first.setdefault(task.step, task)
    if not first:
        raise ConfigError(f"no step of profile {pipeline.profile.name} begins with {' or '.join(wanted)}")
    return first


def written_text(pipeline: Pipeline, task: Task) -> str:
    """Return the notebook of a step with the outputs of its executed copy.

    Raises NormalError if there is none, if it ran with changed settings, or if it ran other code.
    """
    source, executed = pipeline.source(task), pipeline.executed(task)
    command = f"./run_all.sh --profile {pipeline.profile.name}"
    if not executed.exists():
        raise NormalError(f"{task.id} has not run: {command}")
    document = read(executed)
    overrides = document["metadata"].get("persona", {}).get("parameters", {}).get("overrides", [])
    if overrides:
        raise NormalError(f"{task.id} ran with {', '.join(overrides)}: run the profile as it is: {command}")
    shown = {"profile": pipeline.profile.name, "code": notebook_hash(source)}
    try:
        return to_text(normal_document(read(source), document, shown))
    except NormalError as error:
        raise NormalError(f"{task.id}: {error} ({command})") from error


def write_back(pipeline: Pipeline, wanted: list[str]) -> list[Path]:
    """Write the outputs of all wanted steps, or of none if one cannot be; returns the files that changed."""
    tasks = first_tasks(pipeline, wanted).values()
    texts = {pipeline.source(task): written_text(pipeline, task) for task in tasks}
    changed = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        write_text(path, texts[path])
    return changed


def check(folder: Path = NOTEBOOKS) -> list[str]:
    """Return what is wrong with the committed outputs of all notebooks, one line each."""
    return [f"{path.name}: {said}" for path in sorted(folder.glob("*.ipynb")) for said in problems(path)]


def parse_notebook_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m persona_lib.docs --notebooks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: ./run_all.sh && python -m persona_lib.docs --notebooks && git diff --stat notebooks",
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help="only these, e.g. 03 (default: all)")
    parser.add_argument("--profile", default="everyday", help="whose run to show (default: everyday)")
    parser.add_argument("--check", action="store_true", help="only check what is committed")
    return parser.parse_args(argv)


def write_notebooks(argv: list[str] | None = None) -> int:
    """Entry point; 0: done, 1: the check found something, 2: a run is missing or does not fit."""
    arguments = parse_notebook_arguments(argv)
    if arguments.check:
        found = check()
        print("\n".join(found) or "the outputs of all notebooks are in normal form")
        return 1 if found else 0
    try:
        changed = write_back(Pipeline(load_profile(arguments.profile)), arguments.steps)
    except (ConfigError, NormalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"{path.name}: written" for path in changed) or "nothing to change")
    left = check()
    print("\n".join(left), file=sys.stderr, end="\n" if left else "")
    return 1 if left else 0


if __name__ == "__main__":
    notebooks = "--notebooks" in sys.argv
    words = [word for word in sys.argv[1:] if word != "--notebooks"]
    sys.exit(write_notebooks(words) if notebooks else main(words))
