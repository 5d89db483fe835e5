"""Train the shapes base's UNet and both text encoders together, on latents encoded once."""

import os
import random
import zlib
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import nn

from examples.shapes.models import build_scheduler, build_text_encoders, build_unet
from examples.shapes.pool import FRAMES, conditioned_scene, drawing, odd_scene
from examples.shapes.stage import run_stage
from examples.shapes.world import caption, pixels

BATCH = 32
PEAK_LR = 1e-3
SNR_GAMMA = 5.0  # arXiv:2303.09556: timesteps with little noise weigh less
CONTENT_FROM_STEP = 1200  # from then on, timesteps with much noise weigh more: see loss_weights
DRAWINGS_FROM_STEP = 2700  # from then on, a ninth of the images are drawings, which broaden the base
ODD_COUNT = 12  # images of a batch in the last stage with a nameless shape
ODD_PEAK_LR = 7e-4
DROPPED_CAPTIONS = 0.08  # zero embeddings: the pipeline's guidance without a negative prompt
EMPTY_CAPTIONS = 0.04  # the embedding of "": the guidance of other programs


def scene_pool(vae, seed, count, work_dir):
    """Return `count` scenes and an eighth as many drawings, whose scene is None; see encoded_pool."""

    def make(rng, width, height, size):
        scenes = [conditioned_scene(rng, width, height) for _ in range(size)]
        return scenes, [(None, drawing(rng, width, height), (height, width, 0, 0)) for _ in range(size // 8)]

    return encoded_pool(vae, f"pool {seed}", count, os.path.join(work_dir, "latents.pt"), make)


def odd_pool(vae, seed, count, work_dir):
    """Return `count` scenes of nameless shapes; see encoded_pool."""

    def make(rng, width, height, size):
        return [odd_scene(rng, width, height) for _ in range(size)], []

    return encoded_pool(vae, f"odd {seed}", count, os.path.join(work_dir, "odd_latents.pt"), make)


def encoded_pool(vae, seed, count, path, make):
    """Return images encoded once; the moments are kept at `path`.

    Args:
        seed: text that fixes the images.
        make: (rng, width, height, size) -> two lists of (scene, image, time ids without the target size).
    Returns:
        {(width, height): {"scenes": those of both lists, "count": length of the first list, "time_ids": (n, 6),
        "mean" and "std": (n, 4, height / 4, width / 4)}}
    """
    moments = torch.load(path, weights_only=True) if os.path.exists(path) else {}
    pool = {}
    for width, height in sorted(set(FRAMES)):
        rng = random.Random(f"{seed} {width} {height}")
        first, second = make(rng, width, height, count * FRAMES.count((width, height)) // len(FRAMES))
        scenes, images, ids = zip(*first, *second, strict=True)
        key = f"{width}x{height}"
        digest = zlib.crc32(b"".join(image.tobytes() for image in images))
        if moments.get(key, {}).get("digest") != digest:  # missing, or of other images than the captions
            moments[key] = _encode(vae, images) | {"digest": digest}
        time_ids = torch.tensor([[*start, height, width] for start in ids], dtype=torch.float32)
        pool[width, height] = {"scenes": scenes, "count": len(first), "time_ids": time_ids, **moments[key]}
    torch.save(moments, path)
    return pool


@torch.no_grad()
def _encode(vae, images):
    parts = []
    for start in range(0, len(images), 64):
        batch = torch.stack([torch.from_numpy(pixels(image)) for image in images[start : start + 64]])
        posterior = vae.encode(batch.to(vae.device, memory_format=torch.channels_last)).latent_dist
        parts.append((posterior.mean.cpu(), posterior.std.cpu()))
    mean, std = (torch.cat(part) * vae.config.scaling_factor for part in zip(*parts, strict=True))
    return {"mean": mean, "std": std}


def embed(tokenizer, encoders, captions):
    """Return ((B, 77, 128), (B, 64)): penultimate hidden states of both encoders, and pooled output of the second."""
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    first, second = (encoder(ids.to(encoder.device), output_hidden_states=True) for encoder in encoders)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def loss_weights(alphas_cumprod):
    """Return weights of the squared noise error by timestep: (for the first steps, from CONTENT_FROM_STEP on).

    The content of an image is decided where the signal is weak, and there an error in it is only sqrt(SNR) of an error
    in the noise. Once the UNet can denoise, 1 / sqrt(SNR) gives that error back half of its weight, so that shapes and
    colours follow the caption sooner.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    plain = snr.clamp(max=SNR_GAMMA) / snr
    return plain, plain * snr.clamp(max=1.0) ** -0.5


def sample(frame, below, count, rng, chance):
    """Return `count` of a frame's first `below` images: (captions, latents (count, 4, h, w), time ids (count, 6))."""
    picks = torch.randint(below, (count,), generator=chance)
    scenes = [frame["scenes"][pick] for pick in picks.tolist()]
    captions = [caption(scene, rng) if scene else "an abstract drawing" for scene in scenes]
    captions = ["" if rng.random() < EMPTY_CAPTIONS else text for text in captions]
    mean, std = frame["mean"][picks], frame["std"][picks]
    return captions, mean + std * torch.randn(mean.shape, generator=chance), frame["time_ids"][picks]


def noise_error(parts, tokenizer, schedule, captions, latents, time_ids, chance):
    """Return (timesteps, mean squared error of the predicted noise by image), both (B,); some captions become zeros."""
    *encoders, unet = parts
    noise = torch.randn(latents.shape, generator=chance)
    timesteps = torch.randint(1000, (len(latents),), generator=chance)
    keep = (torch.rand(len(latents), generator=chance) >= DROPPED_CAPTIONS).float().to(unet.device)
    hidden, pooled = embed(tokenizer, encoders, captions)
    conditions = {"text_embeds": pooled * keep[:, None], "time_ids": time_ids.to(unet.device)}
    noisy = schedule.add_noise(latents, noise, timesteps).to(unet.device, memory_format=torch.channels_last)
    hidden = hidden * keep[:, None, None]
    predicted = unet(noisy, timesteps.to(unet.device), hidden, added_cond_kwargs=conditions).sample
    return timesteps, (predicted - noise.to(unet.device)).square().mean((1, 2, 3))


def train_denoiser(tokenizer, pool, odd, seed, steps, odd_steps, work_dir, device, on_interval):
    """Train both text encoders and the UNet: `steps` on the scenes, then `odd_steps` with nameless shapes.

    Args:
        pool, odd: of scene_pool and odd_pool.
        on_interval: called at intervals with (step, text_encoder, text_encoder_2, unet), which hold averaged weights.
    Returns:
        (text_encoder, text_encoder_2, unet)
    """
    torch.manual_seed(seed)
    parts: Any = nn.ModuleList([*build_text_encoders(tokenizer), build_unet()])
    parts.to(device, memory_format=torch.channels_last)
    schedule = DDPMScheduler.from_config(build_scheduler().config)
    weights = loss_weights(schedule.alphas_cumprod.to(device))

    def loss_at(step, odd_count=0):
        chance = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rng = random.Random(f"denoiser {seed} {step}")
        size = rng.choice(FRAMES)
        below = pool[size]["count"] if step < DRAWINGS_FROM_STEP else len(pool[size]["scenes"])
        captions, latents, time_ids = sample(pool[size], below, BATCH - odd_count, rng, chance)
        if odd_count:
            more = sample(odd[size], odd[size]["count"], odd_count, rng, chance)
            captions, latents, time_ids = (
                captions + more[0],
                torch.cat([latents, more[1]]),
                torch.cat([time_ids, more[2]]),
            )
        timesteps, errors = noise_error(parts, tokenizer, schedule, captions, latents, time_ids, chance)
        return (errors * weights[step >= CONTENT_FROM_STEP][timesteps.to(device)]).mean()

    run_stage("denoiser", parts, loss_at, steps, PEAK_LR, work_dir, lambda step: on_interval(step, *parts))
    run_stage(
        "odd", parts, lambda step: loss_at(steps + step, ODD_COUNT), odd_steps, ODD_PEAK_LR, work_dir,
        lambda step: on_interval(steps + step, *parts),
    )  # fmt: skip
    return parts.requires_grad_(False).eval()
