"""The HTML pages of a profile: its report, and the page on a user's own data.

jinja2 fills them from ``facts/pages``: every text is escaped and nothing is loaded from elsewhere, so a page
works offline, in dark mode and on a phone. All numbers come from saved tables.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from persona_lib import show, weights
from persona_lib.beyond import claims, users
from persona_lib.data import intake, mapping, preference
from persona_lib.figures import FIGURES, image
from persona_lib.models.load import tokenizer_at_hand
from persona_lib.paper import answers, judging, swap
from persona_lib.paper.results import read_table
from persona_lib.prompts import completion_text, tailoring_prompt
from persona_lib.records import PAIR_FIELDS, SIDES, Table, table_of
from persona_lib.settings import Profile, Run, figures_dir, main_arm, results_dir
from persona_lib.store import facts, fill, people_csv, read_json, write_text


def command_of(profile: Profile, overrides: Sequence[str]) -> str:
    """Return the command line that gives a profile these settings; paths of this machine become PATH."""
    words = ["./run_all.sh"] + ([] if profile.name == "everyday" else ["--profile", profile.name])
    for override in overrides:
        name, _, value = override.partition("=")
        words += ["--set", f"{name}={'PATH' if Path(value).is_absolute() else value}"]
    return " ".join(words)


def origin(profile: Profile, step: str = "12_results") -> dict[str, str]:
    """Return command, commit, date, seeds, hardware and versions of the run of a step, as text."""
    path = results_dir(profile) / "provenance.json"
    ran = read_json(path) if path.exists() else {"tasks": {}}
    if (facts := ran["tasks"].get(step)) is None:
        unknown = dict.fromkeys(("commit", "date", "seeds"), "not recorded")
        return {"command": f"notebooks/{step}.ipynb, run by hand", **unknown}
    git, on, versions = facts["git"], facts["hardware"], {"Python": facts["python"], **facts["versions"]}
    return {
        "command": command_of(profile, facts["parameters"]["overrides"]),
        "commit": (git["commit"] or "not recorded")[:12] + " with uncommitted changes" * bool(git["dirty"]),
        "date": facts["finished"][:10],
        "seeds": " ".join(map(str, ran["settings"]["seeds"])),
        "hardware": ", ".join([on["cpu"], f"{on['cores']} cores", f"{on['memory_gb']} GB", *on["gpus"]]),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


# (table, its rows, the sentence, the estimate, the value that stands for no effect)
FINDINGS = (
    ("user_swap", "users == 'unseen' and history == 0 and compared != 'control' and arm == @tailored",
     "Told a user's own persona, not another's, PT-DPO moves towards the user's choice in {value} of {n:.0f} "
     "pairs ({n_users:.0f} users, not in training)", "d_positive", 0.5),
    ("swap", "measure == 'policy' and persona == 'gold' and arm == @tailored",
     "A persona moves PT-DPO's preference towards its user's response in {value} of {n:.0f} rows",
     "d_positive", 0.5),
    ("swap", "measure == 'policy' and persona == 'gold' and arm == 'dpo-none' and persona_format != 'line'",
     "The same persona moves plain DPO's in {value} of {n:.0f} rows", "d_positive", 0.5),
    ("swap", "measure == 'policy' and persona == 'shuffled' and arm == @tailored",
     "A control, another question's persona, moves PT-DPO's in {value} of {n:.0f} rows", "d_positive", 0.5),
    ("main", "kind == 'average'",
     "Which answer suits the user? PT-DPO's wins minus losses, of those decided: {value}, n = {n:.0f}",
     "p_net", 0),
    ("main", "kind == 'average'", "Which is better for anybody? The same difference: {value}", "q_net", 0),
    ("main", "kind == 'average'", "The mean of these two, in per cent (dPQ): {value}", "dpq", 0),
    ("side_difference", "n == n",
     "dPQ with personas of rejected responses minus that of chosen ones ({personas}): {value}", "dpq", 0),
    ("persona_accuracy", "side in ('chosen', 'rejected')",
     "Inferred personas: a judge matches {value} of {n:.0f} personas of {side} responses to their response",
     "accuracy", 0.5),
)  # fmt: skip
ASKED = {"swap": "persona swaps", "user_swap": "users' personas", "dpq": "dPQ",
         "p_net": "which answer suits the user", "q_net": "which is better for anybody", "side_difference":
         "rejected minus chosen ({personas})", "persona_accuracy": "inferred personas ({side})"}  # fmt: skip


def findings(profile: Profile) -> list[str]:
    """Say the paper's findings as this run measures them, with 95 % intervals; last, what is undefined."""
    said, lacking, arms = [], {}, {"tailored": f"dpo-{main_arm(profile)}"}
    for name, rows, sentence, column, null in FINDINGS:
        table = read_table(profile, name)
        found = table.query(rows, local_dict=arms) if len(table) else table
        for row in found.to_dict("records"):
            several = len(profile.datasets) > 1 and row["dataset"] != "all"
            where = f"{show.title_of(row['dataset'])}: " if several else ""
            if math.isnan(row[column]):
                lacking[where + (ASKED.get(name) or ASKED[column]).format(**row)] = True
                continue
            value = show.with_interval(row, column).replace(" ", "\N{NO-BREAK SPACE}")
            lies, against = show.place(row, column, null), "chance" if null else "no difference"
            lies = f"{lies} ({against})" if lies else "too few users for an interval" * ("n_users" in row)
            words = [sentence.format(value=value, **row), lies]
            said.append(f"{where}{'; '.join(filter(None, words))}.")
    return [*said, f"Too few decided pairs for: {'; '.join(lacking)}."] if lacking else said


