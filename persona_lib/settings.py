"""A profile: every number of a run, typed and in groups; how it is read and checked, and where results are.

Values come from ``configs/<name>.yaml``; a file may say ``extends: other`` and lists what differs. ``--set
group.key=value`` changes one. Errors name the file, the setting and what was expected.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from persona_lib.records import EvalPersona, Method, Side

REPO = Path(__file__).resolve().parent.parent
FACTS = REPO / "persona_lib" / "facts"  # tables that ship with the package
# Settings that say how the work is done and not what comes out.
CHANGE_NO_RESULT = "served.* *.prices"
ROLES = ("generator", "judge", "second_judge")  # models that a profile names beside its base
RANGES = {  # settings by patterns, the first that fit: the lowest and the highest value; nan is in no range
    "evaluation.bootstrap_samples": (10, 10**6),
    "*[._]epochs lora.r": (1, 1000),
    "*batch_size *.max_new_tokens *.max_length": (1, 10**6),
    "training.warmup lora.dropout": (0, 0.9),
    "data.near_duplicates": (0.01, 1),
    "data.majority_share": (0.5, 1),
    "personas.shots": (0, 10),  # solved items: one per dimension of the package's own pairs
    "*learning_rate": (1e-9, 10),
    "dpo.beta generation.repetition_penalty": (1e-4, 100),
    "evaluation.limit": (-(10**9), 10**9),
    "*": (0, 10**9),
}


class ConfigError(ValueError):
    """A profile or an override that cannot be used; the message says where and how to mend it."""


@dataclass(frozen=True)
class Data:
    """Preference data and their preparation (paper section 4)."""

    path: str
    mapping: str
    strip_roles: bool
    pair_limit: int
    majority_share: float
    near_duplicates: float
    retriever: str


@dataclass(frozen=True)
class Base:
    """The base language model of every policy."""

    model: str
    quantization: Literal["none", "nf4"]
    dtype: Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class ModelRole:
    """A language model that writes personas or judges. A profile lists what differs from these."""

    model: str = ""
    url: str = ""
    kind: Literal["chat", "completions"] = "chat"
    prices: tuple[float, ...] = ()
    format: Literal["letter", "json", "prometheus"] = "letter"
    decoding: Literal["deterministic", "official"] = "deterministic"
    batch_size: int = 8
    max_new_tokens: int = 4


@dataclass(frozen=True)
class Served:
    """Models behind a URL."""

    max_cost_usd: float


@dataclass(frozen=True)
class Personas:
    """Persona inference (paper section 3)."""

    shots: int
    train_sides: tuple[Side, ...]


@dataclass(frozen=True)
class Training:
    """What SFT and DPO share (paper section 4)."""

    methods: tuple[Method, ...]
    arms: tuple[str, ...]
    rows: int
    validation_rows: int
    max_length: int
    completion_only_loss: bool
    warmup: float
    packing: bool


@dataclass(frozen=True)
class Lora:
    """Adapters; alpha is always twice the rank."""

    r: int
    dropout: float
    targets: tuple[str, ...]

    @property
    def alpha(self) -> int:
        """LoRA's scale, before it is divided by the rank."""
        return 2 * self.r


@dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning."""

    learning_rate: float
    epochs: int
    batch_size: int


@dataclass(frozen=True)
class Dpo:
    """Direct preference optimisation on top of SFT."""

    splits: tuple[Literal["sft_train", "dpo_train"], ...]
    learning_rate: float
    epochs: int
    max_steps: int
    batch_size: int
    beta: float
    sft_weight: float


@dataclass(frozen=True)
class Plain:
    """What the arm without personas has otherwise, chosen with the same search budget."""

    sft_learning_rate: float
    sft_epochs: int
    dpo_learning_rate: float
    dpo_sft_weight: float


@dataclass(frozen=True)
class Generation:
    """Greedy answers of the policies."""

    engine: Literal["transformers", "vllm"]
    few_shot_examples: int
    batch_size: int
    max_new_tokens: int
    min_new_tokens: int
    repetition_penalty: float


@dataclass(frozen=True)
class Evaluation:
    """Which rows, personas and judges (paper section 5)."""

    split: Literal["validation", "test"]
    limit: int
    personas: tuple[EvalPersona, ...]
    controls: bool
    judge: str
    persona_judge: str
    backwards_rows: int
    bootstrap_samples: int


@dataclass(frozen=True)
class Profile:
    """All settings of a run. ``configs/everyday.yaml`` explains each where its value stands."""

    name: str
    description: str
    steps: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    data: Data
    base: Base
    generator: ModelRole
    judge: ModelRole
    second_judge: ModelRole
    served: Served
    personas: Personas
    training: Training
    lora: Lora
    sft: Sft
    dpo: Dpo
    plain: Plain
    generation: Generation
    evaluation: Evaluation

    @property
    def merge_adapters(self) -> bool:
        """Add finished adapters to the weights, for speed: not where they would be rounded away."""
        plain = (self.base.quantization, self.base.dtype) == ("none", "float32")
        return plain and "lm_head" not in self.lora.targets  # a head may share the embedding's weights

    @property
    def persona_judge(self) -> str:
        """Who judges inferred personas: ``evaluation.persona_judge``; empty: the judge of answers."""
        return self.evaluation.persona_judge or self.evaluation.judge


@cache
def field_types(kind: type = Profile, prefix: str = "") -> dict[str, Any]:
    """Return the declared type of every setting by its name: {"seeds": ..., "dpo.beta": float, ...}."""
    found: dict[str, Any] = {}
    for name, wanted in get_type_hints(kind).items():
        inner = dataclasses.is_dataclass(wanted)
        found |= field_types(wanted, f"{prefix}{name}.") if inner else {f"{prefix}{name}": wanted}
    return found


def value(profile: Profile, name: str) -> Any:
    """Return a setting by its name, e.g. "dpo.beta"."""
    group, _, key = name.rpartition(".")
    return getattr(getattr(profile, group) if group else profile, key)


def fits(name: str, patterns: str) -> bool:
    """Say whether a setting's name matches one of some patterns ("sft.* lora.r")."""
    return any(fnmatch(name, pattern) for pattern in patterns.split())


def flat(profile: Profile, patterns: str = "*") -> dict[str, Any]:
    """Return the settings whose names match one of some patterns, by name."""
    return {name: value(profile, name) for name in field_types() if fits(name, patterns)}


def deciding(profile: Profile, patterns: str) -> dict[str, Any]:
    """Return the settings that match and can change a result: what keys of finished work are made of."""
    return {n: v for n, v in flat(profile, patterns).items() if not fits(n, CHANGE_NO_RESULT)}


def build(values: Mapping[str, Any], where: str) -> Profile:
    """Make a checked profile of settings by name; raises ConfigError for missing ones."""
    own: Any = dataclasses.fields(ModelRole)
    values = {f"{role}.{field.name}": field.default for role in ROLES for field in own} | dict(values)
    if missing := [name for name in field_types() if name not in values]:
        raise ConfigError(f"{where}: missing setting(s) {', '.join(missing)}")
    groups: dict[str, Any] = {
        group: kind(**{f.name: values[f"{group}.{f.name}"] for f in dataclasses.fields(kind)})
        for group, kind in get_type_hints(Profile).items()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }
    profile = Profile(**groups, **{n: v for n, v in values.items() if "." not in n})
    check_profile(profile)
    return profile


def near_names(name: str, allowed: list[str]) -> str:
    """Return a hint that lists the closest allowed names, or all of them if none is close."""
    close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    close = close or [other for other in allowed if other.rpartition(".")[2] == name]
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(allowed)}"


def check_name(name: Any, allowed: Iterable[str], where: str) -> None:
    """Raise ConfigError for a name that is not allowed; ``where`` begins the message, near names end it."""
    if name not in (names := list(allowed)):
        raise ConfigError(f"{where} {name!r}; {near_names(str(name), names)}")


class Parser(argparse.ArgumentParser):
    """A command line that says in one line what is wrong with it."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, near options, and where all are listed; exit with status 2."""
        words = message.removeprefix("unrecognized arguments: ").split()
        options = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(words[0], options) if message.startswith("unrec") else []
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        self.exit(2, f"error: {message}{hint} ({self.prog} --help lists the options)\n")


def read_as(kind: type, given: Any) -> Any:
    """Return text as bool, int or float and an int as float; ValueError or KeyError if it does not fit."""
    if isinstance(given, str) and kind is not str:
        return {"true": True, "false": False}[given.lower()] if kind is bool else kind(given)
    if type(given) is not kind and (kind, type(given)) != (float, int):
        raise ValueError(given)
    return kind(given)


