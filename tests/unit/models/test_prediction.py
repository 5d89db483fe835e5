"""Prediction type of a base, found by trying it: on the base that draws shapes, as it is and with other answers."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from examples.shapes.denoiser import embed
from examples.shapes.pool import conditioned_scene
from examples.shapes.quality import BASE, load_base
from examples.shapes.world import caption, pixels
from sdxl_lora.models.prediction import (
    IMAGES_FOR_V,
    MARGIN,
    MARGIN_FOR_V,
    SDXL_BETAS,
    try_readings,
    winner,
)

KEPT = DDPMScheduler(**SDXL_BETAS).alphas_cumprod.double().numpy()
KEPT_TO_ZERO = DDPMScheduler(**SDXL_BETAS, rescale_betas_zero_snr=True).alphas_cumprod.double().numpy()
TIMES = np.arange(1000)


@pytest.fixture(scope="module")
def shapes():
    """The UNet of the shapes base, and images with their captions as batches of one."""
    pipeline, rng = load_base(BASE), random.Random(0)
    chance, batches = torch.Generator().manual_seed(0), []
    for _ in range(IMAGES_FOR_V):
        scene, picture, size = conditioned_scene(rng, 64, 64)
        with torch.no_grad():
            mean = pipeline.vae.encode(torch.from_numpy(pixels(picture))[None]).latent_dist.mean
            encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
            prompt_embeds, pooled = embed(pipeline.tokenizer, encoders, [caption(scene, rng)])
        batch = {"latents": mean * pipeline.vae.config.scaling_factor, "prompt_embeds": prompt_embeds}
        batch |= {"noise": torch.randn(mean.shape, generator=chance), "pooled_embeds": pooled}
        batches.append(batch | {"time_ids": torch.tensor([[*map(float, size), 64.0, 64.0]])})
    return pipeline.unet, batches


class Answering:
    """The epsilon of a UNet, said as another kind of base would: exact but for the UNet's own error."""

    def __init__(self, unet, kind, table=KEPT):
        self.unet, self.kind, self.table, self.training = unet, kind, table, False

    def eval(self):
        pass

    def train(self, mode):
        pass

    def __call__(self, noisy, times, **conditions):
        if self.kind == "flow":
            sigma = float(times[0]) / 1000
            size = ((1 - sigma) ** 2 + sigma**2) ** 0.5
            signal, sigma, noisy = (1 - sigma) / size, sigma / size, noisy / size
        else:
            kept = np.interp(float(times[0]), TIMES, self.table)
            signal, sigma = kept**0.5, (1 - kept) ** 0.5
        time = np.interp(signal**2, KEPT[::-1], TIMES[::-1])
        noise = self.unet(noisy, torch.tensor([time], dtype=torch.float32), **conditions).sample
        image = (noisy - sigma * noise) / signal
        said = {"epsilon": noise, "v_prediction": signal * noise - sigma * image, "flow": noise - image}
        return SimpleNamespace(sample=said[self.kind])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_the_reading_that_is_right_wins_by_more_than_the_margin(shapes, kind):
    unet, batches = shapes
    errors = try_readings(Answering(unet, kind), batches)["readings"]
    assert winner(errors) == kind, errors
    others = [error for reading, error in errors.items() if reading != kind]
    assert errors[kind] < 0.1 and errors[kind] < MARGIN * 0.6 * min(others), errors


def test_an_untrained_unet_is_told_to_be_nothing(shapes, tiny_base):
    _, batches = shapes

    def unet(noisy, *_, **__):
        return SimpleNamespace(sample=torch.zeros_like(noisy))

    unet.training, unet.eval, unet.train = False, lambda: None, lambda mode: None
    assert winner(try_readings(unet, batches)["readings"]) is None

    def broken(noisy, *_, **__):
        return SimpleNamespace(sample=torch.full_like(noisy, torch.nan))

    broken.training, broken.eval, broken.train = False, lambda: None, lambda mode: None
    assert winner(try_readings(broken, batches)["readings"]) is None


@pytest.mark.parametrize("table, right", [(KEPT, "usual"), (KEPT_TO_ZERO, "zero_snr")])
def test_of_two_schedules_of_v_the_right_one_wins(shapes, table, right):
    unet, batches = shapes
    errors = try_readings(Answering(unet, "v_prediction", table), batches)["schedules"]
    assert winner(errors, MARGIN_FOR_V) == right, errors
