"""Images to VAE moments."""

import torch
import torch.nn.functional as F

from sdxl_lora.errors import NonFiniteError
from sdxl_lora.models.latents import latents_of_vae, spread_of_vae


def encoded(vae, image: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The record of a picture as ImageDataset.load gives it; see LatentCache.

    Raises:
        NonFiniteError: the VAE gives NaN or infinity.
    """
    record = {key: tensor for key, tensor in image.items() if key != "pixels"}
    record |= vae_moments(vae, image["pixels"][None])
    if "mask" in record:
        height, width = record["mean"].shape[-2:]
        record["mask"] = F.adaptive_avg_pool2d(record["mask"], (height, width))
    if not (record["mean"].isfinite().all() and record["std"].isfinite().all()):
        raise NonFiniteError(f"the VAE gives NaN or infinity for {name}: look at the picture and at the VAE")
    return record


@torch.no_grad()
def vae_moments(vae, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean and standard deviation (C, h, w) float32 of one picture's latents, as the UNet sees them.

    Args:
        pixels: (1, 3, H, W) in [-1, 1].
    """
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return {
        "mean": latents_of_vae(vae.config, posterior.mean[0].float().cpu()),
        "std": spread_of_vae(vae.config, posterior.std[0].float().cpu()),
    }
