"""Adding a data set, a judge, a generator, a metric or an arm is one function and one line in a table."""

from __future__ import annotations

import numpy as np

from persona_lib import pipeline, tasks
from persona_lib.data import preference
from persona_lib.models import served
from persona_lib.paper import answers, judges, judging, personas, swap
from persona_lib.records import PAIR_SPLITS, Judgment, PairwiseComparison, PreferencePair, TailoringRow
from persona_lib.settings import Run, load_profile, set_field

PROFILE = load_profile("everyday")
PAIR = PreferencePair("a", "How?", "a long answer", "short")
ROW = TailoringRow("a", "train", "How?", "good", "bad", {"gold-chosen": "C", "gold-rejected": "R"})


class MyGenerator:
    """A generator that is given the pairs themselves."""

    name, settings = "mine", {}

    def write(self, items):
        return [f"The user is x and prefers {len(preferred)} characters." for _, preferred, _ in items]


def longer(comparisons, rubric):
    """A judge that likes the longer response."""
    return [
        Judgment(c.id, "mine", rubric, "A" if len(c.response_a) > len(c.response_b) else "B")
        for c in comparisons
    ]


def my_arm(rows: list[TailoringRow], seed: int) -> list[preference.ArmRow]:
    """The chosen response under the persona of the other side: wrong on purpose."""
    return [(r.id, r.prompt, r.personas["gold-rejected"], r.chosen, r.rejected) for r in rows]


def check(*settings: str) -> int:
    """Let the command line check some settings."""
    return pipeline.main(["--check", *(word for setting in settings for word in ("--set", setting))])


def test_a_data_set(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    assert check("datasets=mine") == 2
    assert "datasets: 'mine'; did you mean mnemonic?" in capsys.readouterr().err
    pairs = {split: [PreferencePair(split, f"{split}?", "yes", "no")] for split in PAIR_SPLITS}
    monkeypatch.setitem(preference.READERS, "mine", lambda run: pairs)
    assert check("datasets=mine") == 0
    run = Run(set_field(PROFILE, {"datasets": ["mine"]}), "mine", 0)
    preference.write_pairs(run)
    assert preference.load_pairs(run) == pairs


def test_a_judge(monkeypatch, capsys):
    assert check("evaluation.judge=mine") == 2
    assert "judge: 'mine'; did you mean none?" in capsys.readouterr().err
    monkeypatch.setitem(judges.JUDGES, "mine", lambda run: longer)
    assert check("evaluation.judge=mine") == 0
    run = Run(set_field(PROFILE, {"evaluation.judge": "mine"}), "everyday", 0)
    comparison = PairwiseComparison("1", "p", None, "long answer", "short")
    ((first, second),) = judging.judge_both(judges.load_judge(run), [comparison], "quality")
    assert (first.winner, second.winner) == ("A", "B") and judging.judge_key(run) == ["mine"]


def test_a_generator(monkeypatch, tmp_path):
    monkeypatch.setitem(served.GENERATORS, "mine", lambda *_: MyGenerator())
    profile = set_field(PROFILE, {"generator.model": "mine"})
    run = Run(profile, "everyday", 0)
    generator = served.load_generator(run, "generator")
    rows = personas.infer_personas(generator, [PAIR], "chosen", profile, tmp_path / "x.jsonl")
    assert [(row.persona, row.model) for row in rows] == [
        ("The user is x and prefers 13 characters.", "mine")
    ]
    assert served.role_key(run, "generator") == "mine" and "mine" not in tasks.models(profile)


def test_a_metric(monkeypatch):
    monkeypatch.setitem(swap.METRICS, "size", lambda m, d: np.abs(d))
    scores = [swap.PolicyScore("a", f"gold-{side}", side, chosen, 0.0)
              for side, chosen in (("chosen", 1.0), ("rejected", 4.0))]  # fmt: skip
    assert swap.swap_values(swap.margins(scores, {})["policy"], "gold")["size"] == {"a": 3.0}


def test_an_arm(monkeypatch, capsys):
    assert check("training.arms=none,mine") == 2 and "training.arms: 'mine'" in capsys.readouterr().err
    monkeypatch.setitem(preference.ARMS, "mine", my_arm)
    assert check("training.arms=none,mine") == 0
    (row,) = preference.to_dpo_rows([ROW], "mine", 0)
    assert row["prompt"] == "Prompt: How?\nPersona: R\nResponse:" and row["chosen"] == " good"
    run = Run(set_field(PROFILE, {"training.arms": ["none", "chosen", "mine"]}), "everyday", 0)
    assert "dpo-mine" in {spec.arm for spec in answers.grid(run)}
    assert "gold-chosen, PT trained on mine" in {m.label for m in answers.matchups(run)}
