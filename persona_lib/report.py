"""The HTML pages of a profile: its report, and the page on a user's own data.

jinja2 fills them from ``facts/pages``: every text is escaped and nothing is loaded from elsewhere, so a page
works offline, in dark mode and on a phone. All numbers come from saved tables.
"""

from __future__ import annotations

import base64
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import weights
from persona_lib.beyond import users
from persona_lib.data import intake
from persona_lib.data.intake import OwnData
from persona_lib.data.mapping import read_mapping
from persona_lib.data.preference import draw, load_pairs
from persona_lib.data.rows import NOTED, REJECTED, Finding
from persona_lib.data.tailoring import split_train
from persona_lib.figures import FIGURES, figure_inputs, image, in_words
from persona_lib.models.load import load_tokenizer
from persona_lib.models.served import SURFACE, surface_persona
from persona_lib.paper.answers import BROKEN, broken_share, generation_folder, grid, read_generations
from persona_lib.paper.judging import runs_of
from persona_lib.paper.results import read_table
from persona_lib.paper.swap import answered_rows
from persona_lib.prompts import completion_text, tailoring_prompt
from persona_lib.records import PAIR_FIELDS, SIDES, DataError
from persona_lib.settings import FACTS, Profile, Run, main_arm, results_dir
from persona_lib.show import LABELS, owner_of, place, render, with_interval
from persona_lib.store import people_csv, read_json, write_text

if TYPE_CHECKING:
    import pandas as pd


def fill(template: str, **values: Any) -> str:
    """Return a page or model card; jinja2 escapes every text in a page."""
    import jinja2

    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FACTS / "pages"), autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return pages.get_template(template).render(values) + "\n"


# --- where a profile's numbers come from ---


def command_of(profile: Profile, overrides: Sequence[str]) -> str:
    """Return the command line that gives a profile these settings; paths of this machine become PATH."""
    words = ["./run_all.sh"] + ([] if profile.name == "everyday" else ["--profile", profile.name])
    for override in overrides:
        name, _, value = override.partition("=")
        words += ["--set", f"{name}={'PATH' if Path(value).is_absolute() else value}"]
    return " ".join(words)


def origin(profile: Profile, step: str = "12_results") -> dict[str, str]:
    """Return command, commit, date, hardware and versions of the run that made a step's tables, as text."""
    path = results_dir(profile) / "provenance.json"
    facts = read_json(path)["tasks"].get(step) if path.exists() else None
    if facts is None:
        command = f"notebooks/{step}.ipynb, run by hand"
        return {"command": command, "commit": "not recorded", "date": "not recorded"}
    git, hardware = facts["git"], facts["hardware"]
    changed = " with uncommitted changes" if git["dirty"] else ""
    size = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB"
    return {
        "command": command_of(profile, facts["parameters"].get("overrides", [])),
        "commit": (git["commit"] or "not recorded")[:12] + changed,
        "date": facts["finished"][:10],
        "hardware": ", ".join([size, *hardware["gpus"]]),
        "versions": ", ".join(
            f"{n} {v}" for n, v in {"Python": facts["python"], **facts["versions"]}.items()
        ),
    }


# --- the parts of the report ---

# (table, its rows, the sentence, the estimate, the value that stands for no effect)
FINDINGS = (
    ("persona_accuracy", "side in ('chosen', 'rejected')",
     "Personas of {side} responses lead back to them in {value} of {n:.0f} rows", "accuracy", 0.5),
    ("main", "kind == 'average'",
     "PT-DPO against DPO that is told the persona: dPQ {value}, {label}, n = {n:.0f}", "dpq", 0),
    ("side_difference", "n == n",
     "dPQ under rejected minus chosen personas ({personas}): {value}, n = {n:.0f}", "dpq", 0),
    ("swap", "measure == 'policy' and persona == 'gold' and arm == @tailored",
     "Personas move PT-DPO towards their user's response in {value} of {n:.0f} rows", "d_positive", 0.5),
    ("swap", "measure == 'policy' and persona == 'gold' and arm == 'dpo-none' and persona_format != 'line'",
     "They move plain DPO that is told the persona in {value} of {n:.0f} rows", "d_positive", 0.5),
    ("swap", "measure == 'policy' and persona == 'shuffled' and arm == @tailored",
     "Another row's personas move PT-DPO towards it in {value} of {n:.0f} rows", "d_positive", 0.5),
)  # fmt: skip


