"""A profile: every number of a run, typed and strict, and what its fields may be.

Values come from ``configs/<name>.yaml`` (``persona_lib.settings``). Unknown names and ill-typed values are
errors that name the file, the field and the mend; nothing is coerced (``5e-5`` is a string in YAML:
write ``5.0e-5``).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

# --- A profile: every number of a run, typed and strict, and what its fields may be ---
# Values come from ``configs/<name>.yaml`` (``persona_lib.settings``). Unknown names and ill-typed values
# are errors that name the file, the field and the mend; nothing is coerced (``5e-5`` is a string in YAML:
# write ``5.0e-5``).


# Fields that say how the work is done and not what comes out.
CHANGE_NO_RESULT = (
    "workers",
    "endpoint_concurrency",
    "endpoint_timeout",
    "endpoint_retries",
    "generator_prices",
    "judge_prices",
    "second_judge_prices",
    "max_cost_usd",
)
JUDGE_FORMATS = ("letter", "json", "prometheus")
MATCHUP_KINDS = ("main", "sft", "few_shot", "stage", "arm", "control")


class ConfigError(ValueError):
    """A profile or an override that cannot be used; the message says where and how to mend it."""


@dataclass(frozen=True)
class Profile:
    """All settings of a run. ``configs/everyday.yaml`` explains each field where its value stands."""

    name: str
    description: str
    # what runs
    steps: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    workers: int
    endpoint_concurrency: int
    endpoint_timeout: float
    endpoint_retries: int
    max_cost_usd: float
    data_dir: str
    data_mapping: str
    strip_roles: bool
    strip_contrast: bool
    # the package's own pairs
    pair_limit: int
    majority_share: float
    # the base model
    base_model: str
    base_revision: str
    # persona inference
    generator_model: str
    generator_url: str
    generator_kind: str
    generator_prices: tuple[float, ...]
    pi_shots: int
    pi_batch_size: int
    pi_max_new_tokens: int
    pi_max_words: int
    pi_train_sides: tuple[str, ...]
    # tailoring data
    retriever: str
    retriever_model: str
    near_duplicate_threshold: float
    # training
    methods: tuple[str, ...]
    train_limit: int
    val_limit: int
    train_personas: tuple[str, ...]
    quantization: str
    compute_dtype: str
    merge_adapters: bool
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_targets: tuple[str, ...]
    max_length: int
    completion_only_loss: bool
    sft_learning_rate: float
    sft_epochs: int
    sft_batch_size: int
    sft_packing: bool
    dpo_splits: tuple[str, ...]
    dpo_order: str
    dpo_learning_rate: float
    dpo_epochs: int
    dpo_max_steps: int
    dpo_batch_size: int
    dpo_beta: float
    dpo_sft_weight: float
    dpo_prefix_sharing: bool
    plain_sft_learning_rate: float
    plain_dpo_learning_rate: float
    plain_dpo_beta: float
    plain_dpo_sft_weight: float
    lr_scheduler: str
    warmup_share: float
    # generation
    engine: str
    few_shot_examples: int
    gen_batch_size: int
    gen_max_new_tokens: int
    gen_min_new_tokens: int
    gen_repetition_penalty: float
    gen_beginning: str
    gen_expand_weights: bool
    # evaluation
    eval_split: str
    eval_limit: int
    eval_personas: tuple[str, ...]
    controls: bool
    judge: str
    persona_judge: str
    judge_model: str
    judge_url: str
    judge_kind: str
    judge_prices: tuple[float, ...]
    judge_format: str
    judge_decoding: str
    judge_max_new_tokens: int
    judge_batch_size: int
    judge_texts: str
    second_judge_model: str
    second_judge_url: str
    second_judge_kind: str
    second_judge_prices: tuple[float, ...]
    second_judge_format: str
    second_judge_decoding: str
    second_judge_max_new_tokens: int
    second_judge_batch_size: int
    second_judge_matchups: tuple[str, ...]
    backwards_rows: int
    backwards_epochs: int
    backwards_batch_size: int
    backwards_learning_rate: float
    swap_batch_size: int
    bootstrap_samples: int


@cache
def field_types() -> dict[str, Any]:
    """Return the declared type of every profile field."""
    return get_type_hints(Profile)


def near_names(name: str, allowed: list[str]) -> str:
    """Return a hint that lists the closest allowed names, or all of them if none is close."""
    close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(allowed)}"


def check_value(field: str, value: Any, where: str) -> Any:
    """Return the value in the field's type, or raise ConfigError saying what was expected.

    An int is accepted for a float field, a list for a tuple field; nothing else is converted.
    """
    wanted = field_types()[field]
    if get_origin(wanted) is tuple:
        element = get_args(wanted)[0]
        if isinstance(value, (list, tuple)) and all(type(v) is element for v in value):
            return tuple(value)
        raise ConfigError(f"{where}: {field}={value!r} should be a list of {element.__name__}")
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is wanted:
        return value
    hint = ""
    if wanted is float and isinstance(value, str):
        hint = " (in YAML write 5.0e-5, not 5e-5 and not in quotes)"
    raise ConfigError(
        f"{where}: {field}={value!r} should be {wanted.__name__}, not {type(value).__name__}{hint}"
    )


def check_fields(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Check names and types of some profile fields."""
    allowed = list(field_types())
    for name in values:
        if name not in allowed:
            raise ConfigError(f"{where}: unknown field {name!r}; {near_names(name, allowed)}")
    return {name: check_value(name, value, where) for name, value in values.items()}


