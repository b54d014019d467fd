"""What we saw in the notebooks on persona inference, generation and judging; see ``reading.saw``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persona_lib.config import Run
from persona_lib.data.preference import inference_pairs
from persona_lib.evaluation.calibration import BELIEVED
from persona_lib.evaluation.persona_quality import read_personas
from persona_lib.evaluation.tailor import BROKEN, generation_folder, read_generations
from persona_lib.reading.saw import against, between, listed, share, span
from persona_lib.reading.show_personas import inferred_splits
from persona_lib.records import RunSpec
from persona_lib.stats.bootstrap import bootstrap_mean
from persona_lib.stats.significance import wilson_interval

if TYPE_CHECKING:
    import pandas as pd


def persona_inference(run: Run, statuses: pd.DataFrame) -> str:
    """Say how many answers have the form of a persona, and how often a pair's two personas differ."""
    said = [f"{name}: {share(row.ok, row.asked)} answers have the form of a persona."
            for name, row in statuses.iterrows()]  # fmt: skip
    split = inferred_splits(run)[-1]
    chosen, rejected = (read_personas(run, split, side) for side in ("chosen", "rejected"))
    both = [(chosen[pair.id].persona, rejected[pair.id].persona) for pair in inference_pairs(run)]
    both = [pair for pair in both if all(pair)]
    differ = sum(first != second for first, second in both)
    verdict = against(*wilson_interval(differ, len(both)), 0.5)
    said.append(f"Where both sides have one, the two personas of a {split} pair differ in "
                f"{share(differ, len(both))}, {verdict}.")  # fmt: skip
    return listed(said)


def changed(run: Run, arm: str, persona_format: str) -> dict[str, float] | None:
    """Return 1 per prompt whose answer changes from one gold persona to the other, else 0; None: not run."""
    method, _, train_persona = arm.partition("-")
    specs = [RunSpec(run.dataset, method, train_persona, f"gold-{side}", run.seed, persona_format)
             for side in ("chosen", "rejected")]  # fmt: skip
    if not all((generation_folder(run, spec) / "done.json").exists() for spec in specs):
        return None
    first, second = (read_generations(run, spec) for spec in specs)
    both = first.keys() & second.keys()
    return {i: float(first[i].completion != second[i].completion) for i in sorted(both)}


def generation(run: Run, degenerate: pd.DataFrame, tailored: str) -> str:
    """Say how many answers are none, and which policy's answers follow the persona at all."""
    bad = int(degenerate.no_eos.sum())
    loops = int(degenerate.suffix_loop.sum())
    broken = degenerate[["rep4_over_50", "suffix_loop"]].max(axis=1) / degenerate.n.clip(lower=1)
    unsound = [f"{name} ({share:.0%})" for name, share in broken[broken > BROKEN].items()]
    said = (
        [f"**Not sound:** more than {BROKEN:.0%} degenerate answers in {', '.join(unsound)}."]
        if unsound
        else []
    )
    said += [f"Of {degenerate.n.sum()} answers {bad} never ended and {loops} ended in a loop."]
    told = {tailored: changed(run, tailored, "line"), "dpo-none": changed(run, "dpo-none", "first_person")}
    if not all(told.values()):
        return listed(said)
    for arm, found in told.items():
        said.append(f"{arm}: another gold persona, another answer in "
                    f"{share(sum(found.values()), len(found))} prompts.")  # fmt: skip
    pairs = [told[tailored][i] - told["dpo-none"][i] for i in told[tailored] if i in told["dpo-none"]]
    interval = bootstrap_mean([pairs])
    words = ("less often than", "not clearly more or less often than", "more often than")
    verdict = against(interval.low, interval.high, 0, words)
    said.append(f"So {tailored} changes its answer {verdict} dpo-none does ({span(interval)} prompts). "
                "Whether for the better is for the judge to say.")  # fmt: skip
    return listed(said)


def calibration(table: pd.DataFrame) -> str:
    """Say, per judge and test with a known answer, how often it is right, and whether its verdicts decide."""
    said = []
    for _, row in table.iterrows():
        right = between(row.accuracy, row.accuracy_low, row.accuracy_high)
        word = "decides" if row.decides else f"decides nothing (its lower bound is not above {BELIEVED})"
        said.append(f"Judge {row.judge}, {row.test}: right in {right} of {row.n:.0f}; it {word}.")
    return listed(said)


def net_of(row: Any, letter: str) -> tuple[str, float, float]:
    """Return a net win rate in words and its 95 % interval, from the Wilson interval of W / (W + L)."""
    wins, decided = row[f"{letter}_W"], row[f"{letter}_W"] + row[f"{letter}_L"]
    low, high = (2 * end - 1 for end in wilson_interval(int(wins), int(decided)))
    if not decided:
        return f"nothing decided of {row.n:.0f}", low, high
    return (
        f"net {row[f'{letter}_net']:+.2f} [{low:+.2f}, {high:+.2f}], {decided:.0f} of {row.n:.0f} decided",
        low,
        high,
    )


def judging(table: pd.DataFrame) -> str:
    """Say, per main comparison, who suits the persona better and who writes the better answers."""
    said = []
    words = {"P": ("suits the persona worse", "suits the persona neither clearly better nor worse",
                   "suits the persona better"),
             "Q": ("worse", "neither clearly better nor worse", "better")}  # fmt: skip
    for _, row in table[(table.kind == "main") & (table.n > 0)].iterrows():
        (p, *p_ends), (q, *q_ends) = net_of(row, "P"), net_of(row, "Q")
        said.append(f"{row.label}: PT-DPO {against(*p_ends, 0, words['P'])} ({p}); "
                    f"its quality is {against(*q_ends, 0, words['Q'])} ({q}).")  # fmt: skip
    return listed(said)