def check_value(name: str, given: Any, where: str) -> Any:
    """Return a value in the setting's type, or raise ConfigError; a list may be text with commas."""
    check_name(name, field_types(), f"{where}: unknown setting")
    is_list = get_origin(field_types()[name]) is tuple
    inner = get_args(field_types()[name])[0] if is_list else field_types()[name]
    choices = get_args(inner)  # of a Literal
    kind = str if choices else inner
    parts = given if is_list else [given]
    if is_list and isinstance(given, str):
        parts = filter(None, given.split(","))
    try:
        values = tuple(read_as(kind, part) for part in parts)
    except (KeyError, TypeError, ValueError) as error:
        said = f"{'a list of ' if is_list else ''}{kind.__name__}"
        raise ConfigError(f"{where}: {name}={given!r} should be {said}") from error
    for part in values if choices else ():
        check_name(part, choices, f"{where}: {name}:")
    return values if is_list else values[0]


def check_profile(profile: Profile) -> None:
    """Check the constraints between settings; raises ConfigError for the first that is not met."""
    second, judged_by = profile.second_judge, profile.evaluation.judge
    kind, _, model = profile.data.retriever.partition(":")
    vllm, fewest = profile.generation.engine == "vllm", profile.generation.min_new_tokens
    same = judge_settings(profile, "judge") == judge_settings(profile, "second_judge")
    wrong: list[tuple[str, Any, str]] = []
    for name, given in flat(profile).items():
        parts = given if isinstance(given, tuple) else (given,)
        low, high = next(limits for patterns, limits in RANGES.items() if fits(name, patterns))
        outside = not all(isinstance(part, str) or low <= part <= high for part in parts)
        wrong += [
            (name, outside, f"use {low} to {high}"),
            (name, len(set(parts)) < len(parts) and "prices" not in name, "name each once"),
            (name, not parts and "prices" not in name and "sides" not in name, "name at least one"),
        ]
    for role in ROLES:
        named: ModelRole = getattr(profile, role)
        unpriced = named.url and profile.served.max_cost_usd > 0 and not named.prices
        wrong += [
            (f"{role}.prices", len(named.prices) not in (0, 2), "give two, for prompt and completion"),
            (f"{role}.url", named.url and named.model in ("", "base"),
             f"name the model that it serves in {role}.model"),
            (f"{role}.url", named.url and not re.fullmatch("https?://[^@]+", named.url),
             "write it as http://HOST/v1 (or https), and put the key into OPENAI_API_KEY"),
            ("served.max_cost_usd", unpriced, f"needs {role}.prices, dollars per million tokens"),
        ]  # fmt: skip
    wrong += [
        ("data.retriever", kind not in ("bm25", "dense", "late") or (kind == "bm25") == bool(model),
         "use bm25, dense:MODEL or late:MODEL (a hub id or a folder)"),
        ("training.methods", "dpo" in profile.training.methods and "sft" not in profile.training.methods,
         "DPO starts from SFT: name sft, too"),
        ("base.model", not profile.base.model, "name a model"),
        ("generation.min_new_tokens", fewest > profile.generation.max_new_tokens,
         "use at most generation.max_new_tokens"),
        ("generation.engine", vllm and profile.base.dtype != "bfloat16",
         "needs base.dtype=bfloat16: its LoRA kernels take 16-bit numbers only"),
        ("generation.repetition_penalty", vllm and profile.generation.repetition_penalty != 1,
         "vLLM penalises the prompt's words, too: set it to 1.0"),
        ("second_judge.model", second.model and judged_by == "none",
         "evaluation.judge=none: name the first judge, too"),
        ("second_judge.model", second.model and judged_by == "lm" and same,
         "is the same judge as the first: change one of them"),
    ]  # fmt: skip
    for name, is_wrong, why in wrong:
        if is_wrong:
            shown = re.sub("//.*@", "//...@", repr(value(profile, name)))  # no password of a URL
            raise ConfigError(f"profile {profile.name}: {name}={shown}: {why}")


def judge_settings(profile: Profile, role: str) -> list[Any]:
    """Return what decides the judgments of "judge" or "second_judge", when it is a language model."""
    names = ("model", "url", "kind", "format", "decoding", "max_new_tokens")
    return [getattr(getattr(profile, role), name) for name in names]


# --- Opening a profile, and the folders of its results ---


