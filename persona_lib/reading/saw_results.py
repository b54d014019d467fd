"""What we saw in notebooks 04 and 11 to 16, said from their tables; see ``reading.saw``."""

from __future__ import annotations

from persona_lib.records import SIDES

from typing import TYPE_CHECKING, Any

import numpy as np

from persona_lib.reading.saw import against, between, listed, share, span
from persona_lib.stats.bootstrap import accuracy_array, bootstrap_mean
from persona_lib.stats.significance import wilson_interval
from persona_lib.tables.cells import persona_shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

MORE = ("lower", "not clearly different", "higher")
ABOUT_ZERO = ("below 0", "not clearly different from 0", "above 0")


def persona_quality(items: pd.DataFrame, preference: pd.DataFrame, split: str) -> str:
    """Say how accurate each side's personas of a split are, and whose personas are of likelier users."""
    if items.empty:
        return listed(["Nobody judged the personas: the profile has no judge of them."])
    part = items[items.split == split].astype({"verdict": object})
    right = {
        side: dict(zip(found.id, accuracy_array(found.verdict), strict=True))
        for side, found in part.groupby("side")
    }
    said = []
    for side in SIDES:
        interval = bootstrap_mean([np.array(list(right[side].values()))])
        if interval.estimate is not None and interval.low is not None and interval.high is not None:
            said.append(f"{side} side: accuracy {between(interval.estimate, interval.low, interval.high)}, "
                        f"n = {interval.n_items}, {against(interval.low, interval.high, 0.5)}.")  # fmt: skip
    both = sorted(right["chosen"].keys() & right["rejected"].keys())
    gap = bootstrap_mean([np.array([right["chosen"][i] - right["rejected"][i] for i in both])])
    if gap.low is not None and gap.high is not None:
        said.append(f"Chosen minus rejected, by pair: {span(gap)}; chosen personas' accuracy is "
                    f"{against(gap.low, gap.high, 0, MORE)}.")  # fmt: skip
    wins, losses = (int(preference[name].sum()) for name in ("P_C", "P_R"))
    if wins + losses:
        verdict = against(*wilson_interval(wins, wins + losses), 0.5)
        said.append(f"The persona of the chosen response is the likelier user in "
                    f"{share(wins, wins + losses)} decided pairs, {verdict}.")  # fmt: skip
    return listed(said)


def swap(table: pd.DataFrame, families: Sequence[str] = ("gold", "retrieved", "shuffled")) -> str:
    """Say, per policy after DPO and kind of persona, whether its preference follows the persona's side."""
    kept = table[(table.measure == "policy") & table.persona.isin(families) & table.d_positive.notna()]
    said = []
    for _, row in kept[kept.arm.str.startswith("dpo-")].iterrows():
        told = "" if row.persona_format == "line" else ", told in the first person"
        verdict = against(row.d_positive_low, row.d_positive_high, 0.5)
        found = between(row.d_positive, row.d_positive_low, row.d_positive_high)
        said.append(
            f"{row.arm}{told}, {row.persona} personas: D > 0 in {found} of {row.n:.0f} rows, {verdict}."
        )
    return listed(said)


def aims(primary: pd.DataFrame) -> str:
    """Say how many aims are met, and name every aim that is not; a run on own data may have none."""
    if primary.empty:
        return "- No aims were set beforehand for this profile's data."
    met, unmet, missing = (int((primary.met == word).sum()) for word in ("yes", "no", "not run"))
    said = [f"Of {met + unmet} aims that this run can decide, {met} are met and {unmet} are not; "
            f"{missing} need arms or data that it lacks."]  # fmt: skip
    for _, row in primary[primary.met == "no"].iterrows():
        said.append(f"Not met: {row.aim}, {row['where']}: {measured(row)}; aimed at: {row.criterion}.")
    for _, row in primary[primary.met == "reported"].iterrows():
        verdict = "" if row["aim"].startswith("PT-DPO") else f", {against(row.low, row.high, 0, ABOUT_ZERO)}"
        said.append(f"Reported: {row.aim}, {row['where']}: {measured(row)}{verdict}.")
    return listed(said)


def measured(row: Any) -> str:
    """Say what was measured for an aim."""
    return f"{between(row.estimate, row.low, row.high)}, n = {row.n:.0f}"


def released_flip(table: pd.DataFrame) -> str:
    """Say, per kind of personas and policy, how often an answer's side turns with the persona, and DiD."""
    said = []
    for _, row in table.iterrows():
        flip, did = ([row[f"{name}{end}"] for end in ("", "_low", "_high")] for name in ("flip", "did"))
        said.append(
            f"{row.dataset}, {row.personas} personas, {row.arm}: flip {between(*flip, '.3f')}, "
            f"DiD {between(*did, '+.3f')}, n = {row.n:.0f}, {against(did[1], did[2], 0, ABOUT_ZERO)}."
        )
    return listed(said)


def ratings(table: pd.DataFrame) -> str:
    """Say in which questions raters put the two groups of a study apart."""
    said = []
    for _, row in table[table.group.str.contains(" - ")].iterrows():
        verdict = against(row.mean_low, row.mean_high, 0, ABOUT_ZERO)
        found = between(row["mean"], row.mean_low, row.mean_high)
        said.append(f"{row.n_raters} raters, {row.study}, {row.question}: {row.group} is {found}, {verdict}.")
    return listed(said)


def safety(pairs: pd.DataFrame) -> str:
    """Say, per comparison, who keeps fewer cautions, and whether also at equal length."""
    said = []
    for _, row in pairs.iterrows():
        names = ("difference", "difference_cut")
        whole, cut = ([row[f"{name}{end}"] for end in ("", "_low", "_high")] for name in names)
        told = "told the same persona" if row.shows == "same persona" else "told none"
        shown = persona_shown(row.eval_persona, row.persona_format)
        said.append(
            f"{row.tested} under {shown} against {row.compared} {told}: cautions kept "
            f"{between(*whole, '+.2f')}, n = {row.n:.0f}, "
            f"{against(whole[1], whole[2], 0, ABOUT_ZERO)}; at equal length {between(*cut, '+.2f')}, "
            f"{against(cut[1], cut[2], 0, ABOUT_ZERO)}."
        )
    return listed(said)
