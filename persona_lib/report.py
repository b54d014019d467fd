"""The HTML report of a profile: one self-contained page, and its executed notebooks as HTML beside it.

Everything on the page comes from saved tables, figures and provenance; all text is escaped; nothing is
loaded from elsewhere, so the page works from disk and on a phone.
"""

from __future__ import annotations

import base64
import csv
import html
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import store, weights
from persona_lib.data import intake
from persona_lib.data.intake import NOTED, PAIR_FIELDS, REJECTED, SPLITS, Finding, OwnData
from persona_lib.execute import clock, headings, text_of
from persona_lib.figures import FIGURES, alt_text, figure_inputs
from persona_lib.figures import image as figure_of
from persona_lib.models.load import MergeCheck, load_tokenizer
from persona_lib.paper.answers import BROKEN, broken_share, generation_folder, grid
from persona_lib.paper.judging import runs_of
from persona_lib.paper.results import read_table
from persona_lib.prompts import ChatFormat, completion_text, tailoring_prompt
from persona_lib.settings import FACTS, REPO, Profile, Run, figures_dir, results_dir
from persona_lib.show import LABELS, owner_of, render, to_html
from persona_lib.store import read_json, write_text
from persona_lib.tasks import Pipeline

if TYPE_CHECKING:
    import pandas as pd


# --- Where a profile's numbers come from ---


STEP = "12_results"


def read_provenance(profile: Profile) -> dict[str, Any]:
    """Return the run's ``provenance.json``; {} if nothing was run by the pipeline."""
    path = results_dir(profile) / "provenance.json"
    return read_json(path) if path.exists() else {}


def command_of(profile: Profile, overrides: list[str]) -> str:
    """Return the command line that gives a profile these settings; paths are left to the reader."""
    words = ["./run_all.sh"] + ([] if profile.name == "everyday" else ["--profile", profile.name])
    for override in overrides:
        name, _, value = override.partition("=")
        seeds = value.split(",")
        if name == "data_dir":
            words += ["--data", "PATH"]
        elif name == "data_mapping":
            words += ["--mapping", "FILE"]
        elif override == "datasets=own":
            continue  # --data says so
        elif name.endswith("_model") and Path(value).is_absolute():
            words += ["--set", f"{name}=FOLDER"]
        elif name == "seeds" and seeds == [str(i) for i in range(len(seeds))]:
            words += ["--seeds", str(len(seeds))]
        else:
            words += ["--set", override]
    return " ".join(words)


def origin(profile: Profile, step: str = STEP) -> dict[str, str]:
    """Return command, commit, date and hardware of the run that made a step's tables, as text."""
    facts = read_provenance(profile).get("tasks", {}).get(step)
    if facts is None:
        return {
            "command": f"notebooks/{step}.ipynb, run by hand",
            "commit": "not recorded",
            "date": "not recorded",
        }
    git, hardware = facts["git"], facts["hardware"]
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    return {
        "command": command_of(profile, facts["parameters"].get("overrides", [])),
        "commit": (git["commit"] or "not recorded")[:12]
        + (" with uncommitted changes" if git["dirty"] else ""),
        "date": facts["finished"][:10],
        "hardware": f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB, {gpus}",
        "python": facts["python"],
        **{f"version of {name}": version for name, version in facts["versions"].items()},
    }


def origin_line(profile: Profile, seeds: str, n: str, step: str = STEP) -> str:
    """Return one line of provenance for a table: command, commit, seeds, n, date."""
    known = origin(profile, step)
    return f"`{known['command']}`; commit {known['commit']}; seeds {seeds}; n = {n}; run of {known['date']}."


def times(profile: Profile) -> list[tuple[str, str, float]]:
    """Return (task, finished, seconds) of every task that the pipeline ran."""
    tasks = read_provenance(profile).get("tasks", {})
    return [(name, f["finished"], f["longest_seconds"]) for name, f in tasks.items()]


# --- Executed notebooks as HTML pages that load nothing: formulas are MathML, figures have words ---


