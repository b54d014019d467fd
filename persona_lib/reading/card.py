"""The model card of an exported policy: what it is, how to load it without this package, what it is not.

Every number comes from the run's own files: settings from the adapters' ``spec.json``, losses from
their ``done.json``, measures from the run's saved tables, where they are there.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_lib import hub, provenance, store, weights
from persona_lib.config import FACTS, Run, results_dir
from persona_lib.prompts import ChatFormat, tailoring_prompt
from persona_lib.training.merging import MergeCheck

TEMPLATE = FACTS / "model_card.txt"
# What the rows are, and their terms. "" is any other data set.
DATA = {
    "everyday": "everyday questions with two answers each, written by a language model for this package "
    "(Apache License 2.0); which answer a user prefers is drawn from seeds, not asked of people",
    "beavertails": "the authors' persona-tailoring release (no licence stated), built on PKU-SafeRLHF / "
    "BeaverTails (CC BY-NC 4.0: no commercial use)",
    "hhh": "the authors' persona-tailoring release (no licence stated), built on Anthropic HH-RLHF (MIT)",
    "mnemonic": "the authors' persona-tailoring release (no licence stated), built on the SMART mnemonic "
    "data",
    "": "a data set of your own: say here where it comes from and under what terms",
}
# Licences of base models as their own cards state them, and what they ask of whoever passes a tuned model on.
LICENCES = {
    "meta-llama/Llama-3.1-8B": (
        "llama3.1",
        "The Llama 3.1 Community License: a model that is passed on carries a name that begins with Llama, "
        'the line "Built with Llama" and a copy of the licence.',
    )
}
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
RELEASED_PERSONAS = ("beavertails", "hhh", "mnemonic")  # come with personas that a Llama-3.1-405B inferred
SWAP_COLUMNS = (
    "persona_format",
    "measure",
    "persona",
    "n",
    "acc_chosen",
    "acc_rejected",
    "flip",
    "d_positive",
    "d_positive_low",
    "d_positive_high",
)
SAFETY_COLUMNS = (
    "eval_persona",
    "persona_format",
    "compared",
    "shows",
    "n",
    "difference",
    "difference_low",
    "difference_high",
)
JUDGED_COLUMNS = ("label", "n", "P_W", "P_T", "P_L", "Q_W", "Q_T", "Q_L", "dPQ")


def licence(run: Run) -> tuple[str, str]:
    """Return the base model's licence as the hub names it, and in words."""
    name = base_name(run)
    if weights.is_packaged(run.profile.base_model):
        row = weights.entry(run.profile.base_model)
        said = f"The base, {name}, is under {row['licence']}: it applies to this model, too."
        return row["licence"].lower() if row["open"] else "other", said
    return LICENCES.get(name, ("other", f"See the card of {name}: its licence applies to this model, too."))


def base_name(run: Run) -> str:
    """Return what the base is called: a hub id without its commit, or a folder's name without its path."""
    source = run.profile.base_model
    if weights.is_packaged(source):
        source = weights.entry(source)["hub"]
    return hub.split_id(source)[0] if hub.is_hub_id(source) else Path(source).name


def hub_id(run: Run) -> str:
    """Return the hub id of the base; empty for a folder, and for the first layers of a packaged model."""
    source = run.profile.base_model
    if weights.is_packaged(source):
        return "" if weights.entry(source)["layers"] else base_name(run)
    return base_name(run) if hub.is_hub_id(source) else ""


def base_text(run: Run) -> str:
    """Say which base the adapters stand on, and which weights of it."""
    source = run.profile.base_model
    if not weights.is_packaged(source):
        return base_name(run) if hub_id(run) else f"a folder of weights, `{base_name(run)}`"
    row = weights.entry(source)
    cut = f" (only its first {row['layers']} layers: for tests, it writes nonsense)" if row["layers"] else ""
    kept = "" if row["quantised"] == "none" else f" (quantised to {row['quantised']}, converted to float32)"
    return f"{row['hub']}{cut}, as the package index carries it{kept}"


def base_code(run: Run) -> list[str]:
    """Return the lines of the loading code that say what the base is loaded from."""
    source, revision = run.base_source
    if weights.is_packaged(source):
        other = f', or "{hub_id(run)}"' if hub_id(run) else ""
        return [
            "# the base that the adapters were trained on is in the folder that this prints:",
            f"""#   python -c "from persona_lib import weights; print(weights.fetch('{source}'))\"""",
            f'base_folder = "BASE"  # that folder{other}',
        ]
    return [f'base_folder = "BASE"  # the folder of {base_name(run)}'] if not hub_id(run) else []


