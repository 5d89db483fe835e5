"""Averages by hand, and training weights that come back to the last bit."""

import pytest
import torch

from sdxl_lora.errors import ConfigError
from sdxl_lora.optimizers.optimizers import make_optimizer
from sdxl_lora.training.ema import Ema, schedule_free_average
from tests.helpers.configs import flat_train_config


def test_ema_by_hand_and_shown_only_within():
    weight = torch.nn.Parameter(torch.tensor([0.0, 8.0]))
    ema, expected = Ema({"w": weight}, 0.5), 0.0
    for step in range(1, 12):
        with torch.no_grad():
            weight[0] = step
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    trained = weight.detach().clone()
    with ema.shown():
        assert weight.tolist() == pytest.approx([expected, 8.0])
    assert torch.equal(weight, trained) and expected < 11
    with pytest.raises(RuntimeError), ema.shown():
        raise RuntimeError
    assert torch.equal(weight, trained)


def descend(optimizer, weight, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        ((weight - 1) ** 2).sum().backward()
        optimizer.step()


def test_schedule_free_shows_its_average_and_trains_on_bit_for_bit():
    weight = torch.nn.Parameter(torch.zeros(5, 5))
    optimizer = make_optimizer("schedule_free_adamw", [weight], 0.1, weight_decay=0.0)
    optimizer.train()
    descend(optimizer, weight, 5)
    training, z = weight.detach().clone(), optimizer.state[weight]["z"]
    with schedule_free_average(optimizer, [weight]):
        torch.testing.assert_close(0.1 * z + 0.9 * weight.detach(), training)  # y = (1 - beta1) z + beta1 x
        assert not torch.equal(weight, training)
    assert torch.equal(weight, training) and optimizer.param_groups[0]["train_mode"]
    adamw = make_optimizer("adamw", [weight], 0.1)
    with schedule_free_average(adamw, [weight]):
        assert torch.equal(weight, training)


def test_two_averages_at_once_are_refused():
    with pytest.raises(ConfigError, match="keeps an average of its own"):
        flat_train_config(output_dir="run", train_data_dir="data", ema_decay=0.9, optimizer="schedule_free_adamw")
    with pytest.raises(ConfigError, match=r"ema_decay is 1\.0, it must be at least 0 and below 1"):
        flat_train_config(output_dir="run", train_data_dir="data", ema_decay=1.0)
