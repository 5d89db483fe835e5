"""A training with all that watches it: killed while it draws and saves, and shared by two processes."""

import json

import pytest
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from sdxl_lora.run.events import read_events
from tests.helpers.launch import launch
from tests.helpers.runs import assert_equal_weights, weights_of


@pytest.fixture
def everything(captioned_photographs, tmp_path):
    """Settings under which a training of six steps looks at itself in every way after every second one."""
    data, model = tmp_path / "data", tmp_path / "dinov2"
    data.mkdir()
    for path in captioned_photographs.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    (data / "README.md").write_text("---\ntrigger_word: sks\n---\n")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32}
    Dinov2Model(Dinov2Config(**small)).save_pretrained(model)
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(model)
    return {
        "train_data_dir": str(data), "max_train_steps": 6, "checkpointing_steps": 2, "gradient_accumulation_steps": 2,
        "ema_decay": 0.9, "lora_dropout": 0.1, "adam_epsilon": 1e-4,
        "validation_prompt": ("sks, a cat --d 3", "a dog --w 32 --n dark --s 2"), "validation_steps": 2,
        "num_validation_images": 1, "validation_inference_steps": 1, "validation_without_trigger": True,
        "validation_split": 0.5, "early_stopping_patience": 9, "similarity_model": str(model),
        "report_to": "tensorboard", "deterministic": True,
    }  # fmt: skip


def images_of(run):
    return {path.name: path.read_bytes() for path in (run / "samples").iterdir()}


def test_killed_while_drawing_and_saving_all_ends_as_if_not(train_config, everything, tmp_path):
    """Weights, the best step, every sample, and the numbers."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert launch(train_config(**everything, output_dir=str(whole)), tmp_path / "log")[0] == [0]
    for fault in ("sample=5", "checkpoint_file=9"):  # while step 2 is drawn, while step 4 is saved
        codes, printed = launch(
            train_config(**everything, output_dir=str(parts)), tmp_path / "log", TRAINER_FAULT=f"kill9@{fault}"
        )
        assert codes == [-9], printed
    codes, printed = launch(train_config(**everything, output_dir=str(parts)), tmp_path / "log")
    assert codes == [0] and "going on after step 2" in printed, printed
    assert_equal_weights(weights_of(parts, 6), weights_of(whole, 6))
    best = [json.loads((run / "checkpoint-6" / "best.json").read_text()) for run in (parts, whole)]
    assert best[0] == best[1] and best[0]["measured_step"] == 6
    assert images_of(parts) == images_of(whole) and len(images_of(whole)) == 4 * 3 + 1
    for kind in ("validation", "similarity"):
        told = [
            {event["step"]: {key: value for key, value in event.items() if key != "time"} for event in events}
            for events in (read_events(run / "events.jsonl", kind) for run in (parts, whole))
        ]
        assert told[0] == told[1] and sorted(told[0]) == [0, 2, 4, 6]


def test_two_processes_share_the_watching(train_config, everything, tmp_path):
    """With three pictures to draw and two held out, one of them twice; both decide alike to end, by the similarity."""
    settings = {**everything, "early_stopping_patience": 1, "early_stopping_min_delta": 100.0}
    settings |= {"best_by": "similarity"}
    one, two = tmp_path / "one", tmp_path / "two"
    assert launch(train_config(**settings, output_dir=str(one)), tmp_path / "log")[0] == [0]
    settings["gradient_accumulation_steps"] = 1
    codes, printed = launch(train_config(**settings, output_dir=str(two)), tmp_path / "log", world_size=2)
    assert codes == [0, 0], printed
    assert "ended at step 4: 1 similarities in a row were not higher" in printed
    best = [json.loads((run / "checkpoint-4" / "best.json").read_text()) for run in (one, two)]
    first = next(event for event in read_events(one / "events.jsonl", "similarity") if event["step"] == 2)
    assert best[0]["step"] == best[1]["step"] == 2
    assert -first["similarity"] == best[0]["loss"] == pytest.approx(best[1]["loss"], rel=1e-3)
    assert images_of(one).keys() == images_of(two).keys()
    for kind, name in (("validation", "validation_loss"), ("similarity", "similarity_without_trigger")):
        ours, theirs = ([event[name] for event in read_events(run / "events.jsonl", kind)] for run in (one, two))
        assert len(ours) == 3 and theirs == pytest.approx(ours, rel=1e-3)
