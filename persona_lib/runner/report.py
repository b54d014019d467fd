"""The HTML report of a profile: one self-contained page, and its executed notebooks as HTML beside it.

Everything on the page comes from saved tables, figures and provenance; all text is escaped; nothing is
loaded from elsewhere, so the page works from disk and on a phone.
"""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING

from persona_lib.config import figures_dir, results_dir
from persona_lib.drawing.figures import FIGURES, alt_text, figure_inputs
from persona_lib.drawing.safety_plot import alt_safety
from persona_lib.evaluation.judged import runs_of
from persona_lib.evaluation.tailor import BROKEN, broken_share, generation_folder, grid
from persona_lib.profiles import Profile
from persona_lib.reading.views import show
from persona_lib.runner.execute import clock
from persona_lib.runner.pages import notebook_page
from persona_lib.runner.tasks import Pipeline
from persona_lib.store import read_json, write_text
from persona_lib.tables.cells import LABELS, owner_of, to_html
from persona_lib.tables.origin import origin, times
from persona_lib.tables.results import read_table

if TYPE_CHECKING:
    import pandas as pd

CAPTIONS = {
    "main": "PT-DPO against DPO that is told the persona in the first person",
    "side_difference": "Rejected minus chosen personas",
    "paper": "The paper's own rows; the intervals and tests are ours",
    "filtered": "The judged rows with all pairs, and with those of two sound answers",
    "length": "Net win rates as they are, and with the answers' length held equal",
    "persona_accuracy": "Does the persona lead back to its response?",
    "persona_models": "Does the persona lead back to its response, by the model that wrote it?",
    "persona_preference": "Which of the two personas is the more plausible user?",
    "stage": "What DPO adds: PT-DPO against PT-SFT",
    "methods": "SFT and few-shot with personas against the same without",
    "arms": "Trained on other personas, against plain DPO",
    "controls": "Controls",
    "second_judge": "The same comparisons by the second judge",
    "judge_agreement": "How far the two judges agree",
    "main_by_seed": "The main rows seed by seed",
    "swap": "Persona swap by log-probabilities",
    "swap_differences": "Persona swap: one policy minus another",
    "swap_by_seed": "Persona swap seed by seed",
    "swap_length": "Persona swap by which response is longer",
    "generation_flip": "Persona flip of the generated answers",
    "released_flip": "Persona flip of the authors' released answers",
    "released_judged": "The authors' released answers judged again, the paper's row below",
    "released_agreement": "How far two judges agree on the authors' released answers",
    "released_safety": "Safety by persona: which of the authors' released answers keep a caution",
    "released_safety_pairs": "Safety by persona, paired: the same prompts, exact McNemar tests",
    "released_safety_error": "How often the caution rules err on hand-labelled answers",
    "safety": "Safety by persona: which answers of this run keep a caution",
    "safety_pairs": "Safety by persona of this run, paired",
    "words": "Typical words of each side's personas",
    "persona_text": "What the personas are like as texts",
    "released_personas": "What the authors' released personas are like as texts",
    "released_words": "Typical words of the authors' released personas",
    "ratings": "Ratings of personas and answers (see who rated)",
    "rating_agreement": "How far the raters agree",
    "not_run": "What was not run",
}
OPEN = ("main", "paper", "side_difference")  # tables that are unfolded
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --yes: #0072B2; --no: #D55E00; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
img { max-width: 100%; height: auto; background: white; } figure { margin: 1.5rem 0; }
figcaption, caption, .small { font-size: .9rem; opacity: .85; text-align: left; }
.wide { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
tbody tr:nth-child(even) { background: var(--soft); } summary { cursor: pointer; padding: .4rem 0; }
.yes { color: var(--yes); font-weight: 600; } .no { color: var(--no); font-weight: 600; }
.example { border: 1px solid var(--line); border-radius: 6px; padding: .8rem; margin: 1rem 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; } .text { white-space: pre-wrap; }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } body { padding: .7rem; } }
"""


def element(tag: str, text: object, kind: str = "") -> str:
    """Return an HTML element with escaped text."""
    return f"<{tag}{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{html.escape(str(text))}</{tag}>"


# --- the page's parts ---


def header(profile: Profile) -> str:
    """Say what this is and whose numbers it holds."""
    owners = " and ".join(dict.fromkeys(owner_of(dataset) for dataset in profile.datasets))
    return (
        element("h1", f"Whose Boat Does it Float? Profile {profile.name}")
        + unsound(profile)
        + element("p", f"{profile.description}. Numbers of this run are measured on: {owners}. "
                       f"Rows marked as {LABELS['paper']} are copied from the publication.")
    )  # fmt: skip


def unsound(profile: Profile) -> str:
    """Warn of policies whose answers are degenerate too often to be compared; "" without any."""
    runs = [run for dataset in profile.datasets for run in runs_of(profile, dataset)]
    done = [(run, spec, generation_folder(run, spec) / "done.json") for run in runs for spec in grid(run)]
    named = [
        f"{spec.slug}, seed {run.seed}"
        for run, spec, path in done
        if path.exists() and broken_share(read_json(path)) > BROKEN
    ]
    if not named:
        return ""
    words = (
        f"Compare nothing with these: more than {BROKEN:.0%} of the answers are loops in {'; '.join(named)}."
    )
    return element("p", words, "warning")


def status(profile: Profile) -> str:
    """Return how many steps ran, for how long, and links to the executed notebooks."""
    pipeline = Pipeline(profile)
    known = {name: (finished, seconds, memory) for name, finished, seconds, memory in times(profile)}
    rows = []
    for task in pipeline.tasks.values():
        page = f"notebooks/{task.id}.html"
        done = pipeline.executed(task).exists()
        name = f'<a href="{html.escape(page)}">{html.escape(task.id)}</a>' if done else html.escape(task.id)
        finished, seconds, memory = known.get(task.id, ("", None, None))
        cells = [finished or ("done" if done else "not run"), clock(seconds) if seconds is not None else "",
                 f"{memory:.0f}" if memory else ""]  # fmt: skip
        rows.append(f"<tr><td>{name}</td>" + "".join(element("td", cell) for cell in cells) + "</tr>")
    done = sum(pipeline.executed(task).exists() for task in pipeline.tasks.values())
    total = sum(known[i][1] for i in pipeline.tasks if i in known)
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("notebook", "finished (UTC)", "time", "peak MB")
    )
    summary = f"{done} of {len(rows)} notebooks ran" + (f"; {clock(total)} in all" if total else "")
    return (element("p", summary) + "<details><summary>every step, with its notebook</summary>"
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table></div>'
            "</details>")  # fmt: skip


def reproduced(profile: Profile) -> str:
    """Return the primary aims with what was measured."""
    table = read_table(profile, "primary")
    if table.empty:
        ran = not all(read_table(profile, name).empty for name in ("swap", "main"))
        said = "No aims were set beforehand for this profile's data." if ran else "Not run yet."
        return element("p", said)
    counts = table.met.value_counts()
    said = ", ".join(
        f"{counts[name]} {name}" for name in ("yes", "no", "reported", "not run") if name in counts
    )
    page = to_html(show("primary", table), "Aims that were set beforehand")
    for word in ("yes", "no"):
        page = page.replace(f"<td>{word}</td>", f'<td class="{word}">{word}</td>')
    return element("p", f"Met: {said}.") + page


def image(path: Path, alt: str, caption: str) -> str:
    """Return a figure with its image as a data URI."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}">'
            f"{element('figcaption', caption)}</figure>")  # fmt: skip


