"""The package's own pairs: form, balance, leaks, how users are drawn; which value a text shows."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import fields
from itertools import combinations, product

import numpy as np
import pytest

from persona_lib.beyond.calibration import labelled
from persona_lib.data import everyday
from persona_lib.data.everyday import DIMENSIONS, UNREADABLE, fit, quality, shows
from persona_lib.records import PAIR_SPLITS, TailoringRow
from persona_lib.settings import REPO
from persona_lib.store import file_hash
from persona_lib.texts import near_duplicates, tokens
from studies.__main__ import reader_table

ITEMS = everyday.items()


def test_there_are_enough_pairs_and_splits_share_no_topic_and_no_near_prompt():
    assert len({item.id for item in ITEMS}) == len(ITEMS) == 544
    assert set(Counter(item.topic for item in ITEMS).values()) == {4}
    splits = {split: [item for item in ITEMS if item.split == split] for split in PAIR_SPLITS}
    assert sum(map(len, splits.values())) == len(ITEMS)
    for one, other in combinations(splits.values(), 2):
        assert not {item.topic for item in one} & {item.topic for item in other}
        assert not near_duplicates([item.prompt for item in other], [item.prompt for item in one], 0.5)


def test_values_are_opposite_and_texts_have_the_form_of_their_values_and_of_the_paper():
    for item in ITEMS:
        for (dimension, a), (same, b) in zip(item.wish("a"), item.wish("b"), strict=True):
            assert dimension == same and {a, b} == set(DIMENSIONS[dimension]), item.id
    for item, side in product(ITEMS, "ab"):
        text, values = getattr(item, f"response_{side}"), dict(item.wish(side)).values()
        assert 25 <= len(text.split()) <= 70, item.id
        assert (len(re.findall(r"(?m)^(?:\d\.|-) ", text)) >= 3) == ("steps" in values), item.id
        assert "decides" not in values or "?" not in text, item.id
        assert "asks" not in values or "?" in text, item.id
        assert "formal" not in values or not re.search(r"!|n't|'(?:ll|re|ve)\b", text), item.id
        persona = getattr(item, f"persona_{side}")
        assert re.fullmatch(r"The user .+ prefers .+\.", persona) and 9 <= len(persona.split()) <= 27, item.id
        said, asked, answers = (
            {tuple(tokens(text)[n : n + 4]) for text in found for n in range(len(tokens(text)) - 3)}
            for found in ([persona], [item.prompt], [item.response_a, item.response_b])
        )
        assert not said & answers - asked, f"{item.id}: the persona quotes an answer"


def test_the_data_cards_describe_the_file_as_it_is_and_state_its_balance():
    card = json.loads(everyday.FILE.with_suffix(".croissant.json").read_text(encoding="utf-8"))
    (file,), (records,) = card["distribution"], card["recordSet"]
    assert file["sha256"] == file_hash(everyday.FILE), "renew it: sha256sum persona_lib/facts/everyday.jsonl"
    assert [field["name"] for field in records["field"]] == [field.name for field in fields(everyday.Item)]
    text = (REPO / "EVERYDAY.md").read_text(encoding="utf-8")
    assert everyday.Item(**json.loads(re.search(r"```json\n(.*?)```", text, re.S)[1])) in ITEMS
    counts = Counter(item.split for item in ITEMS)
    assert f"| pairs | | {' | '.join(str(counts[split]) for split in PAIR_SPLITS)} |" in text
    even = [item for item in ITEMS if "length" not in item.dimension]
    a_longer = [len(item.response_a.split()) > len(item.response_b.split()) for item in even]
    first_longer = {name: [] for name in DIMENSIONS if name != "length"}
    for item, longer in zip(even, a_longer, strict=True):
        for name, value in item.wish("a"):
            first_longer[name].append((value == DIMENSIONS[name][0]) == longer)
    widest = max(max(np.mean(found), 1 - np.mean(found)) for found in first_longer.values())
    for share, said in (
        (np.mean(["+" in item.dimension for item in ITEMS]), "One pair in five ({:.1f} %)"),
        (np.mean(a_longer), "Side a is the longer one in {:.1f} %"),
        (widest, "is one value the longer one in more than {:.1f} %"),
        (np.mean([item.wording == "explicit" for item in ITEMS]), "In a third of the pairs ({:.1f} %)"),
    ):
        assert said.format(100 * share) in text


def test_seeds_draw_different_users_of_whom_the_majority_share_is_common():
    drawn = {seed: [everyday.sides(item, 0.75, seed)["chosen"] for item in ITEMS] for seed in range(8)}
    commons = {seed: everyday.common_values(seed) for seed in drawn}
    assert len(set(map(tuple, drawn.values()))) == 8 == len({tuple(c.values()) for c in commons.values()})
    for seed, sides in drawn.items():
        firsts = [item.wish(side)[0] for item, side in zip(ITEMS, sides, strict=True)]
        assert 0.69 < np.mean([commons[seed][name] == value for name, value in firsts]) < 0.81


def test_every_text_of_a_user_maps_to_one_wish_and_agrees_with_the_chosen_side():
    pairs, personas, wishes = everyday.pairs(0.75, 3), everyday.personas(0.75, 3), everyday.wishes()
    chosen = {pair.id: pair.chosen for part in pairs.values() for pair in part}
    assert len(wishes) == 4 * len(ITEMS) and chosen.keys() == personas.keys()
    for item in ITEMS:
        side, other = "ab" if chosen[item.id] == item.response_a else "ba"
        assert wishes[personas[item.id]["gold-chosen"]] == item.wish(side)
        assert wishes[personas[item.id]["user-rejected"]] == item.wish(other)


def test_relabelling_exchanges_personas_in_exactly_its_dimensions():
    personas = everyday.personas(0.75, seed=1)
    rows = [TailoringRow(item.id, item.split, item.prompt, "c", "r", personas[item.id]) for item in ITEMS]
    swapped = defaultdict(set)
    for item, row in zip(ITEMS, everyday.relabelled(rows, seed=5), strict=True):
        here, there = personas[item.id], row.personas
        exchanged = there["gold-chosen"] == here["gold-rejected"]
        swapped[item.dimension.split("+")[0]].add(exchanged)
        assert there["user-rejected"] == here["user-chosen" if exchanged else "user-rejected"], item.id
    assert sorted(map(list, swapped.values())) == 5 * [[False]] + 5 * [[True]]


@pytest.mark.parametrize(
    ("dimension", "value", "text"),
    [
        ("length", "thorough", "Use a fan and open a window at night. " * 9),
        ("format", "steps", "Here is how: 1. Clean the pan. 2. Dry it. 3. Oil it."),
        ("format", "prose", "Clean the pan, then dry it - and oil it."),
        ("tone", "warm", "Don’t worry, you’ve got this. It’s easy and fun."),
        ("tone", "formal", "It is recommended that the floor be washed. One should then allow it to dry."),
        ("detail", "technical", "Heat the oven to 180 °C and bake 500 g of dough for 25 minutes."),
        ("initiative", "asks", "That sounds nice. Would you like a recipe for two or for four?"),
        ("initiative", "decides", "Is it ripe? Press it gently. If it gives, it is. Eat it today."),
        ("budget", None, "Borrow a cheap tent, or hire a luxury one."),
        ("table", "indulges", "Serve grilled chicken with beans, peppers and a glass of red wine."),
        ("table", "abstains", "Make a pasta sauce with lentils and peppers instead of beef."),
    ],
)
def test_a_text_shows_a_value_or_none_and_an_empty_one_nothing(dimension, value, text):
    assert shows(dimension, text) == value and shows(dimension, " \n") is None


def test_fit_adds_up_the_wish_without_what_is_not_read_well():
    text = "Invite your friends over and share the work."  # brief, prose, together
    assert fit((("length", "brief"), ("format", "prose")), text) == 2
    assert fit((("length", "thorough"), ("tone", "formal")), text) == -1
    assert fit((("company", "together"), ("company", "alone")), text) == 0


def test_what_is_read_badly_or_seldom_in_generated_answers_is_what_decides_nothing():
    table = reader_table(labelled()).set_index("dimension").drop("all")
    bad = (table.precision < 0.85) | (table.read < 5)
    assert set(table.index[bad]) == set(UNREADABLE) and set(DIMENSIONS) == set(table.index)


def test_the_table_counts_by_hand():
    walk = "Go for a quiet walk by yourself."
    rows = [("alone", walk), ("alone", "Invite your friends."), ("neither", walk), ("together", "Paint it.")]
    table = reader_table(("company", *row) for row in rows).set_index("dimension")
    assert table.loc["all"].tolist() == [3, 3, 1, 1 / 3, 1 / 3]


PROMPT = "How do I repot my tall kitchen basil?"
GOOD = (
    "Lift the basil gently out, then repot it in a taller pot with fresh soil. "
    "Water it well, and leave it on a bright kitchen sill for a week."
)


@pytest.mark.parametrize(
    "text",
    [
        "Paint the wall twice, and let it dry between coats for as long as the tin says, or longer in rain.",
        GOOD.removesuffix(".") + " or",
        " ".join([GOOD.split(".")[0] + "."] * 4),
        "Repot the kitchen basil.",
    ],
)
def test_each_fault_costs_some_quality_and_not_all(text):
    assert quality(PROMPT, " \n") == 0 < 0.2 < quality(PROMPT, text) < quality(PROMPT, GOOD) == 1
