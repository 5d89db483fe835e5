"""The validation loss, always measured in the same way; the best checkpoint by it: found, kept, delivered; and a
training that ends when nothing gets better, also in parts.
"""

import math

import pytest
import torch
from safetensors import safe_open
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

import train_sdxl_lora
from sdxl_lora.errors import ConfigError
from sdxl_lora.run.checkpoints import checkpoints, main, publish, rotate
from sdxl_lora.run.events import read_events
from sdxl_lora.run.status import read_status
from sdxl_lora.training import evaluator as evaluator_module
from sdxl_lora.training.evaluator import EarlyStopping, Evaluator
from sdxl_lora.training.train_step import TrainStep
from tests.helpers.runs import assert_equal_weights, column, weights_of


def test_the_lowest_loss_is_the_best_and_patience_counts_the_others():
    best = EarlyStopping(patience=2)
    assert [best.update(step, loss) for step, loss in ((1, 3.0), (2, 2.0), (3, 2.0), (4, 1.9))] == [1, 1, 0, 1]
    assert (best.step, best.checkpoint, best.loss, best.waited) == (4, "checkpoint-4", 1.9, 0)
    assert not best.update(5, math.nan) and not best.should_stop
    assert not best.update(6, 1.91) and best.should_stop and best.step == 4
    unwilling = EarlyStopping(min_delta=0.5, patience=1)
    assert unwilling.update(1, 2.0) and not unwilling.update(2, 1.5) and unwilling.should_stop
    assert EarlyStopping().checkpoint is None and not EarlyStopping().should_stop


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


def test_validation_changes_nothing_and_repeats_itself(train, tmp_path, monkeypatch):
    """Measured more often, training is the same; the same weights give the same loss; dropout and shuffling are off."""
    settings = {
        "max_train_steps": 3, "validation_split": 0.25, "lora_dropout": 0.5, "proportion_empty_prompts": 0.5,
        "random_flip": True, "learning_rate": 1e-2,
    }  # fmt: skip
    once = train(**settings, output_dir=str(tmp_path / "once"), validation_epochs=99)

    class Twice(Evaluator):
        def evaluate(self, step):
            return super().evaluate(step) | super().evaluate(step)

    monkeypatch.setattr(train_sdxl_lora, "Evaluator", Twice)
    often = train(**settings, output_dir=str(tmp_path / "often"), validation_steps=1)
    assert_equal_weights(weights_of(once, 3), weights_of(often, 3))

    few, many = (list(read_events(run / "events.jsonl", "validation")) for run in (once, often))
    assert [event["step"] for event in few] == [0, 3] and [event["step"] for event in many] == [0, 0, 1, 1, 2, 2, 3, 3]
    often = [event["validation_loss"] for event in many]
    assert often[::2] == often[1::2] and len(set(often)) == 4
    assert [often[0], often[-1]] == [event["validation_loss"] for event in few]
    by_timestep = [value for name, value in few[0].items() if name.startswith("validation_loss_timesteps_")]
    assert len(by_timestep) == 4 and sum(by_timestep) / 4 == pytest.approx(few[0]["validation_loss"])
    assert column(once, "epoch") == pytest.approx([1 / 3, 2 / 3, 1], abs=1e-3)


def test_an_evaluation_by_itself_is_told_of_and_kept(build, tmp_path):
    built = build(validation_split=0.5, early_stopping_patience=1)
    arguments = built.config, built.accelerator, built.model, built.shown, built.data, built.run, built.logger
    evaluator = Evaluator(*arguments)
    assert not evaluator.evaluate(0), "the base does not compete"
    assert evaluator.evaluate(1) and not evaluator.should_stop
    assert not evaluator.evaluate(2) and evaluator.should_stop, "the same weights have the same loss"
    losses = [event["validation_loss"] for event in read_events(built.run.folder / "events.jsonl", "validation")]
    assert len(losses) == 3 and set(losses) == {evaluator.best.loss}
    assert built.run.status["best_checkpoint"] == "checkpoint-1"
    evaluator.save(tmp_path, 2)
    again = Evaluator(*arguments)
    again.load(tmp_path)
    assert again.best.state() == evaluator.best.state() and again.should_stop


@pytest.fixture
def validation_losses(monkeypatch):
    """A function that gives the validation of each step the loss of a list."""

    def give(losses):
        class Scripted(Evaluator):
            def evaluate(self, step):
                sums = torch.tensor([[losses[step]] * 4, [1.0] * 4])
                monkeypatch.setattr(evaluator_module, "validation_sums", lambda *_: sums)
                return super().evaluate(step)

        monkeypatch.setattr(train_sdxl_lora, "Evaluator", Scripted)

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
    assert [line.endswith(", the best") for line in listed] == [True, False, False]
    assert main([str(run), "--best", "--export", str(run / "copy.safetensors")]) == 0
    assert (run / "copy.safetensors").read_bytes() == best

    train(**SETTINGS, checkpointing_steps=1, checkpoints_total_limit=2)  # there is nothing more to do
    assert [event["step"] for event in read_events(run / "events.jsonl", "step")] == [1, 2, 3, 4]
    patient = {**SETTINGS, "early_stopping_patience": 3}
    train(**patient, checkpointing_steps=1, checkpoints_total_limit=2)  # more patience: it goes on to a better one
    assert steps_in(run) == [5, 7, 8] and read_status(run)["best_checkpoint"] == "checkpoint-5"


