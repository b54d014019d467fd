"""Three studies beside the pipeline: ``python -m persona_lib.studies {selection,persona-models,reader}``.

**selection** chooses training settings on validation topics. It trains every candidate for all arms with
data and training seeds that no result uses, and writes ``figures/<profile>/selection_*.csv``. The rule is
fixed here. All means are over seeds and over the gold personas of both sides (told to the plain arm in the
first person). A candidate whose answers end less often than those of the arm's best by more than five
points is out. The plain arm takes the candidate with the highest oracle fit among those whose mean quality
is within 0.1 standard deviations of the best candidate's. PT takes the candidate with the highest fit among
those whose mean quality is within 0.1 standard deviations of what the plain arm's pick has (if none is: the
one with the highest quality). Ties go to the earlier candidate.

A first search used seed 106 alone and did not count unfinished answers. Its pick for PT, without an SFT term
in DPO, failed to end its answers in two of three test seeds. On validation rows that candidate left 15 % (PT)
and 86 % (plain) of the answers without an end, so it is no candidate any more.

**persona-models** compares models that infer personas, as the paper's Figure 3. Every model writes personas
for both sides of the same evaluation pairs from the same prompt; the profile's judge of personas reads
them. Without ``--model`` the models are those of ``MODELS`` (Gemma's licence must be accepted:
``persona_lib.weights``). With it, any others, by the settings in which they differ:

    python -m persona_lib.studies persona-models --profile paper --model 8B --model 70B generator.model=ID

Nothing is chosen by these numbers. A model and seed that is finished is not asked again.

**reader** measures how often the reader of answers is right, on the written responses of the test split and
on ``facts/reader_labels.jsonl``: generated answers, drawn blind, each with a dimension, its two values and a
"label" (one of them, or "neither"). The table is ``figures/everyday/reader.csv``.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import store
from persona_lib.beyond.calibration import labelled
from persona_lib.data import everyday, preference, tailoring
from persona_lib.data.reader import reader_table
from persona_lib.figures import save_figures
from persona_lib.models import train
from persona_lib.models.served import SURFACE, load_generator, role_key
from persona_lib.paper import answers, personas
from persona_lib.paper.answers import read_generations
from persona_lib.paper.judges import load_judge
from persona_lib.paper.judging import oracle_scores
from persona_lib.paper.personas import ITEMS, accuracy_rows, infer_personas, judge_personas, read_items
from persona_lib.paper.results import Row, save_table
from persona_lib.records import SIDES, RunSpec
from persona_lib.settings import (
    REPO,
    ConfigError,
    Profile,
    Run,
    deciding,
    figures_dir,
    load_profile,
    parse_override,
    results_dir,
    set_field,
)
from persona_lib.store import VERSIONS

if TYPE_CHECKING:
    import pandas as pd

# --- selection ---

SEEDS = (106, 107)  # tuning only: results use data and training seeds 0, 1, 2, ...
ARMS = ("none", "both")
QUALITY_MARGIN = 0.1  # in standard deviations of the answers' quality
UNFINISHED_MARGIN = 0.05  # share of answers without an end, above the arm's lowest

CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "sft": [{"sft.learning_rate": rate} for rate in (5e-4, 1e-3)],
    "dpo": [
        {"sft.learning_rate": 1e-3, "dpo.learning_rate": rate, "dpo.sft_weight": weight}
        for rate, weight in ((5e-4, 0.5), (1e-3, 0.5))
    ],
}


def tuning_profile(profile: Profile) -> Profile:
    """Return the profile on validation topics; data and training seeds are fresh."""
    changes = {"evaluation.split": "validation", "evaluation.limit": 40, "training.arms": list(ARMS)}
    return set_field(profile, changes | {"evaluation.personas": [f"gold-{side}" for side in SIDES]})


def prepare(run: Run) -> None:
    """Make pairs, personas and tailoring data of a tuning seed."""
    preference.write_pairs(run)
    if not preference.has_personas(run):
        personas.infer_run(run)
    tailoring.build_tailoring(run, personas.user_personas(run))


def measure(run: Run, method: str, arm: str) -> dict[str, float]:
    """Train an arm; return its mean fit per side, its quality and its share of unfinished answers.

    The arm is told the gold persona of a side in its own way.
    """
    import numpy as np

    methods = ["sft"] if method == "sft" else ["sft", "dpo"]
    for trained in methods:
        train.train_adapter(run, trained, arm)
    only = set_field(run.profile, {"training.methods": methods, "training.arms": [arm]})
    one = Run(only, run.dataset, run.seed)
    form = "first_person" if arm == "none" else "line"
    specs = {RunSpec(run.dataset, method, arm, f"gold-{side}", run.seed, form): side for side in SIDES}
    scores, unfinished = {}, []
    for spec, generator in answers.generators(one, [*specs]):
        answers.generate_run(one, spec, generator)
        scores[specs[spec]] = oracle_scores(one, spec, spec.eval_persona)
        unfinished += [answer.finish_reason != "stop" for answer in read_generations(one, spec).values()]
    qualities = np.array([row["quality"] for rows in scores.values() for row in rows])
    fits = {f"fit_{side}": float(np.mean([row["fit"] for row in rows])) for side, rows in scores.items()}
    return fits | {
        "quality": float(qualities.mean()),
        "quality_sd": float(qualities.std()),
        "unfinished": float(np.mean(unfinished)),
        "n": len(qualities),
    }


def candidate_key(run: Run, method: str, arm: str) -> str:
    """Hash of all that a candidate's scores depend on."""
    methods = ("sft",) if method == "sft" else ("sft", "dpo")
    patterns = " ".join([train.SHARED, *(train.OF_METHOD[name] for name in methods)])
    settings = deciding(train.arm_settings(run, arm).profile, patterns)
    tailored = store.read_json(run.folder / "tailoring" / "done.json")["key"]
    return store.content_hash(method, arm, run.seed, settings, tailored)


