"""Persona inference: what is a persona, resuming by row; accuracy, preference and words by hand."""

import math

import pytest
from test_judges import Scripted
from tiny import Echo

from persona_lib.data import everyday, preference
from persona_lib.models import load
from persona_lib.paper import judges, personas
from persona_lib.records import SIDES, InferredPersona, PreferencePair
from persona_lib.settings import Run, load_profile, set_field
from persona_lib.store import write_rows, write_text

PROFILE = set_field(load_profile("everyday"), {"generator.batch_size": 2})
PAIRS = [PreferencePair(f"row-{n}", f"Question {n}?", f"good {n}", f"bad {n}") for n in range(5)]


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("\n The user prefers quiet.\nPrompt: x", ("The user prefers quiet.", "ok")),
        ("", (None, "empty")),
        ("I can't help you with that.", (None, "refusal")),
        ("The user is " + "very " * 40 + "shy.", (None, "too_long")),
        ("A shy person.", (None, "malformed")),
        ("The user is is is is", (None, "loop")),
        ("The user is very shy and very, very kind.", ("The user is very shy and very, very kind.", "ok")),
    ],
)
def test_every_answer_is_a_persona_or_has_a_reason_why_not(raw, expected):
    assert personas.parse_persona(raw, max_words=30) == expected


@pytest.mark.parametrize(("side", "word"), [("chosen", "good"), ("rejected", "bad")])
def test_each_side_prefers_its_own_response(tmp_path, side, word):
    def say(prompt: str) -> str:
        preferred = prompt.split("Preferred response: ")[-1].split("\n")[0]
        return f"The user is {preferred} and prefers it.\nmore"

    found = personas.infer_personas(Echo(say=say), PAIRS, side, PROFILE, tmp_path / "personas.jsonl")
    wanted = [(p.id, f"The user is {word} {n} and prefers it.") for n, p in enumerate(PAIRS)]
    assert [(row.id, row.persona) for row in found] == wanted


def test_the_shots_are_from_training_topics_one_dimension_each():
    shots = personas.inference_shots(PROFILE)
    items = {item.prompt: item for item in everyday.items()}
    found = [items[prompt] for prompt, *_ in shots]
    assert len(found) == PROFILE.personas.shots == len({item.dimension for item in found})
    for item, (_, *shown) in zip(found, shots, strict=True):
        assert item.split == "train" and "+" not in item.dimension
        a, b = item.response_a, item.response_b
        assert shown in ([a, b, item.persona_a], [b, a, item.persona_b])


def test_our_own_pairs_bring_personas_and_training_rows_are_asked_about_for_one_arm(results_here):
    plain = Run(set_field(PROFILE, {"data.pair_limit": 3}), "everyday", 0)
    preference.write_pairs(plain)
    arm = Run(set_field(plain.profile, {"training.arms": ["none", "inferred"]}), "everyday", 0)
    test = [("test", "chosen", 3), ("test", "rejected", 3)]
    asked = [[(split, side, len(pairs)) for split, side, pairs in personas.to_infer(r)] for r in (plain, arm)]
    assert asked == [test, [("train", "chosen", 3), ("validation", "chosen", 3), *test]]
    whole = Run(set_field(arm.profile, {"data.pair_limit": 0}), "everyday", 1)
    preference.write_pairs(whole)
    train = [part for split, _, part in personas.to_infer(whole) if split == "train"][0]
    shown = {prompt for prompt, *_ in personas.inference_shots(PROFILE)}
    assert not shown & {pair.prompt for pair in train}, "no persona stands in its own prompt"
    assert len(train) == 352 - len(shown)
    more = Run(set_field(plain.profile, {"training.arms": ["none", "both"]}), "everyday", 0)
    assert personas.personas_key(arm) != personas.personas_key(plain) == personas.personas_key(more)


@pytest.fixture
def inferred(results_here, monkeypatch):
    """Judge the personas of eight pairs, given as texts by side (else those they bring): -> the profile."""
    monkeypatch.setattr(everyday, "UNREADABLE", ())  # the texts of the pairs are read well on all dimensions
    monkeypatch.setattr(load, "format_of", lambda *source: None)

    def judged(judge: str, **texts):
        few = ["data.pair_limit=8", "evaluation.bootstrap_samples=50"]
        run = Run(load_profile("smoke", [*few, f"evaluation.persona_judge={judge}"]), "everyday", 0)
        preference.write_pairs(run)
        known = everyday.personas(run.profile.data.majority_share, 0)
        pairs = preference.load_pairs(run)["test"]
        for side in SIDES:
            found = texts.get(side) or [known[pair.id][f"gold-{side}"] for pair in pairs]
            rows = [InferredPersona(pair.id, side, "m", text, "", "")
                    for pair, text in zip(pairs, found, strict=True)]  # fmt: skip
            write_rows(run.folder / "personas" / f"test-{side}.jsonl", rows)
        personas.judge_run(run)
        return run.profile

    return judged


