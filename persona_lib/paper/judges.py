"""Judges: which of two responses suits a prompt and a persona better, or is of higher quality."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from persona_lib import store
from persona_lib.data import everyday, official, preference
from persona_lib.data.reader import fit, quality
from persona_lib.models import packing, train, trainers
from persona_lib.models.generate import Sampling
from persona_lib.models.load import (
    attach_adapters,
    chat_text,
    count_rows,
    format_of,
    load_base,
    load_tokenizer,
    model_key,
    sequence_log_probs,
    using_adapters,
)
from persona_lib.models.served import load_generator
from persona_lib.models.trainers import sft_trainer
from persona_lib.prompts import (
    backwards_query,
    chat_judge_prompt,
    completion_text,
    judge_prompt,
    relevance_query,
    tailoring_prompt,
)
from persona_lib.records import (
    SIDES,
    DataError,
    Judgment,
    PairwiseComparison,
    Rubric,
    TailoringRow,
)
from persona_lib.settings import (
    ConfigError,
    Profile,
    Run,
    judge_settings,
    near_names,
    results_dir,
    results_root,
)
from persona_lib.store import (
    VERSIONS,
    file_hash,
)

# --- Any chat model as a judge, with a prompt of ours: it gives a reason and then its verdict, as JSON ---
# Where the server can hold its answer to a schema it is asked to; where it cannot, the same prompt asks for
# the same JSON, and what comes is read strictly. An answer that names no winner, or two, stays unparsed.


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "winner": {"type": "string", "enum": ["A", "B"]}},
    "required": ["reason", "winner"],  # in this order: the reason is written first
    "additionalProperties": False,
}
# What counts besides JSON: a last line "winner: A", or an answer that is a letter and nothing else.
LAST_LINE = re.compile(r"(?:^|\n)\W*winner\W+([AB])\W*$", re.IGNORECASE)
LETTER = re.compile(r"\W*([AB])\W*")


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in a text, whatever stands around them; what is cut off is left out."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            found, at = decoder.raw_decode(text, at)
            yield found
        except json.JSONDecodeError:
            at += 1
        at = text.find("{", at)


def parse_choice(text: str) -> str | None:
    """Read the one winner, "A" or "B", that an answer names; None if there is none, or if there are two."""
    named = [found["winner"] for found in json_objects(text) if "winner" in found]
    if not named:
        match = LAST_LINE.search(text.strip()) or LETTER.fullmatch(text.strip())
        return match[1].upper() if match else None
    return named[0] if named[0] in ("A", "B") and all(winner == named[0] for winner in named) else None


def chat_judge(
    generator: Any, max_new_tokens: int, asked: Callable[[str], str] = str
) -> Callable[[Sequence[PairwiseComparison], Rubric], list[Judgment]]:
    """Return a judge (see ``judge``) that asks a chat model, greedily, for a reason and a winner.

    ``asked`` frames the prompt, for a model that is loaded here. A generator that ``takes_schema`` gets ours.
    """
    structured = {"schema": SCHEMA} if getattr(generator, "takes_schema", False) else {}

    def judge(comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> list[Judgment]:
        prompts = [
            asked(chat_judge_prompt(rubric, c.prompt, c.persona, c.response_a, c.response_b))
            for c in comparisons
        ]
        answers = dict(generator.generate(prompts, max_new_tokens, (), **structured))
        return [
            Judgment(c.id, generator.name, rubric, parse_choice(answers[n].text), feedback=answers[n].text)
            for n, c in enumerate(comparisons)
        ]

    return judge


# --- Prometheus-2 as a judge: relative grading in its own prompt format, with two ways of decoding ---
# The format's text is not ours (Apache-2.0, the authors of prometheus-eval) and is not in this repository:
# it is read from the installed package ``prometheus-eval``, or fetched from its pinned public file, and
# checked. Criteria and instructions are worded by us, unless a file of the user's words them
# (``judge_texts``).


HOME = (
    "https://raw.githubusercontent.com/prometheus-eval/prometheus-eval/"
    "485d2b4eaeebbebf991d76ab6698bdd94799e213/libs/prometheus-eval/prometheus_eval/prompts.py"
)
# Of version 0.1.20 of the package; the public file is held to it, too.
SHA256 = "aabcaa9f012108bbd19cc9528dab9f313325fdf89711919a67f20ef94cd50914"
Texts = Mapping[str, Mapping[str, str]]
# By rubric: what is judged, and what the responses are said to answer.
TEXTS: Texts = {
    "personalization": {
        "criterion": "[Does the response answer the request, and does it suit the person who asks?]",
        "instruction": "Respond to this request.\nRequest: {prompt}\nWho asks: {persona}",
    },
    "quality": {
        "criterion": "[Is it a good response to the request?]",
        "instruction": "Respond to this request.\nRequest: {prompt}",
    },
}
PARTS = {"criterion": (), "instruction": ("{prompt}",)}  # of a text: what has to stand in it
# How the verdict ends an answer. Anything else stays unparsed.
VERDICT = re.compile(
    r"\[?\bresult\]?\s*:?\s*(?:response\s+)?[(\[]?\s*([AB])\s*[)\]]?\s*\.?\s*$", re.IGNORECASE
)
# "official": what the authors' code did silently, the package's defaults. None: greedy.
DECODING: dict[str, tuple[Sampling | None, int]] = {
    "deterministic": (None, 1),
    "official": (Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.03, seed=0), 10),
}


def template_file() -> Path:
    """Return a file with the prompt format: of the installed package, or downloaded once, and checked.

    Raises DataError if there is neither, or if the file is another than the pinned one.
    """
    package = importlib.util.find_spec("prometheus_eval")
    if package and package.submodule_search_locations:
        path = Path(package.submodule_search_locations[0]) / "prompts.py"
    else:
        path = results_root() / "downloads" / "prometheus" / "prompts.py"
        if not path.exists():
            official.fetch(HOME, path, SHA256)
    if file_hash(path) != SHA256:
        raise DataError(
            f"{path}: not the pinned prompt format of prometheus-eval 0.1.20; install that version "
            "(pip install --no-deps prometheus-eval==0.1.20) or delete the file"
        )
    return path


def load_templates(path: Path | None = None) -> tuple[str, str]:
    """Return (system prompt, relative grading without a reference), read as constants: nothing is run."""
    tree = ast.parse((path or template_file()).read_text(encoding="utf-8"))
    texts = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    return texts["REL_SYSTEM_PROMPT"], texts["RELATIVE_PROMPT_WO_REF"]


def read_texts(path: str, dataset: str) -> Texts:
    """Read criteria and instructions from a YAML file (``judge_texts``) for a data set; "": ours.

    The file has ``quality`` and ``personalization``, each with ``criterion`` and ``instruction``, where
    {prompt} and {persona} stand for the row's; a block named like a data set may word any of them otherwise
    for it. Raises ConfigError that names file, place and mend.
    """
    if not path:
        return TEXTS
    import yaml

    try:
        read = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"judge_texts={path}: cannot be read ({error})") from error
    if not isinstance(read, dict):
        raise ConfigError(f"{path}: should have the blocks {' and '.join(TEXTS)}")
    own = read.get(dataset) or {}
    return {rubric: rubric_texts(path, rubric, read.get(rubric), own.get(rubric)) for rubric in TEXTS}


def rubric_texts(path: str, rubric: str, general: Any, special: Any) -> dict[str, str]:
    """Return a rubric's texts, the data set's own before the general ones, checked."""
    found = {**(general or {}), **(special or {})}
    if unknown := found.keys() - PARTS.keys():
        raise ConfigError(f"{path}: {rubric}: {sorted(unknown)[0]!r}: use {' and '.join(PARTS)}")
    for part, held in PARTS.items():
        text = found.get(part)
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{path}: {rubric}: {part}: {text!r}; should be a text")
        held = (*held, "{persona}") if (rubric, part) == ("personalization", "instruction") else held
        if lacking := [name for name in held if name not in text]:
            raise ConfigError(f"{path}: {rubric}: {part}: {lacking[0]} does not stand in it")
    return found


def instruction(rubric: Rubric, comparison: PairwiseComparison, texts: Texts = TEXTS) -> str:
    """Return what the responses are said to answer; the persona is shown for personalization only.

    A comparison without a persona is always shown as for quality.
    """
    shown = rubric if comparison.persona else "quality"
    words = {"{prompt}": comparison.prompt, "{persona}": comparison.persona or ""}
    return re.sub(r"\{prompt\}|\{persona\}", lambda found: words[found[0]], texts[shown]["instruction"])


def prometheus_prompt(
    templates: tuple[str, str],
    rubric: Rubric,
    comparison: PairwiseComparison,
    chat: bool = False,
    texts: Texts = TEXTS,
) -> str:
    """Render a comparison; without ``chat``, in Mistral's own marks (the tokenizer adds BOS)."""
    system, template = templates
    user = template.format(
        instruction=instruction(rubric, comparison, texts),
        response_A=comparison.response_a.strip(),
        response_B=comparison.response_b.strip(),
        rubric=texts[rubric]["criterion"],
    )
    return f"{system}\n{user}" if chat else f"[INST] {system}\n{user} [/INST]"


