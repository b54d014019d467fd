"""Judging in both orders (paper section 5): an oracle or a language model behind one interface.

A judge is a function (comparisons, rubric) -> judgments. Every comparison is judged as A/B and as B/A,
both judgments are stored, and a win needs both. An answer that cannot be read stays unparsed. A profile
may name a second judge; its judgments have a folder of their own, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from persona_lib.config import Run
from persona_lib.data import everyday
from persona_lib.evaluation.backwards import BackwardsJudge
from persona_lib.evaluation.backwards import judge_key as backwards_key
from persona_lib.evaluation.matchups import Matchup, matchups
from persona_lib.evaluation.quality import quality
from persona_lib.evaluation.reader import fit
from persona_lib.evaluation.tailor import eval_rows, generation_folder, persona_of, read_generations
from persona_lib.models.generators import load_generator, role_key
from persona_lib.models.tokens import chat_text
from persona_lib.profiles import ConfigError, Profile, judge_settings, near_names
from persona_lib.prompts import judge_prompt
from persona_lib.records import Generation, Judgment, PairwiseComparison, Rubric, RunSpec
from persona_lib.stats.metrics import verdict_of
from persona_lib.store import (
    VERSIONS,
    append_rows,
    clear_unless,
    content_hash,
    file_hash,
    is_done,
    iter_rows,
    mark_done,
    read_json,
    repair_rows,
    write_json,
    write_rows,
)

Judge = Callable[[Sequence[PairwiseComparison], Rubric], list[Judgment]]
RUBRICS: tuple[Rubric, ...] = ("personalization", "quality")
ORDERS = ("AB", "BA")  # the tested response as A, as B
CHUNK = 256  # comparisons judged between two writes
FOLDERS = {"judge": "judgments", "second_judge": "second_judgments"}


def oracle_judge() -> Judge:
    """Return the judge that reads answers to ``everyday`` by rule; it can call a tie.

    What a persona wants is known from the data (``everyday.wishes``). A persona that the data do not hold is
    a tie.
    """
    wishes = everyday.wishes()

    def judge(comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> list[Judgment]:
        judgments = []
        for c in comparisons:
            scores = [
                fit(wishes.get(c.persona or "", ()), text)
                if rubric == "personalization"
                else quality(c.prompt, text)
                for text in (c.response_a, c.response_b)
            ]
            winner = None if scores[0] == scores[1] else "A" if scores[0] > scores[1] else "B"
            judgments.append(
                Judgment(c.id, "oracle", rubric, winner, winner is None, f"{scores[0]:g} : {scores[1]:g}")
            )
        return judgments

    return judge


def parse_winner(text: str) -> str | None:
    """Read "A" or "B" at the start of a judge's answer; None if it says neither."""
    word = text.strip().lstrip("*([").split(maxsplit=1)[:1]
    return next((letter for letter in ("A", "B") if word and word[0].rstrip(".):]*,") == letter), None)


def rendered(c: PairwiseComparison, rubric: Rubric) -> str:
    """Return the prompt of a comparison of two responses."""
    return judge_prompt(rubric, c.prompt, c.persona, c.response_a, c.response_b)


