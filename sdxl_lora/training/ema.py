"""Averages of the trained weights, which draw and publish better than the weights of the last step.

An exponential moving average of our own, and the one that schedule-free optimizers keep. Within a context the adapter
holds the average; after it, the training's weights again to the last bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from sdxl_lora.io.safetensors import load_tensors, save_tensors

STATE_NAME = "ema_state.safetensors"


class Ema:
    """The moving average of parameters: each step it goes a share 1 - decay of the way to them.

    In step t (1 is the first) the decay is at most (1 + t) / (10 + t), so that the weights of the beginning do not
    stay in it for long. `save` and `load` are exact.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        with restored(list(self.parameters.values())):
            self._copy(self.average, self.parameters)
            yield

    def save(self, folder: Path, step: int) -> None:
        save_tensors({name: tensor.cpu() for name, tensor in self.average.items()}, folder / STATE_NAME)

    def load(self, folder: Path) -> None:
        self._copy(load_tensors(folder / STATE_NAME), self.average)

    @staticmethod
    @torch.no_grad()
    def _copy(source: dict, target: dict) -> None:
        for name, tensor in target.items():
            tensor.copy_(source[name])


@contextmanager
def schedule_free_average(optimizer, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The weights that a schedule-free optimizer averages, which trains at another point; nothing with any other."""
    if not (hasattr(optimizer, "eval") and hasattr(optimizer, "train")):
        yield
        return
    with restored(parameters):
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()


@contextmanager
def restored(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """After it the parameters are what they were before."""
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


class TrainedWeights:
    """The weights that samples and LoRA files are made of: those that train, or a schedule-free optimizer's average."""

    def __init__(self, optimizer, parameters: Sequence[nn.Parameter]):
        self.optimizer, self.parameters = optimizer, parameters

    def update(self, step: int) -> None:
        """Nothing: the optimizer keeps what there is to keep."""

    def save(self, folder: Path, step: int) -> None:
        """Nothing: the optimizer's state holds it."""

    def load(self, folder: Path) -> None:
        """Nothing, likewise."""

    def shown(self):
        """A context in which the adapter holds these weights."""
        return schedule_free_average(self.optimizer, self.parameters)


PublishedWeights = Ema | TrainedWeights


def published_weights(ema_decay: float | None, named: dict[str, nn.Parameter], optimizer) -> PublishedWeights:
    """The weights to show and to publish: an EMA where one is asked for.

    Args:
        named: the adapters' parameters by name.
        optimizer: not wrapped by Accelerate.
    """
    return TrainedWeights(optimizer, list(named.values())) if ema_decay is None else Ema(named, ema_decay)
