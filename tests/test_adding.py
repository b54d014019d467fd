"""Adding a data set, a judge, a generator or an arm is one function and one line in a table."""

import pytest
from tiny import Echo

from persona_lib import pipeline, tasks
from persona_lib.data import preference
from persona_lib.models import served
from persona_lib.paper import answers, judges, judging, personas
from persona_lib.records import PreferencePair, TailoringRow
from persona_lib.settings import Run, load_profile, set_field

PROFILE = load_profile("everyday")
PAIR = PreferencePair("a", "How?", "a long answer", "short")
ROW = TailoringRow("a", "train", "How?", "good", "bad", {"gold-chosen": "C", "gold-rejected": "R"})


def my_arm(rows: list[TailoringRow], seed: int) -> list[preference.ArmRow]:
    """The chosen response under the persona of the other side: wrong on purpose."""
    return [(r.id, r.prompt, r.personas["gold-rejected"], r.chosen, r.rejected) for r in rows]


@pytest.mark.parametrize(
    ("table", "made", "setting"),
    [
        (preference.READERS, lambda run: {}, "datasets=mine"),
        (judges.JUDGES, lambda run: None, "evaluation.judge=mine"),
        (preference.ARMS, my_arm, "training.arms=none,mine"),
    ],
)
def test_a_line_in_a_table_makes_a_name_known(table, made, setting, monkeypatch, capsys):
    assert pipeline.main(["--check", "--set", setting]) == 2
    assert f"{setting.partition('=')[0]}: 'mine'" in capsys.readouterr().err
    monkeypatch.setitem(table, "mine", made)
    assert pipeline.main(["--check", "--set", setting]) == 0


def test_a_generator(monkeypatch, tmp_path):
    monkeypatch.setitem(served.GENERATORS, "mine", lambda *_: Echo(say=lambda _: "The user is shy."))
    profile = set_field(PROFILE, {"generator.model": "mine"})
    run = Run(profile, "everyday", 0)
    generator = served.load_generator(run, "generator")
    (row,) = personas.infer_personas(generator, [PAIR], "chosen", profile, tmp_path / "x.jsonl")
    assert (row.persona, row.model) == ("The user is shy.", "echo")
    assert served.role_key(run, "generator") == "mine" and "mine" not in tasks.models(profile)


def test_an_arm(monkeypatch):
    monkeypatch.setitem(preference.ARMS, "mine", my_arm)
    (row,) = preference.to_dpo_rows([ROW], "mine", 0)
    assert row["prompt"] == "Prompt: How?\nPersona: R\nResponse:" and row["chosen"] == " good"
    run = Run(set_field(PROFILE, {"training.arms": ["none", "chosen", "mine"]}), "everyday", 0)
    assert "dpo-mine" in {spec.arm for spec in answers.grid(run)}
    assert "gold-chosen, PT trained on mine" in {m.label for m in judging.matchups(run)}
