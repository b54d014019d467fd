"""The judges of answers and of personas (paper section 5): rules, language models, inference backwards.

A judge is a function (comparisons, rubric) -> judgments, one per comparison; ``JUDGES`` holds them by name.
An answer that names no winner, or two, leaves the comparison without one: nothing is read into it.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from persona_lib import prompts, store
from persona_lib.data import everyday, official, preference
from persona_lib.data.everyday import fit, quality
from persona_lib.models import load, train
from persona_lib.models.served import load_generator
from persona_lib.prompts import completion_text, tailoring_prompt
from persona_lib.records import SIDES, DataError, Judgment, PairwiseComparison, Rubric, TailoringRow, Winner
from persona_lib.settings import ModelRole, Run, check_name, deciding, results_dir, results_root, set_field

Comparisons = Sequence[PairwiseComparison]
Judge = Callable[[Comparisons, Rubric], list[Judgment]]
Render = Callable[[PairwiseComparison, Rubric], str]


def both_texts(comparisons: Comparisons) -> list[tuple[PairwiseComparison, str]]:
    """Return the two texts of every comparison in turn, each with its comparison."""
    return [(c, text) for c in comparisons for text in (c.response_a, c.response_b)]


RULED = ("personalization", "quality")  # by rules and by the backwards judge; others have no winner


def scored(
    comparisons: Comparisons, judge: str, rubric: Rubric, scores: Sequence[float], form: str
) -> list[Judgment]:
    """Return the judgments of the scores of ``both_texts``, which become feedback; equal ones are a tie."""
    if rubric not in RULED:
        return [Judgment(c.id, judge, rubric, None) for c in comparisons]
    made = []
    for c, a, b in zip(comparisons, scores[::2], scores[1::2], strict=True):
        winner: Winner = None if a == b else "A" if a > b else "B"
        made.append(Judgment(c.id, judge, rubric, winner, winner is None, f"{a:{form}} : {b:{form}}"))
    return made


def oracle_judge(comparisons: Comparisons, rubric: Rubric) -> list[Judgment]:
    """Judge answers to ``everyday`` as its rules read them; an unknown persona is a tie."""
    texts, wishes = both_texts(comparisons), everyday.wishes()
    if rubric == "personalization":
        scores: list[float] = [fit(wishes.get(c.persona or "", ()), text) for c, text in texts]
    else:
        scores = [quality(c.prompt, text) for c, text in texts]
    return scored(comparisons, "oracle", rubric, scores, "g")


# --- Language models: a letter, JSON, or Prometheus-2's format ---

# How an answer names its winner: a letter at its start ("Response A", too), JSON, or "[RESULT] A" at its end.
LETTER = re.compile(r"\A[\s*(\[]*(?:(?:Response|Persona) )?([AB])[.):\]*,]*(?:\s|\Z)")
CHOICE = re.compile(r'"winner"\s*:\s*"([^"]*)"')
VERDICT = re.compile(r"\[?\bresult\]?\s*:?\s*(?:response\s+)?[(\[]?\s*([AB])\s*[)\]]?\s*\.?\s*\Z", re.I)


def winner_of(form: re.Pattern[str], answer: str) -> Winner:
    """Return the one winner, "A" or "B", that an answer names in a form; None if there is none, or two."""
    named = {winner.upper() for winner in form.findall(answer)}
    return "A" if named == {"A"} else "B" if named == {"B"} else None


# Prometheus-2's format is not ours (Apache-2.0, the authors of prometheus-eval) and not in this repository.
HOME = (
    "https://raw.githubusercontent.com/prometheus-eval/prometheus-eval/"
    "485d2b4eaeebbebf991d76ab6698bdd94799e213/libs/prometheus-eval/prometheus_eval/prompts.py"
)
SHA256 = "aabcaa9f012108bbd19cc9528dab9f313325fdf89711919a67f20ef94cd50914"
# (how to sample, how often to ask at most until there is a verdict)
# "official": what the authors' code did silently, the package's defaults.
DECODING: dict[str, tuple[dict[str, float], int]] = {
    "deterministic": ({}, 1),
    "official": ({"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.03}, 10),
}


def load_templates() -> tuple[str, str]:
    """Return (system prompt, relative grading without a reference), read as constants: nothing is run.

    They are read from the installed package, or from its file, downloaded once. Raises DataError if there is
    neither, or if the file is another than the pinned one.
    """
    package = importlib.util.find_spec("prometheus_eval")
    file = package.origin if package else None
    folder = Path(file).parent if file else results_root() / "downloads" / "prometheus"
    path = folder / "prompts.py"
    if not path.exists():
        official.fetch(HOME, path, SHA256)
    if store.file_hash(path) != SHA256:
        raise DataError(
            f"{path}: not the pinned prompt format of prometheus-eval 0.1.20; install that version "
            "(pip install --no-deps prometheus-eval==0.1.20) or delete the file"
        )
    tree = ast.parse(path.read_text(encoding="utf-8"))
    given = [(n.targets[0], n.value) for n in tree.body if isinstance(n, ast.Assign)]
    texts = {ast.unparse(n): str(v.value) for n, v in given if isinstance(v, ast.Constant)}
    return texts["REL_SYSTEM_PROMPT"], texts["RELATIVE_PROMPT_WO_REF"]


def prometheus_prompt(
    templates: tuple[str, str], c: PairwiseComparison, rubric: Rubric, chat: bool = False
) -> str:
    """Render a comparison, the persona for personalization only; without ``chat`` in Mistral's own marks."""
    system, template = templates
    who = f"\nWho asks: {c.persona}" if rubric == "personalization" and c.persona else ""
    user = template.format(
        instruction=f"Respond to this request.\nRequest: {c.prompt}{who}",
        response_A=c.response_a.strip(),
        response_B=c.response_b.strip(),
        rubric=prompts.JUDGE_RUBRICS[rubric]["criterion"],
    )
    return f"{system}\n{user}" if chat else f"[INST] {system}\n{user} [/INST]"