def with_candidate(profile: Profile, arm: str, candidate: dict[str, Any]) -> Profile:
    """Return the profile with a candidate's settings, as those of the arm (``plain.*`` without personas)."""
    own = {name: f"plain.{name.replace('.', '_')}" if arm == "none" else name for name in candidate}
    return set_field(profile, {own[name]: value for name, value in candidate.items()})


def search(profile: Profile, method: str, path: Path) -> list[Row]:
    """Measure every candidate of a method for both arms and seeds; finished ones are read from ``path``."""
    store.repair_rows(path)
    known = {row["key"]: row for row in store.iter_rows(path)} if path.exists() else {}
    rows = []
    for seed, arm, candidate in [(s, a, c) for s in SEEDS for a in ARMS for c in CANDIDATES[method]]:
        run = Run(with_candidate(profile, arm, candidate), profile.datasets[0], seed)
        key = candidate_key(run, method, arm)
        if key not in known:
            head = {"key": key, "method": method, "arm": arm, "seed": seed}
            known[key] = {**head, **candidate, **measure(run, method, arm)}
            store.append_rows(path, [known[key]])
        rows.append(known[key] | candidate)
        print(known[key], flush=True)
    return rows


def pool_seeds(rows: Sequence[Row], method: str) -> list[Row]:
    """Return one row per arm and candidate of a method, in the candidates' order, with means over the seeds.

    ``quality_sd`` is the standard deviation of single answers: the root of the mean variance within seeds.
    """
    pooled = []
    for arm, candidate in [(arm, candidate) for arm in ARMS for candidate in CANDIDATES[method]]:
        same = [row for row in rows if row["arm"] == arm and candidate.items() <= row.items()]
        names = ("fit_chosen", "fit_rejected", "quality", "unfinished")
        means = {name: sum(row[name] for row in same) / len(same) for name in names}
        spread = (sum(row["quality_sd"] ** 2 for row in same) / len(same)) ** 0.5
        pooled.append(
            {"method": method, "arm": arm, **candidate, **means, "quality_sd": spread}
            | {"n": sum(row["n"] for row in same), "seeds": " ".join(str(row["seed"]) for row in same)}
        )
    return pooled


