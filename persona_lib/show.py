"""What notebooks, report and documents show of tables and rows: in words, and as small tables.

``render`` shows any saved table. All have one form: an estimate ``x`` with ``x_low``, ``x_high``, counts, n.
``facts/views.yaml`` lists the columns that a reader sees. ``say`` puts the same form into sentences. The rest
are examples: one pair, one prompt, one comparison.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

from persona_lib.data import everyday, preference
from persona_lib.data.official import DATASETS
from persona_lib.intervals import wilson_interval
from persona_lib.models import load, served
from persona_lib.models.generate import TransformersGenerator
from persona_lib.paper import answers, judging, personas
from persona_lib.prompts import STOP, inference_prefix, inference_query, tailoring_prompt
from persona_lib.records import EVAL_PERSONAS, Side, Table, stacked, table_of
from persona_lib.settings import Profile, Run, set_field
from persona_lib.store import facts, iter_rows, read_json

OWNERS = {everyday.NAME: "our pairs", **dict.fromkeys(DATASETS, "authors' data")}  # by data set
ENDS = ("", "_low", "_high")  # of the columns of an estimate with its interval
SIGNED = ("p_net", "q_net", "net", "dpq", "quality_sd", "net_controlled", "dpq_controlled", "did", "alpha",
          "kappa", "log_odds", "z", "difference", "difference_cut")  # fmt: skip
DIGITS = {"dpq": 1, "dpq_low_widest": 1, "dpq_high_widest": 1, "dpq_controlled": 1, "z": 1, "words_mean": 1,
          "words_tested": 1, "words_base": 1, "flip": 3, "d_positive": 3, "did": 3, "did_positive": 3,
          "share": 3}  # fmt: skip
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


def quiet() -> None:
    """Keep progress bars and routine warnings out of what is shown; let tables show all rows, whole texts.

    To be called before transformers is imported; what the user has set in the environment is kept.
    """
    import pandas as pd

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Cannot enable progress bars")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # names a package that it does not need
    pd.set_option("display.max_colwidth", 160, "display.max_rows", 200, "display.precision", 3)


def owner_of(dataset: str) -> str:
    """Say whose data a number is measured on."""
    return OWNERS.get(dataset, "own data")


def title_of(dataset: str) -> str:
    """Return a data set's title for readers."""
    return DATASETS[dataset]["title"] if dataset in DATASETS else dataset


def policy_name(arm: str, told: str) -> str:
    """Name a policy in words, "PT-DPO" for "dpo-both"; ``told`` is the persona's format."""
    method, _, trained = arm.upper().partition("-")
    tailored = f"PT-{method}" + ("" if trained == "BOTH" else f" ({trained.lower()})")
    who = "untrained model" if not trained else f"plain {method}" if trained == "NONE" else tailored
    return who + (", told the persona" if told == "first_person" else "")


def in_words(table: Table) -> Table:
    """Add ``who`` to a table with ``arm`` and ``persona_format``: the policy in words."""
    if not {"arm", "persona_format"} <= {*table.columns}:
        return table
    return table.assign(who=[*map(policy_name, table.arm, table.persona_format)])


def one_seed(run: Run) -> Profile:
    """Return a run as a profile of one data set and seed, for the functions that make tables."""
    return set_field(run.profile, {"datasets": (run.dataset,), "seeds": (run.seed,)})


