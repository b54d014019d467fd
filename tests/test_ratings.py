"""The rating kit: blind sheets go out, filled ones come back checked, groups and agreement are recovered."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import pytest
from simulated_raters import SHARES, TRUE_ALPHA, fill_sheets, true_values
from tiny_results import fill_run

from persona_lib.beyond import ratings
from persona_lib.beyond.ratings import rating_tables
from persona_lib.settings import Run, load_profile, set_field

HIDDEN = {"personas": ("chosen", "rejected"), "answers": ("PT-DPO", "DPO")}
RATERS = ratings.rater_names(3)


def make_items(study: str, n: int, swapped: bool = False) -> list[ratings.Item]:
    """Items of n pairs, of one word each text; ``swapped``: the same texts with the labels exchanged."""
    items = []
    for number in range(n):
        for place, group in enumerate(HIDDEN[study]):
            label = HIDDEN[study][1 - place] if swapped else group
            unit = f"u{number}" if study == "answers" else f"u{number}-{place}"
            texts = tuple(f"text{number}{'ab'[place]}{k}" for k in range(len(ratings.TEXTS[study])))
            items.append(ratings.Item("data", unit, f"p{number}", label, texts))
    return items


def export(
    folder: Path, study: str, items: list[ratings.Item], seed: int = 0, per_unit: int = 3
) -> list[Path]:
    key = ratings.make_key(study, items, RATERS, per_unit, seed)
    return ratings.export(study, key, folder / "sheets" / study, folder / "keys", RATERS)


def fill(path: Path, target: Path, change=lambda rows: rows, value: str = "3", separator: str = ",") -> Path:
    """Fill a sheet with one value, edit its rows, and save it as a spreadsheet program would."""
    columns, rows = ratings.open_csv(path)
    study = ratings.study_of(path, columns)
    for row in rows:
        row |= dict.fromkeys(ratings.QUESTIONS[study], value)
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, delimiter=separator, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(change(rows))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(file.getvalue(), encoding="utf-8-sig", newline="")
    return target


# --- blinding ---


@pytest.mark.parametrize("study", HIDDEN)
def test_what_raters_get_is_the_same_bytes_whichever_side_or_system_a_text_is_of(tmp_path, study):
    one = export(tmp_path / "one", study, make_items(study, 12))
    two = export(tmp_path / "two", study, make_items(study, 12, swapped=True))
    for first, second in zip(one[:-1], two[:-1], strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert one[-1].read_bytes() != two[-1].read_bytes(), "the key must tell them apart"


@pytest.mark.parametrize("study", HIDDEN)
def test_no_word_of_the_key_stands_in_a_file_that_a_rater_sees(tmp_path, study):
    *seen, key = export(tmp_path, study, make_items(study, 12))
    assert key.parent not in {path.parent for path in seen}
    words = [*HIDDEN[study], "p0", "u0", "seed", "data"]
    for path in seen:
        found = path.read_text(encoding="utf-8").replace("\ufeff", "").replace(",", " ").split()
        assert not set(words) & set(found), path
    assert {path.name for path in (tmp_path / "sheets" / study).iterdir()} == {path.name for path in seen}


@pytest.mark.parametrize("study", HIDDEN)
def test_neither_number_nor_place_tells_the_group(tmp_path, study):
    first_comes_first = []
    for seed in range(40):
        key = ratings.make_key(study, make_items(study, 10), RATERS, 3, seed)
        place = {(row.pair, row.group): number for number, row in enumerate(key)}
        rows = ratings.sheet_rows(study, key, "rater-2")
        in_sheet = [row[1] for row in rows]
        item = {(row.pair, row.group): row.item for row in key}
        for pair in {row.pair for row in key}:
            a, b = ((pair, group) for group in HIDDEN[study])
            first_comes_first.append(
                ((place[a] < place[b]) + (in_sheet.index(item[a]) < in_sheet.index(item[b]))) / 2
            )
    # 400 pairs, two orders each: within 4 standard errors of one half
    assert abs(sum(first_comes_first) / len(first_comes_first) - 0.5) < 4 * 0.5 / 400**0.5


def test_the_answers_to_one_question_stand_together_and_raters_have_orders_of_their_own():
    key = ratings.make_key("answers", make_items("answers", 8), RATERS, 2)
    pair = {row.item: row.pair for row in key}
    orders = {}
    for rater in RATERS:
        rows = ratings.sheet_rows("answers", key, rater)
        orders[rater] = [row[1] for row in rows]
        pairs = [pair[item] for item in orders[rater]]
        assert pairs[::2] == pairs[1::2] and len(set(pairs)) == len(pairs) // 2
    shared = [item for item in orders["rater-1"] if item in orders["rater-2"]]
    assert len(shared) > 2 and shared != [item for item in orders["rater-2"] if item in shared]


def test_every_unit_has_its_ratings_and_every_rater_shares_units_with_a_neighbour():
    who = ratings.assign(24, ratings.rater_names(4), 2)
    assert all(len(set(pair)) == 2 for pair in who)
    loads = [sum(name in pair for pair in who) for name in ratings.rater_names(4)]
    assert loads == [12, 12, 12, 12] and len({tuple(sorted(pair)) for pair in who}) == 4
    with pytest.raises(ValueError, match="use 1 to 3"):
        ratings.assign(5, RATERS, 4)


def test_the_key_cannot_be_written_among_the_sheets(tmp_path):
    key = ratings.make_key("answers", make_items("answers", 2), RATERS, 1)
    for keys in (tmp_path, tmp_path / "below"):
        with pytest.raises(ValueError, match="must not lie in the folder that raters get"):
            ratings.export("answers", key, tmp_path, keys, RATERS)


# --- import ---


def test_sheets_come_back_as_they_were_filled_with_either_separator(tmp_path):
    paths = export(tmp_path, "answers", make_items("answers", 5))
    fill(paths[0], tmp_path / "filled" / "a.csv", value="2")
    fill(paths[1], tmp_path / "filled" / "b.csv", value=" 5.0", separator=";")
    found = ratings.read_filled(tmp_path / "filled", tmp_path / "keys")["answers"]
    assert found.raters == ["rater-1", "rater-2"] and not found.problems
    items, values = found.array("personalization")
    assert len(items) == 10 and (values == [2, 5]).all()


def edit(column: str, value: str, place: int = 0):
    def change(rows: list[dict]) -> list[dict]:
        rows[place][column] = value
        return rows

    return change


@pytest.mark.parametrize("value", ["6", "0", "4.5", "four", "-1", "44"])
def test_a_value_off_the_scale_is_counted_and_located_and_not_guessed(tmp_path, value):
    paths = export(tmp_path, "personas", make_items("personas", 3))
    fill(paths[0], tmp_path / "filled" / "a.csv", edit("harmfulness", value, 2))
    found = ratings.read_filled(tmp_path / "filled", tmp_path / "keys")["personas"]
    (problem,) = found.problems
    assert (problem.file, problem.row, problem.field, problem.value) == (
        "filled/a.csv",
        4,
        "harmfulness",
        value,
    )
    assert problem.kind == "out of scale" and "whole number from 1 to 5" in problem.mend
    assert found.count("out of scale") == 1 and found.count("missing") == 0
    missing = [r for r in found.ratings if r.value is None]
    assert [(r.item, r.question) for r in missing] == [(problem.item, "harmfulness")]


def test_empty_cells_and_lost_rows_are_missing(tmp_path):
    paths = export(tmp_path, "answers", make_items("answers", 4))

    def change(rows):
        rows[0]["answerability"] = " "
        return rows[:-1]

    fill(paths[0], tmp_path / "filled" / "a.csv", change)
    found = ratings.read_filled(tmp_path / "filled", tmp_path / "keys")["answers"]
    assert found.count("missing") == 1 + 2 and found.count("out of scale") == 0
    assert [problem.row for problem in found.problems] == [2, 0, 0]
    assert "put the row back" in found.problems[-1].mend
    assert len(found.ratings) == 8 * 2


BROKEN = {
    "row 3, field 'item': 'zzzz-001' is not in the key; restore": edit("item", "zzzz-001", 1),
    "row 2, field 'item': no key answers-zzzz.csv": edit("item", "zzzz-001", 0),
    "row 3, field 'item': .* occurs twice; keep one": lambda rows: [rows[0], rows[0], *rows[1:]],
    "row 3, field 'rater': 'someone'; write the same name": edit("rater", "someone", 1),
    "row 2, field 'rater': ''; write": lambda rows: [row | {"rater": ""} for row in rows],
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_sheet_is_an_error_that_says_where_and_how_to_mend_it(tmp_path, message):
    paths = export(tmp_path, "answers", make_items("answers", 3))
    fill(paths[0], tmp_path / "filled" / "broken.csv", BROKEN[message])
    with pytest.raises(ValueError, match=f"broken.csv, {message}"):
        ratings.read_filled(tmp_path / "filled", tmp_path / "keys")


def test_a_sheet_without_a_column_names_it(tmp_path):
    paths = export(tmp_path, "answers", make_items("answers", 3))
    text = paths[0].read_text(encoding="utf-8-sig")
    (tmp_path / "filled").mkdir()
    path = tmp_path / "filled" / "a.csv"
    path.write_text(text.replace("personalization", "person", 1), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.csv, row 1, field 'personalization': the column is missing"):
        ratings.read_filled(path.parent, tmp_path / "keys")
    path.write_text("something,else\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no column of ratings"):
        ratings.read_filled(path.parent, tmp_path / "keys")
    path.write_bytes("rater,item,answerability,personalization\nzo\xeb,1,2,3\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        ratings.read_filled(path.parent, tmp_path / "keys")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no filled sheets"):
        ratings.read_filled(path.parent, tmp_path / "keys")


def test_one_rater_has_one_sheet_and_a_folder_one_export(tmp_path):
    paths = export(tmp_path, "answers", make_items("answers", 3))
    fill(paths[0], tmp_path / "filled" / "a.csv")
    fill(paths[0], tmp_path / "filled" / "b.csv")
    with pytest.raises(ValueError, match="a second sheet of 'rater-1'"):
        ratings.read_filled(tmp_path / "filled", tmp_path / "keys")
    other = export(tmp_path, "answers", make_items("answers", 4))
    fill(other[1], tmp_path / "filled" / "b.csv")
    with pytest.raises(ValueError, match="of another export"):
        ratings.read_filled(tmp_path / "filled", tmp_path / "keys")


def test_texts_with_breaks_separators_and_quotes_survive(tmp_path):
    odd = 'one\n2. "two", three; four\u2028five'
    items = [ratings.Item("d", "u", "p", group, ("q", "=1+1", odd)) for group in HIDDEN["answers"]]
    paths = export(tmp_path, "answers", items)
    assert [row["response"] for row in ratings.open_csv(paths[0])[1]] == [odd, odd]
    fill(paths[0], tmp_path / "filled" / "a.csv", separator=";")
    assert len(ratings.read_filled(tmp_path / "filled", tmp_path / "keys")["answers"].ratings) == 4


# --- the whole way ---


@pytest.mark.slow
@pytest.mark.parametrize("study", HIDDEN)
def test_the_round_trip_recovers_agreement_and_the_difference_that_was_made_up(tmp_path, study):
    items = make_items(study, 1000)
    key = ratings.make_key(study, items, RATERS, 3)
    folder = tmp_path / "sheets"
    ratings.export(study, key, folder, tmp_path / "keys", RATERS)
    fill_sheets(study, list(key), folder, tmp_path / "filled")
    filled = ratings.read_filled(tmp_path / "filled", tmp_path / "keys")
    assert filled[study].raters == RATERS
    tables = rating_tables(filled, n_resamples=100)
    agreement = tables["rating_agreement"]
    assert (agreement.alpha - TRUE_ALPHA).abs().max() < 0.05
    assert (agreement.n_missing > 0).all() and (agreement.n_out_of_scale > 0).all()
    assert len(tables["rating_problems"]) == (agreement.n_missing + agreement.n_out_of_scale).sum()
    means = tables["ratings"].set_index(["question", "group"])
    first, second = HIDDEN[study]
    expected = [sum(v * w for v, w in zip(ratings.SCALE, s, strict=True)) / sum(s) for s in SHARES.values()]
    # c (mean of one group - mean of the other); the group whose name sorts first has the higher mean
    made_up = TRUE_ALPHA**0.5 * (expected[0] - expected[1]) * (1 if first < second else -1)
    for number, question in enumerate(ratings.QUESTIONS[study]):
        wanted = made_up if number == 0 else 0.0
        found = means.loc[(question, f"{first} - {second}")]
        assert found["mean"] == pytest.approx(wanted, abs=0.15)
        assert means.loc[(question, first), "n_ratings"] == sum(
            means.loc[(question, first), f"n_{v}"] for v in ratings.SCALE
        )
    assert means.loc[(list(ratings.QUESTIONS[study])[0], f"{first} - {second}"), "mean_low"] * made_up > 0


def test_the_simulated_truth_differs_in_the_first_question_only():
    key = list(ratings.make_key("answers", make_items("answers", 2000), RATERS, 1))
    truth = true_values("answers", key, seed=3)
    for question, wanted in (("answerability", -2 / 3), ("personalization", 0.0)):
        by_group = {g: [truth[question][r.item] for r in key if r.group == g] for g in HIDDEN["answers"]}
        means = {group: sum(values) / len(values) for group, values in by_group.items()}
        assert means["PT-DPO"] - means["DPO"] == pytest.approx(wanted, abs=0.15)


@pytest.fixture(scope="module")
def filled_run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_RESULTS", str(folder))
        run = Run(set_field(load_profile("smoke"), pair_limit=8, bootstrap_samples=20), "everyday", 0)
        fill_run(run)
        yield run


def test_items_of_a_run_are_its_personas_and_both_systems_answers(filled_run):
    profile = filled_run.profile
    personas = ratings.items_to_rate(profile, "personas", 6)
    assert len(personas) == 6 and sorted(item.group for item in personas) == ["chosen"] * 3 + ["rejected"] * 3
    for item in personas:
        other = next(i for i in personas if i.pair == item.pair and i.group != item.group)
        assert item.texts[2:] == other.texts[:1:-1] and item.texts[1] != other.texts[1]
    answers = ratings.items_to_rate(profile, "answers", 8)
    assert len(answers) == 8 and {item.group for item in answers} == {"PT-DPO", "DPO"}
    assert all("/user-" in item.pair for item in answers)
    assert len({(item.unit, item.texts[:2]) for item in answers}) == 4
    assert ratings.items_to_rate(profile, "answers", 8) == answers
    assert ratings.items_to_rate(dataclasses.replace(profile, seeds=(7,)), "answers", 8) == []
