"""A user's own data: every row is accounted for, by row and field, and near prompts never part."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest
from tiny import tiny_tokenizer

from persona_lib import pipeline, report, settings, show, tasks
from persona_lib.data import intake, preference
from persona_lib.data.intake import read_mapping
from persona_lib.records import DataError
from persona_lib.report import command_of
from persona_lib.settings import Run, load_profile
from persona_lib.tasks import STEPS

EXAMPLES = settings.REPO / "examples"
NAMES = ["red", "blue", "green", "old", "new", "small", "large", "round", "flat", "warm"]


def good(n: int) -> dict[str, str]:
    """Return a usable row; no two prompts are near."""
    word = f"{NAMES[n % 10]}{n}"
    return {
        "prompt": f"What is {word} for {word}?",
        "chosen": f"It is {word}, and more.",
        "rejected": f"{word}.",
    }


def profile_of(path: Path | str, mapping: Path | str = "", **changes: object) -> settings.Profile:
    """Return the profile of own data."""
    return settings.set_field(load_profile("own"), data_dir=str(path), data_mapping=str(mapping), **changes)


def save(path: Path, rows: list, extra: bytes = b"") -> Path:
    """Write rows as JSON lines; a row that is text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_bytes("\n".join(lines).encode() + b"\n" + extra)
    return path


def mapped(tmp_path: Path, text: str) -> Path:
    """Write a mapping file."""
    path = tmp_path / "mapping.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- damaged rows ---

DAMAGED = [  # row, code, field, and whether it is kept
    ('{"prompt": "cut off', "unreadable", "row"),
    ([1, 2], "unreadable", "row"),
    ({"prompt": "p", "chosen": "c"}, "missing", "rejected"),
    (good(40) | {"chosen": None}, "null", "chosen"),
    (good(41) | {"prompt": 17}, "not text", "prompt"),
    (good(42) | {"rejected": " \n"}, "empty", "rejected"),
    (good(43) | {"rejected": good(43)["chosen"] + " "}, "identical", "rejected"),
    (good(44) | {"chosen": "caf\ufffd"}, "lost characters", "chosen"),
    (good(45) | {"chosen": "half \ud83d"}, "lost characters", "chosen"),
    (good(46) | {"prompt": "zero \x00 byte"}, "control character", "prompt"),
    (good(3), "duplicate", "row"),
    (good(47) | {"split": "holdout"}, "split", "split"),
    (
        good(48) | {"chosen": [{"role": "user", "content": "x"}], "rejected": [{"role": "user"}]},
        "messages",
        "rejected",
    ),
]
KEPT = [
    (good(50) | {"chosen": "It\u00e2\u20ac\u2122s caf\u00c3\u00a9"}, "mojibake", "chosen"),
    (good(51) | {"chosen": f"You ask: {good(51)['prompt']} Well."}, "quoted prompt", "chosen"),
    (
        {"prompt": good(4)["prompt"], "chosen": good(4)["rejected"], "rejected": good(4)["chosen"]},
        "opposite",
        "row",
    ),
    (good(52) | {"rejected": "So.\nPrompt: next"}, "stop string", "rejected"),
]


@pytest.fixture
def damaged(tmp_path) -> intake.OwnData:
    """Own data of 30 good rows, one row per kind of damage, and four that are kept but odd."""
    rows = [good(n) for n in range(30)] + [row for row, _, _ in (*DAMAGED, *KEPT)]
    return intake.read_own(profile_of(save(tmp_path / "damaged.jsonl", rows)))


def test_every_kind_of_damage_is_named_by_row_and_field_and_nothing_is_lost(damaged):
    expected = {31 + n: (field, code) for n, (_, code, field) in enumerate(DAMAGED)}
    assert {row: (f.field, f.code) for row, f in damaged.rejected.items()} == expected
    assert damaged.n_read == 30 + len(DAMAGED) + len(KEPT) == len(damaged.rows) + len(damaged.rejected)
    assert {row.row for row in damaged.rows} | set(damaged.rejected) == set(range(1, damaged.n_read + 1))


def test_odd_rows_are_kept_and_noted(damaged):
    first = 31 + len(DAMAGED)
    expected = {(first + n, field, code) for n, (_, code, field) in enumerate(KEPT)}
    assert {(f.row, f.field, f.code) for f in damaged.findings if not f.rejected} == expected


