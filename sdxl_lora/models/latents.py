"""Latents as the UNet sees them and as the VAE has them, both ways: the one place that knows a VAE's scale and shift.

    seen by the UNet = (the VAE's - shift) * scale

Most SDXL VAEs have a `scaling_factor` alone. Others also have `shift_factor`, or `latents_mean` and `latents_std`, a
number for each channel, as diffusers' pipelines read them.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch

from sdxl_lora.errors import ConfigError


def latents_of_vae(vae_config: Mapping, latents: torch.Tensor) -> torch.Tensor:
    """Return what the UNet sees of the VAE's latents (..., C, h, w)."""
    shift, scale = shift_and_scale(vae_config, latents)
    return latents * scale if shift is None else (latents - shift) * scale


def spread_of_vae(vae_config: Mapping, std: torch.Tensor) -> torch.Tensor:
    """The standard deviations (..., C, h, w) of such latents, which no shift changes."""
    return std * shift_and_scale(vae_config, std)[1]


def latents_for_vae(vae_config: Mapping, latents: torch.Tensor) -> torch.Tensor:
    """The other way: what the VAE decodes, of latents (..., C, h, w) as the UNet gives them."""
    shift, scale = shift_and_scale(vae_config, latents)
    return latents / scale if shift is None else latents / scale + shift


def shift_and_scale(
    vae_config: Mapping, like: torch.Tensor
) -> tuple[torch.Tensor | float | None, torch.Tensor | float]:
    """Both for tensors such as `like`: numbers, or (C, 1, 1) where they differ by channel; no shift is None."""
    factor, shift = vae_config["scaling_factor"], vae_config.get("shift_factor")
    if vae_config.get("latents_mean") is None:
        return shift, factor
    mean, std = (
        torch.tensor(vae_config[name], dtype=like.dtype, device=like.device).view(-1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    return mean, factor / std


def check_normalisation(vae_config: Mapping) -> None:
    """
    Raises:
        ConfigError: a scale or shift is no number that one can compute with; there are numbers for more or fewer
            channels than the VAE has, or one of mean and std alone.
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
    """What tells caches of VAEs apart that shift; "" for those that do not, whose keys it leaves as they were."""
    names = ("shift_factor", "latents_mean", "latents_std")
    found = [(name, vae_config.get(name)) for name in names if vae_config.get(name) is not None]
    return f"-{found}" if found else ""
