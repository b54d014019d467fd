"""How tables of persona swaps and other judge-free measures are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persona_lib.tables.cells import CI, build, number, persona_shown, size, with_interval

if TYPE_CHECKING:
    import pandas as pd


def swap_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show persona-swap accuracy; margins of one answer alone stand beside the swap, which is what counts."""
    columns = {
        "policy": lambda row: f"{row['arm']}, {row['persona_format']}",
        "measure": lambda row: row["measure"],
        "personas": lambda row: row["persona"],
        f"share D > 0 {CI}": lambda row: with_interval(row, "d_positive", 3),
        f"flip {CI}": lambda row: with_interval(row, "flip", 3),
        "Acc_C": lambda row: number(row["acc_chosen"], 3),
        "Acc_R": lambda row: number(row["acc_rejected"], 3),
        "n": size,
    }
    return build(table, columns)


def swap_length_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show share D > 0 by which response is longer, policy log-probabilities."""
    columns = {
        "policy": lambda row: f"{row['arm']}, {row['persona_format']}",
        "personas": lambda row: row["persona"],
        f"chosen longer {CI}": lambda row: with_interval(row, "chosen_longer", 3),
        f"rejected longer {CI}": lambda row: with_interval(row, "rejected_longer", 3),
        f"balanced {CI}": lambda row: with_interval(row, "balanced", 3),
        "n, chosen / rejected longer": lambda row: f"{row['n_chosen_longer']} / {row['n_rejected_longer']}",
    }
    return build(table[table.measure == "policy"], columns)


def swap_seed_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show persona-swap accuracy seed by seed, gold and shuffled personas, policy log-probabilities."""
    kept = table[(table.measure == "policy") & table.persona.isin(["gold", "shuffled"])]
    columns = {
        "policy": lambda row: f"{row['arm']}, {row['persona_format']}",
        "personas": lambda row: row["persona"],
        "seed": lambda row: str(row["seed"]),
        "share D > 0": lambda row: number(row["d_positive"], 3),
        "flip": lambda row: number(row["flip"], 3),
        "n": lambda row: str(row["n"]),
    }
    return build(kept, columns)


def difference_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show differences of persona-swap accuracy between two policies."""
    columns = {
        "policy": lambda row: row["tested"],
        "minus": lambda row: row["compared"],
        "measure": lambda row: row["measure"],
        "personas": lambda row: row["persona"],
        f"share D > 0 {CI}": lambda row: with_interval(row, "d_positive", 3, True),
        f"flip {CI}": lambda row: with_interval(row, "flip", 3, True),
        "n": size,
    }
    return build(table, columns)


def flip_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show flip and difference in differences of generated answers."""
    columns = {
        "policy": lambda row: (
            f"{row['arm']}, {row['persona_format']}" if "persona_format" in row else row["arm"]
        ),
        "personas": lambda row: row["persona"] if "persona" in row else row["personas"],
        f"flip {CI}": lambda row: with_interval(row, "flip", 3),
        f"DiD {CI}": lambda row: with_interval(row, "did", 3, True),
        f"share DiD > 0 {CI}": lambda row: with_interval(row, "did_positive", 3),
        "n": size,
    }
    return build(table, columns)


def noise_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show leakage and format noise of answers, in per cent of the answers."""

    def percent(row: Any, *names: str) -> str:
        return " / ".join("" if row[name] is None else number(100 * row[name], 1) for name in names)

    columns = {
        "policy": lambda row: row["arm"],
        "shown persona": lambda row: persona_shown(row["eval_persona"], row["persona_format"]),
        "copies the persona / another's, %": lambda row: percent(row, "copies_persona", "copies_other"),
        "names a persona, %": lambda row: percent(row, "names_persona"),
        "role at the start / inside, %": lambda row: percent(row, "role_start", "role_inside"),
        "lists / template tokens, %": lambda row: percent(row, "list", "template"),
        "no end / loops, %": lambda row: percent(row, "endless", "repeats"),
        "words: median, mean": lambda row: f"{row['words_median']:.0f}, {row['words_mean']:.1f}",
        "n": size,
    }
    return build(table, columns)


def steering_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show how far personas steer length."""
    columns = {
        "policy": lambda row: (
            row["arm"] + (", first person" if row["persona_format"] == "first_person" else "")
        ),
        "personas": lambda row: row["persona"],
        f"Spearman's rho {CI}": lambda row: with_interval(row, "rho", 2, True),
        "n": size,
    }
    return build(table, columns)


def released_counts_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show what of the released answers is no answer, by file, with lengths in words."""
    columns = {
        "policy": lambda row: row["arm"],
        "shown persona": lambda row: row["eval_persona"],
        "no end": lambda row: str(row["no_eos"]),
        "repeated 4-grams > .2 / > .5": lambda row: f"{row['rep4_over_20']} / {row['rep4_over_50']}",
        "loop at the end": lambda row: str(row["suffix_loop"]),
        "words: median, mean": lambda row: f"{row['words_median']:.0f}, {row['words_mean']:.1f}",
        "n": size,
    }
    return build(table, columns)


def released_kept_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show how many pairs of released answers remain when broken ones are left out on both sides."""
    kept = ("kept_eos", "kept_rep4_50", "kept_rep4_20")
    columns = {
        "personas": lambda row: row["eval_persona"],
        "pairs kept: both end / repeat <= .5 / <= .2": lambda row: " / ".join(
            str(row[name]) for name in kept
        ),
        "only PT-DPO / only DPO+P never ends": lambda row: (
            f"{row['only_pt_endless']} / {row['only_dpo_endless']}"
        ),
        "words, DPO+P over PT-DPO": lambda row: number(row["length_ratio"]),
        "n": size,
    }
    return build(table, columns)


def released_lengths_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show mean words under both personas beside those of the data, and how far personas steer length."""
    sides = (("words_under_chosen", "words_under_rejected"), ("words_chosen", "words_rejected"))
    columns = {
        "policy": lambda row: row["arm"],
        "personas": lambda row: row["personas"],
        "mean words under P_C / P_R": lambda row: " / ".join(number(row[name], 1) for name in sides[0]),
        "of the chosen / rejected responses": lambda row: " / ".join(
            number(row[name], 1) for name in sides[1]
        ),
        f"Spearman's rho {CI}": lambda row: with_interval(row, "rho", 3, True),
        "n": size,
    }
    return build(table, columns)


def reward_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show accuracy of policies as reward models, by persona and category."""
    columns = {
        "policy": lambda row: (
            row["arm"] + (", first person" if row["persona_format"] == "first_person" else "")
        ),
        "measure": lambda row: row["measure"],
        "personas": lambda row: row["persona"],
        "category": lambda row: row["category"],
        f"accuracy {CI}": lambda row: with_interval(row, "accuracy"),
        "chosen under P_C / rejected under P_R": lambda row: " / ".join(
            filter(None, (number(row["acc_chosen"]), number(row["acc_rejected"])))
        ),
        "n": size,
    }
    return build(table, columns)
