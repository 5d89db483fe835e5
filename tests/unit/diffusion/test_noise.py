"""Noise: its variance and correlations by hand, and streams that do not disturb each other."""

import pytest
import torch

from sdxl_lora.config.sections.objective import NoiseConfig
from sdxl_lora.diffusion.noise import draw_input_noise, draw_noise
from sdxl_lora.rng import SampleKey

TURNS = [SampleKey(example, epoch) for example in range(20) for epoch in range(20)]
SHAPE = (4, 16, 24)


def noises(form):
    return torch.stack([draw_noise(1, sample, SHAPE, form) for sample in TURNS])


def test_noise_offset_adds_one_number_per_channel():
    plain, offset = noises(NoiseConfig()), noises(NoiseConfig(noise_offset=0.1))
    added = offset - plain
    assert torch.allclose(added, added[:, :, :1, :1], atol=1e-6)
    assert added[:, :, 0, 0].std().item() == pytest.approx(0.1, rel=0.1)
    assert abs(added.mean().item()) < 0.01


def test_pyramid_noise_keeps_variance_1_and_ties_neighbours_together():
    noise = noises(NoiseConfig(multires_noise_iterations=2, multires_noise_discount=0.5))
    variance = 1 + 0.5**2 + 0.5**4
    assert noise.var().item() == pytest.approx(1, rel=0.02)

    def correlation(one, two):
        return (noise[..., one] * noise[..., two]).mean().item()

    assert correlation(0, 1) == pytest.approx((0.5**2 + 0.5**4) / variance, abs=0.02)  # in one square of 2 and of 4
    assert correlation(1, 2) == pytest.approx(0.5**4 / variance, abs=0.02)  # in one square of 4
    assert correlation(3, 4) == pytest.approx(0, abs=0.02)


def test_pyramid_noise_ends_at_a_single_value():
    wanted, possible = (draw_noise(1, TURNS[0], (4, 3, 2), NoiseConfig(multires_noise_iterations=n)) for n in (50, 2))
    assert torch.equal(wanted, possible) and wanted.shape == (4, 3, 2)


def test_input_perturbation_is_noise_of_its_strength():
    noise = draw_noise(1, TURNS[0], (4, 64, 64))
    added = draw_input_noise(1, TURNS[0], noise, 0.1) - noise
    assert added.std().item() == pytest.approx(0.1, rel=0.05)
    assert abs((added * noise).mean().item()) < 0.01


def test_every_draw_is_the_turns_own_and_comes_again():
    form = NoiseConfig(noise_offset=0.1, multires_noise_iterations=3, input_perturbation=0.1)
    drawn = [draw_noise(1, sample, SHAPE, form) for sample in TURNS[:3]]
    assert all(
        torch.equal(draw_noise(1, sample, SHAPE, form), noise) for sample, noise in zip(TURNS, drawn, strict=False)
    )
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(
        draw_noise(1, TURNS[0], SHAPE, NoiseConfig(input_perturbation=0.1)), draw_noise(1, TURNS[0], SHAPE)
    )
