"""W&B's settings in the environment, checked before any work."""

import pytest

from sdxl_lora.errors import ConfigError
from sdxl_lora.models.loading import base_of
from sdxl_lora.run.trackers import check_wandb
from sdxl_lora.training.checks import check_names


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("WANDB_TAGS", "cat," + "x" * 200, "Tags must be between 1 and 64 characters"),
        ("WANDB_MODE", "nonsense", "Input should be 'online', 'offline'"),
        ("WANDB_PROJECT", "a/b", "Invalid project name 'a/b'"),
        ("WANDB_RUN_ID", "a/b", "Run ID cannot contain the characters"),
        ("WANDB_BASE_URL", "nonsense", "Input should be a valid URL"),
        ("WANDB_SILENT", "maybe", "Input should be a valid boolean"),
    ],
)
def test_a_variable_that_w_and_b_does_not_take_is_named(name, value, words):
    with pytest.raises(ConfigError) as raised:
        check_wandb({name: value, "HOME": "/", "WANDB_API_KEY": "secret"})
    [problem] = raised.value.problems
    assert f"does not accept {name} in the environment" in problem and words in problem
    assert "\n" not in problem and "secret" not in problem and "x" * 30 not in problem


def test_what_people_set_for_w_and_b_is_taken():
    usual = {"WANDB_MODE": "offline", "WANDB_ENTITY": "a team", "WANDB_TAGS": "cat,\U0001f600", "WANDB_RESUME": "must"}
    check_wandb({**usual, "WANDB_PROJECT": "cats", "WANDB_RUN_GROUP": "g" * 60, "WANDB_DIR": "/none"})


@pytest.mark.parametrize("report_to, is_refused", [("wandb", True), ("all", True), ("tensorboard", False)])
def test_it_is_told_before_any_work_to_those_who_report_to_it(train_config, monkeypatch, report_to, is_refused):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    config = train_config(report_to=report_to)
    if not is_refused:
        check_names(config, base_of(config.model))
        return
    with pytest.raises(ConfigError, match="WANDB_MODE"):
        check_names(config, base_of(config.model))
