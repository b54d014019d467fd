"""What a plan says of GPU memory, GPU hours, tokens and dollars: all of it computed, nothing measured.

Time is what the arithmetic and the traffic of the weights need at least, times an assumed factor for all
that a framework adds; on a GPU at least an assumed time per layer and pass, for starting its kernels. Left
out: keys and values read while decoding, loading, and texts longer than the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from persona_lib import weights
from persona_lib.profiles import Profile
from persona_lib.runner.workload import Calls, calls_of, facts, known_datasets

# GB of an 8B Llama's training step, beside weights: from activations of one layer of real width, measured
# once (170 KiB per token and layer with LoRA on q and v, 391 with LoRA on all linear layers).
CONTEXT_GB, LOGITS_GB = 1.5, 0.2
ACTIVATION_KIB = {"attention": 170, "all": 391}
ACTIVATION_WIDTH = 4096 + 14336  # hidden and MLP width of that layer
LORA_GB = 0.11
Card = dict[str, Any]  # a line of "cards" in the facts
PASSES = {"train": 2, "score": 1}  # over the weights: forward, and backward for the activations
NF4_BYTES = 0.516  # per weight, constants included
NF4_TRAFFIC = 2.5  # bytes per weight and pass: read four bits, write 16


@dataclass(frozen=True)
class Size:
    """A model's sizes: parameters in its linear layers, in its head, in its embedding, and of its cache."""

    linear: float
    head: float
    embedding: float
    cache_bytes: float  # per token, 16 bit
    layers: int
    width: int


def size_of(name: str) -> Size | None:
    """Return the sizes of a hub model or of packaged weights, None if they are not in the facts."""
    row = weights.entry(name) if weights.is_packaged(name) else {"layers": 0}
    m = facts()["models"].get(f"{weights.PREFIX}{row['name']}" if "name" in row else name)
    if m is None:
        return None
    per_layer = 2 * m["hidden"] ** 2 + 2 * m["hidden"] * m["kv"] + 3 * m["hidden"] * m["mlp"]
    head = m["hidden"] * m["vocabulary"]
    layers, embedding = row["layers"] or m["layers"], 0 if m["tied"] else head
    return Size(layers * per_layer, head, embedding, 4 * m["kv"] * layers, layers, m["hidden"] + m["mlp"])


def model_of(profile: Profile, role: str) -> str:
    """Return the model that a role runs here; "" if it is served elsewhere."""
    if role == "policy":
        return profile.base_model
    name = getattr(profile, f"{role}_model")
    return "" if getattr(profile, f"{role}_url") else profile.base_model if name == "base" else name


def in_four_bits(profile: Profile, calls: Calls) -> bool:
    """Say whether a step runs its model in NF4: policies do, unless expanded to generate and score."""
    expanded = profile.gen_expand_weights and calls.step in ("08_generation", "11_persona_swap")
    return calls.role == "policy" and profile.quantization == "nf4" and not expanded


def on_cpu(profile: Profile) -> bool:
    """Say whether the base model is packaged weights in float32, which run on a processor."""
    return weights.is_packaged(profile.base_model) and profile.compute_dtype == "float32"


def weight_bytes(profile: Profile) -> int:
    """Return the bytes of an unquantised weight."""
    return 4 if profile.compute_dtype == "float32" else 2


def weights_gb(size: Size, nf4: bool, width: int) -> float:
    """Return the memory of the weights."""
    linear = size.linear * (NF4_BYTES if nf4 else width)
    return (linear + (size.head + size.embedding) * width) / 1e9


