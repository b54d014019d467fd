"""The authors' data: one schema, errors that say where and how, folders found or fetched whole."""

from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from persona_lib import store
from persona_lib.data import official
from persona_lib.records import DataError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes a small BeaverTails with three rows per split; ``change`` edits its columns."""
    small = official.DATASETS["beavertails"] | {"rows": (3,) * 6}
    monkeypatch.setitem(official.DATASETS, "beavertails", small)

    def write_folder(root: Path, change=lambda split, columns: None) -> Path:
        splits = {}
        for split in official.SPLITS:
            columns = {name: [f"{split} {name} {n}" for n in range(3)] for name in official.PAIR_FIELDS}
            for column in official.PERSONA_COLUMNS.values():
                columns[column] = [f"The user is {split} {n} and prefers {column[:6]}." for n in range(3)]
            change(split, columns)
            splits[split] = Dataset.from_dict(columns)
        DatasetDict(splits).save_to_disk(root / official.folder_of("beavertails", "tailoring"))
        return root

    return write_folder


def test_rows_carry_ids_personas_and_the_row_that_retrieval_used(write, tmp_path):
    def change(split, columns):
        columns["prompt"] = [f"Human: {text}" for text in columns["prompt"]]
        if split == "test":
            columns["chosen_persona_retr"][1] = "The user is dpo_train 2 and prefers chosen."
            columns["rejected_persona_retr"][1] = "The user is dpo_train 2 and prefers reject."
            columns["rejected_persona_gold"][:2] = ["I can’t help you with that.", ""]
            columns["rejected_persona_retr"][2] = "It seems there is an error in the prompt."
            columns["chosen"][:2] = "", "Assistant: yes, Human: too"
            columns["rejected"][0] = ""

    folder = write(tmp_path, change)
    rows = official.load_official(folder, "beavertails")["test"]
    assert [row.id for row in rows] == [f"beavertails-test-000{n}" for n in range(3)]
    assert [row.retrieved_id for row in rows] == [None, "beavertails-dpo_train-0002", None]
    assert [row.personas["gold-rejected"] is None for row in rows] == [True, True, False]
    assert rows[2].personas["retrieved-rejected"] is None, "an error message is no persona"
    pairs = official.official_pairs(folder, "beavertails")["test"]
    assert [pair.id for pair in pairs] == [row.id for row in rows[1:]], "a row without responses is no pair"
    stripped = official.load_official(folder, "beavertails", strip_roles=True)["test"][1]
    assert rows[1].prompt == "Human: test prompt 1"
    assert (stripped.prompt, stripped.chosen) == ("test prompt 1", "yes, Human: too")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("rejected"), "column 'rejected' is missing"),
        (lambda c: c.update(chosen=["a", None, "c"]), "row 1, column 'chosen': None"),
        (lambda c: [values.pop() for values in c.values()], "2 rows, the release has 3"),
    ],
)
def test_schema_errors_name_folder_split_row_and_column(write, tmp_path, change, words):
    write(tmp_path, lambda split, columns: split == "test" and change(columns))
    with pytest.raises(DataError, match=f"persona-tailoring-BeaverTails, split test.*{words}"):
        official.load_official(tmp_path, "beavertails")


def test_data_is_found_in_the_named_folder_or_its_parent_or_ways_out_are_given(write, tmp_path, monkeypatch):
    folder = write(tmp_path / "official")
    for place in (folder, tmp_path):
        assert official.find_data_dir(place, ["beavertails"]) == folder
        monkeypatch.setenv("PERSONA_DATA", str(place))
        assert official.find_data_dir("", ["beavertails"]) == folder
    for place, said in ((tmp_path, r"data.path=.*\(1\).*\(2\)"), ("", r"\$PERSONA_DATA")):
        with pytest.raises(DataError, match=said):
            official.find_data_dir(place, ["hhh"])
    monkeypatch.delenv("PERSONA_DATA")
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(official, "REPO", tmp_path / "repo")
    monkeypatch.setattr(official, "download", lambda *_: pytest.fail("tried to download"))
    with pytest.raises(DataError, match="downloads are off"):
        official.find_data_dir("", ["beavertails"])


def test_a_download_is_complete_only_when_every_file_has_its_checksum(tmp_path):
    names, home = official.files_of("persona-inference-SHP"), tmp_path / "home"
    for name in names:
        store.write_text(home / name, f"content of {name}")
    sums = {name: store.file_hash(home / name) for name in names}
    target = official.download(names, tmp_path / "good", home.as_uri(), sums, "way out")
    assert (target / names[-1]).read_text() == f"content of {names[-1]}"
    store.write_text(home / names[0], "tampered with")
    with pytest.raises(DataError, match="SHA-256 .* way out"):
        official.download(names, tmp_path / "bad", home.as_uri(), sums, "way out")
    assert not any(path.is_file() for path in (tmp_path / "bad").rglob("*"))


def test_the_released_data_is_as_published(official_data):
    rows = official.load_official(official_data, "beavertails")
    assert [len(part) for part in rows.values()] == [5, 977, 244, 982, 246, 499]
    assert sum(row.retrieved_id is not None for row in rows["test"]) == 497
    assert sum(row.personas["gold-rejected"] is None for part in rows.values() for row in part) == 5
    for name, sha256 in store.read_json(official.CHECKSUMS).items():
        assert not (official_data / name).exists() or store.file_hash(official_data / name) == sha256, name
