"""A user's own data: every row is accounted for by row and field, and near prompts never part."""

import html
import json
import re
import sys
from pathlib import Path

import pytest
from tiny import tiny_tokenizer

from persona_lib import pipeline, report, settings, tasks
from persona_lib.data import intake, preference
from persona_lib.data.intake import OwnData
from persona_lib.data.mapping import RowError, conversation_texts, read_mapping
from persona_lib.data.rows import OwnRow
from persona_lib.models import load
from persona_lib.records import DataError, PreferencePair
from persona_lib.settings import Run, load_profile

NAMES = ["red", "blue", "green", "old", "new", "small", "large", "round", "flat", "warm"]
pytestmark = pytest.mark.usefixtures("results_here")


def good(n: int, **changes: object) -> dict:
    """Return a usable row, with changes; no two prompts are near."""
    word = f"{NAMES[n % 10]}{n}"
    texts = {"prompt": f"What is {word} for {word}?", "chosen": f"It is {word}, and more."}
    return texts | {"rejected": f"{word}."} | changes


def turn(role: str, text: object) -> dict:
    return {"role": role, "content": text}


def profile_of(path: Path | str, mapping: Path | str = "") -> settings.Profile:
    return settings.set_field(load_profile("own"), {"data.path": str(path), "data.mapping": str(mapping)})


def save(path: Path, rows: list) -> Path:
    """Write rows as JSON lines; a row that is text is written as it is."""
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def read(tmp_path: Path, rows: list, mapping: str = "") -> OwnData:
    """Read rows from a file, with a mapping if its text is given."""
    (tmp_path / "mapping.yaml").write_text(mapping, encoding="utf-8")
    path = save(tmp_path / "x.jsonl", rows)
    return intake.read_own(profile_of(path, tmp_path / "mapping.yaml" if mapping else ""))


def codes(data: OwnData) -> dict[int, tuple[str, str]]:
    return {f.row: (f.field, f.code) for f in data.findings if f.outcome == "rejected"}


def sizes(data: OwnData) -> list[int]:
    return [len(part) for part in data.pairs().values()]


DAMAGED = [  # row, field, code
    ('{"prompt": "cut off', "row", "unreadable"),
    ("[" * 200_000, "row", "unreadable"),
    ({"prompt": "p", "chosen": "c"}, "rejected", "missing"),
    (good(40, chosen=None), "chosen", "not text"),
    (good(42, rejected=" \n"), "rejected", "empty"),
    (good(43, rejected=good(43)["chosen"] + " "), "rejected", "identical"),
    (good(44, chosen="half \ud83d"), "chosen", "lost characters"),
    (good(46, prompt="zero \x00 byte"), "prompt", "control character"),
    (good(3), "row", "duplicate"),
    (good(47, split="holdout"), "split", "split"),
    (good(48, chosen=[turn("user", "x")], rejected=[{"role": "user"}]), "rejected", "messages"),
]
ODD = [
    (good(4, chosen=good(4)["rejected"], rejected=good(4)["chosen"]), "row", "opposite"),
    (good(50, chosen="It\u00e2\u20ac\u2122s caf\u00c3\u00a9"), "chosen", "mojibake"),
    (good(53, rejected="x\nPersona: y"), "rejected", "persona line"),
    (good(54, chosen="Mail a.b@c.org. 2024, 1,000 of 10.5, 192.168.0.1"), "chosen", "e-mail"),
    (good(55, chosen="Ring +49 30 1234567, or (030) 12."), "chosen", "phone"),
    (good(56, rejected="Use sk-abcdefghijklmnop12."), "rejected", "key"),
]
MIXED = [good(n) for n in range(30)] + [row for row, _, _ in (*DAMAGED, *ODD)]


def test_every_kind_of_damage_is_named_by_row_and_field_and_no_row_is_lost(tmp_path):
    data = read(tmp_path, MIXED)
    assert codes(data) == {31 + n: (field, code) for n, (_, field, code) in enumerate(DAMAGED)}
    assert {row.row for row in data.rows} | set(codes(data)) == set(range(1, len(MIXED) + 1))
    noted = [(f.row - 31 - len(DAMAGED), f.field, f.code) for f in data.findings if f.outcome == "kept"]
    assert noted == [(n, field, code) for n, (_, field, code) in enumerate(ODD)]
    assert [f.detail for f in data.findings[-3:]] == ["a.b@...", "+49 ...", "sk-a..."], "no secret is shown"
    counts = intake.account(data)
    assert counts.pop("read") == len(MIXED) == sum(counts.values()) and counts["unreadable"] == 2


