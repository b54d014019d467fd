"""Studies beside the pipeline: ``python -m studies STUDY``.

**selection** chooses training settings on validation topics, with data and training seeds that no result
uses, for plain DPO and PT. All means are over seeds and over the gold personas of both sides (told to the
plain arm in the first person). The rule: a candidate whose answers end less often than those of the arm's
best by more than five points is out. The plain arm takes the highest oracle fit among candidates whose mean
quality is within 0.1 standard deviations of the best. PT does so within 0.1 of the plain arm's pick (if none
is: the highest quality). Ties go to the earlier candidate.

**persona-models** compares models that infer personas, as the paper's Figure 3. Every model writes personas
for both sides of the same evaluation pairs from the same prompt; the profile's judge of personas reads
them. The models are those of ``MODELS`` (Gemma's licence must be accepted: ``persona_lib.weights``), or:

    python -m studies persona-models --profile paper --model 8B --model 70B generator.model=ID

**judges** measures judges on the profile's gold personas, each with both responses of its pair: models that
answer "A" or "B" (``--model NAME judge.model=ID ...`` names others), and the backwards judge. Nothing is
chosen by the numbers of these two studies.

**reader** measures how often the reader of answers is right, on the written responses of the test split and
on ``facts/reader_labels.jsonl``: generated answers, drawn blind, each with a dimension, its two values and a
"label" (one of them, or "neither").

**reversal** and **reasons** are those of ``studies.others``.

What is finished is not done again. Tables: ``figures/published/everyday/{selection_dpo,reader}.csv`` (of
another profile's selection: in its folder), and ``{persona_models,judges}.csv`` in the profile's results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from persona_lib import settings, store
from persona_lib.beyond import calibration
from persona_lib.data import everyday, preference, tailoring
from persona_lib.data.everyday import fit, shows
from persona_lib.models import train
from persona_lib.models.served import SURFACE
from persona_lib.paper import answers, personas
from persona_lib.paper.judges import load_judge
from persona_lib.paper.judging import answer_quality, judge_key, judge_rubric
from persona_lib.paper.results import Row, save_table
from persona_lib.records import SIDES, DataError, RunSpec, Side, Table, stacked, table_of
from persona_lib.settings import ConfigError, Profile, Run, load_profile, parse_override, set_field
from persona_lib.show import quiet
from persona_lib.weights import WeightsError
from studies import others
from studies.others import beside

Settings = Mapping[str, Any]

# --- selection ---

SEEDS = (106, 107)  # tuning only: results use data and training seeds 0, 1, 2, ...
ARMS = ("none", "both")
QUALITY_MARGIN = 0.1  # in standard deviations of the answers' quality
UNFINISHED_MARGIN = 0.05  # share of answers without an end, above the arm's lowest

# Without an SFT term in DPO, 15 % (PT) and 86 % (plain) of the validation answers had no end: no candidate.
CANDIDATES: list[dict[str, Any]] = [
    {"sft.learning_rate": 1e-3, "dpo.learning_rate": rate, "dpo.sft_weight": 0.5} for rate in (5e-4, 1e-3)
]


def with_candidate(profile: Profile, arm: str, number: int) -> Profile:
    """Return the profile on validation topics with a candidate of an arm (``plain.*`` without personas)."""
    candidate = CANDIDATES[number]
    own = {name: f"plain.{name.replace('.', '_')}" if arm == "none" else name for name in candidate}
    changes = {"evaluation.split": "validation", "evaluation.limit": 40, "training.arms": list(ARMS)}
    changes |= {"evaluation.personas": [f"gold-{side}" for side in SIDES]}
    changes |= {own[name]: value for name, value in candidate.items()}
    return beside(set_field(profile, changes), f"selection/{arm}-{number}")


def measure(run: Run, arm: str) -> dict[str, float]:
    """Train an arm; return its mean fit per side, its quality and its share of unfinished answers."""
    import numpy as np

    preference.write_pairs(run)
    if not preference.has_personas(run):
        personas.infer_run(run)
    tailoring.build_tailoring(run)
    for method in ("sft", "dpo"):
        train.train_adapter(run, method, arm)
    form = "first_person" if arm == "none" else "line"
    told = [RunSpec(run.dataset, "dpo", arm, f"gold-{side}", run.seed, form) for side in SIDES]
    found: dict[str, float] = {}
    wishes = everyday.wishes()
    qualities: list[float] = []
    unfinished: list[bool] = []
    for its, generator in answers.generators(run, told):
        answers.generate_runs(run, its, generator)
    for spec in told:
        made = answers.read_generations(run, spec).values()
        fits = [fit(wishes.get(answer.persona or "", ()), answer.completion) for answer in made]
        found[spec.eval_persona.replace("gold-", "fit_")] = float(np.mean(fits))
        qualities += answer_quality(run, spec).values()
        unfinished += [answer.finish_reason != "stop" for answer in made]
    found |= {"quality": float(np.mean(qualities)), "quality_sd": float(np.std(qualities))}
    return found | {"unfinished": float(np.mean(unfinished)), "n": len(qualities)}


def pool_seeds(rows: Sequence[Row]) -> Table:
    """Return a row per arm and candidate, in their order, with means over the seeds.

    ``quality_sd`` is the standard deviation of single answers: the root of the mean variance within seeds.
    """
    table = table_of(rows).assign(seeds=lambda rows: rows.seed.astype(str))
    how: dict[str, Any] = dict.fromkeys(("fit_chosen", "fit_rejected", "quality", "unfinished"), "mean")
    how |= {"quality_sd": lambda sds: (sds**2).mean() ** 0.5, "n": "sum", "seeds": " ".join}
    return table.groupby(["arm", *CANDIDATES[0]], sort=False, as_index=False).agg(how)


def pick(pooled: Table) -> list[int]:
    """Return the labels of the candidates that the rule picks for the plain arm and for PT."""
    picked: list[int] = []
    for arm in ARMS:
        rows = pooled[pooled.arm == arm]
        rows = rows[rows.unfinished <= rows.unfinished.min() + UNFINISHED_MARGIN]
        best = rows.quality.idxmax()
        least = rows.quality[best] if arm == "none" else pooled.quality[picked[0]]
        allowed = rows[rows.quality >= least - QUALITY_MARGIN * rows.quality_sd]
        picked.append((allowed.fit_chosen + allowed.fit_rejected).idxmax() if len(allowed) else best)
    return picked


def select_settings(given: argparse.Namespace) -> None:
    """Measure every candidate for both arms and seeds, and write the table with the picked ones."""
    profile, rows = load_profile(given.profile, given.overrides), []
    for seed, arm, number in product(SEEDS, ARMS, range(len(CANDIDATES))):
        run = Run(with_candidate(profile, arm, number), profile.datasets[0], seed)
        rows.append({"arm": arm, "seed": seed} | CANDIDATES[number] | measure(run, arm))
    pooled = pool_seeds(rows)
    pooled["picked"] = pooled.index.isin(pick(pooled))
    store.write_text(settings.published_dir(profile) / "selection_dpo.csv", pooled.to_csv(index=False))
    print(pooled.to_string(index=False))


# --- persona-models ---

NAME = "persona_models"  # of the table and the folder of answers
# Real models of several sizes -> the settings in which they differ; the rules see length and tone only.
MODELS: dict[str, Settings] = {
    "SmolLM2 135M": {"generator.model": "pypi:smollm2-135m-instruct"},
    "Gemma 3 270M": {"generator.model": "pypi:gemma-3-270m"},
    "Qwen2.5-Coder 0.5B": {"generator.model": "pypi:qwen2.5-coder-0.5b-instruct"},
    "Qwen2.5-Coder 1.5B": {"generator.model": "pypi:qwen2.5-coder-1.5b-instruct"},
    "rules, no model": {"generator.model": SURFACE},
}


def ask(own: Run, name: str, changes: Settings) -> dict[Side, personas.Personas]:
    """Have one model write the personas of both sides of a run's evaluation pairs; resumes by row."""
    profile = set_field(own.profile, {"training.arms": ["none"], **changes})  # no personas for training
    run = Run(beside(profile, f"{NAME}/{name}"), own.dataset, own.seed)
    preference.write_pairs(run)
    personas.infer_run(run)
    split = preference.inference_split(profile, run.dataset)
    return {side: personas.read_personas(run, split, side) for side in SIDES}