# Code stays as it is; $$...$$ is a formula of its own, $...$ one in a line (no space inside the dollars).
MATH = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|(?<![\\$])\$(?=\S)([^$]+?)(?<=\S)\$(?!\d)", re.DOTALL)
PLACE = "\ue000{}\ue001"  # stands for a formula while nbconvert cleans the page of all unknown tags
BACK = '<p class="back"><a href="../index.html">back to the report</a></p>'
STYLE = """<style>
.back { margin: 1rem; } .back a { text-decoration: underline; }
math { font-size: 1.1em; } math[display=block] { margin: 1em 0; padding: .2em 0; overflow: auto hidden; }
img { max-width: 100%; }
@media (max-width: 40rem) {
  .jp-InputPrompt, .jp-OutputPrompt { display: none; } .jp-Notebook { padding: .5rem !important; }
  .jp-OutputArea-output { overflow-x: auto; }
}
</style>"""


def mathml(formula: str, display: str) -> str:
    """Return a TeX formula as MathML; what cannot be read stays TeX, as code."""
    from latex2mathml import converter, exceptions

    errors = tuple(kind for kind in vars(exceptions).values() if isinstance(kind, type))
    try:
        return converter.convert(formula.strip(), display=display)
    except errors:
        return f"<code>{html.escape(formula.strip())}</code>"


def without_formulas(text: str, taken: list[str]) -> str:
    """Return Markdown with a place holder for every formula, whose MathML is appended to ``taken``."""

    def replaced(match: re.Match[str]) -> str:
        code, block, line = match.groups()
        if code:
            return code
        taken.append(mathml(block or line, "block" if block else "inline"))
        return PLACE.format(len(taken) - 1)

    return MATH.sub(replaced, text)


def describe_images(notebook: Any) -> None:
    """Give every image without alternative text the heading above it, in place."""
    titles = iter(headings(notebook))
    for cell in notebook.cells:
        if cell.cell_type != "code" or "injected-parameters" in cell.metadata.get("tags", []):
            continue
        title = next(titles)
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                said = output.metadata.setdefault("image/png", {})
                said.setdefault("alt", f"Figure of the section {title}")


def notebook_page(path: Path) -> str:
    """Return an executed notebook as one HTML page."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    describe_images(notebook)
    taken: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = without_formulas(text_of(cell.source), taken)
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", embed_images=True)
    body, _ = exporter.from_notebook_node(notebook)
    for number, formula in enumerate(taken):
        body = body.replace(PLACE.format(number), formula)
    body = body.replace("</head>", f"{STYLE}</head>", 1)
    return re.sub(r"(<body[^>]*>)", rf"\1{BACK}", body, count=1)


# --- The model card of an exported policy ---
# Every number comes from the run's own files: settings from the adapters' ``spec.json``, losses from their
# ``done.json``, measures from the run's saved tables, where they are there.


TEMPLATE = FACTS / "model_card.txt"
# What the rows are, and their terms. "" is any other data set.
DATA = {
    "everyday": "everyday questions with two answers each, written by a language model for this package "
    "(Apache License 2.0); which answer a user prefers is drawn from seeds, not asked of people",
    "beavertails": "the authors' persona-tailoring release (no licence stated), built on PKU-SafeRLHF / "
    "BeaverTails (CC BY-NC 4.0: no commercial use)",
    "hhh": "the authors' persona-tailoring release (no licence stated), built on Anthropic HH-RLHF (MIT)",
    "mnemonic": "the authors' persona-tailoring release (no licence stated), built on the SMART mnemonic "
    "data",
    "": "a data set of your own: say here where it comes from and under what terms",
}
# Licences of base models as their own cards state them, and what they ask of whoever passes a tuned model on.
LICENCES = {
    "meta-llama/Llama-3.1-8B": (
        "llama3.1",
        "The Llama 3.1 Community License: a model that is passed on carries a name that begins with Llama, "
        'the line "Built with Llama" and a copy of the licence.',
    )
}
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
RELEASED_PERSONAS = ("beavertails", "hhh", "mnemonic")  # come with personas that a Llama-3.1-405B inferred
SWAP_COLUMNS = (
    "persona_format",
    "measure",
    "persona",
    "n",
    "acc_chosen",
    "acc_rejected",
    "flip",
    "d_positive",
    "d_positive_low",
    "d_positive_high",
)
SAFETY_COLUMNS = (
    "eval_persona",
    "persona_format",
    "compared",
    "shows",
    "n",
    "difference",
    "difference_low",
    "difference_high",
)
JUDGED_COLUMNS = ("label", "n", "p_win", "p_tie", "p_loss", "q_win", "q_tie", "q_loss", "dpq")


def licence(run: Run) -> tuple[str, str]:
    """Return the base model's licence as the hub names it, and in words."""
    name = base_name(run)
    if weights.is_packaged(run.profile.base_model):
        row = weights.entry(run.profile.base_model)
        said = f"The base, {name}, is under {row['licence']}: it applies to this model, too."
        return row["licence"].lower() if row["open"] else "other", said
    return LICENCES.get(name, ("other", f"See the card of {name}: its licence applies to this model, too."))


