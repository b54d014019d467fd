"""Profiles are typed, grouped and strict: what is wrong is named, and nothing is coerced."""

import re
from pathlib import Path

import pytest
import yaml

from persona_lib import settings
from persona_lib.data.everyday import DIMENSIONS
from persona_lib.settings import ConfigError, field_types, flat, load_profile, set_field, value

CONFIGS = settings.REPO / "configs"
SAME = "second_judge.model=base second_judge.format=letter second_judge.max_new_tokens=4"


def write_profile(folder: Path, text: str) -> Path:
    """Put a profile that extends the default one into a folder of its own."""
    (folder / "everyday.yaml").write_text((CONFIGS / "everyday.yaml").read_text(encoding="utf-8"))
    (folder / "mine.yaml").write_text(f"extends: everyday\n{text}\n")
    return folder


def test_there_are_at_most_65_settings_and_the_default_profile_gives_and_explains_each():
    text, given = (CONFIGS / "everyday.yaml").read_text(encoding="utf-8"), set()
    for group, inner in yaml.safe_load(text).items():
        given |= {f"{group}.{key}" for key in inner} if isinstance(inner, dict) else {group}
    roles = {f"{role}.{key}" for role in ("generator", "second_judge") for key in vars(settings.ModelRole())}
    assert set(field_types()) - {"name"} - roles <= given <= set(field_types())
    assert len(set(field_types()) - roles - {"name", "description"}) <= 65
    assert re.findall(r"(?m)^ *\w+: [^#\n]*$", text) == [], "a setting without a comment"


def test_an_extending_profile_differs_only_where_it_says(tmp_path):
    folder = write_profile(tmp_path, "data: {pair_limit: 10}")
    mine, default = flat(load_profile("mine", folder=folder)), flat(load_profile("everyday"))
    assert {name for name in mine if mine[name] != default[name]} == {"name", "data.pair_limit"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sft: {learning_rate: fast}", r"mine\.yaml: sft.learning_rate='fast' should be float"),
        ("sft: {lerning_rate: 1.0}", "unknown setting 'sft.lerning_rate'; did you mean sft.learning_rate"),
        ("lora: {r: true}", "lora.r=True should be int"),
        ("seeds: 3", "seeds=3 should be a list of int"),
        ("a: [", "not YAML"),
        ("extends: mine", "extends itself: mine -> mine"),
    ],
)
def test_a_wrong_line_of_a_file_is_named_with_the_way_out(tmp_path, text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_profile("mine", folder=write_profile(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("training.packing=maybe", "should be bool"),
        ("data.pair_limit", "write group.key=value"),
        ("generator.prices=1.5", "give two, for prompt and completion"),
        ("judge.url=http://127.0.0.1:1/v1", "name the model that it serves in judge.model"),
        ("data.retriever=colbert", "use bm25, dense:MODEL or late:MODEL"),
        ("dpo.splits=test", "known: sft_train, dpo_train"),
        ("generation.engine=vllm", "needs base.dtype=bfloat16"),
        ("lora.r=0", "lora.r=0: use 1 to 1000"),
        (f"personas.shots={len(DIMENSIONS) + 1}", "use 0 to 10"),
        ("dpo.beta=nan", "dpo.beta=nan: use 0.0001 to 100"),
        ("seeds=3,3", "name each once"),
        ("seeds=0", "write a count .5. or a list .0,3."),
        ("training.arms=", "name at least one"),
        ("training.methods=dpo", "DPO starts from SFT"),
        ("evaluation.personas=gold", "did you mean gold-chosen"),
        ("generation.min_new_tokens=500", "use at most generation.max_new_tokens"),
        ("name=mine", "a profile's name is its file's"),
        (f"evaluation.judge=lm {SAME}", "same judge as the first"),
        ("judge.model=m judge.url=http://me:secret@host/v1", "http://...@host/v1.* put the key into"),
    ],
)
def test_a_wrong_override_is_an_error_that_says_what_is_wrong(override, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_profile("everyday", override.split())


def test_overrides_are_typed_like_the_settings_and_an_integer_is_a_float():
    profile = load_profile("everyday", ["sft.learning_rate=1e-4", "training.packing=false"])
    assert (profile.sft.learning_rate, profile.training.packing) == (1e-4, False)
    assert value(set_field(profile, {"lora.dropout": 0}), "lora.dropout") == 0.0
    for text, seeds in (("3", (0, 1, 2)), ("0,3", (0, 3)), ("3,", (3,))):  # a count, or a list
        assert load_profile("everyday", [f"seeds={text}"]).seeds == seeds


LOSSY = ("base.quantization=nf4", "base.dtype=bfloat16", "lora.targets=lm_head")


@pytest.mark.parametrize("lossy", ["", *LOSSY])
def test_adapters_are_merged_only_where_no_bit_is_lost_and_not_with_a_head(lossy):
    assert load_profile("everyday", lossy.split()).merge_adapters is not bool(lossy)


PAPER = {  # by hand: section 4 and appendix
    "base.quantization": "nf4", "base.dtype": "bfloat16", "lora.r": 16, "lora.dropout": 0.05,
    "sft.learning_rate": 2e-5, "sft.epochs": 10, "sft.batch_size": 1,
    "dpo.learning_rate": 5e-6, "dpo.epochs": 10, "dpo.batch_size": 1, "dpo.beta": 0.1,
    "dpo.sft_weight": 0.0, "dpo.max_steps": 0,
    "training.completion_only_loss": False, "training.max_length": 512, "training.warmup": 0.0,
    "generation.max_new_tokens": 512, "generation.min_new_tokens": 10, "personas.shots": 5,
}  # fmt: skip


def test_the_paper_profile_holds_the_papers_values():
    paper = load_profile("paper")
    assert {name: value(paper, name) for name in PAPER} == PAPER
    assert paper.base.model == "meta-llama/Llama-3.1-8B"
    assert paper.lora.alpha == 32 and paper.lora.targets == ("q_proj", "v_proj")
