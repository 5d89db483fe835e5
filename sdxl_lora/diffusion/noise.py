"""Random draws of a sample: timestep, noise, VAE posterior, flip.

Each is a pure function of (seed, epoch, example), drawn on the CPU in float32: resuming, another batch size or another
number of processes never changes it. Each kind of draw has its own stream, so that a new kind leaves the others alone.
"""

import torch

from sdxl_lora.config.sections.objective import NoiseConfig
from sdxl_lora.diffusion.timesteps import UNIFORM, TimestepDensity
from sdxl_lora.rng import SampleKey, generator

PLAIN_NOISE = NoiseConfig()


def draw_noise(seed: int, sample: SampleKey, shape: tuple[int, ...], config: NoiseConfig = PLAIN_NOISE) -> torch.Tensor:
    """Return noise (C, h, w) for the latents: standard normal, plus the additions of `config`."""
    noise = torch.randn(shape, generator=generator(seed, "noise", sample))
    if config.multires_noise_iterations:
        noise = pyramid_noise(
            noise,
            config.multires_noise_iterations,
            config.multires_noise_discount,
            generator(seed, "pyramid", sample),
        )
    if config.noise_offset:  # https://www.crosslabs.org/blog/diffusion-with-offset-noise
        noise = noise + config.noise_offset * torch.randn(
            (shape[0], 1, 1), generator=generator(seed, "noise_offset", sample)
        )
    return noise


def pyramid_noise(noise: torch.Tensor, levels: int, discount: float, rng: torch.Generator) -> torch.Tensor:
    """Add low frequencies to noise (multi-resolution noise); every value stays standard normal.

    Level i is drawn at 1 / 2^i of the size, each value filling a square, and added with strength discount^i. The sum
    is scaled back to variance 1. Levels end once one is a single value.
    """
    channels, height, width = noise.shape
    variance = 1.0
    for level in range(1, levels + 1):
        side = 2**level
        coarse = torch.randn((channels, -(-height // side), -(-width // side)), generator=rng)
        fine = coarse.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width]
        noise = noise + discount**level * fine
        variance += discount ** (2 * level)
        if coarse[0].numel() == 1:
            break
    return noise / variance**0.5


def draw_input_noise(seed: int, sample: SampleKey, noise: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the noise that the UNet sees while it should predict `noise` (arXiv:2301.11706)."""
    return noise + strength * torch.randn(noise.shape, generator=generator(seed, "input_perturbation", sample))


def draw_timestep(seed: int, sample: SampleKey, num_train_timesteps: int, density: TimestepDensity = UNIFORM) -> int:
    """Draw a timestep in [0, num_train_timesteps) from the density."""
    interval = torch.randint(num_train_timesteps, (), generator=generator(seed, "timestep", sample))
    if density == UNIFORM:
        return int(interval)
    place = torch.rand((), dtype=torch.float64, generator=generator(seed, "timestep_place", sample)).item()
    return density.timestep((int(interval) + place) / num_train_timesteps, num_train_timesteps)


def draw_latents(seed: int, sample: SampleKey, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Draw latents from the VAE's posterior N(mean, std^2)."""
    return mean + std * torch.randn(mean.shape, generator=generator(seed, "posterior", sample))


def draw_flip(seed: int, sample: SampleKey) -> bool:
    """Return whether this sample is mirrored: one in two."""
    return bool(torch.randint(2, (), generator=generator(seed, "flip", sample)))
