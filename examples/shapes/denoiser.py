"""Trains the shapes base's UNet and both text encoders together, on latents encoded once."""

import os
import random

import torch
from diffusers import DDPMScheduler
from torch import nn

from examples.shapes.models import build_scheduler, build_text_encoders, build_unet
from examples.shapes.pool import FRAMES, conditioned_scene, drawing
from examples.shapes.stage import run_stage
from examples.shapes.world import caption, pixels

BATCH = 32
PEAK_LR = 1e-3
SNR_GAMMA = 5.0  # arXiv:2303.09556: timesteps with little noise weigh less
CONTENT_FROM_STEP = 1200  # from here on, timesteps with much noise weigh more: see loss_weights
DRAWINGS_FROM_STEP = 2700  # from here on, a ninth of the pictures are drawings: the hand of a base that has seen more
DROPPED_CAPTIONS = 0.08  # zero embeddings: what the pipeline guides against when there is no negative prompt
EMPTY_CAPTIONS = 0.04  # the embedding of "": what others guide against


def latent_pool(vae, seed, count, work_dir):
    """The pictures, encoded once; the moments are kept in work_dir.

    Returns:
        {(width, height): {"scenes": n Scenes, and n // 8 times None for drawings, "count": n, "time_ids": (m, 6),
        "mean" and "std": (m, 4, height / 4, width / 4)}}, with m = n + n // 8 and the drawings last.
    """
    path = os.path.join(work_dir, "latents.pt")
    moments = torch.load(path, weights_only=True) if os.path.exists(path) else {}
    pool = {}
    for width, height in sorted(set(FRAMES)):
        rng = random.Random(f"pool {seed} {width} {height}")
        size = count * FRAMES.count((width, height)) // len(FRAMES)
        drawn = [conditioned_scene(rng, width, height) for _ in range(size)]
        drawn += [(None, drawing(rng, width, height), (height, width, 0, 0)) for _ in range(size // 8)]
        key = f"{width}x{height}"
        if key not in moments:
            moments[key] = _encode(vae, [picture for _, picture, _ in drawn])
        time_ids = torch.tensor([[*ids, height, width] for _, _, ids in drawn], dtype=torch.float32)
        scenes = [scene for scene, _, _ in drawn]
        pool[width, height] = {"scenes": scenes, "count": size, "time_ids": time_ids, **moments[key]}
    torch.save(moments, path)
    return pool


@torch.no_grad()
def _encode(vae, pictures):
    parts = []
    for start in range(0, len(pictures), 64):
        batch = torch.stack([torch.from_numpy(pixels(picture)) for picture in pictures[start : start + 64]])
        posterior = vae.encode(batch.to(vae.device, memory_format=torch.channels_last)).latent_dist
        parts.append((posterior.mean.cpu(), posterior.std.cpu()))
    mean, std = (torch.cat(part) * vae.config.scaling_factor for part in zip(*parts, strict=True))
    return {"mean": mean, "std": std}


def embed(tokenizer, encoders, captions):
    """Captions -> ((B, 77, 128), (B, 64)): penultimate hidden states of both encoders, pooled output of the second."""
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    first, second = (encoder(ids.to(encoder.device), output_hidden_states=True) for encoder in encoders)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def loss_weights(alphas_cumprod):
    """Weights of the squared noise error by timestep: (for the first steps, for those from CONTENT_FROM_STEP on).

    What a picture shows is decided where the signal is weak, and there an error in it is but sqrt(SNR) of an error in
    the noise. Once the UNet can denoise, 1 / sqrt(SNR) gives that error back half of its weight, so that shapes and
    colours follow the caption sooner.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    plain = snr.clamp(max=SNR_GAMMA) / snr
    return plain, plain * snr.clamp(max=1.0) ** -0.5


def train_denoiser(tokenizer, pool, seed, steps, work_dir, device, on_interval):
    """Trains both text encoders and the UNet.

    Args:
        on_interval: called with (step, text_encoder, text_encoder_2, unet) now and then, averaged weights in them.
    Returns:
        (text_encoder, text_encoder_2, unet)
    """
    torch.manual_seed(seed)
    parts = nn.ModuleList([*build_text_encoders(tokenizer), build_unet()]).to(device, memory_format=torch.channels_last)
    *encoders, unet = parts
    schedule = DDPMScheduler.from_config(build_scheduler().config)
    weights = loss_weights(schedule.alphas_cumprod)

    def loss_at(step):
        chance = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rng = random.Random(f"denoiser {seed} {step}")
        frame = pool[rng.choice(FRAMES)]
        count = frame["count"] if step < DRAWINGS_FROM_STEP else len(frame["scenes"])
        picks = torch.randint(count, (BATCH,), generator=chance)
        scenes = [frame["scenes"][pick] for pick in picks.tolist()]
        captions = [caption(scene, rng) if scene else "an abstract drawing" for scene in scenes]
        captions = ["" if rng.random() < EMPTY_CAPTIONS else text for text in captions]
        latents = frame["mean"][picks]
        latents = latents + frame["std"][picks] * torch.randn(latents.shape, generator=chance)
        noise = torch.randn(latents.shape, generator=chance)
        timesteps = torch.randint(1000, (BATCH,), generator=chance)
        keep = (torch.rand(BATCH, generator=chance) >= DROPPED_CAPTIONS).float().to(device)
        hidden, pooled = embed(tokenizer, encoders, captions)
        conditions = {"text_embeds": pooled * keep[:, None], "time_ids": frame["time_ids"][picks].to(device)}
        noisy = schedule.add_noise(latents, noise, timesteps).to(device, memory_format=torch.channels_last)
        hidden = hidden * keep[:, None, None]
        predicted = unet(noisy, timesteps.to(device), hidden, added_cond_kwargs=conditions).sample
        errors = (predicted - noise.to(device)).square().mean((1, 2, 3))
        return (errors * weights[step >= CONTENT_FROM_STEP][timesteps].to(device)).mean()

    run_stage("denoiser", parts, loss_at, steps, PEAK_LR, work_dir, lambda step: on_interval(step, *parts))
    return parts.requires_grad_(False).eval()
