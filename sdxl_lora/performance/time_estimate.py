"""Least time of a training: its products divided by the device's rate for large matrices."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

SIZES = (256, 512, 1024, 2048, 4096, 8192)  # of the matrices, until one product takes long enough
LONG_ENOUGH = 0.05  # seconds
# 1e12 operations a second of half-precision products with float32 sums, from NVIDIA's data sheets.
KNOWN_CARDS = {"an RTX 3060": 25.0, "an RTX 4090": 165.0}
TERA = 1e12


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one process's products, by purpose.

    Attributes:
        encoding: in the VAE's precision; all others in the computation's.
    """

    training: float
    samples: float = 0.0
    validation: float = 0.0
    encoding: float = 0.0

    def seconds(self, rate: float, rate_of_vae: float) -> dict[str, float]:
        """Return the least seconds of each purpose that has work, by name.

        The rates are operations a second in the computation's precision and in the VAE's.
        """
        parts = {name: (amount, rate_of_vae if name == "encoding" else rate) for name, amount in vars(self).items()}
        return {name: amount / rate_of_it for name, (amount, rate_of_it) in parts.items() if amount}

    def seconds_on_known_cards(self) -> dict[str, float]:
        """Return the least seconds of all work on each of KNOWN_CARDS, by its name."""
        return {card: sum(vars(self).values()) / (rate * TERA) for card, rate in KNOWN_CARDS.items()}


def products_per_second(
    device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Measure the operations a second of large matrix products on this device, the upper bound of a training."""
    best = 0.0
    for size in SIZES:
        try:
            a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
            seconds = min(seconds_of(partial(torch.mm, a, b), device, clock) for _ in range(3))
        except torch.OutOfMemoryError:
            break
        best = max(best, 2 * size**3 / seconds)
        if seconds >= LONG_ENOUGH:
            break
    return best


def seconds_of(work: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """Return the seconds until a device has done a piece of work."""
    synchronize(device)
    began = clock()
    work()
    synchronize(device)
    return max(clock() - began, 1e-9)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
