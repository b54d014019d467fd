"""``--plan``: what would run and why, how long it takes, and what it needs. Reads only small files.

Nothing is imported, installed or downloaded for it. Times are measured where a step has run before,
else they are the table's; what comes from arithmetic rather than from a run is called an estimate.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from persona_lib import environment, store
from persona_lib.config import Profile
from persona_lib.execute import clock
from persona_lib.published import published_models
from persona_lib.tasks import REPORT, Pipeline, Task, stale_reasons

# Download size in GB of the hub models that profiles name (16 bit), and whether access is by request.
HUB_MODELS: dict[str, tuple[float, bool]] = {
    "meta-llama/Llama-3.1-8B": (16.1, True),
    "prometheus-eval/prometheus-7b-v2.0": (14.5, False),
    "nbalepur/Llama-3.1-8B-PT-DPO-BeaverTails": (32.1, False),  # saved in 32 bit
    "nbalepur/Llama-3.1-8B-PT-DPO-HHH": (32.1, False),
    "nbalepur/Llama-3.1-8B-PT-DPO-Mnemonic": (32.1, False),
}
# The authors' data on their public home: GB.
OFFICIAL_DATA_GB = 0.02
# GPU memory in GB for an 8B Llama at 512 tokens, LoRA on q and v, one pair per step: calculated from the
# weights and from activations measured on one layer of real width; (without, with) gradient checkpointing.
GPU_GB = {"nf4": (13.2, 7.9), "none": (23.5, 18.3)}
MEMORY_NOTE = "weights and LoRA calculated, activations measured on one layer of real width"


@dataclass(frozen=True)
class Line:
    """One task of the plan: "cached", "run" or "maybe" (an input may change), why, and seconds expected."""

    task: Task
    state: str
    reason: str
    seconds: float | None
    measured: bool


def expected_seconds(pipeline: Pipeline, task: Task) -> tuple[float | None, bool]:
    """Return how long a task takes and whether that was measured here; None if nothing is known."""
    path = pipeline.results / "provenance.json"
    if path.exists():
        record = store.read_json(path)["tasks"].get(task.id)
        if record:
            return record["longest_seconds"], True
    if task.step == REPORT:
        return 15.0, False
    minutes = pipeline.table[task.step].minutes.get(pipeline.profile.name)
    return (None if minutes is None else minutes * 60), False


def plan_lines(pipeline: Pipeline, selected: list[str], force: bool = False) -> list[Line]:
    """Return the plan of the selected tasks; what follows a stale task is "maybe"."""
    lines: list[Line] = []
    moving: set[str] = set()
    for name in selected:
        task = pipeline.tasks[name]
        reasons = ["--force"] if force else stale_reasons(pipeline, task)
        waiting = [i for i in task.inputs if i in moving]
        state, reason = "cached", "nothing changed"
        if reasons:
            state, reason = "run", "; ".join(reasons)
        elif waiting:
            state, reason = "maybe", f"if {waiting[0]} changes" + (" (or others)" if len(waiting) > 1 else "")
        if state != "cached":
            moving.add(name)
        lines.append(Line(task, state, reason, *expected_seconds(pipeline, task)))
    return lines


def roles(profile: Profile) -> dict[str, str]:
    """Return what a profile asks language models for beside the policies, and where each is served."""
    names = ("generator", "judge") if profile.judge == "lm" else ("generator",)
    return {name: getattr(profile, f"{name}_url") for name in names}


def hub_models(profile: Profile) -> list[str]:
    """Return the hub models that a profile uses."""
    here = [getattr(profile, f"{role}_model") for role, url in roles(profile).items() if not url]
    published = [source for source, _ in published_models(profile) if not Path(source).is_dir()]
    named = [profile.base_model, *here, *published]
    return list(dict.fromkeys(name for name in named if name not in ("scratch", "base")))


def in_hub_cache(name: str) -> bool:
    """Return True if some revision of a hub model is in the local cache."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return any((cache / f"models--{name.replace('/', '--')}" / "snapshots").glob("*"))


def downloads(profile: Profile) -> list[tuple[str, float, str]]:
    """Return (what, GB still to download, remark) for models and data."""
    wanted = []
    for name in hub_models(profile):
        size, gated = HUB_MODELS.get(name, (float("nan"), False))
        here = in_hub_cache(name)
        remark = (
            "in the local cache" if here else "from the hub" + (", access must be granted" if gated else "")
        )
        wanted.append((name, 0.0 if here else size, remark))
    if uses_real_data(profile):
        folder = profile.data_dir or os.environ.get("PERSONA_DATA", "")
        remark = f"read from {folder}" if folder else "pinned public copy, checked; or give --data PATH"
        wanted.append(("the authors' data", 0.0 if folder else OFFICIAL_DATA_GB, remark))
    return wanted


def uses_real_data(profile: Profile) -> bool:
    """Return True if a data set of the profile is not generated here."""
    return any(name != "synthetic" for name in profile.datasets)