def test_labels_are_compared_as_text_ties_and_unknown_labels_counted_and_ids_kept(tmp_path):
    labels = [0, "0", 1.0, "B"] * 6 + ["Tie", 7, 0]
    rows = [dict(zip("qabw", (*good(n).values(), label), strict=True)) for n, label in enumerate(labels)]
    rows = [row | {"key": min(n, 25)} for n, row in enumerate(rows)]
    mapping = "id: key\nprompt: q\nresponses: [a, b]\nlabel: w\nfirst: 0\nsecond: [1, b]\ntie: tie\n"
    data = read(tmp_path, [*rows, rows[0] | {"q": "another"}], mapping)
    liked = [good(n)["chosen" if n < 2 else "rejected"] for n in range(4)]
    assert [(row.pair.id, row.pair.chosen) for row in data.rows[:4]] == list(zip("0123", liked, strict=True))
    assert codes(data) == {25: ("w", "tie"), 26: ("w", "label"), 28: ("id", "id")}


def test_a_mapping_names_paths_several_columns_and_scores(tmp_path):
    rows = [{"in": {"q": f"{good(n)['prompt']} Really"}, "more": None if n else "now?", "why": "yes",
             "all": [{"t": good(n)["chosen"], "s": 9 - n % 2}, {"t": "Middle.", "s": 6},
                     {"t": good(n)["rejected"], "s": 5 if n else 9}]}
            for n in range(44)]  # fmt: skip
    data = read(tmp_path, rows, "prompt: [in.q, more]\nranking: all\nanswer: t\nscore: s\n")
    assert data.rows[0].pair.prompt == "What is red0 for red0? Really\n\nnow?"
    assert [row.pair.rejected for row in data.rows[:2]] == ["Middle.", "blue1."]
    labelled = "prompt: in.q\nresponses: [all.0.t, all.2.t]\nlabel: why\nfirst: yes\nsecond: no\n"
    assert len(read(tmp_path, rows, labelled).rows) == 44
    apart = "prompt: in.q\nchosen: all.0.t\nrejected: all.2.t\nscores: [all.0.s, all.2.s]\nmargin: 4\n"
    assert set(codes(read(tmp_path, rows, apart))) == {1, *range(2, 45, 2)}
    with pytest.raises(DataError, match="margin is the least difference"):
        read(tmp_path, [good(n) for n in range(30)], "margin: 2\n")
    scored = read(tmp_path, rows, "prompt: in.q\nresponses: [all.2.t, all.0.t]\nscores: [all.2.s, all.0.s]\n")
    assert scored.rows[0].pair.chosen == good(1)["chosen"] and codes(scored) == {1: ("all.2.s", "tie")}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("promt: q\n", "unknown field 'promt'; did you mean prompt"),
        ("prompt: {a: b}\n", "prompt={.*} is not what this field may be: see its line in DATA.md"),
        ("responses: [a, b]\nlabel: l\nfirst: 0\n", "responses without second"),
        ("responses: [a, b]\nlabel: l\nfirst: 0\nsecond: 0\n", "the label '0' stands for two outcomes"),
        ("ranking: a\nanswer: b\n", "ranking needs answer, and rank or score"),
        ("margin: two\n", "margin='two' is not what"),
        ("responses: [a, b, c]\nlabel: l\nfirst: 0\n", "more than two responses need a label that names"),
        ("split_by: user\n", "split_by: user needs user"),
        ("show_users: [yes]\n", "show_users=.* is not what"),
        ("responses: [a, b]\nchosen: c\n", "chosen does not go with responses"),
    ],
)
def test_a_wrong_mapping_names_file_field_and_way_out(tmp_path, text, complaint):
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=f"{path}: .*{complaint}"):
        read_mapping(str(path))


def test_a_missing_column_and_too_few_prompts_say_what_is_there(tmp_path):
    rows = [{"question": "q", "chosen": "c", "rejected": "r"}] * 3
    for mapping, lost in (("", "prompt"), ("prompt: questoin\n", "questoin")):
        with pytest.raises(DataError, match=f"no column '{lost}'. .*: question, chosen, rejected.*--mapping"):
            read(tmp_path, rows, mapping)
    few = [good(n) for n in range(5)] + [good(9, chosen="")]
    with pytest.raises(DataError, match="5 usable pairs; train has .* 1 empty .chosen.; first: line 6"):
        read(tmp_path, few)


