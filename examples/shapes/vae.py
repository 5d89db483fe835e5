"""Train the shapes base's VAE and measure its latent scale."""

import torch

from examples.shapes.models import build_vae
from examples.shapes.pool import vae_batch
from examples.shapes.stage import run_stage

BATCH = 8
KL_WEIGHT = 3e-4  # per latent number; keeps latents smooth without blurring edges
PEAK_LR = 2e-3


def train_vae(seed, steps, work_dir, device):
    """Return a trained AutoencoderKL, with its `scaling_factor` set to one over the latents' measured deviation."""
    torch.manual_seed(seed)
    vae = build_vae().to(device, memory_format=torch.channels_last)

    def loss_at(step):
        images = vae_batch(seed, step, BATCH).to(device, memory_format=torch.channels_last)
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + step))
        error = vae.decode(posterior.mean + posterior.std * noise.to(device)).sample - images
        kl = posterior.kl().sum() / posterior.mean.numel()
        return error.abs().mean() + error.square().mean() + KL_WEIGHT * kl

    run_stage("vae", vae, loss_at, steps, PEAK_LR, work_dir)
    vae.requires_grad_(False).eval()
    with torch.no_grad():
        latents = [
            vae.encode(vae_batch(seed, -step, BATCH)[: BATCH // 2].to(device)).latent_dist.mean
            for step in (5, 10, 15, 20)
        ]
    vae.register_to_config(scaling_factor=round(1 / torch.cat(latents).std().item(), 5))
    return vae