def test_the_account_adds_up(damaged):
    counts = intake.account(damaged)
    read = counts.pop("read")
    assert read == sum(counts.values()) and counts["lost characters"] == 2


@pytest.mark.slow
def test_the_page_names_every_damaged_row_escaped_and_loads_nothing(damaged, tmp_path):
    profile = profile_of(tmp_path / "damaged.jsonl")
    text = report.write_page(profile, damaged, tmp_path).read_text(encoding="utf-8")
    for row, finding in damaged.rejected.items():
        assert f"<td>line {row}</td><td>{html.escape(finding.field)}</td>" in text
    assert "src=" not in text and "href=" not in text and "Read = usable + rejected" in text
    assert (
        len(intake.finding_table(damaged))
        == len((tmp_path / "data_findings.csv").read_text().splitlines()) - 1
    )


def test_a_page_shows_no_markup_of_the_data(tmp_path):
    rows = [good(n) for n in range(25)] + [good(60) | {"chosen": "<script>x()</script>\x07"}]
    rows[0]["prompt"] = "<img src=x onerror=y()> What?"
    data = intake.read_own(profile_of(save(tmp_path / "x.jsonl", rows)))
    text = report.page_text(profile_of(tmp_path / "x.jsonl"), data)
    assert "<script" not in text and "<img" not in text and "&lt;/script&gt;" in text


def test_longer_rows_than_max_length_are_counted_in_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "training_tokenizer", lambda profile: tiny_tokenizer())
    rows = [good(n) for n in range(25)] + [good(60) | {"chosen": "very " * 400 + "long"}]
    profile = profile_of(save(tmp_path / "x.jsonl", rows), max_length=100)
    data = intake.read_own(profile)
    counts = report.token_counts(profile, data)
    assert [finding.row for finding in report.too_long(profile, data, counts)] == [26]
    assert counts[0] < 100 < counts[25]


