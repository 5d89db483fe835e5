"""The loop, in this process on the tiny base: what must be equal is equal, and whatever ends it leaves it whole."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import train_sdxl_lora
from sdxl_lora.distributed.accelerator import make_accelerator
from sdxl_lora.errors import CheckpointError, ConfigError, NonFiniteError
from sdxl_lora.lora.state import lora_state
from sdxl_lora.run.session import read_status
from sdxl_lora.training.train_step import TrainStep
from tests.helpers.marks import slow
from tests.helpers.runs import (
    assert_equal_weights,
    assert_resumes_exactly,
    column,
    largest_difference,
    steps_of,
    weights_of,
)


def test_resumed_run_equals_uninterrupted_run(train, tmp_path):
    settings = {"checkpointing_steps": 3, "random_flip": True, "lora_dropout": 0.1, "lr_scheduler": "cosine"}
    whole = train(**settings, max_train_steps=7, output_dir=str(tmp_path / "whole"))
    train(**settings, max_train_steps=7, output_dir=str(tmp_path / "parts"))
    parts = tmp_path / "parts"
    for later in ("checkpoint-6", "checkpoint-7"):  # as if killed between steps 3 and 6
        (parts / later).rename(tmp_path / later)
    (parts / "events.jsonl").unlink()
    train(**settings, max_train_steps=7, output_dir=str(parts))
    assert column(parts, "step") == [4, 5, 6, 7]
    for name in ("loss", "learning_rate", "grad_norm"):
        assert column(parts, name) == column(whole, name)[3:]
    assert_equal_weights(weights_of(parts, 7), weights_of(whole, 7))


FP16 = {"mixed_precision": "fp16", "deterministic": True}


@pytest.mark.gpu
def test_fp16_resumes_exactly_with_its_scaler(train, tmp_path):
    assert_resumes_exactly(train, tmp_path, **FP16)


def test_the_scaler_that_fp16_needs_resumes_exactly(train, tmp_path, monkeypatch):
    """On the CPU, where the trainer refuses fp16 for its slowness: torch's autocast and scaler are to be had."""
    scalers = []

    def with_scaler(compute, *others):
        assert compute.mixed_precision == "fp16"
        accelerator = make_accelerator(replace(compute, mixed_precision="bf16"), *others)
        accelerator.state._mixed_precision = "fp16"
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, backoff_factor=2.0**-20)
        scalers.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr(train_sdxl_lora, "make_accelerator", with_scaler)
    whole = assert_resumes_exactly(train, tmp_path, **FP16)
    whole_run, resumed = (scaler.get_scale() for scaler in scalers)
    norms = [math.isfinite(norm) for norm in column(whole, "grad_norm")]
    assert norms[0] is False and norms[-1] is True, "the first step overflows and is skipped, the last one counts"
    assert whole_run == resumed < 2.0**30


def test_training_on_after_the_end_goes_on_from_the_last_checkpoint(train):
    train(max_train_steps=2)
    run = train(max_train_steps=4)
    assert column(run, "step") == [1, 2, 3, 4]


def test_accumulating_four_of_one_equals_a_batch_of_four(train, tmp_path):
    settings = {"max_train_steps": 5, "adam_epsilon": 1e-4}  # by 1e-8, Adam would blow up the last bits of 0
    whole = train(**settings, train_batch_size=4, output_dir=str(tmp_path / "whole"))
    parts = train(**settings, gradient_accumulation_steps=4, output_dir=str(tmp_path / "parts"))
    assert column(parts, "loss") == pytest.approx(column(whole, "loss"), rel=1e-5)
    assert column(parts, "grad_norm") == pytest.approx(column(whole, "grad_norm"), rel=1e-4)
    assert largest_difference(weights_of(parts, 5), weights_of(whole, 5)) < 1e-6


def test_a_last_short_step_counts_every_picture_once(train, tmp_path):
    """Three epochs of four pictures in steps of five: two whole steps and one of two pictures."""
    settings = {"max_train_steps": None, "num_train_epochs": 3, "adam_epsilon": 1e-4}
    whole = train(**settings, train_batch_size=5, output_dir=str(tmp_path / "whole"))
    parts = train(**settings, gradient_accumulation_steps=5, output_dir=str(tmp_path / "parts"))
    assert column(whole, "epoch") == [1.25, 2.5, 3]
    assert column(parts, "loss") == pytest.approx(column(whole, "loss"), rel=1e-5)
    assert largest_difference(weights_of(parts, 3), weights_of(whole, 3)) < 1e-6


