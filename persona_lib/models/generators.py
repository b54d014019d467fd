"""Which text generator a run uses: its own base model, one of the hub, one that is served, or a rule.

GENERATORS is the table of them. A profile's ``generator_model`` may be one of its names; otherwise it is a
model, which is asked where it is served (``generator_url``) or by the profile's ``engine``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persona_lib.config import Run, results_dir
from persona_lib.models.endpoint import EndpointGenerator
from persona_lib.models.generate import TransformersGenerator
from persona_lib.models.llm import load_base, load_tokenizer, model_key
from persona_lib.models.protocol import endpoint_of
from persona_lib.models.surface import NAME as SURFACE
from persona_lib.models.surface import SurfaceGenerator
from persona_lib.models.vllm_engine import VllmGenerator, load_engine
from persona_lib.profiles import ConfigError, Profile, near_names


def role_source(run: Run, role: str) -> tuple[str, str]:
    """Return where the model of a role is, and its revision: the run's own base, a hub model or a folder."""
    name = getattr(run.profile, f"{role}_model")
    return run.base_source if name == "base" else (name, "")


def role_key(run: Run, role: str) -> str:
    """Return what identifies the model of a role: its weights, or its name and address if it is served."""
    name, url = getattr(run.profile, f"{role}_model"), getattr(run.profile, f"{role}_url")
    if url:
        return f"{name} at {url}"
    return name if name in GENERATORS else model_key(*role_source(run, role))


def model_name(run: Run, role: str) -> str:
    """Return what a role's model is called in the rows that it writes."""
    name = getattr(run.profile, f"{role}_model")
    return run.profile.base_model if name == "base" else name


def served_generator(run: Run, role: str, batch_size: int) -> Any:
    """Return a model that is served; those of one profile share a ledger, and with it ``max_cost_usd``."""
    ledger = results_dir(run.profile) / "endpoint" / "answers.jsonl"
    return EndpointGenerator(endpoint_of(run.profile, role), ledger)


def vllm_generator(run: Run, role: str, batch_size: int) -> Any:
    """Return a model that vLLM runs here."""
    source, revision = role_source(run, role)
    dtype = run.profile.compute_dtype
    engine = load_engine(source, revision, dtype)
    return VllmGenerator(engine, load_tokenizer(source, revision), model_name(run, role), dtype)


def transformers_generator(run: Run, role: str, batch_size: int) -> Any:
    """Return a model that transformers runs here."""
    source, revision = role_source(run, role)
    model = load_base(source, revision, "none", run.profile.compute_dtype)
    return TransformersGenerator(model, load_tokenizer(source, revision), model_name(run, role), batch_size)


def surface_generator(run: Run, role: str, batch_size: int) -> Any:
    """Return the rules that write personas without a language model."""
    return SurfaceGenerator()


# name -> function of run, role, batch size; what it returns has ``generate`` (prompts) or ``write`` (pairs)
GENERATORS: dict[str, Callable[[Run, str, int], Any]] = {
    "endpoint": served_generator,
    "transformers": transformers_generator,
    "vllm": vllm_generator,
    SURFACE: surface_generator,
}


def generator_kind(profile: Profile, role: str) -> str:
    """Return the name in GENERATORS of what answers for a role; ConfigError if there is none."""
    name = getattr(profile, f"{role}_model")
    kind = "endpoint" if getattr(profile, f"{role}_url") else name if name in GENERATORS else profile.engine
    if kind not in GENERATORS:
        raise ConfigError(f"profile {profile.name}: engine={kind!r}: {near_names(kind, list(GENERATORS))}")
    return kind


def load_generator(run: Run, role: str, batch_size: int) -> Any:
    """Return the run's "generator" (persona inference) or "judge", as the ``<role>_*`` fields say."""
    return GENERATORS[generator_kind(run.profile, role)](run, role, batch_size)