def parse_override(text: str) -> tuple[str, Any]:
    """Read one ``group.key=value`` of ``--set`` into a checked value; raises ConfigError."""
    name, equals, given = text.partition("=")
    if not equals or name in ("", "name"):
        raise ConfigError(f"--set {text}: write group.key=value; a profile's name is its file's")
    if name == "seeds" and "," not in given:
        if not re.fullmatch(r"[1-9]\d{0,2}", given):
            raise ConfigError(f"--set {text}: write a count (5) or a list (0,3); one seed is 3,")
        given = ",".join(map(str, range(int(given))))
    return name, check_value(name, given, f"--set {text}")


def read_profile_file(name: str, folder: Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read one YAML file and what it extends into checked settings by name."""
    import yaml

    path = folder / f"{name}.yaml"
    check_name(name, sorted(p.stem for p in folder.glob("*.yaml")), f"{folder}: no profile")
    if name in above:
        raise ConfigError(f"{path}: extends itself: {' -> '.join((*above, name))}")
    try:
        content = dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML of the form 'setting: value' ({error})") from error
    parent = content.pop("extends", None)
    values = read_profile_file(parent, folder, (*above, name)) if parent else {}
    found: dict[str, Any] = {}
    for key, given in content.items():
        found |= {f"{key}.{k}": v for k, v in given.items()} if isinstance(given, dict) else {key: given}
    return values | {n: check_value(n, given, str(path)) for n, given in found.items()} | {"name": name}


def load_profile(name: str, overrides: Sequence[str] = (), folder: Path | None = None) -> Profile:
    """Load ``configs/<name>.yaml`` with ``group.key=value`` overrides; ConfigError says what is wrong.

    The mapping of a profile's own example is not that of other data: a new ``data.path`` leaves it out.
    """
    folder = folder or REPO / "configs"
    if not folder.is_dir():  # installed from a wheel
        text = "this is the library alone, without notebooks and profiles: git clone the repository"
        raise ConfigError(f"{text}, and call ./run_all.sh there ({folder} is not there)")
    changes = dict(parse_override(text) for text in overrides)
    if "data.path" in changes:
        changes = {"data.mapping": ""} | changes
    return build(read_profile_file(name, folder) | changes, f"{folder / name}.yaml")


def set_field(profile: Profile, changes: Mapping[str, Any]) -> Profile:
    """Return a copy of the profile with changes like {"dpo.beta": 0.2}, checked like a file's."""
    where = f"profile {profile.name}"
    return build(flat(profile) | {n: check_value(n, v, where) for n, v in changes.items()}, where)


def results_root() -> Path:
    """Folder of all results: ``results``, or ``$PERSONA_RESULTS``."""
    return Path(os.environ.get("PERSONA_RESULTS", REPO / "results"))


def results_dir(profile: Profile) -> Path:
    """Folder of a profile's results: ``results/<profile>``."""
    return results_root() / profile.name


def figures_dir(profile: Profile) -> Path:
    """Folder of a profile's figures: ``figures/<profile>`` (or below ``$PERSONA_FIGURES``)."""
    return Path(os.environ.get("PERSONA_FIGURES", REPO / "figures")) / profile.name


def published_dir(profile: Profile) -> Path:
    """Folder of the tables and figures that documents show: ``figures/published/<profile>``."""
    return figures_dir(profile).parent / "published" / profile.name


def main_arm(profile: Profile) -> str:
    """Return the tailored arm that is compared with the plain one: "chosen", the paper's, if there."""
    return "chosen" if "chosen" in profile.training.arms else profile.training.arms[-1]


@dataclass(frozen=True)
class Run:
    """One data set and seed of a profile: what every per-run step works on."""

    profile: Profile
    dataset: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where rows, adapters, generations and tables are: ``results/<profile>/<dataset>/seed-<seed>``."""
        check_name(self.dataset, self.profile.datasets, f"profile {self.profile.name}: no data set")
        return results_dir(self.profile) / self.dataset / f"seed-{self.seed}"

    @property
    def base_source(self) -> tuple[str, str]:
        """Return where the base is (``pypi:NAME``, hub id or folder), and its commit or ""."""
        source, _, commit = self.profile.base.model.partition("@")
        return source, commit


def open_run(profile: str, dataset: str = "", seed: int = 0, overrides: Sequence[str] = ()) -> Run:
    """Open what a notebook works on; an empty data set means the profile's first."""
    loaded = load_profile(profile, overrides)
    return Run(loaded, dataset or loaded.datasets[0], seed)
