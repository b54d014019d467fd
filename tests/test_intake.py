"""A user's own data: every row is accounted for by row and field, and near prompts never part."""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
from pathlib import Path

import pytest
from tiny import tiny_tokenizer

from persona_lib import pipeline, report, settings, tasks
from persona_lib.data import intake, preference
from persona_lib.data.intake import OwnData, RowError, conversation_texts
from persona_lib.data.rows import read_rows, source_key
from persona_lib.records import DataError
from persona_lib.settings import Run, load_profile
from persona_lib.tasks import STEPS

EXAMPLES = settings.REPO / "examples"
NAMES = ["red", "blue", "green", "old", "new", "small", "large", "round", "flat", "warm"]


def good(n: int, **changes: object) -> dict:
    """Return a usable row, with changes; no two prompts are near."""
    word = f"{NAMES[n % 10]}{n}"
    texts = {"prompt": f"What is {word} for {word}?", "chosen": f"It is {word}, and more."}
    return texts | {"rejected": f"{word}."} | changes


def turn(role: str, text: object) -> dict:
    return {"role": role, "content": text}


def profile_of(path: Path | str, mapping: Path | str = "", **changes: object) -> settings.Profile:
    """Return the profile of own data."""
    return settings.set_field(
        load_profile("own"), {"data.path": str(path), "data.mapping": str(mapping), **changes}
    )


def save(path: Path, rows: list) -> Path:
    """Write rows as JSON lines; a row that is text is written as it is."""
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def read(tmp_path: Path, rows: list, mapping: str = "") -> OwnData:
    """Read rows from a file, with a mapping if its text is given."""
    if mapping:
        (tmp_path / "mapping.yaml").write_text(mapping, encoding="utf-8")
    path = save(tmp_path / "x.jsonl", rows)
    return intake.read_own(profile_of(path, tmp_path / "mapping.yaml" if mapping else ""))


def codes(data: OwnData) -> dict[int, tuple[str, str]]:
    """Return field and code of each rejected row."""
    return {row: (found.field, found.code) for row, found in data.rejected.items()}


# --- one row ---

DAMAGED = [  # row, field, code
    ('{"prompt": "cut off', "row", "unreadable"),
    ([1, 2], "row", "unreadable"),
    ('{"prompt": ' + "1" * 5000 + "}", "row", "unreadable"),
    ("[" * 200_000, "row", "unreadable"),
    ({"prompt": "p", "chosen": "c"}, "rejected", "missing"),
    (good(40, chosen=None), "chosen", "null"),
    (good(41, prompt=17), "prompt", "not text"),
    (good(42, rejected=" \n"), "rejected", "empty"),
    (good(43, rejected=good(43)["chosen"] + " "), "rejected", "identical"),
    (good(44, chosen="caf\ufffd"), "chosen", "lost characters"),
    (good(45, chosen="half \ud83d"), "chosen", "lost characters"),
    (good(46, prompt="zero \x00 byte"), "prompt", "control character"),
    (good(3), "row", "duplicate"),
    (good(47, split="holdout"), "split", "split"),
    (good(48, chosen=[turn("user", "x")], rejected=[{"role": "user"}]), "rejected", "messages"),
]
ODD = [
    (good(50, chosen="It\u00e2\u20ac\u2122s caf\u00c3\u00a9"), "chosen", "mojibake"),
    (good(51, chosen=f"You ask: {good(51)['prompt']} Well."), "chosen", "quoted prompt"),
    (good(4, chosen=good(4)["rejected"], rejected=good(4)["chosen"]), "row", "opposite"),
    (good(52, rejected="So.\nPrompt: next"), "rejected", "stop string"),
]
MIXED = [good(n) for n in range(30)] + [row for row, _, _ in (*DAMAGED, *ODD)]


def test_every_kind_of_damage_is_named_by_row_and_field_and_no_row_is_lost(tmp_path):
    data = read(tmp_path, MIXED)
    assert codes(data) == {31 + n: (field, code) for n, (_, field, code) in enumerate(DAMAGED)}
    assert {row.row for row in data.rows} | set(data.rejected) == set(range(1, len(MIXED) + 1))
    first = 31 + len(DAMAGED)
    noted = {(f.row, f.field, f.code) for f in data.findings if not f.rejected}
    assert noted == {(first + n, field, code) for n, (_, field, code) in enumerate(ODD)}
    counts = intake.account(data)
    assert counts.pop("read") == len(MIXED) == sum(counts.values()) and counts["unreadable"] == 4