def figures(profile: Profile) -> str:
    """Return every figure that was drawn from this run's tables."""
    folder, parts = figures_dir(profile), []
    for name, kind in FIGURES.items():
        needed = [folder / f"{name}.png", *figure_inputs(profile, name)]
        if all(path.exists() for path in needed):
            parts.append(image(folder / f"{name}.png", alt_text(profile, name), kind.caption))
    for dataset, part in own_safety(profile):
        if (path := folder / f"safety_{dataset}.png").exists():
            parts.append(image(path, alt_safety(part), CAPTIONS["safety"]))
    return "".join(parts) or element("p", "No figure was drawn yet.")


def own_safety(profile: Profile) -> list[tuple[str, pd.DataFrame]]:
    """Return the table of the run's own cautions by data set."""
    table = read_table(profile, "safety")
    return list(table.groupby("dataset")) if len(table) else []


def tables(profile: Profile) -> str:
    """Return every table that was made, the main ones unfolded."""
    parts = []
    for name, caption in CAPTIONS.items():
        table = read_table(profile, name)
        if table.empty:
            continue
        label = LABELS["paper"] if name == "paper" else ""
        page = to_html(
            show(name, table), f"{caption}{f' ({label})' if label else ''}. File: tables/{name}.csv"
        )
        opened = " open" if name in OPEN else ""
        parts.append(f"<details{opened}>{element('summary', caption)}{page}</details>")
    return "".join(parts) or element("p", "No table was made yet.")


