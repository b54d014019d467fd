"""Studies beside the pipeline: ``python -m persona_lib.studies {selection,persona-models,reader}``."""

from __future__ import annotations

import argparse
import random
import re
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import store
from persona_lib.beyond.calibration import labelled
from persona_lib.data import everyday, preference, tailoring
from persona_lib.data.reader import reader_table
from persona_lib.figures import save_figures
from persona_lib.models import train
from persona_lib.models.served import NAME as SURFACE
from persona_lib.models.served import load_generator, role_key
from persona_lib.paper import answers, personas
from persona_lib.paper.answers import generation_folder, grid, read_generations
from persona_lib.paper.judges import load_judge, persona_judge_of
from persona_lib.paper.judging import oracle_scores
from persona_lib.paper.personas import ITEMS, accuracy_rows, infer_personas, judge_personas, read_items
from persona_lib.paper.results import Row, save_table
from persona_lib.records import SIDES, RunSpec
from persona_lib.settings import (
    REPO,
    ConfigError,
    Profile,
    Run,
    figures_dir,
    load_profile,
    open_run,
    parse_override,
    results_dir,
    set_field,
)
from persona_lib.store import VERSIONS

if TYPE_CHECKING:
    import pandas as pd


# --- Choose the training settings on validation topics ---
# ``python -m persona_lib.studies selection`` trains every candidate for all arms with data and training
# seeds that no result uses, evaluates it on the validation split only, and writes
# ``figures/<profile>/selection_*.csv``. The rule is fixed here. All means are over seeds and over the gold
# personas of both sides (told to the plain arm in the first person). A candidate whose answers end less
# often than those of the arm's best by more than five points is out. The plain arm takes the candidate with
# the highest oracle fit among those whose mean quality is within 0.1 standard deviations of the best
# candidate's. PT takes the candidate with the highest fit among those whose mean quality is within 0.1
# standard deviations of what the plain arm's pick has (if none is: the one with the highest quality). Ties
# go to the earlier candidate.
#
# The first search used seed 106 alone and did not count unfinished answers. Its pick for PT failed to end
# its answers in two of three test seeds, so the search now has three seeds, and a limit on unfinished
# answers.


SEEDS = (106, 107, 108)  # tuning only: results use data and training seeds 0, 1, 2, ...
ARMS = ("none", "both")
QUALITY_MARGIN = 0.1  # in standard deviations of the answers' quality
UNFINISHED_MARGIN = 0.05  # share of answers without an end, above the arm's lowest

CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "sft": [{"sft_learning_rate": rate} for rate in (5e-4, 1e-3)],
    "dpo": [
        {"sft_learning_rate": 1e-3, "dpo_learning_rate": rate, "dpo_sft_weight": weight}
        for rate, weight in ((5e-4, 0.5), (1e-3, 0.5), (1e-3, 0.0))
    ],
}


def tuning_profile(profile: Profile) -> Profile:
    """Return the profile on validation topics; data and training seeds are fresh."""
    return set_field(
        profile,
        eval_split="validation",
        eval_limit=0,
        train_personas=list(ARMS),
        eval_personas=[f"gold-{side}" for side in SIDES],
    )


def prepare(run: Run) -> None:
    """Make pairs, personas and tailoring data of a tuning seed."""
    preference.write_pairs(run)
    if not preference.has_personas(run):
        personas.infer_run(run)
    tailoring.build_tailoring(run, personas.user_personas(run))


def spec_of(run: Run, method: str, arm: str, side: str) -> RunSpec:
    """Return the run that an arm is chosen by: told the gold persona of a side in its own way."""
    return RunSpec(
        run.dataset, method, arm, f"gold-{side}", run.seed, "first_person" if arm == "none" else "line"
    )


def measure(run: Run, method: str, arm: str) -> dict[str, float]:
    """Train an arm; return its mean fit per side, its quality and its share of unfinished answers."""
    import numpy as np

    train.train_adapter(run, "sft", arm)
    if method == "dpo":
        train.train_adapter(run, "dpo", arm)
    one = Run(
        set_field(run.profile, methods=["sft", method][: 1 + (method == "dpo")], train_personas=[arm]),
        run.dataset,
        run.seed,
    )
    specs = {spec_of(run, method, arm, side): side for side in SIDES}
    scores, unfinished = {}, []
    for spec, generator in answers.generators(one, [*specs]):
        answers.generate_run(one, spec, generator)
        scores[specs[spec]] = oracle_scores(one, spec, spec.eval_persona)
        written = answers.read_generations(one, spec).values()
        unfinished += [answer.finish_reason != "stop" for answer in written]
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
    fields = [
        *train.SHARED_FIELDS,
        *train.METHOD_FIELDS["sft"],
        *(train.METHOD_FIELDS["dpo"] if method == "dpo" else ()),
    ]
    settings = {name: getattr(train.arm_settings(run, arm).profile, name) for name in fields}
    tailored = store.read_json(run.folder / "tailoring" / "done.json")["key"]
    return store.content_hash(method, arm, run.seed, settings, tailored)


