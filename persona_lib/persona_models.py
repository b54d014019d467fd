"""Persona inference by several models, as in the paper's Figure 3: ``python -m persona_lib.studies persona-models``.

Every model writes personas for both sides of the same evaluation pairs from the same prompt, and the
profile's judge of personas says how often they lead back to their response. Without ``--model`` the models
are those of ``MODELS``, from the package index (Gemma's licence has to be accepted: ``persona_lib.weights``).
With it, any others, by the settings in which they differ:

    python -m persona_lib.studies persona-models --profile paper --model 8B --model 70B generator_model=ID

Nothing is chosen by these numbers. Table and figure are ``persona_models`` of the profile; a model and seed
that is finished is not asked again.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib import provenance, store
from persona_lib.config import ConfigError, Run, load_profile, parse_override, results_dir, set_field
from persona_lib.data import preference
from persona_lib.drawing.figures import save_figures
from persona_lib.evaluation.judge import load_judge, persona_judge_of
from persona_lib.evaluation.persona_quality import judge_personas
from persona_lib.evaluation.personas import SIDES, infer_personas
from persona_lib.models.generators import load_generator, role_key
from persona_lib.models.surface import NAME as SURFACE
from persona_lib.profiles import Profile
from persona_lib.store import VERSIONS
from persona_lib.tables.results import Row, save_table
from persona_lib.tables.results_personas import ITEMS, accuracy_rows, read_items

if TYPE_CHECKING:
    import pandas as pd

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
    facts = provenance.git_state()
    commit = (facts["commit"] or "not recorded")[:12] + (
        " with uncommitted changes" if facts["dirty"] else ""
    )
    command = shlex.join(["python", "-m", "persona_lib.persona_models", *arguments])
    return (
        f"`{command}`; commit {commit}; seeds {' '.join(map(str, profile.seeds))}; "
        f"n = {table.n.max():.0f}; run of {provenance.now()[:10]}."
    )


def main(arguments: list[str] | None = None) -> None:
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
    words = sys.argv[1:] if arguments is None else arguments
    given = parser.parse_args(words)
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
    store.write_json(results_dir(profile) / NAME / "origin.json", origin_line(profile, table, words))
    print(save_figures(profile, [NAME])[NAME])


if __name__ == "__main__":
    main()
