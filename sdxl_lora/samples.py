"""Prompts to pictures with the current adapter: fixed seeds, so that pictures of different steps can be compared."""

from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from sdxl_lora.faults import fault_point


@torch.no_grad()
def draw_sample(
    unet,
    vae,
    scheduler,
    prompt: dict[str, torch.Tensor],
    negative: dict[str, torch.Tensor],
    size: tuple[int, int],
    steps: int,
    guidance_scale: float,
    seed: int,
) -> Image.Image:
    """One picture.

    Args:
        vae: in float32, on any device: it is moved beside the UNet for the decoding and back.
        prompt, negative: prompt_embeds (77, D) and pooled_embeds (P,).
        size: height, width in pixels.
    """
    device = next(unet.parameters()).device
    absent = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipeline = StableDiffusionXLPipeline(vae=vae, unet=unet, scheduler=scheduler, **absent)
    pipeline.set_progress_bar_config(disable=True)
    was_training = unet.training
    unet.eval()
    try:
        latents = pipeline(
            prompt_embeds=prompt["prompt_embeds"][None].to(device),
            pooled_prompt_embeds=prompt["pooled_embeds"][None].to(device),
            negative_prompt_embeds=negative["prompt_embeds"][None].to(device),
            negative_pooled_prompt_embeds=negative["pooled_embeds"][None].to(device),
            height=size[0],
            width=size[1],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
    finally:
        unet.train(was_training)
    home = vae.device
    vae.to(device)
    with torch.autocast(device.type, enabled=False):  # SDXL's VAE overflows in half precision
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
    vae.to(home)
    return VaeImageProcessor().postprocess(pixels.float().cpu())[0]


def draw_samples(
    unet, vae, scheduler, prompts, negative, size, steps, guidance_scale, seed, images_per_prompt, folder, step,
    rank=0, world=1, should_stop=lambda: False,
) -> None:  # fmt: skip
    """Draw every prompt `images_per_prompt` times into `folder`; processes share the work. See `draw_sample`.

    `should_stop` is asked before each picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(prompt, image) for prompt in range(len(prompts)) for image in range(images_per_prompt)]
    for prompt, image in wanted[rank::world]:
        if should_stop():
            return
        fault_point("sample")
        picture = draw_sample(
            unet, vae, scheduler, prompts[prompt], negative, size, steps, guidance_scale, seed + image
        )
        picture.save(sample_path(folder, step, prompt, image))


def sample_path(folder: Path, step: int, prompt_number: int, image_number: int) -> Path:
    return folder / f"step-{step:06d}-prompt-{prompt_number}-image-{image_number}.png"


def read_samples(folder: Path, step: int, prompts: int, images_per_prompt: int) -> list[list[Image.Image]]:
    """The pictures that `draw_samples` drew at a step, by prompt."""
    paths = [[sample_path(folder, step, prompt, i) for i in range(images_per_prompt)] for prompt in range(prompts)]
    return [[Image.open(path) for path in of_prompt if path.exists()] for of_prompt in paths]
