"""Learning rates against diffusers' schedules, and real optimizers."""

import pytest
import torch
from diffusers.optimization import get_scheduler

from sdxl_lora.errors import ConfigError
from sdxl_lora.optim import learning_rate_at, make_optimizer, set_learning_rate

SCHEDULES = ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rate_is_diffusers_at_every_step(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    theirs = get_scheduler(
        name, optimizer, num_warmup_steps=7, num_training_steps=50, num_cycles=3, power=2.0
    )  # diffusers: cycles count hard restarts, power is the polynomial's
    for step in range(60):
        ours = learning_rate_at(step, 50, 2e-4, name, warmup_steps=7, num_cycles=3, power=2.0)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15), step
        optimizer.step()
        theirs.step()


def test_unknown_schedule_or_optimizer_is_a_config_error():
    with pytest.raises(ConfigError, match="lr_scheduler is 'cosin'"):
        learning_rate_at(0, 10, 1e-4, "cosin")
    with pytest.raises(ConfigError, match="optimizer is 'adam'"):
        make_optimizer("adam", [torch.nn.Parameter(torch.zeros(1))], 1e-4)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "lion", "lion8bit"])
def test_optimizer_goes_downhill_at_the_learning_rate_it_is_given(name):
    weight = torch.nn.Parameter(torch.ones(64, 128))  # bitsandbytes keeps below 4096 elements in float32
    optimizer = make_optimizer(name, [weight], learning_rate=0.0, weight_decay=0.0)
    for learning_rate in (0.0, 0.01):
        before = weight.detach().clone()
        set_learning_rate(optimizer, learning_rate)
        (weight**2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        # the first steps of Adam and Lion move every weight by the learning rate
        torch.testing.assert_close(before - weight.detach(), torch.full_like(before, learning_rate), atol=5e-4, rtol=0)


def test_adamw_step_by_hand():
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer("adamw", [weight], 0.1, betas=(0.9, 0.99), weight_decay=0.5, epsilon=1e-8)
    (3 * weight).sum().backward()
    optimizer.step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1 * 3 / (3 + 1e-8), rel=1e-6)
