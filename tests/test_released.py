"""The released outputs: the published figures from the real files, and clear errors where they are absent."""

import json
from pathlib import Path

import pytest

from persona_lib.beyond import released
from persona_lib.beyond.released import FILES, ReleasedFile, ReleasedOutput
from persona_lib.records import DataError, TailoringRow

BT = "beavertails"
PT_GOLD = ReleasedFile(BT, "chosen", "gold-chosen")


@pytest.fixture(scope="module")
def data():
    opened, message = released.open_if_present()
    if opened is None or BT not in opened.rows:
        pytest.skip(message)
    return opened


@pytest.fixture(scope="module")
def tables(data):
    return released.released_tables(data, n_resamples=1500)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine on which neither the released outputs nor a network is at hand."""
    monkeypatch.setattr(released, "REPO", tmp_path / "repo")
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("PERSONA_DATA", raising=False)
    return tmp_path


# --- the real files ---


@pytest.mark.slow
def test_files_at_hand_are_complete_and_aligned(data):
    assert len([file for file in data.outputs if file.dataset == BT]) == 9
    assert all(len(outputs) == len(data.rows[file.dataset]) for file, outputs in data.outputs.items())
    first = data.outputs[PT_GOLD][0]
    assert first.ended and released.EOS not in first.text


@pytest.mark.slow
def test_beavertails_flip_and_did_hit_the_published_figures(tables):
    table = tables["released_flip"].set_index(["dataset", "personas", "arm"])
    wanted = {
        ("gold", "dpo-chosen"): (0.403, 0.083, 0.813, 0.073, 0.094),
        ("gold", "dpo-none"): (0.186, 0.018, 0.604, 0.012, 0.024),
        ("retrieved", "dpo-chosen"): (0.13, 0.005, 0.50, -0.004, 0.014),
        ("retrieved", "dpo-none"): (0.09, -0.001, 0.51, -0.006, 0.004),
    }
    for key, (flip, did, positive, low, high) in wanted.items():
        row = table.loc[(BT, *key)]
        places = 3 if key[0] == "gold" else 2
        assert (round(row.flip, places), round(row.did, 3)) == (flip, did)
        assert row.did_positive == pytest.approx(positive, abs=0.005 if places == 2 else 0.0005)
        assert (row.did_low, row.did_high) == pytest.approx((low, high), abs=0.0015)


@pytest.mark.slow
def test_beavertails_lengths_hit_the_published_figures(tables):
    table = tables["released_lengths"].set_index(["dataset", "personas", "arm"])
    tailored, plain = table.loc[(BT, "gold", "dpo-chosen")], table.loc[(BT, "gold", "dpo-none")]
    columns = ["words_under_chosen", "words_under_rejected", "words_chosen", "words_rejected"]
    assert tailored[columns].round(1).tolist() == [89.0, 74.3, 92.1, 69.7]
    assert plain[columns[:2]].round(1).tolist() == [111.9, 110.8]
    assert (round(tailored.rho, 3), round(plain.rho, 3)) == (0.530, 0.104)
    assert all(abs(table.loc[(BT, "retrieved", arm)].rho) <= 0.06 for arm in ("dpo-chosen", "dpo-none"))


@pytest.mark.slow
def test_beavertails_degenerate_counts_hit_the_published_figures(tables):
    table = tables["released_counts"].set_index(["dataset", "arm", "eval_persona"])
    columns = ["n", "no_eos", "rep4_over_20", "rep4_over_50", "suffix_loop"]
    assert table.loc[(BT, "dpo-chosen", "gold-chosen")][columns].tolist() == [499, 1, 2, 1, 1]
    assert table.loc[(BT, "dpo-chosen", "gold-rejected")][columns].tolist() == [499, 2, 4, 3, 2]
    assert table.loc[(BT, "dpo-chosen", "retrieved-rejected")][columns].tolist() == [499, 1, 2, 1, 0]
    assert table.loc[(BT, "dpo-none", "none")].words_median == 103
    kept = tables["released_kept"].set_index(["dataset", "eval_persona"]).loc[BT]
    columns = ["n", "kept_eos", "only_pt_endless", "only_dpo_endless"]
    assert kept.loc["gold-chosen"][columns].tolist() == [499, 498, 1, 0]
    assert kept.length_ratio.round(2).tolist() == [1.26, 1.49, 1.22, 1.42]


# --- names, places, errors ---


def test_there_are_21_files_under_the_authors_names():
    assert len(FILES) == len({file.path for file in FILES}) == 21
    assert ReleasedFile("hhh", "none", "retrieved-rejected").path == (
        "Anthropic HHH/dpo_Persona(training_type=none, inference_type=retr-rejected).jsonl"
    )
    assert set(released.checksums()) == {file.path for file in FILES if file.dataset == BT}


def test_absent_files_are_told_with_the_three_ways_and_do_not_stop_a_notebook(nowhere):
    opened, message = released.open_if_present()
    assert opened is None
    for way in (
        "data_dir=PATH",
        "PERSONA_DATA",
        "released_outputs beside",
        "python -m persona_lib.beyond.released",
    ):
        assert way in message
    with pytest.raises(DataError, match="not here"):
        released.open_released()


@pytest.mark.parametrize("place", [".", "released_outputs", "official"])
def test_released_outputs_are_found_in_or_beside_the_data_folder(nowhere, monkeypatch, place):
    home = nowhere / "data" / "released_outputs"
    write_items(home / PT_GOLD.path, [])
    (nowhere / "data" / "official").mkdir()
    assert released.find_released(nowhere / "data" / place) == home
    monkeypatch.setenv("PERSONA_DATA", str(nowhere / "data" / place))
    assert released.find_released() == home
    assert released.files_in(home) == [PT_GOLD]


def write_items(path: Path, items: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items, indent=4))


HHH_FILE = ReleasedFile("hhh", "chosen", "gold-chosen")  # not in the checksum table


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"prompt": "p"}, "one JSON list"),
        ([{"prompt": "p", "response": "r"}, {"prompt": "p"}], "item 1: no text 'response'"),
        ([{"prompt": 3, "response": "r"}], "item 0: no text 'prompt'"),
        (["text"], "item 0"),
    ],
)
def test_a_file_of_another_shape_is_an_error_that_names_the_item(tmp_path, items, message):
    write_items(tmp_path / HHH_FILE.path, items)
    with pytest.raises(DataError, match=message):
        released.load_outputs(tmp_path, HHH_FILE)


def test_the_end_mark_is_removed_and_remembered(tmp_path):
    responses = [f" yes{released.EOS}", " no end", f" mid{released.EOS}dle"]
    write_items(tmp_path / HHH_FILE.path, [{"prompt": "p", "response": r} for r in responses])
    outputs = released.load_outputs(tmp_path, HHH_FILE)
    assert [(o.text, o.ended) for o in outputs] == [(" yes", True), (" no end", False), (" middle", False)]
    assert [o.id for o in outputs] == ["hhh-test-0000", "hhh-test-0001", "hhh-test-0002"]


def test_a_changed_file_is_refused(tmp_path):
    write_items(tmp_path / PT_GOLD.path, [{"prompt": "p", "response": "r"}])
    with pytest.raises(DataError, match="SHA-256"):
        released.load_outputs(tmp_path, PT_GOLD)


def test_download_checks_known_files_and_records_others_on_first_use(tmp_path):
    home, target = tmp_path / "home", tmp_path / "target"
    for file in (PT_GOLD, HHH_FILE):
        write_items(home / file.path, [])
    with pytest.raises(DataError, match="not the released file"):
        released.download_released([PT_GOLD], target, home.as_uri())
    assert not (target / PT_GOLD.path).exists()
    assert released.files_in(released.download_released([HHH_FILE], target, home.as_uri())) == [HHH_FILE]
    write_items(target / HHH_FILE.path, [{"prompt": "p", "response": "changed"}])
    with pytest.raises(DataError, match="SHA-256"):
        released.load_outputs(target, HHH_FILE)


def test_outputs_of_other_rows_or_personas_are_refused():
    personas = {"gold-chosen": "The user is terse."}
    row = TailoringRow("hhh-test-0000", "test", "Human: Why?", "c", "r", personas)
    good = ReleasedOutput(row.id, "Prompt: Human: Why? I am terse.\nResponse:", "", True)
    released.check_aligned(HHH_FILE, [good], [row])
    for prompt in ("Prompt: Human: Why not? I am terse.", "Prompt: Human: Why? I am verbose."):
        with pytest.raises(DataError, match="hhh-test-0000"):
            released.check_aligned(HHH_FILE, [ReleasedOutput(row.id, prompt, "", True)], [row])
    with pytest.raises(DataError, match="1 outputs for 2 test rows"):
        released.check_aligned(HHH_FILE, [good], [row, row])


def test_rows_without_responses_or_without_both_files_have_no_flip():
    mnemonic = ReleasedFile("mnemonic", "chosen", "retrieved-chosen")
    outputs = {file: [ReleasedOutput("i", "p", "a b", True)] for file in (mnemonic, HHH_FILE)}
    responses = {"mnemonic": ("", ""), "hhh": ("c", "r")}
    rows = {name: [TailoringRow("i", "test", "p", *pair)] for name, pair in responses.items()}
    data = released.Released(Path(), outputs, rows)
    assert list(released.both_sides(data)) == []
    assert len(released.counts_table(data)) == 2