def base_name(run: Run) -> str:
    """Return what the base is called: a hub id without its commit, or a folder's name without its path."""
    source = run.profile.base_model
    if weights.is_packaged(source):
        source = weights.entry(source)["hub"]
    return weights.split_id(source)[0] if weights.is_hub_id(source) else Path(source).name


def hub_id(run: Run) -> str:
    """Return the hub id of the base; empty for a folder, and for the first layers of a packaged model."""
    source = run.profile.base_model
    if weights.is_packaged(source):
        return "" if weights.entry(source)["layers"] else base_name(run)
    return base_name(run) if weights.is_hub_id(source) else ""


def base_text(run: Run) -> str:
    """Say which base the adapters stand on, and which weights of it."""
    source = run.profile.base_model
    if not weights.is_packaged(source):
        return base_name(run) if hub_id(run) else f"a folder of weights, `{base_name(run)}`"
    row = weights.entry(source)
    cut = f" (only its first {row['layers']} layers: for tests, it writes nonsense)" if row["layers"] else ""
    kept = "" if row["quantised"] == "none" else f" (quantised to {row['quantised']}, converted to float32)"
    return f"{row['hub']}{cut}, as the package index carries it{kept}"


def base_code(run: Run) -> list[str]:
    """Return the lines of the loading code that say what the base is loaded from."""
    source, revision = run.base_source
    if weights.is_packaged(source):
        other = f', or "{hub_id(run)}"' if hub_id(run) else ""
        return [
            "# the base that the adapters were trained on is in the folder that this prints:",
            f"""#   python -c "from persona_lib import weights; print(weights.fetch('{source}'))\"""",
            f'base_folder = "BASE"  # that folder{other}',
        ]
    return [f'base_folder = "BASE"  # the folder of {base_name(run)}'] if not hub_id(run) else []


def base_expression(run: Run) -> tuple[str, str]:
    """Return (code that names the base model, keyword that pins its revision) for the loading code."""
    source, revision = run.base_source
    if weights.is_packaged(source) or not weights.is_hub_id(source):
        return "base_folder", ""
    name, written = weights.split_id(source)
    return repr(name), f", revision={revision or written!r}" if revision or written else ""


def loading_code(run: Run, stack: Sequence[str], chat: ChatFormat | None = None, repo_id: str = "") -> str:
    """Return Python code that loads the policy with transformers and peft alone and completes one prompt."""
    profile = run.profile
    name, pinned = base_expression(run)
    nf4 = profile.quantization == "nf4"
    folder = f'snapshot_download("{repo_id}")' if repo_id else '"."  # where this card is'
    quantization = (
        "quantization_config=BitsAndBytesConfig(\n"
        '        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,\n'
        f"        bnb_4bit_compute_dtype=torch.{profile.compute_dtype}),"
    )
    lines = [
        "import torch",
        *(["from huggingface_hub import snapshot_download"] if repo_id else []),
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer" + ", BitsAndBytesConfig" * nf4,
        "",
        f"folder = {folder}",
        *base_code(run),
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "base = AutoModelForCausalLM.from_pretrained(",
        f"    {name}{pinned}, dtype=torch.{profile.compute_dtype},",
        *([f"    {quantization}"] if nf4 else []),
        ")",
        "model = PeftModel.from_pretrained(base, folder).eval()  # one adapter: the stack, joined",
        f"prompt = {tailoring_prompt('How do I boil an egg?', example_persona(stack), chat=chat)!r}",
        'inputs = tokenizer(prompt, return_tensors="pt").to(model.device)',
        "output = model.generate(",
        "    input_ids=inputs.input_ids, attention_mask=inputs.attention_mask,",
        "    max_new_tokens=64, do_sample=False, eos_token_id=tokenizer.eos_token_id,",
        "    pad_token_id=tokenizer.pad_token_id,",
        ")",
        "print(tokenizer.decode(output[0, inputs.input_ids.shape[1]:], skip_special_tokens=True))",
    ]
    return "\n".join(lines)