def findings(profile: Profile) -> list[str]:
    """Say the paper's findings as this run measures them; a 95 % interval decides what is clear."""
    said, arms = [], {"tailored": f"dpo-{main_arm(profile)}"}
    for name, rows, sentence, column, null in FINDINGS:
        table = read_table(profile, name)
        found = table.query(rows, local_dict=arms) if len(table) else table
        for row in found.to_dict("records"):
            where = f"{row['dataset']}: " if len(profile.datasets) > 1 else ""
            words = [sentence.format(value=with_interval(row, column), **row), place(row, column, null)]
            said.append(f"{where}{'; '.join(filter(None, words))}.")
    return said


def examples(profile: Profile) -> list[list[dict[str, Any]]]:
    """Return, per question, its two users, each with the answers of plain DPO and PT-DPO."""
    if not len(table := read_table(profile, "examples")):
        return []
    gold = table[table.eval_persona.str.startswith("gold")].groupby(["dataset", "seed", "id"], sort=False)
    return [rows.to_dict("records") for _, rows in gold]


def figures(profile: Profile) -> list[dict[str, str]]:
    """Return every figure that was drawn from this run's tables, with a text alternative."""
    made = [name for name in FIGURES if all(table.exists() for table in figure_inputs(profile, name))]
    return [
        {"data": base64.b64encode(saved.data).decode(), "alt": saved.alt, "caption": FIGURES[name].caption}
        for name, saved in ((name, image(profile, name)) for name in made)
        if saved
    ]


def tables(profile: Profile) -> list[dict[str, Any]]:
    """Return every table that was made, as readers see it, in the order of ``tables.yaml``."""
    import yaml

    captions = yaml.safe_load((FACTS / "pages" / "tables.yaml").read_text(encoding="utf-8"))
    found = {name: read_table(profile, name) for name in captions}
    return [
        {"name": name, "caption": captions[name], "table": render(name, table)}
        for name, table in found.items()
        if len(table)
    ]


def write_report(profile: Profile) -> Path:
    """Write ``results/<profile>/report/index.html``; returns its path."""
    path = results_dir(profile) / "report" / "index.html"
    write_text(path, own_page(profile) if profile.datasets == (intake.NAME,) else report_page(profile))
    return path


def report_page(profile: Profile) -> str:
    """Return the report on a run of the paper's data, or of the package's own."""
    aims = read_table(profile, "primary")
    return fill(
        "report.html",
        title=f"{profile.name}: report",
        profile=profile,
        owners=" and ".join(dict.fromkeys(owner_of(dataset) for dataset in profile.datasets)),
        paper=LABELS["paper"],
        findings=findings(profile),
        examples=examples(profile),
        figures=figures(profile),
        met=aims.met.value_counts().to_dict() if len(aims) else {},
        aims=render("primary", aims[aims.met != "not run"] if len(aims) else aims),
        **run_parts(profile, ()),
    )


def run_parts(profile: Profile, left_out: Sequence[str]) -> dict[str, Any]:
    """Return what both reports say of a run; unsound policies gave degenerate answers too often."""
    runs = [run for dataset in profile.datasets for run in runs_of(profile, dataset)]
    ran = sorted((results_dir(profile) / "notebooks").glob("*.ipynb"))
    done = [(run, spec, generation_folder(run, spec) / "done.json") for run in runs for spec in grid(run)]
    return {
        "broken": f"{BROKEN:.0%}",
        "unsound": [f"{spec.slug}, seed {run.seed}" for run, spec, path in done
                    if path.exists() and broken_share(read_json(path)) > BROKEN],
        "tables": [one for one in tables(profile) if one["name"] not in left_out],
        "notebooks": [path.stem for path in ran if not path.name.endswith(".running.ipynb")],
        "origin": origin(profile),
    }  # fmt: skip


