"""One step by itself: what it is given goes in, the adapter and the metrics come out changed, nothing else."""

import pytest
import torch

from sdxl_lora.lora.state import lora_state
from sdxl_lora.training.batch_shape import BatchShape
from sdxl_lora.training.metrics import StepMetrics
from sdxl_lora.training.train_step import TrainStep
from tests.helpers.runs import assert_equal_weights, largest_difference


def step_of(built, shape=None):
    metrics = StepMetrics(built.accelerator.device, 4, built.model.num_train_timesteps)
    of_run = built.run, built.logger
    return TrainStep(
        built.config, built.accelerator, built.model, built.optimizer, shape or built.shape, metrics, *of_run
    )


def first_step_of(built, train_step):
    with torch.no_grad():
        batches = built.data.batches(0, train_step.shape)
        batch = next(batches)
        batches.close()
    return batch


def losses_of(train_step, batch):
    """Of each image, with no trace in the gradients."""
    losses = []
    for _, tensors in batch.micro_batches:
        share = torch.zeros(())
        losses += train_step.compute({**train_step.on_device(tensors), "share": share}).tolist()
    train_step.optimizer.zero_grad()
    return losses


def test_a_step_goes_down_the_mean_loss_at_the_rate_it_is_given(build):
    built = build(train_batch_size=2, adam_weight_decay=0.0)
    train_step = step_of(built)
    batch = first_step_of(built, train_step)
    before, losses = lora_state(built.model.unet), losses_of(train_step, batch)
    train_step(batch, 0, 0.0)
    assert_equal_weights(lora_state(built.model.unet), before)
    numbers = train_step.metrics.flush()
    assert numbers.loss == pytest.approx(sum(losses) / 2) and numbers.images == 2 and numbers.finite_steps == 1
    assert numbers.names == [batch.names] and len(batch.names) == 2
    train_step(batch, 1, 1e-3)
    assert 5e-4 < largest_difference(lora_state(built.model.unet), before) < 2e-3, "Adam moves by the rate"
    assert sum(losses_of(train_step, batch)) < sum(losses)
    base = {parameter for name, parameter in built.model.unet.named_parameters() if "lora_" not in name}
    assert all(parameter.grad is None for parameter in base)


def test_two_micro_steps_are_one_step_of_both(build, tmp_path):
    weights, losses = [], []
    for folder, shape in (("whole", BatchShape(2, 1)), ("halves", BatchShape(1, 2))):
        built = build(train_batch_size=2, adam_epsilon=1e-4, output_dir=str(tmp_path / folder))
        train_step = step_of(built, shape)
        batch = first_step_of(built, train_step)
        assert len(batch.micro_batches) == shape.micro_steps == built.accelerator.gradient_accumulation_steps
        train_step(batch, 0, 1e-3)
        weights.append(lora_state(built.model.unet))
        losses.append(train_step.metrics.flush().loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and largest_difference(*weights) < 1e-6
