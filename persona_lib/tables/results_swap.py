"""Judge-free tables over seeds: persona swaps by log-probability, and the flip of generated answers.

The measures are those of ``swap_tables`` and ``text_metrics``; here they are pooled over seeds, with
paired intervals for the difference between a tailored policy and its persona-free twin.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_lib.config import Run
from persona_lib.evaluation.judged import runs_of, same_items
from persona_lib.evaluation.swap import swap_arms, swap_folder
from persona_lib.evaluation.swap_tables import (
    FAMILIES,
    MEASURES,
    METRICS,
    SINGLE,
    SwapScore,
    swap_values,
)
from persona_lib.evaluation.tailor import eval_rows, generation_folder, grid, read_generations
from persona_lib.profiles import Profile
from persona_lib.records import RunSpec
from persona_lib.stats.bootstrap import interval_columns
from persona_lib.stats.pooled import Pool, difference, make_pool, mean_columns, mean_of
from persona_lib.stats.text_metrics import flip_and_did
from persona_lib.store import read_rows
from persona_lib.tables.results import Row

if TYPE_CHECKING:
    import pandas as pd

Part = tuple[str, str]  # arm, persona format
FLIP_VALUES = ("flip", "did_positive", "did")
TWINS: list[tuple[Part, Part]] = [  # tested policy, what it is compared with
    pair
    for arm in ("chosen", "both")
    for pair in (
        ((f"dpo-{arm}", "line"), ("dpo-none", "line")),
        ((f"dpo-{arm}", "line"), ("dpo-none", "first_person")),
        ((f"dpo-{arm}", "line"), (f"sft-{arm}", "line")),
        ((f"dpo-{arm}", "line"), ("dpo-shuffled", "line")),
        ((f"sft-{arm}", "line"), ("sft-none", "line")),
        ((f"sft-{arm}", "line"), ("sft-none", "first_person")),
    )
]


@dataclass(frozen=True)
class PerItem:
    """Per-item values over seeds, by part, what ("policy/gold") and value ("flip"), and their pool."""

    dataset: str
    seeds: dict[Part, list[int]]
    values: dict[tuple[Part, str, str], list[dict[str, float]]]
    pool: Pool

    def column(self, part: Part, what: str, value: str) -> str:
        """Name of the values' column in the pool."""
        return f"{part}/{what}/{value}"

    def n(self, part: Part, what: str, value: str = "flip") -> int:
        """Number of items over all seeds."""
        return sum(map(len, self.values.get((part, what, value), ())))


# --- reading ---


def finished_scores(run: Run, part: Part) -> list[SwapScore]:
    """Return the swap scores of one arm and format, none if it was not scored."""
    folder = swap_folder(run, *part)
    done = (folder / "done.json").exists() and (folder / "rows.jsonl").exists()
    return read_rows(folder / "rows.jsonl", SwapScore) if done else []


