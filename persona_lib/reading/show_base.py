"""For the notebook on the base model: which weights, how they are asked, and their untrained answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persona_lib import hub, weights
from persona_lib.config import Run
from persona_lib.data import everyday
from persona_lib.evaluation.reader import shows
from persona_lib.models.generate import TransformersGenerator
from persona_lib.models.llm import format_of, load_base, load_tokenizer, model_key
from persona_lib.prompts import STOP, tailoring_prompt

if TYPE_CHECKING:
    import pandas as pd

QUESTIONS = ("working-from-home-2", "coffee-at-home-1")  # of validation: explicit personas, implicit ones
SHOWN = ("licence", "architecture", "parameters", "quantised", "megabytes", "packages", "hub")


def facts_table(run: Run) -> pd.Series:
    """Return what is known of the base: where it comes from, its size, its licence, what identifies it."""
    import pandas as pd
    from transformers import AutoConfig

    source, revision = run.base_source
    facts = {"base model": source, "identified by": model_key(source, revision)}
    if weights.is_packaged(source):
        row = weights.entry(source)
        facts |= {name: row[name] for name in SHOWN}
        facts |= {"parameters": f"{row['parameters']:,}", "packages": ", ".join(row["packages"])}
    name, commit = hub.pinned(source, revision)
    config = AutoConfig.from_pretrained(name, revision=commit)
    kind = f"{config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size}"
    return pd.Series(facts | {"loaded here": f"{kind}, {run.profile.compute_dtype}"}, name="").to_frame()


def chat_example(run: Run) -> str:
    """Return the first question as a policy is asked it, without a persona and with one."""
    item, chat = next(i for i in everyday.items() if i.id == QUESTIONS[0]), format_of(*run.base_source)
    told = {"no persona": None, "a persona": item.persona_a}
    return "\n".join(f"--- {how}\n{tailoring_prompt(item.prompt, p, chat=chat)}" for how, p in told.items())


def untrained_answers(run: Run) -> pd.DataFrame:
    """Return the base's answers to both questions under either persona; the value wished, the one shown."""
    import pandas as pd

    asked = [(item, side) for item in everyday.items() if item.id in QUESTIONS for side in "ab"]
    told = [(item.prompt, getattr(item, f"persona_{side}")) for item, side in asked]
    prompts = [tailoring_prompt(*pair, chat=format_of(*run.base_source)) for pair in told]
    profile, tokenizer = run.profile, load_tokenizer(*run.base_source)
    model = load_base(*run.base_source, profile.quantization, profile.compute_dtype)
    how = {"batch_size": len(prompts), "repetition_penalty": profile.gen_repetition_penalty}
    generator = TransformersGenerator(model, tokenizer, "base", **how)
    answers = dict(generator.generate(prompts, profile.gen_max_new_tokens, (STOP,)))
    values = [(i.wish(side)[0][1], shows(i.dimension, answers[n].text)) for n, (i, side) in enumerate(asked)]
    rows = [(*told[n], *values[n], answers[n].text) for n in range(len(asked))]
    return pd.DataFrame(rows, columns=["question", "persona", "wished", "shown", "answer"])