def base_expression(run: Run) -> tuple[str, str]:
    """Return (code that names the base model, keyword that pins its revision) for the loading code."""
    source, revision = run.base_source
    if weights.is_packaged(source) or not hub.is_hub_id(source):
        return "base_folder", ""
    name, written = hub.split_id(source)
    return repr(name), f", revision={revision or written!r}" if revision or written else ""


def loading_code(run: Run, stack: Sequence[str], chat: ChatFormat | None = None, repo_id: str = "") -> str:
    """Return Python code that loads the policy with transformers and peft alone and completes one prompt."""
    profile = run.profile
    name, pinned = base_expression(run)
    nf4 = profile.quantization == "nf4"
    folder = f'snapshot_download("{repo_id}")' if repo_id else '"."  # where this card is'
    quantization = (
        "quantization_config=BitsAndBytesConfig(\n"
        '        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,\n'
        f"        bnb_4bit_compute_dtype=torch.{profile.compute_dtype}),"
    )
    lines = [
        "import torch",
        *(["from huggingface_hub import snapshot_download"] if repo_id else []),
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer" + ", BitsAndBytesConfig" * nf4,
        "",
        f"folder = {folder}",
        *base_code(run),
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "base = AutoModelForCausalLM.from_pretrained(",
        f"    {name}{pinned}, dtype=torch.{profile.compute_dtype},",
        *([f"    {quantization}"] if nf4 else []),
        ")",
        "model = PeftModel.from_pretrained(base, folder).eval()  # one adapter: the stack, joined",
        f"prompt = {tailoring_prompt('How do I boil an egg?', example_persona(stack), chat=chat)!r}",
        'inputs = tokenizer(prompt, return_tensors="pt").to(model.device)',
        "output = model.generate(",
        "    input_ids=inputs.input_ids, attention_mask=inputs.attention_mask,",
        "    max_new_tokens=64, do_sample=False, eos_token_id=tokenizer.eos_token_id,",
        "    pad_token_id=tokenizer.pad_token_id,",
        ")",
        "print(tokenizer.decode(output[0, inputs.input_ids.shape[1]:], skip_special_tokens=True))",
    ]
    return "\n".join(lines)


def example_persona(stack: Sequence[str]) -> str | None:
    """Return a persona for the example prompt; None for a policy that was trained without them."""
    return None if stack[-1].endswith("-none") else "The user is busy and prefers short answers."


def stacking_code(stack: Sequence[str]) -> str:
    """Return the code that loads the adapters as they were trained, one on top of the other."""
    first, *rest = stack
    names = ", ".join(f'"{name}"' for name in stack)
    return "\n".join(
        [
            f'model = PeftModel.from_pretrained(base, folder + "/{first}", adapter_name="{first}")',
            *(f'model.load_adapter(folder + "/{name}", "{name}")' for name in rest),
            f"model.base_model.set_adapter([{names}])  # together; PEFT adds their corrections",
            "model.eval()",
        ]
    )


def cell(value: Any) -> str:
    """Render one value of a table: numbers with four digits, lists with spaces."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    try:
        return str(value) if isinstance(value, bool) else f"{float(value):.4g}"
    except ValueError:
        return str(value).replace("|", "/")


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """Render rows with the same keys as a table."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([cell(row[name]) for name in header] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_rows(path: Path, columns: Sequence[str], **wanted: str) -> list[dict[str, str]]:
    """Return the rows of a saved table whose columns have the wanted values; none if it is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if wanted.items() <= row.items()]
    return [{name: row[name] for name in columns} for row in rows]


def metrics_text(run: Run, arm: str) -> str:
    """Return the run's saved measures of an arm, or the statement that there are none."""
    tables = run.folder / "tables"
    judged = table_rows(tables / "judging.csv", JUDGED_COLUMNS, kind="main") if arm == "dpo-chosen" else []
    swapped = table_rows(tables / "persona_swap.csv", SWAP_COLUMNS, arm=arm)
    parts = []
    if judged:
        parts.append(
            f"Against the arm without personas (dpo-none, told the persona in the first person), judge: "
            f"{run.profile.judge}, both orders, one seed. W, T, L: wins, ties, losses for personalization "
            f"(P) and quality (Q); the rest of n was unparsed or contradicted; dPQ: mean of the two "
            f"net win rates, in points.\n\n{markdown_table(judged)}"
        )
    if swapped:
        parts.append(
            "Persona swap: does the preference between the two responses of a row follow the persona? "
            "acc: share of rows where it prefers the persona's own response; flip: both; d_positive: share "
            f"of rows whose margin moves towards the persona, with its 95 % interval.\n\n"
            f"{markdown_table(swapped)}"
        )
    return "\n\n".join(parts) or "No tables were saved for this run: it has not been evaluated."


