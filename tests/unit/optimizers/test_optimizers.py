"""Learning rates against diffusers' schedules, and real optimizers."""

import copy
import sys
from itertools import pairwise

import pytest
import torch
from diffusers.optimization import get_scheduler
from transformers import get_wsd_schedule

from sdxl_lora.config.checks import OPTIMIZERS, PRODIGIES
from sdxl_lora.errors import ConfigError
from sdxl_lora.optimizers.optimizers import (
    CAME_BETA3,
    CLASSES,
    learning_rate_at,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)
from tests.helpers.configs import flat_train_config

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


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_wsd_is_transformers_at_every_step(share):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    falling = min(round(50 * share), 43)
    theirs = get_wsd_schedule(optimizer, 7, falling, num_stable_steps=43 - falling, decay_type="1-sqrt")
    for step in range(60):
        ours = learning_rate_at(step, 50, 2e-4, "wsd", warmup_steps=7, decay_share=share)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15), step
        optimizer.step()
        theirs.step()


def test_rex_falls_late_and_ends_at_zero():
    rates = [learning_rate_at(step, 110, 3.0, "rex", warmup_steps=10) for step in range(120)]
    assert rates[5] == pytest.approx(1.5) and rates[10] == 3.0
    assert rates[60] == pytest.approx(2.0), "arXiv:2107.04197: (1 - t) / (1/2 + (1 - t) / 2), at the middle 2/3"
    assert rates[110:] == [0.0] * 10 and all(a > b for a, b in pairwise(rates[10:111]))
    with pytest.raises(ConfigError, match="lr_decay_share"):
        flat_train_config(output_dir="x", train_data_dir="y", lr_scheduler="wsd", lr_decay_share=0.0)


def test_unknown_schedule_or_optimizer_is_a_config_error():
    with pytest.raises(ConfigError, match="lr_scheduler is 'cosin'"):
        learning_rate_at(0, 10, 1e-4, "cosin")
    with pytest.raises(ConfigError, match="optimizer is 'adam'"):
        make_optimizer("adam", [torch.nn.Parameter(torch.zeros(1))], 1e-4)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "paged_adamw8bit", "lion", "lion8bit", "torch.optim.Adam"])
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


EVERY = [*CLASSES, "torch.optim.RMSprop"]


def descend(optimizer, weights, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        sum(((weight - i - 1) ** 2).sum() for i, weight in enumerate(weights)).backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore:Prodigy finds")
@pytest.mark.parametrize("name", EVERY)
def test_every_optimizer_goes_downhill_and_resumes_exactly(name):
    def start(values, state=None):
        weights = [torch.nn.Parameter(value.clone()) for value in values]
        optimizer = make_optimizer(name, weights, 1.0 if name in PRODIGIES else 0.001 if name == "came" else 0.01)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
        if hasattr(optimizer, "train"):
            optimizer.train()
        return weights, optimizer

    begin = [torch.zeros(64, 96), torch.zeros(8, 4)]  # bitsandbytes keeps below 4096 elements in float32
    whole, optimizer = start(begin)
    descend(optimizer, whole, 6)
    parts, first = start(begin)
    descend(first, parts, 4)
    parts, second = start(parts, first.state_dict())
    descend(second, parts, 2)
    assert all(torch.equal(one, two) for one, two in zip(whole, parts, strict=True))
    assert all(0 < weight.mean() < i + 1 for i, weight in enumerate(whole))


def test_adafactor_and_schedule_free_step_by_hand():
    """Their first step moves every weight of a constant gradient by the learning rate, but for what is said here."""
    for name in ("adafactor", "schedule_free_adamw"):
        weight = torch.nn.Parameter(torch.full((4, 4), 2.0))
        optimizer = make_optimizer(name, [weight], 0.1, weight_decay=0.0)
        if hasattr(optimizer, "train"):
            optimizer.train()
        (3 * weight).sum().backward()
        optimizer.step()
        expected = {"adafactor": 1.9, "schedule_free_adamw": 1.9}[name]
        torch.testing.assert_close(weight.detach(), torch.full((4, 4), expected), atol=1e-4, rtol=0)


def test_newer_optimizers_decay_as_adamw_does_and_step_as_they_say():
    """Steps of a gradient with one direction in 32, in root mean squares: CAME's first are eleven times the rate."""
    steps = {"came": 0.1 * 0.1 / 0.9 / (1 - CAME_BETA3) ** 0.5, "adopt": 0.1 * 0.1 / 32**0.5, "muon": 0.1 * 0.2}
    for name, expected in steps.items():
        for gradient in (3.0, 0.0):
            weight = torch.nn.Parameter(torch.full((32, 32), 2.0))
            optimizer = make_optimizer(name, [weight], 0.1, weight_decay=0.5)
            for _ in range(1 + (name == "adopt")):  # ADOPT's first step only looks
                before = weight.detach().clone()
                weight.grad = torch.eye(32) * gradient
                optimizer.step()
            moved = (before - weight.detach() - 0.1 * 0.5 * before).norm().item() / 32
            assert moved == pytest.approx(expected if gradient else 0.0, rel=0.1, abs=1e-6), name


def test_lora_plus_gives_lora_b_its_factor_of_every_rate():
    named = {
        "a.lora_A.weight": torch.nn.Parameter(torch.ones(2, 2)),
        "a.lora_B.weight": torch.nn.Parameter(torch.ones(2, 2)),
        "a.lora_magnitude_vector.weight": torch.nn.Parameter(torch.ones(2)),
    }
    optimizer = make_optimizer("adamw", parameter_groups(named, 16.0), 0.1, weight_decay=0.0)
    set_learning_rate(optimizer, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.16])
    sum(parameter.sum() for parameter in named.values()).backward()
    optimizer.step()
    moved = [1 - parameter.detach().flatten()[0].item() for parameter in named.values()]
    assert moved == pytest.approx([0.01, 0.16, 0.01], rel=1e-4)
    assert [len(group["params"]) for group in parameter_groups(named)] == [3]
    with pytest.raises(ConfigError, match="leave it out with other kinds of adapters"):
        parameter_groups({"a.hada_w1_a": named["a.lora_A.weight"]}, 16.0)


