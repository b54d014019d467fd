"""How saved tables are shown to a reader: rounded, with intervals, counts and plain column names.

The notebook, the report and the documents use the same views. A view maps a saved table to one of text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from persona_lib.reading.views_judged import (
    agreement_view,
    beside_view,
    by_seed_view,
    filtered_view,
    judged_view,
    ladder_view,
    length_view,
    over_seeds_view,
    paper_view,
    primary_view,
    rejudged_view,
    side_view,
)
from persona_lib.reading.views_people import (
    accuracy_view,
    persona_text_view,
    preference_view,
    rating_agreement_view,
    ratings_view,
    safety_error_view,
    safety_pairs_view,
    safety_view,
    words_table_view,
    words_view,
)
from persona_lib.reading.views_swap import (
    difference_view,
    flip_view,
    noise_view,
    released_counts_view,
    released_kept_view,
    released_lengths_view,
    reward_view,
    steering_view,
    swap_length_view,
    swap_seed_view,
    swap_view,
)
from persona_lib.tables.cells import CI, number, with_interval

if TYPE_CHECKING:
    import pandas as pd


def calibration_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show how often each judge is right where the answer is known, and whether it may decide."""
    import pandas as pd

    return pd.DataFrame({
        "judge": table.judge,
        "comparisons": table.test,
        f"accuracy {CI}": [with_interval(row, "accuracy") for _, row in table.iterrows()],
        "surer half": [number(value) for value in table.at_half],
        "ties": table.ties,
        "decides": ["yes" if value else "no" for value in table.decides],
        "n": table.n,
        "seed": table.seed,
    })  # fmt: skip


def reader_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show precision and recall of the reader of answers."""
    return table.assign(**{name: table[name].map(number) for name in ("precision", "recall")})


def plain_view(table: pd.DataFrame) -> pd.DataFrame:
    """Show a table as it is, numbers to four digits."""
    return table.map(lambda v: f"{v:.4g}" if isinstance(v, float) and v == v else "" if v != v else str(v))


VIEWS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "primary": primary_view,
    "main": judged_view,
    "side_difference": side_view,
    "stage": judged_view,
    "methods": judged_view,
    "arms": judged_view,
    "controls": judged_view,
    "ladder": ladder_view,
    "main_by_seed": by_seed_view,
    "over_seeds": over_seeds_view,
    "persona_accuracy": accuracy_view,
    "calibration": calibration_view,
    "reader": reader_view,
    "persona_models": accuracy_view,
    "persona_preference": preference_view,
    "words": words_view,
    "swap": swap_view,
    "swap_differences": difference_view,
    "swap_by_seed": swap_seed_view,
    "swap_length": swap_length_view,
    "generation_flip": flip_view,
    "released_flip": flip_view,
    "released_counts": released_counts_view,
    "released_kept": released_kept_view,
    "released_lengths": released_lengths_view,
    "paper": paper_view,
    "beside": beside_view,
    "filtered": filtered_view,
    "length": length_view,
    "second_judge": judged_view,
    "judge_agreement": agreement_view,
    "released_judged": rejudged_view,
    "released_agreement": agreement_view,
    "persona_text": persona_text_view,
    "released_personas": persona_text_view,
    "released_words": words_table_view,
    "ratings": ratings_view,
    "rating_agreement": rating_agreement_view,
    "not_run": plain_view,
    "selection_sft": plain_view,
    "selection_dpo": plain_view,
    "released_safety": safety_view,
    "released_safety_pairs": safety_pairs_view,
    "released_safety_error": safety_error_view,
    "released_noise": noise_view,
    "answer_noise": noise_view,
    "length_steering": steering_view,
    "reward_accuracy": reward_view,
    "safety": safety_view,
    "safety_pairs": safety_pairs_view,
    "arms_run": plain_view,
}


def show(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return a saved table as text for readers; empty if the table is."""
    return VIEWS[name](table) if len(table) else table
