"""Turns adapters off and on again, so that a model computes as the base alone."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


@contextmanager
def adapters_off(models: Iterable[nn.Module]) -> Iterator[None]:
    """A context in which the models compute without their adapters.

    PEFT's own switch, without what it does to `requires_grad`, which processes that share gradients rely on.
    """
    layers = [layer for model in models for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
