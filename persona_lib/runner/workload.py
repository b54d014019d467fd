"""How many texts of what length each step puts through which model: a plan computes times and bills from it.

Row counts are those of the authors' splits, the grid and the comparisons are the run's own; lengths are
means of ``facts/costs.json``. Only data sets that are listed there are counted. Nothing heavy is imported.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from persona_lib.config import FACTS, Run
from persona_lib.data.official_folders import DATASETS, SPLITS
from persona_lib.data.released import RELEASED
from persona_lib.evaluation.matchups import matchups
from persona_lib.evaluation.safety import SAFETY_DATASET, safety_specs
from persona_lib.evaluation.swap import swap_arms, swap_families
from persona_lib.evaluation.tailor import grid
from persona_lib.profiles import Profile
from persona_lib.prompts import guard_prompt
from persona_lib.records import RunSpec
from persona_lib.store import read_json

SWAP_SIDES = {"none": 1, "system": 1}  # families of personas that come alone; all others have two sides


@dataclass(frozen=True)
class Calls:
    """Texts that one step puts through one model, on one data set and seed.

    ``kind``: "train" (rows of all epochs), "score" (one pass) or "generate". Tokens are means per row;
    ``longest`` is how many new tokens a row may have at most.
    """

    step: str
    role: str
    kind: str
    rows: int
    prompt_tokens: float
    new_tokens: float = 0.0
    longest: int = 0
    batch: int = 1


@functools.cache
def facts() -> dict[str, Any]:
    """Return what plans are computed from: prices, cards, models, lengths, assumptions."""
    return read_json(FACTS / "costs.json")


def tokens(words: float) -> float:
    """Return the tokens of English text."""
    return words * facts()["assumed"]["tokens_per_word"]


def known_datasets(profile: Profile) -> list[str]:
    """Return the data sets of a profile whose sizes and lengths are known."""
    return [name for name in profile.datasets if name in facts()["words"]]


def split_rows(profile: Profile, dataset: str) -> dict[str, int]:
    """Return the rows of each split as a run uses them; "eval": evaluated, "train": all of training."""
    rows = dict(zip(SPLITS, DATASETS[dataset]["rows"], strict=True))
    train = sum(rows[f"{method}_{part}"] for method in ("sft", "dpo") for part in ("train", "val"))
    validation = rows["sft_val"] + rows["dpo_val"]
    evaluated = rows["test"] if profile.eval_split == "test" else validation
    limit = profile.train_limit
    used = {s: min(rows[s], limit) if limit else rows[s] for s in ("sft_train", "dpo_train")}
    return rows | used | {
        "train": train, "whole_eval": evaluated, "eval": min(evaluated, profile.eval_limit or evaluated)
    }  # fmt: skip


def calls_of(profile: Profile, dataset: str) -> list[Calls]:
    """Return the calls of all steps of a profile for one data set and one seed."""
    run = Run(profile, dataset, profile.seeds[0])
    parts = {
        "03_persona_inference": inference_calls,
        "04_persona_quality": accuracy_calls,
        "06_supervised_tailoring": sft_calls,
        "07_preference_tailoring": dpo_calls,
        "08_generation": generation_calls,
        "09_judging": judging_calls,
        "11_persona_swap": swap_calls,
        "13_released_outputs": released_calls,
        "15_safety": guard_calls,
    }
    return [calls for step, make in parts.items() if step in profile.steps for calls in make(run)]


def inferred(run: Run) -> int:
    """Return about how many personas a run infers: the trained sides, and both sides of what is evaluated."""
    rows = split_rows(run.profile, run.dataset)
    return rows["train"] * len(run.profile.pi_train_sides) + 2 * rows["whole_eval"]


def inference_calls(run: Run) -> list[Calls]:
    """Personas: shots, prompt and two responses in, one sentence out."""
    words, assumed, profile = facts()["words"][run.dataset], facts()["assumed"], run.profile
    asked = profile.pi_shots * assumed["shot_words"] + words["prompt"] + words["chosen"] + words["rejected"]
    new = min(assumed["persona_tokens"], profile.pi_max_new_tokens)
    return [Calls("03_persona_inference", "generator", "generate", inferred(run), tokens(asked), new,
                  profile.pi_max_new_tokens, profile.pi_batch_size)]  # fmt: skip


def judge_calls(run: Run, step: str, role: str, rows: int, answers: float, persona: bool) -> Calls:
    """One judge on ``rows`` prompts, each with two answers of a mean of ``answers`` words."""
    words, assumed, profile = facts()["words"][run.dataset], facts()["assumed"], run.profile
    form, most = getattr(profile, f"{role}_format"), getattr(profile, f"{role}_max_new_tokens")
    asked = assumed["judge_words"][form] + words["prompt"] + words["persona"] * persona + 2 * answers
    new, batch = min(assumed["judge_tokens"][form], most), getattr(profile, f"{role}_batch_size")
    return Calls(step, role, "generate", rows, tokens(asked), new, most, batch)


def judging_roles(profile: Profile) -> list[str]:
    """Return the judges that are language models."""
    roles = ["judge"] if profile.judge == "lm" else []
    return roles + ["second_judge"] * bool(profile.second_judge_model)


def accuracy_calls(run: Run) -> list[Calls]:
    """Persona accuracy: every inferred persona, both orders, the data's own two responses."""
    words = facts()["words"][run.dataset]
    answers = (words["chosen"] + words["rejected"]) / 2
    if (run.profile.persona_judge or run.profile.judge) != "lm":
        return []
    return [judge_calls(run, "04_persona_quality", "judge", 2 * inferred(run), answers, True)]