def model_table(profile: Profile, models: Mapping[str, Settings]) -> Table:
    """Return persona accuracy per model, data set and side, with intervals over pairs and seeds."""
    lines: list[Row] = []
    for dataset in profile.datasets:
        items: dict[str, dict[str, dict[int, personas.Verdicts]]]
        items = {name: {side: {} for side in SIDES} for name in models}
        for run in [Run(profile, dataset, seed) for seed in profile.seeds]:
            preference.write_pairs(run)
            judge, pairs = load_judge(run, profile.persona_judge), preference.inference_pairs(run)
            for name, changes in models.items():
                print(f"{name}, {dataset}, seed {run.seed}", flush=True)
                for side, found in ask(run, name, changes).items():
                    items[name][side][run.seed] = personas.judge_personas(judge, pairs, found, side)
        shared = len(profile.seeds) > 1  # the same questions for all seeds
        for number, (name, by_side) in enumerate(items.items()):
            sampled = (profile.evaluation.bootstrap_samples, number, shared)
            head = {"model": name, "dataset": dataset, "split": preference.inference_split(profile, dataset)}
            lines += personas.accuracy_rows(head, by_side, *sampled)
    return table_of(lines)


def compare_models(given: argparse.Namespace) -> None:
    """Ask every model, and write table and figure; ``origin.json`` says how the table was made."""
    profile = load_profile(given.profile, given.overrides)
    if profile.persona_judge == "none":
        raise ConfigError(f"profile {profile.name} has evaluation.judge=none: nothing judges the personas")
    table = model_table(profile, models_of(given) or MODELS)
    others.save_origin(profile, NAME, table)
    print(save_table(profile, NAME, table))