def swap_items(scores: Sequence[SwapScore]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield ("measure/family", value name, {id: value}) of one arm and seed."""
    for family in (*FAMILIES, *SINGLE):
        names = {family} if family in SINGLE else {f"{family}-chosen", f"{family}-rejected"}
        by_name = [{s.id for s in scores if s.eval_persona == name} for name in names]
        ids = sorted(set.intersection(*by_name))
        for measure in MEASURES:
            values = swap_values(scores, family, measure)
            if ids and len(values["flip"]) == len(ids):  # an arm without a reference has no implicit reward
                for name in METRICS:
                    yield f"{measure}/{family}", name, dict(zip(ids, values[name].tolist(), strict=True))


def flip_items(run: Run, part: Part) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield (family, value name, {id: value}) of the generated answers of one arm and seed."""
    if not (run.folder / "tailoring" / f"{run.profile.eval_split}.jsonl").exists():
        return
    rows = {row.id: row for row in eval_rows(run) if row.chosen and row.rejected}
    for family in FAMILIES:
        specs = [find_spec(run, part, f"{family}-{side}") for side in ("chosen", "rejected")]
        if None in specs:
            continue
        outputs = [read_generations(run, spec) for spec in specs]
        ids = sorted(set(rows) & set(outputs[0]) & set(outputs[1]))
        texts = [[side[i].completion for i in ids] for side in outputs]
        scores = flip_and_did(*texts, [rows[i].chosen for i in ids], [rows[i].rejected for i in ids])
        for name in FLIP_VALUES:
            yield family, name, dict(zip(ids, getattr(scores, name).tolist(), strict=True))


def find_spec(run: Run, part: Part, persona: str) -> RunSpec | None:
    """Return the run of the grid with finished answers for an arm, persona and format, or None."""
    for spec in grid(run):
        if (spec.arm, spec.persona_format, spec.eval_persona) == (*part, persona):
            return spec if (generation_folder(run, spec) / "done.json").exists() else None
    return None


def collect_items(profile: Profile, dataset: str, reader: Any, parts: Sequence[Part]) -> PerItem | None:
    """Read the per-item values of all seeds and pool them; None if there are none."""
    runs = runs_of(profile, dataset)
    values: dict[tuple[Part, str, str], list[dict[str, float]]] = {}
    seeds: dict[Part, list[int]] = {}
    for number, run in enumerate(runs):
        for part in parts:
            for what, name, by_id in reader(run, part):
                values.setdefault((part, what, name), [{} for _ in runs])[number] = by_id
                if by_id and run.seed not in seeds.setdefault(part, []):
                    seeds[part].append(run.seed)
    if not seeds:
        return None
    columns: dict[str, Any] = {}
    for key, by_seed in values.items():
        columns |= mean_columns(f"{key[0]}/{key[1]}/{key[2]}", by_seed)
    pool = make_pool(
        columns, profile.bootstrap_samples, profile.datasets.index(dataset), same_items(tuple(runs))
    )
    return PerItem(dataset, seeds, values, pool)


@functools.lru_cache(maxsize=4)
def swap_data(profile: Profile) -> tuple[PerItem, ...]:
    """Read the swap scores of all data sets."""
    found = [
        collect_items(profile, d, lambda run, part: swap_items(finished_scores(run, part)), parts)
        for d in profile.datasets
        if (parts := swap_arms(runs_of(profile, d)[0]))
    ]
    return tuple(items for items in found if items)


@functools.lru_cache(maxsize=4)
def flip_data(profile: Profile) -> tuple[PerItem, ...]:
    """Read what generated answers say about flips, of all data sets with finished answers."""
    found = []
    for dataset in profile.datasets:
        specs = grid(runs_of(profile, dataset)[0])
        parts = list(dict.fromkeys((spec.arm, spec.persona_format) for spec in specs))
        found.append(collect_items(profile, dataset, flip_items, parts))
    return tuple(items for items in found if items)


def forget_swap() -> None:
    """Drop what was read before."""
    swap_data.cache_clear()
    flip_data.cache_clear()


# --- tables ---


def value_row(items: PerItem, part: Part, what: str, names: Sequence[str]) -> Row:
    """Return one line: n and each value's mean with its interval."""
    n, seeds = items.n(part, what), items.seeds[part]
    line: Row = {"dataset": items.dataset, "arm": part[0], "persona_format": part[1], "n": n,
                 "n_seeds": len(seeds), "seeds": " ".join(map(str, seeds))}  # fmt: skip
    for name in names:
        statistic = mean_of(items.column(part, what, name))
        line |= interval_columns(name, items.pool.interval(statistic, n, len(seeds)))
    return line


def swap_table(profile: Profile) -> pd.DataFrame:
    """Return persona-swap accuracy per arm, format, measure and persona family, over seeds."""
    import pandas as pd

    lines = []
    for items in swap_data(profile):
        for part, what in dict.fromkeys((part, what) for part, what, _ in items.values):
            measure, family = what.split("/")
            line = value_row(items, part, what, tuple(METRICS))
            lines.append({"measure": measure, "persona": family} | line)
    return pd.DataFrame(lines)


def swap_by_seed(profile: Profile) -> pd.DataFrame:
    """Return the swap table seed by seed: means without intervals."""
    import pandas as pd

    lines = []
    for items in swap_data(profile):
        for number, seed in enumerate(profile.seeds):
            for part, what in dict.fromkeys((part, what) for part, what, _ in items.values):
                values = {name: items.values[part, what, name][number] for name in METRICS}
                if values["flip"]:
                    measure, family = what.split("/")
                    names = {"dataset": items.dataset, "seed": seed, "arm": part[0],
                             "persona_format": part[1], "measure": measure, "persona": family,
                             "n": len(values["flip"])}  # fmt: skip
                    means = {name: mean(by_id.values()) for name, by_id in values.items()}
                    lines.append(names | means)
    return pd.DataFrame(lines)


def swap_differences(profile: Profile) -> pd.DataFrame:
    """Return tested minus compared policy (persona-free twin, PT-SFT, shuffled), paired by row and seed."""
    import pandas as pd

    lines = []
    for items in swap_data(profile):
        for tested, other in TWINS:
            for what in dict.fromkeys(what for part, what, _ in items.values if part == tested):
                if (other, what, "flip") not in items.values or what.partition("/")[2] in SINGLE:
                    continue
                measure, family = what.split("/")
                lines.append({
                    "dataset": items.dataset, "tested": ".".join(tested), "compared": ".".join(other),
                    "measure": measure, "persona": family,
                    "n": min(items.n(tested, what), items.n(other, what)),
                    "n_seeds": len(set(items.seeds[tested]) & set(items.seeds[other])),
                    **difference_columns(items, tested, other, what),
                })  # fmt: skip
    return pd.DataFrame(lines)


def mean(values: Iterable[float]) -> float | None:
    """Return the mean of the values that are there, None if there are none."""
    kept = [v for v in values if not math.isnan(v)]
    return sum(kept) / len(kept) if kept else None


def difference_columns(items: PerItem, tested: Part, other: Part, what: str) -> Row:
    """Return the differences of share D > 0 and of flip with their intervals."""
    line: Row = {}
    for name in ("d_positive", "flip"):
        pair = [mean_of(items.column(part, what, name)) for part in (tested, other)]
        line |= interval_columns(name, items.pool.interval(difference(*pair)))
    return line


def generation_flip_table(profile: Profile) -> pd.DataFrame:
    """Return flip, share DiD > 0 and DiD of generated answers per arm, format and persona family."""
    import pandas as pd

    lines = []
    for items in flip_data(profile):
        for part, family in dict.fromkeys((part, family) for part, family, _ in items.values):
            lines.append({"persona": family} | value_row(items, part, family, FLIP_VALUES))
    return pd.DataFrame(lines)


SWAP_TABLES = {
    "swap": swap_table,
    "swap_by_seed": swap_by_seed,
    "swap_differences": swap_differences,
    "generation_flip": generation_flip_table,
}
