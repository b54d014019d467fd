"""Which text generator a run uses: its own base model, one of the hub, or one that is served elsewhere."""

from __future__ import annotations

from typing import Any

from persona_lib.config import Run, results_dir
from persona_lib.models.endpoint import EndpointGenerator
from persona_lib.models.generate import TransformersGenerator
from persona_lib.models.llm import load_base, load_tokenizer, model_key
from persona_lib.models.protocol import endpoint_of
from persona_lib.models.vllm_engine import VllmGenerator, load_engine


def role_source(run: Run, role: str) -> tuple[str, str]:
    """Return where the model of a role is, and its revision: the run's own base, a hub model or a folder."""
    name = getattr(run.profile, f"{role}_model")
    return run.base_source if name == "base" else (name, "")


def role_key(run: Run, role: str) -> str:
    """Return what identifies the model of a role: its weights, or its name and address if it is served."""
    url = getattr(run.profile, f"{role}_url")
    return f"{getattr(run.profile, f'{role}_model')} at {url}" if url else model_key(*role_source(run, role))


def load_generator(run: Run, role: str, batch_size: int) -> Any:
    """Return the run's "generator" (persona inference) or "judge", as the profile's ``<role>_*`` fields say.

    Served models of one profile share a ledger, and with it ``max_cost_usd``.
    """
    profile = run.profile
    name = getattr(profile, f"{role}_model")
    if getattr(profile, f"{role}_url"):
        ledger = results_dir(profile) / "endpoint" / "answers.jsonl"
        return EndpointGenerator(endpoint_of(profile, role), ledger)
    source, revision = role_source(run, role)
    name = f"base-{run.base_seed}" if name == "base" else name
    if profile.engine == "vllm":
        engine = load_engine(source, revision, profile.compute_dtype)
        return VllmGenerator(engine, load_tokenizer(source, revision), name, profile.compute_dtype)
    model = load_base(source, revision, "none", profile.compute_dtype)
    return TransformersGenerator(model, load_tokenizer(source, revision), name, batch_size)