def model_judge(run: Run, role: str = "judge", prompt: Render | None = None) -> Judge:
    """Return ``<role>.model`` as a judge: a served language model, one of the hub, or the run's own base.

    "letter" asks for "A" or "B", with another ``prompt`` if one is given. "json" asks for a reason and then a
    winner. "prometheus" grades as Prometheus-2 was trained to: relative grading without a reference. A chat
    model is asked in its own format.
    """
    named: ModelRole = getattr(run.profile, role)
    generator, most = load_generator(run, role), named.max_new_tokens
    tokenizer = getattr(generator, "tokenizer", None)  # a served model has none
    chat = load.chat_format(tokenizer) if named.kind == "chat" and tokenizer else None
    asked = partial(tailoring_prompt, persona=None, chat=chat) if chat and chat.told else str
    how, attempts = DECODING["deterministic"]
    stop: tuple[str, ...] = ()
    if prompt or named.format == "letter":
        render, form, stop = prompt or prompts.judge_prompt, LETTER, ("\n",)
    elif named.format == "json":
        render, form = prompts.chat_judge_prompt, CHOICE
    else:
        render = partial(prometheus_prompt, load_templates(), chat=bool(named.url) and named.kind == "chat")
        asked, form, (how, attempts) = str, VERDICT, DECODING[named.decoding]

    def judge(comparisons: Comparisons, rubric: Rubric) -> list[Judgment]:
        texts = [asked(render(c, rubric)) for c in comparisons]
        answers = [""] * len(texts)
        for attempt in range(attempts):
            left = [n for n, answer in enumerate(answers) if winner_of(form, answer) is None]
            drawn = {**how, "seed": attempt} if how else {}
            done = generator.generate([texts[n] for n in left], most, stop, **drawn) if left else ()
            for place, completion in done:
                answers[left[place]] = completion.text
        return [Judgment(c.id, generator.name, rubric, winner_of(form, answer), feedback=answer)
                for c, answer in zip(comparisons, answers, strict=True)]  # fmt: skip

    return judge


# --- Persona inference read backwards: which response explains the persona better? ---

NAME = "backwards"
KEYED = (
    "evaluation.backwards_rows base.dtype lora.* training.max_length training.completion_only_loss "
    "training.packing training.warmup"
)
TRAINING = {"sft.learning_rate": 1e-3, "sft.epochs": 1, "sft.batch_size": 4, "base.quantization": "none"}


