"""Images of prompts with the current adapter, with fixed seeds, so that images of different steps can be compared.

    samples/step-000500-prompt-0-image-0.png    step, prompt and image count from 0; step 0 is before the training
    samples/grid.png                            prompts by steps, at a glance

Each image's PNG text `parameters` holds its prompt and settings in A1111's format.
"""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from sdxl_lora.config.sample_prompt import SamplePrompt
from sdxl_lora.fault_injection import fault_point
from sdxl_lora.images.decode import ImageError, open_own_png
from sdxl_lora.io.file_system import write_whole
from sdxl_lora.models.latents import latents_for_vae
from sdxl_lora.sampling.grid import image_grid

GRID_NAME = "grid.png"
GRID_ROWS, GRID_COLUMNS = 8, 8  # as many as can be seen at a glance


@torch.no_grad()
def generate_image(
    unet,
    vae,
    scheduler,
    prompt: dict[str, torch.Tensor],
    negative: dict[str, torch.Tensor],
    size: tuple[int, int],
    steps: int,
    guidance_scale: float,
    seed: int,
    guidance_rescale: float = 0.0,
) -> Image.Image:
    """Draw one image.

    Args:
        vae: in float32, on any device; moved to the UNet's for the decoding and back.
        prompt, negative: prompt_embeds (77, D) and pooled_embeds (P,).
        size: height, width in pixels.
        guidance_rescale: share of the way from guided predictions' spread to unguided ones' (arXiv:2305.08891, 3.4).
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
            guidance_rescale=guidance_rescale,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
    finally:
        unet.train(was_training)
    home = vae.device
    vae.to(device)
    with torch.autocast(device.type, enabled=False):  # SDXL's VAE overflows in half precision
        pixels = vae.decode(latents_for_vae(vae.config, latents.to(vae.dtype))).sample
    vae.to(home)
    return to_image(pixels[0])


def to_image(pixels: torch.Tensor) -> Image.Image:
    """Return the image of a tensor (3, H, W) in [-1, 1]."""
    return VaeImageProcessor().postprocess(pixels.float().cpu()[None])[0]


def generate_images(
    unet,
    vae,
    scheduler,
    prompts: Sequence[SamplePrompt],
    read: Callable[[str], dict[str, torch.Tensor]],
    images_per_prompt: int,
    guidance_rescale: float,
    folder: Path,
    step: int,
    rank: int = 0,
    world_size: int = 1,
    should_stop: Callable[[], object] = lambda: False,
) -> None:
    """Draw every prompt `images_per_prompt` times into `folder`; processes share the work. See `generate_image`.

    Args:
        prompts: with all defaults filled in.
        read: gives a text's embeddings.
        should_stop: called before each image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(number, repeat) for number in range(len(prompts)) for repeat in range(images_per_prompt)]
    for number, repeat in wanted[rank::world_size]:
        if should_stop():
            return
        fault_point("sample")
        prompt = prompts[number]
        assert prompt.height and prompt.width and prompt.steps and prompt.guidance_scale is not None
        image = generate_image(
            unet,
            vae,
            scheduler,
            read(prompt.text),
            read(prompt.negative),
            (prompt.height, prompt.width),
            prompt.steps,
            prompt.guidance_scale,
            prompt.seed_of(repeat),
            guidance_rescale,
        )
        write_whole(sample_path(folder, step, number, repeat), png_of(image, prompt.describe(repeat)))


def png_of(image: Image.Image, parameters: str | None = None) -> bytes:
    """Return the bytes of the image's PNG file, with the text `parameters` in it."""
    about, file = PngInfo(), io.BytesIO()
    if parameters is not None:
        about.add_itxt("parameters", parameters)
    image.save(file, format="PNG", pnginfo=about)
    return file.getvalue()


def sample_path(folder: Path, step: int, prompt_number: int, image_number: int) -> Path:
    return folder / f"step-{step:06d}-prompt-{prompt_number}-image-{image_number}.png"


def are_drawn(folder: Path, step: int, prompts: Sequence[SamplePrompt], images_per_prompt: int) -> bool:
    """Return whether all images of a step exist, whole and drawn by these prompts."""
    return all(
        image_by(read_image(sample_path(folder, step, number, image)), prompt.describe(image)) is not None
        for number, prompt in enumerate(prompts)
        for image in range(images_per_prompt)
    )


def read_samples(folder: Path, step: int, prompts: int, images_per_prompt: int) -> list[list[Image.Image]]:
    """Return the images that `generate_images` drew at a step, by prompt."""
    paths = [[sample_path(folder, step, prompt, i) for i in range(images_per_prompt)] for prompt in range(prompts)]
    return [[image for path in of_prompt if (image := read_image(path))] for of_prompt in paths]


def read_image(path: Path, report: Callable[[str], None] = lambda reason: None) -> PngImageFile | None:
    """Return the PNG; None where it is missing or damaged. `report` is told of a damaged one."""
    if not path.exists():
        return None
    try:
        return open_own_png(path)
    except ImageError as error:
        report(f"a sample is left out of {GRID_NAME}: {error}")
        return None


def write_grid(
    folder: Path,
    step: int,
    prompts: Sequence[SamplePrompt],
    images_per_prompt: int,
    report: Callable[[str], None] = lambda reason: None,
) -> Path | None:
    """Write grid.png: rows of each prompt's first images, from the first step to this one.

    An image is shown only if it was drawn by the same prompt, size, seed, guidance and steps.

    Args:
        report: told of damaged images, whose places stay empty.
    Returns:
        Its path; None where nothing was drawn.
    """
    found = (re.match(r"step-(\d+)-prompt-", path.name) for path in folder.glob("step-*.png"))
    steps = sorted({int(match[1]) for match in found if match and int(match[1]) <= step})
    if not steps:
        return None
    shown = spread(steps, GRID_COLUMNS)
    per_prompt = min(images_per_prompt, max(1, GRID_ROWS // len(prompts)))
    labels, rows = [], []
    for number, prompt in enumerate(prompts):
        for image in range(per_prompt):
            paths = [sample_path(folder, step, number, image) for step in shown]
            rows.append([image_by(read_image(path, report), prompt.describe(image)) for path in paths])
            labels.append(f"{prompt.text} (seed {prompt.seed_of(image)})")
    path = folder / GRID_NAME
    write_whole(path, png_of(image_grid([(f"step {step}", 1) for step in shown], labels, rows)))
    return path


def image_by(image: PngImageFile | None, about: str) -> Image.Image | None:
    """Return the image if its text `parameters` is `about`, else None."""
    return image if image and image.text.get("parameters") == about else None


def spread(items: list, count: int) -> list:
    """Return at most `count` of the items, evenly spaced, including the first and the last."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