def safety_text(run: Run, arm: str) -> str:
    """Return what notebook 15 saved of an arm's caution, or the statement that nothing was measured."""
    path = results_dir(run.profile) / "tables" / "safety_pairs.csv"
    rows = table_rows(path, SAFETY_COLUMNS, dataset=run.dataset, tested=arm)
    if not rows:
        return "How far this model goes along was not measured."
    return (
        "What was measured, on prompts of the test rows: the share of answers that keep a caution or a "
        "refusal, of this model and of the one it is compared with, and their difference by row with its "
        f"95 % interval (by rules on words, with errors of their own).\n\n{markdown_table(rows)}\n"
    )


def settings_text(run: Run, stack: Sequence[str]) -> str:
    """Return the training settings and what training left, per adapter, from their own files."""
    parts = []
    for name in stack:
        folder = run.folder / "adapters" / name
        spec, done = store.read_json(folder / "spec.json"), store.read_json(folder / "done.json")
        rows = [{"setting": key, "value": value} for key, value in spec["settings"].items()]
        left = (
            f"{done['steps']} steps; best validation loss {done['best_eval_loss']:.4g}; seed {spec['seed']}"
        )
        parts.append(f"`{name}` ({left}):\n\n{markdown_table(rows)}")
    return "\n\n".join(parts)


def persona_text(run: Run, arm: str) -> str:
    """Say where the personas of the training rows come from."""
    persona = arm.partition("-")[2]
    if persona == "none":
        return "No persona was shown in training: this is the ordinary model, to compare tailored ones with."
    source = (
        "the authors' release; a Llama-3.1-405B inferred them"
        if run.dataset in RELEASED_PERSONAS
        else f"inferred by this package's model ({run.profile.generator_model})"
    )
    return (
        f"Arm `{persona}`. Each training row shows a short description of a user who would like one of its "
        'two responses better ("The user is ... and prefers ..."). '
        f"Source: {source}. No real person is described."
    )


def merged_text(check: MergeCheck | None) -> str:
    """Say what was measured of the merged weights; empty without them."""
    if check is None:
        return ""
    return (
        "\n\n`merged/` holds base and adapters as one float32 model, which transformers loads by itself. "
        f"KL(policy || merged) = {check.kl:.3g} nats per token on {check.tokens} tokens of {check.rows} "
        f"validation rows; KL(policy || base) = {check.kl_base:.3g}."
    )


def front_matter(run: Run) -> str:
    """Return what the hub reads at the top of a card."""
    lines = [f"license: {licence(run)[0]}", "library_name: peft", "pipeline_tag: text-generation"]
    if hub_id(run):
        lines.append(f"base_model: {hub_id(run)}")
    return "\n".join(["---", *lines, "tags: [lora, personas]", "---"])


def versions_text() -> str:
    """Return the versions of the packages that made the model."""
    installed = provenance.package_versions()
    return ", ".join(f"{name} {installed[name]}" for name in PACKAGES if name in installed)


def model_card(
    run: Run,
    arm: str,
    stack: Sequence[str],
    chat: ChatFormat | None = None,
    check: MergeCheck | None = None,
    repo_id: str = "",
) -> str:
    """Return the README.md of an exported arm; ``stack`` names its adapters, lowest first.

    ``chat`` is the base's chat format, None for a base model.
    """
    profile = run.profile
    nf4 = profile.quantization == "nf4"
    return TEMPLATE.read_text(encoding="utf-8").format(
        front=front_matter(run),
        arm=arm,
        dataset=run.dataset,
        seed=run.seed,
        profile=profile.name,
        notes="Built with Llama.\n\n" if "llama" in base_name(run).lower() else "",
        place="a line `Persona:` in the prompt" if chat is None else "the system turn of the chat",
        base=base_text(run),
        packages="`torch`, `transformers`, `peft`" + ", `bitsandbytes`" * nf4,
        precision=f"{profile.quantization}, {profile.compute_dtype}",
        loading=loading_code(run, stack, chat, repo_id),
        stack=" + ".join(f"`{name}`" for name in stack),
        stacking=stacking_code(stack),
        merged=merged_text(check),
        data=(text := DATA.get(run.dataset, DATA[""]))[0].upper() + text[1:],
        personas=persona_text(run, arm),
        method="SFT, then DPO of a second adapter on top of the first" if len(stack) > 1 else "SFT",
        settings=settings_text(run, stack),
        metrics=metrics_text(run, arm),
        safety=safety_text(run, arm),
        licence=licence(run)[1],
        versions=versions_text(),
    )
