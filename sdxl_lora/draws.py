"""What chance gives a picture in one of its turns: timestep, noise, VAE draw, flip.

A pure function of (seed, epoch, example), drawn on the CPU in float32: resuming, another batch size or another number
of processes never changes it. Each kind of draw has a stream of its own, so that adding one leaves the others alone.
"""

import torch

from sdxl_lora.batches import Turn, keyed_seed


def generator(seed: int, stream: str, turn: Turn) -> torch.Generator:
    return torch.Generator().manual_seed(keyed_seed(seed, stream, turn.epoch, turn.example))


def draw_noise(seed: int, turn: Turn, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise for the latents."""
    return torch.randn(shape, generator=generator(seed, "noise", turn))


def draw_timestep(seed: int, turn: Turn, num_train_timesteps: int) -> int:
    """Uniform in [0, num_train_timesteps)."""
    return int(torch.randint(num_train_timesteps, (), generator=generator(seed, "timestep", turn)))


def draw_latents(seed: int, turn: Turn, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """A draw from the VAE's posterior N(mean, std^2)."""
    return mean + std * torch.randn(mean.shape, generator=generator(seed, "posterior", turn))


def draw_flip(seed: int, turn: Turn) -> bool:
    """Mirrored in this turn? One in two."""
    return bool(torch.randint(2, (), generator=generator(seed, "flip", turn)))