def models_of(given: argparse.Namespace) -> dict[str, Settings]:
    """Return the settings of each ``--model``."""
    return {name: dict(parse_override(word) for word in words) for name, *words in given.model or []}


# --- judges ---


def compare_judges(given: argparse.Namespace) -> None:
    """Measure every judge on the same gold personas, in both orders, and write the table; a rerun resumes."""
    profile, lines = load_profile(given.profile, given.overrides), []
    models = {name: changes["generator.model"] for name, changes in MODELS.items()}
    asked = {name: {"judge.model": model} for name, model in models.items() if "instruct" in model}
    judges: dict[str, Settings] = {"backwards": {}, **(models_of(given) or asked)}
    for dataset, (name, changes) in product(profile.datasets, judges.items()):
        print(f"{name}, {dataset}", flush=True)
        run, kind = Run(set_field(profile, changes), dataset, profile.seeds[0]), "lm" if changes else name
        preference.write_pairs(run)
        tailoring.build_tailoring(run)
        compared = calibration.gold_comparisons(calibration.drawn_rows(run))
        key = store.content_hash(store.VERSIONS["judging"], compared, judge_key(run, name=kind))
        path = run.folder / "judges" / f"{key}.jsonl"
        judged = judge_rubric(load_judge(run, kind), compared, "personalization", path)
        lines.append({"dataset": dataset, "judge": name} | calibration.measure(judged))
    table = table_of(lines)
    others.save_origin(profile, "judges", table)
    print(table.to_string(index=False), save_table(profile, "judges", table), sep="\n")


# --- reader ---


def reader_table(texts: Iterable[tuple[str, str, str]]) -> Table:
    """Return how often the reader is right, by dimension, from (dimension, true value, text).

    The true value of a text that shows neither is "neither". ``n`` texts have a value; the reader sees one in
    ``read`` texts, rightly in ``right``. ``precision`` is right / read, ``recall`` right / n. The last row,
    "all", adds the others up.
    """
    import pandas as pd

    seen = table_of(texts, columns=["dimension", "truth", "text"])
    shown = [shows(*row) for row in zip(seen.dimension, seen.text, strict=True)]
    seen = seen.assign(n=seen.truth != "neither", read=[one is not None for one in shown],
                       right=seen.truth == pd.Series(shown, dtype=object))  # fmt: skip
    counts = seen.groupby("dimension")[["n", "read", "right"]].sum()
    counts = counts.reindex([name for name in everyday.DIMENSIONS if name in counts.index])
    counts.loc["all"] = counts.sum()
    table = counts.rename_axis("dimension").reset_index()
    return table.assign(precision=table["right"] / table["read"], recall=table["right"] / table["n"])


def check_reader(given: argparse.Namespace) -> None:
    """Write the table of how often the reader of answers is right."""
    written = [
        (dimension, value, getattr(item, f"response_{side}"))
        for item in everyday.items()
        if item.split == "test"
        for side in "ab"
        for dimension, value in item.wish(side)
    ]
    tables = {"written, test": written, "generated": calibration.labelled()}
    table = stacked(reader_table(texts).assign(texts=name) for name, texts in tables.items())
    table = table[["texts", "dimension", "n", "read", "right", "precision", "recall"]]
    folder = settings.published_dir(load_profile("everyday"))
    store.write_text(folder / "reader.csv", table.to_csv(index=False))
    print(table.to_string(index=False))


STUDIES = {"selection": select_settings, "persona-models": compare_models, "judges": compare_judges,
           "reader": check_reader, "reversal": others.swap_reversal,
           "reasons": others.compare_reasons}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Run one study; a wrong setting, or data that is not there, ends it with one line."""
    parser = argparse.ArgumentParser(
        prog="python -m studies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--profile", default="everyday")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    model = "persona-models, judges: a model and the settings in which it differs (may be repeated)"
    parser.add_argument("--model", nargs="+", action="append", metavar=("NAME", "KEY=VALUE"), help=model)
    parser.add_argument("--data", help="reversal, reasons: a file, folder or hub id")
    parser.add_argument("--mapping", help="reversal, reasons: which columns mean what (DATA.md)")
    given = parser.parse_args(argv)
    quiet()
    try:
        STUDIES[given.study](given)
    except ConfigError as error:
        sys.exit(str(error))
    except (DataError, WeightsError, FileNotFoundError) as error:
        sys.exit(f"not run: {error}")


if __name__ == "__main__":
    main()
