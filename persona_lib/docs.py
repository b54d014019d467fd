"""Write what a run found into the repository: the documents' tables, the list of files, the notebooks.

``python -m persona_lib.docs`` fills the blocks from ``<!-- table:PROFILE/NAME -->`` to ``<!-- end -->`` of
README.md and REPRODUCTION.md from saved tables; persona_lib/README.md gets the files' first sentences.
``--keep NAME ...`` copies tables of the run at hand to ``figures/PROFILE/kept``, with their provenance; the
documents show kept tables where there are no results.
``--notebooks [STEP ...]`` puts the outputs of the executed notebooks, in normal form
(``persona_lib.execute``), into ``notebooks/``: twice changes nothing. With ``--check`` it writes nothing and
says which committed outputs are not in normal form or belong to other code.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib.execute import NormalError, normal_document, notebook_hash, problems, read, to_text
from persona_lib.paper.results import read_table, table_path
from persona_lib.report import origin_line
from persona_lib.settings import REPO, ConfigError, Profile, figures_dir, load_profile, results_dir
from persona_lib.show import LABELS, columns_of, owner_of, render, to_markdown
from persona_lib.store import read_json, write_json, write_text
from persona_lib.tasks import Pipeline, Task

if TYPE_CHECKING:
    import pandas as pd

DOCUMENTS = ("README.md", "REPRODUCTION.md")
LIBRARY, NOTEBOOKS = REPO / "persona_lib", REPO / "notebooks"
PACKAGES = ("data", "models", "paper", "beyond")
BLOCK = re.compile(r"(<!-- table:([\w-]+)/(\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NOT_RUN = "*Not run yet.*"
TRACKED = {  # tables on validation topics, kept with the figures -> the command that writes them
    "reader": "python -m persona_lib.studies reader",
    "selection_sft": "python -m persona_lib.studies selection",
    "selection_dpo": "python -m persona_lib.studies selection",
}
STEPS = {"safety": "15_safety", "released": "13_released_outputs", "rating": "14_human_ratings"}
SHOWN: dict[str, dict[str, Any]] = {  # the rows of a long table that a document shows
    "swap": {"measure": ["policy"], "persona": ["gold", "stripped", "retrieved", "shuffled", "user"]},
    "primary": {
        "met": ["yes", "no", "judge not believed"],
        "where": [f"everyday, {n}{side}" for n in ("", "gold-") for side in ("chosen", "rejected")]
        + ["everyday, gold", "everyday, shuffled"],
    },
    "reader": {"texts": ["generated"]},
}


# --- tables: of the run at hand, or kept ---


def kept_folder(profile: Profile) -> Path:
    """Return the folder of kept tables."""
    return figures_dir(profile) / "kept"


def kept_origins(profile: Profile) -> dict[str, str]:
    """Return where each kept table comes from, by name."""
    path = kept_folder(profile) / "origin.json"
    return read_json(path) if path.exists() else {}


def read_shown(profile: Profile, name: str) -> pd.DataFrame:
    """Read a table, of the run or else kept, cut to the rows that a document shows."""
    import pandas as pd

    table = pd.DataFrame() if name in TRACKED else read_table(profile, name)
    path = (figures_dir(profile) if name in TRACKED else kept_folder(profile)) / f"{name}.csv"
    if table.empty and path.exists():
        table = pd.read_csv(path, dtype={"seeds": str})
    for column, values in SHOWN.get(name, {}).items():
        table = table[table[column].isin(values)] if column in table else table
    return table


def made_by(profile: Profile, name: str, table: pd.DataFrame) -> str:
    """Say how a table was made: command, commit, seeds, n and date."""
    if name == "paper":
        return "From the exact counts; the paper prints no intervals and no tests, these are ours."
    if name in TRACKED:
        return f"`{TRACKED[name]}`; validation topics, seeds that no result uses."
    if not table_path(profile, name).exists():
        return kept_origins(profile)[name]
    if name == "persona_models":
        return str(read_json(results_dir(profile) / name / "origin.json"))
    sizes = sorted({int(n) for n in table.n.dropna()}) if "n" in table else []
    n = " to ".join(map(str, dict.fromkeys((sizes[0], sizes[-1])))) if sizes else "see the table"
    named = table.seeds.dropna() if "seeds" in table else table.seed.map(str) if "seed" in table else []
    seeds = " ".join(dict.fromkeys(named)) or " ".join(map(str, profile.seeds))
    step = next((step for word, step in STEPS.items() if word in name), "12_results")
    return origin_line(profile, "none, no model runs" if name.startswith("released") else seeds, n, step)


def table_block(profile: Profile, name: str) -> str:
    """Return the text of a table's block: whose numbers, provenance, table; or that it was not run."""
    known = {*columns_of(), *TRACKED}
    if name not in known:
        raise ValueError(f"table:{profile.name}/{name}: no such table; use one of {', '.join(sorted(known))}")
    table = read_shown(profile, name)
    if table.empty:
        return NOT_RUN
    datasets = table.dataset if "dataset" in table else profile.datasets
    owners = dict.fromkeys(owner_of(dataset) for dataset in datasets if dataset != "all")
    label = LABELS["paper"] if name == "paper" else " and ".join(owners) or LABELS["everyday"]
    return f"**{label.capitalize()}.** {made_by(profile, name, table)}\n\n{to_markdown(render(name, table))}"


