"""The rating kit: blind sheets go out, filled ones come back checked, groups and agreement are recovered."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_demo import CHROMIUM, FLAGS
from test_store import FORMULA
from tiny_results import fill_run

from persona_lib.beyond import ratings
from persona_lib.settings import Run, load_profile, set_field

HIDDEN = {"personas": ("chosen", "rejected"), "answers": ("PT-DPO", "DPO")}
N = float("nan")


def make_items(study: str, n: int, swapped: bool = False) -> list[ratings.Item]:
    """Items of n pairs, of one word each text; ``swapped``: the same texts with the labels exchanged."""
    items = []
    for number in range(n):
        for place, group in enumerate(HIDDEN[study]):
            label = HIDDEN[study][1 - place] if swapped else group
            unit = f"u{number}" if study == "answers" else f"u{number}-{place}"
            texts = {name: f"text{number}{'ab'[place]}{k}" for k, name in enumerate(ratings.TEXTS[study])}
            head = {"study": study, "dataset": "data", "unit": unit, "pair": f"p{number}", "group": label}
            items.append(head | texts)
    return items


def export(folder: Path, study: str, n: int, seed: int = 0, per_unit: int = 3, **how) -> list[Path]:
    items = ratings.number_items(study, make_items(study, n, **how), 3, per_unit, seed)
    return ratings.export(study, items, folder, seed)


def fill(path: Path, target: Path, change=lambda rows: rows, value: str = "3", separator: str = ",") -> Path:
    """Fill a sheet with one value, edit its rows, and save it as a spreadsheet program would."""
    sheet = ratings.open_csv(path)
    sheet[list(ratings.QUESTIONS[path.parent.name])] = value
    table = pd.DataFrame(change(sheet.to_dict("records")), columns=list(sheet))
    text = table.to_csv(index=False, sep=separator, lineterminator="\r\n")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8-sig", newline="")
    return target


def read(folder: Path) -> pd.DataFrame:
    return ratings.read_filled(folder / "filled", folder / "keys")


def key_of(path: Path) -> dict[str, dict[str, str]]:
    return {row["item"]: row for row in ratings.open_csv(path).to_dict("records")}


@pytest.mark.parametrize("study", HIDDEN)
def test_what_raters_get_is_the_same_bytes_whichever_side_or_system_a_text_is_of(tmp_path, study):
    *one, key = export(tmp_path / "one", study, 12)
    *two, other_key = export(tmp_path / "two", study, 12, swapped=True)
    for first, second in zip(one, two, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert key.read_bytes() != other_key.read_bytes(), "the key must tell them apart"
    pages = sorted((tmp_path / "one").rglob("*.html"))
    for first, second in zip(pages, sorted((tmp_path / "two").rglob("*.html")), strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert {*(tmp_path / "one" / "for_raters").rglob("*.*")} == {*one, *pages} and len(pages) == 3
    words = {*HIDDEN[study], "p0", "u0", "seed", "data"}
    for path in (*one, *pages):
        assert not words & set(path.read_text(encoding="utf-8").replace(",", " ").split()), path


@pytest.mark.parametrize("study", HIDDEN)
def test_neither_number_nor_place_tells_the_group(tmp_path, study):
    first_comes_first = []
    for seed in range(40):
        *sheets, key = export(tmp_path / str(seed), study, 10, seed)
        group = key_of(key)
        for order in (list(group), list(ratings.open_csv(sheets[1]).item)):
            place = {(group[item]["pair"], group[item]["group"]): n for n, item in enumerate(order)}
            a, b = HIDDEN[study]
            first_comes_first += [place[f"p{n}", a] < place[f"p{n}", b] for n in range(10)]
    # 400 pairs, two orders each: within 4 standard errors of one half, were both orders the same
    assert abs(np.mean(first_comes_first) - 0.5) < 4 * 0.5 / 400**0.5


def test_two_answers_stand_together_raters_have_own_orders_and_share_units_with_a_neighbour(tmp_path):
    *sheets, _, key = export(tmp_path, "answers", 9, per_unit=2)
    pair = {item: row["pair"] for item, row in key_of(key).items()}
    orders = [list(ratings.open_csv(sheet).item) for sheet in sheets]
    for order in orders:
        pairs = [pair[item] for item in order]
        assert pairs[::2] == pairs[1::2] and len(set(pairs)) == len(pairs) // 2 == 6
    shared = [item for item in orders[0] if item in orders[1]]
    assert len(shared) > 2 and shared != [item for item in orders[1] if item in shared]


def edit(column: str, value: str, place: int = 0):
    def change(rows: list[dict]) -> list[dict]:
        rows[place][column] = value
        return rows

    return change


@pytest.mark.parametrize("value", ["6", "4.5", "four", " "])
def test_a_value_off_the_scale_and_lost_rows_are_counted_and_located_and_not_guessed(tmp_path, value):
    paths = export(tmp_path, "answers", 4)
    fill(paths[0], tmp_path / "filled" / "a.csv", lambda rows: edit("answerability", value, 2)(rows)[:-1])
    tables = ratings.rating_tables(read(tmp_path), 10)
    problems = tables["rating_problems"].sort_values("row")[["file", "row", "given"]].to_numpy().tolist()
    assert problems == [["filled/a.csv", 0, ""]] * 2 + [["filled/a.csv", 4, value.strip()]]
    counts = tables["rating_agreement"][["n_missing", "n_out_of_scale", "n_ratings"]].to_numpy().tolist()
    assert counts == [[1 + (value == " "), value != " ", 6], [1, 0, 7]]


HEAD = "rater,item,answerability,personalization\n"
BROKEN = {  # the error: how a good sheet is changed, or the file itself
    "row 3, field 'item': 'zzzz-001' is not in the key; restore": edit("item", "zzzz-001", 1),
    "row 2, field 'item': no key answers-zzzz.csv": edit("item", "zzzz-001", 0),
    "row 3, field 'item': .* occurs twice; keep one": lambda rows: [rows[0], rows[0], *rows[1:]],
    "row 2, field 'rater': ''; write": lambda rows: [row | {"rater": ""} for row in rows],
    "row 2, field 'item': no rows": lambda rows: [],
    "row 1, field 'personalization': no such column": "rater,item,answerability\nx,1,2\n",
    ": not a table in UTF-8": HEAD + "zo\xeb,1,2,3\n",
    ": not a table": "",
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_sheet_is_an_error_that_says_where_and_how_to_mend_it(tmp_path, message):
    paths, change = export(tmp_path, "answers", 3), BROKEN[message]
    broken = tmp_path / "filled" / "broken.csv"
    fill(paths[0], broken, lambda rows: rows if isinstance(change, str) else change(rows))
    if isinstance(change, str):
        broken.write_bytes(change.encode("latin-1"))
    with pytest.raises(ValueError, match=f"broken.csv(, )?{message}"):
        read(tmp_path)


def test_one_rater_has_one_sheet_and_a_folder_one_export(tmp_path):
    paths = export(tmp_path, "answers", 3)
    with pytest.raises(FileNotFoundError, match="no filled sheets"):
        read(tmp_path)
    fill(paths[0], tmp_path / "filled" / "a.csv")
    fill(paths[0], tmp_path / "filled" / "b.csv")
    with pytest.raises(ValueError, match="a second sheet of 'rater-1'"):
        read(tmp_path)
    fill(export(tmp_path, "answers", 4)[1], tmp_path / "filled" / "b.csv")
    with pytest.raises(ValueError, match="of another export"):
        read(tmp_path)


def test_a_sheet_that_a_rater_filled_in_its_place_is_not_written_again(tmp_path):
    sheet, empty, *_ = export(tmp_path, "personas", 3)
    fill(sheet, sheet)
    filled, before = sheet.read_bytes(), empty.read_bytes()
    export(tmp_path, "personas", 3)
    assert sheet.read_bytes() == filled and empty.read_bytes() == before


def test_texts_with_breaks_and_formulas_survive_and_no_cell_is_a_formula(tmp_path):
    odd = '<b>one</b>\n2. "two", three; four\u2028five'
    for text in (odd, "- First\n- Second", "=1+1", "+1", "@now", "-2"):
        items = [item | {"persona": "=1+1", "response": text} for item in make_items("answers", 1)]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        paths = ratings.export("answers", ratings.number_items("answers", items, 1, 1), folder)
        assert list(ratings.open_csv(paths[0]).response) == [text, text]
        assert "<b>" not in paths[0].with_suffix(".html").read_text(encoding="utf-8")
        cells = pd.read_csv(paths[0], dtype=str, keep_default_na=False).to_numpy().ravel()
        assert not [cell for cell in cells if cell.startswith(FORMULA)]
        fill(paths[0], folder / "filled" / "a.csv", value=" 3.0", separator=";")
        assert read(folder).value.tolist() == [3] * 4


# The data of Krippendorff (2011), "Computing Krippendorff's alpha-reliability": 4 observers, 12 units.
PUBLISHED = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]).T  # fmt: skip


@pytest.mark.parametrize(("values", "alpha"), [(PUBLISHED, 0.815), ([[1, 1]] * 2, N), ([[1, N], [N, 2]], N)])
def test_alpha_of_krippendorffs_own_example_and_undefined_where_nothing_can_disagree(values, alpha):
    counts = (np.array(values)[:, :, None] == np.array(ratings.SCALE)).sum(axis=1)
    assert ratings.alpha(counts) == pytest.approx(alpha, abs=5e-4, nan_ok=True)


def test_tables_of_two_items_by_hand(tmp_path):
    paths = export(tmp_path, "answers", 1)
    key = key_of(paths[-1])
    (tmp_path / "filled").mkdir()
    for path, best in zip(paths, ("4", "5"), strict=False):
        given = {item: best if row["group"] == "PT-DPO" else "2" for item, row in key.items()}
        sheet = ratings.open_csv(path)
        sheet["answerability"] = sheet.item.map(given)
        sheet.to_csv(tmp_path / "filled" / path.name, index=False)
    tables = ratings.rating_tables(read(tmp_path), n_resamples=10)
    means = tables["ratings"].set_index(["question", "group"])["mean"]
    assert means["answerability"].to_dict() == {"PT-DPO": 4.5, "DPO": 2, "PT-DPO - DPO": 2.5}
    assert means["personalization"].isna().all(), "nobody rated it"
    assert tables["ratings"].loc[0, ["n_ratings", "n_4", "n_5", "n_raters"]].tolist() == [2, 1, 1, 2]
    assert tables["rating_agreement"].n.tolist() == [2, 0] and len(tables["rating_problems"]) == 4


def test_items_of_a_run_are_its_personas_and_both_systems_answers_and_what_raters_get_is_blind(results_here):
    profile = load_profile("smoke", ["data.pair_limit=12", "evaluation.limit=0"])
    fill_run(Run(profile, "everyday", 0))
    personas = ratings.items_to_rate(profile, "personas", 6)
    for one, other in zip(personas[::2], personas[1::2], strict=True):
        assert (one["group"], other["group"], one["pair"]) == ("chosen", "rejected", other["pair"])
        assert one["preferred_response"] == other["other_response"] and one["persona"] != other["persona"]
    answers = ratings.items_to_rate(profile, "answers", 8)
    assert len(personas) == 6 and [item["group"] for item in answers] == ["PT-DPO", "DPO"] * 4
    assert all("/user-" in item["pair"] for item in answers)
    assert ratings.items_to_rate(profile, "answers", 8) == answers
    assert ratings.items_to_rate(set_field(profile, {"seeds": (7,)}), "answers", 8) == []
    written = ratings.export_studies(profile)
    assert (len(written["personas"]), len(written["answers"])) == (3 + 2, 8 + 2)  # instructions and key
    secrets = ("PT-DPO", "dpo-", "gold-", "user-chosen", "user-rejected", "everyday", "seed-0")
    handed_out = list((results_here / "smoke" / "ratings" / "for_raters").rglob("*.*"))
    assert len(handed_out) == 2 * 3 + 1 + 2 * 8 + 1  # a sheet and a page each, and instructions
    for path in handed_out:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in secrets if word in text], path
        assert not {"chosen", "rejected"} & set(text.lower().split()), path


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_a_page_keeps_what_is_given_by_keys_and_mouse_and_its_sheet_is_read_back(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="the [browser] extra is not installed")
    items = [item | {"persona": "<img src=x onerror=alert(1)>"} for item in make_items("answers", 3)]
    paths = ratings.export("answers", ratings.number_items("answers", items, 2, 2), tmp_path)
    wrong: list[str] = []

    def rate(rater: int) -> None:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(paths[rater - 1].with_suffix(".html").as_uri())
        for key in "4205n":  # A: answers, suits; B: cannot say, suits
            page.keyboard.press(key)
        assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing is wider than a phone"
        page.reload()
        playwright.expect(page.locator("#said")).to_have_text("2 of 3, 1 rated")  # at the first that is open
        shown = page.locator("section:visible")
        shown.locator("article").nth(1).get_by_label("4").first.check()
        shown.locator("textarea").first.fill('=1+1, "so"\nn 3')  # in a comment a key is a letter
        assert page.locator("img").count() == 0
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save the sheet").click()
        assert saved.value.suggested_filename == f"rater-{rater}.csv"
        saved.value.save_as(tmp_path / "filled" / saved.value.suggested_filename)

    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for rater in (1, 2):
            rate(rater)
    assert wrong == []
    sheets = [ratings.open_csv(tmp_path / "filled" / f"rater-{n}.csv") for n in (1, 2)]
    for sheet, path in zip(sheets, paths[:2], strict=True):
        assert list(sheet.item) == list(ratings.open_csv(path).item), "in the order of the exported sheet"
        assert sheet.answerability.tolist() == ["4", "", "", "4", "", ""]
        assert sheet.personalization.tolist() == ["2", "5", "", "", "", ""]
        assert [text.splitlines() for text in sheet.comment[2:4]] == [['=1+1, "so"', "n 3"], []]
    agreement = ratings.rating_tables(read(tmp_path), 10)["rating_agreement"]
    assert agreement[["n_ratings", "n_missing"]].to_numpy().tolist() == [[4, 8], [4, 8]]