def memory_gb(profile: Profile, calls: Calls) -> float | None:
    """Return the GPU memory that a step needs, None if the model's sizes are not known."""
    size = size_of(model_of(profile, calls.role))
    if size is None:
        return None
    width = weight_bytes(profile)
    need = weights_gb(size, in_four_bits(profile, calls), width) + CONTEXT_GB + LOGITS_GB
    if calls.kind == "generate":
        longest = calls.batch * (2 * calls.prompt_tokens + calls.longest)
        return need + size.cache_bytes * width / 2 * longest / 1e9
    if calls.kind == "score":
        return need
    attention = set(profile.lora_targets) <= {"q_proj", "k_proj", "v_proj", "o_proj"}
    kib = ACTIVATION_KIB["attention" if attention else "all"] * size.width / ACTIVATION_WIDTH * width / 2
    sequences = calls.batch * (2 if calls.step.startswith("07") else 1)
    lora = LORA_GB * size.width / ACTIVATION_WIDTH
    return need + lora + kib * 1024 * size.layers * profile.max_length * sequences / 1e9


def pass_seconds(profile: Profile, size: Size, nf4: bool, card: Card, passes: float, tokens: float) -> float:
    """Return the least time of so many passes over the weights with so many tokens in all.

    In 16 bit the shorter of traffic and arithmetic hides behind the longer; unpacking four bits does not.
    """
    arithmetic = tokens * 2 * (size.linear + size.head) / (card["tflops"] * 1e12)
    width = weight_bytes(profile)
    moved = passes * (size.linear * (NF4_TRAFFIC if nf4 else width) + size.head * width)
    traffic = moved / (card["tb_per_s"] * 1e12)
    return arithmetic + traffic if nf4 else max(arithmetic, traffic)


def seconds(profile: Profile, calls: Calls, card: Card) -> float | None:
    """Return how long a step's calls take on a card (see above), None if the model's sizes are not known."""
    size = size_of(model_of(profile, calls.role))
    if size is None:
        return None
    model = (profile, size, in_four_bits(profile, calls), card)
    batches, asked = math.ceil(calls.rows / calls.batch), calls.rows * calls.prompt_tokens
    if calls.kind == "generate":
        run = min(calls.longest, facts()["assumed"]["batch_runs_times_the_mean"] * calls.new_tokens)
        steps = batches * run
        passes = batches + steps
        least = pass_seconds(*model, batches, asked) + pass_seconds(*model, steps, steps * calls.batch)
    else:
        passes = PASSES[calls.kind] * batches
        least = pass_seconds(*model, passes, PASSES[calls.kind] * asked)
    start = 0.0 if "cpu" in card else facts()["assumed"]["gpu_seconds_per_layer_and_pass"]
    return max(facts()["assumed"]["slower_than_computed"] * least, start * size.layers * passes)


def all_calls(profile: Profile) -> list[Calls]:
    """Return the calls of all data sets that can be counted, for one seed."""
    return [calls for dataset in known_datasets(profile) for calls in calls_of(profile, dataset)]


def gpu_steps(profile: Profile) -> dict[str, list[Calls]]:
    """Return the calls of models whose sizes are known, by step."""
    steps: dict[str, list[Calls]] = {}
    for calls in all_calls(profile):
        if size_of(model_of(profile, calls.role)):
            steps.setdefault(calls.step, []).append(calls)
    return steps


def step_memory(profile: Profile) -> dict[str, float]:
    """Return the GPU memory that each step needs, in GB."""
    return {step: max(memory_gb(profile, c) for c in part) for step, part in gpu_steps(profile).items()}


def step_hours(profile: Profile, card: Card) -> dict[str, float]:
    """Return the hours of each step on a card, over all data sets and seeds, whether it fits or not."""
    seeds = len(profile.seeds)
    return {
        step: seeds * sum(seconds(profile, c, card) for c in part) / 3600
        for step, part in gpu_steps(profile).items()
    }


def smallest_card(profile: Profile) -> Card | None:
    """Return the smallest listed card on which every step fits; None if none does, or nothing is known.

    Packaged weights are small: for them a processor is one.
    """
    most = max(step_memory(profile).values(), default=math.inf)
    cards = [card for card in facts()["cards"] if on_cpu(profile) or "cpu" not in card]
    return next((card for card in cards if most <= card["gb"]), None)


