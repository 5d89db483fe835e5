"""The best checkpoint: found, kept, delivered; and a training that ends when nothing gets better, also in parts."""

import math

import pytest
import torch
from safetensors import safe_open
from sdxl_lora.training.best import Best

import train_sdxl_lora
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.checkpoints import checkpoints, main, publish, rotate
from sdxl_lora.run.events import read_events
from sdxl_lora.run.status import read_status
from sdxl_lora.training import watching
from tests.integration.test_options import assert_equal_weights, weights_of


def test_the_lowest_loss_is_the_best_and_patience_counts_the_others():
    best = Best(patience=2)
    assert [best.update(step, loss) for step, loss in ((1, 3.0), (2, 2.0), (3, 2.0), (4, 1.9))] == [1, 1, 0, 1]
    assert (best.step, best.checkpoint, best.loss, best.waited) == (4, "checkpoint-4", 1.9, 0)
    assert not best.update(5, math.nan) and not best.is_given_up
    assert not best.update(6, 1.91) and best.is_given_up and best.step == 4
    unwilling = Best(min_delta=0.5, patience=1)
    assert unwilling.update(1, 2.0) and not unwilling.update(2, 1.5) and unwilling.is_given_up
    assert Best().checkpoint is None and not Best().is_given_up


def make(folder, step, is_due):
    temporary = folder / f".tmp-checkpoint-{step}"
    temporary.mkdir(parents=True)
    (temporary / "run.safetensors").write_bytes(bytes(step))
    publish(temporary, folder / f"checkpoint-{step}", {"step": step, "is_due": is_due})


def test_rotation_keeps_the_best_and_forgets_those_that_were_only_that(tmp_path):
    for step, is_due in ((1, True), (2, False), (3, False), (4, True), (5, False), (6, True)):
        make(tmp_path, step, is_due)
    rotate(tmp_path, None, "checkpoint-3")
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (1, 3, 4, 5, 6)]
    rotate(tmp_path, 2, "checkpoint-3")
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (3, 5, 6)]
    rotate(tmp_path, 1, None)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-6"]


@pytest.fixture
def validation_losses(monkeypatch):
    """A function that gives the validation of each step the loss of a list."""
    validate = watching.Watched.validate

    def give(losses):
        def validate_scripted(self):
            sums = torch.tensor([[losses[self.done_steps]] * 4, [1.0] * 4])
            monkeypatch.setattr(watching, "validation_sums", lambda *_: sums)
            return validate(self)

        monkeypatch.setattr(watching.Watched, "validate", validate_scripted)

    return give


def steps_in(run):
    return [int(path.name.split("-")[1]) for path in checkpoints(run)]


SETTINGS = {"validation_split": 0.25, "validation_steps": 1, "early_stopping_patience": 2, "max_train_steps": 9}