def pick(rows: Sequence[Row], reference_quality: float | None = None) -> Row:
    """Return the candidate that the rule picks among one arm's pooled rows.

    ``reference_quality`` is the mean quality of the plain arm's pick; None: the best candidate's own.
    """
    ending = min(row["unfinished"] for row in rows) + UNFINISHED_MARGIN
    rows = [row for row in rows if row["unfinished"] <= ending]
    best = max(rows, key=lambda row: row["quality"])
    reference = best["quality"] if reference_quality is None else reference_quality
    allowed = [row for row in rows if row["quality"] >= reference - QUALITY_MARGIN * row["quality_sd"]]
    return max(allowed or [best], key=lambda row: row["fit_chosen"] + row["fit_rejected"])


def pick_both(pooled: Sequence[Row]) -> dict[str, Row]:
    """Return the picks of both arms: the plain arm by itself, PT at the plain arm's quality."""
    plain = pick([row for row in pooled if row["arm"] == "none"])
    return {"none": plain, "both": pick([row for row in pooled if row["arm"] == "both"], plain["quality"])}


def select_settings(given: argparse.Namespace) -> None:
    """Run the search and write its table."""
    import pandas as pd

    profile = tuning_profile(load_profile(given.profile, given.overrides))
    for seed in SEEDS:
        prepare(Run(profile, profile.datasets[0], seed))
    for method in given.method or ("sft", "dpo"):
        path = figures_dir(profile) / f"selection_{method}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        pooled = pool_seeds(search(profile, method, path), method)
        picks = pick_both(pooled)
        table = pd.DataFrame([row | {"picked": row in picks.values()} for row in pooled])
        store.write_text(path.with_suffix(".csv"), table.to_csv(index=False))
        for arm, row in picks.items():
            print("picked", arm, row)


# --- persona-models ---

NAME = "persona_models"  # of the table, the figure and the folder of answers
# Real models of several sizes -> the settings in which they differ; the rules see length and tone only.
MODELS: dict[str, dict[str, Any]] = {
    "SmolLM2 135M": {"generator.model": "pypi:smollm2-135m-instruct"},
    "Gemma 3 270M": {"generator.model": "pypi:gemma-3-270m"},
    "Qwen2.5-Coder 0.5B": {"generator.model": "pypi:qwen2.5-coder-0.5b-instruct"},
    "Qwen2.5-Coder 1.5B": {"generator.model": "pypi:qwen2.5-coder-1.5b-instruct"},
    "rules, no model": {"generator.model": SURFACE},
}
Settings = Mapping[str, Any]


def slug_of(name: str) -> str:
    """Return a model's name as a folder."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-").lower()


def named_models(given: list[list[str]]) -> dict[str, Settings]:
    """Read ``--model NAME KEY=VALUE ...`` into settings by name; ConfigError for what is no setting."""
    models: dict[str, Settings] = {}
    for name, *words in given:
        if slug_of(name) in map(slug_of, models):
            raise ConfigError(f"--model {name}: two models of this name; their answers would be mixed")
        models[name] = dict(parse_override(word) for word in words)
    return models


def folder_of(profile: Profile, name: str, dataset: str, seed: int) -> Path:
    """Return where a model's personas and their verdicts are."""
    return results_dir(profile) / NAME / slug_of(name) / dataset / f"seed-{seed}"


def ask(profile: Profile, name: str, settings: Settings, dataset: str, seed: int) -> Path:
    """Have one model write the personas of a data set and seed, judge them, and return the verdicts' file."""
    import pandas as pd

    own = Run(profile, dataset, seed)
    preference.write_pairs(own)
    run = Run(set_field(profile, settings), dataset, seed)
    fields = "personas.* generator.* evaluation.judge evaluation.backwards_rows judge.*"
    decided = (role_key(run, "generator"), preference.inference_key(run), deciding(run.profile, fields), seed)
    folder, key = folder_of(profile, name, dataset, seed), store.content_hash(VERSIONS["personas"], *decided)
    if store.is_done(folder, key):
        return folder / ITEMS
    store.clear_unless(folder, key)
    judge, pairs = load_judge(own, profile.persona_judge), preference.inference_pairs(run)
    generator = load_generator(run, "generator", run.profile.generator.batch_size)
    rows = []
    for side in SIDES:
        written = infer_personas(generator, pairs, side, run.profile, folder / f"{side}.jsonl")
        rows += [(side, *verdict) for verdict in judge_personas(judge, pairs, written, side)]
    table = pd.DataFrame(rows, columns=["side", "id", "verdict", "contradicted"])
    table["split"] = preference.inference_split(profile, dataset)
    store.write_text(folder / ITEMS, table.to_csv(index=False))
    store.mark_done(folder, key, settings=dict(settings), generator=generator.settings)
    return folder / ITEMS