def write_csv(path: Path) -> Path:
    """Write 30 rows with a byte order mark, quotes and line breaks in cells."""
    lines = ["prompt,chosen,rejected"]
    lines += [f'"{good(n)["prompt"]}","He said ""yes"",\nthen {n}","no, {n}"' for n in range(30)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    return path


def test_a_csv_with_a_bom_quotes_and_newlines_is_read_whole(tmp_path):
    data = intake.read_own(profile_of(write_csv(tmp_path / "x.csv")))
    assert len(data.rows) == data.n_read == 30 and data.findings == ()
    assert data.rows[3].pair.chosen == 'He said "yes",\nthen 3' and data.rows[3].pair.rejected == "no, 3"


def test_conversations_are_read_without_any_mapping(tmp_path):
    def turn(role, text):
        return {"role": role, "content": text}

    rows = []
    for n in range(24):
        row, asked = good(n), [turn("user", good(n)["prompt"])]
        sides = {s: [turn("assistant", row[s])] for s in ("chosen", "rejected")}
        rows.append({"prompt": asked, **sides} if n % 2 else {s: asked + m for s, m in sides.items()})
    data = intake.read_own(profile_of(save(tmp_path / "x.jsonl", rows)))
    assert len(data.rows) == 24
    assert [r.pair.prompt for r in data.rows] == [good(n)["prompt"] for n in range(24)]
    assert [r.pair.rejected for r in data.rows] == [good(n)["rejected"] for n in range(24)]


def test_a_profile_whose_judge_reads_our_own_pairs_only_is_refused_by_the_guide():
    with pytest.raises(
        settings.ConfigError, match="judge=oracle reads answers to the package's own pairs only"
    ):
        show.guide_run("smoke", [])


# --- labels and mappings ---


@pytest.mark.slow
def test_autoj_is_read_with_its_mapping_and_every_row_is_accounted_for(autoj_data):
    path = next(p for p in [autoj_data, *sorted(autoj_data.glob("*"))] if p.is_file())
    data = intake.read_own(profile_of(path, EXAMPLES / "autoj.yaml"))
    assert intake.account(data) == {"read": 1392, "usable": 1017, "tie": 373, "empty": 1, "identical": 1}
    first = next(row for row in map(json.loads, path.read_text().splitlines()) if row["label"] in (0, 1))
    liked = first[f"response {first['label'] + 1}"]
    assert (data.rows[0].pair.prompt, data.rows[0].pair.chosen) == (first["prompt"], liked)
    assert len({row.category for row in data.rows}) > 50


def test_labels_are_compared_as_text_and_ties_and_strangers_are_counted(tmp_path):
    rows = [
        {"q": good(n)["prompt"], "a": good(n)["chosen"], "b": good(n)["rejected"], "win": label}
        for n, label in enumerate([0, "0", 1.0, "B"] * 6 + ["Tie", 7])
    ]
    mapping = mapped(
        tmp_path, "prompt: q\nresponses: [a, b]\nlabel: win\nfirst: 0\nsecond: [1, b]\ntie: tie\n"
    )
    data = intake.read_own(profile_of(save(tmp_path / "x.jsonl", rows), mapping))
    assert [r.pair.chosen for r in data.rows[:4]] == [
        good(0)["chosen"], good(1)["chosen"], good(2)["rejected"], good(3)["rejected"]
    ]  # fmt: skip
    assert {row: (f.field, f.code) for row, f in data.rejected.items()} == {
        25: ("win", "tie"),
        26: ("win", "label"),
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("promt: q\n", "unknown field 'promt'; did you mean prompt"),
        ("- prompt\n", "should be lines of 'field: column'"),
        ("prompt: [\n", "not a readable YAML file"),
        ("prompt: 3\n", "prompt=3 should be the name of a column"),
        ("responses: [a]\n", "should be two columns"),
        ("responses: [a, b]\nlabel: l\nfirst: 0\n", "responses need second"),
        ("responses: [a, b]\nlabel: l\nfirst: 0\nsecond: 0\n", "the label '0' stands for two outcomes"),
        ("responses: [a, b]\nchosen: c\n", "chosen does not go with responses"),
        ("label: l\n", "label is given, but not responses"),
        ("splits: {dev: validate}\n", "name in the data: train, validation or test"),
    ],
)
def test_a_wrong_mapping_names_file_field_and_mend(tmp_path, text, complaint):
    path = mapped(tmp_path, text)
    with pytest.raises(DataError, match=complaint) as caught:
        read_mapping(str(path))
    assert str(caught.value).startswith(str(path))


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    path = save(tmp_path / "x.jsonl", [{"question": "q", "chosen": "c", "rejected": "r"}] * 3)
    with pytest.raises(
        DataError, match="no column 'prompt'; .*Columns there: question, chosen, rejected.*--mapping"
    ):
        intake.read_own(profile_of(path))
    with pytest.raises(DataError, match="no column 'questoin'; did you mean question"):
        intake.read_own(profile_of(path, mapped(tmp_path, "prompt: questoin\n")))


def test_too_few_prompts_say_what_became_of_the_rows(tmp_path):
    path = save(tmp_path / "x.jsonl", [good(n) for n in range(5)] + [good(9) | {"chosen": ""}])
    with pytest.raises(
        DataError, match="5 different prompts; at least 20 .* 1 empty .chosen.; first: line 6"
    ):
        intake.read_own(profile_of(path))


# --- splits ---


def test_near_prompts_share_a_split_even_through_a_third(tmp_path):
    chain = [
        "how do I bake a good dark rye bread at home",
        "how do I bake a good dark rye bread today",
        "so how do I bake a good dark rye bread today",
    ]
    others = ["How do I  BAKE a good dark rye bread at home", "something else"]
    groups = intake.near_groups([*chain, *others], 0.65)
    assert len(set(groups[:4])) == 1 and groups[4] not in groups[:4]
    assert len(set(intake.near_groups(chain[::2], 0.65))) == 2  # 7 of 11 different 3-grams in common


def test_splits_follow_the_texts_alone_and_have_their_shares(tmp_path):
    rows = [good(n) for n in range(200)]
    first = intake.read_own(profile_of(save(tmp_path / "a.jsonl", rows))).pairs()
    again = intake.read_own(profile_of(save(tmp_path / "b.jsonl", rows[::-1]))).pairs()
    assert {name: len(part) for name, part in first.items()} == {"train": 160, "validation": 20, "test": 20}
    for name in first:
        assert {p.prompt for p in first[name]} == {p.prompt for p in again[name]}


