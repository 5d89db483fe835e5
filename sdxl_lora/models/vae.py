"""VAE moments of images."""

import copy
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from sdxl_lora.errors import NonFiniteError
from sdxl_lora.models.latents import latents_of_vae, spread_of_vae

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by vae_precision


class VaeEncoder:
    """Encode batches of images of one size, in half precision if requested; images that overflow are redone in float32.

    Args:
        vae: in float32, on the encoding device.
        dtype: of the computation. A dtype other than float32 holds a second copy of the weights.
    """

    def __init__(self, vae, dtype: torch.dtype = torch.float32):
        self.vae, self.dtype = vae, dtype
        # diffusers' own `to` would warn.
        self.quick = vae if dtype == torch.float32 else nn.Module.to(copy.deepcopy(vae), dtype)
        self.has_overflowed = False

    def __call__(self, pixels: torch.Tensor, names: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """Return the images' moments, see `vae_moments`; they may still be NaN or infinity."""
        moments = vae_moments(self.quick, pixels)
        if self.quick is not self.vae:
            for index in [index for index, found in enumerate(moments) if not are_finite(found)]:
                self._tell(names[index])
                moments[index] = vae_moments(self.vae, pixels[index : index + 1])[0]
        return moments

    def _tell(self, name: str) -> None:
        if not self.has_overflowed:
            warnings.warn(
                f"the VAE overflows in {str(self.dtype).removeprefix('torch.')} for {name}: it is encoded in float32, "
                "and so is every other image for which it does. With many, --vae_precision fp32 is faster",
                stacklevel=3,
            )
        self.has_overflowed = True


def encoded(encode: VaeEncoder, image: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Encode an image from ImageDataset.load into a cache record; see LatentCache.

    Raises:
        NonFiniteError: the VAE gives NaN or infinity.
    """
    return record_of(image, encode(image["pixels"][None], [name])[0], name)


def record_of(image: dict[str, torch.Tensor], moments: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Return the cache record of an image with these moments.

    Raises:
        NonFiniteError: the moments hold NaN or infinity.
    """
    if not are_finite(moments):
        raise NonFiniteError(f"the VAE gives NaN or infinity for {name}: check the image and the VAE")
    record = {key: tensor for key, tensor in image.items() if key != "pixels"} | moments
    if "mask" in record:
        height, width = record["mean"].shape[-2:]
        record["mask"] = F.adaptive_avg_pool2d(record["mask"], (height, width))
    return record


def are_finite(tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


@torch.no_grad()
def vae_moments(vae, pixels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Return mean and standard deviation (C, h, w) float32 of each image's latents, in the UNet's scale.

    Args:
        pixels: (B, 3, H, W) in [-1, 1].
    """
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    means = latents_of_vae(vae.config, posterior.mean.float().cpu())
    stds = spread_of_vae(vae.config, posterior.std.float().cpu())
    return [{"mean": mean, "std": std} for mean, std in zip(means, stds, strict=True)]
