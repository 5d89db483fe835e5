"""Averages of the trained weights, which give better samples and LoRA files than the weights of the last step.

These are an exponential moving average, and the average that schedule-free optimizers keep. Within a context the
adapter holds the average; after it, exactly the training's weights again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from sdxl_lora.io.safetensors import load_tensors, save_tensors

STATE_NAME = "ema_state.safetensors"


class Ema:
    """Exponential moving average of parameters: each step it moves a share 1 - decay of the way to them.

    In step t (1 is the first) the decay is at most (1 + t) / (10 + t), so that the initial weights soon fade. `save`
    and `load` are exact.
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
    """Show the weights that a schedule-free optimizer averages; it trains at another point. No-op for all others."""
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
    """Restore the parameters after the context."""
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


class TrainedWeights:
    """Weights for samples and LoRA files without an EMA: the trained ones, or a schedule-free optimizer's average."""

    def __init__(self, optimizer, parameters: Sequence[nn.Parameter]):
        self.optimizer, self.parameters = optimizer, parameters

    def update(self, step: int) -> None:
        """Do nothing: the optimizer keeps any average."""

    def save(self, folder: Path, step: int) -> None:
        """Do nothing: the optimizer's state holds any average."""

    def load(self, folder: Path) -> None:
        """Do nothing: the optimizer's state holds any average."""

    def shown(self):
        """Return a context in which the adapter holds these weights."""
        return schedule_free_average(self.optimizer, self.parameters)


PublishedWeights = Ema | TrainedWeights


def published_weights(ema_decay: float | None, named: dict[str, nn.Parameter], optimizer) -> PublishedWeights:
    """Return the weights for samples and LoRA files: an EMA if `ema_decay` is given.

    Args:
        named: the adapters' parameters by name.
        optimizer: not wrapped by Accelerate.
    """
    return TrainedWeights(optimizer, list(named.values())) if ema_decay is None else Ema(named, ema_decay)
