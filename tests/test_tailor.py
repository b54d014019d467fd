"""Generation of the grid: which runs there are, what they are shown, and resuming by row."""

import dataclasses

from persona_lib.models.generate import Completion
from persona_lib.paper import answers
from persona_lib.records import Generation, RunSpec, TailoringRow
from persona_lib.settings import Run, load_profile, set_field
from persona_lib.store import read_rows, write_rows

PROFILE = load_profile(
    "everyday", ["controls=true", "eval_limit=0", "few_shot_examples=5"]
)  # its format: the paper's lines
PERSONA = "The user is shy and prefers quiet."
ROWS = [
    TailoringRow(f"row-{n}", "test", f"Question {n}?", "good", "bad", {"gold-chosen": PERSONA if n else None})
    for n in range(4)
]
SHOTS = [
    TailoringRow(f"shot-{n}", "sft_train", f"q{n}", f"a{n}", "b", {"gold-chosen": PERSONA}) for n in range(5)
]


def run_in(tmp_path, monkeypatch, **changes) -> Run:
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    monkeypatch.setattr(answers, "format_of", lambda *source: None)
    run = Run(set_field(PROFILE, **changes), changes.get("datasets", ["everyday"])[0], 0)
    write_rows(run.folder / "tailoring" / "test.jsonl", ROWS)
    write_rows(run.folder / "tailoring" / "sft_train.jsonl", SHOTS)
    return run


class Echo:
    def __init__(self) -> None:
        self.prompts, self.prefix = [], None

    def generate(self, prompts, max_new_tokens, stop, min_new_tokens=0, prefix=""):
        self.prompts, self.prefix = list(prompts), prefix
        return [(n, Completion(f"answer to {p}", "stop", 3)) for n, p in reversed(list(enumerate(prompts)))]


def spec(method="dpo", train="chosen", persona="gold-chosen", form="line") -> RunSpec:
    return RunSpec("everyday", method, train, persona, 0, form)


def test_the_grid_of_the_default_profile_has_every_method_with_and_without_personas():
    cells = {s.slug for s in answers.grid(Run(PROFILE, "everyday", 0))}
    assert {"few_shot-none.gold-chosen.first_person", "few_shot-chosen.gold-rejected.line"} <= cells
    assert {"sft-none.user-chosen.first_person", "dpo-both.system.line", "dpo-none.none.line"} <= cells
    assert "dpo-none.gold-chosen.line" in cells  # the baseline told in the tailored models' own format
    assert not any("rejected." in slug.split("-", 1)[1][:9] for slug in cells)  # arms that were not asked for


def test_more_training_personas_add_arms_and_few_shot_stays_with_two():
    profile = set_field(PROFILE, train_personas=["none", "chosen", "rejected", "both", "shuffled"])
    arms = answers.arms(profile)
    assert ("dpo", "shuffled") in arms and ("sft", "both") in arms
    assert [a for a in arms if a[0] == "few_shot"] == [("few_shot", "none"), ("few_shot", "chosen")]


def test_every_row_of_a_run_is_rendered_with_its_own_persona(tmp_path, monkeypatch):
    run, echo = run_in(tmp_path, monkeypatch), Echo()
    path = tmp_path / "rows.jsonl"
    answers.append_completions(run, spec(), echo, ROWS[1:], path)
    assert echo.prompts[0] == f"Prompt: Question 1?\nPersona: {PERSONA}\nResponse:"
    rows = {r.id: r for r in read_rows(path, Generation)}
    assert set(rows) == {"row-1", "row-2", "row-3"}
    assert rows["row-2"].completion == f"answer to Prompt: Question 2?\nPersona: {PERSONA}\nResponse:"
    assert (rows["row-2"].persona, rows["row-2"].run) == (PERSONA, "dpo-chosen.gold-chosen.line")


def test_a_mnemonic_is_made_to_begin_with_its_term(tmp_path, monkeypatch):
    row = dataclasses.replace(ROWS[1], prompt="negligible")
    kept, keys = {}, set()
    monkeypatch.setattr(answers, "policy_key", lambda run, spec: [])
    monkeypatch.setattr(answers, "model_key", lambda *source: "")
    for how in ("none", "whole"):
        run, echo = run_in(tmp_path, monkeypatch, gen_beginning=how, datasets=["mnemonic"]), Echo()
        path = tmp_path / f"{how}.jsonl"
        answers.append_completions(run, dataclasses.replace(spec(), dataset="mnemonic"), echo, [row], path)
        (kept[how],) = (g.completion.splitlines()[0] for g in read_rows(path, Generation))
        keys.add(answers.generation_key(run, spec()))
        end = "Response:" if how == "none" else "Response: Negligible sounds like"
        assert echo.prompts[-1] == f"Prompt: negligible\nPersona: {PERSONA}\n{end}"
    answer = "answer to Prompt: negligible"
    assert kept == {"none": answer, "whole": f"Negligible sounds like {answer}"}
    assert len(keys) == 2


def test_no_answer_to_another_data_set_is_begun_for_the_model(tmp_path, monkeypatch):
    run = run_in(tmp_path, monkeypatch, gen_beginning="whole")
    assert answers.render(run, spec(), ROWS[1]).endswith("\nResponse:")
    assert answers.whole_answer(run, ROWS[1].prompt, "text") == "text"


def test_few_shot_examples_show_personas_only_to_the_arm_with_personas(tmp_path, monkeypatch):
    run = run_in(tmp_path, monkeypatch)
    told = answers.few_shot_prefix(run, spec("few_shot", "chosen"))
    plain = answers.few_shot_prefix(run, spec("few_shot", "none", form="first_person"))
    assert told.count("Persona:") == 5 and plain.count("Persona:") == 0
    assert told.count("Response: a") == plain.count("Response: a") == 5
    assert told.endswith("\n\n") and answers.few_shot_prefix(run, spec()) == ""


def test_eval_limit_keeps_the_same_rows_in_file_order_whatever_the_seed(tmp_path, monkeypatch):
    whole = run_in(tmp_path, monkeypatch)
    assert answers.eval_rows(whole) == ROWS
    few = run_in(tmp_path, monkeypatch, eval_limit=2)
    other_seed = Run(few.profile, "everyday", 1)
    write_rows(other_seed.folder / "tailoring" / "test.jsonl", list(reversed(ROWS)))
    kept = answers.eval_rows(few)
    assert len(kept) == 2 and kept == [row for row in ROWS if row in kept]
    assert answers.eval_rows(other_seed) == list(reversed(kept))
