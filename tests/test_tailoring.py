"""The tailoring data: prompts never cross splits, personas are borrowed from one other row, leaks stop it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from persona_lib import store, texts
from persona_lib.data import everyday, official, preference, tailoring
from persona_lib.data.tailoring import retrieve
from persona_lib.paper import personas as personas_module
from persona_lib.records import SIDES, InferredPersona, PreferencePair
from persona_lib.settings import Run, load_profile, set_field


def infer_all(run: Run, without=()) -> None:
    """Write a persona for every side of every pair, as the inference step would; ids in ``without`` fail."""
    for split, pairs in preference.load_pairs(run).items():
        for side in SIDES:
            found = {p.id: None if p.id in without else persona_of(p.id, side) for p in pairs}
            rows = [InferredPersona(id, side, "test", text, "ok", "") for id, text in found.items()]
            store.write_rows(run.folder / "personas" / f"{split}-{side}.jsonl", rows)


def persona_of(id: str, side: str) -> str:
    return f"The user is kind and prefers the {side} of {id}."


@pytest.fixture
def run(results_here, monkeypatch) -> Run:
    """A run of 40 + 6 + 8 pairs (questions of ``everyday`` under ids of their own) and all their personas."""
    limits = {"train": 40, "validation": 6, "test": 8}
    pairs = {split: [replace(pair, id=f"mine-{pair.id}") for pair in part[: limits[split]]]
             for split, part in everyday.pairs(0.65, 0).items()}  # fmt: skip
    monkeypatch.setitem(preference.READERS, "mine", lambda run: pairs)
    run = Run(set_field(load_profile("everyday"), {"datasets": ["mine"]}), "mine", 0)
    preference.write_pairs(run)
    infer_all(run)
    return run


def built(run: Run, extra=None) -> dict[str, list]:
    tailoring.build_tailoring(run, extra)
    return tailoring.load_tailoring(run)


def test_training_rows_are_split_by_prompt_in_the_papers_proportions():
    pairs = [PreferencePair(f"r{n}", f"Prompt {n // 2}" + " " * (n % 2), "c", "r") for n in range(200)]
    parts = tailoring.split_train(pairs, 0)
    assert [len(parts[name]) for name in ("sft_train", "sft_val", "dpo_train", "dpo_val")] == [80, 20, 80, 20]
    prompts = [{pair.prompt.strip() for pair in part} for part in parts.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 100
    again, other = tailoring.split_train(pairs[::-1], 0), tailoring.split_train(pairs, 1)
    assert {*again["sft_val"]} == {*parts["sft_val"]} != {*other["sft_val"]}


def test_both_retrieved_personas_come_from_one_training_row_that_is_not_for_validation(run, monkeypatch):
    monkeypatch.setitem(tailoring.SCORERS, "late", lambda queries, pool, model: [range(len(pool))] * 14)
    late = replace(run, profile=set_field(run.profile, {"data.retriever": "late:colbert-ir/colbertv2.0"}))
    assert tailoring.tailoring_key(late, {}) != tailoring.tailoring_key(run, {})
    assert personas_module.personas_key(late) != personas_module.personas_key(run)
    for each in (run, late):
        rows = built(each)
        pool = [row.id for split in ("sft_train", "dpo_train") for row in rows[split]]
        for row in rows["validation"] + rows["test"]:
            assert row.retrieved_id in (pool[-1:] if each is late else pool)
            for side in SIDES:
                assert row.personas[f"retrieved-{side}"] == persona_of(row.retrieved_id, side)
                assert row.personas[f"gold-{side}"] == persona_of(row.id, side)


def test_shuffled_personas_are_both_of_one_other_row_and_a_failed_inference_has_none(run):
    failed = preference.load_pairs(run)["test"][0].id
    infer_all(run, without=(failed,))
    rows = {row.id: row.personas for row in built(run)["test"]}
    none = rows.pop(failed)
    assert none["gold-chosen"] is None and "shuffled-chosen" not in none
    of_text = {persona_of(id, "chosen"): id for id in rows}
    givers = {id: of_text[personas["shuffled-chosen"]] for id, personas in rows.items()}
    assert set(givers.values()) == set(rows) and all(id != giver for id, giver in givers.items())
    assert all(rows[id]["shuffled-rejected"] == persona_of(giver, "rejected") for id, giver in givers.items())


def test_the_system_persona_joins_the_most_common_claims():
    said = ["brief and prefers lists.", "brief and prefers prose.", "calm, and prefers prose."]
    personas = [*(f"The user is {text}" for text in said), "Likes prose.", None]
    assert tailoring.common_persona(personas) == "The user is brief and prefers prose."
    assert tailoring.common_persona(personas[3:]) is None


def test_added_personas_are_in_their_row_and_a_rerun_builds_only_for_changed_ones(run):
    test = preference.load_pairs(run)["test"]
    extra = {test[0].id: {"user-chosen": "Busy people like me want it short."}}
    rows = {row.id: row.personas for row in built(run, extra)["test"]}
    assert rows[test[0].id]["user-chosen"] == "Busy people like me want it short."
    assert "user-chosen" not in rows[test[1].id] and rows[test[1].id]["system"].startswith("The user is kind")
    path = run.folder / "tailoring" / "test.jsonl"
    before = path.stat().st_mtime_ns
    assert built(run, extra) and path.stat().st_mtime_ns == before
    infer_all(run, without=(test[0].id,))
    assert built(run, extra) and path.stat().st_mtime_ns != before


def test_missing_personas_name_the_step_and_while_tuning_the_test_personas_are_not_needed(run):
    for side in SIDES:
        (run.folder / "personas" / f"test-{side}.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="test-chosen.jsonl.*03_persona_inference"):
        tailoring.build_tailoring(run)
    tuning = replace(run, profile=set_field(run.profile, {"evaluation.split": "validation"}))
    assert all(row.personas["gold-chosen"] for row in built(tuning)["validation"])


def test_our_own_pairs_keep_their_personas_and_validation_topics_serve_both_trainers(results_here):
    run = Run(set_field(load_profile("everyday"), {"data.pair_limit": 12}), "everyday", 0)
    preference.write_pairs(run)
    infer_all(run)
    pairs, known = preference.load_pairs(run), everyday.personas(run.profile.data.majority_share, 0)
    rows = built(run)
    assert [len(rows[split]) for split in ("sft_train", "dpo_train")] == [6, 6]
    for split in ("sft_val", "dpo_val"):
        assert [row.id for row in rows[split]] == [pair.id for pair in pairs["validation"]]
    pool = {row.id for split in ("sft_train", "dpo_train") for row in rows[split]}
    for split, row in ((split, row) for split, part in rows.items() for row in part):
        assert all(row.personas[f"gold-{side}"] == known[row.id][f"gold-{side}"] for side in SIDES)
        told = "retrieved-chosen" in row.personas
        assert told == (row.retrieved_id in pool) == (split in texts.EVAL_SPLITS)
        inferred = None if split == "test" else persona_of(row.id, "chosen")
        assert row.personas.get("inferred-chosen") == inferred


def test_a_leak_stops_the_step_before_it_is_marked_as_done(run, monkeypatch):
    monkeypatch.setattr(tailoring, "retrieve", lambda queries, *_: [0 for _ in queries])
    monkeypatch.setattr(texts, "POOL_SPLITS", ("sft_val", "dpo_val"))
    with pytest.raises(ValueError, match="retrieve from outside"):
        tailoring.build_tailoring(run)
    assert not (run.folder / "tailoring" / "done.json").exists()


@pytest.mark.slow
def test_official_data_is_passed_through(official_data, results_here):
    profile = set_field(load_profile("everyday"), {"datasets": ["hhh"], "data.path": str(official_data)})
    rows, released = built(Run(profile, "hhh", 0)), official.load_official(official_data, "hhh")
    assert rows["sft_train"][0].personas["gold-chosen"] == released["sft_train"][0].personas["gold-chosen"]
    assert [r.id for r in rows["validation"]] == [r.id for r in released["sft_val"] + released["dpo_val"]]
    assert all(r.personas["shuffled-chosen"] != r.personas["gold-chosen"] for r in rows["test"])


POOL = [
    ("t0", "How do I bake a potato?"),
    ("t1", "How do I fix a bicycle tyre?"),
    ("t2", "What is the best way to learn Spanish?"),
    ("t3", "How do I repair a bicycle chain?"),
]


def test_the_nearest_row_is_found_never_itself_nor_its_prompt_and_the_earlier_of_equals():
    queries = [("q0", "bicycle chain slips, what to repair"), ("q1", "A good way to learn Greek"),
               POOL[1], ("q", "how do i FIX a  bicycle tyre?")]  # fmt: skip
    assert retrieve(queries, POOL) == [3, 2, 3, 3]
    pool = [("a", "red kettle"), ("b", "blue kettle"), ("c", "green kettle")]
    assert retrieve([("q", "kettle"), ("r", "nothing in common")], pool) == [0, 0]
    with pytest.raises(ValueError, match="'q'"):
        retrieve([("q", "Same prompt")], [("a", "same  prompt")])
    with pytest.raises(ValueError, match="pool is empty"):
        retrieve([("q", "x")], [])


def test_an_encoders_similarities_are_rounded_so_that_batches_do_not_matter(monkeypatch):
    near = torch.tensor([[1 / 3, 1 / 3 + 1e-7], [2 / 3, 2 / 3 + 1e-7]])
    same = {name: lambda texts, **_: texts for name in ("encode_query", "encode_document")}
    encoder = SimpleNamespace(similarity=lambda queries, pool: near, **same)
    monkeypatch.setattr(tailoring, "load_model", lambda kind, source: encoder)
    for retriever in ("dense", "late"):
        scores = tailoring.SCORERS[retriever](["a", "b"], ["x", "y"], "any")
        assert scores.tolist() == [[0.33333, 0.33333], [0.66667, 0.66667]]
