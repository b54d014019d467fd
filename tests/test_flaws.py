"""Flaws of real data are counted as the data is used, and stripped only where the profile says so."""

from __future__ import annotations

import math

import pytest

from persona_lib import fingerprint
from persona_lib.config import REPO, Run, load_profile
from persona_lib.data import official, official_folders, preference, tailoring
from persona_lib.data.tailoring import tailoring_key
from persona_lib.evaluation.personas import personas_key, to_infer
from persona_lib.reading.show_personas import inference_prompt_text, inferred_splits
from persona_lib.tables import flaws

N = 4


def write_folder(root, dataset, change):
    """Write a tailoring folder of N rows per split in our own words; ``change`` edits a split's columns."""
    from datasets import Dataset, DatasetDict

    splits = {}
    for split in official_folders.SPLITS:
        columns = {name: [f"{split} {name} {n}" for n in range(N)] for name in official.PAIR_COLUMNS}
        for column in official.PERSONA_COLUMNS.values():
            columns[column] = [
                f"The user is {split} {n} and prefers {column[:6]} over tea." for n in range(N)
            ]
        change(split, columns)
        splits[split] = Dataset.from_dict(columns)
    DatasetDict(splits).save_to_disk(root / official_folders.DATASETS[dataset]["tailoring"])


def write_inference(root, dataset):
    from datasets import Dataset, DatasetDict

    columns = {name: [f"pair {name} {n}" for n in range(300)] for name in official.PAIR_COLUMNS}
    table = DatasetDict({"train": Dataset.from_dict(columns)})
    table.save_to_disk(root / official_folders.DATASETS[dataset]["inference"])


