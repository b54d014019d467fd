"""Prometheus-2 as a judge: relative grading in its own prompt format, with two ways of decoding.

The format's text is not ours (Apache-2.0, the authors of prometheus-eval) and is not in this repository: it
is read from the installed package ``prometheus-eval``, or fetched from its pinned public file, and checked.
Criteria and instructions are worded by us, unless a file of the user's words them (``judge_texts``).
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_lib.config import results_root
from persona_lib.data import official_folders
from persona_lib.models.generate import Sampling
from persona_lib.profiles import ConfigError
from persona_lib.records import DataError, Judgment, PairwiseComparison, Rubric
from persona_lib.store import file_hash

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
            official_folders.fetch(HOME, path, SHA256)
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
