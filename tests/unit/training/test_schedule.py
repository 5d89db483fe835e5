"""Evaluations of a training where no setting says how often."""

import math
from types import SimpleNamespace

import pytest

from sdxl_lora.config.sections.evaluation import EvaluationConfig
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.events import read_events
from sdxl_lora.training.dry_run import dry_run
from sdxl_lora.training.schedule import MOST_EVALUATIONS, Cadence, evaluation_cadence
from tests.helpers.configs import flat_train_config


def data_of(total_steps, steps_per_epoch=None):
    """The data of a training, as far as a cadence asks; without epochs that of a stream."""
    if steps_per_epoch is None:
        sampler = SimpleNamespace(passes=lambda step: 0.0, epoch_of=lambda step: 0)
    else:
        sampler = SimpleNamespace(
            passes=lambda step: step / steps_per_epoch, epoch_of=lambda step: math.floor(step / steps_per_epoch)
        )
    return SimpleNamespace(sampler=sampler, total_steps=total_steps, prompts=["a cat"], held_out=[])


def evaluations(data, **settings):
    """The steps after which a training evaluates; 0 for before the first."""
    cadence = Cadence(flat_train_config(train_data_dir="data", **settings), data)
    return [0, *(step for step in range(1, data.total_steps + 1) if cadence.after(step).evaluate)]


@pytest.mark.parametrize("steps_per_epoch", [1, 2.5, 7, 20, 500, 1e9, None])
@pytest.mark.parametrize("total_steps", [1, 3, 9, 10, 11, 100, 1999])
def test_at_most_ten_times_and_not_within_an_epoch(total_steps, steps_per_epoch):
    steps = evaluations(data_of(total_steps, steps_per_epoch))
    assert len(steps) <= MOST_EVALUATIONS and steps[-1] == total_steps
    if steps_per_epoch:
        assert len(steps) <= math.ceil(total_steps / steps_per_epoch) + 1
        if total_steps >= 100 * steps_per_epoch:
            assert len(steps) >= 8, "few looks into a long training would be as bad"


def test_what_a_setting_says_counts():
    data = data_of(100, 10)
    assert evaluations(data, validation_epochs=2) == [0, 20, 40, 60, 80, 100]
    assert evaluations(data, validation_epochs=2, validation_steps=50) == [0, 50, 100]
    assert str(evaluation_cadence(EvaluationConfig(validation_steps=1), data.sampler, 100)) == "every step"
    assert str(evaluation_cadence(EvaluationConfig(), data.sampler, 100)) == "every 2 epochs"
    with pytest.raises(ConfigError, match="validation_epochs is 0, it must be above 0"):
        flat_train_config(train_data_dir="data", validation_epochs=0)


def test_plan_and_run_say_how_often(train, train_config):
    settings = {"validation_split": 0.25, "max_train_steps": 40}
    assert "at the start, every 2 epochs, and at the end" in dry_run(train_config(**settings))
    run = train(**settings)
    assert next(read_events(run / "events.jsonl", "started"))["evaluates"] == "every 2 epochs"
    steps = [event["step"] for event in read_events(run / "events.jsonl", "validation")]
    assert steps == [0, 6, 12, 18, 24, 30, 36, 40]


@pytest.mark.parametrize(
    ("prompts", "is_said"),
    [
        (("sks,", "a", "cat"), True),
        (("sks", "cat"), True),
        (("sks",), False),
        (("a cat", "dog"), False),
        (("sks --n dark", "cat"), False),
    ],
)
def test_lost_quotes_are_said(recwarn, prompts, is_said):
    EvaluationConfig(validation_prompt=prompts).warn_of_lost_quotes()
    said = [str(warning.message) for warning in recwarn]
    assert bool(said) is is_said
    if is_said:
        assert f'--validation_prompt "{" ".join(prompts)}"' in said[0]


@pytest.mark.parametrize("steps_per_epoch", [2.5, 7, 100, 0.4, None])
@pytest.mark.parametrize("settings", [{}, {"validation_steps": 3}, {"validation_epochs": 2}])
def test_what_is_to_come_is_what_comes(steps_per_epoch, settings):
    data = data_of(40, steps_per_epoch)
    cadence = Cadence(flat_train_config(train_data_dir="data", checkpointing_steps=6, **settings), data)
    for step in range(41):
        due = [cadence.after(later) for later in range(max(step, 1), 41)]
        evaluations = sum(each.evaluate for each in due) + (step == 0)
        assert cadence.to_come(step) == (40 - step, evaluations, sum(each.checkpoint for each in due)), step
    assert cadence.to_come(41) == (0, 0, 0), "more steps are done than asked for"