def persona_rows(run: Run, part: str) -> list[dict[str, str]]:
    """Return the rows of "train" or "val" that the judge is trained on, of both sides; no test topics."""
    if run.dataset == everyday.NAME:
        split = {"train": "train", "val": "validation"}[part]
        items = [item for item in everyday.items() if item.split == split]
        found = [(f"{i.id}/{s}", i.prompt, getattr(i, f"response_{s}"), getattr(i, f"persona_{s}"))
                 for i, s in product(items, "ab")]  # fmt: skip
    else:
        rows = store.read_rows(run.folder / "tailoring" / f"sft_{part}.jsonl", TailoringRow)
        found = [(f"{row.id}/{side}", row.prompt, getattr(row, side), row.personas.get(f"gold-{side}"))
                 for row, side in product(rows, SIDES)]  # fmt: skip
    limit, chat = run.profile.evaluation.backwards_rows, load.format_of(*run.base_source)
    limit = limit if part == "train" else -(-limit // 8)
    found = sorted((row for row in found if row[-1]), key=lambda row: store.content_hash(row[0]))
    return [
        {"id": name, "prompt": asked(prompt, liked, chat), "completion": completion_text(persona, chat)}
        for name, prompt, liked, persona in found[: limit or None]
    ]


def asked(prompt: str, response: str, chat: Any) -> str:
    """Return what the judge's model is asked about one response."""
    return tailoring_prompt(prompts.backwards_query(prompt, response), None, chat=chat)


def backwards_key(run: Run) -> str:
    """Return a hash of all that the backwards judge depends on."""
    settings, model = [deciding(run.profile, KEYED), TRAINING], load.model_key(*run.base_source)
    data = store.file_hash(everyday.FILE) if run.dataset == everyday.NAME else preference.input_key(run)
    return store.content_hash(NAME, store.VERSIONS["training"], settings, data, model)


def train_backwards(run: Run) -> Path:
    """Train the judge's adapter once per profile and data set, for all seeds; resumes; returns its folder."""
    folder, key = results_dir(run.profile) / run.dataset / NAME, backwards_key(run)
    if not store.is_done(folder, key):
        rows = {part: persona_rows(run, part) for part in ("train", "val")}
        changed = Run(set_field(run.profile, TRAINING), run.dataset, seed=0)
        train.fit_adapter(changed, "sft", rows, folder, key, {"judge": NAME})
    return folder


class BackwardsJudge:
    """The judge that scores a response r by ``log p(persona | question, r)``; loaded at the first use.

    The base gets an adapter, trained on training rows to write personas from (question, response). There is
    no order and no verdict to parse, and a response's length adds nothing to its score. Quality is relevance:
    ``log p(question | r)`` under the untrained base, which does not see wrong facts.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.model = run, None
        self.chat = load.format_of(*run.base_source)
        self.known: dict[tuple[str, str], float] = {}

    def scores(self, texts: Sequence[tuple[str, str]], adapted: bool) -> list[float]:
        """Return log p(completion | prompt), in nats, of (rendered prompt, completion) texts, each once."""
        texts = [(prompt, completion_text(completion, self.chat)) for prompt, completion in texts]
        missing, profile = list(dict.fromkeys(t for t in texts if t not in self.known)), self.run.profile
        if missing and self.model is None:
            self.tokenizer, folder = load.load_tokenizer(*self.run.base_source), train_backwards(self.run)
            base = load.load_base(*self.run.base_source, "none", profile.base.dtype)
            self.model = load.attach_adapters(base, [folder])
        if missing:
            names, merge = [NAME] if adapted else [], set_field(profile, TRAINING).merge_adapters
            prompts, completions = zip(*missing, strict=True)
            model, size = (self.model, self.tokenizer), profile.judge.batch_size
            with load.using_adapters(self.model, names, merge):
                found = load.pair_log_probs(*model, prompts, [(text,) for text in completions], size)[:, 0]
            self.known |= dict(zip(missing, found.tolist(), strict=True))
        return [self.known[text] for text in texts]

    def plausible(self, comparisons: Comparisons, rubric: Rubric) -> list[Judgment]:
        """Judge which of two personas is likelier: log p(persona | question) per word, no adapter."""
        texts = [(asked(c.prompt, "", self.chat), persona) for c, persona in both_texts(comparisons)]
        found = zip(self.scores(texts, False), texts, strict=True)
        per_word = [score / len(persona.split()) for score, (_, persona) in found]
        return scored(comparisons, NAME, rubric, per_word, ".4f")

    def __call__(self, comparisons: Comparisons, rubric: Rubric) -> list[Judgment]:
        both, suits = both_texts(comparisons), rubric == "personalization"
        if suits:
            texts = [(asked(c.prompt, text, self.chat), c.persona or "") for c, text in both]
        else:
            about = [(prompts.relevance_query(text), c.prompt) for c, text in both]
            texts = [(tailoring_prompt(query, None, chat=self.chat), prompt) for query, prompt in about]
        return scored(comparisons, NAME, rubric, self.scores(texts, suits), ".4f")


# A profile's ``judge`` -> a function that returns the judge of a run; "none" is no judge.
JUDGES: dict[str, Callable[[Run], Judge]] = {
    "oracle": lambda run: oracle_judge,
    "lm": model_judge,
    "backwards": BackwardsJudge,
}


def load_judge(run: Run, name: str = "") -> Judge:
    """Return the judge of a run's answers, or of this name; ConfigError for "none" or an unknown one."""
    name = name or run.profile.evaluation.judge
    check_name(name, JUDGES, f"profile {run.profile.name}: no judge")
    return JUDGES[name](run)


def judge_both(judge: Judge, comparisons: Comparisons, rubric: Rubric) -> list[tuple[Judgment, Judgment]]:
    """Judge every comparison in both orders: (tested response as A, tested response as B)."""
    swapped = [replace(c, response_a=c.response_b, response_b=c.response_a) for c in comparisons]
    return list(zip(judge(comparisons, rubric), judge(swapped, rubric), strict=True))