# --- the page that says what was found in a user's own data ---

SHOWN = 200  # findings of one kind that the page lists; data_findings.csv has all


def training_tokenizer(profile: Profile) -> Any:
    """Return the tokenizer that a run will use, or None if it is not on this machine."""
    if weights.is_packaged(profile.base.model) and not weights.is_fetched(profile.base.model):
        return None
    try:
        return load_tokenizer(profile.base.model)
    except (ImportError, OSError, ValueError) as error:
        logging.getLogger(__name__).info("no tokenizer: %s", error)
        return None


def token_counts(profile: Profile, data: OwnData) -> list[int] | None:
    """Return the tokens of each row's prompt and longer response, no persona; None without a tokenizer."""
    tokenizer = training_tokenizer(profile)
    if tokenizer is None:
        return None
    asked = [(row.pair, tailoring_prompt(row.pair.prompt, None)) for row in data.rows]
    texts = [prompt + completion_text(getattr(pair, side)) for pair, prompt in asked for side in SIDES]
    parts = (texts[start : start + 1000] for start in range(0, len(texts), 1000))  # the rest takes no memory
    lengths = [len(ids) for part in parts for ids in tokenizer(part)["input_ids"]]
    return [max(pair) for pair in zip(lengths[::2], lengths[1::2], strict=True)]


def too_long(profile: Profile, data: OwnData, counts: Sequence[int]) -> list[Finding]:
    """Note the rows whose longer text has more tokens than ``training.max_length``."""
    most, counted = profile.training.max_length, zip(data.rows, counts, strict=True)
    long = [(row, f"{count} tokens, max_length {most}") for row, count in counted if count > most]
    return [Finding(row.row, row.place, "row", "too long", detail) for row, detail in long]


def check_training(profile: Profile, data: OwnData, counts: Sequence[int] | None) -> None:
    """Raise DataError for what would stop the training: a part of the data without a row that can be used.

    A row of a training part, and a prompt of a validation part, has to fit into ``training.max_length`` with
    a persona. Personas by rule need responses that differ in what the rule counts.
    """
    training, room, where = profile.training, profile.generator.max_new_tokens, profile.data.path
    rule = profile.generator.model == SURFACE and not profile.generator.url
    pairs, tokens = data.pairs(), dict(zip((row.pair.id for row in data.rows), counts or (), strict=False))
    parts = {"test": draw(pairs["test"], profile.evaluation.limit)}
    for name, part in split_train(pairs["train"], profile.seeds[0]).items():
        parts[name] = draw(part, training.rows if name.endswith("train") else training.validation_rows)
    for name, kept in parts.items():
        lengths = [tokens.get(pair.id, 0) for pair in kept]
        if tokens and name.endswith("val"):
            asked = [tailoring_prompt(pair.prompt, None) for pair in kept]
            lengths = [len(ids) for ids in training_tokenizer(profile)(asked)["input_ids"]]
        if name != "test" and min(lengths, default=0) + room > training.max_length:
            raise DataError(
                f"{where}: none of the {len(kept)} rows of {name} fits into "
                f"training.max_length={training.max_length} with a persona of up to {room} tokens. "
                f"Add shorter rows, or --set training.max_length={max(lengths) + room}"
            )
        if rule and not any(p.persona_chosen or surface_persona(p.chosen, p.rejected) for p in kept):
            raise DataError(
                f"{where}: personas by rule (generator.model=surface) see no difference between the "
                f"responses of any of the {len(kept)} pairs of {name}. Name a language model that writes "
                "personas: --set generator.model=base, or generator.url and generator.model"
            )