def number(value: Any, digits: int = 2, sign: bool = False) -> str:
    """Format a number; "" for None or NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("+-")


def with_interval(row: Any, name: str) -> str:
    """Format "estimate [low, high]", without limits "[–]"; no estimate although there are rows: undefined."""
    estimate, low, high = (number(row[f"{name}{end}"], DIGITS.get(name, 2), name in SIGNED) for end in ENDS)
    if not estimate:
        return "undefined" if row.get("n", 0) > 0 else ""
    return f"{estimate} [{low}, {high}]" if low else f"{estimate} [\N{EN DASH}]"


def shares(row: Any, rubric: str) -> str:
    """Format W / T / L, and contradictions if known, in per cent of parsed comparisons; "" of an average."""
    win, tie, loss = (row[f"{rubric}_{verdict}"] for verdict in ("win", "tie", "loss"))
    contradicted = row.get(f"{rubric}_inconsistent", math.nan)
    n = win + tie + loss
    if not n > 0:
        return ""
    counts = [win, tie, loss] if math.isnan(contradicted) else [win, tie - contradicted, loss, contradicted]
    return " / ".join(f"{100 * count / n:.1f}" for count in counts)


def cell(row: Any, name: str) -> str:
    """Format one column of a row: an estimate with its interval, W / T / L, a p-value, a number, a text."""
    if name.endswith(" shares"):
        return shares(row, name[0])
    if name.endswith("_unparsed") and row.get("kind") == "paper":
        return ""  # the paper does not say
    value = row[name]
    if f"{name}_low" in row:
        return with_interval(row, name)
    if name == "p" or name.endswith(("_holm", "_sign", "_p")):
        least = "" if math.isnan(value) else "< 1e-15"  # smaller ones say no more
        return f"{value:.{3 if value >= 0.001 else 2}g}" if value >= 1e-15 else least
    if name == "n":
        seeds = row.get("n_seeds", math.nan)
        shown = seeds > 0 and value > 0
        return number(value, 0) + (f" ({seeds:.0f} seed{'s' * (seeds > 1)})" if shown else "")
    if isinstance(value, str) or value is None:
        return value or ""
    if value is True or value is False or type(value).__name__ == "bool":
        return "yes" if value else "no"
    whole = float(value).is_integer() and name not in DIGITS
    if 0 < abs(value) < 0.005 and name not in DIGITS:
        return f"{value:.1g}"
    return number(float(value), 0 if whole else DIGITS.get(name, 2), name in SIGNED)


def render(name: str, table: Table | None) -> Table | None:
    """Return a saved table as text for readers; None without rows.

    Columns that a table lacks are left out, and so are counts of contradictions where there are none. The
    data set is named if there are several. A table without a view is shown whole.
    """
    if table is None or table.empty:
        return None
    if name == "primary":
        table = table.rename(columns={"low": "estimate_low", "high": "estimate_high"})
    table = in_words(table)
    view = facts("views").get(name, {column: column for column in table.columns if column != "who"})
    if "dataset" in table and len({*table.dataset} - {"all"}) > 1 and "dataset" not in str(view.values()):
        table = table.assign(dataset=table.dataset.map(title_of))
        view = {"data set": "dataset"} | view
    columns = {}
    for heading, content in view.items():
        names = [content] if isinstance(content, str) else content
        if all(one in table or one.replace(" shares", "_win") in table for one in names):
            cells = [[cell(row, one) for one in names] for _, row in table.iterrows()]
            title = f"{heading} [95 % interval]" if f"{names[0]}_low" in table else heading
            columns[title] = [" / ".join(line) if any(line) else "" for line in cells]
    return table_of(columns)


def to_markdown(table: Table) -> str:
    """Return a table as GitHub Markdown; bars and line breaks in cells are escaped."""

    def line(cells: Any) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    return "\n".join([line(table.columns), line("---" for _ in table.columns), *map(line, table.to_numpy())])


def place(row: Any, name: str, null: float) -> str:
    """Say where an estimate's interval lies: below, above or not clearly off ``null``; "" without one."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low is None or math.isnan(low):
        return ""
    return f"{'below' if high < null else 'above' if low > null else 'not clearly different from'} {null:g}"


def say(table: Table | None, name: str, columns: Sequence[str], null: float = 0.0, what: str = "") -> str:
    """Say per row where an estimate lies, as a list in Markdown: below, above or not clearly off ``null``.

    ``columns`` (or "who", see `in_words`) name the row. A row "a - b" is a difference, compared with 0.
    """
    said = []
    for _, row in in_words(table).iterrows() if table is not None else ():
        named = ", ".join(str(row[column]) for column in columns)
        n = f"n = {row['n']:.0f}" if row.get("n", 0) > 0 else ""
        where = place(row, name, 0.0 if " - " in named else null)
        words = filter(None, [f"{what or name} {with_interval(row, name)}", n, where])
        said.append(f"- {named}: {', '.join(words)}.")
    return "\n".join(said) or "- Nothing to say of this profile."


