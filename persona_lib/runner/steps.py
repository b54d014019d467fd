"""The table of steps: which notebooks there are, what each reads, and how long it takes.

``STEPS`` is the pipeline. A step runs once per data set and seed ("run") or
once per profile ("profile"). ``fields`` are patterns of profile fields that the step
reads: only they make it stale. Naming a field too many costs seconds (the library's own
``done.json`` keys keep finished work); naming one too few would keep a wrong result.

Minutes of the paper profile are estimates for one large GPU, computed as ``runner.cost`` does: what the
arithmetic and the memory traffic need at least, times four for what a framework adds. Those of
everyday are expectations for two cores. A plan prefers what this machine has measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Step:
    """One numbered notebook.

    ``versions`` names the steps of ``store.VERSIONS`` whose code it calls; without them, every change of
    the library makes it run again (seconds, where only tables are made). ``minutes`` are expected per task
    and profile, on two cores or one GPU; a plan replaces them by what this machine measured. Those of
    ``paper`` are guesses.
    """

    title: str
    per: Literal["run", "profile"] = "run"
    inputs: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    minutes: dict[str, float] = field(default_factory=dict)


DATA = (
    "data_dir",
    "data_mapping",
    "strip_roles",
    "pair_limit",
    "majority_share",
)
BASE = ("base_model", "base_revision")
TRAINING = (
    "methods",
    "train_limit",
    "val_limit",
    "train_personas",
    "quantization",
    "compute_dtype",
    "merge_adapters",
    "lora_*",
    "max_length",
    "completion_only_loss",
    "sft_*",
    "dpo_*",
    "plain_*",
    "lr_scheduler",
    "warmup_share",
    "base_model",
    "base_revision",
)
MODEL = ("base_model", "base_revision", "compute_dtype", "quantization", "engine")
INFERENCE = (
    *DATA,
    *MODEL,
    "generator_*",
    "pi_*",
    "eval_split",
    "eval_limit",
    "retriever*",
)  # which rows need personas
PROMPTING = ("few_shot_examples",)
GENERATION = (
    *TRAINING,
    *PROMPTING,
    "engine",
    "gen_*",
    "eval_split",
    "eval_limit",
    "eval_personas",
    "controls",
)
JUDGING = (
    *GENERATION,
    *DATA,
    "judge*",
    "persona_judge",
    "backwards_*",
    "second_judge_*",
    "bootstrap_samples",
)

STEPS: dict[str, Step] = {
    "01_preference_data": Step(
        "Preference pairs, split by prompt",
        versions=("pairs",),
        fields=(*DATA, "near_duplicate_threshold"),
        minutes={"smoke": 0.1, "everyday": 0.1, "authors": 0.2, "paper": 1},
    ),
    "02_base_model": Step(
        "The base language model",
        versions=("training",),
        per="profile",
        fields=(*MODEL, "gen_max_new_tokens", "gen_repetition_penalty"),
        minutes={"smoke": 0.2, "everyday": 0.5, "authors": 0.5, "paper": 10},
    ),
    "03_persona_inference": Step(
        "Infer a persona for every response",
        versions=(
            "pairs",
            "personas",
        ),
        inputs=("01_preference_data", "02_base_model"),
        fields=(*INFERENCE, "train_personas"),  # the arm "inferred" needs more of them
        minutes={"smoke": 0.3, "everyday": 4.5, "paper": 20},
    ),
    "04_persona_quality": Step(
        "Persona accuracy, preference and salient words",
        versions=(
            "personas",
            "calibration",
        ),
        inputs=("01_preference_data", "02_base_model", "03_persona_inference"),
        fields=(
            *INFERENCE,
            *TRAINING,
            "judge*",
            "persona_judge",
            "backwards_*",
            "bootstrap_samples",
            *("strip_contrast", "near_duplicate_threshold", "eval_limit"),  # the rows of its calibration
        ),
        minutes={"smoke": 0.3, "everyday": 5, "paper": 55},
    ),
    "05_tailoring_data": Step(
        "Retrieve personas, build the tailoring data",
        versions=("tailoring",),
        inputs=("01_preference_data", "03_persona_inference"),
        fields=(*INFERENCE, "strip_contrast", "near_duplicate_threshold", "eval_personas", "train_personas"),
        minutes={"smoke": 0.1, "everyday": 0.1, "authors": 0.3, "paper": 1},
    ),
    "06_supervised_tailoring": Step(
        "Persona tailoring by supervised fine-tuning",
        versions=("training",),
        inputs=("02_base_model", "05_tailoring_data"),
        fields=TRAINING,
        minutes={"smoke": 0.4, "everyday": 4.5, "authors": 15, "paper": 25},
    ),
    "07_preference_tailoring": Step(
        "Persona tailoring by DPO on top of it",
        versions=("training",),
        inputs=("02_base_model", "05_tailoring_data", "06_supervised_tailoring"),
        fields=TRAINING,
        minutes={"smoke": 0.7, "everyday": 8, "authors": 30, "paper": 50},
    ),
    "08_generation": Step(
        "Answer the test prompts with every policy and persona",
        versions=("answers",),
        inputs=("02_base_model", "05_tailoring_data", "06_supervised_tailoring", "07_preference_tailoring"),
        fields=GENERATION,
        minutes={"smoke": 0.6, "everyday": 8, "authors": 10, "paper": 215},
    ),
    "09_judging": Step(
        "Judge the answers in both orders",
        versions=("judging",),
        inputs=("01_preference_data", "02_base_model", "05_tailoring_data", "08_generation"),
        fields=JUDGING,
        minutes={"smoke": 0.3, "everyday": 1, "authors": 25, "paper": 1100},
    ),
    "10_user_personas": Step(
        "Personas that users write themselves",
        versions=(
            "answers",
            "judging",
        ),
        inputs=(
            "02_base_model",
            "05_tailoring_data",
            "06_supervised_tailoring",
            "07_preference_tailoring",
            "08_generation",
            "09_judging",
        ),
        fields=(*JUDGING, "swap_batch_size"),
        minutes={"smoke": 0.2, "everyday": 0.5, "paper": 30},
    ),
    "11_persona_swap": Step(
        "Swap the persona: does the preference follow?",
        versions=("swap",),
        inputs=(
            "02_base_model",
            "05_tailoring_data",
            "06_supervised_tailoring",
            "07_preference_tailoring",
            "08_generation",
        ),
        fields=(
            *TRAINING,
            "swap_batch_size",
            "gen_expand_weights",
            "eval_split",
            "eval_limit",
            "eval_personas",
            "bootstrap_samples",
        ),
        minutes={"smoke": 0.6, "everyday": 4, "authors": 15, "paper": 20},
    ),
    "12_results": Step(
        "All results, with intervals, beside the paper's",
        per="profile",
        inputs=(
            "01_preference_data",
            "02_base_model",
            "03_persona_inference",
            "04_persona_quality",
            "05_tailoring_data",
            "06_supervised_tailoring",
            "07_preference_tailoring",
            "08_generation",
            "09_judging",
            "10_user_personas",
            "11_persona_swap",
        ),
        fields=(
            "datasets",
            "seeds",
            "bootstrap_samples",
            "eval_personas",
            "methods",
            "train_personas",
            "judge",
        ),
        minutes={"smoke": 0.2, "everyday": 0.3, "authors": 0.5, "paper": 1},
    ),
    "13_released_outputs": Step(
        "The authors' released generations, analysed again",
        per="profile",
        fields=(
            *DATA,
            "near_duplicate_threshold",
            "bootstrap_samples",
            "judge*",
            "second_judge_*",
            "eval_limit",
            "eval_personas",
            *MODEL,
        ),
        minutes={"authors": 0.5, "paper": 190},
    ),
    "14_human_ratings": Step(
        "Ratings by people: blinded sheets out, filled ones in",
        per="profile",
        inputs=("05_tailoring_data", "08_generation"),
        fields=("datasets", "seeds", "train_personas", "bootstrap_samples", "eval_*", "second_judge_*"),
        minutes={"smoke": 0.1, "everyday": 0.2, "authors": 0.2, "paper": 0.3},
    ),
    "15_safety": Step(
        "Safety by persona: which answers keep a caution",
        per="profile",
        inputs=("05_tailoring_data", "08_generation"),
        fields=("datasets", "seeds", "data_dir", "bootstrap_samples", *GENERATION),
        minutes={"smoke": 0.2, "everyday": 0.2, "authors": 0.3, "paper": 2},
    ),
    "16_your_own_data": Step(
        "Your own preference data, step by step",
        per="profile",
        fields=(
            *INFERENCE,
            *BASE,
            *GENERATION,
            "near_duplicate_threshold",
            "strip_contrast",
            "swap_batch_size",
            "bootstrap_samples",
            "judge",
            "datasets",
        ),
        minutes={"own_smoke": 5},
    ),
}