def examples(profile: Profile) -> str:
    """Return a card per question: its two users, each with the answers of plain DPO and PT-DPO."""
    table = read_table(profile, "examples")
    if table.empty:
        return element("p", "No examples: there are no answers of both policies.")
    table = table[table.eval_persona.str.startswith("gold")]
    cards = "".join(card(rows) for _, rows in table.groupby(["dataset", "id"], sort=False))
    return element("p", "The first rows of the evaluation split, not selected.", "small") + cards


def card(rows: pd.DataFrame) -> str:
    """Return the card of one question."""
    first, users = rows.iloc[0], []
    for _, row in rows.iterrows():
        answers = "".join(
            f"<div>{element('strong', name)}{element('div', row[column], 'text')}</div>"
            for name, column in (("DPO, told the persona", "plain_dpo"), ("PT-DPO", "pt_dpo"))
        )
        users.append(f'{element("p", row["persona"])}<div class="pair">{answers}</div>')
    head = f"{first['dataset']}, seed {first['seed']}, {first['id']}"
    return (f'<div class="example">{element("div", head, "small")}{element("h3", first["prompt"], "text")}'
            f"{''.join(users)}</div>")  # fmt: skip


def provenance(profile: Profile) -> str:
    """Return commit, command, hardware and versions."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(k)}</th>{element("td", v)}</tr>'
        for k, v in origin(profile).items()
    )
    return f'<div class="wide"><table><tbody>{rows}</tbody></table></div>'


# --- files ---


def notebook_pages(profile: Profile, folder: Path) -> list[Path]:
    """Write each executed notebook of the profile as HTML and return the pages; older ones are removed."""
    pages = []
    for path in sorted((results_dir(profile) / "notebooks").glob("*.ipynb")):
        if not path.name.endswith(".running.ipynb"):
            pages.append(folder / f"{path.stem}.html")
            write_text(pages[-1], notebook_page(path))
    for old in set(folder.glob("*.html")) - set(pages):
        old.unlink()
    return pages


def write_report(profile: Profile) -> Path:
    """Write ``results/<profile>/report/index.html`` and the notebooks' pages; returns the page's path."""
    folder = results_dir(profile) / "report"
    notebook_pages(profile, folder / "notebooks")
    parts = {
        "Side by side": examples, "What was reproduced": reproduced, "Figures": figures, "Tables": tables,
        "Run": status, "Provenance": provenance,
    }  # fmt: skip
    body = header(profile) + "".join(f"<h2>{title}</h2>{part(profile)}" for title, part in parts.items())
    write_text(folder / "index.html", page(f"{profile.name}: report", body))
    return folder / "index.html"


def page(title: str, body: str) -> str:
    """Return a whole HTML page; only the title is escaped here."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><main>{body}</main></body></html>\n"
    )