def check_profile(profile: Profile) -> None:
    """Check the constraints between fields; raises ConfigError."""
    where = f"profile {profile.name}"
    choices = {
        "quantization": ("none", "nf4"),
        "compute_dtype": ("float32", "bfloat16"),
        "gen_beginning": ("none", "whole"),
        "engine": ("transformers", "vllm"),
        "eval_split": ("validation", "test"),
        "retriever": ("bm25", "dense", "late"),
        "dpo_order": ("random", "pairs"),
        "generator_kind": ("chat", "completions"),
        "judge_kind": ("chat", "completions"),
        "judge_format": JUDGE_FORMATS,
        "judge_decoding": ("deterministic", "official"),
        "second_judge_kind": ("chat", "completions"),
        "second_judge_format": JUDGE_FORMATS,
        "second_judge_decoding": ("deterministic", "official"),
    }
    for field, allowed in choices.items():
        if getattr(profile, field) not in allowed:
            raise ConfigError(
                f"{where}: {field}={getattr(profile, field)!r}: use one of {', '.join(allowed)}"
            )
    for role in ("generator", "judge", "second_judge"):
        prices, url = getattr(profile, f"{role}_prices"), getattr(profile, f"{role}_url")
        if len(prices) not in (0, 2):
            raise ConfigError(f"{where}: {role}_prices={list(prices)}: give two, for prompt and completion")
        if url and getattr(profile, f"{role}_model") in ("", "base"):
            raise ConfigError(f"{where}: {role}_url is set: name the model that it serves in {role}_model")
        if url and profile.max_cost_usd > 0 and not prices:
            raise ConfigError(f"{where}: max_cost_usd needs {role}_prices, dollars per million tokens")
    check_judges(profile, where)
    if not profile.dpo_splits or not {"sft_train", "dpo_train"}.issuperset(profile.dpo_splits):
        raise ConfigError(f"{where}: dpo_splits={list(profile.dpo_splits)}: use dpo_train, sft_train or both")
    if (profile.retriever == "bm25") == bool(profile.retriever_model):
        raise ConfigError(
            f"{where}: retriever={profile.retriever}, retriever_model={profile.retriever_model!r}: "
            "dense and late need a model (a hub id or a folder), bm25 has none"
        )
    if profile.engine == "vllm" and profile.compute_dtype != "bfloat16":
        raise ConfigError(
            f"{where}: engine=vllm needs compute_dtype=bfloat16: its LoRA kernels take 16-bit numbers only"
        )
    if profile.engine == "vllm" and profile.gen_repetition_penalty != 1:
        raise ConfigError(
            f"{where}: gen_repetition_penalty={profile.gen_repetition_penalty} needs engine=transformers: "
            "vLLM would penalise the prompt's words, too"
        )
    if profile.merge_adapters and (profile.quantization, profile.compute_dtype) != ("none", "float32"):
        raise ConfigError(
            f"{where}: merge_adapters needs quantization=none and compute_dtype=float32 (in fewer bits the "
            "merged weights would round away what the adapters learned): or set merge_adapters=false"
        )
    if not 0 <= profile.warmup_share < 1:
        raise ConfigError(
            f"{where}: warmup_share={profile.warmup_share}: use a share of the steps, from 0 to 0.9"
        )


def judge_settings(profile: Profile, role: str) -> list[Any]:
    """Return what decides the judgments of "judge" or "second_judge", when it is a language model."""
    names = ("model", "url", "kind", "format", "decoding", "max_new_tokens")
    return [getattr(profile, f"{role}_{name}") for name in names]


def check_judges(profile: Profile, where: str) -> None:
    """Check the fields that say who judges, and what; raises ConfigError."""
    if unknown := set(profile.second_judge_matchups) - set(MATCHUP_KINDS):
        known = ", ".join(MATCHUP_KINDS)
        raise ConfigError(f"{where}: second_judge_matchups={sorted(unknown)}: use some of {known}")
    formats = [getattr(profile, f"{role}_format") for role in ("judge", "second_judge")]
    if profile.judge_texts and (profile.judge != "lm" or "prometheus" not in formats):
        raise ConfigError(f"{where}: judge_texts needs judge=lm and judge_format=prometheus")
    if not profile.second_judge_model:
        return
    if profile.judge == "none":
        raise ConfigError(f"{where}: second_judge_model is set, but judge=none: name the first judge, too")
    if profile.judge == "lm" and judge_settings(profile, "judge") == judge_settings(profile, "second_judge"):
        raise ConfigError(f"{where}: second_judge_* and judge_* are the same judge: change one of them")