ASK, YES, NO = turn("user", "How?"), turn("assistant", "Yes"), turn("assistant", "No")


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "text"),
    [
        ([ASK], [YES], [NO], "How?"),  # explicit prompt
        (None, [ASK, YES], [ASK, NO], "How?"),  # implicit: what both begin with
        ("How?", [ASK, YES], [ASK, NO], "How?"),  # text, repeated in the messages
        ([ASK], "Yes", "No", "How?"),  # only the prompt is messages
        ("How?", str([YES]), "[{'content': 'No',\n 'role': 'assistant'}]", "How?"),  # written as text
        (None, [{"from": "human", "value": "How?"}, YES], [ASK, {"from": "gpt", "value": "No"}], "How?"),
        ([turn("system", "Be kind."), ASK], [YES], [NO], "System: Be kind.\n\nUser: How?"),
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
        ([ASK], [YES | {"tool_calls": [1]}], [NO], "chosen", "a message has tool_calls"),
        ([ASK, {"role": "tool", "content": "42"}], YES, NO, "prompt", "a message has the role tool"),
        ([turn("user", [{"type": "image_url"}])], [YES], [NO], "prompt", "a message has image_url"),
        (None, "[{'role': no", "[{'role': yes", "chosen", "a message has a text that cannot be parsed"),
    ],
)
def test_messages_that_make_no_pair_name_the_field(prompt, chosen, rejected, field, said):
    with pytest.raises(RowError, match=said) as caught:
        conversation_texts(prompt, chosen, rejected)
    assert caught.value.args[0] == field and caught.value.args[1] in ("messages", "tool or image")


def shaped(n: int, kind: str) -> dict:
    """Return good(n) as a row of another format."""
    asked, best, bad = good(n).values()
    both = (best, bad) if n % 2 else (bad, best)
    talks = [[turn("user", asked), turn("assistant", text)] for text in both]
    return {
        "openai": {"input": {"messages": talks[0][:1]}, "preferred_output": [turn("assistant", best)],
                   "non_preferred_output": [turn("assistant", bad)]},
        "nectar": {"prompt": f"\n\nHuman: {asked}\n\nAssistant: ", "answers": [
            {"answer": "Middle.", "rank": 2.0}, {"answer": bad, "rank": 7.0}, {"answer": best, "rank": 1.0}]},
        "arena": {"conversation_a": talks[0], "conversation_b": talks[1], "winner": f"model_{'ba'[n % 2]}"},
        "rpr": {"prompt": asked, "response_a": best, "response_b": bad, "criteria_x": "x", "criteria_y": "y"},
        "hh": {side: f"\n\nHuman: {asked}\n\nAssistant: {good(n)[side]}" for side in ("chosen", "rejected")},
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["openai", "nectar", "arena", "rpr", "hh"])
def test_known_formats_are_read_without_a_mapping_and_one_of_the_user_alone_is_suggested(tmp_path, kind):
    data = read(tmp_path, rows := [shaped(n, kind) | {"rater": f"u{n % 6}"} for n in range(30)])
    texts = [(row.pair.prompt, row.pair.chosen, row.pair.rejected) for row in data.rows]
    assert texts == [tuple(good(n).values()) for n in range(30)] and not codes(data)
    brought = {row.pair.persona_chosen + row.pair.persona_rejected for row in data.rows}
    assert brought == {"xy" if kind == "rpr" else ""}
    if kind == "nectar":  # ranks 1 and 7
        assert len(read(tmp_path, rows, "margin: 6\n").rows) == 30
    assert "'user: rater' gives each user a persona" in data.how[-1]
    assert len(data.how) == (1 if kind == "hh" else 2)
    assert len({row.pair.user for row in read(tmp_path, rows, "user: rater\n").rows}) == 6


def test_of_four_labelled_responses_the_best_meets_the_next_and_the_persons_reason_is_kept(tmp_path):
    rows = []
    for n in range(31):
        asked, best, bad = good(n).values()
        four = [best, bad, "Middle.", "Other."]
        four = [four[(place - n) % 4] for place in range(4)]  # the best moves through a, b, c, d
        rows.append({"conversation_id": f"c{n}", "annotator_id": n % 6, "first_turn_prompt": asked,
                     "first_turn_preferred_response": f"response_{'abcd'[n % 4]}" if n < 30 else "response_e",
                     "first_turn_feedback": "short" if n % 2 else None})  # fmt: skip
        rows[n] |= {f"first_turn_response_{'abcd'[place]}": text for place, text in enumerate(four)}
    data = read(tmp_path, rows)
    texts = [(row.pair.prompt, row.pair.chosen, row.pair.rejected) for row in data.rows]
    assert texts == [tuple(good(n).values()) for n in range(30)]
    assert [row.reason for row in data.rows[:3]] == ["", "short", ""] and data.rows[1].pair.id == "c1"
    assert len({row.pair.user for row in data.rows}) == 6
    assert codes(data) == {31: ("first_turn_preferred_response", "label")}