def test_training_ends_when_nothing_gets_better_and_the_best_is_kept_and_delivered(train, validation_losses, capsys):
    validation_losses([1.0, 5.0, 4.0, 4.5, 4.2, 3.0, 6.0, 6.0, 6.0])
    run = train(**SETTINGS, checkpointing_steps=1, checkpoints_total_limit=2)
    said = capsys.readouterr()
    assert steps_in(run) == [2, 3, 4] and not (run / "checkpoint-5").exists()
    assert "ended at step 4: 2 validation losses in a row were not lower" in said.err
    assert "lowest validation loss: 4.0000, of step 2" in said.out and "run-best.safetensors" in said.out
    assert [(event["step"], event["checkpoint"]) for event in read_events(run / "events.jsonl", "best")] == [
        (1, "checkpoint-1"), (2, "checkpoint-2"),
    ]  # fmt: skip
    status = read_status(run)
    assert (status["state"], status["step"], status["best_checkpoint"]) == ("done", 4, "checkpoint-2")
    assert next(read_events(run / "events.jsonl", "finished"))["best_step"] == 2
    best = (run / "run-best.safetensors").read_bytes()
    assert best == (run / "checkpoint-2" / "run.safetensors").read_bytes() != (run / "run.safetensors").read_bytes()
    with safe_open(run / "run-best.safetensors", framework="pt") as file:
        assert file.metadata()["ss_steps"] == "2"

    assert main([str(run)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.endswith("best by validation loss") for line in listed] == [True, False, False]
    assert main([str(run), "--best", "--export", str(run / "copy.safetensors")]) == 0
    assert (run / "copy.safetensors").read_bytes() == best

    train(**SETTINGS, checkpointing_steps=1, checkpoints_total_limit=2)  # there is nothing more to do
    assert [event["step"] for event in read_events(run / "events.jsonl", "step")] == [1, 2, 3, 4]
    patient = {**SETTINGS, "early_stopping_patience": 3}
    train(**patient, checkpointing_steps=1, checkpoints_total_limit=2)  # more patience: it goes on to a better one
    assert steps_in(run) == [5, 7, 8] and read_status(run)["best_checkpoint"] == "checkpoint-5"


def test_a_killed_run_decides_as_the_uninterrupted_one(train, validation_losses, monkeypatch, tmp_path):
    """Killed in steps and in validations, before and after the best one."""
    validation_losses([1.0, 5.0, 3.0, 4.0, 2.0, 2.5, 2.6, 0.0, 0.0])
    settings = {**SETTINGS, "ema_decay": 0.9, "lora_dropout": 0.2, "checkpointing_steps": 2}
    whole = train(**settings, output_dir=str(tmp_path / "whole"))
    assert read_status(whole)["step"] == 6 and steps_in(whole) == [2, 4, 6]
    step, validate = train_sdxl_lora.Training.step, watching.Watched.validate
    kills = iter([("step", 3), ("validate", 4), ("step", 4), ("validate", 5), ("step", 5)])

    def dying(name, before):
        def act(self, *arguments):
            if (name, self.done_steps) == act.next:
                act.next = None
                raise KeyboardInterrupt
            return before(self, *arguments)

        return act

    parts = tmp_path / "parts"
    for kill in kills:
        doomed = {"step": dying("step", step), "validate": dying("validate", validate)}
        for name, act in doomed.items():
            act.next = kill
            monkeypatch.setattr(train_sdxl_lora.Training, name, act)
        with pytest.raises(KeyboardInterrupt):
            train(**settings, output_dir=str(parts))
    monkeypatch.setattr(train_sdxl_lora.Training, "step", step)
    monkeypatch.setattr(train_sdxl_lora.Training, "validate", validate)
    train(**settings, output_dir=str(parts))
    assert read_status(parts)["step"] == 6 and read_status(parts)["best_checkpoint"] == "checkpoint-4"
    assert_equal_weights(weights_of(parts, 6), weights_of(whole, 6))
    assert_equal_weights(weights_of(parts, 4), weights_of(whole, 4))
    for name in ("best.json", "ema_state.safetensors"):
        assert (parts / "checkpoint-6" / name).read_bytes() == (whole / "checkpoint-6" / name).read_bytes()


def test_a_validation_that_is_stopped_is_done_by_the_next_start(train, monkeypatch, tmp_path):
    settings = {"validation_split": 0.5, "validation_steps": 2, "max_train_steps": 4, "checkpointing_steps": None}
    whole = train(**settings, output_dir=str(tmp_path / "whole"))
    parts, batch = tmp_path / "parts", watching.validation_batch

    def stop_meanwhile(*arguments):
        if read_status(parts)["state"] == "training":  # not that before the first step
            (parts / "stop").touch()
        return batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(watching, "validation_batch", stop_meanwhile)
        train(**settings, output_dir=str(parts))
    status = read_status(parts)
    assert (status["state"], status["last_checkpoint"], status["best_checkpoint"]) == ("stopped", "checkpoint-2", None)
    train(**settings, output_dir=str(parts))
    losses = [
        {event["step"]: event["validation_loss"] for event in read_events(run / "events.jsonl", "validation")}
        for run in (whole, parts)
    ]
    assert losses[0] == losses[1] and sorted(losses[0]) == [0, 2, 4]
    states = [(run / "checkpoint-4" / "best.json").read_bytes() for run in (whole, parts)]
    assert states[0] == states[1]


def test_a_learning_rate_that_ruins_everything_is_stopped_for_real(train):
    run = train(
        validation_split=0.25, validation_steps=1, early_stopping_patience=1, max_train_steps=40, learning_rate=0.3,
        checkpointing_steps=None, lr_scheduler="constant",
    )  # fmt: skip
    losses = {event["step"]: event["validation_loss"] for event in read_events(run / "events.jsonl", "validation")}
    best = next(read_events(run / "events.jsonl", "finished"))["best_step"]
    assert losses[best] == min(loss for step, loss in losses.items() if step)
    last = max(losses)
    assert last == best + 1 < 40 and steps_in(run)[-2:] == [best, last]


def test_a_best_checkpoint_that_is_damaged_costs_only_its_file(train, validation_losses, capsys):
    validation_losses([1.0, 2.0, 3.0, 3.0, 3.0])
    run = train(**{**SETTINGS, "max_train_steps": 3, "early_stopping_patience": None})
    (run / "checkpoint-1" / "run.safetensors").write_bytes(b"")
    (run / "run-best.safetensors").unlink()
    capsys.readouterr()
    train(**{**SETTINGS, "max_train_steps": 3, "early_stopping_patience": None})
    assert "there is no run-best.safetensors: checkpoint-1 cannot be used: run.safetensors has 0" in (
        capsys.readouterr().err
    )
    assert (run / "run.safetensors").exists() and read_status(run)["state"] == "done"


def test_patience_needs_held_out_pictures(train_config, tmp_path, capsys):
    with pytest.raises(ConfigError, match="early_stopping_patience needs a validation_split"):
        train_config(early_stopping_patience=3)
    with pytest.raises(ConfigError, match="early_stopping_patience is 0, it must be above 0"):
        train_config(early_stopping_patience=0, validation_split=0.5)
    assert main([str(tmp_path), "--best", "--export", "x.safetensors"]) == 4
    assert "has no best checkpoint: --validation_split finds one" in capsys.readouterr().err