@pytest.fixture
def open_run(tmp_path, monkeypatch):
    """Write folders of a data set, small, and open a run on them: open_run(dataset, change, *overrides)."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))

    def open_run(dataset, change, *overrides):
        small = official_folders.DATASETS[dataset] | {"rows": (N,) * 6}
        monkeypatch.setitem(official_folders.DATASETS, dataset, small)
        if not (tmp_path / "data").exists():
            write_folder(tmp_path / "data", dataset, change)
            write_inference(tmp_path / "data", dataset)
        wanted = [f"datasets={dataset}", f"data_dir={tmp_path / 'data'}", *overrides]
        return Run(load_profile("authors", ["strip_roles=false", *wanted]), dataset, 0)

    return open_run


def with_flaws(split, columns):
    columns["prompt"] = [f"Human: {text}" for text in columns["prompt"]]
    columns["rejected"][0] = f"Assistant: Assistant: {columns['rejected'][0]}"
    if split == "test":
        columns["rejected_persona_gold"][:2] = ["I'm sorry, no.", "It seems there is an error."]


def test_flaws_are_counted_per_split(open_run):
    run = open_run("hhh", with_flaws)
    tailoring.build_tailoring(run)
    table = flaws.flaw_table(run, tailoring.load_tailoring(run))
    assert table.loc["gold-rejected: refusal"].to_dict() | {"test": 0} == dict.fromkeys(table.columns, 0)
    assert table.loc["gold-rejected: refusal", "test"] == table.loc["gold-rejected: malformed", "test"] == 1
    assert table.loc["gold-rejected: contrastive", "test"] == N - 2
    assert table.loc["gold-chosen: contrastive", "sft_train"] == N == table.loc[flaws.ROLES, "sft_train"]
    assert preference.data_card(tailoring.load_tailoring(run)).loc["test", "with a role"] == N


@pytest.mark.slow
def test_stripping_takes_both_off_everywhere_and_has_keys_of_its_own(open_run):
    plain = open_run("hhh", with_flaws)
    run = open_run("hhh", with_flaws, "strip_roles=true", "strip_contrast=true")
    tailoring.build_tailoring(run)
    rows = tailoring.load_tailoring(run)
    table = flaws.flaw_table(run, rows)
    assert table.loc[flaws.ROLES].sum() == 0
    assert table[table.index.str.contains("contrastive")].to_numpy().sum() == 0
    assert rows["sft_train"][0].rejected == "sft_train rejected 0"
    assert rows["test"][2].personas["gold-rejected"] == "The user is test 2 and prefers reject."
    assert rows["test"][2].personas["shuffled-rejected"] == "The user is test 3 and prefers reject."
    preference.write_pairs(run)
    assert preference.load_pairs(run)["train"][0].prompt == "sft_train prompt 0"
    for field in ("strip_roles=true", "strip_contrast=true"):
        assert tailoring_key(open_run("hhh", with_flaws, field), {}) != tailoring_key(plain, {})
    assert preference.input_key(run) != preference.input_key(plain)


# --- Mnemonic's test split: empty strings for responses and gold personas ---


def empty_test(split, columns):
    if split != "test":
        return
    for name in ("chosen", "rejected", "chosen_persona_gold", "rejected_persona_gold"):
        columns[name] = [""] * N
    for side in ("chosen", "rejected"):
        lent = [f"The user is dpo_train {n} and prefers {side[:6]} over tea." for n in range(N)]
        columns[f"{side}_persona_retr"] = lent


@pytest.mark.slow
def test_rows_without_responses_are_no_pairs_and_their_empty_personas_are_none(open_run):
    run = open_run("mnemonic", empty_test)
    preference.write_pairs(run)
    assert {split: len(part) for split, part in preference.load_pairs(run).items()} == {
        "train": 2 * N,
        "validation": 2 * N,
        "test": 0,
    }
    tailoring.build_tailoring(run)
    rows = tailoring.load_tailoring(run)
    for row in rows["test"]:
        assert (row.chosen, row.rejected) == ("", "")
        assert row.personas["gold-chosen"] is row.personas["gold-rejected"] is None
        assert row.personas["retrieved-chosen"].startswith("The user is dpo_train")
        assert "shuffled-chosen" not in row.personas
    card = preference.data_card(rows)
    assert card.loc["test", "without responses"] == N == card.loc["test", "gold-chosen: without"]
    assert math.isnan(card.loc["test", "words of chosen"])
    assert flaws.flaw_table(run, rows).loc["gold-chosen: empty", "test"] == N


@pytest.mark.slow
@pytest.mark.parametrize("name", ["01_preference_data", "05_tailoring_data"])
def test_the_notebooks_pass_over_rows_without_responses(open_run, name, capsys):
    run = open_run("mnemonic", empty_test)
    parameters, *cells = fingerprint.code_cells(REPO / "notebooks" / f"{name}.ipynb")
    settings = [f"datasets={run.dataset}", f"data_dir={run.profile.data_dir}"]
    space = {"profile": "authors", "dataset": run.dataset, "seed": 0, "overrides": settings}
    for source in cells:
        exec(fingerprint.python_code(source), space)
    assert parameters.startswith("profile: str")
    assert {"01": "no row has both responses in: test", "05": "tailoring data:"}[
        name[:2]
    ] in capsys.readouterr().out


def test_personas_of_official_data_are_inferred_for_the_300_pairs_of_the_paper(open_run):
    run = open_run("mnemonic", empty_test)
    work = to_infer(run)
    assert [(split, side, len(pairs)) for split, side, pairs in work] == [
        ("inference", "chosen", 300),
        ("inference", "rejected", 300),
    ]
    assert work[0][2][7].id == "mnemonic-inference-0007"
    assert inferred_splits(run) == ("inference",)
    assert "pair prompt 0" in inference_prompt_text(run)
    preference.write_pairs(run)
    key = personas_key(run)
    folder = official_folders.find_data_dir(run.profile.data_dir, ["mnemonic"], kind="inference")
    path = folder / official_folders.DATASETS["mnemonic"]["inference"] / "train" / "state.json"
    path.write_text(path.read_text() + " ")
    assert personas_key(run) != key


def test_a_data_set_for_inference_alone_is_read_as_test_pairs(official_data, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    run = Run(load_profile("paper", ["datasets=shp", f"data_dir={official_data}"]), "shp", 0)
    preference.write_pairs(run)
    pairs = preference.load_pairs(run)
    assert {split: len(part) for split, part in pairs.items()} == {"train": 0, "validation": 0, "test": 300}
    assert pairs["test"] == preference.inference_pairs(run)