def test_gradient_checkpointing_changes_nothing_but_memory(train, tmp_path):
    plain = train(output_dir=str(tmp_path / "plain"))
    saving = train(output_dir=str(tmp_path / "saving"), gradient_checkpointing=True)
    assert column(saving, "loss") == pytest.approx(column(plain, "loss"), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw8bit", "lion", *slow("lion8bit")])
def test_other_optimizers_train_and_resume_exactly(train, tmp_path, optimizer):
    assert_resumes_exactly(train, tmp_path, optimizer=optimizer, rank=64, learning_rate=1e-4)


def test_epochs_checkpoints_samples_and_metrics_come_when_due(train):
    run = train(
        max_train_steps=None,
        num_train_epochs=4,
        train_batch_size=2,
        checkpointing_epochs=2,
        checkpointing_steps=None,
        validation_prompt=("a cat", "a dog"),
        num_validation_images=2,
        validation_epochs=2,
        validation_inference_steps=2,
        lr_scheduler="linear",
        lr_warmup_steps=2,
        report_to="all",
    )
    assert column(run, "epoch") == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    peak = 1e-3
    assert column(run, "learning_rate") == pytest.approx([0, peak / 2, peak, *(peak * i / 6 for i in (5, 4, 3, 2, 1))])
    assert {"grad_norm", "images_per_second", "memory_gib"} <= set(steps_of(run)[0])
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    names = [f"step-{s:06d}-prompt-{p}-image-{i}.png" for s in (0, 4, 8) for p in (0, 1) for i in (0, 1)]
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["grid.png", *names]
    status = read_status(run)
    assert (status["state"], status["step"], status["last_checkpoint"]) == ("done", 8, "checkpoint-8")
    assert_tensorboard(run / "logs", {"loss": 8, "learning_rate": 8}, {"a cat": 2, "a dog": 2})
    assert list(run.glob("wandb/offline-run-*/*.wandb"))


def assert_tensorboard(folder, scalars, images):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder / "sdxl-lora"), size_guidance={"images": 0})
    log.Reload()
    for name, count in scalars.items():
        assert [event.step for event in log.Scalars(name)] == list(range(1, count + 1))
    found = log.Tags()["images"]
    assert all(any(prompt in tag for tag in found) for prompt in images)


def test_samples_change_with_the_adapter_and_not_with_the_number_of_draws(train):
    run = train(
        learning_rate=1e-2, max_train_steps=8, validation_prompt=("a cat",), num_validation_images=1,
        validation_epochs=1, validation_inference_steps=4,
    )  # fmt: skip
    first, second = ((run / "samples" / f"step-{step:06d}-prompt-0-image-0.png").read_bytes() for step in (4, 8))
    assert first != second
    (run / "events.jsonl").unlink()


def test_the_resolved_config_is_recorded_and_reruns(train, train_config):
    from sdxl_lora.config.cli import load_config
    from sdxl_lora.config.train import TrainConfig

    run = train(rank=2, max_train_steps=1)
    resolved = train_config(rank=2, max_train_steps=1, variant=None, cuda_graphs="off", compile="off")
    assert load_config(TrainConfig, ["--config", str(run / "config.yaml")]) == resolved


def test_a_stop_file_saves_and_the_next_run_goes_on(train, tmp_path, monkeypatch):
    do = TrainStep.__call__

    def do_and_ask_to_stop(self, batch, step, learning_rate):
        do(self, batch, step, learning_rate)
        if step == 1:
            (self.run.folder / "stop").touch()

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", do_and_ask_to_stop)
        run = train(max_train_steps=5, output_dir=str(tmp_path / "parts"))
    status = read_status(run)
    assert (status["state"], status["exit_code"], status["step"]) == ("stopped", 0, 2)
    assert status["reason"] == "stopped at step 2, saved checkpoint-2 (stop file)"
    assert train.trained is None and (run / "checkpoint-2").is_dir() and not (run / "parts.safetensors").exists()
    run = train(max_train_steps=5, output_dir=str(tmp_path / "parts"))
    assert column(run, "step") == [1, 2, 3, 4, 5]
    whole = train(max_train_steps=5, output_dir=str(tmp_path / "whole"))
    assert_equal_weights(weights_of(run, 5), weights_of(whole, 5))