def with_candidate(profile: Profile, arm: str, candidate: dict[str, Any]) -> Profile:
    """Return the profile with a candidate's settings, as those of the arm (``plain_*`` without personas)."""
    own = {
        name: f"plain_{name}" if arm == "none" and hasattr(profile, f"plain_{name}") else name
        for name in candidate
    }
    return set_field(profile, **{own[name]: value for name, value in candidate.items()})


def search(
    profile: Profile, method: str, path: Path, arms: Iterable[str] = ARMS, seeds: Iterable[int] = SEEDS
) -> list[dict[str, Any]]:
    """Measure every candidate of a method for both arms and seeds; finished ones are read from ``path``."""
    store.repair_rows(path)
    known = {row["key"]: row for row in store.iter_rows(path)} if path.exists() else {}
    rows = []
    for seed in seeds:
        for arm in arms:
            for candidate in CANDIDATES[method]:
                run = Run(with_candidate(profile, arm, candidate), profile.datasets[0], seed)
                key = candidate_key(run, method, arm)
                if key not in known:
                    started = time.perf_counter()
                    result = measure(run, method, arm)
                    seconds = round(time.perf_counter() - started, 1)
                    known[key] = {
                        "key": key,
                        "method": method,
                        "arm": arm,
                        "seed": seed,
                        **candidate,
                        **result,
                        "seconds": seconds,
                    }
                    store.append_rows(path, [known[key]])
                rows.append(known[key] | candidate)
                print(
                    {k: round(v, 4) if isinstance(v, float) else v for k, v in known[key].items()}, flush=True
                )
    return rows