def test_personas_are_judged_once_and_again_when_one_changes(inferred, monkeypatch):
    run = Run(inferred("oracle"), "everyday", 0)
    monkeypatch.setattr(personas, "load_judge", lambda *_: pytest.fail("judged again"))
    personas.judge_run(run)
    path = run.folder / "personas" / "test-chosen.jsonl"
    write_text(path, path.read_text().replace("The user is", "The user was", 1))
    with pytest.raises(pytest.fail.Exception, match="judged again"):
        personas.judge_run(run)


def test_accuracy_by_hand(results_here):
    run = Run(set_field(load_profile("smoke"), {"evaluation.bootstrap_samples": 50}), "everyday", 0)
    verdicts = {"chosen": ["win", "win", "tie", ""], "rejected": ["loss", "win", "unparsed", "win"]}
    rows = [f"r{i},{side},{v}" for side, part in verdicts.items() for i, v in enumerate(part)]
    write_text(run.folder / "tables" / personas.ITEMS, "\n".join(["id,side,verdict", *rows]))
    chosen, rejected, gap = personas.accuracy_table(run.profile).itertuples()
    assert chosen.accuracy == 2.5 / 4 and chosen.n_missing == 1 and chosen.n == 4 and chosen.seeds == "0"
    assert rejected.accuracy == 2 / 4 and gap.accuracy == pytest.approx(0.5 / 4)
    assert (chosen.n_correct, rejected.n_wrong, rejected.n_unparsed, gap.n_seeds) == (2, 1, 1, 1)


def test_true_personas_are_accurate_and_without_a_judge_there_is_no_table(inferred):
    chosen, rejected, _ = personas.accuracy_table(inferred("oracle")).itertuples()
    assert (chosen.accuracy, rejected.accuracy, chosen.n) == (1, 1, 8)
    assert personas.accuracy_table(inferred("none")).empty


LIKELY = {"The user is chosen 0.": 3.0, "The user is rejected 1.": 3.0}


@pytest.mark.parametrize(("judge", "counts"), [("lm", (4, 2, 0, 1)), ("backwards", (1, 5, 1, 0))])
def test_both_users_of_a_pair_are_compared_in_both_orders(inferred, monkeypatch, judge, counts):
    made = Scripted(*"AAAAAAA", *"BAA", "hm", *"BBB")
    monkeypatch.setattr(judges, "load_generator", lambda run, role: made)
    scores = {"scores": lambda self, texts, adapted: [LIKELY.get(text, 1.0) for _, text in texts]}
    monkeypatch.setitem(judges.JUDGES, "backwards", type("Likely", (judges.BackwardsJudge,), scores))
    monkeypatch.setattr(personas, "judge_personas", lambda *given: {})
    profile = inferred(judge, **{s: [f"The user is {s} {n}." for n in range(7)] + [None] for s in SIDES})
    (row,) = personas.preference_table(profile).itertuples()
    assert (row.win, row.tie, row.loss, row.unparsed) == counts and (row.n, row.n_missing) == (7, 1)


def saliency(*sides, **how) -> dict:
    return personas.word_saliency(*sides, **how).set_index("word").to_dict("index")


def test_words_are_whole_rare_ones_count_in_the_totals_only_and_log_odds_are_those_by_hand():
    whole, again = ["The user is to-the-point.", "Meticulous"], ["to-the-point, The user; To-the-point"]
    rows = saliency(whole, again, min_count=2)
    assert set(rows) == {"the", "user", "to-the-point"}, "'is' and 'meticulous' occur once"
    assert (rows["to-the-point"]["n_chosen"], rows["to-the-point"]["n_rejected"]) == (1, 2)
    assert len(personas.word_saliency([], [])) == len(personas.word_saliency(["one"], ["one"])) == 0
    texts, prior = (["x x x x x x y y v", "x x"], ["y y y y x v", "y w"]), 20 * 9 / 19  # 11 and 8 words
    rows = saliency(*texts, min_count=2, prior_size=20)
    odds = [(y + prior) / (n + 20 - y - prior) for y, n in ((8, 11), (1, 8))]
    delta, error = math.log(odds[0] / odds[1]), math.sqrt(1 / (8 + prior) + 1 / (1 + prior))
    x = rows["x"]
    assert list(rows)[-1] == "x" and set(rows) == {"x", "y", "v"}, "the most typical of chosen last"
    assert [x[name] for name in ("log_odds", "log_odds_low", "log_odds_high", "z")] == pytest.approx(
        [delta, delta - 1.96 * error, delta + 1.96 * error, delta / error], abs=1e-4
    )
    assert x["p_holm"] == pytest.approx(3 * math.erfc(abs(x["z"]) / math.sqrt(2))), "the smallest of three"


def test_words_that_mark_the_authors_personas_are_those_known(official_data, monkeypatch):
    monkeypatch.setenv("PERSONA_DATA", str(official_data))
    table = personas.released_words(load_profile("authors"))
    assert set(table.dataset) == {"beavertails", "hhh"}
    side = table[table.dataset == "beavertails"].set_index("word").side
    assert side["straightforward"] == side["concise"] == "rejected" and side["multi-faceted"] == "chosen"
