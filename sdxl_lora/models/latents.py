"""Conversion between the VAE's latents and the UNet's: the only place that knows a VAE's scale and shift.

    UNet's latents = (VAE's latents - shift) * scale

Most SDXL VAEs have only a `scaling_factor`. Others also have a `shift_factor`, or `latents_mean` and `latents_std` with
one number per channel, as in diffusers' pipelines.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch

from sdxl_lora.errors import ConfigError


def latents_of_vae(vae_config: Mapping, latents: torch.Tensor) -> torch.Tensor:
    """Convert the VAE's latents (..., C, h, w) to the UNet's."""
    shift, scale = shift_and_scale(vae_config, latents)
    return latents * scale if shift is None else (latents - shift) * scale


def spread_of_vae(vae_config: Mapping, std: torch.Tensor) -> torch.Tensor:
    """Convert standard deviations (..., C, h, w) of the VAE's latents, which no shift changes."""
    return std * shift_and_scale(vae_config, std)[1]


def latents_for_vae(vae_config: Mapping, latents: torch.Tensor) -> torch.Tensor:
    """Convert the UNet's latents (..., C, h, w) to the VAE's, for decoding."""
    shift, scale = shift_and_scale(vae_config, latents)
    return latents / scale if shift is None else latents / scale + shift


def shift_and_scale(
    vae_config: Mapping, like: torch.Tensor
) -> tuple[torch.Tensor | float | None, torch.Tensor | float]:
    """Return shift and scale for tensors such as `like`: numbers, or (C, 1, 1) if per channel; no shift is None."""
    factor, shift = vae_config["scaling_factor"], vae_config.get("shift_factor")
    if vae_config.get("latents_mean") is None:
        return shift, factor
    mean, std = (
        torch.tensor(vae_config[name], dtype=like.dtype, device=like.device).view(-1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    return mean, factor / std


def check_normalisation(vae_config: Mapping) -> None:
    """Check a VAE config's scale and shift.

    Raises:
        ConfigError: one is not a valid number, the numbers do not match the VAE's channels, or only one of mean and std
            is given.
    """
    factor, shift = vae_config.get("scaling_factor"), vae_config.get("shift_factor")
    if not is_number(factor) or factor <= 0:
        raise ConfigError(
            f"the VAE's config has scaling_factor {factor!r}, it must be a number above 0: SDXL's is 0.13025"
        )
    if shift is not None and not is_number(shift):
        raise ConfigError(f"the VAE's config has shift_factor {shift!r}, it must be a number, or null for none")
    mean, std = vae_config.get("latents_mean"), vae_config.get("latents_std")
    if mean is None and std is None:
        return
    channels = vae_config["latent_channels"]
    if not (is_row(mean, channels) and is_row(std, channels) and all(number > 0 for number in std)):
        raise ConfigError(
            f"the VAE's config has latents_mean {mean} and latents_std {std}: both must have {channels} numbers, one "
            "for each channel, and those of latents_std must be above 0"
        )


def is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_row(values: Any, count: int) -> TypeGuard[list[float] | tuple[float, ...]]:
    return isinstance(values, list | tuple) and len(values) == count and all(map(is_number, values))


def normalisation_key(vae_config: Mapping) -> str:
    """Return the suffix that distinguishes cache keys of VAEs with a shift; "" without one, for stable older keys."""
    names = ("shift_factor", "latents_mean", "latents_std")
    found = [(name, vae_config.get(name)) for name in names if vae_config.get(name) is not None]
    return f"-{found}" if found else ""