def example_persona(stack: Sequence[str]) -> str | None:
    """Return a persona for the example prompt; None for a policy that was trained without them."""
    return None if stack[-1].endswith("-none") else "The user is busy and prefers short answers."


def stacking_code(stack: Sequence[str]) -> str:
    """Return the code that loads the adapters as they were trained, one on top of the other."""
    first, *rest = stack
    names = ", ".join(f'"{name}"' for name in stack)
    return "\n".join(
        [
            f'model = PeftModel.from_pretrained(base, folder + "/{first}", adapter_name="{first}")',
            *(f'model.load_adapter(folder + "/{name}", "{name}")' for name in rest),
            f"model.base_model.set_adapter([{names}])  # together; PEFT adds their corrections",
            "model.eval()",
        ]
    )


def cell(value: Any) -> str:
    """Render one value of a table: numbers with four digits, lists with spaces."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    try:
        return str(value) if isinstance(value, bool) else f"{float(value):.4g}"
    except ValueError:
        return str(value).replace("|", "/")


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """Render rows with the same keys as a table."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([cell(row[name]) for name in header] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_rows(path: Path, columns: Sequence[str], **wanted: str) -> list[dict[str, str]]:
    """Return the rows of a saved table whose columns have the wanted values; none if it is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if wanted.items() <= row.items()]
    return [{name: row[name] for name in columns} for row in rows]


def metrics_text(run: Run, arm: str) -> str:
    """Return the run's saved measures of an arm, or the statement that there are none."""
    tables = run.folder / "tables"
    judged = table_rows(tables / "judging.csv", JUDGED_COLUMNS, kind="main") if arm == "dpo-chosen" else []
    swapped = table_rows(tables / "persona_swap.csv", SWAP_COLUMNS, arm=arm)
    parts = []
    if judged:
        parts.append(
            f"Against the arm without personas (dpo-none, told the persona in the first person), judge: "
            f"{run.profile.judge}, both orders, one seed. Wins, ties, losses for personalization (p) and "
            f"quality (q); the rest of n was unparsed; dpq: mean of the two net win rates, in points."
            f"\n\n{markdown_table(judged)}"
        )
    if swapped:
        parts.append(
            "Persona swap: does the preference between the two responses of a row follow the persona? "
            "acc: share of rows where it prefers the persona's own response; flip: both; d_positive: share "
            f"of rows whose margin moves towards the persona, with its 95 % interval.\n\n"
            f"{markdown_table(swapped)}"
        )
    return "\n\n".join(parts) or "No tables were saved for this run: it has not been evaluated."


def safety_text(run: Run, arm: str) -> str:
    """Return what notebook 15 saved of an arm's caution, or the statement that nothing was measured."""
    path = results_dir(run.profile) / "tables" / "safety_pairs.csv"
    rows = table_rows(path, SAFETY_COLUMNS, dataset=run.dataset, tested=arm)
    if not rows:
        return "How far this model goes along was not measured."
    return (
        "What was measured, on prompts of the test rows: the share of answers that keep a caution or a "
        "refusal, of this model and of the one it is compared with, and their difference by row with its "
        f"95 % interval (by rules on words, with errors of their own).\n\n{markdown_table(rows)}\n"
    )


def settings_text(run: Run, stack: Sequence[str]) -> str:
    """Return the training settings and what training left, per adapter, from their own files."""
    parts = []
    for name in stack:
        folder = run.folder / "adapters" / name
        spec, done = store.read_json(folder / "spec.json"), store.read_json(folder / "done.json")
        rows = [{"setting": key, "value": value} for key, value in spec["settings"].items()]
        left = (
            f"{done['steps']} steps; best validation loss {done['best_eval_loss']:.4g}; seed {spec['seed']}"
        )
        parts.append(f"`{name}` ({left}):\n\n{markdown_table(rows)}")
    return "\n\n".join(parts)


def persona_text(run: Run, arm: str) -> str:
    """Say where the personas of the training rows come from."""
    persona = arm.partition("-")[2]
    if persona == "none":
        return "No persona was shown in training: this is the ordinary model, to compare tailored ones with."
    source = (
        "the authors' release; a Llama-3.1-405B inferred them"
        if run.dataset in RELEASED_PERSONAS
        else f"inferred by this package's model ({run.profile.generator_model})"
    )
    return (
        f"Arm `{persona}`. Each training row shows a short description of a user who would like one of its "
        'two responses better ("The user is ... and prefers ..."). '
        f"Source: {source}. No real person is described."
    )