def test_labels_are_compared_as_text_ties_and_unknown_labels_counted_and_ids_kept(tmp_path):
    labels = [0, "0", 1.0, "B"] * 6 + ["Tie", 7, 0]
    rows = [dict(zip("qabw", (*good(n).values(), label), strict=True)) for n, label in enumerate(labels)]
    rows = [row | {"key": min(n, 25)} for n, row in enumerate(rows)]
    mapping = "id: key\nprompt: q\nresponses: [a, b]\nlabel: w\nfirst: 0\nsecond: [1, b]\ntie: tie\n"
    data = read(tmp_path, [*rows, rows[0] | {"q": "another"}], mapping)
    liked = [good(n)["chosen" if n < 2 else "rejected"] for n in range(4)]
    assert [(row.pair.id, row.pair.chosen) for row in data.rows[:4]] == list(zip("0123", liked, strict=True))
    assert codes(data) == {25: ("w", "tie"), 26: ("w", "label"), 28: ("id", "id")}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("promt: q\n", "unknown field 'promt'; did you mean prompt"),
        ("prompt: [\n", "no mapping file"),
        ("prompt: {a: b}\n", "prompt={.*} should be the name of a column"),
        ("responses: [a, b]\nlabel: l\nfirst: 0\n", "responses need second"),
        ("responses: [a, b]\nlabel: l\nfirst: 0\nsecond: 0\n", "the label '0' stands for two outcomes"),
        ("responses: [a, b]\nchosen: c\n", "chosen does not go with responses"),
        ("splits: {dev: [test]}\n", "name in the data: train, validation or test"),
    ],
)
def test_a_wrong_mapping_names_file_field_and_way_out(tmp_path, text, complaint):
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=complaint) as caught:
        intake.read_mapping(str(path))
    assert str(caught.value).startswith(str(path))


def test_a_missing_column_and_too_few_prompts_say_what_is_there(tmp_path):
    rows = [{"question": "q", "chosen": "c", "rejected": "r"}] * 3
    with pytest.raises(DataError, match="no column 'prompt'; .*: question, chosen, rejected.*--mapping"):
        read(tmp_path, rows)
    with pytest.raises(DataError, match="no column 'questoin'; did you mean question"):
        read(tmp_path, rows, "prompt: questoin\n")
    few = [good(n) for n in range(5)] + [good(9, chosen="")]
    with pytest.raises(
        DataError, match="5 different prompts; at least 20 .* 1 empty .chosen.; first: line 6"
    ):
        read(tmp_path, few)


# --- messages ---

ASK, YES, NO = turn("user", "How?"), turn("assistant", "Yes"), turn("assistant", "No")
SYSTEM = turn("system", "Be kind.")


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "text"),
    [
        ([ASK], [YES], [NO], "How?"),  # explicit prompt
        (None, [ASK, YES], [ASK, NO], "How?"),  # implicit: what both begin with
        ("How?", [ASK, YES], [ASK, NO], "How?"),  # text, repeated in the messages
        ("How?", [YES], [NO], "How?"),  # text, only the responses are messages
        ([ASK], [ASK, YES], [ASK, NO], "How?"),  # messages, repeated
        ([ASK], "Yes", "No", "How?"),  # only the prompt is messages
        ([SYSTEM, ASK], [YES], [NO], "System: Be kind.\n\nUser: How?"),
        (None, [ASK, YES, ASK, YES], [ASK, YES, ASK, NO], "User: How?\n\nAssistant: Yes\n\nUser: How?"),
        ([turn("user", [{"type": "text", "text": "How?"}])], [YES], [NO], "How?"),
    ],
)
def test_conversations_become_prompt_and_responses(prompt, chosen, rejected, text):
    assert conversation_texts(prompt, chosen, rejected) == (text, "Yes", "No")


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "field", "said"),
    [
        ("Why?", [ASK, YES], [ASK, NO], "prompt", "not what the messages of both responses begin with"),
        ([ASK], [YES, ASK], [NO], "chosen", "after the prompt come assistant, user; one assistant message"),
        ([ASK], [YES], [turn("assistant", None)], "rejected", "content is NoneType, not text"),
        (None, [YES], [NO], "prompt", "no beginning in common"),
    ],
)
def test_messages_that_make_no_pair_name_the_field(prompt, chosen, rejected, field, said):
    with pytest.raises(RowError, match=said) as caught:
        conversation_texts(prompt, chosen, rejected)
    assert caught.value.args[:2] == (field, "messages")