def summary(profile: Profile) -> list[str]:
    """Return what a run found, in lines: the finding on the persona swap, and how many aims are met."""
    said = [f"found: {sentence}" for sentence in findings(profile)[:2]]
    aims = Counter(read_table(profile, "primary").get("met", ()))
    if decided := aims["yes"] + aims["no"]:
        said.append(f"aims: {aims['yes']} of {decided} that were set beforehand are met")
    return said


def write_report(profile: Profile) -> Path:
    """Write ``results/<profile>/report/index.html``, of own data another page; returns its path."""
    target, own = results_dir(profile) / "report" / "index.html", profile.datasets == (intake.NAME,)
    ran = sorted((results_dir(profile) / "notebooks").glob("*.ipynb"))
    tables = [(name, said, show.render(name, read_table(profile, name)))
              for name, said in facts("pages/tables").items()]  # fmt: skip
    page = fill(
        "own.html" if own else "report.html",
        title=f"{profile.name}: report",
        profile=profile,
        broken=f"{answers.BROKEN:.0%}",
        unsound=answers.unsound(profile),
        findings=findings(profile),
        tables=[one for one in tables if one[2] is not None],
        notebooks=[path.stem for path in ran if not path.name.endswith(".running.ipynb")],
        origin=origin(profile),
        **(own_parts(profile) if own else paper_parts(profile)),
    )
    write_text(target, page)
    return target


def paper_parts(profile: Profile) -> dict[str, Any]:
    """Return what only the report on the paper's data, or the package's, shows: examples, figures, aims."""
    aims, answered = read_table(profile, "primary"), read_table(profile, "examples").to_dict("records")
    gold = [row for row in answered if row["eval_persona"].startswith("gold")]
    return {
        "owners": " and ".join(dict.fromkeys(show.owner_of(dataset) for dataset in profile.datasets)),
        "examples": [[*users] for _, users in groupby(gold, itemgetter("dataset", "seed", "id"))],
        "figures": [(shown.alt.partition(". ")[0], shown, base64.b64encode(svg.read_bytes()).decode())
                    for svg in (figures_dir(profile) / f"{name}.svg" for name in FIGURES)
                    if (shown := image(profile, svg.stem))],
        "met": aims.met.value_counts().to_dict() if len(aims) else {},
        "aims": show.render("primary", aims[aims.met != "not run"] if len(aims) else aims),
    }  # fmt: skip


SHOWN = 200  # findings of one kind that the page lists; data_findings.csv has all


def token_counts(profile: Profile, data: intake.OwnData) -> list[int] | None:
    """Return the tokens of each row's prompt (no persona) and longer response; None without a tokenizer."""
    if (tokenizer := tokenizer_at_hand(profile.base.model)) is None:
        return None
    asked = [(row.pair, tailoring_prompt(row.pair.prompt, None)) for row in data.rows]
    texts = [prompt + completion_text(getattr(pair, side)) for pair, prompt in asked for side in SIDES]
    parts = (texts[start : start + 1000] for start in range(0, len(texts), 1000))  # the rest takes no memory
    lengths = [len(ids) for part in parts for ids in tokenizer(part)["input_ids"]]
    return [max(pair) for pair in zip(lengths[::2], lengths[1::2], strict=True)]


def length_table(data: intake.OwnData, counts: Sequence[int] | None) -> Table:
    """Return the median, 95th percentile and maximum of characters per field and of tokens per row."""
    lengths = {f"characters of {name}": [len(getattr(r.pair, name)) for r in data.rows]
               for name in PAIR_FIELDS}  # fmt: skip
    lengths |= {"tokens of prompt and longer response": [*counts]} if counts is not None else {}
    quantiles = table_of(lengths).quantile([0.5, 0.95, 1]).T.round().astype(int).rename_axis("what")
    return quantiles.set_axis(["median", "95 % have at most", "longest"], axis=1).reset_index()


def account_table(data: intake.OwnData) -> Table:
    """Return the account of the rows: what was found, how often, what to do."""
    lines = [("rows read", data.n_read, ""), ("usable", len(data.rows), "")]
    lines += [(one["title"], one["rows"], one["mend"]) for one in intake.found_by_kind(data)]
    return table_of(lines, columns=["what", "rows", "what to do"])