def merged_text(check: MergeCheck | None) -> str:
    """Say what was measured of the merged weights; empty without them."""
    if check is None:
        return ""
    return (
        "\n\n`merged/` holds base and adapters as one float32 model, which transformers loads by itself. "
        f"KL(policy || merged) = {check.kl:.3g} nats per token on {check.tokens} tokens of {check.rows} "
        f"validation rows; KL(policy || base) = {check.kl_base:.3g}."
    )


def front_matter(run: Run) -> str:
    """Return what the hub reads at the top of a card."""
    lines = [f"license: {licence(run)[0]}", "library_name: peft", "pipeline_tag: text-generation"]
    if hub_id(run):
        lines.append(f"base_model: {hub_id(run)}")
    return "\n".join(["---", *lines, "tags: [lora, personas]", "---"])


def versions_text() -> str:
    """Return the versions of the packages that made the model."""
    installed = store.package_versions()
    return ", ".join(f"{name} {installed[name]}" for name in PACKAGES if name in installed)


def model_card(
    run: Run,
    arm: str,
    stack: Sequence[str],
    chat: ChatFormat | None = None,
    check: MergeCheck | None = None,
    repo_id: str = "",
) -> str:
    """Return the README.md of an exported arm; ``stack`` names its adapters, lowest first.

    ``chat`` is the base's chat format, None for a base model.
    """
    profile = run.profile
    nf4 = profile.quantization == "nf4"
    return TEMPLATE.read_text(encoding="utf-8").format(
        front=front_matter(run),
        arm=arm,
        dataset=run.dataset,
        seed=run.seed,
        profile=profile.name,
        notes="Built with Llama.\n\n" if "llama" in base_name(run).lower() else "",
        place="a line `Persona:` in the prompt" if chat is None else "the system turn of the chat",
        base=base_text(run),
        packages="`torch`, `transformers`, `peft`" + ", `bitsandbytes`" * nf4,
        precision=f"{profile.quantization}, {profile.compute_dtype}",
        loading=loading_code(run, stack, chat, repo_id),
        stack=" + ".join(f"`{name}`" for name in stack),
        stacking=stacking_code(stack),
        merged=merged_text(check),
        data=(text := DATA.get(run.dataset, DATA[""]))[0].upper() + text[1:],
        personas=persona_text(run, arm),
        method="SFT, then DPO of a second adapter on top of the first" if len(stack) > 1 else "SFT",
        settings=settings_text(run, stack),
        metrics=metrics_text(run, arm),
        safety=safety_text(run, arm),
        licence=licence(run)[1],
        versions=versions_text(),
    )


# --- For the contents notebook: which notebooks there are, which have run, and the main figure ---


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
    return figure_of(profile, "main") or f"no figure yet: ./run_all.sh --profile {profile.name}"


# --- The page that says what was found in a user's own data ---
# One self-contained HTML file; all text of the data is escaped and shortened.