def conversations(n: int) -> dict:
    """Return a row with the prompt inside the messages."""
    asked = turn("user", good(n)["prompt"])
    return {side: [asked, turn("assistant", good(n)[side])] for side in ("chosen", "rejected")}


def test_conversations_are_read_without_a_mapping_and_with_labels(tmp_path):
    data = read(tmp_path, [conversations(n) for n in range(24)])
    assert [row.pair.chosen for row in data.rows] == [good(n)["chosen"] for n in range(24)]
    rows = [{"a": row["rejected"], "b": row["chosen"], "w": 2} for row in map(conversations, range(24))]
    labelled = read(tmp_path, rows, "responses: [a, b]\nlabel: w\nfirst: 1\nsecond: 2\n")
    assert labelled.pairs() == data.pairs()


# --- containers ---

ROWS = [
    {"prompt": "Which, of these?", "chosen": 'He said "no".\nThen he left.', "rejected": "a\tb"},
    {"prompt": "Wie geht's, Jürgen?", "chosen": "gut \u2028 danke", "rejected": "  schlecht"},
]
LINES = "\r\n".join(["", *(json.dumps(row, ensure_ascii=False) for row in ROWS), ""])


def as_cells(separator: str) -> str:
    """Write the rows with the standard library's writer, Windows line ends included."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


def parquet_bytes() -> bytes:
    import pandas as pd

    return pd.DataFrame(ROWS).to_parquet()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", lambda: as_cells(",").encode("utf-8-sig")),
        ("x.tsv", lambda: as_cells("\t").encode()),
        ("utf16.tsv", lambda: as_cells("\t").encode("utf-16")),
        ("x.jsonl", lambda: LINES.encode("utf-8-sig")),
        ("lines.json", lambda: LINES.encode()),
        ("array.json", lambda: json.dumps(ROWS, indent=1).encode()),
        ("x.jsonl.gz", lambda: gzip.compress(LINES.encode())),
        ("x.parquet", parquet_bytes),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, content):
    (tmp_path / name).write_bytes(content())
    (tmp_path / "notes.txt").write_text("about the data")
    for place in (tmp_path / name, tmp_path):  # a folder with one data file is that file
        assert [row.value for row in read_rows(str(place))[0]] == ROWS


def test_splits_of_a_saved_folder_are_given_splits_and_its_key_sees_a_change(tmp_path):
    import datasets

    table, path = datasets.Dataset.from_list(ROWS), str(tmp_path / "d")
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(path)
    found = [(row.row, row.place, row.split) for row in read_rows(path)[0]]
    assert found == [(1, "train row 1", "train"), (2, "train row 2", "train"),
                     (3, "test row 1", "test"), (4, "test row 2", "test")]  # fmt: skip
    key = source_key(path)
    datasets.Dataset.from_list([good(1)]).save_to_disk(path)
    assert source_key(path) != key


def test_a_damaged_row_of_csv_costs_only_itself_and_says_its_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('prompt,chosen,rejected\na,b\n"c"x,d,e\nf,g,h\ni,j,k,l\n\n"m\nn",o,p\nq,"r')
    rows, _ = read_rows(str(path))
    values = [list(row.value.values()) if isinstance(row.value, dict) else None for row in rows]
    assert values == [None, None, ["f", "g", "h"], None, ["m\nn", "o", "p"], None]
    assert str(rows[0].value).startswith("2 cells, the header has 3: quote cells that hold")
    assert "a quote is not closed" in str(rows[5].value) and rows[4].place == "row 5 (line 7)"
    path.write_bytes("prompt,chosen,rejected\ncafé,a,b\n".encode("cp1252"))
    assert read_rows(str(path))[0][0].value["prompt"] == "café"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.xlsx", b"PK", "files of this kind are not read. Use JSON lines.*save a spreadsheet as CSV"),
        ("x.csv", b"prompt,chosen,rejected\n", "no row in it"),
        ("x.csv", b'"prompt,chosen', "cannot be read .*JSON lines"),
        ("x.csv", b"prompt,chosen,chosen\na,b,c\n", "two columns have the same name: prompt, chosen, chosen"),
        ("x.json", b'[{"prompt": "a"}, {"pro', "cannot be read .*JSON lines"),
        ("x.jsonl", b"prompt chosen\nrejected", "no line of it is a JSON object; line 1"),
        ("x.jsonl.gz", b"not zipped", "cannot be read"),
        ("x.parquet", b"not parquet", "cannot be read .*Parquet"),
    ],
)
def test_what_cannot_be_opened_is_named_with_its_way_out(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        read_rows(str(tmp_path / name))
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_folder_of_several_files_a_missing_file_and_an_unreachable_hub_id_are_told_apart(
    tmp_path, monkeypatch
):
    def offline(*_, **__):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr("datasets.load_dataset", offline)
    for name in ("a.jsonl", "b.json"):
        (tmp_path / name).write_text(LINES)
    for place, said in {
        str(tmp_path): r"holds 2 data files \(a.jsonl, b.json\); name one file",
        "some/data.jsonl": "some/data.jsonl: no such file or folder",
        f"someone/pairs@{'a' * 40}": "someone/pairs@a+: cannot be read .Couldn't.*HF_HUB_OFFLINE",
    }.items():
        with pytest.raises(DataError, match=said):
            read_rows(place)


# --- splits ---


def test_near_prompts_share_a_split_even_through_a_third():
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
    first, again = read(tmp_path, rows).pairs(), read(tmp_path, rows[::-1]).pairs()
    assert {name: len(part) for name, part in first.items()} == {"train": 160, "validation": 20, "test": 20}
    for name in first:
        assert {p.prompt for p in first[name]} == {p.prompt for p in again[name]}


def test_given_splits_stay_a_missing_one_comes_from_train_and_no_prompt_is_in_two(tmp_path):
    rows = [good(n, split="test" if n < 10 else "train") for n in range(60)]
    rows.append(good(60, prompt=good(12)["prompt"].upper(), split="test"))
    rows.append(good(61, prompt=f"So {good(13)['prompt']}", split="test"))
    data = read(tmp_path, rows)
    assert data.given_splits and len(data.pairs()["validation"]) == 5
    assert [row.row for row in data.rows if row.split == "test"] == [*range(1, 11), 62]
    assert [(f.row, f.code, f.rejected) for f in data.findings] == [
        (61, "shared prompt", True), (62, "near duplicate", False)
    ]  # fmt: skip


def test_splits_can_be_renamed_and_those_left_out_are_counted(tmp_path):
    rows = [good(n, part="prefs" if n < 40 else "sft") for n in range(50)]
    data = read(tmp_path, rows, "split: part\nsplits: {prefs: train}\n")
    assert intake.account(data) == {"read": 50, "usable": 40, "other split": 10}
    assert not data.given_splits and min(map(len, data.pairs().values())) > 0


# --- files of others, runs, the page and the command line ---


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """Results go beside the test."""
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def test_the_shipped_example_is_sound():
    data = intake.read_own(profile_of(EXAMPLES / "pairs.jsonl"))
    assert len(data.rows) == data.n_read == 64 and not data.findings


def test_a_run_writes_the_pairs_and_the_account_and_a_changed_file_is_seen(results, tmp_path):
    path = save(tmp_path / "x.jsonl", [good(n) for n in range(30)])
    run = Run(profile_of(path), "own", 0)
    folder = preference.write_pairs(run)
    assert sum(map(len, preference.load_pairs(run).values())) == 30
    before = preference.input_key(run), tasks.settings_of(run.profile)
    save(path, [good(n) for n in range(31)])
    assert preference.input_key(run) != before[0]
    assert tasks.settings_of(run.profile) != before[1]
    assert preference.write_pairs(run) == folder
    assert sum(map(len, preference.load_pairs(run).values())) == 31


def test_the_command_checks_the_data_and_writes_a_page_that_names_every_damaged_row(
    results, tmp_path, capsys
):
    rows = [*MIXED, good(60, chosen="<script>x()</script>\x07"), good(61, prompt="<img src=x onerror=y()> ?")]
    path = save(tmp_path / "x.jsonl", rows)
    assert pipeline.main(["--data", str(path), "--check"]) == 0
    usable, rejected = 31 + len(ODD), 1 + len(DAMAGED)
    said = capsys.readouterr().out
    assert f"{len(rows)} rows read, {usable} usable, {rejected} rejected" in said
    page = (results / "own" / "report" / "data.html").read_text(encoding="utf-8")
    for n, (_, field, _) in enumerate(DAMAGED):
        assert f"<td>line {31 + n}</td><td>{html.escape(field)}</td>" in page
    assert "<script" not in page and "<img" not in page and "&lt;/script&gt;" in page
    assert "src=" not in page.replace("src=x", "") and "href=" not in page
    findings = (results / "own" / "report" / "data_findings.csv").read_text().splitlines()
    assert len(findings) == 1 + rejected + len(ODD)


def test_rows_longer_than_max_length_are_counted_in_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "training_tokenizer", lambda profile: tiny_tokenizer())
    rows = [good(n) for n in range(25)] + [good(60, chosen="very " * 400 + "long")]
    profile = profile_of(save(tmp_path / "x.jsonl", rows), **{"training.max_length": 100})
    data = intake.read_own(profile)
    counts = report.token_counts(profile, data)
    assert [finding.row for finding in report.too_long(profile, data, counts)] == [26]
    assert counts[0] < 100 < counts[25]


def test_own_data_gets_the_steps_that_its_profile_can_run():
    steps = pipeline.own_overrides("own", [])[1].removeprefix("steps=").split(",")
    assert "03_persona_inference" in steps
    assert not {"09_judging", "13_released_outputs"} & set(steps)
    judged = pipeline.own_overrides("small", [])[1].removeprefix("steps=").split(",")
    assert {"03_persona_inference", "04_persona_quality", "09_judging"} <= set(judged)
    assert judged == [step for step in STEPS if step in judged]
    assert pipeline.own_overrides("own", ["steps=01_preference_data"]) == ["datasets=own"]


def test_the_authors_folder_and_a_named_data_set_are_not_own_data(tmp_path):
    (tmp_path / "official" / "persona-tailoring-BeaverTails").mkdir(parents=True)
    assert not pipeline.is_own(str(tmp_path), []) and not pipeline.is_own(str(tmp_path / "official"), [])
    assert not pipeline.is_own("x.jsonl", ["datasets=autoj"])
    assert pipeline.is_own("x.jsonl", []) and pipeline.is_own("someone/pairs", [])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file or folder (paths are relative"),
        (["--data", "{tmp}/none"], "holds 0 data files (none); name one file with --data"),
        (["--data", "{tmp}/x.jsonl", "--mapping", "nowhere.yaml"], "nowhere.yaml: no mapping file"),
        (["--data", "{tmp}/x.jsonl", "--profile", "everyday"], "evaluation.judge=oracle reads the package"),
        (["--data", "someone/pairs"], "as a hub id it needs a commit"),
        (["--mapping", "{tmp}/m.yaml"], "--mapping says what the columns of --data mean"),
        (["--profile", "own"], "no data: say where it is, --data FILE"),
    ],
)
def test_a_wrong_command_says_what_where_and_the_way_out(results, tmp_path, capsys, arguments, complaint):
    save(tmp_path / "x.jsonl", [good(n) for n in range(30)])
    (tmp_path / "none").mkdir()
    assert pipeline.main([text.replace("{tmp}", str(tmp_path)) for text in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and complaint in said and "Traceback" not in said


def test_the_command_that_a_report_shows_names_no_path_of_this_machine():
    overrides = ["data.path=/home/me/x.jsonl", "data.mapping=/home/me/m.yaml", "datasets=own", "dpo.beta=0.2"]
    assert report.command_of(profile_of("x.jsonl"), overrides) == (
        "./run_all.sh --profile own --set data.path=PATH --set data.mapping=PATH --set datasets=own "
        "--set dpo.beta=0.2"
    )


# --- users ---


def test_user_ids_are_hashed_with_the_salt_of_the_results_and_personas_are_read(results, tmp_path):
    rows = [good(n, who=f"u{n % 5}", taste=f"The user is {NAMES[n % 10]}.") for n in range(40)]
    data = read(tmp_path, [*rows, good(40, who=None)], "user: who\npersona: taste\n")
    users = {row.pair.user for row in data.rows}
    assert len(users) == 5 and not users & {"u0", "u1", "u2", "u3", "u4"}
    assert data.rows[0].pair.user == data.rows[5].pair.user and codes(data) == {41: ("who", "user")}
    assert (data.rows[1].pair.persona_chosen, data.rows[1].pair.persona_rejected) == ("The user is blue.", "")
    assert (results / "own" / "user_salt").stat().st_mode & 0o777 == 0o600
    shown = read(tmp_path, rows, "user: who\nshow_users: true\nsplit_by: prompt\n")
    assert shown.rows[7].pair.user == "u2"