@pytest.mark.slow
def test_a_killed_run_decides_as_the_uninterrupted_one(train, validation_losses, monkeypatch, tmp_path):
    """Killed in steps and in validations, before and after the best one."""
    validation_losses([1.0, 5.0, 3.0, 4.0, 2.0, 2.5, 2.6, 0.0, 0.0])
    settings = {**SETTINGS, "ema_decay": 0.9, "lora_dropout": 0.2, "checkpointing_steps": 2}
    whole = train(**settings, output_dir=str(tmp_path / "whole"))
    assert read_status(whole)["step"] == 6 and steps_in(whole) == [2, 4, 6]
    parts, do, scripted = tmp_path / "parts", TrainStep.__call__, train_sdxl_lora.Evaluator
    for place, at_step in (("step", 3), ("evaluation", 4), ("step", 4), ("evaluation", 5), ("step", 5)):

        class Dying(scripted):
            dies_at = at_step if place == "evaluation" else None

            def evaluate(self, step):
                if step == self.dies_at:
                    raise KeyboardInterrupt
                return super().evaluate(step)

        def dying(self, batch, step, learning_rate, dies_at=at_step if place == "step" else None):
            if step == dies_at:
                raise KeyboardInterrupt
            do(self, batch, step, learning_rate)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train_sdxl_lora, "Evaluator", Dying)
            patch.setattr(TrainStep, "__call__", dying)
            train(**settings, output_dir=str(parts))
    train(**settings, output_dir=str(parts))
    assert read_status(parts)["step"] == 6 and read_status(parts)["best_checkpoint"] == "checkpoint-4"
    assert_equal_weights(weights_of(parts, 6), weights_of(whole, 6))
    assert_equal_weights(weights_of(parts, 4), weights_of(whole, 4))
    for name in ("best.json", "ema_state.safetensors"):
        assert (parts / "checkpoint-6" / name).read_bytes() == (whole / "checkpoint-6" / name).read_bytes()


def test_a_validation_that_is_stopped_is_done_by_the_next_start(train, monkeypatch, tmp_path):
    settings = {"validation_split": 0.5, "validation_steps": 2, "max_train_steps": 4, "checkpointing_steps": None}
    whole = train(**settings, output_dir=str(tmp_path / "whole"))
    parts, batch = tmp_path / "parts", evaluator_module.validation_batch

    def stop_meanwhile(*arguments):
        if read_status(parts)["state"] == "training":  # not that before the first step
            (parts / "stop").touch()
        return batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluator_module, "validation_batch", stop_meanwhile)
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


@pytest.mark.slow
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


@pytest.fixture
def tiny_dinov2(tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32}
    Dinov2Model(Dinov2Config(**small)).save_pretrained(tmp_path / "dinov2")
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "dinov2"
    )
    return str(tmp_path / "dinov2")


def test_similarity_decides_where_it_is_asked_to_also_in_a_killed_run(
    train, tiny_dinov2, monkeypatch, tmp_path, capsys
):
    similarities = [0.9, 0.2, 0.5, 0.4, 0.45, 0.8, 0.8]  # of the steps; the base does not compete
    settings = {
        "validation_prompt": ("a cat",), "num_validation_images": 1, "validation_inference_steps": 1,
        "validation_steps": 1, "similarity_model": tiny_dinov2, "best_by": "similarity", "early_stopping_patience": 2,
        "validation_split": 0.25, "max_train_steps": 6, "checkpointing_steps": 2,
    }  # fmt: skip
    dying = [None]

    class Scripted(train_sdxl_lora.SampleWriter):
        def write(self, step):
            measured = super().write(step)
            assert -1 <= measured <= 1
            if step == dying[0]:
                raise KeyboardInterrupt
            return similarities[step]

    monkeypatch.setattr(train_sdxl_lora, "SampleWriter", Scripted)
    whole = train(**settings, output_dir=str(tmp_path / "whole"))
    said = capsys.readouterr()
    assert "ended at step 4: 2 similarities in a row were not higher" in said.err
    assert "highest similarity: 0.5000, of step 2" in said.out and (whole / "whole-best.safetensors").exists()
    assert [(event["step"], event["similarity"]) for event in read_events(whole / "events.jsonl", "best")] == [
        (1, 0.2), (2, 0.5),
    ]  # fmt: skip
    for step in (2, 3, 4):
        dying[0] = step
        with pytest.raises(KeyboardInterrupt):
            train(**settings, output_dir=str(tmp_path / "parts"))
    dying[0] = None
    parts = train(**settings, output_dir=str(tmp_path / "parts"))
    assert read_status(parts)["best_checkpoint"] == "checkpoint-2" and read_status(parts)["step"] == 4
    assert (parts / "checkpoint-4" / "best.json").read_bytes() == (whole / "checkpoint-4" / "best.json").read_bytes()


def test_what_the_best_is_decided_by_must_be_measured(train_config):
    with pytest.raises(ConfigError, match="best_by similarity needs a similarity_model"):
        train_config(best_by="similarity")
    with pytest.raises(ConfigError, match="best_by loss needs a validation_split"):
        train_config(best_by="loss")


def test_a_run_may_say_later_that_the_loss_decides(train_config):
    settings = {"validation_split": 0.5, "output_dir": "run"}
    assert train_config(**settings, best_by="loss").fingerprint() == train_config(**settings).fingerprint()


def test_patience_needs_held_out_pictures(train_config, tmp_path, capsys):
    with pytest.raises(ConfigError, match="early_stopping_patience needs a validation_split"):
        train_config(early_stopping_patience=3)
    with pytest.raises(ConfigError, match="early_stopping_patience is 0, it must be above 0"):
        train_config(early_stopping_patience=0, validation_split=0.5)
    assert main([str(tmp_path), "--best", "--export", "x.safetensors"]) == 4
    assert "has no best checkpoint: --validation_split or --best_by similarity finds one" in capsys.readouterr().err