def model_table(profile: Profile, names: list[str]) -> pd.DataFrame:
    """Return persona accuracy per model, data set and side, with intervals over pairs and seeds."""
    import pandas as pd

    lines: list[Row] = []
    for dataset in profile.datasets:
        shared = len(profile.seeds) > 1  # the same questions for all seeds
        for number, name in enumerate(names):
            files = {seed: folder_of(profile, name, dataset, seed) / ITEMS for seed in profile.seeds}
            items = {seed: read_items(path) for seed, path in files.items()}
            head = {"model": name, "dataset": dataset}
            lines += accuracy_rows(head, items, profile.evaluation.bootstrap_samples, number, shared)
    return pd.DataFrame(lines)


def origin_line(profile: Profile, table: pd.DataFrame) -> str:
    """Say how the table was made: command, commit, seeds, n and date."""
    facts = store.git_state()
    changed = " with uncommitted changes" if facts["dirty"] else ""
    return (
        f"`{shlex.join(['python', '-m', 'persona_lib.studies', *sys.argv[1:]])}`; "
        f"commit {(facts['commit'] or 'not recorded')[:12]}{changed}; "
        f"seeds {' '.join(map(str, profile.seeds))}; n = {table.n.max():.0f}; run of {store.now()[:10]}."
    )


def compare_models(given: argparse.Namespace) -> None:
    """Ask every model, and write table and figure."""
    profile = set_field(load_profile(given.profile, given.overrides), {"seeds": list(range(given.seeds))})
    if profile.persona_judge == "none":
        raise ConfigError(f"profile {profile.name} has evaluation.judge=none: nothing judges the personas")
    models = named_models(given.model) if given.model else MODELS
    for name, settings in models.items():
        for dataset in profile.datasets:
            for seed in profile.seeds:
                print(ask(profile, name, settings, dataset, seed), flush=True)
    table = model_table(profile, list(models))
    print(save_table(profile, NAME, table))
    store.write_json(results_dir(profile) / NAME / "origin.json", origin_line(profile, table))
    print(save_figures(profile, [NAME])[NAME])


# --- reader ---

TABLE = REPO / "figures" / "everyday" / "reader.csv"


def measured() -> pd.DataFrame:
    """Return ``reader_table`` of the written test responses and of the labelled generated answers."""
    import pandas as pd

    written = [
        (dimension, value, getattr(item, f"response_{side}"))
        for item in everyday.items()
        if item.split == "test"
        for side in "ab"
        for dimension, value in item.wish(side)
    ]
    tables = {"written, test": written, "generated": labelled()}
    parts = [reader_table(texts).assign(texts=name) for name, texts in tables.items()]
    return pd.concat(parts)[["texts", "dimension", "n", "read", "right", "precision", "recall"]]


def check_reader(given: argparse.Namespace) -> None:
    """Write the table of how often the reader of answers is right."""
    table = measured()
    store.write_text(TABLE, table.to_csv(index=False))
    print(table.to_string(index=False))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; ``study`` is the function of the first word."""
    parser = argparse.ArgumentParser(
        prog="python -m persona_lib.studies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    studies = parser.add_subparsers(required=True)

    def study(name: str, function: Any) -> Any:
        found = studies.add_parser(name, help=function.__doc__.splitlines()[0])
        found.set_defaults(study=function)
        found.add_argument("--profile", default="everyday")
        found.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
        return found.add_argument

    add = study("selection", select_settings)
    add("--method", choices=("sft", "dpo"), action="append")
    add = study("persona-models", compare_models)
    model = "a model and the settings in which it differs (may be repeated)"
    add("--model", nargs="+", action="append", metavar=("NAME", "KEY=VALUE"), help=model)
    add("--seeds", type=int, default=1, help="data seeds 0, 1, ... (default: one)")
    study("reader", check_reader)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run one study; a wrong setting ends it with one line."""
    given = parse_arguments(argv)
    try:
        given.study(given)
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