def parse_verdict(text: str) -> str | None:
    """Read the "A" or "B" that ends an answer after "[RESULT]"; None if there is none."""
    found = VERDICT.search(text.strip())
    return found[1].upper() if found else None


def prometheus_judge(
    generator: Any,
    max_new_tokens: int,
    decoding: str = "deterministic",
    chat: bool = False,
    templates: tuple[str, str] | None = None,
    texts: Texts = TEXTS,
) -> Callable[[Sequence[PairwiseComparison], Rubric], list[Judgment]]:
    """Return a judge (see ``judge``) that grades as Prometheus-2 was trained to.

    "deterministic" decodes greedily, once. "official" samples, and samples answers without a verdict again,
    up to ten times in all; what is still unreadable then has winner None.
    """
    templates = templates or load_templates()
    sampling, attempts = DECODING[decoding]

    def judge(comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> list[Judgment]:
        prompts = [prometheus_prompt(templates, rubric, c, chat, texts) for c in comparisons]
        answers: dict[int, str] = {}
        for attempt in range(attempts):
            left = [n for n in range(len(prompts)) if n not in answers or parse_verdict(answers[n]) is None]
            if not left:
                break
            drawn = sampling and sampling.with_seed(sampling.seed + attempt)
            done = generator.generate([prompts[n] for n in left], max_new_tokens, (), sampling=drawn)
            answers |= {left[place]: completion.text for place, completion in done}
        return [
            Judgment(c.id, generator.name, rubric, parse_verdict(answers[n]), feedback=answers[n])
            for n, c in enumerate(comparisons)
        ]

    return judge


# --- A judge that reads persona inference backwards: which response explains the persona better? ---
# Persona inference writes a persona P from a question x and a preferred response r. Read backwards, the
# same model judges: ``score(r) = log p(P | x, r)``, and the response with the higher score suits the user
# better. There is no order, no verdict to parse, and the length of a response adds nothing to the score;
# its size says how sure the judge is. The model is the base with an adapter of its own, trained to write
# personas from (question, response) on training rows, of both sides alike; no policy shares it, and it
# never saw a row that it judges.
#
# Quality is relevance: ``log p(x | r)`` under the untrained base, the question from the answer. It sees an
# answer to another question, and does not see wrong facts. What either is worth is measured in
# ``evaluation.calibration``.


NAME = "backwards"
FIELDS = ("backwards_rows", "backwards_epochs", "backwards_batch_size", "backwards_learning_rate", "lora_r",
          "lora_alpha", "lora_dropout", "lora_targets", "max_length", "compute_dtype",
          "completion_only_loss", "sft_packing", "lr_scheduler", "warmup_share")  # fmt: skip


def judge_folder(run: Run) -> Path:
    """Return the folder of a data set's judge; its rows are the same for every seed."""
    return results_dir(run.profile) / run.dataset / NAME


def persona_rows(run: Run, part: str) -> list[dict[str, str]]:
    """Return the judge's rows {"id", "prompt", "completion"} of "train" or "val": both sides of every pair.

    Training rows only: of ``everyday`` the training and validation topics, else SFT's splits.
    """
    chat = format_of(*run.base_source)
    if run.dataset == everyday.NAME:
        split = {"train": "train", "val": "validation"}[part]
        found = [
            (
                f"{item.id}/{side}",
                item.prompt,
                getattr(item, f"response_{side}"),
                getattr(item, f"persona_{side}"),
            )
            for item in everyday.items()
            if item.split == split
            for side in "ab"
        ]
    else:
        rows = store.read_rows(run.folder / "tailoring" / f"sft_{part}.jsonl", TailoringRow)
        found = [
            (f"{row.id}/{side}", row.prompt, getattr(row, side), row.personas[f"gold-{side}"])
            for row in rows
            for side in SIDES
            if row.personas.get(f"gold-{side}")
        ]
    made = [
        {"id": name, "prompt": asked(prompt, liked, chat), "completion": completion_text(persona, chat)}
        for name, prompt, liked, persona in found
    ]
    limit = run.profile.backwards_rows if part == "train" else -(-run.profile.backwards_rows // 8)
    ordered = sorted(made, key=lambda row: store.content_hash(row["id"]))
    return ordered[:limit] if limit else ordered


def asked(prompt: str, response: str, chat: Any) -> str:
    """Return what the judge's model is asked about one response."""
    return tailoring_prompt(backwards_query(prompt, response), None, chat=chat)


def judge_key(run: Run) -> str:
    """Return a hash of all that the judge depends on."""
    settings = [getattr(run.profile, name) for name in FIELDS]
    data = everyday.key() if run.dataset == everyday.NAME else preference.input_key(run)
    code = VERSIONS["training"]
    return store.content_hash(NAME, code, settings, data, model_key(*run.base_source))


def train_judge(run: Run) -> Path:
    """Train the judge's adapter once per profile and data set; resumes; returns its folder."""
    from datasets import Dataset

    folder, key = judge_folder(run), judge_key(run)
    if store.is_done(folder, key):
        return folder
    profile = dataclasses.replace(
        run.profile,
        sft_learning_rate=run.profile.backwards_learning_rate,
        sft_epochs=run.profile.backwards_epochs,
        sft_batch_size=run.profile.backwards_batch_size,
        quantization="none",
    )
    checkpoint = train.prepare_folder(folder, key, {"judge": NAME})
    tokenizer = load_tokenizer(*run.base_source)
    rows = {part: persona_rows(run, part) for part in ("train", "val")}
    for part, found in rows.items():
        count_rows(tokenizer, found, ("completion",), profile.max_length, f"{NAME} {part}")
    data = {part: Dataset.from_list(found) for part, found in rows.items()}
    with trainers.quiet_libraries(), packing.small_tiles(on=profile.sft_packing):
        base = load_base(*run.base_source, "none", profile.compute_dtype)
        trainer = sft_trainer(profile, 0, base, tokenizer, data, folder / "checkpoints")
        train.fit(trainer, profile, NAME, checkpoint)
    train.save_adapter(trainer, folder, key)
    del trainer
    train.release_memory()
    return folder


class BackwardsJudge:
    """The trained judge: ``(comparisons, rubric) -> judgments``, loaded at the first use; scores are kept."""

    name = NAME

    def __init__(self, run: Run) -> None:
        self.run, self.model = run, None
        self.chat = format_of(*run.base_source)
        self.known: dict[tuple[str, str], float] = {}

    def prepare(self) -> None:
        """Load the base and the judge's adapter."""
        if self.model is None:
            self.tokenizer = load_tokenizer(*self.run.base_source)
            folder = train_judge(self.run)
            base = load_base(*self.run.base_source, "none", self.run.profile.compute_dtype)
            self.model, self.adapters = attach_adapters(base, [folder]), [folder.name]

    def scores(self, asked: Sequence[tuple[str, str]], adapted: bool) -> list[float]:
        """Return log p(completion | prompt) of rendered (prompt, completion) texts, in nats."""
        missing = list(dict.fromkeys(pair for pair in asked if pair not in self.known))
        if missing:
            self.prepare()
            names = self.adapters if adapted else []
            merge = self.run.profile.compute_dtype == "float32"
            with trainers.quiet_libraries(), using_adapters(self.model, names, merge):
                found = sequence_log_probs(
                    self.model, self.tokenizer, *zip(*missing, strict=True), self.run.profile.judge_batch_size
                )
            self.known |= dict(zip(missing, found.tolist(), strict=True))
        return [self.known[pair] for pair in asked]

    def persona_scores(self, triples: Sequence[tuple[str, str, str]]) -> list[float]:
        """Return log p(persona | question, response) of (question, response, persona) triples."""
        rendered = [(asked(x, r, self.chat), completion_text(p, self.chat)) for x, r, p in triples]
        return self.scores(rendered, adapted=True)

    def relevance_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return log p(question | answer) of (question, answer) pairs under the untrained base."""
        rendered = [
            (tailoring_prompt(relevance_query(r), None, chat=self.chat), completion_text(x, self.chat))
            for x, r in pairs
        ]
        return self.scores(rendered, adapted=False)

    def plausible(self, comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> list[Judgment]:
        """Judge which of two personas is likelier: log p(persona | question) per word, no adapter."""
        both = [(c.prompt, text) for c in comparisons for text in (c.response_a, c.response_b)]
        rendered = [(asked(x, "", self.chat), completion_text(p, self.chat)) for x, p in both]
        found = self.scores(rendered, adapted=False)
        per_word = [value / len(p.split()) for value, (_, p) in zip(found, both, strict=True)]
        return self.judged(comparisons, rubric, per_word)

    def __call__(self, comparisons: Sequence[PairwiseComparison], rubric: Rubric) -> list[Judgment]:
        both = [(c, text) for c in comparisons for text in (c.response_a, c.response_b)]
        if rubric == "personalization":
            found = self.persona_scores([(c.prompt, text, c.persona or "") for c, text in both])
        else:
            found = self.relevance_scores([(c.prompt, text) for c, text in both])
        return self.judged(comparisons, rubric, found)

    def judged(
        self, comparisons: Sequence[PairwiseComparison], rubric: Rubric, scores: Sequence[float]
    ) -> list[Judgment]:
        """Return the judgments of two scores per comparison."""
        pairs = zip(comparisons, scores[::2], scores[1::2], strict=True)
        return [judgment(c.id, self.name, rubric, a, b) for c, a, b in pairs]


def judgment(id: str, judge: str, rubric: Rubric, a: float, b: float) -> Judgment:
    """Return the judgment of two scores; equal scores are a tie."""
    winner = None if a == b else "A" if a > b else "B"
    return Judgment(id, judge, rubric, winner, winner is None, f"{a:.4f} : {b:.4f}")


Judge = Callable[[Sequence[PairwiseComparison], Rubric], list[Judgment]]
RUBRICS: tuple[Rubric, ...] = ("personalization", "quality")


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
        texts = read_texts(run.profile.judge_texts, run.dataset)
        return prometheus_judge(
            generator, max_new_tokens, decoding, bool(url) and kind == "chat", texts=texts
        )
    asked = asked_of(generator, kind)
    if form == "letter":
        return lm_judge(generator, max_new_tokens, asked)

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