def test_thumbs_make_pairs_where_one_user_gave_both_and_every_row_is_accounted_for(tmp_path):
    thumbs = {"rejected": "\U0001f44e", "chosen": "\U0001f44d"}
    rows = [{"question": good(n)["prompt"], "output": good(n)[side], "thumb": thumb, "user": "a"}
            for n in range(25) for side, thumb in thumbs.items()]  # fmt: skip
    proposed = proposal(tmp_path, rows) + "split_by: prompt\n"
    more = [rows[0] | {"question": "Why?"}, rows[0] | {"thumb": thumbs["chosen"]}, rows[3] | {"user": "b"}]
    data = read(tmp_path, [*rows, *more], proposed)
    texts = [(row.pair.prompt, row.pair.chosen, row.pair.rejected) for row in data.rows]
    assert texts == [tuple(good(n).values()) for n in range(25)]
    assert intake.account(data) == {"read": 53, "usable": 25, "joined": 25, "unpaired": 3}
    assert "53 rows read, 25 usable pairs (of 50 rows), 3 rejected (3 unpaired)" in intake.describe(data)[0]
    trl = [{"prompt": row["question"], "completion": row["output"], "label": n % 2 == 1}
           for n, row in enumerate(rows)]  # fmt: skip
    assert [row.pair for row in read(tmp_path, trl).rows][0].chosen == good(0)["chosen"]


def proposal(tmp_path, rows):
    """Return the mapping that is proposed for rows that cannot be read without one."""
    with pytest.raises(DataError, match="They look like this; check it, then add --mapping"):
        read(tmp_path, rows)
    return (tmp_path / "results" / "own" / "proposed_mapping.yaml").read_text()


@pytest.mark.parametrize(  # columns of prompt, chosen and rejected; labels of the first rows and of the last
    ("names", "labels"),
    [
        ("input output_good output_bad", {}),
        ("user_message variant_a variant_b", {"chosen_variant": "variant_a variant_b"}),
        ("question answer_a answer_b", {"choice": "A B"}),
        ("question reply_1 reply_2", {"rating_1": "5 1", "rating_2": "4.5 2"}),
    ],
)
def test_columns_that_speak_for_themselves_are_proposed_as_a_mapping(tmp_path, names, labels):
    rows = [dict(zip(names.split(), good(n).values(), strict=True)) for n in range(25)]
    rows = [row | {name: of.split()[n == 24] for name, of in labels.items()} for n, row in enumerate(rows)]
    data = read(tmp_path, rows, proposal(tmp_path, rows))
    expected = [good(n)["chosen"] for n in range(24)] + [good(24)["rejected" if labels else "chosen"]]
    assert [row.pair.chosen for row in data.rows] == expected


def test_nested_columns_are_proposed_as_paths_and_what_names_do_not_tell_is_asked_for(tmp_path):
    rows = [{"meta": {"user_id": f"u{n % 6}"}, "request": {"messages": [turn("user", good(n)["prompt"])]},
             "candidates": [{"message": turn("assistant", good(n)[side])} for side in ("rejected", "chosen")],
             "preferred_index": int(n > 0)} for n in range(24)]  # fmt: skip
    proposed = proposal(tmp_path, rows)
    assert "candidates.0.message" in proposed and 'user: "meta.user_id"' in proposed
    data = read(tmp_path, rows, proposed)
    assert [row.pair.chosen for row in data.rows[:2]] == [good(0)["rejected"], good(1)["chosen"]]
    # the values do not tell: in Auto-J's file 1 is the second response, and 2 a tie
    three = [{"prompt": "q", "response 1": "a", "response 2": "b", "label": n % 3} for n in range(9)]
    assert 'first: ["WHICH VALUE?", "0", "1", "2"]' in proposal(tmp_path, three)
    with pytest.raises(DataError, match="write your column or values in place of"):
        read(tmp_path, three, proposal(tmp_path, three))
    proposed = proposal(tmp_path, [{"Frage": "q", "Antwort A": "a", "Antwort B": "b", "Wahl": "A"}])
    assert 'prompt: "WHICH COLUMN?"' in proposed and 'first: ["WHICH VALUE?"]' in proposed