def pool_seeds(rows: Iterable[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """Return one row per arm and candidate of a method, in the candidates' order, with means over the seeds.

    ``quality_sd`` is the standard deviation of single answers: the root of the mean variance within seeds.
    Candidates that not all of an arm's seeds have finished are left out.
    """
    pooled = []
    for arm in ARMS:
        of_arm = [row for row in rows if row["arm"] == arm]
        seeds = sorted({row["seed"] for row in of_arm})
        for candidate in CANDIDATES[method]:
            same = [row for row in of_arm if candidate.items() <= row.items()]
            if not same or sorted(row["seed"] for row in same) != seeds:
                continue
            names = ("fit_chosen", "fit_rejected", "quality", "unfinished")
            means = {name: sum(row[name] for row in same) / len(same) for name in names}
            spread = (sum(row["quality_sd"] ** 2 for row in same) / len(same)) ** 0.5
            pooled.append(
                {"method": method, "arm": arm, **candidate, **means, "quality_sd": spread}
                | {"n": sum(row["n"] for row in same), "seeds": " ".join(map(str, seeds))}
            )
    return pooled


def pick(pooled: Iterable[dict[str, Any]], reference_quality: float | None = None) -> dict[str, Any]:
    """Return the candidate that the rule picks among one arm's pooled rows.

    ``reference_quality`` is the mean quality of the plain arm's pick; None: the best candidate's own.
    """
    rows = list(pooled)
    ending = min(row["unfinished"] for row in rows) + UNFINISHED_MARGIN
    rows = [row for row in rows if row["unfinished"] <= ending]
    best = max(rows, key=lambda row: row["quality"])
    reference = best["quality"] if reference_quality is None else reference_quality
    allowed = [row for row in rows if row["quality"] >= reference - QUALITY_MARGIN * row["quality_sd"]]
    return max(allowed or [best], key=lambda row: row["fit_chosen"] + row["fit_rejected"])


def pick_both(pooled: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the picks of the arms that have rows: the plain arm by itself, PT at the plain arm's quality."""
    by_arm = {arm: [row for row in pooled if row["arm"] == arm] for arm in ARMS}
    picks: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        if by_arm[arm]:
            picks[arm] = pick(by_arm[arm], picks["none"]["quality"] if "none" in picks else None)
    return picks


def select_settings(arguments: list[str]) -> None:
    """Run the search and write its table."""
    import pandas as pd

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="everyday")
    parser.add_argument("--method", choices=("sft", "dpo"), action="append")
    parser.add_argument(
        "--arm", choices=ARMS, action="append", help="only this arm: two can run side by side"
    )
    parser.add_argument(
        "--seed", type=int, choices=SEEDS, action="append", help="only this seed: two can run side by side"
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args(arguments)
    profile = tuning_profile(load_profile(given.profile, given.overrides))
    seeds = given.seed or SEEDS
    for seed in seeds:
        prepare(Run(profile, profile.datasets[0], seed))
    folder = figures_dir(profile)
    folder.mkdir(parents=True, exist_ok=True)
    for method in given.method or ("sft", "dpo"):
        path = folder / f"selection_{method}.jsonl"
        rows = search(profile, method, path, given.arm or ARMS, seeds)
        pooled = pool_seeds(rows, method)
        picks = pick_both(pooled)
        table = [row | {"picked": row in picks.values()} for row in pooled]
        pd.DataFrame(table).to_csv(path.with_suffix(".csv"), index=False)
        for arm, row in picks.items():
            print("picked", arm, row)


# --- Persona inference by several models, as in the paper's Figure 3 ---
# Every model writes personas for both sides of the same evaluation pairs from the same prompt, and the
# profile's judge of personas says how often they lead back to their response. Without ``--model`` the
# models are those of ``MODELS``, from the package index (Gemma's licence has to be accepted:
# ``persona_lib.weights``). With it, any others, by the settings in which they differ:
#
#     python -m persona_lib.studies persona-models --profile paper --model 8B --model 70B generator_model=ID
#
# Nothing is chosen by these numbers. Table and figure are ``persona_models`` of the profile; a model and
# seed that is finished is not asked again.


NAME = "persona_models"  # of the table, the figure and the folder of answers
# Real models of several sizes -> the settings in which they differ; the rules see length and tone only.
MODELS: dict[str, dict[str, Any]] = {
    "SmolLM2 135M": {"generator_model": "pypi:smollm2-135m-instruct"},
    "Gemma 3 270M": {"generator_model": "pypi:gemma-3-270m"},
    "Qwen2.5-Coder 0.5B": {"generator_model": "pypi:qwen2.5-coder-0.5b-instruct"},
    "Qwen2.5-Coder 1.5B": {"generator_model": "pypi:qwen2.5-coder-1.5b-instruct"},
    "rules, no model": {"generator_model": SURFACE},
}
Settings = Mapping[str, Any]


def slug_of(name: str) -> str:
    """Return a model's name as a folder."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-").lower()


def named_models(given: list[list[str]]) -> dict[str, Settings]:
    """Read ``--model NAME KEY=VALUE ...`` into settings by name; ConfigError for what is no setting."""
    models: dict[str, Settings] = {}
    for name, *words in given:
        settings = dict(parse_override(word) for word in words)
        if slug_of(name) in map(slug_of, models):
            raise ConfigError(f"--model {name}: two models of this name; their answers would be mixed")
        models[name] = settings
    return models


def folder_of(profile: Profile, name: str, dataset: str, seed: int) -> Path:
    """Return where a model's personas and their verdicts are."""
    return results_dir(profile) / NAME / slug_of(name) / dataset / f"seed-{seed}"


def ask(profile: Profile, name: str, settings: Settings, dataset: str, seed: int) -> Path:
    """Have one model write the personas of a data set and seed, judge them, and return the verdicts' file."""
    preference.write_pairs(Run(profile, dataset, seed))
    run = Run(set_field(profile, **settings), dataset, seed)
    judged = {
        n: v
        for n, v in vars(run.profile).items()
        if n.startswith(("pi_", "judge", "persona_judge", "backwards_"))
    }
    folder, key = (
        folder_of(profile, name, dataset, seed),
        store.content_hash(
            VERSIONS["personas"],
            *(role_key(run, "generator"), preference.inference_key(run), judged, seed),
        ),
    )
    if store.is_done(folder, key):
        return folder / ITEMS
    store.clear_unless(folder, key)
    judge, pairs = (
        load_judge(Run(profile, dataset, seed), persona_judge_of(profile)),
        preference.inference_pairs(run),
    )
    generator = load_generator(run, "generator", run.profile.pi_batch_size)
    rows = []
    for side in SIDES:
        personas = infer_personas(generator, pairs, side, run.profile, folder / f"{side}.jsonl")
        rows += [(side, *verdict) for verdict in judge_personas(judge, pairs, personas, side)]
    store.write_text(folder / ITEMS, items_csv(rows, preference.inference_split(profile, dataset)))
    store.mark_done(folder, key, settings=dict(settings), generator=generator.settings)
    return folder / ITEMS


def items_csv(rows: list[tuple[Any, ...]], split: str) -> str:
    """Return verdicts (side, id, verdict, contradicted) as CSV, in the form that notebook 04 leaves."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=["side", "id", "verdict", "contradicted"])
    return table.assign(split=split).to_csv(index=False)


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
            lines += accuracy_rows(head, items, profile.bootstrap_samples, number, shared)
    return pd.DataFrame(lines)


def origin_line(profile: Profile, table: pd.DataFrame, arguments: list[str]) -> str:
    """Say how the table was made: command, commit, seeds, n and date."""
    facts = store.git_state()
    commit = (facts["commit"] or "not recorded")[:12] + (
        " with uncommitted changes" if facts["dirty"] else ""
    )
    command = shlex.join(["python", "-m", "persona_lib.studies", *arguments])
    return (
        f"`{command}`; commit {commit}; seeds {' '.join(map(str, profile.seeds))}; "
        f"n = {table.n.max():.0f}; run of {store.now()[:10]}."
    )


def compare_models(arguments: list[str]) -> None:
    """Ask every model, and write table and figure."""
    parser = argparse.ArgumentParser(
        prog="python -m persona_lib.studies persona-models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", default="everyday")
    parser.add_argument(
        "--model",
        nargs="+",
        action="append",
        metavar=("NAME", "KEY=VALUE"),
        help="a model and the settings in which it differs (may be repeated)",
    )
    parser.add_argument("--seeds", type=int, default=1, help="data seeds 0, 1, ... (default: one)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    try:
        profile = load_profile(given.profile, given.overrides)
        if persona_judge_of(profile) == "none":
            raise ConfigError(
                f"profile {profile.name} has no persona_judge: nothing would judge the personas"
            )
        profile = set_field(profile, seeds=list(range(given.seeds)))
        models = named_models(given.model) if given.model else MODELS
        for name, settings in models.items():
            for dataset in profile.datasets:
                for seed in profile.seeds:
                    print(ask(profile, name, settings, dataset, seed), flush=True)
    except ConfigError as error:
        sys.exit(str(error))
    table = model_table(profile, list(models))
    print(save_table(profile, NAME, table))
    store.write_json(results_dir(profile) / NAME / "origin.json", origin_line(profile, table, arguments))
    print(save_figures(profile, [NAME])[NAME])


# --- How often the reader of answers is right: ``python -m persona_lib.studies reader`` ---
# ``--draw N`` writes a blind sheet of N generated answers of a run: a dimension with its two values, the
# question and the answer; no policy, persona or verdict of the reader. Somebody adds "label" to each line:
# one of the two values, or "neither". The labelled sheet is kept in ``facts/reader_labels.jsonl``. Without
# ``--draw`` the table is computed from it and from the written responses of the test split, into
# ``figures/everyday/reader.csv``.


TABLE = REPO / "figures" / "everyday" / "reader.csv"


def blind_sheet(run: Run, n: int) -> list[dict[str, Any]]:
    """Return ``n`` generated answers to label, equally many per policy, in random order under neutral ids."""
    rng, items = random.Random("reader-sheet"), {item.id: item for item in everyday.items()}
    by_arm: dict[str, list[tuple[str, str, str]]] = {}
    for spec in grid(run):
        if (generation_folder(run, spec) / "done.json").exists():
            found = read_generations(run, spec).values()
            by_arm.setdefault(spec.arm, []).extend((g.id, g.prompt, g.completion) for g in found)
    drawn = [
        row
        for found in by_arm.values()
        for row in rng.sample(sorted(set(found)), min(len(set(found)), -(-n // len(by_arm))))
    ]
    rows = []
    for number, (name, prompt, text) in enumerate(rng.sample(drawn, min(n, len(drawn)))):
        dimension = rng.choice(items[name].dimension.split("+"))
        values = list(everyday.DIMENSIONS[dimension])
        rows.append({"id": f"answer-{number:03d}", "dimension": dimension, "values": values,
                     "prompt": prompt, "text": text})  # fmt: skip
    return rows


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


def check_reader(arguments: list[str]) -> None:
    """Draw a sheet, or write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m persona_lib.studies reader",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--draw", type=int, metavar="N", help="write a blind sheet of N answers")
    parser.add_argument("--to", type=Path, default=Path("reader_sheet.jsonl"), metavar="FILE")
    parser.add_argument("--profile", default="everyday")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.draw:
        store.write_rows(given.to, blind_sheet(open_run(given.profile, seed=given.seed), given.draw))
        print(given.to)
        return
    table = measured()
    store.write_text(TABLE, table.to_csv(index=False))
    print(table.to_string(index=False))


STUDIES = {"selection": select_settings, "persona-models": compare_models, "reader": check_reader}


def main() -> None:
    """Run one study: the first word says which."""
    if len(sys.argv) < 2 or sys.argv[1] not in STUDIES:
        sys.exit(f"usage: python -m persona_lib.studies {{{','.join(STUDIES)}}} [--help]")
    STUDIES[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    main()
