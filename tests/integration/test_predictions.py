"""A base that predicts something else than its configs or the settings say is found out before the first step."""

import json
import shutil
import warnings

import pytest
import torch

from examples.shapes.learning import write_class_images
from examples.shapes.quality import BASE
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.events import read_events
from tests.helpers.bases import set_config


@pytest.fixture
def said_to_predict_v(tmp_path):
    """The base that draws shapes, which predicts epsilon, with a scheduler's config that says v."""
    folder = shutil.copytree(BASE, tmp_path / "base")
    set_config(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    return folder


def texts_of(run):
    return [event["text"] for event in read_events(run / "events.jsonl", "message")]


def test_a_base_that_clearly_predicts_something_else_is_not_trained_in_silence(
    train, said_to_predict_v, tmp_path, monkeypatch
):
    write_class_images(tmp_path / "shapes", 4)
    settings = {"train_data_dir": str(tmp_path / "shapes"), "max_train_steps": 1, "checkpointing_steps": 1}
    wrong = {**settings, "pretrained_model_name_or_path": str(said_to_predict_v)}
    with pytest.raises(ConfigError, match=r"predicts epsilon, tested on 2 images.*give --prediction_type epsilon, or"):
        train(**wrong)
    kept = json.loads((tmp_path / "cache" / "memo.json").read_text())
    assert len([key for key in kept if key.startswith("prediction|")]) == 1

    def never(*_):
        raise AssertionError("once for a base is enough")

    monkeypatch.setattr("sdxl_lora.training.checks.try_readings", never)
    with pytest.warns(UserWarning, match="predicts epsilon, tested on 2 images.*but it is trained as"):
        run = train(**wrong, prediction_type="v_prediction")
    assert list(read_events(run / "events.jsonl", "step"))
    with monkeypatch.context() as as_before:
        as_before.setattr("sdxl_lora.training.checks.winner", lambda *_: None)
        train(**wrong, output_dir=str(tmp_path / "before"))
    with pytest.warns(UserWarning, match="but it is trained as"):  # a run that began before this was found out
        train(**{**wrong, "max_train_steps": 2}, output_dir=str(tmp_path / "before"))
    assert (tmp_path / "before" / "checkpoint-2").is_dir()
    right = train(**wrong, prediction_type="epsilon", output_dir=str(tmp_path / "right"))
    assert any("the base predicts epsilon" in text for text in texts_of(right))


def test_what_the_tests_know_of_the_tiny_base_saves_every_other_run_the_try(train, tried_base, tmp_path):
    train(max_train_steps=1)
    kept = json.loads((tmp_path / "cache" / "memo.json").read_text())
    assert {key: value for key, value in kept.items() if key.startswith("prediction")} == tried_base


@pytest.fixture
def untried(tmp_path):
    """The runs' cache, which knows nothing of the tiny base."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "memo.json").write_text("{}")


def test_a_base_of_which_nothing_shows_is_trained_as_it_says_and_that_is_said(train, untried):
    run = train(max_train_steps=1)
    [text] = [text for text in texts_of(run) if "a test does not show" in text]
    assert "epsilon" in text and "trained as epsilon" in text


def test_a_try_that_does_not_fit_into_memory_is_left_out_and_that_is_said(train, untried, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("sdxl_lora.training.checks.try_readings", full)
    assert "out of memory while testing what the base predicts, going on" in texts_of(train(max_train_steps=1))


def test_a_tensor_that_names_the_prediction_is_believed_and_a_setting_against_it_warned_of(
    train, original, base_of, tiny_base
):
    base = base_of(original | {"v_pred": torch.zeros(0)})
    settings = {"pretrained_model_name_or_path": base.path, "pretrained_config_name_or_path": str(tiny_base)}
    with pytest.warns(
        UserWarning, match="in its tensor v_pred that it predicts v_prediction, but prediction_type says eps"
    ):
        run = train(**settings, max_train_steps=1, prediction_type="epsilon")
    assert not any("a test does not show" in text for text in texts_of(run))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*prediction_type says")
        train(**settings, max_train_steps=1, output_dir=str(run) + "-2")