def test_splits_have_their_shares_whatever_all_prompts_share_and_whatever_their_order(tmp_path):
    system = "You are a helpful assistant of a shop. Be kind, be brief, and never speak of prices. " * 3
    rows = [good(n, prompt=f"{system}What is {NAMES[n % 10]}{n} for at home?") for n in range(40)]
    asked = "\u6211\u5e94\u8be5\u600e\u6837\u7167\u987e"  # how should I look after
    chinese = [good(n, prompt=f"{asked}{chr(0x4E00 + 7 * n)}{chr(0x5F00 + n)}\uff1f") for n in range(40)]
    for table in (rows, chinese):
        assert sizes(data := read(tmp_path, table)) == [32, 4, 4]
        again = read(tmp_path, table[::-1]).pairs()
        for name, part in data.pairs().items():
            assert {pair.prompt for pair in part} == {pair.prompt for pair in again[name]}


def test_near_prompts_share_a_group_even_through_a_third():
    bread = "how do I bake one loaf of good dark rye bread"
    texts = [f"{bread} at home", f"{bread} today", f"so {bread} today", f"{bread} AT  home", "else", "other"]
    rows = [OwnRow(n, "", None, pair=PreferencePair("", text, "", "")) for n, text in enumerate(texts)]
    parts = intake.near_parts(rows, 0.75)
    assert sorted(sorted(row.row for row in part) for part in parts) == [[0, 1, 2, 3], [4], [5]]
    assert len(intake.near_parts([rows[0], rows[2]], 0.75)) == 2  # 9 of 13 different 3-grams in common


def test_given_splits_stay_and_no_prompt_is_in_two_but_one_alone_is_split_anew(tmp_path):
    rows = [good(n, split="test" if n < 10 else "dev" if n < 20 else None) for n in range(60)]
    data = read(tmp_path, [*rows, good(60, prompt=good(25)["prompt"].upper(), split="test")])
    assert data.splits == "as given" and sizes(data) == [40, 10, 10]
    assert codes(data) == {61: ("prompt", "shared prompt")}
    rows = [good(n, part="prefs" if n < 40 else "test") for n in range(50)]
    rows.append(good(50, part="test", prompt="So, what is red0 for red0?", chosen="Red."))
    both = read(tmp_path, rows, "split: part\nsplits: {prefs: train, test: test}\n")
    assert sizes(both) == [36, 4, 11] and both.splits == "as given, validation taken from train"
    assert [(found.row, found.code) for found in both.findings] == [(51, "near duplicate")]
    alone = read(tmp_path, rows, "split: part\nsplits: {prefs: train}\n")
    assert intake.account(alone) == {"read": 51, "usable": 40, "split": 11} and sizes(alone) == [32, 4, 4]


def test_a_changed_file_is_seen(tmp_path):
    path = save(tmp_path / "x.jsonl", [good(n) for n in range(30)])
    run = Run(profile_of(path), "own", 0)
    preference.write_pairs(run)
    before = preference.input_key(run), tasks.settings_of(run.profile)
    save(path, [good(n) for n in range(31)])
    assert preference.input_key(run) != before[0] and tasks.settings_of(run.profile) != before[1]
    preference.write_pairs(run)
    assert sum(map(len, preference.load_pairs(run).values())) == 31


FORTY = [good(n) for n in range(40)]


@pytest.mark.parametrize(  # no rows: the package's own pairs
    ("rows", "changes", "said"),
    [
        ([good(n, chosen="long " * 90) for n in range(40)], {"training.max_length": 90},
         "rows of sft_train fits into training.max_length .* --set training.max_length="),
        ([good(n, chosen="It.", rejected="He.") for n in range(40)], {},
         "rules .generator.model=surface. see no difference .* --set generator.model=base"),
        (FORTY, {"personas.train_sides": "chosen", "training.arms": "none,rejected"},
         "sft_train: no row of .* training.arms=rejected: add .* personas.train_sides=chosen"),
        (FORTY[:20], {"training.arms": "none,shuffled"}, "_val: no row of 1 .*=shuffled"),
        (FORTY, {"training.arms": "none,inferred"}, "training.arms=inferred"),
        (FORTY, {}, ""),
        (None, {"data.pair_limit": 1}, "sft_train has 1 rows, used: 1; .* change data.pair_limit=1"),
        (None, {"evaluation.limit": -200}, "test has 128 rows, used: 0; add rows, or change"),
    ],
)  # fmt: skip
def test_what_would_stop_a_later_step_stops_the_check(tmp_path, capsys, monkeypatch, rows, changes, said):
    monkeypatch.setattr(load, "tokenizer_at_hand", lambda source: tiny_tokenizer())
    words = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    words += ["--data", str(save(tmp_path / "x.jsonl", rows))] if rows else []
    status, shown = pipeline.main(["--check", *words]), capsys.readouterr().err
    assert status == (2 if said else 0) and re.search(said, shown)
    assert not said or shown.startswith(f"error: {tmp_path}/x.jsonl: " if rows else "error: ")