def task_seconds(profile: Profile, step: str, dataset: str) -> float | None:
    """Return the seconds of a step on one seed, on the smallest card that all steps fit; None if not known.

    ``dataset`` "" means all of them, for steps that run once per profile.
    """
    card, names = smallest_card(profile), [dataset] if dataset else known_datasets(profile)
    counted = [name for name in names if card and name in known_datasets(profile)]
    part = [calls for name in counted for calls in calls_of(profile, name) if calls.step == step]
    found = [seconds(profile, calls, card) for calls in part]
    return sum(found) if found and None not in found else None


def duration(hours: float) -> str:
    """Return hours for a reader: "3.1 h", or "12 min" below one."""
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


def gpu_lines(profile: Profile) -> list[str]:
    """Return a table: per step the memory it needs and its time on every card; empty if nothing is known."""
    memory = step_memory(profile)
    cards = [card for card in facts()["cards"] if "cpu" not in card or profile.compute_dtype == "float32"]
    hours = [step_hours(profile, card) for card in cards]
    lines = [f"{'step':<26} {'memory':>8}" + "".join(f"{card['name']:>20}" for card in cards)]
    for step, gb in memory.items():
        times = [duration(h[step]) if gb <= card["gb"] else "does not fit"
                 for h, card in zip(hours, cards, strict=True)]  # fmt: skip
        lines.append(f"{step:<26} {gb:>5.1f} GB" + "".join(f"{time:>20}" for time in times))
    return lines if memory else []


# --- tokens and dollars ---


def token_counts(profile: Profile) -> dict[str, tuple[int, float, float]]:
    """Return (requests, prompt and completion tokens) of persona inference and of each judge, all seeds."""
    counts: dict[str, tuple[int, float, float]] = {}
    for dataset in known_datasets(profile):
        for calls in calls_of(profile, dataset):
            if calls.role != "policy":
                before = counts.get(calls.role, (0, 0.0, 0.0))
                rows = calls.rows * len(profile.seeds)
                more = (rows, rows * calls.prompt_tokens, rows * calls.new_tokens)
                counts[calls.role] = tuple(a + b for a, b in zip(before, more, strict=True))
    return counts


def dollars(counts: tuple[int, float, float], prices: Iterable[float]) -> float:
    """Return what so many tokens cost."""
    return sum(n * price for n, price in zip(counts[1:], prices, strict=True)) / 1e6


def price_of(profile: Profile, role: str) -> tuple[tuple[float, float] | None, str]:
    """Return a role's prices and where they come from: the profile, else the dated table, else none."""
    own = getattr(profile, f"{role}_prices")
    if own:
        return tuple(own), "the profile's prices"
    listed = {row["model"]: row for row in facts()["prices"]}
    row = listed.get(getattr(profile, f"{role}_model"))
    if row is None:
        return None, f"no price known: set {role}_prices"
    return (row["prompt"], row["completion"]), f"price of {row['date']}, {row['source']}"


def api_lines(profile: Profile) -> list[str]:
    """Return a line per role that asks a language model: requests, tokens, and dollars where it is served.

    What runs here costs nothing; for that, the listed models say what it would cost if they were asked.
    """
    lines = []
    for role, counts in token_counts(profile).items():
        asked = (f"{role}: {counts[0]:,} requests, {counts[1] / 1e6:.1f} million prompt tokens, "
                 f"{counts[2] / 1e6:.2f} million completion tokens")  # fmt: skip
        if getattr(profile, f"{role}_url"):
            prices, source = price_of(profile, role)
            bill = f"about {dollars(counts, prices):.2f} dollars ({source})" if prices else source
        else:
            costs = [f"{row['model']} {dollars(counts, (row['prompt'], row['completion'])):.0f}"
                     for row in facts()["prices"]]  # fmt: skip
            bill = f"runs here; asked of others, in dollars: {', '.join(costs)}"
        lines.append(f"{asked}; {bill}")
    return lines
