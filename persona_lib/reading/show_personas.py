"""For the notebooks on persona inference: the prompt, statuses, examples, and tables of persona quality."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from persona_lib.config import Run
from persona_lib.data.preference import has_personas, inference_pairs, inference_split
from persona_lib.evaluation.judge import persona_judge_of
from persona_lib.evaluation.persona_quality import (
    accuracy_verdicts,
    persona_texts,
    preference_verdicts,
    read_personas,
)
from persona_lib.evaluation.personas import SIDES, inference_shots, sides_of
from persona_lib.models.surface import NAME as SURFACE
from persona_lib.prompts import inference_prompt
from persona_lib.records import Side
from persona_lib.stats.bootstrap import accuracy_array, bootstrap_mean
from persona_lib.stats.metrics import PersonaAccuracy, WinRate
from persona_lib.stats.saliency import WordSaliency, word_saliency
from persona_lib.store import read_json

if TYPE_CHECKING:
    import pandas as pd

STATUSES = ("ok", "empty", "refusal", "too_long", "malformed", "loop")


def inferred_splits(run: Run) -> tuple[str, ...]:
    """Return the splits whose personas are inferred; the last one is what they are scored on."""
    scored = inference_split(run.profile, run.dataset)
    return (scored,) if has_personas(run) else ("train", scored)


def inference_prompt_text(run: Run, side: Side = "chosen", number: int = 0) -> str:
    """Return the whole few-shot prompt for one evaluation pair and side; says so where none is prompted."""
    if run.profile.generator_model == SURFACE:
        return "No language model is prompted: personas are written by rule from the two responses."
    pair = inference_pairs(run)[number]
    return inference_prompt(inference_shots(run.profile), pair.prompt, *sides_of(pair, side))


def status_table(run: Run) -> pd.DataFrame:
    """Count, per split and side, how the answers were read."""
    import pandas as pd

    counts = read_json(run.folder / "personas" / "done.json")["statuses"]
    rows = [
        {"personas of": name, "asked": sum(found.values())} | {s: found.get(s, 0) for s in STATUSES}
        for name, found in counts.items()
    ]
    return pd.DataFrame(rows).set_index("personas of")


def persona_examples(run: Run, n: int = 5) -> str:
    """Return evaluation pairs with both inferred personas as text for a reader."""
    chosen, rejected = (read_personas(run, inferred_splits(run)[-1], side) for side in SIDES)
    parts = [
        f"PROMPT    {pair.prompt}\nCHOSEN    {pair.chosen}\nREJECTED  {pair.rejected}\n"
        f"   P_C    {chosen[pair.id].persona}\n   P_R    {rejected[pair.id].persona}"
        for pair in inference_pairs(run)[:n]
    ]
    return "\n\n".join(parts)


def accuracy_items(run: Run) -> pd.DataFrame:
    """Judge every inferred persona; one row per pair and side with its verdict (None: no persona).

    Empty where nobody judges personas.
    """
    import pandas as pd

    rows = [
        (name, split, side, verdict, contradicted)
        for split in (inferred_splits(run) if persona_judge_of(run.profile) != "none" else ())
        for side in SIDES
        for name, verdict, contradicted in accuracy_verdicts(run, split, side)
    ]
    return pd.DataFrame(rows, columns=["id", "split", "side", "verdict", "contradicted"])


def accuracy_table(items: pd.DataFrame, bootstrap_samples: int) -> pd.DataFrame:
    """Count the verdicts per split and side; accuracy with a 95 % bootstrap interval over pairs.

    Where a judge contradicted itself, "contradicted" counts the ties that come from that.
    """
    import pandas as pd

    rows = []
    for (split, side), part in items.groupby(["split", "side"], sort=False):
        verdicts = [verdict if isinstance(verdict, str) else None for verdict in part.verdict]
        counts = PersonaAccuracy.from_verdicts(verdicts)
        interval = bootstrap_mean([accuracy_array(verdicts)], bootstrap_samples)
        rows.append(
            {"split": split, "side": side, "n": counts.n}
            | {name.removeprefix("n_"): value for name, value in dataclasses.asdict(counts).items()}
            | ({"contradicted": int(part.contradicted.sum())} if items.contradicted.any() else {})
            | {
                "accuracy": counts.accuracy,
                "low": interval.low,
                "high": interval.high,
                "strict": counts.strict,
            }
        )
    return pd.DataFrame(rows).set_index(["split", "side"]) if rows else pd.DataFrame()


def preference_items(run: Run) -> pd.DataFrame:
    """Return, per evaluation pair, which of its two personas is the more plausible user ("win": P_C)."""
    import pandas as pd

    return pd.DataFrame(preference_verdicts(run, inferred_splits(run)[-1]), columns=["id", "verdict"])


def preference_table(items: pd.DataFrame) -> pd.DataFrame:
    """Count the pairs in which P_C, neither or P_R is the more plausible user."""
    import pandas as pd

    counts = WinRate.from_verdicts(verdict for verdict in items.verdict if isinstance(verdict, str))
    row = {
        "n": len(items),
        "P_C": counts.n_wins,
        "neither": counts.n_ties,
        "P_R": counts.n_losses,
        "unparsed": counts.n_unparsed,
        "without a persona": len(items) - counts.n,
        "net for P_C": float("nan") if counts.net is None else counts.net,
    }
    return pd.DataFrame([row])


def word_table(run: Run, min_count: int = 10) -> pd.DataFrame:
    """Rank the words of the evaluation personas from the most chosen to the most rejected (Table 1)."""
    import pandas as pd

    rows = word_saliency(*persona_texts(run, inferred_splits(run)[-1]), min_count=min_count)
    columns = [field.name for field in dataclasses.fields(WordSaliency)]
    return pd.DataFrame([dataclasses.asdict(row) for row in rows], columns=columns).set_index("word")


def both_ends(words: pd.DataFrame, n: int = 10) -> pd.DataFrame:
    """Return the most chosen words beside the most rejected ones, strongest first (by log-odds z)."""
    import pandas as pd

    ordered = words.sort_values("z", ascending=False, kind="stable").reset_index()
    sides = {"chosen": ordered[ordered.z > 0].head(n), "rejected": ordered[ordered.z < 0].iloc[::-1].head(n)}
    shown = {side: part[["word", "share_chosen", "z"]].reset_index(drop=True) for side, part in sides.items()}
    return pd.concat(shown, axis=1)