def arm_factor(train_persona: str) -> int:
    """Return how many rows an arm makes of one."""
    return 2 if train_persona == "both" else 1


def sft_calls(run: Run) -> list[Calls]:
    """SFT: every arm's rows in every epoch, and the validation rows once per epoch."""
    words, profile, rows = facts()["words"][run.dataset], run.profile, split_rows(run.profile, run.dataset)
    found, step = [], "06_supervised_tailoring"
    for arm in profile.train_personas if {"sft", "dpo"} & set(profile.methods) else ():
        length = tokens(words["prompt"] + words["persona"] * (arm != "none") + words["chosen"])
        n, seen = profile.sft_epochs * arm_factor(arm), profile.sft_batch_size
        found.append(Calls(step, "policy", "train", n * rows["sft_train"], length, batch=seen))
        found.append(Calls(step, "policy", "score", n * rows["sft_val"], length, batch=seen))
    return found


def dpo_calls(run: Run) -> list[Calls]:
    """DPO: two sequences per pair in every epoch, validation pairs once per epoch, the reference once."""
    words, profile, rows = facts()["words"][run.dataset], run.profile, split_rows(run.profile, run.dataset)
    found, step = [], "07_preference_tailoring"
    for arm in profile.train_personas if "dpo" in profile.methods else ():
        shown = words["prompt"] + words["persona"] * (arm != "none")
        length, batch = tokens(2 * shown + words["chosen"] + words["rejected"]), profile.dpo_batch_size
        pairs = arm_factor(arm) * sum(rows[split] for split in profile.dpo_splits)
        seen = pairs * profile.dpo_epochs
        if profile.dpo_max_steps:
            seen = min(seen, profile.dpo_max_steps * batch)
        checked = arm_factor(arm) * rows["dpo_val"]
        found.append(Calls(step, "policy", "train", seen, length, batch=batch))
        found.append(Calls(step, "policy", "score", checked * profile.dpo_epochs, length, batch=batch))
        found.append(Calls(step, "policy", "score", pairs + checked, length, batch=batch))
    return found


