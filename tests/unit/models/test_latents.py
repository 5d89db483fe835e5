"""A VAE's scale and shift, in numbers and both ways: caches, samples and keys."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from sdxl_lora.cache.fill import weights_key
from sdxl_lora.errors import ConfigError
from sdxl_lora.models.latents import latents_for_vae, latents_of_vae, spread_of_vae
from sdxl_lora.models.loading import Base, check_base, load_vae
from sdxl_lora.models.vae import vae_moments
from sdxl_lora.sampling.generate import generate_image

MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]  # Playground 2.5's
CHANNELS = {"latent_channels": 4}
LATENTS = torch.tensor([1.0, 2.0, -3.0, 0.5]).view(1, 4, 1, 1)


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"scaling_factor": 0.13025}, [0.13025, 0.2605, -0.39075, 0.065125]),
        ({"scaling_factor": 0.5, "shift_factor": 0.1}, [0.45, 0.95, -1.55, 0.2]),
        (
            {"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": STD},
            [0.5 * (1 + 1.6574) / 8.4927, 0.5 * (2 - 1.886) / 5.9022, 0.5 * -1.617 / 6.5498, 0.5 * -2.0155 / 5.2299],
        ),
        ({"scaling_factor": 2.0, "shift_factor": None, "latents_mean": None, "latents_std": None}, [2, 4, -6, 1]),
    ],
)
def test_latents_are_shifted_and_scaled_as_the_config_says_and_back(config, expected):
    config = CHANNELS | config
    seen = latents_of_vae(config, LATENTS)
    torch.testing.assert_close(seen.flatten(), torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(latents_for_vae(config, seen), LATENTS)
    ones = torch.ones(4, 2, 2)
    moved = latents_of_vae(config, LATENTS + 0.25) - seen
    torch.testing.assert_close(spread_of_vae(config, ones * 0.25)[:, 0, 0], moved.flatten())


@pytest.mark.parametrize(
    "config",
    [
        {"latents_mean": MEAN},
        {"latents_std": STD},
        {"latents_mean": MEAN[:3], "latents_std": STD[:3]},
    ],
)
def test_half_a_shift_is_refused_before_any_work(tiny_base, tmp_path, config):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(ConfigError, match="both must have 4 numbers"):
        check_base(Base(str(folder)))


def test_caches_and_samples_agree_with_the_vae_that_shifts(tiny_base, tmp_path):
    """What is cached of a picture is what the VAE would be given back, by diffusers' own formula."""
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    path = folder / "vae" / "config.json"
    plain = load_vae(Base(str(folder)))
    path.write_text(json.dumps({**json.loads(path.read_text()), "latents_mean": MEAN, "latents_std": STD}))
    vae = load_vae(Base(str(folder)))
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = vae.encode(pixels).latent_dist
    moments = vae_moments(vae, pixels)[0]
    mean, std = torch.tensor(MEAN).view(4, 1, 1), torch.tensor(STD).view(4, 1, 1)
    torch.testing.assert_close(moments["mean"], (posterior.mean[0] - mean) * vae.config.scaling_factor / std)
    torch.testing.assert_close(moments["std"], posterior.std[0] * vae.config.scaling_factor / std)
    assert weights_key(vae) != weights_key(plain), "caches of the VAE that does not shift are not taken for its own"


def test_a_sample_is_decoded_from_latents_that_are_shifted_back(tiny_base, tmp_path):
    """The same picture as diffusers' pipeline draws, whose VAE shifts by channel."""
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "latents_mean": MEAN, "latents_std": STD}))
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    theirs = pipeline("a cat", height=64, width=64, num_inference_steps=2, guidance_scale=2.0, generator=generator)
    embeds, negative, pooled, negative_pooled = pipeline.encode_prompt("a cat", device="cpu")
    ours = generate_image(
        pipeline.unet,
        load_vae(Base(str(folder))),
        pipeline.scheduler,
        {"prompt_embeds": embeds[0], "pooled_embeds": pooled[0]},
        {"prompt_embeds": negative[0], "pooled_embeds": negative_pooled[0]},
        (64, 64),
        2,
        2.0,
        3,
    )
    apart = np.abs(np.asarray(ours, int) - np.asarray(theirs.images[0], int))
    assert apart.max() <= 1, "but for the last bit of a division"
