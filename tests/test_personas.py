"""Persona inference: what counts as a persona, and resuming by row."""

import pytest

from persona_lib.data import everyday, preference
from persona_lib.models.generate import Completion
from persona_lib.paper import personas
from persona_lib.records import PreferencePair
from persona_lib.settings import Run, load_profile, set_field
from persona_lib.store import append_rows

PROFILE = set_field(load_profile("everyday"), pi_batch_size=2)
PAIRS = [PreferencePair(f"row-{n}", f"Question {n}?", f"good {n}", f"bad {n}") for n in range(5)]


class Echo:
    """A generator that names the preferred response in its persona, and counts what it was asked."""

    name = "echo"

    def __init__(self, die_after: int = 99) -> None:
        self.asked, self.die_after = [], die_after

    def generate(self, prompts, max_new_tokens, stop, prefix=""):
        for index, prompt in reversed(list(enumerate(prompts))):  # any order may come
            if len(self.asked) == self.die_after:
                raise KeyboardInterrupt
            self.asked.append(prompt)
            preferred = prompt.split("Preferred response: ")[1].split("\n")[0]
            yield index, Completion(f"The user is {preferred} and prefers it.\nmore", "stop", 9)


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("The user is shy and prefers quiet.", ("The user is shy and prefers quiet.", "ok")),
        ("\n The user prefers quiet.\nPrompt: x", ("The user prefers quiet.", "ok")),
        ("", (None, "empty")),
        ("I can't help you with that.", (None, "refusal")),
        ("The user is " + "very " * 40 + "shy.", (None, "too_long")),
        ("A shy person.", (None, "malformed")),
        ("The user is is is is", (None, "loop")),
        ("The user is very shy and very, very kind.", ("The user is very shy and very, very kind.", "ok")),
    ],
)
def test_parse_persona_types_every_answer(raw, expected):
    assert personas.parse_persona(raw, max_words=30) == expected


def test_each_side_prefers_its_own_response_and_rows_keep_their_order(tmp_path):
    for side, word in (("chosen", "good"), ("rejected", "bad")):
        rows = personas.infer_personas(Echo(), PAIRS, side, PROFILE, tmp_path / f"{side}.jsonl")
        assert [r.id for r in rows] == [p.id for p in PAIRS]
        assert [r.persona for r in rows] == [f"The user is {word} {n} and prefers it." for n in range(5)]


def test_a_killed_inference_resumes_at_the_missing_rows_and_ends_the_same(tmp_path):
    whole = personas.infer_personas(Echo(), PAIRS, "chosen", PROFILE, tmp_path / "whole.jsonl")
    path = tmp_path / "killed.jsonl"
    with pytest.raises(KeyboardInterrupt):
        personas.infer_personas(Echo(die_after=3), PAIRS, "chosen", PROFILE, path)
    with path.open("a") as file:
        file.write('{"id": "row-1", "si')  # a torn last line
    rest = Echo()
    assert personas.infer_personas(rest, PAIRS, "chosen", PROFILE, path) == whole
    assert len(rest.asked) == 3  # two of the three answered rows had been written


def test_rows_of_another_side_of_the_file_are_not_asked_again(tmp_path):
    path = tmp_path / "all.jsonl"
    first = personas.infer_personas(Echo(), PAIRS, "chosen", PROFILE, path)
    again = Echo()
    assert personas.infer_personas(again, PAIRS[:2], "chosen", PROFILE, path) == first[:2]
    assert not again.asked
    append_rows(path, [])
    assert personas.count_statuses(first) == {"ok": 5}


def test_the_shots_are_from_training_topics_one_dimension_each_the_same_for_every_run():
    shots = personas.inference_shots(PROFILE)
    items = {item.prompt: item for item in everyday.items()}
    found = [items[prompt] for prompt, *_ in shots]
    assert len(found) == PROFILE.pi_shots == len({item.dimension for item in found})
    for item, (_, preferred, other, persona) in zip(found, shots, strict=True):
        assert item.split == "train" and "+" not in item.dimension
        side = "a" if persona == item.persona_a else "b"
        assert preferred == getattr(item, f"response_{side}") != other
        assert {preferred, other} == {item.response_a, item.response_b} and persona == getattr(
            item, f"persona_{side}"
        )
    assert shots == personas.inference_shots(set_field(PROFILE, seeds=[3], datasets=["hhh"]))
    assert len(personas.inference_shots(set_field(PROFILE, pi_shots=99))) == len(everyday.DIMENSIONS)


def test_our_own_pairs_bring_personas_and_training_rows_are_asked_about_for_one_arm_only(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    plain = Run(set_field(PROFILE, pair_limit=3), "everyday", 0)
    preference.write_pairs(plain)
    arm = Run(set_field(plain.profile, train_personas=["none", "inferred"]), "everyday", 0)
    test = [("test", "chosen", 3), ("test", "rejected", 3)]
    asked = [
        [(split, side, len(pairs)) for split, side, pairs in personas.to_infer(run)] for run in (plain, arm)
    ]
    assert asked == [test, [("train", "chosen", 3), ("validation", "chosen", 3), *test]]
    whole = Run(set_field(arm.profile, pair_limit=0), "everyday", 1)
    preference.write_pairs(whole)
    train = {pair.id for split, _, pairs in personas.to_infer(whole) if split == "train" for pair in pairs}
    shown = {item.id for item in personas.shot_items(PROFILE)}
    assert not train & shown and len(train) == 352 - len(shown), "no persona stands in its own prompt"
    assert personas.personas_key(plain) != personas.personas_key(arm)
    more = Run(set_field(plain.profile, train_personas=["none", "both"]), "everyday", 0)
    assert personas.personas_key(plain) == personas.personas_key(more)
    assert personas.user_personas(plain).keys() == {
        pair.id for split in ("validation", "test") for pair in preference.load_pairs(plain)[split]
    }