def test_check_and_its_page_name_every_damaged_row(results_here, tmp_path, capsys, monkeypatch):
    rows = [*MIXED, good(60, chosen="<script>x()</script>\x07"), good(61, prompt="<img src=x onerror=y()> ?")]
    assert pipeline.main(["--data", str(save(tmp_path / "x.jsonl", rows)), "--check"]) == 0
    usable, rejected = 31 + len(ODD), 1 + len(DAMAGED)
    said = capsys.readouterr().out
    assert f"{len(rows)} rows read, {usable} usable, {rejected} rejected" in said
    page = (results_here / "own" / "report" / "data.html").read_text(encoding="utf-8")
    for n, (_, field, _) in enumerate(DAMAGED):
        assert f"<li>line {31 + n}, {html.escape(field)}" in page
    assert "<script" not in page and "<img" not in page and "&lt;/script&gt;" in page
    assert "src=" not in page.replace("src=x", "") and "href=" not in page
    findings = (results_here / "own" / "report" / "data_findings.csv").read_text().splitlines()
    assert len(findings) == 1 + rejected + len(ODD)
    monkeypatch.setitem(sys.modules, "persona_lib.report", None)  # as before the packages are installed
    assert pipeline.main(["--data", str(tmp_path / "x.jsonl"), "--check"]) == 0
    without = capsys.readouterr().out
    assert "; what to do: " in without and "the run itself lists them row by row" in without


def test_own_data_gets_the_steps_that_its_profile_can_run_and_the_authors_data_is_not_own(tmp_path):
    (tmp_path / "official" / "persona-tailoring-BeaverTails").mkdir(parents=True)
    assert not pipeline.is_own(str(tmp_path), []) and not pipeline.is_own(str(tmp_path / "official"), [])
    assert pipeline.is_own("someone/pairs", []) and not pipeline.is_own("x.jsonl", ["datasets=autoj"])
    steps = pipeline.own_overrides("own", [])[1].removeprefix("steps=").split(",")
    assert "03_persona_inference" in steps and not {"09_judging", "13_released_outputs"} & set(steps)
    judged = pipeline.own_overrides("small", [])[1].removeprefix("steps=").split(",")
    assert {"03_persona_inference", "04_persona_quality", "09_judging"} <= set(judged)
    assert judged == [step for step in tasks.STEPS if step in judged]
    assert pipeline.own_overrides("own", ["steps=01_preference_data"]) == ["datasets=own"]


def test_the_command_that_a_report_shows_names_no_path_of_this_machine():
    overrides = ["data.path=/home/me/x.jsonl", "data.mapping=/home/me/m.yaml", "dpo.beta=0.2"]
    said = "./run_all.sh --profile own --set data.path=PATH --set data.mapping=PATH --set dpo.beta=0.2"
    assert report.command_of(profile_of("x.jsonl"), overrides) == said


def test_user_ids_are_hashed_with_the_salt_of_the_results_and_personas_are_read(results_here, tmp_path):
    rows = [good(n, who=f"u{n % 5}", taste=f"The user is {NAMES[n % 10]}.") for n in range(40)]
    data = read(tmp_path, [*rows, good(40, who=None)], "user: who\npersona: taste\n")
    users = {row.pair.user for row in data.rows}
    assert len(users) == 5 and not users & {"u0", "u1", "u2", "u3", "u4"}
    assert data.rows[0].pair.user == data.rows[5].pair.user and codes(data) == {41: ("who", "user")}
    assert (data.rows[1].pair.persona_chosen, data.rows[1].pair.persona_rejected) == ("The user is blue.", "")
    assert (results_here / "own" / "user_salt").stat().st_mode & 0o777 == 0o600
    shown = read(tmp_path, rows, "user: who\nshow_users: true\n")
    assert {row.pair.user for row in shown.rows if row.row == 8} == {"u2"}
