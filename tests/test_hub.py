"""Nothing is loaded from the hub without a commit; the hub's tables pass the same checks as the folders."""

from __future__ import annotations

import ast

import pytest

from persona_lib import execute, settings, tasks, weights
from persona_lib.data import official
from persona_lib.models import load as load_module
from persona_lib.models.served import GENERATORS
from persona_lib.records import DataError
from persona_lib.settings import load_profile
from persona_lib.weights import HubError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = settings.REPO
# What loads from the hub if it is given an id; Peft loads adapters, which are folders of ours.
LOADERS = (
    "from_pretrained",
    "load_dataset",
    "snapshot_download",
    "hf_hub_download",
    "SentenceTransformer",
    "MultiVectorEncoder",
)


# --- which commit ---


def test_the_table_pins_to_whole_commits_or_says_that_none_is_known():
    models = {name: model.commit for name, model in weights.MODELS.items()}
    commits = [*weights.DATASETS.values(), *filter(None, models.values())]
    assert all(weights.COMMIT.fullmatch(commit) for commit in commits)
    unknown = {name for name, commit in models.items() if not commit}
    assert all(name.startswith("nbalepur/Llama-3.1-8B-PT-DPO-") for name in unknown)
    with pytest.raises(weights.HubError, match="@COMMIT"):
        weights.pinned(min(unknown))
    assert all(weights.HUB_ID.fullmatch(name) for name in (*weights.DATASETS, *weights.MODELS))


@pytest.mark.parametrize("name", sorted(path.stem for path in (REPO / "configs").glob("*.yaml")))
def test_every_hub_model_of_a_profile_has_a_commit(name):
    profile = load_profile(name)
    fields = ("base_model", "generator_model", "judge_model", "retriever_model")
    served = {f"{role}_model" for role in ("generator", "judge") if getattr(profile, f"{role}_url")}
    named = {getattr(profile, field) for field in fields if field not in served}
    named -= {"", "base", *GENERATORS}
    for source in (name for name in named if not weights.is_packaged(name)):
        revision = profile.base_revision if source == profile.base_model else ""
        assert weights.pinned(source, revision)[1], source


def test_a_commit_is_the_given_one_else_the_written_one_else_that_of_the_table(tmp_path):
    known = "prometheus-eval/prometheus-7b-v2.0"
    assert weights.pinned(known) == (known, weights.MODELS[known].commit)
    assert weights.pinned(f"{known}@{COMMIT}") == (known, COMMIT)
    assert weights.pinned(known, COMMIT) == (known, COMMIT)
    assert weights.pinned(tmp_path) == (str(tmp_path), None)


@pytest.mark.parametrize("source", ["some/model", "some/model@main", "some/model@0123456", "model"])
def test_a_hub_id_without_a_whole_commit_is_refused_with_the_mend(source):
    with pytest.raises(HubError, match="model: not a folder here.*model@COMMIT"):
        weights.pinned(source)


def test_a_plan_names_the_models_without_a_commit():
    profile = load_profile("paper", ["base_model=some/model", f"judge_model=other/judge@{COMMIT}"])
    remarks = {what: remark for what, _, remark in tasks.downloads(profile)}
    assert (
        remarks["some/model"].startswith("NOT READY: some/model") and remarks["other/judge"] == "from the hub"
    )
    given = load_profile("paper", ["base_model=some/model", f"base_revision={COMMIT}"])
    assert ("some/model", "from the hub") in {(what, remark) for what, _, remark in tasks.downloads(given)}


def test_models_and_tokenizers_are_refused_before_anything_is_fetched():
    for load in (load_module.load_base, load_module.load_tokenizer):
        with pytest.raises(HubError):
            load("some/model")