def length_table(data: OwnData, counts: Sequence[int] | None) -> pd.DataFrame:
    """Return the median, 95th percentile and maximum of characters per field and of tokens per row."""
    import pandas as pd

    lengths = {f"characters of {name}": [len(getattr(r.pair, name)) for r in data.rows]
               for name in PAIR_FIELDS}  # fmt: skip
    lengths |= {"tokens of prompt and longer response": counts} if counts is not None else {}
    quantiles = pd.DataFrame(lengths).quantile([0.5, 0.95, 1]).T.round().astype(int)
    quantiles.columns = ["median", "95 % have at most", "longest"]
    return quantiles.rename_axis("what").reset_index()


def account_table(data: OwnData, noted: Sequence[Finding] = ()) -> pd.DataFrame:
    """Return the account of the rows: what was found, how often, what to do. Read = usable + rejected."""
    import pandas as pd

    counts = Counter(finding.code for finding in data.rejected.values())
    counts |= Counter(
        code for code, _ in {(f.code, f.row) for f in (*data.findings, *noted) if not f.rejected}
    )
    lines = [("rows read", data.n_read, ""), ("usable", len(data.rows), "")]
    for title, known in (("rejected", REJECTED), ("kept, but", NOTED)):
        lines += [(f"{title}: {known[c][0]}", n, known[c][1]) for c, n in counts.most_common() if c in known]
    return pd.DataFrame(lines, columns=["what", "rows", "what to do"])


def split_table(data: OwnData) -> pd.DataFrame:
    """Return rows, different prompts and users per split."""
    import pandas as pd

    lines = [
        (split, len(part), len({pair.prompt for pair in part}), len({pair.user for pair in part} - {""}))
        for split, part in data.pairs().items()
    ]
    return pd.DataFrame(lines, columns=["split", "rows", "different prompts", "users"])


