"""Profiles are typed and strict: what is wrong is named, with the mend, and nothing is coerced."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from persona_lib import settings
from persona_lib.settings import ConfigError

CONFIGS = settings.REPO / "configs"
PROFILES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def write_profile(folder: Path, text: str) -> Path:
    """Put a profile that extends the default one into a folder of its own."""
    (folder / "everyday.yaml").write_text((CONFIGS / "everyday.yaml").read_text(encoding="utf-8"))
    (folder / "mine.yaml").write_text(f"extends: everyday\n{text}\n")
    return folder


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_loads_and_knows_its_name(name):
    assert settings.load_profile(name).name == name


def test_the_default_profile_gives_and_explains_every_field():
    text = (CONFIGS / "everyday.yaml").read_text(encoding="utf-8")
    fields = {field.name for field in dataclasses.fields(settings.Profile)} - {"name"}
    assert set(yaml.safe_load(text)) == fields


@pytest.mark.parametrize("name", PROFILES)
def test_no_number_in_a_file_is_read_as_text(name):
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    for field, value in content.items():
        if isinstance(value, str):
            with pytest.raises(ValueError):
                float(value or "empty"), field


def test_a_float_that_yaml_reads_as_text_is_refused_with_the_mend(tmp_path):
    folder = write_profile(tmp_path, "sft_learning_rate: 5e-5")
    with pytest.raises(ConfigError, match=r"mine\.yaml: sft_learning_rate='5e-5' should be float.*5\.0e-5"):
        settings.load_profile("mine", folder=folder)


def test_an_unknown_field_names_the_near_ones(tmp_path):
    folder = write_profile(tmp_path, "sft_lerning_rate: 1.0")
    with pytest.raises(ConfigError, match="unknown field 'sft_lerning_rate'; did you mean sft_learning_rate"):
        settings.load_profile("mine", folder=folder)


def test_a_missing_profile_names_the_ones_there_are():
    with pytest.raises(ConfigError, match="no profile 'smok'.*did you mean smoke"):
        settings.load_profile("smok")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("sft_lerning_rate=1", "did you mean sft_learning_rate"),
        ("pair_limit=many", "not a valid int"),
        ("pair_limit=1.5", "not a valid int"),
        ("completion_only_loss=maybe", "not a valid bool"),
        ("pair_limit", "write key=value"),
        ("generator_prices=1.5", "give two, for prompt and completion"),
        ("judge_url=http://127.0.0.1:1/v1", "name the model that it serves in judge_model"),
        ("retriever=colbert", "use one of bm25, dense, late"),
        ("retriever=late", "dense and late need a model"),
        ("retriever_model=colbert-ir/colbertv2.0", "bm25 has none"),
        ("dpo_splits=test", "use dpo_train, sft_train or both"),
    ],
)
def test_a_wrong_override_is_an_error_that_says_what_is_wrong(override, complaint):
    with pytest.raises(ConfigError, match=complaint):
        settings.load_profile("everyday", [override])


def test_overrides_are_typed_like_the_fields():
    profile = settings.load_profile(
        "everyday", ["sft_learning_rate=1e-4", "seeds=0,3", "completion_only_loss=false", "datasets=hhh"]
    )
    assert profile.sft_learning_rate == 1e-4
    assert profile.seeds == (0, 3)
    assert profile.completion_only_loss is False
    assert profile.datasets == ("hhh",)


def test_an_integer_is_accepted_for_a_float_but_not_the_reverse():
    assert settings.check_value("lora_dropout", 0, "here") == 0.0
    with pytest.raises(ConfigError, match="should be int"):
        settings.check_value("lora_r", 16.0, "here")
    with pytest.raises(ConfigError, match="should be int"):
        settings.check_value("lora_r", True, "here")


def test_an_extending_profile_differs_only_where_it_says(tmp_path):
    folder = write_profile(tmp_path, "pair_limit: 10")
    mine, default = settings.load_profile("mine", folder=folder), settings.load_profile("everyday")
    assert dataclasses.replace(mine, name="everyday", pair_limit=default.pair_limit) == default


def test_a_run_of_a_data_set_that_the_profile_lacks_is_refused():
    with pytest.raises(ConfigError, match="'shp' is not one of profile everyday"):
        settings.run_dir(settings.load_profile("everyday"), "shp", 0)


def test_results_and_figures_move_with_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "r"))
    monkeypatch.setenv("PERSONA_FIGURES", str(tmp_path / "f"))
    run = settings.open_run("smoke", seed=3)
    assert run.folder == tmp_path / "r" / "smoke" / "everyday" / "seed-3"
    assert settings.figures_dir(run.profile) == tmp_path / "f" / "smoke"


def test_the_paper_profile_holds_the_papers_values():
    paper = settings.load_profile("paper")
    assert paper.base_model == "meta-llama/Llama-3.1-8B"
    assert (paper.lora_r, paper.lora_alpha, paper.lora_dropout, paper.lora_targets) == (
        16,
        32,
        0.05,
        ("q_proj", "v_proj"),
    )
    assert (paper.sft_learning_rate, paper.sft_epochs, paper.sft_batch_size) == (2e-5, 10, 1)
    assert (paper.dpo_learning_rate, paper.dpo_beta, paper.dpo_epochs, paper.dpo_batch_size) == (
        5e-6,
        0.1,
        10,
        1,
    )
    assert (paper.dpo_sft_weight, paper.completion_only_loss, paper.max_length) == (0.0, False, 512)
    assert (paper.gen_max_new_tokens, paper.gen_min_new_tokens, paper.pi_shots) == (512, 10, 5)


def test_a_warm_up_is_a_share_and_never_a_number_of_steps():
    with pytest.raises(ConfigError, match="warmup_share=20.0: use a share of the steps"):
        settings.load_profile("everyday", ["warmup_share=20"])