def keep(profile: Profile, names: Sequence[str]) -> list[Path]:
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


# --- documents ---


def rewrite(text: str, profile: Profile) -> str:
    """Return a document with the blocks of one profile written again; ValueError for an unclosed block."""
    opened, closed = text.count("<!-- table:"), len(BLOCK.findall(text))
    if opened != closed:
        raise ValueError(f"{opened} blocks begin and {closed} end: close each with <!-- end -->")

    def block(match: re.Match[str]) -> str:
        head, owner, name, _, end = match.groups()
        return f"{head}{table_block(profile, name)}\n{end}" if owner == profile.name else match.group(0)

    return BLOCK.sub(block, text)


def update(profile: Profile, folder: Path = REPO) -> list[Path]:
    """Rewrite the blocks of a profile in all documents; returns those that changed."""
    paths = [folder / name for name in DOCUMENTS]
    return write_changed({path: rewrite(path.read_text(encoding="utf-8"), profile) for path in paths})


def write_changed(texts: dict[Path, str]) -> list[Path]:
    """Write the files whose text is another one; returns them."""
    changed = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        write_text(path, texts[path])
    return changed


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


# --- notebooks ---


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


def write_back(pipeline: Pipeline, wanted: Sequence[str] = ()) -> list[Path]:
    """Write the outputs of the wanted steps (default: all) of the first data set and seed, or of none.

    Returns the files that changed. ConfigError if no step begins with a wanted name.
    """
    first: dict[str, Task] = {}
    for task in pipeline.tasks.values():
        if not wanted or task.step.startswith(tuple(wanted)):
            first.setdefault(task.step, task)
    if not first:
        raise ConfigError(f"no step of profile {pipeline.profile.name} begins with {' or '.join(wanted)}")
    return write_changed({pipeline.source(task): written_text(pipeline, task) for task in first.values()})


def check(folder: Path = NOTEBOOKS) -> list[str]:
    """Return what is wrong with the committed outputs of all notebooks, one line each."""
    return [f"{path.name}: {said}" for path in sorted(folder.glob("*.ipynb")) for said in problems(path)]


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0: done, 1: committed outputs are not in order, 2: a run is missing or does not fit."""
    parser = argparse.ArgumentParser(prog="python -m persona_lib.docs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--profile", default="everyday", help="whose results to write (default: everyday)")
    add("--keep", nargs="+", default=[], metavar="NAME", help="tables to keep; writes no document")
    add("--notebooks", nargs="*", metavar="STEP", help="write notebooks back, all or e.g. 03; no document")
    add("--check", action="store_true", help="with --notebooks: only check what is committed")
    given = parser.parse_args(argv)
    profile, left = load_profile(given.profile), []
    try:
        if given.keep:
            changed = keep(profile, given.keep)
        elif given.notebooks is None:
            changed = update(profile) + write_changed({LIBRARY / "README.md": list_files(LIBRARY)})
        else:
            changed = [] if given.check else write_back(Pipeline(profile), given.notebooks)
            left = check()
    except (ConfigError, NormalError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([*(f"{path}: written" for path in changed), *left]) or "nothing to change")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