def split_table(data: intake.OwnData) -> Table:
    """Return rows, different prompts and users per split."""
    lines = [
        (split, len(part), len({pair.prompt for pair in part}), len({pair.user for pair in part} - {""}))
        for split, part in data.pairs().items()
    ]
    return table_of(lines, columns=["split", "rows", "different prompts", "users"])


def write_page(profile: Profile, data: intake.OwnData, folder: Path) -> Path:
    """Write ``data.html`` and, beside it, all findings as CSV; returns the page's path."""
    counts = token_counts(profile, data)
    page = fill(
        "data.html",
        title="Your data",
        profile=profile,
        data=data,
        said=intake.describe(data)[1:],
        account=account_table(data),
        splits=split_table(data),
        lengths=length_table(data, counts),
        cut=None if counts is None else sum(count > profile.training.max_length for count in counts),
        found=intake.found_by_kind(data),
        most=SHOWN,
    )
    found = [asdict(finding) | {"outcome": finding.outcome} for finding in data.findings]
    columns = ["row", "place", "field", "code", "outcome", "detail"]
    write_text(folder / "data_findings.csv", people_csv(table_of(found, columns)))
    write_text(folder / "data.html", page)
    return folder / "data.html"


SHOWN_USERS, SHOWN_ROWS = 10, 3


def own_users(run: Run) -> dict[str, Any]:
    """Return users with personas, users per kind of persona, and a pair for each; {} without users."""
    table, pairs = read_table(run.profile, "user_personas"), preference.load_pairs(run)
    if not len(table):
        return {}
    support = {row.user: row.support for row in users.user_personas(run) if not row.length}
    texts = {pair.id: pair for part in pairs.values() for pair in part}
    table["pair"] = [texts[support[user][0]] if support[user] else None for user in table.user]
    if not mapping.read_mapping(run.profile.data.mapping).show_users:
        table["user"] = [f"user {n}" for n in range(1, len(table) + 1)]
    some = table[table.support > 0].drop_duplicates("kind").head(SHOWN_ROWS)
    kinds = table.kind.value_counts().rename("users").reset_index()
    return {"all": show.render("user_personas", table), "kinds": kinds, "examples": some.to_dict("records")}


def own_cards(run: Run) -> list[dict[str, Any]]:
    """Return the first evaluated questions with the answers of the arms there are, unseen users first."""
    done = [spec for spec in answers.grid(run) if answers.is_answered(run, spec)]
    found = {(spec.arm, spec.eval_persona): answers.read_generations(run, spec) for spec in done}
    main = users.tailored(run)
    family = "user" if found.get((main, "user-chosen")) else "gold"
    wanted = [(main, f"{family}-{side}") for side in SIDES]
    wanted += [(arm, name) for arm, name in found if arm.endswith("-none") and name == "none"]
    shown = {one: found[one] for one in wanted if found.get(one)}
    rows = [row for row in swap.answered_rows(run).values() if all(row.id in made for made in shown.values())]
    part = users.part_of(run)
    rows.sort(key=lambda row: part.get(row.id) != "unseen")
    return [
        {"row": row, "answers": [(arm, name, made[row.id]) for (arm, name), made in shown.items()]}
        for row in (rows[:SHOWN_ROWS] if shown else ())
    ]


def own_adapter(run: Run) -> dict[str, str]:
    """Return where a run's adapter is, and the lines that load it; the last one says how it becomes GGUF."""
    folder, base = results_dir(run.profile) / "adapter", run.base_source[0]
    if weights.is_packaged(base) and weights.is_fetched(base):
        base = weights.pinned(base)[0]
    code = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{folder}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
        f"# llama.cpp: convert_lora_to_gguf.py {folder} --base {base} writes GGUF"
    )
    return {"folder": str(folder), "code": code}


def own_parts(profile: Profile) -> dict[str, Any]:
    """Return what only the report on a user's own data shows: data, users, effect, answers, adapter."""
    data, run = intake.read_own(profile), judging.runs_of(profile, profile.datasets[0])[0]
    measured = read_table(profile, "user_swap")
    return {
        "said": intake.describe(data),
        "account": account_table(data),
        "splits": split_table(data),
        "users": own_users(run),
        "shown": SHOWN_USERS,
        "consistency": read_table(profile, "user_consistency").to_dict("records"),
        "tailored": users.tailored(run),
        "swaps": claims.pick(measured, {"history": 0}).to_dict("records"),
        "wins": read_table(profile, "user_wins").to_dict("records"),
        "show": show,
        "measured": show.render("user_swap", measured.replace({"history": {0: "all"}})),
        "growth": users.growth(run),
        "cards": own_cards(run),
        "adapter": own_adapter(run),
    }
