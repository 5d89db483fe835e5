"""Optimizers by name, tried on tiny parameters before the base is loaded."""

import re
import sys
import types

import pytest
import torch

from sdxl_lora.config.checks import OPTIMIZERS, PRODIGIES
from sdxl_lora.errors import ConfigError
from sdxl_lora.models.loading import base_of
from sdxl_lora.optimizers.optimizers import learning_rate_of, optimizer_of, set_learning_rate
from sdxl_lora.run.events import read_events
from sdxl_lora.training.checks import check_names, check_optimizer
from sdxl_lora.training.dry_run import dry_run


class Closures(torch.optim.SGD):
    def step(self, closure):
        return closure()


class Explodes(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.fill_(torch.nan)


class KeepsNothing(torch.optim.SGD):
    def state_dict(self):
        return None


class KeepsAFunction(torch.optim.SGD):
    def state_dict(self):
        return {**super().state_dict(), "how": lambda: 1}


class KeepsAModule(torch.optim.SGD):
    def state_dict(self):
        return {**super().state_dict(), "state": {0: {"x": torch.nn.Linear(1, 1)}}}


class HasItsOwnRate(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, 1e-3)


class KeepsAList(torch.optim.SGD):
    def state_dict(self):
        return [1]


class NoOptimizer:
    pass


class NotBack(torch.optim.SGD):
    def load_state_dict(self, state):
        raise KeyError("step")


class NeedsTheModel(torch.optim.SGD):
    def __init__(self, params, lr, model):
        super().__init__(params, lr)


MORE = (KeepsAModule, HasItsOwnRate, KeepsAList, NoOptimizer)


@pytest.fixture
def library(monkeypatch):
    """A module of optimizers as people install them."""
    module = types.ModuleType("odd_optimizers")
    for one in (Closures, Explodes, KeepsNothing, KeepsAFunction, NotBack, NeedsTheModel, *MORE):
        setattr(module, one.__name__, one)
    monkeypatch.setitem(sys.modules, "odd_optimizers", module)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in OPTIMIZERS if name != "muon"),
        "torch.optim.RMSprop",
        "torch.optim.Adagrad",
        "torch.optim.NAdam",
        "torch.optim.Rprop",
        "torch.optim.ASGD",
        " adamw ",
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_can_train_passes_without_a_word(train_config, name, capfd):
    rate = 1.0 if name in PRODIGIES else 1e-3
    check_optimizer(train_config(optimizer=name, learning_rate=rate, use_dora=True))
    check_optimizer(train_config(optimizer=name, learning_rate=rate, target_modules="all-linear+conv"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name, words",
    [
        ("torch.optim.LBFGS", "needs a closure"),
        ("odd_optimizers.Closures", "needs a closure"),
        ("torch.optim.SparseAdam", "is for sparse gradients"),
        ("torch.optim.Optimizer", "torch.optim.Optimizer"),
        ("odd_optimizers.Explodes", "gives NaN"),
        ("odd_optimizers.KeepsNothing", "state_dict"),
        ("odd_optimizers.KeepsAFunction", "cannot train here"),
        ("odd_optimizers.NotBack", "cannot train here"),
        (
            "odd_optimizers.KeepsAModule",
            "its state holds more than tensors and plain values, which a checkpoint cannot",
        ),
        ("odd_optimizers.KeepsAList", "its state_dict has no state and param_groups"),
        ("odd_optimizers.HasItsOwnRate", "give --learning_rate None, it has one of its own"),
        ("odd_optimizers.NoOptimizer", "has no optimizer NoOptimizer"),
        ("torch.optim.lr_scheduler.StepLR", "has no optimizer StepLR"),
        ("torch.optim.adamw.adamw", "has no optimizer adamw"),
        ("os.system", "has no optimizer system"),
        ("odd_optimizers.NeedsTheModel", "does not take"),
    ],
)
def test_what_cannot_train_is_refused_before_the_base_is_looked_at(train_config, library, name, words):
    config = train_config(optimizer=name, pretrained_model_name_or_path="/no/such/base")
    with pytest.raises(ConfigError) as raised:
        check_names(config, base_of(config.model))
    assert words in str(raised.value) and name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["torch.optim.Muon", "muon"])
def test_an_optimizer_for_matrices_alone_is_tried_on_what_trains(train_config, name):
    check_optimizer(train_config(optimizer=name))
    for settings in ({"target_modules": "all-linear+conv"}, {"use_dora": True}):
        with pytest.raises(ConfigError, match=rf"optimizer {re.escape(name)} .*2D"):
            check_optimizer(train_config(optimizer=name, **settings))


def test_adafactor_finds_its_own_rate_where_it_is_left_out(train):
    run = train(
        optimizer="adafactor", learning_rate=None, optimizer_args=("relative_step=True", "scale_parameter=True")
    )
    rates = [event["learning_rate"] for event in read_events(run / "events.jsonl", "step")]
    assert len(rates) == 4 and all(0 < rate < 1 for rate in rates)


def test_an_optimizer_by_name_keeps_a_rate_of_its_own(train_config):
    config = train_config(optimizer="torch.optim.Adam", learning_rate=None).optimizer
    weights = [torch.nn.Parameter(torch.ones(2))]
    optimizer = optimizer_of(config, [{"params": weights}])
    set_learning_rate(optimizer, learning_rate_of(config, step=0, total_steps=4, images_per_step=1))
    assert optimizer.param_groups[0]["lr"] == torch.optim.Adam(weights).defaults["lr"]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"learning_rate": None}, "learning_rate is None, it must be a number"),
        ({"learning_rate": None, "optimizer": "adafactor"}, "relative_step=True"),
        ({"learning_rate": None, "optimizer": "prodigy"}, "learning_rate is None"),
        ({"optimizer": "adafactor", "optimizer_args": ("relative_step=True",)}, "give --learning_rate None"),
        ({"learning_rate": None, "optimizer": "torch.optim.Adam", "lr_scheduler": "cosine"}, "lr_scheduler"),
        ({"learning_rate": None, "optimizer": "torch.optim.Adam", "scale_lr": True}, "scale_lr"),
    ],
)
def test_a_rate_that_is_left_out_where_one_is_needed_is_refused(train_config, settings, words):
    with pytest.raises(ConfigError, match=words):
        train_config(**settings)


def test_a_dry_run_tries_the_optimizer_too(train_config):
    with pytest.raises(ConfigError, match="closure"):
        dry_run(train_config(optimizer="torch.optim.LBFGS"))
    assert "dry run" in dry_run(train_config())
