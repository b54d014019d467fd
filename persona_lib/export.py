"""Take a trained policy out of the results: ``python -m persona_lib.export --arm dpo-chosen --to DIR``.

DIR gets the adapters as they were trained, the one adapter that equals them stacked, the tokenizer, and a
model card with code that loads all this onto the base without the package. ``--merge`` adds base and
adapters as one float32 model, checked against the policy.
``--push REPO_ID`` uploads the folder to the model hub, into a private repository, with the token in
``HF_TOKEN``; nothing is ever uploaded without it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_lib import report, store
from persona_lib.models import load, train
from persona_lib.models.load import ModelError, chat_format, load_tokenizer
from persona_lib.paper.swap import adapters_of
from persona_lib.settings import ConfigError, Run, open_run

CHECK_ROWS = 32  # validation rows on which a merge is measured


def adapter_stack(run: Run, arm: str) -> list[Path]:
    """Return the finished adapter folders of an arm, lowest first; raises what to do if one is missing."""
    folders = adapters_of(run, arm)
    if not folders:
        raise ValueError(f"arm {arm!r} has no adapters: export sft-<train_persona> or dpo-<train_persona>")
    for folder in folders:
        if not (folder / "done.json").exists():
            raise FileNotFoundError(f"{folder} is not finished: run the training steps first")
    return folders


def copy_adapter(folder: Path, target: Path, base_name: str | None) -> None:
    """Copy an adapter with its settings; its config names the base by ``base_name``, never a path of here."""
    target.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "spec.json"):
        shutil.copy2(folder / name, target / name)
    config = store.read_json(folder / "adapter_config.json")
    store.write_json(target / "adapter_config.json", {**config, "base_model_name_or_path": base_name})


def validation_texts(run: Run, arm: str) -> list[tuple[str, str]]:
    """Return (prompt, target response) of the first validation rows that the arm was trained with."""
    method, _, train_persona = arm.partition("-")
    rows = train.load_rows(run, method, train_persona)[0]["val"][:CHECK_ROWS]
    return [(row["prompt"], row["completion" if method == "sft" else "chosen"]) for row in rows]


def write_merged(run: Run, arm: str, folders: Sequence[Path], target: Path) -> load.MergeCheck:
    """Write the merged float32 model and measure it; what fails the check is deleted again."""
    profile, tokenizer = run.profile, load_tokenizer(*run.base_source)
    how = (run.base_source, profile.quantization, profile.compute_dtype, folders)
    load.write_merged(*how, target)
    tokenizer.save_pretrained(target)
    try:
        check = load.check_merge(*how, target, tokenizer, validation_texts(run, arm))
    except ModelError:
        shutil.rmtree(target)
        raise
    found = f"KL(policy || merged) {check.kl:.3g}, KL(policy || base) {check.kl_base:.3g} nats per token"
    print(f"{target}: {found}, {check.tokens} tokens")
    return check


def export_arm(run: Run, arm: str, target: Path, merge: bool = False, repo_id: str = "") -> Path:
    """Write everything of one arm into a new folder and return it; nothing leaves this machine.

    ``repo_id`` is only named in the card. Raises FileExistsError if the folder has content, ModelError if
    a merge loses what the adapters learned.
    """
    folders = adapter_stack(run, arm)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty: choose a new folder")
    target.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        copy_adapter(folder, target / folder.name, report.hub_id(run) or None)
    load.join_adapters([target / folder.name for folder in folders], target)
    tokenizer = load_tokenizer(*run.base_source)
    tokenizer.save_pretrained(target)
    check = write_merged(run, arm, folders, target / "merged") if merge else None
    stack = [folder.name for folder in folders]
    store.write_text(
        target / "README.md", report.model_card(run, arm, stack, chat_format(tokenizer), check, repo_id)
    )
    return target


def push(folder: Path, repo_id: str, api: Any = None) -> str:
    """Upload an exported folder to a private repository of the hub and return its address.

    The token is read from HF_TOKEN and nowhere else; raises ConfigError without one.
    """
    token = os.environ.get("HF_TOKEN", "")
    if not token:
        raise ConfigError("--push needs a token with write access in the environment variable HF_TOKEN")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi(token=token)
    api.create_repo(repo_id, repo_type="model", private=True, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id, folder_path=str(folder), repo_type="model", commit_message="Export of persona_lib"
    )
    return f"{repo_id} (private until you make it public)"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m persona_lib.export", description=__doc__)
    add = parser.add_argument
    add("--profile", default="everyday")
    add("--dataset", default="", help="default: the profile's first")
    add("--seed", type=int, default=0)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as for run_all.sh")
    add("--arm", default="dpo-chosen", help="sft-<train_persona> or dpo-<train_persona>")
    add("--to", required=True, type=Path, metavar="DIR", help="a new folder")
    add("--merge", action="store_true", help="also write base and adapters as one float32 model, checked")
    add("--push", default="", metavar="REPO_ID", help="then upload DIR to the hub; token in HF_TOKEN")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 2 for what the user has to mend."""
    arguments = parse_arguments(argv)
    try:
        run = open_run(arguments.profile, arguments.dataset, arguments.seed, arguments.set)
        folder = export_arm(run, arguments.arm, arguments.to, arguments.merge, arguments.push)
        print(f"exported to {folder}; read {folder / 'README.md'}")
        if arguments.push:
            print(f"pushed to {push(folder, arguments.push)}")
    except (ConfigError, ValueError, FileNotFoundError, FileExistsError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