def calls(tree: ast.AST):
    """Yield (owner, name, keywords) of every call: ("PeftModel", "from_pretrained", {...})."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)):
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            yield owner, name, {keyword.arg for keyword in node.keywords}


def unpinned(source: str) -> list[str]:
    """List the calls of a source text that could load from the hub at whatever commit is newest."""
    ours = ("weights", "PeftModel")  # weights.load_dataset pins by itself
    return [
        f"{owner}.{name}"
        for owner, name, keywords in calls(ast.parse(source))
        if name in LOADERS and owner not in ours and not {"revision", "local_files_only"} & keywords
    ]


def test_no_code_loads_from_the_hub_without_a_revision():
    sources = {
        str(path.relative_to(REPO)): path.read_text(encoding="utf-8")
        for folder in ("persona_lib", "benchmarks")
        for path in (REPO / folder).rglob("*.py")
    }
    for path in (REPO / "notebooks").glob("*.ipynb"):
        sources[path.name] = "\n".join(execute.code_cells(path))
    found = {name: calls for name, source in sources.items() if (calls := unpinned(source))}
    assert found == {}, "give revision=, from hub.pinned"


def test_the_check_sees_an_unpinned_call():
    assert unpinned("AutoModel.from_pretrained('gpt2')") == ["AutoModel.from_pretrained"]
    assert unpinned("load_dataset('a/b', revision=commit); weights.load_dataset('a/b')") == []
    assert unpinned("AutoModel.from_pretrained(folder, local_files_only=True)") == []


# --- the authors' data from the hub: a stand-in for the hub, everything else is real ---


@pytest.fixture
def far_hub(tmp_path, monkeypatch):
    """Put one small data set where datasets.load_dataset finds it by its hub id; returns (rows, calls)."""
    import datasets

    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setitem(
        official.DATASETS,
        "beavertails",
        official.DATASETS["beavertails"] | {"rows": (2,) * 6},
    )
    columns = (*official.PAIR_COLUMNS, *official.PERSONA_COLUMNS.values())
    parts, asked = {}, []
    for split in official.SPLITS:
        rows = {column: [f"The user has {split} {column} {n}" for n in range(2)] for column in columns}
        path = tmp_path / "home" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows).to_parquet(path)
        parts[split] = path

    def load_dataset(name, config, revision):
        asked.append((name, config, revision))
        if name != "nbalepur/persona-tailoring":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return original(
            "parquet",
            data_files={split: str(path) for split, path in parts.items()},
            cache_dir=str(tmp_path / "cache"),
        )

    original = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return parts, asked


def test_official_data_comes_from_the_hub_once_pinned_and_passes_the_same_checks(far_hub):
    _, asked = far_hub
    folder = official.find_data_dir("hub", ["beavertails"])
    assert official.find_data_dir("hub", ["beavertails"]) == folder
    assert asked == [
        ("nbalepur/persona-tailoring", "BeaverTails", weights.DATASETS["nbalepur/persona-tailoring"])
    ]
    rows = official.load_official(folder, "beavertails")
    assert [len(part) for part in rows.values()] == [2] * 6
    assert rows["dpo_val"][1].personas["gold-rejected"] == "The user has dpo_val rejected_persona_gold 1"
    assert len(official.official_key(folder, "beavertails")) == 16


def test_a_hub_table_of_another_form_is_refused_like_a_folder(far_hub):
    from datasets import Dataset

    parts, _ = far_hub
    for path in parts.values():
        Dataset.from_parquet(str(path)).remove_columns("rejected").to_parquet(path)
    with pytest.raises(DataError, match="split fewshot: column 'rejected' is missing"):
        official.load_official(official.find_data_dir("hub", ["beavertails"]), "beavertails")


def test_the_real_tables_are_the_same_rows_whichever_way_they_come(official_data, tmp_path, monkeypatch):
    from datasets import load_from_disk

    monkeypatch.setenv("PERSONA_RESULTS", str(tmp_path))
    here = official_data / "persona-tailoring-Anthropic HHH"
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: load_from_disk(str(here)))
    folder = official.find_data_dir("hub", ["hhh"])
    assert folder != official_data
    assert official.load_official(folder, "hhh") == official.load_official(official_data, "hhh")


def test_a_hub_out_of_reach_is_an_error_with_the_other_ways(far_hub):
    with pytest.raises(DataError, match=r"persona-inference, SHP: not from the hub.*\(1\).*\(2\)"):
        official.find_data_dir("hub", ["shp"])