QUESTIONS = ("working-from-home-2", "coffee-at-home-1")  # of validation: explicit personas, implicit ones


def untrained_answers(run: Run) -> dict[str, str]:
    """Return the untrained base's answers by prompt: a question without a persona, two under either one."""
    items = [item for name in QUESTIONS for item in everyday.items() if item.id == name]
    told = [(i.prompt, p) for i in items for p in (i.persona_a, i.persona_b)]
    asked = [(items[0].prompt, None), *told]
    prompts = [tailoring_prompt(*pair, chat=load.format_of(*run.base_source)) for pair in asked]
    settings, (model, tokenizer, _) = run.profile.generation, answers.PolicyLoader(run).load("base")
    load.check_targets(model, run.profile.lora.targets)  # here, before anything is trained
    penalty = settings.repetition_penalty
    generator = TransformersGenerator(model, tokenizer, "base", len(asked), repetition_penalty=penalty)
    written = dict(generator.generate(prompts, settings.max_new_tokens, (STOP,)))
    return {prompt: written[number].text for number, prompt in enumerate(prompts)}


def inference_prompt_text(run: Run, side: Side = "chosen") -> str:
    """Return the whole few-shot prompt for the first pair and a side; says so where none is prompted."""
    if run.profile.generator.model == served.SURFACE:
        return "No language model is prompted: personas are written by rule from the two responses."
    pair = preference.inference_pairs(run)[0]
    query = inference_query(pair.prompt, *personas.sides_of(pair, side))
    return inference_prefix(personas.inference_shots(run.profile)) + query


def one_prompt(run: Run, arm: str, kinds: Sequence[str] = EVAL_PERSONAS) -> str:
    """Return one arm's answers to the first prompt, told personas of some kinds ("none", "gold", ...)."""
    row = answers.eval_rows(run)[0]
    parts = [f"PROMPT  {row.prompt}"]
    for spec in answers.grid(run):
        wanted = spec.arm == arm and spec.eval_persona.startswith(tuple(kinds))
        if answer := answers.read_generations(run, spec).get(row.id) if wanted else None:
            told = f"[{spec.eval_persona}, {spec.persona_format}]  {answer.persona or '-'}"
            parts.append(f"{told}\n{answer.completion}")
    return "\n\n".join(parts)


def judged_example(run: Run) -> str:
    """Return a comparison (no tie, if there is one), the judge's answers in both orders, and the verdicts."""
    matchup = judging.matchups(run)[0]
    verdicts = {verdict["id"]: verdict for verdict in judging.read_verdicts(run, matchup)}
    comparisons = judging.compare(run, matchup)
    c = next((c for c in comparisons if verdicts[c.id]["personalization"] != "tie"), comparisons[0])
    parts = [f"PROMPT   {c.prompt}\nPERSONA  {c.persona}", f"TESTED ({matchup.test.slug})\n{c.response_a}",
             f"BASE ({matchup.base.slug})\n{c.response_b}"]  # fmt: skip
    for rubric in judging.RUBRICS:
        both = judging.read_orders(judging.judgment_folder(run, matchup) / f"{rubric}.jsonl")[c.id]
        said = [f"{order}: {'tie' if one.tie else one.winner or 'unparsed'} ({one.feedback})"
                for order, one in both.items()]  # fmt: skip
        parts.append(f"{rubric}: {'; '.join(said)} -> {verdicts[c.id][rubric]}")
    return "\n\n".join(parts)


