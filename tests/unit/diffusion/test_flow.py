"""The straight paths of rectified flow, against numpy's arithmetic and diffusers' own scheduler."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from examples.tiny_sdxl import tiny_sdxl
from sdxl_lora.config.sections.objective import ObjectiveConfig
from sdxl_lora.diffusion.flow import FlowSampler, FlowSchedule
from sdxl_lora.diffusion.objective import noise_prediction_loss, snr_of
from sdxl_lora.sampling.generate import generate_image

CONDITIONS = {"prompt_embeds": torch.zeros(3, 77, 4), "pooled_embeds": torch.zeros(3, 4), "time_ids": torch.zeros(3, 6)}


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    return {"latents": latents, "noise": noise, "timesteps": torch.tensor([0, 499, 999])}


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_loss_is_that_of_the_formula_in_numpy(sample, shift):
    place = (sample["timesteps"].double().numpy() + 1) / 1000
    sigma = (shift * place / (1 + (shift - 1) * place)).reshape(-1, 1, 1, 1)
    latents, noise = sample["latents"].double().numpy(), sample["noise"].double().numpy()
    noisy, told = (1 - sigma) * latents + sigma * noise, []

    def unet(given, times, **_):
        np.testing.assert_allclose(given.numpy(), noisy, atol=1e-5)
        told.append(times)
        return SimpleNamespace(sample=0.5 * given)

    loss = noise_prediction_loss(unet, FlowSchedule(1000, shift), conditions=CONDITIONS, **sample)
    by_hand = ((0.5 * noisy - (noise - latents)) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(loss.numpy(), by_hand, rtol=1e-5)
    np.testing.assert_allclose(told[0].numpy(), 1000 * sigma.ravel(), rtol=1e-6)


def test_the_noise_of_a_timestep_is_that_of_diffusers_scheduler(sample):
    ours, theirs = FlowSchedule(1000, 2.5), FlowMatchEulerDiscreteScheduler(1000, 2.5)
    times = ours.times(sample["timesteps"])
    noisy = theirs.scale_noise(sample["latents"], times, sample["noise"])
    torch.testing.assert_close(ours.add_noise(**sample), noisy)
    assert ours.sigmas(torch.tensor([999])) == 1 and snr_of(ours, torch.tensor([999])) == 0
    assert snr_of(FlowSchedule(), torch.tensor([499])).item() == pytest.approx(1)


@pytest.mark.parametrize("steps, shift", [(1, 1.0), (1, 3.0), (7, 3.0)])
def test_along_the_exact_velocity_any_number_of_steps_ends_at_the_image(sample, steps, shift):
    sampler, latents, noise = FlowSampler(1000, shift), sample["latents"], sample["noise"]
    sampler.set_timesteps(steps)
    assert len(sampler.timesteps) == steps and sampler.timesteps[0] == 1000
    point = noise * sampler.init_noise_sigma
    for time in sampler.timesteps:
        sigma = time / 1000
        torch.testing.assert_close(point, (1 - sigma) * latents + sigma * noise, atol=1e-5, rtol=1e-5)
        point = sampler.step(noise - latents, time, sampler.scale_model_input(point, time), return_dict=False)[0]
    torch.testing.assert_close(point, latents, atol=1e-5, rtol=1e-5)


def test_samples_are_drawn_through_the_pipeline_along_the_velocity(sample):
    """A UNet whose velocity always leads to one image gives that image, whatever the seed."""
    pipeline = tiny_sdxl()
    wanted, times = sample["latents"][:1], []

    def towards(given, time, **_):
        times.append(float(time))
        return ((given - wanted) / (time / 1000),)

    pipeline.unet.forward = towards
    prompt = {"prompt_embeds": torch.zeros(77, 56), "pooled_embeds": torch.zeros(32)}
    images = [
        generate_image(pipeline.unet, pipeline.vae, FlowSampler(1000, 3.0), prompt, prompt, (64, 64), 4, 1.0, seed)
        for seed in (0, 1)
    ]
    assert np.abs(np.asarray(images[0], np.int16) - np.asarray(images[1], np.int16)).max() <= 1, "but for rounding"
    expected = [1000 * 3 * s / (1 + 2 * s) for s in (1.0, 0.75, 0.5, 0.25)]
    assert times[:4] == pytest.approx(expected)


def test_huber_by_snr_has_its_scale_for_a_flow_too(sample):
    objective = ObjectiveConfig(loss_type="huber", huber_schedule="snr")
    loss = noise_prediction_loss(
        lambda given, *_, **__: SimpleNamespace(sample=given), FlowSchedule(), conditions=CONDITIONS,
        objective=objective, **sample,
    )  # fmt: skip
    assert loss.isfinite().all() and loss.min() > 0
