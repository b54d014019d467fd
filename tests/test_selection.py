"""The rule that picks training settings, checked on rows made by hand."""

from persona_lib import studies
from persona_lib.settings import load_profile


def row(arm, seed, rate, fit, quality, sd=1.0, unfinished=0.0):
    sides = {"fit_chosen": fit, "fit_rejected": fit}
    return {"method": "sft", "arm": arm, "seed": seed, "sft_learning_rate": rate, **sides} | {
        "quality": quality,
        "quality_sd": sd,
        "unfinished": unfinished,
        "n": 10,
    }


RATES = [*(candidate["sft_learning_rate"] for candidate in studies.CANDIDATES["sft"]), 1.0]


def test_candidates_are_averaged_over_seeds_and_unfinished_ones_left_out():
    rows = [row("none", 106, RATES[0], 0.2, 4.0, sd=1.0), row("none", 107, RATES[0], 0.4, 5.0, sd=7.0)]
    (pooled,) = studies.pool_seeds([*rows, row("none", 106, RATES[1], 9.0, 9.0)], "sft")
    assert round(pooled["fit_chosen"], 9) == 0.3 and pooled["quality"] == 4.5
    assert pooled["quality_sd"] == 5.0  # root of the mean of 1 and 49
    assert pooled["n"] == 20 and pooled["seeds"] == "106 107"


def test_plain_arm_gives_up_at_most_a_tenth_of_a_deviation_of_quality_for_fit():
    best = row("none", 106, RATES[0], 0.1, 5.0)
    near, far = row("none", 106, RATES[1], 0.2, 4.91), row("none", 106, RATES[2], 0.9, 4.89)
    assert studies.pick([best, near, far])["fit_chosen"] == 0.2


def test_pt_must_keep_the_quality_of_what_the_plain_arm_picked():
    plain = row("none", 106, RATES[0], 0.1, 5.0)
    good, bad = row("both", 106, RATES[1], 0.5, 4.95), row("both", 106, RATES[2], 0.9, 4.8)
    picks = studies.pick_both([plain, good, bad])
    assert picks["none"] is plain and picks["both"] is good


def test_pt_takes_the_best_quality_if_no_candidate_keeps_up():
    plain = row("none", 106, RATES[0], 0.1, 6.0)
    better, worse = row("both", 106, RATES[1], 0.5, 4.9), row("both", 106, RATES[2], 0.9, 4.8)
    assert studies.pick_both([plain, better, worse])["both"] is better


def test_a_candidate_whose_answers_do_not_end_is_out_whatever_its_fit():
    ends, near = row("both", 106, RATES[0], 0.1, 5.0), row("both", 106, RATES[1], 0.2, 5.0, unfinished=0.05)
    never = row("both", 106, RATES[2], 0.9, 5.0, unfinished=0.06)
    assert studies.pick([ends, near, never]) is near


def test_a_candidate_sets_its_arms_own_fields_and_tuning_reads_validation_only():
    profile = studies.tuning_profile(load_profile("everyday"))
    assert profile.eval_split == "validation"
    plain = studies.with_candidate(profile, "none", {"sft_learning_rate": 0.5})
    tailored = studies.with_candidate(profile, "chosen", {"sft_learning_rate": 0.5})
    assert plain.plain_sft_learning_rate == 0.5 and plain.sft_learning_rate == profile.sft_learning_rate
    assert tailored.sft_learning_rate == 0.5
    assert tailored.plain_sft_learning_rate == profile.plain_sft_learning_rate


def test_tuning_seeds_are_no_result_seeds():
    assert min(studies.SEEDS) >= 100
