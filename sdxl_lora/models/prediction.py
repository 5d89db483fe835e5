"""Test of a base's prediction type on noisy images, since files often do not state it.

Each reading of the UNet's output implies an image and a noise. The right reading implies those closest to the image and
noise that were mixed. All readings see the same noisy images, each at its own timestep for that noise level.
Decides nothing about a run and reads no files.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler

from sdxl_lora.diffusion.flow import FLOW

EPSILON, V = "epsilon", "v_prediction"
USUAL, ZERO_SNR = "usual", "zero_snr"  # schedules for v
IMAGES, IMAGES_FOR_V = 2, 4
LEVELS = (300, 500, 700)  # SDXL timesteps: with less noise epsilon and v look alike, with more v and a flow
LEVELS_FOR_V = (300, 400, 500, 600)  # with more noise the prediction depends on the caption, not the timestep
MARGIN = 0.5  # the lowest error must be at most this share of the second lowest
MARGIN_FOR_V = 0.98  # the same for schedules, whose differences are smaller but consistent over images
SDXL_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

Batch = Mapping[str, torch.Tensor]
Errors = dict[str, float]


def facts_of_trial(weights_sha256: str) -> tuple[str, str, str]:
    """Return the FileMemo key of the errors of `try_readings`."""
    return "prediction", "by images", weights_sha256


@torch.no_grad()
def try_readings(unet, batches: Sequence[Batch]) -> dict[str, Errors]:
    """Return the errors of all readings, near 0 for the right one, as geometric means over images and noises.

    Args:
        batches: IMAGES_FOR_V of them from `collate`, one image each, on the UNet's device.
    Returns:
        "readings": by prediction_type; the implied image's squared error over the image's mean square, plus that
        of the implied noise. "schedules": by USUAL and ZERO_SNR, if v wins; the implied image's squared error alone,
        which a wrong timestep raises by a few per cent.
    """
    table = DDPMScheduler(**SDXL_BETAS).alphas_cumprod
    with evaluating(unet):
        found = [errors_at(unet, batch, float(table[level]), level) for batch in batches[:IMAGES] for level in LEVELS]
        readings = {reading: geometric_mean([errors[reading] for errors in found]) for reading in found[0]}
        if winner(readings) != V:
            return {"readings": readings, "schedules": {}}
        tables = {USUAL: table, ZERO_SNR: DDPMScheduler(**SDXL_BETAS, rescale_betas_zero_snr=True).alphas_cumprod}
        schedules = {
            name: geometric_mean(
                [
                    error_of_image(unet, batch, float(table[level]), timestep_of(float(table[level]), told))
                    for batch in batches
                    for level in LEVELS_FOR_V
                ]
            )
            for name, told in tables.items()
        }
    return {"readings": readings, "schedules": schedules}


def winner(errors: Errors, margin: float = MARGIN) -> str | None:
    """Return the reading with the lowest error, if it wins by the margin; else None."""
    if len(errors) < 2:
        return None
    first, second = sorted(errors, key=errors.__getitem__)[:2]
    return first if math.isfinite(errors[first]) and errors[first] <= margin * errors[second] else None


def errors_at(unet, batch: Batch, kept: float, timestep: float) -> Errors:
    """Return the readings' errors on one noisy image.

    Args:
        kept: the image's share of the noisy image's variance; timestep: SDXL's timestep for it.
    """
    latents, noise = batch["latents"], batch["noise"]
    signal, sigma = kept**0.5, (1 - kept) ** 0.5
    noisy = signal * latents + sigma * noise

    def error(image: torch.Tensor, its_noise: torch.Tensor) -> float:
        of_image = (image - latents).square().mean() / latents.square().mean()
        return (of_image + (its_noise - noise).square().mean()).item()

    said = answer(unet, batch, noisy, timestep)
    errors = {EPSILON: error((noisy - sigma * said) / signal, said)}
    errors[V] = error(signal * noisy - sigma * said, sigma * noisy + signal * said)
    share = sigma / (signal + sigma)  # the same mix on a straight path
    noisy = noisy / (signal + sigma)
    said = answer(unet, batch, noisy, 1000 * share)
    errors[FLOW] = error(noisy - share * said, noisy + (1 - share) * said)
    return errors


def error_of_image(unet, batch: Batch, kept: float, timestep: float) -> float:
    """Return the squared error of the image that v implies, relative to the image's mean square.

    Args:
        timestep: a schedule's timestep for this noise, perhaps between two of its own.
    """
    signal, sigma = kept**0.5, (1 - kept) ** 0.5
    latents = batch["latents"]
    noisy = signal * latents + sigma * batch["noise"]
    image = signal * noisy - sigma * answer(unet, batch, noisy, timestep)
    return ((image - latents).square().mean() / latents.square().mean()).item()


def answer(unet, batch: Batch, noisy: torch.Tensor, timestep: float) -> torch.Tensor:
    """Return the UNet's output for noisy latents, in float32."""
    conditions = {"text_embeds": batch["pooled_embeds"], "time_ids": batch["time_ids"]}
    times = torch.full((len(noisy),), timestep, device=noisy.device)
    said = unet(noisy, times, encoder_hidden_states=batch["prompt_embeds"], added_cond_kwargs=conditions)
    return said.sample.float()


def timestep_of(kept: float, table: torch.Tensor) -> float:
    """Return the fractional timestep at which a schedule keeps this share of the image."""
    return float(np.interp(kept, table.flip(0).numpy(), np.arange(len(table) - 1, -1, -1)))


def geometric_mean(errors: Sequence[float]) -> float:
    """Geometric mean, so that no single error decides; infinite if one is not finite."""
    if not all(map(math.isfinite, errors)):
        return math.inf
    return math.exp(sum(math.log(max(error, 1e-12)) for error in errors) / len(errors))


@contextlib.contextmanager
def evaluating(unet) -> Iterator[None]:
    """Disable dropout within the context and restore the mode afterwards."""
    was_training = unet.training
    unet.eval()
    try:
        yield
    finally:
        unet.train(was_training)