# --- Opening a run: profiles read from ``configs/<name>.yaml``, overrides, and the folders of results ---
# A file may say ``extends: other`` and then lists only what differs.


REPO = Path(__file__).resolve().parent.parent
FACTS = REPO / "persona_lib" / "facts"  # tables that ship with the package


def parse_override(text: str) -> tuple[str, Any]:
    """Read one ``key=value`` of ``--set`` into a typed value; tuples are comma-separated.

    Raises ConfigError on a missing "=", an unknown name (with near names) or an ill-typed value.
    """
    where = f"--set {text}"
    name, equals, raw = text.partition("=")
    if not equals:
        raise ConfigError(f"{where}: write key=value")
    types = field_types()
    if name not in types:
        raise ConfigError(f"{where}: unknown field {name!r}; {near_names(name, list(types))}")
    wanted = types[name]
    try:
        if get_origin(wanted) is tuple:
            return name, tuple(get_args(wanted)[0](v) for v in raw.split(",") if v)
        if wanted is bool:
            return name, {"true": True, "false": False}[raw.lower()]
        return name, wanted(raw)
    except (ValueError, KeyError) as error:
        kind = wanted.__name__ if isinstance(wanted, type) else str(wanted)
        raise ConfigError(f"{where}: {raw!r} is not a valid {kind} for {name}") from error


def read_profile_file(name: str, folder: Path) -> dict[str, Any]:
    """Read one YAML file and what it extends into a flat dict of checked fields."""
    import yaml

    path = folder / f"{name}.yaml"
    if not path.exists():
        names = sorted(p.stem for p in folder.glob("*.yaml"))
        raise ConfigError(f"no profile {name!r} in {folder}; {near_names(name, names)}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it is built: six times as fast
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: should be a list of 'field: value' lines")
    parent = content.pop("extends", None)
    values = read_profile_file(parent, folder) if parent else {}
    return values | check_fields(content, str(path)) | {"name": name}


def load_profile(
    name: str, overrides: list[str] | tuple[str, ...] = (), folder: Path | None = None
) -> Profile:
    """Load ``configs/<name>.yaml`` and apply ``key=value`` overrides.

    Raises ConfigError for a missing profile, missing, unknown or ill-typed fields.
    """
    folder = folder or REPO / "configs"
    values = read_profile_file(name, folder)
    values |= dict(parse_override(text) for text in overrides)
    missing = [f.name for f in dataclasses.fields(Profile) if f.name not in values]
    if missing:
        raise ConfigError(f"{folder / name}.yaml: missing field(s) {', '.join(missing)}")
    profile = Profile(**values)
    check_profile(profile)
    return profile


def set_field(profile: Profile, **changes: Any) -> Profile:
    """Return a copy of the profile with some fields changed, checked like a file's."""
    changed = dataclasses.replace(profile, **check_fields(changes, f"profile {profile.name}"))
    check_profile(changed)
    return changed


def results_root() -> Path:
    """Folder of all results: ``results``, or ``$PERSONA_RESULTS``."""
    return Path(os.environ.get("PERSONA_RESULTS", REPO / "results"))


def results_dir(profile: Profile) -> Path:
    """Folder of a profile's results: ``results/<profile>``."""
    return results_root() / profile.name


def figures_dir(profile: Profile) -> Path:
    """Folder of a profile's figures: ``figures/<profile>`` (or below ``$PERSONA_FIGURES``)."""
    return Path(os.environ.get("PERSONA_FIGURES", REPO / "figures")) / profile.name


def run_dir(profile: Profile, dataset: str, seed: int) -> Path:
    """Folder of one data set and seed: ``results/<profile>/<dataset>/seed-<seed>``."""
    if dataset not in profile.datasets:
        raise ConfigError(
            f"data set {dataset!r} is not one of profile {profile.name}: {', '.join(profile.datasets)}"
        )
    return results_dir(profile) / dataset / f"seed-{seed}"


def main_arm(profile: Profile) -> str:
    """The tailored arm that is compared with the persona-free one: "chosen", the paper's, if there is one."""
    return "chosen" if "chosen" in profile.train_personas else profile.train_personas[-1]


@dataclass(frozen=True)
class Run:
    """One data set and seed of a profile: what every per-run step works on."""

    profile: Profile
    dataset: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where this run's rows, adapters, generations and tables are."""
        return run_dir(self.profile, self.dataset, self.seed)

    @property
    def base_source(self) -> tuple[str, str]:
        """Where the base model is (``pypi:NAME``, a hub id or a folder), and its revision."""
        return self.profile.base_model, self.profile.base_revision


def open_run(
    profile: str, dataset: str = "", seed: int = 0, overrides: list[str] | tuple[str, ...] = ()
) -> Run:
    """Open what a notebook works on, from its parameters; an empty data set means the profile's first."""
    loaded = load_profile(profile, overrides)
    return Run(loaded, dataset or loaded.datasets[0], seed)