def answers_text(table: Table) -> str:
    """Return answers (``prompt``, ``persona``, ``plain_dpo``, ``pt_dpo``) as a page: each prompt once."""
    parts = []
    for prompt, rows in table.groupby("prompt", sort=False) if len(table) else ():
        parts.append(f"===== {prompt}")
        for row in rows.itertuples():
            parts.append(f"PERSONA  {row.persona or '-'}\n\nDPO\n{row.plain_dpo}\n\nPT-DPO\n{row.pt_dpo}")
    return "\n\n".join(parts) or "nothing to show"


LOSSES = {
    "loss": "training loss",
    "eval_loss": "validation loss",
    "eval_rewards/accuracies": "validation reward accuracy",
    "eval_rewards/margins": "validation reward margin",
}


def contrast_table(run: Run) -> Table:
    """Count, per dimension of ``everyday``, the training pairs that differ in it, and what most users like.

    ``share`` is that of pairs whose chosen response has it. Empty for other data: nobody knows its contrasts.
    """
    columns = ["dimension", "most like", "fewer like", "n", *(f"share{end}" for end in ENDS)]
    if run.dataset != everyday.NAME:
        return table_of([], columns)
    common, wishes = everyday.common_values(run.seed), everyday.wishes()
    known = everyday.personas(run.profile.data.majority_share, run.seed)
    pairs = preference.load_pairs(run)["train"]
    wanted = table_of([wishes[known[pair.id]["gold-chosen"]][0] for pair in pairs])
    rows = []
    for dimension, values in wanted.groupby(0, sort=False)[1]:
        most, n = common[dimension], len(values)
        fewer = next(value for value in everyday.DIMENSIONS[dimension] if value != most)
        hits = int((values == most).sum())
        rows.append((dimension, most, fewer, n, hits / n, *wilson_interval(hits, n)))
    return table_of(rows, columns=columns)


def training_history(run: Run, method: str) -> Table:
    """Return the losses of every validated epoch of every arm, and which epoch was kept."""
    tables = []
    for persona in run.profile.training.arms:
        folder = run.folder / "adapters" / f"{method}-{persona}"
        log = table_of(iter_rows(folder / "log.jsonl"))
        log = log.assign(epoch=log.epoch.map(math.ceil)).groupby("epoch", as_index=False).mean()
        table = log.rename(columns=LOSSES).dropna(subset="validation loss")
        best = read_json(folder / "done.json")["best_eval_loss"]
        tables.append(table.assign(arm=folder.name, kept=table["validation loss"] == best))
    history = stacked(tables).set_index(["arm", "epoch"])
    return history[[name for name in (*LOSSES.values(), "kept") if name in history]]


def training_curve(run: Run, method: str) -> Table:
    """Return the loss and reward margin of every log: ``series`` is the arm, ``row`` whose rows it is of."""
    lines: list[tuple[str, str, int, float | None, float | None]] = []
    for arm in (f"{method}-{persona}" for persona in run.profile.training.arms):
        for rows, begin in (("training", ""), ("validation", "eval_")):
            lines += [(arm, rows, 0, None, 0.0)] if method == "dpo" else []  # see `trainers.check_dpo_start`
            for log in iter_rows(run.folder / "adapters" / arm / "log.jsonl"):
                if loss := log.get(f"{begin}loss"):
                    lines.append((arm, rows, log["step"], loss, log.get(f"{begin}rewards/margins")))
    return table_of(lines, columns=["series", "row", "step", "loss", "margin"]).astype({"margin": float})


def degenerate_table(run: Run) -> Table:
    """Count, per arm, the answers that never end, repeat themselves or end in a loop; name unsound runs."""
    counted = ("n", "no_eos", "rep4_over_50", "suffix_loop", "n_without_persona")
    rows = []
    for spec in answers.grid(run):
        facts = read_json(answers.generation_folder(run, spec) / "done.json")
        unsound = f"{spec.eval_persona} " if answers.broken_share(facts) > answers.BROKEN else ""
        rows.append({"arm": spec.arm} | {name: facts[name] for name in counted} | {"unsound": unsound})
    return table_of(rows).groupby("arm", sort=False).sum()