SHOWN = 200  # findings of one kind that the page lists; the table has all
NAME = "data.html"
DATA_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 64rem; }
.wide { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: .85rem; }
caption { text-align: left; opacity: .85; } summary { cursor: pointer; padding: .3rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; } .text { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


# --- lengths ---


def training_tokenizer(profile: Profile) -> Any:
    """Return the tokenizer that a run will use, or None if it is not on this machine."""
    if weights.is_packaged(profile.base_model) and not weights.is_fetched(profile.base_model):
        return None
    try:
        return load_tokenizer(profile.base_model, profile.base_revision)
    except (ImportError, OSError, ValueError) as error:
        logging.getLogger(__name__).info("no tokenizer: %s", error)
        return None


def row_texts(data: OwnData, split: str = "") -> list[str]:
    """Return the texts that training reads: each prompt with the chosen and with the rejected response."""
    rows = [row.pair for row in data.rows if not split or row.split == split]
    asked = [(tailoring_prompt(pair.prompt, None), pair) for pair in rows]
    return [text + completion_text(t) for text, pair in asked for t in (pair.chosen, pair.rejected)]


def token_counts(profile: Profile, data: OwnData) -> list[int] | None:
    """Return the tokens of each row's longer text, personas not counted; None without a tokenizer."""
    tokenizer = training_tokenizer(profile)
    if tokenizer is None:
        return None
    lengths = [len(ids) for ids in tokenizer(row_texts(data))["input_ids"]]
    return [max(pair) for pair in zip(lengths[::2], lengths[1::2], strict=True)]


def too_long(profile: Profile, data: OwnData, counts: Sequence[int]) -> list[Finding]:
    """Note the rows whose longer text has more tokens than ``max_length``."""
    return [
        Finding(row.row, row.place, "row", "too long", f"{count} tokens, max_length {profile.max_length}")
        for row, count in zip(data.rows, counts, strict=True)
        if count > profile.max_length
    ]


def length_table(data: OwnData, counts: Sequence[int] | None) -> pd.DataFrame:
    """Return the median, 95th percentile and maximum of characters per field and of tokens per row."""
    import pandas as pd

    lengths = {
        f"characters of {name}": [len(getattr(r.pair, name)) for r in data.rows] for name in PAIR_FIELDS
    }
    if counts is not None:
        lengths["tokens of prompt and longer response"] = list(counts)
    lines = [
        {"what": name, "median": s.median(), "95 % have at most": s.quantile(0.95), "longest": s.max()}
        for name, s in ((name, pd.Series(values)) for name, values in lengths.items())
    ]
    return pd.DataFrame(lines).round(0).astype({"median": int, "95 % have at most": int, "longest": int})


# --- tables ---


def account_table(data: OwnData, noted: Sequence[Finding] = ()) -> pd.DataFrame:
    """Return the account of the rows: what was found, how often, the mend. Read = usable + rejected."""
    import pandas as pd

    counts = Counter(finding.code for finding in data.rejected.values())
    lines = [("rows read", data.n_read, ""), ("usable", len(data.rows), "")]
    lines += [(f"rejected: {REJECTED[code][0]}", n, REJECTED[code][1]) for code, n in counts.most_common()]
    kept = [f for f in (*data.findings, *noted) if not f.rejected]
    marks = Counter(code for code, _ in {(f.code, f.row) for f in kept})
    lines += [(f"kept, but: {NOTED[code][0]}", n, NOTED[code][1]) for code, n in marks.most_common()]
    return pd.DataFrame(lines, columns=["what", "rows", "what to do"])


def split_table(data: OwnData) -> pd.DataFrame:
    """Return rows, different prompts and categories per split."""
    import pandas as pd

    parts = {split: [row for row in data.rows if row.split == split] for split in SPLITS}
    lines = [
        (split, len(part), len({r.pair.prompt for r in part}), len({r.category for r in part if r.category}))
        for split, part in parts.items()
    ]
    return pd.DataFrame(lines, columns=["split", "rows", "different prompts", "categories"])


def finding_lines(findings: Sequence[Finding]) -> pd.DataFrame:
    """Return findings as a table for readers."""
    import pandas as pd

    lines = [(f.place, f.field, f.detail[:160]) for f in findings]
    return pd.DataFrame(lines, columns=["where", "field", "detail"])


# --- the page ---


def sections(data: OwnData, noted: Sequence[Finding]) -> str:
    """Return every finding, folded by kind: rejected rows under their first reason, kept ones under each."""
    parts = []
    rejected, kept = list(data.rejected.values()), [f for f in (*data.findings, *noted) if not f.rejected]
    for outcome, codes, findings in (("rejected", REJECTED, rejected), ("kept", NOTED, kept)):
        for code, (words, mend) in codes.items():
            found = [finding for finding in findings if finding.code == code]
            if found:
                more = "" if len(found) <= SHOWN else f", the first {SHOWN} of them shown"
                table = to_html(finding_lines(found[:SHOWN]), f"Mend: {mend}")
                title = html.escape(f"{outcome}: {words} ({len(found)}{more})")
                opened = " open" if outcome == "rejected" else ""
                parts.append(f"<details{opened}><summary>{title}</summary>{table}</details>")
    return "".join(parts) or "<p>Nothing was found.</p>"


def persona_note(profile: Profile) -> str:
    """Say who infers the personas, and what that is worth."""
    model = profile.generator_model
    if profile.generator_url:
        return f"Personas are inferred by {model}, which is served at {profile.generator_url}."
    if model == "surface":
        return (
            "Personas are written by rule from what can be counted in the two responses (length, lists, "
            "numbers, tone). They know nothing of what a response says, and are not the paper's persona "
            "inference. For that, name an able language model: --set generator_url=http://... "
            "--set generator_model=NAME."
        )
    return f"Personas are inferred by {profile.base_model if model == 'base' else model}."


def example(data: OwnData) -> str:
    """Return the first usable row as it will be read."""
    row = data.rows[0]
    texts = [f"{name}\n{getattr(row.pair, name)[:600]}" for name in PAIR_FIELDS]
    shown = html.escape("\n".join(texts))
    return f'<p>{html.escape(row.place)}, split {row.split}:</p><div class="text">{shown}</div>'


def page_text(profile: Profile, data: OwnData) -> str:
    """Return the page."""
    counts = token_counts(profile, data)
    noted = too_long(profile, data, counts) if counts is not None else []
    how = "as given" if data.given_splits else (
        "by prompt; prompts whose word 3-grams overlap by "
        f"{profile.near_duplicate_threshold} or more (Jaccard) stay together"
    )  # fmt: skip
    unknown = "" if counts is not None else " The tokenizer is not here yet: tokens were not counted."
    parts = {
        "Every row accounted for": to_html(account_table(data, noted), "Read = usable + rejected"),
        "Splits": to_html(split_table(data), f"Split {how}"),
        "Lengths": to_html(length_table(data, counts), f"max_length is {profile.max_length}.{unknown}"),
        "Personas": f"<p>{html.escape(persona_note(profile))}</p>",
        "What was found, row by row": sections(data, noted),
        "The first usable row": example(data),
    }
    body = "".join(f"<h2>{title}</h2>{part}" for title, part in parts.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Your data</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{DATA_STYLE}</style></head>\n<body><main><h1>Your data: what was found</h1>"
        f"<p>{html.escape(data.source)}</p>{body}</main></body></html>\n"
    )


def write_page(profile: Profile, data: OwnData, folder: Path) -> Path:
    """Write the page and, beside it, all rows and findings as CSV; returns the page's path."""
    for name, table in (("rows", intake.row_table(data)), ("findings", intake.finding_table(data))):
        write_text(folder / f"data_{name}.csv", table.to_csv(index=False))
    write_text(folder / NAME, page_text(profile, data))
    return folder / NAME


# --- The HTML report of a profile ---
# Everything on the page comes from saved tables, figures and provenance; all text is escaped; nothing is
# loaded from elsewhere, so the page works from disk and on a phone.


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
    "released_words": "Typical words of the authors' released personas",
    "ratings": "Ratings of personas and answers (see who rated)",
    "rating_agreement": "How far the raters agree",
    "not_run": "What was not run",
}
OPEN = ("main", "paper", "side_difference")  # tables that are unfolded
REPORT_STYLE = """
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
    known = {name: (finished, seconds) for name, finished, seconds in times(profile)}
    rows = []
    for task in pipeline.tasks.values():
        page = f"notebooks/{task.id}.html"
        done = pipeline.executed(task).exists()
        name = f'<a href="{html.escape(page)}">{html.escape(task.id)}</a>' if done else html.escape(task.id)
        finished, seconds = known.get(task.id, ("", None))
        cells = [finished or ("done" if done else "not run"), clock(seconds) if seconds is not None else ""]
        rows.append(f"<tr><td>{name}</td>" + "".join(element("td", cell) for cell in cells) + "</tr>")
    done = sum(pipeline.executed(task).exists() for task in pipeline.tasks.values())
    total = sum(known[i][1] for i in pipeline.tasks if i in known)
    head = "".join(f'<th scope="col">{name}</th>' for name in ("notebook", "finished (UTC)", "time"))
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
    page = to_html(render("primary", table), "Aims that were set beforehand")
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
    return "".join(parts) or element("p", "No figure was drawn yet.")


def tables(profile: Profile) -> str:
    """Return every table that was made, the main ones unfolded."""
    parts = []
    for name, caption in CAPTIONS.items():
        table = read_table(profile, name)
        if table.empty:
            continue
        label = LABELS["paper"] if name == "paper" else ""
        page = to_html(
            render(name, table), f"{caption}{f' ({label})' if label else ''}. File: tables/{name}.csv"
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
        f"<style>{REPORT_STYLE}</style></head>\n<body><main>{body}</main></body></html>\n"
    )
