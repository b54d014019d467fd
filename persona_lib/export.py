"""Export a trained policy: ``./run_all.sh --export DIR`` takes that of the run that ended last.

DIR gets one LoRA adapter that equals the policy's adapters stacked, the tokenizer, and a model card whose
code loads them, or merges them into the base, without the package. Nothing is uploaded:
``hf upload --private REPO_ID DIR`` (huggingface_hub) does that.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_lib import settings, store, weights
from persona_lib.beyond.users import tailored
from persona_lib.models.load import format_of, join_adapters, load_tokenizer
from persona_lib.paper.answers import adapters_of, policy_key
from persona_lib.paper.results import read_table
from persona_lib.prompts import ChatFormat, tailoring_prompt
from persona_lib.provenance import asked_run
from persona_lib.records import DataError
from persona_lib.settings import ConfigError, Parser, Profile, Run, check_name
from persona_lib.show import render, to_markdown

# Table -> its column that names the arm.
RESULTS = {"main": "test", "user_swap": "arm", "swap": "arm", "safety_pairs": "tested"}
DATA = {  # what the rows are, and their terms
    "everyday": "everyday questions and answers, written by a language model for this package (Apache-2.0)",
    "beavertails": "the authors' release (no licence stated), from PKU BeaverTails (CC BY-NC 4.0)",
    "hhh": "the authors' release (no licence stated), from Anthropic HH-RLHF (MIT)",
    "mnemonic": "the authors' release (no licence stated), from SMART mnemonics",
}
OWN_DATA = "a data set of your own: say here where it comes from and under what terms"


def base_facts(run: Run) -> dict[str, Any]:
    """Return the base's name, hub id and revision ("" without), and its row of packaged weights."""
    source, revision = run.base_source
    facts = {"source": source, "name": Path(source).name, "hub_id": "", "revision": revision, "packaged": {}}
    if weights.is_packaged(source):
        row = weights.entry(source)
        hub_id = "" if row["layers"] else row["hub"].partition("@")[0]
        facts |= {"name": row["hub"], "hub_id": hub_id, "packaged": row}
    elif weights.is_hub_id(source):
        facts |= {"name": source, "hub_id": source}
    return facts


def results_of(run: Run, arm: str) -> list[str]:
    """Return the rows of the saved tables, over all seeds, in which the arm was measured."""
    parts = []
    for name, column in RESULTS.items():
        table = read_table(run.profile, name)
        if len(table):
            table = table[table.measure == "policy"] if name == "swap" else table
            table = table.replace({"history": {0: "all"}})
            own = (table[column].astype(str).str.split(".").str[0] == arm) & (table.dataset == run.dataset)
            parts += [to_markdown(render(name, table[own]))] if own.any() else []
    return parts


def model_card(run: Run, arm: str, paths: Sequence[Path], chat: ChatFormat | None) -> str:
    """Return the README.md of an exported arm; ``chat`` is how the base is asked."""
    persona, versions = arm.partition("-")[2], store.environment()["versions"]
    user = None if persona == "none" else "The user is busy and prefers short answers."
    return store.fill(
        "model_card.md",
        run=run,
        profile=run.profile,
        arm=arm,
        base=base_facts(run),
        chat=chat,
        data=DATA.get(run.dataset, OWN_DATA),
        split_by="user and prompt" if len(read_table(run.profile, "user_personas")) else "prompt",
        persona=persona,
        prompt=repr(tailoring_prompt("How do I boil an egg?", user, chat=chat)),
        trained=[(f.name, *[store.read_json(f / one) for one in ("spec.json", "done.json")]) for f in paths],
        results=results_of(run, arm),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )


def export_arm(run: Run, arm: str, target: Path) -> Path:
    """Write an arm into a new folder; FileNotFoundError: no adapters, FileExistsError: it has content."""
    folders = adapters_of(run, arm)
    missing = [folder for folder in folders if not (folder / "done.json").exists()]
    if missing or not folders:
        found = f"{missing[0]} is not finished" if missing else f"arm {arm!r} has no adapters"
        raise FileNotFoundError(f"{found}: run the training steps first")
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty: choose a new folder")
    join_adapters(folders, target)
    config = store.read_json(target / "adapter_config.json")
    config["base_model_name_or_path"] = base_facts(run)["hub_id"] or None  # never a path of this machine
    store.write_json(target / "adapter_config.json", config)
    load_tokenizer(*run.base_source).save_pretrained(target)
    store.write_text(target / "README.md", model_card(run, arm, folders, format_of(*run.base_source)))
    return target


def keep_adapter(profile: Profile) -> None:
    """Export the tailored arm, if it is trained, to ``results/<profile>/adapter``."""
    run = Run(profile, profile.datasets[0], profile.seeds[0])
    folder, arm = settings.results_dir(profile) / "adapter", tailored(run)
    if not all((path / "done.json").exists() for path in adapters_of(run, arm)):
        return
    key = store.content_hash(policy_key(run, arm))
    if not store.is_done(folder, key):
        shutil.rmtree(folder, ignore_errors=True)
        store.mark_done(export_arm(run, arm, folder), key)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 2 for what the user has to mend."""
    parser = Parser(prog="./run_all.sh --export", description=__doc__)
    arms = "sft-<train_persona> or dpo-<train_persona>; default: the tailored one"
    parser.add_argument("--arm", default="", help=arms)
    parser.add_argument("to", type=Path, metavar="DIR", help="a new folder")
    try:
        run, given = asked_run(parser, argv)
        arm = given.arm or tailored(run)
        check_name(arm.partition("-")[2], run.profile.training.arms, f"--arm {arm}: no trained arm")
        print(f"exported; read {export_arm(run, arm, given.to) / 'README.md'}")
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