def test_given_splits_are_kept_and_a_missing_one_is_taken_from_train(tmp_path):
    rows = [good(n) | {"split": "test" if n < 10 else "train"} for n in range(60)]
    data = intake.read_own(profile_of(save(tmp_path / "x.jsonl", rows)))
    assert data.given_splits
    assert [r.row for r in data.rows if r.split == "test"] == list(range(1, 11))
    assert len(data.pairs()["validation"]) == 5


def test_a_prompt_of_another_given_split_is_rejected_and_a_near_one_noted(tmp_path):
    rows = [good(n) | {"split": "train"} for n in range(30)]
    rows += [good(n) | {"split": "dev"} for n in range(30, 40)] + [
        good(n) | {"split": "test"} for n in range(40, 50)
    ]
    rows.append({"prompt": good(2)["prompt"].upper(), "chosen": "x", "rejected": "y", "split": "test"})
    rows.append({"prompt": f"So {good(3)['prompt']}", "chosen": "x", "rejected": "y", "split": "test"})
    data = intake.read_own(profile_of(save(tmp_path / "x.jsonl", rows)))
    assert {row: (f.code, f.detail) for row, f in data.rejected.items()} == {
        51: ("shared prompt", "of train")
    }
    assert [(f.row, f.code) for f in data.findings if not f.rejected] == [(52, "near duplicate")]


def test_splits_can_be_renamed_and_those_left_out_are_counted(tmp_path):
    rows = [good(n) | {"part": "prefs" if n < 40 else "sft"} for n in range(50)]
    mapping = mapped(tmp_path, "split: part\nsplits: {prefs: train}\n")
    data = intake.read_own(profile_of(save(tmp_path / "x.jsonl", rows), mapping))
    assert intake.account(data) == {"read": 50, "usable": 40, "other split": 10}
    assert not data.given_splits and min(map(len, data.pairs().values())) > 0


def test_ids_of_the_data_are_kept_and_must_be_unique(tmp_path):
    rows = [good(n) | {"key": n} for n in range(25)] + [good(30) | {"key": 3}]
    data = intake.read_own(profile_of(save(tmp_path / "x.jsonl", rows), mapped(tmp_path, "id: key\n")))
    assert data.rows[7].pair.id == "7" and {r: f.code for r, f in data.rejected.items()} == {26: "id"}


# --- a run ---


def test_a_run_writes_the_pairs_and_the_account_and_a_changed_file_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    path = save(tmp_path / "x.jsonl", [good(n) for n in range(30)])
    run = Run(profile_of(path), "own", 0)
    folder = preference.write_pairs(run)
    assert sum(map(len, preference.load_pairs(run).values())) == 30
    assert len((run.folder / "tables" / "own_rows.csv").read_text().splitlines()) == 31
    before = preference.input_key(run), tasks.field_values(run.profile, ("data_dir",))
    save(path, [good(n) for n in range(31)])
    assert preference.input_key(run) != before[0]
    assert tasks.field_values(run.profile, ("data_dir",)) != before[1]
    assert preference.write_pairs(run) == folder
    assert sum(map(len, preference.load_pairs(run).values())) == 31


def test_the_shipped_example_is_sound():
    data = intake.read_own(profile_of(EXAMPLES / "pairs.jsonl"))
    assert len(data.rows) == data.n_read == 64 and not data.findings


def test_source_key_sees_a_change_in_a_saved_folder(tmp_path):
    import datasets

    datasets.Dataset.from_list([good(0)]).save_to_disk(tmp_path / "d")
    key = intake.source_key(str(tmp_path / "d"))
    datasets.Dataset.from_list([good(1)]).save_to_disk(tmp_path / "d")
    assert intake.source_key(str(tmp_path / "d")) != key


# --- the command line ---


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """Results go beside the test."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def test_data_alone_chooses_the_profile_and_writes_the_page(results, tmp_path, capsys):
    path = save(tmp_path / "x.jsonl", [good(n) for n in range(30)])
    assert pipeline.main(["--data", str(path), "--check"]) == 0
    said = capsys.readouterr().out
    assert "30 rows read, 30 usable, 0 rejected" in said and "train 24, validation 3, test 3" in said
    assert (results / "own" / "report" / "data.html").exists()


def conversation(n: int) -> dict:
    """Return a row in TRL's conversational form, the prompt inside the messages."""
    row = good(n)
    return {
        name: [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[name]}]
        for name in ("chosen", "rejected")
    }


