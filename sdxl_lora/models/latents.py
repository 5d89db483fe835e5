"""Latents as the UNet sees them and as the VAE has them, both ways: the one place that knows a VAE's scale and shift.

    seen by the UNet = (the VAE's - shift) * scale

Most SDXL VAEs have a `scaling_factor` alone. Others also have `shift_factor`, or `latents_mean` and `latents_std`, a
number for each channel, as diffusers' pipelines read them.
"""

from collections.abc import Mapping

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
    """Both for tensors such as `like`: numbers, or (C, 1, 1) where they differ by channel; no shift is None.

    Raises:
        ConfigError: the config has numbers for more or fewer channels than the VAE, or one of mean and std alone.
    """
    factor, shift = vae_config["scaling_factor"], vae_config.get("shift_factor")
    mean, std = vae_config.get("latents_mean"), vae_config.get("latents_std")
    if mean is None and std is None:
        return shift, factor
    channels = vae_config["latent_channels"]
    if mean is None or std is None or len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"the VAE's config has latents_mean {mean} and latents_std {std}: both must have {channels} numbers, one "
            "for each channel"
        )
    mean, std = (torch.tensor(of, dtype=like.dtype, device=like.device).view(-1, 1, 1) for of in (mean, std))
    return mean, factor / std


def normalisation_key(vae_config: Mapping) -> str:
    """What tells caches of VAEs apart that shift; "" for those that do not, whose keys it leaves as they were."""
    names = ("shift_factor", "latents_mean", "latents_std")
    found = [(name, vae_config.get(name)) for name in names if vae_config.get(name) is not None]
    return f"-{found}" if found else ""
