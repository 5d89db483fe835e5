"""Switch adapters off and on again, so that a model computes as the base alone."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


@contextmanager
def adapters_off(models: Iterable[nn.Module]) -> Iterator[None]:
    """Context in which the models compute without their adapters.

    PEFT's own switch also changes `requires_grad`, which breaks gradient sharing between processes.
    """
    layers = [layer for model in models for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