@pytest.mark.parametrize("kind", ["conversations", "csv", "damaged"])
def test_the_command_checks_each_kind_of_file_and_loses_no_row(results, tmp_path, capsys, kind):
    rows = {
        "conversations": [conversation(n) for n in range(30)],
        "damaged": [good(n) for n in range(30)] + [row for row, _, _ in (*DAMAGED, *KEPT)],
    }
    path = write_csv(tmp_path / "x.csv") if kind == "csv" else save(tmp_path / "x.jsonl", rows[kind])
    assert pipeline.main(["--data", str(path), "--check"]) == 0
    said = capsys.readouterr().out
    rejected = len(DAMAGED) if kind == "damaged" else 0
    usable = 30 + (len(KEPT) if kind == "damaged" else 0)
    assert f"{usable + rejected} rows read, {usable} usable, {rejected} rejected" in said
    page = (results / "own" / "report" / "data.html").read_text(encoding="utf-8")
    for n, (_, _, field) in enumerate(DAMAGED if rejected else ()):
        assert f"<td>line {31 + n}</td><td>{html.escape(field)}</td>" in page


def test_own_data_gets_the_steps_that_its_profile_can_run():
    steps = pipeline.own_overrides("own", [])[1].removeprefix("steps=").split(",")
    assert (
        "03_persona_inference" in steps and "09_judging" not in steps and "13_released_outputs" not in steps
    )
    judged = pipeline.own_overrides("small", [])[1].removeprefix("steps=").split(",")
    assert {"03_persona_inference", "04_persona_quality", "09_judging"} <= set(judged)
    assert judged == [step for step in STEPS if step in judged]
    assert pipeline.own_overrides("own", ["steps=01_preference_data"]) == ["datasets=own"]


def test_the_authors_folder_and_a_named_data_set_are_not_own_data(tmp_path):
    (tmp_path / "official" / "persona-tailoring-BeaverTails").mkdir(parents=True)
    assert not pipeline.is_own(str(tmp_path), []) and not pipeline.is_own(str(tmp_path / "official"), [])
    assert not pipeline.is_own("hub", []) and not pipeline.is_own("x.jsonl", ["datasets=autoj"])
    assert pipeline.is_own("x.jsonl", []) and pipeline.is_own("someone/pairs", [])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file or folder (paths are relative"),
        (["--data", "{tmp}"], "holds 0 data files; name one file with --data"),
        (["--data", "{tmp}/empty.csv"], "no row in it"),
        (["--data", "{tmp}/x.jsonl", "--mapping", "nowhere.yaml"], "nowhere.yaml: no such mapping file"),
        (["--data", "{tmp}/x.jsonl", "--mapping", "{tmp}/m.yaml"], "no column 'question'"),
        (["--data", "{tmp}/x.jsonl", "--profile", "everyday"], "judge=oracle reads answers to the"),
        (["--data", "{tmp}/x.jsonl", "--profile", "onw"], "did you mean own"),
        (["--data", "someone/pairs"], "as a hub id it needs a commit"),
        (["--mapping", "{tmp}/m.yaml"], "--mapping says what the columns of --data mean"),
        (["--profile", "own"], "no data: say where it is, --data FILE"),
    ],
)  # fmt: skip
def test_a_wrong_command_says_what_where_and_the_mend(tmp_path, monkeypatch, capsys, arguments, complaint):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "none" / "results"))
    folder = tmp_path / "data"
    folder.mkdir()
    if "{tmp}" not in arguments:
        save(folder / "x.jsonl", [good(n) for n in range(30)])
        (folder / "empty.csv").write_text("")
        (folder / "m.yaml").write_text("prompt: question\n")
    assert pipeline.main([text.replace("{tmp}", str(folder)) for text in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and complaint in said and "Traceback" not in said


def test_the_command_that_a_report_shows_names_no_path_of_this_machine():
    overrides = ["data_dir=/home/me/x.jsonl", "data_mapping=/home/me/m.yaml", "datasets=own", "dpo_beta=0.2"]
    said = command_of(profile_of("x.jsonl"), overrides)
    assert said == "./run_all.sh --profile own --data PATH --mapping FILE --set dpo_beta=0.2"