def test_other_settings_are_refused_on_resume_and_the_checkpoint_is_left_alone(train, captioned_photographs):
    run = train(max_train_steps=1)
    before = json.loads((run / "checkpoint-1" / "manifest.json").read_text())
    with pytest.raises(CheckpointError, match=r"rank +4 +8(.|\n)*seed +0 +1"):
        train(max_train_steps=2, rank=8, seed=1)
    with pytest.raises(CheckpointError, match=r"images_per_step +1 +2"):
        train(max_train_steps=2, train_batch_size=2)
    (captioned_photographs / "coffee.txt").write_text("another caption")
    try:
        with pytest.raises(CheckpointError, match="dataset"):
            train(max_train_steps=2)
    finally:
        (captioned_photographs / "coffee.txt").write_text("a cup of coffee on a table")
    assert json.loads((run / "checkpoint-1" / "manifest.json").read_text()) == before
    train(max_train_steps=2, learning_rate=1e-5)


def test_nan_ends_the_run_before_any_weight_changes(train, tmp_path, monkeypatch):
    seen, do = [], TrainStep.__call__

    def do_with_nan(self, batch, step, learning_rate):
        seen.append((self, lora_state(self.model.unet)))
        if step == 2:
            [(counts, tensors)] = batch.micro_batches
            batch = replace(batch, micro_batches=[(counts, {**tensors, "latents": tensors["latents"] * torch.nan})])
        do(self, batch, step, learning_rate)

    monkeypatch.setattr(TrainStep, "__call__", do_with_nan)
    with pytest.raises(NonFiniteError, match=r"step 3: loss nan.*(astronaut|chelsea|coffee|rocket)"):
        train(max_train_steps=5, checkpointing_steps=1)
    train_step, before = seen[-1]
    assert_equal_weights(lora_state(train_step.model.unet), before)
    status = read_status(train_step.run.folder)
    assert (status["state"], status["exit_code"], status["last_checkpoint"]) == ("failed", 6, "checkpoint-2")


def test_what_cannot_work_is_a_config_error_before_any_training(train):
    with pytest.raises(ConfigError, match="matches no linear or convolution layer"):
        train(target_modules="nothing_like_it")
    with pytest.raises(ConfigError, match="fp16 cannot be used here"):
        train(mixed_precision="fp16")


def test_processes_that_do_not_know_of_each_other_are_refused(train, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=2 but not RANK, .* would not find each other"):
        train()


def test_main_turns_errors_into_exit_codes_and_one_line(train_config, capsys):
    assert train_sdxl_lora.main(train_config(train_data_dir="nowhere")) == 3
    assert "error: no such folder: nowhere" in capsys.readouterr().err


def test_the_finished_run_leaves_card_copy_side_files_and_thumbnail(train, tmp_path):
    (tmp_path / "loras").mkdir()
    run = train(
        max_train_steps=2, validation_prompt=("a cat",), num_validation_images=1, validation_inference_steps=1,
        output_name="cat", loras_dir=str(tmp_path / "loras"), save_side_files=True,
    )  # fmt: skip
    assert (tmp_path / "loras" / "cat.safetensors").read_bytes() == (run / "cat.safetensors").read_bytes()
    assert {"cat.json", "cat.png", "README.md"} <= {path.name for path in run.iterdir()}
    card = (run / "README.md").read_text()
    assert "samples/step-000002-prompt-0-image-0.png" in card and "<lora:cat:1>" in card
    with safe_open(run / "cat.safetensors", framework="pt") as file:
        about = file.metadata()
    assert about["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert len(about["ss_new_sd_model_hash"]) == 64 and about["ss_steps"] == "2"


@pytest.mark.parametrize("name", ["../x", "/abs", "a/b", "nul\0", "my cat", "-x"])
def test_a_name_that_is_no_file_name_is_refused_before_any_work(train, tmp_path, name):
    with pytest.raises(ConfigError, match="invalid output name"):
        train(output_name=name)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_loras_folder_that_is_not_there_is_refused_before_any_work(train, tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        train(loras_dir=str(tmp_path / "nowhere"))