def lm_judge(
    generator: Any,
    max_new_tokens: int = 4,
    asked: Callable[[str], str] = str,
    render: Callable[[PairwiseComparison, Rubric], str] = rendered,
) -> Judge:
    """Return a judge that asks a text generator, greedily, for "A" or "B".

    ``render`` writes the prompt of a comparison, ``asked`` puts it into a chat model's format.
    """

    def judge(comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> list[Judgment]:
        prompts = [asked(render(c, rubric)) for c in comparisons]
        answers = dict(generator.generate(prompts, max_new_tokens=max_new_tokens, stop=("\n",)))
        return [
            Judgment(c.id, generator.name, rubric, parse_winner(answers[n].text), feedback=answers[n].text)
            for n, c in enumerate(comparisons)
        ]

    return judge


def asked_of(generator: Any, kind: str) -> Callable[[str], str]:
    """Return what puts a prompt into a generator's chat format; ``str`` where it is served or has none."""
    tokenizer = getattr(generator, "tokenizer", None)
    chat = kind == "chat" and tokenizer and tokenizer.chat_template
    return partial(chat_text, tokenizer) if chat else str


def model_judge(run: Run, role: str = "judge") -> Judge:
    """Return ``<role>_model`` as a judge: a served language model, one of the hub, or the run's own base."""
    generator = load_generator(run, role, getattr(run.profile, f"{role}_batch_size"))
    _, url, kind, form, decoding, max_new_tokens = judge_settings(run.profile, role)
    if form == "prometheus":
        from persona_lib.evaluation.prometheus import prometheus_judge, read_texts

        texts = read_texts(run.profile.judge_texts, run.dataset)
        return prometheus_judge(
            generator, max_new_tokens, decoding, bool(url) and kind == "chat", texts=texts
        )
    asked = asked_of(generator, kind)
    if form == "letter":
        return lm_judge(generator, max_new_tokens, asked)
    from persona_lib.evaluation.chat_judge import chat_judge

    return chat_judge(generator, max_new_tokens, asked)


# a profile's ``judge`` -> a function that returns the judge of a run; "none" is no judge
JUDGES: dict[str, Callable[[Run], Judge]] = {
    "oracle": lambda run: oracle_judge(),
    "lm": model_judge,
    "backwards": BackwardsJudge,
}


def persona_judge_of(profile: Profile) -> str:
    """Return who judges inferred personas: ``persona_judge``, or the judge of answers where it is empty."""
    return profile.persona_judge or profile.judge


def load_judge(run: Run, name: str = "") -> Judge:
    """Return the judge of a run's answers, or the one of this name; ValueError if it has none."""
    name = name or run.profile.judge
    if name == "none":
        raise ValueError(
            f"profile {run.profile.name} has judge=none: nothing can be judged; see persona_swap"
        )
    if name not in JUDGES:
        raise ConfigError(
            f"profile {run.profile.name}: judge={name!r}: {near_names(name, [*JUDGES, 'none'])}"
        )
    return JUDGES[name](run)


def swap_order(c: PairwiseComparison) -> PairwiseComparison:
    """Return the comparison with A and B exchanged."""
    return PairwiseComparison(c.id, c.prompt, c.persona, c.response_b, c.response_a)


def judge_both(
    judge: Judge, comparisons: Sequence[PairwiseComparison], rubric: Rubric
) -> list[tuple[Judgment, Judgment]]:
    """Judge every comparison in both orders: (tested response as A, tested response as B)."""
    first = judge(comparisons, rubric)
    second = judge([swap_order(c) for c in comparisons], rubric)
    return list(zip(first, second, strict=True))


def compare(run: Run, matchup: Matchup) -> list[PairwiseComparison]:
    """Return the comparisons of a matchup: rows that both runs answered and that have the judged persona."""
    tested, base = read_generations(run, matchup.test), read_generations(run, matchup.base)
    found = []
    for row in eval_rows(run):
        persona = persona_of(row, matchup.judge_persona)
        if row.id in tested and row.id in base and persona:
            texts = tested[row.id].completion, base[row.id].completion
            found.append(PairwiseComparison(row.id, row.prompt, persona, *texts))
    return found


def judgment_folder(run: Run, matchup: Matchup, role: str = "judge") -> Path:
    """Folder of a matchup's judgments by the first or the second judge."""
    return run.folder / FOLDERS[role] / matchup.slug


def judgment_key(run: Run, matchup: Matchup, role: str = "judge") -> str:
    """Hash of all that a matchup's judgments depend on."""
    done = [
        read_json(generation_folder(run, spec) / "done.json")["key"] for spec in (matchup.test, matchup.base)
    ]
    return content_hash(
        VERSIONS["judging"],
        matchup,
        done,
        judge_key(run, role),
    )


def judge_key(run: Run, role: str = "judge") -> list[Any]:
    """Return all that decides what a judge says of given texts."""
    profile = run.profile
    if role == "judge" and profile.judge == "backwards":
        return [profile.judge, backwards_key(run)]
    if role == "judge" and profile.judge != "lm":
        return [profile.judge]
    how = [profile.compute_dtype, profile.engine]
    if profile.judge_texts:
        how.append(file_hash(Path(profile.judge_texts).expanduser()))
    return [*judge_settings(profile, role), *how, role_key(run, role)]


def judge_matchup(run: Run, matchup: Matchup, judge: Judge, role: str = "judge") -> Path:
    """Judge a matchup under both rubrics and orders; writes <rubric>.jsonl, verdicts.jsonl, done.json."""
    folder, key = judgment_folder(run, matchup, role), judgment_key(run, matchup, role)
    return judge_comparisons(judge, lambda: compare(run, matchup), folder, key, matchup)


def judge_comparisons(
    judge: Judge, comparisons: Callable[[], list[PairwiseComparison]], folder: Path, key: str, what: Any
) -> Path:
    """Judge comparisons under both rubrics and orders into a folder, unless it was finished for this key.

    Judgments are appended a chunk at a time; a rerun goes on after the last whole pair of orders.
    """
    if is_done(folder, key):
        return folder
    clear_unless(folder, key)
    write_json(folder / "spec.json", what)
    found = comparisons()
    verdicts: dict[str, dict[str, Any]] = {c.id: {"id": c.id} for c in found}
    judges: set[str] = set()
    for rubric in RUBRICS:
        for pair in judge_rubric(judge, found, rubric, folder / f"{rubric}.jsonl"):
            verdicts[pair[0].id][rubric] = verdict_of(*pair)
            judges.add(pair[0].judge)
    write_rows(folder / "verdicts.jsonl", verdicts.values())
    mark_done(folder, key, n=len(verdicts), judge=sorted(judges))
    return folder


def judge_rubric(
    judge: Judge, comparisons: Sequence[PairwiseComparison], rubric: Rubric, path: Path
) -> list[tuple[Judgment, Judgment]]:
    """Return the judgments (A/B, B/A) of all comparisons; those in the file already are not made again."""
    repair_rows(path)
    known: dict[str, dict[str, Judgment]] = {}
    for row in iter_rows(path) if path.exists() else ():
        order = row.pop("order")
        known.setdefault(row["id"], {})[order] = Judgment(**row)
    missing = [c for c in comparisons if len(known.get(c.id, {})) < 2]
    for start in range(0, len(missing), CHUNK):
        pairs = judge_both(judge, missing[start : start + CHUNK], rubric)
        known |= {pair[0].id: dict(zip(ORDERS, pair, strict=True)) for pair in pairs}
        rows = [{"order": o, **vars(j)} for pair in pairs for o, j in zip(ORDERS, pair, strict=True)]
        append_rows(path, rows)
    return [(known[c.id]["AB"], known[c.id]["BA"]) for c in comparisons]


def judge_all(run: Run) -> list[Path]:
    """Judge every matchup of the run that is not finished yet; returns their folders."""
    judge = load_judge(run)
    return [judge_matchup(run, matchup, judge) for matchup in matchups(run)]


def judge_second(run: Run) -> list[Path]:
    """Let the second judge, where the profile names one, judge the kinds of comparisons that are its own."""
    if not run.profile.second_judge_model:
        return []
    judge = model_judge(run, "second_judge")
    return [judge_matchup(run, m, judge, "second_judge") for m in judged_matchups(run, "second_judge")]


def judged_matchups(run: Run, role: str = "judge") -> list[Matchup]:
    """Return the matchups that a judge is asked about."""
    every = matchups(run)
    if role == "judge":
        return every
    return [m for m in every if m.kind in run.profile.second_judge_matchups]


def read_verdicts(run: Run, matchup: Matchup, role: str = "judge") -> list[dict[str, str]]:
    """Return a matchup's verdicts: rows {"id", "personalization", "quality"}."""
    return list(iter_rows(judgment_folder(run, matchup, role) / "verdicts.jsonl"))


def oracle_scores(run: Run, spec: RunSpec, judge_persona: str) -> list[dict[str, Any]]:
    """Return the oracle's scores of a run's answers: fit to a persona, and quality."""
    wishes = everyday.wishes()
    answers: dict[str, Generation] = read_generations(run, spec)
    return [
        {
            "id": row.id,
            "fit": fit(wishes.get(persona, ()), answers[row.id].completion),
            "quality": quality(row.prompt, answers[row.id].completion),
        }
        for row in eval_rows(run)
        if row.id in answers and (persona := persona_of(row, judge_persona))
    ]
