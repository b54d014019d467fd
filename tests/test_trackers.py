"""Training reports to no tracker unless the environment names one."""

from __future__ import annotations

import pytest

from persona_lib.models.trainers import trainer_settings
from persona_lib.settings import load_profile


@pytest.mark.parametrize(("named", "wanted"), [(None, []), ("tensorboard", ["tensorboard"])])
def test_the_environment_alone_names_trackers(tmp_path, monkeypatch, named, wanted):
    from transformers import TrainingArguments

    monkeypatch.delenv("PERSONA_REPORT_TO", raising=False)
    if named:
        monkeypatch.setenv("PERSONA_REPORT_TO", named)
    settings = trainer_settings(load_profile("smoke"), "sft", 0, tmp_path)
    assert TrainingArguments(output_dir=str(tmp_path), report_to=settings["report_to"]).report_to == wanted