def disk_gb(profile: Profile) -> float:
    """Return the disk space that results and downloads need, in GB."""
    runs = len(profile.datasets) * len(profile.seeds)
    small = 0.05 + 0.1 * runs  # two seeds of the tiny models took 53 MB
    large = 0.3 * runs if hub_models(profile) else 0.0  # LoRA adapters with optimiser state of an 8B model
    return small + large + sum(size for _, size, _ in downloads(profile))


def gpu_need(profile: Profile) -> str:
    """Say what GPU memory a profile needs."""
    if profile.base_model == "scratch":
        return "none: everything runs on the CPU"
    plain, checkpointed = GPU_GB[profile.quantization]
    pairs = f"{profile.dpo_batch_size} pair{'s' if profile.dpo_batch_size > 1 else ''} per step"
    if profile.dpo_batch_size > 1:
        return (
            f"more than {plain} GB ({plain} GB is the estimate for 1 pair per step; this profile has {pairs})"
        )
    judge = (
        "; the judge is loaded on its own, in 16 bit (14.5 GB and its cache)" if profile.judge == "lm" else ""
    )
    whole = (
        "; a published model is loaded whole (16.1 GB in 16 bit for 8B)" if published_models(profile) else ""
    )
    return (
        f"{plain} GB for DPO ({profile.quantization}, {pairs}, {profile.max_length} tokens), "
        f"{checkpointed} GB with gradient checkpointing{judge}{whole}. Estimate: {MEMORY_NOTE}"
    )


def api_need(profile: Profile) -> str:
    """Say which served models a profile asks, at what price, and what limits the bill."""
    served = {role: url for role, url in roles(profile).items() if url}
    if not served:
        return "0: no paid service is called"
    parts = []
    for role, url in served.items():
        prices = getattr(profile, f"{role}_prices")
        price = f"{prices[0]:g} + {prices[1]:g} dollars per million tokens" if prices else "no price given"
        parts.append(f"{getattr(profile, f'{role}_model')} at {url} ({price})")
    limit = f"at most {profile.max_cost_usd:g} dollars in all" if profile.max_cost_usd else "no limit is set"
    return f"{'; '.join(parts)}; {limit} (--max-cost-usd)"


def setup_need() -> str:
    """Say whether the Python that runs this has the packages; measured: 1.8 GB with torch for the CPU."""
    if not environment.unmet("lab"):
        return "done: this Python satisfies the pins"
    return ".venv, once: 1.8 GB of packages with torch for the CPU, about 6 GB with torch for CUDA"


def not_ready(profile: Profile) -> list[str]:
    """Say what of a profile this version has not been made to run."""
    missing = []
    if profile.base_model != "scratch":
        missing.append(
            f"training {profile.base_model} has not been run with this version; times are estimates"
        )
    if profile.judge == "lm" and profile.judge_model != "base" and not profile.judge_url:
        missing.append(f"the judge {profile.judge_model} has not been run with this version")
    if profile.base_model != "scratch" and not profile.base_revision:
        missing.append("base_revision is empty: the hub model is not pinned to a commit")
    return missing


def print_plan(pipeline: Pipeline, lines: list[Line]) -> None:
    """Print every task with its state, reason and time, then the totals."""
    profile = pipeline.profile
    print(f"profile {profile.name}: {profile.description}")
    print(f"results in {pipeline.results}\n")
    width = max((len(line.task.id) for line in lines), default=0)
    for line in lines:
        about = "?" if line.seconds is None else clock(line.seconds)
        source = "measured" if line.measured else "expected"
        print(f"  {line.state:<6}  {line.task.id:<{width}}  {about:>7} {source}  {line.reason}")
    print()
    print_totals(profile, lines)


def print_totals(profile: Profile, lines: list[Line]) -> None:
    """Print what the run needs: time, disk, downloads, GPU memory, API cost, and what is not ready."""
    pending = [line for line in lines if line.state != "cached"]
    total = sum(line.seconds or 0 for line in pending)
    unknown = sum(line.seconds is None for line in pending)
    estimate = (
        " on one large GPU (estimate: arithmetic times four, not measured)" if hub_models(profile) else ""
    )
    print(f"to run     {len(pending)} of {len(lines)} tasks")
    print(f"time       {clock(total)} h:mm:ss{estimate}" + (f", and {unknown} unknown" if unknown else ""))
    wanted = downloads(profile)
    print(f"set-up     {setup_need()}")
    print(f"download   {sum(size for _, size, _ in wanted):.1f} GB" + ("" if wanted else ": nothing"))
    for what, size, remark in wanted:
        print(f"             {what}: {size:.2f} GB ({remark})")
    print(f"disk       {disk_gb(profile):.1f} GB")
    print(f"GPU        {gpu_need(profile)}")
    print(f"API cost   {api_need(profile)}")
    for note in not_ready(profile):
        print(f"not ready  {note}")