def test_own_arguments_win():
    weight = torch.nn.Parameter(torch.zeros(1))
    settings = {"optimizer": "prodigy", "optimizer_args": ("d_coef=2.0", "betas=(0.8, 0.9)", "decouple=False")}
    config = flat_train_config(output_dir="run", train_data_dir="data", prodigy_beta3=0.5, **settings)
    group = make_optimizer("prodigy", [weight], 1.0, arguments=config.optimizer.arguments).param_groups[0]
    assert (group["d_coef"], group["betas"], group["decouple"], group["beta3"]) == (2.0, (0.8, 0.9), False, 0.5)
    assert group["safeguard_warmup"] and group["use_bias_correction"]
    assert flat_train_config(output_dir="run", train_data_dir="data", use_8bit_adam=True).optimizer.name == "adamw8bit"
    assert set(OPTIMIZERS) == set(CLASSES)


def test_a_missing_library_names_the_pip_command(monkeypatch):
    weight = torch.nn.Parameter(torch.zeros(1))
    modules = {"prodigyopt": "prodigyopt", "schedulefree": "schedulefree", "pytorch_optimizer": "pytorch-optimizer"}
    modules |= {"prodigyplus": "prodigy-plus-schedule-free"}
    for name, (module, _, package) in CLASSES.items():
        if module not in modules:
            continue
        monkeypatch.setitem(sys.modules, module, None)
        assert package == modules[module]
        with pytest.raises(ConfigError, match=f"pip install {package}"):
            make_optimizer(name, [weight], 0.1)
    with pytest.raises(ConfigError, match="pip install nowhere"):
        make_optimizer("nowhere.optim.Best", [weight], 0.1)
    with pytest.raises(ConfigError, match=r"torch\.optim has no optimizer Best"):
        make_optimizer("torch.optim.Best", [weight], 0.1)
    with pytest.raises(ConfigError, match=r"does not take.*momentun"):
        make_optimizer("torch.optim.SGD", [weight], 0.1, arguments={"momentun": 0.9})


def test_a_learning_rate_far_below_prodigys_is_warned_of():
    with pytest.warns(UserWarning, match="1 is usual"):
        make_optimizer("prodigy", [torch.nn.Parameter(torch.zeros(1))], 1e-4)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"optimizer": "adamw9bit"}, "did you mean adamw8bit?"),
        ({"optimizer": "lion", "use_8bit_adam": True}, "use_8bit_adam means adamw8bit, but optimizer is lion"),
        ({"optimizer": "prodigy", "lora_plus_ratio": 16.0}, "does not go with prodigy"),
        ({"optimizer": "prodigy_plus_schedule_free", "ema_decay": 0.9}, "keeps an average of its own"),
        ({"optimizer": "prodigy_plus_schedule_free", "block_lr_factors": ("up=2",)}, "factors may be 0 or 1"),
        ({"lora_plus_ratio": 0.0}, "lora_plus_ratio is 0.0, it must be above 0"),
        ({"optimizer_args": ("amsgrad=yes",)}, "it must be name=value with a Python value"),
        ({"optimizer_args": ("amsgrad",)}, "it must be name=value with a Python value"),
        ({"optimizer_args": ("lr=1.0",)}, "may not set lr: use learning_rate"),
    ],
)
def test_optimizer_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ConfigError) as error:
        flat_train_config(output_dir="run", train_data_dir="data", **settings)
    assert words in str(error.value)