def generation_calls(run: Run) -> list[Calls]:
    """Answers of every cell of the grid; few-shot prompts hold their examples as well."""
    words, profile = facts()["words"][run.dataset], run.profile

    def asked(spec: RunSpec) -> float:
        shown = words["prompt"] + words["persona"] * (spec.eval_persona != "none")
        example = words["prompt"] + words["persona"] * (spec.train_persona != "none") + words["chosen"]
        return shown + (spec.method == "few_shot") * profile.few_shot_examples * example

    new, rows = tokens(words["answer"]), split_rows(profile, run.dataset)["eval"]
    new = min(new, profile.gen_max_new_tokens)
    return [Calls("08_generation", "policy", "generate", rows, tokens(asked(spec)), new,
                  profile.gen_max_new_tokens, profile.gen_batch_size) for spec in grid(run)]  # fmt: skip


def judging_calls(run: Run) -> list[Calls]:
    """Judgments: every comparison, both orders, under both rubrics."""
    words, profile = facts()["words"][run.dataset], run.profile
    rows, found = split_rows(profile, run.dataset)["eval"], []
    answers = min(words["answer"], profile.gen_max_new_tokens / facts()["assumed"]["tokens_per_word"])
    for role in judging_roles(profile):
        kinds = profile.second_judge_matchups if role == "second_judge" else None
        n = sum(kinds is None or m.kind in kinds for m in matchups(run))
        found += [
            judge_calls(run, "09_judging", role, 2 * n * rows, answers, persona) for persona in (True, False)
        ]
    return found


def released_calls(run: Run) -> list[Calls]:
    """The released answers judged again: both orders and rubrics, where both policies' files are."""
    profile = run.profile
    arms = RELEASED.get(run.dataset, {"none": (), "chosen": ()})
    pairs = len(set(arms["none"]) & set(arms["chosen"]))
    if profile.judge != "lm" or profile.judge_model == "base" or not pairs:
        return []
    test = dict(zip(SPLITS, DATASETS[run.dataset]["rows"], strict=True))["test"]
    rows, answers = min(test, profile.eval_limit or test), facts()["words"][run.dataset]["answer"]
    return [judge_calls(run, "13_released_outputs", role, 2 * pairs * rows, answers, persona)
            for role in judging_roles(profile) for persona in (True, False)]  # fmt: skip


def guard_calls(run: Run) -> list[Calls]:
    """Answers that a guard model reads: the released files of the data set and the run's own."""
    profile, words = run.profile, facts()["words"][run.dataset]
    if not profile.guard_model:
        return []
    test = dict(zip(SPLITS, DATASETS[run.dataset]["rows"], strict=True))["test"]
    rows = test * sum(map(len, RELEASED[run.dataset].values())) if run.dataset == SAFETY_DATASET else 0
    rows += (
        split_rows(profile, run.dataset)["eval"] * len(safety_specs(run)) * ("08_generation" in profile.steps)
    )
    asked = tokens(len(guard_prompt("", "").split()) + words["prompt"] + words["answer"])
    new = profile.guard_max_new_tokens
    return [Calls("15_safety", "guard", "generate", rows, asked, min(2, new), new, profile.guard_batch_size)]


def swap_calls(run: Run) -> list[Calls]:
    """Persona swaps: both responses under every persona, by the policy and, for DPO, by its reference."""
    words, profile = facts()["words"][run.dataset], run.profile
    rows, found = split_rows(profile, run.dataset)["eval"], []
    length = tokens(words["prompt"] + words["persona"] + (words["chosen"] + words["rejected"]) / 2)
    kinds = {persona.rpartition("-")[0] or persona for persona in profile.eval_personas} | {
        "stripped",
        "none",
    }
    for arm, form in swap_arms(run):
        families = [f for f in swap_families(arm, form) if f in kinds and f != "user"]
        personas = sum(SWAP_SIDES.get(family, 2) for family in families)
        n = rows * personas * 2 * (2 if arm.startswith("dpo") else 1)
        found.append(Calls("11_persona_swap", "policy", "score", n, length, batch=profile.swap_batch_size))
    return found