def found_by_kind(data: OwnData, noted: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return every finding by kind: rejected rows under their first reason, kept ones under each."""
    import pandas as pd

    found, parts = [*data.rejected.values(), *(f for f in (*data.findings, *noted) if not f.rejected)], []
    for code, (words, mend) in (REJECTED | NOTED).items():
        lines = [(f.place, f.field, f.detail[:160]) for f in found if f.code == code]
        if lines:
            title = f"{'rejected' if code in REJECTED else 'kept'}: {words} ({len(lines)})"
            table = pd.DataFrame(lines[:SHOWN], columns=["where", "field", "detail"])
            parts.append({"title": title, "mend": mend, "table": table, "open": code in REJECTED})
    return parts


def write_page(profile: Profile, data: OwnData, folder: Path) -> Path:
    """Write ``data.html`` and, beside it, all findings as CSV; returns the page's path.

    Raises what `check_training` raises, when the page is written.
    """
    counts = token_counts(profile, data)
    noted = too_long(profile, data, counts) if counts is not None else []
    page = fill(
        "data.html",
        title="Your data",
        profile=profile,
        data=data,
        said=intake.describe(data)[1:],
        account=account_table(data, noted),
        splits=split_table(data),
        lengths=length_table(data, counts),
        uncounted=counts is None,
        found=found_by_kind(data, noted),
    )
    write_text(folder / "data_findings.csv", people_csv(intake.finding_table(data)))
    write_text(folder / "data.html", page)
    check_training(profile, data, counts)
    return folder / "data.html"


# --- the report on a user's own data ---

SHOWN_USERS, SHOWN_ROWS = 4, 3
NOT_OWN = ("paper", "primary", "not_run", "user_personas", "swap_by_seed")  # not shown, or shown elsewhere
USER_COLUMNS = {"name": "user", "users": "in training", "persona": "persona", "history": "pairs of history",
                "agree": "agree with it"}  # fmt: skip


def own_users(run: Run) -> dict[str, Any]:
    """Return what the report says of users: consistency, kinds, examples, a line each; {} without users."""
    table, consistency = (read_table(run.profile, f"user_{name}") for name in ("personas", "consistency"))
    if not len(table):
        return {}
    pairs = {pair.id: pair for part in load_pairs(run).values() for pair in part}
    rows = [row for row in users.user_personas(run) if not row.length]  # those of the table
    named = read_mapping(run.profile.data.mapping).show_users
    table["name"] = [row.user if named else f"user {n}" for n, row in enumerate(rows, start=1)]
    table["agree"] = [len(row.support) for row in rows]
    table["pair"] = [pairs[row.support[0]] if row.support else None for row in rows]
    kinds = table.groupby("kind", sort=False).agg(users=("name", "size"), example=("persona", "first"))
    return {
        "consistency": consistency.to_dict("records"),
        "shown": table[table.agree > 0].drop_duplicates("kind").head(SHOWN_USERS).to_dict("records"),
        "kinds": kinds.sort_values("users", ascending=False, kind="stable").reset_index(),
        "all": table[list(USER_COLUMNS)].rename(columns=USER_COLUMNS),
    }


def own_cards(run: Run) -> list[dict[str, Any]]:
    """Return the first evaluated questions with the answers of the arms there are, unseen users first."""
    done = [spec for spec in grid(run) if (generation_folder(run, spec) / "done.json").exists()]
    found = {(spec.arm, spec.eval_persona): read_generations(run, spec) for spec in done}
    main = users.tailored(run)
    family = "user" if found.get((main, "user-chosen")) else "gold"
    wanted = [(main, f"{family}-{side}") for side in SIDES]
    wanted += [(arm, name) for arm, name in found if arm.endswith("-none") and name == "none"]
    shown = {one: found[one] for one in wanted if found.get(one)}
    who, part = users.user_of_row(run), users.part_of(run)
    rows = [row for row in answered_rows(run).values() if all(row.id in made for made in shown.values())]
    rows.sort(key=lambda row: part.get(who.get(row.id, ""), "") != "unseen")
    return [
        {"row": row, "answers": [(arm, name, made[row.id]) for (arm, name), made in shown.items()]}
        for row in (rows[:SHOWN_ROWS] if shown else ())
    ]


def own_adapter(run: Run) -> dict[str, str]:
    """Return where a run's adapter is and its base, the lines that load it, and how it becomes GGUF."""
    folder, base = results_dir(run.profile) / "adapter", run.base_source[0]
    if weights.is_packaged(base) and weights.is_fetched(base):
        base = weights.pinned(base)[0]
    code = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{folder}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")'
    )
    gguf = f"llama.cpp's convert_lora_to_gguf.py {folder} --base {base} writes GGUF."
    return {"folder": str(folder), "base": run.profile.base.model, "code": code, "gguf": gguf}


def own_page(profile: Profile) -> str:
    """Return the report on a user's own data: data, users, effect, answers, adapter, limits."""
    data, run = intake.read_own(profile), runs_of(profile, profile.datasets[0])[0]
    measured, swaps, others, name = read_table(profile, "user_swap"), [], [], "swap"
    if len(measured):
        name = "user_swap"
        whole, tailored = measured[measured.history == 0], users.tailored(run)
        swaps = whole[whole.arm == tailored].to_dict("records")
        others = in_words(whole[whole.arm != tailored]).to_dict("records")
        measured = measured.assign(history=measured.history.astype(str).replace("0", "all"))
    return fill(
        "own.html",
        title="Your data and your model",
        profile=profile,
        said=intake.describe(data),
        account=account_table(data),
        splits=split_table(data),
        users=own_users(run),
        swaps=swaps,
        others=others,
        found=[] if swaps else findings(profile),
        interval=with_interval,
        place=place,
        measured=render(name, measured if swaps else read_table(profile, "swap")),
        cards=own_cards(run),
        adapter=own_adapter(run),
        **run_parts(profile, (*NOT_OWN, name)),
    )
